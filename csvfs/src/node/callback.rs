//! What comes to this node: calls of the coordinator, and other nodes' I/O to the files that it serves.

use std::sync::Arc;
use std::time::Duration;

use lockd::authority::{Holding, Standing};
use lockd::ids::ResourceId;
use lockd::network::{CarrierError, OnReply, Service};

use super::remote::FIRST_BYTE;
use super::task::run;
use super::yielding::Demand;
use super::{Core, Node};
use crate::proto::codec::{decode, encode};
use crate::proto::{Call, CallAnswer, Callback, Key};
use crate::refusal::Refusal;

impl Service for Node {
    /// May read the metadata store, where the coordinator is in the same process: not to be called where a completion
    /// of the LUN is received.
    fn serve(&self, frame: Vec<u8>, on_reply: OnReply) {
        let core = Arc::clone(&self.core);
        if frame.first() == Some(&FIRST_BYTE) {
            return run(async move { on_reply(core.serve_remote(&frame).await) });
        }
        run(async move {
            let answer = match decode::<Call>(&frame) {
                // What an earlier process here has done nobody can say (L7): it is sent again until that one is over.
                Ok(call) if call.client != core.client => {
                    return on_reply(Err(CarrierError::TimedOut(Duration::ZERO)));
                }
                Ok(call) => core.called(call).await,
                Err(error) => CallAnswer::Refused(Refusal::Invalid(error.to_string())),
            };
            on_reply(Ok(encode(&answer).unwrap_or_default()));
        });
    }
}

impl Core {
    async fn called(self: &Arc<Self>, call: Call) -> CallAnswer {
        if call.coordinator != self.channel.coordinator() {
            // A late copy of an earlier coordinator.
            return CallAnswer::Refused(Refusal::Stale("the call is of another coordinator".to_owned()));
        }
        // F1: nor is anything done for one that is over, before there is another.
        let role = ResourceId::Coordinator(self.volume);
        let holding = self.authority.holder(&role).filter(|holding| holding.epoch == call.coordinator);
        let is_live = |holding: Holding| self.authority.standing(holding.session) == Standing::Live;
        if !holding.is_some_and(is_live) {
            return CallAnswer::Refused(Refusal::Stale("the coordinator is over".to_owned()));
        }
        match call.what {
            Callback::Invalidate { keys } => {
                self.channel.cache.invalidate(&keys);
                for key in keys {
                    match key {
                        Key::Layout(ino) => self.return_layout(ino).await,
                        Key::Attr(ino) => self.drop_attributes(Some(ino)).await,
                        Key::Name { .. } | Key::Names(_) => {}
                    }
                }
                CallAnswer::Done
            }
            Callback::Yield { journey, files, soft, next } => {
                self.give_up(Demand { coordinator: call.coordinator, journey, files, soft, next }).await
            }
        }
    }
}
