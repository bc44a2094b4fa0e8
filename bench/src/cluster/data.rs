//! File data on another node than the coordinator's: owned there, or reached through its owner.

use std::fs;

use anyhow::{Context, Result};
use lab::Cluster;

use super::{Logs, Stage, row};
use crate::figure::{Bar, Rounds, Row, Spread};
use crate::fio::{Load, Target, run};
use crate::stage::{Effort, fill};

const FILE: u64 = 256 << 20;

fn load(rw: &'static str, effort: Effort) -> Load {
    Load { rw, request: 4096, depth: 32, size: FILE, seconds: effort.seconds }
}

/// Direct I/O to an owned file on another node, against a mount without a cluster of a LUN of the same kind.
pub fn owned(lab: &Cluster, effort: Effort) -> Result<Vec<Row>> {
    let alone = Stage::new(1, Logs::Disk)?;
    alone.lab.format_standalone()?;
    let beside = alone.lab.mount_standalone(1)?.join("data");
    fill(&beside, FILE)?;
    let file = lab.path(2, "owned");
    fill(&file, FILE)?;
    lab.acquire(2, &["owned"])?;
    let mut rows = Vec::new();
    for rw in ["randread", "randwrite"] {
        let mut rounds = Rounds::default();
        for _ in 0..effort.rounds {
            let rate = |file| run(&Target::file(file), load(rw, effort)).map(|sample| sample.iops);
            rounds.add(vec![rate(&file)?, rate(&beside)?]);
        }
        let ratio = rounds.derived(|round| round[0] / round[1]);
        let measured = format!("{} against {} requests/s", rounds.contender(0), rounds.contender(1));
        let what = format!("{rw}, 4 KiB, depth 32, an owned file on another node against a standalone mount");
        rows.push(row(what, measured, ratio, Bar::AtLeast(0.95)));
    }
    alone.end();
    Ok(rows)
}

/// The processor time that the mount on a node has used, in seconds.
pub fn processor_s(lab: &Cluster, node: u8) -> Result<f64> {
    let process = lab.daemon(&format!("n{node}"), "csvfs")?.process().context("it does not run")?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid))?;
    let (_, fields) = stat.rsplit_once(')').context("the name is in parentheses")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<f64>().ok()).context("a time");
    // SAFETY: a plain library call.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    #[expect(clippy::cast_precision_loss, reason = "it is 100")]
    Ok((ticks()? + ticks()?) / hertz as f64)
}

/// A file that one node owns, used on another that does not coordinate either.
pub fn through_owner(lab: &Cluster, effort: Effort) -> Result<Vec<Row>> {
    fill(&lab.path(2, "served"), FILE)?;
    lab.acquire(2, &["served"])?;
    let file = Target::file(&lab.path(3, "served"));
    let mut rows = Vec::new();
    for rw in ["randread", "randwrite"] {
        let (mut rates, mut asking, mut serving) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let before = [processor_s(lab, 3)?, processor_s(lab, 2)?];
            let sample = run(&file, load(rw, effort))?;
            // fio's own ramp is half a second, in which it counts nothing.
            let requests = sample.iops * (f64::from(effort.seconds) + 0.5);
            let used =
                |node, before| Ok::<_, anyhow::Error>((processor_s(lab, node)? - before) * 1e6 / requests);
            asking.push(used(3, before[0])?);
            serving.push(used(2, before[1])?);
            rates.push(sample.iops);
        }
        let rate = Spread::of(rates);
        let measured = format!(
            "{rate} requests/s; processor time a request: {} us where it is asked, {} us at the owner",
            Spread::of(asking),
            Spread::of(serving)
        );
        let what = format!("{rw}, 4 KiB, depth 32, a file through its owner");
        rows.push(row(what, measured, rate, Bar::AtLeast(15_000.0)));
    }
    Ok(rows)
}
