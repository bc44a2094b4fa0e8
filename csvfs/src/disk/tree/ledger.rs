//! What every page must be: known from the page that refers to it, or from having written it.
//!
//! A page is read after the one that refers to it, and that one has been read here or written here. A page is not
//! changed in place: once it is free it is written anew, and then counts what was written. A page that refers to one
//! that was written here may be on its way, with checksums that are not final; what was written counts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::header::{Header, PAGE};
use super::node::{Child, Node, Widths, checksum};
use super::table::Definition;

/// What redb puts where a checksum is not known yet.
const DEFERRED: u128 = 999;
/// A tree of tables: names and definitions.
const TABLES: Widths = Widths { key: None, value: None };
/// Tables at most; a store has twenty.
const TABLES_MAX: usize = 1000;
/// What was written here, not read.
const WRITTEN: u16 = u16::MAX;

/// What a page must be, 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Expected {
    sum: [u8; 16],
    /// Its length in pages of 4 KiB.
    pages: u32,
    /// Which table has it, or [`WRITTEN`].
    table: u16,
}

#[derive(Debug)]
struct Table {
    name: String,
    widths: Widths,
    /// Whether its rows are tables.
    of_tables: bool,
}

#[derive(Debug, Default)]
struct State {
    header: Option<Header>,
    tables: Vec<Table>,
    /// By the number of the first 4 KiB. As many as the store has pages, at most.
    pages: HashMap<u32, Expected>,
}

impl State {
    fn table(&mut self, name: &str, widths: Widths, of_tables: bool) -> Option<u16> {
        let found = self
            .tables
            .iter()
            .position(|table| table.name == name && table.widths == widths && table.of_tables == of_tables);
        let at = match found {
            Some(at) => at,
            None if self.tables.len() < TABLES_MAX => {
                self.tables.push(Table { name: name.to_owned(), widths, of_tables });
                self.tables.len() - 1
            }
            None => return None,
        };
        u16::try_from(at).ok()
    }

    fn learn(&mut self, child: Child, table: u16) {
        let Some(place) = self.header.and_then(|header| header.place(child.page)) else { return };
        let (Ok(page), Ok(pages)) =
            (u32::try_from(place.start / PAGE), u32::try_from((place.end - place.start) / PAGE))
        else {
            return;
        };
        if child.sum == DEFERRED {
            return;
        }
        let expected = Expected { sum: child.sum.to_le_bytes(), pages, table };
        let known = self.pages.entry(page).or_insert(expected);
        if known.table != WRITTEN {
            *known = expected;
        }
    }
}

/// A page is not what it must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// The table that has it.
    pub table: String,
}

/// What is known of every page.
#[derive(Debug, Default)]
pub struct Ledger {
    state: Mutex<State>,
    unknown: AtomicU64,
}

fn number(offset: u64) -> Option<u32> {
    u32::try_from(offset / PAGE).ok()
}

impl Ledger {
    /// `bytes` were read at `offset`: are they what was written there?
    pub fn read(&self, offset: u64, bytes: &[u8]) -> Result<(), Wrong> {
        if offset == 0 {
            self.read_header(bytes);
            return Ok(());
        }
        let (expected, widths, of_tables) = {
            let state = self.state.lock();
            let expected = number(offset).and_then(|page| state.pages.get(&page)).copied();
            let Some(expected) = expected.filter(|known| u64::from(known.pages) * PAGE == bytes.len() as u64)
            else {
                self.unknown.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            };
            let table = state.tables.get(usize::from(expected.table));
            (expected, table.map_or(TABLES, |table| table.widths), table.is_some_and(|table| table.of_tables))
        };
        let sum = u128::from_le_bytes(expected.sum);
        if expected.table == WRITTEN {
            let is_right = checksum(bytes) == sum;
            return if is_right { Ok(()) } else { Err(Wrong { table: "one written just now".to_owned() }) };
        }
        match Node::check(bytes, widths, sum) {
            Some(Node::Branch(branch)) => {
                let mut state = self.state.lock();
                branch.children().for_each(|child| state.learn(child, expected.table));
                Ok(())
            }
            Some(Node::Leaf(leaf)) if of_tables => {
                let mut state = self.state.lock();
                for (name, definition) in leaf.rows() {
                    let Some(Definition { root: Some(root), widths }) = Definition::decode(definition) else {
                        continue;
                    };
                    if let Some(table) = state.table(&String::from_utf8_lossy(name), widths, false) {
                        state.learn(root, table);
                    }
                }
                Ok(())
            }
            Some(Node::Leaf(_)) => Ok(()),
            None => {
                let state = self.state.lock();
                let table = state.tables.get(usize::from(expected.table));
                Err(Wrong { table: table.map_or_else(String::new, |table| table.name.clone()) })
            }
        }
    }

    fn read_header(&self, bytes: &[u8]) {
        let Some(header) = Header::decode(bytes) else { return };
        let mut state = self.state.lock();
        // Only the first one: what has changed since then was written here.
        if state.header.is_some() {
            return;
        }
        state.header = Some(header);
        for (name, root) in [("list of tables", header.tables), ("list of redb's own tables", header.own)] {
            if let Some(root) = root
                && let Some(table) = state.table(name, TABLES, true)
            {
                state.learn(root, table);
            }
        }
    }

    /// `bytes` were written at `offset`.
    pub fn written(&self, offset: u64, bytes: &[u8]) {
        let Some(page) = number(offset).filter(|page| *page > 0) else { return };
        let whole = bytes.len() as u64 / PAGE;
        if !offset.is_multiple_of(PAGE) || whole * PAGE != bytes.len() as u64 {
            self.state.lock().pages.remove(&page);
            return;
        }
        let pages = u32::try_from(whole).unwrap_or(u32::MAX);
        let expected = Expected { sum: checksum(bytes).to_le_bytes(), pages, table: WRITTEN };
        self.state.lock().pages.insert(page, expected);
    }

    /// The area was cut to `len` bytes.
    pub fn cut(&self, len: u64) {
        self.state.lock().pages.retain(|page, _| u64::from(*page) * PAGE < len);
    }

    /// How many pages were read of which nothing was known.
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }
}
