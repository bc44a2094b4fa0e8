//! Each rule that the coordinator keeps, and what happens without it.

use std::sync::atomic::AtomicUsize;

use parking_lot::Condvar;
use redb::StorageBackend;

use super::*;
use crate::proto::Allocation;
use crate::store::Snapshot;

/// Memory whose syncs can be held.
#[derive(Debug, Default)]
struct Slow {
    inner: InMemoryBackend,
    gate: Arc<(Mutex<bool>, Condvar)>,
    syncs: Arc<AtomicUsize>,
    fail: Arc<AtomicBool>,
}

impl StorageBackend for Slow {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        let mut held = self.gate.0.lock();
        while *held {
            self.gate.1.wait(&mut held);
        }
        if self.fail.load(Ordering::SeqCst) {
            return Err(std::io::Error::other("the plate is cracked"));
        }
        self.inner.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.inner.write(offset, data)
    }
}

fn counters(volume: &Volume) -> crate::store::record::Counters {
    Snapshot::take(&volume.database).unwrap().counters
}

#[test]
fn v3_nothing_is_answered_before_it_is_durable() {
    let backend = Slow::default();
    let (gate, syncs) = (Arc::clone(&backend.gate), Arc::clone(&backend.syncs));
    let volume = Volume::on(Database::builder().create_with_backend(backend).unwrap(), 100);
    volume.coordinator.reclaim().unwrap();
    let before = syncs.load(Ordering::SeqCst);
    *gate.0.lock() = true;
    let answer = send(&*volume.coordinator, volume.head(), create(Ino::ROOT, "a", Created::File));
    until("the commit's sync", || syncs.load(Ordering::SeqCst) > before);
    let early = answer.try_recv();
    *gate.0.lock() = false;
    gate.1.notify_all();
    assert!(early.is_err(), "answered before the commit: {early:?}");
    assert!(answer.recv_timeout(Duration::from_secs(10)).unwrap().is_ok());
}

#[test]
fn v3_stale_sessions_clients_and_epochs_change_nothing() {
    let volume = Volume::new(1000);
    let file = volume.file("a");
    let lun = volume.one_run(4);
    let stale = |head: Head, operation: Operation| {
        let before = dump(&volume.database).unwrap();
        let reply = volume.ask_as(head, operation.clone());
        let is_stale = matches!(reply, Err(Refusal::Stale(_) | Refusal::NotCoordinator(_)));
        assert!(is_stale, "{operation:?}: {reply:?}");
        assert_eq!(dump(&volume.database).unwrap(), before);
    };
    stale(Head { session: SessionId(7), ..volume.head() }, create(Ino::ROOT, "b", Created::File));
    stale(Head { coordinator: Epoch(4), ..volume.head() }, create(Ino::ROOT, "b", Created::File));
    stale(Head { coordinator: Epoch(4), ..volume.head() }, Operation::GetAttr { ino: file });
    volume.court.own(file, ClientId(2), Epoch(40));
    stale(volume.head(), commit(file, &[(0, lun.0, 4)]));
    volume.court.own(file, ClientId(1), Epoch(41));
    stale(volume.head(), commit(file, &[(0, lun.0, 4)]));
    let own = |epoch| match commit(file, &[(0, lun.0, 4)]) {
        Operation::Commit { written, size, mtime, atime, clear_set_id, now, .. } => Operation::Commit {
            file: Owned { ino: file, epoch },
            written,
            size,
            mtime,
            atime,
            clear_set_id,
            now,
        },
        other => other,
    };
    assert!(volume.ask(own(Epoch(41))).is_ok());
    // The coordinator's role has gone to another.
    let holding = Holding { session: SessionId(1), client: ClientId(9), epoch: Epoch(6) };
    volume.court.holdings.lock().insert(ResourceId::Coordinator(VOLUME), holding);
    stale(volume.head(), create(Ino::ROOT, "c", Created::File));
}

#[test]
fn a_failed_commit_is_not_acknowledged_and_ends_all_changing() {
    let backend = Slow::default();
    let fail = Arc::clone(&backend.fail);
    let volume = Volume::on(Database::builder().create_with_backend(backend).unwrap(), 100);
    volume.file("a");
    fail.store(true, Ordering::SeqCst);
    assert!(matches!(volume.ask(create(Ino::ROOT, "b", Created::File)), Err(Refusal::Io(_))));
    fail.store(false, Ordering::SeqCst);
    let Err(Refusal::Io(why)) = volume.ask(create(Ino::ROOT, "c", Created::File)) else { panic!() };
    assert!(why.contains("cracked") || why.contains("error"), "{why}");
    assert!(volume.coordinator.reclaim().is_err());
}

#[test]
fn v4_a_slot_answers_again_after_a_restart() {
    let mut volume = Volume::new(1000);
    let head = volume.head();
    let first = volume.ask_as(head, create(Ino::ROOT, "a", Created::File));
    assert!(first.is_ok());
    let reserve = volume.head();
    let granted = volume.ask_as(reserve, Operation::Reserve { want: 10 });
    volume.restart();
    assert_eq!(volume.ask_as(reserve, Operation::Reserve { want: 10 }), granted);
    assert_eq!(counters(&volume).reserved.get(), 10);
}

#[test]
fn v4_slots_of_a_client_that_is_over_refuse() {
    let mut volume = Volume::new(1000);
    let head = volume.head();
    volume.ask_as(head, create(Ino::ROOT, "a", Created::File)).unwrap();
    volume.coordinator.end_client(ClientId(1)).unwrap();
    assert!(matches!(volume.ask_as(head, create(Ino::ROOT, "a", Created::File)), Err(Refusal::Stale(_))));
    volume.restart();
    assert!(matches!(volume.ask(create(Ino::ROOT, "b", Created::File)), Err(Refusal::Stale(_))));
    let other = Head { client: ClientId(2), ..volume.head() };
    assert!(volume.ask_as(other, create(Ino::ROOT, "b", Created::File)).is_ok());
}

#[test]
fn l5_a_repeated_command_is_executed_once() {
    let volume = Volume::new(1000);
    let head = volume.head();
    let first = volume.ask_as(head, create(Ino::ROOT, "a", Created::File));
    assert!(first.is_ok());
    assert_eq!(volume.ask_as(head, create(Ino::ROOT, "a", Created::File)), first);
    // A refusal is the reply as well: the name would be free now.
    let refused = volume.head();
    assert_eq!(volume.ask_as(refused, create(Ino::ROOT, "a", Created::File)), Err(Refusal::Exists));
    let other = Head { slot: Some((SlotId(1), Sequence(1))), ..head };
    volume.ask_as(other, Operation::Unlink { parent: Ino::ROOT, name: b"a".to_vec(), now: NOW }).unwrap();
    assert_eq!(volume.ask_as(refused, create(Ino::ROOT, "a", Created::File)), Err(Refusal::Exists));
    assert!(matches!(volume.ask_as(head, create(Ino::ROOT, "z", Created::File)), Err(Refusal::Stale(_))));
    let beyond = Head { slot: Some((SlotId(lockd::slots::SLOTS_PER_CLIENT), Sequence(1))), ..head };
    assert!(matches!(volume.ask_as(beyond, create(Ino::ROOT, "z", Created::File)), Err(Refusal::Invalid(_))));
    let none = Head { slot: None, ..head };
    assert!(matches!(volume.ask_as(none, create(Ino::ROOT, "z", Created::File)), Err(Refusal::Invalid(_))));
}

#[test]
fn v6_a_reserve_is_durable_before_it_is_used_and_ends_with_its_client() {
    let mut volume = Volume::new(1000);
    let run = volume.one_run(64);
    assert_clean(&volume, 1000);
    volume.restart();
    // The same client goes on with it.
    let file = volume.file("a");
    assert!(volume.ask(commit(file, &[(0, run.0, 32)])).is_ok());
    volume.coordinator.end_client(ClientId(1)).unwrap();
    assert_clean(&volume, 1000);
    assert_eq!(counters(&volume).reserved.get(), 0);
    volume.coordinator.reclaim().unwrap();
    assert_eq!(counters(&volume).free.get(), 1000 - 32);
    assert_clean(&volume, 1000);
}

#[test]
fn v7_freed_blocks_are_not_given_out_before_their_trim_is_done() {
    let volume = Volume::new(300);
    let file = volume.file("a");
    let lun = volume.write(file, 0, 200);
    let freed = Run { start: lun, len: 200 };
    volume.plate.hold.store(true, Ordering::SeqCst);
    volume.unlink(Ino::ROOT, "a").unwrap();
    let mut granted = volume.reserve(50);
    granted.extend(volume.reserve(50));
    let waiting = send(&*volume.coordinator, volume.head(), Operation::Reserve { want: 10 });
    let early = granted.iter().any(|run| run.overlaps(freed));
    until("the trim", || volume.plate.held() > 0 || !volume.rules.keeps(lockd::rules::Rule::V7));
    let answered = waiting.try_recv().is_ok();
    volume.plate.let_go();
    assert!(!early && !answered, "given out before the trim was done");
    let Ok(Answer::Runs(runs)) = waiting.recv_timeout(Duration::from_secs(10)).unwrap() else { panic!() };
    assert!(runs.iter().all(|run| run.overlaps(freed)));
    assert_clean(&volume, 300);
}

#[test]
fn p6_blocks_under_a_ghost_are_quarantined_on_disk() {
    let mut volume = Volume::new(300);
    let file = volume.file("a");
    let lun = volume.write(file, 0, 200);
    volume.plate.ghosts.lock().push(lun.byte() + 100..lun.byte() + 200);
    volume.unlink(Ino::ROOT, "a").unwrap();
    volume.coordinator.reclaim().unwrap();
    assert_eq!((counters(&volume).quarantined.get(), counters(&volume).free.get()), (200, 100));
    assert!(volume.plate.trims.lock().is_empty(), "a trim would be one more ghost");
    volume.restart();
    volume.coordinator.reclaim().unwrap();
    assert_eq!(counters(&volume).quarantined.get(), 200);
    assert_clean(&volume, 300);
    volume.plate.ghosts.lock().clear();
    volume.coordinator.reclaim().unwrap();
    assert_eq!(counters(&volume).free.get(), 300);
    assert_clean(&volume, 300);
}

/// Found: a trim that was lost on its way and sent again was done then, and its blocks were given out while the first copy could
/// still land.
#[test]
fn p6_blocks_that_a_lost_copy_of_a_trim_may_reach_are_quarantined() {
    let volume = Volume::new(300);
    let file = volume.file("a");
    volume.write(file, 0, 200);
    volume.plate.hold.store(true, Ordering::SeqCst);
    volume.unlink(Ino::ROOT, "a").unwrap();
    until("the trim", || volume.plate.held() > 0);
    let sent = volume.plate.trims.lock().clone();
    volume.plate.ghosts.lock().extend(sent);
    volume.plate.let_go();
    volume.coordinator.reclaim().unwrap();
    assert_eq!((counters(&volume).quarantined.get(), counters(&volume).free.get()), (200, 100));
    volume.plate.ghosts.lock().clear();
    volume.coordinator.reclaim().unwrap();
    assert_eq!(counters(&volume).free.get(), 300);
    assert_clean(&volume, 300);
}

/// Found: a coordinator that had stood still trimmed blocks that were another one's to give out by then.
#[test]
fn l3_nothing_is_trimmed_without_the_lease() {
    let volume = Volume::new(300);
    let file = volume.file("a");
    volume.write(file, 0, 200);
    volume.court.lease.end();
    let _ = volume.unlink(Ino::ROOT, "a");
    let _ = volume.coordinator.reclaim();
    assert_eq!(*volume.plate.trims.lock(), []);
}

#[test]
fn p6_a_reserve_under_a_ghost_is_kept_out_of_use() {
    let volume = Volume::new(300);
    let run = Run { start: volume.one_run(10), len: 10 };
    let haunted = Run { start: run.start + 2, len: 3 };
    volume.plate.ghosts.lock().push(haunted.bytes());
    volume.done(Operation::Quarantine { runs: vec![haunted] });
    volume.coordinator.reclaim().unwrap();
    assert_eq!((counters(&volume).quarantined.get(), counters(&volume).free.get()), (3, 290));
    assert_clean(&volume, 300);
    volume.plate.ghosts.lock().clear();
    volume.coordinator.reclaim().unwrap();
    assert_eq!(counters(&volume).free.get(), 293);
}

/// Found: what another node had put into quarantine was given out again at once, as the coordinator's own LUN has no ghost there.
#[test]
fn p6_blocks_under_a_ghost_of_another_node_are_kept_for_the_quiesce_time() {
    let mut volume = Volume::new(300);
    volume.quiesce = Duration::from_millis(1500);
    volume.restart();
    let haunted = Run { start: volume.one_run(10), len: 3 };
    let start = std::time::Instant::now();
    volume.done(Operation::Quarantine { runs: vec![haunted] });
    loop {
        volume.coordinator.reclaim().unwrap();
        if counters(&volume).quarantined.get() == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(start.elapsed() >= volume.quiesce, "given out while the ghost may land");
    assert_clean(&volume, 300);
}

#[test]
fn v8_a_truncation_in_an_old_ownership_is_refused() {
    let volume = Volume::new(1000);
    let (file, other) = (volume.file("a"), volume.file("b"));
    volume.write(file, 0, 10);
    volume.court.own(file, ClientId(1), Epoch(41));
    let stale = |operation: Operation| {
        let reply = volume.ask(operation.clone());
        assert!(matches!(reply, Err(Refusal::Stale(_))), "{operation:?}: {reply:?}");
    };
    let old = Owned { ino: file, epoch: Epoch(40) };
    stale(Operation::Truncate { file: old, size: 0, clear_set_id: false, now: NOW });
    let (from, to) = (FileBlock(0), FileBlock(10));
    stale(Operation::Allocate { file: old, from, to, how: Allocation::Punch, size: None, now: NOW });
    let clone = |source, target| Operation::Clone {
        source,
        from: FileBlock(0),
        target,
        to: FileBlock(0),
        len: 10,
        size: None,
        now: NOW,
    };
    stale(clone(old, owned(other)));
    stale(clone(owned(other), old));
    assert_eq!(volume.attr(file).blocks, 10);
    let current = Owned { ino: file, epoch: Epoch(41) };
    assert!(volume.ask(clone(current, owned(other))).is_ok());
    assert!(
        volume.ask(Operation::Truncate { file: current, size: 0, clear_set_id: false, now: NOW }).is_ok()
    );
}

#[test]
fn v11_cloned_blocks_are_counted_and_never_written_in_place() {
    let volume = Volume::new(1000);
    let (source, target) = (volume.file("s"), volume.file("t"));
    let lun = volume.write(source, 0, 10);
    let clone = Operation::Clone {
        source: owned(source),
        from: FileBlock(0),
        target: owned(target),
        to: FileBlock(0),
        len: 10,
        size: Some(40960),
        now: NOW,
    };
    volume.ask(clone).unwrap();
    assert!(volume.extents(source)[0].shared && volume.extents(target)[0].shared);
    assert!(matches!(volume.refused(commit(target, &[(0, lun.0, 1)])), Refusal::Invalid(_)));
    volume.unlink(Ino::ROOT, "s").unwrap();
    volume.coordinator.reclaim().unwrap();
    assert_clean(&volume, 1000);
    assert_eq!(volume.extents(target)[0].lun, lun);
    assert!(!volume.extents(target)[0].shared);
    assert!(volume.ask(commit(target, &[(0, lun.0, 1)])).is_ok(), "alone again: in place");
}
