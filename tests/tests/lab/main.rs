//! The lab itself: hosts, networks, daemons, faults, and that nothing is left.

mod bad_input;
mod claims;
mod daemons;
mod mounts;
mod networks;
mod pages;
mod program;
mod status;
mod sweep;
mod traces;
mod transfer;
mod volume;
