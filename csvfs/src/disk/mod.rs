//! What is on the LUN besides file data: label, superblock, claims, chunk map, and the areas of the metadata store.
//!
//! `docs/FORMAT.md` describes the structures byte by byte. [`format::format`] makes a volume, [`open::open`] opens it
//! for writing (rules V1 and V2), [`Survey`](survey::Survey) and [`repair`] show and mend what lies outside the store.

pub mod area;
mod batch;
mod blocks;
pub mod claim;
pub mod contest;
mod copy;
mod drained;
pub mod features;
pub mod format;
pub mod frame;
mod heart;
pub mod journal;
pub mod label;
pub mod layout;
pub mod map;
pub mod member;
pub mod open;
mod options;
pub mod repair;
pub mod signature;
mod space;
pub mod superblock;
pub mod survey;
pub mod tree;
pub mod view;

#[cfg(test)]
mod tests;

pub(crate) use drained::{MARGIN, await_drained};
pub use space::{MetadataSpace, SpaceError};
