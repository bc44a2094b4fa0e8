//! The disk of a voter: full, read-only, torn, damaged, lost.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Cluster;
use lab::wait::until;

use super::{LIMIT, done, lockctl_status, log, prepared, refused, running, wait_node, wait_well};

/// A small file system of memory on a node's data folder; gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn on(folder: &Path) -> Result<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=256k", "csvfs-test"]).arg(folder);
        ensure!(command.status()?.success(), "mounting a tmpfs on {}", folder.display());
        Ok(Self(folder.to_owned()))
    }

    fn remount(&self, option: &str) -> Result<()> {
        let status =
            Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.0).status()?;
        ensure!(status.success(), "remounting {option}");
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Commands that each write an entry of the log.
fn churn(cluster: &Cluster, node: &str, times: usize) -> Result<()> {
    for _ in 0..times {
        done(cluster, node, &["lockctl", "acquire", "vm/web", "--node", "n1"])?;
        done(cluster, node, &["lockctl", "release", "vm/web"])?;
    }
    Ok(())
}

#[test]
fn a_voter_with_a_full_disk_says_so_steps_aside_and_comes_back() -> Result<()> {
    prepared(3, |cluster| {
        let folder = cluster.node(3).data_folder();
        let disk = SmallDisk::on(&folder)?;
        cluster.start_lockd()?;
        wait_well(cluster, "n1")?;
        // Whatever it takes; until no byte is left.
        let ballast = folder.join("ballast");
        let mut file = fs::File::create(&ballast)?;
        while file.write_all(&[0; 512]).is_ok() {}
        drop(file);
        until("n3 fails to write", LIMIT, || {
            churn(cluster, "n1", 5).ok()?;
            let status = lockctl_status(cluster, "n1").ok()?;
            let n3 = status["nodes"][2].clone();
            let words = format!("{} {}", n3["trouble"], n3["voter"]["trouble"]);
            (words.contains("o space") || !cluster.daemon("n3", "lockd").ok()?.is_alive()).then_some(())
        })
        .with_context(|| log(cluster, "n3", "lockd"))?;
        // The others go on.
        churn(cluster, "n2", 3)?;
        fs::remove_file(&ballast)?;
        if cluster.daemon("n3", "lockd")?.is_alive() {
            cluster.kill("n3", "lockd")?;
        }
        cluster.restart("n3", "lockd")?;
        wait_well(cluster, "n1")?;
        cluster.kill("n3", "lockd")?;
        drop(disk);
        Ok(())
    })
}

#[test]
fn a_voter_with_a_read_only_disk_is_refused_with_the_path() -> Result<()> {
    prepared(3, |cluster| {
        let folder = cluster.node(3).data_folder();
        let disk = SmallDisk::on(&folder)?;
        disk.remount("ro")?;
        let data = folder.display().to_string();
        for number in [1, 2] {
            let node = cluster.node(number);
            cluster.launch(&node.name(), node.lockd()?)?;
        }
        let said =
            refused(cluster, "n3", &["lockd", "--data", &data], 1, &["/n3/data", "ead-only file system"])?;
        ensure!(said.lines().count() <= 2, "{said}");
        disk.remount("rw")?;
        cluster.start("n3", cluster.node(3).lockd()?)?;
        wait_well(cluster, "n1")?;
        cluster.kill("n3", "lockd")?;
        Ok(())
    })
}

/// Where the next record of a segment goes: behind its last byte that is none of the zeros it was made with.
fn end_of(segment: &Path) -> Result<u64> {
    let bytes = fs::read(segment)?;
    let last = bytes.iter().rposition(|byte| *byte != 0).context("an empty segment")?;
    Ok((last as u64 + 1).next_multiple_of(8))
}

fn write_at(file: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new().write(true).open(file)?;
    file.seek(SeekFrom::Start(at))?;
    Ok(file.write_all(bytes)?)
}

/// The last segment of a voter's log.
fn last_segment(cluster: &Cluster, number: u8) -> Result<PathBuf> {
    let folder = cluster.node(number).data_folder().join("voter");
    let mut stack = vec![folder.clone()];
    let mut found = Vec::new();
    while let Some(folder) = stack.pop() {
        for entry in fs::read_dir(&folder)?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                stack.push(path);
            } else if fs::read(&path)?.starts_with(b"CSVRAFTL") {
                found.push(path);
            }
        }
    }
    found.sort();
    found.pop().with_context(|| format!("no segment below {}", folder.display()))
}

#[test]
fn a_torn_tail_of_the_log_is_cut_off_and_damage_before_it_is_named() -> Result<()> {
    running(0, |cluster| {
        wait_well(cluster, "n1")?;
        churn(cluster, "n1", 5)?;
        cluster.kill("n3", "lockd")?;
        let segment = last_segment(cluster, 3)?;
        // As a crash leaves it: a record of 2000 bytes that nobody was told of, of which one sector was written.
        let end = end_of(&segment)?;
        let mut torn = [0x43, 0x52, 1, 0, 0xd0, 7, 0, 0].to_vec();
        torn.resize(100, 0x5a);
        write_at(&segment, end, &torn)?;
        cluster.restart("n3", "lockd").with_context(|| log(cluster, "n3", "lockd"))?;
        wait_well(cluster, "n1")?;
        churn(cluster, "n3", 2)?;

        // What it had acknowledged: it must not vote as if that had never been.
        cluster.kill("n3", "lockd")?;
        let segment = last_segment(cluster, 3)?;
        let end = end_of(&segment)?;
        ensure!(end > 400, "{} has {end} bytes only", segment.display());
        write_at(&segment, end / 2, &[0xff; 64])?;
        let data = cluster.node(3).data_folder().display().to_string();
        refused(
            cluster,
            "n3",
            &["lockd", "--data", &data],
            1,
            &["is damaged at byte", "lockctl voters rejoin"],
        )?;
        // It does as the message says.
        fs::rename(cluster.node(3).data_folder().join("voter"), cluster.folder().join("moved"))?;
        cluster.restart("n3", "lockd")?;
        rejoin(cluster, "n3")?;
        wait_well(cluster, "n1")
    })
}

/// As often as it takes until the voter has been reached and caught up.
fn rejoin(cluster: &Cluster, node: &str) -> Result<()> {
    until(&format!("{node} rejoins"), LIMIT, || {
        done(cluster, "n1", &["lockctl", "voters", "rejoin", node, "--timeout", "20"]).ok()
    })
    .map(drop)
}

#[test]
fn a_voter_that_lost_its_directory_is_refused_until_it_is_told_to_rejoin() -> Result<()> {
    running(0, |cluster| {
        wait_well(cluster, "n1")?;
        // What has not been lost needs no rejoining.
        refused(cluster, "n1", &["lockctl", "voters", "rejoin", "n2"], 1, &["n2"])?;
        cluster.kill("n3", "lockd")?;
        fs::remove_dir_all(cluster.node(3).data_folder().join("voter"))?;
        cluster.restart("n3", "lockd")?;
        let told = wait_node(cluster, "n3 is refused", "n1", "n3", |node| {
            let words = format!("{} {}", node["trouble"], node["voter"]["trouble"]);
            words.contains("lockctl voters rejoin n3")
        })
        .or_else(|_| {
            until("a voter says that n3 is refused", LIMIT, || {
                let status = lockctl_status(cluster, "n1").ok()?.to_string();
                status.contains("lockctl voters rejoin n3").then(|| status.into())
            })
        })?;
        ensure!(!told.is_null());
        // It counts for nothing: with one of the others gone there is no majority.
        cluster.kill("n2", "lockd")?;
        until("no quorum", LIMIT, || (lockctl_status(cluster, "n1").ok()?["quorum"] == false).then_some(()))?;
        cluster.restart("n2", "lockd")?;
        until("a quorum", LIMIT, || (lockctl_status(cluster, "n1").ok()?["quorum"] == true).then_some(()))?;
        rejoin(cluster, "n3")?;
        wait_well(cluster, "n1")?;
        // From now on it counts.
        cluster.kill("n2", "lockd")?;
        until("n1 and n3 are a majority", Duration::from_secs(20), || {
            done(cluster, "n1", &["lockctl", "acquire", "vm/web", "--node", "n1"]).ok()
        })
        .map(drop)
    })
}
