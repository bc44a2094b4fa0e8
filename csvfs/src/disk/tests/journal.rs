//! The redo journal on a LUN (V12).

use lockd::ids::Epoch;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use redirector::buffer::Pool;
use redirector::lun::{Outcome, Proof};

use super::*;
use crate::disk::journal::{Found, Journal, Lost, Records};
use crate::disk::options::Unapplied;
use crate::disk::survey::Survey;
use crate::disk::view::open_read_only;
use crate::types::BLOCK;

/// A replay that changes nothing: so that there is a journal.
fn idle() -> Replay {
    Replay::new(|_, _, _| Ok(()))
}

fn open_with_journal(lun: &BenchLun, client: u64, clock: &BenchClock) -> OpenVolume {
    open(lun.wire() as Arc<dyn Lun>, OpenOptions { replay: idle(), ..options(client, clock) }).unwrap()
}

fn append(journal: &Journal, sequence: u64, record: &[u8]) -> bool {
    let writing = journal.append(sequence, record).unwrap();
    writing.is_some_and(|writing| writing.wait().is_ok())
}

fn found(lun: &BenchLun, epoch: Epoch, sequence: u64) -> (Vec<Vec<u8>>, u64) {
    let Records { list, last, lost } = records(lun, epoch, sequence);
    assert_eq!(lost, None);
    (list, last)
}

fn records(lun: &BenchLun, epoch: Epoch, sequence: u64) -> Records {
    let (wire, pool) = (lun.wire(), Pool::default());
    let survey = Survey::read(wire.as_ref()).unwrap();
    Found::of(&survey, wire.as_ref(), &pool).after(epoch, sequence).unwrap()
}

/// A volume with a journal, and the place of that on the LUN.
fn volume() -> (BenchLun, BenchClock, OpenVolume, u64) {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    lun.prove_alone(Proof::Ended("for this test".to_owned()));
    let volume = open_with_journal(&lun, 1, &clock);
    let chunk = volume.area.map().journal(volume.area.side()).next().unwrap();
    (lun, clock, volume, u64::from(chunk) * MIB)
}

#[test]
fn v12_what_was_written_is_read_and_what_the_store_holds_is_not() {
    let (lun, _, volume, at) = volume();
    let (journal, epoch) = (volume.journal.as_ref().unwrap(), volume.epoch);
    assert_eq!(found(&lun, epoch, 6), (vec![], 6));
    lun.forget_events();
    let long = vec![9; 10_000];
    for (sequence, record) in [(7, &b"seven"[..]), (8, &[]), (9, &long)] {
        assert!(append(journal, sequence, record));
    }
    // One write with FUA for each, and nothing else.
    let written: Vec<u64> = lun
        .events()
        .into_iter()
        .map(|event| match event {
            Event::Write { offset, fua: true, .. } => offset - at,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(written, [0, BLOCK, 2 * BLOCK]);
    let all = (vec![b"seven".to_vec(), vec![], long.clone()], 9);
    assert_eq!(found(&lun, epoch, 6), all);
    assert_eq!(found(&lun, epoch, 8), (vec![long], 9));
    assert_eq!(found(&lun, epoch, 9), (vec![], 9));
    assert_eq!(found(&lun, epoch, 12), (vec![], 12), "the store has gone on since");
    assert_eq!(found(&lun, Epoch(epoch.0 + 1), 6), (vec![], 6), "of another incarnation");
    assert_eq!(found(&lun, Epoch(epoch.0 - 1), 6), (vec![], 6), "of another incarnation");
    let gap = Some(Lost::Gap { store: 5, journal: 7 });
    assert_eq!(records(&lun, epoch, 5), Records { list: vec![], last: 5, lost: gap });
}

#[test]
fn v12_begun_anew_it_has_the_new_records_and_none_of_the_old() {
    let (lun, _, volume, _) = volume();
    let (journal, epoch) = (volume.journal.as_ref().unwrap(), volume.epoch);
    for sequence in 1..=5 {
        assert!(append(journal, sequence, &[1; 5000]));
    }
    // The store holds 5 from now on.
    journal.begin_anew();
    assert_eq!(found(&lun, epoch, 5), (vec![], 5));
    assert!(append(journal, 6, &[2; 3]));
    assert_eq!(found(&lun, epoch, 5), (vec![vec![2; 3]], 6));
    assert!(append(journal, 7, &[3; 3]));
    // What lies behind is a record of 5,000 bytes of before, in the middle of which these two have been written.
    assert_eq!(found(&lun, epoch, 5), (vec![vec![2; 3], vec![3; 3]], 7));
}

#[test]
fn v12_a_torn_last_record_does_not_count_and_a_damaged_one_is_said() {
    let (lun, _, volume, at) = volume();
    let (journal, epoch) = (volume.journal.as_ref().unwrap(), volume.epoch);
    for sequence in 1..=3 {
        assert!(append(journal, sequence, &[u8::try_from(sequence).unwrap(); 9000]));
    }
    for (record, left) in [(3, 2), (2, 1), (1, 0)] {
        for sector in 0..8 {
            let place = at + (record - 1) * 3 * BLOCK + sector * 512 + 8 + 80;
            let before = lun.peek(place, 1);
            lun.poke(place, &[before[0] ^ 1]);
            let seen = records(&lun, epoch, 0);
            assert_eq!((seen.list.len(), seen.last), (left, left as u64), "record {record}, sector {sector}");
            let lost = Lost::Damaged { record, later: record + 1 };
            assert_eq!(seen.lost, (record < 3).then_some(lost), "record {record}, sector {sector}");
            // A store that has it needs it no more.
            assert_eq!(records(&lun, epoch, 3).lost, None);
            lun.poke(place, &before);
        }
    }
    assert_eq!(found(&lun, epoch, 0).1, 3);
}

#[test]
fn v12_a_record_that_the_lun_has_lost_is_said_though_an_older_one_is_in_its_place() {
    let (lun, _, volume, at) = volume();
    let (journal, epoch) = (volume.journal.as_ref().unwrap(), volume.epoch);
    for sequence in 1..=3 {
        assert!(append(journal, sequence, &[1; 100]));
    }
    journal.begin_anew();
    let second = lun.peek(at + BLOCK, usize::try_from(BLOCK).unwrap());
    for sequence in 4..=6 {
        assert!(append(journal, sequence, &[2; 100]));
    }
    lun.poke(at + BLOCK, &second);
    let seen = records(&lun, epoch, 3);
    assert_eq!((seen.list, seen.last), (vec![vec![2; 100]], 4));
    assert_eq!(seen.lost, Some(Lost::Damaged { record: 5, later: 6 }));
}

#[test]
fn a_full_journal_takes_nothing_until_it_is_begun_anew() {
    let (lun, _, volume, at) = volume();
    let (journal, epoch) = (volume.journal.as_ref().unwrap(), volume.epoch);
    let chunks = volume.area.map().journal(volume.area.side()).count() as u64;
    let mut sequence = 1;
    lun.forget_events();
    while append(journal, sequence, &[7; 60_000]) {
        sequence += 1;
    }
    assert_eq!(sequence - 1, chunks * MIB / (15 * BLOCK));
    let beyond = lun.events().iter().any(|event| match event {
        Event::Write { offset, data, .. } => *offset < at || offset + data.len() as u64 > at + chunks * MIB,
        _ => true,
    });
    assert!(!beyond, "it has written outside of its chunks");
    assert_eq!(found(&lun, epoch, 0).1, sequence - 1);
    journal.begin_anew();
    assert!(append(journal, sequence, &[8]));
}

#[test]
fn a_record_whose_outcome_is_unknown_ends_the_area() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    lun.prove_alone(Proof::Ended("for this test".to_owned()));
    let wire = lun.wire();
    let volume =
        open(wire.clone() as Arc<dyn Lun>, OpenOptions { replay: idle(), ..options(1, &clock) }).unwrap();
    let journal = volume.journal.as_ref().unwrap();
    assert!(append(journal, 1, &[1]));
    wire.fail_write_after(0, Outcome::Unknown);
    let error = journal.append(2, &[2]).unwrap().unwrap().wait().unwrap_err();
    assert!(error.to_string().contains("unknown"), "{error}");
    assert_eq!(volume.area.broken(), Some(error.clone()));
    assert_eq!(journal.append(3, &[3]).unwrap_err(), error);
}

#[test]
fn l3_no_record_is_written_without_a_lease() {
    let (lun, _, volume, _) = volume();
    let journal = volume.journal.as_ref().unwrap();
    volume.lease.end();
    lun.forget_events();
    assert!(journal.append(1, &[1]).is_err());
    assert!(lun.events().is_empty());
}

#[test]
fn v2_a_copy_of_the_store_has_a_journal_of_its_own() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let wire = lun.wire();
    let first =
        open(wire.clone() as Arc<dyn Lun>, OpenOptions { replay: idle(), ..options(1, &clock) }).unwrap();
    let (epoch, map) = (first.epoch, first.area.map());
    let before: Vec<u32> = map.journal(first.area.side()).collect();
    assert!(append(first.journal.as_ref().unwrap(), 1, b"first"));
    wire.cut();
    drop(first);
    type Seen = (Vec<Vec<u8>>, Option<Epoch>);
    let seen: Arc<parking_lot::Mutex<Vec<Seen>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let replay = Replay::new(move |_, found, new| {
        noted.lock().push((found.after(epoch, 0).unwrap().list, new));
        Ok(())
    });
    let second = open(lun.wire() as Arc<dyn Lun>, OpenOptions { replay, ..options(2, &clock) }).unwrap();
    assert!(second.opened.to_string().starts_with("by copy"), "{}", second.opened);
    assert_eq!(*seen.lock(), [(vec![b"first".to_vec()], Some(second.epoch))]);
    let after: Vec<u32> = second.area.map().journal(second.area.side()).collect();
    assert_eq!(before.len(), after.len());
    assert!(after.iter().all(|chunk| !before.contains(chunk)), "{before:?} and {after:?}");
    assert!(before.iter().all(|chunk| second.area.map().spent().contains(chunk)));
    // A late write of the first one lands where nobody looks.
    lun.poke(u64::from(before[0]) * MIB + BLOCK, &[1; 4096]);
    assert!(append(second.journal.as_ref().unwrap(), 2, b"second"));
    assert_eq!(found(&lun, second.epoch, 1).0, [b"second".to_vec()]);
    second.close().unwrap();
}

#[test]
fn a_volume_that_was_made_without_a_journal_gets_one() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    lun.prove_alone(Proof::Ended("for this test".to_owned()));
    // As it was before there were journals: its chunks may be grown into.
    let volume = open_as(&lun.wire(), 1, &clock).unwrap();
    let side = volume.area.side();
    volume
        .area
        .change_map(|map| {
            let journal: Vec<u32> = map.journal(side).collect();
            journal.into_iter().for_each(|chunk| map.assign(chunk, crate::disk::map::ChunkUse::Spare));
        })
        .unwrap();
    assert!(Journal::of(&volume.area, volume.epoch).is_none());
    volume.close().unwrap();
    let volume = open_with_journal(&lun, 2, &clock);
    assert!(append(volume.journal.as_ref().unwrap(), 1, b"first"));
    assert_eq!(keys(&volume.database), [0]);
    volume.close().unwrap();
}

#[test]
fn what_cannot_be_applied_is_said_and_the_volume_is_left_as_it_was() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    lun.prove_alone(Proof::Ended("for this test".to_owned()));
    let failing = Replay::new(|_, _, _| Err(Unapplied::Journal("a row is no row".to_owned())));
    let wire: Arc<dyn Lun> = lun.wire();
    let survey = Survey::read(wire.as_ref()).unwrap();
    let error =
        open_read_only(&wire, survey, &crate::disk::view::ViewOptions::default(), &failing).unwrap_err();
    assert!(error.to_string().contains("a row is no row"), "{error}");
    let error = open(wire, OpenOptions { replay: failing, ..options(1, &clock) }).unwrap_err();
    assert!(error.to_string().contains("csvfs fsck"), "{error}");
    open_with_journal(&lun, 2, &clock).close().unwrap();
}

#[test]
fn arbitrary_bytes_are_no_records() {
    let (lun, _, volume, at) = volume();
    let (journal, epoch) = (volume.journal.as_ref().unwrap(), volume.epoch);
    assert!(append(journal, 1, &[5; 20_000]));
    let whole = lun.peek(at, 24 << 10);
    let mut random = SmallRng::seed_from_u64(12);
    for _ in 0..300 {
        let mut bytes = whole.clone();
        match random.random_range(0..3) {
            0 => random.fill_bytes(&mut bytes),
            1 => {
                // A length, an epoch, a sequence.
                let place = random.random_range(32..56);
                random.fill_bytes(&mut bytes[place..56]);
            }
            _ => {
                let place = random.random_range(0..20_000);
                bytes[place] ^= 1 << random.random_range(0..8);
            }
        }
        lun.poke(at, &bytes);
        assert!(found(&lun, epoch, 0).0.is_empty() || bytes == whole);
    }
}
