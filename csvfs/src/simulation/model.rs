//! What must be read (invariants 6, 7 and 8).
//!
//! Each place of a file is written by the users of one node only, so what it has held is a list: a read must find
//! something that is not older than what was there for certain when the read began. A write that was acknowledged and not
//! synced may be lost with the node that served the file, and then it is not there for certain any more; whoever wrote it
//! is told by the next sync (P9). What a dead node had sent may still land until its session is fenced: a write at its
//! place, a truncation everywhere at once. Whether it has landed is known when somebody has looked after that.

use std::collections::{BTreeMap, BTreeSet};

use lockd::ids::SessionId;

use super::race::{Race, Time};
use super::words::{Word, words_of};
use crate::types::Ino;

/// Blocks in which every node has its places.
pub const SHARED_BLOCKS: u64 = 3;
/// Bytes between two places of a shared block.
const STRIDE: u64 = 512;
/// Whose the place of a shared block is that all nodes write.
const EVERYBODY: usize = 7;
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

    /// A word that all write, in a block.
    pub fn raced(block: u64) -> Self {
        Self::Shared { block, node: EVERYBODY }
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
    /// How many writes are under way.
    in_flight: usize,
    /// What dead sessions may still write, or have written.
    lingering: Vec<Lingering>,
}

/// A write of whose end nobody was told: of which session, and which of the history.
#[derive(Clone, Copy, Debug)]
struct Lingering {
    session: SessionId,
    index: usize,
}

/// What nobody has ever written.
const NEVER: u64 = u64::MAX;

impl Default for Spot {
    fn default() -> Self {
        Self { history: vec![0], floor: 0, synced: 0, acked: 0, in_flight: 0, lingering: Vec::new() }
    }
}

impl Spot {
    /// What is at `index` of the history was read, by a read that began when the sessions `over` were fenced: what they
    /// had sent has landed, or never will.
    fn settle(&mut self, index: usize, over: &BTreeSet<SessionId>) {
        let word = self.history[index];
        let history = &mut self.history;
        self.lingering.retain(|lingering| {
            let is_older = index < lingering.index && !history[lingering.index..].contains(&word);
            let is_settled = over.contains(&lingering.session) && (is_older || index == lingering.index);
            if is_settled && is_older {
                history[lingering.index] = NEVER;
            }
            !is_settled
        });
    }

    /// Whether `word`, which is older than what is there for certain, may have landed late. Then it is there for certain
    /// once its session is fenced.
    fn lands(&mut self, word: u64, over: &BTreeSet<SessionId>) -> bool {
        let at = self.lingering.iter().position(|lingering| self.history[lingering.index] == word);
        let Some(at) = at else { return false };
        if self.in_flight == 0 && over.contains(&self.lingering[at].session) {
            self.lingering.remove(at);
            self.history.push(word);
            self.floor = self.history.len() - 1;
        }
        true
    }
}

/// A write that was begun.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Where.
    pub place: Place,
    /// What.
    pub word: Word,
    /// In the history of its place; in a race, the round.
    index: u64,
}

/// What was certain when a read or a sync began.
#[derive(Clone, Debug)]
pub struct Certain {
    /// Floor and acknowledged, of each place.
    spots: BTreeMap<Place, (usize, usize)>,
    /// Sessions of which nothing could land any more.
    over: BTreeSet<SessionId>,
    at: Time,
    /// The rounds of the races.
    rounds: Vec<u64>,
}

/// A truncation that was sent and of which nobody was told whether it was done. Nothing is written after it.
#[derive(Clone, Copy, Debug)]
struct OpenCut {
    from: u64,
    session: SessionId,
}

/// One file.
#[derive(Debug)]
pub struct FileModel {
    /// Its number, in each of its words.
    pub file: u16,
    spots: BTreeMap<Place, Spot>,
    versions: u32,
    open_cut: Option<OpenCut>,
    /// Sessions that are fenced: what they had sent was done, or never will be.
    over: BTreeSet<SessionId>,
    /// What all write, by block.
    races: Vec<Race>,
    time: Time,
    /// Reads that were held against what others wrote at the same time.
    pub raced: u64,
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
        let races = (0..SHARED_BLOCKS).map(|_| Race::default()).collect();
        Self { file, spots, versions: 0, open_cut: None, over: BTreeSet::new(), races, time: 0, raced: 0 }
    }

    fn tick(&mut self) -> Time {
        self.time += 1;
        self.time
    }

    /// The race at a place, if there is one.
    fn race(&mut self, place: Place) -> Option<&mut Race> {
        match place {
            Place::Shared { block, node: EVERYBODY } => self.races.get_mut(usize::try_from(block).ok()?),
            _ => None,
        }
    }

    /// A server may have been lost.
    pub fn suspend(&mut self) {
        self.races.iter_mut().for_each(Race::suspend);
    }

    /// Nothing is under way, and whoever was lost is fenced.
    pub fn resume(&mut self) {
        if self.open_cut.is_none() {
            self.races.iter_mut().for_each(Race::resume);
        }
    }

    /// A write begins.
    pub fn begin(&mut self, place: Place) -> Written {
        self.versions += 1;
        let word = Word::new(self.file, place.number(), self.versions);
        let now = self.tick();
        if let Some(race) = self.race(place) {
            race.begins(word.0, now);
            return Written { place, word, index: race.round };
        }
        let spot = self.spots.get_mut(&place).expect("a place of this file");
        spot.history.push(word.0);
        spot.in_flight += 1;
        Written { place, word, index: spot.history.len() as u64 - 1 }
    }

    /// It was acknowledged.
    pub fn acknowledged(&mut self, written: Written) {
        let now = self.tick();
        if let Some(race) = self.race(written.place) {
            return race.is_done(written.word.0, now, written.index);
        }
        let (spot, index) = self.spot(&written);
        spot.in_flight -= 1;
        spot.floor = spot.floor.max(index);
        spot.acked = spot.acked.max(index);
    }

    fn spot(&mut self, written: &Written) -> (&mut Spot, usize) {
        let index = usize::try_from(written.index).expect("a short history");
        (self.spots.get_mut(&written.place).expect("a place of this file"), index)
    }

    /// It was refused before anything was done.
    pub fn undone(&mut self, written: Written) {
        match self.race(written.place) {
            Some(race) => race.is_undone(written.word.0),
            None => self.spot(&written).0.in_flight -= 1,
        }
    }

    /// It was refused, by a node that goes on.
    pub fn refused(&mut self, written: Written) {
        match self.race(written.place) {
            Some(race) => race.end(),
            None => self.spot(&written).0.in_flight -= 1,
        }
    }

    /// Its process died before that, or its session ended.
    pub fn lingers(&mut self, written: Written, session: SessionId) {
        if self.race(written.place).is_none() {
            let (spot, index) = self.spot(&written);
            spot.in_flight -= 1;
            spot.lingering.push(Lingering { session, index });
        }
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
        for (block, race) in (0..).zip(&mut self.races) {
            if Place::raced(block).offset() >= from {
                race.clear();
            }
        }
    }

    /// Such a truncation was sent, and nobody was told whether it was done.
    pub fn may_be_cut(&mut self, from: u64, session: SessionId) {
        self.open_cut = Some(OpenCut { from, session });
        self.suspend();
    }

    /// What is certain now.
    pub fn certain(&mut self) -> Certain {
        let at = self.tick();
        let rounds = self.races.iter().map(|race| race.round).collect();
        let spots = self.spots.iter().map(|(place, spot)| (*place, (spot.floor, spot.acked))).collect();
        Certain { spots, over: self.over.clone(), at, rounds }
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

    /// Whether something that `node` has written may be lost, and its writer has not been told.
    pub fn may_have_lost(&self, node: usize) -> bool {
        self.spots.iter().any(|(place, spot)| place.node() == node && spot.acked > spot.floor)
    }

    /// A node may have been lost that served the file.
    pub fn lost(&mut self) {
        for spot in self.spots.values_mut() {
            spot.floor = spot.synced;
        }
    }

    /// Nothing of `session` reaches the LUN any more.
    pub fn fenced(&mut self, session: SessionId) {
        self.over.insert(session);
    }

    /// Everything was read, in a read that began when this was certain.
    ///
    /// # Errors
    /// What may not be there.
    pub fn check(&mut self, data: &[u8], began: &Certain) -> Result<(), String> {
        let Some(cut) = self.open_cut else { return self.compare(data, began) };
        let copy = |open_cut| Self {
            spots: self.spots.clone(),
            over: self.over.clone(),
            races: self.races.clone(),
            open_cut,
            ..*self
        };
        let (mut cut_off, mut as_it_was) = (copy(None), copy(self.open_cut));
        cut_off.cut(cut.from);
        match (as_it_was.compare(data, began), cut_off.compare(data, began)) {
            // Once it was seen, or seen not to be there when it could not come any more, it is certain.
            (Err(_), Ok(())) => *self = cut_off,
            (Ok(()), Err(_)) if began.over.contains(&cut.session) => {
                *self = Self { open_cut: None, ..as_it_was }
            }
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
            let found = spot.history[lowest..].iter().position(|held| *held == word).map(|at| lowest + at);
            match found {
                Some(index) => {
                    spot.floor = spot.floor.max(index);
                    spot.settle(index, &began.over);
                }
                None if spot.lands(word, &self.over) => {}
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
        self.check_races(&words, &mut expected, began)?;
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

impl FileModel {
    /// What is read at the places that all write.
    fn check_races(&mut self, words: &[Word], expected: &mut [bool], began: &Certain) -> Result<(), String> {
        let now = self.tick();
        for (block, round) in (0..SHARED_BLOCKS).zip(&began.rounds) {
            let place = Place::raced(block);
            let at = usize::try_from(place.offset() / 8).expect("a small file");
            let word = words.get(at).copied().unwrap_or(Word(0));
            let is_of_here = word.is_zero() || word.is_at(self.file, place.number());
            if let Some(expected) = expected.get_mut(at).filter(|_| is_of_here) {
                *expected = true;
            }
            let race = self.race(place).expect("all write there");
            let checked = race.is_read(word.0, began.at, now, *round);
            let checked = checked.map_err(|wrong| format!("file {}, {place:?}: {wrong}", self.file))?;
            self.raced += u64::from(checked);
        }
        Ok(())
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
