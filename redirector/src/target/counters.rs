//! What each client has asked for, and which parts of the export it has touched.
//!
//! The record of touched parts is a bitmap of regions: 64 KiB each, or larger so that an export has at most a million.
//! It is allocated in pieces where something is touched; a client's record stays below 300 KiB.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::request::Kind;

const REGION_MIN: u64 = 64 << 10;
const REGIONS_MAX: u64 = 1 << 20;
const PIECE_WORDS: usize = 64;
const PIECE_REGIONS: u64 = PIECE_WORDS as u64 * 64;

type Piece = OnceLock<Box<[AtomicU64; PIECE_WORDS]>>;

/// Regions of the export, each touched or not.
#[derive(Debug)]
struct Regions {
    pieces: Box<[Piece]>,
}

impl Regions {
    fn new(count: u64) -> Self {
        let pieces = usize::try_from(count.div_ceil(PIECE_REGIONS)).unwrap_or(0);
        Self { pieces: (0..pieces).map(|_| OnceLock::new()).collect() }
    }

    fn word(region: u64) -> (usize, usize, u64) {
        let piece = usize::try_from(region / PIECE_REGIONS).unwrap_or(usize::MAX);
        let word = usize::try_from(region % PIECE_REGIONS / 64).unwrap_or(usize::MAX);
        (piece, word, 1 << (region % 64))
    }

    fn touch(&self, regions: Range<u64>) {
        for region in regions {
            let (piece, word, bit) = Self::word(region);
            let Some(piece) = self.pieces.get(piece) else { return };
            let piece = piece.get_or_init(|| Box::new([const { AtomicU64::new(0) }; PIECE_WORDS]));
            // Most requests touch what was touched before: no write to shared memory then.
            if piece[word].load(Ordering::Relaxed) & bit == 0 {
                piece[word].fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    fn touched(&self, regions: Range<u64>) -> u64 {
        let is_touched = |region: &u64| {
            let (piece, word, bit) = Self::word(*region);
            let piece = self.pieces.get(piece).and_then(OnceLock::get);
            piece.is_some_and(|piece| piece[word].load(Ordering::Relaxed) & bit != 0)
        };
        regions.filter(is_touched).count() as u64
    }

    fn forget(&self) {
        for piece in self.pieces.iter().filter_map(OnceLock::get) {
            for word in piece.iter() {
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// One client's requests, counted when they are about to be executed.
#[derive(Debug)]
pub(super) struct Counters {
    region: u64,
    requests: [AtomicU64; Kind::COUNT],
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    read: Regions,
    changed: Regions,
}

/// A client's counters at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counts {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Trim requests.
    pub trims: u64,
    /// Write-zeroes requests.
    pub zeroes: u64,
    /// Bytes of the read requests.
    pub bytes_read: u64,
    /// Bytes of the write requests, without trims and zeroes.
    pub bytes_written: u64,
}

/// How many regions of a byte range a client has touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Touched {
    /// The size of a region in bytes.
    pub region_bytes: u64,
    /// How many regions the range touches.
    pub regions: u64,
    /// In how many of them the client has read.
    pub read: u64,
    /// In how many of them it has written, zeroed or trimmed.
    pub changed: u64,
}

impl Counters {
    /// Counters for an export of `size` bytes.
    pub(super) fn new(size: u64) -> Self {
        let region = size.div_ceil(REGIONS_MAX).next_power_of_two().max(REGION_MIN);
        let count = size.div_ceil(region);
        Self {
            region,
            requests: [const { AtomicU64::new(0) }; Kind::COUNT],
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            read: Regions::new(count),
            changed: Regions::new(count),
        }
    }

    fn regions(&self, range: Range<u64>) -> Range<u64> {
        range.start / self.region..range.end.div_ceil(self.region)
    }

    /// Counts a request of `kind` for `range`, which lies within the export.
    pub(super) fn count(&self, kind: Kind, range: Range<u64>) {
        self.requests[kind as usize].fetch_add(1, Ordering::Relaxed);
        let length = range.end - range.start;
        let regions = self.regions(range);
        match kind {
            Kind::Read => {
                self.bytes_read.fetch_add(length, Ordering::Relaxed);
                self.read.touch(regions);
            }
            Kind::Write => {
                self.bytes_written.fetch_add(length, Ordering::Relaxed);
                self.changed.touch(regions);
            }
            Kind::Trim | Kind::Zero => self.changed.touch(regions),
            Kind::Flush => {}
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let requests = |kind: Kind| self.requests[kind as usize].load(Ordering::Relaxed);
        Counts {
            reads: requests(Kind::Read),
            writes: requests(Kind::Write),
            flushes: requests(Kind::Flush),
            trims: requests(Kind::Trim),
            zeroes: requests(Kind::Zero),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
        }
    }

    /// What was touched of `range`, clipped to `size`, the export's.
    pub(super) fn touched(&self, range: &Range<u64>, size: u64) -> Touched {
        let end = range.end.min(size);
        let regions = self.regions(range.start.min(end)..end);
        Touched {
            region_bytes: self.region,
            regions: regions.end - regions.start,
            read: self.read.touched(regions.clone()),
            changed: self.changed.touched(regions),
        }
    }

    /// Forgets what was touched; the counts go on.
    pub(super) fn forget_touched(&self) {
        self.read.forget();
        self.changed.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_told_apart() {
        let size = 20 << 30;
        let counters = Counters::new(size);
        counters.count(Kind::Write, 65_536 * 3 - 1..65_536 * 3 + 1);
        counters.count(Kind::Read, 0..4096);
        counters.count(Kind::Trim, size - 1..size);
        let touched = counters.touched(&(0..u64::MAX), size);
        assert_eq!(touched, Touched { region_bytes: 65_536, regions: 327_680, read: 1, changed: 3 });
        assert_eq!(counters.touched(&(65_536 * 2..65_536 * 3), size).changed, 1);
        assert_eq!(counters.touched(&(65_536 * 4..65_536 * 5), size).changed, 0);
        assert_eq!(counters.touched(&(u64::MAX - 1..u64::MAX), size).regions, 0);
        assert_eq!(counters.counts().bytes_written, 2);
        counters.forget_touched();
        assert_eq!(counters.touched(&(0..size), size).changed, 0);
        assert_eq!(counters.counts().writes, 1);
    }

    #[test]
    fn the_record_is_bounded_on_a_huge_export() {
        let size = u64::MAX / 2;
        let counters = Counters::new(size);
        counters.count(Kind::Write, 0..size);
        assert!(counters.touched(&(0..size), size).regions <= REGIONS_MAX);
    }
}
