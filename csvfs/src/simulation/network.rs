//! The network between the mounts: frames are lost, repeated, delayed and overtake each other, and links are cut. What a
//! link has taken may also be held up there for seconds, and come when its sender is long dead.
//!
//! It knows who is fenced: nobody whose session lives does anything for him any more (F1).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockd::ids::{ClientId, SessionId};
use lockd::network::{Carrier, CarrierError, OnReply, Service};
use parking_lot::Mutex;

use super::lockd::Lockd;
use super::schedule::{Act, Party, Schedule};
use crate::node::is_refusal;
use crate::peers::Peers;
use crate::proto::codec::decode;
use crate::proto::{Answered, CallAnswer};

/// How long an asker waits before it sends again.
const PATIENCE: Duration = Duration::from_millis(60);

/// Frames on a link, with who gets them.
type HeldUp = Vec<(Arc<Party>, Act)>;

#[derive(Default)]
struct State {
    /// The coordinator's door, on the node that has it, or had it last.
    doors: BTreeMap<usize, (Arc<Party>, Arc<dyn Service>)>,
    /// What answers on each node.
    services: BTreeMap<usize, (Arc<Party>, Arc<dyn Service>)>,
    /// On which node a client is, or was.
    nodes: BTreeMap<ClientId, usize>,
    /// Links that carry nothing, by their ends.
    cut: BTreeSet<(usize, usize)>,
    /// What is held up on links, by their ends.
    held: BTreeMap<(usize, usize), HeldUp>,
    /// Nodes of whose frames many come again, long after they were answered.
    repeated: BTreeSet<usize>,
    /// How likely each mishap is.
    trouble: f64,
}

/// See the module.
pub struct Network {
    schedule: Arc<Schedule>,
    state: Mutex<State>,
    lockd: Arc<Lockd>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

impl Network {
    /// A network in which each mishap has the probability `trouble`.
    pub fn new(schedule: &Arc<Schedule>, lockd: &Arc<Lockd>, trouble: f64) -> Arc<Self> {
        let state = State { trouble, ..State::default() };
        let (schedule, lockd) = (Arc::clone(schedule), Arc::clone(lockd));
        Arc::new(Self { schedule, state: Mutex::new(state), lockd })
    }

    /// Frames to the node of `client` come to `service` from now on: also those that are meant for earlier mounts there.
    pub fn serve(&self, client: ClientId, party: &Arc<Party>, service: Arc<dyn Service>) {
        let mut state = self.state.lock();
        state.nodes.insert(client, party.node);
        let earlier = state.services.insert(party.node, (Arc::clone(party), service));
        drop(state);
        drop(earlier);
    }

    /// Who asks for the coordinator on the node of `party` comes to `door` from now on.
    pub fn serve_coordinator(&self, party: &Arc<Party>, door: Arc<dyn Service>) {
        let earlier = self.state.lock().doors.insert(party.node, (Arc::clone(party), door));
        drop(earlier);
    }

    /// There is no coordinator on this node any more.
    pub fn serve_no_coordinator(&self, node: usize) {
        let earlier = self.state.lock().doors.remove(&node);
        drop(earlier);
    }

    /// On which node a client is, or was.
    pub fn node_of(&self, client: ClientId) -> Option<usize> {
        self.state.lock().nodes.get(&client).copied()
    }

    /// The way from `from` to the coordinator on a node.
    pub fn way_to_coordinator(self: &Arc<Self>, from: &Arc<Party>, node: usize) -> Arc<dyn Carrier> {
        Arc::new(Way { network: Arc::clone(self), from: Arc::clone(from), node, is_to_coordinator: true })
    }

    /// Nothing passes between two nodes, in the direction from `one` to `other`.
    pub fn cut(&self, one: usize, other: usize) {
        self.state.lock().cut.insert((one, other));
    }

    /// Everything passes between two nodes.
    pub fn join(&self, one: usize, other: usize) {
        self.state.lock().cut.remove(&(one, other));
    }

    /// Much of what a node sends comes again, long after it was answered; or no more.
    pub fn repeat(&self, node: usize, is_repeated: bool) {
        let mut state = self.state.lock();
        if is_repeated {
            state.repeated.insert(node)
        } else {
            state.repeated.remove(&node)
        };
    }

    /// What `one` sends to `other` is held up, until [`Network::release`].
    pub fn hold(&self, one: usize, other: usize) {
        self.state.lock().held.entry((one, other)).or_default();
    }

    /// What was held up comes.
    pub fn release(&self, one: usize, other: usize) {
        let held = self.state.lock().held.remove(&(one, other)).unwrap_or_default();
        for (to, act) in held {
            self.schedule.after_in(&to, self.delay(), act);
        }
    }

    /// Nothing is cut or held up, and there are no mishaps any more.
    pub fn heal(&self) {
        let held: Vec<_> = {
            let mut state = self.state.lock();
            state.cut.clear();
            state.trouble = 0.0;
            state.repeated.clear();
            state.held.keys().copied().collect()
        };
        held.into_iter().for_each(|(one, other)| self.release(one, other));
    }

    /// Drops what it leads to.
    pub fn end(&self) {
        let mut state = self.state.lock();
        let (services, held) = (std::mem::take(&mut state.services), std::mem::take(&mut state.held));
        let doors = std::mem::take(&mut state.doors);
        drop(state);
        drop((services, doors, held));
    }

    /// Holds `act` up, if that is so of its link. Gives it back otherwise.
    fn hold_up(&self, from: &Party, to: &Arc<Party>, act: Act) -> Option<Act> {
        match self.state.lock().held.get_mut(&(from.node, to.node)) {
            Some(held) => {
                held.push((Arc::clone(to), act));
                None
            }
            None => Some(act),
        }
    }

    /// Whether `to` must refuse what comes from `from` now.
    fn must_refuse(&self, from: &Party, to: &Party) -> bool {
        let fenced = from.session.get().is_some_and(|session| self.lockd.is_fenced(*session));
        fenced && to.session.get().is_some_and(|session| self.lockd.is_live(*session))
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.state.lock().cut.contains(&(from, to))
    }

    fn mishap(&self) -> bool {
        let trouble = self.state.lock().trouble;
        self.schedule.happens(trouble)
    }

    fn delay(&self) -> Duration {
        if self.mishap() { self.schedule.between(1_000, 100_000) } else { self.schedule.between(50, 500) }
    }

    /// The way from `from` to a service in `to`.
    pub fn carrier(
        self: &Arc<Self>,
        from: &Arc<Party>,
        to: &Arc<Party>,
        service: Arc<dyn Service>,
    ) -> Arc<dyn Carrier> {
        Arc::new(Wire { network: Arc::clone(self), from: Arc::clone(from), to: Arc::clone(to), service })
    }

    /// The ways of one process.
    pub fn ways(self: &Arc<Self>, party: &Arc<Party>) -> Arc<dyn Peers> {
        Arc::new(Ways { network: Arc::clone(self), party: Arc::clone(party) })
    }
}

/// The other mounts as one of them finds them.
#[derive(Debug)]
struct Ways {
    network: Arc<Network>,
    party: Arc<Party>,
}

impl Peers for Ways {
    fn way(&self, _session: SessionId, client: ClientId) -> Option<Arc<dyn Carrier>> {
        let node = *self.network.state.lock().nodes.get(&client)?;
        let (network, from) = (Arc::clone(&self.network), Arc::clone(&self.party));
        Some(Arc::new(Way { network, from, node, is_to_coordinator: false }))
    }
}

/// The way to whatever answers on a node.
#[derive(Debug)]
struct Way {
    network: Arc<Network>,
    from: Arc<Party>,
    node: usize,
    is_to_coordinator: bool,
}

impl Carrier for Way {
    fn request(&self, frame: Vec<u8>, on_reply: OnReply) {
        let there = {
            let state = self.network.state.lock();
            let all = if self.is_to_coordinator { &state.doors } else { &state.services };
            all.get(&self.node).cloned()
        };
        match there {
            Some((to, service)) => {
                self.network.carrier(&self.from, &to, service).request(frame, on_reply);
            }
            None => on_reply(Err(CarrierError::Closed("nobody answers there".to_owned()))),
        }
    }
}

#[derive(Debug)]
struct Wire {
    network: Arc<Network>,
    from: Arc<Party>,
    to: Arc<Party>,
    service: Arc<dyn Service>,
}

/// Whether a reply, of the coordinator or of a node, is a refusal.
fn refuses(reply: &[u8]) -> bool {
    is_refusal(reply)
        || decode::<Answered>(reply).is_ok_and(|answered| answered.reply.is_err())
        || matches!(decode::<CallAnswer>(reply), Ok(CallAnswer::Refused(_)))
}

type Tell = Arc<dyn Fn(Result<Vec<u8>, CarrierError>) + Send + Sync>;

/// Tells the first answer.
fn once(on_reply: OnReply) -> Tell {
    let on_reply = Mutex::new(Some(on_reply));
    Arc::new(move |reply| {
        let first = on_reply.lock().take();
        if let Some(first) = first {
            first(reply);
        }
    })
}

impl Carrier for Wire {
    fn request(&self, frame: Vec<u8>, on_reply: OnReply) {
        let (network, schedule) = (&self.network, &self.network.schedule);
        // The dead say nothing.
        if !self.from.is_alive() {
            return;
        }
        let tell = once(on_reply);
        let give_up = Arc::clone(&tell);
        schedule.after_in(&self.from, PATIENCE, move || give_up(Err(CarrierError::TimedOut(PATIENCE))));
        if network.mishap() {
            return;
        }
        let is_repeated = network.state.lock().repeated.contains(&self.from.node) && schedule.happens(0.5);
        let copies = 1 + usize::from(is_repeated || network.mishap());
        let latest = if is_repeated { 2_000_000 } else { 400_000 };
        for copy in 0..copies {
            let (service, frame, tell) = (Arc::clone(&self.service), frame.clone(), Arc::clone(&tell));
            let (back, from, to) = (Arc::clone(network), Arc::clone(&self.from), Arc::clone(&self.to));
            let execute = move || {
                let must_refuse = back.must_refuse(&from, &to);
                back.schedule.note("frame", &[from.node as u64, to.node as u64, frame.len() as u64]);
                let carrier = Arc::clone(&back);
                let reply = move |reply: Result<Vec<u8>, CarrierError>| {
                    if must_refuse && reply.as_ref().is_ok_and(|reply| !refuses(reply)) {
                        let (from, to) = (from.node, to.node);
                        carrier
                            .schedule
                            .fail(format!("F1: node {to} works for node {from}, which is fenced"));
                    }
                    let cut = carrier.is_cut(to.node, from.node);
                    if cut || carrier.mishap() || matches!(reply, Err(CarrierError::TimedOut(_))) {
                        return;
                    }
                    let tell = Arc::clone(&tell);
                    carrier.schedule.after_in(&from, carrier.delay(), move || tell(reply));
                };
                service.serve(frame, Box::new(reply));
            };
            let (link, from, to) = (Arc::clone(network), Arc::clone(&self.from), Arc::clone(&self.to));
            let deliver = move || {
                if link.is_cut(from.node, to.node) {
                    return;
                }
                if let Some(execute) = link.hold_up(&from, &to, Box::new(execute)) {
                    execute();
                }
            };
            // A copy may come long after its original was answered.
            let late = if copy > 0 { schedule.between(0, latest) } else { Duration::ZERO };
            schedule.after_in(&self.to, late + network.delay(), deliver);
        }
    }
}
