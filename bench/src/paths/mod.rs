//! A node that loses its storage network: how long it pauses, how fast it is through a peer, and how it comes back.
//!
//! A row counts only if it happened: the node says by whom it goes, and the target's counters say that it sends nothing
//! itself.

mod loss;
mod speed;

use anyhow::{Result, ensure};
use lab::Cluster;
use lab::cluster::{Network, Plan};

use crate::cluster::{Stage, folder_in_memory, rows_of};
use crate::figure::Row;
use crate::stage::Effort;

/// The node that loses its storage network, and owns the file; it does not coordinate.
const NODE: u8 = 2;

fn plan() -> Plan {
    Plan { fence: "nbd-target".to_owned(), ..Plan::new(3) }
}

/// Nodes that have an empty volume mounted.
fn mounted(plan: Plan) -> Result<Stage> {
    let stage = Stage::on(folder_in_memory()?, plan)?;
    stage.lab.mount_all()?;
    Ok(stage)
}

/// Waits until the node is said to be in `state`.
fn wait_state(lab: &Cluster, state: &str) -> Result<()> {
    lab.await_state(1, &lab.node(NODE).name(), state).map(drop)
}

/// What `work` gives while the node goes through a peer, and sends nothing itself.
fn redirected<T>(lab: &Cluster, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let client = lab.target().counters_of_node(NODE)?.client;
    lab.cut(NODE, Network::San, lab::cluster::Cut::Reset)?;
    wait_state(lab, "redirected (block)")?;
    let before = lab.target().asked_by(client)?;
    let done = work()?;
    ensure!(lab.target().asked_by(client)? == before, "n{NODE} reached the target by itself");
    lab.heal(NODE, Network::San)?;
    wait_state(lab, "direct")?;
    Ok(done)
}

/// The rows of `measure` on a lab of `plan`.
fn measured_on(plan: Plan, what: &str, measure: impl FnOnce(&Cluster) -> Result<Vec<Row>>) -> Vec<Row> {
    rows_of(what, || {
        let stage = mounted(plan)?;
        let rows = measure(&stage.lab);
        if rows.is_err() {
            eprintln!("{}", stage.lab.last_words(20));
        }
        stage.end();
        rows
    })
}

/// All of them.
pub fn figures(effort: Effort) -> Result<Vec<Row>> {
    let mut rows = rows_of("path loss", || loss::rows(effort));
    rows.extend(measured_on(plan(), "latency through a peer", |lab| speed::latency(lab, effort)));
    rows.extend(measured_on(plan(), "through a peer, unshaped", |lab| speed::unshaped(lab, effort)));
    let shaped = plan().rate_lan(speed::SHAPED).rate_san(speed::SHAPED);
    rows.extend(measured_on(shaped, "through a peer, shaped", |lab| speed::shaped(lab, effort)));
    Ok(rows)
}
