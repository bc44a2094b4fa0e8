//! The volume as a mounted file system: the kernel's FUSE protocol on one side, [`FileService`](crate::service::FileService) on the other.
//!
//! We open /dev/fuse and mount it ourselves. `dispatcher` threads, each with a descriptor of its own, take the
//! requests: what moves data or is asked at every open and close, and what fuser hides or does not know, they hand to
//! the service at once; the rest goes over a `bridge` to fuser, whose calls `filesystem` translates. Whatever the
//! way, no thread waits for an answer: the thread that completes a request sends the reply. The kernel checks
//! permissions (`default_permissions`). `docs/FUSE.md` tells why it is so.

mod abi;
mod attributes;
mod bridge;
mod caching;
mod connection;
mod device;
mod directory;
mod dispatcher;
mod filesystem;
mod gathering;
mod inbox;
mod locks;
mod mount;
mod mountpoint;
mod options;
mod pages;
mod relief;
mod reply;
mod rota;
mod sys;
mod told;
mod vigil;

pub use caching::Caching;
pub use mount::{MountError, MountHandle, Unmounter, mount};
pub use options::{MountOptions, OptionError};
