use std::sync::Arc;
use std::time::{Duration, Instant};

use lockd::clock::WallTime;
use lockd::ids::{ClientId, Epoch};
use redb::{ReadableDatabase, StorageBackend};
use redirector::buffer::Pool;

use super::*;
use crate::disk::layout;
use crate::disk::map::{ChunkMap, ChunkUse};
use crate::disk::space::MetadataSpace;
use crate::disk::superblock::Superblock;
use crate::disk::tests::{
    BenchClock, BenchLun, Event, MIB, format_options, keys, make, make_with, open_as, put,
};
use crate::types::{BLOCK, LunBlock, Run};

/// An area of two chunks that do not lie together, on a LUN of its own.
fn area(lun: &BenchLun) -> AreaBackend {
    let superblock = Superblock {
        epoch: Epoch(1),
        side: Side::A,
        clean: false,
        features: crate::disk::features::Features::default(),
        size: lun.geometry.size,
        written: WallTime(0),
        client: ClientId(1),
    };
    let clock = BenchClock::new();
    let label = make(lun, &clock).unwrap();
    let mut map = ChunkMap::new(64, superblock);
    map.assign(40, ChunkUse::Store(Side::A, 0));
    map.assign(30, ChunkUse::Store(Side::A, 2));
    map.assign(20, ChunkUse::Spare);
    map.lens[0] = 3 * MIB;
    lun.forget_events();
    AreaBackend(Arc::new(Area::new(
        Surroundings {
            hold: Duration::from_secs(120),
            lun: lun.wire(),
            pool: Pool::default(),
            label,
            lease: Arc::new(Lease::unlimited()),
            clock: Arc::new(clock),
            rules: Rules::from_test_environment(),
        },
        map,
        Side::A,
    )))
}

/// The events as short text: where in chunks and blocks, how many blocks, whether with FUA.
fn events(lun: &BenchLun) -> Vec<String> {
    let short = |event: &Event| match event {
        Event::Flush => "flush".to_owned(),
        Event::Write { offset, data, fua } => {
            let what = layout::MAPS_AT
                .iter()
                .position(|at| *at * BLOCK == *offset)
                .map(|copy| format!("map {copy}"));
            let place = || format!("{}.{}+{}", offset / MIB, offset % MIB / BLOCK, data.len() as u64 / BLOCK);
            what.unwrap_or_else(place) + if *fua { " fua" } else { "" }
        }
    };
    let found = lun.events().iter().map(short).collect();
    lun.forget_events();
    found
}

#[test]
fn writes_are_read_at_once_and_sent_joined_at_a_sync() {
    let lun = BenchLun::new(64 * MIB);
    let area = area(&lun);
    area.write(5, &[1; 10]).unwrap();
    area.write(8192, &[2; 4096]).unwrap();
    area.write(4096, &[3; 4096]).unwrap();
    area.write(2 * MIB, &[4; 8192]).unwrap();
    let mut out = [0; 20];
    area.read(0, &mut out).unwrap();
    assert_eq!(out[..16], [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    let mut page = [0; 8192];
    area.read(4096, &mut page).unwrap();
    assert_eq!((page[0], page[4096]), (3, 2));
    assert!(events(&lun).is_empty(), "nothing is sent before the sync");
    area.sync_data().unwrap();
    assert_eq!(events(&lun), ["40.0+3 fua", "30.0+2 fua"], "two requests need no flush");
    area.read(2 * MIB, &mut page).unwrap();
    assert_eq!(page, [4; 8192]);
    area.sync_data().unwrap();
    assert!(events(&lun).is_empty(), "nothing to do");
    for at in [0, 16384, 65536] {
        area.write(at, &[5; 4096]).unwrap();
    }
    area.sync_data().unwrap();
    assert_eq!(events(&lun), ["40.0+1", "40.4+1", "40.16+1", "flush"]);
}

#[test]
fn places_never_written_read_as_zeros_and_get_a_chunk_when_written() {
    let lun = BenchLun::new(64 * MIB);
    let area = area(&lun);
    let mut page = [9; 4096];
    area.read(MIB, &mut page).unwrap();
    assert_eq!(page, [0; 4096]);
    area.write(MIB + 4096, &[6; 4096]).unwrap();
    area.sync_data().unwrap();
    assert_eq!(events(&lun), ["map 0 fua", "20.1+1", "map 1 fua", "flush"]);
    assert!(area.write(2 * MIB + MIB, &[0; 1]).is_err(), "beyond the end");
    area.set_len(5 * MIB).unwrap();
    area.sync_data().unwrap();
    assert_eq!(events(&lun), ["map 0 fua", "map 1 fua"]);
    area.read(4 * MIB, &mut page).unwrap();
    assert_eq!(page, [0; 4096]);
    // No spare chunk is left.
    assert!(area.write(4 * MIB, &[1; 4096]).is_err());
    assert_eq!(area.0.broken(), Some(AreaError::Full));
    assert_eq!(AreaError::Full.errno(), libc::ENOSPC);
}

#[test]
fn a_read_over_several_chunks_is_put_together() {
    let lun = BenchLun::new(64 * MIB);
    let area = area(&lun);
    let whole = usize::try_from(3 * MIB).unwrap();
    let expected: Vec<u8> = (0..whole).map(|i| u8::try_from(i / 4096 % 251).unwrap()).collect();
    area.write(0, &expected).unwrap();
    let mut found = vec![0; whole];
    area.read(0, &mut found).unwrap();
    assert!(found == expected);
    area.sync_data().unwrap();
    found.fill(0);
    area.read(0, &mut found).unwrap();
    assert!(found == expected);
    let mut odd = vec![0; 100_001];
    area.read(MIB - 50_000, &mut odd).unwrap();
    assert!(odd == expected[usize::try_from(MIB).unwrap() - 50_000..][..100_001]);
}

#[test]
fn a_full_buffer_is_sent_early_and_made_durable_by_the_sync() {
    let lun = BenchLun::new(128 * MIB);
    let area = area(&lun);
    area.0
        .change_map(|map| (41..64).chain(1..19).for_each(|chunk| map.assign(chunk, ChunkUse::Spare)))
        .unwrap();
    area.set_len(64 * MIB).unwrap();
    area.sync_data().unwrap();
    events(&lun);
    let chunk = vec![1; usize::try_from(MIB).unwrap()];
    for i in 0..35 {
        area.write(i * MIB, &chunk).unwrap();
    }
    let early = events(&lun);
    assert!(early.len() > 30 && early.iter().all(|event| !event.contains("flush")), "{early:?}");
    area.sync_data().unwrap();
    assert!(events(&lun).contains(&"flush".to_owned()));
}

#[test]
fn a_commit_is_three_round_trips() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let volume = open_as(&lun.wire(), 1, &clock).unwrap();
    (1..50).for_each(|key| put(&volume.database, key, &[1; 300]));
    lun.forget_events();
    put(&volume.database, 50, &[1; 300]);
    let found = events(&lun);
    let flushes = found.iter().filter(|event| *event == "flush").count();
    let fua = found.iter().filter(|event| event.contains("fua")).count();
    assert_eq!((flushes, fua), (1, 1), "{found:?}");
    assert!(found.len() < 20, "{found:?}");
}

#[test]
fn the_area_grows_by_what_it_is_offered_and_keeps_as_much_for_a_copy() {
    let (lun, clock) = (BenchLun::new(128 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let wire = lun.wire();
    let volume = open_as(&wire, 1, &clock).unwrap();
    assert_eq!(volume.area.chunk_blocks(), 256);
    assert_eq!(volume.area.wanted(), 0);
    let mut next = 127;
    for key in 1..=40 {
        put(&volume.database, key, &vec![1; 300_000]);
        let wanted = volume.area.wanted();
        if wanted > 0 {
            next -= wanted;
            let run = Run { start: LunBlock(next * 256), len: wanted * 256 };
            volume.area.offer(&[run]).unwrap();
            lun.forget_events();
            volume.area.offer(&[run]).unwrap();
            assert!(events(&lun).is_empty(), "the same once more is nothing");
            assert_eq!(volume.area.wanted(), 0);
        }
        let map = volume.area.map();
        let used = map.area(volume.area.side()).count() + map.spare().len();
        assert!(map.reserve().len() >= used.saturating_sub(4), "{} for {used}", map.reserve().len());
        assert!(!volume.area.is_scarce());
    }
    assert!(volume.area.occupied() > 12 * MIB);
    // Not offered any more, it says so in time, and the room for a copy is there.
    let mut key = 100;
    while !volume.area.is_scarce() {
        put(&volume.database, key, &vec![1; 300_000]);
        key += 1;
    }
    let mut delete = volume.database.begin_write().unwrap();
    delete.set_quick_repair(true);
    delete.open_table(crate::disk::tests::TABLE).unwrap().remove(1).unwrap();
    delete.commit().unwrap();
    let expected = keys(&volume.database);
    wire.cut();
    drop(volume);
    let volume = open_as(&lun.wire(), 2, &clock).unwrap();
    assert!(volume.opened.to_string().starts_with("by copy"));
    assert_eq!(keys(&volume.database), expected);
    drop(volume.database.begin_read().unwrap());
    volume.close().unwrap();
}

#[test]
fn what_an_earlier_area_held_is_reserve_again_after_the_quiesce_time() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    let quiesce = Duration::from_secs(3600);
    let options = crate::disk::format::FormatOptions { quiesce, ..format_options(&clock) };
    make_with(&lun, &options).unwrap();
    let wire = lun.wire();
    let first = open_as(&wire, 1, &clock).unwrap();
    put(&first.database, 1, &[1]);
    let before = first.area.map();
    wire.cut();
    drop(first);
    let volume = open_as(&lun.wire(), 2, &clock).unwrap();
    let held = before.all_of(Side::A);
    assert_eq!(volume.area.map().spent(), held);
    assert_eq!(volume.hold.claim().client, ClientId(2));
    clock.advance(Duration::from_secs(3601));
    volume.hold.beat().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let survey = || crate::disk::survey::Survey::read(lun.wire().as_ref()).unwrap();
    while !volume.area.map().spent().is_empty() || survey().open_claims().count() > 1 {
        assert!(Instant::now() < deadline, "nothing was settled");
        let _ = volume.hold.beat();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(held.iter().all(|chunk| volume.area.map().reserve().contains(chunk)));
    volume.close().unwrap();
}
