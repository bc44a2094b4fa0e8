//! From one path to another: away from one that is late or lost, and back to a better one (P1).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lockd::clock::BootTime;
use lockd::rules::Rule;

use crate::paths::tenure::Standing;
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
            let mut trouble = self.trouble.lock();
            let why = trouble.roster.state().why().to_owned();
            trouble.roster.rescue(now).map(|to| (to, why))
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

    /// Takes the first path that answers into use, if none is; one after the other is tried once.
    pub(super) fn take_up(self: &Arc<Self>) {
        for _ in 0..self.ways.len() {
            let over = self.stopped.load(Ordering::Acquire) || self.refused.load(Ordering::Acquire);
            if over || self.live.load().is_some() {
                return;
            }
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
        let tenure = self.tenure.lock().clone();
        if tenure.is_some_and(|tenure| tenure.now(self.rules, &*self.clock) != Standing::Holds) {
            return;
        }
        // The path in use goes on while the other one has to show that it can be used.
        let shown = self.ask(better);
        let (can, from) = (shown.is_ok(), self.current.load(Ordering::Acquire));
        self.judge(better, shown);
        if !can || !self.pause(&live) {
            self.trouble.lock().roster.put_off(better, self.clock.boot());
            return;
        }
        // What has slipped through comes back now, and goes by the other path after what is replayed there.
        live.link.close("a better path is used");
        match self.bring_back(better, Purpose::Again) {
            Ok(()) => {
                let (from, to) = (self.ways[from].name(), self.name());
                tracing::info!(from, to, "a better path is used again");
            }
            Err(error) => {
                tracing::warn!(lun = self.ways[better].name(), %error, "the better path could not be used");
                self.judge(better, Err(error));
                self.trouble.lock().roster.put_off(better, self.clock.boot());
            }
        }
    }

    /// Holds what comes, and waits until nothing is in flight by `live`. Whether that is so; if not, it is used again.
    fn pause(&self, live: &Arc<Live>) -> bool {
        {
            let mut trouble = self.trouble.lock();
            self.calm.store(false, Ordering::Release);
            self.live.store(None);
            trouble.roster.leave();
        }
        let begun = self.clock.boot();
        while live.link.oldest().is_some() {
            if self.clock.boot().since(begun) >= DRAIN || self.stopped.load(Ordering::Acquire) {
                tracing::debug!(lun = self.name(), "requests take too long to change to a better path now");
                self.resume(live);
                return false;
            }
            self.clock.sleep(LOOK);
        }
        true
    }

    /// Uses `live` again, unless it has been lost meanwhile, or the LUN closed.
    fn resume(&self, live: &Arc<Live>) {
        let mut trouble = self.trouble.lock();
        if self.stopped.load(Ordering::Acquire) {
            drop(trouble);
            return live.link.close("the LUN is closed");
        }
        if live.broken.load(Ordering::Acquire) {
            return trouble.roster.lost("the connection was lost", self.clock.boot());
        }
        trouble.roster.rejoin();
        self.live.store(Some(Arc::clone(live)));
        self.calm.store(trouble.ghosts.is_empty(), Ordering::Release);
    }
}
