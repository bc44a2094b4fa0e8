//! What the node does by itself: commits what is dirty, closes what nobody uses, looks at leases and ghosts again.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Core;

/// Between two rounds when nobody waits for one.
const ROUND: Duration = Duration::from_millis(500);
/// Rounds after which a file that nobody uses is closed.
const IDLE_ROUNDS: u64 = 2;

#[derive(Default)]
struct Signal {
    ends: Mutex<bool>,
    changed: Condvar,
}

/// The thread that does it; ended when this is dropped.
pub(super) struct Background {
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    pub(super) fn start(core: &Arc<Core>) -> std::io::Result<Self> {
        let signal = Arc::new(Signal::default());
        let (ends, core) = (Arc::clone(&signal), Arc::downgrade(core));
        let thread =
            std::thread::Builder::new().name("csvfs-node".to_owned()).spawn(move || rounds(&ends, &core))?;
        Ok(Self { signal, thread: Some(thread) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        *self.signal.ends.lock() = true;
        self.signal.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn rounds(signal: &Signal, core: &Weak<Core>) {
    let mut waited = Duration::ZERO;
    loop {
        let Some(core) = core.upgrade() else { return };
        // Whoever begins to wait for the lease or a ghost is seen within this time.
        let pace = core.media.pace().unwrap_or(Duration::from_millis(50));
        core.media.tick();
        if waited >= ROUND {
            waited = Duration::ZERO;
            core.round();
        }
        drop(core);
        let mut ends = signal.ends.lock();
        if *ends || (!signal.changed.wait_for(&mut ends, pace).timed_out() && *ends) {
            return;
        }
        waited += pace;
    }
}

impl Core {
    /// One round, twice a second. A simulation calls it by its own clock.
    pub(super) fn round(self: &Arc<Self>) {
        let round = self.ticks.fetch_add(1, SeqCst) + 1;
        self.reserve.tick();
        if round.is_multiple_of(self.options.commit_rounds.max(1)) {
            self.commit_dirty();
        }
        if let Some(before) = round.checked_sub(IDLE_ROUNDS)
            && self.idle.load(SeqCst) > 0
        {
            let core = Arc::clone(self);
            super::task::run(async move { core.close_idle(before).await });
        }
    }
}
