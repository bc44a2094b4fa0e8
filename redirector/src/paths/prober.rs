//! The thread that asks a path which is not in use whether it answers (P3).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::open::OpenError;
use crate::paths::connect::Discard;
use crate::paths::state::Condition;
use crate::paths::traffic::Traffic;
use crate::paths::way::{self, Abilities, Purpose};

/// The longest rest of a prober.
const REST_MAX: Duration = Duration::from_secs(2);

/// Asks the path `index` whenever that is due, until the LUN is closed.
pub fn run(traffic: &Traffic, index: usize) {
    way::mark_completing();
    while !traffic.stopped.load(Ordering::Acquire) {
        let due = {
            let mut trouble = traffic.trouble.lock();
            let due = trouble.roster.next_probe(index).filter(|_| !traffic.refused.load(Ordering::Acquire));
            let now = traffic.clock.boot();
            let rest = due.map_or(REST_MAX, |due| due.since(now).min(REST_MAX));
            if !rest.is_zero() && !traffic.stopped.load(Ordering::Acquire) {
                traffic.news.wait_for(&mut trouble, rest.max(Duration::from_millis(1)));
            }
            rest.is_zero()
        };
        if due {
            traffic.probe(index);
        }
    }
}

impl Traffic {
    /// Asks the path `index`, if that is due.
    pub(super) fn probe_if_due(&self, index: usize) {
        let due = self.trouble.lock().roster.next_probe(index);
        let is_due = due.is_some_and(|due| due <= self.clock.boot());
        if is_due && !self.refused.load(Ordering::Acquire) {
            self.probe(index);
        }
    }

    fn probe(&self, index: usize) {
        let begun = self.clock.boot();
        let result = self.ask(index);
        if result.is_ok() {
            self.trouble.lock().roster.took(index, self.clock.boot().since(begun));
        }
        self.judge(index, result);
    }

    /// Asks on a fresh connection by `index` whether the LUN is there and is the same.
    pub(super) fn ask(&self, index: usize) -> Result<Abilities, OpenError> {
        self.ways[index].connect(Purpose::Probe, Arc::new(Discard)).and_then(|link| {
            let same = self.check(index, &*link);
            let abilities = link.abilities().clone();
            link.close("the probe is over");
            same.map(|()| abilities)
        })
    }

    /// Tells the state of the path `index` about an answer or an error; a LUN that is not the same is logged once.
    pub(super) fn judge(&self, index: usize, result: Result<Abilities, OpenError>) {
        if let Err(why) = &result
            && why.is_for_good()
        {
            self.give_up_all(why);
        }
        let now = self.clock.boot();
        let mut trouble = self.trouble.lock();
        let before = trouble.roster.paths()[index].state.condition();
        match result {
            Ok(abilities) => trouble.roster.probed(index, Ok(&abilities), now),
            Err(error) => {
                let why = error.to_string();
                let other = matches!(error, OpenError::OtherLun { .. } | OpenError::OtherServer { .. });
                let path = trouble.roster.path_mut(index);
                if other && path.warned.as_ref() != Some(&why) {
                    tracing::warn!(lun = self.ways[index].name(), why, "the path is not used");
                    path.warned = Some(why.clone());
                }
                trouble.roster.probed(index, Err(&why), now);
            }
        }
        self.settle_durability(&trouble);
        let after = &trouble.roster.paths()[index].state;
        if before != after.condition() && index != trouble.roster.current() {
            let (state, why) = (after.condition(), after.why());
            if state == Condition::Down {
                tracing::warn!(lun = self.ways[index].name(), why, "a path that stood by is down");
            } else {
                tracing::info!(lun = self.ways[index].name(), "the path answers, and stands by");
            }
        }
        drop(trouble);
        self.news.notify_all();
    }
}
