//! What an operator, a disk or a stranger can do wrong to a cluster, end to end: each gives a clear error and loses nothing.
//!
//! | what | here | and closer to the code |
//! |---|---|---|
//! | a mistake in the cluster file | `files` | `lockd::cluster::file::tests` |
//! | wrong, foreign, missing, expired certificate | `certificates` | `lockd::cluster::tls::tests`, `peers::quic::tests::refusal` |
//! | two machines with one node name | `certificates` | `peers::quic::tests::refusal` |
//! | lockd not there, or gone for a while | `absence` | `lockd/tests/cluster/clients.rs` (L10, L11) |
//! | no quorum | `absence` | `lockd/tests/cluster/failover.rs` |
//! | lockd's disk full, read-only, torn, damaged, lost | `disks` | `raft::log::tests`, `raft::node::tests::{storage, members}` |
//! | a second cluster, or a mount without one, on the LUN | `strangers` | `bad_days/second.rs` (V1) |
//! | acquire, transfer, show, break of what is not there | `requests` | `lockd::machine::tests::handover` |
//! | a client that floods with locks | `requests` | `lockd/tests/cluster/clients.rs` |
//! | garbage on every port and socket | `garbage` | `peers::quic::tests::garbage`, `lockd/tests/cluster/programs.rs`, `bad_days/hostile.rs` |

mod absence;
mod certificates;
mod disks;
mod files;
mod garbage;
mod requests;
mod strangers;

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cluster::Plan;
use lab::wait::until;
use lab::{Cluster, programs};
use serde_json::Value;

/// How long anything may take that should happen at all.
const LIMIT: Duration = Duration::from_secs(30);

/// A lab with its certificates, before anything runs.
fn prepared(nodes: u8, test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let plan = Plan { window_ms: 500, fence: "lease".to_owned(), ..Plan::new(nodes) };
    Cluster::run(plan, |cluster| {
        cluster.init()?;
        test(cluster)
    })
}

/// A lab with lockd on three nodes, and the volume mounted on as many as are asked for.
fn running(mounts: u8, test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    prepared(3, |cluster| {
        cluster.start_lockd()?;
        cluster.format()?;
        (1..=mounts).try_for_each(|number| cluster.mount(number).map(drop))?;
        test(cluster)
    })
}

/// One of our programs, to its end.
fn output(cluster: &Cluster, node: &str, program: &str, arguments: &[&str]) -> Result<Output> {
    Ok(cluster.exec(node, programs::ours(program)?)?.args(arguments).output()?)
}

/// Demands that it fails with this code and says all of this on standard error, in one line that is no debug output.
fn refused(cluster: &Cluster, node: &str, words: &[&str], code: i32, says: &[&str]) -> Result<String> {
    let output = output(cluster, node, words[0], &words[1..])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(code), "{words:?} ended with {}: {said}", output.status);
    for part in says {
        ensure!(said.contains(part), "{words:?} does not say {part:?}: {said}");
    }
    ensure!(!said.contains("panicked") && !said.contains("Error {"), "{words:?}: {said}");
    Ok(said)
}

/// Demands that it succeeds.
fn done(cluster: &Cluster, node: &str, words: &[&str]) -> Result<String> {
    let output = cluster.exec_ours(node, words[0], &words[1..])?;
    Ok(String::from_utf8(output.stdout)?)
}

/// What `lockctl status --json` says, also when it ends with 1.
fn lockctl_status(cluster: &Cluster, node: &str) -> Result<Value> {
    let output = output(cluster, node, "lockctl", &["status", "--json", "--timeout", "3"])?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What is said on `asked` of node `of`, once `found` accepts it.
fn wait_node(
    cluster: &Cluster,
    what: &str,
    asked: &str,
    of: &str,
    found: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let mut last = Value::Null;
    let waited = until(what, LIMIT, || {
        let status = lockctl_status(cluster, asked).ok()?;
        last = status["nodes"].as_array()?.iter().find(|node| node["node"] == of)?.clone();
        found(&last).then(|| last.clone())
    });
    waited.map_err(|error| error.context(format!("the last that {asked} said of {of}: {last}")))
}

/// Waits until all three nodes follow or lead.
fn wait_well(cluster: &Cluster, asked: &str) -> Result<()> {
    for of in ["n1", "n2", "n3"] {
        wait_node(cluster, &format!("{of} is well"), asked, of, |node| {
            node["reachable"] == true && matches!(node["voter"]["role"].as_str(), Some("leader" | "follower"))
        })?;
    }
    until("a quorum", LIMIT, || (lockctl_status(cluster, asked).ok()?["quorum"] == true).then_some(()))
}

/// Has lockd of `node` lead, or another one.
fn let_lead(cluster: &Cluster, node: &str, lead: bool) -> Result<()> {
    for _ in 0..20 {
        wait_well(cluster, "n1")?;
        let leader = lockctl_status(cluster, "n1")?["leader"].as_str().context("nobody leads")?.to_owned();
        if (leader == node) == lead {
            return Ok(());
        }
        cluster.kill(&leader, "lockd")?;
        let other = ["n1", "n2", "n3"].into_iter().find(|node| *node != leader).context("another node")?;
        until("another one leads", LIMIT, || {
            let now = lockctl_status(cluster, other).ok()?;
            now["leader"].as_str().is_some_and(|now| now != leader).then_some(())
        })?;
        cluster.restart(&leader, "lockd")?;
    }
    anyhow::bail!("the lead did not come where it should")
}

/// What a node's daemon has said so far.
fn log(cluster: &Cluster, node: &str, daemon: &str) -> String {
    let path = cluster.folder().join(node).join("log").join(format!("{daemon}.log"));
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Waits until a node's daemon has said this.
fn wait_said(cluster: &Cluster, node: &str, daemon: &str, part: &str) -> Result<()> {
    until(&format!("{daemon} on {node} says {part:?}"), LIMIT, || {
        log(cluster, node, daemon).contains(part).then_some(())
    })
    .map_err(|error| error.context(log(cluster, node, daemon)))
}
