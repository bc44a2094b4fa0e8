//! A LUN that this kernel already has: an image file, or a block device (kernel iSCSI, FC, NVMe-oF, multipath).
//!
//! I/O is `O_DIRECT` by `io_uring`. The calling thread submits its request itself; one thread per LUN receives the
//! completions and runs what the caller gave to be called. Assumptions: `io_uring` is allowed (Linux 5.11 or later),
//! nobody shortens the file, and whoever shares the file opens it as the same inode (not once through an overlay and
//! once below it).
//!
//! - `open`: what the path names, its geometry.
//! - `lun`: the [`Lun`](crate::lun::Lun) itself.
//! - `request`: a request in flight, and what follows each of its completions.
//! - `ring`: the submission and the completion queue.
//! - `lock`: the exclusive lock, and the proof that no earlier client's write is still on its way.
//! - `registration`: the host's key at the target of a device whose users fence by reservations.
//! - `discard`: trimming a block device.
//! - `kernel`: the system calls that std does not have.

mod discard;
mod kernel;
mod lock;
mod lun;
mod open;
mod registration;
mod request;
mod ring;
#[cfg(test)]
mod tests;

pub use lock::{Exclusive, Holder};
pub use lun::FileLun;
pub use open::{FileLunError, Options};
pub use registration::Registration;
