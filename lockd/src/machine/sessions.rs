//! Sessions and their clients: begin and end (L2, L9, L10).

use std::collections::BTreeSet;

use super::bounds::{
    Bound, CLIENTS_MAX, CLIENTS_PER_SESSION_MAX, NODES_MAX, SESSIONS_MAX, VM_NAME_MAX, VOLUMES_MAX,
};
use super::command::{ClientKind, EndCause, Nonce, Settings, Victim};
use super::event::{Audience, EventKind};
use super::query::{ClientState, SessionState};
use super::reply::{Refusal, Reply};
use super::state::{Client, NUMBER_MAX, NodeRecord, Outcome, Session, State, Volume, volume_of};
use crate::ids::{ClientId, Epoch, NodeName, ResourceId, SessionId, VolumeId};
use crate::rules::{Rule, Rules};

/// The range of a lease, in nanoseconds.
const LEASE_NS: (u64, u64) = (1_000_000, 3_600_000_000_000);
/// The range of the grace, in nanoseconds.
const GRACE_NS: (u64, u64) = (0, 86_400_000_000_000);

impl State {
    pub(super) fn configure(&mut self, settings: Settings) -> Outcome {
        let ranges = [("lease", settings.lease_ns, LEASE_NS), ("grace", settings.grace_ns, GRACE_NS)];
        for (what, value_ns, (min_ns, max_ns)) in ranges {
            if !(min_ns..=max_ns).contains(&value_ns) {
                return Err(Refusal::Setting { what: what.to_owned(), value_ns, min_ns, max_ns });
            }
        }
        let any = self.sessions.keys().any(|session| self.is_live_session(*session));
        if any && settings.lease_ns < self.settings.lease_ns {
            return Err(Refusal::LeaseInUse);
        }
        self.settings = settings;
        Ok(Reply::Done)
    }

    pub(super) fn is_live_session(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|session| session.state == SessionState::Live)
    }

    /// Refuses what is asked under a session that has ended (L2).
    fn check_session(&self, rules: Rules, session: SessionId) -> Result<(), Refusal> {
        let known = !rules.keeps(Rule::L2) && session <= self.last_session;
        if known || self.is_live_session(session) { Ok(()) } else { Err(Refusal::SessionEnded(session)) }
    }

    pub(super) fn open_session(&mut self, rules: Rules, node: &NodeName, nonce: Nonce) -> Outcome {
        if let Some(NodeRecord { session, nonce: before }) = self.nodes.get(node).copied() {
            if before == nonce {
                // L2: an ended session does not come back.
                self.check_session(rules, session)?;
                return Ok(Reply::Session(session));
            }
            if self.is_live_session(session) {
                return Err(Refusal::NodeHasSession { node: node.clone(), session });
            }
        }
        if self.sessions.len() >= SESSIONS_MAX {
            return Err(Refusal::Full(Bound::Sessions));
        }
        if self.last_session.0 >= NUMBER_MAX {
            return Err(Refusal::Full(Bound::Numbers));
        }
        self.make_room_for_node(node)?;
        self.last_session.0 += 1;
        let session = self.last_session;
        self.nodes.insert(node.clone(), NodeRecord { session, nonce });
        let record = Session { node: node.clone(), since_ns: self.time_ns, state: SessionState::Live };
        self.sessions.insert(session, record);
        self.tell(Audience::Everyone, EventKind::SessionOpened { session, node: node.clone() });
        Ok(Reply::Session(session))
    }

    /// Forgets the node whose session ended longest ago, if there are too many.
    fn make_room_for_node(&mut self, node: &NodeName) -> Result<(), Refusal> {
        if self.nodes.len() < NODES_MAX || self.nodes.contains_key(node) {
            return Ok(());
        }
        let idle = self.nodes.iter().filter(|(_, record)| !self.is_live_session(record.session));
        let oldest = idle.min_by_key(|(_, record)| record.session).map(|(node, _)| node.clone());
        self.nodes.remove(&oldest.ok_or(Refusal::Full(Bound::Nodes))?);
        Ok(())
    }

    pub(super) fn end_session(&mut self, rules: Rules, session: SessionId, cause: EndCause) -> Outcome {
        let Some(record) =
            self.sessions.get_mut(&session).filter(|record| record.state == SessionState::Live)
        else {
            // Ended before: whoever repeats it wanted just that.
            let known = session.0 >= 1 && session <= self.last_session;
            return if known { Ok(Reply::Done) } else { Err(Refusal::SessionEnded(session)) };
        };
        // A lapsed session's lease is over by the leader's own count (L1); another's may still run.
        let lease_ns = if cause == EndCause::Lapsed { 0 } else { self.settings.lease_ns };
        let lease_over_ns = self.time_ns.saturating_add(lease_ns).saturating_add(self.settings.grace_ns);
        record.state = SessionState::Ended { at_ns: self.time_ns, cause, lease_over_ns };
        let node = record.node.clone();
        self.tell(Audience::Everyone, EventKind::SessionEnded { session, node, cause });

        let mut volumes = self.volumes_carried(session);
        for client in self.clients_of(session) {
            if let Some(ClientKind::Csvfs { volume }) = self.clients.get(&client).map(|client| client.kind) {
                volumes.insert(volume);
            }
            self.end_client(client, ClientState::Orphaned);
        }
        for volume in volumes {
            self.begin_fence(volume, Victim::Session(session));
        }
        if !rules.keeps(Rule::L9) {
            for client in self.clients_of(session) {
                self.free_client(client);
            }
        }
        self.settle_session(session);
        Ok(Reply::Done)
    }

    pub(super) fn add_client(
        &mut self,
        rules: Rules,
        session: SessionId,
        nonce: Nonce,
        kind: ClientKind,
        pid: u32,
    ) -> Outcome {
        self.check_session(rules, session)?;
        let of_session = self.clients.iter().filter(|(_, client)| client.session == session);
        let mut count = 0;
        for (id, client) in of_session {
            if client.nonce == nonce {
                let live = client.state == ClientState::Live;
                return if live { Ok(Reply::Client(*id)) } else { Err(Refusal::ClientEnded(*id)) };
            }
            count += 1;
        }
        if let ClientKind::Csvfs { volume } = kind
            && !self.volumes.contains_key(&volume)
        {
            return Err(Refusal::UnknownVolume(volume));
        }
        if count >= CLIENTS_PER_SESSION_MAX {
            return Err(Refusal::Full(Bound::ClientsOfSession));
        }
        if self.clients.len() >= CLIENTS_MAX {
            return Err(Refusal::Full(Bound::Clients));
        }
        if self.last_client.0 >= NUMBER_MAX {
            return Err(Refusal::Full(Bound::Numbers));
        }
        let client = ClientId(self.last_client.0 + 1);
        self.slots.add_client(client).map_err(|_| Refusal::Full(Bound::Clients))?;
        self.last_client = client;
        let since_ns = self.time_ns;
        let record = Client { session, nonce, kind, pid, since_ns, state: ClientState::Live };
        self.clients.insert(client, record);
        self.tell(Audience::Everyone, EventKind::ClientAdded { client, session });
        Ok(Reply::Client(client))
    }

    pub(super) fn client_gone(&mut self, rules: Rules, session: SessionId, client: ClientId) -> Outcome {
        self.check_session(rules, session)?;
        let Some(record) = self.clients.get(&client) else {
            let known = client.0 >= 1 && client <= self.last_client;
            return if known { Ok(Reply::Done) } else { Err(Refusal::ClientEnded(client)) };
        };
        if record.session != session {
            return Err(Refusal::NotOfSession { client, session });
        }
        if record.state != ClientState::Live {
            return Ok(Reply::Done);
        }
        match record.kind {
            // L10: its requests may still be on their way to the target, or at a peer that carries for it.
            ClientKind::Csvfs { volume } if rules.keeps(Rule::L10) => {
                self.end_client(client, ClientState::Draining);
                self.begin_fence(volume, Victim::Client(client));
            }
            // A vmhost does its disk I/O through a mount, which answers for it.
            _ => {
                self.end_client(client, ClientState::Draining);
                self.free_client(client);
            }
        }
        Ok(Reply::Done)
    }

    /// A client that has nothing under way ends by itself.
    pub(super) fn leave(&mut self, client: ClientId) {
        self.end_client(client, ClientState::Draining);
        self.free_client(client);
    }

    pub(super) fn register_volume(&mut self, volume: VolumeId, asked: Volume, epoch_floor: Epoch) -> Outcome {
        check_name(&asked.name)?;
        if epoch_floor.0 > NUMBER_MAX >> 1 {
            return Err(Refusal::Full(Bound::Numbers));
        }
        let other = self.volumes.iter().find(|(id, known)| **id != volume && known.name == asked.name);
        let other = other.map(|(id, _)| *id);
        if let Some(other) = other
            && self.is_in_use(other)
        {
            return Err(Refusal::VolumeName { name: asked.name, volume: other });
        }
        // What holds for one mount must hold for all: the weakest fence is everybody's, and so is the shortest wait.
        if let Some(known) = self.volumes.get(&volume)
            && self.is_in_use(volume)
        {
            if known.fence != asked.fence {
                return Err(Refusal::OtherFence { volume, registered: known.fence, asked: asked.fence });
            }
            if known.quiesce_ns != asked.quiesce_ns {
                let (registered_ns, asked_ns) = (known.quiesce_ns, asked.quiesce_ns);
                return Err(Refusal::OtherQuiesce { volume, registered_ns, asked_ns });
            }
        }
        let replaced = usize::from(other.is_some());
        if !self.volumes.contains_key(&volume) && self.volumes.len() - replaced >= VOLUMES_MAX {
            return Err(Refusal::Full(Bound::Volumes));
        }
        if let Some(other) = other {
            // It was formatted anew.
            self.volumes.remove(&other);
        }
        self.volumes.insert(volume, asked);
        self.last_epoch = self.last_epoch.max(epoch_floor);
        Ok(Reply::Done)
    }

    fn is_in_use(&self, volume: VolumeId) -> bool {
        let mounted = self.clients.values().any(|client| client.kind == ClientKind::Csvfs { volume });
        let fenced = self.fences.keys().any(|(of, _)| *of == volume);
        let escrow = self.escrows.keys().any(|(resource, _)| volume_of(resource) == Some(volume));
        mounted || fenced || escrow
    }

    /// The clients of a session, dead ones included.
    pub(super) fn clients_of(&self, session: SessionId) -> Vec<ClientId> {
        let clients = self.clients.iter().filter(|(_, client)| client.session == session);
        clients.map(|(id, _)| *id).collect()
    }

    /// The live sessions that have `volume` mounted.
    pub(super) fn sessions_of(&self, volume: VolumeId) -> BTreeSet<SessionId> {
        let mounts = self.clients.values().filter(|client| client.kind == ClientKind::Csvfs { volume });
        mounts.map(|client| client.session).filter(|session| self.is_live_session(*session)).collect()
    }

    /// From now on `client` does nothing; what it holds stays until [`State::free_client`].
    fn end_client(&mut self, client: ClientId, state: ClientState) {
        let Some(record) = self.clients.get_mut(&client) else { return };
        let was_live = record.state == ClientState::Live;
        record.state = state;
        if !was_live {
            return;
        }
        let session = record.session;
        self.slots.end_client(client);
        self.changing_locks(|locks, events| locks.end_waits(client, events));
        self.tell(Audience::Everyone, EventKind::ClientEnded { client, session });
    }

    /// Frees all that an ended client held, and forgets it. Locks in escrow stay.
    pub(super) fn free_client(&mut self, client: ClientId) {
        let resources: Vec<ResourceId> = self.held.remove(&client).unwrap_or_default().into_iter().collect();
        for resource in &resources {
            if let Some(holdings) = self.resources.get_mut(resource) {
                holdings.retain(|holding| holding.client != client);
                if holdings.is_empty() {
                    self.resources.remove(resource);
                }
            }
        }
        for resource in self.locks.held_by(client) {
            self.end_locks(&resource, client);
        }
        self.clients.remove(&client);
        if !resources.is_empty() {
            let count = resources.len() as u64;
            let resources = resources.into_iter().take(super::EVENT_RESOURCES_MAX).collect();
            self.tell(Audience::Everyone, EventKind::Freed { client, resources, count });
        }
    }
}

/// Refuses names that do not fit into paths, terminals and memory.
pub(super) fn check_name(name: &str) -> Result<(), Refusal> {
    let odd = |c: char| c.is_control() || c == '/';
    if name.is_empty() || name.len() > VM_NAME_MAX || name.contains(odd) || matches!(name, "." | "..") {
        return Err(Refusal::BadName(name.chars().take(VM_NAME_MAX).collect()));
    }
    Ok(())
}
