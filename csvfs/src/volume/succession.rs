//! Who coordinates the volume of a cluster, as one of its mounts sees it; and how that becomes another one.
//!
//! One thread follows the coordinator's role in lockd. Where another mount has it, this one asks that one. Where nobody has
//! it, and a path to the LUN works from here, this mount acquires it (of several, the first has it), opens the store and
//! serves the others. A coordinator that is to move, or whose mount ends, hands the role to a mount that has agreed: it
//! stops, closes the store, and has lockd transfer the role; the next one opens the store where it is.
//!
//! | file | what |
//! |---|---|
//! | `state` | what a mount keeps of the role, and what may begin when |
//! | `follow` | the thread: who coordinates, and how this mount comes to that one |
//! | `take` | opening the store, and the claim on the volume |
//! | `hand_over` | a move to another mount, and agreeing to one |
//! | `storage` | the role goes where a path to the LUN works |
//! | `leave` | the end of the mount |

mod follow;
mod hand_over;
mod leave;
mod state;
mod storage;
mod take;

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use lockd::failpoint;
use lockd::lease::Lease;
use parking_lot::{Condvar, Mutex};
use redirector::lun::Lun;

pub(super) use self::state::Board;
use self::state::{Shared, State, Way};
use super::office::Office;
use super::{Settings, VolumeError};
use crate::cluster::Member;
use crate::disk::label::Label;
use crate::disk::member::MemberClaim;
use crate::node::Node;
use crate::status::Opening;

/// See the module.
#[derive(Debug)]
pub(super) struct Succession {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What is left when it ends.
pub(super) struct Left {
    /// The coordinator's part, if nobody else has taken it.
    pub(super) office: Option<Office>,
    pub(super) claim: Option<MemberClaim>,
}

impl Succession {
    /// Begins to follow the role. Nothing is asked of `node` before somebody coordinates.
    pub(super) fn start(
        member: &Arc<Member>,
        node: &Arc<Node>,
        lun: &Arc<dyn Lun>,
        label: Label,
        settings: Settings,
        beat: Arc<Lease>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new_cyclic(|me| Shared {
            member: Arc::clone(member),
            authority: Arc::clone(&member.plane) as _,
            node: Arc::clone(node),
            lun: Arc::clone(lun),
            label,
            settings,
            beat,
            state: Mutex::new(State::new()),
            changed: Condvar::new(),
            me: Weak::clone(me),
        });
        let told = Arc::downgrade(&shared);
        member.plane.on_role(move || {
            if let Some(shared) = told.upgrade() {
                shared.wake();
            }
        });
        member.hand_over_by(&shared);
        let follows = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name("csvfs-role".to_owned());
        let thread = builder.spawn(move || follows.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn member(&self) -> &Arc<Member> {
        &self.shared.member
    }

    /// Waits until a coordinator knows this mount, claims the volume as a member (V1), and tells how it was opened.
    pub(super) fn joined(&self) -> Result<Opening, VolumeError> {
        let shared = &self.shared;
        let opening = {
            let mut state = shared.state.lock();
            loop {
                if let Some(failure) = state.failure.take() {
                    return Err(failure);
                }
                if let Way::Attached(_) = state.way {
                    break state.board.opening.clone();
                }
                shared.changed.wait(&mut state);
            }
        };
        failpoint::reached("mount.attached");
        // V1: before the first write. Somebody serves, so that the volume has been opened.
        shared.claim()?;
        shared.state.lock().is_joining = false;
        Ok(opening)
    }

    /// How it stands.
    pub(super) fn board(&self) -> Board {
        self.shared.state.lock().board.clone()
    }

    /// The same, later.
    pub(super) fn watch(&self) -> impl Fn() -> Option<Board> + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.shared);
        move || shared.upgrade().map(|shared| shared.state.lock().board.clone())
    }

    /// The mount ends: it takes no role any more, and hands on the one that it has if another mount takes it.
    pub(super) fn leave(&self) {
        self.shared.leave();
    }

    /// Ends, with what is left.
    pub(super) fn end(mut self) -> Left {
        self.stop();
        let mut state = self.shared.state.lock();
        let left = Left { office: state.office.take(), claim: state.claim.take() };
        drop(state);
        self.shared.member.serve_no_coordinator();
        left
    }

    fn stop(&mut self) {
        self.shared.state.lock().ends = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Succession {
    fn drop(&mut self) {
        self.stop();
    }
}
