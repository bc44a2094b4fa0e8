//! Files handed over: the pause that a writer sees, and how long a large set takes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Cluster;
use lockd::local::xattr::resource_name;

use super::{Logs, row};
use crate::figure::{Bar, Row, Spread};
use crate::stage::{Effort, fill, timed};

const FILES: usize = 10;
const FILE: u64 = 1 << 20;
const TRANSFERS: usize = 200;
/// Between two transfers, so that the writer finds its pace again.
const REST: Duration = Duration::from_millis(20);
/// As large a set as one transfer takes.
const MANY: usize = 10_000;

/// A write: when it began, and how long it took.
type Write = (Instant, Duration);

/// Writes blocks of all files in turn until it is stopped.
fn write_on(files: &[File], stop: &AtomicBool) -> Result<Vec<Write>> {
    let (mut writes, block) = (Vec::new(), vec![7; 4096]);
    for turn in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let file = &files[usize::try_from(turn)? % files.len()];
        let began = Instant::now();
        file.write_all_at(&block, turn * 4096 * 7 % FILE)?;
        writes.push((began, began.elapsed()));
    }
    Ok(writes)
}

/// The longest write that lies at least in part in each of the windows, in milliseconds.
fn longest(writes: &[Write], windows: &[(Instant, Instant)]) -> Vec<f64> {
    let in_window = |(from, to): &(Instant, Instant)| {
        let here = writes.iter().filter(|(began, took)| began < to && *began + *took > *from);
        here.map(|(_, took)| took.as_secs_f64() * 1e3).fold(0.0, f64::max)
    };
    windows.iter().map(in_window).collect()
}

/// The value below which all but a hundredth lie.
fn p99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * 99).div_ceil(100).max(1) - 1;
    values.get(rank).copied().unwrap_or(f64::NAN)
}

/// 200 transfers of ten files between two nodes, under a writer on one of them; and as long without transfers, in turn.
pub fn pauses(lab: &Cluster, logs: Logs, effort: Effort) -> Result<Vec<Row>> {
    let names: Vec<String> = (0..FILES).map(|number| format!("moved{number}")).collect();
    for name in &names {
        fill(&lab.path(2, name), FILE)?;
    }
    lab.acquire(2, &names)?;
    let open = |name: &String| File::options().write(true).open(lab.path(2, name));
    let files = names.iter().map(open).collect::<Result<Vec<_>, _>>().context("opening the files")?;
    let stop = AtomicBool::new(false);
    let rounds = usize::try_from(effort.rounds)?;
    let each = TRANSFERS / 5;
    let (mut moved, mut quiet, mut said) = (Vec::new(), Vec::new(), Vec::new());
    let (writes, done) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_on(&files, &stop));
        let mut nodes = [2, 3];
        let done = (|| -> Result<()> {
            for _ in 0..rounds {
                let mut windows = Vec::new();
                for _ in 0..each {
                    let began = Instant::now();
                    said.push(lab.transfer(nodes[0], nodes[1], &names)?.as_secs_f64() * 1e3);
                    windows.push((began, Instant::now()));
                    nodes.reverse();
                    std::thread::sleep(REST);
                }
                // The same times, with nothing in them.
                for (from, to) in windows {
                    moved.push((from, to));
                    let began = Instant::now();
                    std::thread::sleep(to - from);
                    quiet.push((began, Instant::now()));
                    std::thread::sleep(REST);
                }
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        (writer.join().expect("the writer does not panic"), done)
    });
    let writes = writes?;
    done?;
    let (pauses, control) = (longest(&writes, &moved), longest(&writes, &quiet));
    let what = format!("{} transfers of {FILES} files, the pause of a writer{}", moved.len(), logs.said());
    let (spread, control_spread) = (Spread::of(pauses.clone()), Spread::of(control.clone()));
    let whole = Spread::of(moved.iter().map(|(from, to)| (*to - *from).as_secs_f64() * 1e3).collect());
    let measured = format!(
        "{spread} ms; without transfers {control_spread} ms; lockctl says {} ms, and takes {whole} ms",
        Spread::of(said)
    );
    let tail = Spread::of(vec![p99(pauses)]);
    let quiet = p99(control);
    Ok(vec![
        row(format!("{what}: median"), measured, spread, Bar::AtMost(5.0)),
        row(
            format!("{what}: 99 of 100"),
            format!("{:.2} ms; without transfers {quiet:.2} ms", tail.median),
            tail,
            Bar::AtMost(25.0),
        ),
    ])
}

/// One set of ten thousand files.
pub fn many(lab: &Cluster, effort: Effort) -> Result<Vec<Row>> {
    let names: Vec<String> = (0..MANY).map(|number| format!("many/{number}")).collect();
    std::fs::create_dir(lab.path(2, "many"))?;
    std::thread::scope(|scope| {
        let part = |names: &[String]| -> Result<()> {
            names.iter().try_for_each(|name| Ok(std::fs::write(lab.path(2, name), [1; 4096])?))
        };
        let parts: Vec<_> = names.chunks(MANY / 8).map(|names| scope.spawn(move || part(names))).collect();
        parts.into_iter().try_for_each(|part| part.join().expect("a creating thread does not panic"))
    })?;
    let ((), acquired) = timed(|| lab.acquire(2, &names))?;
    let resource = |name: &String| Ok(resource_name(&lab.path(2, name))?);
    let (resources, resolved) = timed(|| names.iter().map(resource).collect::<Result<Vec<String>>>())?;
    let (mut seconds, mut pauses, mut nodes) = (Vec::new(), Vec::new(), [2, 3]);
    for _ in 0..effort.rounds {
        let (pause, took) = timed(|| lab.transfer(nodes[0], nodes[1], &resources))?;
        seconds.push(took.as_secs_f64());
        pauses.push(pause.as_secs_f64());
        nodes.reverse();
    }
    let last = lab.path(1, &names[MANY - 1]);
    ensure!(std::fs::read(last)? == [1; 4096], "a file is not what it was");
    let spread = Spread::of(seconds);
    let measured = format!(
        "lockctl takes {spread} s, the pause is {} s; acquired by path in {:.2} s, paths resolved in {:.2} s",
        Spread::of(pauses),
        acquired.as_secs_f64(),
        resolved.as_secs_f64()
    );
    Ok(vec![row(format!("transfer of {MANY} files in one set"), measured, spread, Bar::AtMost(1.0))])
}
