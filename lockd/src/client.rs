//! The library by which mounts, virtual machine hosts and `lockctl` speak to the lockd of their node.
//!
//! [`Connection`] is for questions. [`LockClient`] is a registered client of the node's session: it holds resources and
//! locks, sees the session's lease, and serves what is forwarded to it. Both wait for a lockd that is not there, say so
//! in the log, and go on when it is back; a command is then sent again in its slot, and takes effect once (L5, L11).
//!
//! Threads: one reads the connection, one runs the callbacks in their order (a callback may block, and use the client),
//! and each forwarded request has its own, so many at a time as [`ASKS_MAX`].

mod authority;
mod choice;
mod connection;
mod error;
mod holder;
mod link;
mod listener;
mod lock_client;
mod locks;
mod outbox;
mod transfer;
mod upcalls;

pub use choice::{Choice, ChoiceError};
pub use connection::Connection;
pub use error::ClientError;
pub use holder::{HolderReply, HolderRequest, check_epoch};
pub use listener::{Deaf, Listener};
pub use lock_client::{ClientConfig, LockClient};
pub use locks::LockHandle;
pub use transfer::{Set, Transferred};
pub use upcalls::ASKS_MAX;
