//! Histories of reads and writes of blocks from several nodes, and whether they can be explained.
//!
//! A [`Recorder`] gives every write a value that no other write has, and notes when each operation began and ended. The
//! [`check`] then says whether every block behaved like one register: each operation as if it took effect at one moment
//! between its beginning and its end (linearizability). That is what the nodes of a cluster promise each other: a node
//! that reads after another's write has returned sees it, whatever was transferred, redirected or killed meanwhile.
//!
//! [`Workload`] drives blocks of a file through several mounts at once; [`Register`] is what it drives, so that a store
//! with a planted fault can stand in.

mod checker;
mod operation;
mod recorder;
mod register;
#[cfg(test)]
mod tests;
mod workload;

pub use checker::{Violation, check, check_block};
pub use operation::{Block, History, Kind, Operation, Tick, Value};
pub use recorder::Recorder;
pub use register::{FileRegister, Register, decode, encode};
pub use workload::{Done, Workload};
