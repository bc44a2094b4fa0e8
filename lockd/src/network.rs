//! The network as the protocols see it: requests and replies as encoded frames.
//!
//! The layers of a node talk in frames even inside one process, so that what crosses the network in a cluster is
//! exercised everywhere. A carrier may lose, repeat, delay and reorder frames; the reply slots of rule L5 make a retry
//! safe.

use std::fmt::Debug;

/// Why no reply came. The request may or may not have been executed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CarrierError {
    /// The other side is gone for good: its process ends or its session has ended.
    #[error("the peer has closed: {0}")]
    Closed(String),
    /// No answer in time; the caller may send the same frame again.
    #[error("no answer from the peer within {0:?}; the request may have been executed")]
    TimedOut(std::time::Duration),
}

/// What is called with the reply, once, on any thread.
pub type OnReply = Box<dyn FnOnce(Result<Vec<u8>, CarrierError>) + Send>;

/// Carries request frames to one peer, and its replies back.
pub trait Carrier: Send + Sync + Debug {
    /// Sends `frame`. `on_reply` is called exactly once, possibly before this returns.
    fn request(&self, frame: Vec<u8>, on_reply: OnReply);
}

/// Serves request frames: the other end of a [`Carrier`].
pub trait Service: Send + Sync + Debug {
    /// Executes `frame` and calls `on_reply` with the reply's frame exactly once, on any thread.
    fn serve(&self, frame: Vec<u8>, on_reply: OnReply);
}

/// The network inside one process: hands each frame straight to the service.
#[derive(Debug)]
pub struct InProcess<S>(pub S);

impl<S: Service> Carrier for InProcess<S> {
    fn request(&self, frame: Vec<u8>, on_reply: OnReply) {
        self.0.serve(frame, on_reply);
    }
}

impl<S: Service + ?Sized> Service for std::sync::Arc<S> {
    fn serve(&self, frame: Vec<u8>, on_reply: OnReply) {
        (**self).serve(frame, on_reply);
    }
}
