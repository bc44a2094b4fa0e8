//! A network between nodes of one process, for tests and simulations: it can lose, delay, repeat and cut, by a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{BoxFuture, Channel, FRAME_MAX, NotServed, PeerError, Peers, Serve};
use crate::ids::NodeName;

/// What a link does to the frames that it carries, each way on its own.
#[derive(Clone, PartialEq, Debug)]
pub struct Faults {
    /// The share of requests, and of replies, that are lost: 0 to 1.
    pub lose: f64,
    /// The share of requests that are executed a second time, the later reply thrown away: 0 to 1.
    pub repeat: f64,
    /// How long a frame takes; two that take different times overtake each other.
    pub delay: RangeInclusive<Duration>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { lose: 0.0, repeat: 0.0, delay: Duration::ZERO..=Duration::ZERO }
    }
}

/// The network: nodes come and go, links fail and heal. Clones are the same network.
#[derive(Clone)]
pub struct LocalNetwork {
    state: Arc<Mutex<State>>,
}

struct State {
    nodes: BTreeMap<NodeName, Node>,
    incarnations: u64,
    random: SmallRng,
    faults: Faults,
    links: BTreeMap<(NodeName, NodeName), Faults>,
    cut: BTreeSet<(NodeName, NodeName)>,
    isolated: BTreeSet<NodeName>,
    delivered: u64,
}

#[derive(Clone)]
struct Node {
    incarnation: u64,
    serve: Arc<dyn Serve>,
}

/// The fate of one frame on its way.
struct Passage {
    lost: bool,
    repeated_after: Option<Duration>,
    delay: Duration,
}

impl State {
    fn is_cut(&self, from: &NodeName, to: &NodeName) -> bool {
        from != to
            && (self.isolated.contains(from)
                || self.isolated.contains(to)
                || self.cut.contains(&(from.clone(), to.clone())))
    }

    fn passage(&mut self, from: &NodeName, to: &NodeName) -> Passage {
        if from == to {
            return Passage { lost: false, repeated_after: None, delay: Duration::ZERO };
        }
        let faults = self.links.get(&(from.clone(), to.clone())).unwrap_or(&self.faults).clone();
        // Always the same number of draws, so that a change of one fault leaves the others where they were.
        let lost = self.random.random_bool(faults.lose.clamp(0.0, 1.0));
        let repeated = self.random.random_bool(faults.repeat.clamp(0.0, 1.0));
        let delay = self.random.random_range(faults.delay.clone());
        let later = self.random.random_range(faults.delay);
        Passage { lost: lost || self.is_cut(from, to), repeated_after: repeated.then_some(later), delay }
    }
}

impl LocalNetwork {
    /// A network without nodes and without faults, whose chances come from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                nodes: BTreeMap::new(),
                incarnations: 0,
                random: SmallRng::seed_from_u64(seed),
                faults: Faults::default(),
                links: BTreeMap::new(),
                cut: BTreeSet::new(),
                isolated: BTreeSet::new(),
                delivered: 0,
            })),
        }
    }

    /// Starts node `name`, or restarts it: what the earlier incarnation has not answered yet stays unanswered.
    pub fn start(&self, name: &NodeName, serve: Arc<dyn Serve>) {
        let mut state = self.state.lock();
        state.incarnations += 1;
        let incarnation = state.incarnations;
        state.nodes.insert(name.clone(), Node { incarnation, serve });
    }

    /// Stops node `name`, as a crash does: no request reaches it and no reply leaves it. What it executes at this
    /// moment goes on inside the test; abort its tasks to crash it wholly.
    pub fn stop(&self, name: &NodeName) {
        self.state.lock().nodes.remove(name);
    }

    /// The network as node `name` sees it. The node need not have been started.
    #[must_use]
    pub fn peers(&self, name: &NodeName) -> Arc<LocalPeers> {
        Arc::new(LocalPeers { me: name.clone(), network: self.clone() })
    }

    /// From now on all links have `faults`, but those that have faults of their own.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// From now on the link from one node to another has `faults`; the way back is another link.
    pub fn set_link_faults(&self, from: &NodeName, to: &NodeName, faults: Faults) {
        self.state.lock().links.insert((from.clone(), to.clone()), faults);
    }

    /// Cuts the links between two nodes, both ways. Frames on their way are lost.
    pub fn cut(&self, one: &NodeName, other: &NodeName) {
        let mut state = self.state.lock();
        state.cut.insert((one.clone(), other.clone()));
        state.cut.insert((other.clone(), one.clone()));
    }

    /// Cuts the link from one node to another, and leaves the way back.
    pub fn cut_one_way(&self, from: &NodeName, to: &NodeName) {
        self.state.lock().cut.insert((from.clone(), to.clone()));
    }

    /// Cuts all links of a node.
    pub fn isolate(&self, name: &NodeName) {
        self.state.lock().isolated.insert(name.clone());
    }

    /// Mends the links between two nodes.
    pub fn heal(&self, one: &NodeName, other: &NodeName) {
        let mut state = self.state.lock();
        state.cut.remove(&(one.clone(), other.clone()));
        state.cut.remove(&(other.clone(), one.clone()));
    }

    /// Ends every fault and mends every link. Stopped nodes stay stopped.
    pub fn heal_all(&self) {
        let mut state = self.state.lock();
        state.faults = Faults::default();
        state.links.clear();
        state.cut.clear();
        state.isolated.clear();
    }

    /// How many requests have reached a node so far, repeated ones included.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.state.lock().delivered
    }

    /// Hands `frame` to node `to` if it runs and the link holds. `None`: the frame, or its reply, is lost.
    async fn deliver(
        self,
        from: NodeName,
        to: NodeName,
        channel: Channel,
        frame: Vec<u8>,
    ) -> Option<Result<Vec<u8>, NotServed>> {
        let node = {
            let mut state = self.state.lock();
            if state.is_cut(&from, &to) {
                return None;
            }
            let node = state.nodes.get(&to)?.clone();
            state.delivered += 1;
            node
        };
        let reply = node.serve.serve(&from, channel, frame).await;
        let state = self.state.lock();
        let lives = state.nodes.get(&to).is_some_and(|now| now.incarnation == node.incarnation);
        (lives && !state.is_cut(&to, &from)).then_some(reply)
    }

    async fn exchange(
        self,
        from: NodeName,
        to: NodeName,
        channel: Channel,
        frame: Vec<u8>,
    ) -> Result<Vec<u8>, NotServed> {
        let passage = self.state.lock().passage(&from, &to);
        if let Some(later) = passage.repeated_after {
            let again = self.clone().deliver(from.clone(), to.clone(), channel, frame.clone());
            tokio::spawn(async move {
                pass(passage.delay + later).await;
                again.await;
            });
        }
        if passage.lost {
            std::future::pending::<()>().await;
        }
        pass(passage.delay).await;
        // In a task of its own: the node goes on when the one who asked has given up.
        let delivery = tokio::spawn(self.clone().deliver(from.clone(), to.clone(), channel, frame));
        let Ok(Some(reply)) = delivery.await else { return std::future::pending().await };
        let passage = self.state.lock().passage(&to, &from);
        if passage.lost {
            std::future::pending::<()>().await;
        }
        pass(passage.delay).await;
        reply
    }
}

async fn pass(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

impl fmt::Debug for LocalNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("LocalNetwork")
            .field("nodes", &state.nodes.keys())
            .field("cut", &state.cut)
            .field("isolated", &state.isolated)
            .finish_non_exhaustive()
    }
}

/// A [`LocalNetwork`] as one of its nodes sees it. A node may ask itself; that never fails.
#[derive(Debug)]
pub struct LocalPeers {
    me: NodeName,
    network: LocalNetwork,
}

impl Peers for LocalPeers {
    fn request(
        &self,
        to: &NodeName,
        channel: Channel,
        frame: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, PeerError>> {
        let (network, me, to) = (self.network.clone(), self.me.clone(), to.clone());
        Box::pin(async move {
            let too_large = |node: &NodeName, length| PeerError::TooLarge {
                node: node.clone(),
                length,
                limit: FRAME_MAX,
            };
            if frame.len() > FRAME_MAX {
                return Err(too_large(&to, frame.len()));
            }
            match tokio::time::timeout(timeout, network.exchange(me, to.clone(), channel, frame)).await {
                Ok(Ok(reply)) if reply.len() > FRAME_MAX => Err(too_large(&to, reply.len())),
                Ok(Ok(reply)) => Ok(reply),
                Ok(Err(NotServed(why))) => Err(PeerError::NotServed { node: to, why }),
                Err(_) => Err(PeerError::TimedOut { node: to, within: timeout }),
            }
        })
    }
}

#[cfg(test)]
mod tests;
