//! A mount's place in its cluster: lockd for who may do what, QUIC to the other mounts of the volume.
//!
//! One mount of the volume holds the coordinator's role, which lockd grants; the others ask it, and each other, over the
//! network ([`docs/CLUSTER.md`](../../../docs/CLUSTER.md)).

mod error;
mod fencing;
mod holder;
mod locks;
mod member;
mod mortal;
mod not_done;
mod plane;
mod redirection;
mod ways;

pub use error::ClusterError;
pub use fencing::guarantee;
pub use holder::Roles;
pub use locks::ClusterLocks;
pub use member::{Member, Place};
pub use not_done::NotDone;
#[cfg(test)]
pub(crate) use plane::Control;
pub use plane::Plane;
pub use ways::Ways;
