//! Trimming a block device: an ioctl that waits, so it has a thread of its own.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::kernel;
use super::ring::Ring;
use crate::lun::{OnDone, Outcome};

/// Discards that wait at most; further ones wait to be queued.
const QUEUE_MAX: usize = 64;

struct Discard {
    range: Range<u64>,
    on_done: OnDone,
}

/// The thread that discards.
#[derive(Debug)]
pub struct Discarder {
    /// `None` once it is closed.
    queue: Option<SyncSender<Discard>>,
    thread: Option<JoinHandle<()>>,
}

impl Discarder {
    /// Starts the thread.
    pub fn start(ring: Arc<Ring>) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let thread =
            thread::Builder::new().name("lun-discard".to_owned()).spawn(move || run(&ring, &receiver))?;
        Ok(Self { queue: Some(sender), thread: Some(thread) })
    }

    /// Discards `range`.
    pub fn discard(&self, range: Range<u64>, on_done: OnDone) {
        let discard = Discard { range, on_done };
        match &self.queue {
            Some(queue) => {
                if let Err(error) = queue.send(discard) {
                    (error.0.on_done)(Outcome::Failed(libc::EIO));
                }
            }
            None => (discard.on_done)(Outcome::Failed(libc::EIO)),
        }
    }
}

impl Drop for Discarder {
    fn drop(&mut self) {
        self.queue = None;
        let thread = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id());
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the discarding thread panicked");
        }
    }
}

fn run(ring: &Ring, queue: &Receiver<Discard>) {
    while let Ok(Discard { range, on_done }) = queue.recv() {
        let outcome = match kernel::discard(&ring.target.opened.file, &range) {
            Ok(()) => Outcome::Done,
            // A device may say that it discards and then not: what is trimmed does not matter.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Outcome::Done,
            Err(error) => ring.target.failed(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        on_done(outcome);
    }
}
