//! Sealed files: read directly by every node, called back before they are unsealed.

use std::time::Duration;

use lockd::authority::Standing;

use super::super::platter::What;
use super::super::world::{bytes, slice, start, until, wait};
use super::stage::{READ_WRITE, Stage};
use crate::proto::{Allocation, SetAttr, XattrMode};
use crate::refusal::Refusal;
use crate::service::{FileService, HandleId, OpenMode, WriteMode};
use crate::types::Ino;

const READ: OpenMode = OpenMode { write: false, ..READ_WRITE };
const LEN: u32 = 64 << 10;

fn open_to_read(stage: &Stage, number: usize, ino: Ino) -> HandleId {
    wait(|done| stage.node(number).open(ino, READ, done)).unwrap().handle
}

fn seal(stage: &Stage, number: usize, ino: Ino, value: &[u8]) -> Result<(), Refusal> {
    let name = b"trusted.csvfs.sealed";
    wait(|done| stage.node(number).set_xattr(ino, name, value, XattrMode::Set, false, done))
}

/// A sealed file full of `value`, which the first node serves.
fn sealed(stage: &Stage, value: u8) -> Ino {
    let file = stage.create(0, "image");
    stage.write(0, file.handle, 0, &[value; LEN as usize]);
    stage.node(0).release(file.handle);
    seal(stage, 0, file.attr.ino, b"1").unwrap();
    file.attr.ino
}

#[test]
fn a_sealed_file_is_read_directly_and_not_changed() {
    let stage = Stage::new(3, 1, 0.0);
    let ino = sealed(&stage, 7);
    let refused = Err(Refusal::NotPermitted);
    for node in 0..3 {
        assert!(stage.attr(node, ino).unwrap().sealed);
        let value = wait(|done| stage.node(node).get_xattr(ino, b"user.csvfs.sealed", done));
        assert_eq!(value, Ok(b"1".to_vec()));
        let opened = wait(|done| stage.node(node).open(ino, READ_WRITE, done));
        assert_eq!(opened.map(drop), refused, "node {node} opens it for writing");
        let cut = wait(|done| stage.node(node).set_attr(ino, SetAttr::default(), Some(5), done));
        assert_eq!(cut.map(drop), refused);
    }
    let here = open_to_read(&stage, 0, ino);
    let write = wait(|done| stage.node(0).write(here, 0, slice(&[1; 4096]), WriteMode::default(), done));
    assert_eq!(write.map(drop), refused);
    let punch = wait(|done| stage.node(0).allocate(here, 0, 4096, Allocation::Punch, true, done));
    assert_eq!(punch, refused);
    let handles = [open_to_read(&stage, 1, ino), open_to_read(&stage, 2, ino)];
    assert!(stage.read(1, handles[0], 0, LEN) == [7; LEN as usize]);
    // Past its server, which nobody reaches.
    stage.network.cut(stage.members[0].client);
    assert!(stage.read(1, handles[0], 4096, 8192) == [7; 8192]);
    assert!(stage.read(2, handles[1], 0, LEN) == [7; LEN as usize]);
    stage.network.heal(stage.members[0].client);
    // Names and attributes change as ever, and a clone shares its blocks.
    stage.set_mode(1, ino, 0o400);
    wait(|done| stage.node(2).link(ino, Ino::ROOT, b"again", done)).unwrap();
    wait(|done| stage.node(1).unlink(Ino::ROOT, b"image", done)).unwrap();
    let clone = stage.create(0, "clone");
    let copied = wait(|done| stage.node(0).copy_range(here, 0, clone.handle, 0, LEN.into(), done));
    assert_eq!(copied, Ok(LEN.into()));
    stage.write(0, clone.handle, 0, &[9; 8192]);
    assert!(stage.read(1, handles[0], 0, 8192) == [7; 8192], "a write to the clone is in the sealed file");
    assert!(stage.read(0, clone.handle, 0, 12_288) == [vec![9; 8192], vec![7; 4096]].concat());
    // Unsealed again, what the clone shares is not overwritten.
    seal(&stage, 2, ino, b"0").unwrap();
    let writer = stage.open(2, ino);
    stage.write(2, writer, 8192, &[5; 8192]);
    assert!(stage.read(0, clone.handle, 8192, 8192) == [7; 8192]);
    assert!(stage.read(1, handles[0], 8192, 8192) == [5; 8192]);
    stage.finish();
}

#[test]
fn what_was_open_before_it_was_sealed_is_read_directly_from_the_next_opening_on() {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(0, "image");
    let ino = file.attr.ino;
    stage.write(0, file.handle, 0, &[7; LEN as usize]);
    stage.node(0).release(file.handle);
    // One is open all the time, one has just been closed and is not forgotten yet.
    let (early, closed) = (open_to_read(&stage, 1, ino), open_to_read(&stage, 2, ino));
    stage.node(2).release(closed);
    seal(&stage, 0, ino, b"1").unwrap();
    let lent = |node: usize| {
        let file = stage.node(node).core.files.get(ino);
        file.is_some_and(|file| file.lent.load(std::sync::atomic::Ordering::SeqCst))
    };
    assert!(!lent(1) && !lent(2), "nobody has asked for it");
    let handles = [open_to_read(&stage, 1, ino), open_to_read(&stage, 2, ino)];
    // Past the server, which nobody reaches; a node reads by all of its openings in the same way.
    stage.network.cut(stage.members[0].client);
    for (node, handle) in [(1, handles[0]), (2, handles[1]), (1, early)] {
        assert!(lent(node), "node {node} has not been lent the layout");
        assert!(stage.read(node, handle, 0, LEN) == [7; LEN as usize]);
    }
    stage.network.heal(stage.members[0].client);
    // Called back as any other.
    seal(&stage, 2, ino, b"0").unwrap();
    let writer = stage.open(0, ino);
    wait(|done| stage.node(0).allocate(writer, 0, 4096, Allocation::Punch, true, done)).unwrap();
    for (node, handle) in [(1, early), (1, handles[0]), (2, handles[1])] {
        assert!(stage.read(node, handle, 0, 8192) == [vec![0; 4096], vec![7; 4096]].concat());
        stage.node(node).release(handle);
    }
    stage.node(0).release(writer);
    stage.finish();
}

#[test]
fn v8_unsealing_waits_for_reads_that_go_past_the_server() {
    let stage = Stage::new(3, 1, 0.0);
    let ino = sealed(&stage, 7);
    let handle = open_to_read(&stage, 1, ino);
    assert!(stage.read(1, handle, 0, 4096) == [7; 4096]);
    stage.platter.hold(What::Reads);
    let read = start(|done| stage.node(1).read(handle, 4096, 4096, done));
    until("the read", || stage.platter.held() > 0);
    // The one before counts until its answer is through.
    until("the server has no part in it", || {
        (stage.node(0).figures().in_flight, stage.node(1).figures().in_flight) == (0, 1)
    });
    let name = b"trusted.csvfs.sealed";
    let unsealed = start(|done| stage.node(2).set_xattr(ino, name, b"0", XattrMode::Set, false, done));
    std::thread::sleep(Duration::from_millis(80));
    let early = unsealed.try_recv();
    stage.platter.let_go();
    assert!(early.is_err(), "it was unsealed while a node was reading past its server");
    unsealed.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert!(bytes(&read.recv_timeout(Duration::from_secs(10)).unwrap().unwrap()) == [7; 4096]);
    // From now on by its server, so that a change of the layout is seen.
    let writer = stage.open(2, ino);
    wait(|done| stage.node(2).allocate(writer, 0, 4096, Allocation::Punch, true, done)).unwrap();
    assert!(stage.read(1, handle, 0, 4096) == [0; 4096]);
    stage.finish();
}

#[test]
fn unsealing_waits_for_a_silent_reader_until_its_session_is_over() {
    let stage = Stage::new(3, 1, 0.0);
    let ino = sealed(&stage, 7);
    let handle = open_to_read(&stage, 1, ino);
    assert!(stage.read(1, handle, 0, 4096) == [7; 4096]);
    stage.network.cut(stage.members[1].client);
    let name = b"trusted.csvfs.sealed";
    let unsealed = start(|done| stage.node(2).set_xattr(ino, name, b"0", XattrMode::Set, false, done));
    std::thread::sleep(Duration::from_millis(80));
    // Who opens it meanwhile is not given the layout.
    let late = open_to_read(&stage, 2, ino);
    assert!(unsealed.try_recv().is_err(), "a node that may read it directly has not answered");
    stage.end(1, Standing::Ended);
    unsealed.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
    stage.end(1, Standing::Fenced);
    let writer = stage.open(0, ino);
    wait(|done| stage.node(0).allocate(writer, 0, 4096, Allocation::Punch, true, done)).unwrap();
    assert!(stage.read(2, late, 0, 8192) == [vec![0; 4096], vec![7; 4096]].concat());
}

#[test]
fn seals_come_and_go_over_a_network_that_loses_and_repeats() {
    for seed in 1..=4 {
        let stage = Stage::new(3, seed, 0.25);
        let ino = sealed(&stage, 0);
        for round in 1..=6_u8 {
            let (reader, other) = (usize::from(round) % 3, usize::from(round + 1) % 3);
            let handle = open_to_read(&stage, reader, ino);
            let old = stage.read(reader, handle, 0, 8192);
            assert!(old == [round - 1; 8192], "seed {seed}, round {round}: {}", old[0]);
            seal(&stage, other, ino, b"0").unwrap();
            let writer = stage.open(other, ino);
            stage.write(other, writer, 0, &[round; LEN as usize]);
            for node in 0..3 {
                let fresh = open_to_read(&stage, node, ino);
                assert!(stage.read(node, fresh, 0, 8192) == [round; 8192], "seed {seed}, node {node}");
                stage.node(node).release(fresh);
            }
            assert!(stage.read(reader, handle, 0, 8192) == [round; 8192], "seed {seed}: the old handle");
            stage.node(other).release(writer);
            stage.node(reader).release(handle);
            if round % 2 == 0 {
                stage.acquire(other, ino).unwrap();
            }
            seal(&stage, reader, ino, b"1").unwrap();
        }
        stage.finish();
    }
}
