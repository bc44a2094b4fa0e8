//! What `lockctl` asks of a mount: to own files, to give them back, to hand them over.

use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use lockd::client::{ClientError, HolderReply, HolderRequest, check_epoch};
use lockd::failpoint;
use lockd::ids::{ClientId, Epoch, NodeName, ResourceId, VolumeId};
use lockd::local::message::Recipient;
use lockd::machine::{Cookie, MOVES_MAX, Refusal as LockdRefusal};
use parking_lot::Mutex;

use super::not_done::NotDone;
use super::plane::Plane;
use crate::node::{Given, Node, Offer};
use crate::types::Ino;
use crate::volume::Reporter;

/// How long files may take to come here: longer than their server may need to drain and to commit.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an offer stands. Once the set is being handed over, its outcome is waited for.
const OFFER_STANDS: Duration = Duration::from_secs(8);
/// Sets whose locks in escrow are remembered.
const COOKIES_MAX: usize = 256;

/// Who hands the coordinator's role over, and takes it.
pub trait Roles: Send + Sync + std::fmt::Debug {
    /// Hands it to the mount on a node: in which epoch that one has it, and how long nobody coordinated.
    ///
    /// # Errors
    /// Why it was not, and who has it now.
    fn give(&self, to: &NodeName) -> Result<(Epoch, Duration), NotDone>;

    /// Agrees to take it from the one who has it in that epoch.
    ///
    /// # Errors
    /// Why not.
    fn agree(&self, epoch: Epoch) -> Result<(), NotDone>;
}

/// Serves them.
#[derive(Debug)]
pub struct Holder {
    plane: Weak<Plane>,
    volume: VolumeId,
    node: Mutex<Weak<Node>>,
    /// Files that are owned because somebody has asked for it.
    pinned: Mutex<BTreeSet<Ino>>,
    /// Sets that came here with locks (L8).
    with_locks: Mutex<VecDeque<(Cookie, Vec<ResourceId>)>>,
    /// Tells how the mount is.
    reporter: Mutex<Weak<Reporter>>,
    roles: OnceLock<Weak<dyn Roles>>,
}

/// What is done with locks in escrow.
#[derive(Clone, Copy)]
enum Escrow {
    Adopt(Option<u64>),
    Drop,
}

fn wait<T: Send + 'static, E: Into<NotDone> + Send + 'static>(
    start: impl FnOnce(Box<dyn FnOnce(Result<T, E>) + Send>),
) -> Result<T, NotDone> {
    let (sender, receiver) = sync_channel(1);
    start(Box::new(move |result| drop(sender.send(result))));
    match receiver.recv_timeout(PATIENCE) {
        Ok(result) => result.map_err(Into::into),
        Err(_) => {
            Err(NotDone::Refused(format!("not done within {} s; look what became of it", PATIENCE.as_secs())))
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What is said where the set has gone to `to`, which cannot serve all of it.
fn not_all_taken_up(to: &NodeName, given: &Given, why: &str, cookie: Option<Cookie>) -> String {
    let locks = cookie
        .map_or_else(String::new, |cookie| format!("; locks went along: lockctl adopt {cookie} --node {to}"));
    format!(
        "handed over to node {to} in epoch {}, but not all of it was taken up there ({why}); what was not is served by the \
         coordinator's node, `lockctl show` tells who has which, and `lockctl acquire` on {to} tries again{locks}",
        given.epoch
    )
}

impl Holder {
    pub(super) fn new(plane: Weak<Plane>, volume: VolumeId) -> Self {
        let (node, reporter) = (Mutex::default(), Mutex::default());
        let (pinned, with_locks, roles) = (Mutex::default(), Mutex::default(), OnceLock::new());
        Self { plane, volume, node, pinned, with_locks, reporter, roles }
    }

    pub(super) fn hands_role_over_by(&self, roles: Weak<dyn Roles>) {
        // It is told once.
        let _ = self.roles.set(roles);
    }

    /// Who is asked when these resources are the coordinator's role.
    fn role(&self, resources: &[ResourceId]) -> Option<Result<Arc<dyn Roles>, String>> {
        let is_role = resources == [ResourceId::Coordinator(self.volume)];
        let roles = || self.roles.get().and_then(Weak::upgrade);
        is_role.then(|| roles().ok_or_else(|| "the mount is beginning or ending".to_owned()))
    }

    pub(super) fn is_served_by(&self, node: &Arc<Node>) {
        *self.node.lock() = Arc::downgrade(node);
    }

    pub(super) fn is_told_by(&self, reporter: &Arc<Reporter>) {
        *self.reporter.lock() = Arc::downgrade(reporter);
    }

    fn status(&self) -> Result<HolderReply, String> {
        let reporter = self.reporter.lock().upgrade().ok_or_else(|| "the mount is not ready".to_owned())?;
        let text = serde_json::to_string(&reporter.status()).map_err(|error| error.to_string())?;
        Ok(HolderReply::Document(text))
    }

    /// The mount ends: what was acquired by hand goes back.
    pub(super) fn end(&self) {
        let pinned = std::mem::take(&mut *self.pinned.lock());
        if !pinned.is_empty()
            && let Err(error) = self.release(pinned)
        {
            tracing::warn!(%error, "it goes back when the session ends");
        }
    }

    pub(super) fn serve(
        &self,
        _client: ClientId,
        _from: &NodeName,
        request: &[u8],
    ) -> Result<Vec<u8>, String> {
        let reply = match HolderRequest::decode(request)? {
            HolderRequest::Acquire(resources) => {
                self.inos(&resources).map_err(Into::into).and_then(|inos| self.acquire(inos, None))
            }
            HolderRequest::Release(resources) => {
                self.inos(&resources).map_err(Into::into).and_then(|inos| self.release(inos))
            }
            HolderRequest::Transfer { resources, to, with_locks } => {
                self.transfer(&resources, &to, with_locks, None)
            }
            HolderRequest::TransferIn { epoch, resources, to, with_locks } => {
                self.transfer(&resources, &to, with_locks, Some(epoch))
            }
            HolderRequest::Take { cookie, resources, with_locks, .. } => {
                self.take(cookie, resources, with_locks)
            }
            HolderRequest::TakeRole { role, epoch } => self.agree(&role, epoch),
            HolderRequest::Adopt { cookie, owner } => {
                self.escrow(cookie, Escrow::Adopt(owner)).map_err(Into::into)
            }
            HolderRequest::DropLocks { cookie } => self.escrow(cookie, Escrow::Drop).map_err(Into::into),
            HolderRequest::Status => self.status().map_err(Into::into),
        };
        reply.unwrap_or_else(HolderReply::from).encode()
    }

    fn inos(&self, resources: &[ResourceId]) -> Result<BTreeSet<Ino>, String> {
        let ino = |resource: &ResourceId| match resource {
            ResourceId::File(volume, ino) if *volume == self.volume => Ok(Ino(*ino)),
            ResourceId::Coordinator(_) => Err(
                "the coordinator's role is moved by `lockctl coordinator VOLUME --to NODE`, apart from files"
                    .to_owned(),
            ),
            other => Err(format!("{other} is not a file of the volume {}", self.volume)),
        };
        resources.iter().map(ino).collect()
    }

    fn node(&self) -> Result<Arc<Node>, String> {
        self.node.lock().upgrade().ok_or_else(|| "the mount is not ready".to_owned())
    }

    fn plane(&self) -> Result<Arc<Plane>, String> {
        self.plane.upgrade().ok_or_else(|| "the mount is being closed".to_owned())
    }

    fn acquire(&self, inos: BTreeSet<Ino>, offer: Option<Cookie>) -> Result<HolderReply, NotDone> {
        let node = self.node()?;
        let files: Vec<Ino> = inos.iter().copied().collect();
        let pinned = wait(|done| node.pin(files, offer, done));
        // Of an offered set, also what has come without the others.
        self.pinned.lock().extend(inos.iter().copied().filter(|ino| node.pins(*ino)));
        let epoch =
            pinned.map_err(|error| error.said(|why| format!("the files cannot be owned here: {why}")))?;
        Ok(HolderReply::Done { epoch, pause_ns: 0, cookie: None })
    }

    fn release(&self, inos: BTreeSet<Ino>) -> Result<HolderReply, NotDone> {
        let node = self.node()?;
        let files: Vec<Ino> = inos.iter().copied().collect();
        wait(|done| node.unpin(files, done))
            .map_err(|error| error.said(|why| format!("not given back: {why}")))?;
        self.pinned.lock().retain(|ino| !inos.contains(ino));
        Ok(HolderReply::Done { epoch: None, pause_ns: 0, cookie: None })
    }

    /// Offers the set to the mount on `to`, which takes it up through the coordinator. What became of it this mount knows
    /// for certain, whatever it hears of the other one: it is itself the one that stops, commits and has it transferred.
    fn transfer(
        &self,
        resources: &[ResourceId],
        to: &NodeName,
        with_locks: bool,
        epoch: Option<Epoch>,
    ) -> Result<HolderReply, NotDone> {
        if let Some(roles) = self.role(resources) {
            let (epoch, pause) = roles?.give(to)?;
            return Ok(HolderReply::Done { epoch: Some(epoch), pause_ns: nanoseconds(pause), cookie: None });
        }
        let inos = self.inos(resources)?;
        let Some(first) = resources.first() else { return Err("no files are named".to_owned().into()) };
        if inos.len() > MOVES_MAX {
            let why = format!("{} files are too many for one set; there can be {MOVES_MAX}", inos.len());
            return Err(why.into());
        }
        let (node, plane) = (self.node()?, self.plane()?);
        // Looked at again when nothing can change any more.
        inos.iter().try_for_each(|ino| check_epoch(ino, node.owned_in(*ino), epoch))?;
        if to == plane.client().node() {
            // They are here; from now on because somebody wants it.
            return self.acquire(inos, None);
        }
        // A node without a session is told of by lockd, which is asked all the same.
        let session = plane.session_of(to).unwrap_or_default();
        if !node.is_home() {
            // What nobody owns comes here first, so that one party has all of it to give.
            let missing: Vec<Ino> = inos.iter().copied().filter(|ino| !node.owns(*ino)).collect();
            if !missing.is_empty() {
                wait(|done| node.acquire(missing, done)).map_err(|error| {
                    error.said(|why| format!("the set cannot be brought together here: {why}"))
                })?;
            }
        }
        let (cookie, from) = (plane.client().cookie(), plane.client().client());
        let request =
            HolderRequest::Take { cookie, from, resources: resources.to_vec(), with_locks }.encode()?;
        node.offer(Offer { cookie, files: inos.clone(), to: session, with_locks, epoch });
        failpoint::reached("transfer.offered");
        let recipient = Recipient::Node { node: to.clone(), resource: first.clone() };
        let answer = plane.client().forward_within(recipient, request, OFFER_STANDS);
        let answer =
            answer.map_err(|error| error.to_string()).and_then(|answer| HolderReply::decode(&answer));
        let given = wait(|done| node.close_offer(cookie, done))
            .map_err(|error| error.said(|why| format!("nothing was handed over: {why}")))?;
        let Some(given) = given else {
            let why = match answer {
                Ok(HolderReply::Passing(why)) => NotDone::Passing(why),
                Err(why) | Ok(HolderReply::Refused(why)) => NotDone::Refused(why),
                Ok(_) => NotDone::Refused("it did not take the files".to_owned()),
            };
            return Err(why.said(|why| format!("nothing was handed over: node {to}: {why}")));
        };
        self.pinned.lock().retain(|ino| !inos.contains(ino));
        let pause = match answer {
            Ok(HolderReply::Refused(why) | HolderReply::Passing(why)) => {
                return Err(not_all_taken_up(to, &given, &why, with_locks.then_some(cookie)).into());
            }
            Ok(_) => node.now_boot().since(given.stopped),
            Err(why) => {
                tracing::warn!(%to, why, "files were handed over, and their new owner has trouble with them");
                given.took
            }
        };
        let cookie = with_locks.then_some(cookie);
        Ok(HolderReply::Done { epoch: Some(given.epoch), pause_ns: nanoseconds(pause), cookie })
    }

    fn take(
        &self,
        cookie: Cookie,
        resources: Vec<ResourceId>,
        with_locks: bool,
    ) -> Result<HolderReply, NotDone> {
        let inos = self.inos(&resources)?;
        let reply = self.acquire(inos.clone(), Some(cookie));
        let pinned = self.pinned.lock().intersection(&inos).count();
        // The locks have come even where a file has not.
        if with_locks && pinned > 0 {
            let mut sets = self.with_locks.lock();
            sets.push_back((cookie, resources));
            if sets.len() > COOKIES_MAX {
                sets.pop_front();
            }
        }
        reply
    }

    fn agree(&self, role: &ResourceId, epoch: Epoch) -> Result<HolderReply, NotDone> {
        let roles = self.role(std::slice::from_ref(role));
        roles.ok_or_else(|| format!("{role} is not the role of a coordinator here"))??.agree(epoch)?;
        Ok(HolderReply::Done { epoch: None, pause_ns: 0, cookie: None })
    }

    /// The locks of all files that came with a cookie.
    fn escrow(&self, cookie: Cookie, what: Escrow) -> Result<HolderReply, String> {
        let plane = self.plane()?;
        let resources = {
            let mut sets = self.with_locks.lock();
            let at = sets.iter().position(|(known, _)| *known == cookie);
            let set = at.and_then(|at| sets.remove(at));
            set.map(|(_, resources)| resources).ok_or_else(|| {
                format!("no locks are kept for this node under {cookie}; they were adopted or dropped, or never came")
            })?
        };
        let (client, me) = (plane.client(), plane.client().client());
        let mut locks = 0;
        for resource in &resources {
            let done = match what {
                Escrow::Adopt(owner) => client.adopt(me, cookie, resource, owner),
                Escrow::Drop => client.drop_escrow(me, cookie, resource),
            };
            match done {
                Ok(more) => locks += more,
                // No program had locked it.
                Err(ClientError::Refused(why)) if matches!(*why, LockdRefusal::NoEscrow { .. }) => {}
                Err(error) => {
                    self.with_locks.lock().push_back((cookie, resources));
                    return Err(error.to_string());
                }
            }
        }
        Ok(HolderReply::Locks(locks))
    }
}
