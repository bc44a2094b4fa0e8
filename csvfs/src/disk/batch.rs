//! Requests sent side by side and awaited together.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use redirector::buffer::Slice;
use redirector::lun::{Lun, OnDone, Outcome};

/// The first request of a batch that did not end well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    /// Where it was, in bytes of the LUN; nothing for a flush.
    pub offset: Option<u64>,
    /// How it ended: failed or unknown.
    pub outcome: Outcome,
}

#[derive(Default)]
struct Progress {
    in_flight: usize,
    /// Whoever waits is woken at so many.
    awaited: usize,
    failure: Option<Failure>,
}

/// Requests in flight whose end is awaited.
#[derive(Clone, Default)]
pub(super) struct Batch {
    shared: Arc<(Mutex<Progress>, Condvar)>,
}

impl Batch {
    fn start(&self, offset: Option<u64>) -> OnDone {
        self.shared.0.lock().in_flight += 1;
        let shared = Arc::clone(&self.shared);
        Box::new(move |outcome| {
            let mut progress = shared.0.lock();
            progress.in_flight -= 1;
            if outcome != Outcome::Done && progress.failure.is_none() {
                progress.failure = Some(Failure { offset, outcome });
            }
            // One wake-up for the whole batch, not one for each request.
            if progress.in_flight <= progress.awaited {
                shared.1.notify_all();
            }
        })
    }

    /// Sends a write.
    pub(super) fn write(&self, lun: &dyn Lun, offset: u64, data: Slice, fua: bool) {
        lun.write(offset, data, fua, self.start(Some(offset)));
    }

    /// Sends a flush.
    pub(super) fn flush(&self, lun: &dyn Lun) {
        lun.flush(self.start(None));
    }

    /// Waits until at most `most` requests are in flight.
    pub(super) fn wait_until(&self, most: usize) -> Result<(), Failure> {
        let mut progress = self.shared.0.lock();
        progress.awaited = most;
        while progress.in_flight > most {
            self.shared.1.wait(&mut progress);
        }
        progress.failure.map_or(Ok(()), Err)
    }

    /// Waits for all requests.
    pub(super) fn wait(&self) -> Result<(), Failure> {
        self.wait_until(0)
    }
}
