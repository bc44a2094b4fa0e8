//! Sets of files that this node offers to another: the only way for pinned ones to leave it.
//!
//! The offer stands until the next owner's acquisition comes by, or until it is closed. Whoever made it learns from it, and
//! from nobody else, what became of the set: this node itself has the authority transfer it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use lockd::clock::BootTime;
use lockd::ids::{Epoch, SessionId};
use lockd::machine::Cookie;

use super::task::{Receiver, Sender, promise};
use crate::proto::Next;
use crate::refusal::Refusal;
use crate::types::Ino;

/// A set that is offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// By which the next owner names it.
    pub cookie: Cookie,
    /// The set: all or nothing.
    pub files: BTreeSet<Ino>,
    /// Under which session the next owner lives.
    pub to: SessionId,
    /// This node's locks on the set go into escrow (L8).
    pub with_locks: bool,
    /// It stands only while all of the set is owned in this epoch, or by nobody in [`Epoch::NOBODY`]; none: in any.
    pub epoch: Option<Epoch>,
}

/// On which terms a set goes that was offered.
#[derive(Clone, Copy, Default)]
pub(super) struct Terms {
    /// Locks go along, under this cookie.
    pub(super) escrow: Option<Cookie>,
    /// See [`Offer::epoch`].
    pub(super) epoch: Option<Epoch>,
}

/// What became of an offer that was taken up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    /// The epoch of the set at its next owner.
    pub epoch: Epoch,
    /// When new I/O to the set was stopped.
    pub stopped: BootTime,
    /// From then until the authority had transferred it.
    pub took: Duration,
}

enum State {
    Open,
    /// It is being handed over.
    Taken(Option<Sender<Outcome>>),
    Over(Outcome),
}

type Outcome = Result<Given, Refusal>;

/// All offers of a node.
#[derive(Default)]
pub(super) struct Offers(HashMap<Cookie, (Offer, State)>);

/// What became of a closed offer.
pub(super) enum Closed {
    /// Nobody has taken it up, and nobody can any more.
    Unused,
    /// It is over.
    Over(Outcome),
    /// It is being handed over; the outcome will come.
    Running(Receiver<Outcome>),
}

impl Offers {
    /// From now on the set can be taken up.
    pub(super) fn open(&mut self, offer: Offer) {
        self.0.insert(offer.cookie, (offer, State::Open));
    }

    /// `next` takes the set up: all of it, once.
    pub(super) fn take(
        &mut self,
        cookie: Cookie,
        next: &Next,
        files: &[(Ino, u64)],
    ) -> Result<Terms, Refusal> {
        let off = || Refusal::Stale("the transfer has been called off".to_owned());
        let (offer, state) = self.0.get_mut(&cookie).ok_or_else(off)?;
        let all = files.len() == offer.files.len() && files.iter().all(|(ino, _)| offer.files.contains(ino));
        if !matches!(state, State::Open) || offer.to != next.session || !all {
            return Err(off());
        }
        *state = State::Taken(None);
        Ok(Terms { escrow: offer.with_locks.then_some(cookie), epoch: offer.epoch })
    }

    /// Whether an offer has been taken up.
    #[cfg(test)]
    pub(super) fn is_taken(&self, cookie: Cookie) -> bool {
        self.0.get(&cookie).is_some_and(|(_, state)| !matches!(state, State::Open))
    }

    /// What became of a set that was taken up. Tells who waits for it.
    pub(super) fn end(&mut self, cookie: Cookie, outcome: &Outcome) -> Option<Sender<Outcome>> {
        let (_, state) = self.0.get_mut(&cookie)?;
        match std::mem::replace(state, State::Over(outcome.clone())) {
            State::Taken(Some(waiting)) => {
                self.0.remove(&cookie);
                Some(waiting)
            }
            _ => None,
        }
    }

    /// The offer stands no longer.
    pub(super) fn close(&mut self, cookie: Cookie) -> Closed {
        match self.0.remove(&cookie) {
            None | Some((_, State::Open)) => Closed::Unused,
            Some((_, State::Over(outcome))) => Closed::Over(outcome),
            Some((offer, State::Taken(_))) => {
                let (sender, receiver) = promise();
                self.0.insert(cookie, (offer, State::Taken(Some(sender))));
                Closed::Running(receiver)
            }
        }
    }
}
