//! The lab itself: hosts, networks, daemons, faults, and that nothing is left.

mod daemons;
mod handover;
mod image_lock;
mod mounts;
mod networks;
mod ping_pong;
mod program;
mod source_tree;
mod suites;
mod sweep;
mod touched;
mod traces;
mod volume;
