//! A state machine under test: each step is checked, and epochs and events are watched over time.

use std::collections::BTreeMap;

use super::super::*;
use crate::ids::{
    ClientId, Epoch, GrantId, NodeName, ResourceId, Sequence, SessionId, SlotId, Ticket, VolumeId,
};
use crate::locks::{ByteRange, LockKind, LockMode, LockOutcome, LockOwner, LockRequest};
use crate::rules::Rules;

pub(super) const VOLUME: VolumeId = VolumeId([7; 16]);
pub(super) const OTHER_VOLUME: VolumeId = VolumeId([8; 16]);
pub(super) const SECOND_NS: u64 = 1_000_000_000;
pub(super) const QUIESCE_NS: u64 = 10 * SECOND_NS;

pub(super) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

pub(super) fn file(ino: u64) -> ResourceId {
    ResourceId::File(VOLUME, ino)
}

pub(super) fn vm(name: &str) -> ResourceId {
    ResourceId::Vm(name.to_owned())
}

pub(super) const COORDINATOR: ResourceId = ResourceId::Coordinator(VOLUME);

pub(super) const fn mount() -> ClientKind {
    ClientKind::Csvfs { volume: VOLUME }
}

#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) state: State,
    pub(super) rules: Rules,
    pub(super) time_ns: u64,
    /// The events of the last step.
    pub(super) events: Vec<EventKind>,
    nonce: u128,
    sequences: BTreeMap<(ClientId, SlotId), u64>,
    /// The highest epoch in which a resource was ever held.
    epochs: BTreeMap<ResourceId, (Epoch, ClientId)>,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let mut cluster = Self {
            state: State::new(),
            rules: Rules::from_test_environment(),
            time_ns: SECOND_NS,
            events: Vec::new(),
            nonce: 0,
            sequences: BTreeMap::new(),
            epochs: BTreeMap::new(),
        };
        for (volume, name) in [(VOLUME, "vms"), (OTHER_VOLUME, "other")] {
            cluster.done(Command::RegisterVolume {
                volume,
                name: name.to_owned(),
                fence: FenceMethod::NbdTarget,
                quiesce_ns: QUIESCE_NS,
                epoch_floor: Epoch(0),
            });
        }
        cluster
    }

    /// Applies a command, looks at every invariant, and that epochs rise and events follow each other.
    #[track_caller]
    pub(super) fn apply(&mut self, command: &Command) -> Reply {
        let Answer::Status { last_event: before, .. } = self.state.query(&Query::Status) else { panic!() };
        let (reply, events) = self.state.apply(self.rules, self.time_ns, command);
        if let Err(wrong) = self.state.check() {
            panic!("{command:?}: {wrong}");
        }
        for (event, index) in events.iter().zip(before.0 + 1..) {
            assert_eq!(event.index, EventIndex(index));
        }
        self.events = events.into_iter().map(|event| event.kind).collect();
        self.watch_epochs();
        reply
    }

    /// A change of holder raises the epoch, and no epoch is used again.
    fn watch_epochs(&mut self) {
        for (resource, holdings) in &self.state.resources {
            let newest = holdings.iter().max_by_key(|holding| holding.epoch).unwrap();
            if let Some((epoch, client)) = self.epochs.get(resource) {
                let same = (newest.epoch, newest.client) == (*epoch, *client);
                let shared = newest.mode == HoldMode::Shared;
                assert!(
                    same || shared || newest.epoch > *epoch,
                    "{resource}: {epoch} of {client}, then {newest:?}"
                );
            }
            let seen = self.epochs.entry(resource.clone()).or_insert((newest.epoch, newest.client));
            *seen = (*seen).max((newest.epoch, newest.client));
        }
    }

    #[track_caller]
    pub(super) fn done(&mut self, command: Command) {
        assert_eq!(self.apply(&command), Reply::Done, "{command:?}");
    }

    #[track_caller]
    pub(super) fn refused(&mut self, command: Command) -> Refusal {
        match self.apply(&command) {
            Reply::Refused(refusal) => refusal,
            other => panic!("{command:?}: {other:?}"),
        }
    }

    pub(super) fn pass_s(&mut self, seconds: u64) {
        self.time_ns += seconds * SECOND_NS;
    }

    pub(super) fn nonce(&mut self) -> Nonce {
        self.nonce += 1;
        Nonce(self.nonce)
    }

    #[track_caller]
    pub(super) fn open(&mut self, name: &str) -> SessionId {
        let command = Command::OpenSession { node: node(name), nonce: self.nonce() };
        match self.apply(&command) {
            Reply::Session(session) => session,
            other => panic!("{command:?}: {other:?}"),
        }
    }

    #[track_caller]
    pub(super) fn end(&mut self, session: SessionId) {
        self.done(Command::EndSession { session, cause: EndCause::Lapsed });
    }

    #[track_caller]
    pub(super) fn join(&mut self, session: SessionId, kind: ClientKind) -> ClientId {
        let command = Command::AddClient { session, nonce: self.nonce(), kind, pid: 42 };
        match self.apply(&command) {
            Reply::Client(client) => client,
            other => panic!("{command:?}: {other:?}"),
        }
    }

    /// A node with a session and a mount.
    #[track_caller]
    pub(super) fn mounted(&mut self, name: &str) -> (SessionId, ClientId) {
        let session = self.open(name);
        (session, self.join(session, mount()))
    }

    /// The next command of a slot.
    pub(super) fn command_in(&mut self, client: ClientId, slot: u32, operation: Operation) -> Command {
        let slot = SlotId(slot);
        let sequence = self.sequences.entry((client, slot)).or_default();
        *sequence += 1;
        Command::Client { client, slot, sequence: Sequence(*sequence), operation }
    }

    #[track_caller]
    pub(super) fn ask(&mut self, client: ClientId, operation: Operation) -> Reply {
        let command = self.command_in(client, 0, operation);
        self.apply(&command)
    }

    #[track_caller]
    pub(super) fn ask_refused(&mut self, client: ClientId, operation: Operation) -> Refusal {
        let command = self.command_in(client, 0, operation);
        self.refused(command)
    }

    #[track_caller]
    pub(super) fn ask_done(&mut self, client: ClientId, operation: Operation) {
        let reply = self.ask(client, operation.clone());
        assert_eq!(reply, Reply::Done, "{operation:?}");
    }

    #[track_caller]
    pub(super) fn acquire(&mut self, client: ClientId, resource: &ResourceId) -> Epoch {
        match self.ask(client, acquisition(resource)) {
            Reply::Acquired(holder) => {
                assert_eq!((holder.client, holder.state), (client, HolderState::Live));
                holder.epoch
            }
            other => panic!("{resource}: {other:?}"),
        }
    }

    pub(super) fn holder(&self, resource: &ResourceId) -> Option<ClientId> {
        match self.state.query(&Query::Resource(resource.clone())) {
            Answer::Resource(info) => info.holders.first().map(|holder| holder.client),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(super) fn lock(&mut self, client: ClientId, ino: u64, id: u64, start: u64, end: u64) -> GrantId {
        match self.ask(client, locking(client, ino, id, start, end, false)) {
            Reply::Lock(LockOutcome::Granted(grant)) => grant,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(super) fn wait_for(&mut self, client: ClientId, ino: u64, id: u64, start: u64, end: u64) -> Ticket {
        match self.ask(client, locking(client, ino, id, start, end, true)) {
            Reply::Lock(LockOutcome::Waiting(ticket)) => ticket,
            other => panic!("{other:?}"),
        }
    }

    /// Whether `client` could lock these bytes.
    pub(super) fn is_free_for(&self, client: ClientId, ino: u64, start: u64, end: u64) -> bool {
        let Operation::Lock { resource, request, .. } = locking(client, ino, 99, start, end, false) else {
            panic!()
        };
        self.state.query(&Query::Test { resource, request }) == Answer::Test(None)
    }

    #[track_caller]
    pub(super) fn report(&mut self, victim: Victim, reporter: SessionId, report: Report) {
        self.done(Command::FenceReport { volume: VOLUME, victim, reporter, report });
    }

    #[track_caller]
    pub(super) fn fence(&mut self, victim: Victim, reporter: SessionId) {
        self.report(victim, reporter, Report::Fenced { method: FenceMethod::NbdTarget });
    }

    pub(super) fn granted(&self) -> Vec<Ticket> {
        let granted = self.events.iter().filter_map(|event| match event {
            EventKind::Lock { ticket, reply: Ok(_) } => Some(*ticket),
            _ => None,
        });
        granted.collect()
    }
}

pub(super) fn acquisition(resource: &ResourceId) -> Operation {
    Operation::Acquire { resource: resource.clone(), mode: HoldMode::Exclusive, pinned: false }
}

pub(super) fn posix(client: ClientId, id: u64) -> LockOwner {
    LockOwner { client, kind: LockKind::Posix, id }
}

pub(super) fn locking(client: ClientId, ino: u64, id: u64, start: u64, end: u64, wait: bool) -> Operation {
    let range = ByteRange::new(start, end).unwrap();
    let request = LockRequest { owner: posix(client, id), pid: 1, mode: LockMode::Exclusive, range };
    Operation::Lock { resource: file(ino), request, wait }
}

pub(super) fn unlocking(client: ClientId, ino: u64, id: u64, grant: Option<GrantId>) -> Operation {
    Operation::Unlock { resource: file(ino), owner: posix(client, id), range: ByteRange::WHOLE, grant }
}

pub(super) fn moving(resource: &ResourceId, epoch: Epoch, from: ClientId, to: ClientId) -> Move {
    Move { resource: resource.clone(), epoch, from, to }
}
