//! The named rules of the design, each a switch.
//!
//! Production code asks [`Rules::keeps`] where it keeps a rule. A test may switch a rule off and must then fail: a rule
//! whose test passes without it is not tested. `make mutants` does this for every rule.

use std::fmt;
use std::str::FromStr;

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A named rule of `docs/DESIGN.md`.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Rule { $($(#[$doc])* $name,)* }

        impl Rule {
            /// Every rule that production code has a switch for.
            pub const ALL: &'static [Rule] = &[$(Rule::$name,)*];

            /// The rule's name as the design writes it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Rule::$name => stringify!($name),)* }
            }
        }
    };
}

rules! {
    /// A session is ended no earlier than a full lease after it was last heard, after an election, after a clock gap.
    L1,
    /// A session that has ended never comes back.
    L2,
    /// No write starts and no read is answered past the lease's deadline.
    L3,
    /// A keep-alive is answered only after a quorum has confirmed, since it came, that the leader still leads.
    L4,
    /// A repeated command gets its slot's reply and is not executed again.
    L5,
    /// A set of resources is transferred whole or not at all, by its live source, in the expected epochs.
    L6,
    /// Of a transfer and its abort, whichever is applied first wins.
    L7,
    /// Locks in escrow are adopted by who shows the cookie, and an unlock names the grant that it ends.
    L8,
    /// What an ended session held is free when the session is fenced.
    L9,
    /// What a dead client held is free when its requests are drained.
    L10,
    /// A lockd that is started again resumes its session, and its clients register again.
    L11,
    /// A holding is broken only when an operator confirms its node, and that is logged for good.
    L12,
    /// A fence is complete when a method succeeded and every live session of the volume reported.
    F1,
    /// A new session on a host registers with the target only when the old client processes are dead and drained.
    F2,
    /// What a lost path had, or a late one has, goes by another path that answers.
    P1,
    /// No path error reaches the caller: I/O is held until the path is back or the hold time is over.
    P2,
    /// A reconnected path is used only when its size and volume id are the same.
    P3,
    /// A new write that overlaps a ghost waits until the ghost is dead.
    P4,
    /// Sockets to a LUN drop what they could not send.
    P5,
    /// Blocks under a ghost are not reused.
    P6,
    /// Drained means: no request in flight, and no ghost.
    P7,
    /// More than one connection is used only on a target whose flush covers all of its connections.
    P8,
    /// A flush that spans a restart of the target replays what was not flushed, or fails.
    P9,
    /// A host executes a peer's request on its own direct path only, in time, and for who may.
    R1,
    /// Who opens a volume without proof claims, waits and looks; a writer beats and re-reads the claims after a gap.
    V1,
    /// A store that stale writes may still reach is copied to a fresh area before it is opened.
    V2,
    /// Operations are committed in groups, each checked before it changes anything, its epochs inside the transaction.
    V3,
    /// Reply slots are kept in the transaction of their operation.
    V4,
    /// Data is flushed before the metadata that makes it readable is committed.
    V5,
    /// Reserves are durable before they are used, and end with their client in one transaction.
    V6,
    /// Freed blocks are reused only when nobody reads or trims them any more.
    V7,
    /// An owned file is stopped and drained before it is truncated, punched or cloned.
    V8,
    /// What a node caches under a lease is invalidated before a conflicting change is acknowledged.
    V9,
    /// Orphans are reclaimed after a takeover only when the nodes have declared their open handles.
    V10,
    /// Shared blocks are copied on write; fresh partial blocks are zero-filled; partial writes lock their block.
    V11,
    /// An opening applies the changes that are in the redo journal only.
    V12,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A rule name that the design does not have.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no rule is named {0:?}; docs/DESIGN.md lists the rules")]
pub struct UnknownRule(String);

impl FromStr for Rule {
    type Err = UnknownRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|rule| rule.name() == text).ok_or_else(|| UnknownRule(text.to_owned()))
    }
}

/// Which rules are kept. All of them, but in tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    off: u64,
}

impl Rules {
    /// Every rule is kept: the only value that production uses.
    #[must_use]
    pub const fn all() -> Self {
        Self { off: 0 }
    }

    /// For tests: all rules but `rule`.
    #[must_use]
    pub const fn without(self, rule: Rule) -> Self {
        Self { off: self.off | 1 << rule as u64 }
    }

    /// For tests: the rules without those that the environment variable `CSV_MUTANT` names, separated by commas. The
    /// programs read it too, so that a mutant reaches the processes that a test starts, and say so loudly.
    ///
    /// # Panics
    /// If the variable names a rule that does not exist.
    #[must_use]
    pub fn from_test_environment() -> Self {
        let Ok(names) = std::env::var("CSV_MUTANT") else { return Self::all() };
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.fold(Self::all(), |rules, name| match name.parse() {
            Ok(rule) => rules.without(rule),
            Err(error) => panic!("CSV_MUTANT: {error}"),
        })
    }

    /// Whether `rule` is kept.
    #[must_use]
    #[inline]
    pub const fn keeps(self, rule: Rule) -> bool {
        self.off & (1 << rule as u64) == 0
    }

    /// The rules that are switched off.
    pub fn switched_off(self) -> impl Iterator<Item = Rule> {
        Rule::ALL.iter().copied().filter(move |rule| !self.keeps(*rule))
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::all()
    }
}
