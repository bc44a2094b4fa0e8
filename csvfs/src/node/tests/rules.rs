//! One test for each rule that the node keeps: it fails when `CSV_MUTANT` switches the rule off.

use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use lockd::clock::{BootTime, Clock};
use redirector::lun::Outcome;

use super::platter::{Event, Platter, What};
use super::world::{World, bytes, start, until, wait};
use crate::node::Options;
use crate::proto::{Allocation, SetAttr};
use crate::refusal::Refusal;
use crate::service::FileService;
use crate::types::Ino;

fn world() -> World {
    World::new(Platter::new(16 << 20))
}

fn written_ranges(world: &World) -> Vec<std::ops::Range<u64>> {
    let events = world.events();
    let writes = events.iter().filter_map(|event| match event {
        Event::Write(range) => Some(range.clone()),
        _ => None,
    });
    writes.collect()
}

/// Time enough for what must not happen.
fn a_while() {
    std::thread::sleep(Duration::from_millis(30));
}

#[test]
fn l3_a_write_waits_for_the_lease_and_a_read_is_not_answered_without() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 8192]);
    world.platter.hold(What::Reads);
    let read = start(|done| world.node.read(file.handle, 0, 8192, done));
    world.clock.advance(Duration::from_nanos(1 << 61));
    assert!(world.clock.boot() > world.lease.deadline());
    // It has started under the lease, and is done without.
    world.platter.let_go();
    let before = written_ranges(&world).len();
    let in_place = world.start_write(file.handle, 0, &[2; 8192]);
    let partial = world.start_write(file.handle, 100, &[3; 10]);
    world.node.round();
    a_while();
    assert_eq!(written_ranges(&world).len(), before, "a write has started without a lease");
    assert!(matches!(read.try_recv(), Err(TryRecvError::Empty)), "a read was answered without a lease");
    assert!(in_place.try_recv().is_err() && partial.try_recv().is_err());
    world.lease.extend(BootTime(u64::MAX - 1));
    world.node.round();
    assert!(bytes(&read.recv_timeout(Duration::from_secs(10)).unwrap().unwrap()) == [1; 8192]);
    in_place.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    partial.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    world.lease.end();
    let refused = world.start_write(file.handle, 0, &[4; 4096]);
    world.node.round();
    assert!(matches!(refused.recv_timeout(Duration::from_secs(10)).unwrap(), Err(Refusal::Io(_))));
}

#[test]
fn p2_a_lapsed_lease_is_not_waited_for_longer_than_io_is_held() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 8192]);
    world.clock.advance(Duration::from_nanos(1 << 61));
    let write = world.start_write(file.handle, 0, &[2; 8192]);
    let partial = world.start_write(file.handle, 100, &[3; 10]);
    let read = start(|done| world.node.read(file.handle, 0, 8192, done));
    world.node.round();
    a_while();
    assert!(write.try_recv().is_err() && partial.try_recv().is_err() && read.try_recv().is_err());
    world.clock.advance(Options::default().hold + Duration::from_millis(1));
    world.node.round();
    for refused in [write, partial] {
        assert!(matches!(refused.recv_timeout(Duration::from_secs(10)).unwrap(), Err(Refusal::Io(_))));
    }
    assert!(matches!(read.recv_timeout(Duration::from_secs(10)).unwrap(), Err(Refusal::Io(_))));
    // Won back after all: it goes on.
    world.lease.extend(BootTime(u64::MAX - 1));
    world.write(file.handle, 0, &[4; 8192]);
}

#[test]
fn v5_data_is_flushed_before_it_is_committed() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 8192]);
    world.sync(file.handle).unwrap();
    let events = world.events();
    let last = |wanted: &Event| events.iter().rposition(|event| event == wanted).unwrap();
    let commit = last(&Event::Message("Commit".to_owned()));
    let write = events.iter().rposition(|event| matches!(event, Event::Write(_))).unwrap();
    assert!(events[write..commit].contains(&Event::Flush), "committed before it was flushed: {events:?}");
}

#[test]
fn v5_a_crash_between_flush_and_commit_shows_no_garbage() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 8192]);
    world.platter.hold(What::Flushes);
    let sync = start(|done| world.node.sync(file.handle, done));
    a_while();
    let world = world.crash(7);
    assert!(sync.try_recv().is_err());
    let file = world.open_file(file.attr.ino);
    let read = world.read(file.handle, 0, 8192);
    assert!(read.iter().all(|byte| *byte == 1 || *byte == 0), "what an earlier file left is read: {read:?}");
    assert!(read.is_empty(), "nothing was committed");
}

#[test]
fn v6_what_was_given_back_is_not_used() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 4096]);
    world.sync(file.handle).unwrap();
    world.node.release(file.handle);
    world.shut_down();
    assert_eq!(world.node.figures().reserve_blocks, 0, "blocks are both free and in the reserve");
}

#[test]
fn v8_a_truncation_waits_for_the_writes_in_flight() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 65_536]);
    world.sync(file.handle).unwrap();
    world.platter.hold(What::Writes);
    let write = world.start_write(file.handle, 32_768, &[2; 4096]);
    assert_eq!(world.platter.held(), 1);
    let truncated = start(|done| world.node.set_attr(file.attr.ino, SetAttr::default(), Some(0), done));
    let punched = start(|done| world.node.allocate(file.handle, 0, 65_536, Allocation::Punch, true, done));
    a_while();
    assert!(truncated.try_recv().is_err(), "the blocks are free while a write to them is in flight");
    assert!(punched.try_recv().is_err());
    assert!(!world.events().contains(&Event::Message("Truncate".to_owned())));
    let late = start(|done| world.node.read(file.handle, 0, 4096, done));
    assert!(late.try_recv().is_err(), "a new request waits for the truncation");
    world.platter.let_go();
    write.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(truncated.recv_timeout(Duration::from_secs(10)).unwrap().unwrap().size, 0);
    punched.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert!(bytes(&late.recv_timeout(Duration::from_secs(10)).unwrap().unwrap()).is_empty());
}

#[test]
fn v11_a_shared_block_is_copied_on_write() {
    let world = world();
    let (source, target) = (world.file("a"), world.file("b"));
    world.write(source.handle, 0, &[5; 16_384]);
    wait(|done| world.node.copy_range(source.handle, 0, target.handle, 0, 16_384, done)).unwrap();
    world.write(target.handle, 4096, &[6; 4096]);
    world.write(target.handle, 10, &[7; 10]);
    world.write(source.handle, 12_288, &[8; 4096]);
    let (a, b) = (world.read(source.handle, 0, 16_384), world.read(target.handle, 0, 16_384));
    assert!(a[..12_288].iter().all(|byte| *byte == 5), "a write to the copy has changed the source");
    assert!(b[12_288..].iter().all(|byte| *byte == 5), "a write to the source has changed the copy");
    assert_eq!((b[4096], b[10], a[12_288]), (6, 7, 8));
    world.sync(target.handle).unwrap();
    world.sync(source.handle).unwrap();
    assert!(world.read(source.handle, 0, 16_384) == a && world.read(target.handle, 0, 16_384) == b);
}

#[test]
fn v11_a_fresh_partial_block_shows_nothing_of_earlier_files() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 100, b"x");
    world.write(file.handle, 4095, b"y");
    let read = world.read(file.handle, 0, 4096);
    assert_eq!((read[100], read[4095]), (b'x', b'y'));
    assert!(read.iter().filter(|byte| **byte == 0).count() == 4094, "garbage: {read:?}");
}

#[test]
fn v11_two_partial_writes_of_one_block_lose_nothing() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 4096]);
    world.platter.hold(What::Writes);
    // Both would read the old block now, did the second not wait for the first.
    let first = world.start_write(file.handle, 0, &[2; 100]);
    let second = world.start_write(file.handle, 200, &[3; 100]);
    let whole = world.start_write(file.handle, 4096, &[4; 4096]);
    assert!(world.platter.held() > 0);
    world.platter.let_go();
    for write in [first, second, whole] {
        write.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    }
    let read = world.read(file.handle, 0, 4096);
    assert!(read[..100].iter().all(|byte| *byte == 2), "the first write is lost");
    assert!(read[200..300].iter().all(|byte| *byte == 3), "the second write is lost");
}

#[test]
fn p6_blocks_under_a_ghost_are_not_used_again() {
    let world = world();
    let file = world.file("a");
    world.platter.fail_next_write(Outcome::Unknown);
    assert!(matches!(world.try_write(file.handle, 0, &[1; 4096]), Err(Refusal::Io(_))));
    let haunted = written_ranges(&world).pop().unwrap();
    // More than the volume has: every block but those under the ghost is used.
    let mut offset = 0;
    while world.try_write(file.handle, offset, &[2; 4096]).is_ok() {
        offset += 4096;
    }
    let ranges = written_ranges(&world);
    let again = ranges[1..].iter().filter(|range| range.start < haunted.end && haunted.start < range.end);
    assert_eq!(again.count(), 0, "{haunted:?} is written again while its ghost lives");
    assert!(world.events().contains(&Event::Message("Quarantine".to_owned())));
}

#[test]
fn p7_a_file_is_not_drained_while_a_ghost_is_on_it() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 4096]);
    world.sync(file.handle).unwrap();
    world.platter.fail_next_write(Outcome::Unknown);
    assert!(world.try_write(file.handle, 0, &[2; 4096]).is_err());
    let truncated = start(|done| world.node.set_attr(file.attr.ino, SetAttr::default(), Some(0), done));
    world.node.round();
    a_while();
    assert!(truncated.try_recv().is_err(), "the block is free though a ghost may still write to it");
    world.platter.set_ghosts(Vec::new());
    world.node.round();
    truncated.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
}

#[test]
fn p7_a_file_without_a_name_keeps_its_blocks_while_a_ghost_is_on_them() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 4096]);
    world.sync(file.handle).unwrap();
    world.platter.fail_next_write(Outcome::Unknown);
    assert!(world.try_write(file.handle, 0, &[2; 4096]).is_err());
    wait(|done| world.node.unlink(Ino::ROOT, b"a", done)).unwrap();
    world.node.release(file.handle);
    world.node.round();
    a_while();
    assert_eq!(world.node.figures().open, 1, "closed though a ghost may still write to its blocks");
    world.platter.set_ghosts(Vec::new());
    world.node.round();
    until("the closing", || world.node.figures().open == 0);
}
