//! Tests of the state machine. After every step all invariants are looked at.

mod cluster;
mod codec;
mod fences;
mod handover;
mod holdings;
mod lapse;
mod locking;
mod model;
mod once;
mod property;
mod sessions;
mod takeover;
mod terms;
