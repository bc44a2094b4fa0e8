//! The volume: on-disk format, coordinator, node, and front ends.
//!
//! A request walks downwards: a front end ([`fuse`]) translates the kernel's words into those of [`service`]; the
//! [`node`] decides who may do what, and moves file data between the front end and the LUN; what changes or asks the
//! metadata goes as a message ([`proto`]) to the [`coordinator`], which keeps it in a [`store`] on the LUN ([`disk`]).
//! [`volume`] puts the layers together.

// So that the file system of the front end's tests can be used within the crate, too.
#[cfg(test)]
extern crate self as csvfs;

pub mod cluster;
pub mod coordinator;
pub mod disk;
pub mod drill;
pub mod fsck;
pub mod fuse;
pub mod lock_service;
pub mod node;
pub mod peers;
pub mod proto;
pub mod refusal;
pub mod service;
#[cfg(test)]
mod simulation;
mod slots;
pub mod status;
pub mod store;
pub mod types;
pub mod volume;
