//! Reads and writes of the same few blocks by all nodes at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::operation::{Block, History};
use super::recorder::Recorder;
use super::register::Register;

/// The least pause after an operation that failed.
const AFTER_FAILURE: Duration = Duration::from_millis(5);

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workload {
    /// On so many blocks, from the first on. Few blocks make conflicts likely.
    pub blocks: u64,
    /// By so many threads on each node.
    pub threads: usize,
    /// So many operations by each thread, if it is not stopped before.
    pub operations_max: u64,
    /// How long a thread waits after each operation: a history of a long fault stays short.
    pub pause: Duration,
    /// Each block is written by the threads of one node, and read by all.
    pub one_writer: bool,
    /// What the choice of blocks and operations is drawn from.
    pub seed: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            blocks: 8,
            threads: 2,
            operations_max: 20_000,
            pause: Duration::ZERO,
            one_writer: false,
            seed: 1,
        }
    }
}

/// What a workload has done, as it goes on.
#[derive(Debug, Default)]
pub struct Done {
    /// Operations that succeeded, of each node.
    succeeded: Vec<AtomicU64>,
    /// Operations that failed, of each node.
    failed: Vec<AtomicU64>,
    stop: AtomicBool,
}

impl Done {
    /// How many operations of `node` have succeeded.
    #[must_use]
    pub fn succeeded(&self, node: usize) -> u64 {
        self.succeeded.get(node).map_or(0, |count| count.load(Ordering::Acquire))
    }

    /// How many operations of `node` have failed.
    #[must_use]
    pub fn failed(&self, node: usize) -> u64 {
        self.failed.get(node).map_or(0, |count| count.load(Ordering::Acquire))
    }

    /// Lets the threads end after what they are doing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

impl Workload {
    /// Runs it on `nodes`, each of which sees the same blocks, while `meanwhile` happens; gives its result and the history.
    ///
    /// It ends when `meanwhile` has called [`Done::stop`], or every thread has done its operations, and never before
    /// `meanwhile` returns. An operation that is held is waited for.
    pub fn run<T>(&self, nodes: &[Arc<dyn Register>], meanwhile: impl FnOnce(&Done) -> T) -> (T, History) {
        let recorder = Recorder::default();
        let counts = || nodes.iter().map(|_| AtomicU64::new(0)).collect();
        let done = Done { succeeded: counts(), failed: counts(), stop: AtomicBool::new(false) };
        let result = std::thread::scope(|scope| {
            for (node, register) in nodes.iter().enumerate() {
                for thread in 0..self.threads {
                    let (recorder, done) = (&recorder, &done);
                    let seed = self.seed ^ ((node as u64) << 32 | (thread as u64) << 48);
                    let may_write =
                        move |block: Block| !self.one_writer || block.0 % nodes.len() as u64 == node as u64;
                    scope
                        .spawn(move || self.work(node, register.as_ref(), seed, recorder, (done, may_write)));
                }
            }
            // A panic of `meanwhile` must not leave the threads at work for ever.
            let ending = Ending(&done);
            let result = meanwhile(&done);
            std::mem::forget(ending);
            result
        });
        (result, recorder.finish())
    }

    fn work(
        &self,
        node: usize,
        register: &dyn Register,
        seed: u64,
        recorder: &Recorder,
        (done, may_write): (&Done, impl Fn(Block) -> bool),
    ) {
        let mut random = SmallRng::seed_from_u64(seed);
        for _ in 0..self.operations_max {
            if done.stop.load(Ordering::Acquire) {
                return;
            }
            let block = Block(random.random_range(0..self.blocks));
            let result = if random.random_bool(0.5) && may_write(block) {
                recorder.write(node, block, |value| register.write(block, value))
            } else {
                recorder.read(node, block, || register.read(block))
            };
            let counts = if result.is_ok() { &done.succeeded } else { &done.failed };
            counts[node].fetch_add(1, Ordering::AcqRel);
            // Failures may come at once and in thousands, each a write that may still land.
            let pause = if result.is_ok() { self.pause } else { self.pause.max(AFTER_FAILURE) };
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    }
}

/// Stops the threads when it is dropped.
struct Ending<'a>(&'a Done);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}
