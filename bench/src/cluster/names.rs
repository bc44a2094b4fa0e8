//! Names from a node that does not coordinate the volume.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::Cluster;

use super::{noted, row};
use crate::figure::{Bar, Rounds, Row};
use crate::names::create_rate;
use crate::stage::Effort;

/// Durable creations a second from another node, with one thread and with eight; beside the coordinator's own node.
pub fn creation(lab: &Cluster, effort: Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let bars = [(1_usize, false, Some(800.0)), (8, false, Some(4000.0)), (1, true, None), (8, true, None)];
    for (threads, read, bar) in bars {
        let mut rounds = Rounds::default();
        for round in 0..effort.rounds {
            let rate = |node: u8| {
                let top = lab.path(node, &format!("create-{threads}-{read}-{round}-{node}"));
                create_rate(&top, threads, Duration::from_secs(effort.seconds.into()), read)
            };
            rounds.add(vec![rate(2)?, rate(1)?]);
        }
        let rate = rounds.contender(0);
        let measured = format!("{rate} a second; on the coordinator's node {}", rounds.contender(1));
        let opened = if read { ", opened for reading too, so owned" } else { "" };
        let what =
            format!("file creation from another node, {threads} thread(s), own directory each{opened}");
        rows.push(match bar {
            Some(bar) => row(what, measured, rate, Bar::AtLeast(bar)),
            None => noted(what, measured, rate),
        });
    }
    Ok(rows)
}

fn stat_rate(folder: &Path, files: u32, span: Duration) -> Result<f64> {
    let paths: Vec<_> = (0..files).map(|number| folder.join(number.to_string())).collect();
    let began = Instant::now();
    let mut done = 0;
    while began.elapsed() < span {
        for path in &paths {
            std::fs::symlink_metadata(path)?;
            done += 1;
        }
    }
    Ok(f64::from(done) / began.elapsed().as_secs_f64())
}

/// Lookup and stat of names that are cached, on another node against the coordinator's.
pub fn cached(lab: &Cluster, effort: Effort) -> Result<Vec<Row>> {
    const FILES: u32 = 1000;
    std::fs::create_dir(lab.path(1, "cached"))?;
    for number in 0..FILES {
        std::fs::File::create_new(lab.path(1, &format!("cached/{number}")))?;
    }
    let span = Duration::from_secs(effort.seconds.into());
    let rate = |node: u8, span| stat_rate(&lab.path(node, "cached"), FILES, span);
    // Once over all of them, so that they are cached.
    rate(2, Duration::from_nanos(1))?;
    rate(1, Duration::from_nanos(1))?;
    let mut rounds = Rounds::default();
    for _ in 0..effort.rounds {
        rounds.add(vec![rate(2, span)?, rate(1, span)?]);
    }
    let ratio = rounds.derived(|round| round[0] / round[1]);
    let measured = format!("{} against {} a second", rounds.contender(0), rounds.contender(1));
    let what = "lookup and stat of cached names, on another node against the coordinator's";
    Ok(vec![row(what, measured, ratio, Bar::AtLeast(0.9))])
}
