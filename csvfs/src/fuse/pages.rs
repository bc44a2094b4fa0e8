//! The kernel's page cache, told to drop pages.
//!
//! The kernel waits inside of the notification for every page that is being read or written, and writes back what
//! programs have changed: by requests to this very mount. So a thread of its own sends it, and no thread that takes
//! requests or completes them ever waits for it.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use super::abi::{InvalInodeOut, NOTIFY_INVAL_INODE, OutHeader};
use super::device::Device;
use super::told::Told;
use crate::service::Pages;
use crate::types::Ino;

enum What {
    /// Pages of this inode.
    Pages(Ino, Range<u64>),
    /// Attributes of these inodes, each of which may be kept until then.
    Attributes(Vec<(Ino, Instant)>),
}

struct Job {
    what: What,
    then: Box<dyn FnOnce() + Send>,
}

/// How often a kernel that does not know the inode yet is told again.
const AGAIN: Duration = Duration::from_millis(1);

/// See the module. The thread ends when this is dropped. As many jobs wait at most as other nodes have changes under
/// way.
#[derive(Debug)]
pub(super) struct KernelPages {
    jobs: Sender<Job>,
    told: Arc<Told>,
}

impl KernelPages {
    /// Of the connection of `device`, which was `told` this.
    pub(super) fn start(device: &Arc<Device>, told: &Arc<Told>) -> io::Result<Self> {
        let (sender, jobs) = channel();
        let device = Arc::clone(device);
        std::thread::Builder::new().name("fuse-pages".to_owned()).spawn(move || run(&device, &jobs))?;
        Ok(Self { jobs: sender, told: Arc::clone(told) })
    }

    fn send(&self, what: What, then: Box<dyn FnOnce() + Send>) {
        if let Err(unsent) = self.jobs.send(Job { what, then }) {
            // Only a panic ends the thread; who waits is answered.
            (unsent.0.then)();
        }
    }
}

impl Pages for KernelPages {
    fn drop_range(&self, ino: Ino, bytes: Range<u64>, then: Box<dyn FnOnce() + Send>) {
        self.send(What::Pages(ino, bytes), then);
    }

    fn drop_attributes(&self, ino: Option<Ino>, then: Box<dyn FnOnce() + Send>) {
        let kept = self.told.kept(ino);
        if kept.is_empty() { then() } else { self.send(What::Attributes(kept), then) }
    }
}

fn run(device: &Device, jobs: &Receiver<Job>) {
    for Job { what, then } in jobs {
        match what {
            What::Pages(ino, bytes) => drop_pages(device, ino, &bytes),
            What::Attributes(kept) => {
                kept.into_iter().for_each(|(ino, until)| drop_attributes(device, ino, until));
            }
        }
        then();
    }
}

fn drop_pages(device: &Device, ino: Ino, bytes: &Range<u64>) {
    // A length of zero means up to the end.
    let len = i64::try_from(bytes.end - bytes.start).unwrap_or(0);
    let offset = i64::try_from(bytes.start).unwrap_or(0);
    if let Err(error) = notify(device, ino, offset, len) {
        // ENOENT: the kernel does not know the inode, and has no page of it.
        complain(ino, "drop pages", &error);
    }
}

/// Until the kernel has forgotten them, or keeps them no longer.
fn drop_attributes(device: &Device, ino: Ino, until: Instant) {
    // A negative offset: the attributes alone.
    while let Err(error) = notify(device, ino, -1, 0) {
        complain(ino, "forget attributes", &error);
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(AGAIN));
    }
}

/// The inode is not known, or nothing is mounted any more: that is no fault.
fn complain(ino: Ino, what: &str, error: &io::Error) {
    let gone = [libc::ENOENT, libc::ENODEV, libc::ENOTCONN, libc::ECONNABORTED, libc::EPERM];
    if !error.raw_os_error().is_some_and(|errno| gone.contains(&errno)) {
        tracing::error!(ino = ino.0, "the kernel does not {what} that are old: {error}");
    }
}

fn notify(device: &Device, ino: Ino, offset: i64, len: i64) -> io::Result<()> {
    let length = size_of::<OutHeader>() + size_of::<InvalInodeOut>();
    let length = u32::try_from(length).map_err(io::Error::other)?;
    let header = OutHeader { len: length, error: NOTIFY_INVAL_INODE, unique: 0 };
    let body = InvalInodeOut { ino: ino.0, offset, len };
    device.send(&[IoSlice::new(header.as_bytes()), IoSlice::new(body.as_bytes())])
}
