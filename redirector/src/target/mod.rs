//! The bundled NBD target, with what a shared disk needs.
//!
//! It exports one file or block device. Beyond NBD it knows *client incarnations*: a client says who it is in a private
//! option (`nbd::wire::opt::HELLO`), can have its own earlier connections drained, and can have an earlier client ended
//! for good; so that "nothing of it can reach the disk any more" is a fact that the target proves, not a wait that one
//! hopes is long enough. The control port fences clients, counts what each has asked for, and switches faults on.
//!
//! A request goes from `inbox` to `request` (decoded and checked) to `connection` (executed, or handed to
//! `workers`) to `disk` and `backing`, and back by `reply` through `channel`. Who may send requests at all is
//! decided by `negotiation` with the books of `admission`. Everything is plain threads: one per connection, and up to
//! 16 workers that each has for what would keep it waiting.

mod admission;
mod backing;
mod channel;
mod connection;
mod control;
mod counters;
mod disk;
mod ended;
mod fault;
mod inbox;
mod negotiation;
mod reply;
mod request;
mod server;
mod socket;
mod stripes;
mod sys;
mod tls;
mod workers;

pub use admission::{BootId, ClientStatus, Refusal};
pub use backing::BackingError;
pub use control::{ControlError, ask};
pub use counters::{Counts, Touched};
pub use ended::EndedError;
pub use fault::{Action, FaultId, FaultSpec, FaultStatus, Faults, TooManyFaults};
pub use negotiation::HELLO_LIST_IN_MEMORY;
pub use request::Kind;
pub use server::{Config, FenceError, Server, ServerHandle, Status, TargetError};
pub use socket::{Address, AddressError};
pub use sys::Signals;
pub use tls::TlsError;
