//! The power goes at every write: what was acknowledged is there, and the volume opens.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redirector::lun::Proof;

use super::*;
use crate::disk::space::MetadataSpace;
use crate::types::{BLOCK, LunBlock, Run};

/// Opens what is left after a power cut before each event from `from` on, three ways each: nothing unflushed survives,
/// all of it, and a random part with torn writes. `acknowledged` says which keys must be there after so many events.
fn cut_everywhere(
    start: &Image,
    events: &[Event],
    from: usize,
    acknowledged: impl Fn(usize) -> Vec<u64>,
) -> usize {
    let mut random = SmallRng::seed_from_u64(events.len() as u64);
    let mut tried = 0;
    for cut in from..=events.len() {
        for way in 0..3 {
            let image = after_power_cut(start, &events[..cut], |_| match (way, random.random_range(0..3)) {
                (0, _) | (2, 0) => Survival::Lost,
                (1, _) | (2, 1) => Survival::Whole,
                _ => Survival::Torn,
            });
            let lun = BenchLun::from_image(image);
            lun.prove_alone(Proof::Ended("the power was cut".to_owned()));
            let volume = open_as(&lun.wire(), 90, &BenchClock::new());
            let volume = volume.unwrap_or_else(|error| panic!("cut {cut}, way {way}: {error}"));
            let found = keys(&volume.database);
            for key in acknowledged(cut) {
                assert!(
                    found.contains(&key),
                    "cut {cut}, way {way}: entry {key} is lost; there are {found:?}"
                );
            }
            put(&volume.database, 1000, &[1]);
            volume.close().unwrap();
            tried += 1;
        }
    }
    tried
}

#[test]
fn a_power_cut_during_format_leaves_no_volume_or_a_whole_one() {
    let clock = BenchClock::new();
    let old = BenchLun::new(64 * MIB);
    make(&old, &clock).unwrap();
    let before = old.image();
    let lun = BenchLun::from_image(before.clone());
    make_with(&lun, &FormatOptions { force: true, ..format_options(&clock) }).unwrap();
    let events = lun.events();
    for cut in 1..=events.len() {
        for survival in [Survival::Lost, Survival::Whole, Survival::Torn] {
            let image = after_power_cut(&before, &events[..cut], |_| survival);
            let lun = BenchLun::from_image(image);
            match open_as(&lun.wire(), 1, &clock) {
                Ok(volume) => {
                    // The old one, of which only the copy of the label is gone; or the new one.
                    let whole = cut == 1 || cut + 2 >= events.len();
                    assert!(whole, "a volume after {cut} of {} events", events.len());
                    assert_eq!(keys(&volume.database), [0]);
                }
                Err(error) => {
                    assert!(error.to_string().contains("no csvfs volume"), "{error}");
                    // And it can be formatted again.
                    make_with(&lun, &FormatOptions { force: true, ..format_options(&clock) }).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_power_cut_while_the_store_grows_loses_nothing() {
    let (lun, clock) = (BenchLun::new(128 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    lun.prove_alone(Proof::Ended("for this test".to_owned()));
    let start = lun.image();
    lun.forget_events();
    let volume = open_as(&lun.wire(), 1, &clock).unwrap();
    let mut acknowledged = vec![(0, 0)];
    for key in 1..=6 {
        let value = vec![u8::try_from(key).unwrap(); 450 << 10];
        put(&volume.database, key, &value);
        acknowledged.push((lun.events().len(), key));
        let wanted = volume.area.wanted();
        if wanted > 0 {
            let chunk = LunBlock((60 + key * 10) * MIB / BLOCK);
            volume.area.offer(&[Run { start: chunk, len: wanted * MIB / BLOCK }]).unwrap();
        }
    }
    assert!(volume.area.occupied() >= 3 * MIB, "the store has not grown");
    volume.close().unwrap();
    let events = lun.events();
    let tried = cut_everywhere(&start, &events, 1, |cut| {
        acknowledged.iter().filter(|(at, _)| *at <= cut).map(|(_, key)| *key).collect()
    });
    assert!(tried > 100, "{tried}");
}

#[test]
fn a_power_cut_while_the_store_is_copied_loses_nothing() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let wire = lun.wire();
    let volume = open_as(&wire, 1, &clock).unwrap();
    (1..20).for_each(|key| put(&volume.database, key, &[1; 9000]));
    wire.cut();
    drop(volume);
    let start = lun.image();
    lun.forget_events();
    let volume = open_as(&lun.wire(), 2, &clock).unwrap();
    assert!(volume.opened.to_string().starts_with("by copy"), "{}", volume.opened);
    put(&volume.database, 20, &[1]);
    let acknowledged = lun.events().len();
    volume.close().unwrap();
    cut_everywhere(&start, &lun.events(), 1, |cut| (0..if cut >= acknowledged { 21 } else { 20 }).collect());
}

#[test]
fn openings_that_fail_at_any_write_leave_the_volume_to_the_next() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let wire = lun.wire();
    let volume = open_as(&wire, 1, &clock).unwrap();
    (1..20).for_each(|key| put(&volume.database, key, &[1; 9000]));
    wire.cut();
    drop(volume);
    // One after the other on the same LUN: each copy is interrupted, and what it had sent comes late.
    let mut failed = 0;
    for writes in 0..60 {
        let wire = lun.wire();
        wire.fail_write_after(writes, redirector::lun::Outcome::Unknown);
        let opened = open(wire.clone() as Arc<dyn Lun>, quick(options(100 + writes as u64, &clock)));
        failed += u64::from(opened.is_err());
        drop(opened);
        lun.deliver_late();
        if failed <= writes as u64 {
            break;
        }
    }
    assert!(failed > 10, "{failed}");
    let volume = open_as(&lun.wire(), 200, &clock).unwrap();
    assert_eq!(keys(&volume.database), (0..20).collect::<Vec<_>>());
}
