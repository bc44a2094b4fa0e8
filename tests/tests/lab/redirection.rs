//! A node that loses its storage network goes on through a peer, and comes back (P1, P2, P4, R1).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::cluster::{Cut, Network, Plan, TARGET};
use lab::steady::Writers;
use lab::wait::until;
use lab::{Cluster, content};
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
        let redirected = cluster.await_state(3, "n2", "redirected (block)")?;
        let problem = redirected["problem"].as_str().unwrap_or_default();
        ensure!(problem.contains("through n1") || problem.contains("through n3"), "{redirected}");
        ensure!(redirected["since_s"].is_number(), "{redirected}");
        thread::sleep(Duration::from_millis(500));
        let cut = writers.seen();
        // It sends nothing by itself, and goes on.
        let before = cluster.target().asked_by(client)?;
        thread::sleep(Duration::from_secs(1));
        ensure!(cluster.target().asked_by(client)? == before, "n2 reaches the target by itself");
        let through = writers.seen();
        let path = cluster.said_of(1, "n2")?["mount"]["path"].to_string();
        ensure!(through.count > 100, "it hardly goes on: {through:?} after {cut:?}: {path}");

        cluster.heal(2, Network::San)?;
        let healed = Instant::now();
        cluster.await_state(1, "n2", "direct")?;
        let took = healed.elapsed();
        thread::sleep(Duration::from_millis(500));
        let back = writers.seen();
        println!("{how:?}: {cut:?}; through a peer {through:?}; back after {took:?}: {back:?}");
        ensure!(cluster.target().asked_by(client)? > before, "n2 does not use its own path again");
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

/// The coordinator's node, and a file that it owns.
#[test]
fn the_coordinators_role_goes_where_a_path_works() -> Result<()> {
    with_nodes(3, |cluster| {
        content::fill(&cluster.path(1, "disk"), 5, BLOCKS)?;
        cluster.acquire(1, &["disk"])?;
        let writers = Writers::start(&cluster.path(1, "disk"), 5, BLOCKS, 2)?;
        ensure!(cluster.coordinator(3)? == 1);
        cluster.cut(1, Network::San, Cut::Reset)?;
        let moved = until("the role to go", PATIENCE, || cluster.coordinator(3).ok().filter(|at| *at != 1));
        ensure!(moved? != 1);
        cluster.await_state(3, "n1", "redirected (block)")?;
        // It keeps its file, and everybody makes names.
        for number in 1..=3_u8 {
            std::fs::write(cluster.path(number, &format!("new{number}")), b"made")?;
        }
        cluster.heal(1, Network::San)?;
        cluster.await_state(2, "n1", "direct")?;
        writers.finish(&cluster.path(1, "disk"))
    })
}

/// A node that is redirected dies: what its host carries for it is done, or refused, before its file is another's.
#[test]
fn f1_a_redirected_node_that_dies_leaves_its_file_as_it_was_acknowledged() -> Result<()> {
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    let plan = Plan { fence: "nbd-target".to_owned(), ..Plan::short_sessions(3, memory.path()) };
    Cluster::run(plan, |cluster| {
        cluster.mount_all()?;
        content::fill(&cluster.path(2, "disk"), 5, BLOCKS)?;
        cluster.acquire(2, &["disk"])?;
        let writers = Writers::start(&cluster.path(2, "disk"), 5, BLOCKS, 4)?;
        cluster.cut(2, Network::San, Cut::Reset)?;
        cluster.await_state(3, "n2", "redirected (block)")?;
        thread::sleep(Duration::from_millis(500));
        cluster.power_off(2)?;
        until("the file is free", PATIENCE, || cluster.acquire(3, &["disk"]).ok())?;
        let written = writers.acknowledged();
        written.check(&cluster.path(3, "disk"))?;
        // Nothing of the dead node lands any more.
        let before = std::fs::read(cluster.path(3, "disk"))?;
        thread::sleep(Duration::from_secs(3));
        ensure!(std::fs::read(cluster.path(3, "disk"))? == before, "a late write has landed");
        Ok(())
    })
}

#[test]
fn a_storage_network_that_comes_and_goes_costs_no_error() -> Result<()> {
    with_nodes(2, |cluster| {
        content::fill(&cluster.path(2, "disk"), 5, BLOCKS)?;
        cluster.acquire(2, &["disk"])?;
        let writers = Writers::start(&cluster.path(2, "disk"), 5, BLOCKS, 4)?;
        for round in 0..6 {
            let how = if round % 2 == 0 { Cut::Reset } else { Cut::Unplugged };
            cluster.cut(2, Network::San, how)?;
            thread::sleep(Duration::from_millis(700));
            cluster.heal(2, Network::San)?;
            thread::sleep(Duration::from_millis(700));
        }
        cluster.await_state(1, "n2", "direct")?;
        let seen = writers.seen();
        println!("flapping: {seen:?}");
        writers.finish(&cluster.path(2, "disk"))
    })
}

/// What one node sends to the target is lost, and the way back works; then the other way round.
#[test]
fn a_storage_network_that_is_cut_one_way_is_left() -> Result<()> {
    with_nodes(2, |cluster| {
        content::fill(&cluster.path(2, "disk"), 5, BLOCKS)?;
        cluster.acquire(2, &["disk"])?;
        let writers = Writers::start(&cluster.path(2, "disk"), 5, BLOCKS, 4)?;
        thread::sleep(Duration::from_millis(500));
        cluster.cut_way(2, TARGET, Network::San)?;
        cluster.await_state(1, "n2", "redirected (block)")?;
        cluster.heal_way(2, TARGET, Network::San)?;
        cluster.await_state(1, "n2", "direct")?;
        writers.finish(&cluster.path(2, "disk"))
    })
}
