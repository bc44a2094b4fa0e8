//! What other nodes ask of this one.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::control::{self, Ask, Told};
use super::core::Core;
use super::{forward, route, status};
use crate::ids::NodeName;
use crate::peers::{BoxFuture, Channel, NotServed, Serve};

/// How long a client of this node may take to answer what another node forwards to it.
const FORWARD: Duration = Duration::from_secs(60);
/// The longest that a question for events waits.
const EVENTS_WAIT_MS: u32 = 10_000;

/// Answers the requests of other nodes, once there is something to answer them with.
#[derive(Debug, Default)]
pub(super) struct NodeServer {
    core: OnceLock<Arc<Core>>,
}

impl NodeServer {
    /// From now on requests are answered.
    pub(super) fn begin(&self, core: Arc<Core>) {
        // It is called once.
        let _ = self.core.set(core);
    }
}

impl Serve for NodeServer {
    fn serve<'a>(
        &'a self,
        from: &'a NodeName,
        channel: Channel,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, NotServed>> {
        Box::pin(async move {
            let core = self.core.get().ok_or_else(|| NotServed("lockd is starting".to_owned()))?;
            match channel {
                Channel::Raft => match core.route.seat.get() {
                    Some(seat) => Ok(seat.voter.raft.serve(from, frame).await),
                    None => Err(NotServed(format!("node {} is no voter", core.node))),
                },
                Channel::Control => {
                    let told = match control::decode(&frame) {
                        Ok(ask) => answer(core, from, ask).await,
                        Err(why) => Told::Refused(why),
                    };
                    control::encode(&told)
                        .or_else(|why| control::encode(&Told::Refused(why)))
                        .map_err(NotServed)
                }
                other => Err(NotServed(format!("lockd does not serve the channel {other}"))),
            }
        })
    }
}

async fn answer(core: &Arc<Core>, from: &NodeName, ask: Ask) -> Told {
    match ask {
        Ask::Status => Told::Document(status::node(core).to_string()),
        Ask::Forward { .. } | Ask::ForwardToNode { .. } => {
            match forward::here(core, from, ask, FORWARD).await {
                Ok(answer) => Told::Forwarded(answer),
                Err(why) => Told::Refused(why),
            }
        }
        Ask::Steward(resource) => match forward::holder_here(core, &resource).await {
            Ok(client) => Told::Client(client),
            Err(why) => Told::Refused(why),
        },
        Ask::Propose(command) => match route::check_command(from, &command) {
            Ok(()) => leader(core, Ask::Propose(command)).await,
            Err(why) => Told::Refused(why),
        },
        Ask::Events { after, wait_ms } => {
            leader(core, Ask::Events { after, wait_ms: wait_ms.min(EVENTS_WAIT_MS) }).await
        }
        ask => leader(core, ask).await,
    }
}

async fn leader(core: &Core, ask: Ask) -> Told {
    match core.route.seat.get() {
        Some(seat) => seat.answer(&ask).await,
        None => Told::NotLeader(None),
    }
}
