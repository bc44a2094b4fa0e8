//! The submission and the completion queue of one LUN.
//!
//! A caller's thread puts its request into a free slot, pushes the submission and enters the kernel itself. One thread,
//! the reaper, waits for completions. Requests that are started on the reaper (by what it calls) never wait, or nobody
//! would free a slot: they go to a backlog, which is at most as long as the number of requests that have just ended.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue};
use parking_lot::{Condvar, Mutex};

use super::request::{Request, Target};
use crate::lun::Outcome;

/// The user data of the submission that wakes the reaper.
const WAKE: u64 = u64::MAX;
/// How often an `io_uring_enter` that the kernel has no memory for is repeated, a millisecond apart.
const ENTER_RETRIES_MAX: u32 = 5000;

#[derive(Default)]
struct Queue {
    free: Vec<u16>,
    backlog: VecDeque<Request>,
    /// Threads that wait for a slot.
    waiting: usize,
}

/// The queues, and the requests in flight.
pub struct Ring {
    uring: IoUring,
    pub target: Target,
    slots: Box<[Mutex<Option<Request>>]>,
    /// Guards the submission queue as well.
    queue: Mutex<Queue>,
    room: Condvar,
    reaper: OnceLock<ThreadId>,
    closing: AtomicBool,
    broken: AtomicBool,
    ghosts: Mutex<Vec<Range<u64>>>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for `depth` requests in flight.
    pub fn new(target: Target, depth: u16) -> io::Result<Self> {
        let depth = depth.max(1);
        // One submission per slot and the wake-up always fit; so do their completions.
        let uring = IoUring::builder().dontfork().build(u32::from(depth) * 2)?;
        let queue = Queue { free: (0..depth).rev().collect(), ..Queue::default() };
        Ok(Self {
            uring,
            target,
            slots: (0..depth).map(|_| Mutex::new(None)).collect(),
            queue: Mutex::new(queue),
            room: Condvar::new(),
            reaper: OnceLock::new(),
            closing: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            ghosts: Mutex::new(Vec::new()),
        })
    }

    /// Starts `request`. Waits while all slots are taken.
    pub fn submit(&self, request: Request) {
        let on_reaper = self.is_reaper();
        let mut queue = self.queue.lock();
        let slot = loop {
            if self.broken.load(Ordering::Relaxed) {
                drop(queue);
                // It never reached the kernel.
                return request.end(Outcome::Failed(libc::EIO));
            }
            if let Some(slot) = queue.free.pop() {
                break slot;
            }
            if on_reaper {
                queue.backlog.push_back(request);
                return;
            }
            queue.waiting += 1;
            self.room.wait(&mut queue);
            queue.waiting -= 1;
        };
        self.occupy(slot, request);
        drop(queue);
        // The reaper submits what it has started when it has run all that it had to call.
        if !on_reaper && let Err(error) = self.enter(0) {
            self.break_down(&error);
        }
    }

    /// Puts `request` into `slot` and pushes its submission. The caller holds the lock of `queue`.
    fn occupy(&self, slot: u16, mut request: Request) {
        let entry = request.entry(&self.target).user_data(u64::from(slot));
        *self.slots[usize::from(slot)].lock() = Some(request);
        self.push(&entry);
    }

    /// Pushes a submission. The caller holds the lock of `queue`.
    fn push(&self, entry: &squeue::Entry) {
        // SAFETY: the lock of `queue` is held, so this is the only `SubmissionQueue`. The memory that `entry` points to
        // is owned by the request in its slot, which leaves it only with its completion (or is leaked).
        let pushed = unsafe { self.uring.submission_shared().push(entry) };
        assert!(pushed.is_ok(), "the submission queue has an entry for every slot");
    }

    /// Submits what has been pushed and waits for `want` completions.
    fn enter(&self, want: usize) -> io::Result<()> {
        for _ in 0..ENTER_RETRIES_MAX {
            match self.uring.submitter().submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    fn is_reaper(&self) -> bool {
        self.reaper.get().is_some_and(|reaper| *reaper == thread::current().id())
    }

    /// Ends the reaper as soon as nothing is in flight. To be called when nobody submits any more.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        let wake = opcode::Nop::new().build().user_data(WAKE);
        let queue = self.queue.lock();
        self.push(&wake);
        drop(queue);
        if !self.is_reaper()
            && let Err(error) = self.enter(0)
        {
            self.break_down(&error);
        }
    }

    /// Receives completions until the ring is closed and nothing is in flight.
    pub fn reap(&self) {
        let _ = self.reaper.set(thread::current().id());
        let mut completions: Vec<(u64, i32)> = Vec::with_capacity(self.slots.len() + 1);
        let mut ended = Vec::with_capacity(self.slots.len());
        loop {
            // SAFETY: only the reaper looks at the completion queue, and this value dies at the end of the statement.
            completions
                .extend(unsafe { self.uring.completion_shared() }.map(|c| (c.user_data(), c.result())));
            self.settle(&mut completions, &mut ended);
            for (request, outcome) in ended.drain(..) {
                Request::end(request, outcome);
            }
            if self.closing.load(Ordering::Acquire) && self.is_idle() {
                return;
            }
            // SAFETY: as above.
            let want = usize::from(unsafe { self.uring.completion_shared() }.is_empty());
            if self.is_broken() {
                return;
            }
            if let Err(error) = self.enter(want) {
                self.break_down(&error);
            }
        }
    }

    /// Sorts `completions` into requests that have ended and such that go on, and gives free slots away.
    fn settle(&self, completions: &mut Vec<(u64, i32)>, ended: &mut Vec<(Request, Outcome)>) {
        if completions.is_empty() {
            return;
        }
        let mut queue = self.queue.lock();
        for (slot, result) in completions.drain(..).filter(|(slot, _)| *slot != WAKE) {
            let number = u16::try_from(slot).expect("user data is the slot that was submitted");
            // Given up meanwhile, if the ring broke.
            let Some(mut request) = self.slots[usize::from(number)].lock().take() else { continue };
            match request.advance(result, &self.target) {
                None => self.occupy(number, request),
                Some(outcome) => {
                    ended.push((request, outcome));
                    match queue.backlog.pop_front() {
                        Some(next) => self.occupy(number, next),
                        None => queue.free.push(number),
                    }
                }
            }
        }
        for _ in 0..queue.waiting.min(queue.free.len()) {
            self.room.notify_one();
        }
    }

    fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        queue.free.len() == self.slots.len() && queue.backlog.is_empty()
    }

    /// Whether the kernel has refused the ring itself.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The ring does not work: nothing more is submitted, and what is in flight ends with an unknown outcome.
    fn break_down(&self, error: &io::Error) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "io_uring does not work any more: every request to this LUN fails from now on");
        }
        let mut abandoned = Vec::new();
        {
            let mut queue = self.queue.lock();
            self.room.notify_all();
            abandoned.extend(self.slots.iter().filter_map(|slot| slot.lock().take()));
            self.ghosts.lock().extend(abandoned.iter().filter_map(Request::changes));
            abandoned.extend(queue.backlog.drain(..));
        }
        for request in abandoned {
            request.abandon();
        }
    }

    /// Ranges of requests whose outcome is unknown: none while the ring works.
    pub fn ghosts(&self) -> Vec<Range<u64>> {
        self.ghosts.lock().clone()
    }
}
