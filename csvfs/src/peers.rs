//! The ways to the other processes of the volume.

use std::fmt::Debug;
use std::sync::Arc;

use lockd::ids::{ClientId, SessionId};
use lockd::network::Carrier;

/// Finds the way to a client's node. Its other end is the [`lockd::network::Service`] of that client's
/// [`crate::node::Node`].
pub trait Peers: Send + Sync + Debug {
    /// A carrier to the node of `client`; none if nothing is known of it (any more).
    fn way(&self, session: SessionId, client: ClientId) -> Option<Arc<dyn Carrier>>;
}

/// For a mount that is alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Peers for Alone {
    fn way(&self, _session: SessionId, _client: ClientId) -> Option<Arc<dyn Carrier>> {
        None
    }
}
