//! How fast blocks go through a peer.

use anyhow::Result;
use lab::Cluster;

use super::{NODE, redirected};
use crate::cluster::{noted, processor_s, row};
use crate::figure::{Bar, Rounds, Row, Spread};
use crate::fio::{Load, Sample, Target, run};
use crate::stage::{Effort, fill};

const FILE: u64 = 256 << 20;
/// To what each network of a node is limited, in bytes a second: direct I/O takes less than half of the processors then.
pub const SHAPED: u64 = 60 << 20;

fn load(rw: &'static str, request: u32, depth: u32, effort: Effort) -> Load {
    Load { rw, request, depth, size: FILE, seconds: effort.seconds }
}

fn file(lab: &Cluster) -> Result<Target> {
    let path = lab.path(NODE, "disk");
    fill(&path, FILE)?;
    lab.acquire(NODE, &["disk"])?;
    Ok(Target::file(&path))
}

/// Rounds of each load, direct and through a peer.
fn rounds(lab: &Cluster, loads: &[Load], effort: Effort, value: fn(&Sample) -> f64) -> Result<Vec<Rounds>> {
    let file = file(lab)?;
    let mut all = vec![Rounds::default(); loads.len()];
    for _ in 0..effort.rounds {
        let direct = loads.iter().map(|load| run(&file, *load)).collect::<Result<Vec<_>>>()?;
        let through =
            redirected(lab, || loads.iter().map(|load| run(&file, *load)).collect::<Result<Vec<_>>>())?;
        for ((rounds, direct), through) in all.iter_mut().zip(&direct).zip(&through) {
            rounds.add(vec![value(direct), value(through)]);
        }
    }
    Ok(all)
}

/// What a peer adds to the latency of one request at a time.
pub fn latency(lab: &Cluster, effort: Effort) -> Result<Vec<Row>> {
    let loads = ["randread", "randwrite"].map(|rw| load(rw, 4096, 1, effort));
    let all = rounds(lab, &loads, effort, |sample| sample.latency_us)?;
    let rows = loads.iter().zip(all).map(|(load, rounds)| {
        let added = rounds.derived(|round| round[1] - round[0]);
        let measured = format!("{} us directly, {} us", rounds.contender(0), rounds.contender(1));
        let what = format!("{}, 4 KiB, depth 1, through a peer: added mean latency, unshaped", load.rw);
        Row { bar: "at most 120 us".to_owned(), ..row(what, measured, added, Bar::AtMost(120.0)) }
    });
    Ok(rows.collect())
}

const KINDS: [(&str, u32, u32, f64); 4] = [
    ("read", 1 << 20, 4, 0.85),
    ("write", 1 << 20, 4, 0.85),
    ("randread", 4096, 32, 0.5),
    ("randwrite", 4096, 32, 0.5),
];

fn named(load: &Load) -> String {
    let size = if load.request >= 1 << 20 { "1 MiB" } else { "4 KiB" };
    format!("{}, {size}, depth {}, through a peer against directly", load.rw, load.depth)
}

/// Both networks limited alike.
pub fn shaped(lab: &Cluster, effort: Effort) -> Result<Vec<Row>> {
    let loads = KINDS.map(|(rw, request, depth, _)| load(rw, request, depth, effort));
    let all = rounds(lab, &loads, effort, |sample| sample.rate / f64::from(1 << 20))?;
    let rows = loads.iter().zip(KINDS).zip(all).map(|((load, (.., bar)), rounds)| {
        let ratio = rounds.derived(|round| round[1] / round[0]);
        let measured = format!("{} against {} MiB/s", rounds.contender(1), rounds.contender(0));
        row(
            format!("{}, both networks limited to {} MiB/s", named(load), SHAPED >> 20),
            measured,
            ratio,
            Bar::AtLeast(bar),
        )
    });
    Ok(rows.collect())
}

/// Nothing limited: the processors are.
pub fn unshaped(lab: &Cluster, effort: Effort) -> Result<Vec<Row>> {
    let file = file(lab)?;
    let mut rows = Vec::new();
    for (rw, request, depth, _) in KINDS {
        let load = load(rw, request, depth, effort);
        let (mut direct, mut through, mut used) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            direct.push(run(&file, load)?.rate / f64::from(1 << 20));
            let before = (processor_s(lab, 1)?, processor_s(lab, 2)?, processor_s(lab, 3)?);
            let sample = redirected(lab, || run(&file, load))?;
            let after = (processor_s(lab, 1)?, processor_s(lab, 2)?, processor_s(lab, 3)?);
            // fio's own ramp is half a second, in which it counts nothing.
            let bytes = sample.rate * (f64::from(effort.seconds) + 0.5);
            let seconds = after.0 - before.0 + after.1 - before.1 + after.2 - before.2;
            used.push(seconds * 1e9 / bytes);
            through.push(sample.rate / f64::from(1 << 20));
        }
        let (direct, through) = (Spread::of(direct), Spread::of(through));
        let measured = format!(
            "{through} against {direct} MiB/s; processor time of the mounts through a peer {} ns a byte",
            Spread::of(used)
        );
        let ratio = Spread { median: through.median / direct.median, ..through };
        rows.push(noted(
            format!("{}, unshaped", named(&load)),
            measured,
            Spread { low: ratio.median, high: ratio.median, ..ratio },
        ));
    }
    Ok(rows)
}
