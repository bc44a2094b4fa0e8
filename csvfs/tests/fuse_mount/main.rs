//! The front end against a file system in memory, on real mounts (needs root and /dev/fuse).

mod attributes;
mod data;
mod end;
mod locks;
mod memory;
mod mounted;
mod names;
