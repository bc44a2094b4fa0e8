//! The whole of a simulated cluster, and what its seed does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use lockd::authority::Authority;
use lockd::ids::{ClientId, Epoch, ResourceId, SessionId};
use lockd::rules::{Rule, Rules};
use parking_lot::Mutex;
use redb::{Database, ReadOnlyTable};

use super::VOLUME;
use super::agent::Agent;
use super::faults;
use super::lockd::Lockd;
use super::lun::{Disk, Figures, QUIESCE, Target};
use super::member::{Door, Member};
use super::network::Network;
use super::plate::Plates;
use super::schedule::{Party, Schedule, VirtualClock};
use super::trace::Trace;
use super::users::Users;
use crate::cluster::Control;
use crate::coordinator::{self, Coordinator};
use crate::disk::{MetadataSpace, SpaceError};
use crate::store::check::check;
use crate::store::cookie::HashKey;
use crate::store::record::HeldRecord;
use crate::store::{initialise, low, pair};
use crate::types::{LunBlock, Run, Timestamp};

const KEY: HashKey = HashKey([1; 16]);
/// The first block that files may have.
const FIRST: u64 = 8;
/// When everything is healed, and how long what is under way may take from then on.
const HEALED: Duration = Duration::from_secs(9);
/// See [`HEALED`].
const PROGRESS: Duration = Duration::from_secs(90);
/// How often the coordinator looks, every 20 ms, before everything must be free.
const FINISHING: usize = 700;

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    pub rules: Rules,
    /// How likely each mishap of a message is.
    pub trouble: f64,
    /// Whether nodes die, pause and are cut off.
    pub faults: bool,
    /// What each node's users do.
    pub steps: u64,
    /// Whether lockd is restarted under its clients.
    pub restarts: bool,
    /// Paths from each node to the LUN.
    pub ways: usize,
    /// The target proves that what a lost connection has left is executed.
    pub proves: bool,
    /// It trims what is freed.
    pub trims: bool,
    /// How long I/O is held while no path works.
    pub hold: Duration,
    /// Blocks that files may have; where they are few, each is used by one file after the other.
    pub blocks: u64,
    /// Blocks in a node's reserve at least; eight times as many at most.
    pub reserve: u64,
}

impl Plan {
    /// Whether there may be no block for a write.
    pub fn is_scant(&self) -> bool {
        self.blocks < 200
    }
}

/// What has come of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Played {
    /// The trace's hash.
    pub hash: u64,
    /// What connections to the LUN have lost.
    pub lun: Figures,
    /// Reads that were held against what others wrote at the same time.
    pub raced: u64,
}

/// The nodes, and those that come up.
#[derive(Default)]
struct Nodes {
    running: BTreeMap<usize, Arc<Member>>,
    starting: BTreeMap<usize, Arc<Party>>,
    /// Those whose mounts end.
    leaving: BTreeSet<usize>,
    /// When those that come up end once more.
    again: BTreeMap<usize, Duration>,
}

/// See the module.
pub struct World {
    pub plan: Plan,
    pub rules: Rules,
    pub schedule: Arc<Schedule>,
    pub network: Arc<Network>,
    pub lockd: Arc<Lockd>,
    pub disk: Arc<Disk>,
    pub users: Arc<Users>,
    plates: Plates,
    /// The store that was opened last.
    store: Mutex<Weak<Database>>,
    nodes: Mutex<Nodes>,
    has_begun: AtomicBool,
    is_healed: AtomicBool,
    is_ending: AtomicBool,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "World({:?})", self.plan)
    }
}

#[derive(Debug)]
struct NoSpaceNeeded;

impl MetadataSpace for NoSpaceNeeded {
    fn chunk_blocks(&self) -> u64 {
        16
    }
    fn wanted(&self) -> u64 {
        0
    }
    fn is_scarce(&self) -> bool {
        false
    }
    fn offer(&self, _chunks: &[Run]) -> Result<(), SpaceError> {
        Ok(())
    }
}

/// Runs a plan from its beginning to its end: what has come of it, or what was wrong.
pub fn run(plan: Plan) -> Result<Played, String> {
    let schedule = Schedule::new(plan.seed, Trace::new());
    let lockd = Lockd::new(&schedule, plan.rules, plan.trouble);
    let network = Network::new(&schedule, &lockd, plan.trouble);
    let users = Users::new(plan.nodes);
    let (known, authority) = (Arc::clone(&users), Arc::clone(&lockd));
    let judge = Arc::new(move |client, file| {
        let Some(ino) = known.inode(file) else { return Err("there is no such file".to_owned()) };
        let owner = authority.holder(&ResourceId::File(VOLUME, ino.0));
        let server = owner.or_else(|| authority.holder(&ResourceId::Coordinator(VOLUME)));
        if server == Some(client) { Ok(()) } else { Err(format!("it is served by {server:?}")) }
    });
    let disk = Disk::new(
        &schedule,
        Target { size: (FIRST + plan.blocks) * 4096, proves: plan.proves, trims: plan.trims },
        judge,
    );
    let plates = Plates::default();
    let database = Database::builder().create_with_backend(plates.copy()).expect("memory");
    initialise(&database, &[region(plan)], Timestamp(1)).expect("an empty store");
    drop(database);
    let world = Arc::new(World {
        plan,
        rules: plan.rules,
        schedule: Arc::clone(&schedule),
        network,
        lockd,
        disk,
        users,
        plates,
        store: Mutex::default(),
        nodes: Mutex::default(),
        has_begun: AtomicBool::new(false),
        is_healed: AtomicBool::new(false),
        is_ending: AtomicBool::new(false),
    });
    let told = Arc::downgrade(&world);
    world.lockd.tell(Box::new(move |session, fenced| {
        if let Some(world) = told.upgrade() {
            world.session_over(session, fenced);
        }
    }));
    let told = Arc::clone(&world.users);
    world.lockd.tell_of_mounts(Box::new(move |mount| told.mount_fenced(mount)));
    let of = Arc::downgrade(&world);
    world.disk.on_kill(Box::new(move |node| {
        if let Some(world) = of.upgrade() {
            world.kill_mount(node);
        }
    }));
    let of = Arc::downgrade(&world);
    world.disk.ask_of_blocks(Box::new(move |client, block| {
        of.upgrade().is_some_and(|world| world.is_idle(client, block))
    }));
    let lun = Arc::clone(&world.disk);
    world.lockd.after_each(Box::new(move || lun.has_changed_hands()));
    let begin = Arc::clone(&world);
    schedule.after(Duration::ZERO, move || begin.start(0));
    let result = schedule.run();
    // Everything leads to everything.
    world.network.end();
    world.lockd.end();
    let nodes = std::mem::take(&mut *world.nodes.lock());
    for member in nodes.running.values() {
        let door = member.door.lock().take();
        if let Some(door) = door {
            door.close();
        }
    }
    let (lun, raced) = (world.disk.figures(), world.users.raced());
    world.users.end();
    drop(nodes);
    world.disk.end();
    let result = result.map(|hash| Played { hash, lun, raced });
    result.map_err(|why| format!("seed {}: {why}\n{plan:?}", plan.seed))
}

fn region(plan: Plan) -> Run {
    Run { start: LunBlock(FIRST), len: plan.blocks }
}

impl World {
    /// The mount that coordinates, if one does.
    pub fn home(&self) -> Option<(Arc<Member>, Arc<Door>)> {
        let home = self.lockd.holder(&ResourceId::Coordinator(VOLUME))?;
        let member = self.members().into_iter().find(|member| member.client() == home)?;
        let door = member.door.lock().clone()?;
        Some((member, door))
    }

    /// Whether nobody uses a block: it is held back, or in the reserve of `client`.
    fn is_idle(&self, client: ClientId, block: u64) -> bool {
        let Some(database) = self.store.lock().upgrade() else { return false };
        let Ok(snapshot) = crate::store::Snapshot::take(&database) else { return false };
        let last_held = |table: &ReadOnlyTable<u64, HeldRecord>| {
            let row = table.range(..=block).ok()?.next_back()?.ok()?;
            Some((row.0.value(), row.1.value().len.get()))
        };
        let reserved = || {
            let row = snapshot.reserves.range(pair(client.0, 0)..=pair(client.0, block)).ok()?;
            let row = row.last()?.ok()?;
            Some((low(row.0.value()), row.1.value()))
        };
        let runs = [last_held(&snapshot.pending), last_held(&snapshot.quarantine), reserved()];
        runs.into_iter().flatten().any(|(start, len)| (start..start + len).contains(&block))
    }

    /// The nodes that are up.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.nodes.lock().running.values().cloned().collect()
    }

    /// Those of them whose mounts do not end.
    pub fn mounted(&self) -> Vec<Arc<Member>> {
        let nodes = self.nodes.lock();
        nodes.running.values().filter(|member| !nodes.leaving.contains(&member.number)).cloned().collect()
    }

    /// One of them.
    pub fn member(&self, number: usize) -> Option<Arc<Member>> {
        self.nodes.lock().running.get(&number).cloned()
    }

    /// `member` opens the store, and coordinates in `epoch`.
    pub fn open_store(&self, member: &Member, epoch: Epoch) -> Result<Arc<Door>, String> {
        let clock = VirtualClock { schedule: Arc::clone(&self.schedule), party: Arc::clone(&member.party) };
        if member.agent.has_ended() {
            return Err("the session has ended".to_owned());
        }
        let plate = self.plates.copy();
        let openings = plate.openings();
        let database = Database::builder().create_with_backend(plate);
        let database = Arc::new(database.map_err(|error| error.to_string())?);
        let coordinator = Coordinator::simulated(coordinator::Parts {
            database: Arc::clone(&database),
            journal: None,
            space: Arc::new(NoSpaceNeeded),
            lun: Arc::clone(&member.port.paths) as _,
            authority: Arc::clone(&member.plane) as _,
            peers: self.network.ways(&member.party),
            clock: Arc::new(clock),
            rules: self.rules,
            key: KEY,
            epoch,
            openings,
            volume: VOLUME,
            read_only: false,
            discard: self.plan.trims,
            // Whoever had the store before is fenced, or has closed it: nothing that he has sent may land any more.
            settle: Duration::ZERO,
            quiesce: QUIESCE,
            beside: None,
            scrub: false,
        });
        let coordinator = coordinator.map_err(|error| error.to_string())?;
        member.plane.tell(&coordinator);
        *self.store.lock() = Arc::downgrade(&database);
        self.schedule.note("coordinates", &[member.number as u64, epoch.0]);
        Ok(Door::new((coordinator, epoch, database), &self.schedule, &member.party))
    }

    /// A node comes up, in a new process.
    pub fn start(self: &Arc<Self>, number: usize) {
        self.start_with(number, None, None);
    }

    fn start_with(self: &Arc<Self>, number: usize, earlier: Option<Arc<Agent>>, died: Option<ClientId>) {
        let party = Party::new(number);
        self.nodes.lock().starting.insert(number, Arc::clone(&party));
        self.schedule.note("starts", &[number as u64]);
        let world = Arc::clone(self);
        let inside = Arc::clone(&party);
        self.schedule.after_in(&party, Duration::ZERO, move || {
            match Member::start(&world, &inside, earlier.as_deref(), died) {
                Ok(member) => world.started(&member),
                // Its session has ended meanwhile.
                Err(_) => {
                    world.ends(&inside);
                    world.start(number);
                }
            }
        });
    }

    fn started(self: &Arc<Self>, member: &Arc<Member>) {
        let number = member.number;
        self.schedule.note("started", &[number as u64]);
        let is_first = {
            let mut nodes = self.nodes.lock();
            nodes.starting.remove(&number);
            nodes.running.insert(number, Arc::clone(member));
            number == 0 && !self.has_begun.swap(true, SeqCst)
        };
        if is_first {
            self.users.make_files(self, member);
            (1..self.plan.nodes).for_each(|other| self.start(other));
            if self.plan.faults {
                faults::plan(self);
                faults::plan_losses(self);
            }
            if self.plan.restarts {
                faults::plan_restarts(self);
            }
            let world = Arc::clone(self);
            let heals = if self.plan.faults { HEALED } else { Duration::from_millis(1) };
            self.schedule.after(heals, move || world.heal());
            self.watch_later();
        }
        self.users.begin(self, member);
        let again = self.nodes.lock().again.get(&number).copied();
        match again {
            Some(after) => {
                let world = Arc::clone(self);
                self.schedule.after(after, move || {
                    let removed = world.nodes.lock().again.remove(&number);
                    if removed.is_some() {
                        world.remount(number, None);
                    }
                });
            }
            None => self.network.repeat(number, false),
        }
    }

    /// The mount of a node ends cleanly, and the next one begins under the same session; that one may end soon, too.
    /// What they send is repeated long after they have gone.
    pub fn remount(self: &Arc<Self>, number: usize, again: Option<Duration>) {
        let Some(member) = self.member(number) else { return };
        {
            let mut nodes = self.nodes.lock();
            if !nodes.leaving.insert(number) {
                return;
            }
            nodes.again.extend(again.map(|after| (number, after)));
        }
        self.schedule.note("unmounts", &[number as u64]);
        self.network.repeat(number, !self.is_healed.load(SeqCst));
        member.put_aside.store(member.left.swap(0, SeqCst), SeqCst);
        self.unmount_later(member);
    }

    fn unmount_later(self: &Arc<Self>, member: Arc<Member>) {
        let world = Arc::clone(self);
        self.schedule.after_in(&Arc::clone(&member.party), Duration::from_millis(10), move || {
            if !world.users.are_idle(member.session()) {
                return world.unmount_later(member);
            }
            world.users.close_all(&member);
            member.leaves.store(true, SeqCst);
            let next = world.mounted().into_iter().find(|other| other.number != member.number);
            if let Some(next) = next
                && !member.hand_on(&world, &next)
                && !member.agent.has_ended()
            {
                return world.bury(&member);
            }
            let was_healed = world.is_healed.load(SeqCst);
            let ended = member.wait(&world, |node, done| node.shut_down(done));
            if !member.agent.has_ended() {
                // While others or the LUN are slow or out of reach, or when the session has ended and nobody has said so
                // here yet, what is pending may not find its way: that is told, and lost.
                let is_live = world.lockd.is_live(member.session());
                match ended {
                    Ok(()) => {}
                    Err(_) if !is_live || !was_healed => return world.bury(&member),
                    Err(refusal) => {
                        let wrong = format!("node {} is not unmounted: {refusal}", member.number);
                        return world.schedule.fail(wrong);
                    }
                }
                let door = member.door.lock().take();
                if let Some(door) = door {
                    // There is no other mount: the role is free.
                    let _ = door.coordinator.end_client(member.client());
                    member.close(&world, &door);
                    world.network.serve_no_coordinator(member.number);
                }
                member.plane.end_client(member.client());
            }
            // Who has lost its session meanwhile is buried.
            if !member.agent.has_ended() {
                world.unmounted(&member);
            }
        });
    }

    fn unmounted(self: &Arc<Self>, member: &Member) {
        {
            let mut nodes = self.nodes.lock();
            nodes.leaving.remove(&member.number);
            if nodes.running.remove(&member.number).is_none() {
                return;
            }
        }
        self.schedule.note("unmounted", &[member.number as u64]);
        self.ends(&member.party);
        self.users.inherit(member.number, member.put_aside.load(SeqCst));
        self.start_with(member.number, Some(Arc::clone(&member.agent)), None);
    }

    /// A process is over: it was killed, or its session has ended.
    pub fn bury(self: &Arc<Self>, member: &Arc<Member>) {
        self.schedule.note("dies", &[member.number as u64]);
        {
            let mut nodes = self.nodes.lock();
            nodes.leaving.remove(&member.number);
            if nodes.running.remove(&member.number).is_none() {
                return;
            }
        }
        self.users.left(self, member);
        self.ends(&member.party);
        let world = Arc::clone(self);
        let left = member.left.load(SeqCst) + member.put_aside.load(SeqCst);
        let number = member.number;
        let alone = member.dies_alone.load(SeqCst).then(|| (Arc::clone(&member.agent), member.client()));
        self.schedule.after(self.schedule.between(50_000, 600_000), move || {
            world.users.inherit(number, left);
            let (agent, died) = alone.unzip();
            world.start_with(number, agent, died);
        });
    }

    /// The mount of a node is killed, and its lockd lives (L10): the next one begins under the same session.
    pub fn kill_mount(self: &Arc<Self>, number: usize) {
        let Some(member) = self.member(number) else { return };
        if self.lockd.is_live(member.session()) && !member.agent.has_ended() {
            member.dies_alone.store(true, SeqCst);
            self.users.mount_died(member.client(), member.session());
            if !self.rules.keeps(Rule::L10) {
                // Nobody waits for its fence.
                self.users.mount_fenced(member.client());
            }
        }
        self.bury(&member);
    }

    /// A process ends, and with it its connections.
    fn ends(&self, party: &Arc<Party>) {
        party.kill();
        self.disk.process_gone(party);
    }

    fn session_over(self: &Arc<Self>, session: SessionId, fenced: bool) {
        if self.plan.restarts && !self.plan.faults && !self.is_ending.load(SeqCst) {
            let why = format!("L11: {session} is ended, and its lockd was back in time");
            return self.schedule.fail(why);
        }
        self.schedule.note(if fenced { "fenced" } else { "ended" }, &[session.0]);
        self.users.lost(session, fenced);
    }

    /// Buries those whose sessions have ended, and finds out whether everything is done.
    fn watch_later(self: &Arc<Self>) {
        let world = Arc::clone(self);
        self.schedule.after(Duration::from_millis(50), move || {
            for member in world.members() {
                if member.agent.has_ended() {
                    world.bury(&member);
                }
            }
            let heals = if world.plan.faults { HEALED } else { Duration::ZERO };
            let time = world.schedule.time();
            let are_up = {
                let nodes = world.nodes.lock();
                nodes.running.len() == world.plan.nodes && nodes.leaving.is_empty() && nodes.again.is_empty()
            };
            let attached = || world.home().map_or(0, |(_, door)| door.coordinator.attached().len());
            let nodes = world.plan.nodes;
            let settled = world.lockd.sessions() == (nodes, nodes) && attached() == nodes;
            if world.is_healed.load(SeqCst) && are_up && settled && world.users.are_done() {
                return world.finish();
            }
            if time > heals + PROGRESS {
                let waits = world.users.under_way();
                let up = world.nodes.lock().running.keys().copied().collect::<Vec<_>>();
                let (sessions, attached) = (world.lockd.sessions(), attached());
                let home = world.home().map(|(member, door)| (member.number, door.coordinator.describe()));
                return world.schedule.fail(format!(
                    "no progress; nodes up: {up:?}, sessions: {sessions:?}, mounts: {attached}, coordinator: {home:?}; under \
                     way: {waits}"
                ));
            }
            world.watch_later();
        });
    }

    /// The role goes to another node, as planned.
    pub fn move_role(self: &Arc<Self>, to: usize) {
        let (Some((home, _)), Some(to)) = (self.home(), self.member(to)) else { return };
        let is_mounted = |number: usize| self.mounted().iter().any(|member| member.number == number);
        if home.number == to.number || !is_mounted(home.number) || !is_mounted(to.number) {
            return;
        }
        let world = Arc::clone(self);
        self.schedule.after_in(&home.party.clone(), Duration::ZERO, move || {
            home.hand_over(&world, &to);
        });
    }

    /// From now on nothing goes wrong.
    fn heal(self: &Arc<Self>) {
        self.schedule.note("healed", &[]);
        self.is_healed.store(true, SeqCst);
        self.network.heal();
        self.lockd.heal();
        self.disk.heal();
        let nodes = self.nodes.lock();
        let parties: Vec<_> =
            nodes.running.values().map(|member| &member.party).chain(nodes.starting.values()).collect();
        parties.into_iter().for_each(|party| self.schedule.resume(party));
    }

    /// Looks at everything from every node, ends all of them cleanly, and checks the store.
    fn finish(self: &Arc<Self>) {
        self.is_ending.store(true, SeqCst);
        let Some((home, door)) = self.home() else { return self.watch_later() };
        let world = Arc::clone(self);
        self.schedule.after_in(&home.party.clone(), Duration::ZERO, move || {
            match world.end_cleanly(&home, &door) {
                Ok(()) => world.schedule.end(),
                Err(why) => world.schedule.fail(why),
            }
        });
    }

    fn end_cleanly(self: &Arc<Self>, first: &Arc<Member>, door: &Door) -> Result<(), String> {
        for member in self.members() {
            self.users.look_at_all(self, &member)?;
            self.users.unlock_all(&member)?;
            let ended = member.agent.end_host();
            ended.map_err(|error| format!("the host of node {} does not end: {error}", member.number))?;
        }
        let others = self.members().into_iter().filter(|member| member.number != first.number);
        for member in others {
            member.leaves.store(true, SeqCst);
            let ended = member.wait(self, |node, done| node.shut_down(done));
            ended.map_err(|refusal| format!("node {} does not end cleanly: {refusal}", member.number))?;
            member.plane.end_client(member.client());
        }
        let ended = first.wait(self, |node, done| node.shut_down(done));
        ended.map_err(|refusal| format!("the coordinator's node does not end cleanly: {refusal}"))?;
        let coordinator = Arc::clone(&door.coordinator);
        // The others' ends have been told by events, which may be late.
        for member in self.members() {
            let ended = coordinator.end_client(member.client());
            ended.map_err(|refusal| format!("client {} is not ended: {refusal}", member.client()))?;
        }
        // It may hear of fences as late as of anything.
        for _ in 0..FINISHING {
            coordinator.round();
            first.rest(self, Duration::from_millis(20));
            if Self::check_space(door).is_ok() {
                break;
            }
        }
        if self.lockd.held() != (1, 0) {
            let (resources, locks) = self.lockd.held();
            return Err(format!(
                "{resources} resources and {locks} locks are still held, not the role alone"
            ));
        }
        if let Some(failure) = coordinator.failure() {
            return Err(failure);
        }
        let findings = check(&door.database, &KEY, &[region(self.plan)], &mut |_, _, _| {});
        let findings = findings.map_err(|error| error.to_string())?;
        if !findings.is_clean() {
            return Err(format!("the store: {findings}"));
        }
        Self::check_space(door)
    }

    /// Every block is free or a file's.
    fn check_space(door: &Door) -> Result<(), String> {
        let snapshot = crate::store::Snapshot::take(&door.database).map_err(|error| error.to_string())?;
        let counters = snapshot.counters;
        if counters.pending.get() + counters.quarantined.get() > 0 || counters.orphans.get() > 0 {
            return Err(format!("blocks leak: {counters:?}"));
        }
        Ok(())
    }
}
