//! Data comes back as it was written.

use super::platter::{Event, Platter};
use super::world::World;
use crate::proto::Allocation;
use crate::service::{FileService, Seek, WriteMode};
use crate::types::Ino;

use super::world::wait;

fn world() -> World {
    World::new(Platter::new(32 << 20))
}

#[test]
fn what_is_written_is_read_also_after_closing() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, b"hello");
    assert_eq!(world.read(file.handle, 0, 100), b"hello");
    world.write(file.handle, 10_000, &[7; 5000]);
    assert_eq!(world.attr(file.attr.ino).size, 15_000);
    let mut expected = b"hello".to_vec();
    expected.resize(10_000, 0);
    expected.resize(15_000, 7);
    assert_eq!(world.read(file.handle, 0, 20_000), expected);
    world.node.release(file.handle);
    let again = world.open_file(file.attr.ino);
    assert_eq!(world.read(again.handle, 0, 20_000), expected);
    world.shut_down();
    let world = world.crash(1);
    let again = world.open_file(file.attr.ino);
    assert_eq!(again.attr.size, 15_000);
    assert_eq!(world.read(again.handle, 0, 20_000), expected);
}

#[test]
fn what_is_synced_survives_a_crash() {
    for seed in 0..20 {
        let world = world();
        let file = world.file("a");
        world.write(file.handle, 0, &[1; 9000]);
        world.sync(file.handle).unwrap();
        world.write(file.handle, 4096, &[2; 4096]);
        let world = world.crash(seed);
        let file = world.open_file(file.attr.ino);
        let read = world.read(file.handle, 0, 9000);
        assert_eq!(read.len(), 9000);
        assert!(read[..4096].iter().all(|byte| *byte == 1));
        assert!(read[4096..8192].iter().all(|byte| *byte == 1 || *byte == 2));
    }
}

#[test]
fn the_reserve_is_given_back_when_the_node_ends() {
    let world = world();
    let before = wait(|done| world.node.space(done)).unwrap();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 100]);
    assert!(world.node.figures().reserve_blocks > 0);
    world.sync(file.handle).unwrap();
    assert_eq!(world.attr(file.attr.ino).blocks, 1);
    world.shut_down();
    assert_eq!(world.node.figures().reserve_blocks, 0);
    let after = wait(|done| world.node.space(done)).unwrap();
    assert_eq!(after.free, before.free - 1);
}

#[test]
fn a_truncated_file_grows_with_zeros() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 9000]);
    assert_eq!(world.truncate(file.attr.ino, 5000).size, 5000);
    assert_eq!(world.truncate(file.attr.ino, 20_000).size, 20_000);
    let read = world.read(file.handle, 0, 20_000);
    assert!(read[..5000].iter().all(|byte| *byte == 1));
    assert!(read[5000..].iter().all(|byte| *byte == 0));
    world.truncate(file.attr.ino, 5001);
    world.write(file.handle, 6000, b"x");
    let read = world.read(file.handle, 0, 20_000);
    assert_eq!(read.len(), 6001);
    assert!(read[5000..6000].iter().all(|byte| *byte == 0));
}

#[test]
fn appends_never_overlap() {
    let world = World::new(Platter::shuffling(16 << 20, 3));
    let file = world.file("log");
    let mode = WriteMode { append: true, ..WriteMode::default() };
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let world = &world;
            scope.spawn(move || {
                for _ in 0..50 {
                    let data = super::world::slice(&[b'a' + thread; 37]);
                    wait(|done| world.node.write(file.handle, 0, data, mode, done)).unwrap();
                }
            });
        }
    });
    let log = world.read(file.handle, 0, 100_000);
    assert_eq!(log.len(), 4 * 50 * 37);
    for record in log.chunks(37) {
        assert!(record.iter().all(|byte| *byte == record[0]) && record[0] >= b'a');
    }
}

#[test]
fn holes_and_data_are_found() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 40_960, &[1; 4096]);
    let seek = |offset, what| wait(|done| world.node.seek(file.handle, offset, what, done));
    assert_eq!(seek(0, Seek::Data).unwrap(), 40_960);
    assert_eq!(seek(41_000, Seek::Data).unwrap(), 41_000);
    assert_eq!(seek(0, Seek::Hole).unwrap(), 0);
    assert_eq!(seek(40_960, Seek::Hole).unwrap(), 45_056);
    assert!(seek(45_056, Seek::Data).is_err());
    assert!(seek(45_056, Seek::Hole).is_err());
}

#[test]
fn ranges_are_punched_zeroed_and_allocated() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[9; 40_000]);
    let allocate = |offset, len, how, keep_size| {
        wait(|done| world.node.allocate(file.handle, offset, len, how, keep_size, done)).unwrap();
    };
    allocate(100, 10_000, Allocation::Punch, true);
    allocate(20_000, 500, Allocation::Zero, true);
    allocate(50_000, 1000, Allocation::Allocate, false);
    assert_eq!(world.attr(file.attr.ino).size, 51_000);
    let read = world.read(file.handle, 0, 60_000);
    let mut expected = vec![9; 40_000];
    expected[100..10_100].fill(0);
    expected[20_000..20_500].fill(0);
    expected.resize(51_000, 0);
    assert!(read == expected);
}

#[test]
fn copies_share_blocks_until_they_are_written() {
    let world = world();
    let (source, target) = (world.file("a"), world.file("b"));
    world.write(source.handle, 0, &[5; 10_000]);
    let free = wait(|done| world.node.space(done)).unwrap().free;
    let copied =
        wait(|done| world.node.copy_range(source.handle, 0, target.handle, 0, 10_000, done)).unwrap();
    assert_eq!(copied, 10_000);
    assert_eq!(wait(|done| world.node.space(done)).unwrap().free, free);
    world.write(target.handle, 5000, b"changed");
    assert!(world.read(source.handle, 0, 10_000) == [5; 10_000]);
    let mut expected = vec![5; 10_000];
    expected[5000..5007].copy_from_slice(b"changed");
    assert!(world.read(target.handle, 0, 10_000) == expected);
    world.sync(target.handle).unwrap();
    assert!(world.read(target.handle, 0, 10_000) == expected);
    let overlapping = wait(|done| world.node.copy_range(source.handle, 0, source.handle, 100, 5000, done));
    assert!(matches!(overlapping, Err(crate::refusal::Refusal::Invalid(_))));
}

#[test]
fn a_file_without_a_name_lives_as_long_as_it_is_open() {
    let world = world();
    let before = wait(|done| world.node.space(done)).unwrap();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 50_000]);
    wait(|done| world.node.unlink(Ino::ROOT, b"a", done)).unwrap();
    assert_eq!(world.attr(file.attr.ino).nlink, 0);
    assert!(world.read(file.handle, 0, 50_000) == [1; 50_000]);
    world.node.release(file.handle);
    super::world::until("the space", || wait(|done| world.node.space(done)).unwrap().inodes == before.inodes);
    assert_eq!(world.node.figures().open, 0);
}

#[test]
fn a_full_volume_says_so_and_space_comes_back() {
    let world = World::new(Platter::new(4 << 20));
    let (a, b) = (world.file("a"), world.file("b"));
    let mut written = 0;
    while world.try_write(a.handle, written, &[3; 65_536]).is_ok() {
        written += 65_536;
    }
    assert_eq!(world.try_write(a.handle, written, &[3; 65_536]), Err(crate::refusal::Refusal::NoSpace));
    assert!(written >= 3 << 20, "{written}");
    assert_eq!(world.attr(a.attr.ino).size, written);
    world.truncate(a.attr.ino, 0);
    world.write(b.handle, 0, &[4; 1 << 20]);
    assert!(world.read(b.handle, 0, 1 << 20) == vec![4; 1 << 20]);
}

/// fdatasync of an overwrite is a flush; of anything that moves a mapping or the size it is a commit.
#[test]
fn a_data_sync_in_place_sends_no_message() {
    let world = world();
    let file = world.file("a");
    let commits = || {
        world
            .events()
            .iter()
            .filter(|event| matches!(event, Event::Message(name) if name.starts_with("Commit")))
            .count()
    };
    let sync_data = || wait(|done| world.node.sync_data(file.handle, done)).unwrap();
    world.write(file.handle, 0, &[1; 8192]);
    sync_data();
    assert_eq!(commits(), 1);
    world.write(file.handle, 4096, &[2; 4096]);
    sync_data();
    assert_eq!(commits(), 1, "the data is where it was, and flushed");
    world.write(file.handle, 8192, &[3; 4096]);
    sync_data();
    assert_eq!(commits(), 2, "the file has grown");
}
