//! As many nodes as a cluster is made for.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Logs, Stage};
use crate::figure::{Row, Spread};
use crate::stage::timed;

const NODES: u8 = 16;

/// Sixteen nodes mount; each creates files that all see; a set goes from node to node.
pub fn works() -> Result<Vec<Row>> {
    let stage = Stage::new(NODES, Logs::Disk)?;
    let lab = &stage.lab;
    let ((), mounted) = timed(|| lab.mount_all())?;
    let began = Instant::now();
    let mut created = Vec::new();
    for node in 1..=NODES {
        std::fs::create_dir(lab.path(node, &format!("of{node}")))?;
        let ((), took) = timed(|| {
            (0..50)
                .try_for_each(|file| Ok(std::fs::write(lab.path(node, &format!("of{node}/{file}")), [node])?))
        })?;
        created.push(50.0 / took.as_secs_f64());
    }
    for reader in 1..=NODES {
        for node in 1..=NODES {
            let seen = std::fs::read(lab.path(reader, &format!("of{node}/49")))?;
            ensure!(seen == [node], "n{reader} does not see what n{node} wrote: {seen:?}");
        }
    }
    let used = began.elapsed();
    let names: Vec<String> = (0..10).map(|file| format!("of2/{file}")).collect();
    lab.acquire(2, &names)?;
    let mut pauses = Vec::new();
    // Round all nodes but the first, which coordinates.
    for from in 2..=NODES {
        let to = if from == NODES { 2 } else { from + 1 };
        let pause: Duration = lab.transfer(from, to, &names)?;
        pauses.push(pause.as_secs_f64() * 1e3);
    }
    stage.end()?;
    Ok(vec![Row {
        what: format!("{NODES} nodes, 5 voters: mount, create and transfer"),
        measured: format!(
            "lockd, format and all mounts in {:.1} s; files written by one node after the other {} a second, and read by \
             all in {:.1} s; ten files handed round all nodes, pause {} ms",
            mounted.as_secs_f64(),
            Spread::of(created),
            used.as_secs_f64(),
            Spread::of(pauses)
        ),
        figure: "works".to_owned(),
        bar: "works".to_owned(),
        kept: true,
    }])
}
