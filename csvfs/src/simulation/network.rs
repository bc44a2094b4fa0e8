//! The network between the mounts: frames are lost, repeated, delayed and overtake each other, and links are cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockd::ids::{ClientId, SessionId};
use lockd::network::{Carrier, CarrierError, OnReply, Service};
use parking_lot::Mutex;

use super::schedule::{Party, Schedule};
use crate::peers::Peers;

/// How long an asker waits before it sends again.
const PATIENCE: Duration = Duration::from_millis(60);

#[derive(Default)]
struct State {
    services: BTreeMap<ClientId, (Arc<Party>, Arc<dyn Service>)>,
    /// Links that carry nothing, by their ends.
    cut: BTreeSet<(usize, usize)>,
    /// How likely each mishap is.
    trouble: f64,
}

/// See the module.
pub struct Network {
    schedule: Arc<Schedule>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

impl Network {
    /// A network in which each mishap has the probability `trouble`.
    pub fn new(schedule: &Arc<Schedule>, trouble: f64) -> Arc<Self> {
        let state = State { trouble, ..State::default() };
        Arc::new(Self { schedule: Arc::clone(schedule), state: Mutex::new(state) })
    }

    /// Frames to `client` come to `service` from now on.
    pub fn serve(&self, client: ClientId, party: &Arc<Party>, service: Arc<dyn Service>) {
        self.state.lock().services.insert(client, (Arc::clone(party), service));
    }

    /// Nothing passes between two nodes, in the direction from `one` to `other`.
    pub fn cut(&self, one: usize, other: usize) {
        self.state.lock().cut.insert((one, other));
    }

    /// Everything passes between two nodes.
    pub fn join(&self, one: usize, other: usize) {
        self.state.lock().cut.remove(&(one, other));
    }

    /// Nothing is cut, and there are no mishaps any more.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.cut.clear();
        state.trouble = 0.0;
    }

    /// Drops what it leads to.
    pub fn end(&self) {
        let services = std::mem::take(&mut self.state.lock().services);
        drop(services);
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
        let (to, service) = self.network.state.lock().services.get(&client).cloned()?;
        Some(self.network.carrier(&self.party, &to, service))
    }
}

#[derive(Debug)]
struct Wire {
    network: Arc<Network>,
    from: Arc<Party>,
    to: Arc<Party>,
    service: Arc<dyn Service>,
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
        let copies = 1 + usize::from(network.mishap());
        for copy in 0..copies {
            let (service, frame, tell) = (Arc::clone(&self.service), frame.clone(), Arc::clone(&tell));
            let (back, from, to) = (Arc::clone(network), Arc::clone(&self.from), Arc::clone(&self.to));
            let deliver = move || {
                if back.is_cut(from.node, to.node) {
                    return;
                }
                back.schedule.note("frame", &[from.node as u64, to.node as u64, frame.len() as u64]);
                let carrier = Arc::clone(&back);
                let reply = move |reply: Result<Vec<u8>, CarrierError>| {
                    let cut = carrier.is_cut(to.node, from.node);
                    if cut || carrier.mishap() || matches!(reply, Err(CarrierError::TimedOut(_))) {
                        return;
                    }
                    let tell = Arc::clone(&tell);
                    carrier.schedule.after_in(&from, carrier.delay(), move || tell(reply));
                };
                service.serve(frame, Box::new(reply));
            };
            // A copy may come long after its original was answered.
            let late = if copy > 0 { schedule.between(0, 400_000) } else { Duration::ZERO };
            schedule.after_in(&self.to, late + network.delay(), deliver);
        }
    }
}
