//! The ways to make sure that nothing of a silent node reaches a LUN any more (F1), each as one step that succeeds or says
//! why not. When a step is due, who takes it, and what follows is decided by the lockds (`agent::fence`); a drill takes the
//! same steps.
//!
//! | module | what |
//! |---|---|
//! | `incarnation` | under which number a client is known at a target |
//! | `target` | csv-target refuses incarnations for good and drains them |
//! | `reservation` | SCSI units have keys removed and commands aborted |
//! | `command` | a fence agent switches the host off |
//!
//! Everything here waits for others, for bounded times: it is called on threads that may.

mod command;
mod incarnation;
mod reservation;
mod target;

pub use command::{AgentCommand, AgentError};
pub use incarnation::incarnation;
pub use reservation::{UnitError, Units, key_of, node_key};
pub use target::{TargetControl, TargetControlError, TargetMark, Targets};
