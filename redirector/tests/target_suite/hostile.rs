//! Arbitrary bytes on every port, and clients that stop in the middle.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use redirector::nbd::wire::{OPTION_MAGIC, REQUEST_MAGIC, cmd};
use redirector::target::Address;

use crate::lab::{Lab, eventually};

/// Sends bytes, ends the sending side, and reads until the target closes.
fn throw(path: &Path, bytes: &[u8]) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    // The target may close in the middle of it.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the target does not close");
    }
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let option = (0..12u32, prop::collection::vec(any::<u8>(), 0..40), any::<bool>()).prop_map(
        |(code, payload, private)| {
            let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
            bytes.extend((if private { 0x4353_0000 + code % 5 } else { code }).to_be_bytes());
            bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
            bytes.extend(payload);
            bytes
        },
    );
    let request = (any::<u16>(), 0..9u16, 0..80u64 << 20, any::<u32>(), any::<bool>()).prop_map(
        |(flags, command, offset, length, tame)| {
            let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
            bytes.extend((if tame { 0 } else { flags }).to_be_bytes());
            bytes.extend(command.to_be_bytes());
            bytes.extend(1u64.to_be_bytes());
            bytes.extend(offset.to_be_bytes());
            bytes.extend((if tame { length % 5000 } else { length }).to_be_bytes());
            bytes
        },
    );
    prop_oneof![
        3 => option,
        3 => request,
        2 => prop::collection::vec(any::<u8>(), 0..100),
        1 => Just([&b"IHAVEOPT\0\0\0\x07\0\0\0\x06"[..], &[0; 6]].concat()),
    ]
}

#[test]
fn arbitrary_bytes_close_the_connection_and_harm_nobody_else() {
    let lab = Lab::with(|config| config.control = Some(Address::Unix(config.file.with_file_name("control"))));
    let (nbd, control) = (lab.path("nbd"), lab.path("control"));
    let neighbour = std::cell::RefCell::new(lab.peer());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) };
    proptest!(config, |(pieces in prop::collection::vec(piece(), 0..12), greet in any::<bool>())| {
        let mut bytes = if greet { 3u32.to_be_bytes().to_vec() } else { Vec::new() };
        bytes.extend(pieces.concat());
        throw(&nbd, &bytes);
        throw(&control, &bytes);
        prop_assert_eq!(neighbour.borrow_mut().flush().unwrap(), 0);
    });
    // A line that never ends.
    throw(&control, &vec![b'x'; 1 << 20]);
    eventually("all seats are free", || lab.server.status().connections == 1);
}

#[test]
fn a_piece_of_a_write_that_never_came_whole_is_not_executed() {
    let lab = Lab::new();
    for length in [4096u32, 1 << 20] {
        let mut peer = lab.peer();
        peer.send(cmd::WRITE, 0, 1, 0, length, &[1; 1000]);
        drop(peer);
    }
    eventually("they are gone", || lab.server.status().connections == 0);
    assert_eq!(lab.peer().read(0, 4096).unwrap(), [0; 4096]);
}

#[test]
fn a_client_that_takes_no_answers_holds_up_nobody_and_can_be_drained() {
    let lab = Lab::new();
    let mut greedy = lab.client(7);
    greedy.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut header = Vec::new();
    for _ in 0..64 {
        header.extend(REQUEST_MAGIC.to_be_bytes());
        header.extend([0; 8 + 8 + 4]);
        header.extend((4u32 << 20).to_be_bytes());
    }
    greedy.stream.write_all(&header).unwrap();
    let mut other = lab.client(8);
    for _ in 0..20 {
        assert_eq!(other.write(0, &[1; 200_000]).unwrap(), 0);
        assert_eq!(other.flush().unwrap(), 0);
    }
    assert_eq!(lab.connect().drain(7, crate::lab::cookie(7)).unwrap().drained, 2);
}
