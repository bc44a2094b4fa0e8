//! A daemon is killed, paused or cut off at each point of the protocols, while all nodes read and write the file that is
//! handed over: the history of every block is that of a register, and afterwards everything goes on.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::Cluster;
use lab::cluster::{Network, Scissors};
use lab::history::{Workload, check};
use lab::suites::is_soak;
use lab::wait::until;
use lockd::failpoint::POINTS;

use crate::volume::with_failpoints;

const FILE: &str = "disk";
const BLOCKS: u64 = 8;
/// How long a fault lasts that ends.
const LASTS: Duration = Duration::from_secs(2);
/// How long anything may take that must go on: a lease and its grace, and as much again.
const PATIENCE: Duration = Duration::from_secs(90);

/// What happens to the daemon that has come to the point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Kill,
    Pause,
    Cut,
}

/// What leads to the point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    /// The file goes from node 2 to node 3.
    Transfer,
    /// A file is made on node 3, and grows.
    Grow,
    /// Node 3 is mounted.
    Mount,
    /// Whoever coordinates is killed: another node does.
    Takeover,
}

impl Action {
    fn to(point: &str) -> Self {
        match point.split('.').next() {
            Some("mount") => Self::Mount,
            Some("takeover") => Self::Takeover,
            Some("reserve" | "commit") => Self::Grow,
            _ => Self::Transfer,
        }
    }

    /// Starts it in the background.
    fn start(self, cluster: &Cluster, round: usize) -> Result<Option<Child>> {
        let path = |number: u8, name: &str| cluster.path(number, name).display().to_string();
        let quiet = |command: &mut Command| {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
        };
        match self {
            Self::Transfer => {
                let mut command = cluster.exec("n2", lab::programs::ours("lockctl")?)?;
                Ok(Some(quiet(command.args(["transfer", &path(2, FILE), "--to", "n3"]))?))
            }
            Self::Grow => {
                let to = format!("of={}", path(3, &format!("grown{round}")));
                let arguments = ["if=/dev/zero", &to, "bs=1M", "count=24", "conv=fsync"];
                Ok(Some(quiet(Command::new("dd").args(arguments))?))
            }
            Self::Mount => {
                cluster.stop("n3", "csvfs")?;
                let spec = cluster.daemon("n3", "csvfs")?.spec().clone();
                cluster.launch("n3", spec)?;
                Ok(None)
            }
            Self::Takeover => {
                cluster.kill("n1", "csvfs")?;
                Ok(None)
            }
        }
    }
}

/// Node 1 coordinates.
fn home(cluster: &Cluster) -> Result<()> {
    until("node 1 to coordinate", PATIENCE, || {
        cluster.lockctl("n1", &["coordinator", "vms", "--to", "n1"]).ok().map(drop)
    })
}

fn daemon_of(point: &str) -> &'static str {
    if point.starts_with("lockd.") { "lockd" } else { "csvfs" }
}

/// The file with nothing in it, owned by node 2.
fn make_ready(cluster: &Cluster) -> Result<()> {
    let clean = || -> Result<()> {
        // Whoever has it by hand gives it back.
        let _ = cluster.lockctl("n1", &["release", &cluster.path(1, FILE).display().to_string()]);
        fs::write(cluster.path(1, FILE), vec![0; usize::try_from(BLOCKS * 4096)?])?;
        fs::File::open(cluster.path(1, FILE))?.sync_all()?;
        cluster.acquire(2, &[FILE])
    };
    let since = Instant::now();
    loop {
        match clean() {
            Ok(()) => return Ok(()),
            Err(error) if since.elapsed() > PATIENCE => return Err(error.context("making the file ready")),
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Ends the fault: what was killed is started again, as a service manager does.
fn recover(cluster: &Cluster, point: &str, fault: Fault, number: u8) -> Result<()> {
    let host = cluster.node(number).name();
    match fault {
        Fault::Kill => cluster.restart(&host, daemon_of(point)),
        Fault::Pause | Fault::Cut => cluster.heal_all(),
    }
}

fn strike(cluster: &Cluster, point: &str, fault: Fault, number: u8, scissors: Scissors<'_>) -> Result<()> {
    let host = cluster.node(number).name();
    match fault {
        Fault::Kill => return cluster.kill(&host, daemon_of(point)),
        Fault::Pause => cluster.pause(&host, daemon_of(point))?,
        Fault::Cut => scissors.cut(number, Network::Lan)?,
    }
    cluster.let_go(number, point)?;
    thread::sleep(LASTS);
    Ok(())
}

fn end(mut child: Child) -> Result<()> {
    let since = Instant::now();
    while child.try_wait()?.is_none() {
        if since.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("what led to the point does not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
    // Done or refused: both may be.
    child.wait().map(drop).context("waiting for what led to the point")
}

/// One fault at one point; how long it took until all that should go on went on.
fn one_fault(cluster: &Cluster, point: &str, fault: Fault, round: usize) -> Result<Duration> {
    let action = Action::to(point);
    if action == Action::Takeover {
        home(cluster)?;
    }
    make_ready(cluster)?;
    // A node that is mounted anew, or whose mount dies, has nobody at work.
    let nodes: &[u8] = match action {
        Action::Mount => &[1, 2],
        Action::Takeover => &[2, 3],
        Action::Transfer | Action::Grow => &[1, 2, 3],
    };
    let scissors = cluster.ready_to_cut()?;
    let registers = cluster.registers(nodes, FILE)?;
    let pause = Duration::from_millis(2);
    // It goes on until it is stopped.
    let (seed, operations_max) = (round as u64, u64::MAX);
    let workload =
        Workload { blocks: BLOCKS, threads: 1, pause, seed, operations_max, ..Workload::default() };
    let (done, history) = workload.run(&registers, |done| {
        let happened = (|| -> Result<Duration> {
            cluster.arm(point)?;
            let child = action.start(cluster, round)?;
            let number = cluster.await_reached(point, Duration::from_secs(20))?;
            let began = Instant::now();
            strike(cluster, point, fault, number, scissors)?;
            recover(cluster, point, fault, number)?;
            if let Some(child) = child {
                end(child)?;
            }
            if action == Action::Takeover {
                cluster.restart("n1", "csvfs")?;
            }
            if action == Action::Mount {
                let mount = cluster.daemon("n3", "csvfs")?;
                if mount.is_alive() { mount.wait_ready()? } else { cluster.restart("n3", "csvfs")? }
            }
            // Whoever was not killed goes on.
            let killed = fault == Fault::Kill && daemon_of(point) == "csvfs";
            for (at, node) in nodes.iter().enumerate() {
                if killed && *node == number {
                    continue;
                }
                let before = done.succeeded(at);
                until(&format!("n{node} to go on"), PATIENCE, || {
                    (done.succeeded(at) > before + 5).then_some(())
                })?;
            }
            Ok(began.elapsed())
        })();
        done.stop();
        happened
    });
    cluster.disarm(point)?;
    let took = done?;
    if let Err(violations) = check(&history) {
        let said: Vec<String> = violations.iter().map(ToString::to_string).collect();
        bail!("{}", said.join("\n"));
    }
    // A killed mount is back, and its node sees what the others see.
    let seen = fs::read(cluster.path(1, FILE))?;
    for number in 2..=3 {
        ensure!(fs::read(cluster.path(number, FILE))? == seen, "n{number} sees another file than n1");
    }
    Ok(took)
}

/// Each of `faults` at each point, those of `part` of `parts` only.
fn faults_at_points(faults: &[Fault], part: usize, parts: usize) -> Result<()> {
    with_failpoints(|cluster| {
        let all = POINTS.iter().flat_map(|(point, _)| faults.iter().map(move |fault| (*point, *fault)));
        // All of the part, or what is asked for by name.
        let named = std::env::var("CSV_POINT").ok();
        let chosen = all.enumerate().filter(|(round, (point, _))| match &named {
            Some(named) => named == point,
            None => round % parts == part,
        });
        for (round, (point, fault)) in chosen {
            let took =
                one_fault(cluster, point, fault, round).with_context(|| format!("{point}, {fault:?}"))?;
            eprintln!("{point}, {fault:?}: all went on after {took:.2?}");
        }
        Ok(())
    })
}

#[test]
fn whoever_is_killed_at_a_point_of_a_protocol_leaves_one_truth() -> Result<()> {
    faults_at_points(&[Fault::Kill], 0, if is_soak() { 1 } else { 4 })
}

#[test]
fn whoever_is_paused_or_cut_off_at_a_point_of_a_protocol_leaves_one_truth() -> Result<()> {
    faults_at_points(&[Fault::Pause, Fault::Cut], 0, if is_soak() { 1 } else { 5 })
}
