//! A lock for tasks: whoever waits is parked, and gets it in the order of asking.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::task::{Sender, promise};

#[derive(Default)]
struct State {
    taken: bool,
    waiting: VecDeque<Sender<Held>>,
}

/// Lets one task at a time through.
#[derive(Clone, Default)]
pub(super) struct Turn(Arc<Mutex<State>>);

/// The turn of one task; it ends when this is dropped.
#[must_use]
pub(super) struct Held(Arc<Mutex<State>>);

impl Turn {
    /// Waits for the turn.
    pub(super) async fn take(&self) -> Held {
        let waiting = {
            let mut state = self.0.lock();
            if state.taken {
                let (sender, receiver) = promise();
                state.waiting.push_back(sender);
                Some(receiver)
            } else {
                state.taken = true;
                None
            }
        };
        let handed_over = match waiting {
            Some(receiver) => receiver.await,
            None => None,
        };
        handed_over.unwrap_or_else(|| Held(Arc::clone(&self.0)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let next = {
            let mut state = self.0.lock();
            let next = state.waiting.pop_front();
            state.taken = next.is_some();
            next
        };
        if let Some(next) = next {
            next.send(Held(Arc::clone(&self.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::task::run;
    use super::*;

    #[test]
    fn turns_come_in_order_and_one_at_a_time() {
        let turn = Turn::default();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (go_on, mut hold) = promise::<()>();
        for number in 0..5 {
            let (turn, log) = (turn.clone(), Arc::clone(&log));
            let holds = (number == 0).then(|| std::mem::replace(&mut hold, promise().1));
            run(async move {
                let _held = turn.take().await;
                if let Some(holds) = holds {
                    holds.await;
                }
                log.lock().push(number);
            });
        }
        assert!(log.lock().is_empty());
        go_on.send(());
        assert_eq!(*log.lock(), [0, 1, 2, 3, 4]);
    }
}
