//! The NBD client on a thread that receives its replies itself.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod client_harness;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use client_harness::{
    PATIENCE, Place, Server, end, options, start_read, start_write, try_open, unix, wait_for,
};
use redirector::lun::{Lun, Outcome};
use redirector::{attend, blocking};

fn volume(place: &Place) -> (Server, Arc<dyn Lun>) {
    let socket = place.path("nbd.sock");
    let server = Server::nbdkit(&socket, &["memory", "64M"]);
    let lun = try_open(&unix(&socket, ""), &options()).unwrap();
    (server, lun)
}

#[test]
fn it_receives_what_it_has_asked_for() {
    let place = Place::new();
    let (_server, lun) = volume(&place);
    attend::volunteer();
    for round in 0..200_u8 {
        let at = u64::from(round) * 4096;
        let write = start_write(&*lun, at, place.filled(round, 4096), false);
        wait_for("the write's reply", || {
            attend::poll(false);
            write.try_recv().is_ok_and(|outcome| outcome == Outcome::Done)
        });
        assert_eq!(attend::descriptors().len(), 1);
        let read = start_read(&*lun, at, place.pool.take(4096));
        wait_for("the read's reply", || {
            attend::poll(false);
            read.try_recv().is_ok_and(|(outcome, data)| outcome == Outcome::Done && data[..] == [round; 4096])
        });
    }
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
    let small = |byte| {
        let write = start_write(&*lun, 0, place.filled(byte, 4096), false);
        wait_for("a small reply", || {
            attend::poll(false);
            write.try_recv().is_ok_and(|outcome| outcome == Outcome::Done)
        });
    };
    for round in 1..=20 {
        small(round);
        let reads: Vec<_> = (0..4).map(|_| start_read(&*lun, 0, place.pool.take(1 << 20))).collect();
        for read in reads {
            wait_for("a large reply", || {
                attend::poll(false);
                read.try_recv().is_ok_and(|(outcome, data)| {
                    outcome == Outcome::Done && data[..4096] == [round; 4096] && data.len() == 1 << 20
                })
            });
        }
    }
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
            .map(|len| (len, start_read(&*lun, 0, place.pool.take(len))))
            .collect();
        for (len, read) in reads {
            wait_for("a reply", || {
                attend::poll(false);
                read.try_recv().is_ok_and(|(outcome, data)| outcome == Outcome::Done && data.len() == len)
            });
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
