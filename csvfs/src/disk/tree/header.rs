//! The store's first page, and where pages are.

use std::ops::Range;

use super::node::{Child, checksum, u32_at, u64_at, u128_at};

/// The least size of a page in bytes.
pub const PAGE: u64 = 4096;
/// The bytes of the header that matter.
const HEADER: usize = 320;
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
const VERSION: u8 = 3;
const ORDER_MAX: u8 = 20;

/// The number of a page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageNumber {
    region: u64,
    index: u64,
    order: u8,
}

impl PageNumber {
    pub fn decode(number: u64) -> Self {
        let order = u8::try_from(number >> 59).unwrap_or(u8::MAX);
        Self { region: number >> 20 & 0xf_ffff, index: number & 0xf_ffff >> order, order }
    }
}

/// The header of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The tree of the tables.
    pub tables: Option<Child>,
    /// The tree of redb's own tables.
    pub own: Option<Child>,
    region: u64,
    region_header: u64,
}

impl Header {
    /// Reads the slot that is in force; nothing if it is not whole, or of another version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::decode_slot(bytes, bytes.get(9)? & 1)
    }

    /// Reads the slot that is not in force: that of the commit before.
    pub fn decode_earlier(bytes: &[u8]) -> Option<Self> {
        Self::decode_slot(bytes, bytes.get(9)? & 1 ^ 1)
    }

    fn decode_slot(bytes: &[u8], slot: u8) -> Option<Self> {
        let bytes = bytes.get(..HEADER)?;
        if !bytes.starts_with(MAGIC) || u64::from(u32_at(bytes, 12)?) != PAGE {
            return None;
        }
        let slot = &bytes[64 + 128 * usize::from(slot)..][..128];
        if slot[0] != VERSION || checksum(&slot[..112]) != u128_at(slot, 112)? {
            return None;
        }
        let root = |is_there: usize, at: usize| {
            let child = Child { page: PageNumber::decode(u64_at(slot, at)?), sum: u128_at(slot, at + 8)? };
            (slot[is_there] != 0).then_some(child)
        };
        let (header, data) = (u64::from(u32_at(bytes, 16)?), u64::from(u32_at(bytes, 20)?));
        Some(Self {
            tables: root(1, 8),
            own: root(2, 40),
            region: (header + data) * PAGE,
            region_header: header * PAGE,
        })
    }

    /// Where a page is, in bytes of the area; nothing if it cannot be.
    pub fn place(&self, page: PageNumber) -> Option<Range<u64>> {
        if page.order > ORDER_MAX {
            return None;
        }
        let len = PAGE << page.order;
        let start = PAGE + page.region * self.region + self.region_header + page.index * len;
        Some(start..start + len)
    }
}
