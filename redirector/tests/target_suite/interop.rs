//! Other people's clients against the target.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

use crate::lab::{Lab, noise, run};

/// A sparse image: data at both ends and a little in the middle.
fn image(lab: &Lab) -> std::path::PathBuf {
    let path = lab.path("source.img");
    let mut file = std::fs::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    for offset in [0, 30 << 20, (64 << 20) - 70_000] {
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.write_all(&noise(offset, 70_000)).unwrap();
    }
    path
}

#[test]
fn nbdinfo_sees_what_the_export_can_do() {
    let lab = Lab::new();
    let info: serde_json::Value = serde_json::from_str(&run("nbdinfo", &["--json", &lab.uri()])).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "vms");
    assert_eq!(export["export-size"], 64 << 20);
    for ability in
        ["can_multi_conn", "can_fua", "can_flush", "can_trim", "can_zero", "can_fast_zero", "can_df"]
    {
        assert_eq!(export[ability], true, "{ability}");
    }
    assert_eq!(export["block_size_maximum"], 32 << 20);
    assert_eq!(info["structured"], true);
    assert!(run("nbdinfo", &["--list", &lab.uri()]).contains("export=\"vms\""));
}

#[test]
fn nbdcopy_there_and_back() {
    let lab = Lab::new();
    let source = image(&lab);
    let back = lab.path("back.img");
    run("nbdcopy", &["--flush", source.to_str().unwrap(), &lab.uri()]);
    run("nbdcopy", &["--connections=4", &lab.uri(), back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == std::fs::read(&source).unwrap());
}

#[test]
fn qemu_img_converts_and_compares() {
    let lab = Lab::new();
    let source = image(&lab);
    let source = source.to_str().unwrap();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", source, &lab.uri()]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &lab.uri()]);
    let qcow = lab.path("back.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &lab.uri(), qcow.to_str().unwrap()]);
    run("qemu-img", &["compare", source, qcow.to_str().unwrap()]);
    let info: serde_json::Value =
        serde_json::from_str(&run("qemu-img", &["info", "--output=json", &lab.uri()])).unwrap();
    assert_eq!(info["virtual-size"], 64 << 20);
}

#[test]
fn the_nbd_crates_client_reads_and_writes() {
    let lab = Lab::new();
    let mut stream = UnixStream::connect(lab.path("nbd")).unwrap();
    let export = nbd::client::handshake(&mut stream, b"vms").unwrap();
    assert_eq!(export.size, 64 << 20);
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let data = noise(1, 100_000);
    client.seek(SeekFrom::Start(5000)).unwrap();
    client.write_all(&data).unwrap();
    client.flush().unwrap();
    client.seek(SeekFrom::Start(5000)).unwrap();
    let mut back = vec![0; data.len()];
    client.read_exact(&mut back).unwrap();
    assert!(back == data);
}

#[test]
fn fio_verifies_what_it_wrote() {
    let lab = Lab::new();
    let uri = format!("--uri={}", lab.uri());
    let job = ["--name=v", "--ioengine=nbd", &uri, "--rw=randwrite", "--bsrange=4k-256k", "--bs_unaligned=1"];
    let rest = [
        "--iodepth=32",
        "--size=32m",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--trim_percentage=10",
        "--fsync=64",
        "--minimal",
    ];
    run("fio", &[&job[..], &rest[..]].concat());
    let counts = lab.server.status().clients[0].counts;
    assert!(counts.writes > 100 && counts.reads > 100 && counts.flushes > 0, "{counts:?}");
}
