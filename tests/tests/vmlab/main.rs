//! Hosts as whole machines under QEMU: what wants a kernel of its own, a real target, or power that fails.

mod device;
mod machine;
mod reservations;
mod watchdog;
