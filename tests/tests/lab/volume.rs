//! One volume on every node: lockd, mounts and lockctl as real processes, one network namespace per node.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::cluster::Plan;
use lab::history::{Workload, check};
use lab::wait::until;
use lab::{Cluster, content, programs};
use tempfile::TempDir;

/// Three nodes that have the volume mounted; ended in order, and the volume checked. The LUN is in memory: a disk's
/// flushes would take most of the time, and are no part of what is tested.
pub(crate) fn with_three_mounts(test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    Cluster::run_mounted(plan_of_three(&memory), test)
}

/// The same, where the daemons halt at points.
pub(crate) fn with_failpoints(test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    Cluster::run(plan_of_three(&memory), |cluster| {
        cluster.use_failpoints()?;
        cluster.mount_all()?;
        test(cluster)?;
        cluster.end_clean()
    })
}

fn plan_of_three(memory: &TempDir) -> Plan {
    let (lun_folder, fence) = (Some(memory.path().to_owned()), "lease".to_owned());
    Plan { window_ms: 500, fence, lun_folder, ..Plan::new(3) }
}

pub(crate) fn lockctl(cluster: &Cluster, node: &str, arguments: &[&str]) -> Result<Output> {
    Ok(cluster.exec(node, programs::ours("lockctl")?)?.args(arguments).output()?)
}

pub(crate) fn lockctl_done(cluster: &Cluster, node: &str, arguments: &[&str]) -> Result<String> {
    cluster.lockctl(node, arguments)
}

pub fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of the lab is text")
}

#[test]
fn what_one_node_has_done_every_node_sees() -> Result<()> {
    with_three_mounts(|cluster| {
        let at = |number: u8, name: &str| cluster.node(number).mount_point().join(name);
        fs::create_dir(at(1, "dir"))?;
        for turn in 0..30_u8 {
            let (writer, readers) = (turn % 3 + 1, [1, 2, 3]);
            let name = format!("dir/file{turn}");
            ensure!(!at(writer % 3 + 1, &name).exists(), "it is looked for before it is there");
            fs::write(at(writer, &name), [turn; 100])?;
            for reader in readers {
                ensure!(fs::read(at(reader, &name))? == [turn; 100], "{name} on n{reader}");
            }
            let mut appended = fs::OpenOptions::new().append(true).open(at(writer % 3 + 1, &name))?;
            appended.write_all(b"more")?;
            drop(appended);
            for reader in readers {
                ensure!(fs::metadata(at(reader, &name))?.len() == 104, "{name} on n{reader}");
            }
            fs::rename(at(writer, &name), at(writer, &format!("dir/moved{turn}")))?;
            ensure!(!at(writer % 3 + 1, &name).exists(), "{name} has moved");
        }
        for reader in 1..=3 {
            ensure!(fs::read_dir(at(reader, "dir"))?.count() == 30);
        }
        fs::remove_dir_all(at(2, "dir"))?;
        ensure!(!at(3, "dir").exists());
        Ok(())
    })
}

#[test]
fn locks_hold_across_nodes() -> Result<()> {
    with_three_mounts(|cluster| {
        let path = |number: u8| cluster.node(number).mount_point().join("locked");
        fs::write(path(1), b"x")?;
        let try_flock = |file: &File| {
            // SAFETY: the descriptor is open through the call.
            let status = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
            if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        let (first, second) = (File::open(path(1))?, File::open(path(2))?);
        try_flock(&first)?;
        let refused = try_flock(&second).expect_err("the other node has it");
        ensure!(refused.raw_os_error() == Some(libc::EWOULDBLOCK), "{refused}");
        drop(first);
        // RELEASE comes a little after close(2).
        until("the lock to be free", Duration::from_secs(10), || try_flock(&second).ok())?;
        let resource = lockctl_done(cluster, "n3", &["show", text(&path(3))?])?;
        ensure!(resource.contains("volume/"), "{resource}");
        Ok(())
    })
}

#[test]
fn a_file_that_is_handed_over_under_its_writers_keeps_every_block() -> Result<()> {
    with_three_mounts(|cluster| {
        let path = |number: u8| cluster.node(number).mount_point().join("disk");
        content::fill(&path(1), 7, 1024)?;
        lockctl_done(cluster, "n1", &["acquire", text(&path(1))?, "--node", "n2"])?;
        let listed = lockctl_done(cluster, "n3", &["ls"])?;
        ensure!(listed.lines().any(|line| line.contains("/file/") && line.contains("n2")), "{listed}");
        let mut fio = Command::new(programs::installed("fio")?)
            .args(["--name=lab", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--rw=randwrite"])
            .args(["--bs=4k", "--size=4m", "--io_size=64m", "--verify=crc32c", "--do_verify=1"])
            .args(["--verify_state_save=0", "--rate_iops=4000"])
            .arg(format!("--filename={}", path(2).display()))
            .stdout(Stdio::null())
            .spawn()?;
        let mut moved = 0;
        let mut owner = 2_u8;
        while fio.try_wait()?.is_none() {
            let next = owner % 3 + 1;
            let node = format!("n{owner}");
            let to = format!("n{next}");
            lockctl_done(cluster, &node, &["transfer", text(&path(owner))?, "--to", &to])?;
            owner = next;
            moved += 1;
        }
        let status = fio.wait()?;
        ensure!(status.success(), "fio found a wrong block, or could not write: {status}");
        ensure!(moved >= 3, "the file has moved {moved} times only");
        let file = File::open(path(3))?;
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, 0)?;
        Ok(())
    })
}

#[test]
fn blocks_are_linearizable_over_three_nodes() -> Result<()> {
    with_three_mounts(|cluster| {
        fs::write(cluster.node(1).mount_point().join("registers"), vec![0; 64 << 10])?;
        let nodes = cluster.registers(&[1, 2, 3], "registers")?;
        let workload = Workload { operations_max: 1000, seed: 5, ..Workload::default() };
        let (_, history) = workload.run(&nodes, |_| ());
        if let Err(violations) = check(&history) {
            bail!("{} violations, the first: {:?}", violations.len(), violations.first());
        }
        Ok(())
    })
}
