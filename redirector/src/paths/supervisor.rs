//! The thread that looks after a LUN's paths: decides which one is used, lets ghosts die, and ends holds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lockd::clock::BootTime;

use crate::paths::request::Request;
use crate::paths::roster::doubtful;
use crate::paths::state::PathState;
use crate::paths::traffic::{Traffic, given_up_at};
use crate::paths::way;

/// The longest rest of the supervisor.
const REST_MAX: Duration = Duration::from_millis(250);
/// How often it is looked whether a lease that has run out is won back.
const LAPSED: Duration = Duration::from_millis(10);
/// How long after a request is late it is looked at.
const STEP: Duration = Duration::from_millis(1);

/// Looks after the paths until it is stopped.
pub fn run(traffic: &Arc<Traffic>) {
    way::mark_completing();
    while !traffic.stopped.load(Ordering::Acquire) {
        traffic.look_after();
        traffic.rest();
    }
}

impl Traffic {
    /// One round.
    pub(super) fn look_after(self: &Arc<Self>) {
        let now = self.clock.boot();
        self.observe(now);
        self.end_holds(now);
        self.lay_ghosts(now);
        if self.flush_wanted.swap(false, Ordering::AcqRel) {
            self.flush_kept();
        }
        if !self.refused.load(Ordering::Acquire) {
            self.leave_late(now);
            self.take_up();
            self.go_back(now);
        }
        self.resend();
    }

    /// Whether a path is in use and no ghost lives.
    pub(super) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Acquire)
    }

    fn rest(&self) {
        let mut trouble = self.trouble.lock();
        let now = self.clock.boot();
        let hold = trouble.held.front().map(|request| given_up_at(request, self.hold));
        let several = self.live.load_full().filter(|_| self.ways.len() > 1);
        let late = several.and_then(|live| {
            let (oldest, p999) = (live.link.oldest()?, live.link.p999());
            let steps = [doubtful(p999), PathState::timeout(p999) + STEP];
            steps.into_iter().map(|step| oldest.after(step)).find(|due| *due > now)
        });
        // With a path in use, what is held waits for the lease to be won back.
        let lapsed = (self.live.load().is_some() && !trouble.held.is_empty()).then(|| now.after(LAPSED));
        let due = [lapsed, trouble.ghosts.next_death(), hold, trouble.roster.next_decision(now), late];
        let due = due.into_iter().flatten().min().map_or(REST_MAX, |due| due.since(now));
        let usable = self.live.load().is_none() && self.choice(&trouble).is_some();
        let work = self.flush_wanted.load(Ordering::Acquire)
            || self.stopped.load(Ordering::Acquire)
            || (usable && !self.refused.load(Ordering::Acquire));
        if !work && !due.is_zero() {
            self.news.wait_for(&mut trouble, due.clamp(Duration::from_millis(1), REST_MAX));
        }
    }

    /// Up or Suspect, by the age of the oldest request. A link that has not answered for the whole hold time is given
    /// up: its requests are of unknown outcome then.
    fn observe(&self, now: BootTime) {
        let Some(live) = self.live.load_full() else { return };
        let oldest = live.link.oldest();
        let late = {
            let mut trouble = self.trouble.lock();
            trouble.roster.observe(oldest, live.link.p999(), now) && self.ways.len() > 1
        };
        if late {
            // The others are asked whether they answer.
            self.news.notify_all();
        }
        if oldest.is_some_and(|oldest| now.since(oldest) > self.hold) {
            live.link.close(&format!("no answer for {} s", self.hold.as_secs()));
        }
    }

    /// Gives up what was held for too long (P2).
    pub(super) fn end_holds(&self, now: BootTime) {
        let over: Vec<_> = {
            let mut trouble = self.trouble.lock();
            let over = |request: &Request| given_up_at(request, self.hold) <= now;
            let mut given_up: Vec<_> = trouble.waiting.extract_if(.., |request| over(request)).collect();
            if trouble.held.iter().any(over) {
                let (end, held) = trouble.held.drain(..).partition::<Vec<_>, _>(over);
                trouble.held = held.into();
                given_up.extend(end);
            }
            given_up
        };
        if !over.is_empty() {
            tracing::error!(lun = self.name(), requests = over.len(), "I/O was held in vain: EIO");
            self.room.notify_all();
            over.into_iter().for_each(Request::give_up);
        }
    }

    /// Removes dead ghosts, and sends what waited for them.
    fn lay_ghosts(&self, now: BootTime) {
        let free = {
            let mut trouble = self.trouble.lock();
            trouble.ghosts.expire(now);
            if self.live.load().is_none() {
                return;
            }
            self.calm.store(trouble.ghosts.is_empty(), Ordering::Release);
            std::mem::take(&mut trouble.waiting)
        };
        if !free.is_empty() {
            self.room.notify_all();
        }
        self.dispatch_late(free);
    }

    /// Sends what was held although the path is up: it came back late.
    pub(super) fn resend(&self) {
        let late = {
            let mut trouble = self.trouble.lock();
            if self.live.load().is_none() {
                return;
            }
            std::mem::take(&mut trouble.held)
        };
        if !late.is_empty() {
            self.room.notify_all();
            self.dispatch_late(late);
        }
    }
}
