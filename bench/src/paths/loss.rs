//! The pause when a path is lost, and the way back.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::Cluster;
use lab::cluster::{Cut, Network};
use lab::content;
use lab::steady::{Seen, Writers};

use super::{NODE, wait_state};
use crate::cluster::row;
use crate::figure::{Bar, Row, Spread};
use crate::stage::Effort;

/// The tries of each way to lose the path, in rounds.
const TRIES: u32 = 4;
const BLOCKS: u64 = 16_384;
const DEPTH: u64 = 4;
/// How long writers go on before and after.
const STEADY: Duration = Duration::from_millis(1500);
/// The path time-out of a path that is fast: three times its slowest thousandth, and a second at least.
const PATH_TIMEOUT_MS: f64 = 1000.0;

/// What was seen of one try.
struct Try {
    /// Without a fault, as long.
    control: Seen,
    cut: Seen,
    /// From the healing on.
    back: Seen,
    direct_after: Duration,
}

fn attempt(lab: &Cluster, writers: &Writers, how: Cut) -> Result<Try> {
    writers.seen();
    thread::sleep(STEADY);
    let control = writers.seen();
    lab.cut(NODE, Network::San, how)?;
    wait_state(lab, "redirected (block)")?;
    thread::sleep(Duration::from_millis(500));
    let cut = writers.seen();
    lab.heal(NODE, Network::San)?;
    let healed = Instant::now();
    wait_state(lab, "direct")?;
    let direct_after = healed.elapsed();
    thread::sleep(STEADY);
    Ok(Try { control, cut, back: writers.seen(), direct_after })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The rows of each way to lose the path.
pub fn rows(lab: &Cluster, effort: Effort) -> Result<Vec<Row>> {
    let path = lab.path(NODE, "disk");
    content::fill(&path, 5, BLOCKS)?;
    lab.acquire(NODE, &["disk"])?;
    let mut rows = Vec::new();
    for (how, said, bar) in [
        (Cut::Reset, "its connections are reset", 300.0),
        (Cut::Silent, "its packets are dropped", PATH_TIMEOUT_MS + 300.0),
    ] {
        let mut tries = Vec::new();
        for _ in 0..effort.rounds * TRIES {
            let writers = Writers::start(&path, 5, BLOCKS, DEPTH)?;
            tries.push(attempt(lab, &writers, how)?);
            writers.finish(&path)?;
            // A path that was lost soon after it was used again has to answer for longer: each try is a first one.
            thread::sleep(Duration::from_secs(1));
        }
        let spread = |value: fn(&Try) -> f64| Spread::of(tries.iter().map(value).collect());
        let gap = spread(|one| ms(one.cut.gap));
        let worst = Spread { median: gap.high, ..gap };
        let measured = format!("{gap} ms; the slowest write {} ms", spread(|one| ms(one.cut.slowest)));
        let what =
            format!("a node loses its path, {said}: longest gap of {DEPTH} writers, {} tries", tries.len());
        rows.push(Row {
            bar: format!("each at most {bar:.0} ms"),
            ..row(what, measured, worst, Bar::AtMost(bar))
        });
        let back = spread(|one| one.direct_after.as_secs_f64());
        let measured = format!("{back} s");
        let what = format!("{said}, and healed: until I/O is direct again");
        rows.push(Row { bar: "at most 3 s".to_owned(), ..row(what, measured, back, Bar::AtMost(3.0)) });
        let more = spread(|one| ms(one.back.slowest) - ms(one.control.slowest));
        let measured = format!(
            "{} ms; without it {} ms",
            spread(|one| ms(one.back.slowest)),
            spread(|one| ms(one.control.slowest))
        );
        let what = format!("{said}, and healed: longest write meanwhile, against a control run");
        let bar = Bar::AtMost(100.0);
        rows.push(Row { bar: "at most 100 ms more".to_owned(), ..row(what, measured, more, bar) });
    }
    Ok(rows)
}
