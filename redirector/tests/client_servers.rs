//! The NBD client against other people's servers.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod client_harness;

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use client_harness::exercise::{SIZE, exercise};
use client_harness::{
    Place, Server, end, free_port, options, start_read, start_write, start_zero, try_open, unix,
};
use redirector::lun::Outcome;

#[test]
fn nbdkit_on_a_unix_socket() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = Server::nbdkit(&socket, &["memory", "16M"]);
    exercise(&place, &unix(&socket, ""), 1);
    exercise_zeroed(&place, &format!("{}&connections=1", unix(&socket, "")));
    exercise_zeroed(&place, &format!("{}&replies=structured", unix(&socket, "")));
}

/// The same server again: its memory is kept.
fn exercise_zeroed(place: &Place, uri: &str) {
    let lun = try_open(uri, &options()).unwrap();
    assert_eq!(end(&start_zero(&*lun, 0..SIZE)), Outcome::Done);
    drop(lun);
    exercise(place, uri, 2);
}

#[test]
fn nbdkit_by_tcp_with_a_file() {
    let place = Place::new();
    let image = place.image("image", SIZE);
    let port = free_port();
    let port_text = port.to_string();
    let arguments = ["-f", "-i", "127.0.0.1", "-p", &port_text, "file", image.to_str().unwrap()];
    let _server =
        Server::start("nbdkit", &arguments, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    exercise(&place, &format!("nbd://127.0.0.1:{port}/"), 3);
}

#[test]
fn nbdkit_without_abilities() {
    let place = Place::new();
    let socket = place.path("s");
    let filters = [
        "--filter=nozero",
        "--filter=fua",
        "--filter=multi-conn",
        "memory",
        "16M",
        "zeromode=none",
        "multi-conn-mode=disable",
    ];
    let _server = Server::nbdkit(&socket, &filters);
    exercise(&place, &unix(&socket, ""), 4);
    let lun = try_open(&unix(&socket, ""), &options()).unwrap();
    assert!(!lun.geometry().write_zeroes);
}

#[test]
fn nbdkit_with_simple_replies() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = Server::nbdkit(&socket, &["--no-sr", "memory", "16M"]);
    exercise(&place, &unix(&socket, ""), 5);
}

#[test]
fn nbdkit_with_sparse_data() {
    // Holes come as chunks of their own from a server that cuts its replies.
    let place = Place::new();
    let image = place.image("image", SIZE);
    let socket = place.path("s");
    let image = image.to_str().unwrap();
    let _server = qemu_nbd(&place, &socket, image);
    exercise(&place, &unix(&socket, "vms"), 6);
}

fn qemu_nbd(place: &Place, socket: &Path, image: &str) -> Server {
    let pid = place.path("pid");
    let arguments = [
        "-k",
        socket.to_str().unwrap(),
        "-f",
        "raw",
        "-t",
        "-e",
        "0",
        "-x",
        "vms",
        "--discard=unmap",
        "--pid-file",
        pid.to_str().unwrap(),
        image,
    ];
    Server::start("qemu-nbd", &arguments, || pid.exists())
}

#[test]
fn nbd_server_by_tcp() {
    let place = Place::new();
    let image = place.image("image", SIZE);
    let port = free_port();
    let config = place.path("config");
    let text = format!(
        "[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n[vms]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n",
        image.display()
    );
    std::fs::write(&config, text).unwrap();
    let pid = place.path("pid");
    // It looks at every descriptor that it might have, one by one, for each client.
    let arguments =
        ["--nofile=1024", "nbd-server", "-C", config.to_str().unwrap(), "-p", pid.to_str().unwrap()];
    let ready = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    let _server = Server::start_daemon("prlimit", &arguments, &pid, ready);
    exercise(&place, &format!("nbd://127.0.0.1:{port}/vms"), 7);
}

/// What the crate's server reads and writes: a file, whose `read` fills the buffer.
struct Disk(std::fs::File);

impl Read for Disk {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.sync_data()
    }
}

impl Seek for Disk {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn the_nbd_crates_server() {
    let place = Place::new();
    let image = place.image("image", SIZE);
    let socket = place.path("s");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
            std::thread::spawn(move || {
                let export = |_: &str| {
                    Ok(nbd::Export { size: SIZE, send_flush: true, data: (), ..Default::default() })
                };
                // It closes the connection at options that it does not know, and when the client leaves.
                if nbd::server::handshake(&stream, export).is_ok() {
                    let _ = nbd::server::transmission(&stream, Disk(file));
                }
            });
        }
    });
    exercise(&place, &unix(&socket, ""), 8);
}

#[test]
fn errors_of_the_target_are_passed_up() {
    let place = Place::new();
    let socket = place.path("s");
    let trigger = place.path("fail");
    let file = format!("error-file={}", trigger.display());
    let arguments = ["--filter=error", "memory", "16M", "error=ENOSPC", "error-rate=100%", &file];
    let _server = Server::nbdkit(&socket, &arguments);
    let lun = try_open(&unix(&socket, ""), &options()).unwrap();
    assert_eq!(end(&start_write(&*lun, 0, place.filled(1, 4096), false)), Outcome::Done);
    std::fs::write(&trigger, "").unwrap();
    let failed = Outcome::Failed(libc::ENOSPC);
    assert_eq!(end(&start_write(&*lun, 0, place.filled(2, 4096), false)), failed);
    assert_eq!(end(&start_read(&*lun, 0, place.pool.take(4096))).0, failed);
    assert_eq!(end(&start_zero(&*lun, 0..4096)), failed);
    assert!(lun.ghosts().is_empty(), "a refused write is no ghost");
    std::fs::remove_file(&trigger).unwrap();
    let (outcome, buffer) = end(&start_read(&*lun, 0, place.pool.take(4096)));
    assert_eq!((outcome, buffer[0]), (Outcome::Done, 1));
}

#[test]
fn requests_that_make_no_sense_are_refused_here() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = Server::nbdkit(&socket, &["memory", "16M"]);
    let lun = try_open(&unix(&socket, ""), &options()).unwrap();
    let invalid = Outcome::Failed(libc::EINVAL);
    assert_eq!(end(&start_read(&*lun, SIZE, place.pool.take(4096))).0, invalid);
    assert_eq!(end(&start_write(&*lun, u64::MAX, place.filled(1, 4096), false)), invalid);
    assert_eq!(end(&start_zero(&*lun, SIZE - 4096..SIZE + 4096)), invalid);
    let mut read_only = options();
    read_only.read_only = true;
    let lun = try_open(&unix(&socket, ""), &read_only).unwrap();
    assert_eq!(end(&start_write(&*lun, 0, place.filled(1, 4096), false)), Outcome::Failed(libc::EROFS));
}

#[test]
fn what_cannot_be_opened_says_why() {
    let place = Place::new();
    let socket = place.path("s");
    let error = |uri: &str| try_open(uri, &options()).unwrap_err().to_string();
    assert!(error(&unix(&socket, "")).contains("cannot be reached"));
    {
        let _server = Server::nbdkit(&socket, &["-r", "memory", "16M"]);
        assert!(error(&unix(&socket, "")).contains("exported read-only"));
        let tls = unix(&socket, "").replace("nbd+", "nbds+") + "&tls-certificates=/nonexistent";
        assert!(error(&tls).contains("ca-cert.pem"), "{}", error(&tls));
    }
    {
        let _server = Server::nbdkit(&socket, &["memory", "0"]);
        assert!(error(&unix(&socket, "")).contains("size of 0"));
    }
    let image = place.image("image", SIZE);
    let socket = place.path("q");
    let _server = qemu_nbd(&place, &socket, image.to_str().unwrap());
    let text = error(&unix(&socket, "other"));
    assert!(text.contains("no export of that name") && text.contains("vms"), "{text}");
}
