//! The store's own format (redb's, version 3), as far as it takes to check each page when it is read, and to read what
//! is left of a damaged store. redb checks its checksums only when it is asked to check all of them; what it reads
//! meanwhile it believes, and it panics over pages that contradict themselves. So nothing is handed to it that has not
//! been checked.
//!
//! | page | bytes |
//! |---|---|
//! | header | 0..9 magic, 9 flags (1: slot 1 is in force), 12 page size, 16 header pages and 20 data pages of a region; slots at 64 and 192 |
//! | slot | 0 version, 1 and 2 whether the trees are there, 8 root of the tables, 40 root of redb's own tables, 112 checksum of the bytes before |
//! | root | 8 bytes page, 16 checksum, 8 number of rows |
//! | leaf | 0 type 1, 2..4 pairs; ends of keys and of values (4 bytes each) where their length varies; keys; values |
//! | branch | 0 type 2, 2..4 keys; from 8 on the children's checksums, their pages; ends of keys where their length varies; keys |
//!
//! A page's number: 20 bits index, 20 bits region, the highest 5 bits the order: 4096 << order bytes long. A checksum is
//! XXH3-128 of the page up to the end of its last value or key. The tables of a tree of tables are rows: name, and a
//! definition with the root and the lengths of keys and values.

mod header;
mod ledger;
mod node;
mod table;
mod walk;

#[cfg(test)]
mod tests;

pub(super) use ledger::{Ledger, Wrong};
pub(super) use walk::walk;
pub use walk::{BAD_MAX, BadPage, Row, Walk};
