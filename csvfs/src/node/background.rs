//! What the node does by itself: commits what is dirty, closes what nobody uses, looks at leases and ghosts again.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Core;

/// Between two rounds.
const ROUND: Duration = Duration::from_millis(500);
/// Between two looks at the lease and the ghosts while somebody waits for them.
const LOOK: Duration = Duration::from_millis(10);
/// Rounds after which a file that nobody uses is closed.
const IDLE_ROUNDS: u64 = 2;

#[derive(Default)]
struct Rung {
    ends: bool,
    awaited: bool,
}

/// Wakes the background before its round.
#[derive(Default)]
pub(super) struct Alarm {
    rung: Mutex<Rung>,
    changed: Condvar,
}

impl Alarm {
    /// Somebody waits for a tick.
    pub(super) fn ring(&self) {
        self.rung.lock().awaited = true;
        self.changed.notify_all();
    }

    fn end(&self) {
        self.rung.lock().ends = true;
        self.changed.notify_all();
    }

    /// Rests until `end`, or until somebody waits for a tick. Whether the background goes on.
    fn rest(&self, end: Instant) -> bool {
        let mut rung = self.rung.lock();
        while !rung.ends && !rung.awaited && !self.changed.wait_until(&mut rung, end).timed_out() {}
        rung.awaited = false;
        !rung.ends
    }
}

/// The thread that does it; ended when this is dropped.
pub(super) struct Background {
    alarm: Arc<Alarm>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    pub(super) fn start(core: &Arc<Core>, alarm: Arc<Alarm>) -> std::io::Result<Self> {
        let (rings, core) = (Arc::clone(&alarm), Arc::downgrade(core));
        let thread =
            std::thread::Builder::new().name("csvfs-node".to_owned()).spawn(move || rounds(&rings, &core))?;
        Ok(Self { alarm, thread: Some(thread) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.alarm.end();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn rounds(alarm: &Alarm, core: &Weak<Core>) {
    let mut next = Instant::now() + ROUND;
    loop {
        let Some(awaited) = core.upgrade().map(|core| core.media.is_awaited()) else { return };
        let look = Instant::now() + LOOK;
        if !alarm.rest(if awaited { look.min(next) } else { next }) {
            return;
        }
        if awaited {
            // The alarm may have rung for another that waits: not more often than this all the same.
            std::thread::sleep(look.saturating_duration_since(Instant::now()).min(LOOK));
        }
        let Some(core) = core.upgrade() else { return };
        core.media.tick();
        if Instant::now() >= next {
            next = Instant::now() + ROUND;
            core.round();
        }
    }
}

impl Core {
    /// One round, twice a second. A simulation calls it by its own clock.
    pub(super) fn round(self: &Arc<Self>) {
        let round = self.ticks.fetch_add(1, SeqCst) + 1;
        self.reserve.tick();
        if self.options.cluster && self.media.has_ended() {
            self.channel.end();
            self.sendings.cut();
        }
        if round.is_multiple_of(self.options.commit_rounds.max(1)) {
            self.commit_dirty();
        }
        if let Some(before) = round.checked_sub(IDLE_ROUNDS)
            && self.idle.load(SeqCst) > 0
            && !self.sweeps.swap(true, SeqCst)
        {
            let core = Arc::clone(self);
            super::task::run(async move {
                let _ = core.close_idle(before).await;
                core.sweeps.store(false, SeqCst);
            });
        }
    }
}
