//! The paths of one LUN: in which state each is, and which one is to be used (P1, P3). Pure.

use std::time::Duration;

use lockd::clock::BootTime;

use crate::paths::state::{Condition, PathState};
use crate::paths::way::{Abilities, Instance, ListId, Restarts};

/// How often a path that stands by is asked whether it still answers, in probes of a path that is down.
const STAND_BY: u32 = 4;
/// How long a fresh connection may take to show that it is the target that is slow, and not the path.
pub(super) const SECOND_LOOK: Duration = Duration::from_millis(200);
/// How long a path that was left must have been answering before it is used again, at first and at most. A path that is lost
/// soon after has to show twice as much the next time.
const REST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// A path that was in use for so long is trusted as at first.
const TRUSTED: Duration = Duration::from_secs(60);

/// What is known of one path.
#[derive(Debug)]
pub struct Path {
    /// Its state; Up of a path that is not in use: it answers, and stands by.
    pub state: PathState,
    /// The mismatch that has been logged (P3).
    pub warned: Option<String>,
    /// The process of the target that answered last.
    instance: Option<Instance>,
    /// The list of refused clients that the target had when it was met first.
    list: Option<ListId>,
    /// When it answered a fresh connection last.
    answered: Option<BootTime>,
    /// How long it must have been answering before it is used instead of a working one.
    rest: Duration,
    /// How long it takes to answer a fresh connection, lately.
    took: Duration,
}

/// All paths: the direct ones in the order in which they are preferred, then those through peers, of which the quickest is.
#[derive(Debug)]
pub struct Roster {
    paths: Vec<Path>,
    /// How many are direct.
    direct: usize,
    /// The path in use, or the last one.
    current: usize,
    /// Whether a link by it is in use.
    live: bool,
    /// Where what waits for a late path is to go.
    next: Option<usize>,
    /// Since when the path in use is about to be late: whoever stands by is asked in time, and so is a fresh connection by it.
    doubted: Option<BootTime>,
    probe_every: Duration,
}

impl Roster {
    /// `direct` paths and `peers` of which none has been tried.
    pub fn new(direct: usize, peers: usize, now: BootTime, probe_every: Duration) -> Self {
        let path = || Path {
            state: PathState::untried(now, probe_every),
            warned: None,
            instance: None,
            list: None,
            answered: None,
            rest: REST.0,
            took: Duration::ZERO,
        };
        let paths = (0..direct + peers).map(|_| path()).collect();
        Self { paths, direct, current: 0, live: false, next: None, doubted: None, probe_every }
    }

    /// The path in use, or the last one.
    pub fn current(&self) -> usize {
        self.current
    }

    /// The state of the path in use, or of the last one.
    pub fn state(&self) -> &PathState {
        &self.paths[self.current].state
    }

    /// The oldest request in flight by the path in use was sent at `oldest`, and the slowest thousandth takes `p999`. Whether the
    /// others are to be asked now, or the path has become late or is late no more.
    pub fn observe(&mut self, oldest: Option<BootTime>, p999: Option<Duration>, now: BootTime) -> bool {
        let state = &mut self.paths[self.current].state;
        let before = (state.condition(), self.doubted.is_some());
        state.observe(oldest, p999, now);
        let is_slow = oldest.is_some_and(|oldest| now.since(oldest) >= doubtful(p999)) && self.live;
        self.doubted = is_slow.then_some(self.doubted.unwrap_or(now));
        before != (state.condition(), self.doubted.is_some())
    }

    /// All paths.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// The path `index`.
    pub fn path_mut(&mut self, index: usize) -> &mut Path {
        &mut self.paths[index]
    }

    /// Whether a path is in use.
    pub fn is_live(&self) -> bool {
        self.live
    }

    fn is_in_use(&self, index: usize) -> bool {
        self.live && index == self.current
    }

    /// When `index` is to be asked for an answer next; none of a path in use that is not late.
    pub fn next_probe(&self, index: usize) -> Option<BootTime> {
        let Path { state, answered, .. } = &self.paths[index];
        match state.condition() {
            Condition::Down => state.next_probe(),
            Condition::Suspect => (self.paths.len() > 1).then(|| state.next_question()),
            Condition::Up if self.is_in_use(index) => {
                self.doubted.filter(|_| self.paths.len() > 1).map(|_| state.next_question())
            }
            // A path in use that is about to be late makes those interesting that stand by.
            Condition::Up if let Some(since) = self.doubted => {
                let asked_since = answered.is_some_and(|at| at >= since);
                Some(if asked_since { state.next_question() } else { since })
            }
            Condition::Up => Some(answered.map_or(state.since(), |at| at.after(self.probe_every * STAND_BY))),
        }
    }

    /// A fresh connection by `index` was answered by a target with `abilities`, or not, because of `why`. A path that was down
    /// is up after three answers (P3).
    pub fn probed(&mut self, index: usize, result: Result<&Abilities, &str>, now: BootTime) {
        let in_use = self.is_in_use(index);
        let path = &mut self.paths[index];
        if let Ok(abilities) = result {
            path.answered = Some(now);
            path.instance = known(abilities);
        }
        // How a path in use fares is for its link to say.
        if in_use {
            path.state.asked(now);
        } else if path.state.probed(result.map(drop), now) {
            path.state.stands_by(now);
        }
    }

    /// `index` is in use, and leads to a target with `abilities`.
    pub fn connected(&mut self, index: usize, abilities: &Abilities, now: BootTime) {
        (self.current, self.live, self.next, self.doubted) = (index, true, None, None);
        let path = &mut self.paths[index];
        path.instance = known(abilities);
        path.answered = Some(now);
        path.warned = None;
        path.state.recovered(now);
        path.state.counts_from(now);
    }

    /// The path in use is lost.
    pub fn lost(&mut self, why: &str, now: BootTime) {
        (self.live, self.doubted) = (false, None);
        let path = &mut self.paths[self.current];
        let used = now.since(path.state.since());
        path.rest = if used >= TRUSTED { REST.0 } else { (path.rest * 2).min(REST.1) };
        path.state.lost(why, now);
    }

    /// The path in use is left for a better one, and stands by.
    pub fn leave(&mut self) {
        (self.live, self.doubted) = (false, None);
    }

    /// It is used again.
    pub fn rejoin(&mut self) {
        self.live = true;
    }

    /// The path to use while none is in use: the one to which another was left, or the first that answers; among peers, the
    /// quickest.
    pub fn choice(&self) -> Option<usize> {
        let up = |index: &usize| self.paths[*index].state.condition() == Condition::Up;
        self.next.filter(up).or_else(|| self.first_of(up))
    }

    /// The path that is preferred among those that are `such`.
    fn first_of(&self, such: impl Fn(&usize) -> bool) -> Option<usize> {
        let peers = self.direct..self.paths.len();
        (0..self.direct)
            .find(&such)
            .or_else(|| peers.filter(&such).min_by_key(|index| self.paths[*index].took))
    }

    /// A fresh connection by `index` took so long to answer.
    pub fn took(&mut self, index: usize, took: Duration) {
        let known = &mut self.paths[index].took;
        // One slow answer is no slow path.
        *known = if known.is_zero() { took } else { (*known * 3 + took) / 4 };
    }

    /// The path to which what waits for the late path in use goes: one that answers, to another target; or any that answers,
    /// if the late one does not even answer a fresh connection, so that it is the path that is dead and not the target that is
    /// slow.
    pub fn rescue(&mut self, now: BootTime) -> Option<usize> {
        let late = &self.paths[self.current];
        if late.state.condition() != Condition::Suspect {
            return None;
        }
        let since = self.doubted.unwrap_or(late.state.since());
        let fresh = |path: &Path| path.answered.is_some_and(|at| at >= since);
        let dead = !fresh(late) && now.since(since) >= SECOND_LOOK;
        self.next = self.first_of(|index| {
            let path = &self.paths[*index];
            let other = path.instance.zip(late.instance).is_some_and(|(there, here)| there != here);
            *index != self.current
                && path.state.condition() == Condition::Up
                && fresh(path)
                && (other || dead)
        });
        self.next
    }

    /// A path that is preferred to the one in use and has been answering for long enough. One peer is as good as another.
    pub fn better(&self, now: BootTime) -> Option<usize> {
        let working = self.state().condition() == Condition::Up;
        self.paths[..self.current.min(self.direct)].iter().position(|path| {
            working
                && path.state.condition() == Condition::Up
                && now.since(path.state.since()) >= path.rest
                && path.answered.is_some_and(|at| now.since(at) <= self.probe_every * (STAND_BY + 1))
        })
    }

    /// It was tried in vain to go back to `index`.
    pub fn put_off(&mut self, index: usize, now: BootTime) {
        let path = &mut self.paths[index];
        path.rest = (path.rest * 2).min(REST.1);
        path.state.counts_from(now);
    }

    /// Whether all direct paths are known to lead to one process, so that a flush by one covers what was written by another.
    /// Peers have the same paths.
    pub fn is_one_target(&self) -> bool {
        let (first, direct) = (self.paths[0].instance, &self.paths[..self.direct]);
        self.direct == 1 || (first.is_some() && direct.iter().all(|path| path.instance == first))
    }

    /// The list of refused clients that the target behind `index` had when it was recognised first.
    pub fn list(&self, index: usize) -> Option<ListId> {
        self.paths[index].list
    }

    /// The target behind `index` is recognised, and has this list.
    pub fn recognised(&mut self, index: usize, list: Option<ListId>) {
        let known = &mut self.paths[index].list;
        *known = known.or(list);
    }

    /// How long a rest after which the next decision may be due.
    pub fn next_decision(&self, now: BootTime) -> Option<BootTime> {
        let waits = self.paths[..self.current.min(self.direct)]
            .iter()
            .filter(|path| path.state.condition() == Condition::Up)
            .map(|path| path.state.since().after(path.rest))
            .filter(|due| *due > now)
            .min();
        let look = self.doubted.map(|since| since.after(SECOND_LOOK));
        waits.into_iter().chain(look.filter(|due| *due > now)).min()
    }
}

/// How old a request may be before it is in doubt whether it will be answered: so much before it is late that it is known then
/// what else there is.
pub(super) fn doubtful(p999: Option<Duration>) -> Duration {
    PathState::timeout(p999).saturating_sub(SECOND_LOOK)
}

/// The process of the target, if it is one for all paths: a boot id is, and what is made up for a session is not.
fn known(abilities: &Abilities) -> Option<Instance> {
    abilities.instance.filter(|_| abilities.restarts == Restarts::ByBootId)
}

#[cfg(test)]
mod tests;
