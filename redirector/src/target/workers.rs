//! The threads behind a connection that execute what would keep its own thread too long: flushes, trims, zeroes, durable
//! writes, reads that wait for a disk, and long reads.
//!
//! They are started as they are needed, belong to one connection, and end with it: a client that does not take its
//! answers blocks nobody else's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

/// Threads per connection at most.
const THREADS_MAX: usize = 16;
/// Requests that wait or are executed at most, per connection.
const JOBS_MAX: usize = 256;
/// Bytes of data of these requests at most, per connection; one request of any size is always accepted.
const BYTES_MAX: usize = 64 << 20;

#[derive(Debug)]
struct Queue<J> {
    waiting: VecDeque<(J, usize)>,
    jobs: usize,
    bytes: usize,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

#[derive(Debug)]
struct Shared<J> {
    queue: Mutex<Queue<J>>,
    /// A job waits, or the queue is closed.
    work: Condvar,
    /// There is room for another job.
    room: Condvar,
}

/// A connection's workers. Dropping it waits until all jobs are done.
#[derive(Debug)]
pub(super) struct Workers<J: Send + 'static> {
    shared: Arc<Shared<J>>,
}

impl<J: Send + 'static> Workers<J> {
    pub(super) fn new() -> Self {
        let queue = Queue {
            waiting: VecDeque::new(),
            jobs: 0,
            bytes: 0,
            idle: 0,
            threads: Vec::new(),
            closed: false,
        };
        Self {
            shared: Arc::new(Shared { queue: Mutex::new(queue), work: Condvar::new(), room: Condvar::new() }),
        }
    }

    /// Whether a job with so many bytes has to wait for room.
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        let queue = self.shared.queue.lock();
        queue.is_full(bytes)
    }

    /// Hands a job to the workers, waiting for room. It comes back when there is no thread to execute it.
    pub(super) fn submit(&self, job: J, bytes: usize, execute: impl Fn(J) + Send + 'static) -> Result<(), J> {
        let mut queue = self.shared.queue.lock();
        while queue.is_full(bytes) {
            self.shared.room.wait(&mut queue);
        }
        queue.jobs += 1;
        queue.bytes += bytes;
        queue.waiting.push_back((job, bytes));
        if queue.idle >= queue.waiting.len() {
            self.shared.work.notify_one();
        } else if queue.threads.len() < THREADS_MAX {
            let shared = Arc::clone(&self.shared);
            match std::thread::Builder::new()
                .name("target-worker".into())
                .spawn(move || work(&shared, execute))
            {
                Ok(thread) => queue.threads.push(thread),
                Err(error) if queue.threads.is_empty() => {
                    tracing::warn!(%error, "no thread to be had; requests are executed one after the other");
                    queue.jobs -= 1;
                    queue.bytes -= bytes;
                    if let Some((job, _)) = queue.waiting.pop_back() {
                        return Err(job);
                    }
                }
                Err(_) => {}
            }
        }
        Ok(())
    }
}

impl<J> Queue<J> {
    fn is_full(&self, bytes: usize) -> bool {
        self.jobs >= JOBS_MAX || (self.jobs > 0 && self.bytes.saturating_add(bytes) > BYTES_MAX)
    }
}

fn work<J>(shared: &Shared<J>, execute: impl Fn(J)) {
    let mut queue = shared.queue.lock();
    loop {
        if let Some((job, bytes)) = queue.waiting.pop_front() {
            drop(queue);
            execute(job);
            queue = shared.queue.lock();
            queue.jobs -= 1;
            queue.bytes -= bytes;
            shared.room.notify_one();
        } else if queue.closed {
            return;
        } else {
            queue.idle += 1;
            shared.work.wait(&mut queue);
            queue.idle -= 1;
        }
    }
}

impl<J: Send + 'static> Drop for Workers<J> {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        let threads = std::mem::take(&mut queue.threads);
        drop(queue);
        self.shared.work.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn all_jobs_are_done_when_the_workers_are_dropped() {
        let done = Arc::new(AtomicUsize::new(0));
        let workers = Workers::new();
        for _ in 0..1000 {
            let done = Arc::clone(&done);
            let execute = move |bytes: usize| {
                done.fetch_add(bytes, Ordering::Relaxed);
            };
            workers.submit(1, BYTES_MAX / 3, execute).unwrap();
        }
        drop(workers);
        assert_eq!(done.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn a_job_larger_than_the_bound_is_accepted_alone() {
        let workers = Workers::new();
        assert!(!workers.is_full(BYTES_MAX * 2));
        let (sender, receiver) = std::sync::mpsc::sync_channel::<()>(0);
        let receiver = Arc::new(Mutex::new(receiver));
        let execute = move |()| receiver.lock().recv().unwrap();
        workers.submit((), BYTES_MAX * 2, execute.clone()).unwrap();
        assert!(workers.is_full(1));
        sender.send(()).unwrap();
        workers.submit((), 1, execute).unwrap();
        sender.send(()).unwrap();
    }
}
