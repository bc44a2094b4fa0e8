//! The lab: real servers, real mounts and their faults, on one machine.
//!
//! Everything here cleans up when it is dropped, also when a test fails: processes are ended by their id, mounts are
//! detached, scratch folders removed. Waiting is for conditions, with a limit that fails loudly.

pub mod cluster;
pub mod content;
pub mod history;
pub mod model;
pub mod mounted;
pub mod nonsense;
pub mod process;
pub mod programs;
pub mod server;
pub mod site;
pub mod steady;
pub mod suites;
pub mod tgt;
pub mod vmlab;
pub mod wait;

pub use cluster::Cluster;
pub use mounted::Mounted;
pub use process::Running;
pub use server::Server;
pub use site::Site;
