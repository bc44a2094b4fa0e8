//! The control plane: the production state machine under a log that loses, repeats and reorders, and whose leader changes.
//!
//! What the voters agree on is one list of entries. A command may be lost on its way to the leader, be appended and not
//! be committed before the leader changes, be applied and its reply lost; whoever asked sends it again, so it may be in
//! the log twice. The leader's memory of the sessions is production's ([`Lapse`]), and lost with its office (L1). A leader
//! may be without a quorum for a while, and keep its office: nothing is committed and nobody is answered then (L4), and
//! what nobody could tell it is no silence (L1). One that another has replaced may go on for those who reach only it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockd::clock::Clock;
use lockd::ids::{ClientId, NodeName, ResourceId, SessionId};
use lockd::machine::{
    Answer, Command, EndCause, Event, EventKind, FenceMethod, Lapse, Operation, Query, Reply, Report,
    SessionState, Settings, State, Victim,
};
use lockd::rules::{Rule, Rules};
use parking_lot::Mutex;

use super::VOLUME;
use super::agent::Agent;
use super::lun::QUIESCE;
use super::schedule::{Party, Schedule, VirtualClock};

/// The lease of a session, and what is waited beyond it.
pub const LEASE: Duration = Duration::from_secs(2);
/// See [`LEASE`]. Longer than any request to the LUN takes.
pub const GRACE: Duration = Duration::from_secs(3);
/// How often the leader looks at sessions and fences.
const LOOK: Duration = Duration::from_millis(100);

/// What is called with a reply, at the leader.
pub type OnReply = Box<dyn FnOnce(Reply) + Send>;
/// What is called when a mount is fenced whose session lives.
pub type OnFenced = Box<dyn Fn(ClientId) + Send + Sync>;
/// What is called when a session has ended or a fence is complete.
pub type OnEnd = Box<dyn Fn(SessionId, bool) + Send + Sync>;

struct Entry {
    command: Command,
    on_reply: Option<OnReply>,
}

struct Cluster {
    machine: State,
    lapse: Lapse,
    leads: bool,
    /// It has a quorum.
    has_quorum: bool,
    /// Nobody reaches the leader.
    is_alone: bool,
    /// Until when the leader stands still: what comes waits in its sockets.
    still_until: Duration,
    /// Nodes that reach only a leader that has been replaced, and the sessions that lived when they lost the others.
    left_behind: BTreeMap<usize, BTreeSet<SessionId>>,
    /// How likely a node is cut off from the voters as soon as its session is opened.
    unlucky: f64,
    /// Sessions that have ended, and are not forgotten.
    ended: BTreeSet<SessionId>,
    /// Sessions of which nothing reaches the LUN, or is done by others, any more.
    fenced: BTreeSet<SessionId>,
    /// Sessions whose end is proposed: their keep-alives are not answered (L1).
    ending: BTreeSet<SessionId>,
    log: VecDeque<Entry>,
    agents: Vec<Arc<Agent>>,
    /// Nodes that do not reach the voters.
    cut: BTreeSet<usize>,
    /// Nodes to which events come late: by how many microseconds at most.
    deaf: BTreeMap<usize, u64>,
    trouble: f64,
}

/// See the module.
pub struct Lockd {
    pub schedule: Arc<Schedule>,
    pub rules: Rules,
    clock: VirtualClock,
    cluster: Mutex<Cluster>,
    on_end: OnceLock<OnEnd>,
    after_each: OnceLock<Box<dyn Fn() + Send + Sync>>,
    on_fenced: OnceLock<OnFenced>,
}

impl std::fmt::Debug for Lockd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lockd")
    }
}

impl Lockd {
    /// Voters with one volume, whose fence is waiting.
    pub fn new(schedule: &Arc<Schedule>, rules: Rules, trouble: f64) -> Arc<Self> {
        let nobody = Party::new(usize::MAX);
        let clock = VirtualClock { schedule: Arc::clone(schedule), party: nobody };
        let mut machine = State::new();
        let settings = Settings { lease_ns: nanos(LEASE), grace_ns: nanos(GRACE) };
        machine.apply(rules, 0, &Command::Configure(settings));
        let (name, fence) = ("volume".to_owned(), FenceMethod::Lease);
        let register = Command::RegisterVolume {
            volume: VOLUME,
            name,
            fence,
            quiesce_ns: nanos(QUIESCE),
            epoch_floor: Default::default(),
        };
        machine.apply(rules, 0, &register);
        let lockd = Arc::new(Self {
            cluster: Mutex::new(Cluster {
                machine,
                lapse: Lapse::new(LEASE, Duration::from_secs(2), clock.boot()),
                leads: true,
                has_quorum: true,
                is_alone: false,
                still_until: Duration::ZERO,
                left_behind: BTreeMap::new(),
                unlucky: 0.0,
                ended: BTreeSet::new(),
                fenced: BTreeSet::new(),
                ending: BTreeSet::new(),
                log: VecDeque::new(),
                agents: Vec::new(),
                cut: BTreeSet::new(),
                deaf: BTreeMap::new(),
                trouble,
            }),
            schedule: Arc::clone(schedule),
            rules,
            clock,
            on_end: OnceLock::new(),
            after_each: OnceLock::new(),
            on_fenced: OnceLock::new(),
        });
        lockd.look_later();
        lockd
    }

    /// Whom to tell when sessions have ended, and when they are fenced.
    pub fn tell(&self, on_end: OnEnd) {
        let _ = self.on_end.set(on_end);
    }

    /// Whom to tell when mounts are fenced.
    pub fn tell_of_mounts(&self, on_fenced: OnFenced) {
        let _ = self.on_fenced.set(on_fenced);
    }

    /// What happens after each entry.
    pub fn after_each(&self, act: Box<dyn Fn() + Send + Sync>) {
        let _ = self.after_each.set(act);
    }

    /// Events come to `agent` from now on.
    pub fn follow(&self, agent: &Arc<Agent>) {
        self.cluster.lock().agents.push(Arc::clone(agent));
    }

    /// `node` reaches the voters no more, or again.
    pub fn cut(&self, node: usize, is_cut: bool) {
        let mut cluster = self.cluster.lock();
        if is_cut {
            cluster.cut.insert(node);
        } else {
            cluster.cut.remove(&node);
            cluster.left_behind.remove(&node);
        }
    }

    /// Whether `node` does not reach the voters.
    pub fn is_cut(&self, node: usize) -> bool {
        let cluster = self.cluster.lock();
        cluster.is_alone || cluster.cut.contains(&node)
    }

    /// The leader is replaced, and `node` does not learn of it: it reaches the old one only, which goes on.
    pub fn leave_behind(self: &Arc<Self>, node: usize) {
        {
            let mut cluster = self.cluster.lock();
            let live = cluster.machine.live_sessions().collect();
            cluster.left_behind.insert(node, live);
            cluster.cut.insert(node);
        }
        self.change_leader();
    }

    /// A keep-alive reaches a leader that has been replaced: as [`Lockd::keep_alive`]. It asks for the confirmation of a
    /// quorum, and has none (L4).
    pub fn keep_alive_behind(&self, node: usize, session: SessionId) -> Option<bool> {
        let cluster = self.cluster.lock();
        let live = cluster.left_behind.get(&node)?;
        (!self.rules.keeps(Rule::L4)).then(|| live.contains(&session))
    }

    /// The leader stands still for a while, and then goes on as if nothing had been: a gap in its clock (L1).
    pub fn stand_still(&self, span: Duration) {
        self.schedule.note("leader stands still", &[]);
        let until = self.schedule.time() + span;
        let mut cluster = self.cluster.lock();
        cluster.still_until = cluster.still_until.max(until);
    }

    fn rest_of_stop(&self) -> Option<Duration> {
        let left = self.cluster.lock().still_until.checked_sub(self.schedule.time())?;
        (!left.is_zero()).then_some(left)
    }

    /// The leader does something, as soon as it does anything.
    pub fn at_leader(&self, act: impl FnOnce() + Send + 'static) {
        match self.rest_of_stop() {
            Some(left) => self.schedule.after(left + self.schedule.between(1, 150_000), act),
            None => act(),
        }
    }

    /// The leader keeps its office and has no quorum for a while; with `is_alone` nobody reaches it, either.
    pub fn lose_quorum(self: &Arc<Self>, span: Duration, is_alone: bool) {
        self.schedule.note("no quorum", &[u64::from(is_alone)]);
        {
            let mut cluster = self.cluster.lock();
            cluster.has_quorum = false;
            cluster.is_alone = is_alone;
        }
        let lockd = Arc::clone(self);
        self.schedule.after(span, move || lockd.regain_quorum());
    }

    fn regain_quorum(self: &Arc<Self>) {
        let entries = {
            let mut cluster = self.cluster.lock();
            if cluster.has_quorum {
                return;
            }
            cluster.has_quorum = true;
            cluster.is_alone = false;
            cluster.log.len()
        };
        self.schedule.note("quorum", &[]);
        (0..entries).for_each(|_| self.commit_later());
    }

    /// From now on some nodes are cut off from the voters for a while as soon as their sessions are opened.
    pub fn be_unlucky(&self, probability: f64) {
        self.cluster.lock().unlucky = probability;
    }

    /// Whether a session is fenced.
    pub fn is_fenced(&self, session: SessionId) -> bool {
        self.cluster.lock().fenced.contains(&session)
    }

    /// Whether a session lives.
    pub fn is_live(&self, session: SessionId) -> bool {
        self.cluster.lock().machine.live_sessions().any(|live| live == session)
    }

    /// Events come late to `node`.
    pub fn deafen(&self, node: usize, most_us: u64) {
        self.cluster.lock().deaf.insert(node, most_us);
    }

    /// How long a message to the mount of `node` takes.
    pub fn event_delay(&self, node: usize) -> Duration {
        let most = self.cluster.lock().deaf.get(&node).copied().unwrap_or(4_000);
        self.schedule.between(most / 2, most)
    }

    /// Nothing is lost any more.
    pub fn heal(self: &Arc<Self>) {
        {
            let mut cluster = self.cluster.lock();
            cluster.cut.clear();
            cluster.left_behind.clear();
            cluster.deaf.clear();
            cluster.trouble = 0.0;
            cluster.unlucky = 0.0;
            cluster.still_until = Duration::ZERO;
        }
        self.regain_quorum();
    }

    /// Drops what it leads to.
    pub fn end(&self) {
        let mut cluster = self.cluster.lock();
        let agents = std::mem::take(&mut cluster.agents);
        let log = std::mem::take(&mut cluster.log);
        drop(cluster);
        drop((agents, log));
    }

    /// Whether a message between a node and the leader is lost.
    pub fn mishap(&self) -> bool {
        let trouble = self.cluster.lock().trouble;
        self.schedule.happens(trouble)
    }

    /// How long one takes.
    pub fn delay(&self) -> Duration {
        if self.mishap() { self.schedule.between(500, 60_000) } else { self.schedule.between(50, 400) }
    }

    /// A command reaches the leader, if there is one.
    pub fn append(self: &Arc<Self>, command: Command, on_reply: Option<OnReply>) {
        let mut cluster = self.cluster.lock();
        if !cluster.leads {
            return;
        }
        cluster.log.push_back(Entry { command, on_reply });
        drop(cluster);
        self.commit_later();
    }

    fn commit_later(self: &Arc<Self>) {
        let lockd = Arc::clone(self);
        self.schedule.after(self.schedule.between(200, 2_500), move || {
            let leader = Arc::clone(&lockd);
            lockd.at_leader(move || leader.commit());
        });
    }

    /// The oldest entry is committed and applied.
    fn commit(self: &Arc<Self>) {
        let time_ns = u64::try_from(self.schedule.time().as_nanos()).expect("a few minutes");
        let (entry, reply, events) = {
            let mut cluster = self.cluster.lock();
            if !cluster.leads || !cluster.has_quorum {
                return;
            }
            let Some(entry) = cluster.log.pop_front() else { return };
            let (reply, events) = cluster.machine.apply(self.rules, time_ns, &entry.command);
            self.schedule.note(name(&entry.command), &[]);
            if let Err(wrong) = cluster.machine.check() {
                self.schedule.fail(format!("the state machine, after {:?}: {wrong}", entry.command));
            }
            (entry, reply, events)
        };
        let refused = u64::from(matches!(reply, Reply::Refused(_)));
        self.schedule.note("applied", &[refused, events.len() as u64]);
        if let Some(act) = self.after_each.get() {
            act();
        }
        if let (Command::OpenSession { node, .. }, Reply::Session(_)) = (&entry.command, &reply) {
            self.bad_luck(node);
        }
        for event in &events {
            if let (EventKind::Fenced { victim: Victim::Client(client), .. }, Some(on_fenced)) =
                (&event.kind, self.on_fenced.get())
            {
                on_fenced(*client);
            }
            let ended = match &event.kind {
                EventKind::SessionEnded { session, .. } => Some((*session, false)),
                EventKind::Fenced { victim: Victim::Session(session), .. } => Some((*session, true)),
                _ => None,
            };
            if let Some((session, fenced)) = ended {
                self.is_over(session, fenced);
            }
            self.publish(event);
        }
        self.forgotten().into_iter().for_each(|session| self.is_over(session, true));
        if let Some(on_reply) = entry.on_reply {
            on_reply(reply);
        }
    }

    /// A node whose session has been opened may be cut off from the voters before it has done anything in it.
    fn bad_luck(self: &Arc<Self>, node: &NodeName) {
        let unlucky = self.cluster.lock().unlucky;
        let number = node.as_str().trim_start_matches('n').parse().unwrap_or(0);
        if !self.schedule.happens(unlucky) {
            return;
        }
        let (from, span) = (self.schedule.between(0, 30_000), self.schedule.between(2_200_000, 4_000_000));
        let (begins, ends) = (Arc::clone(self), Arc::clone(self));
        self.schedule.after(from, move || {
            let is_unlucky = begins.cluster.lock().unlucky > 0.0;
            if is_unlucky {
                begins.cut(number, true);
            }
        });
        self.schedule.after(from + span, move || ends.cut(number, false));
    }

    /// Ended sessions that are forgotten now: one without a mount has no volume to be fenced from.
    fn forgotten(&self) -> Vec<SessionId> {
        let cluster = self.cluster.lock();
        if cluster.ended.is_empty() {
            return Vec::new();
        }
        let Answer::Sessions(sessions) = cluster.machine.query(&Query::Sessions) else { return Vec::new() };
        let is_known = |session: &&SessionId| sessions.iter().any(|info| info.session == **session);
        cluster.ended.iter().filter(|session| !is_known(session)).copied().collect()
    }

    /// A session has ended, or is fenced.
    fn is_over(&self, session: SessionId, fenced: bool) {
        let agents = {
            let mut cluster = self.cluster.lock();
            if fenced {
                cluster.fenced.insert(session);
                cluster.ended.remove(&session);
            } else {
                cluster.ended.insert(session);
            }
            cluster.agents.iter().filter(|agent| agent.session() == session).cloned().collect::<Vec<_>>()
        };
        // L1: it is over by the count of whoever has it, too.
        if !fenced && agents.iter().any(|agent| agent.has_lease()) {
            self.schedule.fail(format!("invariant 4: session {session} is ended, and its lease runs"));
        }
        if let Some(on_end) = self.on_end.get() {
            on_end(session, fenced);
        }
    }

    /// Events reach each mount in their order, each after a while.
    fn publish(self: &Arc<Self>, event: &Event) {
        let agents = self.cluster.lock().agents.clone();
        for agent in agents {
            let delay = self.event_delay(agent.party.node);
            agent.hear_later(delay, event.clone());
        }
    }

    /// Answers from the state, as the confirmed leader does; nobody answers when nobody leads with a quorum.
    pub fn query(&self, query: &Query) -> Option<Answer> {
        let cluster = self.cluster.lock();
        (cluster.leads && cluster.has_quorum).then(|| cluster.machine.query(query))
    }

    /// Who holds a resource, as it is.
    pub fn holder(&self, resource: &ResourceId) -> Option<ClientId> {
        match self.cluster.lock().machine.query(&Query::Resource(resource.clone())) {
            Answer::Resource(info) => info.holders.first().map(|holder| holder.client),
            _ => None,
        }
    }

    /// How many resources and locks are held.
    pub fn held(&self) -> (u64, u64) {
        match self.cluster.lock().machine.query(&Query::Status) {
            Answer::Status { resources, locks, .. } => (resources, locks),
            _ => (0, 0),
        }
    }

    /// How many sessions live, and how many there are with those that are not fenced.
    pub fn sessions(&self) -> (usize, usize) {
        let cluster = self.cluster.lock();
        let live = cluster.machine.live_sessions().count();
        match cluster.machine.query(&Query::Sessions) {
            Answer::Sessions(sessions) => (live, sessions.len()),
            _ => (live, 0),
        }
    }

    /// A keep-alive reaches the leader: whether the session lives, if that is answered (L1, L4).
    pub fn keep_alive(&self, session: SessionId) -> Option<bool> {
        let now = self.clock.boot();
        let mut cluster = self.cluster.lock();
        if !cluster.leads || cluster.ending.contains(&session) {
            return None;
        }
        cluster.lapse.heard(session, now);
        if !cluster.has_quorum && self.rules.keeps(Rule::L4) {
            return None;
        }
        let lives = cluster.machine.live_sessions().any(|live| live == session);
        Some(lives)
    }

    /// The leader changes: of what is not committed some entries survive, and their replies are lost.
    pub fn change_leader(self: &Arc<Self>) {
        self.schedule.note("leader gone", &[]);
        {
            let mut cluster = self.cluster.lock();
            cluster.leads = false;
            cluster.still_until = Duration::ZERO;
            let log = std::mem::take(&mut cluster.log);
            for entry in log {
                if self.schedule.happens(0.5) {
                    cluster.log.push_back(Entry { on_reply: None, ..entry });
                }
            }
        }
        let lockd = Arc::clone(self);
        self.schedule.after(self.schedule.between(100_000, 900_000), move || lockd.take_office());
    }

    fn take_office(self: &Arc<Self>) {
        self.schedule.note("leader", &[]);
        let entries = {
            let mut cluster = self.cluster.lock();
            if cluster.leads {
                return;
            }
            cluster.leads = true;
            cluster.has_quorum = true;
            cluster.is_alone = false;
            cluster.ending.clear();
            cluster.lapse = Lapse::new(LEASE, Duration::from_secs(2), self.clock.boot());
            cluster.log.len()
        };
        (0..entries).for_each(|_| self.commit_later());
    }

    fn look_later(self: &Arc<Self>) {
        let lockd = Arc::clone(self);
        let next = self.rest_of_stop().map_or(LOOK, |left| left + self.schedule.between(1, 100_000));
        self.schedule.after(next, move || {
            if lockd.rest_of_stop().is_none() {
                lockd.look();
            }
            lockd.look_later();
        });
    }

    /// The leader's duties: ends lapsed sessions, says when lease and grace were waited, lets time pass.
    fn look(self: &Arc<Self>) {
        let now = self.clock.boot();
        let time_ns = u64::try_from(self.schedule.time().as_nanos()).expect("a few minutes");
        let mut commands = Vec::new();
        {
            let mut cluster = self.cluster.lock();
            if !cluster.leads {
                return;
            }
            let live: Vec<SessionId> = cluster.machine.live_sessions().collect();
            cluster.ending.retain(|session| live.contains(session));
            if !cluster.has_quorum {
                cluster.lapse.without_quorum(self.rules, now);
            }
            for session in cluster.lapse.look(self.rules, now, live.iter().copied()) {
                if cluster.ending.insert(session) {
                    commands.push(Command::EndSession { session, cause: EndCause::Lapsed });
                }
            }
            let (Answer::Fences(fences), Answer::Sessions(sessions)) =
                (cluster.machine.query(&Query::Fences), cluster.machine.query(&Query::Sessions))
            else {
                return;
            };
            let fences = if cluster.has_quorum { fences } else { Vec::new() };
            for fence in fences.iter().filter(|fence| fence.method.is_none()) {
                let victim = match fence.victim {
                    Victim::Session(victim) => victim,
                    // L10: its own node waits until nothing of it may land.
                    Victim::Client(client) => {
                        let quiesced = fence.since_ns.saturating_add(nanos(QUIESCE)) <= time_ns;
                        if let (true, Some(reporter)) = (quiesced, cluster.session_of(client)) {
                            let (volume, victim) = (fence.volume, fence.victim);
                            let report = Report::Fenced { method: FenceMethod::Quiesce };
                            commands.push(Command::FenceReport { volume, victim, reporter, report });
                        }
                        continue;
                    }
                };
                let over = sessions.iter().any(|info| match info.state {
                    SessionState::Ended { lease_over_ns, .. } => {
                        info.session == victim && (lease_over_ns <= time_ns)
                    }
                    SessionState::Live => false,
                });
                // L9's mutant frees without it.
                if let (true, Some(reporter)) = (over, live.first()) {
                    let (volume, report) = (fence.volume, Report::Fenced { method: FenceMethod::Lease });
                    let (victim, reporter) = (fence.victim, *reporter);
                    commands.push(Command::FenceReport { volume, victim, reporter, report });
                }
            }
            if cluster.has_quorum && cluster.machine.wakes_at_ns().is_some_and(|at| at <= time_ns) {
                commands.push(Command::Tick);
            }
        }
        commands.into_iter().for_each(|command| self.append(command, None));
    }

    /// Whether a node counts its lease from when it sent its keep-alive (L1).
    pub fn counts_from_sending(&self) -> bool {
        self.rules.keeps(Rule::L1)
    }
}

impl Cluster {
    /// Under which session a client is.
    fn session_of(&self, client: ClientId) -> Option<SessionId> {
        let Answer::Clients(clients) = self.machine.query(&Query::Clients) else { return None };
        clients.iter().find(|info| info.client == client).map(|info| info.session)
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).expect("a few minutes")
}

fn name(command: &Command) -> &'static str {
    match command {
        Command::Client { operation, .. } => match operation {
            Operation::Acquire { .. } => "acquire",
            Operation::Release { .. } => "release",
            Operation::Transfer { .. } => "transfer",
            Operation::Abort { .. } => "abort it",
            Operation::Leave => "leave",
            _ => "operation",
        },
        Command::EndSession { .. } => "end of session",
        Command::FenceReport { .. } => "fence report",
        _ => "command",
    }
}
