//! The ways to the other mounts of the volume.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use lockd::ids::{ClientId, NodeName, SessionId};
use lockd::network::{Carrier, CarrierError, OnReply, Service};
use lockd::peers::Channel;
use lockd::peers::quic::QuicEndpoint;
use lockd::peers::sync::PeerCarrier;
use parking_lot::Mutex;

use super::mortal::Mortal;
use super::plane::Plane;
use crate::node::Node;
use crate::peers::Peers;

/// How long one frame may be under way before it is sent again.
const PATIENCE: Duration = Duration::from_secs(2);

/// The mount itself, reached without the network.
#[derive(Debug)]
struct Here(Weak<Node>);

impl Carrier for Here {
    fn request(&self, frame: Vec<u8>, on_reply: OnReply) {
        match self.0.upgrade() {
            Some(node) => node.serve(frame, on_reply),
            None => on_reply(Err(CarrierError::Closed("the mount is being closed".to_owned()))),
        }
    }
}

/// Finds the mounts of the volume by their clients.
#[derive(Debug)]
pub struct Ways {
    plane: Arc<Plane>,
    endpoint: Arc<QuicEndpoint>,
    runtime: tokio::runtime::Handle,
    own: Mutex<Option<(ClientId, Weak<Node>)>>,
    carriers: Mutex<HashMap<NodeName, Arc<dyn Carrier>>>,
}

impl Ways {
    /// By `endpoint`.
    pub(super) fn new(
        plane: &Arc<Plane>,
        endpoint: Arc<QuicEndpoint>,
        runtime: tokio::runtime::Handle,
    ) -> Arc<Self> {
        let (own, carriers) = (Mutex::default(), Mutex::default());
        Arc::new(Self { plane: Arc::clone(plane), endpoint, runtime, own, carriers })
    }

    /// This mount's own node.
    pub fn is_here(&self, client: ClientId, node: &Arc<Node>) {
        *self.own.lock() = Some((client, Arc::downgrade(node)));
    }

    /// A carrier on `channel` to the mount on `node`.
    #[must_use]
    pub fn to(&self, node: &NodeName, channel: Channel) -> Arc<dyn Carrier> {
        let peers: Arc<dyn lockd::peers::Peers> = Arc::clone(&self.endpoint) as _;
        Arc::new(PeerCarrier::new(peers, self.runtime.clone(), node.clone(), channel, PATIENCE))
    }
}

impl Peers for Ways {
    fn way(&self, session: SessionId, client: ClientId) -> Option<Arc<dyn Carrier>> {
        if let Some((own, node)) = &*self.own.lock()
            && *own == client
        {
            return Some(Arc::new(Here(Weak::clone(node))));
        }
        let (peer, mortality) = ((session, client), Arc::clone(&self.plane.mortality));
        if mortality.has_ended(peer) {
            return None;
        }
        let node = self.plane.node_of(client)?;
        let mut carriers = self.carriers.lock();
        let carrier = carriers.entry(node).or_insert_with_key(|node| self.to(node, Channel::File));
        Some(Arc::new(Mortal { way: Arc::clone(carrier), peer, mortality }))
    }
}
