//! When each other voter was last heard, and what was wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{BootTime, Clock};
use crate::ids::NodeId;

/// When each other voter was last heard, and what was wrong.
#[derive(Debug)]
pub(super) struct Contacts {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    peers: BTreeMap<NodeId, Contact>,
    /// When a leader last asked this node, and whether it had a quorum then.
    leader: Option<(BootTime, bool)>,
    /// Why the cluster refuses this node.
    refused: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct Contact {
    /// Any exchange.
    heard: Option<BootTime>,
    /// The sending of the last request that it acknowledged this node as the leader by.
    acknowledged: Option<BootTime>,
    trouble: Option<String>,
}

impl Contacts {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    pub(super) fn now(&self) -> BootTime {
        self.clock.boot()
    }

    /// `node` answered a request that was sent at `sent`; `acknowledges` when that meant "you lead".
    pub(super) fn answered(&self, node: NodeId, sent: BootTime, acknowledges: bool) {
        let now = self.now();
        let mut state = self.state.lock();
        let contact = state.peers.entry(node).or_default();
        contact.heard = contact.heard.max(Some(now));
        contact.trouble = None;
        if acknowledges {
            contact.acknowledged = contact.acknowledged.max(Some(sent));
        }
    }

    /// `node` asked this node something.
    pub(super) fn asked(&self, node: NodeId) {
        let now = self.now();
        self.state.lock().peers.entry(node).or_default().heard = Some(now);
    }

    /// A leader asked this node something, and its storage id was accepted.
    pub(super) fn led(&self, quorum: bool) {
        let now = self.now();
        let mut state = self.state.lock();
        state.leader = Some((now, quorum));
        state.refused = None;
    }

    /// `node` could not be asked, or refused.
    pub(super) fn failed(&self, node: NodeId, why: String) {
        self.state.lock().peers.entry(node).or_default().trouble = Some(why);
    }

    /// The others do not accept this node. Returns whether that is news.
    pub(super) fn refused(&self, why: String) -> bool {
        let mut state = self.state.lock();
        let news = state.refused.as_ref() != Some(&why);
        state.refused = Some(why);
        news
    }

    /// Why the others do not accept this node.
    pub(super) fn refusal(&self) -> Option<String> {
        self.state.lock().refused.clone()
    }

    /// How long ago `node` was heard, and what was wrong since.
    pub(super) fn of(&self, node: NodeId) -> (Option<Duration>, Option<String>) {
        let now = self.now();
        let state = self.state.lock();
        let contact = state.peers.get(&node).cloned().unwrap_or_default();
        (contact.heard.map(|heard| now.since(heard)), contact.trouble)
    }

    /// How long ago a leader asked, and whether it had a quorum.
    pub(super) fn leader(&self) -> Option<(Duration, bool)> {
        let now = self.now();
        self.state.lock().leader.map(|(at, quorum)| (now.since(at), quorum))
    }

    /// For the leader `me`: how long ago a quorum of each of `configs` acknowledged it. `None`: never.
    pub(super) fn quorum_age(&self, me: NodeId, configs: &[BTreeSet<NodeId>]) -> Option<Duration> {
        let now = self.now();
        let state = self.state.lock();
        let age = |voter: &NodeId| {
            if *voter == me {
                return Some(now);
            }
            state.peers.get(voter).and_then(|contact| contact.acknowledged)
        };
        let oldest = configs.iter().map(|config| {
            let mut ages: Vec<_> = config.iter().map(age).collect();
            ages.sort_unstable_by(|one, other| other.cmp(one));
            ages.get(config.len() / 2).copied().flatten()
        });
        oldest.min().flatten().map(|at| now.since(at))
    }
}
