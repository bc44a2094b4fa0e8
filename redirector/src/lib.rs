//! The LUN as a node reaches it.
//!
//! [`lun::Lun`] is what the volume sees: asynchronous reads, writes, flushes, trims and zeroes, many in flight, each
//! completed as done, failed or unknown. Below it are the ways to reach a LUN, and the rules (P1 to P9 of
//! `docs/DESIGN.md`) by which an error of a way is kept from the volume.

pub mod attend;
pub mod blocking;
pub mod buffer;
pub mod file;
pub mod ghosts;
pub mod iscsi;
pub mod lun;
pub mod memory;
pub mod metrics;
pub mod nbd;
pub mod open;
pub mod paths;
pub mod peer;
pub mod plug;
pub mod recording;
pub mod stand_in;
pub mod target;
pub mod uri;
