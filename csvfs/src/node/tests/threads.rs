//! Several threads on one file.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::platter::{Platter, What};
use super::world::{World, start, wait};
use crate::node::Options;
use crate::proto::Allocation;
use crate::service::{FileService, HandleId};

const THREADS: usize = 4;
/// Each thread's bytes in every stripe of `THREADS * STRIPE`: no multiple of a block.
const STRIPE: usize = 700;
const STRIPES: usize = 40;

fn world(seed: u64) -> World {
    let options = Options { reserve_min: 64, dirty_parts_max: 8, ..Options::default() };
    World::with(Platter::shuffling(16 << 20, seed), options)
}

/// Writes to its own bytes and looks whether they are what it wrote last.
fn write_stripes(world: &World, handle: HandleId, thread: usize, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut last = [0_u8; STRIPES];
    for _ in 0..150 {
        let stripe = random.random_range(0..STRIPES);
        let at = ((stripe * THREADS + thread) * STRIPE) as u64;
        if random.random_bool(0.7) {
            last[stripe] = random.random_range(1..=255);
            world.write(handle, at, &[last[stripe]; STRIPE]);
        } else if random.random_bool(0.2) {
            world.sync(handle).unwrap();
        }
        let read = world.read(handle, at, 700);
        // The end of the file may not have come here yet.
        assert!(read.iter().all(|byte| *byte == last[stripe]), "thread {thread}, stripe {stripe}");
        assert!(last[stripe] == 0 || read.len() == STRIPE);
    }
}

#[test]
fn threads_that_share_blocks_lose_no_update() {
    for seed in 0..3 {
        let world = world(seed);
        let file = world.file("a");
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let world = &world;
                scope.spawn(move || write_stripes(world, file.handle, thread, seed * 10 + thread as u64));
            }
        });
    }
}

#[test]
fn threads_that_share_blocks_with_another_file_lose_no_update() {
    for seed in 0..3 {
        let world = world(100 + seed);
        let (source, target) = (world.file("a"), world.file("b"));
        let len = STRIPE * STRIPES * THREADS;
        world.write(source.handle, 0, &vec![0; len]);
        let len = len as u64;
        wait(|done| world.node.copy_range(source.handle, 0, target.handle, 0, len, done)).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let world = &world;
                scope.spawn(move || write_stripes(world, target.handle, thread, seed * 10 + thread as u64));
            }
            scope.spawn(|| {
                for _ in 0..10 {
                    let len = 1 << 20;
                    wait(|done| {
                        world.node.allocate(target.handle, 1 << 20, len, Allocation::Zero, true, done)
                    })
                    .unwrap();
                    wait(|done| world.node.copy_range(target.handle, 0, source.handle, 0, 65_536, done))
                        .unwrap();
                }
            });
        });
    }
}

#[test]
fn whole_blocks_and_parts_of_them_mix() {
    let world = world(7);
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 65_536]);
    std::thread::scope(|scope| {
        for thread in 0..3_u8 {
            let world = &world;
            scope.spawn(move || {
                for round in 0..200_u8 {
                    let block = u64::from(round % 16);
                    let value = thread * 60 + 2 + round % 50;
                    if thread == 0 {
                        world.write(file.handle, block * 4096, &[value; 4096]);
                    } else {
                        world.write(file.handle, block * 4096 + 100, &[value; 300]);
                    }
                }
            });
        }
    });
    let read = world.read(file.handle, 0, 65_536);
    for block in read.chunks(4096) {
        let around = block[0];
        assert!(block[..100].iter().chain(&block[400..]).all(|byte| *byte == around), "a torn block");
        assert!(block[100..400].iter().all(|byte| *byte == block[100]), "a torn part");
    }
}

#[test]
fn a_completion_asks_nothing_that_it_would_have_to_wait_for() {
    let world = world(9);
    let (source, target) = (world.file("a"), world.file("b"));
    for file in [source, target] {
        world.write(file.handle, 0, &[1; 65_536]);
        world.node.release(file.handle);
    }
    super::world::until("the closing", || world.node.figures().open == 0);
    let (source, target) = (world.open_file(source.attr.ino), world.open_file(target.attr.ino));
    world.platter.hold(What::Reads);
    let read = start(|done| world.node.read(source.handle, 0, 4096, done));
    super::world::until("the read", || world.platter.held() == 1);
    let copied = start(|done| world.node.copy_range(source.handle, 0, target.handle, 0, 65_536, done));
    // That the source is drained follows this completion, and the question about the target's layout follows that.
    world.platter.let_go();
    read.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(copied.recv_timeout(Duration::from_secs(10)).unwrap(), Ok(65_536));
}
