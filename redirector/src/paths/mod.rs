//! The rules of paths (P2 to P9 of `docs/DESIGN.md`): how the error of a way to the LUN is kept from the volume.
//!
//! A [`PathSet`] is a [`crate::lun::Lun`] over one way or several, of which one is in use at a time. While its path is up
//! and there are no ghosts, a request costs one atomic read on top of the link's own work. When the link breaks, its
//! requests come back whole; they are held, and sent again by the next path that answers and leads to the same LUN. Paths
//! that are not in use are asked on fresh connections whether they answer; a better one that answers again is gone back to.
//!
//! What is assumed of a target: the bundled target proves that earlier requests are executed, and tells its restarts
//! from its reconnects. Of a plain NBD server it is assumed that it executes nothing later than `target_quiesce` after
//! a connection is closed. **A restart of a plain NBD server may lose what was completed and not flushed, and nobody
//! notices**: such a server cannot be told from one that only lost its connections. Where that matters, use the bundled
//! target, or a server that has no volatile cache.

mod change;
mod connect;
pub mod kept;
pub mod latency;
mod lobby;
mod prober;
mod replay;
pub mod request;
mod roster;
mod set;
pub mod state;
mod stepped;
mod supervisor;
mod tenure;
mod traffic;
pub mod way;

pub use set::PathSet;
