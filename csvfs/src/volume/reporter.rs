//! The state of an open volume, for `csvfs status`.

use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use redirector::lun::Lun;

use super::Volume;
use crate::node::Node;
use crate::service::FileService;
use crate::status::{Counters, VolumeStatus};
use crate::types::SpaceReport;

/// How long the coordinator may take to tell the space, before the status goes without.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells the state of a volume. Keeps neither the volume nor its layers alive.
#[derive(Debug)]
pub struct Reporter {
    fixed: VolumeStatus,
    lun: Weak<dyn Lun>,
    node: Weak<Node>,
}

impl Reporter {
    pub(super) fn new(volume: &Volume, lun: String, mountpoint: String) -> Self {
        let settings = &volume.settings;
        let fixed = VolumeStatus {
            volume: volume.label.uuid.to_string(),
            name: volume.label.name.clone(),
            lun,
            mountpoint,
            node: settings.node.clone(),
            pid: std::process::id(),
            coordinator: settings.node.clone(),
            session: lockd::authority::Authority::session(volume.authority.as_ref()).0,
            read_only: settings.read_only,
            state: String::new(),
            path: String::new(),
            fence: "none: a mount without a cluster; its claim keeps other mounts away (V1)".to_owned(),
            opening: volume.opening.clone(),
            counters: Counters::default(),
            blocks: 0,
            blocks_free: 0,
            inodes: 0,
        };
        Self { fixed, lun: Arc::downgrade(&volume.lun), node: Arc::downgrade(&volume.node) }
    }

    /// The state now.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        let mut status = self.fixed.clone();
        match self.lun.upgrade() {
            Some(lun) => {
                status.state = if lun.is_working() { "direct" } else { "paused" }.to_owned();
                status.path = lun.describe();
            }
            None => status.state = "closed".to_owned(),
        }
        if let Some(node) = self.node.upgrade() {
            let figures = node.figures();
            status.counters = Counters {
                reads: figures.reads,
                writes: figures.writes,
                bytes_read: figures.read_bytes,
                bytes_written: figures.written_bytes,
                syncs: figures.syncs,
                in_flight: figures.in_flight,
            };
            if let Some(space) = space(node.as_ref()) {
                (status.blocks, status.blocks_free, status.inodes) = (space.blocks, space.free, space.inodes);
            }
        }
        status
    }
}

fn space(node: &Node) -> Option<SpaceReport> {
    let (sender, receiver) = mpsc::sync_channel(1);
    node.space(Box::new(move |result| {
        let _ = sender.send(result);
    }));
    receiver.recv_timeout(PATIENCE).ok()?.ok()
}
