//! Files of a set that cannot be taken up by the node that has acquired them.

use std::sync::Arc;

use lockd::ids::ClientId;

use super::super::world::wait;
use super::stage::Stage;
use crate::node::SetRefusal;
use crate::proto::codec::{decode, encode};
use crate::proto::{Answer, Answered};
use crate::refusal::Refusal;
use crate::service::FileService;
use crate::types::Ino;

/// From now on `node` is refused `ino` when it comes to take it up: when it is told that it owns it.
fn refuse(stage: &Stage, node: usize, ino: Ino) {
    let client = stage.members[node].client;
    let alter = move |bytes: Vec<u8>| {
        let Ok(mut answered) = decode::<Answered>(&bytes) else { return bytes };
        let Ok(Answer::OpenedSet(opened)) = &mut answered.reply else { return bytes };
        for one in opened.iter_mut() {
            let is_it = one.as_ref().is_ok_and(|opened| {
                let owns = |term: crate::proto::Term| term.client == client && term.owned.is_some();
                opened.attr.ino == ino && opened.term.is_some_and(owns)
            });
            if is_it {
                *one = Err(Refusal::Io("the inode cannot be read".to_owned()));
            }
        }
        encode(&answered).unwrap()
    };
    stage.network.alter(client, Arc::new(alter));
}

fn owners(stage: &Stage, inos: &[Ino]) -> Vec<Option<ClientId>> {
    inos.iter().map(|ino| stage.owner(*ino).map(|(client, _)| client)).collect()
}

/// `to` acquires a set of `from`, one file of which it cannot take up though programs have all of them open everywhere.
fn one_is_not_taken_up(from: Option<usize>, to: usize) {
    let stage = Stage::new(3, 1, 0.0);
    let made: Vec<_> = (0..3).map(|number| stage.create(1, &format!("file {number}"))).collect();
    let inos: Vec<Ino> = made.iter().map(|file| file.attr.ino).collect();
    for (value, file) in (1..).zip(&made) {
        stage.write(1, file.handle, 0, &[value; 5000]);
    }
    if let Some(from) = from {
        stage.acquire_all(from, &inos).unwrap();
    }
    let open = |node: usize| inos.iter().map(|ino| stage.open(node, *ino)).collect::<Vec<_>>();
    let handles = [open(0), open(1), open(2)];
    refuse(&stage, to, inos[1]);
    let refused: SetRefusal = wait(|done| stage.node(to).acquire(inos.clone(), done)).unwrap_err();
    assert_eq!(refused.ino, Some(inos[1]), "{refused}");
    stage.network.leave(stage.members[to].client);
    let new = Some(stage.members[to].client);
    assert_eq!(owners(&stage, &inos), [new, None, new], "the one goes back, and no other");
    let serves = |ino: &Ino| stage.node(to).core.files.get(*ino).is_some_and(|file| file.tenure().is_some());
    assert_eq!(inos.iter().map(serves).collect::<Vec<_>>(), [true, false, true]);
    // Everybody reads and writes all of them, by whoever serves them.
    for (number, value) in [(0_usize, 11_u8), (1, 12), (2, 13)] {
        for (at, writer) in (0..).zip([2, 0, 1_usize]) {
            let value = value + 10 * u8::try_from(writer).unwrap();
            stage.write(writer, handles[writer][number], 5000 + at * 100, &[value; 100]);
            for (reader, handles) in handles.iter().enumerate() {
                let old = u8::try_from(number).unwrap() + 1;
                let read = stage.read(reader, handles[number], 0, 5000);
                assert!(read == [old; 5000], "what was written before is lost: file {number}, node {reader}");
                assert!(stage.read(reader, handles[number], 5000 + at * 100, 100) == [value; 100]);
            }
        }
    }
    // And it goes where it is wanted.
    stage.acquire_all(to, &inos).unwrap();
    assert_eq!(owners(&stage, &inos), [new; 3]);
    for (node, handles) in handles.into_iter().enumerate() {
        handles.into_iter().for_each(|handle| stage.node(node).release(handle));
    }
    made.iter().for_each(|file| stage.node(1).release(file.handle));
    stage.finish();
}

#[test]
fn one_file_that_cannot_be_taken_up_keeps_no_other_from_being_served() {
    one_is_not_taken_up(Some(1), 2);
}

#[test]
fn one_file_of_nobody_that_cannot_be_taken_up_goes_on_at_the_coordinators_node() {
    one_is_not_taken_up(None, 2);
}

#[test]
fn what_is_taken_up_of_an_offered_set_keeps_its_pins() {
    let stage = Stage::new(3, 1, 0.0);
    let made: Vec<_> = (0..3).map(|number| stage.create(0, &format!("file {number}"))).collect();
    let inos: Vec<Ino> = made.iter().map(|file| file.attr.ino).collect();
    stage.pin(1, &inos).unwrap();
    refuse(&stage, 2, inos[1]);
    let cookie = stage.offer(1, &inos, 2);
    let refused = stage.take(2, &inos, cookie).unwrap_err();
    assert_eq!(refused.ino, Some(inos[1]), "{refused}");
    assert!(stage.close_offer(1, cookie).unwrap().is_some(), "who gives knows that it has gone");
    stage.network.leave(stage.members[2].client);
    let new = Some(stage.members[2].client);
    assert_eq!(owners(&stage, &inos), [new, None, new]);
    assert_eq!(inos.iter().map(|ino| stage.node(2).pins(*ino)).collect::<Vec<_>>(), [true, false, true]);
    // Nobody has them open on node 2, and they stay there.
    for ino in [inos[0], inos[2]] {
        assert!(matches!(stage.acquire(0, ino), Err(Refusal::Busy(_))), "{ino} is not pinned");
    }
    for (value, file) in (1..).zip(&made) {
        stage.write(0, file.handle, 0, &[value; 100]);
        assert!(stage.read(0, file.handle, 0, 100) == [value; 100]);
    }
    // What was not taken up comes when it is asked for again, and all of it goes when it is let go.
    stage.pin(2, &inos).unwrap();
    assert_eq!(owners(&stage, &inos), [new; 3]);
    stage.unpin(2, &inos).unwrap();
    assert_eq!(owners(&stage, &inos), [None; 3]);
    stage.finish();
}
