//! The table against a model that keeps a cell per byte and owner and looks at everything each time.
//!
//! The model does not say which waiting request is granted first when several may be; it judges each grant in the order
//! in which the table reports them, and then that nothing more could have been granted.

use std::collections::{BTreeMap, BTreeSet};

use bincode::config::standard;
use proptest::prelude::*;

use super::*;
use crate::ids::ClientId;

const BYTES: u64 = 12;

const fn owner(client: u64, kind: LockKind, id: u64) -> LockOwner {
    LockOwner { client: ClientId(client), kind, id }
}

/// The first four are processes.
const OWNERS: [LockOwner; 9] = [
    owner(1, LockKind::Posix, 1),
    owner(1, LockKind::Posix, 2),
    owner(2, LockKind::Posix, 1),
    owner(3, LockKind::Posix, 1),
    owner(1, LockKind::Ofd, 1),
    owner(2, LockKind::Ofd, 2),
    owner(1, LockKind::Flock, 1),
    owner(1, LockKind::Flock, 2),
    owner(2, LockKind::Flock, 1),
];

#[derive(Clone, Copy, Debug)]
enum Step {
    Set { owner: usize, file: u64, exclusive: bool, start: u64, len: u64, wait: bool },
    Unlock { owner: usize, file: u64, start: u64, len: u64, through: Option<u64> },
    Release { owner: usize, file: u64 },
    EndClient { client: u64 },
    Cancel { nth: usize },
}

fn step(owners: usize) -> impl Strategy<Value = Step> {
    let place = (0..owners, 0_u64..2, 0..BYTES, 1..BYTES);
    let back = prop::option::weighted(0.3, 0_u64..4);
    prop_oneof![
        12 => (place.clone(), any::<bool>(), prop::bool::weighted(0.8)).prop_map(
            |((owner, file, start, len), exclusive, wait)| Step::Set { owner, file, exclusive, start, len, wait }
        ),
        4 => (place, back).prop_map(
            |((owner, file, start, len), through)| Step::Unlock { owner, file, start, len, through }
        ),
        4 => (0..owners, 0_u64..2).prop_map(|(owner, file)| Step::Release { owner, file }),
        1 => (1_u64..4).prop_map(|client| Step::EndClient { client }),
        3 => (0_usize..8).prop_map(|nth| Step::Cancel { nth }),
    ]
}

type Cell = BTreeMap<LockOwner, (LockMode, GrantId)>;

#[derive(Default, Debug)]
struct Model {
    cells: BTreeMap<(u64, u64), Cell>,
    queue: BTreeMap<Ticket, (u64, LockRequest)>,
    last: u64,
}

impl Model {
    /// Who holds what `request` wants.
    fn blockers(&self, file: u64, request: &LockRequest) -> BTreeSet<LockOwner> {
        let cells = (0..BYTES).filter(|byte| covers(request, *byte));
        let holders = cells.filter_map(|byte| self.cells.get(&(file, byte))).flatten();
        let clash = |owner: &LockOwner, mode: LockMode| {
            *owner != request.owner
                && (owner.kind == LockKind::Flock) == (request.owner.kind == LockKind::Flock)
                && (mode == LockMode::Exclusive || request.mode == LockMode::Exclusive)
        };
        holders.filter(|(owner, (mode, _))| clash(owner, *mode)).map(|(owner, _)| *owner).collect()
    }

    /// The requests before `ticket` that cannot be granted together with `request`.
    fn ahead(&self, file: u64, ticket: Ticket, request: &LockRequest) -> BTreeSet<Ticket> {
        let mut ahead = BTreeSet::new();
        for (earlier, (other_file, other)) in self.queue.range(..ticket) {
            let mut alone = Self::default();
            alone.assign(*other_file, other, GrantId(0));
            if *other_file == file && !alone.blockers(file, request).is_empty() {
                ahead.insert(*earlier);
            }
        }
        ahead
    }

    /// The owners that `ticket` waits for, by trying all until nothing more is found.
    fn awaited(&self, ticket: Ticket) -> BTreeSet<LockOwner> {
        let (mut tickets, mut owners) = (BTreeSet::from([ticket]), BTreeSet::new());
        loop {
            let before = (tickets.len(), owners.len());
            for ticket in tickets.clone() {
                let (file, request) = self.queue[&ticket];
                owners.extend(self.blockers(file, &request));
                tickets.extend(self.ahead(file, ticket, &request));
            }
            let theirs = self.queue.iter().filter(|(_, (_, request))| owners.contains(&request.owner));
            tickets.extend(theirs.map(|(ticket, _)| *ticket));
            if before == (tickets.len(), owners.len()) {
                return owners;
            }
        }
    }

    fn may_be_granted(&self, file: u64, ticket: Ticket, request: &LockRequest) -> bool {
        self.blockers(file, request).is_empty()
            && self
                .ahead(file, ticket, request)
                .iter()
                .all(|ahead| self.awaited(*ahead).contains(&request.owner))
    }

    /// Whether a process would wait for itself.
    fn deadlocks(&self, file: u64, request: &LockRequest) -> bool {
        let posix = |owners: BTreeSet<LockOwner>| owners.into_iter().filter(|o| o.kind == LockKind::Posix);
        let mut reached: BTreeSet<LockOwner> = posix(self.blockers(file, request)).collect();
        for _ in 0..OWNERS.len() {
            for (file, waiting) in self.queue.values() {
                if reached.contains(&waiting.owner) {
                    reached.extend(posix(self.blockers(*file, waiting)));
                }
            }
        }
        request.owner.kind == LockKind::Posix && reached.contains(&request.owner)
    }

    fn assign(&mut self, file: u64, request: &LockRequest, grant: GrantId) {
        for byte in (0..BYTES).filter(|byte| covers(request, *byte)) {
            self.cells.entry((file, byte)).or_default().insert(request.owner, (request.mode, grant));
        }
    }

    fn clear(&mut self, mut gone: impl FnMut(u64, u64, &LockOwner, GrantId) -> bool) {
        for ((file, byte), cell) in &mut self.cells {
            cell.retain(|owner, (_, grant)| !gone(*file, *byte, owner, *grant));
        }
        self.cells.retain(|_, cell| !cell.is_empty());
    }

    /// Judges what the table reports about a grant.
    fn grant(&mut self, file: u64, ticket: Ticket, request: &LockRequest, grant: GrantId) {
        assert!(self.may_be_granted(file, ticket, request), "granted too early: {ticket} {request:?}");
        assert!(grant.0 > self.last, "grants rise");
        self.last = grant.0;
        self.queue.remove(&ticket);
        self.assign(file, request, grant);
    }

    fn event(&mut self, event: &LockEvent) {
        let (file, request) = self.queue[&event.ticket];
        match event.reply {
            Ok(grant) => self.grant(file, event.ticket, &request, grant),
            Err(LockError::Deadlock) => {
                assert!(self.deadlocks(file, &request), "no deadlock: {request:?}");
                self.queue.remove(&event.ticket);
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn set(&mut self, file: u64, request: &LockRequest, wait: bool, outcome: LockOutcome) {
        let now = Ticket(u64::MAX);
        if let LockOutcome::Granted(grant) = outcome {
            return self.grant(file, now, request, grant);
        }
        assert!(!self.may_be_granted(file, now, request), "not granted: {request:?}");
        let deadlocks = wait && self.deadlocks(file, request);
        match outcome {
            LockOutcome::Refused(LockError::Deadlock) => return assert!(deadlocks),
            LockOutcome::Refused(LockError::WouldBlock(_)) => assert!(!wait),
            LockOutcome::Waiting(ticket) => {
                assert!(wait && !deadlocks);
                self.queue.insert(ticket, (file, *request));
            }
            other => panic!("{other:?}"),
        }
        if request.owner.kind == LockKind::Flock {
            self.clear(|at, _, owner, _| at == file && *owner == request.owner);
        }
    }

    /// What holds between any two steps.
    fn check(&self, table: &LockTable) {
        for (ticket, (file, request)) in &self.queue {
            assert!(!self.may_be_granted(*file, *ticket, request), "forgotten: {ticket} {request:?}");
            assert!(!self.deadlocks(*file, request), "waits for itself: {ticket} {request:?}");
        }
        let mut cells: BTreeMap<(u64, u64), Cell> = BTreeMap::new();
        let mut queue = BTreeMap::new();
        for Listed { key, lock, state } in table.list() {
            match state {
                LockState::Waiting(ticket) => assert!(queue.insert(ticket, (key, lock)).is_none()),
                LockState::Held(grant) => {
                    for byte in (0..BYTES).filter(|byte| covers(&lock, *byte)) {
                        let cell = cells.entry((key, byte)).or_default();
                        assert!(cell.insert(lock.owner, (lock.mode, grant)).is_none(), "held twice");
                    }
                }
            }
        }
        assert_eq!(cells, self.cells);
        assert_eq!(queue, self.queue);
        let bytes = bincode::encode_to_vec(table, standard()).unwrap();
        let (copy, used): (LockTable, usize) = bincode::decode_from_slice(&bytes, standard()).unwrap();
        assert_eq!((&copy, used), (table, bytes.len()));
    }
}

fn covers(request: &LockRequest, byte: u64) -> bool {
    request.owner.kind == LockKind::Flock || (request.range.start() <= byte && byte <= request.range.end())
}

fn bytes(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, (start + len - 1).min(BYTES - 1)).unwrap()
}

fn run(table: &mut LockTable, model: &mut Model, step: Step) {
    let mut events = Vec::new();
    match step {
        Step::Set { owner, file, exclusive, start, len, wait } => {
            let mode = if exclusive { LockMode::Exclusive } else { LockMode::Shared };
            let request = LockRequest { owner: OWNERS[owner], pid: 1, mode, range: bytes(start, len) };
            let request = request.normalised();
            let outcome = table.set(&file, request, wait, &mut events);
            model.set(file, &request, wait, outcome);
        }
        Step::Unlock { owner, file, start, len, through } => {
            let (owner, range) = (OWNERS[owner], bytes(start, len));
            let through = through.map(|back| GrantId(model.last.saturating_sub(back)));
            table.unlock(&file, owner, range, through, &mut events).unwrap();
            let whole = owner.kind == LockKind::Flock;
            model.clear(|at, byte, other, grant| {
                let inside = whole || (range.start() <= byte && byte <= range.end());
                at == file && inside && *other == owner && through.is_none_or(|through| grant <= through)
            });
        }
        Step::Release { owner, file } => {
            table.release_owner(&file, OWNERS[owner], &mut events);
            model.clear(|at, _, other, _| at == file && *other == OWNERS[owner]);
        }
        Step::EndClient { client } => {
            let client = ClientId(client);
            table.end_client(client, &mut events);
            let ended = LockError::ClientEnded(client);
            events.retain(|event| {
                let mine = event.reply == Err(ended);
                if mine {
                    assert_eq!(model.queue.remove(&event.ticket).unwrap().1.owner.client, client);
                }
                !mine
            });
            assert!(model.queue.values().all(|(_, request)| request.owner.client != client));
            model.clear(|_, _, other, _| other.client == client);
        }
        Step::Cancel { nth } => {
            let Some(ticket) = model.queue.keys().nth(nth).copied() else { return };
            assert!(table.cancel(ticket, &mut events));
            model.queue.remove(&ticket);
            assert_eq!(events.remove(0), LockEvent { ticket, reply: Err(LockError::Interrupted) });
        }
    }
    for event in &events {
        model.event(event);
    }
    model.check(table);
}

/// Owners that wait for nothing let go, again and again.
fn drain(table: &mut LockTable, model: &mut Model) {
    loop {
        let waits = |owner: &LockOwner| model.queue.values().any(|(_, request)| request.owner == *owner);
        let held = model.cells.iter().flat_map(|((file, _), cell)| cell.keys().map(|owner| (*file, *owner)));
        let Some((file, owner)) = held.clone().find(|(_, owner)| !waits(owner)) else { break };
        let owner = OWNERS.iter().position(|known| *known == owner).unwrap();
        run(table, model, Step::Release { owner, file });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_decides_as_the_model(steps in prop::collection::vec(step(OWNERS.len()), 1..80)) {
        let (mut table, mut model) = (LockTable::new(LockLimits::default()), Model::default());
        for step in steps {
            run(&mut table, &mut model, step);
        }
    }

    #[test]
    fn processes_never_wait_for_ever(steps in prop::collection::vec(step(4), 1..80)) {
        let (mut table, mut model) = (LockTable::new(LockLimits::default()), Model::default());
        for step in steps {
            run(&mut table, &mut model, step);
        }
        drain(&mut table, &mut model);
        prop_assert!(model.queue.is_empty(), "{:?}", model);
        prop_assert!(table.is_empty());
    }

    #[test]
    fn arbitrary_bytes_make_no_table_or_a_sound_one(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        steps in prop::collection::vec(step(OWNERS.len()), 0..20),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let config = standard().with_limit::<65_536>();
        let _ = bincode::decode_from_slice::<LockTable, _>(&bytes, config);
        let (mut table, mut model) = (LockTable::new(LockLimits::default()), Model::default());
        for step in steps {
            run(&mut table, &mut model, step);
        }
        let mut bytes = bincode::encode_to_vec(&table, config).unwrap();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok((mut table, _)) = bincode::decode_from_slice::<LockTable, _>(&bytes, config) {
            let mut events = Vec::new();
            for client in 0..4 {
                table.end_client(ClientId(client), &mut events);
            }
            prop_assert!(table.list().all(|listed| listed.lock.owner.client.0 > 3));
        }
    }
}
