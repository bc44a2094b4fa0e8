//! The bounded window of events.

use std::collections::VecDeque;

use bincode::{Decode, Encode};

use super::bounds::EVENTS_MAX;
use super::event::{Audience, Event, EventIndex, EventKind};

/// The last events, in order and without a gap.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub(super) struct EventLog {
    last: EventIndex,
    kept: VecDeque<Event>,
}

impl EventLog {
    pub(super) fn push(&mut self, to: Audience, kind: EventKind) {
        self.last.0 = self.last.0.saturating_add(1);
        if self.kept.len() >= EVENTS_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(Event { index: self.last, to, kind });
    }

    /// The last event that there was.
    pub(super) fn last(&self) -> EventIndex {
        self.last
    }

    /// Whether events after `index` are no longer kept; also, whether `index` lies in the future (of a state that was
    /// lost).
    pub(super) fn misses_after(&self, index: EventIndex) -> bool {
        let first = self.kept.front().map_or(self.last.0.saturating_add(1), |event| event.index.0);
        index > self.last || index.0.saturating_add(1) < first
    }

    /// The kept events after `index`.
    pub(super) fn after(&self, index: EventIndex) -> impl Iterator<Item = &Event> {
        let from = self.kept.partition_point(|event| event.index <= index);
        self.kept.range(from..)
    }

    /// What is wrong with it.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.kept.len() > EVENTS_MAX {
            return Err(format!("{} events are kept", self.kept.len()));
        }
        let expected =
            self.last.0.checked_sub(self.kept.len() as u64).ok_or("more events than there were")?;
        let wrong = (expected + 1..).zip(&self.kept).find(|(index, event)| event.index.0 != *index);
        wrong.map_or(Ok(()), |(index, event)| {
            Err(format!("event {:?} stands where {index} should", event.index))
        })
    }
}
