//! Is the store what the format promises, and what can be done if not.
//!
//! [`check`] reads every table once, in order, and keeps a few bytes per inode and per extent: a million files take
//! seconds and some hundred megabytes. What it finds is data ([`Finding`]), which explains itself in words. [`repair()`]
//! mends what findings tell, loses no file that can be kept, and checks again until nothing more can be mended.

mod beside;
mod blocks;
mod facts;
mod finding;
mod names;
mod repair;

#[cfg(test)]
mod tests;

use std::fmt;

use redb::Database;

pub use finding::{BlockFault, Count, EntryFault, ExtentFault, Finding, Place};
pub use repair::{Repair, repair};

use super::cookie::HashKey;
use super::{Result, Snapshot};
use crate::types::Run;

/// Findings that are kept; further ones are counted.
pub const FINDINGS_MAX: usize = 100_000;

/// What a check has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// What is wrong, the first [`FINDINGS_MAX`].
    pub list: Vec<Finding>,
    /// How many more there are.
    pub more: u64,
}

impl Findings {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.list.is_empty()
    }

    fn push(&mut self, finding: Finding) {
        if self.list.len() < FINDINGS_MAX {
            self.list.push(finding);
        } else {
            self.more += 1;
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.list {
            writeln!(f, "{finding}")?;
        }
        if self.more > 0 {
            writeln!(f, "and {} more", self.more)?;
        }
        Ok(())
    }
}

/// Is told what is being read, how much of it was, and of how many (0: unknown).
pub type OnProgress<'a> = &'a mut dyn FnMut(&'static str, u64, u64);

/// How many rows lie between two calls of [`OnProgress`].
const PROGRESS_STEP: u64 = 65_536;

/// Tells how far the reading is, now and then.
struct Progress<'a>(OnProgress<'a>);

impl Progress<'_> {
    fn step(&mut self, what: &'static str, done: u64, of: u64) {
        if done.is_multiple_of(PROGRESS_STEP) {
            (self.0)(what, done, of);
        }
    }
}

fn number(findings: &mut Findings, count: Count, says: u64, found: u64) {
    if says != found {
        findings.push(Finding::Number { count, says, found });
    }
}

/// Checks the last committed state. `key` is that of the volume's names, `region` all blocks for data: those that the
/// volume was made with.
///
/// # Errors
/// If the database itself cannot be read.
pub fn check(
    database: &Database,
    key: &HashKey,
    region: &[Run],
    on_progress: OnProgress<'_>,
) -> Result<Findings> {
    let snapshot = Snapshot::take(database)?;
    let mut findings = Findings::default();
    let mut progress = Progress(on_progress);
    let mut facts = facts::Facts::gather(&snapshot, &mut findings, &mut progress)?;
    names::check_entries(&snapshot, key, &mut facts, &mut findings, &mut progress)?;
    names::check_links(&mut facts, &mut findings);
    beside::check_xattrs(&snapshot, &mut facts, &mut findings)?;
    beside::check_clients(&snapshot, &mut findings)?;
    beside::check_numbers(&snapshot, &facts, &mut findings);
    let uses = blocks::Uses::gather(&snapshot, region, &mut facts, &mut findings, &mut progress)?;
    drop(facts);
    uses.check_sums(&snapshot.counters, region, &mut findings);
    blocks::sweep(uses, &mut findings);
    Ok(findings)
}
