//! Tasks that run on the thread that wakes them.
//!
//! What a request does in several steps (truncate, commit, copy on write) is written as an `async` block, and is
//! polled by whichever thread completes the step it waits for: a LUN's completion thread, the coordinator's, or the
//! front end's. There is no executor thread and no hand-over between threads. A thread that wakes tasks while it polls
//! one queues them and polls them afterwards, so that long chains of wake-ups need no stack.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
/// Woken while it was running: it is polled once more.
const AGAIN: u8 = 3;

struct Task {
    state: AtomicU8,
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let woken = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| match state {
            IDLE => Some(QUEUED),
            RUNNING => Some(AGAIN),
            _ => None,
        });
        if woken == Ok(IDLE) {
            queue(self);
        }
    }
}

impl Task {
    /// Polls once; whether it has to be polled again.
    fn poll(self: &Arc<Self>) -> bool {
        self.state.store(RUNNING, Ordering::Release);
        let waker = Waker::from(Arc::clone(self));
        let mut future = self.future.lock();
        if let Some(running) = future.as_mut()
            && running.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
        {
            *future = None;
        }
        drop(future);
        let idle = self.state.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire);
        if idle.is_err() {
            self.state.store(QUEUED, Ordering::Release);
        }
        idle.is_err()
    }
}

#[derive(Default)]
struct Queue {
    polling: bool,
    tasks: VecDeque<Arc<Task>>,
}

thread_local! {
    static QUEUE: RefCell<Queue> = RefCell::default();
}

/// Ends a thread's polling, also when a poll panics.
struct Polling;

impl Drop for Polling {
    fn drop(&mut self) {
        QUEUE.with_borrow_mut(|queue| queue.polling = false);
    }
}

fn queue(task: Arc<Task>) {
    let polls_already = QUEUE.with_borrow_mut(|queue| {
        queue.tasks.push_back(task);
        std::mem::replace(&mut queue.polling, true)
    });
    if polls_already {
        return;
    }
    let _polling = Polling;
    while let Some(task) = QUEUE.with_borrow_mut(|queue| queue.tasks.pop_front()) {
        if task.poll() {
            QUEUE.with_borrow_mut(|queue| queue.tasks.push_back(task));
        }
    }
}

/// Starts `future` on this thread; it goes on wherever it is woken.
pub(super) fn run(future: impl Future<Output = ()> + Send + 'static) {
    queue(Arc::new(Task { state: AtomicU8::new(QUEUED), future: Mutex::new(Some(Box::pin(future))) }));
}

enum Slot<T> {
    Empty,
    Waiting(Waker),
    Full(T),
    Closed,
}

/// The sending half of a [`promise`]. Dropped unused, it tells the receiver so.
pub(super) struct Sender<T>(Option<Arc<Mutex<Slot<T>>>>);

/// The receiving half of a [`promise`]: a future, `None` if the sender is gone.
pub(super) struct Receiver<T>(Arc<Mutex<Slot<T>>>);

/// A value that comes once, from any thread.
pub(super) fn promise<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Mutex::new(Slot::Empty));
    (Sender(Some(Arc::clone(&slot))), Receiver(slot))
}

fn fill<T>(slot: &Mutex<Slot<T>>, with: Slot<T>) {
    let before = std::mem::replace(&mut *slot.lock(), with);
    if let Slot::Waiting(waker) = before {
        waker.wake();
    }
}

impl<T> Sender<T> {
    /// Sends the value and wakes the receiver, which may run on this thread before `send` returns: call it without
    /// holding any lock.
    pub(super) fn send(mut self, value: T) {
        if let Some(slot) = self.0.take() {
            fill(&slot, Slot::Full(value));
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            fill(&slot, Slot::Closed);
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut slot = self.0.lock();
        match std::mem::replace(&mut *slot, Slot::Closed) {
            Slot::Full(value) => Poll::Ready(Some(value)),
            Slot::Closed => Poll::Ready(None),
            Slot::Empty | Slot::Waiting(_) => {
                *slot = Slot::Waiting(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_task_goes_on_where_it_is_woken() {
        let (sender, receiver) = promise();
        let (told, tell) = mpsc::channel();
        run(async move {
            let value: Option<u32> = receiver.await;
            let _ = told.send((value, std::thread::current().id()));
        });
        assert!(tell.try_recv().is_err());
        let waker = std::thread::spawn(move || {
            sender.send(7);
            std::thread::current().id()
        });
        let id = waker.join().unwrap();
        assert_eq!(tell.recv().unwrap(), (Some(7), id));
    }

    #[test]
    fn a_long_chain_of_wake_ups_needs_no_stack() {
        let count = Arc::new(AtomicU32::new(0));
        let (first, mut receiver) = promise::<()>();
        for _ in 0..100_000 {
            let (next, after) = promise();
            let count = Arc::clone(&count);
            run(async move {
                receiver.await;
                count.fetch_add(1, Ordering::Relaxed);
                next.send(());
            });
            receiver = after;
        }
        first.send(());
        assert_eq!(count.load(Ordering::Relaxed), 100_000);
    }

    #[test]
    fn a_sender_that_is_dropped_ends_the_wait() {
        let (sender, receiver) = promise::<u8>();
        let (told, tell) = mpsc::channel();
        run(async move {
            let _ = told.send(receiver.await);
        });
        drop(sender);
        assert_eq!(tell.recv().unwrap(), None);
    }
}
