//! lockd that is not there, not there any more, or without a majority.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Cluster;
use lab::cluster::is_mounted;
use lab::wait::until;

use super::{LIMIT, done, let_lead, lockctl_status, prepared, refused, running, wait_said, wait_well};

#[test]
fn a_mount_without_lockd_says_so_waits_and_is_there_when_lockd_is() -> Result<()> {
    prepared(3, |cluster| {
        cluster.format()?;
        let node = cluster.node(1);
        cluster.launch("n1", node.mount()?)?;
        wait_said(cluster, "n1", "csvfs", "waiting for lockd")?;
        // A voter alone is no majority: it waits for that, too, and says it.
        cluster.start("n1", node.lockd()?)?;
        let file = cluster.cluster_file().display().to_string();
        refused(cluster, "n1", &["lockctl", "status", "--timeout", "2"], 1, &["no quorum"])?;
        refused(cluster, "n1", &["lockctl", "ls", "--timeout", "1"], 1, &["no quorum"])?;
        done(cluster, "n1", &["csvfs", "status", "--cluster", &file])?;
        ensure!(!is_mounted(&node.mount_point()));
        for number in [2, 3] {
            let node = cluster.node(number);
            cluster.launch(&node.name(), node.lockd()?)?;
        }
        until("the volume is mounted", LIMIT, || is_mounted(&node.mount_point()).then_some(()))?;
        fs::write(node.mount_point().join("file"), b"at last")?;
        Ok(())
    })
}

/// Appends numbered lines and syncs each, until it is told to stop; gives how many were synced.
fn append(path: &Path, stop: &AtomicBool, count: &AtomicU64) -> Result<u64> {
    let mut file = File::options().append(true).create(true).open(path)?;
    while !stop.load(Ordering::Acquire) {
        let next = count.load(Ordering::Acquire);
        file.write_all(format!("{next:08}\n").as_bytes())?;
        file.sync_data()?;
        count.store(next + 1, Ordering::Release);
    }
    Ok(count.load(Ordering::Acquire))
}

/// Does `work` while two nodes write; what they have synced must be there, in order, seen by the third.
fn under_writers(cluster: &Cluster, work: impl FnOnce(&[AtomicU64; 2]) -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    let counts = [AtomicU64::new(0), AtomicU64::new(0)];
    let path = |number: u8| cluster.node(number).mount_point().join(format!("log{number}"));
    let (worked, written) = std::thread::scope(|scope| {
        let writers: Vec<_> = [1_u8, 2]
            .into_iter()
            .map(|number| {
                let (path, stop, count) = (path(number), &stop, &counts[usize::from(number) - 1]);
                scope.spawn(move || append(&path, stop, count))
            })
            .collect();
        let worked = work(&counts);
        stop.store(true, Ordering::Release);
        let written: Vec<_> = writers.into_iter().map(|writer| writer.join().expect("no panic")).collect();
        (worked, written)
    });
    worked?;
    for (number, written) in [1_u8, 2].into_iter().zip(written) {
        let written = written.with_context(|| format!("the writer on n{number}"))?;
        let seen = fs::read_to_string(cluster.node(3).mount_point().join(format!("log{number}")))?;
        let lines: Vec<_> = seen.lines().collect();
        ensure!(lines.len() as u64 == written, "{} lines of {written} of n{number}", lines.len());
        for (index, line) in lines.iter().enumerate() {
            ensure!(*line == format!("{index:08}"), "line {index} of n{number} is {line}");
        }
    }
    Ok(())
}

fn goes_on(what: &str, count: &AtomicU64) -> Result<()> {
    let from = count.load(Ordering::Acquire);
    until(what, LIMIT, || (count.load(Ordering::Acquire) > from + 20).then_some(()))
}

#[test]
fn a_lockd_that_is_killed_and_started_again_costs_its_mounts_nothing() -> Result<()> {
    running(3, |cluster| {
        under_writers(cluster, |counts| {
            for node in ["n1", "n2", "n1"] {
                goes_on("the writers write", &counts[0])?;
                let before = Instant::now();
                cluster.kill(node, "lockd")?;
                refused(cluster, node, &["lockctl", "ls", "--timeout", "0.5"], 1, &["lockd"])?;
                cluster.restart(node, "lockd")?;
                ensure!(before.elapsed() < Duration::from_secs(6), "too slow to say anything of L11");
                goes_on("n1 goes on", &counts[0])?;
                goes_on("n2 goes on", &counts[1])?;
            }
            wait_well(cluster, "n1")
        })
    })
}

fn without_a_quorum(n2_leads: bool) -> Result<()> {
    running(3, |cluster| {
        under_writers(cluster, |counts| {
            // Who leads when the quorum goes is who must not count what it cannot hear (L1).
            let_lead(cluster, "n2", n2_leads)?;
            goes_on("the writers write", &counts[1])?;
            cluster.kill("n1", "lockd")?;
            cluster.kill("n3", "lockd")?;
            let said = refused(cluster, "n2", &["lockctl", "status", "--timeout", "3"], 1, &["no quorum"])?;
            ensure!(said.lines().count() == 1, "one line says it: {said}");
            let status = lockctl_status(cluster, "n2")?;
            ensure!(status["quorum"] == false && status["nodes"][0]["reachable"] == false, "{status}");
            let file = cluster.node(2).mount_point().join("log2").display().to_string();
            for words in [
                &["lockctl", "acquire", &file, "--timeout", "1"][..],
                &["lockctl", "transfer", &file, "--to", "n3", "--timeout", "1"],
                &["lockctl", "voters", "remove", "n3", "--timeout", "1"],
            ] {
                refused(cluster, "n2", words, 1, &[])?;
            }
            let paused = until("n2 says that it pauses", LIMIT, || {
                cluster.status(2).ok().filter(|status| status["state"] == "paused")
            })?;
            ensure!(paused["problem"].as_str().is_some_and(|why| why.contains("quorum")), "{paused}");
            let held = counts[1].load(Ordering::Acquire);
            std::thread::sleep(Duration::from_secs(2));
            ensure!(counts[1].load(Ordering::Acquire) == held, "it wrote without a lease");
            cluster.restart("n1", "lockd")?;
            cluster.restart("n3", "lockd")?;
            goes_on("n1 goes on", &counts[0])?;
            goes_on("n2 goes on", &counts[1])
        })
    })
}

#[test]
fn without_a_quorum_all_say_so_io_pauses_and_goes_on_by_itself() -> Result<()> {
    without_a_quorum(false)
}

#[test]
fn l1_a_leader_without_a_quorum_ends_no_session() -> Result<()> {
    without_a_quorum(true)
}
