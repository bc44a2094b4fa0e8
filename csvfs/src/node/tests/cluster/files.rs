//! Files that another node serves, and files that change hands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockd::authority::Standing;

use super::super::platter::What;
use super::super::world::{slice, start, until, wait};
use super::stage::Stage;
use crate::proto::{Allocation, SetAttr};
use crate::refusal::Refusal;
use crate::service::{FileService, Seek, WriteMode};

#[test]
fn what_one_node_writes_every_node_reads() {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(1, "a");
    let (ino, one) = (file.attr.ino, file.handle);
    let handles = [stage.open(0, ino), one, stage.open(2, ino)];
    for round in 0..3_u8 {
        for writer in 0..3_u8 {
            let value = round * 3 + writer + 1;
            stage.write(
                usize::from(writer),
                handles[usize::from(writer)],
                u64::from(value) * 1000,
                &[value; 3000],
            );
            for (reader, handle) in handles.iter().enumerate() {
                let read = stage.read(reader, *handle, u64::from(value) * 1000, 3000);
                assert!(read == [value; 3000], "node {reader} does not read what node {writer} wrote");
            }
        }
        let owner = usize::from(round);
        stage.acquire(owner, ino).unwrap();
    }
    assert_eq!(stage.attr(0, ino).unwrap().size, 12_000);
    assert_eq!(stage.append(0, handles[0], b"end"), 12_000);
    assert_eq!(stage.append(1, handles[1], b"end"), 12_003);
    let set = SetAttr::default();
    let cut = wait(|done| stage.node(0).set_attr(ino, set, Some(5000), done)).unwrap();
    assert_eq!((cut.size, stage.attr(1, ino).unwrap().size), (5000, 5000));
    let punch = Allocation::Punch;
    wait(|done| stage.node(1).allocate(handles[1], 0, 4096, punch, true, done)).unwrap();
    assert_eq!(wait(|done| stage.node(0).seek(handles[0], 0, Seek::Data, done)), Ok(4096));
    assert_eq!(wait(|done| stage.node(2).seek(handles[2], 4096, Seek::Hole, done)), Ok(5000));
    for (node, handle) in handles.into_iter().enumerate() {
        wait(|done| stage.node(node).sync(handle, done)).unwrap();
        stage.node(node).release(handle);
    }
    stage.finish();
}

#[test]
fn times_that_one_node_sets_are_not_overwritten_by_the_server() {
    let stage = Stage::new(2, 1, 0.0);
    let file = stage.create(0, "a");
    let ino = file.attr.ino;
    let there = stage.open(1, ino);
    stage.write(0, file.handle, 0, b"x");
    let set = SetAttr { mtime: Some(crate::types::Timestamp(77)), ..SetAttr::default() };
    wait(|done| stage.node(1).set_attr(ino, set, None, done)).unwrap();
    wait(|done| stage.node(1).sync(there, done)).unwrap();
    wait(|done| stage.node(0).sync(file.handle, done)).unwrap();
    for node in 0..2 {
        assert_eq!(stage.attr(node, ino).unwrap().mtime.0, 77);
    }
    stage.finish();
}

#[test]
fn a_large_file_goes_to_the_one_node_that_writes_it() {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(1, "a");
    let ino = file.attr.ino;
    stage.write(1, file.handle, 0, &[1; 512 << 10]);
    assert!(stage.node(0).figures().writes == 0);
    stage.write(1, file.handle, 512 << 10, &[2; 512 << 10]);
    let owned = || {
        use lockd::authority::Authority;
        use lockd::ids::ResourceId;
        let resource = ResourceId::File(super::super::world::VOLUME, ino.0);
        stage.members[0].seat.holder(&resource).map(|holding| holding.client)
    };
    until("the ownership", || owned() == Some(stage.members[1].client));
    let other = stage.open(2, ino);
    assert!(stage.read(2, other, (512 << 10) - 10, 20) == [[1; 10], [2; 10]].concat());
    stage.write(2, other, 0, &[3; 100]);
    assert!(stage.read(1, file.handle, 0, 200) == [[3; 100], [1; 100]].concat());
    // Its last handle there is closed: it goes back, and the other does not notice.
    stage.node(1).release(file.handle);
    until("the return", || owned().is_none());
    stage.write(2, other, 100, &[4; 100]);
    assert!(stage.read(2, other, 0, 200) == [[3; 100], [4; 100]].concat());
    stage.finish();
}

#[test]
fn v8_a_file_is_drained_before_it_goes_to_another_node() {
    let stage = Stage::new(2, 1, 0.0);
    let file = stage.create(0, "a");
    let ino = file.attr.ino;
    stage.write(0, file.handle, 0, &[1; 65_536]);
    wait(|done| stage.node(0).sync(file.handle, done)).unwrap();
    let there = stage.open(1, ino);
    stage.platter.hold(What::Writes);
    let write = start(|done| {
        stage.node(0).write(file.handle, 4096, slice(&[2; 4096]), WriteMode::default(), done);
    });
    until("the write", || stage.platter.held() > 0);
    let acquired = start(|done| stage.node(1).acquire(vec![ino], done));
    std::thread::sleep(Duration::from_millis(60));
    let early = acquired.try_recv();
    stage.platter.let_go();
    assert!(early.is_err(), "the file has gone while a write to it was in flight");
    acquired.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    write.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert!(stage.read(1, there, 4096, 4096) == [2; 4096]);
    stage.finish();
}

#[test]
fn l5_an_append_that_is_sent_again_is_in_the_file_once() {
    for seed in 0..3 {
        let stage = Stage::new(3, seed, 0.15);
        let file = stage.create(1, "a");
        let ino = file.attr.ino;
        let other = stage.open(2, ino);
        let ends = Arc::new(AtomicBool::new(false));
        let mut expected = Vec::new();
        for number in 0..60_u8 {
            let (node, handle) = if number % 2 == 0 { (1, file.handle) } else { (2, other) };
            let at = stage.append(node, handle, &[number; 10]);
            assert_eq!(at, expected.len() as u64, "seed {seed}: something was appended twice, or not at all");
            expected.extend_from_slice(&[number; 10]);
            if number % 10 == 9 {
                stage.acquire(usize::from(number / 10 % 3), ino).unwrap();
            }
        }
        ends.store(true, Ordering::SeqCst);
        assert!(stage.read(2, other, 0, 1000) == expected);
        stage.finish();
    }
}

#[test]
fn a_pinned_file_stays_until_it_is_released() {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(2, "a");
    let ino = file.attr.ino;
    stage.write(2, file.handle, 0, &[1; 4096]);
    stage.pin(1, &[ino]).unwrap();
    assert!(matches!(stage.acquire(2, ino), Err(Refusal::Busy(_))));
    stage.write(2, file.handle, 0, &[2; 4096]);
    // It stays so when nobody has it open any more.
    stage.node(2).release(file.handle);
    std::thread::sleep(Duration::from_millis(30));
    assert!(matches!(stage.acquire(2, ino), Err(Refusal::Busy(_))));
    stage.unpin(1, &[ino]).unwrap();
    stage.acquire(2, ino).unwrap();
    let handle = stage.open(0, ino);
    assert!(stage.read(0, handle, 0, 4096) == [2; 4096]);
    stage.finish();
}

#[test]
fn a_transfer_that_the_authority_refuses_changes_nothing() {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(1, "a");
    let ino = file.attr.ino;
    stage.acquire(1, ino).unwrap();
    let there = stage.open(2, ino);
    stage.write(1, file.handle, 0, &[1; 5000]);
    stage.realm.refuse(true);
    assert!(matches!(stage.acquire(2, ino), Err(Refusal::Busy(_))));
    stage.write(1, file.handle, 5000, &[2; 100]);
    stage.write(2, there, 5100, &[3; 100]);
    assert!(stage.read(2, there, 4990, 300) == [vec![1; 10], vec![2; 100], vec![3; 100]].concat());
    stage.realm.refuse(false);
    stage.acquire(2, ino).unwrap();
    assert!(stage.read(1, file.handle, 4990, 300) == [vec![1; 10], vec![2; 100], vec![3; 100]].concat());
    stage.finish();
}

#[test]
fn many_files_change_hands_at_once() {
    let stage = Stage::new(3, 1, 0.0);
    let files: Vec<_> = (0..40).map(|number| stage.create(1, &format!("file {number}"))).collect();
    for (number, file) in files.iter().enumerate() {
        stage.write(1, file.handle, 0, &[u8::try_from(number).unwrap(); 100]);
    }
    let all: Vec<_> = files.iter().map(|file| file.attr.ino).collect();
    for node in [1, 2, 0, 1] {
        stage.acquire_all(node, &all).unwrap();
        for (number, file) in files.iter().enumerate() {
            assert!(stage.read(1, file.handle, 0, 200) == [u8::try_from(number).unwrap(); 100]);
        }
    }
    stage.finish();
}

#[test]
fn files_move_under_writers_that_do_not_stop() {
    let stage = Arc::new(Stage::new(3, 5, 0.02));
    let file = stage.create(0, "a");
    let ino = file.attr.ino;
    let ends = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3_usize)
        .map(|node| {
            let (stage, ends) = (Arc::clone(&stage), Arc::clone(&ends));
            std::thread::spawn(move || {
                let handle = stage.open(node, ino);
                let mut count = 0_u64;
                while !ends.load(Ordering::SeqCst) || count < 20 {
                    // Each has its own bytes in blocks that all share.
                    let at = (count % 50) * 3000 + node as u64 * 1000;
                    let value = u8::try_from(count % 250 + 1).unwrap();
                    stage.write(node, handle, at, &[value; 1000]);
                    assert!(
                        stage.read(node, handle, at, 1000) == [value; 1000],
                        "a write of node {node} is lost"
                    );
                    count += 1;
                }
                stage.node(node).release(handle);
                count
            })
        })
        .collect();
    for round in 0..30 {
        match stage.acquire(round % 3, ino) {
            Ok(()) | Err(Refusal::Busy(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    ends.store(true, Ordering::SeqCst);
    for writer in writers {
        assert!(writer.join().unwrap() > 0);
    }
    stage.node(0).release(file.handle);
    Arc::into_inner(stage).unwrap().finish();
}

#[test]
fn p9_what_was_lost_with_its_server_is_told_by_the_next_sync() {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(1, "a");
    let ino = file.attr.ino;
    stage.acquire(1, ino).unwrap();
    let (home, other) = (stage.open(0, ino), stage.open(2, ino));
    stage.write(2, other, 0, &[1; 4096]);
    stage.write(0, home, 4096, &[1; 4096]);
    let (one, client) = (&stage.members[1], stage.members[1].client);
    stage.network.cut(client);
    {
        use lockd::authority::Authority;
        one.seat.lease().end();
    }
    stage.end(1, Standing::Ended);
    stage.end(1, Standing::Fenced);
    // The coordinator's node serves it now; what node 1 had not committed is gone.
    assert!(matches!(wait(|done| stage.node(2).sync(other, done)), Err(Refusal::Io(_))));
    assert!(matches!(wait(|done| stage.node(0).sync(home, done)), Err(Refusal::Io(_))));
    stage.write(2, other, 0, &[2; 4096]);
    wait(|done| stage.node(2).sync(other, done)).unwrap();
    wait(|done| stage.node(0).sync(home, done)).unwrap();
    assert!(stage.read(0, home, 0, 4096) == [2; 4096]);
}

/// Found: it was left open, and the unmount failed.
#[test]
fn a_file_that_a_guest_lets_go_of_while_others_are_closed_is_closed_as_well() {
    let stage = Stage::new(2, 1, 0.0);
    let (read, written) = (stage.create(1, "a"), stage.create(1, "b"));
    for file in [&read, &written] {
        stage.write(1, file.handle, 0, &[1; 4096]);
        stage.acquire(1, file.attr.ino).unwrap();
    }
    let guest = stage.open(0, read.attr.ino);
    stage.platter.hold(What::Reads);
    stage.platter.hold(What::Flushes);
    let data = start(|done| stage.node(0).read(guest, 0, 4096, done));
    until("the guest", || stage.platter.held() > 0);
    stage.write(1, written.handle, 0, &[2; 4096]);
    let ended = start(|done| stage.node(1).shut_down(done));
    until("the commit", || stage.platter.holds_a_flush());
    // First the read, then the flush.
    stage.platter.let_go();
    ended.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    data.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert!(stage.owner(read.attr.ino).is_none());
    stage.finish();
}

/// Found: the coordinator's node served a file that had been handed to another, who was not told.
#[test]
fn l7_a_file_whose_server_is_lost_with_its_answer_is_served_when_nobody_may_have_got_it() {
    let stage = Stage::new(3, 1, 0.0);
    let file = stage.create(1, "a");
    let ino = file.attr.ino;
    stage.acquire(1, ino).unwrap();
    let home = stage.open(0, ino);
    // The transfer is done, and nothing of node 1 is heard any more.
    let (network, client) = (Arc::clone(&stage.network), stage.members[1].client);
    stage.realm.with_transfer(move || network.cut(client));
    stage.realm.lose_releases(true);
    let acquired = start(|done| stage.node(2).acquire(vec![ino], done));
    until("the transfer", || stage.owner(ino).map(|(owner, _)| owner) == Some(stage.members[2].client));
    stage.end(1, Standing::Ended);
    let refused = acquired.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(matches!(refused.map_err(|refusal| refusal.why), Err(Refusal::Passing(_))));
    stage.end(1, Standing::Fenced);
    let write = start(|done| {
        stage.node(0).write(home, 0, slice(&[1; 4096]), WriteMode::default(), done);
    });
    std::thread::sleep(Duration::from_millis(400));
    assert!(write.try_recv().is_err(), "written while node 2 owns the file");
    // It gives back what it has not taken up.
    stage.realm.lose_releases(false);
    let (owner, epoch) = stage.owner(ino).unwrap();
    {
        use lockd::authority::Authority;
        use lockd::ids::ResourceId;
        let resource = ResourceId::File(super::super::world::VOLUME, ino.0);
        stage.members[2].seat.release(&resource, owner, epoch).unwrap();
    }
    write.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    stage.acquire(2, ino).unwrap();
}

/// Found: the coordinator's node served a file whose owner had closed it and could not give it back.
#[test]
fn a_file_that_cannot_be_given_back_stays_with_its_owner() {
    let stage = Stage::new(2, 1, 0.0);
    let file = stage.create(1, "a");
    let ino = file.attr.ino;
    stage.acquire(1, ino).unwrap();
    let home = stage.open(0, ino);
    stage.realm.lose_releases(true);
    stage.node(1).release(file.handle);
    until("a try", || stage.realm.lost_releases() > 0);
    std::thread::sleep(Duration::from_millis(100));
    stage.write(0, home, 0, &[1; 100]);
    let owned = stage.node(1).core.files.get(ino).and_then(|file| file.owned_in());
    assert_eq!(owned, stage.owner(ino).map(|(_, epoch)| epoch), "it is served by another");
    stage.realm.lose_releases(false);
    until("the return", || stage.owner(ino).is_none());
    assert!(stage.read(0, home, 0, 100) == [1; 100]);
    stage.finish();
}

#[test]
fn what_is_opened_while_the_coordinator_is_told_all_that_is_open_stays_open() {
    // Frames are delayed, so that one overtakes another.
    let stage = Stage::new(2, 7, 0.2);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                wait(|done| stage.node(1).attach(done)).unwrap();
            }
        });
        for number in 0..60 {
            let name = format!("file{number}");
            let file = if number % 2 == 0 { stage.create(0, &name) } else { stage.create(1, &name) };
            let ino = file.attr.ino;
            let handle = stage.open(1, ino);
            // It is refused to who does not hold the file open.
            stage.acquire(1, ino).unwrap();
            stage.node(1).release(handle);
            stage.node(number % 2).release(file.handle);
        }
        stop.store(true, Ordering::SeqCst);
    });
    stage.finish();
}
