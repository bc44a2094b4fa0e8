//! The front end against a file system in memory, on real mounts (needs root and /dev/fuse).

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may fail by them")]

mod attributes;
mod data;
mod end;
mod locks;
mod memory;
mod mounted;
mod names;
mod waiting;
