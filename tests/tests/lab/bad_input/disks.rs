//! The disk of a voter: full, read-only, torn, damaged, lost.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Cluster;
use lab::wait::until;
use serde_json::Value;

use super::{
    LIMIT, done, let_lead, lockctl_status, log, output, prepared, refused, running, wait_node, wait_said,
    wait_well,
};

/// A small file system of memory on a node's data folder; gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn on(folder: &Path) -> Result<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=16m", "csvfs-test"]).arg(folder);
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

/// What is wrong with a disk that cannot be written to is said with the path; nothing is begun without that voter; and
/// when the disk is well, so is the voter.
fn refused_until_mended(says: &str, broken: &str, mended: &str) -> Result<()> {
    prepared(3, |cluster| {
        let folder = cluster.node(3).data_folder();
        let disk = SmallDisk::on(&folder)?;
        disk.remount(broken)?;
        let data = folder.display().to_string();
        for number in [1, 2] {
            let node = cluster.node(number);
            cluster.start(&node.name(), node.lockd()?)?;
        }
        let said = refused(cluster, "n3", &["lockd", "--data", &data], 1, &["/n3/data", says])?;
        ensure!(said.lines().count() <= 2, "{said}");
        refused(cluster, "n1", &["lockctl", "ls", "--timeout", "1"], 1, &["no quorum"])?;
        disk.remount(mended)?;
        cluster.start("n3", cluster.node(3).lockd()?)?;
        wait_well(cluster, "n1")?;
        churn(cluster, "n3", 2)?;
        cluster.kill("n3", "lockd")?;
        Ok(())
    })
}

#[test]
fn a_voter_with_a_full_disk_is_refused_with_the_path() -> Result<()> {
    refused_until_mended("No space left on device", "size=256k", "size=16m")
}

#[test]
fn a_voter_with_a_read_only_disk_is_refused_with_the_path() -> Result<()> {
    refused_until_mended("ead-only file system", "ro", "rw")
}

/// The disk of n3 while its voter runs.
enum Disk {
    /// Another program fills it.
    Fills(SmallDisk),
    /// Its file system finds an error and allows no more writes, also to files that are open.
    TurnsReadOnly(SmallDisk),
}

impl Disk {
    fn fail(&self) -> Result<()> {
        match self {
            Self::Fills(disk) => {
                let mut file = fs::File::create(disk.0.join("core"))?;
                let full = loop {
                    if let Err(error) = file.write_all(&[1; 4096]) {
                        break error;
                    }
                };
                ensure!(full.raw_os_error() == Some(libc::ENOSPC), "{full}");
                Ok(())
            }
            Self::TurnsReadOnly(disk) => disk.remount("abort"),
        }
    }

    /// As the person does who is told to.
    fn mend(&self, image: &Path) -> Result<()> {
        match self {
            Self::Fills(disk) => Ok(fs::remove_file(disk.0.join("core"))?),
            Self::TurnsReadOnly(disk) => {
                run("umount", &[&disk.0])?;
                run("fsck.ext4", &[Path::new("-p"), image]).or_else(|_| {
                    // It tells by its code that it has repaired something.
                    run("fsck.ext4", &[Path::new("-p"), image])
                })?;
                run("mount", &[Path::new("-o"), Path::new("loop,errors=remount-ro"), image, &disk.0])
            }
        }
    }
}

fn run(program: &str, arguments: &[&Path]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Holdings that stay as they are.
const KEPT: usize = 5;

/// What is held, by whom, in which epoch.
fn held(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let all: Vec<Value> = serde_json::from_str(&done(cluster, node, &["lockctl", "ls", "--json"])?)?;
    let line = |held: &Value| {
        let holder = &held["holders"][0];
        format!("{} {} {}", held["resource"], holder["node"], holder["epoch"])
    };
    Ok(all.iter().map(line).collect())
}

/// As soon as there is a majority again.
fn acquire_at_last(cluster: &Cluster, resource: &str, node: &str) -> Result<()> {
    let words = ["lockctl", "acquire", resource, "--node", node];
    until(&format!("{resource} is acquired"), LIMIT, || done(cluster, node, &words).ok()).map(drop)
}

/// The disk of a voter fails while it runs: it says so and steps aside, counts for nothing, and the others go on, as do the
/// mounts of its node. When the disk is well and lockd has been started again it counts.
fn fails_while_it_runs(
    says: &str,
    leads: bool,
    disk: impl FnOnce(&Path, &Path) -> Result<Disk>,
) -> Result<()> {
    prepared(3, |cluster| {
        let image = cluster.folder().join("disk.img");
        let disk = disk(&cluster.node(3).data_folder(), &image)?;
        cluster.start_lockd()?;
        cluster.format()?;
        for number in [1, 3] {
            cluster.mount(number)?;
        }
        let_lead(cluster, "n3", leads)?;
        churn(cluster, "n1", 2)?;
        // A set of so many that a few transfers fill a file of the log.
        let names: Vec<String> = (0..800).map(|number| format!("vm/{number:0>120}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let acquire = [&["lockctl", "--timeout", "60", "acquire", "--node", "n1"], &names[..]].concat();
        done(cluster, "n1", &acquire)?;
        // What lockd of n1 holds for a person is there as long as that lockd.
        for number in 0..KEPT {
            done(cluster, "n1", &["lockctl", "acquire", &format!("vm/kept{number}"), "--node", "n1"])?;
        }

        disk.fail()?;
        let mut last = Instant::now();
        let mut turn = 0;
        let stopped = until("n3 says that it has stopped", LIMIT, || {
            let to = if turn % 2 == 0 { "n2" } else { "n1" };
            turn += 1;
            let transfer = [&["lockctl", "transfer", "--to", to], &names[..]].concat();
            // Where its leader goes, one may not know what became of it.
            let _ = output(cluster, "n1", transfer[0], &transfer[1..]);
            last = Instant::now();
            let status = lockctl_status(cluster, "n1").ok()?;
            let node = status["nodes"].as_array()?.iter().find(|node| node["node"] == "n3")?.clone();
            (node["voter"]["role"] == "stopped").then_some(node)
        })?;
        let trouble = stopped["voter"]["trouble"].as_str().context("it says why")?;
        for part in ["/n3/data", says, "restart lockd"] {
            ensure!(trouble.contains(part), "{trouble} does not say {part:?}");
        }
        ensure!(stopped["reachable"] == true, "{stopped}");
        wait_said(cluster, "n3", "lockd", "this voter steps aside")?;
        for node in ["n1", "n3"] {
            let shown = output(cluster, node, "lockctl", &["status"])?;
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            ensure!(shown.contains("stopped") && shown.contains(trouble), "{shown}");
        }

        // The others are a majority; the session of its node goes on by them: its lease is renewed, its mount is there.
        until("the others lead", LIMIT, || {
            let status = lockctl_status(cluster, "n1").ok()?;
            (status["quorum"] == true && status["leader"] != "n3").then_some(())
        })?;
        churn(cluster, "n1", 2)?;
        churn(cluster, "n3", 2)?;
        wait_node(cluster, "the lease of n3 is renewed", "n1", "n3", |node| {
            let left = node["lease_left_s"].as_f64().unwrap_or_default();
            left + last.elapsed().as_secs_f64() > 8.5
        })?;
        fs::write(cluster.path(3, "file"), b"by n3")?;
        ensure!(fs::read(cluster.path(1, "file"))? == b"by n3");

        // It acknowledges nothing: with one of the two others gone there is no majority.
        cluster.kill("n2", "lockd")?;
        refused(cluster, "n1", &["lockctl", "acquire", "vm/web", "--timeout", "1"], 1, &[])?;
        for node in ["n1", "n3"] {
            refused(cluster, node, &["lockctl", "ls", "--timeout", "2"], 1, &["no quorum"])?;
        }
        cluster.restart("n2", "lockd")?;
        acquire_at_last(cluster, "vm/web", "n1")?;
        let mut before = held(cluster, "n1")?;
        before.retain(|line| line.contains("\"n1\"") && !line.contains("vm/0"));

        cluster.stop("n3", "lockd")?;
        disk.mend(&image)?;
        cluster.restart("n3", "lockd").with_context(|| log(cluster, "n3", "lockd"))?;
        wait_well(cluster, "n1")?;
        wait_node(cluster, "n3 has caught up", "n1", "n3", |node| {
            node["voter"]["applied"].as_u64() >= node["voter"]["last_log"].as_u64()
                && node["voter"]["trouble"].is_null()
        })?;
        // From now on it counts, and knows all.
        cluster.kill("n2", "lockd")?;
        acquire_at_last(cluster, "vm/other", "n3")?;
        let after = held(cluster, "n3")?;
        ensure!(before.iter().filter(|line| line.contains("vm/kept")).count() == KEPT, "{before:?}");
        ensure!(before.iter().all(|line| after.contains(line)), "{before:?} -> {after:?}");
        fs::write(cluster.path(3, "file"), b"again")?;
        ensure!(fs::read(cluster.path(1, "file"))? == b"again");
        cluster.stop("n3", "csvfs")?;
        cluster.kill("n3", "lockd")
    })
}

fn tmpfs(folder: &Path, _image: &Path) -> Result<Disk> {
    Ok(Disk::Fills(SmallDisk::on(folder)?))
}

fn ext4(folder: &Path, image: &Path) -> Result<Disk> {
    fs::File::create(image)?.set_len(64 << 20)?;
    run("mkfs.ext4", &[Path::new("-q"), image])?;
    run("mount", &[Path::new("-o"), Path::new("loop,errors=remount-ro"), image, folder])?;
    Ok(Disk::TurnsReadOnly(SmallDisk(folder.to_owned())))
}

#[test]
fn a_voter_whose_disk_fills_steps_aside_and_the_others_go_on() -> Result<()> {
    fails_while_it_runs("No space left on device", false, tmpfs)
}

#[test]
fn a_leader_whose_disk_fills_steps_aside_and_another_leads() -> Result<()> {
    fails_while_it_runs("No space left on device", true, tmpfs)
}

#[test]
fn a_voter_whose_disk_turns_read_only_steps_aside_and_the_others_go_on() -> Result<()> {
    fails_while_it_runs("ead-only file system", false, ext4)
}

/// Where the next record of a segment goes: behind the last one. A record has a header of 32 bytes, which begins with a
/// magic number and has the length of the rest at byte 4; the first stands behind the segment's own header.
fn end_of(segment: &Path) -> Result<u64> {
    let bytes = fs::read(segment)?;
    let mut at = 128;
    while bytes.get(at..at + 2) == Some(&[0x43, 0x52]) {
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into()?);
        at = (at + 32 + usize::try_from(length)?).next_multiple_of(8);
    }
    Ok(at as u64)
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
