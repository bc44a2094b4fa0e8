//! Random requests against files as arrays of bytes, with crashes.

use proptest::prelude::*;

use super::platter::Platter;
use super::world::{World, start, wait};
use crate::node::Options;
use crate::proto::Allocation;
use crate::service::{FileService, HandleId, Seek};
use crate::types::Ino;

const REACH: u64 = 150_000;

#[derive(Clone, Debug)]
enum Step {
    Write { file: usize, offset: u64, len: u64, value: u8 },
    Append { file: usize, len: u64, value: u8 },
    Read { file: usize, offset: u64, len: u64 },
    Truncate { file: usize, size: u64 },
    Allocate { file: usize, offset: u64, len: u64, how: Allocation, keep_size: bool },
    Copy { from: usize, from_offset: u64, to: usize, to_offset: u64, len: u64 },
    Seek { file: usize, offset: u64 },
    Sync { file: usize },
    Reopen { file: usize },
    Round,
    Crash { seed: u64 },
}

/// Offsets at and around the edges of blocks as often as elsewhere.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..REACH,
        (0..REACH / 4096, 0..3_u64).prop_map(|(block, off)| (block * 4096 + off).saturating_sub(1)),
        (0..REACH / 4096).prop_map(|block| block * 4096),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let file = || 0..2_usize;
    let how = prop_oneof![Just(Allocation::Allocate), Just(Allocation::Punch), Just(Allocation::Zero)];
    prop_oneof![
        6 => (file(), place(), place(), 1..=255_u8).prop_map(|(file, offset, len, value)| {
            Step::Write { file, offset, len: len / 4 + 1, value }
        }),
        2 => (file(), 1..10_000_u64, 1..=255_u8).prop_map(|(file, len, value)| Step::Append { file, len, value }),
        2 => (file(), place(), place()).prop_map(|(file, offset, len)| Step::Read { file, offset, len }),
        2 => (file(), place()).prop_map(|(file, size)| Step::Truncate { file, size }),
        3 => (file(), place(), place(), how, any::<bool>()).prop_map(|(file, offset, len, how, keep_size)| {
            Step::Allocate { file, offset, len: len / 2 + 1, keep_size: keep_size || how == Allocation::Punch, how }
        }),
        3 => (file(), place(), file(), place(), place()).prop_map(|(from, from_offset, to, to_offset, len)| {
            Step::Copy { from, from_offset, to, to_offset, len }
        }),
        1 => (file(), place()).prop_map(|(file, offset)| Step::Seek { file, offset }),
        2 => file().prop_map(|file| Step::Sync { file }),
        1 => file().prop_map(|file| Step::Reopen { file }),
        2 => Just(Step::Round),
        1 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
    ]
}

/// A file as it must be, and as it may be after a crash.
struct Model {
    bytes: Vec<u8>,
    /// What each byte has been since it was last durable for sure; the last is what it is.
    may_be: Vec<Vec<u8>>,
    sizes: Vec<usize>,
}

impl Default for Model {
    fn default() -> Self {
        let reach = usize::try_from(REACH * 3).unwrap();
        Self { bytes: Vec::new(), may_be: vec![vec![0]; reach], sizes: vec![0] }
    }
}

impl Model {
    fn set(&mut self, at: usize, value: u8) {
        self.bytes[at] = value;
        if !self.may_be[at].contains(&value) {
            self.may_be[at].push(value);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        if data.is_empty() {
            return;
        }
        self.grow(offset + data.len());
        for (at, value) in data.iter().enumerate() {
            self.set(offset + at, *value);
        }
    }

    fn grow(&mut self, size: usize) {
        if size > self.bytes.len() {
            self.bytes.resize(size, 0);
            self.sizes.push(size);
        }
    }

    fn truncate(&mut self, size: usize) {
        self.bytes.resize(size, 0);
        self.sizes = vec![size];
        for may_be in &mut self.may_be[size..] {
            *may_be = vec![0];
        }
    }

    fn durable(&mut self) {
        for (at, may_be) in self.may_be.iter_mut().enumerate() {
            *may_be = vec![self.bytes.get(at).copied().unwrap_or(0)];
        }
        self.sizes = vec![self.bytes.len()];
    }

    /// The file is this after a crash.
    fn found(&mut self, bytes: Vec<u8>) {
        assert!(
            self.sizes.contains(&bytes.len()),
            "a size of {} never was, but {:?}",
            bytes.len(),
            self.sizes
        );
        for (at, byte) in bytes.iter().enumerate() {
            assert!(self.may_be[at].contains(byte), "byte {at} is {byte} and was {:?}", self.may_be[at]);
        }
        self.bytes = bytes;
        self.durable();
    }
}

struct Run {
    world: World,
    files: [(Ino, HandleId); 2],
    models: [Model; 2],
}

fn differs(read: &[u8], expected: &[u8]) -> Option<usize> {
    if read.len() != expected.len() {
        return Some(read.len().min(expected.len()));
    }
    read.iter().zip(expected).position(|(one, other)| one != other)
}

impl Run {
    fn new() -> Self {
        // Small reserves and parts, so that their bounds are met.
        let options =
            Options { background: false, reserve_min: 64, dirty_parts_max: 6, ..Options::default() };
        let world = World::with(Platter::new(12 << 20), options);
        let files = ["a", "b"].map(|name| {
            let file = world.file(name);
            (file.attr.ino, file.handle)
        });
        Self { world, files, models: Default::default() }
    }

    fn step(&mut self, step: &Step) {
        let node = std::sync::Arc::clone(&self.world.node);
        match *step {
            Step::Write { file, offset, len, value } => {
                let data = pattern(len, value);
                self.world.write(self.files[file].1, offset, &data);
                self.models[file].write(offset, &data);
            }
            Step::Append { file, len, value } => {
                let len = if self.models[file].bytes.len() as u64 > REACH { 1 } else { len };
                let data = pattern(len, value);
                let mode = crate::service::WriteMode { append: true, ..Default::default() };
                let slice = super::world::slice(&data);
                let at = wait(|done| node.write(self.files[file].1, 0, slice, mode, done)).unwrap();
                assert_eq!(at, self.models[file].bytes.len() as u64);
                self.models[file].write(at, &data);
            }
            Step::Read { file, offset, len } => {
                let read = self.world.read(self.files[file].1, offset, u32::try_from(len).unwrap());
                let bytes = &self.models[file].bytes;
                let clip = |at: u64| usize::try_from(at).unwrap().min(bytes.len());
                let expected = &bytes[clip(offset)..clip(offset + len)];
                assert_eq!(differs(&read, expected), None, "read of {len} at {offset}");
            }
            Step::Truncate { file, size } => {
                let attr = self.world.truncate(self.files[file].0, size);
                assert_eq!(attr.size, size);
                self.models[file].truncate(usize::try_from(size).unwrap());
            }
            Step::Allocate { file, offset, len, how, keep_size } => {
                let handle = self.files[file].1;
                wait(|done| node.allocate(handle, offset, len, how, keep_size, done)).unwrap();
                let model = &mut self.models[file];
                let end = usize::try_from(offset + len).unwrap();
                if !keep_size {
                    model.grow(end);
                }
                if how != Allocation::Allocate {
                    for at in usize::try_from(offset).unwrap()..end.min(model.bytes.len()) {
                        model.set(at, 0);
                    }
                }
            }
            Step::Copy { from, from_offset, to, to_offset, len } => {
                let (source, target) = (self.files[from].1, self.files[to].1);
                let copied = wait(|done| node.copy_range(source, from_offset, target, to_offset, len, done));
                let available = (self.models[from].bytes.len() as u64).saturating_sub(from_offset);
                let len = len.min(available);
                let overlap = from_offset < to_offset + len && to_offset < from_offset + len;
                if from == to && len > 0 && overlap {
                    assert!(matches!(copied, Err(crate::refusal::Refusal::Invalid(_))));
                    return;
                }
                let copied = copied.unwrap();
                assert!(copied <= len && (copied > 0 || len == 0));
                let at = usize::try_from(from_offset).unwrap().min(self.models[from].bytes.len());
                let data = self.models[from].bytes[at..at + usize::try_from(copied).unwrap()].to_vec();
                self.models[to].write(to_offset, &data);
            }
            Step::Seek { file, offset } => self.seek(file, offset),
            Step::Sync { file } => {
                self.world.sync(self.files[file].1).unwrap();
                self.models[file].durable();
            }
            Step::Reopen { file } => {
                node.release(self.files[file].1);
                (0..4).for_each(|_| node.round());
                self.files[file].1 = self.world.open_file(self.files[file].0).handle;
            }
            Step::Round => (0..11).for_each(|_| node.round()),
            Step::Crash { .. } => {}
        }
        self.check();
    }

    /// Data must not be skipped; holes may be.
    fn seek(&self, file: usize, offset: u64) {
        let (handle, bytes) = (self.files[file].1, &self.models[file].bytes);
        let node = &self.world.node;
        let data = wait(|done| node.seek(handle, offset, Seek::Data, done));
        let size = bytes.len() as u64;
        let end = data.clone().unwrap_or(size).min(size);
        if offset < size {
            let skipped = &bytes[usize::try_from(offset).unwrap()..usize::try_from(end).unwrap()];
            assert!(skipped.iter().all(|byte| *byte == 0), "SEEK_DATA has skipped data");
            let hole = wait(|done| node.seek(handle, offset, Seek::Hole, done)).unwrap();
            assert!(hole >= offset && hole <= size);
        } else {
            assert!(data.is_err());
        }
    }

    fn check(&self) {
        for (model, (ino, handle)) in self.models.iter().zip(&self.files) {
            let read = self.world.read(*handle, 0, u32::try_from(REACH * 3).unwrap());
            assert_eq!(differs(&read, &model.bytes), None, "contents of {ino}");
        }
    }

    fn crash(self, seed: u64) -> Self {
        let Self { world, files, mut models } = self;
        // Something is on its way.
        let _sync = start(|done| world.node.sync(files[0].1, done));
        let world = world.crash(seed);
        let files = files.map(|(ino, _)| (ino, world.open_file(ino).handle));
        for (model, (_, handle)) in models.iter_mut().zip(&files) {
            model.found(world.read(*handle, 0, u32::try_from(REACH * 3).unwrap()));
        }
        Self { world, files, models }
    }
}

fn pattern(len: u64, value: u8) -> Vec<u8> {
    (0..len).map(|at| value.wrapping_add((at / 512).to_le_bytes()[0]).max(1)).collect()
}

fn execute(steps: &[Step]) {
    let mut run = Run::new();
    for step in steps {
        match step {
            Step::Crash { seed } => run = run.crash(*seed),
            step => run.step(step),
        }
    }
    run.world.shut_down();
    run.world.check();
}

/// 32 cases, or as many as `PROPTEST_CASES` says.
fn config() -> ProptestConfig {
    let config =
        ProptestConfig { max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { config } else { ProptestConfig { cases: 32, ..config } }
}

/// The blocks allocated beyond the end were kept in the node's layout when the coordinator had freed them.
#[test]
fn a_truncation_frees_also_what_was_allocated_beyond_the_end() {
    execute(&[
        Step::Allocate { file: 0, offset: 114_688, len: 1, how: Allocation::Zero, keep_size: true },
        Step::Truncate { file: 0, size: 0 },
        Step::Write { file: 0, offset: 86_896, len: 27_793, value: 1 },
    ]);
}

/// The coordinator shared the source's extent as it had been before the target's place in it was cut.
#[test]
fn a_copy_within_one_extent_leaves_what_it_does_not_cover() {
    execute(&[
        Step::Write { file: 0, offset: 65_535, len: 36_866, value: 1 },
        Step::Write { file: 0, offset: 107_519, len: 23_553, value: 1 },
        Step::Allocate { file: 0, offset: 102_401, len: 28_671, how: Allocation::Punch, keep_size: true },
        Step::Copy { from: 0, from_offset: 86_016, to: 0, to_offset: 20_480, len: 49_151 },
    ]);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn files_are_what_was_written_to_them(steps in prop::collection::vec(step(), 1..50)) {
        execute(&steps);
    }
}
