//! Tests of the state machine. After every step all invariants are looked at.

mod cluster;
mod fences;
mod handover;
mod holdings;
mod lapse;
mod locking;
mod once;
mod sessions;
