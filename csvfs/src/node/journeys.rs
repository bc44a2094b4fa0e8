//! What this node has answered when it was told to give files up: a call that comes again, or late, is not executed again.

use std::collections::{HashMap, VecDeque};

use super::task::{Receiver, Sender, promise};
use crate::proto::CallAnswer;
use crate::refusal::Refusal;

/// Answers that are kept. A journey of which nothing is known any more is refused.
const KEPT_MAX: usize = 256;

enum State {
    UnderWay(Vec<Sender<CallAnswer>>),
    Over(CallAnswer),
}

/// What to do about a call.
pub(super) enum Begun {
    /// It is new: execute it, and call [`Journeys::end`].
    Execute,
    /// It was executed.
    Answered(CallAnswer),
    /// It is being executed: the same answer will come.
    UnderWay(Receiver<CallAnswer>),
}

/// See the module. Journeys are numbered, rising.
#[derive(Default)]
pub(super) struct Journeys {
    states: HashMap<u64, State>,
    /// Those that are over, the first first.
    over: VecDeque<u64>,
    /// The highest of those that are forgotten.
    forgotten: u64,
}

impl Journeys {
    /// A call has come.
    pub(super) fn begin(&mut self, number: u64) -> Begun {
        match self.states.get_mut(&number) {
            Some(State::Over(answer)) => Begun::Answered(answer.clone()),
            Some(State::UnderWay(waiting)) => {
                let (sender, receiver) = promise();
                waiting.push(sender);
                Begun::UnderWay(receiver)
            }
            // It may have been executed, and refused: never twice.
            None if number <= self.forgotten => {
                Begun::Answered(CallAnswer::Refused(Refusal::Stale("the call came too late".to_owned())))
            }
            None => {
                self.states.insert(number, State::UnderWay(Vec::new()));
                Begun::Execute
            }
        }
    }

    /// A call has been executed. Tells who waits for its answer.
    pub(super) fn end(&mut self, number: u64, answer: &CallAnswer) -> Vec<Sender<CallAnswer>> {
        let before = self.states.insert(number, State::Over(answer.clone()));
        self.over.push_back(number);
        if self.over.len() > KEPT_MAX
            && let Some(oldest) = self.over.pop_front()
        {
            self.states.remove(&oldest);
            self.forgotten = self.forgotten.max(oldest);
        }
        match before {
            Some(State::UnderWay(waiting)) => waiting,
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journey_is_executed_once() {
        let mut journeys = Journeys::default();
        assert!(matches!(journeys.begin(7), Begun::Execute));
        assert!(matches!(journeys.begin(7), Begun::UnderWay(_)));
        let answer = CallAnswer::Refused(Refusal::Busy("pinned".to_owned()));
        assert_eq!(journeys.end(7, &answer).len(), 1);
        assert!(matches!(journeys.begin(7), Begun::Answered(again) if again == answer));
        for number in 8..8 + KEPT_MAX as u64 {
            assert!(matches!(journeys.begin(number), Begun::Execute));
            journeys.end(number, &CallAnswer::Done);
        }
        // Forgotten, and all the same not executed again.
        assert!(matches!(journeys.begin(7), Begun::Answered(CallAnswer::Refused(Refusal::Stale(_)))));
    }
}
