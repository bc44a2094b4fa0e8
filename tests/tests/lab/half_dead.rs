//! Nodes that are half dead, under load and for longer than a lease: cut off from the others with the LUN at hand, and the other
//! way round. Each sees what `docs/GUARANTEES.md` promises, and all is well afterwards.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::Cluster;
use lab::cluster::{Network, Plan};
use lab::history::{Done, History, Workload, check};
use lab::wait::until;
use serde_json::Value;
use tempfile::TempDir;

/// The file that n3 owns, and the one that the coordinator's node serves.
const OWNED: &str = "owned";
const FREE: &str = "free";
const BLOCKS: u64 = 8;
const LEASE: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_secs(2);
/// The longest time after which a path is late.
const PATH_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// What a busy machine takes longer.
const BUSY: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(60);

fn with(fence: &str, test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    let plan = Plan {
        fence: fence.to_owned(),
        lease_ms: Some(u32::try_from(LEASE.as_millis())?),
        grace_ms: Some(u32::try_from(GRACE.as_millis())?),
        ..Plan::short_sessions(3, memory.path())
    };
    Cluster::run(plan, |cluster| {
        cluster.mount_all()?;
        for name in [OWNED, FREE] {
            fs::write(cluster.path(1, name), vec![0; usize::try_from(BLOCKS * 4096)?])?;
            fs::File::open(cluster.path(1, name))?.sync_all()?;
        }
        cluster.acquire(3, &[OWNED])?;
        test(cluster)?;
        cluster.end_clean()
    })
}

/// All nodes read and write both files, each its own blocks, while `meanwhile` happens.
fn under_load(cluster: &Cluster, meanwhile: impl FnOnce(&Done, &Done) -> Result<()>) -> Result<()> {
    let [owned, free] = [OWNED, FREE].map(|name| cluster.registers(&[1, 2, 3], name));
    let (owned, free) = (owned?, free?);
    let workload = Workload {
        blocks: BLOCKS,
        threads: 1,
        pause: Duration::from_millis(2),
        operations_max: u64::MAX,
        // What is under way at a server that is lost is done once more by the next one.
        one_writer: true,
        seed: 1,
    };
    let ((happened, of_free), of_owned) = workload.run(&owned, |on_owned| {
        let inner = workload.run(&free, |on_free| {
            let happened = meanwhile(on_owned, on_free);
            // Whoever waits for what is cut off goes on, also when something was wrong.
            let healed = cluster.heal_all();
            on_free.stop();
            happened.and(healed)
        });
        on_owned.stop();
        inner
    });
    happened?;
    is_register(OWNED, &of_owned)?;
    is_register(FREE, &of_free)
}

fn is_register(name: &str, history: &History) -> Result<()> {
    let Err(violations) = check(history) else { return Ok(()) };
    let said: Vec<String> = violations.iter().take(5).map(ToString::to_string).collect();
    bail!("{name}: {} violations: {}", violations.len(), said.join("\n"))
}

/// The node goes on with that file; how long that took.
fn goes_on(done: &Done, number: u8) -> Result<Duration> {
    let (at, since) = (usize::from(number) - 1, Instant::now());
    let before = done.succeeded(at);
    until(&format!("n{number} to go on"), PATIENCE, || (done.succeeded(at) > before + 5).then_some(()))?;
    Ok(since.elapsed())
}

/// Whether anything on the node has succeeded within so long.
fn does_anything(done: &Done, number: u8, within: Duration) -> bool {
    let at = usize::from(number) - 1;
    let before = done.succeeded(at);
    thread::sleep(within);
    done.succeeded(at) > before
}

fn failed(done: &Done, number: u8) -> u64 {
    done.failed(usize::from(number) - 1)
}

/// The sessions that live.
fn sessions(cluster: &Cluster) -> Result<Vec<u64>> {
    let status: Value = serde_json::from_str(&cluster.lockctl("n1", &["--json", "status"])?)?;
    let sessions = status["state"]["sessions"].as_array().context("no sessions")?;
    let mut sessions: Vec<u64> = sessions.iter().filter_map(|session| session["session"].as_u64()).collect();
    sessions.sort_unstable();
    Ok(sessions)
}

/// n3 reaches the LUN, and nobody else. `free_within`: how long what it had may take to be free.
fn without_lan(fence: &str, free_within: Duration) -> Result<()> {
    with(fence, |cluster| {
        let (first, second) = (cluster.ready_to_cut()?, cluster.ready_to_cut()?);
        under_load(cluster, |owned, free| {
            // For less than a lease: nothing has happened.
            first.cut(3, Network::Lan)?;
            thread::sleep(LEASE / 3);
            cluster.heal(3, Network::Lan)?;
            for done in [owned, free] {
                (1..=3).try_for_each(|number| goes_on(done, number).map(drop))?;
            }
            // For longer: its I/O pauses, and what it had is free for the others when it is fenced.
            let cut = Instant::now();
            second.cut(3, Network::Lan)?;
            thread::sleep(LEASE + Duration::from_millis(500));
            // Its LUN is at hand all the time: only the lease, or the target, keeps it from that.
            ensure!(!does_anything(owned, 3, Duration::from_secs(1)), "n3 reads or writes without its lease");
            goes_on(owned, 1)?;
            goes_on(owned, 2)?;
            let took = cut.elapsed();
            eprintln!("{fence}: what n3 had is used by the others {took:.2?} after the cut");
            ensure!(took <= free_within + BUSY, "free only after {took:?}");
            (1..=2).try_for_each(|number| goes_on(free, number).map(drop))?;
            ensure!(!does_anything(owned, 3, Duration::from_secs(1)), "n3 reads or writes what is others'");
            cluster.heal(3, Network::Lan)?;
            // Its programs are told.
            until("n3's programs to be told", PATIENCE, || {
                (failed(owned, 3) > 0 && failed(free, 3) > 0).then_some(())
            })?;
            for number in 1..=2 {
                ensure!(
                    failed(owned, number) + failed(free, number) == 0,
                    "something has failed on n{number}"
                );
            }
            Ok(())
        })?;
        // It is mounted anew. What it had can no more be closed in order.
        cluster.daemon("n3", "csvfs")?.stop(PATIENCE)?;
        cluster.restart("n3", "csvfs")?;
        for name in [OWNED, FREE] {
            let seen = fs::read(cluster.path(1, name))?;
            ensure!(fs::read(cluster.path(3, name))? == seen, "n3 sees another {name} than n1");
        }
        cluster.acquire(3, &[OWNED])
    })
}

#[test]
fn a_node_that_reaches_only_the_lun_pauses_and_its_files_are_free_after_lease_and_grace() -> Result<()> {
    without_lan("lease", LEASE + LEASE + GRACE)
}

#[test]
fn a_node_that_reaches_only_the_lun_is_refused_there_soon_after_its_lease() -> Result<()> {
    without_lan("nbd-target", LEASE + Duration::from_secs(1))
}

/// `victim` reaches the others, and not the LUN, for longer than a lease and its grace: it goes on through one of them.
fn without_san(victim: u8) -> Result<()> {
    with("lease", |cluster| {
        let before = sessions(cluster)?;
        let scissors = cluster.ready_to_cut()?;
        under_load(cluster, |owned, free| {
            (1..=3).try_for_each(|number| goes_on(owned, number).map(drop))?;
            scissors.cut(victim, Network::San)?;
            let cut = Instant::now();
            thread::sleep(PATH_TIMEOUT_MAX + Duration::from_secs(1));
            while cut.elapsed() < PATH_TIMEOUT_MAX + LEASE + GRACE + Duration::from_secs(2) {
                for done in [owned, free] {
                    for number in 1..=3 {
                        let took = goes_on(done, number)?;
                        ensure!(took < Duration::from_secs(2), "n{number} waited for {took:?}");
                    }
                }
            }
            cluster.heal(victim, Network::San)?;
            for done in [owned, free] {
                for number in 1..=3 {
                    goes_on(done, number)?;
                    ensure!(failed(done, number) == 0, "something has failed on n{number}");
                }
            }
            eprintln!("all went on {:.2?} after the cut", cut.elapsed());
            until("its own path to be used again", PATIENCE, || {
                cluster.status(victim).ok().filter(|status| status["state"] == "direct").map(drop)
            })
        })?;
        // Nobody's session has ended. The role is where a path was.
        ensure!(sessions(cluster)? == before, "a session has ended");
        let coordinator = cluster.coordinator(2)?;
        ensure!((coordinator == 1) == (victim != 1), "n{coordinator} coordinates");
        Ok(())
    })
}

#[test]
fn an_owner_that_does_not_reach_the_lun_goes_on_through_a_peer() -> Result<()> {
    without_san(3)
}

#[test]
fn a_coordinator_that_does_not_reach_the_lun_hands_its_role_on_and_all_go_on() -> Result<()> {
    without_san(1)
}
