//! A volume mounted on a node, over the SAN.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cluster::{Cut, Network, Plan, ProcessId, TargetKind};
use lab::history::{Workload, check};
use lab::mounted::fsck_clean;
use lab::wait::until;
use lab::{Cluster, content, programs};

/// Unmounts node 1 and ends the target in order, and checks the volume.
fn end_clean(cluster: &Cluster) -> Result<()> {
    cluster.stop("n1", "csvfs")?;
    cluster.target().stop()?;
    fsck_clean(&cluster.target().image_url())
}

fn plan(target: TargetKind) -> Plan {
    Plan { window_ms: 500, ..Plan::new(2).target(target) }
}

#[test]
fn a_mount_on_a_node_reaches_the_bundled_target_over_the_san() -> Result<()> {
    const BLOCKS: u64 = 256;
    Cluster::run(plan(TargetKind::CsvTarget), |cluster| {
        cluster.format_standalone()?;
        let mount = cluster.mount_standalone(1)?;
        let before = cluster.target().counters_of_node(1)?;
        ensure!(before.client.is_some(), "csvfs says who it is: {before:?}");
        content::fill(&mount.join("file"), 1, BLOCKS)?;
        content::check(&mount.join("file"), 1, BLOCKS)?;
        let after = cluster.target().counters_of_node(1)?;
        ensure!(after.client == before.client, "one mount is one client: {before:?}, {after:?}");
        let written = after.bytes_written - before.bytes_written;
        ensure!(written >= BLOCKS * 4096, "the target saw only {written} bytes written");
        let touched = cluster.target().touched(after.client, 0, u64::MAX / 2)?;
        ensure!(touched.changed * touched.region_bytes >= BLOCKS * 4096, "{touched:?}");
        let other = cluster.target().counters_of_node(2).unwrap_err().to_string();
        ensure!(other.contains("node 2 has no client"), "{other}");
        ensure!(cluster.status(1)?["state"] == "direct");

        // A crash of the node, and the same volume again.
        cluster.crash("n1")?;
        cluster.restart("n1", "csvfs")?;
        content::check(&mount.join("file"), 1, BLOCKS)?;
        end_clean(cluster)
    })
}

#[test]
fn a_mount_on_a_node_reaches_nbdkit_over_the_san() -> Result<()> {
    Cluster::run(plan(TargetKind::Nbdkit), |cluster| {
        cluster.format_standalone()?;
        let mount = cluster.mount_standalone(1)?;
        content::fill(&mount.join("file"), 1, 64)?;
        content::check(&mount.join("file"), 1, 64)?;
        ensure!(cluster.target().counters().is_err(), "nbdkit has no counters");
        end_clean(cluster)
    })
}

/// fio with verification on the file, until it is interrupted.
fn fio(file: &Path) -> Result<Child> {
    Command::new(programs::installed("fio")?)
        .args(["--name=lab", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--rw=randwrite", "--bs=4k"])
        .args([
            "--size=8m",
            "--time_based",
            "--runtime=60",
            "--verify=crc32c",
            "--verify_backlog=64",
            "--verify_fatal=1",
        ])
        .arg(format!("--filename={}", file.display()))
        .current_dir(file.parent().context("the file is in a folder")?.parent().context("below the node's")?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting fio")
}

fn writes(cluster: &Cluster) -> Option<u64> {
    cluster.status(1).ok()?["counters"]["writes"].as_u64()
}

fn cut_under_fio(target: TargetKind, how: Cut) -> Result<()> {
    Cluster::run(plan(target), |cluster| {
        cluster.format_standalone()?;
        let mount = cluster.mount_standalone(1)?;
        let mut fio = fio(&mount.join("file"))?;
        let goes_on = |more: u64, limit: u64| {
            let from = writes(cluster).unwrap_or(0);
            until("fio goes on", Duration::from_secs(limit), || {
                writes(cluster).filter(|now| *now > from + more)
            })
        };
        let happened = (|| {
            goes_on(100, 10)?;
            cluster.cut(1, Network::San, how)?;
            // What was answered before the cut may still be counted; then nothing moves.
            until("all I/O is held", Duration::from_secs(5), || {
                let before = writes(cluster)?;
                std::thread::sleep(Duration::from_millis(300));
                (writes(cluster)? == before).then_some(())
            })?;
            let held = writes(cluster);
            std::thread::sleep(Duration::from_millis(500));
            ensure!(writes(cluster) == held, "I/O went on without a SAN");
            ensure!(fio.try_wait()?.is_none(), "fio gave up");
            cluster.heal(1, Network::San)?;
            goes_on(100, 10)
        })();
        let process = ProcessId::of(fio.id()).context("fio is gone")?;
        process.signal(if happened.is_ok() { libc::SIGINT } else { libc::SIGKILL })?;
        let output = fio.wait_with_output()?;
        happened?;
        let said = String::from_utf8_lossy(&output.stderr);
        // What fio says when it was interrupted and all is well; a wrong block makes it 1.
        ensure!(output.status.code() == Some(128), "fio ended with {}: {said}", output.status);
        end_clean(cluster)
    })
}

#[test]
fn io_is_held_while_the_san_is_cut_silently_and_goes_on() -> Result<()> {
    cut_under_fio(TargetKind::CsvTarget, Cut::Silent)
}

#[test]
fn io_is_held_while_the_cable_to_nbdkit_is_out_and_goes_on() -> Result<()> {
    cut_under_fio(TargetKind::Nbdkit, Cut::Unplugged)
}

#[test]
fn the_history_of_a_mount_with_a_reset_san_is_that_of_registers() -> Result<()> {
    Cluster::run(plan(TargetKind::CsvTarget), |cluster| {
        cluster.format_standalone()?;
        let path = cluster.mount_standalone(1)?.join("blocks");
        fs::File::create(&path)?.set_len(8 * 4096)?;
        // Two handles of one mount stand for two nodes.
        let nodes = cluster.registers(&[1, 1], "blocks")?;
        let workload = Workload { pause: Duration::from_millis(1), ..Workload::default() };
        let (happened, history) = workload.run(&nodes, |done| {
            let goes_on = || {
                let before = [done.succeeded(0), done.succeeded(1)];
                let enough = |node: usize| done.succeeded(node) > before[node] + 50;
                until("both go on", Duration::from_secs(10), || (enough(0) && enough(1)).then_some(()))
            };
            let happened = goes_on()
                .and_then(|()| cluster.cut(1, Network::San, Cut::Reset))
                .and_then(|()| {
                    std::thread::sleep(Duration::from_millis(300));
                    cluster.heal(1, Network::San)
                })
                .and_then(|()| goes_on());
            done.stop();
            happened
        });
        happened?;
        drop(nodes);
        ensure!(history.len() > 200, "{} operations are not many", history.len());
        check(&history).map_err(|found| anyhow::anyhow!("{found:#?}"))?;
        end_clean(cluster)
    })
}
