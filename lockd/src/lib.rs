//! The cluster's control plane.
//!
//! What decides in this crate does no I/O. Time, randomness and the network come in through the traits of [`clock`],
//! [`random`], [`network`] and [`peers`], so that a simulation runs the same code as a node. The I/O stands beside it:
//! [`peers`] carries frames between nodes, [`cluster`] reads the cluster file and the certificates.
//! The words used here are those of `docs/DESIGN.md`, section 1; the names of rules (L3, V5, ...) those of its sections
//! 4 to 6.

pub mod agent;
pub mod authority;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod failpoint;
pub mod fencing;
pub mod ids;
pub mod iscsi;
pub mod lease;
pub mod local;
pub mod locks;
pub mod machine;
pub mod network;
pub mod peers;
pub mod raft;
pub mod random;
pub mod reservation;
pub mod rules;
pub mod slots;
pub mod standalone;
