//! What must be read (invariants 6, 7 and 8).
//!
//! Each place of a file is written by the users of one node only, so what it has held is a list: a read must find
//! something that is not older than what was there for certain when the read began. A write that was acknowledged and not
//! synced may be lost with the node that served the file, and then it is not there for certain any more; whoever wrote it
//! is told by the next sync (P9). What a dead node had sent may still land until its session is fenced: a write at any one
//! of its places, a truncation everywhere at once. Whether it has landed is known when somebody has seen it.

use std::collections::BTreeMap;

use lockd::ids::SessionId;

use super::words::{Word, words_of};
use crate::types::Ino;

/// Blocks in which every node has its places.
pub const SHARED_BLOCKS: u64 = 3;
/// Bytes between two places of a shared block.
const STRIDE: u64 = 512;
/// Places of a shared block.
const PLACES: u64 = 4096 / STRIDE;

/// A place of a file that one node writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// A word in a block that others write, too.
    Shared {
        /// Which block.
        block: u64,
        /// Whose word.
        node: usize,
    },
    /// A whole block of a node.
    Own {
        /// Whose.
        node: usize,
    },
}

impl Place {
    /// Where it is.
    pub fn offset(self) -> u64 {
        match self {
            Self::Shared { block, node } => block * 4096 + node as u64 * STRIDE + 8 * block,
            Self::Own { node } => (SHARED_BLOCKS + node as u64) * 4096,
        }
    }

    /// How long it is.
    pub fn len(self) -> u64 {
        match self {
            Self::Shared { .. } => 8,
            Self::Own { .. } => 4096,
        }
    }

    /// Who writes there.
    pub fn node(self) -> usize {
        match self {
            Self::Shared { node, .. } | Self::Own { node } => node,
        }
    }

    fn number(self) -> u16 {
        let number = match self {
            Self::Shared { block, node } => block * PLACES + node as u64,
            Self::Own { node } => 1000 + node as u64,
        };
        u16::try_from(number).expect("a few places")
    }
}

/// What one place has held.
#[derive(Clone, Debug)]
struct Spot {
    /// In the order of the writes; the first is what was there at the beginning.
    history: Vec<u64>,
    /// What is not older than this is there for certain.
    floor: usize,
    /// What survives every crash.
    synced: usize,
    /// What its writer was told is done.
    acked: usize,
    /// What dead sessions may still write.
    lingering: Vec<(SessionId, u64)>,
}

impl Default for Spot {
    fn default() -> Self {
        Self { history: vec![0], floor: 0, synced: 0, acked: 0, lingering: Vec::new() }
    }
}

/// A write that was begun.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Where.
    pub place: Place,
    /// What.
    pub word: Word,
    index: usize,
}

/// What was certain when a read or a sync began.
#[derive(Clone, Debug)]
pub struct Certain {
    /// Floor and acknowledged, of each place.
    spots: BTreeMap<Place, (usize, usize)>,
    /// Nothing that nobody was told the end of could still happen.
    is_quiet: bool,
}

/// A truncation that was sent and of which nobody was told whether it was done. Nothing is written after it.
#[derive(Clone, Copy, Debug)]
struct OpenCut {
    from: u64,
    session: SessionId,
    /// Its session is fenced: it was done, or it never will be.
    is_over: bool,
}

/// One file.
#[derive(Debug)]
pub struct FileModel {
    /// Its number, in each of its words.
    pub file: u16,
    spots: BTreeMap<Place, Spot>,
    versions: u32,
    open_cut: Option<OpenCut>,
}

impl FileModel {
    /// An empty file, used by so many nodes.
    pub fn new(file: u16, nodes: usize) -> Self {
        let mut spots = BTreeMap::new();
        for node in 0..nodes {
            for block in 0..SHARED_BLOCKS {
                spots.insert(Place::Shared { block, node }, Spot::default());
            }
            spots.insert(Place::Own { node }, Spot::default());
        }
        Self { file, spots, versions: 0, open_cut: None }
    }

    /// A write begins.
    pub fn begin(&mut self, place: Place) -> Written {
        self.versions += 1;
        let word = Word::new(self.file, place.number(), self.versions);
        let spot = self.spots.get_mut(&place).expect("a place of this file");
        spot.history.push(word.0);
        Written { place, word, index: spot.history.len() - 1 }
    }

    /// It was acknowledged.
    pub fn acknowledged(&mut self, written: Written) {
        let spot = self.spots.get_mut(&written.place).expect("a place of this file");
        spot.floor = spot.floor.max(written.index);
        spot.acked = spot.acked.max(written.index);
    }

    /// Its process died before that.
    pub fn lingers(&mut self, written: Written, session: SessionId) {
        let spot = self.spots.get_mut(&written.place).expect("a place of this file");
        spot.lingering.push((session, written.word.0));
    }

    /// Everything from a byte on becomes zero, and is so before anything else happens to the file.
    pub fn cut(&mut self, from: u64) {
        for (place, spot) in &mut self.spots {
            if place.offset() >= from {
                spot.history.push(0);
                spot.floor = spot.history.len() - 1;
                spot.acked = spot.floor;
                spot.synced = spot.floor;
            }
        }
    }

    /// Such a truncation was sent, and nobody was told whether it was done.
    pub fn may_be_cut(&mut self, from: u64, session: SessionId) {
        self.open_cut = Some(OpenCut { from, session, is_over: false });
    }

    /// What is certain now.
    pub fn certain(&self) -> Certain {
        let spots = self.spots.iter().map(|(place, spot)| (*place, (spot.floor, spot.acked))).collect();
        Certain { spots, is_quiet: self.open_cut.is_none_or(|cut| cut.is_over) }
    }

    /// A sync of `node` has succeeded, that began when this was certain.
    pub fn synced(&mut self, node: usize, began: &Certain) {
        for (place, spot) in &mut self.spots {
            let (floor, acked) = began.spots[place];
            // Of what others wrote and lost they are told by their own syncs.
            let told = if place.node() == node { acked } else { 0 };
            spot.synced = spot.synced.max(told).max(floor.min(spot.floor));
            spot.floor = spot.floor.max(spot.synced);
        }
    }

    /// A sync of `node` has failed, or its handle is closed: it counts on nothing that may be lost.
    pub fn unsynced(&mut self, node: usize) {
        for spot in self.spots.iter_mut().filter(|(place, _)| place.node() == node).map(|(_, spot)| spot) {
            spot.acked = spot.synced;
        }
    }

    /// A node may have been lost that served the file.
    pub fn lost(&mut self) {
        for spot in self.spots.values_mut() {
            spot.floor = spot.synced;
        }
    }

    /// Nothing of `session` reaches the LUN any more.
    pub fn fenced(&mut self, session: SessionId) {
        for spot in self.spots.values_mut() {
            let (over, rest): (Vec<_>, Vec<_>) = spot.lingering.iter().partition(|(of, _)| *of == session);
            spot.lingering = rest;
            // It may have landed before.
            spot.history.extend(over.into_iter().map(|(_, word): (SessionId, u64)| word));
        }
        if let Some(cut) = self.open_cut.as_mut().filter(|cut| cut.session == session) {
            cut.is_over = true;
        }
    }

    /// Everything was read, in a read that began when this was certain.
    ///
    /// # Errors
    /// What may not be there.
    pub fn check(&mut self, data: &[u8], began: &Certain) -> Result<(), String> {
        let Some(cut) = self.open_cut else { return self.compare(data, began) };
        let mut cut_off = Self { spots: self.spots.clone(), open_cut: None, ..*self };
        cut_off.cut(cut.from);
        let mut as_it_was = Self { spots: self.spots.clone(), ..*self };
        match (as_it_was.compare(data, began), cut_off.compare(data, began)) {
            // Once it was seen, or seen not to be there when it could not come any more, it is certain.
            (Err(_), Ok(())) => *self = cut_off,
            (Ok(()), Err(_)) if began.is_quiet => *self = Self { open_cut: None, ..as_it_was },
            (Ok(()), _) => *self = as_it_was,
            (Err(wrong), Err(_)) => return Err(format!("{wrong} (nor is it cut off at {})", cut.from)),
        }
        Ok(())
    }

    fn compare(&mut self, data: &[u8], began: &Certain) -> Result<(), String> {
        let words: Vec<Word> = words_of(data).collect();
        let mut expected = vec![false; words.len()];
        for (place, spot) in &mut self.spots {
            let first = usize::try_from(place.offset() / 8).expect("a small file");
            let count = usize::try_from(place.len() / 8).expect("a small file");
            let read: Vec<u64> =
                (first..first + count).map(|at| words.get(at).map_or(0, |word| word.0)).collect();
            let there = expected.len().min(first)..expected.len().min(first + count);
            expected[there].fill(true);
            let word = read[0];
            if read.iter().any(|other| *other != word) {
                return Err(format!("file {}, {place:?}: one write is there in part", self.file));
            }
            let lowest = began.spots[place].0.min(spot.floor);
            let found = spot.history.iter().enumerate().skip(lowest).find(|(_, held)| **held == word);
            match found {
                Some((index, _)) => spot.floor = spot.floor.max(index),
                None if spot.lingering.iter().any(|(_, lingers)| *lingers == word) => {}
                None => {
                    let older = spot.history.iter().position(|held| *held == word);
                    let version = |word: u64| word & u64::from(u32::MAX);
                    let what = match older {
                        Some(_) => format!("version {}, which is older", version(word)),
                        None => format!("{word:#x}, which was never written there"),
                    };
                    let should = version(spot.history[lowest]);
                    return Err(format!(
                        "file {}, {place:?}: at least version {should} must be there, and what is read is {what}",
                        self.file
                    ));
                }
            }
        }
        match words.iter().zip(expected).position(|(word, expected)| !expected && !word.is_zero()) {
            Some(at) => Err(format!(
                "invariant 8: file {}, byte {}: {:#x} was never written there",
                self.file,
                at * 8,
                words[at].0
            )),
            None => Ok(()),
        }
    }
}

/// A name, in one of two directories.
#[derive(Clone, Debug)]
pub struct Named {
    /// The name.
    pub name: Vec<u8>,
    /// What it stands for, and its mode.
    pub inode: Option<(Ino, u32)>,
    /// In which directory.
    pub directory: usize,
    /// Somebody is changing it.
    pub is_busy: bool,
}
