//! Arbitrary bytes on every port and socket: nothing dies, nothing grows, and who behaves is served.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::mounted::fsck_clean;
use lab::nonsense::{for_target, memory};
use lab::server::{Kind, Server};
use lab::site::{SIZE, format_quick};
use lab::{Site, content};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::json;

/// The most memory in bytes that a process may have taken in the end.
const MEMORY_MAX: u64 = 256 << 20;

/// Sends each piece of nonsense by a connection of its own; half of them stay open for a while without a word.
fn throw(socket: &Path, seed: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut open = Vec::new();
    for (i, bytes) in for_target(&mut random).into_iter().enumerate() {
        let mut stream = UnixStream::connect(socket).context("the server still listens")?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        stream.set_read_timeout(Some(Duration::from_millis(5)))?;
        // It may have been closed in the middle.
        let _ = stream.write_all(&bytes);
        let _ = stream.read(&mut [0; 4096]);
        if i % 2 == 0 {
            open.push(stream);
        }
    }
    Ok(())
}

#[test]
fn csv_target_survives_arbitrary_bytes_beside_a_mount() -> Result<()> {
    let site = Site::new()?;
    let mut server = Server::start(Kind::CsvTarget, &site.path(""), SIZE)?;
    let url = server.url();
    format_quick(&url)?;
    let mount = site.mount(&url)?;
    std::thread::scope(|scope| -> Result<()> {
        let (data, control) = (server.socket(), server.control_socket());
        let throwing = [scope.spawn(move || throw(&data, 1)), scope.spawn(move || throw(&control, 2))];
        for round in 0..10 {
            content::fill(&mount.path().join(format!("file{round}")), round, 100)?;
        }
        throwing.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    for round in 0..10 {
        content::check(&mount.path().join(format!("file{round}")), round, 100)?;
    }
    ensure!(server.control(&json!({"op": "status"}))?["ok"] == true);
    let used = memory(server.process().pid())?;
    ensure!(used < MEMORY_MAX, "the target has taken {used} bytes");
    ensure!(!server.process().errors().contains("panicked"), "{}", server.process().errors());
    mount.unmount()?;
    fsck_clean(&url)
}

#[test]
fn the_status_socket_survives_arbitrary_bytes() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let mut mount = site.mount(&url)?;
    let socket = site.path("run/local").join(format!("{}.sock", mount.process().pid()));
    throw(&socket, 3)?;
    ensure!(site.status()?["state"] == "direct");
    // Somebody who asks and never reads does not keep others waiting for ever.
    let silent: Vec<_> = (0..50).map(|_| UnixStream::connect(&socket)).collect::<Result<_, _>>()?;
    ensure!(site.status()?["state"] == "direct");
    drop(silent);
    let used = memory(mount.process().pid())?;
    ensure!(used < MEMORY_MAX, "the mount has taken {used} bytes");
    ensure!(mount.process().errors().is_empty(), "{}", mount.process().errors());
    mount.unmount()
}

/// What calls itself an NBD server may be anything.
#[test]
fn a_server_that_speaks_nonsense_is_refused() -> Result<()> {
    let site = Site::new()?;
    let socket = site.path("liar.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket)?;
    let replies: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"NBDMAGIC".to_vec(),
        [b"NBDMAGICIHAVEOPT\x00\x03".to_vec(), vec![0xff; 4096]].concat(),
        [&b"NBDMAGICIHAVEOPT\x00\x03"[..], &0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &[0xff; 64]]
            .concat(),
        vec![0; 100_000],
    ];
    let url = format!("nbd+unix:///vms?socket={}", socket.display());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let current = parking_lot::Mutex::new(Vec::new());
    std::thread::scope(|scope| -> Result<()> {
        let (stop, current, listener) = (&stop, &current, &listener);
        scope.spawn(move || {
            for stream in listener.incoming() {
                if stop.load(std::sync::atomic::Ordering::Acquire) {
                    return;
                }
                if let Ok(mut stream) = stream {
                    let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
                    let reply: Vec<u8> = current.lock().clone();
                    let _ = stream.write_all(&reply);
                    let _ = stream.read(&mut [0; 4096]);
                }
            }
        });
        let tried = replies.iter().try_for_each(|reply| {
            reply.clone_into(&mut *current.lock());
            site.mount_refused(&url, &[])?.saying(&["vms"]).map(drop)
        });
        stop.store(true, std::sync::atomic::Ordering::Release);
        drop(UnixStream::connect(&socket));
        tried
    })
}
