//! What a tree of tables says of a table.

use super::header::PageNumber;
use super::node::{Child, Widths, u32_at, u64_at, u128_at};

/// A table's definition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Definition {
    /// Its tree; none if it is empty.
    pub root: Option<Child>,
    /// The lengths of keys and values.
    pub widths: Widths,
}

impl Definition {
    /// Reads a definition; nothing if it is none of an ordinary table.
    pub fn decode(value: &[u8]) -> Option<Self> {
        if value.first() != Some(&3) {
            return None;
        }
        let root = match value.get(9)? {
            0 => None,
            _ => Some(Child { page: PageNumber::decode(u64_at(value, 10)?), sum: u128_at(value, 18)? }),
        };
        let width = |at: usize| match value.get(at)? {
            0 => Some(None),
            _ => Some(Some(u32_at(value, at + 1)?)),
        };
        Some(Self { root, widths: Widths { key: width(42)?, value: width(47)? } })
    }
}
