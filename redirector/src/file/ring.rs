//! The submission and the completion queue of one LUN.
//!
//! A caller's thread puts its request into a free slot, pushes the submission and enters the kernel itself. When it comes
//! back and finds completions (its own, if the kernel had the data at hand), it ends these requests on the way. All
//! other completions are awaited by one thread, the reaper. As long as every request is completed on the way, the reaper
//! sleeps apart from the kernel's queue, so that it is not woken for nothing; whoever leaves a request in flight wakes
//! it.
//!
//! What a completion calls may submit again. It never waits for a slot, or nobody might be left to free one: such
//! requests go to a backlog, which is at most as long as what such calls submit while all slots are taken.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue};
use parking_lot::{Condvar, Mutex};

use super::request::{Request, Target};
use crate::lun::Outcome;

/// The user data of the submission that wakes the reaper.
const WAKE: u64 = u64::MAX;
/// How often an `io_uring_enter` that the kernel has no memory for is repeated, a millisecond apart.
const ENTER_RETRIES_MAX: u32 = 5000;

/// Completions that are taken at once.
const BATCH_MAX: usize = 32;
/// After so many more requests that were completed on the way than others, the reaper sleeps apart.
const INLINE_MIN: u32 = 32;
const INLINE_MAX: u32 = 64;

thread_local! {
    /// Whether this thread runs what a completion calls.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

#[derive(Default)]
struct Queue {
    free: Vec<u16>,
    backlog: VecDeque<Request>,
    /// Threads that wait for a slot.
    waiting: usize,
    /// Requests that were completed on the way, against others: from 0 to `INLINE_MAX`.
    inline: u32,
    /// The reaper sleeps apart from the kernel's queue; nothing is in flight, or somebody is about to wake it.
    parked: bool,
}

/// What a look at the completion queue found.
struct Completed {
    /// How many completions were taken.
    count: usize,
    /// Whether the one that the caller hoped for was among them.
    awaited: bool,
}

/// The queues, and the requests in flight.
pub struct Ring {
    uring: IoUring,
    pub target: Target,
    slots: Box<[Mutex<Option<Request>>]>,
    /// Guards the submission queue as well.
    queue: Mutex<Queue>,
    /// Guards the completion queue.
    completions: Mutex<()>,
    room: Condvar,
    unparked: Condvar,
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
            completions: Mutex::new(()),
            room: Condvar::new(),
            unparked: Condvar::new(),
            closing: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            ghosts: Mutex::new(Vec::new()),
        })
    }

    /// Starts `request`. Waits while all slots are taken.
    pub fn submit(&self, request: Request) {
        let in_callback = IN_CALLBACK.get();
        let mut queue = self.queue.lock();
        let slot = loop {
            if self.is_broken() {
                drop(queue);
                // It never reached the kernel.
                return request.end(Outcome::Failed(libc::EIO));
            }
            if let Some(slot) = queue.free.pop() {
                break slot;
            }
            if in_callback {
                queue.backlog.push_back(request);
                return self.unpark(&mut queue);
            }
            queue.waiting += 1;
            self.room.wait(&mut queue);
            queue.waiting -= 1;
        };
        self.occupy(slot, request);
        drop(queue);
        self.submit_pushed();
        let done = !in_callback && self.end_completed(Some(slot)).awaited;
        let mut queue = self.queue.lock();
        if done {
            queue.inline = (queue.inline + 1).min(INLINE_MAX);
        } else {
            queue.inline = queue.inline.saturating_sub(1);
            self.unpark(&mut queue);
        }
    }

    /// Wakes the reaper if it sleeps apart and something is in flight.
    fn unpark(&self, queue: &mut Queue) {
        if queue.parked && queue.free.len() < self.slots.len() {
            queue.parked = false;
            self.unparked.notify_one();
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

    /// Submits what has been pushed.
    fn submit_pushed(&self) {
        if let Err(error) = self.enter(0) {
            self.break_down(&error);
        }
    }

    /// Ends the reaper as soon as nothing is in flight. To be called when nobody submits any more.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        let wake = opcode::Nop::new().build().user_data(WAKE);
        let mut queue = self.queue.lock();
        self.push(&wake);
        queue.parked = false;
        self.unparked.notify_one();
        drop(queue);
        self.submit_pushed();
    }

    /// The reaper: receives completions until the ring is closed and nothing is in flight.
    pub fn reap(&self) {
        while !self.is_broken() {
            if self.end_completed(None).count > 0 {
                continue;
            }
            let mut queue = self.queue.lock();
            let idle = self.is_idle(&queue);
            if self.closing.load(Ordering::Acquire) {
                if idle {
                    return;
                }
            } else if idle && queue.inline >= INLINE_MIN {
                queue.parked = true;
                while queue.parked {
                    self.unparked.wait(&mut queue);
                }
                continue;
            }
            drop(queue);
            if let Err(error) = self.enter(1) {
                self.break_down(&error);
            }
        }
    }

    /// Takes completions that are there (a batch of them at most), and ends their requests or lets them go on.
    fn end_completed(&self, awaited: Option<u16>) -> Completed {
        let mut batch = [(WAKE, 0); BATCH_MAX];
        let mut count = 0;
        {
            let _guard = self.completions.lock();
            // SAFETY: the lock of `completions` is held, so this is the only `CompletionQueue`.
            let completions = unsafe { self.uring.completion_shared() };
            for (place, completion) in batch.iter_mut().zip(completions) {
                *place = (completion.user_data(), completion.result());
                count += 1;
            }
        }
        if count == 0 {
            return Completed { count, awaited: false };
        }
        let awaited =
            awaited.is_some_and(|slot| batch[..count].iter().any(|(data, _)| *data == u64::from(slot)));
        let ended = self.settle(&batch[..count]);
        let outer = IN_CALLBACK.replace(true);
        for (request, outcome) in ended {
            request.end(outcome);
        }
        IN_CALLBACK.set(outer);
        Completed { count, awaited }
    }

    /// Sorts completions into requests that have ended and such that go on, and gives free slots away.
    fn settle(&self, completions: &[(u64, i32)]) -> Vec<(Request, Outcome)> {
        let mut ended = Vec::with_capacity(completions.len());
        let mut pushed = false;
        let mut queue = self.queue.lock();
        for (slot, result) in completions.iter().filter(|(slot, _)| *slot != WAKE) {
            let number = u16::try_from(*slot).expect("user data is the slot that was submitted");
            // Given up meanwhile, if the ring broke.
            let Some(mut request) = self.slots[usize::from(number)].lock().take() else { continue };
            let next = match request.advance(*result, &self.target) {
                None => Some(request),
                Some(outcome) => {
                    ended.push((request, outcome));
                    queue.backlog.pop_front()
                }
            };
            match next {
                Some(request) => {
                    self.occupy(number, request);
                    pushed = true;
                }
                None => queue.free.push(number),
            }
        }
        for _ in 0..queue.waiting.min(queue.free.len()) {
            self.room.notify_one();
        }
        if pushed {
            self.unpark(&mut queue);
            drop(queue);
            self.submit_pushed();
        }
        ended
    }

    fn is_idle(&self, queue: &Queue) -> bool {
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
            queue.parked = false;
            self.unparked.notify_one();
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
