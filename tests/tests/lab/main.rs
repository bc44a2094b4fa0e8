//! The lab itself: hosts, networks, daemons, faults, and that nothing is left.

mod bad_input;
mod daemons;
mod mounts;
mod networks;
mod program;
mod status;
mod sweep;
mod traces;
mod volume;
