//! Whether a block's history is that of one register.
//!
//! Every write has a value of its own, which makes this easy (Gibbons and Korach, "Testing Shared Memories", 1997, section
//! 5): the write of a value and the reads that gave it form a *cluster*, which must take effect in one piece. With `f` the
//! first end and `s` the last beginning in a cluster, a cluster with `f < s` occupies the time from `f` to `s` (a *forward
//! zone*: the register held its value all that time), any other can take effect at one moment between `s` and `f` (a
//! *backward zone*). The history is that of a register if and only if
//!
//! 1. no read ends before the write of its value begins,
//! 2. no two forward zones overlap, and
//! 3. no backward zone lies within a forward zone.
//!
//! A write of unknown outcome that nobody has read is left out; one that was read ends never.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::operation::{Block, History, Kind, Operation, Tick, Value};

/// Why a block was not one register.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// A read gave what no write writes.
    #[error("block {}: a read gave a mixture of values, or something foreign: {read:?}", block.0)]
    Torn {
        /// The block.
        block: Block,
        /// The read.
        read: Operation,
    },
    /// A read gave a value that was never written to this block.
    #[error("block {}: nobody wrote the value of {read:?} to it", block.0)]
    NobodyWrote {
        /// The block.
        block: Block,
        /// The read.
        read: Operation,
    },
    /// A read gave a value before its write began.
    #[error("block {}: {read:?} had ended before {write:?} began", block.0)]
    FromTheFuture {
        /// The block.
        block: Block,
        /// The read.
        read: Operation,
        /// The write.
        write: Operation,
    },
    /// The block must have held two values at the same time.
    #[error(
        "block {}: it must have held {one:?} from {:?} to {:?}, and {other:?} from {:?} to {:?} or at one moment between",
        block.0, one_held.0, one_held.1, other_held.0, other_held.1
    )]
    TwoValues {
        /// The block.
        block: Block,
        /// A value, and from when to when the block held it.
        one: Value,
        /// From when to when.
        one_held: (Tick, Tick),
        /// Another value.
        other: Value,
        /// From when to when the block held that, or between when it must have taken effect.
        other_held: (Tick, Tick),
    },
    /// The history itself is wrong: two writes have the same value.
    #[error("block {}: the value {value:?} was written twice; such a history cannot be checked", block.0)]
    SameValue {
        /// The block.
        block: Block,
        /// The value.
        value: Value,
    },
}

/// A write and the reads of its value.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    value: Value,
    write: Operation,
    was_read: bool,
    first_end: Tick,
    last_beginning: Tick,
}

impl Cluster {
    fn new(value: Value, write: Operation) -> Self {
        Self { value, write, was_read: false, first_end: write.ended, last_beginning: write.began }
    }

    fn is_forward(&self) -> bool {
        self.first_end < self.last_beginning
    }

    fn zone(&self) -> (Tick, Tick) {
        (self.first_end.min(self.last_beginning), self.first_end.max(self.last_beginning))
    }
}

fn clusters(block: Block, operations: &[Operation]) -> Result<Vec<Cluster>, Violation> {
    let before =
        Operation { node: 0, kind: Kind::Write(Value::INITIAL), began: Tick::START, ended: Tick::START };
    let mut found = BTreeMap::from([(Value::INITIAL, Cluster::new(Value::INITIAL, before))]);
    for write in operations {
        let Kind::Write(value) = write.kind else { continue };
        match found.entry(value) {
            Entry::Vacant(free) => free.insert(Cluster::new(value, *write)),
            Entry::Occupied(_) => return Err(Violation::SameValue { block, value }),
        };
    }
    for read in operations {
        let value = match read.kind {
            Kind::Write(_) => continue,
            Kind::ReadTorn => return Err(Violation::Torn { block, read: *read }),
            Kind::Read(value) => value,
        };
        let Some(cluster) = found.get_mut(&value) else {
            return Err(Violation::NobodyWrote { block, read: *read });
        };
        if read.ended < cluster.write.began {
            return Err(Violation::FromTheFuture { block, read: *read, write: cluster.write });
        }
        cluster.was_read = true;
        cluster.first_end = cluster.first_end.min(read.ended);
        cluster.last_beginning = cluster.last_beginning.max(read.began);
    }
    let counts = |cluster: &Cluster| cluster.was_read || cluster.write.ended != Tick::NEVER;
    Ok(found.into_values().filter(counts).collect())
}

/// Whether `operations` on `block` are those of one register.
///
/// # Errors
/// The first contradiction that is found.
pub fn check_block(block: Block, operations: &[Operation]) -> Result<(), Violation> {
    let mut clusters = clusters(block, operations)?;
    clusters.sort_by_key(Cluster::zone);
    let clash = |one: &Cluster, other: &Cluster| Violation::TwoValues {
        block,
        one: one.value,
        one_held: one.zone(),
        other: other.value,
        other_held: other.zone(),
    };
    // Of the forward zones that have begun, which do not overlap, the last ends last.
    let mut last: Option<Cluster> = None;
    for cluster in &clusters {
        let (begin, end) = cluster.zone();
        if let Some(before) = &last {
            let (_, held_until) = before.zone();
            if (cluster.is_forward() && begin < held_until) || (!cluster.is_forward() && end < held_until) {
                return Err(clash(before, cluster));
            }
        }
        if cluster.is_forward() {
            last = Some(*cluster);
        }
    }
    Ok(())
}

/// Whether every block of `history` behaved like one register.
///
/// # Errors
/// One contradiction for each block that did not.
pub fn check(history: &History) -> Result<(), Vec<Violation>> {
    let found: Vec<Violation> = history
        .blocks
        .iter()
        .filter_map(|(block, operations)| check_block(*block, operations).err())
        .collect();
    if found.is_empty() { Ok(()) } else { Err(found) }
}
