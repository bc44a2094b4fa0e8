//! Tests of the recording LUN.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::mpsc;

use proptest::prelude::*;

use super::record::{Bytes, Change};
use super::*;
use crate::blocking;
use crate::buffer::{Pool, Slice};
use crate::lun::{Lun, Outcome};
use crate::memory::{self, Image};

const SIZE: u64 = 1 << 20;

fn lun(completion: Completion) -> RecordingLun {
    RecordingLun::new(memory::geometry(SIZE), Image::default(), completion)
}

fn data(len: usize, byte: u8) -> Slice {
    let mut buffer = Pool::default().take(len);
    buffer.fill(byte);
    buffer.share()
}

fn write(lun: &RecordingLun, offset: u64, len: usize, byte: u8) {
    blocking::write(lun, offset, data(len, byte), false).unwrap();
}

fn read(image: &Image, offset: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    image.read(offset, &mut out);
    out
}

fn first_byte(image: &Image, offset: u64) -> u8 {
    read(image, offset, 1)[0]
}

fn states(lun: &RecordingLun) -> Vec<CrashState> {
    CrashStates::new(lun.record(), Sampling::default()).collect()
}

#[test]
fn a_flushed_write_is_in_every_later_state_and_an_unflushed_one_may_be_missing() {
    let lun = lun(Completion::Inline);
    write(&lun, 0, 512, 1);
    write(&lun, 4096, 512, 2);
    blocking::flush(&lun).unwrap();
    lun.mark(1);
    write(&lun, 8192, 512, 3);
    let states = states(&lun);
    let seen: HashSet<(Option<u64>, [u8; 3])> = states
        .iter()
        .map(|state| (state.last_mark(), [0, 4096, 8192].map(|offset| first_byte(&state.image, offset))))
        .collect();
    let before = [[0, 0, 0], [1, 0, 0], [0, 2, 0], [1, 2, 0]].map(|bytes| (None, bytes));
    let after = [[1, 2, 0], [1, 2, 3]].map(|bytes| (Some(1), bytes));
    assert_eq!(seen, before.into_iter().chain(after).collect());
    assert_eq!(states.len(), 6, "each once");
}

#[test]
fn a_fua_write_is_durable_when_it_is_done_and_says_nothing_about_others() {
    let lun = lun(Completion::Inline);
    write(&lun, 0, 512, 1);
    blocking::write(&lun, 4096, data(512, 2), true).unwrap();
    lun.mark(7);
    let late: HashSet<[u8; 2]> = states(&lun)
        .iter()
        .filter(|state| state.last_mark() == Some(7))
        .map(|state| [0, 4096].map(|offset| first_byte(&state.image, offset)))
        .collect();
    assert_eq!(late, HashSet::from([[0, 2], [1, 2]]));
}

#[test]
fn an_older_write_never_lands_over_a_newer_durable_one() {
    let lun = lun(Completion::Inline);
    write(&lun, 0, 512, 1);
    blocking::write(&lun, 0, data(512, 2), true).unwrap();
    lun.mark(1);
    write(&lun, 4096, 512, 3);
    let marked = states(&lun).into_iter().filter(|state| state.last_mark() == Some(1));
    assert!(marked.map(|state| first_byte(&state.image, 0)).all(|byte| byte == 2));
}

#[test]
fn a_write_is_torn_between_sectors_only() {
    let lun = lun(Completion::Inline);
    write(&lun, 4096, 4096, 1);
    blocking::flush(&lun).unwrap();
    write(&lun, 4096, 4096, 2);
    let mut torn = 0;
    for state in states(&lun) {
        let bytes = read(&state.image, 4096, 4096);
        let sectors: Vec<&[u8]> = bytes.chunks(512).collect();
        assert!(sectors.iter().all(|sector| sector.iter().all(|byte| *byte == sector[0])), "{state}");
        torn += usize::from(sectors.iter().any(|sector| sector[0] != bytes[0]));
    }
    assert!(torn >= 4, "{torn} torn states");
}

#[test]
fn a_flush_that_was_started_before_the_write_was_done_does_not_cover_it() {
    let mut record = Record::default();
    let change = Change { range: 0..512, bytes: Bytes::Filled(1), fua: false };
    let written = record.start(Some(change));
    let flushed = record.start(None);
    record.done(written);
    record.done(flushed);
    record.mark(1);
    let marked = CrashStates::new(record, Sampling::default()).filter(|state| state.last_mark() == Some(1));
    let found: HashSet<u8> = marked.map(|state| first_byte(&state.image, 0)).collect();
    assert_eq!(found, HashSet::from([0, 1]));
}

#[test]
fn trimmed_bytes_are_not_zeros_and_the_trim_may_be_lost() {
    let lun = lun(Completion::Inline);
    write(&lun, 0, 512, 1);
    blocking::flush(&lun).unwrap();
    lun.mark(1);
    let (sender, receiver) = mpsc::channel();
    lun.trim(0..512, Box::new(move |outcome| sender.send(outcome).unwrap()));
    assert_eq!(receiver.recv(), Ok(Outcome::Done));
    let marked = states(&lun).into_iter().filter(|state| state.last_mark() == Some(1));
    let found: HashSet<u8> = marked.map(|state| first_byte(&state.image, 0)).collect();
    assert_eq!(found, HashSet::from([1, TRIMMED]));
}

/// A program that writes a block and then a pointer to it. What is acknowledged must be found.
fn two_steps(lun: &RecordingLun, flush_between: bool, wait_for_writes: bool) {
    for i in 1..=8_u8 {
        let block = u64::from(i) * 8192;
        if wait_for_writes {
            write(lun, block, 4096, i);
        } else {
            lun.write(block, data(4096, i), false, Box::new(|_| {}));
        }
        if flush_between {
            blocking::flush(lun).unwrap();
        }
        write(lun, 0, 512, i);
        blocking::flush(lun).unwrap();
        lun.mark(u64::from(i));
    }
}

/// Whether every state has a whole block behind its pointer, and a pointer no older than the last mark.
fn is_sound(lun: &RecordingLun) -> bool {
    CrashStates::new(lun.record(), Sampling::default()).all(|state| {
        let pointer = first_byte(&state.image, 0);
        let whole = read(&state.image, u64::from(pointer) * 8192, 4096).iter().all(|byte| *byte == pointer);
        (pointer == 0 || whole) && u64::from(pointer) >= state.last_mark().unwrap_or(0)
    })
}

#[test]
fn wrong_orders_are_found_and_the_right_one_is_not_blamed() {
    for seed in 0..8 {
        let lun = || lun(Completion::Shuffled(seed));
        let right = lun();
        two_steps(&right, true, true);
        assert!(is_sound(&right));
        let no_flush = lun();
        two_steps(&no_flush, false, true);
        assert!(!is_sound(&no_flush), "a missing flush is found");
    }
    let found = (0..16).any(|seed| {
        let lun = lun(Completion::Shuffled(seed));
        two_steps(&lun, true, false);
        !is_sound(&lun)
    });
    assert!(found, "a flush that does not wait for its writes is found");
}

#[test]
fn the_same_seed_gives_the_same_states_and_a_state_can_be_used() {
    let lun = lun(Completion::Inline);
    for i in 0..40 {
        write(&lun, i * 4096, 4096, 1);
    }
    let fingerprints = |seed| {
        let states = CrashStates::new(lun.record(), Sampling { seed, ..Sampling::default() });
        states.map(|state| state.image.fingerprint()).collect::<Vec<_>>()
    };
    assert_eq!(fingerprints(1), fingerprints(1));
    assert_ne!(fingerprints(1), fingerprints(2));
    let state = states(&lun).pop().unwrap();
    let reopened = state.lun(lun.geometry());
    blocking::write(&reopened, 0, data(512, 9), false).unwrap();
    assert_ne!(first_byte(&state.image, 0), 9, "the state itself does not change");
}

#[test]
fn thousands_of_distinct_states_come_from_a_short_record() {
    let lun = lun(Completion::Shuffled(3));
    for i in 0..120_u64 {
        for j in 0..12 {
            write(&lun, (i * 7 + j) % 250 * 4096, 4096, u8::try_from(i).unwrap());
        }
        blocking::flush(&lun).unwrap();
        lun.mark(i);
    }
    let mut states = CrashStates::new(lun.record(), Sampling::default());
    let count = states.by_ref().count();
    assert!(states.distinct_images() >= 5000, "{count} states, {} images", states.distinct_images());
}

#[derive(Clone, Debug)]
enum Step {
    Start {
        sector: u64,
        sectors: u64,
        fua: bool,
    },
    StartFlush,
    /// Ends one of the requests that are in flight.
    End(prop::sample::Index),
    Mark,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12_u64, 1..5_u64, prop::bool::weighted(0.2))
            .prop_map(|(sector, sectors, fua)| Step::Start { sector, sectors, fua }),
        2 => Just(Step::StartFlush),
        6 => any::<prop::sample::Index>().prop_map(Step::End),
        1 => Just(Step::Mark),
    ]
}

/// A request as the oracle remembers it: its number is the byte that it writes.
struct Past {
    sectors: Range<u64>,
    fua: bool,
    flush: bool,
    started: usize,
    done: Option<usize>,
}

fn record(steps: &[Step]) -> (Record, Vec<Past>) {
    let mut record = Record::default();
    let mut past: Vec<Past> = Vec::new();
    let mut in_flight = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Start { sector, sectors, fua } => {
                let byte = u8::try_from(past.len() + 1).unwrap();
                let sectors = *sector..sector + sectors;
                let range = sectors.start * 512..sectors.end * 512;
                in_flight.push(record.start(Some(Change { range, bytes: Bytes::Filled(byte), fua: *fua })));
                past.push(Past { sectors, fua: *fua, flush: false, started: at, done: None });
            }
            Step::StartFlush => {
                in_flight.push(record.start(None));
                past.push(Past { sectors: 0..0, fua: false, flush: true, started: at, done: None });
            }
            Step::End(which) if !in_flight.is_empty() => {
                let number = in_flight.swap_remove(which.index(in_flight.len()));
                record.done(number);
                past[number].done = Some(at);
            }
            Step::End(_) => record.mark(u64::MAX),
            Step::Mark => record.mark(at as u64),
        }
    }
    (record, past)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Each step is one event, so that positions in the record are numbers of steps.
    #[test]
    fn every_state_is_one_that_the_model_allows(steps in prop::collection::vec(step(), 1..60)) {
        let (record, past) = record(&steps);
        for state in CrashStates::new(record, Sampling { per_point: 24, ..Sampling::default() }) {
            let before = |at: Option<usize>| at.filter(|at| *at < state.at);
            let durable = |change: &Past| before(change.done).is_some_and(|done| {
                let flushed = |flush: &Past| flush.flush && flush.started > done && before(flush.done).is_some();
                change.fua || past.iter().any(flushed)
            });
            for sector in 0..16 {
                let byte = usize::from(first_byte(&state.image, sector * 512));
                let here = || past.iter().enumerate().filter(|(_, change)| change.sectors.contains(&sector));
                // What is there was started, and nothing durable was done after it.
                let written = past.get(byte.wrapping_sub(1));
                if let Some(written) = written {
                    prop_assert!(written.sectors.contains(&sector) && written.started < state.at);
                } else {
                    prop_assert_eq!(byte, 0);
                }
                let age = written.map(|change| change.done.unwrap_or(usize::MAX));
                for (_, other) in here().filter(|(_, change)| durable(change)) {
                    prop_assert!(age >= other.done, "sector {} of {}", sector, state);
                }
            }
        }
    }
}
