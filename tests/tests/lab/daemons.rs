//! Daemons are started, seen to be ready, stopped, killed, paused and resumed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use lab::Cluster;
use lab::cluster::{Cut, DaemonSpec, Network, Plan, Reached, Ready};
use lab::wait::until;

use crate::traces;

fn shell(name: &str, script: &str) -> DaemonSpec {
    DaemonSpec::new(name, PathBuf::from("/bin/sh")).args(["-c", script])
}

#[test]
fn a_daemon_is_ready_when_it_says_so_and_obeys() -> Result<()> {
    Cluster::run(Plan::new(2), |cluster| {
        let script = "echo on its way; sleep 0.2; echo ready; while :; do echo tick; sleep 0.01; done";
        let start = Instant::now();
        let daemon = cluster.start("n1", shell("ticker", script).ready(Ready::Line("ready".to_owned())))?;
        ensure!(start.elapsed() >= Duration::from_millis(200), "it was not ready yet");
        let again = cluster.start("n1", shell("ticker", script)).map(drop).unwrap_err().to_string();
        ensure!(again.contains("n1/ticker runs already"), "{again}");

        let log = cluster.node(1).log_folder().join("ticker.out");
        let length = || std::fs::metadata(&log).map(|data| data.len()).unwrap_or(0);
        cluster.pause("n1", "ticker")?;
        let before = length();
        std::thread::sleep(Duration::from_millis(100));
        ensure!(length() == before, "a paused daemon goes on");
        cluster.resume("n1", "ticker")?;
        until("it ticks again", Duration::from_secs(5), || (length() > before).then_some(()))?;

        cluster.pause("n1", "ticker")?;
        let ended = cluster.stop("n1", "ticker").unwrap_err().to_string();
        ensure!(ended.contains("signal: 15"), "a paused daemon is stopped all the same: {ended}");
        ensure!(!daemon.is_alive());
        let stopped = cluster.kill("n1", "ticker").unwrap_err().to_string();
        ensure!(stopped.contains("n1/ticker does not run"), "{stopped}");
        cluster.restart("n1", "ticker")?;
        let process = cluster.daemon("n1", "ticker")?.process();
        cluster.kill("n1", "ticker")?;
        ensure!(process.is_some_and(|process| !process.is_alive()));

        let unknown = cluster.kill("n1", "lockd").unwrap_err().to_string();
        ensure!(unknown.contains("there is no n1/lockd: the lab has n1/ticker, san/target"), "{unknown}");
        let unknown = cluster.start("n3", shell("x", "")).map(drop).unwrap_err().to_string();
        ensure!(unknown.contains("there is no node n3: the lab has n1, n2"), "{unknown}");
        Ok(())
    })
}

#[test]
fn a_daemon_that_ends_before_it_is_ready_says_why() -> Result<()> {
    Cluster::run(Plan::new(1), |cluster| {
        let spec =
            shell("broken", "echo the disk is full >&2; exit 3").ready(Ready::Line("ready".to_owned()));
        let said = format!("{:#}", cluster.start("n1", spec).map(drop).unwrap_err());
        ensure!(said.contains("exit status: 3") && said.contains("the disk is full"), "{said}");
        let mut spec = shell("slow", "echo thinking >&2; sleep 60").ready(Ready::Line("ready".to_owned()));
        spec.ready_ms_max = 200;
        let said = format!("{:#}", cluster.start("n1", spec).map(drop).unwrap_err());
        ensure!(said.contains("until n1/slow is ready") && said.contains("thinking"), "{said}");
        ensure!(cluster.last_words(5).contains("n1/broken (has ended) said:\nthe disk is full"));
        Ok(())
    })
}

#[test]
fn the_target_can_be_killed_and_comes_back_with_what_it_had() -> Result<()> {
    Cluster::run(Plan::new(1), |cluster| {
        let address = SocketAddr::new(Network::San.address(lab::cluster::TARGET).into(), 10809);
        let reach = || cluster.node(1).namespace().reaches(address, Duration::from_secs(5));
        ensure!(reach()? == Reached::Accepted);
        cluster.target().kill()?;
        ensure!(reach()? == Reached::Refused);
        cluster.restart("san", "target")?;
        ensure!(reach()? == Reached::Accepted && cluster.target().counters().is_ok());
        cluster.pause("san", "target")?;
        // The kernel still accepts for it.
        ensure!(reach()? == Reached::Accepted);
        cluster.resume("san", "target")
    })
}

#[test]
fn what_runs_on_a_host_has_its_network_and_ends_with_the_lab() -> Result<()> {
    let cluster = Cluster::up(Plan::new(1))?;
    let output = cluster.exec("n1", "ip")?.args(["-brief", "address"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("10.77.0.1/24") && text.contains("10.78.0.1/24"), "{text}");
    let output = cluster.exec("n1", "sh")?.args(["-c", "echo $CSV_NODE $CSV_CLUSTER"]).output()?;
    let said = format!("n1 {}\n", cluster.cluster_file().display());
    ensure!(String::from_utf8_lossy(&output.stdout) == said, "{output:?}");
    // Also what it does not know of.
    let mut stray = cluster.exec("n1", "sleep")?.arg("60").spawn()?;
    let processes = cluster.node(1).namespace().processes();
    ensure!(processes.len() == 1 && processes[0].pid == stray.id(), "{processes:?}");
    cluster.cut(1, Network::San, Cut::Unplugged)?;
    let (name, folder) = (cluster.name(), cluster.folder().to_owned());
    cluster.down()?;
    let ended = until("the stray process ends", Duration::from_secs(5), || stray.try_wait().ok().flatten());
    if ended.is_err() {
        stray.kill()?;
        bail!("a process outlived its host");
    }
    traces::none(&name, &folder, &processes)
}
