//! A node that loses its storage network goes on through a peer, and comes back (P1, P2, P4, R1).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::cluster::{Cut, Network, Plan};
use lab::steady::Writers;
use lab::wait::until;
use lab::{Cluster, content};
use serde_json::Value;
use tempfile::TempDir;

const BLOCKS: u64 = 1024;
/// Long enough on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn with_nodes(nodes: u8, test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    let (lun_folder, fence) = (Some(memory.path().to_owned()), "nbd-target".to_owned());
    let plan = Plan { window_ms: 500, fence, lun_folder, ..Plan::new(nodes) };
    Cluster::run_mounted(plan, test)
}

/// What node `asked` says of node `of`.
fn said(cluster: &Cluster, asked: u8, of: u8) -> Result<Value> {
    let status = cluster.cluster_status(asked)?;
    let nodes = status["volumes"][0]["nodes"].as_array().with_context(|| format!("no table: {status}"))?;
    let found = nodes.iter().find(|node| node["node"] == format!("n{of}"));
    found.cloned().with_context(|| format!("n{of} is left out: {status}"))
}

fn wait_state(cluster: &Cluster, asked: u8, of: u8, state: &str) -> Result<Value> {
    until(&format!("n{of} is {state}, seen on n{asked}"), PATIENCE, || {
        said(cluster, asked, of).ok().filter(|node| node["state"] == state)
    })
}

/// What the target has been asked by a client so far.
fn asked_by(cluster: &Cluster, client: Option<u64>) -> Result<u64> {
    let counters = cluster.target().counters()?;
    let of = counters.iter().find(|counts| counts.client == client);
    Ok(of.context("the target does not know the client")?.touching())
}

/// n2, which owns a file that is written all the time, loses its storage network and gets it back.
fn goes_through_a_peer_and_back(how: Cut, pause: Duration) -> Result<()> {
    with_nodes(3, |cluster| {
        content::fill(&cluster.path(2, "disk"), 5, BLOCKS)?;
        cluster.acquire(2, &["disk"])?;
        let writers = Writers::start(&cluster.path(2, "disk"), 5, BLOCKS, 4)?;
        thread::sleep(Duration::from_secs(1));
        writers.seen();
        let client = cluster.target().counters_of_node(2)?.client;

        cluster.cut(2, Network::San, how)?;
        let redirected = wait_state(cluster, 3, 2, "redirected (block)")?;
        let problem = redirected["problem"].as_str().unwrap_or_default();
        ensure!(problem.contains("through n1") || problem.contains("through n3"), "{redirected}");
        ensure!(redirected["since_s"].is_number(), "{redirected}");
        thread::sleep(Duration::from_millis(500));
        let cut = writers.seen();
        // It sends nothing by itself, and goes on.
        let before = asked_by(cluster, client)?;
        thread::sleep(Duration::from_secs(1));
        ensure!(asked_by(cluster, client)? == before, "n2 reaches the target by itself");
        let through = writers.seen();
        let path = said(cluster, 1, 2)?["mount"]["path"].to_string();
        ensure!(through.count > 100, "it hardly goes on: {through:?} after {cut:?}: {path}");

        cluster.heal(2, Network::San)?;
        let healed = Instant::now();
        wait_state(cluster, 1, 2, "direct")?;
        let took = healed.elapsed();
        thread::sleep(Duration::from_millis(500));
        let back = writers.seen();
        println!("{how:?}: {cut:?}; through a peer {through:?}; back after {took:?}: {back:?}");
        ensure!(asked_by(cluster, client)? > before, "n2 does not use its own path again");
        writers.finish(&cluster.path(2, "disk"))?;
        ensure!(cut.gap < pause, "nothing was acknowledged for {:?}", cut.gap);
        Ok(())
    })
}

#[test]
fn p1_a_node_whose_connections_are_reset_goes_through_a_peer_and_back() -> Result<()> {
    goes_through_a_peer_and_back(Cut::Reset, Duration::from_secs(3))
}

#[test]
fn p1_a_node_whose_packets_are_lost_goes_through_a_peer_and_back() -> Result<()> {
    goes_through_a_peer_and_back(Cut::Silent, Duration::from_secs(9))
}
