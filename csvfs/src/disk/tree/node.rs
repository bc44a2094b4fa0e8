//! Pages of a tree: leaves and branches. Nothing here believes a number that it has not checked.

use super::header::PageNumber;

/// The lengths of a table's keys and values, where they are fixed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Widths {
    pub key: Option<u32>,
    pub value: Option<u32>,
}

/// A reference to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Child {
    pub page: PageNumber,
    pub sum: u128,
}

pub fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    number(bytes, at).map(|bytes| usize::from(u16::from_le_bytes(bytes)))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

pub fn u128_at(bytes: &[u8], at: usize) -> Option<u128> {
    number(bytes, at).map(u128::from_le_bytes)
}

/// The checksum of redb.
pub fn checksum(bytes: &[u8]) -> u128 {
    twox_hash::XxHash3_128::oneshot(bytes)
}

fn size(width: Option<u32>) -> Option<usize> {
    width.and_then(|width| usize::try_from(width).ok())
}

/// A leaf.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'a> {
    bytes: &'a [u8],
    key: Option<usize>,
    value: Option<usize>,
    pairs: usize,
}

impl<'a> Leaf<'a> {
    fn keys_at(&self) -> usize {
        let lists = usize::from(self.key.is_none()) + usize::from(self.value.is_none());
        4 + 4 * lists * self.pairs
    }

    fn end(&self, list: usize, n: usize) -> Option<usize> {
        usize::try_from(u32_at(self.bytes, 4 + 4 * (list * self.pairs + n))?).ok()
    }

    fn key_end(&self, n: usize) -> Option<usize> {
        match self.key {
            Some(width) => self.keys_at().checked_add(width.checked_mul(n + 1)?),
            None => self.end(0, n),
        }
    }

    fn value_end(&self, n: usize) -> Option<usize> {
        match self.value {
            Some(width) => self.key_end(self.pairs.checked_sub(1)?)?.checked_add(width.checked_mul(n + 1)?),
            None => self.end(usize::from(self.key.is_none()), n),
        }
    }

    /// A row: key and value.
    pub fn row(&self, n: usize) -> Option<(&'a [u8], &'a [u8])> {
        if n >= self.pairs {
            return None;
        }
        let key_at = if n == 0 { self.keys_at() } else { self.key_end(n - 1)? };
        let value_at = if n == 0 { self.key_end(self.pairs - 1)? } else { self.value_end(n - 1)? };
        Some((self.bytes.get(key_at..self.key_end(n)?)?, self.bytes.get(value_at..self.value_end(n)?)?))
    }

    /// All rows that can be told.
    pub fn rows(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        (0..self.pairs).filter_map(move |n| self.row(n))
    }
}

/// A branch.
#[derive(Clone, Copy, Debug)]
pub struct Branch<'a> {
    bytes: &'a [u8],
    key: Option<usize>,
    keys: usize,
}

impl<'a> Branch<'a> {
    /// How many children it has.
    pub fn len(&self) -> usize {
        self.keys + 1
    }

    /// A child.
    pub fn child(&self, n: usize) -> Option<Child> {
        if n > self.keys {
            return None;
        }
        let sum = u128_at(self.bytes, 8 + 16 * n)?;
        let page = PageNumber::decode(u64_at(self.bytes, 8 + 16 * self.len() + 8 * n)?);
        Some(Child { page, sum })
    }

    fn ends_at(&self) -> usize {
        8 + 24 * self.len()
    }

    fn key_end(&self, n: usize) -> Option<usize> {
        match self.key {
            Some(width) => self.ends_at().checked_add(width.checked_mul(n + 1)?),
            None => usize::try_from(u32_at(self.bytes, self.ends_at() + 4 * n)?).ok(),
        }
    }

    /// The key between child `n` and the next: not below any of the first, below all of the second.
    pub fn key(&self, n: usize) -> Option<&'a [u8]> {
        if n >= self.keys {
            return None;
        }
        let varied = if self.key.is_none() { 4 * self.keys } else { 0 };
        let at = if n == 0 { self.ends_at() + varied } else { self.key_end(n - 1)? };
        self.bytes.get(at..self.key_end(n)?)
    }

    /// All children that can be told.
    pub fn children(self) -> impl Iterator<Item = Child> {
        (0..self.len()).filter_map(move |n| self.child(n))
    }
}

/// A page of a tree.
#[derive(Clone, Copy, Debug)]
pub enum Node<'a> {
    Leaf(Leaf<'a>),
    Branch(Branch<'a>),
}

impl<'a> Node<'a> {
    /// Reads a page and compares its checksum.
    pub fn check(bytes: &'a [u8], widths: Widths, sum: u128) -> Option<Self> {
        let (count, key) = (u16_at(bytes, 2)?, size(widths.key));
        let (node, end) = match bytes.first()? {
            1 => {
                let leaf = Leaf { bytes, key, value: size(widths.value), pairs: count };
                (Node::Leaf(leaf), leaf.value_end(count.checked_sub(1)?)?)
            }
            2 => {
                let branch = Branch { bytes, key, keys: count };
                (Node::Branch(branch), branch.key_end(count.checked_sub(1)?)?)
            }
            _ => return None,
        };
        (checksum(bytes.get(..end)?) == sum).then_some(node)
    }
}
