//! Fences: until one is complete, nothing that the victim held is given away (F1, L9, L10).

use std::collections::BTreeSet;

use super::command::{FenceMethod, Report, Victim};
use super::event::{Audience, EventKind};
use super::query::{ClientState, SessionState};
use super::reply::{Refusal, Reply};
use super::state::{Fence, Outcome, State};
use crate::ids::{SessionId, VolumeId};
use crate::rules::{Rule, Rules};

impl State {
    /// From now on `victim` is to be fenced from `volume`. Who may carry for it is asked to report: the live sessions of
    /// the volume, and those that have ended and whose own requests may still reach the LUN. A session that comes
    /// later knows that the victim has ended, and refuses it from its first day.
    pub(super) fn begin_fence(&mut self, volume: VolumeId, victim: Victim) {
        let mut waiting = self.sessions_of(volume);
        for ((of, other), fence) in &self.fences {
            if let (true, Victim::Session(other), None) = (*of == volume, other, fence.method) {
                waiting.insert(*other);
            }
        }
        let session = match victim {
            Victim::Session(session) => {
                // Its dead clients are fenced with it.
                for client in self.clients_of(session) {
                    let part = self.fences.remove(&(volume, Victim::Client(client)));
                    waiting.extend(part.into_iter().flat_map(|fence| fence.waiting));
                }
                Some(session)
            }
            Victim::Client(client) => self.clients.get(&client).map(|client| client.session),
        };
        waiting.retain(|other| Some(*other) != session);
        let wanted = EventKind::FenceWanted { volume, victim, waiting: waiting.iter().copied().collect() };
        self.fences.insert((volume, victim), Fence { since_ns: self.time_ns, method: None, waiting });
        self.tell(Audience::Everyone, wanted);
    }

    pub(super) fn fence_report(
        &mut self,
        rules: Rules,
        volume: VolumeId,
        victim: Victim,
        reporter: SessionId,
        report: Report,
    ) -> Outcome {
        if !self.is_live_session(reporter) {
            return Err(Refusal::SessionEnded(reporter));
        }
        if !self.fences.contains_key(&(volume, victim)) {
            let lives = match victim {
                Victim::Session(session) => self.is_live_session(session) || session > self.last_session,
                Victim::Client(client) => self.is_live(client) || client > self.last_client,
            };
            let known = self.volumes.contains_key(&volume) && !lives;
            return if known { Ok(Reply::Done) } else { Err(Refusal::NoFence { volume, victim }) };
        }
        match report {
            Report::Drained => {
                if let Some(fence) = self.fences.get_mut(&(volume, victim)) {
                    fence.waiting.remove(&reporter);
                }
            }
            Report::Fenced { method } => {
                self.check_method(rules, volume, victim, reporter, method)?;
                self.note_method(volume, victim, method);
            }
        }
        self.settle_fences(rules, volume);
        Ok(Reply::Done)
    }

    fn check_method(
        &self,
        rules: Rules,
        volume: VolumeId,
        victim: Victim,
        reporter: SessionId,
        method: FenceMethod,
    ) -> Result<(), Refusal> {
        let configured = self.volumes.get(&volume).map(|volume| volume.fence);
        let counts = match (method, victim) {
            (FenceMethod::Lease, Victim::Session(_)) => configured == Some(FenceMethod::Lease),
            (FenceMethod::Lease, Victim::Client(_)) => false,
            // Only its own host can know that all of its processes are dead; and a target that refuses and drains says
            // itself when it has.
            (FenceMethod::Quiesce, Victim::Session(session)) => {
                self.node_of(session) == self.node_of(reporter)
                    && !matches!(configured, Some(FenceMethod::NbdTarget | FenceMethod::ScsiPr))
            }
            _ => true,
        };
        if !counts {
            return Err(Refusal::FenceMethod { volume, victim, method });
        }
        if let (FenceMethod::Lease, Victim::Session(session)) = (method, victim)
            && let Some(SessionState::Ended { lease_over_ns, .. }) =
                self.sessions.get(&session).map(|session| session.state)
            && lease_over_ns > self.time_ns
            && rules.keeps(Rule::F1)
        {
            return Err(Refusal::TooEarly { wait_ns: lease_over_ns - self.time_ns });
        }
        Ok(())
    }

    /// The victim itself reaches the volume no more; so it carries for nobody there.
    pub(super) fn note_method(&mut self, volume: VolumeId, victim: Victim, method: FenceMethod) {
        if let Some(fence) = self.fences.get_mut(&(volume, victim)) {
            fence.method.get_or_insert(method);
        }
        if let Victim::Session(session) = victim {
            for ((_, _), fence) in self.fences.iter_mut().filter(|((of, _), _)| *of == volume) {
                fence.waiting.remove(&session);
            }
        }
    }

    /// Completes the fences of `volume` for which nothing is waited any more (F1).
    pub(super) fn settle_fences(&mut self, rules: Rules, volume: VolumeId) {
        let complete =
            |fence: &Fence| fence.method.is_some() && (fence.waiting.is_empty() || !rules.keeps(Rule::F1));
        let done = self.fences.iter().filter(|((of, _), fence)| *of == volume && complete(fence));
        let done: Vec<Victim> = done.map(|((_, victim), _)| *victim).collect();
        for victim in done {
            self.fences.remove(&(volume, victim));
            self.tell(Audience::Everyone, EventKind::Fenced { volume, victim });
            match victim {
                Victim::Client(client) => self.free_client(client),
                Victim::Session(session) => {
                    // L9: per volume. The session's virtual machines wait for all of its volumes, and longer.
                    for client in self.clients_of(session) {
                        let mount = super::ClientKind::Csvfs { volume };
                        if self.clients.get(&client).is_some_and(|client| client.kind == mount) {
                            self.free_client(client);
                        }
                    }
                    self.end_escrows_of(session, Some(volume));
                    self.settle_session(session);
                }
            }
        }
    }

    /// Forgets an ended session when nothing of it is left. Its virtual machines are free when it is fenced from all
    /// volumes *and* lease and grace are over: a host that is cut off computes on without its disks (L9).
    pub(super) fn settle_session(&mut self, session: SessionId) {
        let Some(SessionState::Ended { lease_over_ns, .. }) =
            self.sessions.get(&session).map(|session| session.state)
        else {
            return;
        };
        let fenced = !self.is_being_fenced(session);
        let over = fenced && lease_over_ns <= self.time_ns;
        for client in self.clients_of(session) {
            let mount = matches!(
                self.clients.get(&client).map(|client| client.kind),
                Some(super::ClientKind::Csvfs { .. })
            );
            if over || (!mount && !self.held.contains_key(&client)) {
                self.free_client(client);
            }
        }
        if fenced && self.clients_of(session).is_empty() {
            self.end_escrows_of(session, None);
            self.sessions.remove(&session);
        }
    }

    fn is_being_fenced(&self, session: SessionId) -> bool {
        self.fences.keys().any(|(_, victim)| *victim == Victim::Session(session))
    }

    /// What only waited for time to pass is free.
    pub(super) fn free_what_is_over(&mut self) {
        if self.wakes_at_ns().is_none_or(|at_ns| at_ns > self.time_ns) {
            return;
        }
        let ended: Vec<SessionId> = self.ended_sessions().map(|(session, _)| session).collect();
        for session in ended {
            self.settle_session(session);
        }
    }

    fn ended_sessions(&self) -> impl Iterator<Item = (SessionId, u64)> {
        self.sessions.iter().filter_map(|(session, record)| match record.state {
            SessionState::Ended { lease_over_ns, .. } => Some((*session, lease_over_ns)),
            SessionState::Live => None,
        })
    }

    /// When something becomes free by time alone, in nanoseconds of the cluster's time: then some entry must be applied,
    /// a [`Command::Tick`](super::Command::Tick) if there is none.
    #[must_use]
    pub fn wakes_at_ns(&self) -> Option<u64> {
        let waiting = self.ended_sessions().filter(|(session, _)| !self.is_being_fenced(*session));
        waiting.map(|(_, over_ns)| over_ns).min()
    }

    /// The live sessions that have not reported about a fence for longer than `patience_ns`: those are fenced, too (F1).
    #[must_use]
    pub fn overdue_reporters(&self, now_ns: u64, patience_ns: u64) -> BTreeSet<SessionId> {
        let old = |fence: &&Fence| fence.since_ns.saturating_add(patience_ns) <= now_ns;
        let waiting = self.fences.values().filter(old).flat_map(|fence| fence.waiting.iter().copied());
        waiting.filter(|session| self.is_live_session(*session)).collect()
    }

    /// The volumes for whose fences `session` has yet to report.
    pub(super) fn volumes_carried(&self, session: SessionId) -> BTreeSet<VolumeId> {
        let carried = self.fences.iter().filter(|(_, fence)| fence.waiting.contains(&session));
        carried.map(|((volume, _), _)| *volume).collect()
    }

    /// Whether a client that holds something is dead.
    pub(super) fn is_dead(&self, client: crate::ids::ClientId) -> bool {
        self.clients.get(&client).is_none_or(|client| client.state != ClientState::Live)
    }
}
