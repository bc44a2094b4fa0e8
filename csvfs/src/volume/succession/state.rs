//! What a mount keeps of the coordinator's role.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lockd::authority::Authority;
use lockd::ids::{Epoch, ResourceId};
use lockd::lease::Lease;
use parking_lot::{Condvar, Mutex};
use redirector::lun::Lun;

use super::super::office::Office;
use super::super::{Settings, VolumeError};
use crate::cluster::{Member, NotDone};
use crate::coordinator::Coordinator;
use crate::disk::label::Label;
use crate::disk::member::MemberClaim;
use crate::node::Node;
use crate::status::{Opening, Takeover};

/// How long a mount that has agreed to take the role waits for it.
const AGREED_FOR: Duration = Duration::from_secs(8);

/// What is said of it in the status.
#[derive(Clone, Debug, Default)]
pub(in crate::volume) struct Board {
    /// The node that coordinates.
    pub(in crate::volume) node: String,
    /// The coordinator, if it is here.
    pub(in crate::volume) coordinator: Weak<Coordinator>,
    /// How this mount came to the coordinator that it asks.
    pub(in crate::volume) opening: Opening,
    /// How this mount has taken the role over from another one.
    pub(in crate::volume) takeover: Option<Takeover>,
}

/// Where this mount stands with a coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// It asks none.
    Nobody,
    /// It is attaching to the one of this epoch.
    Attaching(Epoch),
    /// The one of this epoch knows it.
    Attached(Epoch),
}

/// What changes while it is followed.
pub(super) struct State {
    pub(super) office: Option<Office>,
    pub(super) claim: Option<MemberClaim>,
    pub(super) way: Way,
    pub(super) board: Board,
    /// A mount that joins tells why it cannot; one that serves tries again.
    pub(super) is_joining: bool,
    pub(super) failure: Option<VolumeError>,
    /// It takes no role any more, and nobody else moves the one that it has: it is being unmounted.
    pub(super) leaves: bool,
    /// It has agreed to take the role from the one who has it, until then.
    pub(super) agreed: Option<Instant>,
    /// The store is being opened.
    pub(super) opens: bool,
    /// The role is being handed over: the thread stands aside.
    pub(super) hands_over: bool,
    pub(super) not_before: Option<Instant>,
    /// The epoch in which this mount last had the role: never again, whatever a late answer says.
    pub(super) had: Epoch,
    pub(super) wake: bool,
    pub(super) ends: bool,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            office: None,
            claim: None,
            way: Way::Nobody,
            board: Board::default(),
            is_joining: true,
            failure: None,
            leaves: false,
            agreed: None,
            opens: false,
            hands_over: false,
            not_before: None,
            had: Epoch::NOBODY,
            wake: false,
            ends: false,
        }
    }

    /// A move of the role in the epoch `held` begins, which somebody has asked for.
    pub(super) fn begin_move(&mut self, held: Option<Epoch>) -> Result<(), NotDone> {
        // Two at a time would come in each other's way; and whoever is unmounted hands the role to the first who takes it.
        let why = match held {
            _ if self.leaves => "the coordinator's mount is being unmounted",
            _ if self.hands_over => "the coordinator's role is being handed over already",
            None => "this mount does not coordinate the volume",
            // What other mounts have left to it is not its own yet.
            Some(epoch) if self.way != Way::Attached(epoch) => {
                "the coordinator has just taken over, and waits for the other nodes"
            }
            Some(_) => {
                self.hands_over = true;
                return Ok(());
            }
        };
        Err(NotDone::Passing(why.to_owned()))
    }

    /// It takes the role from the one who has it in `epoch` and serves this mount, if that comes soon.
    pub(super) fn agree(&mut self, epoch: Epoch, has_path: bool) -> Result<(), NotDone> {
        if self.leaves || self.ends {
            return Err(NotDone::Refused("its mount is being unmounted".to_owned()));
        }
        // Attached to that very one: it serves, so that all who had something to hand on have handed it to that one.
        if self.is_joining || self.way != Way::Attached(epoch) || self.office.is_some() {
            return Err(NotDone::Passing("it does not follow the coordinator at the moment".to_owned()));
        }
        if !has_path {
            return Err(NotDone::Refused("no path to the LUN works there".to_owned()));
        }
        self.agreed = Some(Instant::now() + AGREED_FOR);
        Ok(())
    }
}

/// What the thread and those who ask share.
pub(super) struct Shared {
    pub(super) member: Arc<Member>,
    pub(super) authority: Arc<dyn Authority>,
    pub(super) node: Arc<Node>,
    pub(super) lun: Arc<dyn Lun>,
    pub(super) label: Label,
    pub(super) settings: Settings,
    /// The lease of the claim.
    pub(super) beat: Arc<Lease>,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) me: Weak<Shared>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("volume", &self.label.uuid).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn role(&self) -> ResourceId {
        ResourceId::Coordinator(self.label.uuid)
    }

    /// Whether this mount reaches the LUN itself, and not through a peer: without that another one coordinates better.
    pub(super) fn has_path(&self) -> bool {
        self.lun.is_working() && self.lun.through().is_none()
    }

    pub(super) fn wake(&self) {
        self.state.lock().wake = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: Epoch = Epoch(7);

    fn serving() -> State {
        State { is_joining: false, way: Way::Attached(HELD), ..State::new() }
    }

    /// Found: a move that began between two steps of an unmount kept that from handing the role on, so that the syncs of what
    /// others had written there were refused.
    #[test]
    fn nobody_moves_the_role_of_a_mount_that_ends() {
        let mut state = serving();
        state.begin_move(Some(HELD)).unwrap();
        assert!(matches!(state.begin_move(Some(HELD)), Err(NotDone::Passing(_))), "one at a time");
        state.hands_over = false;
        state.leaves = true;
        assert!(matches!(state.begin_move(Some(HELD)), Err(NotDone::Passing(_))));
    }

    #[test]
    fn a_coordinator_that_waits_for_the_others_does_not_hand_on() {
        let mut state = serving();
        state.way = Way::Attaching(HELD);
        assert!(matches!(state.begin_move(Some(HELD)), Err(NotDone::Passing(_))));
        state.way = Way::Attached(Epoch(6));
        assert!(matches!(state.begin_move(Some(HELD)), Err(NotDone::Passing(_))));
        assert!(!state.hands_over);
    }

    /// Found: a mount that had not heard yet that the role had moved agreed to take it from one that did not serve yet, whose
    /// guests had told it what was left to them, and nobody else.
    #[test]
    fn only_who_is_served_by_a_coordinator_takes_the_role_from_it() {
        let mut state = serving();
        assert!(matches!(state.agree(Epoch(8), true), Err(NotDone::Passing(_))));
        assert_eq!(state.agreed, None);
        assert!(matches!(state.agree(HELD, false), Err(NotDone::Refused(_))), "without a path");
        state.agree(HELD, true).unwrap();
        assert!(state.agreed.is_some());
        state.leaves = true;
        assert!(matches!(state.agree(HELD, true), Err(NotDone::Refused(_))));
    }
}
