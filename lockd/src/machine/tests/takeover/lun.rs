//! The LUN as an opening and a coordinator see it: claims, superblocks, and the areas of the store with their journals.

use std::collections::BTreeMap;

use super::Guards;
use crate::rules::Rule;

/// How many changes the program makes at most, one after the other.
pub(super) const CHANGES: usize = 2;

/// What a store holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Store {
    /// How often each change has been made.
    pub(super) made: [u8; CHANGES],
    /// The last change whose reply is kept in the program's slot (V4).
    pub(super) slot: u8,
    /// The last record that it holds, and of which incarnation's journal it was (V12).
    pub(super) sequence: u8,
    pub(super) epoch: u8,
}

impl Store {
    pub(super) fn make(&mut self, record: Record) {
        self.made[usize::from(record.change) - 1] += 1;
        self.sequence = record.sequence;
        if record.keeps_reply {
            self.slot = record.change;
        }
    }
}

/// A record of the redo journal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Record {
    pub(super) epoch: u8,
    pub(super) sequence: u8,
    /// Which change, from 1 on.
    pub(super) change: u8,
    pub(super) keeps_reply: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Area {
    store: Store,
    journal: [Option<Record>; CHANGES],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Superblock {
    pub(super) epoch: u8,
    pub(super) area: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Claim {
    pub(super) epoch: u8,
    /// It has the store open. Else it waits whether anybody else writes, or has closed the store.
    pub(super) writes: bool,
}

/// One request to the LUN.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Write {
    Claim {
        by: usize,
        claim: Claim,
    },
    Superblock(Superblock),
    /// The store of an area, durable as a whole; its journal is begun anew.
    Store {
        area: u8,
        store: Store,
    },
    Record {
        area: u8,
        at: u8,
        record: Record,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Lun {
    /// One block for each mount.
    pub(super) claims: [Claim; 4],
    superblocks: BTreeMap<u8, Superblock>,
    in_force: u8,
    areas: BTreeMap<u8, Area>,
}

impl Lun {
    /// A volume that `by` has, or had, open in epoch 1.
    pub(super) fn opened(by: usize, writes: bool) -> Self {
        let mut claims = [Claim::default(); 4];
        claims[by] = Claim { epoch: 1, writes };
        let store = Store { epoch: 1, ..Store::default() };
        Self {
            claims,
            superblocks: BTreeMap::from([(1, Superblock { epoch: 1, area: 1 })]),
            in_force: 1,
            areas: BTreeMap::from([(1, Area { store, ..Area::default() })]),
        }
    }

    pub(super) fn land(&mut self, guards: Guards, write: Write) {
        match write {
            Write::Claim { by, claim } => self.claims[by] = claim,
            Write::Superblock(superblock) => {
                self.superblocks.insert(superblock.epoch, superblock);
                self.in_force = if guards.newest_counts() {
                    self.in_force.max(superblock.epoch)
                } else {
                    superblock.epoch
                };
            }
            Write::Store { area, store } => self.areas.entry(area).or_default().store = store,
            Write::Record { area, at, record } => {
                if let Some(place) = self.areas.entry(area).or_default().journal.get_mut(usize::from(at)) {
                    *place = Some(record);
                }
            }
        }
    }

    /// An epoch above all that were ever seen.
    pub(super) fn next_epoch(&self) -> u8 {
        let claimed = self.claims.iter().map(|claim| claim.epoch);
        1 + claimed.chain(self.superblocks.keys().copied()).max().unwrap_or_default()
    }

    pub(super) fn superblock(&self) -> Superblock {
        self.superblocks[&self.in_force]
    }

    /// What an opening finds: the store in force and, of its journal, what follows (V12).
    pub(super) fn read(&self, guards: Guards) -> Store {
        let area = &self.areas[&self.superblock().area];
        let mut store = area.store;
        if !guards.keeps(Rule::V12) {
            return store;
        }
        let mut before = None;
        for record in area.journal.iter().flatten() {
            let follows = before.is_none_or(|before| before + 1 == record.sequence);
            if record.epoch != store.epoch || !follows {
                break;
            }
            before = Some(record.sequence);
            if record.sequence == store.sequence + 1 {
                store.make(*record);
            }
        }
        store
    }
}
