//! Byte ranges.

use std::fmt;

use bincode::de::Decoder;
use bincode::error::DecodeError;
use bincode::{Decode, Encode};

/// A range of bytes of a file, never empty, both ends included. An end of `u64::MAX` means: to the end, however far the
/// file grows. (The kernel's own *to the end* is `i64::MAX`; it can be kept as it comes, because nothing is beyond.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The whole file.
    pub const WHOLE: Self = Self { start: 0, end: u64::MAX };

    /// The bytes from `start` to `end`, both included; none if `end` is before `start`.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start <= end { Some(Self { start, end }) } else { None }
    }

    /// The first byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The last byte.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Whether the two have a byte in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// What of this range lies before `other`.
    pub(super) fn before(self, other: Self) -> Option<Self> {
        Self::new(self.start, other.start.checked_sub(1)?.min(self.end))
    }

    /// What of this range lies after `other`.
    pub(super) fn after(self, other: Self) -> Option<Self> {
        Self::new(other.end.checked_add(1)?.max(self.start), self.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.start, self.end) {
            (0, u64::MAX) => f.write_str("the whole file"),
            (start, u64::MAX) => write!(f, "byte {start} to the end"),
            (start, end) => write!(f, "bytes {start} to {end}"),
        }
    }
}

impl<Context> Decode<Context> for ByteRange {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let (start, end) = Decode::decode(decoder)?;
        Self::new(start, end).ok_or(DecodeError::Other("a byte range ends before it starts"))
    }
}
bincode::impl_borrow_decode!(ByteRange);
