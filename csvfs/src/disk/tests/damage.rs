//! Damaged structures, foreign and changed LUNs: tolerated where nothing can be lost, refused where it could.

use redirector::lun::Proof;

use super::*;
use crate::disk::features::Features;
use crate::disk::frame::Damage;
use crate::disk::layout::{self, byte};
use crate::disk::open::Replay;
use crate::disk::repair::clear_dead_claims;
use crate::disk::superblock::Superblock;
use crate::disk::survey::{Finding, Survey, SurveyError};
use crate::disk::view::{ViewOptions, open_read_only};

fn slot_at(superblock: &Superblock) -> u64 {
    byte(layout::SLOTS_AT + Superblock::slot(superblock.epoch) as u64)
}

/// A volume that was opened a few times, and grown.
fn used() -> (BenchLun, BenchClock) {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    lun.prove_alone(Proof::Ended("for this test".to_owned()));
    for client in 1..=3 {
        let volume = open_as(&lun.wire(), client, &clock).unwrap();
        put(&volume.database, client, &vec![1; 100_000]);
        volume.close().unwrap();
    }
    (lun, clock)
}

fn survey(lun: &BenchLun) -> Result<Survey, SurveyError> {
    Survey::read(lun.wire().as_ref())
}

fn opens_whole(lun: &BenchLun, clock: &BenchClock) -> Vec<String> {
    let volume = open_as(&lun.wire(), 50, clock).unwrap();
    assert_eq!(keys(&volume.database), [0, 1, 2, 3]);
    let warnings = volume.warnings.clone();
    volume.close().unwrap();
    warnings
}

#[test]
fn any_one_damaged_slot_is_tolerated_with_a_warning() {
    for slot in 0..layout::SLOTS as u64 {
        let (lun, clock) = used();
        let newest = survey(&lun).unwrap().superblock;
        lun.poke(byte(layout::SLOTS_AT + slot) + 40, b"damage");
        let found = survey(&lun).unwrap();
        assert_eq!(found.superblock.epoch, newest.epoch, "slot {slot}");
        assert_eq!(found.superblock.side, newest.side);
        let is_newest = Superblock::slot(newest.epoch) as u64 == slot;
        let [Finding::Slot { lost, .. }] = &found.findings[..] else { panic!("{:?}", found.findings) };
        assert_eq!(lost.is_some(), is_newest);
        let warnings = opens_whole(&lun, &clock);
        assert!(warnings[0].contains(&format!("slot {slot}")), "{warnings:?}");
        // The opening has mended the newest; the others are mended on request.
        let volume = open_as(&lun.wire(), 51, &clock).unwrap();
        volume.hold.mend(&survey(&lun).unwrap()).unwrap();
        assert!(survey(&lun).unwrap().findings.is_empty(), "{:?}", survey(&lun).unwrap().findings);
        volume.close().unwrap();
    }
}

#[test]
fn a_stale_slot_in_place_of_the_newest_is_found_out() {
    let (lun, clock) = used();
    let found = survey(&lun).unwrap();
    let older = found.slots.iter().flatten().min_by_key(|superblock| superblock.epoch).unwrap();
    lun.poke(slot_at(&found.superblock), &older.encode(found.label.uuid));
    let again = survey(&lun).unwrap();
    assert_eq!(again.superblock.epoch, found.superblock.epoch, "the chunk map knows better");
    assert!(!opens_whole(&lun, &clock).is_empty());
}

#[test]
fn one_damaged_map_copy_is_tolerated_and_two_are_not() {
    for copy in 0..2 {
        let (lun, clock) = used();
        let at = byte(layout::MAPS_AT[copy]);
        lun.poke(at + 4096 + 8, &[0xff]);
        let found = survey(&lun).unwrap();
        assert!(matches!(found.findings[..], [Finding::Map { copy: bad, .. }] if bad == copy));
        let whole = lun.image();
        assert_eq!(opens_whole(&lun, &clock).len(), 1);
        assert!(survey(&lun).unwrap().findings.is_empty(), "opening writes both copies");
        let lun = BenchLun::from_image(whole);
        lun.poke(byte(layout::MAPS_AT[1 - copy]) + 20, b"damage");
        let error = open_as(&lun.wire(), 9, &clock).unwrap_err().to_string();
        assert!(error.contains("both copies of the chunk map"), "{error}");
    }
}

#[test]
fn without_slots_the_map_serves_and_without_both_nothing_does() {
    let (lun, clock) = used();
    for slot in 0..layout::SLOTS as u64 {
        lun.poke(byte(layout::SLOTS_AT + slot), b"damage");
    }
    let whole = lun.image();
    assert!(!opens_whole(&lun, &clock).is_empty());
    let lun = BenchLun::from_image(whole);
    for at in layout::MAPS_AT {
        lun.poke(byte(at), b"damage");
    }
    let error = open_as(&lun.wire(), 9, &clock).unwrap_err().to_string();
    assert!(error.contains("chunk map"), "{error}");
}

#[test]
fn a_map_older_than_the_superblock_is_refused() {
    let (lun, clock) = used();
    let old: Vec<Vec<u8>> = layout::MAPS_AT.iter().map(|at| lun.peek(byte(*at), 64 * 4096)).collect();
    open_as(&lun.wire(), 9, &clock).unwrap().close().unwrap();
    for (at, bytes) in layout::MAPS_AT.iter().zip(old) {
        lun.poke(byte(*at), &bytes);
    }
    assert!(matches!(survey(&lun), Err(SurveyError::MapLost { .. })));
}

#[test]
fn a_superblock_that_came_late_is_not_in_force() {
    let (lun, clock) = used();
    let found = survey(&lun).unwrap();
    // Written by an opener of epoch + 1 whose copy went to the other area, and delivered when the opener of epoch + 2
    // had written its chunk map, in which that area is another one.
    let late = Superblock {
        epoch: lockd::ids::Epoch(found.superblock.epoch.0 + 1),
        side: found.superblock.side.other(),
        ..found.superblock.clone()
    };
    let mut map = found.map.clone();
    map.epoch.0 += 2;
    for at in layout::MAPS_AT {
        lun.poke(byte(at), &map.encode(found.label.uuid));
    }
    lun.poke(slot_at(&late), &late.encode(found.label.uuid));
    assert_eq!(survey(&lun).unwrap().superblock, found.superblock);
    assert!(opens_whole(&lun, &clock).is_empty());
}

#[test]
fn a_map_without_a_store_is_refused_and_none_is_made() {
    let (lun, clock) = used();
    let found = survey(&lun).unwrap();
    let mut map = found.map.clone();
    map.lens = [0; 2];
    for at in layout::MAPS_AT {
        lun.poke(byte(at), &map.encode(found.label.uuid));
    }
    let before = lun.image();
    assert!(matches!(open_as(&lun.wire(), 9, &clock), Err(OpenError::NoStore)));
    let wire: Arc<dyn Lun> = lun.wire();
    let view = open_read_only(&wire, survey(&lun).unwrap(), &ViewOptions::default(), &Replay::none());
    assert!(matches!(view, Err(OpenError::NoStore)));
    assert!(lun.image() == before);
}

#[test]
fn a_damaged_label_and_a_foreign_lun_are_told() {
    let (lun, clock) = used();
    lun.poke(100, b"damage");
    let error = open_as(&lun.wire(), 9, &clock).unwrap_err().to_string();
    assert!(error.contains("label") && error.contains("checksum"), "{error}");
    let lun = BenchLun::new(64 * MIB);
    let error = open_as(&lun.wire(), 9, &clock).unwrap_err().to_string();
    assert!(error.contains("no csvfs volume"), "{error}");
    let lun = BenchLun::new(8192);
    assert!(matches!(survey(&lun), Err(SurveyError::TooSmall(8192))));
}

#[test]
fn a_lun_that_came_back_smaller_is_refused() {
    let (lun, _) = used();
    let mut image = lun.image();
    image.size = 48 * MIB;
    let error = survey(&BenchLun::from_image(image)).unwrap_err();
    assert_eq!(error, SurveyError::Shrunk { found: 48 * MIB, expected: 64 * MIB });
}

#[test]
fn unknown_features_are_refused_or_read_only() {
    let (lun, clock) = used();
    let found = survey(&lun).unwrap();
    let with = |features| Superblock { features, ..found.superblock.clone() }.encode(found.label.uuid);
    let at = slot_at(&found.superblock);
    lun.poke(at, &with(Features { incompatible: 4, ..Features::default() }));
    let error = open_as(&lun.wire(), 9, &clock).unwrap_err().to_string();
    assert!(error.contains("incompatible features 0x4"), "{error}");
    lun.poke(at, &with(Features { ro_compatible: 4, ..Features::default() }));
    let error = open_as(&lun.wire(), 9, &clock).unwrap_err().to_string();
    assert!(error.contains("read-only"), "{error}");
    let wire: Arc<dyn Lun> = lun.wire();
    let view =
        open_read_only(&wire, survey(&lun).unwrap(), &ViewOptions::default(), &Replay::none()).unwrap();
    assert_eq!(keys(&view.database), [0, 1, 2, 3]);
    lun.poke(at, &with(Features { compatible: 4, ..Features::default() }));
    assert!(opens_whole(&lun, &clock).is_empty());
}

#[test]
fn a_flipped_byte_of_the_store_is_found_by_a_check_and_by_a_copy() {
    let (lun, clock) = used();
    lun.prove_alone(Proof::Unprovable);
    let wire = lun.wire();
    let volume = open_as(&wire, 9, &clock).unwrap();
    let map = volume.area.map();
    let side = volume.area.side();
    wire.cut();
    drop(volume);
    // In the middle of a long value.
    let mut pages =
        map.area(side).flat_map(|(_, chunk)| (0..256).map(move |page| u64::from(chunk) * MIB + page * 4096));
    let at = pages.find(|at| lun.peek(*at, 4096) == [1; 4096]).unwrap();
    lun.poke(at + 99, &[0xff]);
    let reader: Arc<dyn Lun> = lun.wire();
    let options = ViewOptions { check: true, ..ViewOptions::default() };
    let error =
        open_read_only(&reader, survey(&lun).unwrap(), &options, &Replay::none()).unwrap_err().to_string();
    assert!(error.contains("corrupt"), "{error}");
    let error = open_as(&lun.wire(), 10, &clock).unwrap_err().to_string();
    assert!(error.contains("corrupt") && error.contains("fsck"), "{error}");
}

#[test]
fn a_view_changes_nothing_and_names_the_writer() {
    let (lun, clock) = used();
    lun.prove_alone(Proof::Unprovable);
    let mut volume = open_as(&lun.wire(), 9, &clock).unwrap();
    volume.hold.settled();
    put(&volume.database, 4, &[4]);
    let before = lun.image();
    for load_max in [0, 1 << 30] {
        let wire: Arc<dyn Lun> = lun.wire();
        let options = ViewOptions { load_max, check: true, ..ViewOptions::default() };
        let view = open_read_only(&wire, survey(&lun).unwrap(), &options, &Replay::none()).unwrap();
        assert_eq!(keys(&view.database), [0, 1, 2, 3, 4]);
        assert!(view.writer.as_deref().is_some_and(|who| who.contains("host9")), "{:?}", view.writer);
        put(&view.database, 5, &vec![5; 3_000_000]);
        assert_eq!(keys(&view.database), [0, 1, 2, 3, 4, 5]);
    }
    assert!(lun.image() == before, "a view has written to the LUN");
    volume.close().unwrap();
    let wire: Arc<dyn Lun> = lun.wire();
    let view =
        open_read_only(&wire, survey(&lun).unwrap(), &ViewOptions::default(), &Replay::none()).unwrap();
    assert_eq!(view.writer, None);
}

#[test]
fn dead_claims_are_cleared_but_not_the_last_writers() {
    let (lun, clock) = used();
    lun.prove_alone(Proof::Unprovable);
    for client in 10..12 {
        let wire = lun.wire();
        let volume = open_as(&wire, client, &clock).unwrap();
        wire.cut();
        drop(volume);
    }
    let found = survey(&lun).unwrap();
    assert_eq!(found.open_claims().count(), 2);
    let pool = redirector::buffer::Pool::default();
    let cleared = clear_dead_claims(lun.wire().as_ref(), &pool, &clock, &found).unwrap();
    assert_eq!(cleared.iter().map(|claim| claim.client.0).collect::<Vec<_>>(), [10]);
    assert_eq!(survey(&lun).unwrap().writer().map(|claim| claim.client.0), Some(11));
}

#[test]
fn a_damaged_claim_forbids_opening_in_place_unless_closed() {
    let (lun, clock) = used();
    lun.poke(byte(layout::CLAIMS_AT + 40), b"damage");
    assert!(matches!(survey(&lun).unwrap().findings[..], [Finding::Claim { block: 40, .. }]));
    assert_eq!(survey(&lun).unwrap().claims[40], Err(Damage::Magic(*b"damage\0\0")));
    assert_eq!(opens_whole(&lun, &clock).len(), 1);
    let volume = open_as(&lun.wire(), 60, &clock).unwrap();
    assert_eq!(volume.hold.mend(&survey(&lun).unwrap()).unwrap().len(), 1);
    assert!(survey(&lun).unwrap().findings.is_empty());
}

/// Bytes of a block of the LUN, and the same with one flipped.
fn flip(lun: &BenchLun, at: u64) {
    let byte = lun.peek(at, 1)[0];
    lun.poke(at, &[byte ^ 0x20]);
}

#[test]
fn a_damaged_label_is_read_from_its_copy_and_mended() {
    for damage in [&[0; 4096][..], b"some other thing", &[1; 100]] {
        let (lun, clock) = used();
        let label = survey(&lun).unwrap().label;
        lun.poke(0, damage);
        let found = survey(&lun).unwrap();
        assert_eq!(found.label, label);
        assert!(matches!(found.findings[..], [Finding::Label(_)]), "{:?}", found.findings);
        // A view shows it; a writer refuses until it is mended.
        let wire: Arc<dyn Lun> = lun.wire();
        let view = open_read_only(&wire, found.clone(), &ViewOptions::default(), &Replay::none()).unwrap();
        assert_eq!(keys(&view.database), [0, 1, 2, 3]);
        let before = lun.image();
        let error = open_as(&lun.wire(), 9, &clock).unwrap_err().to_string();
        assert!(
            error.contains("block 0") && error.contains("fsck --repair") && error.contains("-o ro"),
            "{error}"
        );
        assert!(lun.image() == before, "the refused opening has written");
        let from_copy = OpenOptions { label_from_copy: true, ..options(10, &clock) };
        let volume = open(lun.wire(), from_copy).unwrap();
        volume.hold.mend(&survey(&lun).unwrap()).unwrap();
        volume.close().unwrap();
        assert!(survey(&lun).unwrap().findings.is_empty());
        assert!(opens_whole(&lun, &clock).is_empty());
    }
}

#[test]
fn a_damaged_copy_of_the_label_is_told_and_mended() {
    let (lun, clock) = used();
    flip(&lun, byte(layout::LABEL_COPY_AT) + 70);
    assert!(matches!(survey(&lun).unwrap().findings[..], [Finding::LabelCopy(_)]));
    assert_eq!(opens_whole(&lun, &clock).len(), 1);
    let volume = open_as(&lun.wire(), 60, &clock).unwrap();
    volume.hold.mend(&survey(&lun).unwrap()).unwrap();
    volume.close().unwrap();
    assert!(survey(&lun).unwrap().findings.is_empty());
    // With both damaged there is nothing to go by.
    flip(&lun, 70);
    flip(&lun, byte(layout::LABEL_COPY_AT) + 70);
    let error = survey(&lun).unwrap_err().to_string();
    assert!(error.contains("and so is its copy") && error.contains("backup"), "{error}");
}

#[test]
fn a_volume_of_an_earlier_version_is_given_a_copy_of_its_label() {
    let (lun, clock) = used();
    let at = byte(layout::LABEL_COPY_AT);
    lun.poke(at, &[0; 4096]);
    assert!(survey(&lun).unwrap().findings.is_empty(), "without a copy nothing is wrong");
    assert!(opens_whole(&lun, &clock).is_empty());
    assert_eq!(lun.peek(at, 4096), lun.peek(0, 4096));
}

#[test]
fn a_lun_that_carries_something_else_is_not_taken_for_a_volume_with_a_damaged_label() {
    let (lun, clock) = used();
    // An ext4 file system's superblock.
    let mut block = [0; 4096];
    block[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    lun.poke(0, &block);
    let error = open_as(&lun.wire(), 9, &clock).unwrap_err().to_string();
    assert!(error.contains("no csvfs volume") && error.contains("ext4"), "{error}");
    // And a volume whose label is gone is not overwritten unasked.
    lun.poke(0, &[0; 4096]);
    let refused = make(&lun, &clock).unwrap_err().to_string();
    assert!(refused.contains("carries the csvfs volume"), "{refused}");
}

/// The LUN's bytes of every page of the store, with a byte that is kept.
fn store_pages(lun: &BenchLun) -> Vec<u64> {
    let found = survey(lun).unwrap();
    let (side, size) = (found.superblock.side, found.label.chunk_size);
    let len = found.store_len();
    let chunks = found.map.area(side);
    let pages = chunks.flat_map(|(index, chunk)| {
        (0..size).step_by(4096).map(move |at| (u64::from(index) * size + at, u64::from(chunk) * size + at))
    });
    let inside = pages.filter(|(area, at)| *area > 0 && *area < len && lun.peek(*at, 4096) != [0; 4096]);
    inside.map(|(_, at)| at).collect()
}

#[test]
fn an_opening_in_place_that_checks_nothing_still_never_reads_a_damaged_page() {
    let (lun, clock) = used();
    let (mut refused, mut harmless) = (0, 0);
    let whole = lun.image();
    for at in store_pages(&lun) {
        let lun = BenchLun::from_image(whole.clone());
        lun.prove_alone(Proof::Ended("for this test".to_owned()));
        flip(&lun, at + 9);
        let unchecked = OpenOptions { check_max: 0, cache_bytes: 64 << 10, ..options(9, &clock) };
        let volume = match open(lun.wire(), unchecked) {
            Ok(volume) => volume,
            Err(error) => {
                assert!(error.to_string().contains("corrupt"), "{error}");
                refused += 1;
                continue;
            }
        };
        assert!(!volume.checked);
        let read = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let transaction = volume.database.begin_read()?;
            let table = transaction.open_table(TABLE)?;
            table.iter()?.map(|row| Ok(row?.1.value().to_vec())).collect()
        };
        match read().and_then(|values| try_put(&volume.database, 9, &[9; 5000]).map(|()| values)) {
            Ok(values) => {
                assert_eq!(values.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100_000, 100_000, 100_000]);
                assert!(values[1..].iter().all(|value| value.iter().all(|byte| *byte == 1)), "page {at}");
                harmless += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("does not match its checksum"), "{error}");
                refused += 1;
            }
        }
        assert_eq!(volume.area.unchecked(), 0);
    }
    assert!(refused > 3 && harmless > 3, "{refused} refused, {harmless} harmless");
}
