//! When the leader may end a session (L1). Not replicated: the memory of one leader, in its own clock.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::BootTime;
use crate::ids::SessionId;
use crate::rules::{Rule, Rules};

/// What a leader has heard, and from when on its silence means something.
///
/// A session that was answered has its lease from the time at which it *sent* its keep-alive; the leader counts from when
/// it *received* it, which is later. A new leader does not know what the last one answered, one whose process or machine
/// stood still does not know what it has missed, and one without a quorum can answer nobody (L4): all of them wait a full
/// lease first, from when that is over. A session that was just opened has not sent a keep-alive yet: its silence counts
/// from when it is first seen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Lapse {
    lease: Duration,
    /// A longer time between two looks is a gap in the leader's own clock.
    gap_max: Duration,
    /// From when on the leader has listened without a gap.
    listens_since: BootTime,
    last_look: BootTime,
    heard: BTreeMap<SessionId, BootTime>,
}

impl Lapse {
    /// The memory of a leader that took office at `now`. It must [look](Lapse::look) more often than every `gap_max`.
    #[must_use]
    pub fn new(lease: Duration, gap_max: Duration, now: BootTime) -> Self {
        Self { lease, gap_max, listens_since: now, last_look: now, heard: BTreeMap::new() }
    }

    /// The lease has changed.
    pub fn set_lease(&mut self, lease: Duration) {
        self.lease = lease;
    }

    /// A keep-alive of `session` was received at `now`.
    pub fn heard(&mut self, session: SessionId, now: BootTime) {
        let last = self.heard.entry(session).or_insert(now);
        *last = now.max(*last);
    }

    /// At `now` there was no quorum, so that nobody can have been answered: silence up to then means nothing.
    pub fn without_quorum(&mut self, rules: Rules, now: BootTime) {
        if rules.keeps(Rule::L1) {
            self.listens_since = now.max(self.listens_since);
        }
    }

    /// When `session` was last heard, by the leader's clock.
    #[must_use]
    pub fn last_heard(&self, session: SessionId) -> Option<BootTime> {
        self.heard.get(&session).copied()
    }

    /// Which of the `live` sessions may be ended at `now`, the lapsed ones. Sessions that do not live are forgotten.
    pub fn look(
        &mut self,
        rules: Rules,
        now: BootTime,
        live: impl IntoIterator<Item = SessionId>,
    ) -> Vec<SessionId> {
        if now.since(self.last_look) > self.gap_max && rules.keeps(Rule::L1) {
            self.listens_since = now;
        }
        self.last_look = now.max(self.last_look);
        // Whoever was not heard and not seen before was opened since the last look, however long this leader listens.
        let mut heard = BTreeMap::new();
        let mut lapsed = Vec::new();
        for session in live {
            let last = self.heard.get(&session).copied().unwrap_or(now);
            heard.insert(session, last);
            let from = if rules.keeps(Rule::L1) { last.max(self.listens_since) } else { last };
            let patience = if rules.keeps(Rule::L1) { self.lease } else { self.lease / 2 };
            if now.since(from) >= patience {
                lapsed.push(session);
            }
        }
        self.heard = heard;
        lapsed
    }
}
