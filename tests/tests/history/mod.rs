//! What a workload did, and what may be seen of it after a crash.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};
use lab::model::{Allocate, Op, Path, Reference, Rename, Seen};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// One step of a workload.
#[derive(Clone, Debug)]
pub enum Step {
    /// An operation.
    Do(Op),
    /// fsync of a file.
    Sync(Path),
}

/// The states of the tree after each step, and of each file's contents.
#[derive(Debug, Default)]
pub struct History {
    reference: Reference,
    /// Names, kinds, modes, links, attributes after `n` steps; contents are left out.
    trees: Vec<BTreeMap<Path, Seen>>,
    inodes: Vec<BTreeMap<Path, usize>>,
    /// Per inode: after how many steps it got which contents.
    contents: BTreeMap<usize, Vec<(usize, Vec<u8>)>>,
    /// Per inode: after how many steps it was synced.
    synced: BTreeMap<usize, Vec<usize>>,
}

fn without_contents(tree: BTreeMap<Path, Seen>) -> BTreeMap<Path, Seen> {
    let strip = |seen| match seen {
        Seen::File(_, mode, nlink, attributes) => Seen::File(Vec::new(), mode, nlink, attributes),
        other => other,
    };
    tree.into_iter().map(|(path, seen)| (path, strip(seen))).collect()
}

impl History {
    /// Does a step on the reference; gives what the volume must answer.
    pub fn step(&mut self, step: &Step) -> Result<(), i32> {
        if self.trees.is_empty() {
            self.remember();
        }
        if let Step::Do(Op::Copy(from, from_offset, to, to_offset, len)) = step {
            // Whole blocks are shared, which is durable at once; the rest is copied as data.
            for whole in (0..*len / 4096 + 1).map(|blocks| blocks * 4096) {
                let mut halfway = self.reference.clone();
                let part = Op::Copy(from.clone(), *from_offset, to.clone(), *to_offset, whole.min(*len));
                if halfway.apply(&part).is_ok() {
                    self.remember_contents(&halfway);
                }
            }
        }
        let result = match step {
            Step::Do(op) => self.reference.apply(op),
            Step::Sync(path) => match self.reference.look().get(path) {
                Some(Seen::File(..)) => {
                    let inode = self.reference.inodes()[path];
                    self.synced.entry(inode).or_default().push(self.trees.len());
                    Ok(())
                }
                // Asking the reference to change nothing gives the errno of opening it.
                _ => self.reference.apply(&Op::Write(path.clone(), 0, 0, 0)),
            },
        };
        self.remember();
        result
    }

    fn remember(&mut self) {
        let reference = self.reference.clone();
        self.remember_contents(&reference);
        self.trees.push(without_contents(reference.look()));
        self.inodes.push(reference.inodes());
    }

    /// Contents that files have at some time of the step under way.
    fn remember_contents(&mut self, reference: &Reference) {
        let after = self.trees.len();
        for (inode, data) in reference.contents() {
            let versions = self.contents.entry(inode).or_default();
            if versions.last().is_none_or(|(_, last)| *last != data) {
                versions.push((after, data));
            }
        }
    }

    /// Whether `seen` may be what a crash leaves when `acknowledged` steps have been answered: the tree after those or
    /// after later steps, each file with what it had when it was last synced or with what was written since.
    pub fn judge(&self, acknowledged: usize, seen: &BTreeMap<Path, Seen>) -> Result<()> {
        let tree = without_contents(seen.clone());
        // One step at most was under way.
        let last = (acknowledged + 1).min(self.trees.len() - 1);
        let candidates: Vec<usize> = (acknowledged..=last).filter(|at| self.trees[*at] == tree).collect();
        ensure!(
            !candidates.is_empty(),
            "the tree is not that after {acknowledged} or {last} steps: {:?}, expected {:?}",
            tree,
            self.trees[acknowledged]
        );
        let mut errors = Vec::new();
        for at in candidates {
            match self.judge_contents(acknowledged, at, seen) {
                Ok(()) => return Ok(()),
                Err(error) => errors.push(error),
            }
        }
        bail!("{errors:#?}")
    }

    fn judge_contents(&self, acknowledged: usize, at: usize, seen: &BTreeMap<Path, Seen>) -> Result<()> {
        for (path, have) in seen {
            let Seen::File(have, ..) = have else { continue };
            let inode = self.inodes[at][path];
            let synced =
                self.synced.get(&inode).into_iter().flatten().filter(|step| **step <= acknowledged).max();
            let versions = &self.contents[&inode];
            let floor = synced.map_or(0, |step| {
                versions
                    .iter()
                    .rposition(|(after, _)| after <= step)
                    .expect("it had contents when it was synced")
            });
            let possible: Vec<&Vec<u8>> =
                versions[floor..].iter().filter(|(after, _)| *after <= at).map(|(_, data)| data).collect();
            // Contents of a file that is named first in the step under way.
            let possible = if possible.is_empty() { vec![&versions[0].1] } else { possible };
            let sizes: BTreeSet<usize> = possible.iter().map(|data| data.len()).collect();
            ensure!(
                sizes.contains(&have.len()),
                "{path:?} has {} bytes; it could have {sizes:?}",
                have.len()
            );
            for (offset, byte) in have.iter().enumerate() {
                // A version that was shorter had nothing here: zero, if it grew without a write.
                let fits = possible.iter().any(|data| data.get(offset).copied().unwrap_or(0) == *byte);
                ensure!(
                    fits,
                    "{path:?} has {byte} at {offset}; last synced after step {synced:?}, it could have {:?}",
                    possible.iter().map(|data| data.get(offset)).collect::<Vec<_>>()
                );
            }
        }
        Ok(())
    }
}

fn path(random: &mut SmallRng) -> Path {
    let depth = random.random_range(1..=2);
    (0..depth).map(|_| random.random_range(0..4)).collect()
}

/// A workload of every kind of change, drawn from `seed`, with values that tell each write from every other.
pub fn workload(seed: u64) -> Vec<Step> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut steps = Vec::new();
    for name in 0..2 {
        steps.push(Step::Do(Op::MakeDirectory(vec![name])));
        steps.push(Step::Do(Op::Create(vec![name, name])));
    }
    for number in 0..110_u32 {
        let random = &mut random;
        let (one, other) = (path(random), path(random));
        let offset =
            [random.random_range(0..40_000), random.random_range(0..10) * 4096][random.random_range(0..2)];
        let len =
            [random.random_range(0..20_000), random.random_range(1..5) * 4096][random.random_range(0..2)];
        let value = u8::try_from(number % 255 + 1).expect("below 256");
        let op = match random.random_range(0..30) {
            0 => Op::MakeDirectory(one),
            1..=3 => Op::Create(one),
            4 => Op::Symlink(one),
            5 => Op::Link(one, other),
            6 | 7 => Op::Unlink(one),
            8 => Op::RemoveDirectory(one),
            9 | 10 => Op::Rename(one, other, Rename::Plain),
            11 => Op::Rename(one, other, Rename::Exchange),
            12 => Op::Rename(one, other, Rename::NoReplace),
            13..=18 => Op::Write(one, offset, len, value),
            19 | 20 => Op::Truncate(one, offset),
            21 => Op::Allocate(one, offset, len, Allocate::Punch),
            22 => Op::Allocate(one, offset, len, Allocate::Grow),
            23 => Op::Allocate(one, offset, len, Allocate::Zero),
            24 | 25 => Op::Copy(one, offset / 4096 * 4096, other, len / 4096 * 4096, len),
            26 => Op::Mode(one, 0o600 + u16::from(value % 8)),
            27 => Op::SetAttribute(one, value % 4, u16::from(value) * 9),
            _ => {
                steps.push(Step::Sync(one));
                continue;
            }
        };
        steps.push(Step::Do(op));
    }
    steps
}
