//! Handing the role to another mount.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lockd::authority::{Handover, Holding};
use lockd::client::{HolderReply, HolderRequest};
use lockd::ids::{ClientId, Epoch, NodeName, SessionId};
use lockd::local::message::Recipient;
use lockd::machine::{ClientKind, ClientState};

use super::state::{Shared, Way};
use crate::cluster::{NotDone, Roles};
use crate::coordinator::Coordinator;
use crate::disk::{MARGIN, await_drained};
use crate::proto::FileSlots;
use crate::refusal::Refusal;
use crate::service::Done;

/// Between two looks whether this mount may still hand the role on.
const LOOK: Duration = Duration::from_millis(250);
/// How long a mount that was asked to take the role has to agree.
const AGREES_WITHIN: Duration = Duration::from_secs(3);
/// How long files that are changing hands are waited for by a move.
const FILES_REST_WITHIN: Duration = Duration::from_secs(2);
/// How long the coordinator's node may take to commit what it serves for nobody.
const RESIGNS_WITHIN: Duration = Duration::from_secs(60);
/// How long the next coordinator is waited for, to tell how long the pause was.
const SERVED_WITHIN: Duration = Duration::from_secs(30);

fn session_over() -> NotDone {
    NotDone::Refused("the session of this node has ended".to_owned())
}

impl Shared {
    /// Waits for what `start` begins, as long as this mount may still hand the role on.
    fn wait<T: Send + 'static>(&self, within: Duration, start: impl FnOnce(Done<T>)) -> Result<T, NotDone> {
        let (sender, receiver) = sync_channel(1);
        start(Box::new(move |result: Result<T, Refusal>| drop(sender.send(result))));
        let since = Instant::now();
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(result) => return result.map_err(NotDone::from),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(NotDone::Refused("the mount's node has ended".to_owned()));
                }
                Err(RecvTimeoutError::Timeout) if self.authority.lease().has_ended() => {
                    return Err(session_over());
                }
                Err(RecvTimeoutError::Timeout) if since.elapsed() >= within => {
                    return Err(NotDone::Refused(format!("not done within {} s", within.as_secs())));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The other mounts that live.
    pub(super) fn others(&self) -> Vec<(NodeName, SessionId, ClientId)> {
        let kind = ClientKind::Csvfs { volume: self.label.uuid };
        let clients = self.member.plane.client().clients_of(kind).unwrap_or_default();
        let live = clients.into_iter().filter(|info| info.state == ClientState::Live);
        let others = live.filter(|info| info.client != self.member.client);
        others.map(|info| (info.node, info.session, info.client)).collect()
    }

    /// Hands the role to the mount on `node`, as somebody has asked for. How long nobody coordinated, as far as this node saw.
    fn move_to(&self, node: &NodeName, next: (SessionId, ClientId)) -> Result<(Epoch, Duration), NotDone> {
        {
            let mut state = self.state.lock();
            let held = state.office.as_ref().map(|office| office.epoch);
            state.begin_move(held)?;
        }
        let result = self.hand_over(node, next);
        self.stands_no_more_aside();
        let (epoch, stopped) = result?;
        self.is_served_since(node, epoch)?;
        Ok((epoch, stopped.elapsed()))
    }

    /// The thread goes on.
    pub(super) fn stands_no_more_aside(&self) {
        self.state.lock().hands_over = false;
        self.wake();
    }

    /// Waits until the coordinator on `node`, who has the role since `epoch`, serves this mount.
    pub(super) fn is_served_since(&self, node: &NodeName, epoch: Epoch) -> Result<(), NotDone> {
        let mut state = self.state.lock();
        let until = Instant::now() + SERVED_WITHIN;
        while !matches!(state.way, Way::Attached(now) if now >= epoch) {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return Err(NotDone::Refused(format!(
                    "the role was handed to node {node} in epoch {epoch}, but it has not begun to serve within {} s; look \
                     there",
                    SERVED_WITHIN.as_secs()
                )));
            }
        }
        Ok(())
    }

    /// Does it, for who has seen to it that nobody else does: which epoch it is then, and when the pause began.
    pub(super) fn hand_over(
        &self,
        node: &NodeName,
        next: (SessionId, ClientId),
    ) -> Result<(Epoch, Instant), NotDone> {
        let (coordinator, epoch) = {
            let state = self.state.lock();
            let office = state
                .office
                .as_ref()
                .ok_or_else(|| "this mount does not coordinate the volume".to_owned())?;
            (Arc::clone(&office.coordinator), office.epoch)
        };
        self.ask_to_agree(next.1, epoch)
            .map_err(|error| error.said(|why| format!("node {node} does not take the role: {why}")))?;
        let (slots, stopped) = match self.prepare(&coordinator) {
            Ok(prepared) => prepared,
            Err(error) => {
                coordinator.stay();
                return Err(error.said(|why| format!("the coordinator stays: {why}")));
            }
        };
        // From here on this mount does not coordinate any more, whatever becomes of the other one.
        tracing::debug!(after = ?stopped.elapsed(), "what nobody owns is served no more");
        coordinator.retire();
        drop(coordinator);
        let office = {
            let mut state = self.state.lock();
            state.way = Way::Nobody;
            state.board.coordinator = Weak::new();
            state.office.take()
        };
        let Some(office) = office else { return Err("the mount is being closed".to_owned().into()) };
        let bequest = office.stop(slots);
        self.node.hang_up(bequest);
        self.member.serve_no_coordinator();
        if let Err(error) = office.close(&self.lun) {
            // The next opening copies it.
            tracing::warn!(%error, "the store could not be closed");
        }
        if let Some(claim) = &self.state.lock().claim {
            claim.govern(&self.lun);
        }
        tracing::debug!(after = ?stopped.elapsed(), "the store is closed");
        let client = self.member.client;
        let handover = Handover {
            holdings: vec![(self.role(), epoch)],
            from: client,
            to: next,
            pinned: false,
            escrow: None,
        };
        match self.authority.transfer(&handover) {
            Ok(epoch) => {
                tracing::debug!(after = ?stopped.elapsed(), "the role is handed over");
                // Without waiting for lockd's event.
                let holding = Holding { session: next.0, client: next.1, epoch };
                self.authority.learn(&[self.role()], holding);
                Ok((epoch, stopped))
            }
            Err(error) => {
                // Whoever comes first has it, this mount perhaps.
                if let Err(error) = self.authority.release(&self.role(), client, epoch) {
                    tracing::warn!(%error, "the coordinator's role could not be given back");
                }
                Err(format!("node {node} has not got the role, which is free now: {error}").into())
            }
        }
    }

    fn ask_to_agree(&self, to: ClientId, epoch: Epoch) -> Result<(), NotDone> {
        let request = HolderRequest::TakeRole { role: self.role(), epoch }.encode()?;
        let lockd = self.member.plane.client();
        let answer = lockd.forward_within(Recipient::Client(to), request, AGREES_WITHIN);
        let answer = answer.map_err(|error| error.to_string())?;
        match HolderReply::decode(&answer)? {
            HolderReply::Done { .. } => Ok(()),
            HolderReply::Refused(why) => Err(NotDone::Refused(why)),
            HolderReply::Passing(why) => Err(NotDone::Passing(why)),
            HolderReply::Locks(_) | HolderReply::Document(_) => {
                Err("its answer is of another release".to_owned().into())
            }
        }
    }

    /// Lets no file begin to change hands, and waits for those that do.
    pub(super) fn rest(&self, coordinator: &Coordinator, within: Duration) -> Result<(), NotDone> {
        let since = Instant::now();
        while !coordinator.quieten() {
            if since.elapsed() > within {
                return Err(NotDone::Passing("files are changing hands".to_owned()));
            }
            if self.authority.lease().has_ended() {
                return Err(session_over());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Brings to rest what depends on this mount's being the coordinator's.
    fn prepare(&self, coordinator: &Coordinator) -> Result<(Vec<FileSlots>, Instant), NotDone> {
        self.wait(RESIGNS_WITHIN, |done| self.node.prepare_to_resign(done))?;
        // The store's closing waits for it, too, and then nobody coordinates.
        let limit = self.settings.hold.max(self.settings.quiesce_of(&self.label)) + MARGIN;
        await_drained(self.lun.as_ref(), self.settings.clock.as_ref(), self.settings.rules, limit);
        self.rest(coordinator, FILES_REST_WITHIN)?;
        let stopped = Instant::now();
        Ok((self.wait(RESIGNS_WITHIN, |done| self.node.resign(done))?, stopped))
    }
}

impl Roles for Shared {
    fn give(&self, to: &NodeName) -> Result<(Epoch, Duration), NotDone> {
        if to.as_str() == self.settings.node {
            let epoch = self.state.lock().office.as_ref().map(|office| office.epoch);
            return epoch
                .map(|epoch| (epoch, Duration::ZERO))
                .ok_or_else(|| NotDone::Passing("the role is on its way".to_owned()));
        }
        let next = self.others().into_iter().find(|(node, ..)| node == to);
        let (node, session, client) =
            next.ok_or_else(|| format!("the volume is not mounted on node {to}; mount it there first"))?;
        self.move_to(&node, (session, client))
    }

    fn agree(&self, epoch: Epoch) -> Result<(), NotDone> {
        // Through a peer is better than nobody: the one who asks may be leaving.
        let has_path = self.lun.is_working();
        self.state.lock().agree(epoch, has_path)
    }
}
