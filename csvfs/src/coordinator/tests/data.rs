use super::*;
use crate::proto::Allocation;
use crate::types::{ExtentState, FILE_SIZE_MAX};

const BLOCKS: u64 = 10_000;

fn allocate(ino: Ino, from: u64, to: u64, how: Allocation) -> Operation {
    Operation::Allocate {
        file: owned(ino),
        from: FileBlock(from),
        to: FileBlock(to),
        how,
        size: None,
        now: NOW,
    }
}

fn clone(source: Ino, from: u64, target: Ino, to: u64, len: u64) -> Operation {
    Operation::Clone {
        source: owned(source),
        from: FileBlock(from),
        target: owned(target),
        to: FileBlock(to),
        len,
        size: Some((to + len) * 4096),
        now: NOW,
    }
}

fn shape(volume: &Volume, ino: Ino) -> Vec<(u64, u64, bool, bool)> {
    let written = |extent: &Extent| extent.state == ExtentState::Written;
    volume.extents(ino).iter().map(|e| (e.file.0, e.len, written(e), e.shared)).collect()
}

fn invalid(refusal: Refusal) -> bool {
    matches!(refusal, Refusal::Invalid(_))
}

#[test]
fn neighbouring_writes_become_one_extent() {
    let volume = Volume::new(BLOCKS);
    let file = volume.file("a");
    let lun = volume.one_run(30);
    for (file_block, offset) in [(0, 0), (20, 20), (10, 10)] {
        volume.ask(commit(file, &[(file_block, lun.0 + offset, 10)])).unwrap();
    }
    assert_eq!(shape(&volume, file), [(0, 30, true, false)]);
    assert_eq!(volume.attr(file).blocks, 30);
    assert_clean(&volume, BLOCKS);
}

#[test]
fn layout_versions_rise_with_mappings_only() {
    let volume = Volume::new(BLOCKS);
    let file = volume.file("a");
    let first = volume.layout(file).version;
    volume.write(file, 0, 4);
    let second = volume.layout(file).version;
    assert!(second > first);
    let touched = volume.ask(commit(file, &[]));
    assert_eq!(touched, Ok(Answer::Version(second)));
    let lun = volume.extents(file)[0].lun;
    assert_eq!(volume.ask(commit(file, &[(0, lun.0, 4)])), Ok(Answer::Version(second)), "written already");
}

#[test]
fn commits_of_others_blocks_are_refused_whole() {
    let volume = Volume::new(BLOCKS);
    let (file, other) = (volume.file("a"), volume.file("b"));
    let theirs = volume.write(other, 0, 4);
    let mine = volume.one_run(4);
    assert!(invalid(volume.refused(commit(file, &[(0, mine.0, 4), (4, theirs.0, 1)]))));
    assert!(invalid(volume.refused(commit(file, &[(0, mine.0, 5)]))));
    assert!(
        invalid(volume.refused(commit(file, &[(0, mine.0, 2), (1, mine.0 + 2, 1)]))),
        "overlapping in the file"
    );
    assert!(
        invalid(volume.refused(commit(file, &[(0, mine.0, 2), (7, mine.0 + 1, 1)]))),
        "overlapping on the LUN"
    );
    assert!(invalid(volume.refused(commit(file, &[(0, mine.0, 0)]))));
    assert!(invalid(volume.refused(commit(file, &[(0, u64::MAX, 4)]))));
    assert_eq!(volume.refused(commit(file, &[(u64::MAX / 4096, mine.0, 4)])), Refusal::FileTooLarge);
    let directory = volume.directory(Ino::ROOT, "d");
    assert!(invalid(volume.refused(commit(directory, &[(0, mine.0, 4)]))));
    assert_clean(&volume, BLOCKS);
}

#[test]
fn a_replaced_block_is_held_back_until_it_is_trimmed() {
    let volume = Volume::new(BLOCKS);
    let file = volume.file("a");
    volume.write(file, 0, 8);
    let fresh = volume.one_run(2);
    volume.ask(commit(file, &[(3, fresh.0, 2)])).unwrap();
    let extents = volume.extents(file);
    assert_eq!(extents.iter().map(|e| e.len).collect::<Vec<_>>(), [3, 2, 3]);
    assert_eq!(extents[1].lun, fresh);
    assert_eq!(volume.attr(file).blocks, 8);
    assert_clean(&volume, BLOCKS);
}

#[test]
fn allocation_punching_and_zeroing() {
    let volume = Volume::new(BLOCKS);
    let file = volume.file("a");
    volume.write(file, 5, 5);
    volume.ask(allocate(file, 0, 20, Allocation::Allocate)).unwrap();
    assert_eq!(shape(&volume, file), [(0, 5, false, false), (5, 5, true, false), (10, 10, false, false)]);
    assert_eq!(volume.attr(file).blocks, 20);
    let lun = volume.extents(file)[2].lun;
    volume.ask(commit(file, &[(12, lun.0 + 2, 3)])).unwrap();
    assert_eq!(
        shape(&volume, file)[2..],
        [(10, 2, false, false), (12, 3, true, false), (15, 5, false, false)]
    );
    volume.ask(allocate(file, 6, 14, Allocation::Zero)).unwrap();
    let kept = shape(&volume, file);
    assert!(kept.iter().filter(|e| e.2).map(|e| (e.0, e.1)).eq([(5, 1), (14, 1)]), "{kept:?}");
    assert_eq!(volume.attr(file).blocks, 20);
    volume.ask(allocate(file, 1, 19, Allocation::Punch)).unwrap();
    assert_eq!(shape(&volume, file).iter().map(|e| (e.0, e.1)).collect::<Vec<_>>(), [(0, 1), (19, 1)]);
    assert_eq!(volume.attr(file).blocks, 2);
    assert_clean(&volume, BLOCKS);
    assert!(invalid(volume.refused(allocate(file, 2, 1, Allocation::Punch))));
    assert_eq!(volume.refused(allocate(file, 0, u64::MAX / 2, Allocation::Allocate)), Refusal::FileTooLarge);
}

#[test]
fn sizes_have_a_limit_and_shrink_to_the_byte() {
    let volume = Volume::new(BLOCKS);
    let file = volume.file("a");
    volume.write(file, 0, 10);
    let Ok(Answer::Entry(attr)) = volume.truncate(file, 5 * 4096) else { panic!() };
    assert_eq!((attr.size, attr.blocks), (5 * 4096, 5));
    volume.truncate(file, FILE_SIZE_MAX).unwrap();
    let beyond =
        Operation::Truncate { file: owned(file), size: FILE_SIZE_MAX + 1, clear_set_id: false, now: NOW };
    assert_eq!(volume.refused(beyond), Refusal::FileTooLarge);
    let directory = volume.directory(Ino::ROOT, "d");
    let on_directory = Operation::Truncate { file: owned(directory), size: 0, clear_set_id: false, now: NOW };
    assert_eq!(volume.refused(on_directory), Refusal::IsDirectory);
}

#[test]
fn writes_take_set_id_bits_away() {
    let volume = Volume::new(BLOCKS);
    let file = volume.file("a");
    volume.entry(set_mode(file, 0o6777));
    let later = Timestamp(NOW.0 + 5);
    let write = Operation::Commit {
        file: owned(file),
        written: Vec::new(),
        size: None,
        mtime: Some(Timestamp(3)),
        atime: Some(Timestamp(4)),
        clear_set_id: true,
        now: later,
    };
    volume.ask(write).unwrap();
    let attr = volume.attr(file);
    assert_eq!((attr.mode, attr.mtime, attr.atime, attr.ctime), (0o777, Timestamp(3), Timestamp(4), later));
    let earlier = Operation::Commit {
        file: owned(file),
        written: Vec::new(),
        size: None,
        mtime: Some(Timestamp(6)),
        atime: None,
        clear_set_id: false,
        now: Timestamp(6),
    };
    volume.ask(earlier).unwrap();
    let attr = volume.attr(file);
    assert_eq!((attr.mtime, attr.ctime), (Timestamp(6), later), "the inode was changed after it was written");
    volume.entry(set_mode(file, 0o6777));
    volume.ask(Operation::Truncate { file: owned(file), size: 0, clear_set_id: true, now: NOW }).unwrap();
    assert_eq!(volume.attr(file).mode, 0o777);
}

#[test]
fn clones_share_until_one_is_written() {
    let volume = Volume::new(BLOCKS);
    let (source, target) = (volume.file("s"), volume.file("t"));
    volume.write(source, 0, 10);
    volume.ask(allocate(source, 10, 15, Allocation::Allocate)).unwrap();
    volume.write(target, 2, 10);
    volume.ask(clone(source, 0, target, 0, 15)).unwrap();
    assert_eq!(shape(&volume, source)[0], (0, 10, true, true));
    assert_eq!(shape(&volume, target), [(0, 10, true, true)], "unwritten blocks read as a hole");
    assert_eq!((volume.attr(target).size, volume.attr(target).blocks), (15 * 4096, 10));
    assert_clean(&volume, BLOCKS);
    let fresh = volume.one_run(3);
    volume.ask(commit(target, &[(4, fresh.0, 3)])).unwrap();
    let copied = shape(&volume, target);
    assert_eq!(copied, [(0, 4, true, true), (4, 3, true, false), (7, 3, true, true)]);
    assert_eq!(shape(&volume, source)[..3], [(0, 4, true, true), (4, 3, true, false), (7, 3, true, true)]);
    assert_clean(&volume, BLOCKS);
    volume.unlink(Ino::ROOT, "s").unwrap();
    assert!(shape(&volume, target).iter().all(|extent| !extent.3), "nobody else has them any more");
    assert_clean(&volume, BLOCKS);
    volume.unlink(Ino::ROOT, "t").unwrap();
    assert_clean(&volume, BLOCKS);
    volume.coordinator.reclaim().unwrap();
    assert_clean(&volume, BLOCKS);
}

#[test]
fn clones_of_clones_and_within_one_file() {
    let volume = Volume::new(BLOCKS);
    let (a, b, c) = (volume.file("a"), volume.file("b"), volume.file("c"));
    volume.write(a, 0, 8);
    volume.ask(clone(a, 0, b, 0, 8)).unwrap();
    volume.ask(clone(b, 2, c, 0, 4)).unwrap();
    volume.ask(clone(a, 0, a, 8, 8)).unwrap();
    assert!(invalid(volume.refused(clone(a, 0, a, 4, 8))));
    assert_clean(&volume, BLOCKS);
    // Once more over itself.
    volume.ask(clone(a, 0, b, 0, 8)).unwrap();
    assert_clean(&volume, BLOCKS);
    volume.ask(allocate(a, 0, 16, Allocation::Zero)).unwrap();
    assert_eq!(volume.attr(a).blocks, 16);
    assert_clean(&volume, BLOCKS);
    for name in ["b", "a", "c"] {
        volume.unlink(Ino::ROOT, name).unwrap();
        assert_clean(&volume, BLOCKS);
    }
}

/// A file of `extents` extents of one block each.
fn fragmented(volume: &Volume, name: &str, extents: u64) -> Ino {
    let file = volume.file(name);
    let mut at = 0;
    while at < extents {
        let runs: Vec<_> = volume
            .reserve((extents - at) * 2)
            .iter()
            .flat_map(|run| (0..run.len).map(|i| run.start.0 + i))
            .collect();
        let pieces: Vec<_> =
            runs.iter().step_by(2).enumerate().map(|(i, lun)| ((at + i as u64) * 2, *lun, 1)).collect();
        at += pieces.len() as u64;
        volume.ask(commit(file, &pieces)).unwrap();
    }
    file
}

#[test]
fn a_fragmented_file_is_changed_in_steps() {
    let volume = Volume::new(200_000);
    let steps = super::super::data::STEP_EXTENTS as u64;
    let file = fragmented(&volume, "f", steps * 3);
    let copy = volume.file("c");
    let blocks = steps * 6;
    let before = volume.layout(file).version;
    volume.ask(clone(file, 0, copy, 0, blocks)).unwrap();
    assert!(volume.layout(file).version > before + 2, "in several steps");
    assert_eq!(volume.attr(copy).blocks, volume.attr(file).blocks);
    assert_clean(&volume, 200_000);
    volume.ask(allocate(file, 1, blocks - 1, Allocation::Allocate)).unwrap();
    assert_eq!(volume.attr(file).blocks, blocks - 1);
    volume.ask(allocate(copy, 1, blocks - 1, Allocation::Punch)).unwrap();
    assert_eq!(volume.attr(copy).blocks, 1);
    let Ok(Answer::Entry(attr)) = volume.truncate(file, 4096) else { panic!() };
    assert_eq!((attr.size, attr.blocks), (4096, 1));
    assert_clean(&volume, 200_000);
}

#[test]
fn a_removed_fragmented_file_is_reclaimed_in_steps() {
    let volume = Volume::new(200_000);
    let steps = super::super::data::STEP_EXTENTS as u64;
    let file = fragmented(&volume, "f", steps * 2 + 10);
    volume.unlink(Ino::ROOT, "f").unwrap();
    assert_clean(&volume, 200_000);
    volume.coordinator.reclaim().unwrap();
    assert_eq!(volume.ask(Operation::GetAttr { ino: file }), Err(Refusal::NotFound));
    assert_clean(&volume, 200_000);
}

#[test]
fn layouts_are_asked_for_in_parts() {
    let volume = Volume::new(BLOCKS);
    let file = fragmented(&volume, "f", 10);
    let part = |from, limit| match volume.ask(Operation::Layout { ino: file, from: FileBlock(from), limit }) {
        Ok(Answer::Layout(part)) => part,
        other => panic!("{other:?}"),
    };
    assert_eq!((part(0, 4).extents.len(), part(0, 4).complete), (4, false));
    assert_eq!((part(0, 10).extents.len(), part(0, 10).complete), (10, true));
    assert_eq!((part(18, 4).extents.len(), part(18, 4).complete), (1, true));
    assert_eq!((part(50, 4).extents.len(), part(50, 4).complete), (0, true));
    let whole = volume.file("w");
    volume.write(whole, 0, 20);
    let Ok(Answer::Layout(tail)) =
        volume.ask(Operation::Layout { ino: whole, from: FileBlock(15), limit: 1 })
    else {
        panic!()
    };
    assert_eq!((tail.extents[0].file, tail.extents[0].len), (FileBlock(15), 5));
}

#[test]
fn a_full_volume_says_so_and_recovers_when_something_is_deleted() {
    let volume = Volume::new(600);
    let (file, other) = (volume.file("a"), volume.file("b"));
    volume.ask(allocate(file, 0, 590, Allocation::Allocate)).unwrap();
    assert_eq!(volume.refused(allocate(other, 0, 11, Allocation::Allocate)), Refusal::NoSpace);
    volume.ask(allocate(other, 0, 10, Allocation::Allocate)).unwrap();
    assert_eq!(volume.refused(Operation::Reserve { want: 1 }), Refusal::NoSpace);
    let Ok(Answer::Space(space)) = volume.ask(Operation::Space) else { panic!() };
    assert_eq!((space.blocks, space.free, space.inodes), (600, 0, 3));
    volume.unlink(Ino::ROOT, "a").unwrap();
    // The freed blocks are still held back: the reservation waits for them.
    assert_eq!(volume.reserve(10).iter().map(|run| run.len).sum::<u64>(), 10);
    volume.ask(allocate(other, 0, 400, Allocation::Allocate)).unwrap();
    assert_clean(&volume, 600);
}

#[test]
fn fragmented_free_space_is_still_found() {
    let volume = Volume::new(4096);
    let file = volume.file("a");
    volume.ask(allocate(file, 0, 4096, Allocation::Allocate)).unwrap();
    for block in (0..4096).step_by(2) {
        volume.ask(allocate(file, block, block + 1, Allocation::Punch)).unwrap();
    }
    volume.coordinator.reclaim().unwrap();
    let other = volume.file("b");
    volume.ask(allocate(other, 0, 2048, Allocation::Allocate)).unwrap();
    assert_eq!(volume.attr(other).blocks, 2048);
    assert_eq!(volume.refused(allocate(other, 0, 2049, Allocation::Allocate)), Refusal::NoSpace);
    assert_clean(&volume, 4096);
}
