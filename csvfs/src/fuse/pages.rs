//! The kernel's page cache, told to drop pages.
//!
//! The kernel waits inside of the notification for every page that is being read or written, and writes back what
//! programs have changed: by requests to this very mount. So a thread of its own sends it, and no thread that takes
//! requests or completes them ever waits for it.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use zerocopy::IntoBytes;

use super::abi::{InvalInodeOut, NOTIFY_INVAL_INODE, OutHeader};
use super::device::Device;
use crate::service::Pages;
use crate::types::Ino;

struct Job {
    ino: Ino,
    bytes: Range<u64>,
    then: Box<dyn FnOnce() + Send>,
}

/// See the module. The thread ends when this is dropped. As many jobs wait at most as other nodes have changes under
/// way.
#[derive(Debug)]
pub(super) struct KernelPages(Sender<Job>);

impl KernelPages {
    /// Of the connection of `device`.
    pub(super) fn start(device: &Arc<Device>) -> io::Result<Self> {
        let (sender, jobs) = channel();
        let device = Arc::clone(device);
        std::thread::Builder::new().name("fuse-pages".to_owned()).spawn(move || run(&device, &jobs))?;
        Ok(Self(sender))
    }
}

impl Pages for KernelPages {
    fn drop_range(&self, ino: Ino, bytes: Range<u64>, then: Box<dyn FnOnce() + Send>) {
        if let Err(unsent) = self.0.send(Job { ino, bytes, then }) {
            // Only a panic ends the thread; who waits is answered.
            (unsent.0.then)();
        }
    }
}

fn run(device: &Device, jobs: &Receiver<Job>) {
    for Job { ino, bytes, then } in jobs {
        if let Err(error) = drop_range(device, ino, &bytes) {
            // ENOENT: the kernel does not know the inode, and has no page of it. The others: nothing is mounted any more.
            let gone = [libc::ENOENT, libc::ENODEV, libc::ENOTCONN, libc::ECONNABORTED, libc::EPERM];
            if !error.raw_os_error().is_some_and(|errno| gone.contains(&errno)) {
                tracing::error!(ino = ino.0, "the kernel does not drop pages that are old: {error}");
            }
        }
        then();
    }
}

fn drop_range(device: &Device, ino: Ino, bytes: &Range<u64>) -> io::Result<()> {
    let len = size_of::<OutHeader>() + size_of::<InvalInodeOut>();
    let len = u32::try_from(len).map_err(io::Error::other)?;
    let header = OutHeader { len, error: NOTIFY_INVAL_INODE, unique: 0 };
    // A length of zero means up to the end.
    let part = i64::try_from(bytes.end - bytes.start).unwrap_or(0);
    let offset = i64::try_from(bytes.start).unwrap_or(0);
    let body = InvalInodeOut { ino: ino.0, offset, len: part };
    device.send(&[IoSlice::new(header.as_bytes()), IoSlice::new(body.as_bytes())])
}
