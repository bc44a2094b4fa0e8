//! Requests that are under way to whoever serves what nobody owns: when that is another node, nobody waits for the answer of
//! the last one.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockd::network::{Carrier, CarrierError, OnReply};
use parking_lot::Mutex;

use super::super::task::{Sender, promise};

/// What the carrier answers; none if nobody waits for it any more.
type Told = Option<Result<Vec<u8>, CarrierError>>;
type Waiting = Arc<Mutex<Option<Sender<Told>>>>;

#[derive(Default)]
struct State {
    under_way: BTreeMap<u64, Waiting>,
    last: u64,
}

fn tell(waiting: &Waiting, told: Told) {
    let sender = waiting.lock().take();
    if let Some(sender) = sender {
        sender.send(told);
    }
}

/// What a carrier is given: dropped without an answer, nobody waits for one.
struct Answerer(Waiting);

impl Drop for Answerer {
    fn drop(&mut self) {
        let sender = self.0.lock().take();
        drop(sender);
    }
}

/// See the module.
#[derive(Default)]
pub(in super::super) struct Sendings(Mutex<State>);

impl Sendings {
    /// Sends a frame, and waits for the answer or for [`Sendings::cut`].
    pub(super) async fn send(&self, carrier: &dyn Carrier, frame: Vec<u8>) -> Told {
        let (sender, receiver) = promise();
        let waiting: Waiting = Arc::new(Mutex::new(Some(sender)));
        let number = {
            let mut state = self.0.lock();
            state.last += 1;
            let number = state.last;
            state.under_way.insert(number, Arc::clone(&waiting));
            number
        };
        let answerer = Answerer(waiting);
        let on_reply: OnReply = Box::new(move |reply| tell(&answerer.0, Some(reply)));
        carrier.request(frame, on_reply);
        let told = receiver.await.flatten();
        self.0.lock().under_way.remove(&number);
        told
    }

    /// Nobody waits for what is under way.
    pub(in super::super) fn cut(&self) {
        let under_way = std::mem::take(&mut self.0.lock().under_way);
        under_way.values().for_each(|waiting| tell(waiting, None));
    }
}
