//! The connections that other nodes have made to us: at most one of each.

use std::time::{Duration, Instant};

use quinn::Connection;

use super::control::Control;
use super::endpoint::Shared;
use super::status::NodeConflict;
use super::transport::{Close, close};
use crate::ids::NodeName;

/// How long an incarnation has to answer when another one takes its name.
const PROBE: Duration = Duration::from_secs(1);
/// A conflict is told for so long after the last attempt.
const CONFLICT_TOLD: Duration = Duration::from_secs(60);

/// A connection that a node has made to us, for its requests.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) from: NodeName,
    pub(super) incarnation: u64,
    pub(super) connection: Connection,
    pub(super) control: Control,
}

/// Another machine has the name, and is alive.
#[derive(Debug)]
pub(super) struct NameTaken;

impl Shared {
    /// Makes `inbound` the connection of its node, unless another incarnation of that node is alive: then two machines
    /// have one name, which is said to the second, to the log and in the status.
    pub(super) async fn register(&self, inbound: &std::sync::Arc<Inbound>) -> Result<(), NameTaken> {
        let refused = inbound.connection.remote_address();
        if inbound.from == self.node {
            return Err(self.conflict(inbound, self.address, refused));
        }
        let mut silent = None;
        loop {
            let rival = {
                let mut connections = self.inbound.lock();
                match connections.get(&inbound.from) {
                    Some(known)
                        if known.incarnation != inbound.incarnation
                            && known.connection.close_reason().is_none()
                            && silent != Some(known.connection.stable_id()) =>
                    {
                        known.clone()
                    }
                    _ => {
                        if let Some(old) = connections.insert(inbound.from.clone(), inbound.clone()) {
                            close(&old.connection, Close::Replaced, "a newer connection takes its place");
                        }
                        return Ok(());
                    }
                }
            };
            if rival.control.is_alive(PROBE).await {
                return Err(self.conflict(inbound, rival.connection.remote_address(), refused));
            }
            silent = Some(rival.connection.stable_id());
        }
    }

    fn conflict(
        &self,
        inbound: &Inbound,
        accepted: std::net::SocketAddr,
        refused: std::net::SocketAddr,
    ) -> NameTaken {
        let node = inbound.from.clone();
        let conflict = NodeConflict { node: node.clone(), accepted, refused, ago: Duration::ZERO };
        tracing::error!("{conflict}");
        self.conflicts.lock().insert(node, (conflict.clone(), Instant::now()));
        close(&inbound.connection, Close::Duplicate, &conflict.to_string());
        NameTaken
    }

    /// Forgets a connection that has ended.
    pub(super) fn unregister(&self, inbound: &Inbound) {
        let mut connections = self.inbound.lock();
        let current = connections.get(&inbound.from).map(|known| known.connection.stable_id());
        if current == Some(inbound.connection.stable_id()) {
            connections.remove(&inbound.from);
        }
    }

    /// A node has connected to us: it is there, and our own attempts need not wait.
    pub(super) fn heard_of(&self, node: &NodeName) {
        if let Some(link) = self.links.get(node) {
            link.contact.note();
            link.nudge.notify_waiters();
        }
    }

    /// Says that a connection was turned away; not more often than once a second, since anybody can cause it.
    pub(super) fn turned_away(&self, address: std::net::SocketAddr, why: &str) {
        let mut last = self.last_turned_away.lock();
        if last.is_none_or(|last| last.elapsed() > Duration::from_secs(1)) {
            *last = Some(Instant::now());
            tracing::warn!(%address, why, "a connection was turned away");
        }
    }

    /// The conflicts of the last minute.
    pub(super) fn conflicts(&self) -> Vec<NodeConflict> {
        let mut conflicts = self.conflicts.lock();
        conflicts.retain(|_, (_, at)| at.elapsed() < CONFLICT_TOLD);
        let told = conflicts.values();
        told.map(|(conflict, at)| NodeConflict { ago: at.elapsed(), ..conflict.clone() }).collect()
    }
}
