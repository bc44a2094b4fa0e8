//! A node's side of the control plane: its session kept alive, its client's commands in slots, transfers with their
//! abort (L1, L2, L5, L7, F1). What [`lockd::client::LockClient`] and the agent behind it do with threads and sockets is
//! done here in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use lockd::authority::{Authority, AuthorityError, Handover, Holding};
use lockd::client::{ClientError, Listener, Transferred};
use lockd::clock::Clock;
use lockd::ids::{ClientId, Epoch, NodeName, ResourceId, SessionId, Ticket};
use lockd::lease::Lease;
use lockd::locks::{ByteRange, LockOutcome, LockOwner, LockRequest};
use lockd::machine::{
    AbortOutcome, ClientKind, Command, Cookie, Event, HoldMode, Move, Nonce, Operation, Query, Refusal,
    Reply, Report, Victim, decode_reply,
};
use lockd::rules::Rule;
use lockd::slots::SlotAllocator;
use parking_lot::Mutex;

use super::VOLUME;
use super::lockd::{LEASE, Lockd};
use super::schedule::{Answer, Party, Schedule, VirtualClock};
use crate::cluster::{Control, Plane};

/// How long an answer is waited for before the question is sent again.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often the session is kept alive.
const KEEP_ALIVE: Duration = Duration::from_millis(300);
/// How often fences are looked at.
const STEP: Duration = Duration::from_millis(200);

/// Whose nonce.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Who {
    Session,
    Mount(usize),
    Host,
}

/// See the module.
#[derive(Debug)]
pub struct Agent {
    lockd: Arc<Lockd>,
    pub party: Arc<Party>,
    clock: VirtualClock,
    session: OnceLock<SessionId>,
    client: OnceLock<ClientId>,
    lease: Arc<Lease>,
    slots: Arc<SlotAllocator>,
    /// The other client of the node: a host of virtual machines.
    host: OnceLock<ClientId>,
    host_slots: Arc<SlotAllocator>,
    ended: AtomicBool,
    /// Its lockd is not there.
    is_down: AtomicBool,
    /// It has a session that it keeps alive.
    is_back: AtomicBool,
    /// Clients that end, or have ended, by themselves.
    leave: Mutex<BTreeSet<ClientId>>,
    /// By what lockd knows its session and its clients again (L11).
    nonces: Arc<Mutex<BTreeMap<Who, Nonce>>>,
    /// Events were lost while the node was cut off.
    missed: AtomicBool,
    /// When the last event comes: the next one comes later.
    last_event: AtomicU64,
    /// Victims that the mount has been told of.
    told: Mutex<Vec<Victim>>,
    plane: OnceLock<Weak<Plane>>,
    me: Weak<Self>,
}

impl Agent {
    /// The agent of a process that has no session yet, or goes on with the session of an earlier mount.
    pub fn new(lockd: &Arc<Lockd>, party: &Arc<Party>, earlier: Option<&Self>) -> Arc<Self> {
        let clock = VirtualClock { schedule: Arc::clone(&lockd.schedule), party: Arc::clone(party) };
        let lease = earlier.map_or_else(|| Arc::new(Lease::lapsed()), |earlier| Arc::clone(&earlier.lease));
        Arc::new_cyclic(|me| Self {
            lockd: Arc::clone(lockd),
            party: Arc::clone(party),
            clock,
            session: earlier.map(|earlier| earlier.session.clone()).unwrap_or_default(),
            client: OnceLock::new(),
            lease,
            slots: SlotAllocator::new(),
            host: earlier.map(|earlier| earlier.host.clone()).unwrap_or_default(),
            host_slots: earlier.map_or_else(SlotAllocator::new, |earlier| Arc::clone(&earlier.host_slots)),
            ended: AtomicBool::new(false),
            is_down: AtomicBool::new(false),
            is_back: AtomicBool::new(true),
            leave: Mutex::default(),
            nonces: earlier.map(|earlier| Arc::clone(&earlier.nonces)).unwrap_or_default(),
            missed: AtomicBool::new(false),
            last_event: AtomicU64::new(0),
            told: Mutex::default(),
            plane: OnceLock::new(),
            me: Weak::clone(me),
        })
    }

    fn schedule(&self) -> &Arc<Schedule> {
        &self.lockd.schedule
    }

    /// Opens a session, as soon as the node's last one has ended, unless there is one, and registers the mount. Waits.
    /// False if the session has ended meanwhile.
    pub fn open(self: &Arc<Self>, plane: &Arc<Plane>) -> bool {
        let _ = self.plane.set(Arc::downgrade(plane));
        if self.session.get().is_none() && !self.open_session() {
            return false;
        }
        let _ = self.party.session.set(self.session());
        self.lockd.follow(self);
        self.beat();
        // Its first lease.
        while !self.lease.holds(&self.clock) {
            if self.has_ended() {
                return false;
            }
            self.clock.sleep(Duration::from_millis(20));
        }
        self.fences();
        let mount = Who::Mount(self.nonces.lock().len());
        let is_mounted = self.register(&self.client, ClientKind::Csvfs { volume: VOLUME }, mount);
        is_mounted && (self.host.get().is_some() || self.register(&self.host, ClientKind::Vmhost, Who::Host))
    }

    fn open_session(&self) -> bool {
        let name: NodeName = format!("n{}", self.party.node).parse().expect("a name");
        let mut nonce = self.draw_nonce();
        let session = loop {
            match self.me().propose(&Command::OpenSession { node: name.clone(), nonce }) {
                Ok(Reply::Session(session)) => break session,
                Ok(Reply::Refused(Refusal::NodeHasSession { .. })) => self.clock.sleep(PATIENCE),
                // L2: opened and ended before the reply came.
                Ok(Reply::Refused(Refusal::SessionEnded(_))) => nonce = self.draw_nonce(),
                Err(_) => return false,
                Ok(other) => panic!("no session for {name}: {other:?}"),
            }
        };
        self.nonces.lock().insert(Who::Session, nonce);
        self.session.set(session).is_ok()
    }

    fn draw_nonce(&self) -> Nonce {
        Nonce(self.schedule().draw(rand::Rng::random::<u128>))
    }

    /// Registers a client. False if the session has ended meanwhile.
    fn register(self: &Arc<Self>, place: &OnceLock<ClientId>, kind: ClientKind, who: Who) -> bool {
        let (session, nonce) = (self.session(), self.draw_nonce());
        self.nonces.lock().insert(who, nonce);
        match self.propose(&Command::AddClient { session, nonce, kind, pid: 1 }) {
            Ok(Reply::Client(client)) => place.set(client).is_ok(),
            Ok(Reply::Refused(Refusal::SessionEnded(_) | Refusal::ClientEnded(_)))
            | Err(ClientError::SessionEnded(_)) => false,
            other => panic!("no {kind} can be registered: {other:?}"),
        }
    }

    /// The session; only after [`Agent::open`].
    pub fn session(&self) -> SessionId {
        *self.session.get().expect("opened first")
    }

    /// The mount; only after [`Agent::open`].
    pub fn client(&self) -> ClientId {
        *self.client.get().expect("opened first")
    }

    /// The host of virtual machines; only after [`Agent::open`].
    pub fn host(&self) -> ClientId {
        *self.host.get().expect("opened first")
    }

    /// A message to the leader, and what comes back.
    fn exchange<R: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&Arc<Lockd>, Box<dyn FnOnce(R) + Send>) + Send + 'static,
        told: impl FnOnce(R) + Send + 'static,
    ) {
        if self.lockd.mishap() || self.is_down.load(SeqCst) {
            return;
        }
        let (agent, lockd) = (Arc::clone(self), Arc::clone(&self.lockd));
        let leader = Arc::clone(&self.lockd);
        let asked = move || {
            if lockd.is_cut(agent.party.node) {
                return;
            }
            let back = Arc::clone(&lockd);
            let reply = move |reply: R| {
                let is_heard = !agent.is_down.load(SeqCst) && !back.is_cut(agent.party.node);
                if !back.mishap() && is_heard {
                    back.schedule.after_in(&agent.party, back.delay(), move || told(reply));
                }
            };
            ask(&lockd, Box::new(reply));
        };
        self.schedule().after(leader.delay(), move || Arc::clone(&leader).at_leader(asked));
    }

    /// Has a command applied, sent again until there is a reply. It may be applied more than once: slots and nonces are
    /// for that.
    fn propose(self: &Arc<Self>, command: &Command) -> Result<Reply, ClientError> {
        let answer = Answer::default();
        self.propose_into(command, &answer)
    }

    fn propose_into(
        self: &Arc<Self>,
        command: &Command,
        answer: &Answer<Reply>,
    ) -> Result<Reply, ClientError> {
        loop {
            self.send(command.clone(), answer);
            if let Some(reply) = self.schedule().wait_for(&self.party, answer, PATIENCE) {
                return Ok(reply);
            }
            self.check_live()?;
        }
    }

    fn send(self: &Arc<Self>, command: Command, answer: &Answer<Reply>) {
        let (answer, schedule) = (answer.clone(), Arc::clone(self.schedule()));
        let copies = 1 + usize::from(self.lockd.mishap());
        for _ in 0..copies {
            let (answer, schedule, command) = (answer.clone(), Arc::clone(&schedule), command.clone());
            self.exchange(
                move |lockd, reply| lockd.append(command, Some(reply)),
                move |reply| answer.fill(&schedule, reply),
            );
        }
    }

    fn check_live(&self) -> Result<(), ClientError> {
        let session = || self.session.get().copied().unwrap_or_default();
        if self.has_ended() { Err(ClientError::SessionEnded(session())) } else { Ok(()) }
    }

    fn me(&self) -> Arc<Self> {
        self.me.upgrade().expect("somebody is calling it")
    }

    /// An operation of the mount, once (L5).
    fn operate(&self, operation: Operation) -> Result<Reply, ClientError> {
        self.operate_as(self.client(), &self.slots, operation)
    }

    /// The same, of a client of the node.
    fn operate_as(
        &self,
        client: ClientId,
        slots: &Arc<SlotAllocator>,
        operation: Operation,
    ) -> Result<Reply, ClientError> {
        self.check_live()?;
        let slot = slots.try_acquire()?.ok_or(ClientError::Unexpected)?;
        let (of, sequence) = (slot.slot(), slot.sequence());
        let command = Command::Client { client, slot: of, sequence, operation };
        let reply = self.me().propose(&command)?;
        slot.answered();
        match reply {
            Reply::Refused(refusal) => Err(ClientError::Refused(Box::new(refusal))),
            reply => Ok(reply),
        }
    }

    /// Asks for a lock of a file.
    pub fn lock(
        &self,
        resource: &ResourceId,
        request: LockRequest,
        wait: bool,
    ) -> Result<LockOutcome, ClientError> {
        match self.operate(Operation::Lock { resource: resource.clone(), request, wait }) {
            Ok(Reply::Lock(outcome)) => Ok(outcome),
            Ok(_) => Err(ClientError::Unexpected),
            Err(ClientError::Refused(refusal)) => match *refusal {
                Refusal::Lock(error) => Ok(LockOutcome::Refused(error)),
                other => Err(ClientError::Refused(Box::new(other))),
            },
            Err(error) => Err(error),
        }
    }

    /// Ends what `owner` holds of `range`.
    pub fn unlock(
        &self,
        resource: &ResourceId,
        owner: LockOwner,
        range: ByteRange,
    ) -> Result<(), ClientError> {
        let resource = resource.clone();
        self.operate(Operation::Unlock { resource, owner, range, grant: None }).map(drop)
    }

    /// Ends the waiting for a lock.
    pub fn cancel(&self, ticket: Ticket) -> Result<(), ClientError> {
        self.operate(Operation::Cancel { ticket }).map(drop)
    }

    /// The host holds a virtual machine that nobody holds.
    pub fn start_machine(&self, resource: &ResourceId) -> Result<Epoch, ClientError> {
        let (resource, mode) = (resource.clone(), HoldMode::Exclusive);
        let acquire = Operation::Acquire { resource, mode, pinned: false };
        match self.operate_as(self.host(), &self.host_slots, acquire)? {
            Reply::Acquired(info) => Ok(info.epoch),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// The host hands a virtual machine over to another.
    pub fn move_machine(
        &self,
        resource: &ResourceId,
        epoch: Epoch,
        to: ClientId,
    ) -> Result<Epoch, ClientError> {
        let moves = vec![Move { resource: resource.clone(), epoch, from: self.host(), to }];
        let cookie = Cookie(self.schedule().draw(rand::Rng::random::<u128>));
        let transfer = Operation::Transfer { cookie, moves, escrow: false, pinned: false };
        match self.operate_as(self.host(), &self.host_slots, transfer)? {
            Reply::Transferred { epoch } => Ok(epoch),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// The host ends by itself.
    pub fn end_host(&self) -> Result<(), ClientError> {
        self.leave.lock().insert(self.host());
        self.operate_as(self.host(), &self.host_slots, Operation::Leave).map(drop)
    }

    /// A keep-alive, and the next one later (L1).
    fn beat(self: &Arc<Self>) {
        if self.ended.load(SeqCst) || !self.is_back.load(SeqCst) {
            return;
        }
        let (session, sent) = (self.session(), self.clock.boot());
        let agent = Arc::clone(self);
        self.exchange(
            move |lockd, reply| {
                if let Some(lives) = lockd.keep_alive(session) {
                    reply(lives);
                }
            },
            move |lives: bool| agent.alive(sent, lives),
        );
        if let Some(lives) = self.lockd.keep_alive_behind(self.party.node, session) {
            let agent = Arc::clone(self);
            self.schedule().after_in(&self.party, self.lockd.delay(), move || agent.alive(sent, lives));
        }
        let agent = Arc::clone(self);
        self.schedule().after_in(&self.party, KEEP_ALIVE, move || agent.beat());
    }

    /// L11: its lockd is killed, and is there again after a while: it resumes the session, and its clients register again.
    pub fn restart(self: &Arc<Self>, after: Duration) {
        if self.client.get().is_none() || self.is_down.swap(true, SeqCst) {
            return;
        }
        self.schedule().note("lockd killed", &[self.party.node as u64]);
        let agent = Arc::clone(self);
        self.schedule().after_in(&self.party, after, move || agent.resume());
    }

    fn resume(self: &Arc<Self>) {
        self.schedule().note("lockd is back", &[self.party.node as u64]);
        let node: NodeName = format!("n{}", self.party.node).parse().expect("a name");
        let kept = self.nonces.lock().get(&Who::Session).copied();
        let kept = kept.filter(|_| self.lockd.rules.keeps(Rule::L11));
        let nonce = kept.unwrap_or_else(|| self.draw_nonce());
        self.is_down.store(false, SeqCst);
        self.missed.store(true, SeqCst);
        self.is_back.store(false, SeqCst);
        let open = Command::OpenSession { node, nonce };
        while !self.ended.load(SeqCst) {
            match self.propose(&open) {
                Ok(Reply::Session(session)) if session == self.session() => break,
                Ok(Reply::Refused(Refusal::NodeHasSession { .. })) => self.clock.sleep(PATIENCE),
                Ok(Reply::Session(_) | Reply::Refused(Refusal::SessionEnded(_))) | Err(_) => {
                    return self.alive(self.clock.boot(), false);
                }
                Ok(other) => panic!("the session is not resumed: {other:?}"),
            }
        }
        self.is_back.store(true, SeqCst);
        self.beat();
        self.return_clients();
    }

    /// Whoever has been registered is again, as the client that it was.
    fn return_clients(self: &Arc<Self>) {
        let nonces = self.nonces.lock().clone();
        let mount = nonces.iter().rfind(|(who, _)| matches!(who, Who::Mount(_)));
        let host = nonces.get_key_value(&Who::Host);
        for (who, nonce) in mount.into_iter().chain(host) {
            let (kind, known) = match who {
                Who::Host => (ClientKind::Vmhost, &self.host),
                _ => (ClientKind::Csvfs { volume: VOLUME }, &self.client),
            };
            let has_left = known.get().is_none_or(|client| self.leave.lock().contains(client));
            if has_left {
                continue;
            }
            let (session, nonce) = (self.session(), *nonce);
            match self.propose(&Command::AddClient { session, nonce, kind, pid: 1 }) {
                Ok(Reply::Client(client)) if Some(&client) == known.get() => {}
                Ok(Reply::Refused(Refusal::SessionEnded(_) | Refusal::ClientEnded(_))) | Err(_) => {}
                other => self.schedule().fail(format!("L11: {known:?} does not come back, but {other:?}")),
            }
        }
    }

    /// L10: the process of an earlier mount of this session is proved dead.
    pub fn has_died(self: &Arc<Self>, client: ClientId) {
        let session = self.session();
        let _ = self.propose(&Command::ClientGone { session, client });
    }

    /// Whether its lease runs.
    pub fn has_lease(&self) -> bool {
        self.party.is_alive() && self.lease.holds(&self.clock)
    }

    fn alive(&self, sent: lockd::clock::BootTime, lives: bool) {
        if lives {
            let from = if self.lockd.counts_from_sending() { sent } else { self.clock.boot() };
            self.lease.extend(from.after(LEASE));
            if self.missed.swap(false, SeqCst)
                && let Some(plane) = self.plane.get().and_then(Weak::upgrade)
            {
                plane.missed();
            }
            return;
        }
        self.schedule().note("session over", &[self.session().0]);
        self.lease.end();
        if !self.ended.swap(true, SeqCst)
            && let Some(plane) = self.plane.get().and_then(Weak::upgrade)
        {
            plane.session_ended(self.session());
        }
    }

    /// Looks at the fences, and again later: who is asked to report has the mount refuse the victim first (F1).
    fn fences(self: &Arc<Self>) {
        if self.ended.load(SeqCst) {
            return;
        }
        let agent = Arc::clone(self);
        self.exchange(
            |lockd, reply| {
                if let Some(lockd::machine::Answer::Fences(fences)) = lockd.query(&Query::Fences) {
                    reply(fences);
                }
            },
            move |fences: Vec<lockd::machine::FenceInfo>| {
                for fence in fences {
                    if fence.waiting.contains(&agent.session()) {
                        agent.drain(fence.victim);
                    }
                }
            },
        );
        let agent = Arc::clone(self);
        self.schedule().after_in(&self.party, STEP, move || agent.fences());
    }

    fn drain(self: &Arc<Self>, victim: Victim) {
        let is_told = self.told.lock().contains(&victim);
        if !is_told {
            self.told.lock().push(victim);
            let agent = Arc::clone(self);
            // The mount reads it as late as its events.
            self.schedule().after_in(&self.party, self.lockd.event_delay(self.party.node), move || {
                if let Some(plane) = agent.plane.get().and_then(Weak::upgrade) {
                    plane.drain(VOLUME, victim);
                }
                agent.report(victim);
            });
            return;
        }
        self.report_again(victim);
    }

    fn report_again(self: &Arc<Self>, victim: Victim) {
        let drained = self.told.lock().iter().filter(|told| **told == victim).count() > 1;
        if drained {
            self.report(victim);
        }
    }

    fn report(self: &Arc<Self>, victim: Victim) {
        {
            // Twice in the list: told, and drained.
            let mut told = self.told.lock();
            if told.iter().filter(|told| **told == victim).count() < 2 {
                told.push(victim);
            }
        }
        let (volume, reporter, report) = (VOLUME, self.session(), Report::Drained);
        self.send(Command::FenceReport { volume, victim, reporter, report }, &Answer::default());
    }

    /// An event comes after a while, not before those that came before it.
    pub fn hear_later(self: &Arc<Self>, delay: Duration, event: Event) {
        let nanos = |span: Duration| u64::try_from(span.as_nanos()).expect("a few minutes");
        let now = nanos(self.schedule().time());
        let at = (now + nanos(delay)).max(self.last_event.load(SeqCst) + 1);
        self.last_event.store(at, SeqCst);
        let agent = Arc::clone(self);
        self.schedule().after_in(&self.party, Duration::from_nanos(at - now), move || {
            if agent.lockd.is_cut(agent.party.node) || agent.is_down.load(SeqCst) {
                agent.missed.store(true, SeqCst);
            } else if let Some(plane) = agent.plane.get().and_then(Weak::upgrade) {
                plane.event(&event);
            }
        });
    }

    fn error(&self, resource: &ResourceId, error: ClientError) -> AuthorityError {
        match error {
            ClientError::SessionEnded(session) => AuthorityError::SessionEnded(session),
            ClientError::Refused(refusal) => match *refusal {
                Refusal::Held { resource, holder } => {
                    AuthorityError::Held { resource, holding: Holding::from(&holder) }
                }
                Refusal::NotHeld { resource, epoch, .. } => AuthorityError::Stale { resource, epoch },
                Refusal::ClientEnded(client) => AuthorityError::ClientEnded(client),
                Refusal::SessionEnded(session) => AuthorityError::SessionEnded(session),
                other => AuthorityError::Unavailable { resource: resource.clone(), why: other.to_string() },
            },
            other => AuthorityError::Unavailable { resource: resource.clone(), why: other.to_string() },
        }
    }
}

impl Authority for Agent {
    fn session(&self) -> SessionId {
        self.session()
    }

    fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    fn add_client(&self) -> Result<ClientId, AuthorityError> {
        Ok(self.client())
    }

    fn end_client(&self, client: ClientId) {
        self.leave.lock().insert(client);
        match self.operate(Operation::Leave) {
            Ok(_) | Err(ClientError::SessionEnded(_)) => {}
            // Its session has ended, and nobody has told it yet.
            Err(ClientError::Refused(refusal)) if matches!(*refusal, Refusal::ClientEnded(_)) => {}
            Err(error) => panic!("the client cannot leave: {error}"),
        }
    }

    fn acquire(&self, resource: &ResourceId, _client: ClientId) -> Result<Holding, AuthorityError> {
        let mode = HoldMode::Exclusive;
        match self.operate(Operation::Acquire { resource: resource.clone(), mode, pinned: false }) {
            Ok(Reply::Acquired(info)) => Ok(Holding::from(&info)),
            Ok(_) => Err(self.error(resource, ClientError::Unexpected)),
            Err(error) => Err(self.error(resource, error)),
        }
    }

    fn release(&self, resource: &ResourceId, _client: ClientId, epoch: Epoch) -> Result<(), AuthorityError> {
        let released = self.operate(Operation::Release { resource: resource.clone(), epoch });
        released.map(drop).map_err(|error| self.error(resource, error))
    }

    fn transfer(&self, handover: &Handover) -> Result<Epoch, AuthorityError> {
        let Some((first, _)) = handover.holdings.first() else { return Ok(Epoch::NOBODY) };
        match self.transfer_set(handover) {
            Ok(Transferred::Done(epoch)) => Ok(epoch),
            Ok(Transferred::Aborted) => {
                Err(AuthorityError::Unavailable { resource: first.clone(), why: "called off".to_owned() })
            }
            Err(error) => Err(self.error(first, error)),
        }
    }

    fn holder(&self, resource: &ResourceId) -> Option<Holding> {
        match self.query(Query::Resource(resource.clone())) {
            Ok(lockd::machine::Answer::Resource(info)) => info.holders.first().map(Holding::from),
            _ => None,
        }
    }
}

impl Control for Agent {
    fn has_ended(&self) -> bool {
        self.ended.load(SeqCst) || self.schedule().is_over()
    }

    fn query(&self, query: Query) -> Result<lockd::machine::Answer, ClientError> {
        let answer = Answer::default();
        loop {
            self.check_live()?;
            let (told, schedule, query) = (answer.clone(), Arc::clone(self.schedule()), query.clone());
            self.me().exchange(
                move |lockd, reply| {
                    if let Some(answer) = lockd.query(&query) {
                        reply(answer);
                    }
                },
                move |reply| told.fill(&schedule, reply),
            );
            if let Some(answer) = self.schedule().wait_for(&self.party, &answer, PATIENCE) {
                return Ok(answer);
            }
        }
    }
}

impl Agent {
    /// Hands a set over, or aborts that after a while (L7).
    fn transfer_set(&self, handover: &Handover) -> Result<Transferred, ClientError> {
        let one = |(resource, epoch): &(ResourceId, Epoch)| Move {
            resource: resource.clone(),
            epoch: *epoch,
            from: handover.from,
            to: handover.to.1,
        };
        let (client, moves) = (handover.from, handover.holdings.iter().map(one).collect());
        let cookie = Cookie(self.schedule().draw(rand::Rng::random::<u128>));
        self.check_live()?;
        let me = self.me();
        let slot = self.slots.try_acquire()?.ok_or(ClientError::Unexpected)?;
        let (of, sequence) = (slot.slot(), slot.sequence());
        let operation = Operation::Transfer { cookie, moves, escrow: false, pinned: handover.pinned };
        let answer = Answer::default();
        let command = Command::Client { client, slot: of, sequence, operation };
        me.send(command.clone(), &answer);
        // Short, so that many are aborted.
        let within = self.schedule().between(1_000, 40_000);
        let reply = match self.schedule().wait_for(&self.party, &answer, within) {
            Some(reply) => reply,
            None => {
                // L7: it may be applied all the same, or later.
                self.schedule().note("abort", &[client.0]);
                match self.operate(Operation::Abort { slot: of, sequence })? {
                    Reply::Abort(AbortOutcome::Aborted) => {
                        slot.answered();
                        return Ok(Transferred::Aborted);
                    }
                    Reply::Abort(AbortOutcome::Applied(reply)) => decode_reply(&reply)?,
                    _ => return Err(ClientError::Unexpected),
                }
            }
        };
        slot.answered();
        match reply {
            Reply::Transferred { epoch } => Ok(Transferred::Done(epoch)),
            Reply::Refused(Refusal::Aborted) => Ok(Transferred::Aborted),
            Reply::Refused(refusal) => Err(ClientError::Refused(Box::new(refusal))),
            _ => Err(ClientError::Unexpected),
        }
    }
}
