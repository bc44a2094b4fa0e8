//! What an operator frees on his own word (L12).

use super::bounds::{BREAKS_MAX, Bound, TEXT_MAX};
use super::command::{BreakTarget, FenceMethod, Victim};
use super::event::{Audience, EventKind};
use super::query::{BreakRecord, SessionState};
use super::reply::{Refusal, Reply};
use super::state::{Outcome, State};
use crate::ids::{ClientId, ResourceId, SessionId, VolumeId};
use crate::rules::{Rule, Rules};

impl State {
    pub(super) fn break_holding(
        &mut self,
        rules: Rules,
        target: &BreakTarget,
        confirmed: &str,
        operator: &str,
        wall_ns: i64,
    ) -> Outcome {
        if operator.len() > TEXT_MAX {
            return Err(Refusal::BadName(operator.chars().take(TEXT_MAX).collect()));
        }
        let (session, holder) = match target {
            BreakTarget::Resource(resource) => self.dead_holder(resource),
            BreakTarget::Session(session) => self.dead_session(*session),
        }
        .ok_or_else(|| Refusal::NothingToBreak(target.clone()))?;
        let node = self.node_of(session);
        if rules.keeps(Rule::L12) {
            if node.as_str() != confirmed {
                return Err(Refusal::Unconfirmed { target: target.clone(), node, holder });
            }
            // The log is for good: nothing in it gives way.
            if self.breaks.len() >= BREAKS_MAX {
                return Err(Refusal::Full(Bound::Breaks));
            }
        }
        let freed = match target {
            BreakTarget::Resource(resource) => self.break_resource(resource, session),
            BreakTarget::Session(session) => self.break_session(rules, *session),
        };
        if rules.keeps(Rule::L12) {
            let (operator, target, node) = (operator.to_owned(), target.clone(), node.clone());
            let record =
                BreakRecord { time_ns: self.time_ns, wall_ns, operator, target, node, session, freed };
            self.breaks.push(record);
        }
        self.tell(Audience::Everyone, EventKind::Broken { node, freed });
        Ok(Reply::Broken { freed })
    }

    /// The session of the first dead holder, and how it is shown.
    fn dead_holder(&self, resource: &ResourceId) -> Option<(SessionId, String)> {
        let holding = self.resources.get(resource)?.iter().find(|holding| self.is_dead(holding.client))?;
        let holder = self.show(holding);
        let age_s = self.time_ns.saturating_sub(holder.since_ns) / 1_000_000_000;
        Some((holder.session, format!("{holder} since {age_s} s ago")))
    }

    fn dead_session(&self, session: SessionId) -> Option<(SessionId, String)> {
        match self.sessions.get(&session)?.state {
            SessionState::Live => None,
            SessionState::Ended { at_ns, .. } => {
                let age_s = self.time_ns.saturating_sub(at_ns) / 1_000_000_000;
                Some((session, format!("session {session}, which ended {age_s} s ago")))
            }
        }
    }

    fn break_resource(&mut self, resource: &ResourceId, session: SessionId) -> u64 {
        let holdings = self.resources.get(resource).map(Vec::as_slice).unwrap_or_default();
        let of_session = |client: &ClientId| {
            self.clients.get(client).is_some_and(|client| client.session == session) && self.is_dead(*client)
        };
        let broken: Vec<ClientId> =
            holdings.iter().map(|holding| holding.client).filter(of_session).collect();
        for client in &broken {
            self.forget_holding(*client, resource);
            self.end_locks(resource, *client);
        }
        self.tell_holder(resource);
        broken.len() as u64
    }

    fn break_session(&mut self, rules: Rules, session: SessionId) -> u64 {
        let clients = self.clients_of(session);
        let held = clients.iter().filter_map(|client| self.held.get(client)).map(|held| held.len() as u64);
        let freed = held.sum();
        let time_ns = self.time_ns;
        if let Some(SessionState::Ended { lease_over_ns, .. }) =
            self.sessions.get_mut(&session).map(|session| &mut session.state)
        {
            *lease_over_ns = (*lease_over_ns).min(time_ns);
        }
        let victim = Victim::Session(session);
        let volumes: Vec<VolumeId> =
            self.fences.keys().filter(|(_, of)| *of == victim).map(|(volume, _)| *volume).collect();
        for volume in volumes {
            self.note_method(volume, victim, FenceMethod::Agent);
            if let Some(fence) = self.fences.get_mut(&(volume, victim)) {
                fence.waiting.clear();
            }
            self.settle_fences(rules, volume);
        }
        self.settle_session(session);
        freed
    }
}
