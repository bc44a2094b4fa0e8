//! Another node coordinates, because the last coordinator's is gone or has handed the role over.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use lockd::authority::{Authority, Standing};
use lockd::ids::ResourceId;
use lockd::network::{Carrier, CarrierError, OnReply};

use super::super::world::{VOLUME, WHO, slice, start, until, wait};
use super::stage::{READ_WRITE, Stage};
use crate::proto::{Created, SetAttr};
use crate::refusal::Refusal;
use crate::service::{FileService, WriteMode};
use crate::types::Ino;

/// The coordinator's node is dead, and known to be.
fn bury(stage: &mut Stage) {
    stage.kill_coordinator();
    let session = stage.session(stage.home);
    stage.realm.set(session, Standing::Ended);
    stage.realm.set(session, Standing::Fenced);
}

/// Names are made and taken away, each once, by a node that is not the coordinator's, while another writes a file that it
/// owns; `during` is what happens meanwhile. How many names were made, and the longest time that one write has taken.
fn under_load(stage: &mut Stage, during: impl FnOnce(&mut Stage)) -> (u64, Duration) {
    let owned = stage.create(2, "owned");
    stage.acquire(2, owned.attr.ino).unwrap();
    stage.write(2, owned.handle, 0, &[1; 4096]);
    let [names, writer] = [1, 2].map(|number: usize| Arc::clone(&stage.members[number].node));
    let (stop, made, longest) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let number = made.load(Ordering::SeqCst);
                let name = format!("name{number}");
                let create = |done| names.create(WHO, Ino::ROOT, name.as_bytes(), Created::File, 0o644, done);
                wait(create).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
                if number % 3 == 0 {
                    wait(|done| names.unlink(Ino::ROOT, name.as_bytes(), done))
                        .unwrap_or_else(|refusal| panic!("unlink {name}: {refusal}"));
                }
                made.fetch_add(1, Ordering::SeqCst);
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let since = Instant::now();
                let data = slice(&[2; 4096]);
                wait(|done| writer.write(owned.handle, 0, data, WriteMode::default(), done)).unwrap();
                let took = u64::try_from(since.elapsed().as_micros()).unwrap();
                longest.fetch_max(took, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        until("the first names", || made.load(Ordering::SeqCst) > 20);
        during(stage);
        let now = made.load(Ordering::SeqCst);
        until("further names", || made.load(Ordering::SeqCst) > now + 20);
        stop.store(true, Ordering::SeqCst);
    });
    wait(|done| stage.node(2).sync(owned.handle, done)).unwrap();
    let made = made.load(Ordering::SeqCst);
    for number in 0..made {
        let found = stage.lookup(1, &format!("name{number}"));
        assert_eq!(found.err(), (number % 3 == 0).then_some(Refusal::NotFound), "name{number}");
    }
    (made, Duration::from_micros(longest.load(Ordering::SeqCst)))
}

/// Found: a node gave a file back to the last coordinator after it had the role itself, and before it followed itself. It
/// served the file in the last coordinator's epoch from then on, and nothing of it was ever committed.
#[test]
fn what_is_given_back_to_the_last_coordinator_is_served_in_the_next_ones_epoch() {
    let mut stage = Stage::new(3, 1, 0.0);
    let file = stage.create(1, "a");
    stage.pin(1, &[file.attr.ino]).unwrap();
    stage.write(1, file.handle, 0, &[7; 4096]);
    let role = ResourceId::Coordinator(VOLUME);
    let [last, next] =
        [0, 1].map(|number: usize| (stage.members[number].client, stage.members[number].seat.clone()));
    let (client, epoch) = (next.0, last.1.holder(&role).unwrap().epoch);
    let moves = Once::new();
    // As the answer to its commit comes, the role becomes the node's.
    let alter = move |answer| {
        moves.call_once(|| {
            last.1.release(&role, last.0, epoch).unwrap();
            next.1.acquire(&role, next.0).unwrap();
        });
        answer
    };
    stage.network.alter(client, Arc::new(alter));
    let node = Arc::clone(&stage.members[1].node);
    let unpinned = start(|done| node.unpin(vec![file.attr.ino], done));
    until("the file to be given back", || stage.owner(file.attr.ino).is_none());
    bury(&mut stage);
    stage.take_over(1, &[1, 2]);
    // By which of the two is the same.
    let _ = unpinned.recv_timeout(Duration::from_secs(10)).unwrap();
    stage.write(1, file.handle, 4096, &[8; 4096]);
    wait(|done| stage.node(1).sync(file.handle, done)).unwrap();
    let there = stage.open(2, file.attr.ino);
    assert_eq!(stage.read(2, there, 4095, 2), [7, 8]);
    stage.finish();
}

#[test]
fn names_wait_for_the_next_coordinator_and_each_change_takes_effect_once() {
    for (seed, trouble) in [(1, 0.0), (2, 0.1), (3, 0.1)] {
        let mut stage = Stage::new(3, seed, trouble);
        under_load(&mut stage, |stage| {
            stage.kill_coordinator();
            std::thread::sleep(Duration::from_millis(100));
            let session = stage.session(0);
            stage.realm.set(session, Standing::Ended);
            stage.realm.set(session, Standing::Fenced);
            stage.take_over(1, &[1, 2]);
        });
        stage.finish();
    }
}

#[test]
fn an_owner_writes_on_while_nobody_coordinates() {
    let mut stage = Stage::new(3, 1, 0.0);
    let (_, longest) = under_load(&mut stage, |stage| {
        bury(stage);
        // Nobody takes over for a while.
        std::thread::sleep(Duration::from_millis(800));
        stage.take_over(1, &[1, 2]);
    });
    assert!(longest < Duration::from_millis(400), "a write of the owner has waited for {longest:?}");
    stage.finish();
}

#[test]
fn what_nobody_owned_is_served_by_the_next_coordinators_node() {
    let mut stage = Stage::new(3, 1, 0.0);
    let (file, unsynced) = (stage.create(1, "a"), stage.create(1, "b"));
    let there = stage.open(2, file.attr.ino);
    stage.write(1, file.handle, 0, &[7; 5000]);
    wait(|done| stage.node(1).sync(file.handle, done)).unwrap();
    stage.write(1, unsynced.handle, 0, &[8; 5000]);
    bury(&mut stage);
    // What waits for an answer of the dead goes on.
    let reader = Arc::clone(&stage.members[2].node);
    let read = start(|done| reader.read(there, 0, 5000, done));
    stage.take_over(2, &[1, 2]);
    let read = read.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(super::super::world::bytes(&read), [7; 5000]);
    stage.write(1, file.handle, 5000, &[9; 100]);
    assert_eq!(stage.read(2, there, 4999, 200), [&[7_u8; 1][..], &[9; 100]].concat());
    wait(|done| stage.node(1).sync(file.handle, done)).unwrap();
    // P9: what was lost with the node that served it is told.
    assert!(matches!(wait(|done| stage.node(1).sync(unsynced.handle, done)), Err(Refusal::Io(_))));
    stage.finish();
}

#[test]
fn an_owner_stays_the_owner_in_its_term() {
    let mut stage = Stage::new(4, 1, 0.0);
    let file = stage.create(2, "a");
    let ino = file.attr.ino;
    stage.acquire(2, ino).unwrap();
    let there = stage.open(3, ino);
    stage.write(3, there, 0, &[1; 100]);
    let owner = stage.owner(ino);
    bury(&mut stage);
    stage.take_over(1, &[1, 2, 3]);
    stage.write(3, there, 100, &[2; 100]);
    assert_eq!((stage.owner(ino), stage.node(2).owns(ino)), (owner, true));
    // Its term goes on: nothing that it was sent before has been lost.
    wait(|done| stage.node(3).sync(there, done)).unwrap();
    // And it may be moved.
    stage.acquire(3, ino).unwrap();
    assert_eq!(stage.owner(ino).map(|(client, _)| client), Some(stage.members[3].client));
    assert_eq!(stage.read(2, file.handle, 0, 200), [[1; 100], [2; 100]].concat());
    stage.finish();
}

#[test]
fn v9_a_new_coordinator_changes_nothing_before_all_have_dropped_what_they_cached() {
    let mut stage = Stage::new(3, 1, 0.0);
    let file = stage.create(1, "a");
    let ino = file.attr.ino;
    stage.node(1).release(file.handle);
    until("the closing", || stage.attr(1, ino).is_ok() && stage.node(1).core.files.get(ino).is_none());
    assert_eq!(stage.lookup(2, "a").unwrap().mode & 0o777, 0o644);
    bury(&mut stage);
    // Node 2 hears nothing, and answers from its cache.
    stage.network.cut(stage.members[2].client);
    stage.take_over(1, &[1]);
    let node = Arc::clone(&stage.members[1].node);
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let changed = start(|done| node.set_attr(ino, set, None, done));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(stage.lookup(2, "a").unwrap().mode & 0o777, 0o644);
    assert!(changed.try_recv().is_err(), "the mode was changed while node 2 still knew the old one");
    stage.end(2, Standing::Ended);
    changed.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    stage.end(2, Standing::Fenced);
    stage.finish();
}

#[test]
fn v10_what_is_open_without_a_name_survives_a_takeover() {
    let mut stage = Stage::new(3, 1, 0.0);
    let file = stage.create(2, "a");
    stage.write(2, file.handle, 0, &[5; 9000]);
    wait(|done| stage.node(2).sync(file.handle, done)).unwrap();
    wait(|done| stage.node(1).unlink(Ino::ROOT, b"a", done)).unwrap();
    bury(&mut stage);
    stage.take_over(1, &[1]);
    // Node 2 has not said yet what it has open.
    stage.coordinator.reclaim().unwrap();
    let followed = stage.follow(2);
    followed.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(stage.read(2, file.handle, 0, 9000), [5; 9000]);
    stage.node(2).release(file.handle);
    stage.finish();
}

#[test]
fn what_a_dead_node_may_have_open_is_not_reclaimed_before_it_is_fenced() {
    let mut stage = Stage::new(4, 1, 0.0);
    let file = stage.create(3, "a");
    let ino = file.attr.ino;
    stage.write(3, file.handle, 0, &[5; 9000]);
    wait(|done| stage.node(3).sync(file.handle, done)).unwrap();
    wait(|done| stage.node(1).unlink(Ino::ROOT, b"a", done)).unwrap();
    bury(&mut stage);
    stage.network.cut(stage.members[3].client);
    stage.realm.set(stage.session(3), Standing::Ended);
    stage.take_over(1, &[1, 2]);
    // Everybody who lives is served.
    stage.create(2, "b");
    stage.coordinator.reclaim().unwrap();
    assert!(stage.attr(2, ino).is_ok(), "the blocks of a file are free that a dead node may still write to");
    stage.end(3, Standing::Fenced);
    until("the file is gone", || stage.attr(2, ino) == Err(Refusal::NotFound));
    stage.finish();
}

#[test]
fn a_dead_owners_file_waits_for_its_fence() {
    let mut stage = Stage::new(4, 1, 0.0);
    let file = stage.create(3, "a");
    let ino = file.attr.ino;
    let there = stage.open(2, ino);
    stage.write(3, file.handle, 0, &[5; 100]);
    wait(|done| stage.node(3).sync(file.handle, done)).unwrap();
    stage.acquire(3, ino).unwrap();
    bury(&mut stage);
    stage.network.cut(stage.members[3].client);
    stage.realm.set(stage.session(3), Standing::Ended);
    stage.take_over(1, &[1, 2]);
    stage.create(2, "b");
    let reader = Arc::clone(&stage.members[2].node);
    let read = start(|done| reader.read(there, 0, 100, done));
    assert!(read.recv_timeout(Duration::from_millis(200)).is_err(), "its owner is not fenced");
    stage.end(3, Standing::Fenced);
    let read = read.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(super::super::world::bytes(&read), [5; 100]);
    stage.finish();
}

#[test]
fn a_transfer_in_the_middle_of_which_the_coordinator_dies_is_made_by_the_next_one() {
    let mut stage = Stage::new(4, 1, 0.0);
    let file = stage.create(2, "a");
    let ino = file.attr.ino;
    stage.acquire(2, ino).unwrap();
    stage.write(2, file.handle, 0, &[1; 100]);
    let there = stage.open(3, ino);
    // The owner has handed it over, and its answer is lost; the one who acquires it hears nothing.
    stage.network.mute(stage.members[2].client);
    let node = Arc::clone(&stage.members[3].node);
    let acquired = start(|done| node.acquire(vec![ino], done));
    until("the entry", || stage.realm.entries() > 0);
    bury(&mut stage);
    stage.network.unmute(stage.members[2].client);
    stage.take_over(1, &[1, 2, 3]);
    acquired.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(stage.owner(ino).map(|(client, _)| client), Some(stage.members[3].client));
    stage.write(3, there, 100, &[2; 100]);
    assert_eq!(stage.read(2, file.handle, 0, 200), [[1; 100], [2; 100]].concat());
    stage.finish();
}

#[test]
fn a_sealed_file_is_read_on_and_its_layout_returned_to_the_next_coordinator() {
    let mut stage = Stage::new(3, 1, 0.0);
    let file = stage.create(1, "a");
    let ino = file.attr.ino;
    stage.write(1, file.handle, 0, &[1; 9000]);
    wait(|done| stage.node(1).sync(file.handle, done)).unwrap();
    stage.node(1).release(file.handle);
    wait(|done| {
        stage.node(1).set_xattr(ino, b"trusted.csvfs.sealed", b"1", crate::proto::XattrMode::Set, false, done)
    })
    .unwrap();
    let mode = crate::service::OpenMode { write: false, ..READ_WRITE };
    let there = wait(|done| stage.node(2).open(ino, mode, done)).unwrap().handle;
    assert_eq!(stage.read(2, there, 0, 9000), [1; 9000]);
    bury(&mut stage);
    stage.take_over(1, &[1, 2]);
    assert_eq!(stage.read(2, there, 0, 9000), [1; 9000]);
    until("the layout is lent again", || {
        stage.node(2).core.files.get(ino).is_some_and(|file| file.lent.load(Ordering::SeqCst))
    });
    // Unsealed, it is read through its server.
    wait(|done| {
        stage.node(1).set_xattr(ino, b"trusted.csvfs.sealed", b"0", crate::proto::XattrMode::Set, false, done)
    })
    .unwrap();
    let writer = stage.open(1, ino);
    stage.write(1, writer, 0, &[2; 100]);
    assert_eq!(stage.read(2, there, 0, 100), [2; 100]);
    stage.finish();
}

#[test]
fn a_guest_that_ends_while_nobody_coordinates_ends_with_the_next() {
    let mut stage = Stage::new(3, 1, 0.0);
    let file = stage.create(2, "a");
    stage.acquire(2, file.attr.ino).unwrap();
    stage.write(2, file.handle, 0, &[3; 9000]);
    bury(&mut stage);
    let node = Arc::clone(&stage.members[2].node);
    let ended = start(|done| node.shut_down(done));
    std::thread::sleep(Duration::from_millis(100));
    stage.take_over(1, &[1, 2]);
    ended.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    let handle = stage.open(1, file.attr.ino);
    assert_eq!(stage.read(1, handle, 0, 9000), [3; 9000]);
    stage.node(1).release(handle);
    stage.finish();
}

#[test]
fn nothing_is_appended_twice_and_every_sync_is_good_while_the_role_moves() {
    for (seed, trouble) in [(1, 0.0), (2, 0.05)] {
        let mut stage = Stage::new(3, seed, trouble);
        let file = stage.create(1, "a");
        let node = Arc::clone(&stage.members[1].node);
        let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mode = WriteMode { append: true, ..WriteMode::default() };
                while !stop.load(Ordering::SeqCst) {
                    let number = count.load(Ordering::SeqCst);
                    let data = slice(&number.to_le_bytes());
                    let at = wait(|done| node.write(file.handle, 0, data, mode, done)).unwrap();
                    assert_eq!(at, number * 8);
                    if number % 16 == 0 {
                        wait(|done| node.sync(file.handle, done)).unwrap();
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
            for round in 0..6 {
                let before = count.load(Ordering::SeqCst);
                until("appends", || count.load(Ordering::SeqCst) > before + 30);
                stage.move_to([2, 0, 1][round % 3]);
            }
            let before = count.load(Ordering::SeqCst);
            until("appends", || count.load(Ordering::SeqCst) > before + 30);
            stop.store(true, Ordering::SeqCst);
        });
        wait(|done| stage.node(1).sync(file.handle, done)).unwrap();
        let count = count.load(Ordering::SeqCst);
        assert_eq!(stage.attr(2, file.attr.ino).unwrap().size, count * 8);
        stage.node(1).release(file.handle);
        stage.finish();
    }
}

#[test]
fn names_go_on_while_the_role_moves() {
    let mut stage = Stage::new(3, 1, 0.0);
    under_load(&mut stage, |stage| {
        for to in [1, 2, 0, 2, 1] {
            stage.move_to(to);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    stage.finish();
}

/// Where nobody listens: who asks is told so, and has been heard or not.
#[derive(Debug, Default)]
struct Nobody(AtomicBool);

impl Carrier for Nobody {
    fn request(&self, _frame: Vec<u8>, on_reply: OnReply) {
        self.0.store(true, Ordering::SeqCst);
        on_reply(Err(CarrierError::Closed("no coordinator is here".to_owned())));
    }
}

/// What a node had written at the last coordinator's node was committed there when the role went. The next mount gets the
/// role, those who follow it tell what they have, and it cannot open the store: a further one does.
///
/// Found: what is handed on was told once, to whoever had the role next, and was lost with that one, so that the sync was
/// refused of what was safe.
#[test]
fn what_is_handed_on_is_told_to_the_one_who_opens_the_store() {
    let mut stage = Stage::new(4, 1, 0.0);
    let file = stage.create(1, "a");
    stage.write(1, file.handle, 0, &[7; 9000]);
    stage.retire();
    let (client, seat) = (stage.members[2].client, Arc::clone(&stage.members[2].seat));
    let role = ResourceId::Coordinator(VOLUME);
    let epoch = seat.acquire(&role, client).unwrap().epoch;
    let nowhere = Arc::new(Nobody::default());
    let node = Arc::clone(&stage.members[0].node);
    let _unanswered = start(|done| node.follow(Arc::clone(&nowhere) as _, epoch, done));
    until("it has told what it has", || nowhere.0.load(Ordering::SeqCst));
    seat.release(&role, client, epoch).unwrap();
    stage.take_over(3, &[0, 1, 2, 3]);
    wait(|done| stage.node(1).sync(file.handle, done)).unwrap();
    assert_eq!(stage.read(1, file.handle, 0, 9000), [7; 9000]);
    stage.finish();
}

/// Found: what a node had committed for the last coordinator was told to the one after the next, too, which took what was
/// lost between for handed over.
#[test]
fn p9_what_is_handed_on_is_not_believed_by_the_one_after_the_next() {
    let mut stage = Stage::new(4, 1, 0.0);
    let file = stage.create(1, "a");
    stage.write(1, file.handle, 0, &[7; 9000]);
    stage.retire();
    let bequest = stage.node(0).core.legacy.lock().clone();
    assert!(!bequest.kept.is_empty());
    stage.take_over(2, &[0, 1, 2, 3]);
    stage.write(1, file.handle, 0, &[8; 9000]);
    bury(&mut stage);
    // As if the answer of the one that has served it had been lost on its way.
    *stage.node(0).core.legacy.lock() = bequest;
    stage.take_over(3, &[0, 1, 3]);
    let synced = wait(|done| stage.node(1).sync(file.handle, done));
    assert!(matches!(synced, Err(Refusal::Io(_))), "what was lost with node 2 is not told: {synced:?}");
    stage.finish();
}
