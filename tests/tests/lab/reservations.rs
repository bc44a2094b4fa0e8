//! Nodes that die and hang on a volume that is fenced by persistent reservations (`scsi-pr`), on tgt.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Cluster;
use lab::cluster::{Plan, TargetKind};
use lab::wait::until;
use tempfile::TempDir;

const FILE: &str = "disk";
const BYTES: usize = 256 << 10;
const LEASE_MS: u32 = 3000;
/// What a busy machine takes longer.
const BUSY: Duration = Duration::from_secs(8);
const LIMIT: Duration = Duration::from_secs(40);

fn with(fence: &str, nodes: u8, test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    let plan = Plan {
        window_ms: 500,
        lease_ms: Some(LEASE_MS),
        lun_folder: Some(memory.path().to_owned()),
        fence: fence.to_owned(),
        ..Plan::new(nodes).target(TargetKind::Tgt).lun(1 << 30)
    };
    Cluster::run(plan, test)
}

fn write(path: &Path, byte: u8) -> std::io::Result<()> {
    let file = fs::File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(&vec![byte; BYTES], 0)?;
    file.sync_all()
}

fn holds(path: &Path, byte: u8) -> Result<()> {
    let found = fs::read(path).with_context(|| path.display().to_string())?;
    let wrong = found.iter().position(|found| *found != byte);
    ensure!(found.len() == BYTES && wrong.is_none(), "{}: {wrong:?} of {}", path.display(), found.len());
    Ok(())
}

/// A node that neither coordinates the volume nor leads lockd, and owns the file, which it has written.
fn victim(cluster: &Cluster) -> Result<u8> {
    let leader = until("somebody leads", LIMIT, || cluster.leader(2).ok())?;
    let victim = if leader == 3 { 2 } else { 3 };
    write(&cluster.path(1, FILE), 0xaa)?;
    cluster.acquire(victim, &[FILE])?;
    write(&cluster.path(victim, FILE), 0xbb)?;
    Ok(victim)
}

/// How long it takes from now until node 1 has written the file with `byte`.
fn overwrite(cluster: &Cluster, byte: u8) -> Result<Duration> {
    let (since, path) = (Instant::now(), cluster.path(1, FILE));
    let (sender, receiver) = std::sync::mpsc::channel();
    // Should the file never come free, this thread waits until the lab is taken away.
    thread::spawn(move || {
        let written = until("the file is written", LIMIT, || write(&path, byte).ok());
        let _ = sender.send(written.map(|()| since.elapsed()));
    });
    receiver.recv_timeout(LIMIT).context("the file is not free")?
}

fn lockd_logs(cluster: &Cluster, nodes: u8) -> Result<String> {
    let log = |number| Ok(cluster.daemon(&cluster.node(number).name(), "lockd")?.log());
    (1..=nodes).map(log).collect()
}

#[test]
fn what_a_dead_node_had_is_free_when_its_key_is_removed() -> Result<()> {
    with("scsi-pr", 3, |cluster| {
        cluster.mount_all()?;
        let fence = cluster.cluster_status(1)?["volumes"][0]["fence"].as_str().unwrap_or("?").to_owned();
        ensure!(fence.starts_with("scsi-pr: the target rejects"), "{fence}");
        let victim = victim(cluster)?;
        cluster.power_off(victim)?;
        let took = overwrite(cluster, 0xcc)?;
        eprintln!("free {took:.2?} after the power was off, with a lease of {LEASE_MS} ms");
        ensure!(took <= Duration::from_millis(LEASE_MS.into()) + BUSY, "free only after {took:?}");
        let other = 5 - victim;
        holds(&cluster.path(other, FILE), 0xcc)?;
        let logs = lockd_logs(cluster, 3)?;
        ensure!(logs.contains("1 preempted") && logs.contains("the unit was reset"), "{logs}");
        // It comes back as somebody else.
        cluster.power_on(victim)?;
        holds(&cluster.path(victim, FILE), 0xcc)?;
        cluster.acquire(victim, &[FILE])?;
        write(&cluster.path(victim, FILE), 0xdd)?;
        holds(&cluster.path(1, FILE), 0xdd)?;
        cluster.end_clean()
    })
}

#[test]
fn a_node_that_hangs_past_its_lease_writes_nothing_when_it_wakes_up() -> Result<()> {
    with("scsi-pr", 3, |cluster| {
        cluster.mount_all()?;
        let victim = victim(cluster)?;
        let host = cluster.node(victim).name();
        cluster.pause(&host, "csvfs")?;
        cluster.pause(&host, "lockd")?;
        let took = overwrite(cluster, 0xcc)?;
        eprintln!("free {took:.2?} after it hung, with a lease of {LEASE_MS} ms");
        for daemon in ["lockd", "csvfs"] {
            cluster.resume(&host, daemon)?;
        }
        let path = cluster.path(victim, FILE);
        let errno = write(&path, 0xee).map_err(|error| error.raw_os_error());
        ensure!(
            matches!(errno, Err(Some(libc::EIO | libc::ESTALE))),
            "an application on it is told {errno:?}"
        );
        for number in [1, 5 - victim] {
            holds(&cluster.path(number, FILE), 0xcc)?;
        }
        cluster.daemon(&host, "csvfs")?.stop(LIMIT)?;
        cluster.restart(&host, "csvfs")?;
        holds(&cluster.path(victim, FILE), 0xcc)?;
        cluster.end_clean()
    })
}

#[test]
fn a_target_that_is_restarted_and_forgets_all_keys_fences_nobody() -> Result<()> {
    with("scsi-pr", 3, |cluster| {
        cluster.mount_all()?;
        let victim = victim(cluster)?;
        cluster.target().kill()?;
        cluster.restart("san", "target")?;
        for (number, byte) in [(1, 0xcc), (victim, 0xdd)] {
            let path = cluster.path(number, FILE);
            until("the file is written", LIMIT, || write(&path, byte).ok())?;
        }
        holds(&cluster.path(1, FILE), 0xdd)?;
        // Who was fenced before stays out, and who is fenced after is found.
        cluster.power_off(victim)?;
        overwrite(cluster, 0xee)?;
        ensure!(lockd_logs(cluster, 3)?.contains("1 preempted"), "its new registration was found");
        cluster.power_on(victim)?;
        holds(&cluster.path(victim, FILE), 0xee)?;
        cluster.end_clean()
    })
}

#[test]
fn the_drill_and_what_auto_takes() -> Result<()> {
    with("scsi-pr", 1, |cluster| {
        cluster.mount_all()?;
        write(&cluster.path(1, FILE), 0xaa)?;
        let output = cluster.exec_ours("n1", "csvfs", &["fence-test", "vms"])?;
        let said = String::from_utf8(output.stdout)?;
        for word in
            ["PREEMPT only", "lets UNMAP pass", "made again under the lease", "it is fenced", "PROVED"]
        {
            ensure!(said.contains(word), "{word:?} is not in: {said}");
        }
        write(&cluster.path(1, FILE), 0xbb)?;
        holds(&cluster.path(1, FILE), 0xbb)?;
        // While somebody may write it stays reserved, and when all have left as well, until it is given up.
        let release = || cluster.exec_ours("n1", "csvfs", &["fence-test", "--release", "vms"]);
        let refused = release().map_err(|error| format!("{error:#}")).err().unwrap_or_default();
        ensure!(refused.contains("1 mounts are registered"), "{refused}");
        cluster.daemon("n1", "csvfs")?.stop(LIMIT)?;
        let file = cluster.cluster_file().display().to_string();
        let format = || cluster.exec_ours("n1", "csvfs", &["format", "--force", "--cluster", &file, "vms"]);
        let refused = format().map_err(|error| format!("{error:#}")).err().unwrap_or_default();
        ensure!(refused.contains("errno 5"), "{refused}");
        release()?;
        format()?;
        Ok(())
    })?;
    with("auto", 1, |cluster| {
        cluster.init()?;
        cluster.start_lockd()?;
        cluster.format()?;
        let said = format!("{:#}", cluster.mount(1).unwrap_err());
        for word in ["no PREEMPT AND ABORT", "asked for by name", "fence = \"lease\""] {
            ensure!(said.contains(word), "{word:?} is not in: {said}");
        }
        Ok(())
    })
}
