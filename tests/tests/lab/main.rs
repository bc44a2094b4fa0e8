//! The lab itself: hosts, networks, daemons, faults, and that nothing is left.

mod bad_input;
mod claims;
mod daemons;
mod failpoints;
mod fencing;
mod handover;
mod image_lock;
mod lockctl;
mod mounts;
mod names;
mod networks;
mod pages;
mod ping_pong;
mod program;
mod quiesce;
mod random_faults;
mod source_tree;
mod status;
mod suites;
mod sweep;
mod takeover;
mod touched;
mod traces;
mod transfer;
mod volume;
