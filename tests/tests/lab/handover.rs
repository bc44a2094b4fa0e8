//! Files that are handed over as a set while they are written and verified.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::suites::{fio_verify_command, is_soak};
use lab::{Cluster, content};
use tempfile::TempDir;

use crate::volume::with_three_mounts;

const FILES: [&str; 4] = ["disk0", "disk1", "disk2", "disk3"];
/// As large as each file is, in MiB.
const SIZE: u64 = 4;

/// fio on all files at once, on one node, as long as they move between two; how often they moved, and the longest pause.
fn move_under_fio(cluster: &Cluster, on: u8, between: [u8; 2]) -> Result<(u32, Duration)> {
    let scratch = TempDir::new()?;
    cluster.acquire(between[0], &FILES)?;
    let mut command = fio_verify_command("global", scratch.path())?;
    let written = if is_soak() { 512 } else { 24 };
    command
        .args(["--direct=1", "--ioengine=libaio", "--iodepth=4", "--rw=randwrite", "--bsrange=4k-16k"])
        .args(["--verify_backlog=256", "--rate_iops=1500", "--fsync=128", &format!("--size={SIZE}m")])
        .args([&format!("--io_size={written}m"), "--group_reporting", "--thread"])
        .args(FILES.iter().enumerate().flat_map(|(job, name)| {
            [format!("--name=moved{job}"), format!("--filename={}", cluster.path(on, name).display())]
        }))
        .stdout(Stdio::null());
    let mut fio = command.spawn()?;
    let (mut moved, mut longest, mut at) = (0, Duration::ZERO, 0);
    let done = loop {
        if let Some(status) = fio.try_wait()? {
            break Ok(status);
        }
        match cluster.transfer(between[at], between[1 - at], &FILES) {
            Ok(pause) => longest = longest.max(pause),
            Err(error) => {
                let _ = fio.kill();
                fio.wait()?;
                break Err(error);
            }
        }
        moved += 1;
        at = 1 - at;
    };
    let status = done?;
    if at == 1 {
        // Back to where they are acquired from: a pinned file is taken from nobody.
        cluster.transfer(between[1], between[0], &FILES)?;
    }
    ensure!(status.success(), "fio on n{on} found a wrong block, or could not write: {status}");
    Ok((moved, longest))
}

#[test]
fn fio_verifies_while_its_files_are_transferred_back_and_forth() -> Result<()> {
    with_three_mounts(|cluster| {
        for name in FILES {
            content::fill(&cluster.path(3, name), 7, SIZE << 8)?;
        }
        // The writer is on one of the two owners, then on the node that never is one.
        for on in [2, 1] {
            let (moved, longest) = move_under_fio(cluster, on, [2, 3])?;
            eprintln!(
                "fio on n{on}: {moved} transfers of {} files, the longest pause {longest:?}",
                FILES.len()
            );
            ensure!(moved >= 10, "the files have moved {moved} times only");
        }
        Ok(())
    })
}
