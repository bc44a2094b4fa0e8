//! Every block of the data region is used once, or as often as is counted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use redb::ReadableTable;

use super::facts::Facts;
use super::finding::{BlockFault, Count, ExtentFault, Finding, Place};
use super::{Findings, Progress};
use crate::store::record::{Counters, ExtentRecord, HeldRecord, SharedRecord};
use crate::store::{Result, Snapshot, high, low};
use crate::types::{BLOCK, FILE_SIZE_MAX, FileBlock, Ino, Kind, LunBlock, Run};

/// What uses a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum User {
    /// The region itself: everything must be within.
    Region,
    /// A place other than files.
    Place(Place),
    /// The table of shared runs, with the number of references.
    Shared(u64),
    /// An extent of a file; `true`: marked as shared.
    File(u64, bool),
}

/// One use of a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Use {
    /// The first block.
    pub start: u64,
    /// The block after the last.
    pub end: u64,
    /// By what.
    pub user: User,
}

/// All uses of blocks, and the sums per place.
#[derive(Debug, Default)]
pub struct Uses {
    /// Every use.
    pub all: Vec<Use>,
    sums: [u64; 5],
}

const PLACES: [Place; 5] = [Place::Free, Place::Reserve, Place::Pending, Place::Quarantine, Place::Metadata];

impl Uses {
    fn add(&mut self, start: u64, len: u64, user: User) {
        if let User::Place(place) = user {
            let sum = &mut self.sums[place as usize];
            *sum = sum.saturating_add(len);
        }
        if len > 0 {
            self.all.push(Use { start, end: start.saturating_add(len), user });
        }
    }

    /// Reads every table of blocks.
    pub fn gather(
        snapshot: &Snapshot,
        region: &[Run],
        facts: &mut Facts,
        findings: &mut Findings,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let mut uses = Self::default();
        for run in region {
            uses.add(run.start.0, run.len, User::Region);
        }
        uses.gather_extents(snapshot, facts, findings, progress)?;
        for row in snapshot.free.iter()? {
            let (start, len) = row?;
            uses.add(start.value(), len.value(), User::Place(Place::Free));
        }
        for row in snapshot.reserves.iter()? {
            let (key, len) = row?;
            uses.add(low(key.value()), len.value(), User::Place(Place::Reserve));
        }
        for (table, place) in [(&snapshot.pending, Place::Pending), (&snapshot.quarantine, Place::Quarantine)]
        {
            for row in table.iter()? {
                let (start, record) = row?;
                let record: HeldRecord = record.value();
                uses.add(start.value(), record.len.get(), User::Place(place));
            }
        }
        for row in snapshot.chunks.iter()? {
            let (start, len) = row?;
            uses.add(start.value(), len.value(), User::Place(Place::Metadata));
        }
        for row in snapshot.shared.iter()? {
            let (start, record) = row?;
            let record: SharedRecord = record.value();
            uses.add(start.value(), record.len.get(), User::Shared(record.count.get()));
        }
        Ok(uses)
    }

    fn gather_extents(
        &mut self,
        snapshot: &Snapshot,
        facts: &mut Facts,
        findings: &mut Findings,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let mut done = 0;
        let (mut owner, mut is_file, mut end, mut mapped) = (0, false, 0, 0);
        let note = |facts: &mut Facts, owner: u64, mapped: u64| {
            if let Some(fact) = facts.inode(owner) {
                fact.mapped = mapped;
            }
        };
        for row in snapshot.extents.iter()? {
            let (key, record) = row?;
            let (ino, file) = (high(key.value()), low(key.value()));
            let record: ExtentRecord = record.value();
            let extent = record.at(FileBlock(file));
            done += 1;
            progress.step("extents", done, 0);
            if ino != owner {
                note(facts, owner, mapped);
                is_file = facts.inode(ino).is_some_and(|fact| fact.kind == Kind::File);
                (owner, end, mapped) = (ino, 0, 0);
            }
            let fault = if !is_file {
                Some(ExtentFault::NoFile)
            } else if extent.len == 0
                || file.checked_add(extent.len).is_none_or(|end| end > FILE_SIZE_MAX / BLOCK)
                || extent.lun.0.checked_add(extent.len).is_none()
            {
                Some(ExtentFault::BadLength)
            } else if file < end {
                Some(ExtentFault::Overlap)
            } else {
                None
            };
            if let Some(fault) = fault {
                let run = Run { start: extent.lun, len: extent.len };
                findings.push(Finding::Extent { ino: Ino(ino), file: FileBlock(file), run, fault });
                continue;
            }
            end = file + extent.len;
            mapped += extent.len;
            self.add(extent.lun.0, extent.len, User::File(ino, extent.shared));
        }
        note(facts, owner, mapped);
        for fact in facts.inodes.iter().filter(|fact| fact.mapped != fact.blocks) {
            findings.push(Finding::Blocks { ino: Ino(fact.ino), says: fact.blocks, found: fact.mapped });
        }
        Ok(())
    }

    /// Compares the sums with the volume's numbers.
    pub fn check_sums(&self, counters: &Counters, region: &[Run], findings: &mut Findings) {
        let says =
            [counters.free, counters.reserved, counters.pending, counters.quarantined, counters.metadata];
        for (place, (says, found)) in PLACES.into_iter().zip(says.into_iter().zip(self.sums)) {
            super::number(findings, Count::Blocks(place), says.get(), found);
        }
        let total: u64 = region.iter().map(|run| run.len).sum();
        super::number(findings, Count::Total, counters.total.get(), total);
    }
}

/// What has the blocks at the sweep's place.
#[derive(Debug, Default)]
struct Here {
    region: u32,
    places: [u32; 5],
    extents: u64,
    unmarked: u64,
    shared: u32,
    count: u64,
    /// One of the files that have them, for the message; `last_unmarked` is one that is not marked.
    file: u64,
    last_unmarked: u64,
}

impl Here {
    fn enter(&mut self, user: User) {
        match user {
            User::Region => self.region += 1,
            User::Place(place) => self.places[place as usize] += 1,
            User::Shared(count) => {
                self.shared += 1;
                self.count = count;
            }
            User::File(ino, marked) => {
                self.extents += 1;
                self.file = ino;
                if !marked {
                    self.unmarked += 1;
                    self.last_unmarked = ino;
                }
            }
        }
    }

    fn leave(&mut self, user: User) {
        match user {
            User::Region => self.region -= 1,
            User::Place(place) => self.places[place as usize] -= 1,
            User::Shared(_) => self.shared -= 1,
            User::File(_, marked) => {
                self.extents -= 1;
                self.unmarked -= u64::from(!marked);
            }
        }
    }

    /// What is wrong here, if anything is.
    fn fault(&self) -> Option<BlockFault> {
        let mut places = PLACES.into_iter().filter(|place| self.places[*place as usize] > 0);
        let (first, second) = (places.next(), places.next());
        let again = first.filter(|place| self.places[*place as usize] > 1);
        if let (Some(first), 0) = (first, self.region) {
            return Some(BlockFault::Outside(first));
        }
        match (first, second.or(again)) {
            (Some(one), Some(other)) => return Some(BlockFault::Twice(one, other)),
            (Some(place), None) if self.extents > 0 => {
                return Some(BlockFault::UsedAnd(place, Ino(self.file)));
            }
            _ => {}
        }
        let counted = if self.shared > 0 { self.count } else { u64::from(self.extents > 0) };
        if counted != self.extents || self.shared > 1 || (self.shared > 0 && counted < 2) {
            return Some(BlockFault::References { found: self.extents, counted });
        }
        (first.is_none() && self.extents == 0 && self.region > 0).then_some(BlockFault::Lost)
    }
}

/// Sweeps over all blocks in order.
pub fn sweep(mut uses: Uses, findings: &mut Findings) {
    uses.all.sort_unstable();
    let mut here = Here::default();
    let mut ends: BinaryHeap<Reverse<(u64, User)>> = BinaryHeap::new();
    let mut coming = uses.all.iter().peekable();
    let mut at = 0;
    let mut open: Option<Finding> = None;
    loop {
        while let Some(Reverse((end, user))) = ends.peek().copied().filter(|Reverse((end, _))| *end <= at) {
            let _ = end;
            ends.pop();
            here.leave(user);
        }
        while let Some(next) = coming.next_if(|next| next.start <= at) {
            here.enter(next.user);
            ends.push(Reverse((next.end, next.user)));
        }
        let next = match (coming.peek(), ends.peek()) {
            (Some(coming), Some(Reverse((end, _)))) => coming.start.min(*end),
            (Some(coming), None) => coming.start,
            (None, Some(Reverse((end, _)))) => *end,
            (None, None) => break,
        };
        let run = Run { start: LunBlock(at), len: next - at };
        if run.len > 0 {
            for found in faults(&here, run) {
                // Neighbours with the same fault are one finding.
                match (&mut open, found) {
                    (Some(Finding::Space { run: last, fault: known }), Finding::Space { run, fault })
                        if *known == fault && last.end() == run.start =>
                    {
                        last.len += run.len
                    }
                    (_, found) => {
                        if let Some(earlier) = open.replace(found) {
                            findings.push(earlier);
                        }
                    }
                }
            }
        }
        at = next;
    }
    if let Some(last) = open {
        findings.push(last);
    }
}

fn faults(here: &Here, run: Run) -> Vec<Finding> {
    let mut found = Vec::new();
    let extent = |ino: u64, fault| Finding::Extent { ino: Ino(ino), file: FileBlock(0), run, fault };
    if here.extents > 0 && here.region == 0 {
        return vec![extent(here.file, ExtentFault::Outside)];
    }
    if here.extents > 0 && here.places[Place::Metadata as usize] > 0 {
        return vec![extent(here.file, ExtentFault::OnMetadata)];
    }
    if let Some(fault) = here.fault() {
        found.push(Finding::Space { run, fault });
    }
    if here.extents > 1 && here.unmarked > 0 {
        found.push(extent(here.last_unmarked, ExtentFault::Unmarked));
    }
    found
}
