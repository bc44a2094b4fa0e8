//! The mount ends: the role that it has goes to another one, with all that is handed on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockd::ids::{Epoch, NodeName};

use super::state::{Shared, Way};

/// How long everything that must come to rest before is waited for: nobody asks a mount that ends again.
const RESTS_WITHIN: Duration = Duration::from_secs(30);

impl Shared {
    /// Takes no role any more, and hands on the one that it has if another mount takes it.
    pub(super) fn leave(&self) {
        if !self.begin_to_leave() {
            return;
        }
        let handed = self.hand_on();
        self.stands_no_more_aside();
        if let Some((node, epoch)) = handed
            && let Err(error) = self.is_served_since(&node, epoch)
        {
            tracing::warn!(%error, "the coordinator's mount ends");
        }
    }

    /// Waits until the role is neither on its way here nor being moved. Whether there is one to hand on, which from then on
    /// nobody else moves.
    fn begin_to_leave(&self) -> bool {
        let mut state = self.state.lock();
        state.leaves = true;
        loop {
            if state.hands_over || state.opens {
                self.changed.wait(&mut state);
                continue;
            }
            // What was agreed is kept: the one who has the role has closed the store for that, perhaps.
            let Some(until) = state.agreed else { break };
            if self.changed.wait_until(&mut state, until).timed_out() {
                state.agreed = None;
            }
        }
        // What an ended session held is not its to hand on: it is fenced, and then free.
        state.hands_over = state.office.is_some() && !self.authority.lease().has_ended();
        state.hands_over
    }

    /// Hands it to the first who takes it: to which node, and in which epoch.
    fn hand_on(&self) -> Option<(NodeName, Epoch)> {
        let others = self.others();
        if !others.is_empty() {
            self.settle_and_rest();
        }
        for (node, session, client) in others {
            match self.hand_over(&node, (session, client)) {
                Ok((epoch, _)) => return Some((node, epoch)),
                Err(why) => tracing::warn!(%node, %why, "the coordinator's role is not handed to this node"),
            }
        }
        None
    }

    /// Waits until this coordinator has heard all that others had to hand on, and no file changes hands: until the lockds have a
    /// quorum again, perhaps. There is no other way for what is handed on with the role.
    fn settle_and_rest(&self) {
        let until = Instant::now() + RESTS_WITHIN;
        let coordinator = {
            let mut state = self.state.lock();
            let Some(office) = &state.office else { return };
            let (coordinator, epoch) = (Arc::clone(&office.coordinator), office.epoch);
            while state.way != Way::Attached(epoch) && !self.authority.lease().has_ended() {
                if self.changed.wait_until(&mut state, until).timed_out() {
                    tracing::warn!("the coordinator's mount ends before the other nodes have come to it");
                    break;
                }
            }
            coordinator
        };
        if let Err(why) = self.rest(&coordinator, until.saturating_duration_since(Instant::now())) {
            tracing::warn!(%why, "the coordinator's mount ends");
        }
        coordinator.stay();
    }
}
