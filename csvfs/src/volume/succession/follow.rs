//! The thread that follows the role: who coordinates, and how this mount comes to that one.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lockd::authority::{AuthorityError, Holding};
use lockd::ids::Epoch;
use lockd::network::Carrier;

use super::super::VolumeError;
use super::state::{Shared, State, Way};
use super::storage::Redirected;
use crate::refusal::Refusal;
use crate::status::Opening;

/// Between two looks at the role where nobody tells of a change.
const LOOK: Duration = Duration::from_millis(250);
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_millis(300);

impl Shared {
    pub(super) fn run(&self) {
        let mut warned = false;
        let mut redirected = Redirected::default();
        loop {
            {
                let mut state = self.state.lock();
                if !state.wake && !state.ends {
                    self.changed.wait_for(&mut state, LOOK);
                }
                state.wake = false;
                if state.ends {
                    return;
                }
                if state.hands_over {
                    continue;
                }
            }
            if self.authority.lease().has_ended() {
                self.fail(AuthorityError::SessionEnded(self.authority.session()).into());
                return;
            }
            self.follow_storage(&mut redirected);
            match self.authority.holder(&self.role()) {
                Some(holding) if holding.client == self.member.client => self.serve(holding.epoch, None),
                Some(holding) => self.follow(&holding, &mut warned),
                None => self.take_role(),
            }
        }
    }

    /// A mount that is joining tells why it cannot.
    pub(super) fn fail(&self, failure: VolumeError) {
        let mut state = self.state.lock();
        if state.is_joining {
            state.failure.get_or_insert(failure);
        } else {
            tracing::error!(%failure, "the volume is not coordinated by this mount");
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Another mount coordinates.
    fn follow(&self, holding: &Holding, warned: &mut bool) {
        {
            let mut state = self.state.lock();
            let is_known = matches!(
                state.way,
                Way::Attaching(epoch) | Way::Attached(epoch) if epoch == holding.epoch
            );
            if is_known || state.office.is_some() || state.not_before.is_some_and(|at| at > Instant::now()) {
                return;
            }
            state.not_before = None;
        }
        // A holder whose session has ended is fenced first; it is gone then.
        let Some(node) = self.member.plane.node_of(holding.client) else {
            if !std::mem::replace(warned, true) {
                tracing::warn!(client = %holding.client, "waiting for the coordinator, which is gone, to be fenced");
            }
            return;
        };
        *warned = false;
        tracing::debug!(%node, epoch = %holding.epoch, "another mount coordinates");
        let since = self.settings.clock.boot();
        {
            let mut state = self.state.lock();
            state.board.node = node.to_string();
            state.board.coordinator = Weak::new();
        }
        let carrier = self.member.way_to_coordinator(&node);
        self.attach(carrier, holding.epoch, move |shared, state| {
            state.board.opening = Opening {
                how: format!("through the coordinator on {node}"),
                open_s: shared.settings.clock.boot().since(since).as_secs_f64(),
                ..Opening::default()
            };
        });
    }

    /// Makes this mount known to the coordinator of that epoch; `done` when it is.
    pub(super) fn attach(
        &self,
        carrier: Arc<dyn Carrier>,
        epoch: Epoch,
        done: impl FnOnce(&Shared, &mut State) + Send + 'static,
    ) {
        self.state.lock().way = Way::Attaching(epoch);
        let told = Weak::clone(&self.me);
        let attached = move |result: Result<(), Refusal>| {
            let Some(shared) = told.upgrade() else { return };
            let mut state = shared.state.lock();
            if state.way != Way::Attaching(epoch) {
                return;
            }
            match result {
                Ok(()) => {
                    tracing::debug!(%epoch, "the coordinator serves this mount");
                    state.way = Way::Attached(epoch);
                    done(&shared, &mut state);
                }
                Err(refusal) => {
                    tracing::warn!(%refusal, "the coordinator does not take this mount yet; asking again");
                    state.way = Way::Nobody;
                    state.not_before = Some(Instant::now() + RETRY);
                }
            }
            drop(state);
            shared.wake();
        };
        self.node.follow(carrier, epoch, Box::new(attached));
    }

    /// Nobody coordinates: this mount does, if it can and comes first.
    fn take_role(&self) {
        {
            let state = self.state.lock();
            let may = !state.leaves && state.not_before.is_none_or(|at| at <= Instant::now());
            // Without a path, or without the lease, another mount is better.
            if !may || !self.has_path() || !self.authority.lease().holds(&*self.settings.clock) {
                return;
            }
        }
        let since = Instant::now();
        match self.authority.acquire(&self.role(), self.member.client) {
            Ok(holding) => self.serve(holding.epoch, Some(since)),
            Err(AuthorityError::Held { .. }) => self.wake(),
            Err(AuthorityError::Unavailable { why, .. }) => {
                tracing::warn!(why, "the coordinator's role could not be asked for; trying again");
            }
            Err(error) => self.fail(error.into()),
        }
    }
}
