//! The NBD client when a real server is killed, stopped, or hidden behind TLS.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod client_harness;

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use client_harness::{
    Place, Server, end, free_port, options, start_flush, start_read, start_write, try_open, unix, wait_for,
};
use redirector::lun::Outcome;

const SIZE: u64 = 8 << 20;

fn delayed(place: &Place, image: &Path) -> Server {
    let file = format!("file={}", image.display());
    let arguments = ["--filter=delay", "file", &file, "rdelay=20ms", "wdelay=20ms"];
    Server::nbdkit(&place.path("s"), &arguments)
}

#[test]
fn a_server_is_killed_with_requests_in_flight_and_started_again() {
    let place = Place::new();
    let image = place.image("image", SIZE);
    let mut server = delayed(&place, &image);
    let lun = try_open(&unix(&place.path("s"), ""), &options()).unwrap();
    for round in 1..=3u8 {
        let writes: Vec<_> =
            (0..64).map(|i| start_write(&*lun, i * 65536, place.filled(round, 65536), i % 8 == 0)).collect();
        let reads: Vec<_> = (64..96).map(|i| start_read(&*lun, i * 65536, place.pool.take(65536))).collect();
        wait_for("the first answer", || writes.iter().any(|write| write.try_recv() == Ok(Outcome::Done)));
        server.kill();
        wait_for("the path to be down", || lun.describe().contains("down"));
        server = delayed(&place, &image);
        // One of them may have been taken by the wait above.
        let ended = writes.iter().filter_map(|write| write.recv_timeout(client_harness::PATIENCE).ok());
        assert!(ended.map(|outcome| assert_eq!(outcome, Outcome::Done)).count() >= 1);
        for read in &reads {
            assert_eq!(end(read).0, Outcome::Done);
        }
        assert_eq!(end(&start_flush(&*lun)), Outcome::Done);
        for i in 0..64 {
            let (outcome, buffer) = end(&start_read(&*lun, i * 65536, place.pool.take(65536)));
            assert_eq!(outcome, Outcome::Done);
            assert!(buffer.iter().all(|byte| *byte == round), "round {round}: lost at {i}");
        }
    }
}

#[test]
fn a_server_that_hangs_is_suspect_until_it_answers() {
    let place = Place::new();
    let server = Server::nbdkit(&place.path("s"), &["memory", "8M"]);
    let lun = try_open(&unix(&place.path("s"), ""), &options()).unwrap();
    // So many that the path has shown how fast it is.
    for _ in 0..1100 {
        assert_eq!(end(&start_read(&*lun, 0, place.pool.take(512))).0, Outcome::Done);
    }
    server.stop();
    let write = start_write(&*lun, 0, place.filled(5, 4096), false);
    let read = start_read(&*lun, 4096, place.pool.take(4096));
    wait_for("the path to be suspect", || lun.describe().contains("suspect"));
    assert!(lun.describe().contains("no answer for"), "{}", lun.describe());
    assert!(write.try_recv().is_err() && read.try_recv().is_err());
    server.signal(libc::SIGCONT);
    assert_eq!(end(&write), Outcome::Done);
    assert_eq!(end(&read).0, Outcome::Done);
    wait_for("the path to be up", || lun.describe().contains("up for"));
    assert!(lun.ghosts().is_empty(), "nothing was sent twice");
}

#[test]
fn a_server_that_hangs_for_the_whole_hold_time_is_given_up() {
    let place = Place::new();
    let server = Server::nbdkit(&place.path("s"), &["memory", "8M"]);
    let mut options = options();
    options.hold = Duration::from_millis(300);
    let lun = try_open(&unix(&place.path("s"), ""), &options).unwrap();
    server.stop();
    let write = start_write(&*lun, 0, place.filled(5, 4096), false);
    assert_eq!(end(&write), Outcome::Unknown);
    server.signal(libc::SIGCONT);
    let done = || end(&start_read(&*lun, 0, place.pool.take(4096))).0 == Outcome::Done;
    wait_for("the path to be back", done);
}

/// A CA, and a certificate for a server or a client, in the layout of libnbd and QEMU.
fn certificates(dir: &Path, ca: &rcgen::Issuer<'_, rcgen::KeyPair>, ca_pem: &str, role: &str) {
    std::fs::create_dir_all(dir).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, role);
    let certificate = params.signed_by(&key, ca).unwrap();
    std::fs::write(dir.join("ca-cert.pem"), ca_pem).unwrap();
    std::fs::write(dir.join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
    std::fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
}

fn new_ca() -> (rcgen::Issuer<'static, rcgen::KeyPair>, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
    let pem = params.self_signed(&key).unwrap().pem();
    (rcgen::Issuer::new(params, key), pem)
}

#[test]
fn tls_carries_io_and_both_sides_are_verified() {
    let place = Place::new();
    let (ca, pem) = new_ca();
    certificates(&place.path("server"), &ca, &pem, "server");
    certificates(&place.path("client"), &ca, &pem, "client");
    let (other, other_pem) = new_ca();
    certificates(&place.path("stranger"), &other, &pem, "client");
    certificates(&place.path("doubter"), &ca, &other_pem, "client");
    let port = free_port();
    let port_text = port.to_string();
    let tls = format!("--tls-certificates={}", place.path("server").display());
    let arguments = [
        "-f",
        "-i",
        "127.0.0.1",
        "-p",
        &port_text,
        "--tls=require",
        "--tls-verify-peer",
        &tls,
        "memory",
        "8M",
    ];
    let _server = Server::start("nbdkit", &arguments, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let uri = |dir: &str| {
        format!(
            "nbds://127.0.0.1:{port}/?tls-certificates={}&tls-hostname=localhost",
            place.path(dir).display()
        )
    };
    let lun = try_open(&uri("client"), &options()).unwrap();
    let writes: Vec<_> =
        (0..8u8).map(|i| start_write(&*lun, u64::from(i) << 20, place.filled(i, 1 << 20), false)).collect();
    assert!(writes.iter().all(|write| end(write) == Outcome::Done));
    let reads: Vec<_> =
        (0..8u8).map(|i| (i, start_read(&*lun, u64::from(i) << 20, place.pool.take(1 << 20)))).collect();
    for (i, read) in &reads {
        let (outcome, buffer) = end(read);
        assert!(outcome == Outcome::Done && buffer.iter().all(|byte| byte == i));
    }
    let error = |uri: &str| try_open(uri, &options()).map(|_| ()).unwrap_err().to_string();
    let text = error(&uri("doubter"));
    assert!(text.contains("TLS failed"), "{text}");
    assert!(!error(&uri("stranger")).is_empty());
    let text = error(&format!("nbd://127.0.0.1:{port}/"));
    assert!(text.contains("demands TLS"), "{text}");
}

#[test]
fn tls_is_never_given_up_silently() {
    let place = Place::new();
    let (ca, pem) = new_ca();
    certificates(&place.path("client"), &ca, &pem, "client");
    let _server = Server::nbdkit(&place.path("s"), &["memory", "8M"]);
    let uri = unix(&place.path("s"), "").replace("nbd+", "nbds+");
    let uri = format!("{uri}&tls-certificates={}", place.path("client").display());
    let text = try_open(&uri, &options()).unwrap_err().to_string();
    assert!(text.contains("does not offer TLS"), "{text}");
}
