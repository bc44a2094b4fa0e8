//! Which of the undecided changes a state has, and which parts of them.

use std::ops::Range;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::states::Sampling;

/// A disk writes this many bytes all or not at all.
const SECTOR_SIZE: u64 = 512;
/// Pieces into which a long change is torn at most.
const PIECES_MAX: u64 = 64;

/// What of an undecided change has reached the medium.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kept {
    /// Nothing.
    Nothing,
    /// All of it.
    All,
    /// These byte ranges of the LUN, whole sectors.
    Parts(Vec<Range<u64>>),
}

/// How one change is torn.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tear {
    /// Its first sectors are there.
    Head,
    /// Its last sectors are there.
    Tail,
    /// Some are.
    Some,
}

/// A rule by which a state keeps some of `n` undecided changes, which are in the order in which they were done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choice {
    Nothing,
    All,
    /// The changes whose bits are set: only for few changes.
    Subset(u64),
    /// The first so many.
    First(usize),
    Only(usize),
    AllBut(usize),
    /// One is torn, those before it are there, those after it are not.
    TornLast(usize, Tear),
    /// One is torn, all others are there.
    TornAmongAll(usize, Tear),
    /// Drawn from this seed.
    Random(u64),
}

/// The choices that are tried for changes in `ranges`: at most `sampling.per_point`, but always nothing and all.
pub(super) fn choices(ranges: &[Range<u64>], sampling: &Sampling, random: &mut SmallRng) -> Vec<Choice> {
    let count = ranges.len();
    let mut tried = vec![Choice::Nothing];
    if count == 0 {
        return tried;
    }
    tried.push(Choice::All);
    let mut more = Vec::new();
    let exhaustive = u32::try_from(count).is_ok_and(|count| count <= sampling.exhaustive_max.min(16));
    if exhaustive {
        more.extend((1..(1 << count) - 1).map(Choice::Subset));
    } else {
        more.extend((1..count).map(Choice::First));
        more.extend((0..count).flat_map(|i| [Choice::Only(i), Choice::AllBut(i)]));
    }
    for (i, _) in ranges.iter().enumerate().filter(|(_, range)| range.end - range.start > SECTOR_SIZE) {
        for tear in [Tear::Head, Tear::Tail, Tear::Some] {
            more.extend([Choice::TornLast(i, tear), Choice::TornAmongAll(i, tear)]);
        }
    }
    let drawn = if count > 1 { sampling.per_point / 3 } else { 0 };
    more.extend((0..drawn).map(|_| Choice::Random(random.random())));
    let room = sampling.per_point.saturating_sub(tried.len());
    if more.len() > room {
        let (chosen, _) = more.partial_shuffle(random, room);
        tried.extend_from_slice(chosen);
    } else {
        tried.append(&mut more);
    }
    tried
}

impl Choice {
    /// What is kept of the changes in `ranges`.
    pub fn kept(self, ranges: &[Range<u64>], random: &mut SmallRng) -> Vec<Kept> {
        let whole = |kept: bool| if kept { Kept::All } else { Kept::Nothing };
        let each = |keeps: &dyn Fn(usize) -> bool| (0..ranges.len()).map(|i| whole(keeps(i))).collect();
        match self {
            Self::Nothing => each(&|_| false),
            Self::All => each(&|_| true),
            Self::Subset(bits) => each(&|i| bits >> i & 1 == 1),
            Self::First(count) => each(&|i| i < count),
            Self::Only(one) => each(&|i| i == one),
            Self::AllBut(one) => each(&|i| i != one),
            Self::TornLast(one, tear) => {
                let mut kept: Vec<_> = each(&|i| i < one);
                kept[one] = torn(&ranges[one], tear, random);
                kept
            }
            Self::TornAmongAll(one, tear) => {
                let mut kept: Vec<_> = each(&|_| true);
                kept[one] = torn(&ranges[one], tear, random);
                kept
            }
            Self::Random(seed) => {
                let mut random = SmallRng::seed_from_u64(seed);
                let share = random.random_range(0.05..0.95);
                let tears = random.random_bool(0.5);
                let mut one = |range: &Range<u64>| {
                    if tears && random.random_ratio(1, 4) {
                        return torn(range, Tear::Some, &mut random);
                    }
                    whole(random.random_bool(share))
                };
                ranges.iter().map(&mut one).collect()
            }
        }
    }
}

/// Tears a change in `range`: some of its sectors, or of its pieces if it has very many, are there.
fn torn(range: &Range<u64>, tear: Tear, random: &mut SmallRng) -> Kept {
    let len = range.end - range.start;
    let sectors = len.div_ceil(SECTOR_SIZE);
    if sectors < 2 {
        return if random.random() { Kept::All } else { Kept::Nothing };
    }
    let cut = range.start + random.random_range(1..sectors) * SECTOR_SIZE;
    match tear {
        Tear::Head => Kept::Parts(std::iter::once(range.start..cut).collect()),
        Tear::Tail => Kept::Parts(std::iter::once(cut..range.end).collect()),
        Tear::Some => {
            let piece = sectors.div_ceil(PIECES_MAX) * SECTOR_SIZE;
            let starts = (range.start..range.end).step_by(usize::try_from(piece).unwrap_or(usize::MAX));
            let pieces = starts.map(|start| start..(start + piece).min(range.end));
            Kept::Parts(pieces.filter(|_| random.random()).collect())
        }
    }
}
