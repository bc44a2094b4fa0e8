//! Answers to queries.

use std::collections::BTreeMap;

use super::bounds::PAGE_MAX;
use super::command::Cookie;
use super::query::{
    Answer, ClientInfo, EscrowInfo, FenceInfo, LockInfo, Query, ResourceInfo, SessionInfo, VolumeInfo,
};
use super::state::State;
use crate::ids::{ClientId, ResourceId, SessionId, VolumeId};
use crate::locks::{Grants, Listed, LockState};

impl State {
    /// Answers a question from the state as it is. The caller has made sure that it is new enough (L4).
    #[must_use]
    pub fn query(&self, query: &Query) -> Answer {
        match query {
            Query::Status => Answer::Status {
                time_ns: self.time_ns,
                settings: self.settings,
                last_event: self.events.last(),
                sessions: self.sessions.keys().filter(|session| self.is_live_session(**session)).count()
                    as u64,
                resources: self.resources.len() as u64,
                locks: self.locks.len() as u64,
            },
            Query::Sessions => Answer::Sessions(self.show_sessions()),
            Query::Clients => Answer::Clients(self.show_clients()),
            Query::Volumes => Answer::Volumes(self.show_volumes()),
            Query::Fences => Answer::Fences(self.show_fences()),
            Query::Breaks => Answer::Breaks(self.breaks.clone()),
            Query::Resources { volume, after } => {
                Answer::Resources(self.show_resources(*volume, after.as_ref()))
            }
            Query::Resource(resource) => Answer::Resource(self.show_resource(resource)),
            Query::Locks(resource) => Answer::Locks(self.show_locks(resource)),
            Query::Escrow(cookie) => Answer::Escrow(self.show_escrow(*cookie)),
            Query::ClientLocks(client) => Answer::Locks(self.show_locks_of(*client)),
            Query::Test { resource, request } => Answer::Test(self.locks.test(resource, *request)),
            Query::Events { after } => Answer::Events {
                events: self.events.after(*after).take(PAGE_MAX).cloned().collect(),
                missed: self.events.misses_after(*after),
                last: self.events.last(),
            },
        }
    }

    /// The live sessions and their nodes.
    pub fn live_sessions(&self) -> impl Iterator<Item = SessionId> {
        self.sessions.keys().copied().filter(|session| self.is_live_session(*session))
    }

    fn show_sessions(&self) -> Vec<SessionInfo> {
        let mut clients: BTreeMap<SessionId, u64> = BTreeMap::new();
        for client in self.clients.values() {
            *clients.entry(client.session).or_default() += 1;
        }
        let show = |(id, session): (&SessionId, &super::state::Session)| SessionInfo {
            session: *id,
            node: session.node.clone(),
            since_ns: session.since_ns,
            state: session.state,
            clients: clients.get(id).copied().unwrap_or_default(),
        };
        self.sessions.iter().map(show).collect()
    }

    fn show_clients(&self) -> Vec<ClientInfo> {
        let show = |(id, client): (&ClientId, &super::state::Client)| ClientInfo {
            client: *id,
            session: client.session,
            node: self.node_of(client.session),
            kind: client.kind,
            pid: client.pid,
            nonce: client.nonce,
            since_ns: client.since_ns,
            state: client.state,
            holds: self.held.get(id).map_or(0, |held| held.len() as u64),
        };
        self.clients.iter().map(show).collect()
    }

    fn show_volumes(&self) -> Vec<VolumeInfo> {
        let show = |(id, volume): (&VolumeId, &super::state::Volume)| {
            let coordinator = self.resources.get(&ResourceId::Coordinator(*id));
            VolumeInfo {
                volume: *id,
                name: volume.name.clone(),
                fence: volume.fence,
                quiesce_ns: volume.quiesce_ns,
                coordinator: coordinator.and_then(|held| held.first()).map(|holding| self.show(holding)),
                sessions: self.sessions_of(*id).into_iter().collect(),
            }
        };
        self.volumes.iter().map(show).collect()
    }

    fn show_fences(&self) -> Vec<FenceInfo> {
        let show =
            |((volume, victim), fence): (&(VolumeId, super::Victim), &super::state::Fence)| FenceInfo {
                volume: *volume,
                victim: *victim,
                since_ns: fence.since_ns,
                method: fence.method,
                waiting: fence.waiting.iter().copied().collect(),
            };
        self.fences.iter().map(show).collect()
    }

    fn show_resources(&self, volume: Option<VolumeId>, after: Option<&ResourceId>) -> Vec<ResourceInfo> {
        use std::ops::Bound::{Excluded, Unbounded};
        let rest = self.resources.range((after.map_or(Unbounded, Excluded), Unbounded));
        let wanted =
            rest.filter(|(resource, _)| volume.is_none() || super::state::volume_of(resource) == volume);
        wanted.take(PAGE_MAX).map(|(resource, _)| self.show_resource(resource)).collect()
    }

    fn show_resource(&self, resource: &ResourceId) -> ResourceInfo {
        let holdings = self.resources.get(resource).map(Vec::as_slice).unwrap_or_default();
        let (locks, waiting) = self.locks.count_all(resource);
        let escrows = self.escrows_on(resource);
        let in_escrow = escrows.map(|(source, escrow)| {
            self.locks.count(resource, source, Grants::Through(escrow.through)) as u64
        });
        ResourceInfo {
            resource: resource.clone(),
            holders: holdings.iter().take(PAGE_MAX).map(|holding| self.show(holding)).collect(),
            locks: locks as u64,
            locks_in_escrow: in_escrow.sum(),
            waiting: waiting as u64,
        }
    }

    fn show_locks(&self, resource: &ResourceId) -> Vec<LockInfo> {
        self.locks.list_of(resource).take(PAGE_MAX).map(|listed| self.show_lock(listed)).collect()
    }

    fn show_locks_of(&self, client: ClientId) -> Vec<LockInfo> {
        let files = self.locks.files_of(client);
        let locks = files.iter().flat_map(|resource| self.locks.list_of(resource));
        let own = locks.filter(|listed| listed.lock.owner.client == client);
        own.take(PAGE_MAX).map(|listed| self.show_lock(listed)).collect()
    }

    fn show_lock(&self, listed: Listed<ResourceId>) -> LockInfo {
        let client = listed.lock.owner.client;
        let escrow = self.escrows.get(&(listed.key.clone(), client));
        let kept = escrow.filter(|escrow| match listed.state {
            LockState::Held(grant) => grant <= escrow.through,
            LockState::Waiting(_) => false,
        });
        let node = self.clients.get(&client).map(|client| self.node_of(client.session));
        LockInfo { listed, node, escrow: kept.map(|escrow| escrow.target) }
    }

    fn show_escrow(&self, cookie: Cookie) -> Vec<EscrowInfo> {
        let under = self.escrows.iter().filter(|(_, escrow)| escrow.cookie == cookie);
        under
            .take(PAGE_MAX)
            .map(|((resource, source), escrow)| EscrowInfo {
                resource: resource.clone(),
                source: *source,
                target: escrow.target,
                since_ns: escrow.since_ns,
            })
            .collect()
    }
}
