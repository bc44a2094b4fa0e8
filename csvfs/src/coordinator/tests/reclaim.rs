//! The metadata area's room, quarantine, restarts: what becomes of blocks in the background.

use super::*;
use crate::store::Snapshot;
use redb::ReadableTableMetadata;

fn numbers(volume: &Volume) -> (u64, u64, u64, u64) {
    let counters = Snapshot::take(&volume.database).unwrap().counters;
    (counters.free.get(), counters.reserved.get(), counters.pending.get(), counters.quarantined.get())
}

#[test]
fn the_metadata_area_gets_the_chunks_it_wants() {
    let mut volume = Volume::new(1000);
    volume.area.wanted.store(3, Ordering::SeqCst);
    volume.file("a");
    let offered = volume.area.offered.lock().clone();
    assert_eq!(offered.len(), 3);
    assert!(offered.iter().all(|chunk| chunk.start.0.is_multiple_of(CHUNK) && chunk.len == CHUNK));
    assert_clean(&volume, 1000);
    let Ok(Answer::Space(space)) = volume.ask(Operation::Space) else { panic!() };
    assert_eq!(space.blocks, 1000 - 3 * CHUNK);
    volume.area.offered.lock().clear();
    volume.restart();
    assert_eq!(*volume.area.offered.lock(), offered, "what is recorded is offered again");
}

#[test]
fn a_name_waits_for_the_chunk_that_makes_room_for_it() {
    let volume = Volume::new(100);
    let file = volume.file("a");
    volume.write(file, 0, 100);
    volume.area.wanted.store(1, Ordering::SeqCst);
    volume.area.scarce.store(true, Ordering::SeqCst);
    assert_eq!(volume.refused(create(Ino::ROOT, "b", Created::File)), Refusal::NoSpace);
    volume.unlink(Ino::ROOT, "a").unwrap();
    // The freed blocks are held back until no write to them is on its way, and only then a chunk can be taken.
    volume.file("b");
    assert_eq!(volume.area.offered.lock().len(), 1);
    assert_clean(&volume, 100);
}

#[test]
fn a_volume_without_a_whole_free_chunk_goes_on() {
    let volume = Volume::new(10);
    volume.area.wanted.store(2, Ordering::SeqCst);
    volume.file("a");
    assert!(volume.area.offered.lock().is_empty());
    assert_clean(&volume, 10);
}

#[test]
fn what_is_returned_is_free_again() {
    let volume = Volume::new(1000);
    let start = volume.one_run(100);
    let part = Run { start: start + 10, len: 20 };
    volume.done(Operation::Return { runs: vec![part] });
    assert_eq!(numbers(&volume), (920, 80, 0, 0));
    assert_clean(&volume, 1000);
    assert!(matches!(volume.refused(Operation::Return { runs: vec![part] }), Refusal::Invalid(_)));
    let twice = vec![Run { start, len: 5 }, Run { start, len: 5 }];
    assert!(matches!(volume.refused(Operation::Return { runs: twice }), Refusal::Invalid(_)));
    assert!(matches!(volume.refused(Operation::Reserve { want: 0 }), Refusal::Invalid(_)));
}

#[test]
fn a_new_session_finds_what_the_last_one_reserved_and_orphaned() {
    let mut volume = Volume::new(1000);
    let file = volume.file("a");
    volume.write(file, 0, 10);
    volume.one_run(50);
    volume.open(file);
    volume.unlink(Ino::ROOT, "a").unwrap();
    assert_eq!(volume.attr(file).nlink, 0);
    volume.next_session();
    volume.coordinator.reclaim().unwrap();
    assert_eq!(numbers(&volume), (1000, 0, 0, 0));
    assert_eq!(volume.ask(Operation::GetAttr { ino: file }), Err(Refusal::NotFound));
    assert_clean(&volume, 1000);
}

#[test]
fn nothing_is_freed_while_earlier_writes_may_land() {
    let mut volume = Volume::new(1000);
    volume.one_run(50);
    volume.settle = Duration::from_millis(1500);
    let start = std::time::Instant::now();
    volume.next_session();
    assert_eq!(numbers(&volume), (950, 0, 50, 0));
    volume.coordinator.reclaim().unwrap();
    assert!(start.elapsed() >= volume.settle);
    assert_eq!(numbers(&volume), (1000, 0, 0, 0));
}

#[test]
fn trims_reach_the_lun_joined() {
    let volume = Volume::new(1000);
    let file = volume.file("a");
    let lun = volume.write(file, 0, 10);
    volume.unlink(Ino::ROOT, "a").unwrap();
    volume.coordinator.reclaim().unwrap();
    let trims = volume.plate.trims.lock();
    assert_eq!((trims.len(), trims[0].clone()), (1, lun.byte()..(lun + 10).byte()));
}

#[test]
fn a_stopped_coordinator_says_so_and_a_read_only_one_answers_questions() {
    let volume = Volume::new(1000);
    volume.file("a");
    volume.coordinator.stop();
    assert!(matches!(volume.ask(create(Ino::ROOT, "b", Created::File)), Err(Refusal::Io(_))));
    let before = dump(&volume.database).unwrap();
    let coordinator = Coordinator::start(Parts {
        database: Arc::clone(&volume.database),
        journal: None,
        space: volume.area.clone(),
        lun: volume.plate.clone(),
        peers: Arc::new(crate::peers::Alone),
        authority: volume.court.clone(),
        clock: Arc::new(SystemClock),
        rules: volume.rules,
        key: HashKey([3; 16]),
        epoch: EPOCH,
        openings: Default::default(),
        volume: VOLUME,
        read_only: true,
        discard: false,
        beside: None,
        scrub: false,
        settle: Duration::ZERO,
        quiesce: Duration::ZERO,
    })
    .unwrap();
    let asked =
        ask(&*coordinator, volume.head(), Operation::Lookup { parent: Ino::ROOT, name: b"a".to_vec() });
    assert!(asked.is_ok());
    let refused = ask(&*coordinator, volume.head(), create(Ino::ROOT, "b", Created::File));
    assert_eq!(refused, Err(Refusal::ReadOnly));
    assert_eq!(dump(&volume.database).unwrap(), before);
}

#[test]
fn a_group_of_one_slot_per_request_is_answered_whole() {
    let volume = Volume::new(1000);
    let answers: Vec<_> = (0..64)
        .map(|i| {
            let head = Head { slot: Some((SlotId(i), Sequence(1_000))), ..volume.head() };
            send(&*volume.coordinator, head, create(Ino::ROOT, &format!("f{i}"), Created::File))
        })
        .collect();
    for answer in answers {
        assert!(matches!(answer.recv_timeout(Duration::from_secs(15)).unwrap(), Ok(Answer::Entry(_))));
    }
    let slots = Snapshot::take(&volume.database).unwrap().slots.len().unwrap();
    assert_eq!(slots, 64);
    assert_clean(&volume, 1000);
}
