//! The NBD client on a thread that receives its replies itself.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod client_harness;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use client_harness::{PATIENCE, Place, Server, end, options, start_write, try_open, unix, wait_for};
use redirector::buffer::Buffer;
use redirector::lun::{Lun, Outcome};
use redirector::{attend, blocking};

fn volume(place: &Place) -> (Server, Arc<dyn Lun>) {
    let socket = place.path("nbd.sock");
    let server = Server::nbdkit(&socket, &["memory", "64M"]);
    let lun = try_open(&unix(&socket, ""), &options()).unwrap();
    (server, lun)
}

/// Starts a read, whose end tells on which thread it was completed.
fn start(lun: &dyn Lun, buffer: Buffer) -> Receiver<(Outcome, Buffer, ThreadId)> {
    let (sender, receiver) = mpsc::channel();
    let done =
        move |outcome, buffer| sender.send((outcome, buffer, thread::current().id())).unwrap_or_default();
    lun.read(0, buffer, Box::new(done));
    receiver
}

/// Attends until the end of a read: its data, and whether this thread has completed it.
fn attended<T>(read: &Receiver<(Outcome, T, ThreadId)>) -> (T, bool) {
    let mut ended = None;
    wait_for("a reply", || {
        attend::poll(false);
        ended = read.try_recv().ok();
        ended.is_some()
    });
    let (outcome, data, by) = ended.unwrap();
    assert_eq!(outcome, Outcome::Done);
    (data, by == thread::current().id())
}

#[test]
fn it_receives_what_it_has_asked_for() {
    let place = Place::new();
    let (_server, lun) = volume(&place);
    attend::volunteer();
    let mut here = 0;
    for round in 0..200_u8 {
        let write = start_write(&*lun, 0, place.filled(round, 4096), false);
        wait_for("the write's reply", || {
            attend::poll(false);
            write.try_recv().is_ok_and(|outcome| outcome == Outcome::Done)
        });
        assert_eq!(attend::descriptors().len(), 1);
        let (data, by_this) = attended(&start(&*lun, place.pool.take(4096)));
        assert_eq!(data[..], [round; 4096]);
        here += usize::from(by_this);
    }
    // Its own thread may have taken some where this one was not given a processor for long.
    assert!(here > 100, "{here} of 200");
}

#[test]
fn it_sees_how_much_has_been_answered_without_receiving_it() {
    let place = Place::new();
    let (_server, lun) = volume(&place);
    attend::volunteer();
    let mut seen = 0;
    for _ in 0..100 {
        let reads: Vec<_> = (0..6).map(|_| start(&*lun, place.pool.take(4096))).collect();
        let since = Instant::now();
        // Its own thread takes over when nobody has received for a while.
        while since.elapsed() < Duration::from_millis(5) && attend::outlook().answered < 6 {
            thread::yield_now();
        }
        let outlook = attend::outlook();
        seen += usize::from((outlook.in_flight, outlook.answered, outlook.unanswered()) == (6, 6, 0));
        for read in &reads {
            attended(read);
        }
        assert_eq!(attend::outlook().in_flight, 0);
    }
    assert!(seen > 50, "{seen} of 100");
}

#[test]
fn what_it_forgets_is_received_for_it() {
    let place = Place::new();
    let (_server, lun) = volume(&place);
    attend::volunteer();
    for pause in [0, 1, 700] {
        // After a while without requests the connection's own thread sleeps without looking.
        thread::sleep(Duration::from_millis(pause));
        let write = start_write(&*lun, 0, place.filled(1, 4096), false);
        assert_eq!(write.recv_timeout(PATIENCE), Ok(Outcome::Done));
        attend::poll(false);
    }
}

#[test]
fn it_may_wait_for_the_lun() {
    let place = Place::new();
    let (_server, lun) = volume(&place);
    attend::volunteer();
    let write = start_write(&*lun, 0, place.filled(9, 4096), false);
    let data = blocking::read(&*lun, 4096, place.pool.take(4096)).unwrap();
    assert_eq!(data[..], [0; 4096]);
    assert_eq!(end(&write), Outcome::Done);
    attend::poll(false);
    assert_eq!(attend::descriptors().len(), 1, "it is back");
}

#[test]
fn large_replies_are_left_to_the_connections_own_thread() {
    let place = Place::new();
    let (_server, lun) = volume(&place);
    attend::volunteer();
    let (mut small, mut large) = (0, 0);
    for _ in 0..20 {
        // The first is received by the connection's own thread still, which expects a large one.
        small += (0..5).filter(|_| attended(&start(&*lun, place.pool.take(4096))).1).count();
        let reads: Vec<_> = (0..4).map(|_| start(&*lun, place.pool.take(1 << 20))).collect();
        large += reads.iter().filter(|read| attended(read).1).count();
    }
    assert_eq!(large, 0, "it would wait for the rest of each");
    assert!(small > 0, "it receives again when replies are small");
}

#[test]
fn replies_that_come_whole_or_in_part_with_others_are_all_received() {
    let place = Place::new();
    let (_server, lun) = volume(&place);
    attend::volunteer();
    let lens = [4 << 10, 28 << 10, 32 << 10, 36 << 10, 48 << 10, 60 << 10, 64 << 10, 200 << 10];
    for round in 0..200 {
        let reads: Vec<_> = (0..8)
            .map(|place| lens[(round * 3 + place * 5) % lens.len()])
            .map(|len| (len, start(&*lun, place.pool.take(len))))
            .collect();
        for (len, read) in reads {
            assert_eq!(attended(&read).0.len(), len);
        }
    }
}

#[test]
fn a_connection_that_breaks_is_seen_and_the_next_one_used() {
    let place = Place::new();
    let (server, lun) = volume(&place);
    attend::volunteer();
    let write = start_write(&*lun, 0, place.filled(1, 4096), false);
    assert_eq!(end(&write), Outcome::Done);
    server.kill();
    wait_for("the end of the connection", || {
        attend::poll(true);
        lun.describe().contains("down")
    });
    assert!(attend::descriptors().is_empty());
    let write = start_write(&*lun, 0, place.filled(2, 4096), false);
    let _server = Server::nbdkit(&place.path("nbd.sock"), &["memory", "64M"]);
    assert_eq!(end(&write), Outcome::Done);
}
