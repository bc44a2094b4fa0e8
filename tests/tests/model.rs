//! Random operations on a real mount against a simple reference. Failures that were found are kept below as cases with
//! a name.

use std::io::Write;
use std::path::Path as RealPath;

use anyhow::{Context, Result, ensure};
use lab::Mounted;
use lab::model::{Allocate, Op, Path, Reference, Rename, Seen, apply, look};
use lab::mounted::{format, fsck_clean};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use tempfile::TempDir;

/// Compares a folder with the reference, telling the first difference in short.
fn compare(root: &RealPath, reference: &Reference, when: &str) -> Result<()> {
    let (real, model) = (look(root).context("walking the mount")?, reference.look());
    let names = |map: &std::collections::BTreeMap<Path, Seen>| map.keys().cloned().collect::<Vec<_>>();
    ensure!(names(&real) == names(&model), "{when}: names {:?}, expected {:?}", names(&real), names(&model));
    for (path, expected) in &model {
        let have = &real[path];
        if let (Seen::File(have, ..), Seen::File(expected, ..)) = (have, expected) {
            ensure!(
                have.len() == expected.len(),
                "{when}: {path:?} has {} bytes, expected {}",
                have.len(),
                expected.len()
            );
            if let Some(at) = (0..have.len()).find(|at| have[*at] != expected[*at]) {
                anyhow::bail!("{when}: {path:?} has {} at byte {at}, expected {}", have[at], expected[at]);
            }
        }
        ensure!(
            have == expected,
            "{when}: {path:?} differs in mode, links or attributes: {}",
            short(have, expected)
        );
    }
    Ok(())
}

fn short(have: &Seen, expected: &Seen) -> String {
    let facts = |seen: &Seen| match seen {
        Seen::File(_, mode, nlink, attributes) => format!("file {mode:o} {nlink} {:?}", attributes.keys()),
        Seen::Directory(mode, nlink, attributes) => {
            format!("directory {mode:o} {nlink} {:?}", attributes.keys())
        }
        Seen::Symlink => "symlink".to_owned(),
    };
    format!("{}, expected {}", facts(have), facts(expected))
}

struct Place {
    folder: TempDir,
    url: String,
}

impl Place {
    fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let image = folder.path().join("lun.img");
        std::fs::File::create(&image)?.set_len(256 << 20)?;
        let url = format!("file:{}", image.display());
        format(&url)?;
        Ok(Self { folder, url })
    }

    fn mount(&self) -> Result<Mounted> {
        Mounted::new(&self.url, &self.folder.path().join("mnt"))
    }
}

/// Runs each sequence in a folder of its own on one mount; then everything again after a clean remount, and after the
/// process was killed, with fsck at the end.
struct Trial {
    place: Place,
    mount: Option<Mounted>,
    done: Vec<(String, Reference)>,
    runs: u32,
}

impl Trial {
    fn new() -> Result<Self> {
        let place = Place::new()?;
        let mount = Some(place.mount()?);
        Ok(Self { place, mount, done: Vec::new(), runs: 0 })
    }

    fn root(&self) -> &RealPath {
        self.mount.as_ref().expect("mounted between steps").path()
    }

    fn run(&mut self, ops: &[Op]) -> Result<()> {
        self.runs += 1;
        let name = format!("run-{}", self.runs);
        let root = self.root().join(&name);
        std::fs::create_dir(&root)?;
        let mut reference = Reference::default();
        for (i, op) in ops.iter().enumerate() {
            let (expected, have) = (reference.apply(op), apply(&root, op));
            ensure!(have == expected, "step {i}, {op:?}: {have:?}, expected {expected:?}");
        }
        compare(&root, &reference, "after the run")?;
        self.done.push((name, reference));
        Ok(())
    }

    fn compare_all(&self, when: &str) -> Result<()> {
        self.done.iter().try_for_each(|(name, reference)| compare(&self.root().join(name), reference, when))
    }

    fn finish(mut self) -> Result<()> {
        self.mount.take().context("mounted")?.unmount()?;
        self.mount = Some(self.place.mount()?);
        self.compare_all("after a clean remount")?;
        // What is synced stays, whatever dies; syncfs does not reach a FUSE file system, fsync does.
        let mut kept = std::fs::File::create_new(self.root().join("kept"))?;
        kept.write_all(&[7; 10_000])?;
        kept.sync_all()?;
        drop(kept);
        self.mount.take().context("mounted")?.crash();
        self.mount = Some(self.place.mount()?);
        ensure!(
            std::fs::read(self.root().join("kept"))? == [7; 10_000],
            "what was synced before the crash is lost"
        );
        self.compare_all("after a crash")?;
        self.mount.take().context("mounted")?.unmount()?;
        fsck_clean(&self.place.url)
    }
}

fn path() -> impl Strategy<Value = Path> {
    prop_oneof![3 => vec(0..4_u8, 1), 4 => vec(0..4_u8, 2), 2 => vec(0..3_u8, 3)]
}

fn offset() -> impl Strategy<Value = u32> {
    prop_oneof![0..200_000_u32, (0..40_u32).prop_map(|block| block * 4096), 0..5000_u32]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![0..70_000_u32, (1..12_u32).prop_map(|blocks| blocks * 4096), 0..600_u32]
}

fn op() -> impl Strategy<Value = Op> {
    let allocate =
        prop_oneof![Just(Allocate::Grow), Just(Allocate::Keep), Just(Allocate::Punch), Just(Allocate::Zero)];
    let rename =
        prop_oneof![3 => Just(Rename::Plain), 1 => Just(Rename::NoReplace), 1 => Just(Rename::Exchange)];
    prop_oneof![
        4 => path().prop_map(Op::MakeDirectory),
        6 => path().prop_map(Op::Create),
        1 => path().prop_map(Op::Symlink),
        3 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        3 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::RemoveDirectory),
        5 => (path(), path(), rename).prop_map(|(from, to, how)| Op::Rename(from, to, how)),
        12 => (path(), offset(), len(), 1..=255_u8).prop_map(|(p, o, l, v)| Op::Write(p, o, l, v)),
        5 => (path(), offset()).prop_map(|(p, size)| Op::Truncate(p, size)),
        5 => (path(), offset(), len(), allocate).prop_map(|(p, o, l, how)| Op::Allocate(p, o, l, how)),
        5 => (path(), offset(), path(), offset(), len()).prop_map(|(a, ao, b, bo, l)| Op::Copy(a, ao, b, bo, l)),
        2 => (path(), prop_oneof![Just(0o600_u16), Just(0o644), Just(0o755), Just(0o700)]).prop_map(|(p, m)| Op::Mode(p, m)),
        2 => (path(), 0..4_u8, 0..900_u16).prop_map(|(p, n, l)| Op::SetAttribute(p, n, l)),
        1 => (path(), 0..4_u8).prop_map(|(p, n)| Op::RemoveAttribute(p, n)),
        3 => (path(), offset(), len(), 1..=255_u8).prop_map(|(p, o, l, v)| Op::Map(p, o, l, v)),
    ]
}

fn fixed() -> TestRng {
    TestRng::deterministic_rng(RngAlgorithm::ChaCha)
}

#[test]
fn random_operations_do_what_the_reference_does() -> Result<()> {
    let soak = std::env::var_os("CSV_SOAK").is_some();
    let cases = if soak { 5000 } else { 300 };
    let trial = std::cell::RefCell::new(Trial::new()?);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    // The same cases each time, but in a soak: a change is judged by itself and not by luck.
    let mut runner = if soak { TestRunner::new(config) } else { TestRunner::new_with_rng(config, fixed()) };
    runner
        .run(&vec(op(), 40..120), |ops| {
            trial.borrow_mut().run(&ops).map_err(|error| TestCaseError::fail(format!("{error:#}")))
        })
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    trial.into_inner().finish()
}

/// Runs a case that once failed.
fn named(ops: &[Op]) -> Result<()> {
    let mut trial = Trial::new()?;
    trial.run(ops)?;
    trial.finish()
}

#[test]
fn a_gap_after_an_unaligned_end_reads_as_zeros() -> Result<()> {
    named(&[
        Op::Create(vec![0]),
        Op::Write(vec![0], 0, 5000, 7),
        Op::Truncate(vec![0], 100),
        Op::Write(vec![0], 9000, 10, 8),
        Op::Truncate(vec![0], 4096),
        Op::Truncate(vec![0], 8192),
    ])
}

/// The reference itself, on a file system that is known to be right.
#[test]
fn the_reference_agrees_with_the_local_file_system() -> Result<()> {
    let folder = TempDir::new()?;
    let count = std::cell::Cell::new(0);
    let config = Config { cases: 100, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&vec(op(), 40..120), |ops| {
            count.set(count.get() + 1);
            let root = folder.path().join(count.get().to_string());
            std::fs::create_dir(&root)?;
            let mut reference = Reference::default();
            for (i, op) in ops.iter().enumerate() {
                let (expected, have) = (reference.apply(op), apply(&root, op));
                prop_assert_eq!(have, expected, "step {}, {:?}", i, op);
            }
            compare(&root, &reference, "local").map_err(|error| TestCaseError::fail(format!("{error:#}")))
        })
        .map_err(|error| anyhow::anyhow!("{error}"))
}
