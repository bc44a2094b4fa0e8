//! From one path to another: away from one that is late or lost, and back to a better one (P1).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use lockd::clock::BootTime;
use lockd::rules::Rule;

use crate::paths::state::Condition;
use crate::paths::traffic::{Live, Traffic, Trouble};
use crate::paths::way::Purpose;

/// How long requests in flight may take that a change to a better path waits for.
const DRAIN: Duration = Duration::from_millis(500);
/// The pause between two looks at them.
const LOOK: Duration = Duration::from_micros(200);

impl Traffic {
    /// Leaves a path that is late, if another one serves: what is in flight comes back, and is sent again there.
    pub(super) fn leave_late(&self, now: BootTime) {
        let Some(live) = self.live.load_full().filter(|_| self.rules.keeps(Rule::P1)) else { return };
        let rescue = {
            let trouble = self.trouble.lock();
            trouble.roster.rescue(now).map(|to| (to, trouble.roster.state().why().to_owned()))
        };
        if let Some((to, why)) = rescue {
            tracing::warn!(
                lun = self.name(),
                why,
                to = self.ways[to].name(),
                "the path is late; another one is used"
            );
            live.link.close(&why);
        }
    }

    /// Takes the first path that answers into use, if none is.
    pub(super) fn take_up(self: &Arc<Self>) {
        while self.live.load().is_none() && !self.stopped.load(Ordering::Acquire) {
            let Some(index) = self.choice(&self.trouble.lock()) else { return };
            if let Err(error) = self.bring_back(index, Purpose::Again) {
                self.judge(index, Err(error));
            }
        }
    }

    /// The path to take up.
    pub(super) fn choice(&self, trouble: &Trouble) -> Option<usize> {
        trouble
            .roster
            .choice()
            .filter(|index| self.rules.keeps(Rule::P1) || *index == self.current.load(Ordering::Acquire))
    }

    /// Goes back to a better path that has been answering for long enough. Nothing is in flight while that is done, so that
    /// no outcome becomes unknown by it.
    pub(super) fn go_back(self: &Arc<Self>, now: BootTime) {
        let Some(live) = self.live.load_full() else { return };
        let Some(better) = self.trouble.lock().roster.better(now) else { return };
        if !self.pause(&live) {
            tracing::debug!(lun = self.name(), "requests take too long to change to a better path now");
            self.resume(&live);
            self.trouble.lock().roster.put_off(better, self.clock.boot());
            return;
        }
        let from = self.current.load(Ordering::Acquire);
        match self.bring_back(better, Purpose::First) {
            Ok(()) => {
                self.trouble.lock().roster.left(from, self.clock.boot());
                tracing::info!(
                    from = self.ways[from].name(),
                    to = self.name(),
                    "a better path is used again"
                );
                live.link.close("a better path is used");
            }
            Err(error) => {
                tracing::warn!(lun = self.ways[better].name(), %error, "the better path could not be used");
                self.resume(&live);
                self.judge(better, Err(error));
                self.trouble.lock().roster.put_off(better, self.clock.boot());
            }
        }
        self.resend();
    }

    /// Holds what comes, and waits until nothing is in flight by `live`. Whether that is so.
    fn pause(&self, live: &Live) -> bool {
        {
            let _trouble = self.trouble.lock();
            self.calm.store(false, Ordering::Release);
            self.live.store(None);
        }
        let begun = self.clock.boot();
        while live.link.oldest().is_some() {
            if self.clock.boot().since(begun) >= DRAIN {
                return false;
            }
            thread::sleep(LOOK);
        }
        true
    }

    /// Uses `live` again, unless it has been lost meanwhile.
    fn resume(&self, live: &Arc<Live>) {
        let trouble = self.trouble.lock();
        let lost =
            trouble.generation != live.generation || trouble.roster.state().condition() == Condition::Down;
        if !lost {
            self.live.store(Some(Arc::clone(live)));
            self.calm.store(trouble.ghosts.is_empty(), Ordering::Release);
        }
    }
}
