//! The lab itself: hosts, networks, daemons, faults, and that nothing is left.

mod daemons;
mod mounts;
mod networks;
mod program;
mod sweep;
mod traces;
mod transfer;
mod volume;
