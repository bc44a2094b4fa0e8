//! The state machine as the replicated log applies it.

use std::error::Error;

use crate::machine::{CodecError, Event, Refusal, Reply, State, encode_reply};
use crate::raft::{Machine, Output};
use crate::rules::Rules;

/// The cluster's state on this voter.
#[derive(Debug)]
pub(super) struct Replica {
    rules: Rules,
    pub(super) state: State,
}

impl Replica {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, state: State::new() }
    }
}

impl Machine for Replica {
    type Event = Event;

    fn apply(&mut self, time_ns: u64, command: &[u8]) -> Output<Event> {
        match self.state.apply_encoded(self.rules, time_ns, command) {
            Ok((reply, events)) => Output { reply, events },
            // Another voter may understand it: to go on would be to have another state than that one.
            Err(error @ CodecError::Version(_)) => panic!("this voter must stop: {error}"),
            // Nobody can: the leader looks at commands before it proposes them, so that this does not come.
            Err(_) => {
                let refused = Reply::Refused(Refusal::ReplyTooLong);
                Output::reply(encode_reply(&refused).unwrap_or_default())
            }
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        self.state.snapshot().expect("the state's bounds keep it below the limit of a snapshot")
    }

    fn restore(bytes: &[u8]) -> Result<Self, Box<dyn Error + Send + Sync>> {
        // The rules are no part of the state.
        Ok(Self { rules: Rules::from_test_environment(), state: State::restore(bytes)? })
    }
}
