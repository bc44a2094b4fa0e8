//! Joins the other nodes to layers that work with callbacks: [`Carrier`] over [`Peers`], [`Serve`] over [`Service`].

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::{BoxFuture, Channel, NotServed, PeerError, Peers, Serve};
use crate::ids::NodeName;
use crate::network::{Carrier, CarrierError, OnReply, Service};

/// How long a refusal is kept back, so that who repeats at once does not spin.
const REFUSAL_PAUSE: Duration = Duration::from_millis(500);

/// Carries the frames of one channel to one node.
///
/// An error that may heal, a refusal included, comes back as [`CarrierError::TimedOut`]: the same frame may be sent
/// again. [`CarrierError::Closed`] comes when the node says that it does not serve this, when the cluster file does not
/// know it, when a frame is too large, and when this end stops.
#[derive(Debug)]
pub struct PeerCarrier {
    peers: Arc<dyn Peers>,
    runtime: Handle,
    to: NodeName,
    channel: Channel,
    timeout: Duration,
}

impl PeerCarrier {
    /// Carries frames on `channel` to node `to`, each with `timeout`. Replies are handed over on threads of `runtime`,
    /// which must not be blocked for long.
    #[must_use]
    pub fn new(
        peers: Arc<dyn Peers>,
        runtime: Handle,
        to: NodeName,
        channel: Channel,
        timeout: Duration,
    ) -> Self {
        Self { peers, runtime, to, channel, timeout }
    }
}

/// Calls back once, whatever happens: also when the runtime ends under the request.
struct Once(Option<OnReply>);

impl Once {
    fn call(mut self, result: Result<Vec<u8>, CarrierError>) {
        if let Some(on_reply) = self.0.take() {
            on_reply(result);
        }
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        if let Some(on_reply) = self.0.take() {
            on_reply(Err(CarrierError::Closed("this program ends".to_owned())));
        }
    }
}

impl Carrier for PeerCarrier {
    fn request(&self, frame: Vec<u8>, on_reply: OnReply) {
        let once = Once(Some(on_reply));
        let request = self.peers.request(&self.to, self.channel, frame, self.timeout);
        let within = self.timeout;
        self.runtime.spawn(async move {
            let result = match request.await {
                Ok(reply) => Ok(reply),
                Err(
                    error @ (PeerError::Stopped
                    | PeerError::UnknownNode(_)
                    | PeerError::TooLarge { .. }
                    | PeerError::NotServed { .. }),
                ) => Err(CarrierError::Closed(error.to_string())),
                Err(error) => {
                    tracing::debug!(%error, "no reply");
                    if matches!(error, PeerError::Refused { .. }) {
                        tokio::time::sleep(REFUSAL_PAUSE.min(within)).await;
                    }
                    Err(CarrierError::TimedOut(within))
                }
            };
            once.call(result);
        });
    }
}

/// Serves the requests of other nodes by a [`Service`]. What the service does not answer but closes is told to the one
/// who asked as [`NotServed`].
#[derive(Debug)]
pub struct ServedBy<S>(pub S);

impl<S: Service> Serve for ServedBy<S> {
    fn serve<'a>(
        &'a self,
        _from: &'a NodeName,
        _channel: Channel,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, NotServed>> {
        let (sender, reply) = oneshot::channel();
        self.0.serve(
            frame,
            Box::new(move |result| {
                // Whoever waited for it may be gone.
                let _ = sender.send(result);
            }),
        );
        Box::pin(async move {
            match reply.await {
                Ok(Ok(reply)) => Ok(reply),
                Ok(Err(error)) => Err(NotServed(error.to_string())),
                Err(_) => Err(NotServed("the service dropped the request".to_owned())),
            }
        })
    }
}

#[cfg(test)]
mod tests;
