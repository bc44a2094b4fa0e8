//! The coordinator's role moves, as planned, back and forth between two nodes while a third one works.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::Cluster;

use super::cast::coordinate;
use super::own::{self, Own};
use crate::cluster::row;
use crate::figure::{Bar, Row, Spread};
use crate::stage::Effort;

const MOVES: u32 = 12;
/// Between two moves.
const REST: Duration = Duration::from_millis(200);
/// Between two files that are made: a light load.
const EVERY: Duration = Duration::from_millis(5);
/// Who has the role in turn, and who works.
const PAIR: [u8; 2] = [1, 2];
const WORKER: u8 = 3;

/// What `happens` gives, and the longest creation meanwhile in milliseconds.
fn creating<T>(lab: &Cluster, folder: &str, happens: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let folder = lab.path(WORKER, folder);
    std::fs::create_dir(&folder)?;
    let stop = AtomicBool::new(false);
    let create = || -> Result<f64> {
        let mut longest = Duration::ZERO;
        for number in 0_u64.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let began = Instant::now();
            File::create_new(folder.join(number.to_string())).context("making a file")?;
            longest = longest.max(began.elapsed());
            thread::sleep(EVERY);
        }
        Ok(longest.as_secs_f64() * 1e3)
    };
    thread::scope(|scope| {
        let creating = scope.spawn(create);
        let happened = happens();
        stop.store(true, Ordering::Relaxed);
        let longest = creating.join().expect("a creating thread does not panic");
        Ok((happened?, longest?))
    })
}

/// The pause of metadata, the longest creation, and the longest write of an owner.
pub fn rows(lab: &Cluster, effort: Effort) -> Result<Vec<Row>> {
    coordinate(lab, PAIR[0])?;
    let own = Own::file(lab, WORKER, "own")?;
    let (mut pauses, mut creations, mut quiet, mut writes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        let move_all = || -> Result<Duration> {
            let began = Instant::now();
            for turn in 1..=MOVES {
                let to = PAIR[usize::try_from(turn % 2)?];
                pauses.push(lab.move_coordinator(WORKER, to)?.as_secs_f64() * 1e3);
                thread::sleep(REST);
            }
            Ok(began.elapsed())
        };
        let ((span, creation), write) = own.during(|| creating(lab, &format!("moved{round}"), move_all))?;
        let wait = || {
            thread::sleep(span);
            Ok(())
        };
        let (((), control), quiet_write) = own.during(|| creating(lab, &format!("quiet{round}"), wait))?;
        creations.push(creation);
        quiet.push(control);
        writes.push((write, quiet_write));
    }
    let what = format!("{} planned moves of the coordinator", pauses.len());
    let pause = Spread::of(pauses);
    let measured = format!(
        "{pause} ms; longest creation on another node in {MOVES} moves {} ms, without moves {} ms",
        Spread::of(creations),
        Spread::of(quiet)
    );
    let first = row(
        format!("{what}: pause of metadata that lockctl prints, median"),
        measured,
        pause,
        Bar::AtMost(50.0),
    );
    Ok(vec![Row { bar: format!("{} ms", first.bar), ..first }, own::row(&what, &writes)])
}
