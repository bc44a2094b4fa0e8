//! Blocks through a peer: how a node whose own paths are all down reaches the LUN (`docs/REDIRECTION.md`, R1).
//!
//! [`PeerWay`] is one more way of a [`PathSet`](crate::paths::PathSet), for each other node; [`Host`] serves the others by
//! this node's own direct path.

pub mod wire;

mod guests;
mod host;
mod link;
mod way;

pub use host::{Admits, Host, HostFigures, HostOptions};
pub use way::{PeerWay, Traveller};
pub use wire::Who;

use std::time::Duration;

/// How long after the last exchange a host may execute a request at most (R1).
pub const KEPT_AT_MOST: Duration = Duration::from_secs(5);
