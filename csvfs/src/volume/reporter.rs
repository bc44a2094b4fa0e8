//! The state of an open volume, for `csvfs status`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use lockd::clock::Clock;
use lockd::lease::Lease;
use redirector::lun::{Lun, PathFigures};
use redirector::metrics::Exposition;

use super::condition::{LeaseSeen, LunSeen, MemberSeen, Redirected, Seen, judge};
use super::inquiry::Inquiry;
use super::succession::Board;
use super::{Control, Volume};
use crate::cluster::{Plane, guarantee};
use crate::coordinator::{Coordinator, Scrub};
use crate::node::Node;
use crate::status::{Counters, VolumeStatus};

/// Tells the state of a volume. Keeps neither the volume nor its layers alive.
pub struct Reporter {
    fixed: VolumeStatus,
    lun: Weak<dyn Lun>,
    node: Weak<Node>,
    /// Who coordinates; none if that is always this mount.
    board: Option<Box<dyn Fn() -> Option<Board> + Send + Sync>>,
    coordinator: Weak<Coordinator>,
    lease: Arc<Lease>,
    clock: Arc<dyn Clock>,
    /// The control plane, where there is a cluster.
    plane: Weak<Plane>,
    inquiry: Inquiry,
    /// How long I/O waits for a LUN that is gone.
    hold: Duration,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("volume", &self.fixed.volume).finish_non_exhaustive()
    }
}

impl Reporter {
    pub(super) fn new(volume: &Volume, lun: String, mountpoint: String) -> Self {
        let settings = &volume.settings;
        let fixed = VolumeStatus {
            volume: volume.label.uuid.to_string(),
            name: volume.label.name.clone(),
            lun,
            mountpoint,
            cluster: match &volume.control {
                Control::Alone(_) => None,
                Control::Cluster(succession) => Some(succession.member().plane.client().cluster().to_owned()),
            },
            node: settings.node.clone(),
            pid: std::process::id(),
            coordinator: settings.node.clone(),
            session: volume.control.authority().session().0,
            read_only: settings.read_only,
            state: String::new(),
            since_s: None,
            problem: String::new(),
            path: String::new(),
            metadata: String::new(),
            fence: match &volume.control {
                Control::Alone(_) => {
                    "none: a mount without a cluster; its claim keeps other mounts away (V1)"
                }
                Control::Cluster(succession) => guarantee(succession.member().fence),
            }
            .to_owned(),
            opening: volume.opening.clone(),
            takeover: None,
            counters: Counters::default(),
            blocks: 0,
            blocks_free: 0,
            inodes: 0,
            owned_files: 0,
        };
        Self {
            fixed,
            lun: Arc::downgrade(&volume.lun),
            node: Arc::downgrade(&volume.node),
            coordinator: volume
                .office
                .as_ref()
                .map_or_else(Weak::new, |office| Arc::downgrade(&office.coordinator)),
            board: match &volume.control {
                Control::Alone(_) => None,
                Control::Cluster(succession) => Some(Box::new(succession.watch())),
            },
            lease: Arc::clone(volume.control.authority().lease()),
            clock: Arc::clone(&settings.clock),
            plane: match &volume.control {
                Control::Alone(_) => Weak::new(),
                Control::Cluster(succession) => Arc::downgrade(&succession.member().plane),
            },
            inquiry: Inquiry::default(),
            hold: settings.hold,
        }
    }

    /// The coordinator, if it is here.
    fn coordinator(&self) -> Option<Arc<Coordinator>> {
        match &self.board {
            None => self.coordinator.upgrade(),
            Some(board) => board()?.coordinator.upgrade(),
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
        if let Some(coordinator) = self.coordinator() {
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
        if let Some(hosted) = self.plane.upgrade().and_then(|plane| plane.hosted()) {
            for (name, help, value) in [
                ("csvfs_hosted_requests_total", "Requests of other nodes executed here.", hosted.done),
                ("csvfs_hosted_late_total", "Requests of other nodes that came too late.", hosted.late),
                ("csvfs_hosted_refused_total", "Requests of other nodes that were refused.", hosted.refused),
            ] {
                out.single(name, "counter", help, &volume, value);
            }
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
            let redirected = u64::from(lun.through().is_some());
            out.single(
                "csvfs_lun_redirected",
                "gauge",
                "1 if blocks go through a peer.",
                &volume,
                redirected,
            );
            if !figures.paths.is_empty() {
                path_metrics(&mut out, &volume, &figures.paths);
            }
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
        let lun = self.lun.upgrade();
        if let Some(lun) = &lun {
            status.path = lun.describe();
        }
        if let Some(board) = self.board.as_ref().and_then(|board| board()) {
            status.coordinator = board.node;
            status.takeover = board.takeover;
        }
        let coordinator = self.coordinator();
        if let Some(coordinator) = &coordinator {
            status.metadata = match coordinator.scrub() {
                Scrub::NotNeeded if self.fixed.read_only => "each page is checked when it is read".to_owned(),
                scrub => scrub.to_string(),
            };
        }
        let mut silent = None;
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
            let found = self.inquiry.ask(node.as_ref());
            if let Some(space) = found.space {
                (status.blocks, status.blocks_free, status.inodes) = (space.blocks, space.free, space.inodes);
            }
            silent = found.silent;
        }
        let member = self.fixed.cluster.is_some().then(|| MemberSeen {
            coordinator: coordinator.is_none().then(|| status.coordinator.clone()),
            silent,
            owned_files: self.plane.upgrade().map_or(0, |plane| plane.owned_files()),
        });
        status.owned_files = member.as_ref().map_or(0, |member| member.owned_files);
        let judged = judge(&Seen {
            failure: coordinator.and_then(|coordinator| coordinator.failure()).map(|cause| cause.to_string()),
            lease: self.lease_seen(),
            lun: lun.as_ref().map_or(LunSeen::Closed, |lun| {
                match (lun.is_working(), lun.figures().overdue) {
                    (false, _) => LunSeen::Down,
                    (true, true) => LunSeen::Overdue,
                    (true, false) => LunSeen::Works,
                }
            }),
            redirected: lun.as_ref().and_then(|lun| redirection(lun.as_ref())),
            lun_age: lun.and_then(|lun| lun.figures().state_age),
            member,
            hold: self.hold,
        });
        status.state = judged.state.to_owned();
        (status.since_s, status.problem) = (judged.since_s, judged.problem);
        status
    }

    fn lease_seen(&self) -> LeaseSeen {
        let lease = &self.lease;
        if lease.has_ended() {
            LeaseSeen::Ended
        } else if lease.holds(&*self.clock) {
            LeaseSeen::Holds
        } else {
            LeaseSeen::Lapsed(lease.was_granted().then(|| self.clock.boot().since(lease.deadline())))
        }
    }
}

/// The peer through which the LUN is reached, and what is wrong with the paths of this node.
fn redirection(lun: &dyn Lun) -> Option<Redirected> {
    let through = lun.through()?.to_string();
    let own = lun.figures().paths.into_iter().filter(|path| path.through.is_none());
    let why: Vec<_> = own.map(|path| format!("{}: {}", path.name, path.why)).collect();
    Some(Redirected { through, why: why.join("; ") })
}

/// Which paths answer, and which one is used.
fn path_metrics(out: &mut Exposition, volume: &[(&str, &str)], paths: &[PathFigures]) {
    for (name, help, value) in [
        ("csvfs_lun_path_up", "1 if the path answers.", (|path| path.up) as fn(&PathFigures) -> bool),
        ("csvfs_lun_path_used", "1 if the path is the one in use.", |path| path.used),
    ] {
        out.family(name, "gauge", help);
        for path in paths {
            let labels = [volume, &[("path", path.name.as_str())]].concat();
            out.sample(name, &labels, u64::from(value(path)));
        }
    }
}
