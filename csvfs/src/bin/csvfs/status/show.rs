//! The status as text.

use csvfs::status::VolumeStatus;
use csvfs::status::cluster::{ClusterStatus, ClusterVolume, NodeStatus};

/// A span of time for people.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

fn gib(blocks: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let blocks = blocks as f64;
    blocks * 4096.0 / f64::from(1 << 30)
}

/// All volumes of a cluster on all nodes.
pub(super) fn cluster(status: &ClusterStatus) {
    let quorum = match (status.quorum, &status.leader) {
        (true, Some(leader)) => format!("quorum: yes, node {leader} leads"),
        (true, None) => "quorum: yes".to_owned(),
        (false, _) => "NO QUORUM".to_owned(),
    };
    say!("cluster {}, asked at node {}; {quorum}", status.cluster, status.asked);
    if !status.problem.is_empty() {
        say!("  PROBLEM      {}", status.problem);
    }
    if status.volumes.is_empty() {
        say!("no volume of it has been mounted yet");
    }
    for one in &status.volumes {
        say!("");
        of_cluster(one);
    }
}

fn of_cluster(volume: &ClusterVolume) {
    let uuid = volume.volume.as_deref().unwrap_or("never mounted");
    say!("volume {} ({uuid})", if volume.name.is_empty() { "?" } else { &volume.name });
    let since = volume.coordinator_since_s.map(|since| format!(" for {}", span(since))).unwrap_or_default();
    let epoch = volume.coordinator_epoch.map(|epoch| format!(", epoch {epoch}")).unwrap_or_default();
    match &volume.coordinator {
        Some(node) => say!("  coordinator  {node}{since}{epoch}"),
        None => say!("  coordinator  nobody"),
    }
    if !volume.problem.is_empty() {
        say!("  PROBLEM      {}", volume.problem);
    }
    if !volume.fence.is_empty() {
        say!("  fence        {}", volume.fence);
    }
    for fence in &volume.fences {
        say!("  FENCING      {} for {}: waiting for {}", fence.victim, span(fence.since_s), fence.waits_for);
    }
    let mounts = || volume.nodes.iter().filter_map(|node| node.mount.as_ref());
    if let Some(mount) = mounts().find(|mount| mount.blocks > 0) {
        say!(
            "  space        {:.1} GiB free of {:.1} GiB, {} inodes",
            gib(mount.blocks_free),
            gib(mount.blocks),
            mount.inodes
        );
    }
    say!("  {:<12} {:<18} {:<8} {:<6} {:<24} PATH", "NODE", "STATE", "SINCE", "OWNS", "MOUNTED ON");
    volume.nodes.iter().for_each(of_node);
}

fn of_node(node: &NodeStatus) {
    let since = node.since_s.map_or_else(|| "-".to_owned(), span);
    let (owns, at, path) = match &node.mount {
        Some(mount) => (
            mount.owned_files.to_string(),
            mount.mountpoint.as_str(),
            mount.path.split(';').next().unwrap_or("-"),
        ),
        None => ("-".to_owned(), "-", "-"),
    };
    say!("  {:<12} {:<18} {since:<8} {owns:<6} {at:<24} {path}", node.node, node.state);
    if !node.problem.is_empty() {
        say!("    {}", node.problem);
    }
}

/// One mount, with all that it says.
pub(super) fn volume(volume: &VolumeStatus) {
    let mode = if volume.read_only { ", read-only" } else { "" };
    say!("{} on {}{mode}", volume.lun, volume.mountpoint);
    say!("  volume       {} {}", volume.volume, volume.name);
    let of = volume.cluster.as_ref().map(|cluster| format!(" of cluster {cluster}")).unwrap_or_default();
    say!("  node         {}{of} (pid {}), session {}", volume.node, volume.pid, volume.session);
    say!("  coordinator  {}", volume.coordinator);
    let since = volume.since_s.map(|since| format!(" for {}", span(since))).unwrap_or_default();
    say!("  I/O          {}{since}: {}", volume.state, volume.path);
    if !volume.problem.is_empty() {
        say!("  PROBLEM      {}", volume.problem);
    }
    say!("  metadata     {}", volume.metadata);
    say!("  fence        {}", volume.fence);
    let opening = &volume.opening;
    say!(
        "  opened       {} in {:.2} s, after {:.1} s of waiting",
        opening.how,
        opening.open_s,
        opening.wait_s
    );
    if let Some(takeover) = &volume.takeover {
        let ago = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |now| {
            now.as_secs_f64()
                - std::time::Duration::from_nanos(u64::try_from(takeover.at_ns).unwrap_or(0)).as_secs_f64()
        });
        say!(
            "  takeover     {} ago, {} node {}, in {:.3} s; opened {}",
            span(ago.max(0.0)),
            if takeover.planned { "handed over by" } else { "from" },
            if takeover.from.is_empty() { "?" } else { &takeover.from },
            takeover.took_s,
            takeover.how
        );
    }
    for warning in &opening.warnings {
        say!("  warning      {warning}");
    }
    say!(
        "  space        {:.1} GiB free of {:.1} GiB, {} inodes",
        gib(volume.blocks_free),
        gib(volume.blocks),
        volume.inodes
    );
    let counters = &volume.counters;
    say!(
        "  served       {} reads, {} writes, {} syncs; {} in flight",
        counters.reads,
        counters.writes,
        counters.syncs,
        counters.in_flight
    );
}
