//! The state, and how a command finds its way.

use std::collections::{BTreeMap, BTreeSet};

use bincode::{Decode, Encode};

use super::codec::{CodecError, decode_command, encode_reply};
use super::command::{
    ClientKind, Command, Cookie, FenceMethod, HoldMode, Nonce, Operation, Settings, Victim,
};
use super::event::{Audience, Event, EventKind};
use super::events::EventLog;
use super::query::{BreakRecord, ClientState, HolderInfo, HolderState, SessionState};
use super::reply::{Refusal, Reply};
use crate::ids::{ClientId, Epoch, GrantId, NodeName, ResourceId, SessionId, Ticket, VolumeId};
use crate::locks::{LockLimits, LockTable};
use crate::rules::{Rule, Rules};
use crate::slots::SlotTable;

/// No number is given out beyond this, so that none overflows.
pub(super) const NUMBER_MAX: u64 = u64::MAX >> 1;

/// The last session of a node: known by its nonce when its first message comes again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub(super) struct NodeRecord {
    pub(super) session: SessionId,
    pub(super) nonce: Nonce,
}

/// A session that lives, or that has ended and is not yet fenced.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(super) struct Session {
    pub(super) node: NodeName,
    pub(super) since_ns: u64,
    pub(super) state: SessionState,
}

/// A client that lives, or that has ended and whose holdings are not yet free.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(super) struct Client {
    pub(super) session: SessionId,
    pub(super) nonce: Nonce,
    pub(super) kind: ClientKind,
    pub(super) pid: u32,
    pub(super) since_ns: u64,
    pub(super) state: ClientState,
}

#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) fence: FenceMethod,
    pub(super) quiesce_ns: u64,
}

/// One holding of a resource.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub(super) struct Holding {
    pub(super) client: ClientId,
    pub(super) mode: HoldMode,
    pub(super) epoch: Epoch,
    pub(super) since_ns: u64,
    pub(super) pinned: bool,
}

/// The locks of one source client on one file that are kept for another session (L8): those up to a grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub(super) struct Escrow {
    pub(super) cookie: Cookie,
    pub(super) target: SessionId,
    pub(super) through: GrantId,
    pub(super) since_ns: u64,
}

/// A fence, of a victim from a volume, that is not complete.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(super) struct Fence {
    pub(super) since_ns: u64,
    pub(super) method: Option<FenceMethod>,
    /// The sessions that may carry for the victim and have not reported.
    pub(super) waiting: BTreeSet<SessionId>,
}

/// The replicated state of the cluster. See the module's description.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// The time of the last entry.
    pub(super) time_ns: u64,
    pub(super) settings: Settings,
    pub(super) last_session: SessionId,
    pub(super) last_client: ClientId,
    /// One count for all resources: so each resource's epochs rise, and nothing is kept of those that nobody holds.
    pub(super) last_epoch: Epoch,
    pub(super) nodes: BTreeMap<NodeName, NodeRecord>,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) clients: BTreeMap<ClientId, Client>,
    pub(super) slots: SlotTable,
    pub(super) volumes: BTreeMap<VolumeId, Volume>,
    /// What is held; the holdings of one resource are in the order of their clients.
    pub(super) resources: BTreeMap<ResourceId, Vec<Holding>>,
    pub(super) locks: LockTable<ResourceId>,
    pub(super) escrows: BTreeMap<(ResourceId, ClientId), Escrow>,
    pub(super) fences: BTreeMap<(VolumeId, Victim), Fence>,
    pub(super) breaks: Vec<BreakRecord>,
    pub(super) events: EventLog,
    /// By client what it holds; made from `resources`.
    pub(super) held: BTreeMap<ClientId, BTreeSet<ResourceId>>,
    /// Whose request waits with which ticket; made from `locks`.
    pub(super) tickets: BTreeMap<Ticket, ClientId>,
}

/// What an entry leads to.
pub(super) type Outcome = Result<Reply, Refusal>;

impl State {
    /// The state before the first entry.
    #[must_use]
    pub fn new() -> Self {
        Self {
            time_ns: 0,
            settings: Settings::default(),
            last_session: SessionId(0),
            last_client: ClientId(0),
            last_epoch: Epoch(0),
            nodes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            clients: BTreeMap::new(),
            slots: SlotTable::new(),
            volumes: BTreeMap::new(),
            resources: BTreeMap::new(),
            locks: LockTable::new(LockLimits::default()),
            escrows: BTreeMap::new(),
            fences: BTreeMap::new(),
            breaks: Vec::new(),
            events: EventLog::default(),
            held: BTreeMap::new(),
            tickets: BTreeMap::new(),
        }
    }

    /// Applies one entry of the log: `command` at `time_ns` (see the module's description of time). Never panics; what
    /// it refuses has changed nothing but the slot and the time. The events are kept in the state, too.
    pub fn apply(&mut self, rules: Rules, time_ns: u64, command: &Command) -> (Reply, Vec<Event>) {
        let before = self.events.last();
        self.time_ns = self.time_ns.max(time_ns);
        self.free_what_is_over();
        let outcome = match command {
            Command::Configure(settings) => self.configure(*settings),
            Command::Tick => Ok(Reply::Done),
            Command::OpenSession { node, nonce } => self.open_session(rules, node, *nonce),
            Command::EndSession { session, cause } => self.end_session(rules, *session, *cause),
            Command::AddClient { session, nonce, kind, pid } => {
                self.add_client(rules, *session, *nonce, *kind, *pid)
            }
            Command::ClientGone { session, client } => self.client_gone(rules, *session, *client),
            Command::RegisterVolume { volume, name, fence, quiesce_ns, epoch_floor } => {
                let asked = Volume { name: name.clone(), fence: *fence, quiesce_ns: *quiesce_ns };
                self.register_volume(*volume, asked, *epoch_floor)
            }
            Command::FenceReport { volume, victim, reporter, report } => {
                self.fence_report(rules, *volume, *victim, *reporter, *report)
            }
            Command::Client { client, slot, sequence, operation } => {
                self.in_slot(rules, *client, *slot, *sequence, operation)
            }
        };
        (outcome.unwrap_or_else(Reply::Refused), self.events.after(before).cloned().collect())
    }

    /// [`State::apply`] of an encoded command; the reply is encoded too.
    ///
    /// # Errors
    /// If the bytes are no command, of a version that is known here: then this voter must not go on, as another may
    /// have understood them.
    pub fn apply_encoded(
        &mut self,
        rules: Rules,
        time_ns: u64,
        command: &[u8],
    ) -> Result<(Vec<u8>, Vec<Event>), CodecError> {
        let command = decode_command(command)?;
        let (reply, events) = self.apply(rules, time_ns, &command);
        Ok((encode_reply(&reply)?, events))
    }

    /// Executes what is neither a repetition nor an abort.
    pub(super) fn operate(&mut self, rules: Rules, client: ClientId, operation: &Operation) -> Outcome {
        match operation {
            Operation::Acquire { resource, mode, pinned } => self.acquire(client, resource, *mode, *pinned),
            Operation::Release { resource, epoch } => self.release(client, resource, *epoch),
            Operation::Transfer { cookie, moves, escrow, pinned } => {
                self.transfer(rules, client, *cookie, moves, (*escrow, *pinned))
            }
            Operation::Abort { slot, sequence } => self.abort(rules, client, *slot, *sequence),
            Operation::Adopt { cookie, resource, to } => self.adopt(rules, client, *cookie, resource, *to),
            Operation::DropEscrow { cookie, resource } => self.drop_escrow(rules, client, *cookie, resource),
            Operation::Lock { resource, request, wait } => self.lock(client, resource, *request, *wait),
            Operation::Unlock { resource, owner, range, grant } => {
                let grant = grant.filter(|_| rules.keeps(Rule::L8));
                self.unlock(client, resource, *owner, *range, grant)
            }
            Operation::ReleaseOwner { resource, owner } => self.release_owner(client, resource, *owner),
            Operation::Cancel { ticket } => self.cancel(client, *ticket),
            Operation::Break { target, confirmed_node, operator, wall_ns } => {
                self.break_holding(rules, target, confirmed_node, operator, *wall_ns)
            }
            Operation::Leave => {
                self.leave(client);
                Ok(Reply::Done)
            }
        }
    }

    /// The time of the last entry, in nanoseconds.
    #[must_use]
    pub fn time_ns(&self) -> u64 {
        self.time_ns
    }

    /// The cluster's times.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Tells everyone, or one client.
    pub(super) fn tell(&mut self, to: Audience, kind: EventKind) {
        self.events.push(to, kind);
    }

    /// A new epoch, above all that were.
    pub(super) fn next_epoch(&mut self) -> Result<Epoch, Refusal> {
        if self.last_epoch.0 >= NUMBER_MAX {
            return Err(Refusal::Full(super::Bound::Numbers));
        }
        self.last_epoch.0 += 1;
        Ok(self.last_epoch)
    }

    /// A holding as it is shown.
    pub(super) fn show(&self, holding: &Holding) -> HolderInfo {
        let client = self.clients.get(&holding.client);
        let session = client.map(|client| client.session).unwrap_or_default();
        let state = match client.map(|client| client.state) {
            Some(ClientState::Live) => HolderState::Live,
            Some(ClientState::Draining) => HolderState::Draining,
            Some(ClientState::Orphaned) | None => HolderState::Orphaned,
        };
        let Holding { client, mode, epoch, since_ns, pinned } = *holding;
        HolderInfo { client, session, node: self.node_of(session), mode, epoch, since_ns, pinned, state }
    }

    /// The node of a session. Whatever still stands in the tables has its session there.
    pub(super) fn node_of(&self, session: SessionId) -> NodeName {
        let unknown = || "unknown".parse().expect("a valid name");
        self.sessions.get(&session).map_or_else(unknown, |session| session.node.clone())
    }

    /// Whether `client` can hold and lock things of this kind.
    pub(super) fn check_kind(&self, client: ClientId, resource: &ResourceId) -> Result<(), Refusal> {
        let kind = self.clients.get(&client).ok_or(Refusal::ClientEnded(client))?.kind;
        if suits(kind, resource) {
            Ok(())
        } else {
            Err(Refusal::WrongKind { client, resource: resource.clone() })
        }
    }

    /// Whether `client` is registered and lives.
    pub(super) fn is_live(&self, client: ClientId) -> bool {
        self.clients.get(&client).is_some_and(|client| client.state == ClientState::Live)
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a client of this kind can hold this resource.
pub(super) fn suits(kind: ClientKind, resource: &ResourceId) -> bool {
    match (kind, resource) {
        (ClientKind::Csvfs { volume }, ResourceId::Coordinator(of) | ResourceId::File(of, _)) => {
            volume == *of
        }
        (ClientKind::Vmhost, ResourceId::Vm(_)) => true,
        _ => false,
    }
}

/// The volume of a resource, if it is on one.
pub(super) fn volume_of(resource: &ResourceId) -> Option<VolumeId> {
    match resource {
        ResourceId::Coordinator(volume) | ResourceId::File(volume, _) => Some(*volume),
        ResourceId::Vm(_) => None,
    }
}
