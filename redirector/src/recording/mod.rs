//! Recording what a program does to a LUN, and every state that a crash could leave behind.
//!
//! The model of the LUN: it has a volatile cache. A write (a zero, a trim) may reach the medium from the moment it is
//! started, in 512-byte sectors, each on its own and in any order. It is certainly there when it was done before a flush
//! was *started* and that flush is done, or when it was a FUA write and is done. Of writes to one sector the medium
//! never takes an older one after a newer one, the newer being the one that was done later.
//!
//! - `lun`: [`RecordingLun`], a LUN in memory that records.
//! - `record`: what has been recorded.
//! - `states`: [`CrashStates`], the states at each point where something became durable.
//! - `selection`: which of the undecided writes a state has, and which parts of them.

mod lun;
mod record;
mod selection;
mod states;
#[cfg(test)]
mod tests;

pub use lun::{Completion, RecordingLun, TRIMMED};
pub use record::Record;
pub use selection::Kept;
pub use states::{CrashState, CrashStates, Sampling};
