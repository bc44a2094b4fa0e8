//! `csvfs status` for all nodes, asked for at any of them, with nodes that are away in each way in which they can be.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::Cluster;
use lab::cluster::{Cut, Network, Plan};
use lab::wait::until;

const LIMIT: Duration = Duration::from_secs(30);

fn running(plan: Plan, test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let plan = Plan { window_ms: 500, fence: "lease".to_owned(), ..plan };
    Cluster::run(plan, |cluster| {
        cluster.init()?;
        cluster.start_lockd()?;
        cluster.format()?;
        (1..=3).try_for_each(|number| cluster.mount(number).map(drop))?;
        test(cluster)
    })
}

#[test]
fn each_node_tells_the_state_of_all() -> Result<()> {
    running(Plan::new(3), |cluster| {
        for asked in 1..=3 {
            let status = cluster.cluster_status(asked)?;
            ensure!(status["asked"] == format!("n{asked}") && status["quorum"] == true, "{status}");
            let volume = &status["volumes"][0];
            ensure!(volume["coordinator"] == "n1" && volume["name"] == "vms", "{status}");
            ensure!(volume["coordinator_since_s"].is_number() && volume["coordinator_epoch"].is_number());
            ensure!(volume["fence"].as_str().is_some_and(|fence| fence.contains("lease")), "{status}");
            for node in ["n1", "n2", "n3"] {
                let node = cluster.said_of(asked, node)?;
                ensure!(node["state"] == "direct" && node["since_s"].is_number(), "{node}");
                ensure!(
                    node["mount"]["coordinator"] == "n1"
                        && node["mount"]["cluster"] == cluster.cluster_name(),
                    "{node}"
                );
            }
        }
        let text = cluster.exec_ours("n2", "csvfs", &["status"])?;
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        ensure!(text.contains("coordinator  n1 for") && text.contains("n3           direct"), "{text}");

        // Unmounted in order; and a mount that hangs.
        cluster.stop("n3", "csvfs")?;
        cluster.await_state(2, "n3", "not mounted")?;
        cluster.pause("n2", "csvfs")?;
        let hung = cluster.await_state(1, "n2", "silent")?;
        ensure!(hung["problem"].as_str().is_some_and(|why| why.contains("does not answer")), "{hung}");
        cluster.resume("n2", "csvfs")?;
        cluster.await_state(1, "n2", "direct")?;

        // A node that is gone altogether.
        cluster.kill("n3", "lockd")?;
        let gone = cluster.await_state(1, "n3", "unreachable")?;
        ensure!(gone["since_s"].is_number(), "it was heard of before: {gone}");
        ensure!(gone["problem"].as_str().is_some_and(|why| why.contains("10.77.0.3")), "{gone}");

        // Without a quorum the mounts still tell.
        cluster.kill("n2", "lockd")?;
        let alone = cluster.cluster_status(1)?;
        ensure!(alone["quorum"] == false, "{alone}");
        ensure!(alone["problem"].as_str().is_some_and(|why| why.contains("no quorum")), "{alone}");
        ensure!(alone["volumes"][0]["coordinator"] == "n1", "{alone}");
        cluster.await_state(1, "n2", "unreachable")?;

        // Without lockd here, the mounts of this machine are what there is.
        cluster.kill("n1", "lockd")?;
        let here = cluster.status(1)?;
        ensure!(here["node"] == "n1", "{here}");
        cluster.restart("n2", "lockd")?;
        cluster.restart("n1", "lockd")?;
        until("all is well again", LIMIT, || {
            cluster.said_of(2, "n1").ok().filter(|node| node["state"] == "direct")
        })?;
        Ok(())
    })
}

#[test]
fn a_lease_that_has_run_out_is_a_pause_and_an_ended_session_a_failure() -> Result<()> {
    running(
        Plan { lease_ms: Some(2000), grace_ms: Some(1000), target_quiesce_ms: Some(500), ..Plan::new(3) },
        |cluster| {
            cluster.cut(2, Network::Lan, Cut::Silent)?;
            let paused = until("n2 says that it has no lease", LIMIT, || {
                let node = cluster.said_of(2, "n2").ok()?;
                node["problem"].as_str()?.contains("lease").then_some(node)
            })?;
            ensure!(paused["state"] == "paused", "{paused}");
            ensure!(paused["since_s"].as_f64().is_some_and(|since| since < 30.0), "{paused}");
            let seen = cluster.await_state(1, "n2", "unreachable")?;
            ensure!(seen["since_s"].as_f64().is_some_and(|since| since > 0.0), "{seen}");
            until("the session has ended and is fenced", LIMIT, || {
                let node = cluster.said_of(3, "n2").ok()?;
                node["problem"].as_str()?.contains("it has no session").then_some(())
            })?;
            cluster.heal(2, Network::Lan)?;
            let failed = cluster.await_state(2, "n2", "failed")?;
            ensure!(
                failed["problem"].as_str().is_some_and(|why| why.contains("session has ended")),
                "{failed}"
            );
            Ok(())
        },
    )
}

#[test]
fn a_node_without_a_path_works_through_the_others_and_says_so() -> Result<()> {
    running(Plan::new(3), |cluster| {
        let file = |number: u8| cluster.node(number).mount_point().join("file");
        fs::write(file(1), b"through n1")?;
        cluster.cut(3, Network::San, Cut::Reset)?;
        let seen = cluster.await_state(2, "n3", "redirected (block)")?;
        ensure!(
            seen["problem"].as_str().is_some_and(|why| why.contains("no path") && why.contains("through n")),
            "{seen}"
        );
        ensure!(fs::read(file(3))? == b"through n1");
        cluster.heal(3, Network::San)?;
        cluster.await_state(1, "n3", "direct")?;
        Ok(())
    })
}

#[test]
fn a_server_that_hangs_is_a_pause() -> Result<()> {
    let plan = Plan { window_ms: 500, ..Plan::new(1) };
    Cluster::run(plan, |cluster| {
        cluster.format_standalone()?;
        cluster.mount_standalone(1)?;
        cluster.pause("san", "target")?;
        let paused = until("the mount says that it hangs", LIMIT, || {
            cluster.status(1).ok().filter(|status| status["state"] == "paused")
        })?;
        ensure!(paused["problem"].as_str().is_some_and(|why| why.contains("LUN")), "{paused}");
        ensure!(paused["since_s"].is_number(), "{paused}");
        cluster.resume("san", "target")?;
        until("it goes on", LIMIT, || cluster.status(1).ok().filter(|status| status["state"] == "direct"))?;
        Ok(())
    })
}
