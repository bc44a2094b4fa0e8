//! Gives the requests of each channel to whom they are for.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::{BoxFuture, Channel, NotServed, Serve};
use crate::ids::NodeName;

/// Gives the requests of each channel to whom they are for. An endpoint can so be started before those who answer, who
/// need the endpoint themselves.
#[derive(Debug, Default)]
pub struct Switchboard {
    channels: RwLock<BTreeMap<Channel, Arc<dyn Serve>>>,
}

impl Switchboard {
    /// One that nobody answers at yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on `serve` answers the requests of `channel`.
    pub fn connect(&self, channel: Channel, serve: Arc<dyn Serve>) {
        self.channels.write().insert(channel, serve);
    }

    /// From now on nobody answers the requests of `channel`.
    pub fn disconnect(&self, channel: Channel) {
        self.channels.write().remove(&channel);
    }
}

impl Serve for Switchboard {
    fn serve<'a>(
        &'a self,
        from: &'a NodeName,
        channel: Channel,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, NotServed>> {
        let serve = self.channels.read().get(&channel).cloned();
        Box::pin(async move {
            match serve {
                Some(serve) => serve.serve(from, channel, frame).await,
                None => Err(NotServed(format!("nobody answers on channel {channel} here, or not yet"))),
            }
        })
    }
}
