//! The states that a crash could leave behind.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::record::{Change, Position, Record};
use super::selection::{Choice, Kept, choices};
use crate::lun::Geometry;
use crate::memory::{Image, MemoryLun};

/// How many states are tried, and from which seed they are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sampling {
    /// The same seed gives the same states.
    pub seed: u64,
    /// States at each point at most (the least is two: none and all of what is undecided).
    pub per_point: usize,
    /// Up to so many undecided changes, each of their subsets is tried (16 at most).
    pub exhaustive_max: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { seed: 1, per_point: 64, exhaustive_max: 5 }
    }
}

/// What a crash has left behind.
#[derive(Clone, Debug)]
pub struct CrashState {
    /// The contents of the LUN.
    pub image: Image,
    /// The marks that were set before the crash: what they stand for must be there.
    pub marks: Arc<[u64]>,
    /// Where in the record the crash was: how many events came before it.
    pub at: usize,
    /// The changes that were not durable yet, in the order in which they were done, and what the medium has of them.
    pub undecided: Vec<(Range<u64>, Kept)>,
}

impl CrashState {
    /// The last mark that was set before the crash.
    #[must_use]
    pub fn last_mark(&self) -> Option<u64> {
        self.marks.last().copied()
    }

    /// A LUN with these contents.
    #[must_use]
    pub fn lun(&self, geometry: Geometry) -> MemoryLun {
        MemoryLun::with_geometry(geometry, self.image.clone())
    }
}

impl fmt::Display for CrashState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, undecided, .. } = self;
        write!(f, "a crash before event {at}, after mark {:?}, with", self.last_mark())?;
        for (range, kept) in undecided.iter().filter(|(_, kept)| *kept != Kept::Nothing) {
            match kept {
                Kept::Parts(parts) => write!(f, " {parts:?} of {range:?},")?,
                Kept::All | Kept::Nothing => write!(f, " {range:?},")?,
            }
        }
        write!(f, " of {} changes that were not durable", undecided.len())
    }
}

/// A change in the order of completion.
struct Ordered {
    change: Change,
    started: Position,
    /// From here on it is certainly on the medium.
    durable: Position,
}

/// Goes through the crash points of a record (the moments before something becomes durable, and the end) and at each
/// through the states of [`Sampling`]. A state is delivered once for the same contents and marks.
pub struct CrashStates {
    base: Image,
    changes: VecDeque<Ordered>,
    marks: Vec<(Position, u64)>,
    points: VecDeque<Position>,
    sampling: Sampling,
    current: Option<Point>,
    seen: HashSet<(u64, usize)>,
    images: HashSet<u64>,
}

impl fmt::Debug for CrashStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrashStates").field("points", &self.points.len()).finish_non_exhaustive()
    }
}

/// A crash point with the choices that are still to be tried.
struct Point {
    at: Position,
    marks: Arc<[u64]>,
    /// Of the undecided changes.
    ranges: Vec<Range<u64>>,
    choices: VecDeque<Choice>,
    random: SmallRng,
}

/// From where on each change is durable: `done` of the first flush, by its end, that started after the change was done.
fn flush_after(flushes: &[(Position, Position)], done: Position) -> Position {
    // `flushes` is sorted by start, and each has the earliest end of itself and all later ones.
    let first = flushes.partition_point(|(started, _)| *started < done);
    flushes.get(first).map_or(Position::MAX, |(_, end)| *end)
}

impl CrashStates {
    /// The states of `record`.
    #[must_use]
    pub fn new(record: Record, sampling: Sampling) -> Self {
        let Record { base, requests, marks, events } = record;
        let mut flushes: Vec<(Position, Position)> = requests
            .iter()
            .filter(|request| request.change.is_none())
            .filter_map(|request| Some((request.started, request.done?)))
            .collect();
        flushes.sort_unstable();
        let mut earliest = Position::MAX;
        for (_, end) in flushes.iter_mut().rev() {
            earliest = earliest.min(*end);
            *end = earliest;
        }
        let mut points: Vec<Position> = flushes.iter().map(|(_, end)| *end).collect();
        let mut changes = Vec::new();
        for request in requests {
            let Some(change) = request.change else { continue };
            let done = request.done.unwrap_or(Position::MAX);
            let mut durable = flush_after(&flushes, done);
            if change.fua && request.done.is_some() {
                durable = done;
                points.push(done);
            }
            changes.push((done, Ordered { change, started: request.started, durable }));
        }
        changes.sort_by_key(|(done, ordered)| (*done, ordered.started));
        points.push(events);
        points.sort_unstable();
        points.dedup();
        Self {
            base,
            changes: changes.into_iter().map(|(_, ordered)| ordered).collect(),
            marks,
            points: points.into(),
            sampling,
            current: None,
            seen: HashSet::new(),
            images: HashSet::new(),
        }
    }

    /// Crash points that are still to come.
    #[must_use]
    pub fn points(&self) -> usize {
        self.points.len()
    }

    /// How many different contents have been delivered.
    #[must_use]
    pub fn distinct_images(&self) -> usize {
        self.images.len()
    }

    /// Goes to the next crash point.
    fn advance(&mut self) -> Option<Point> {
        let at = self.points.pop_front()?;
        // What is durable and has nothing undecided before it is a part of every later state.
        while let Some(next) = self.changes.front()
            && next.durable < at
        {
            next.change.apply(&mut self.base);
            self.changes.pop_front();
        }
        let ranges: Vec<_> = self.undecided(at).map(|ordered| ordered.change.range.clone()).collect();
        let marked = self.marks.partition_point(|(set, _)| *set < at);
        let marks = self.marks[..marked].iter().map(|(_, mark)| *mark).collect();
        let mut random =
            SmallRng::seed_from_u64(self.sampling.seed ^ (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let choices = choices(&ranges, &self.sampling, &mut random).into();
        Some(Point { at, marks, ranges, choices, random })
    }

    fn undecided(&self, at: Position) -> impl Iterator<Item = &Ordered> {
        self.changes.iter().filter(move |ordered| ordered.started < at && ordered.durable >= at)
    }

    /// The contents at `at` with `kept` of the undecided changes.
    fn image(&self, at: Position, kept: &[Kept]) -> Image {
        let mut image = self.base.clone();
        let mut kept = kept.iter();
        for ordered in self.changes.iter().filter(|ordered| ordered.started < at) {
            let what = if ordered.durable < at { &Kept::All } else { kept.next().unwrap_or(&Kept::Nothing) };
            match what {
                Kept::Nothing => {}
                Kept::All => ordered.change.apply(&mut image),
                Kept::Parts(parts) => {
                    parts.iter().for_each(|part| ordered.change.apply_part(&mut image, part))
                }
            }
        }
        image
    }
}

impl Iterator for CrashStates {
    type Item = CrashState;

    fn next(&mut self) -> Option<CrashState> {
        loop {
            let mut point = self.current.take().or_else(|| self.advance())?;
            let Some(choice) = point.choices.pop_front() else { continue };
            let kept = choice.kept(&point.ranges, &mut point.random);
            let image = self.image(point.at, &kept);
            let fingerprint = image.fingerprint();
            let (at, marks) = (point.at, Arc::clone(&point.marks));
            let undecided = point.ranges.iter().cloned().zip(kept).collect();
            self.current = Some(point);
            if self.seen.insert((fingerprint, marks.len())) {
                self.images.insert(fingerprint);
                return Some(CrashState { image, marks, at, undecided });
            }
        }
    }
}
