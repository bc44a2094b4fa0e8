//! What comes to this node: calls of the coordinator, and other nodes' I/O to the files that it serves.

use std::sync::Arc;
use std::time::Duration;

use lockd::network::{CarrierError, OnReply, Service};

use super::remote::FIRST_BYTE;
use super::task::run;
use super::yielding::Demand;
use super::{Core, Node};
use crate::proto::codec::{decode, encode};
use crate::proto::{Call, CallAnswer, Callback, Declared, Key, Operation};
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
                self.give_up(Demand { journey, files, soft, next }).await
            }
        }
    }

    /// Lets the coordinator know that this node is here, and what it has open; from now on it may keep what it is told
    /// under leases (V9).
    pub(super) async fn attach(self: &Arc<Self>) -> Result<(), Refusal> {
        // What was kept before is not covered by leases any more.
        self.channel.cache.switch(false);
        self.drop_attributes(None).await;
        loop {
            // What is opened or closed between the list and its arrival would be neither as it says nor as it was told.
            let stop = self.openings.stop();
            self.openings.drain().await;
            let mut open = Vec::new();
            for file in self.files.values() {
                if file.lent.load(std::sync::atomic::Ordering::SeqCst) {
                    self.return_layout(file.ino).await;
                }
                let write = file.declared.load(std::sync::atomic::Ordering::SeqCst);
                open.push(Declared { ino: file.ino, write });
            }
            match self.channel.call(Operation::Attach { open }).await {
                Ok(_) => break,
                // No way to this node is known yet.
                Err(Refusal::Busy(_)) => {}
                Err(refusal) => return Err(refusal),
            }
            drop(stop);
            self.media.tick_passed().await;
        }
        self.channel.cache.switch(true);
        Ok(())
    }
}
