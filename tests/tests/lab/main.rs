//! The lab itself: hosts, networks, daemons, faults, and that nothing is left.

mod claims;
mod daemons;
mod mounts;
mod networks;
mod pages;
mod program;
mod sweep;
mod traces;
mod transfer;
mod volume;
