//! Requests and replies between the nodes of a cluster.
//!
//! A request is an opaque frame on a [`Channel`]; the node that it is for answers with a frame. [`Peers`] sends,
//! [`Serve`] answers. Whoever serves is told the name of the asking node, which comes from that node's certificate and
//! can be trusted. A request whose reply did not come may or may not have been executed
//! ([`PeerError::was_surely_not_executed`]), and a carrier may execute it twice: reply slots (L5) make that safe.
//!
//! [`QuicEndpoint`](quic::QuicEndpoint) carries frames between machines, [`LocalPeers`](local::LocalPeers) between the
//! nodes of a test. [`sync`] joins them to the callback-based layers of a mount.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

mod channel;
mod error;
pub mod local;
pub mod quic;
mod switchboard;
pub mod sync;

pub use channel::Channel;
pub use error::{NotServed, PeerError};
pub use switchboard::Switchboard;

use crate::ids::NodeName;

/// The largest frame, of a request or of a reply, in bytes.
pub const FRAME_MAX: usize = 8 << 20;

/// A future that can be sent between threads; what an asynchronous method of a trait object returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The other nodes, as far as they can be asked.
pub trait Peers: Send + Sync + Debug {
    /// Sends `frame` to node `to` and waits for the reply, at most for `timeout`: for the connection, for room among
    /// the requests in flight, and for the answer, together. The future wants a tokio runtime with timers.
    fn request(
        &self,
        to: &NodeName,
        channel: Channel,
        frame: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, PeerError>>;
}

/// Answers the requests of other nodes.
pub trait Serve: Send + Sync + Debug {
    /// Executes the request `frame` of node `from` and returns the reply's frame. Many run at the same time; each
    /// takes one of the bounded places in flight until it is done. It goes on when the asking node has given up.
    fn serve<'a>(
        &'a self,
        from: &'a NodeName,
        channel: Channel,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, NotServed>>;
}
