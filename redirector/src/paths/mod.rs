//! The rules of paths (P2 to P9 of `docs/DESIGN.md`): how the error of a way to the LUN is kept from the volume.
//!
//! A [`PathSet`] is a [`crate::lun::Lun`] over one way, shaped for several. While its path is up and there are no
//! ghosts, a request costs one atomic read on top of the link's own work. When the link breaks, its requests come back
//! whole; they are held, the path is probed, and when it is back and is still the same LUN they are sent again.
//!
//! What is assumed of a target: the bundled target proves that earlier requests are executed, and tells its restarts
//! from its reconnects. Of a plain NBD server it is assumed that it executes nothing later than `target_quiesce` after
//! a connection is closed. **A restart of a plain NBD server may lose what was completed and not flushed, and nobody
//! notices**: such a server cannot be told from one that only lost its connections. Where that matters, use the bundled
//! target, or a server that has no volatile cache.

pub mod kept;
pub mod latency;
mod lobby;
pub mod request;
mod set;
pub mod state;
mod supervisor;
mod tenure;
mod traffic;
pub mod way;

pub use set::PathSet;
