//! Tests of the file LUN.

mod killed;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockd::ids::ClientId;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::blocking;
use crate::buffer::{Pool, Slice};
use crate::lun::{Lun, Outcome, Proof};

const PATIENCE: Duration = Duration::from_secs(20);

/// A directory on a disk: the crate's own build directory.
fn disk_directory() -> TempDir {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    fs::create_dir_all(&target).unwrap();
    TempDir::new_in(target).unwrap()
}

fn image(directory: &TempDir, len: u64) -> PathBuf {
    let path = directory.path().join("disk.img");
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}

fn data(pool: &Pool, len: usize, byte: u8) -> Slice {
    let mut buffer = pool.take(len);
    buffer.fill(byte);
    buffer.share()
}

fn wait<T>(receiver: &mpsc::Receiver<T>) -> T {
    receiver.recv_timeout(PATIENCE).expect("the request ends")
}

#[test]
fn what_is_written_is_read() {
    let directory = disk_directory();
    let path = image(&directory, 1 << 20);
    let pool = Pool::default();
    let lun = FileLun::open(&path, Options::default()).unwrap();
    assert_eq!(lun.geometry().size, 1 << 20);
    assert!(lun.geometry().trim && lun.geometry().write_zeroes && lun.geometry().volatile_cache);
    blocking::write(&lun, 8192, data(&pool, 4096, 7), false).unwrap();
    blocking::write(&lun, 16384, data(&pool, 4096, 8), true).unwrap();
    blocking::flush(&lun).unwrap();
    let read = blocking::read(&lun, 4096, pool.take(20480)).unwrap();
    let expected: Vec<u8> = [0_u8, 7, 0, 8, 0].iter().flat_map(|byte| [*byte; 4096]).collect();
    assert_eq!(&read[..], &expected[..]);
    blocking::zero(&lun, 8192..12288).unwrap();
    assert_eq!(&blocking::read(&lun, 8192, pool.take(4096)).unwrap()[..], &[0; 4096]);
    assert!(lun.describe().contains("disk.img") && lun.describe().contains("locked"), "{}", lun.describe());
    drop(lun);
    let mut content = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut content).unwrap();
    assert_eq!(content[16384..20480], [8; 4096]);
}

#[test]
fn memory_that_is_not_aligned_is_copied() {
    let directory = disk_directory();
    let path = image(&directory, 1 << 20);
    let pool = Pool::default();
    let lun = FileLun::open(&path, Options::default()).unwrap();
    let mut buffer = pool.take_zeroed(8192);
    buffer[40..4136].fill(9);
    let slice = buffer.share().part(40..4136);
    blocking::write(&lun, 4096, slice, false).unwrap();
    assert_eq!(&blocking::read(&lun, 4096, pool.take(4096)).unwrap()[..], &[9; 4096]);
}

#[test]
fn requests_outside_the_geometry_are_refused() {
    let directory = disk_directory();
    let path = image(&directory, (64 << 10) + 100);
    let pool = Pool::default();
    let lun = FileLun::open(&path, Options::default()).unwrap();
    let size = lun.geometry().size;
    assert_eq!(size, 64 << 10, "the rest that is no whole block is left out");
    let read = |offset, len| blocking::read(&lun, offset, pool.take(len)).map(drop);
    assert_eq!(read(1, 4096), Err(libc::EINVAL));
    assert_eq!(read(0, 100), Err(libc::EINVAL));
    assert_eq!(read(size, 4096), Err(libc::EINVAL));
    assert_eq!(read(u64::MAX - 4095, 4096), Err(libc::EINVAL));
    assert_eq!(read(0, (8 << 20) + 4096), Err(libc::EINVAL));
    assert_eq!(read(size, 0), Ok(()));
    assert_eq!(blocking::write(&lun, size - 4096, data(&pool, 8192, 1), false), Err(libc::EINVAL));
    assert_eq!(blocking::zero(&lun, 0..100), Err(libc::EINVAL));
    assert_eq!(blocking::zero(&lun, 0..size + 4096), Err(libc::EINVAL));
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = 4096..0;
    assert_eq!(blocking::zero(&lun, backwards), Err(libc::EINVAL));
}

#[test]
fn a_file_that_became_shorter_gives_an_error() {
    let directory = disk_directory();
    let path = image(&directory, 64 << 10);
    let pool = Pool::default();
    let lun = FileLun::open(&path, Options::default()).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    assert!(blocking::read(&lun, 4096, pool.take(4096)).is_ok());
    assert_eq!(blocking::read(&lun, 4096, pool.take(8192)).map(drop), Err(libc::EIO));
    assert_eq!(blocking::read(&lun, 32768, pool.take(4096)).map(drop), Err(libc::EIO));
}

#[test]
fn what_is_no_lun_is_refused_with_the_reason() {
    let directory = disk_directory();
    let open = |path: &Path| FileLun::open(path, Options::default()).unwrap_err();
    let missing = open(&directory.path().join("none"));
    assert!(matches!(missing, FileLunError::Missing { .. }));
    assert!(missing.to_string().contains("truncate"));
    assert!(matches!(open(directory.path()), FileLunError::WrongKind { .. }));
    assert!(matches!(open(Path::new("/dev/null")), FileLunError::WrongKind { .. }));
    assert!(matches!(open(&image(&directory, 100)), FileLunError::Empty { size: 100, .. }));
    let path = image(&directory, 65536);
    let deep = FileLun::open(&path, Options { depth: 5000, ..Options::default() });
    assert!(matches!(deep, Err(FileLunError::Depth(5000))));
}

#[test]
fn a_read_only_lun_refuses_writes() {
    let directory = disk_directory();
    let path = image(&directory, 64 << 10);
    let pool = Pool::default();
    let lun = FileLun::open(&path, Options { read_only: true, ..Options::default() }).unwrap();
    assert_eq!(blocking::write(&lun, 0, data(&pool, 4096, 1), false), Err(libc::EROFS));
    assert_eq!(blocking::zero(&lun, 0..4096), Err(libc::EROFS));
    assert!(blocking::flush(&lun).is_ok());
    assert!(blocking::read(&lun, 0, pool.take(4096)).is_ok());
    assert_eq!(lun.prove_ended(ClientId(1)), Proof::Unprovable);
    assert!(FileLun::open(&path, Options::default()).unwrap().try_exclusive().is_ok(), "it has no lock");
}

#[test]
fn a_full_queue_makes_submission_wait_and_completions_may_submit() {
    let directory = disk_directory();
    let path = image(&directory, 1 << 20);
    let pool = Pool::default();
    let lun = Arc::new(FileLun::open(&path, Options { depth: 2, ..Options::default() }).unwrap());
    let (sender, receiver) = mpsc::channel();
    for i in 0..200_u64 {
        let (sender, next, pool) = (sender.clone(), Arc::clone(&lun), pool.clone());
        let offset = i * 4096;
        let chained = move |outcome: Outcome| {
            assert_eq!(outcome, Outcome::Done);
            // From the thread that receives completions: more requests than there are slots.
            for _ in 0..3 {
                let sender = sender.clone();
                let ended = Box::new(move |outcome, _| sender.send(outcome).unwrap());
                next.read(offset, pool.take(4096), ended);
            }
        };
        lun.write(offset, data(&Pool::default(), 4096, 1), false, Box::new(chained));
    }
    for _ in 0..600 {
        assert_eq!(wait(&receiver), Outcome::Done);
    }
}

#[test]
fn threads_share_a_short_queue() {
    let directory = disk_directory();
    let path = image(&directory, 4 << 20);
    let pool = Pool::default();
    let lun = FileLun::open(&path, Options { depth: 3, ..Options::default() }).unwrap();
    blocking::write(&lun, 0, data(&pool, 1 << 20, 7), false).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (lun, pool) = (&lun, &pool);
            scope.spawn(move || {
                for i in 0..1500_u64 {
                    // Long stretches of holes, which the kernel reads at once, between data, for which it waits.
                    let in_hole = (i / 100 + thread).is_multiple_of(2);
                    let offset = if in_hole { 2 << 20 } else { 0 } + i % 256 * 4096;
                    let read = blocking::read(lun, offset, pool.take(4096)).unwrap();
                    assert_eq!(read[..], [if in_hole { 0 } else { 7 }; 4096]);
                }
            });
        }
    });
}

#[test]
fn requests_of_a_thread_that_ended_are_executed() {
    let directory = TempDir::new_in("/dev/shm").unwrap();
    let path = image(&directory, 4 << 20);
    let lun = Arc::new(FileLun::open(&path, Options::default()).unwrap());
    let (sender, receiver) = mpsc::channel();
    for _ in 0..50 {
        let (lun, sender) = (Arc::clone(&lun), sender.clone());
        let thread = std::thread::spawn(move || {
            for i in 0..4_u64 {
                let sender = sender.clone();
                let range = i << 20..(i + 1) << 20;
                lun.zero(range, Box::new(move |outcome| sender.send(outcome).unwrap()));
            }
        });
        thread.join().unwrap();
    }
    for _ in 0..200 {
        assert_eq!(wait(&receiver), Outcome::Done);
    }
}

#[test]
fn a_lun_may_be_dropped_by_a_completion() {
    let directory = disk_directory();
    let path = image(&directory, 1 << 20);
    // A completion may come while the submitting thread is still in the LUN, which is then not dropped by it.
    let dropped_by_completion = || {
        let lun = Arc::new(FileLun::open(&path, Options::default()).unwrap());
        let (sender, receiver) = mpsc::channel();
        let last = Arc::new(OnceLock::new());
        let handed = Arc::clone(&last);
        let on_done = Box::new(move |_| {
            let on_reaper = std::thread::current().name() == Some("lun-reaper");
            while on_reaper && handed.get().is_none() {
                std::thread::yield_now();
            }
            drop(handed);
            sender.send(on_reaper).unwrap();
        });
        lun.zero(0..1 << 20, on_done);
        assert!(last.set(lun).is_ok());
        drop(last);
        wait(&receiver)
    };
    assert!((0..1000).any(|_| dropped_by_completion()));
    let again = FileLun::open(&path, Options::default()).unwrap();
    assert!(matches!(again.prove_ended(ClientId(1)), Proof::Ended(_)), "the lock has been given up");
}

#[test]
fn a_second_lun_sees_the_first() {
    let directory = disk_directory();
    let path = image(&directory, 1 << 20);
    let first = FileLun::open(&path, Options::default()).unwrap();
    assert!(matches!(first.prove_ended(ClientId(1)), Proof::Ended(_)));
    let second = FileLun::open(&path, Options::default()).unwrap();
    assert_eq!(second.try_exclusive(), Err(Holder::ThisProcess));
    let Proof::Alive(who) = second.prove_ended(ClientId(1)) else { panic!("the first is alive") };
    assert!(who.contains("this process") && who.contains("disk.img"), "{who}");
    drop(first);
    assert!(second.try_exclusive().is_ok(), "a dropped LUN's lock is free at once");
    assert!(matches!(second.prove_ended(ClientId(1)), Proof::Ended(_)));
}

#[test]
fn a_writer_without_a_lock_makes_it_unprovable() {
    let directory = disk_directory();
    let path = image(&directory, 1 << 20);
    let server = File::options().write(true).open(&path).unwrap();
    let lun = FileLun::open(&path, Options::default()).unwrap();
    assert!(lun.try_exclusive().is_ok());
    assert_eq!(lun.prove_ended(ClientId(1)), Proof::Unprovable);
    drop(server);
    assert!(matches!(lun.prove_ended(ClientId(1)), Proof::Ended(_)));
}

/// A file system in memory with a size, mounted in a directory of its own; needs root.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let options = format!("size={size}");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .arg(directory.path())
            .output()
            .unwrap();
        if !mount.status.success() {
            eprintln!("not tested: mounting needs root");
            return None;
        }
        Some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[test]
fn a_full_file_system_fails_the_write() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    let path = image(&disk.0, 4 << 20);
    let pool = Pool::default();
    let lun = FileLun::open(&path, Options::default()).unwrap();
    let outcomes: Vec<_> =
        (0..4).map(|i| blocking::write(&lun, i << 20, data(&pool, 1 << 20, 1), false)).collect();
    assert!(outcomes.contains(&Err(libc::ENOSPC)), "{outcomes:?}");
    assert!(lun.ghosts().is_empty());
    // Trimming makes room.
    let (sender, receiver) = mpsc::channel();
    lun.trim(0..4 << 20, Box::new(move |outcome| sender.send(outcome).unwrap()));
    assert_eq!(wait(&receiver), Outcome::Done);
    assert_eq!(blocking::write(&lun, 0, data(&pool, 4096, 1), false), Ok(()));
}

/// A block device on an image file; needs root and the kernel's loop driver.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn attach(image: &Path) -> Option<Self> {
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(image).output();
        let Some(output) = attached.ok().filter(|output| output.status.success()) else {
            eprintln!("not tested: loop devices need root");
            return None;
        };
        Some(Self(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(detached.is_ok_and(|status| status.success()));
    }
}

#[test]
fn a_block_device_is_a_lun() {
    let directory = disk_directory();
    let path = image(&directory, 8 << 20);
    let Some(device) = LoopDevice::attach(&path) else { return };
    let pool = Pool::default();
    let lun = FileLun::open(&device.0, Options::default()).unwrap();
    let geometry = lun.geometry();
    assert_eq!((geometry.size, geometry.trim), (8 << 20, true));
    assert!(lun.describe().starts_with("block device"), "{}", lun.describe());
    assert_eq!(lun.prove_ended(ClientId(1)), Proof::Unprovable, "another host may have it open");
    let error = FileLun::open(&device.0, Options::default()).unwrap_err().to_string();
    assert!(error.contains("in use on this host"), "{error}");
    drop(FileLun::open(&device.0, Options { read_only: true, ..Options::default() }).unwrap());
    blocking::write(&lun, 0, data(&pool, 1 << 20, 5), true).unwrap();
    blocking::zero(&lun, 4096..8192).unwrap();
    let (sender, receiver) = mpsc::channel();
    lun.trim(65536..131_072, Box::new(move |outcome| sender.send(outcome).unwrap()));
    assert_eq!(wait(&receiver), Outcome::Done);
    blocking::flush(&lun).unwrap();
    let read = blocking::read(&lun, 0, pool.take(65536)).unwrap();
    assert!(read[..4096] == [5; 4096] && read[4096..8192] == [0; 4096] && read[8192..] == [5; 57344]);
}

#[derive(Clone, Debug)]
enum Step {
    Write { block: u64, blocks: u64, byte: u8, fua: bool },
    Zero { block: u64, blocks: u64 },
    Trim { block: u64, blocks: u64 },
    Read { block: u64, blocks: u64 },
    Flush,
}

const BLOCKS: u64 = 64;

fn step() -> impl Strategy<Value = Step> {
    let range = (0..BLOCKS, 1..12_u64).prop_map(|(block, blocks)| (block, blocks.min(BLOCKS - block)));
    prop_oneof![
        4 => (range.clone(), any::<u8>(), any::<bool>())
            .prop_map(|((block, blocks), byte, fua)| Step::Write { block, blocks, byte, fua }),
        1 => range.clone().prop_map(|(block, blocks)| Step::Zero { block, blocks }),
        1 => range.clone().prop_map(|(block, blocks)| Step::Trim { block, blocks }),
        4 => range.prop_map(|(block, blocks)| Step::Read { block, blocks }),
        1 => Just(Step::Flush),
    ]
}

/// Runs `steps` on a LUN and on an array; steps that do not overlap one that is in flight go on without waiting.
fn compare(path: &Path, steps: &[Step]) {
    let lun = FileLun::open(path, Options { depth: 16, ..Options::default() }).unwrap();
    let pool = Pool::default();
    let mut model = vec![0_u8; usize::try_from(BLOCKS).unwrap() * 4096];
    let mut busy: Vec<std::ops::Range<u64>> = Vec::new();
    let (sender, receiver) = mpsc::channel();
    let mut in_flight = 0;
    let settle = |in_flight: &mut usize| {
        for _ in 0..std::mem::take(in_flight) {
            assert_eq!(wait(&receiver), Outcome::Done);
        }
    };
    for step in steps {
        let (block, blocks) = match step {
            Step::Write { block, blocks, .. }
            | Step::Zero { block, blocks }
            | Step::Trim { block, blocks }
            | Step::Read { block, blocks } => (*block, *blocks),
            Step::Flush => (0, 0),
        };
        let range = block * 4096..(block + blocks) * 4096;
        if busy.iter().any(|other| other.start < range.end && range.start < other.end) {
            settle(&mut in_flight);
            busy.clear();
        }
        busy.push(range.clone());
        in_flight += 1;
        let part = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let sender = sender.clone();
        let done = Box::new(move |outcome| sender.send(outcome).unwrap());
        match step {
            Step::Write { byte, fua, .. } => {
                model[part.clone()].fill(*byte);
                lun.write(range.start, data(&pool, part.len(), *byte), *fua, done);
            }
            Step::Zero { .. } => {
                model[part].fill(0);
                lun.zero(range, done);
            }
            Step::Trim { .. } => {
                // Nothing is promised; a file reads as zeros.
                model[part].fill(0);
                lun.trim(range, done);
            }
            Step::Read { .. } => {
                let expected = model[part.clone()].to_vec();
                let check = move |outcome: Outcome, buffer: crate::buffer::Buffer| {
                    let same = outcome == Outcome::Done && buffer[..] == expected[..];
                    done(if same { Outcome::Done } else { Outcome::Failed(libc::EBADMSG) });
                };
                lun.read(range.start, pool.take(part.len()), Box::new(check));
            }
            Step::Flush => lun.flush(done),
        }
    }
    settle(&mut in_flight);
    drop(lun);
    assert!(fs::read(path).unwrap() == model, "the file is what the model is");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_file_is_an_array_on_disk(steps in prop::collection::vec(step(), 1..150)) {
        let directory = disk_directory();
        compare(&image(&directory, BLOCKS * 4096), &steps);
    }

    #[test]
    fn a_file_is_an_array_in_memory(steps in prop::collection::vec(step(), 1..150)) {
        let directory = TempDir::new_in("/dev/shm").unwrap();
        compare(&image(&directory, BLOCKS * 4096), &steps);
    }
}
