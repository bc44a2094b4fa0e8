//! Reads the whole store once, gently, when it was opened without a check of all its checksums: each page that comes
//! from the LUN is compared with its checksum, so damage is found before it is needed.

use std::time::{Duration, Instant};

use super::core::Core;
use crate::store::{Result, Snapshot};

/// Rows that are read in one go.
const STEP: u64 = 4000;
/// The pause after them: about 40,000 rows, 4 MB, a second.
const PAUSE: Duration = Duration::from_millis(100);

/// How far it has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scrub {
    /// The whole store was checked when it was opened.
    #[default]
    NotNeeded,
    /// So many rows were read, of about so many.
    Running {
        /// Read.
        done: u64,
        /// About as many as there are.
        about: u64,
    },
    /// All were read, and are right.
    Whole {
        /// Read.
        rows: u64,
    },
    /// It met a damaged page.
    Damaged,
}

impl std::fmt::Display for Scrub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotNeeded => f.write_str("checked whole when it was opened"),
            Self::Running { done, about } => write!(f, "being checked: {done} rows of about {about}"),
            Self::Whole { rows } => write!(f, "checked whole since it was opened ({rows} rows)"),
            Self::Damaged => f.write_str("DAMAGED: unmount the volume and run csvfs fsck"),
        }
    }
}

/// Reads everything, unless the coordinator stops before.
pub fn serve(core: &Core) {
    let mut reading = Reading { core, done: 0 };
    match reading.all() {
        Ok(true) => *core.scrub.lock() = Scrub::Whole { rows: reading.done },
        Ok(false) => {}
        Err(error) => {
            *core.scrub.lock() = Scrub::Damaged;
            core.store_failed(&error);
        }
    }
}

struct Reading<'a> {
    core: &'a Core,
    done: u64,
}

/// Reads a table whose keys are numbers, part by part; each part from the state of its time.
macro_rules! read {
    ($self:ident, $table:ident, $first:expr, $next:expr) => {{
        let mut from = Some($first);
        while let Some(start) = from.take() {
            let snapshot = $self.core.snapshot()?;
            let mut rows = 0;
            for row in snapshot.$table.range(start..)? {
                let (key, _) = row?;
                rows += 1;
                if rows == STEP {
                    from = $next(key.value());
                    break;
                }
            }
            if !$self.rest(&snapshot, rows) {
                return Ok(false);
            }
        }
    }};
}

impl Reading<'_> {
    fn all(&mut self) -> Result<bool> {
        let small = |key: u64| key.checked_add(1);
        let large = |key: u128| key.checked_add(1);
        read!(self, inodes, 0, small);
        read!(self, entries, 0, large);
        read!(self, extents, 0, large);
        read!(self, free, 0, small);
        read!(self, shared, 0, small);
        read!(self, orphans, 0, small);
        read!(self, reserves, 0, large);
        read!(self, pending, 0, small);
        read!(self, quarantine, 0, small);
        read!(self, slots, 0, large);
        read!(self, clients, 0, small);
        read!(self, chunks, 0, small);
        let mut from = Some(Vec::new());
        while let Some(start) = from.take() {
            let snapshot = self.core.snapshot()?;
            let mut rows = 0;
            for row in snapshot.xattrs.range(start.as_slice()..)? {
                let (key, _) = row?;
                rows += 1;
                if rows == STEP {
                    from = Some([key.value(), &[0]].concat());
                    break;
                }
            }
            if !self.rest(&snapshot, rows) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Notes what was read and pauses; says whether to go on.
    fn rest(&mut self, snapshot: &Snapshot, rows: u64) -> bool {
        self.done += rows;
        // An inode has a name and often one extent.
        let about = snapshot.counters.inodes.get().saturating_mul(3).max(self.done);
        *self.core.scrub.lock() = Scrub::Running { done: self.done, about };
        let until = Instant::now() + PAUSE.mul_f64(share(rows));
        let mut call = self.core.call.lock();
        while !call.stop && Instant::now() < until {
            self.core.called.wait_until(&mut call, until);
        }
        !call.stop
    }
}

/// Which part of a step so many rows are.
fn share(rows: u64) -> f64 {
    f64::from(u32::try_from(rows).unwrap_or(0)) / f64::from(u32::try_from(STEP).unwrap_or(1))
}
