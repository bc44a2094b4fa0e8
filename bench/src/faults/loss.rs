//! The rows of a fault that takes a node, or its mount.

use std::time::Duration;

use anyhow::Result;
use lab::Cluster;

use super::cast::{Cast, Part};
use super::outage::{Fault, Outage};
use super::{LEASE, own};
use crate::cluster::row;
use crate::figure::{Bar, Row, Spread};
use crate::stage::Effort;

/// How long an election may take, and whatever follows it.
const ELECTION: Duration = Duration::from_secs(2);
/// What everything but waiting for leases may take.
const WORK: Duration = Duration::from_secs(1);

/// The bar, in seconds.
fn bar_s(fault: Fault, part: Part) -> f64 {
    let most = match (fault, part) {
        (Fault::MountKilled, _) => WORK,
        (Fault::NodeDead, Part::Neither | Part::Coordinator) => LEASE + WORK,
        // The new leader gives everybody a full lease (L1).
        (Fault::NodeDead, Part::CoordinatorAndLeader) => LEASE + WORK + LEASE + ELECTION,
    };
    most.as_secs_f64()
}

/// In which unit it is told, and how many of them a second has.
fn unit(fault: Fault) -> (&'static str, f64) {
    match fault {
        Fault::NodeDead => ("s", 1.0),
        Fault::MountKilled => ("ms", 1e3),
    }
}

/// `fault` befalls a node that is `part`, on a volume of which a row says `volume`.
pub fn rows(lab: &Cluster, fault: Fault, part: Part, volume: &str, effort: Effort) -> Result<Vec<Row>> {
    let mut outages = Vec::new();
    for round in 0..effort.rounds {
        let cast = Cast::assign(lab, part)?;
        outages.push(Outage::measure(lab, fault, cast, &format!("{fault:?}-{round}"))?);
    }
    let (unit, scale) = unit(fault);
    let spread =
        |value: fn(&Outage) -> f64| Spread::of(outages.iter().map(|outage| value(outage) * scale).collect());
    let what = format!("{fault}{part}{volume}");
    let files = spread(|outage| outage.file_s);
    let (until, measured, figure) = if part == Part::Neither {
        ("until its file is written on another node", format!("{files} {unit}"), files)
    } else {
        let names = spread(|outage| outage.names_s);
        let measured = format!("{files} {unit}; a file is made after {names} {unit}");
        let both = spread(|outage| outage.file_s.max(outage.names_s));
        ("until its file is written on another node, and a file is made on a third", measured, both)
    };
    let longest: Vec<(f64, f64)> = outages.iter().map(|outage| outage.longest_ms).collect();
    let bar = Bar::AtMost(bar_s(fault, part) * scale);
    let first = row(format!("{what}: {until}"), measured, figure, bar);
    Ok(vec![Row { bar: format!("{bar} {unit}"), ..first }, own::row(&what, &longest)])
}
