//! A node that hears everything and does it, and whose answers are lost: whoever asked waits for the answer, or for the end
//! of that node's session.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use lockd::authority::{Authority, Standing};

use super::super::world::{start, until, wait};
use super::stage::{READ_WRITE, Stage};
use crate::proto::{Allocation, SetAttr, XattrMode};
use crate::refusal::Refusal;
use crate::service::{FileService, OpenMode};
use crate::types::Ino;

const SEAL: &[u8] = b"trusted.csvfs.sealed";
const READ: OpenMode = OpenMode { write: false, ..READ_WRITE };

/// How the wait for the answer ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Heard,
    SessionOver,
}

/// More answers of `node` have been lost: it has been asked again and again.
fn until_lost(stage: &Stage, node: usize) {
    let client = stage.members[node].client;
    let before = stage.network.lost(client);
    until("further answers to be lost", || stage.network.lost(client) >= before + 3);
}

fn end(stage: &Stage, node: usize, how: End) {
    match how {
        End::Heard => stage.network.unmute(stage.members[node].client),
        End::SessionOver => {
            stage.members[node].seat.lease().end();
            stage.end(node, Standing::Ended);
            stage.end(node, Standing::Fenced);
        }
    }
}

fn done<T>(receiver: &Receiver<Result<T, Refusal>>) -> Result<T, Refusal> {
    receiver.recv_timeout(Duration::from_secs(10)).expect("it goes on")
}

fn cut(stage: &Stage, node: usize, ino: Ino, size: u64) -> Receiver<Result<(), Refusal>> {
    start(|done| {
        let set = SetAttr::default();
        stage.node(node).set_attr(ino, set, Some(size), Box::new(move |result| done(result.map(drop))));
    })
}

fn unsealing_waits(how: End) {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(0, "image");
    let ino = file.attr.ino;
    stage.write(0, file.handle, 0, &[7; 16_384]);
    stage.node(0).release(file.handle);
    wait(|done| stage.node(0).set_xattr(ino, SEAL, b"1", XattrMode::Set, false, done)).unwrap();
    let reader = wait(|done| stage.node(1).open(ino, READ, done)).unwrap().handle;
    let lent = || stage.node(1).core.files.get(ino).is_some_and(|file| file.lent.load(SeqCst));
    assert!(stage.read(1, reader, 0, 4096) == [7; 4096] && lent());
    stage.network.mute(stage.members[1].client);
    let unsealed = start(|done| stage.node(2).set_xattr(ino, SEAL, b"0", XattrMode::Set, false, done));
    until_lost(&stage, 1);
    assert!(!lent(), "it was told, and has returned it");
    assert!(unsealed.try_recv().is_err(), "unsealed without an answer of who had the layout");
    assert!(stage.attr(0, ino).unwrap().sealed);
    // What is to come next waits for it.
    let cut = cut(&stage, 2, ino, 8192);
    until_lost(&stage, 1);
    assert!(cut.try_recv().is_err() && unsealed.try_recv().is_err());
    end(&stage, 1, how);
    done(&unsealed).unwrap();
    done(&cut).unwrap();
    let writer = stage.open(2, ino);
    wait(|done| stage.node(2).allocate(writer, 0, 4096, Allocation::Punch, true, done)).unwrap();
    let expected = [vec![0; 4096], vec![7; 4096]].concat();
    assert!(stage.read(2, writer, 0, 16_384) == expected);
    if how == End::Heard {
        assert!(stage.read(1, reader, 0, 16_384) == expected, "read past the server");
        stage.node(1).release(reader);
        stage.node(2).release(writer);
        stage.finish();
    }
}

#[test]
fn v8_unsealing_waits_for_a_lost_answer_until_it_is_heard() {
    unsealing_waits(End::Heard);
}

#[test]
fn v8_unsealing_waits_for_a_lost_answer_until_the_session_is_over() {
    unsealing_waits(End::SessionOver);
}

/// Node 2 changes the layout of a file that node 1 owns, which does so, goes on to use it, and is not heard.
fn changes_wait(how: End) {
    let stage = Arc::new(Stage::new(3, 1, 0.0));
    let file = stage.create(1, "disk");
    let ino = file.attr.ino;
    stage.acquire(1, ino).unwrap();
    stage.write(1, file.handle, 0, &[1; 16_384]);
    let there = stage.open(2, ino);
    assert!(stage.read(2, there, 0, 4096) == [1; 4096]);
    stage.network.mute(stage.members[1].client);
    let punched = start(|done| stage.node(2).allocate(there, 0, 4096, Allocation::Punch, true, done));
    let cut = cut(&stage, 2, ino, 8192);
    let is_done =
        || stage.read(1, file.handle, 0, 4096) == [0; 4096] && stage.attr(1, ino).unwrap().size == 8192;
    until("the owner to have done both", is_done);
    // Its own program goes on; the copies that come from now on must not undo that.
    stage.write(1, file.handle, 0, &[2; 4096]);
    stage.write(1, file.handle, 8192, &[2; 4096]);
    until_lost(&stage, 1);
    assert!(punched.try_recv().is_err() && cut.try_recv().is_err(), "answered by nobody");
    let expected = [[2; 4096], [1; 4096], [2; 4096]].concat();
    assert!(stage.read(1, file.handle, 0, 16_384) == expected, "it was done again");
    if how == End::SessionOver {
        wait(|done| stage.node(1).sync(file.handle, done)).unwrap();
    }
    end(&stage, 1, how);
    done(&punched).unwrap();
    done(&cut).unwrap();
    match how {
        End::Heard => {
            assert!(stage.read(2, there, 0, 16_384) == expected, "it was done again");
            stage.node(1).release(file.handle);
            stage.node(2).release(there);
            Arc::into_inner(stage).unwrap().finish();
        }
        // The coordinator's node has served it since, and has done both: nobody knew whether they had been.
        End::SessionOver => {
            let expected = [[0; 4096], [1; 4096]].concat();
            assert!(stage.read(2, there, 0, 16_384) == expected);
            stage.write(2, there, 0, &[3; 4096]);
            let home = stage.open(0, ino);
            assert!(stage.read(0, home, 0, 8192) == [[3; 4096], [1; 4096]].concat());
        }
    }
}

#[test]
fn l5_a_truncation_and_a_punch_whose_answers_are_lost_are_done_once() {
    changes_wait(End::Heard);
}

#[test]
fn a_truncation_and_a_punch_whose_answers_are_lost_go_on_when_the_session_is_over() {
    changes_wait(End::SessionOver);
}

/// The coordinator's node makes a clone of what node 1 owns: node 1 returns it first.
fn a_clone_waits(how: End) {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(1, "disk");
    let ino = file.attr.ino;
    stage.acquire(1, ino).unwrap();
    stage.write(1, file.handle, 0, &[5; 16_384]);
    let (source, clone) = (stage.open(0, ino), stage.create(0, "clone"));
    stage.network.mute(stage.members[1].client);
    let acquired = start(|done| stage.node(0).acquire(vec![ino], done));
    until("the file to have left", || {
        stage.owner(ino).is_some_and(|(client, _)| client == stage.members[0].client)
    });
    until_lost(&stage, 1);
    assert!(acquired.try_recv().is_err(), "the coordinator has not heard that it was returned");
    assert!(stage.node(0).core.files.get(ino).is_some_and(|file| file.is_elsewhere()), "served by two");
    end(&stage, 1, how);
    let acquired = acquired.recv_timeout(Duration::from_secs(10)).expect("it goes on");
    match how {
        End::Heard => acquired.unwrap(),
        // Nobody is told what node 1 has committed: when it is fenced, the file comes from the coordinator's node.
        End::SessionOver => {
            acquired.unwrap_err();
            until("the file to be nobody's", || stage.acquire(0, ino).is_ok());
        }
    }
    let copied = wait(|done| stage.node(0).copy_range(source, 0, clone.handle, 0, 16_384, done));
    assert_eq!(copied, Ok(16_384));
    stage.write(0, source, 0, &[6; 4096]);
    assert!(stage.read(0, clone.handle, 0, 16_384) == [5; 16_384]);
    assert!(stage.read(0, source, 0, 8192) == [[6; 4096], [5; 4096]].concat());
    if how == End::Heard {
        assert!(stage.read(1, file.handle, 0, 8192) == [[6; 4096], [5; 4096]].concat());
        stage.node(1).release(file.handle);
        stage.node(0).release(source);
        stage.node(0).release(clone.handle);
        stage.finish();
    }
}

#[test]
fn a_clone_waits_for_a_lost_answer_until_it_is_heard() {
    a_clone_waits(End::Heard);
}

#[test]
fn a_clone_waits_for_a_lost_answer_until_the_session_is_over() {
    a_clone_waits(End::SessionOver);
}
