//! One incarnation of a node: the production node, plane and (on the first node) coordinator in one process.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use lockd::authority::Authority;
use lockd::ids::{ClientId, Epoch, SessionId};
use lockd::network::{Carrier, InProcess, OnReply, Service};
use parking_lot::Mutex;
use redirector::buffer::Pool;

use super::VOLUME;
use super::agent::Agent;
use super::lun::Port;
use super::schedule::{Answer, Party, Schedule, VirtualClock};
use super::world::World;
use crate::cluster::Plane;
use crate::coordinator::Coordinator;
use crate::node::{Node, Options, Parts};
use crate::refusal::Refusal;
use crate::service::{Done, HandleId};

/// Between two looks of a node at what it waits for, and between its rounds.
const TICK: Duration = Duration::from_millis(10);
/// See [`TICK`].
const ROUND: Duration = Duration::from_millis(500);

/// The coordinator, with its writer's steps taken a while after something has come.
#[derive(Debug)]
pub struct Door {
    pub coordinator: Arc<Coordinator>,
    schedule: Arc<Schedule>,
    party: Arc<Party>,
    is_due: AtomicBool,
}

impl Door {
    /// A coordinator in the process `party`.
    pub fn new(coordinator: Arc<Coordinator>, schedule: &Arc<Schedule>, party: &Arc<Party>) -> Arc<Self> {
        let (schedule, party) = (Arc::clone(schedule), Arc::clone(party));
        let door = Arc::new(Self { coordinator, schedule, party, is_due: AtomicBool::new(false) });
        door.round_later();
        door
    }

    fn step_later(self: &Arc<Self>) {
        if self.is_due.swap(true, SeqCst) {
            return;
        }
        let door = Arc::clone(self);
        self.schedule.after_in(&self.party, self.schedule.between(30, 500), move || {
            door.is_due.store(false, SeqCst);
            if door.coordinator.step() {
                door.step_later();
            }
        });
    }

    fn round_later(self: &Arc<Self>) {
        let door = Arc::clone(self);
        self.schedule.after_in(&self.party, TICK, move || {
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
    /// Open handles, by file and user.
    pub handles: Mutex<BTreeMap<(u16, usize), HandleId>>,
    /// Steps that its users have left, and those that the users of the node's next mount will have.
    pub left: AtomicU64,
    /// See `left`.
    pub put_aside: AtomicU64,
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
    ) -> Result<Arc<Self>, Refusal> {
        let schedule = &world.schedule;
        let clock = Arc::new(VirtualClock { schedule: Arc::clone(schedule), party: Arc::clone(party) });
        let agent = Agent::new(&world.lockd, party, earlier);
        let plane = Plane::new(VOLUME, Arc::clone(&clock) as _);
        plane.connect_simulated(Arc::clone(&agent) as _);
        if !agent.open(&plane) {
            return Err(Refusal::Stale("the session has ended".to_owned()));
        }
        let (client, lease) = (agent.client(), Arc::clone(plane.lease()));
        let port = Port::new(&world.disk, party, client, lease);
        let is_home = party.node == 0;
        let role = if is_home { world.open_store(party, &plane, &port) } else { world.role() };
        let entrance = Arc::new(Entrance(world.door()));
        let carrier: Arc<dyn Carrier> = if is_home {
            Arc::new(InProcess(entrance))
        } else {
            world.network.carrier(party, &world.door().party, entrance as _)
        };
        let node = Node::simulated(
            Parts {
                carrier: Some(carrier),
                lun: port,
                authority: Arc::clone(&plane) as _,
                beat: None,
                peers: world.network.ways(party),
                clock,
                rules: world.rules,
                pool: Pool::default(),
                volume: VOLUME,
                client,
                coordinator: role,
                options: options(),
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
            handles: Mutex::default(),
            left: AtomicU64::new(0),
            put_aside: AtomicU64::new(0),
        });
        member.tick_later(schedule);
        member.round_later(schedule);
        member.wait(world, |node, done| node.attach(done))?;
        Ok(member)
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
fn options() -> Options {
    Options {
        cluster: true,
        background: false,
        reserve_min: 16,
        reserve_max: 128,
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

/// The epoch of a role that is not known yet.
pub const NO_ROLE: Epoch = Epoch(0);
