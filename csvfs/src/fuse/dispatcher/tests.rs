//! Requests as no kernel sends them.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use lockd::ids::ClientId;
use proptest::collection::vec;
use proptest::prelude::*;
use redirector::buffer::Pool;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::fuse::abi::OutHeader;
use crate::fuse::caching::{Caching, Validity};
use crate::fuse::locks::Locks;
use crate::fuse::sys::message_pair;
use crate::service::FileService;

#[expect(dead_code, clippy::cast_possible_truncation, reason = "made for the tests on mounts")]
#[path = "../../../tests/fuse_mount/memory.rs"]
mod memory;

/// A dispatcher whose replies, and whose messages to fuser, are collected by threads.
struct Bench {
    dispatcher: Dispatcher,
    replies: JoinHandle<Vec<Vec<u8>>>,
    forwarded: JoinHandle<Vec<Vec<u8>>>,
    ends: [File; 2],
}

fn collect(socket: File) -> JoinHandle<Vec<Vec<u8>>> {
    thread::spawn(move || {
        let mut messages = Vec::new();
        let mut message = vec![0; 4 << 20];
        while let Ok(len @ 1..) = (&socket).read(&mut message) {
            messages.push(message[..len].to_vec());
        }
        messages
    })
}

impl Bench {
    fn new() -> Self {
        let (device, replies) = message_pair(8 << 20).unwrap();
        let (device, replies) = (File::from(device), File::from(replies));
        let (bridge, forwarded) = Bridge::pair().unwrap();
        let forwarded = File::from(forwarded);
        let memory: Arc<dyn FileService> = Arc::new(memory::Memory::new());
        let root = OpenMode { read: true, write: true, ..OpenMode::default() };
        let who = Credentials { uid: 0, gid: 0, umask: 0 };
        memory.create_open(who, Ino::ROOT, b"file", 0o644, root, Box::new(|opened| assert!(opened.is_ok())));
        let locks = Locks::new(Arc::new(lockd::locks::FileLocks::default()), ClientId(1));
        let connection = Arc::new(Connection::new(memory, locks, Validity::new(Caching::alone()), false));
        let ends = [device.try_clone().unwrap(), forwarded.try_clone().unwrap()];
        let device = Arc::new(Device::new(device, 0));
        let dispatcher = Dispatcher::new(&connection, &Arc::new(bridge), &device, &Pool::default()).unwrap();
        Self { dispatcher, replies: collect(replies), forwarded: collect(forwarded), ends }
    }

    fn send(&mut self, message: &[u8]) {
        self.dispatcher.inbox.put(message);
        self.dispatcher.dispatch();
    }

    /// The replies and the forwarded messages so far.
    fn finish(self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let Self { dispatcher, replies, forwarded, ends } = self;
        drop(dispatcher);
        for end in &ends {
            crate::fuse::sys::shut_down(end).unwrap();
        }
        (replies.join().unwrap(), forwarded.join().unwrap())
    }
}

fn request(opcode: u32, unique: u64, nodeid: u64, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(size_of::<InHeader>() + body.len()).unwrap();
    let header =
        InHeader { len, opcode, unique, nodeid, uid: 0, gid: 0, pid: 1, total_extlen: 0, padding: 0 };
    [header.as_bytes(), body].concat()
}

fn reply_to(message: &[u8]) -> (OutHeader, &[u8]) {
    let (header, body) = OutHeader::read_from_prefix(message).unwrap();
    assert_eq!(header.len as usize, message.len());
    (header, body)
}

/// The number and the error of each reply.
fn answers(replies: &[Vec<u8>]) -> Vec<(u64, i32)> {
    replies.iter().map(|reply| reply_to(reply).0).map(|reply| (reply.unique, reply.error)).collect()
}

#[test]
fn what_is_left_to_fuser_is_tagged_with_its_descriptor() {
    let mut bench = Bench::new();
    let read_link = request(5, 42, 1, &[]);
    bench.send(&read_link);
    let (replies, forwarded) = bench.finish();
    assert!(replies.is_empty());
    assert_eq!(forwarded, [read_link], "descriptor 0 has the tag 0");
}

#[test]
fn malformed_requests_are_answered() {
    let mut bench = Bench::new();
    bench.send(&request(opcode::READ, 2, 2, &[0; 39]));
    bench.send(&request(opcode::WRITE, 4, 2, &[0xff; 60]));
    bench.send(&request(opcode::CREATE, 6, 1, &[b'x'; 20]));
    bench.send(&request(opcode::INTERRUPT, 9, 0, &[]));
    let (replies, _) = bench.finish();
    assert_eq!(answers(&replies), [(2, -libc::EIO), (4, -libc::EIO), (6, -libc::EIO)]);
}

#[test]
fn an_interrupt_before_its_request_is_remembered() {
    let mut bench = Bench::new();
    let lock = |owner: u64| {
        let lock = super::super::abi::FileLock { start: 0, end: 9, kind: 1, pid: 7 };
        LkIn { fh: 1, owner, lock, lk_flags: 0, padding: 0 }
    };
    bench.send(&request(opcode::INTERRUPT, 5, 0, &4_u64.to_le_bytes()));
    bench.send(&request(opcode::SETLKW, 2, 2, lock(1).as_bytes()));
    bench.send(&request(opcode::SETLKW, 4, 2, lock(2).as_bytes()));
    bench.send(&request(opcode::SETLKW, 6, 2, lock(3).as_bytes()));
    bench.send(&request(opcode::INTERRUPT, 7, 0, &6_u64.to_le_bytes()));
    bench.send(&request(opcode::INTERRUPT, 7, 0, &6_u64.to_le_bytes()));
    let (replies, _) = bench.finish();
    assert_eq!(answers(&replies), [(2, 0), (4, -libc::EINTR), (6, -libc::EINTR)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No request, however malformed, ends the dispatcher, and no reply is.
    #[test]
    fn arbitrary_requests_are_survived(
        requests in vec(
            (0..60_u32, 0..4_u64, vec(prop_oneof![Just(0_u8), Just(1), Just(b'a'), any::<u8>()], 0..200)),
            1..40,
        ),
        noise in vec(vec(any::<u8>(), 0..200), 0..20),
    ) {
        let mut bench = Bench::new();
        for (place, (opcode, nodeid, body)) in requests.iter().enumerate() {
            bench.send(&request(*opcode, 2 * (place as u64 + 1), *nodeid, body));
        }
        for message in &noise {
            bench.send(message);
        }
        let (replies, _) = bench.finish();
        for reply in &replies {
            let (header, _) = reply_to(reply);
            prop_assert!((-1000..=0).contains(&header.error));
        }
    }
}

#[test]
fn a_message_survives_the_socket() {
    let (first, second) = message_pair(1 << 20).unwrap();
    let (first, second) = (File::from(first), File::from(second));
    (&first).write_all(&[1; 300]).unwrap();
    (&first).write_all(&[2; 100]).unwrap();
    let mut message = [0; 1000];
    assert_eq!((&second).read(&mut message).unwrap(), 300);
    assert_eq!((&second).read(&mut message).unwrap(), 100);
}
