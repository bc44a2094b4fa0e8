//! The contents of a LUN in memory: sparse, and cheap to copy.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hasher;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// The unit of sharing between copies, in bytes.
pub const PAGE_SIZE: usize = 4096;
/// Pages of a leaf.
const LEAF_PAGES: usize = 128;
const LEAF_SIZE: u64 = (PAGE_SIZE * LEAF_PAGES) as u64;

/// A page and its fingerprint.
struct Page {
    bytes: [u8; PAGE_SIZE],
    fingerprint: OnceLock<u64>,
}

impl Clone for Page {
    /// A clone is made to be changed: the fingerprint is not taken along.
    fn clone(&self) -> Self {
        Self { bytes: self.bytes, fingerprint: OnceLock::new() }
    }
}

impl Page {
    fn filled(byte: u8) -> Arc<Self> {
        Arc::new(Self { bytes: [byte; PAGE_SIZE], fingerprint: OnceLock::new() })
    }

    /// Zero for a page of zeros, which is as good as none.
    fn fingerprint(&self) -> u64 {
        *self.fingerprint.get_or_init(|| {
            if self.bytes.iter().all(|byte| *byte == 0) {
                return 0;
            }
            let mut hasher = hasher();
            hasher.write(&self.bytes);
            hasher.finish()
        })
    }
}

/// With fixed keys, so that fingerprints are the same in every run.
fn hasher() -> impl Hasher {
    std::hash::DefaultHasher::new()
}

#[derive(Clone)]
struct Leaf {
    pages: [Option<Arc<Page>>; LEAF_PAGES],
    fingerprint: OnceLock<u64>,
}

impl Leaf {
    fn empty() -> Self {
        Self { pages: std::array::from_fn(|_| None), fingerprint: OnceLock::new() }
    }

    /// Zero for a leaf of zeros.
    fn fingerprint(&self) -> u64 {
        *self.fingerprint.get_or_init(|| {
            let numbered = self.pages.iter().enumerate();
            let of_pages = numbered.filter_map(|(i, page)| Some((i, page.as_ref()?.fingerprint())));
            combine(of_pages.filter(|(_, fingerprint)| *fingerprint != 0).map(|(i, f)| (i as u64, f)))
        })
    }
}

/// Zero for nothing.
fn combine(parts: impl Iterator<Item = (u64, u64)>) -> u64 {
    let mut hasher = hasher();
    let mut any = false;
    for (number, fingerprint) in parts {
        any = true;
        hasher.write_u64(number);
        hasher.write_u64(fingerprint);
    }
    if any { hasher.finish() } else { 0 }
}

/// The contents of a LUN: bytes that were never written are zero. A clone shares all pages until one is changed.
#[derive(Clone, Default)]
pub struct Image {
    leaves: BTreeMap<u64, Arc<Leaf>>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} pages, {:016x})", self.page_count(), self.fingerprint())
    }
}

/// A part of a byte range that lies in one page: where in the image, and where in the range.
struct Part {
    leaf: u64,
    page: usize,
    within: Range<usize>,
    of_range: Range<usize>,
}

/// Splits `len` bytes at `offset` by pages.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = Part> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let in_leaf = usize::try_from(at % LEAF_SIZE).expect("less than the size of a leaf");
        let start = in_leaf % PAGE_SIZE;
        let step = (PAGE_SIZE - start).min(len - done);
        let of_range = done..done + step;
        done += step;
        let page = in_leaf / PAGE_SIZE;
        Some(Part { leaf: at / LEAF_SIZE, page, within: start..start + step, of_range })
    })
}

impl Image {
    /// Fills `out` with the bytes at `offset`.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        for Part { leaf, page, within, of_range } in parts(offset, out.len()) {
            let found = self.leaves.get(&leaf).and_then(|leaf| leaf.pages[page].as_ref());
            match found {
                Some(page) => out[of_range].copy_from_slice(&page.bytes[within]),
                None => out[of_range].fill(0),
            }
        }
    }

    fn slot(&mut self, leaf: u64, page: usize) -> &mut Option<Arc<Page>> {
        let leaf = Arc::make_mut(self.leaves.entry(leaf).or_insert_with(|| Arc::new(Leaf::empty())));
        leaf.fingerprint = OnceLock::new();
        &mut leaf.pages[page]
    }

    /// The bytes of a page, to be changed.
    fn page(&mut self, leaf: u64, page: usize) -> &mut [u8; PAGE_SIZE] {
        let page = Arc::make_mut(self.slot(leaf, page).get_or_insert_with(|| Page::filled(0)));
        page.fingerprint = OnceLock::new();
        &mut page.bytes
    }

    /// Writes `data` at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for Part { leaf, page, within, of_range } in parts(offset, data.len()) {
            self.page(leaf, page)[within].copy_from_slice(&data[of_range]);
        }
    }

    /// Fills `range` with `byte`. Whole pages cost no memory of their own.
    pub fn fill(&mut self, range: Range<u64>, byte: u8) {
        let filled = (byte != 0).then(|| Page::filled(byte));
        let mut at = range.start;
        while at < range.end {
            let (leaf, in_leaf) = (at / LEAF_SIZE, at % LEAF_SIZE);
            if byte == 0 && !self.leaves.contains_key(&leaf) {
                at += LEAF_SIZE - in_leaf;
                continue;
            }
            if byte == 0 && in_leaf == 0 && range.end - at >= LEAF_SIZE {
                self.leaves.remove(&leaf);
                at += LEAF_SIZE;
                continue;
            }
            let in_leaf = usize::try_from(in_leaf).expect("less than the size of a leaf");
            let start = in_leaf % PAGE_SIZE;
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let step = (PAGE_SIZE - start).min(left);
            if step == PAGE_SIZE {
                self.slot(leaf, in_leaf / PAGE_SIZE).clone_from(&filled);
            } else {
                self.page(leaf, in_leaf / PAGE_SIZE)[start..start + step].fill(byte);
            }
            at += step as u64;
        }
    }

    /// A number that images with the same bytes share, and others practically never. Cheap: what has not changed since
    /// the last time, here or in the image that this is a copy of, is not looked at again.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let of_leaves = self.leaves.iter().map(|(number, leaf)| (*number, leaf.fingerprint()));
        combine(of_leaves.filter(|(_, fingerprint)| *fingerprint != 0))
    }

    /// Pages that have been written.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.leaves.values().flat_map(|leaf| &leaf.pages).flatten().count()
    }
}
