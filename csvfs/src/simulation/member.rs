//! One incarnation of a node: the production node, plane and, where that is its role, coordinator in one process.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use lockd::authority::{Authority, Handover};
use lockd::clock::Clock;
use lockd::ids::{ClientId, Epoch, ResourceId, SessionId};
use lockd::network::{Carrier, InProcess, OnReply, Service};
use parking_lot::Mutex;
use redb::Database;
use redirector::buffer::Pool;

use super::VOLUME;
use super::agent::Agent;
use super::schedule::{Answer, Party, Schedule, VirtualClock};
use super::way::Port;
use super::world::World;
use crate::cluster::{Control, Plane};
use crate::coordinator::Coordinator;
use crate::disk::await_drained;
use crate::node::{Node, Options, Parts};
use crate::refusal::Refusal;
use crate::service::{Done, HandleId};

/// Between two looks of a node at what it waits for, and between its rounds.
const TICK: Duration = Duration::from_millis(10);
/// After so many of them paths with which nothing is wrong are looked at.
const LOOKS_AT_PATHS: u64 = 5;
/// See [`TICK`].
const ROUND: Duration = Duration::from_millis(500);
/// Between two looks at who coordinates.
const LOOK: Duration = Duration::from_millis(100);
/// How often files that are changing hands are looked at, as the production thread does it: for a move that is given up then,
/// and for a mount that ends.
const REST_TRIES: usize = 200;
const REST_TRIES_AT_END: usize = 3000;

/// The coordinator, with its writer's steps taken a while after something has come.
#[derive(Debug)]
pub struct Door {
    pub coordinator: Arc<Coordinator>,
    /// In which it serves.
    pub epoch: Epoch,
    pub database: Arc<Database>,
    is_closed: AtomicBool,
    schedule: Arc<Schedule>,
    party: Arc<Party>,
    is_due: AtomicBool,
}

impl Door {
    /// A coordinator in the process `party`.
    pub fn new(
        (coordinator, epoch, database): (Arc<Coordinator>, Epoch, Arc<Database>),
        schedule: &Arc<Schedule>,
        party: &Arc<Party>,
    ) -> Arc<Self> {
        let (schedule, party) = (Arc::clone(schedule), Arc::clone(party));
        let (is_due, is_closed) = (AtomicBool::new(false), AtomicBool::new(false));
        let door = Arc::new(Self { coordinator, epoch, database, is_closed, schedule, party, is_due });
        door.round_later();
        door
    }

    /// The coordinator serves nobody any more.
    pub fn close(&self) {
        self.coordinator.retire();
        self.coordinator.stop();
        self.is_closed.store(true, SeqCst);
    }

    fn step_later(self: &Arc<Self>) {
        if self.is_due.swap(true, SeqCst) {
            return;
        }
        let door = Arc::clone(self);
        self.schedule.after_in(&self.party, self.schedule.between(30, 500), move || {
            door.is_due.store(false, SeqCst);
            if !door.is_closed.load(SeqCst) && door.coordinator.step() {
                door.step_later();
            }
        });
    }

    fn round_later(self: &Arc<Self>) {
        let door = Arc::clone(self);
        self.schedule.after_in(&self.party, TICK, move || {
            if door.is_closed.load(SeqCst) {
                return;
            }
            door.round_later();
            door.step_later();
            door.coordinator.round();
        });
    }
}

/// Other processes' way in, and the own node's.
#[derive(Debug)]
pub struct Entrance(pub Arc<Door>);

impl Service for Entrance {
    fn serve(&self, frame: Vec<u8>, on_reply: OnReply) {
        self.0.coordinator.serve(frame, on_reply);
        self.0.step_later();
    }
}

/// See the module.
#[derive(Debug)]
pub struct Member {
    pub number: usize,
    pub party: Arc<Party>,
    pub agent: Arc<Agent>,
    pub plane: Arc<Plane>,
    pub node: Arc<Node>,
    pub port: Arc<Port>,
    /// The coordinator, if it is here.
    pub door: Mutex<Option<Arc<Door>>>,
    /// Where it stands with a coordinator.
    way: Mutex<Way>,
    /// It looks who coordinates.
    looks: AtomicBool,
    /// The epoch in which it last had the role.
    had: AtomicU64,
    /// It takes no role any more; it is handing over the one that it has.
    pub leaves: AtomicBool,
    /// See `leaves`.
    hands_over: AtomicBool,
    /// It is killed, and its session lives on (L10).
    pub dies_alone: AtomicBool,
    /// Ticks while nothing is wrong with its paths.
    ticks: AtomicU64,
    /// Open handles, by file and user.
    pub handles: Mutex<BTreeMap<(u16, usize), HandleId>>,
    /// Steps that its users have left, and those that the users of the node's next mount will have.
    pub left: AtomicU64,
    /// See `left`.
    pub put_aside: AtomicU64,
}

/// Where a mount stands with a coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Nobody,
    Attaching(Epoch),
    Attached(Epoch),
}

/// Questions that may wait, one after the other.
#[derive(Default)]
struct Questions {
    jobs: VecDeque<Box<dyn FnOnce() + Send>>,
    is_running: bool,
}

impl Member {
    /// Opens a session, or goes on with that of an earlier mount, and starts the node. Waits.
    pub fn start(
        world: &Arc<World>,
        party: &Arc<Party>,
        earlier: Option<&Agent>,
        died: Option<ClientId>,
    ) -> Result<Arc<Self>, Refusal> {
        let schedule = &world.schedule;
        let clock = Arc::new(VirtualClock { schedule: Arc::clone(schedule), party: Arc::clone(party) });
        let agent = Agent::new(&world.lockd, party, earlier);
        let plane = Plane::new(VOLUME, Arc::clone(&clock) as _);
        plane.connect_simulated(Arc::clone(&agent) as _);
        if let Some(dead) = died {
            // Its lockd sees that, whatever becomes of the next mount.
            let lockd = Arc::clone(&agent);
            schedule.after_in(party, schedule.between(0, 50_000), move || lockd.has_died(dead));
        }
        if !agent.open(&plane) {
            return Err(Refusal::Stale("the session has ended".to_owned()));
        }
        let (client, lease) = (agent.client(), Arc::clone(plane.lease()));
        let port = loop {
            let (who, how) = ((client, Arc::clone(&lease)), (world.plan.hold, world.rules));
            match Port::open(&world.disk, party, who, world.plan.ways, how) {
                Ok(port) => break port,
                Err(_) if agent.has_ended() => {
                    return Err(Refusal::Stale("the session has ended".to_owned()));
                }
                // Nobody answers; whoever mounts tries again.
                Err(_) => clock.sleep(ROUND),
            }
        };
        let node = Node::simulated(
            Parts {
                carrier: None,
                lun: Arc::clone(&port.paths) as _,
                authority: Arc::clone(&plane) as _,
                beat: None,
                peers: world.network.ways(party),
                clock,
                rules: world.rules,
                pool: Pool::default(),
                volume: VOLUME,
                client,
                coordinator: Epoch::NOBODY,
                options: options(world),
            },
            questions(schedule, party),
        );
        let node = Arc::new(node.expect("no thread is started"));
        world.network.serve(client, party, Arc::clone(&node) as _);
        let member = Arc::new(Self {
            number: party.node,
            party: Arc::clone(party),
            agent,
            plane,
            node,
            port,
            door: Mutex::default(),
            way: Mutex::new(Way::Nobody),
            looks: AtomicBool::new(false),
            had: AtomicU64::new(0),
            leaves: AtomicBool::new(false),
            hands_over: AtomicBool::new(false),
            dies_alone: AtomicBool::new(false),
            ticks: AtomicU64::new(0),
            handles: Mutex::default(),
            left: AtomicU64::new(0),
            put_aside: AtomicU64::new(0),
        });
        member.tick_later(schedule);
        member.round_later(schedule);
        let (told, of) = (Arc::downgrade(&member), Arc::downgrade(world));
        member.plane.on_role(move || {
            if let (Some(member), Some(world)) = (told.upgrade(), of.upgrade()) {
                member.look_later(&world, world.schedule.between(100, 3_000));
            }
        });
        member.look_again_and_again(world);
        while !matches!(*member.way.lock(), Way::Attached(_)) {
            if member.agent.has_ended() {
                return Err(Refusal::Stale("the session has ended".to_owned()));
            }
            member.rest(world, Duration::from_millis(10));
        }
        Ok(member)
    }

    fn look_again_and_again(self: &Arc<Self>, world: &Arc<World>) {
        self.look_later(world, Duration::ZERO);
        let (member, again) = (Arc::clone(self), Arc::clone(world));
        world.schedule.after_in(&self.party, LOOK, move || member.look_again_and_again(&again));
    }

    fn look_later(self: &Arc<Self>, world: &Arc<World>, delay: Duration) {
        let (member, of) = (Arc::clone(self), Arc::clone(world));
        world.schedule.after_in(&self.party, delay, move || {
            if !member.looks.swap(true, SeqCst) {
                member.look(&of);
                member.looks.store(false, SeqCst);
            }
        });
    }

    /// What the thread of a mount that follows the role does.
    fn look(self: &Arc<Self>, world: &Arc<World>) {
        if self.hands_over.load(SeqCst) || self.agent.has_ended() {
            return;
        }
        let role = ResourceId::Coordinator(VOLUME);
        match self.plane.holder(&role) {
            Some(holding) if holding.client == self.client() => self.serve(world, holding.epoch),
            Some(holding) => {
                let way = *self.way.lock();
                let is_known = [Way::Attaching(holding.epoch), Way::Attached(holding.epoch)].contains(&way);
                if is_known || self.door.lock().is_some() {
                    return;
                }
                if let Some(node) = world.network.node_of(holding.client) {
                    let carrier = world.network.way_to_coordinator(&self.party, node);
                    self.follow(world, carrier, holding.epoch);
                }
            }
            None if self.leaves.load(SeqCst) || !self.agent.has_lease() => {}
            None => match self.plane.acquire(&role, self.client()) {
                Ok(holding) => self.serve(world, holding.epoch),
                Err(_) => self.look_later(world, Duration::from_millis(5)),
            },
        }
    }

    fn follow(self: &Arc<Self>, world: &Arc<World>, carrier: Arc<dyn Carrier>, epoch: Epoch) {
        *self.way.lock() = Way::Attaching(epoch);
        let (told, of) = (Arc::downgrade(self), Arc::downgrade(world));
        let attached = move |result: Result<(), Refusal>| {
            let (Some(member), Some(world)) = (told.upgrade(), of.upgrade()) else { return };
            let mut way = member.way.lock();
            if *way != Way::Attaching(epoch) {
                return;
            }
            *way = if result.is_ok() { Way::Attached(epoch) } else { Way::Nobody };
            drop(way);
            world.schedule.note("attached", &[member.number as u64, epoch.0, u64::from(result.is_ok())]);
        };
        self.node.follow(carrier, epoch, Box::new(attached));
    }

    /// It coordinates from now on, unless it does so already.
    fn serve(self: &Arc<Self>, world: &Arc<World>, epoch: Epoch) {
        if self.door.lock().is_some() {
            return;
        }
        if epoch.0 <= self.had.fetch_max(epoch.0, SeqCst) {
            // Known late, or it could not be given back.
            let _ = self.plane.release(&ResourceId::Coordinator(VOLUME), self.client(), epoch);
            return;
        }
        self.plane.arrived(&[ResourceId::Coordinator(VOLUME)], self.client(), epoch);
        // Opening takes a while.
        self.rest(world, world.schedule.between(1_000, 200_000));
        let door = match world.open_store(self, epoch) {
            Ok(door) => door,
            Err(why) => {
                world.schedule.note("not opened", &[self.number as u64]);
                tracing::debug!(why, "the store is not opened");
                return;
            }
        };
        *self.door.lock() = Some(Arc::clone(&door));
        let entrance = Arc::new(Entrance(door));
        world.network.serve_coordinator(&self.party, Arc::clone(&entrance) as _);
        self.follow(world, Arc::new(InProcess(entrance)), epoch);
    }

    /// Hands the role on before this mount ends. Whether it has it no more.
    pub fn hand_on(self: &Arc<Self>, world: &Arc<World>, to: &Self) -> bool {
        let door = self.door.lock().clone();
        if let Some(door) = door {
            for _ in 0..REST_TRIES_AT_END {
                if self.agent.has_ended() || (self.is_served_in(door.epoch) && to.is_served_in(door.epoch)) {
                    break;
                }
                self.rest(world, Duration::from_millis(10));
            }
            self.files_rest(world, &door, REST_TRIES_AT_END);
            door.coordinator.stay();
        }
        self.hand_over(world, to)
    }

    /// Hands the role to another mount, as [`crate::volume`] does it. Whether this one has it no more.
    pub fn hand_over(self: &Arc<Self>, world: &Arc<World>, to: &Self) -> bool {
        let Some(door) = self.door.lock().clone() else { return true };
        if self.hands_over.swap(true, SeqCst) {
            return false;
        }
        let is_done = self.hand_over_now(world, &door, to);
        self.hands_over.store(false, SeqCst);
        self.look_later(world, Duration::ZERO);
        is_done
    }

    /// Whether the coordinator of that epoch serves it.
    fn is_served_in(&self, epoch: Epoch) -> bool {
        *self.way.lock() == Way::Attached(epoch)
    }

    /// Lets no file begin to change hands, and waits for those that do. Whether none does.
    fn files_rest(&self, world: &World, door: &Door, tries: usize) -> bool {
        for _ in 0..tries {
            if door.coordinator.quieten() {
                return true;
            }
            if self.agent.has_ended() {
                return false;
            }
            self.rest(world, Duration::from_millis(10));
        }
        false
    }

    fn hand_over_now(self: &Arc<Self>, world: &Arc<World>, door: &Arc<Door>, to: &Self) -> bool {
        world.schedule.note("hands over", &[self.number as u64, to.number as u64]);
        if !self.is_served_in(door.epoch) || !to.is_served_in(door.epoch) {
            return false;
        }
        if self.wait(world, |node, done| node.prepare_to_resign(done)).is_err() {
            return false;
        }
        if !self.files_rest(world, door, REST_TRIES) {
            door.coordinator.stay();
            return false;
        }
        let Ok(slots) = self.wait(world, |node, done| node.resign(done)) else {
            door.coordinator.stay();
            return false;
        };
        *self.door.lock() = None;
        *self.way.lock() = Way::Nobody;
        self.close(world, door);
        self.node.hang_up(door.coordinator.bequeath(slots));
        world.network.serve_no_coordinator(self.number);
        let role = ResourceId::Coordinator(VOLUME);
        let holdings = vec![(role.clone(), door.epoch)];
        let next = (to.session(), to.client());
        let handover = Handover { holdings, from: self.client(), to: next, pinned: false, escrow: None };
        if self.plane.transfer(&handover).is_err() {
            // Whoever comes first has it.
            let _ = self.plane.release(&role, self.client(), door.epoch);
        }
        true
    }

    /// Closes the store, as production's `Office`: its threads have ended, and nothing that it has sent may land (P7).
    pub fn close(&self, world: &World, door: &Door) {
        door.close();
        while door.coordinator.is_in_round() && !world.schedule.is_over() {
            self.rest(world, Duration::from_millis(1));
        }
        let clock = VirtualClock { schedule: Arc::clone(&world.schedule), party: Arc::clone(&self.party) };
        await_drained(&*self.port.paths, &clock, world.rules, Duration::from_secs(600));
    }

    /// Asks the node and waits.
    pub fn wait<T: Send + 'static>(
        &self,
        world: &World,
        ask: impl FnOnce(&Node, Done<T>),
    ) -> Result<T, Refusal> {
        let answer = Answer::default();
        let (told, schedule) = (answer.clone(), Arc::clone(&world.schedule));
        ask(&self.node, Box::new(move |result| told.fill(&schedule, result)));
        loop {
            if let Some(result) = world.schedule.wait_for(&self.party, &answer, Duration::from_secs(10)) {
                return result;
            }
            if world.schedule.is_over() {
                return Err(Refusal::Stale("the simulation is over".to_owned()));
            }
        }
    }

    /// Lets a while pass.
    pub fn rest(&self, world: &World, span: Duration) {
        let never = Answer::<()>::default();
        let _ = world.schedule.wait_for(&self.party, &never, span);
    }

    /// Its session.
    pub fn session(&self) -> SessionId {
        self.agent.session()
    }

    /// It, as a client of the volume.
    pub fn client(&self) -> ClientId {
        self.agent.client()
    }

    fn tick_later(self: &Arc<Self>, schedule: &Arc<Schedule>) {
        let (member, again) = (Arc::clone(self), Arc::clone(schedule));
        schedule.after_in(&self.party, TICK, move || {
            member.tick_later(&again);
            if !member.port.paths.is_calm() || member.ticks.fetch_add(1, SeqCst) % LOOKS_AT_PATHS == 0 {
                member.port.step();
            }
            if member.node.awaits_tick() {
                member.node.tick();
            }
        });
    }

    fn round_later(self: &Arc<Self>, schedule: &Arc<Schedule>) {
        let (member, again) = (Arc::clone(self), Arc::clone(schedule));
        schedule.after_in(&self.party, ROUND, move || {
            member.round_later(&again);
            member.node.round();
        });
    }
}

/// How the simulated nodes behave: small and soon.
fn options(world: &World) -> Options {
    Options {
        cluster: true,
        background: false,
        reserve_min: world.plan.reserve,
        reserve_max: world.plan.reserve * 8,
        commit_rounds: 2,
        hold: Duration::from_secs(200),
        ..Options::default()
    }
}

/// Runs what may wait, one question after the other, as the node's thread for them does.
fn questions(
    schedule: &Arc<Schedule>,
    party: &Arc<Party>,
) -> impl Fn(Box<dyn FnOnce() + Send>) + Send + Sync + use<> {
    let (schedule, party) = (Arc::clone(schedule), Arc::clone(party));
    let all: Arc<Mutex<Questions>> = Arc::default();
    move |job| {
        let begins = {
            let mut questions = all.lock();
            questions.jobs.push_back(job);
            !std::mem::replace(&mut questions.is_running, true)
        };
        if begins {
            let all = Arc::clone(&all);
            schedule.after_in(&party, schedule.between(10, 200), move || {
                loop {
                    let next = {
                        let mut questions = all.lock();
                        let next = questions.jobs.pop_front();
                        questions.is_running = next.is_some();
                        next
                    };
                    let Some(job) = next else { return };
                    job();
                }
            });
        }
    }
}
