//! What `lockctl` asks of a mount: to own files, to give them back, to hand them over.

use std::collections::HashMap;
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
use crate::service::{Done, FileService, HandleId, OpenMode};
use crate::types::Ino;

/// How long one file may take to come here: longer than its server may need to drain and to commit.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves them.
#[derive(Debug)]
pub struct Holder {
    plane: Weak<Plane>,
    volume: VolumeId,
    node: Mutex<Weak<Node>>,
    /// Files that are owned because somebody has asked for it, each held open.
    kept: Mutex<HashMap<Ino, HandleId>>,
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
        Self { plane, volume, node: Mutex::default(), kept: Mutex::default() }
    }

    pub(super) fn is_served_by(&self, node: &Arc<Node>) {
        *self.node.lock() = Arc::downgrade(node);
    }

    /// What was kept open is closed: the mount ends.
    pub(super) fn end(&self) {
        let kept = std::mem::take(&mut *self.kept.lock());
        if let Ok(node) = self.node() {
            kept.into_values().for_each(|handle| node.release(handle));
        }
    }

    pub(super) fn serve(&self, _client: ClientId, _from: &NodeName, request: &[u8]) -> Result<Vec<u8>, String> {
        let reply = match HolderRequest::decode(request)? {
            HolderRequest::Acquire(resources) => self.each(&resources, |ino| self.acquire(ino)),
            HolderRequest::Release(resources) => self.each(&resources, |ino| self.release(ino)),
            HolderRequest::Transfer { resources, to } => self.transfer(resources, &to),
        };
        let reply = reply.unwrap_or_else(HolderReply::Refused);
        reply.encode()
    }

    fn inos(&self, resources: &[ResourceId]) -> Result<Vec<Ino>, String> {
        let ino = |resource: &ResourceId| match resource {
            ResourceId::File(volume, ino) if *volume == self.volume => Ok(Ino(*ino)),
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
        let failed = |refusal: Refusal| format!("{ino} cannot be owned here: {refusal}");
        if !self.kept.lock().contains_key(&ino) {
            let mode = OpenMode { read: true, ..OpenMode::default() };
            let opened = wait(|done| node.open(ino, mode, done)).map_err(failed)?;
            if let Some(earlier) = self.kept.lock().insert(ino, opened.handle) {
                node.release(earlier);
            }
        }
        wait(|done| node.acquire(ino, done)).map_err(|refusal| {
            if let Some(handle) = self.kept.lock().remove(&ino) {
                node.release(handle);
            }
            failed(refusal)
        })
    }

    /// The file goes back when nobody here has it open.
    fn release(&self, ino: Ino) -> Result<(), String> {
        let node = self.node()?;
        match self.kept.lock().remove(&ino) {
            Some(handle) => {
                node.release(handle);
                Ok(())
            }
            None => Err(format!("{ino} was not acquired here by hand; it goes back when it is closed")),
        }
    }

    /// The mount on `to` makes itself the owner, for which the coordinator has this one stop, drain and commit.
    fn transfer(&self, resources: Vec<ResourceId>, to: &NodeName) -> Result<HolderReply, String> {
        let inos = self.inos(&resources)?;
        let first = resources.first().ok_or_else(|| "no files are named".to_owned())?;
        let plane = self.plane.upgrade().ok_or_else(|| "the mount is being closed".to_owned())?;
        let recipient = Recipient::Node { node: to.clone(), resource: first.clone() };
        let request = HolderRequest::Acquire(resources).encode()?;
        let answer = plane.client().forward(recipient, request).map_err(|error| error.to_string())?;
        let reply = HolderReply::decode(&answer)?;
        if matches!(reply, HolderReply::Done { .. }) {
            let node = self.node()?;
            let mut kept = self.kept.lock();
            inos.iter().filter_map(|ino| kept.remove(ino)).for_each(|handle| node.release(handle));
        }
        Ok(reply)
    }
}
