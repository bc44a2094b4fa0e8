//! A lab whose owner was killed is taken away by the next one.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Cluster;
use lab::cluster::{Cut, Network, Plan, State, is_mounted};
use lab::wait::until;
use tempfile::TempDir;

use crate::traces;

/// Where the owner makes its lab, and what it says when that is up.
const BASE: &str = "LAB_TEST_BASE";

fn plan(base: PathBuf) -> Plan {
    Plan { base, window_ms: 500, ..Plan::new(2) }
}

/// Not a test: the process that [`a_lab_whose_owner_was_killed_is_swept_by_the_next`] starts and kills.
#[test]
#[ignore = "the owner of a lab, for another test"]
fn an_owner() -> Result<()> {
    let Some(base) = std::env::var_os(BASE).map(PathBuf::from) else { return Ok(()) };
    let cluster = Cluster::up(Plan { name: Some("orphan".to_owned()), ..plan(base.clone()) })?;
    cluster.format_standalone()?;
    cluster.mount_standalone(1)?;
    cluster.cut(2, Network::Lan, Cut::Silent)?;
    fs::write(base.join("is-up"), "")?;
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

#[test]
fn a_lab_whose_owner_was_killed_is_swept_by_the_next() -> Result<()> {
    let base = TempDir::new()?;
    let mut owner = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "sweep::an_owner"])
        .env(BASE, base.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let up = until("the owner's lab is up", Duration::from_secs(15), || {
        (base.path().join("is-up").exists() || !matches!(owner.try_wait(), Ok(None))).then_some(())
    });
    let folder = base.path().join("orphan");
    let state = State::read(&folder);
    // While its owner lives it stays.
    let beside = Cluster::up(plan(base.path().to_owned())).map(|beside| (folder.exists(), beside));
    owner.kill()?;
    owner.wait()?;
    up?;
    let (state, (was_there, beside)) = (state?, beside?);
    ensure!(was_there, "the lab of a living owner was swept");
    let processes = state.processes();
    ensure!(processes.len() == 2 && processes.iter().all(|process| process.is_alive()), "{state:?}");
    ensure!(is_mounted(&folder.join("n1/mnt")), "the orphan has a mount");
    // A paused process cannot end by itself.
    processes[1].signal(libc::SIGSTOP)?;

    let foreign = base.path().join("foreign/file");
    fs::create_dir(base.path().join("foreign"))?;
    fs::write(&foreign, "")?;
    let next = Cluster::up(plan(base.path().to_owned())).context("the next lab")?;
    ensure!(foreign.exists(), "what is no lab was swept");
    traces::none("orphan", &folder, &processes)?;
    ensure!(beside.folder().exists() && next.folder().exists(), "the others stay");
    Ok(())
}
