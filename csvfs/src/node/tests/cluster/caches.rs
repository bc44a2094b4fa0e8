//! Names and attributes that nodes keep (V9), and clients that end.

use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use lockd::authority::Standing;

use super::super::world::{WHO, start, until, wait};
use super::stage::{READ_WRITE, Stage};
use crate::proto::{Created, RenameMode, SetAttr};
use crate::refusal::Refusal;
use crate::service::{FileService, OpenMode};
use crate::types::Ino;

fn a_while() {
    std::thread::sleep(Duration::from_millis(60));
}

#[test]
fn v9_a_change_is_acknowledged_when_no_node_keeps_the_old_state() {
    let stage = Stage::new(3, 1, 0.0);
    for node in 0..3 {
        assert_eq!(stage.lookup(node, "a"), Err(Refusal::NotFound));
    }
    let made = wait(|done| stage.node(1).create(WHO, Ino::ROOT, b"a", Created::Fifo, 0o600, done)).unwrap();
    for node in 0..3 {
        assert_eq!(
            stage.lookup(node, "a").map(|attr| attr.ino),
            Ok(made.ino),
            "node {node} keeps that it is absent"
        );
        assert_eq!(stage.attr(node, made.ino).unwrap().mode, 0o600);
    }
    stage.set_mode(2, made.ino, 0o640);
    for node in 0..3 {
        assert_eq!(stage.attr(node, made.ino).unwrap().mode, 0o640, "node {node} keeps the old mode");
        assert_eq!(stage.lookup(node, "a").unwrap().mode, 0o640);
    }
    wait(|done| stage.node(0).unlink(Ino::ROOT, b"a", done)).unwrap();
    for node in 0..3 {
        assert_eq!(stage.lookup(node, "a"), Err(Refusal::NotFound), "node {node} keeps the name");
        assert_eq!(stage.attr(node, made.ino), Err(Refusal::NotFound));
    }
    stage.finish();
}

#[test]
fn v9_a_change_waits_for_a_node_that_does_not_answer_until_its_session_has_ended() {
    let stage = Stage::new(3, 1, 0.0);
    let file = wait(|done| stage.node(0).create(WHO, Ino::ROOT, b"a", Created::Fifo, 0o600, done)).unwrap();
    assert_eq!(stage.attr(2, file.ino).unwrap().mode, 0o600);
    stage.network.cut(stage.members[2].client);
    let set = SetAttr { mode: Some(0o644), ..SetAttr::default() };
    let changed = start(|done| stage.node(1).set_attr(file.ino, set, None, done));
    // The writer goes on meanwhile, and who asks the coordinator sees the new state.
    wait(|done| stage.node(0).create(WHO, Ino::ROOT, b"b", Created::Fifo, 0o600, done)).unwrap();
    until("the new mode", || stage.attr(0, file.ino).unwrap().mode == 0o644);
    a_while();
    // Also the copies that node 1 has sent since are not answered.
    assert!(
        matches!(changed.try_recv(), Err(TryRecvError::Empty)),
        "acknowledged while node 2 keeps the old mode"
    );
    stage.end(2, Standing::Ended);
    assert_eq!(changed.recv_timeout(Duration::from_secs(10)).unwrap().unwrap().mode, 0o644);
}

#[test]
fn v9_a_change_waits_for_a_node_that_is_being_told_of_an_earlier_one() {
    let stage = Stage::new(3, 1, 0.0);
    let file = wait(|done| stage.node(0).create(WHO, Ino::ROOT, b"a", Created::Fifo, 0o600, done)).unwrap();
    assert_eq!(stage.attr(2, file.ino).unwrap().mode, 0o600);
    stage.network.cut(stage.members[2].client);
    let set = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    let first = start(|done| stage.node(1).set_attr(file.ino, set(0o644), None, done));
    until("the first mode", || stage.attr(0, file.ino).unwrap().mode == 0o644);
    let second = start(|done| stage.node(0).set_attr(file.ino, set(0o640), None, done));
    until("the second mode", || stage.attr(1, file.ino).unwrap().mode == 0o640);
    a_while();
    assert_eq!(stage.attr(2, file.ino).unwrap().mode, 0o600, "it may answer: its lease runs");
    assert!(second.try_recv().is_err(), "acknowledged while node 2 keeps the old mode");
    assert!(first.try_recv().is_err());
    stage.network.heal(stage.members[2].client);
    for changed in [first, second] {
        changed.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    }
    assert_eq!(stage.attr(2, file.ino).unwrap().mode, 0o640);
    stage.finish();
}

#[test]
fn v9_who_changes_something_keeps_its_lease_until_its_answer_has_arrived() {
    let stage = Stage::new(3, 1, 0.0);
    let file = wait(|done| stage.node(0).create(WHO, Ino::ROOT, b"a", Created::Fifo, 0o600, done)).unwrap();
    for node in [1, 2] {
        assert_eq!(stage.attr(node, file.ino).unwrap().mode, 0o600);
    }
    let [_, one, two] = [0, 1, 2].map(|node| stage.members[node].client);
    stage.network.cut(two);
    let set = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    let first = start(|done| stage.node(1).set_attr(file.ino, set(0o644), None, done));
    until("the first mode", || stage.attr(0, file.ino).unwrap().mode == 0o644);
    // It has waited for node 2, and its answer is lost now.
    stage.network.cut(one);
    stage.network.heal(two);
    until("node 2 to forget", || stage.attr(2, file.ino).unwrap().mode == 0o644);
    let second = start(|done| stage.node(0).set_attr(file.ino, set(0o640), None, done));
    until("the second mode", || stage.attr(2, file.ino).unwrap().mode == 0o640);
    a_while();
    assert_eq!(stage.attr(1, file.ino).unwrap().mode, 0o600, "it may answer: its lease runs");
    assert!(
        second.try_recv().is_err(),
        "acknowledged while node 1 keeps the mode from before its own change"
    );
    assert!(first.try_recv().is_err());
    stage.network.heal(one);
    for changed in [first, second] {
        changed.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    }
    assert_eq!(stage.attr(1, file.ino).unwrap().mode, 0o640);
    stage.finish();
}

#[test]
fn v9_a_second_opening_for_writing_waits_for_what_the_first_one_waits_for() {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(0, "a");
    stage.node(0).release(file.handle);
    until("the closing", || stage.node(0).figures().open == 0);
    let ino = file.attr.ino;
    let read = OpenMode { write: false, ..READ_WRITE };
    let reading = wait(|done| stage.node(1).open(ino, read, done)).unwrap().handle;
    assert_eq!(stage.attr(2, ino).unwrap().size, 0);
    stage.network.cut(stage.members[2].client);
    let write = OpenMode { read: false, ..READ_WRITE };
    let openings = [(); 2].map(|()| start(|done| stage.node(1).open(ino, write, done)));
    a_while();
    assert_eq!(stage.attr(2, ino).unwrap().size, 0, "it may answer: its lease runs");
    for opening in &openings {
        assert!(opening.try_recv().is_err(), "open for writing while node 2 keeps the attributes");
    }
    stage.network.heal(stage.members[2].client);
    let handles =
        openings.map(|opening| opening.recv_timeout(Duration::from_secs(10)).unwrap().unwrap().handle);
    stage.write(1, handles[1], 0, b"twelve bytes");
    assert_eq!(stage.attr(2, ino).unwrap().size, 12);
    handles.into_iter().chain([reading]).for_each(|handle| stage.node(1).release(handle));
    stage.finish();
}

#[test]
fn v9_a_node_answers_again_when_it_is_reached_again() {
    let stage = Stage::new(2, 1, 0.0);
    let file = wait(|done| stage.node(0).create(WHO, Ino::ROOT, b"a", Created::Fifo, 0o600, done)).unwrap();
    assert_eq!(stage.attr(1, file.ino).unwrap().mode, 0o600);
    stage.network.cut(stage.members[1].client);
    let set = SetAttr { mode: Some(0o644), ..SetAttr::default() };
    let changed = start(|done| stage.node(0).set_attr(file.ino, set, None, done));
    a_while();
    assert!(changed.try_recv().is_err(), "acknowledged while node 1 keeps the old mode");
    assert_eq!(stage.attr(1, file.ino).unwrap().mode, 0o600, "it may answer: its lease runs");
    stage.network.heal(stage.members[1].client);
    changed.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(stage.attr(1, file.ino).unwrap().mode, 0o644);
    stage.finish();
}

#[test]
fn v9_attributes_of_a_file_that_is_being_written_are_kept_nowhere() {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(0, "a");
    stage.node(0).release(file.handle);
    let ino = file.attr.ino;
    until("the closing", || stage.node(0).figures().open == 0);
    assert_eq!(stage.attr(2, ino).unwrap().size, 0);
    assert_eq!(stage.attr(1, ino).unwrap().size, 0);
    let handle = stage.open(1, ino);
    stage.write(1, handle, 0, b"twelve bytes");
    for node in 0..3 {
        assert_eq!(stage.attr(node, ino).unwrap().size, 12, "node {node} keeps the old size");
        assert_eq!(stage.lookup(node, "a").unwrap().size, 12);
    }
    let (entries, end) = wait(|done| stage.node(2).read_directory(Ino::ROOT, 0, 4096, true, done)).unwrap();
    assert!(end && entries.len() == 1 && entries[0].attr.unwrap().size == 12);
    stage.finish();
}

#[test]
fn v9_who_makes_a_file_keeps_what_it_has_made_until_somebody_changes_it() {
    let stage = Stage::new(3, 1, 0.0);
    let made = stage.create(1, "a");
    let ino = made.attr.ino;
    // No question can be answered now.
    stage.network.cut(stage.members[1].client);
    assert_eq!(stage.attr(1, ino).unwrap(), made.attr);
    assert_eq!(stage.lookup(1, "a").unwrap(), made.attr);
    let parent = stage.attr(1, Ino::ROOT).unwrap();
    stage.network.heal(stage.members[1].client);
    assert_eq!(parent, stage.attr(0, Ino::ROOT).unwrap());
    // The second who opens it for writing, and the first, which had it open for writing all the time.
    let handle = stage.open(2, ino);
    stage.write(2, handle, 0, b"twelve bytes");
    assert_eq!(stage.attr(1, ino).unwrap().size, 12);
    let own = stage.create(1, "b");
    stage.write(1, own.handle, 0, b"twelve bytes");
    assert_eq!(stage.attr(1, own.attr.ino).unwrap().size, 12);
    // One that comes to be served here.
    let third = stage.create(1, "c");
    stage.acquire(1, third.attr.ino).unwrap();
    stage.write(1, third.handle, 0, b"twelve bytes");
    assert_eq!(stage.attr(1, third.attr.ino).unwrap().size, 12);
    assert_eq!(stage.lookup(1, "c").unwrap().size, 12);
    stage.set_mode(0, ino, 0o640);
    assert_eq!(stage.attr(1, ino).unwrap().mode, 0o640);
    wait(|done| stage.node(2).unlink(Ino::ROOT, b"b", done)).unwrap();
    assert_eq!(stage.lookup(1, "b"), Err(Refusal::NotFound));
    assert_ne!(stage.attr(1, Ino::ROOT).unwrap(), parent, "the directory has changed");
    stage.finish();
}

#[test]
fn v9_who_makes_a_directory_knows_which_names_it_does_not_have() {
    let stage = Stage::new(3, 1, 0.0);
    let directory = wait(|done| stage.node(1).create(WHO, Ino::ROOT, b"d", Created::Directory, 0o700, done));
    let directory = directory.unwrap().ino;
    let lookup =
        |node: usize, name: &str| wait(|done| stage.node(node).lookup(directory, name.as_bytes(), done));
    let is_absent = |name: &str| lookup(1, name) == Err(Refusal::NotFound);
    let without_questions = |check: &dyn Fn()| {
        stage.network.cut(stage.members[1].client);
        check();
        stage.network.heal(stage.members[1].client);
    };
    without_questions(&|| assert!(is_absent("a") && is_absent("b")));
    // What it does itself it knows.
    let own = stage.create_in(1, directory, "a").attr.ino;
    without_questions(&|| assert!(lookup(1, "a").is_ok() && is_absent("b")));
    wait(|done| stage.node(1).unlink(directory, b"a", done)).unwrap();
    without_questions(&|| assert!(is_absent("a") && is_absent("b")));
    wait(|done| stage.node(1).create(WHO, directory, b"s", Created::Symlink(b"x".to_vec()), 0, done))
        .unwrap();
    without_questions(&|| assert!(lookup(1, "s").is_ok() && is_absent("b")));
    // What others do ends it: nothing is absent because it was not known.
    stage.create_in(2, directory, "b");
    assert!(lookup(1, "b").is_ok());
    let rename = |node: usize, to: &str| {
        let mode = RenameMode::Replace;
        wait(|done| stage.node(node).rename(directory, b"b", directory, to.as_bytes(), mode, done)).unwrap();
    };
    rename(1, "c");
    assert!(lookup(1, "c").is_ok() && is_absent("b"));
    wait(|done| stage.node(1).link(lookup(1, "c").unwrap().ino, directory, b"b", done)).unwrap();
    rename(0, "e");
    assert!(lookup(1, "c").is_ok());
    assert_ne!(own, lookup(1, "c").unwrap().ino);
    // Its own renaming in a directory of which it knows all.
    let other = wait(|done| stage.node(1).create(WHO, Ino::ROOT, b"o", Created::Directory, 0o700, done));
    let other = other.unwrap().ino;
    let file = stage.create_in(1, other, "x").attr.ino;
    let mode = RenameMode::Replace;
    wait(|done| stage.node(1).rename(other, b"x", other, b"y", mode, done)).unwrap();
    let found = wait(|done| stage.node(1).lookup(other, b"y", done));
    assert_eq!(found.map(|attr| attr.ino), Ok(file));
    stage.finish();
}

#[test]
fn l3_nothing_is_answered_from_the_cache_without_the_lease() {
    let stage = Stage::new(2, 1, 0.0);
    let file = wait(|done| stage.node(0).create(WHO, Ino::ROOT, b"a", Created::Fifo, 0o600, done)).unwrap();
    assert_eq!(stage.attr(1, file.ino).unwrap().mode, 0o600);
    {
        use lockd::authority::Authority;
        stage.members[1].seat.lease().end();
    }
    stage.end(1, Standing::Ended);
    stage.set_mode(0, file.ino, 0o644);
    let late = stage.attr(1, file.ino);
    assert!(matches!(late, Err(Refusal::Stale(_))), "answered without a lease: {late:?}");
}

#[test]
fn a_session_that_is_fenced_returns_its_reserve_and_its_opens() {
    let stage = Stage::new(2, 1, 0.0);
    let file = stage.create(1, "a");
    stage.write(1, file.handle, 0, &[1; 8192]);
    let own = stage.create(1, "b");
    stage.acquire(1, own.attr.ino).unwrap();
    stage.write(1, own.handle, 0, &[2; 8192]);
    wait(|done| stage.node(0).unlink(Ino::ROOT, b"a", done)).unwrap();
    wait(|done| stage.node(0).unlink(Ino::ROOT, b"b", done)).unwrap();
    assert!(stage.attr(0, file.attr.ino).is_ok(), "it is open on node 1");
    stage.end(1, Standing::Ended);
    a_while();
    assert!(stage.attr(0, file.attr.ino).is_ok(), "given away before the session is fenced");
    stage.end(1, Standing::Fenced);
    until("the files' end", || stage.attr(0, file.attr.ino).is_err() && stage.attr(0, own.attr.ino).is_err());
    wait(|done| stage.node(0).shut_down(done)).unwrap();
    stage.coordinator.reclaim().unwrap();
    until("the space", || {
        let space = wait(|done| stage.node(0).space(done)).unwrap();
        space.free == space.blocks
    });
}
