//! What one thread did to one block, and when.

use std::collections::BTreeMap;

/// The number of a block in its file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Block(pub u64);

/// What a write puts into a block; every write has its own. Zero is what a block holds before the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Value(pub u64);

impl Value {
    /// What a block holds before the first write.
    pub const INITIAL: Self = Self(0);
}

/// A moment. All moments of a history differ, and they are in the order in which they happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tick(pub u64);

impl Tick {
    /// Before every operation.
    pub const START: Self = Self(0);
    /// After every operation: the end of one that nobody knows the end of.
    pub const NEVER: Self = Self(u64::MAX);
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A write of this value. One that failed may have taken effect, or may do so any time later.
    Write(Value),
    /// A read that gave this value.
    Read(Value),
    /// A read that gave what no write ever writes: a mixture of several, or something foreign.
    ReadTorn,
}

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Who did it: the number of the node.
    pub node: usize,
    /// What.
    pub kind: Kind,
    /// When it began.
    pub began: Tick,
    /// When it had succeeded; [`Tick::NEVER`] for a write of unknown outcome.
    pub ended: Tick,
}

/// What was done, by block. Reads that failed are left out: they say nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct History {
    /// The operations on each block.
    pub blocks: BTreeMap<Block, Vec<Operation>>,
}

impl History {
    /// How many operations it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.values().map(Vec::len).sum()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// How many writes have an unknown outcome.
    #[must_use]
    pub fn unknown(&self) -> usize {
        let all = self.blocks.values().flatten();
        all.filter(|operation| operation.ended == Tick::NEVER).count()
    }
}
