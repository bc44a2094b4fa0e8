//! What is on the LUN besides file data: label, superblock, claims, chunk map, and the areas of the metadata store.

mod space;

pub use space::{MetadataSpace, SpaceError};
