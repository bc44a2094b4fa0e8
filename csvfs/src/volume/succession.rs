//! Who coordinates the volume of a cluster, as one of its mounts sees it; and how that becomes another one.
//!
//! One thread follows the coordinator's role in lockd. Where another mount has it, this one asks that one. Where nobody has
//! it, and a path to the LUN works from here, this mount acquires it (of several, the first has it), opens the store and
//! serves the others. A coordinator that is to move, or whose mount ends, hands the role to a mount that has agreed: it
//! stops, closes the store, and has lockd transfer the role; the next one opens the store where it is.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockd::authority::{Authority, AuthorityError, Handover, Holding};
use lockd::client::HolderRequest;
use lockd::failpoint;
use lockd::ids::{ClientId, Epoch, NodeName, ResourceId, SessionId};
use lockd::lease::Lease;
use lockd::local::message::Recipient;
use lockd::machine::{ClientKind, ClientState, Cookie};
use parking_lot::{Condvar, Mutex};
use redirector::lun::Lun;

use super::office::Office;
use super::{Settings, Volume, VolumeError};
use crate::cluster::{Member, Roles};
use crate::coordinator::Coordinator;
use crate::disk::label::Label;
use crate::disk::member::MemberClaim;
use crate::disk::open::OpenError;
use crate::node::Node;
use crate::refusal::Refusal;
use crate::service::Done;
use crate::status::{Opening, Takeover};

/// Between two looks at the role where nobody tells of a change.
const LOOK: Duration = Duration::from_millis(250);
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_millis(300);
/// After a store could not be opened here, for so long others may try.
const OTHERS_FIRST: Duration = Duration::from_secs(3);
/// How long a mount that was asked to take the role has to agree, and how long it then waits for it.
const AGREES_WITHIN: Duration = Duration::from_secs(3);
const AGREED_FOR: Duration = Duration::from_secs(8);
/// How long files that are changing hands are waited for: by a move, and by a mount that ends, which nobody asks again.
const FILES_REST_WITHIN: Duration = Duration::from_secs(2);
const FILES_REST_AT_END_WITHIN: Duration = Duration::from_secs(30);
/// How long the coordinator's node may take to commit what it serves for nobody.
const RESIGNS_WITHIN: Duration = Duration::from_secs(60);
/// How long the next coordinator is waited for, to tell how long the pause was.
const SERVED_WITHIN: Duration = Duration::from_secs(30);

/// What is said of it in the status.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    /// The node that coordinates.
    pub(super) node: String,
    /// The coordinator, if it is here.
    pub(super) coordinator: Weak<Coordinator>,
    /// How this mount came to the coordinator that it asks.
    pub(super) opening: Opening,
    /// How this mount has taken the role over from another one.
    pub(super) takeover: Option<Takeover>,
}

/// Where this mount stands with a coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// It asks none.
    Nobody,
    /// It is attaching to the one of this epoch.
    Attaching(Epoch),
    /// The one of this epoch knows it.
    Attached(Epoch),
}

struct State {
    office: Option<Office>,
    claim: Option<MemberClaim>,
    way: Way,
    board: Board,
    /// A mount that joins tells why it cannot; one that serves tries again.
    is_joining: bool,
    failure: Option<VolumeError>,
    /// It takes no role any more: it is being unmounted.
    leaves: bool,
    /// It has agreed to take the role from the one who has it, until then.
    agreed: Option<Instant>,
    /// The role is being handed over: the thread stands aside.
    hands_over: bool,
    not_before: Option<Instant>,
    /// The epoch in which this mount last had the role: never again, whatever a late answer says.
    had: Epoch,
    wake: bool,
    ends: bool,
}

struct Shared {
    member: Arc<Member>,
    authority: Arc<dyn Authority>,
    node: Arc<Node>,
    lun: Arc<dyn Lun>,
    label: Label,
    settings: Settings,
    /// The lease of the claim.
    beat: Arc<Lease>,
    state: Mutex<State>,
    changed: Condvar,
    me: Weak<Shared>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("volume", &self.label.uuid).finish_non_exhaustive()
    }
}

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
        let state = State {
            office: None,
            claim: None,
            way: Way::Nobody,
            board: Board::default(),
            is_joining: true,
            failure: None,
            leaves: false,
            agreed: None,
            hands_over: false,
            not_before: None,
            had: Epoch::NOBODY,
            wake: false,
            ends: false,
        };
        let shared = Arc::new_cyclic(|me| Shared {
            member: Arc::clone(member),
            authority: Arc::clone(&member.plane) as _,
            node: Arc::clone(node),
            lun: Arc::clone(lun),
            label,
            settings,
            beat,
            state: Mutex::new(state),
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
        let shared = &self.shared;
        {
            let mut state = shared.state.lock();
            state.leaves = true;
            // What was agreed is kept: the one who has the role has closed the store for that, perhaps.
            while let Some(until) = state.agreed
                && !shared.changed.wait_until(&mut state, until).timed_out()
            {}
            state.agreed = None;
        }
        // What an ended session held is not its to hand on: it is fenced, and then free.
        if shared.state.lock().office.is_none() || shared.authority.lease().has_ended() {
            return;
        }
        let others = shared.others();
        if !others.is_empty() {
            shared.let_files_rest();
        }
        for (node, session, client) in others {
            match shared.hand_over(&node, (session, client)) {
                Ok(_) => return,
                Err(why) => tracing::warn!(%node, why, "the coordinator's role is not handed to this node"),
            }
        }
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

impl Shared {
    /// Waits for what `start` begins, as long as this mount may still hand the role on.
    fn wait<T: Send + 'static>(&self, within: Duration, start: impl FnOnce(Done<T>)) -> Result<T, String> {
        let (sender, receiver) = sync_channel(1);
        start(Box::new(move |result: Result<T, Refusal>| drop(sender.send(result))));
        let since = Instant::now();
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(result) => return result.map_err(|refusal| refusal.to_string()),
                Err(RecvTimeoutError::Disconnected) => return Err("the mount's node has ended".to_owned()),
                Err(RecvTimeoutError::Timeout) if self.authority.lease().has_ended() => {
                    return Err("the session of this node has ended".to_owned());
                }
                Err(RecvTimeoutError::Timeout) if since.elapsed() >= within => {
                    return Err(format!("not done within {} s", within.as_secs()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn role(&self) -> ResourceId {
        ResourceId::Coordinator(self.label.uuid)
    }

    fn wake(&self) {
        self.state.lock().wake = true;
        self.changed.notify_all();
    }

    fn run(&self) {
        let mut warned = false;
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
            match self.authority.holder(&self.role()) {
                Some(holding) if holding.client == self.member.client => self.serve(holding.epoch, None),
                Some(holding) => self.follow(&holding, &mut warned),
                None => self.take_role(),
            }
        }
    }

    /// A mount that is joining tells why it cannot.
    fn fail(&self, failure: VolumeError) {
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
    fn attach(
        &self,
        carrier: Arc<dyn lockd::network::Carrier>,
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
            if !may || !self.lun.is_working() || !self.authority.lease().holds(&*self.settings.clock) {
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

    /// This mount has the role: it opens the store and serves, unless it does so already.
    fn serve(&self, epoch: Epoch, acquired: Option<Instant>) {
        let (is_joining, before) = {
            let mut state = self.state.lock();
            if state.office.is_some() {
                return;
            }
            if epoch <= state.had {
                // Known late, or it could not be given back.
                drop(state);
                let _ = self.authority.release(&self.role(), self.member.client, epoch);
                return;
            }
            (state.not_before, state.had) = (None, epoch);
            (state.is_joining, state.board.node.clone())
        };
        let (since, is_handed_over) = (acquired.unwrap_or_else(Instant::now), acquired.is_none());
        let (role, client) = (self.role(), self.member.client);
        if is_handed_over {
            self.authority.arrived(std::slice::from_ref(&role), client, epoch);
        }
        if !is_joining {
            failpoint::reached("takeover.acquired");
        }
        let office = match self.open(epoch, is_handed_over, is_joining) {
            Ok(office) => office,
            Err(failure) => {
                if let Err(error) = self.authority.release(&role, client, epoch) {
                    tracing::warn!(%error, "the coordinator's role could not be given back");
                }
                {
                    let mut state = self.state.lock();
                    state.not_before = Some(Instant::now() + OTHERS_FIRST);
                    state.agreed = None;
                }
                return self.fail(failure);
            }
        };
        let carrier = self.member.serve_coordinator(&office.coordinator);
        {
            let mut state = self.state.lock();
            state.board.node = self.settings.node.clone();
            state.board.coordinator = Arc::downgrade(&office.coordinator);
            state.board.opening = office.opening.clone();
            state.office = Some(office);
            state.agreed = None;
        }
        self.changed.notify_all();
        self.attach(carrier, epoch, move |shared, state| {
            if is_joining {
                return;
            }
            let how = state.board.opening.how.clone();
            let took = since.elapsed();
            tracing::info!(from = before, how, ?took, "this mount coordinates the volume");
            state.board.takeover = Some(Takeover {
                at_ns: shared.settings.clock.wall().0,
                took_s: took.as_secs_f64(),
                from: before,
                how,
                planned: is_handed_over,
            });
        });
    }

    fn open(&self, epoch: Epoch, is_handed_over: bool, is_joining: bool) -> Result<Office, VolumeError> {
        // A store that was closed for this mount a moment ago is checked in the background.
        let since = Instant::now();
        let check_max = if is_handed_over { 0 } else { self.settings.check_max };
        let living_nodes = self.member.plane.living_nodes().iter().map(NodeName::to_string).collect();
        let settings = Settings { check_max, living_nodes, ..self.settings.clone() };
        let ground = Volume::take(&self.lun, &settings)?;
        if let Some(claim) = &self.state.lock().claim {
            claim.govern(&self.lun);
        }
        tracing::debug!(took = ?since.elapsed(), "the store is open");
        if !is_joining {
            failpoint::reached("takeover.opened");
        }
        let peers = Arc::clone(&self.member.ways) as _;
        let office = Office::open(ground, &self.lun, &self.authority, peers, epoch, &settings)?;
        tracing::debug!(took = ?since.elapsed(), "the coordinator has begun");
        Ok(office)
    }

    /// The claim of a mount that writes file data, whoever has the store open.
    fn claim(&self) -> Result<(), VolumeError> {
        let options = self.settings.member_options();
        let mut claim = MemberClaim::claim(&self.lun, &options, &self.beat).map_err(OpenError::from)?;
        claim.start().map_err(VolumeError::Thread)?;
        self.state.lock().claim = Some(claim);
        Ok(())
    }

    /// The other mounts that live.
    fn others(&self) -> Vec<(NodeName, SessionId, ClientId)> {
        let kind = ClientKind::Csvfs { volume: self.label.uuid };
        let clients = self.member.plane.client().clients_of(kind).unwrap_or_default();
        let live = clients.into_iter().filter(|info| info.state == ClientState::Live);
        let others = live.filter(|info| info.client != self.member.client);
        others.map(|info| (info.node, info.session, info.client)).collect()
    }

    /// Hands the role to the mount on `node`, which agrees first. How long nobody coordinated, as far as this node saw.
    fn hand_over(&self, node: &NodeName, next: (SessionId, ClientId)) -> Result<(Epoch, Duration), String> {
        {
            let mut state = self.state.lock();
            if state.hands_over {
                return Err("the coordinator's role is being handed over already".to_owned());
            }
            if state.office.is_none() {
                return Err("this mount does not coordinate the volume".to_owned());
            }
            state.hands_over = true;
        }
        let result = self.hand_over_now(node, next);
        self.state.lock().hands_over = false;
        self.wake();
        let (epoch, stopped) = result?;
        let mut state = self.state.lock();
        let until = Instant::now() + SERVED_WITHIN;
        while !matches!(state.way, Way::Attached(now) if now >= epoch) {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return Err(format!(
                    "the role was handed to node {node} in epoch {epoch}, but it has not begun to serve within {} s; look \
                     there",
                    SERVED_WITHIN.as_secs()
                ));
            }
        }
        Ok((epoch, stopped.elapsed()))
    }

    fn hand_over_now(
        &self,
        node: &NodeName,
        next: (SessionId, ClientId),
    ) -> Result<(Epoch, Instant), String> {
        let coordinator = {
            let state = self.state.lock();
            let office = state.office.as_ref().ok_or("this mount does not coordinate the volume")?;
            Arc::clone(&office.coordinator)
        };
        self.ask_to_agree(next.1).map_err(|why| format!("node {node} does not take the role: {why}"))?;
        let prepared = self.prepare(&coordinator);
        let slots = match prepared {
            Ok((slots, stopped)) => (slots, stopped),
            Err(why) => {
                coordinator.stay();
                return Err(format!("the coordinator stays: {why}"));
            }
        };
        let (slots, stopped) = slots;
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
        let Some(office) = office else { return Err("the mount is being closed".to_owned()) };
        let epoch = office.epoch;
        let kept = office.stop(slots);
        self.node.hang_up(kept);
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
                Err(format!("node {node} has not got the role, which is free now: {error}"))
            }
        }
    }

    fn ask_to_agree(&self, to: ClientId) -> Result<(), String> {
        let lockd = self.member.plane.client();
        let (cookie, from, resources) = (lockd.cookie(), self.member.client, vec![self.role()]);
        let request = HolderRequest::Take { cookie, from, resources, with_locks: false }.encode()?;
        let answer = lockd.forward_within(Recipient::Client(to), request, AGREES_WITHIN);
        let answer = answer.map_err(|error| error.to_string())?;
        match lockd::client::HolderReply::decode(&answer)? {
            lockd::client::HolderReply::Done { .. } => Ok(()),
            lockd::client::HolderReply::Refused(why) => Err(why),
            _ => Err("its answer is of another release".to_owned()),
        }
    }

    /// Lets no file begin to change hands, and waits for those that do.
    fn rest(&self, coordinator: &Coordinator, within: Duration) -> Result<(), String> {
        let since = Instant::now();
        while !coordinator.quieten() {
            if since.elapsed() > within {
                return Err("files are changing hands; try again".to_owned());
            }
            if self.authority.lease().has_ended() {
                return Err("the session of this node has ended".to_owned());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits for files that are changing hands before this mount ends: until the lockds have a quorum again, perhaps. There is
    /// no other way for what is handed on with the role. A move that is under way has its own wait, and ends first.
    fn let_files_rest(&self) {
        let coordinator = {
            let mut state = self.state.lock();
            while state.hands_over {
                self.changed.wait(&mut state);
            }
            let Some(office) = &state.office else { return };
            let coordinator = Arc::clone(&office.coordinator);
            state.hands_over = true;
            coordinator
        };
        if let Err(why) = self.rest(&coordinator, FILES_REST_AT_END_WITHIN) {
            tracing::warn!(why, "the coordinator's mount ends");
        }
        coordinator.stay();
        self.state.lock().hands_over = false;
        self.wake();
    }

    /// Brings to rest what depends on this mount's being the coordinator's.
    fn prepare(&self, coordinator: &Coordinator) -> Result<(Vec<crate::proto::FileSlots>, Instant), String> {
        self.wait(RESIGNS_WITHIN, |done| self.node.prepare_to_resign(done))?;
        self.rest(coordinator, FILES_REST_WITHIN)?;
        let stopped = Instant::now();
        Ok((self.wait(RESIGNS_WITHIN, |done| self.node.resign(done))?, stopped))
    }
}

impl Roles for Shared {
    fn give(&self, to: &NodeName) -> Result<(Epoch, Duration), String> {
        if to.as_str() == self.settings.node {
            let epoch = self.state.lock().office.as_ref().map(|office| office.epoch);
            return epoch.map(|epoch| (epoch, Duration::ZERO)).ok_or_else(|| "it is on its way".to_owned());
        }
        let next = self.others().into_iter().find(|(node, ..)| node == to);
        let (node, session, client) =
            next.ok_or_else(|| format!("the volume is not mounted on node {to}; mount it there first"))?;
        self.hand_over(&node, (session, client))
    }

    fn agree(&self, _cookie: Cookie) -> Result<(), String> {
        let mut state = self.state.lock();
        if state.leaves || state.ends || state.is_joining {
            return Err("the mount is beginning or ending".to_owned());
        }
        if !matches!(state.way, Way::Attached(_)) || state.office.is_some() {
            return Err("it does not follow the coordinator at the moment; try again".to_owned());
        }
        if !self.lun.is_working() {
            return Err("no path to the LUN works there".to_owned());
        }
        state.agreed = Some(Instant::now() + AGREED_FOR);
        Ok(())
    }
}
