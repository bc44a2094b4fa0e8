//! The state of an open volume, for `csvfs status`.

use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use redirector::lun::Lun;
use redirector::metrics::Exposition;

use super::{Control, Volume};
use crate::coordinator::{Coordinator, Scrub};
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
    coordinator: Weak<Coordinator>,
    /// How long I/O waits for a LUN that is gone.
    hold: Duration,
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
            coordinator: volume.coordinator.clone().unwrap_or_else(|| settings.node.clone()),
            session: volume.control.authority().session().0,
            read_only: settings.read_only,
            state: String::new(),
            problem: String::new(),
            path: String::new(),
            metadata: String::new(),
            fence: match &volume.control {
                Control::Alone(_) => "none: a mount without a cluster; its claim keeps other mounts away (V1)",
                Control::Cluster(_) => {
                    "lease: a node that went silent is waited for, for lease + grace; nothing stops it at the LUN"
                }
            }
            .to_owned(),
            opening: volume.opening.clone(),
            counters: Counters::default(),
            blocks: 0,
            blocks_free: 0,
            inodes: 0,
        };
        Self {
            fixed,
            lun: Arc::downgrade(&volume.lun),
            node: Arc::downgrade(&volume.node),
            coordinator: volume
                .office
                .as_ref()
                .map_or_else(Weak::new, |office| Arc::downgrade(&office.coordinator)),
            hold: settings.hold,
        }
    }

    /// The state now in figures, for Prometheus.
    #[must_use]
    pub fn exposition(&self) -> Exposition {
        let status = self.status();
        let mut out = Exposition::default();
        let volume = [("volume", status.volume.as_str()), ("name", status.name.as_str())];
        let counters = &status.counters;
        for (name, help, value) in [
            ("csvfs_reads_total", "Reads of file data.", counters.reads),
            ("csvfs_writes_total", "Writes of file data.", counters.writes),
            ("csvfs_read_bytes_total", "Bytes of file data that were asked for.", counters.bytes_read),
            ("csvfs_written_bytes_total", "Bytes of file data that were brought.", counters.bytes_written),
            ("csvfs_syncs_total", "Syncs.", counters.syncs),
        ] {
            out.single(name, "counter", help, &volume, value);
        }
        for (name, help, value) in [
            ("csvfs_in_flight", "Data requests in flight.", counters.in_flight),
            ("csvfs_blocks", "Blocks of 4 KiB.", status.blocks),
            ("csvfs_blocks_free", "Free blocks of 4 KiB.", status.blocks_free),
            ("csvfs_inodes", "Inodes in use.", status.inodes),
            (
                "csvfs_failed",
                "1 if the metadata cannot be changed any more.",
                u64::from(status.state == "failed"),
            ),
        ] {
            out.single(name, "gauge", help, &volume, value);
        }
        if let Some(coordinator) = self.coordinator.upgrade() {
            let (commits, changes) = coordinator.commits();
            out.single("csvfs_commits_total", "counter", "Commits of metadata.", &volume, commits);
            out.single("csvfs_changes_total", "counter", "Changes in these commits.", &volume, changes);
        }
        if let Some(node) = self.node.upgrade() {
            let figures = node.figures();
            out.single("csvfs_handles", "gauge", "Open handles.", &volume, figures.handles);
            out.single(
                "csvfs_reserve_blocks",
                "gauge",
                "Free blocks in reserve.",
                &volume,
                figures.reserve_blocks,
            );
        }
        if let Some(lun) = self.lun.upgrade() {
            let figures = lun.figures();
            let up = u64::from(lun.is_working());
            out.single("csvfs_lun_up", "gauge", "1 if a path to the LUN works.", &volume, up);
            out.single(
                "csvfs_lun_held_requests",
                "gauge",
                "Requests that wait for a path.",
                &volume,
                figures.held,
            );
            out.single(
                "csvfs_lun_ghosts",
                "gauge",
                "Ranges under writes of unknown outcome.",
                &volume,
                figures.ghosts,
            );
            if !figures.latencies.is_empty() {
                let help = "Latency of requests to the LUN since its path was connected last; the sum is an upper bound.";
                out.latencies("csvfs_lun_latency_seconds", help, &volume, &figures.latencies);
            }
        }
        out
    }

    /// The state now.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        let mut status = self.fixed.clone();
        match self.lun.upgrade() {
            Some(lun) => {
                status.state = if lun.is_working() { "direct" } else { "paused" }.to_owned();
                status.path = lun.describe();
                if status.state == "paused" {
                    status.problem = format!(
                        "no path to the LUN works: I/O waits, goes on by itself when the LUN is back, and fails with \
                         EIO after {} s; look after the server and the way to it",
                        self.hold.as_secs()
                    );
                }
            }
            None => status.state = "closed".to_owned(),
        }
        if let Some(coordinator) = self.coordinator.upgrade() {
            status.metadata = match coordinator.scrub() {
                Scrub::NotNeeded if self.fixed.read_only => "each page is checked when it is read".to_owned(),
                scrub => scrub.to_string(),
            };
        }
        if let Some(cause) = self.coordinator.upgrade().and_then(|coordinator| coordinator.failure()) {
            status.state = "failed".to_owned();
            status.problem = format!(
                "the metadata cannot be changed any more ({cause}); what was acknowledged is safe: unmount, and mount \
                 again when the LUN is well"
            );
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
