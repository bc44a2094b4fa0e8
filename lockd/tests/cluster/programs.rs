//! The programs as a person meets them, and what does not speak to them at all.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use lockd::authority::Authority;
use lockd::ids::ResourceId;
use lockd::local::frame;
use lockd::machine::ClientKind;

use crate::helper::Holder;
use crate::site::{Site, wait_for};

#[test]
fn garbage_on_the_socket_harms_nobody() {
    let site = Site::start(1, 0, 8.0);
    let client = site.client(0, ClientKind::Vmhost);
    let socket = site.run_dir(0).socket();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..60 {
        let mut stream = UnixStream::connect(&socket).expect("lockd accepts");
        if round % 3 != 0 {
            stream.write_all(&frame::greeting()).expect("greeted");
        }
        if round % 3 == 1 {
            // The length of a frame that never comes.
            stream.write_all(&u32::try_from(frame::FRAME_MAX).expect("small").to_le_bytes()).expect("sent");
        }
        let junk: Vec<u8> = (0..500)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 56) as u8
            })
            .collect();
        // It may hang up at any byte.
        let _ = stream.write_all(&junk);
        if round % 3 != 1 {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        }
    }
    client.acquire(&ResourceId::Vm("web".to_owned()), client.client()).expect("lockd goes on");
}

#[test]
fn a_second_lockd_a_wrong_node_and_a_missing_lockd_are_told_apart() {
    let site = Site::start(1, 0, 8.0);
    let lockd = |node: &str, data: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_lockd"))
            .args(["--cluster", &site.file(), "--node", node, "--data", data, "--run-dir"])
            .arg(site.run_base())
            .output()
            .expect("lockd runs");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let data = site.run_base().join("elsewhere").display().to_string();
    assert!(lockd("n0", &data).contains("in use by another lockd"));
    assert!(lockd("n7", &data).contains("no node n7"));
    assert!(lockd("n0", "/proc/nowhere").contains("/proc/nowhere"));
    let nobody = Command::new(env!("CARGO_BIN_EXE_lockctl"))
        .args(["--run-dir", "/nowhere", "ls"])
        .output()
        .expect("lockctl runs");
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no lockd"), "{nobody:?}");
    assert_eq!(site.lockctl(&["transfer", "vm/web"]).status.code(), Some(2), "usage");
}

#[test]
fn a_break_demands_the_name_of_the_node_and_frees() {
    let mut site = Site::start(1, 1, 1.0);
    site.register_volume(0);
    let file = ResourceId::File(crate::site::VOLUME, 9);
    let holder = Holder::start(&site, 1, &file, false);
    let name = file.to_string();
    let live = site.lockctl(&["break", &name, "--confirm-node", "n1"]);
    assert_eq!(live.status.code(), Some(1), "{live:?}");
    site.kill(1);
    holder.kill();
    wait_for("the session to end", || {
        (site.json(&["show", &name])["holders"][0]["state"] != "live").then_some(())
    });
    // It may be free by its fence before an operator has come.
    let unconfirmed = site.lockctl(&["break", &name]);
    assert_eq!(unconfirmed.status.code(), Some(1), "{unconfirmed:?}");
    let broken = site.lockctl(&["break", &name, "--confirm-node", "n1", "--operator", "test"]);
    if !broken.status.success() {
        assert_eq!(site.json(&["show", &name])["holders"], serde_json::json!([]), "{broken:?}");
    }
    wait_for("the file to be free", || {
        (site.json(&["show", &name])["holders"] == serde_json::json!([])).then_some(())
    });
}
