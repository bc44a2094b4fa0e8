//! What `lockctl` asks of a mount: to own files, to give them back, to hand them over.

use std::collections::BTreeSet;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lockd::client::{HolderReply, HolderRequest};
use lockd::ids::{ClientId, NodeName, ResourceId, VolumeId};
use lockd::local::message::Recipient;
use parking_lot::Mutex;

use super::plane::Plane;
use crate::node::Node;
use crate::refusal::Refusal;
use crate::service::Done;
use crate::types::Ino;
use crate::volume::Reporter;

/// How long one file may take to come here: longer than its server may need to drain and to commit.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves them.
#[derive(Debug)]
pub struct Holder {
    plane: Weak<Plane>,
    volume: VolumeId,
    node: Mutex<Weak<Node>>,
    /// Files that are owned because somebody has asked for it.
    pinned: Mutex<BTreeSet<Ino>>,
    /// Tells how the mount is.
    reporter: Mutex<Weak<Reporter>>,
}

fn wait<T: Send + 'static>(start: impl FnOnce(Done<T>)) -> Result<T, Refusal> {
    let (sender, receiver) = sync_channel(1);
    start(Box::new(move |result| drop(sender.send(result))));
    receiver
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| Err(Refusal::Busy(format!("not done within {} s", PATIENCE.as_secs()))))
}

impl Holder {
    pub(super) fn new(plane: Weak<Plane>, volume: VolumeId) -> Self {
        Self { plane, volume, node: Mutex::default(), pinned: Mutex::default(), reporter: Mutex::default() }
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
        for ino in pinned {
            if let Err(error) = self.release(ino) {
                tracing::warn!(error, "it goes back when the session ends");
            }
        }
    }

    pub(super) fn serve(
        &self,
        _client: ClientId,
        _from: &NodeName,
        request: &[u8],
    ) -> Result<Vec<u8>, String> {
        let reply = match HolderRequest::decode(request)? {
            HolderRequest::Acquire(resources) => self.each(&resources, |ino| self.acquire(ino)),
            HolderRequest::Release(resources) => self.each(&resources, |ino| self.release(ino)),
            HolderRequest::Transfer { resources, to } => self.transfer(resources, &to),
            HolderRequest::Status => self.status(),
        };
        let reply = reply.unwrap_or_else(HolderReply::Refused);
        reply.encode()
    }

    fn inos(&self, resources: &[ResourceId]) -> Result<Vec<Ino>, String> {
        let ino = |resource: &ResourceId| match resource {
            ResourceId::File(volume, ino) if *volume == self.volume => Ok(Ino(*ino)),
            ResourceId::Coordinator(_) => {
                Err("the coordinator's role is not handed over while the volume is mounted: \
                                               unmount everywhere, and mount first where it should be"
                    .to_owned())
            }
            other => Err(format!("{other} is not a file of the volume {}", self.volume)),
        };
        resources.iter().map(ino).collect()
    }

    fn each(
        &self,
        resources: &[ResourceId],
        act: impl Fn(Ino) -> Result<(), String>,
    ) -> Result<HolderReply, String> {
        let begun = Instant::now();
        self.inos(resources)?.into_iter().try_for_each(act)?;
        let pause_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(HolderReply::Done { epoch: None, pause_ns })
    }

    fn node(&self) -> Result<Arc<Node>, String> {
        self.node.lock().upgrade().ok_or_else(|| "the mount is not ready".to_owned())
    }

    fn acquire(&self, ino: Ino) -> Result<(), String> {
        let node = self.node()?;
        if node.is_home() {
            // The coordinator's node serves what nobody owns: the file becomes nobody's.
            return self.release(ino);
        }
        wait(|done| node.pin(ino, done))
            .map_err(|refusal| format!("{ino} cannot be owned here: {refusal}"))?;
        self.pinned.lock().insert(ino);
        Ok(())
    }

    fn release(&self, ino: Ino) -> Result<(), String> {
        let node = self.node()?;
        wait(|done| node.unpin(ino, done))
            .map_err(|refusal| format!("{ino} is not given back: {refusal}"))?;
        self.pinned.lock().remove(&ino);
        Ok(())
    }

    /// The mount on `to` makes itself the owner, for which the coordinator has this one stop, drain and commit. A pin
    /// yields to nobody: it ends before, and comes back if the other mount does not take the files.
    fn transfer(&self, resources: Vec<ResourceId>, to: &NodeName) -> Result<HolderReply, String> {
        let inos = self.inos(&resources)?;
        let first = resources.first().ok_or_else(|| "no files are named".to_owned())?;
        let plane = self.plane.upgrade().ok_or_else(|| "the mount is being closed".to_owned())?;
        let pinned: Vec<Ino> = {
            let pinned = self.pinned.lock();
            inos.iter().copied().filter(|ino| pinned.contains(ino)).collect()
        };
        let begun = Instant::now();
        let back = |cause: String| {
            for ino in &pinned {
                if let Err(error) = self.acquire(*ino) {
                    tracing::error!(error, "a file that was to be handed over is not owned here any more");
                }
            }
            cause
        };
        pinned.iter().try_for_each(|ino| self.release(*ino)).map_err(back)?;
        let recipient = Recipient::Node { node: to.clone(), resource: first.clone() };
        let request = HolderRequest::Acquire(resources).encode()?;
        let answer = plane.client().forward(recipient, request).map_err(|error| back(error.to_string()))?;
        match HolderReply::decode(&answer).map_err(back)? {
            HolderReply::Done { epoch, .. } => {
                let pause_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
                Ok(HolderReply::Done { epoch, pause_ns })
            }
            HolderReply::Refused(why) => Ok(HolderReply::Refused(back(why))),
            HolderReply::Document(_) => Err(back(format!("the mount on {to} gave an odd answer"))),
        }
    }
}
