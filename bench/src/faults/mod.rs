//! Nodes and mounts that die, and a coordinator that moves, on three nodes and a volume that csv-target fences.
//!
//! A fault has happened, or there is no figure: the processes are gone, the target has refused the victim, and the role that
//! it had is another's.

mod cast;
mod loss;
mod moves;
mod outage;
mod own;

use std::time::Duration;

use anyhow::Result;
use lab::Cluster;
use lab::cluster::Plan;
use lab::server::Kind;
use lab::{Server, mounted};

use crate::cluster::{Stage, folder_in_memory, rows_of};
use crate::figure::Row;
use crate::names;
use crate::stage::Effort;
use cast::Part;
use outage::Fault;

const NODES: u8 = 3;
const LUN: u64 = 10 << 30;
/// The default lease.
const LEASE: Duration = Duration::from_secs(8);
/// How long anything may take that has a bar below it.
const LIMIT: Duration = Duration::from_secs(60);

fn plan() -> Plan {
    Plan { fence: "nbd-target".to_owned(), window_ms: 500, ..Plan::new(NODES).lun(LUN) }
}

/// Nodes that have an empty volume mounted.
fn empty() -> Result<Stage> {
    let stage = Stage::on(folder_in_memory()?, plan())?;
    stage.lab.mount_all()?;
    Ok(stage)
}

/// Nodes that have a volume of so many files mounted.
fn filled(files: u64) -> Result<Stage> {
    let memory = folder_in_memory()?;
    // The target of the lab takes the image that this one leaves.
    let server = Server::start(Kind::CsvTarget, memory.path(), LUN)?;
    mounted::format(&server.url())?;
    names::load(&server.url(), files)?;
    drop(server);
    let stage = Stage::on(memory, plan())?;
    stage.lab.init()?;
    stage.lab.start_lockd()?;
    (1..=NODES).try_for_each(|number| stage.lab.mount(number).map(drop))?;
    Ok(stage)
}

fn measured_on(
    stage: Result<Stage>,
    what: &str,
    measure: impl FnOnce(&Cluster) -> Result<Vec<Row>>,
) -> Vec<Row> {
    rows_of(what, || {
        let stage = stage?;
        let rows = measure(&stage.lab);
        if rows.is_err() {
            eprintln!("{}", stage.lab.last_words(20));
        }
        stage.end();
        rows
    })
}

/// All of them; those of a large volume on one of so many files.
pub fn figures(effort: Effort, files: u64) -> Result<Vec<Row>> {
    let faults = [
        (Fault::NodeDead, Part::Neither),
        (Fault::NodeDead, Part::Coordinator),
        (Fault::NodeDead, Part::CoordinatorAndLeader),
        (Fault::MountKilled, Part::Neither),
        (Fault::MountKilled, Part::Coordinator),
    ];
    let mut rows = Vec::new();
    for (fault, part) in faults {
        let what = format!("{fault}{part}");
        rows.extend(measured_on(empty(), &what, |lab| loss::rows(lab, fault, part, "", effort)));
    }
    rows.extend(measured_on(empty(), "planned moves", |lab| moves::rows(lab, effort)));
    let volume = format!(", on a volume of {files} files");
    rows.extend(measured_on(filled(files), &format!("the coordinator lost{volume}"), |lab| {
        let mut rows = loss::rows(lab, Fault::NodeDead, Part::Coordinator, &volume, effort)?;
        rows.extend(loss::rows(lab, Fault::MountKilled, Part::Coordinator, &volume, effort)?);
        Ok(rows)
    }));
    Ok(rows)
}
