//! Sets of files that change owners: all or none, with their pins.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockd::authority::{Authority, Standing};
use lockd::ids::{ClientId, Epoch, ResourceId, Sequence, SlotId};
use lockd::network::{OnReply, Service};
use redirector::lun::Outcome;

use super::super::platter::What;
use super::super::world::{VOLUME, slice, start, until, wait};
use super::stage::{READ_WRITE, Stage};
use crate::node::SetRefusal;
use crate::node::task::run;
use crate::proto::codec::{decode, encode};
use crate::proto::{Answer, Answered, Call, Callback, Claim, Declared, Head, Operation, Request};
use crate::refusal::Refusal;
use crate::service::{FileService, HandleId, OpenMode, Opened, WriteMode};
use crate::types::Ino;

/// Files of node 1, each with its number as data.
fn files(stage: &Stage, count: u8) -> (Vec<Opened>, Vec<Ino>) {
    let files: Vec<Opened> = (0..count).map(|number| stage.create(1, &format!("file {number}"))).collect();
    for (number, file) in (0..).zip(&files) {
        stage.write(1, file.handle, 0, &[number; 100]);
    }
    let inos = files.iter().map(|file| file.attr.ino).collect();
    (files, inos)
}

fn owners(stage: &Stage, inos: &[Ino]) -> Vec<Option<ClientId>> {
    inos.iter().map(|ino| stage.owner(*ino).map(|(client, _)| client)).collect()
}

/// All files are owned by `node`, and pinned there.
fn all_pinned_to(stage: &Stage, inos: &[Ino], node: usize) {
    assert_eq!(owners(stage, inos), vec![Some(stage.members[node].client); inos.len()]);
    let other = usize::from(node == 0);
    for ino in inos {
        assert!(matches!(stage.acquire(other, *ino), Err(Refusal::Busy(_))), "{ino} is not pinned");
    }
}

#[test]
fn the_coordinators_node_owns_files_like_any_other() {
    let stage = Stage::new(3, 1, 0.0);
    let (files, inos) = files(&stage, 3);
    let epoch = stage.pin(0, &inos).unwrap();
    assert!(epoch.is_some());
    assert_eq!(stage.owner(inos[0]), Some((stage.members[0].client, epoch.unwrap())));
    all_pinned_to(&stage, &inos, 0);
    // What is asked of the coordinator is fenced by that ownership, and remote writers go on.
    let home = stage.open(0, inos[0]);
    stage.write(0, home, 100, &[7; 5000]);
    stage.write(1, files[0].handle, 5100, &[8; 100]);
    for (node, handle) in [(0, home), (1, files[0].handle)] {
        wait(|done| stage.node(node).sync(handle, done)).unwrap();
    }
    // Again: nothing to do, and the same epoch.
    assert_eq!(stage.pin(0, &inos), Ok(epoch));
    stage.unpin(0, &inos).unwrap();
    assert_eq!(owners(&stage, &inos), [None; 3]);
    stage.write(0, home, 5200, &[9; 100]);
    wait(|done| stage.node(0).sync(home, done)).unwrap();
    assert!(stage.read(1, files[0].handle, 5000, 300) == [[7; 100], [8; 100], [9; 100]].concat());
    stage.finish();
}

#[test]
fn a_set_moves_in_one_entry_with_its_pins() {
    let stage = Stage::new(3, 1, 0.0);
    let (files, inos) = files(&stage, 40);
    let first = stage.pin(1, &inos).unwrap().unwrap();
    let there: Vec<HandleId> = inos.iter().map(|ino| stage.open(2, *ino)).collect();
    let mut last = first;
    for (from, to) in [(1, 2), (2, 0), (0, 1), (1, 2)] {
        let entries = stage.realm.entries();
        let given = stage.transfer(from, &inos, to).unwrap().unwrap();
        assert_eq!(stage.realm.entries(), entries + 1, "one entry for all of them");
        assert!(given.epoch > last, "the epoch rises with every change of holder");
        assert_eq!(stage.owner(inos[39]), Some((stage.members[to].client, given.epoch)));
        last = given.epoch;
        all_pinned_to(&stage, &inos, to);
        for (number, (file, there)) in (0..).zip(files.iter().zip(&there)) {
            assert!(stage.read(1, file.handle, 0, 200) == [number; 100]);
            assert!(stage.read(2, *there, 0, 200) == [number; 100]);
        }
    }
    stage.unpin(2, &inos).unwrap();
    stage.finish();
}

#[test]
fn what_nobody_owns_moves_with_what_the_coordinators_node_owns() {
    let stage = Stage::new(3, 1, 0.0);
    let (files, inos) = files(&stage, 6);
    stage.pin(0, &inos[..2]).unwrap();
    let entries = stage.realm.entries();
    stage.transfer(0, &inos, 2).unwrap().unwrap();
    assert_eq!(stage.realm.entries(), entries + 1);
    all_pinned_to(&stage, &inos, 2);
    for (number, file) in (0..).zip(&files) {
        stage.write(1, file.handle, 100, &[number; 100]);
        assert!(stage.read(1, file.handle, 0, 300) == [number; 200]);
    }
    stage.finish();
}

#[test]
fn more_files_than_fit_into_one_message_move_at_once() {
    let stage = Stage::new(3, 1, 0.0);
    let count = 2600_u32;
    let inos: Vec<Ino> = (0..count)
        .map(|number| {
            let file = stage.create(0, &format!("file {number}"));
            stage.write(0, file.handle, 0, &number.to_le_bytes());
            file.attr.ino
        })
        .collect();
    stage.pin(1, &inos).unwrap();
    let entries = stage.realm.entries();
    stage.transfer(1, &inos, 2).unwrap().unwrap();
    assert_eq!(stage.realm.entries(), entries + 1);
    assert_eq!(owners(&stage, &inos), vec![Some(stage.members[2].client); inos.len()]);
    for (number, ino) in (0..count).zip(&inos).step_by(250) {
        let handle = stage.open(1, *ino);
        assert!(stage.read(1, handle, 0, 4) == number.to_le_bytes());
    }
    stage.unpin(2, &inos).unwrap();
    assert_eq!(owners(&stage, &inos), vec![None; inos.len()]);
}

/// Every way in which a transfer is refused before its commit: all of the set stays, pinned and in use.
fn nothing_moves(spoil: impl FnOnce(&Stage), heal: impl FnOnce(&Stage)) {
    let stage = Stage::new(3, 1, 0.0);
    let (files, inos) = files(&stage, 10);
    stage.pin(1, &inos).unwrap();
    let there = stage.open(2, inos[0]);
    let before: Vec<_> = inos.iter().map(|ino| stage.owner(*ino)).collect();
    stage.write(1, files[0].handle, 100, &[1; 100]);
    spoil(&stage);
    let given = stage.transfer(1, &inos, 2);
    assert!(!matches!(given, Ok(Some(_))), "{given:?}");
    let after: Vec<_> = inos.iter().map(|ino| stage.owner(*ino)).collect();
    assert_eq!(after, before);
    heal(&stage);
    stage.write(1, files[0].handle, 200, &[2; 100]);
    stage.write(2, there, 300, &[3; 100]);
    let expected = [[0; 100], [1; 100], [2; 100], [3; 100]].concat();
    assert!(stage.read(1, files[0].handle, 0, 400) == expected && stage.read(2, there, 0, 400) == expected);
    all_pinned_to(&stage, &inos, 1);
    // And afterwards it can move.
    stage.transfer(1, &inos, 2).unwrap().unwrap();
    assert!(stage.read(1, files[0].handle, 0, 400) == expected && stage.read(2, there, 0, 400) == expected);
    all_pinned_to(&stage, &inos, 2);
}

#[test]
fn a_set_that_the_authority_refuses_stays() {
    nothing_moves(|stage| stage.realm.refuse(true), |stage| stage.realm.refuse(false));
}

#[test]
fn a_set_whose_data_cannot_be_flushed_stays() {
    // The node's own commits in the background fail as well.
    let spoil = |stage: &Stage| {
        (0..5).for_each(|_| stage.platter.fail_next_flush(Outcome::Failed(libc::EIO)));
    };
    nothing_moves(spoil, |stage| stage.platter.recover());
}

#[test]
fn a_set_whose_last_commit_fails_stays() {
    let stage = Arc::new(Stage::new(3, 1, 0.0));
    let (files, inos) = files(&stage, 5);
    stage.pin(1, &inos).unwrap();
    stage.write(1, files[4].handle, 100, &[1; 100]);
    // A write goes on through the first commit, so that there is a second one, with everything stopped.
    let cookie = stage.offer(1, &inos, 2);
    stage.platter.hold(What::Writes);
    let writer = Arc::clone(&stage);
    let handle = files[3].handle;
    let write = std::thread::spawn(move || writer.write(1, handle, 100, &[2; 100]));
    until("the write", || stage.platter.held() > 0);
    let taken = start(|done| stage.node(2).pin(inos.clone(), Some(cookie), done));
    // What is pending has been committed when the set waits for the write. Where this is too early, that commit fails.
    until("the set to be stopped", || stage.is_taken(1, cookie));
    std::thread::sleep(Duration::from_millis(50));
    stage.platter.fail_next_flush(Outcome::Failed(libc::EIO));
    stage.platter.let_go();
    write.join().unwrap();
    let taken = taken.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(taken.is_err(), "{taken:?}");
    assert!(stage.close_offer(1, cookie).is_err());
    all_pinned_to(&stage, &inos, 1);
    stage.write(1, files[3].handle, 200, &[3; 100]);
    stage.transfer(1, &inos, 2).unwrap().unwrap();
    assert!(stage.read(1, files[3].handle, 0, 300) == [[3; 100], [2; 100], [3; 100]].concat());
}

#[test]
fn an_offer_that_was_called_off_is_not_taken_up() {
    let stage = Stage::new(3, 1, 0.0);
    let (files, inos) = files(&stage, 3);
    stage.pin(1, &inos).unwrap();
    let cookie = stage.offer(1, &inos, 2);
    // A part of it, or for another, is not what was offered.
    assert!(stage.take(2, &inos[..2], cookie).is_err());
    assert!(stage.take(0, &inos, cookie).is_err());
    assert_eq!(stage.close_offer(1, cookie), Ok(None));
    let late: SetRefusal = stage.take(2, &inos, cookie).unwrap_err();
    assert!(late.to_string().contains("called off"), "{late}");
    all_pinned_to(&stage, &inos, 1);
    stage.write(1, files[0].handle, 0, &[9; 10]);
    stage.unpin(1, &inos).unwrap();
    stage.finish();
}

#[test]
fn an_offer_for_an_epoch_that_is_over_is_not_taken_up() {
    let stage = Stage::new(3, 1, 0.0);
    let (files, inos) = files(&stage, 3);
    let old = stage.pin(1, &inos).unwrap().unwrap();
    stage.transfer(1, &inos, 2).unwrap().unwrap();
    let now = stage.transfer(2, &inos, 1).unwrap().unwrap().epoch;
    let entries = stage.realm.entries();
    for epoch in [old, Epoch::NOBODY, Epoch(now.0 + 1)] {
        let cookie = stage.offer_in(1, &inos, 2, Some(epoch));
        let refused = stage.take(2, &inos, cookie).unwrap_err();
        assert!(refused.to_string().contains(&format!("held in epoch {now}, not")), "{refused}");
        assert!(stage.close_offer(1, cookie).is_err());
        assert_eq!(stage.realm.entries(), entries, "nothing was asked of the authority");
        all_pinned_to(&stage, &inos, 1);
        stage.write(1, files[0].handle, 0, &[9; 10]);
    }
    let cookie = stage.offer_in(1, &inos, 2, Some(now));
    stage.take(2, &inos, cookie).unwrap();
    all_pinned_to(&stage, &inos, 2);
    stage.unpin(2, &inos).unwrap();
    // Nobody's, and then not any more.
    let cookie = stage.offer_in(0, &inos, 2, Some(Epoch::NOBODY));
    stage.pin(0, &inos[..1]).unwrap();
    stage.take(2, &inos, cookie).unwrap_err();
    assert_eq!(owners(&stage, &inos), [Some(stage.members[0].client), None, None]);
    stage.close_offer(0, cookie).unwrap_err();
    stage.unpin(0, &inos[..1]).unwrap();
    let cookie = stage.offer_in(0, &inos, 2, Some(Epoch::NOBODY));
    stage.take(2, &inos, cookie).unwrap();
    all_pinned_to(&stage, &inos, 2);
    stage.unpin(2, &inos).unwrap();
    stage.finish();
}

#[test]
fn one_pinned_file_keeps_the_whole_set() {
    let stage = Stage::new(3, 1, 0.0);
    let (_, inos) = files(&stage, 5);
    stage.acquire_all(1, &inos).unwrap();
    stage.pin(1, &inos[3..4]).unwrap();
    assert!(matches!(stage.acquire_all(2, &inos), Err(Refusal::Busy(_))));
    assert_eq!(owners(&stage, &inos), [Some(stage.members[1].client); 5]);
    stage.unpin(1, &inos[3..4]).unwrap();
    stage.acquire_all(2, &inos).unwrap();
    stage.finish();
}

#[test]
fn what_is_no_file_is_refused_by_name() {
    let stage = Stage::new(2, 1, 0.0);
    let (_, inos) = files(&stage, 2);
    let gone = Ino(4711);
    let refusal = stage.pin(1, &[inos[0], gone, inos[1]]).unwrap_err();
    assert_eq!(refusal, SetRefusal { ino: Some(gone), why: Refusal::NotFound });
    let refusal = stage.pin(1, &[Ino::ROOT, inos[0]]).unwrap_err();
    assert_eq!(refusal, SetRefusal { ino: Some(Ino::ROOT), why: Refusal::IsDirectory });
    assert_eq!(owners(&stage, &inos), [None; 2]);
    stage.finish();
}

#[test]
fn a_target_that_dies_takes_all_of_the_set_with_it_or_nothing() {
    for committed in [false, true] {
        let stage = Stage::new(3, 1, 0.0);
        let (files, inos) = files(&stage, 10);
        stage.pin(1, &inos).unwrap();
        let cookie = stage.offer(1, &inos, 2);
        let target = stage.members[2].client;
        if !committed {
            stage.realm.set(stage.session(2), Standing::Ended);
        }
        if committed {
            // It has asked; no answer reaches it any more.
            stage.platter.hold(What::Flushes);
            stage.write(1, files[0].handle, 0, &[0; 100]);
            let taking = start(|done| stage.node(2).pin(inos.clone(), Some(cookie), done));
            until("the flush", || stage.is_taken(1, cookie) && stage.platter.held() > 0);
            stage.network.cut(target);
            stage.platter.let_go();
            until("the transfer", || owners(&stage, &inos) == [Some(target); 10]);
            drop(taking);
            let given = stage.close_offer(1, cookie).unwrap();
            assert!(given.is_some(), "who gives knows it for certain");
        } else {
            stage.take(2, &inos, cookie).unwrap_err();
            assert_eq!(stage.close_offer(1, cookie), Ok(None));
            all_pinned_to(&stage, &inos, 1);
        }
        stage.members[2].seat.lease().end();
        stage.end(2, Standing::Ended);
        stage.end(2, Standing::Fenced);
        // By whom ever it is served now, no byte is lost: all was committed before.
        for (number, file) in (0..).zip(&files) {
            assert!(stage.read(1, file.handle, 0, 200) == [number; 100], "committed: {committed}");
        }
        if committed {
            assert_eq!(owners(&stage, &inos), [None; 10]);
        }
    }
}

#[test]
fn a_source_that_dies_before_the_commit_leaves_its_files_to_the_coordinators_node() {
    let stage = Stage::new(3, 1, 0.0);
    let (files, inos) = files(&stage, 4);
    stage.pin(1, &inos).unwrap();
    wait(|done| stage.node(1).sync_all(done)).unwrap();
    let there: Vec<_> = inos.iter().map(|ino| stage.open(2, *ino)).collect();
    let cookie = stage.offer(1, &inos, 2);
    stage.network.cut(stage.members[1].client);
    let taking = start(|done| stage.node(2).pin(inos.clone(), Some(cookie), done));
    stage.members[1].seat.lease().end();
    stage.end(1, Standing::Ended);
    stage.end(1, Standing::Fenced);
    taking.recv_timeout(Duration::from_secs(10)).unwrap().unwrap_err();
    for (number, there) in (0..).zip(there) {
        assert!(stage.read(2, there, 0, 200) == [number; 100]);
    }
    drop(files);
    // They are free to go where they are wanted.
    stage.pin(2, &inos).unwrap();
    all_pinned_to(&stage, &inos, 2);
}

/// Sets change hands under writers on all nodes, over a network that loses, repeats, delays and reorders.
#[test]
fn l5_sets_move_under_writers_on_a_network_that_loses_and_repeats() {
    for seed in 0..3 {
        let stage = Arc::new(Stage::new(3, seed, 0.05));
        let (files, inos) = files(&stage, 8);
        stage.pin(0, &inos).unwrap();
        let ends = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..3_u64)
            .map(|node| {
                let (stage, ends, inos) = (Arc::clone(&stage), Arc::clone(&ends), inos.clone());
                std::thread::spawn(move || {
                    let at = usize::try_from(node).unwrap();
                    let handles: Vec<_> = inos.iter().map(|ino| stage.open(at, *ino)).collect();
                    let mut count = 0_u64;
                    while !ends.load(Ordering::SeqCst) || count < 20 {
                        let handle = handles[usize::try_from(count % 8).unwrap()];
                        let offset = 1000 + (count / 8 % 4) * 3000 + node * 1000;
                        let value = u8::try_from(count % 250 + 1).unwrap();
                        stage.write(at, handle, offset, &[value; 1000]);
                        assert!(
                            stage.read(at, handle, offset, 1000) == [value; 1000],
                            "seed {seed}: a write of node {node} is lost"
                        );
                        count += 1;
                    }
                    handles.into_iter().for_each(|handle| stage.node(at).release(handle));
                })
            })
            .collect();
        let mut owner = 0;
        for round in 1..12 {
            let to = (owner + 1 + round % 2) % 3;
            let given = stage.transfer(owner, &inos, to).unwrap();
            assert!(given.is_some(), "seed {seed}: nothing was in the way");
            owner = to;
            assert_eq!(owners(&stage, &inos), vec![Some(stage.members[owner].client); inos.len()]);
        }
        ends.store(true, Ordering::SeqCst);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        stage.unpin(owner, &inos).unwrap();
        files.iter().for_each(|file| stage.node(1).release(file.handle));
        Arc::into_inner(stage).unwrap().finish();
    }
}

/// Over a real network a question that takes long is asked again; it must not be refused for that.
#[test]
fn a_copy_of_an_acquisition_under_way_gets_the_same_answer() {
    let stage = Stage::new(2, 1, 0.0);
    let file = stage.create(0, "a");
    let ino = file.attr.ino;
    stage.open(1, ino);
    let role = stage.members[0].seat.holder(&ResourceId::Coordinator(VOLUME)).unwrap();
    let head = Head {
        session: stage.session(1),
        client: stage.members[1].client,
        coordinator: role.epoch,
        // One that the node does not come to use here.
        slot: Some((SlotId(60), Sequence(1))),
    };
    let claim = Claim { automatic: false, pinned: false, offer: None };
    let request = Request { head, operation: Operation::Acquire { files: vec![ino], claim } };
    let frame = encode(&request).unwrap();
    stage.platter.hold(What::Writes);
    let write = start(|done| {
        stage.node(0).write(file.handle, 0, slice(&[2; 4096]), WriteMode::default(), done);
    });
    until("the write", || stage.platter.held() > 0);
    let (sender, answers) = std::sync::mpsc::channel();
    for _ in 0..3 {
        let sender = sender.clone();
        stage.coordinator.serve(frame.clone(), Box::new(move |reply| drop(sender.send(reply))));
    }
    std::thread::sleep(Duration::from_millis(30));
    assert!(answers.try_recv().is_err(), "answered while a write to the file is in flight");
    stage.platter.let_go();
    write.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    let answer = |_| answers.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    let all: Vec<Vec<u8>> = (0..3).map(answer).collect();
    assert!(all[1] == all[0] && all[2] == all[0]);
    assert_eq!(decode::<Answered>(&all[0]).unwrap().reply, Ok(Answer::Moved(vec![ino])));
    assert_eq!(stage.realm.entries(), 1);
}

/// A node that is called, and answers nothing: its calls are kept.
#[derive(Debug, Default)]
struct Silent(parking_lot::Mutex<Vec<Vec<u8>>>);

impl Service for Silent {
    fn serve(&self, frame: Vec<u8>, _on_reply: OnReply) {
        self.0.lock().push(frame);
    }
}

impl Silent {
    /// Stands for node `number` from now on.
    fn of(stage: &Stage, number: usize) -> Arc<Self> {
        let silent = Arc::new(Self::default());
        stage.network.serve(stage.members[number].client, Arc::clone(&silent) as _);
        wait(|done| stage.members[number].node.attach(done)).unwrap();
        silent
    }

    /// The call to yield, when it has come.
    fn yields(&self) -> Vec<u8> {
        let of_yield = |frame: &Vec<u8>| {
            decode::<Call>(frame).is_ok_and(|call| matches!(call.what, Callback::Yield { .. }))
        };
        until("the call to yield", || self.0.lock().iter().any(of_yield));
        self.0.lock().iter().find(|frame| of_yield(frame)).unwrap().clone()
    }
}

/// Found by the simulation: the next owner was told that nobody serves the file, gave the ownership back, and stayed the
/// one whom the coordinator named as the server.
#[test]
fn who_has_acquired_a_file_is_told_its_term_though_another_acquires_it_already() {
    let stage = Stage::new(3, 1, 0.0);
    let ino = stage.create(0, "a").attr.ino;
    stage.open(1, ino);
    stage.open(2, ino);
    let role = stage.members[0].seat.holder(&ResourceId::Coordinator(VOLUME)).unwrap();
    let (sender, answers) = std::sync::mpsc::channel();
    let ask = |node: usize, sequence: u64, operation: Operation| {
        let client = stage.members[node].client;
        let slot = Some((SlotId(60), Sequence(sequence)));
        let head = Head { session: stage.session(node), client, coordinator: role.epoch, slot };
        let (sender, frame) = (sender.clone(), encode(&Request { head, operation }).unwrap());
        stage.coordinator.serve(frame, Box::new(move |reply| drop(sender.send((node, reply)))));
    };
    let answer = || {
        let (node, reply) = answers.recv_timeout(Duration::from_secs(10)).unwrap();
        (node, decode::<Answered>(&reply.unwrap()).unwrap().reply)
    };
    let claim = Claim { automatic: false, pinned: false, offer: None };
    let acquire = Operation::Acquire { files: vec![ino], claim };
    ask(1, 1, acquire.clone());
    assert_eq!(answer(), (1, Ok(Answer::Moved(vec![ino]))));
    // Node 1 has heard that, and has not taken the file up; its node is silent from here on.
    let silent = Silent::of(&stage, 1);
    ask(2, 1, acquire);
    silent.yields();
    let open = || Operation::OpenSet { files: vec![Declared { ino, write: true, served: None }] };
    let term = |reply| match reply {
        Ok(Answer::OpenedSet(opened)) => opened.into_iter().next().unwrap().unwrap().term,
        other => panic!("{other:?}"),
    };
    ask(1, 2, open());
    let (node, reply) = answer();
    assert_eq!((node, term(reply).map(|term| term.client)), (1, Some(stage.members[1].client)));
    // Nobody else is.
    ask(0, 1, open());
    let (node, reply) = answer();
    assert_eq!((node, term(reply)), (0, None));
}

/// The call to yield was on its way while the owner gave the file back of itself.
#[test]
fn what_was_closed_and_opened_again_before_the_call_came_goes_to_who_wants_it() {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(1, "a");
    let ino = file.attr.ino;
    stage.acquire(1, ino).unwrap();
    stage.write(1, file.handle, 0, &[1; 100]);
    let there = stage.open(2, ino);
    let silent = Silent::of(&stage, 1);
    let acquired = start(|done| stage.node(2).acquire(vec![ino], done));
    let call = silent.yields();
    stage.node(1).release(file.handle);
    let core = Arc::clone(&stage.node(1).core);
    let (sender, receiver) = std::sync::mpsc::channel();
    run(async move {
        core.close_idle(u64::MAX).await;
        let _ = sender.send(());
    });
    receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(owners(&stage, &[ino]), [None]);
    // Its opening ends when somebody serves the file.
    let mode = OpenMode { direct: true, ..READ_WRITE };
    let again = start(|done| stage.node(1).open(ino, mode, done));
    until("it is open again", || stage.node(1).core.files.get(ino).is_some_and(|file| file.is_elsewhere()));
    let node = &stage.members[1].node;
    stage.network.serve(stage.members[1].client, Arc::clone(node) as _);
    node.serve(call, Box::new(drop));
    wait(|done| node.attach(done)).unwrap();
    acquired.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(owners(&stage, &[ino]), [Some(stage.members[2].client)]);
    let again = again.recv_timeout(Duration::from_secs(10)).unwrap().unwrap().handle;
    stage.write(1, again, 100, &[2; 100]);
    assert!(stage.read(2, there, 0, 300) == [[1; 100], [2; 100]].concat());
    stage.finish();
}
