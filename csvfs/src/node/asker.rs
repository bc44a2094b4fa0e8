//! A thread for questions that come up where nobody may wait.
//!
//! A step that follows the completion of a LUN request runs on the thread that receives completions, and must not wait
//! there. A coordinator in the same process answers a question on the asking thread, and reads its store for that,
//! from the very LUN: the completion it waits for might never be received. Such questions are asked by this thread.

use std::cell::Cell;
use std::sync::mpsc::{Sender, channel};

/// A question, and what follows its answer.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    static COMPLETING: Cell<bool> = const { Cell::new(false) };
}

/// Runs what follows a completion of the LUN, and knows that it does.
pub(super) fn completing(follow: impl FnOnce()) {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            COMPLETING.set(self.0);
        }
    }
    let _before = Before(COMPLETING.replace(true));
    follow();
}

/// Whether this thread is in a completion of the LUN.
pub(super) fn is_completing() -> bool {
    COMPLETING.get()
}

/// See the module. Its thread ends when it is dropped and all jobs are done.
pub(super) struct Asker(Runs);

/// Who runs the jobs.
enum Runs {
    /// A thread of this node's own.
    Thread(Sender<Job>),
    /// A simulation, one job after the other and in virtual time.
    #[cfg(test)]
    Simulated(Box<dyn Fn(Job) + Send + Sync>),
}

impl Asker {
    pub(super) fn start() -> std::io::Result<Self> {
        let (sender, jobs) = channel::<Job>();
        std::thread::Builder::new()
            .name("csvfs-ask".to_owned())
            .spawn(move || jobs.into_iter().for_each(|job| job()))?;
        Ok(Self(Runs::Thread(sender)))
    }

    /// One whose jobs go to `run`.
    #[cfg(test)]
    pub(super) fn simulated(run: impl Fn(Job) + Send + Sync + 'static) -> Self {
        Self(Runs::Simulated(Box::new(run)))
    }

    /// Runs `job` on the thread. As many wait at most as there are requests of the front end.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        match &self.0 {
            Runs::Thread(thread) => {
                if let Err(unsent) = thread.send(Box::new(job)) {
                    // The thread is gone only when a job has panicked.
                    (unsent.0)();
                }
            }
            #[cfg(test)]
            Runs::Simulated(run) => run(Box::new(job)),
        }
    }
}
