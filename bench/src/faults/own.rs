//! The writes of an owner while something happens to others, and as long while nothing does.

use std::time::Duration;

use anyhow::Result;
use lab::Cluster;

use crate::figure::{Bar, Row, Spread};
use crate::fio::{Load, Target, Underway};
use crate::stage::fill;

const FILE: u64 = 64 << 20;
/// Writes a second: the rest of the processors is left to those who take over.
const RATE: u32 = 1000;
/// What fio has to begin with, and what it sees after the fault.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_millis(500);

/// A file that a node owns, and the longest write of it in each of two times of the same length, in milliseconds.
#[derive(Debug)]
pub struct Own {
    target: Target,
    load: Load,
}

impl Own {
    /// A file of this name, which `node` owns.
    pub fn file(lab: &Cluster, node: u8, name: &str) -> Result<Self> {
        let path = lab.path(node, name);
        fill(&path, FILE)?;
        lab.acquire(node, &[name])?;
        let load = Load { rw: "randwrite", request: 4096, depth: 1, size: FILE, seconds: 0 };
        Ok(Self { target: Target::file(&path), load })
    }

    /// What `happens` gives, and the longest write meanwhile in milliseconds.
    pub fn during<T>(&self, happens: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
        let fio = Underway::start(&self.target, self.load, RATE)?;
        std::thread::sleep(BEFORE);
        let happened = happens()?;
        std::thread::sleep(AFTER);
        Ok((happened, fio.end()?.longest_us / 1e3))
    }
}

/// The row of the longest writes: of each round the one during the fault, and the one of the control run.
pub fn row(what: &str, rounds: &[(f64, f64)]) -> Row {
    let spread = |value: fn(&(f64, f64)) -> f64| Spread::of(rounds.iter().map(value).collect());
    let measured = format!("{} ms; without it {} ms", spread(|round| round.0), spread(|round| round.1));
    let more = spread(|round| round.0 - round.1);
    let what =
        format!("{what}: longest write of an owner on another node, 4 KiB, depth 1, against a control run");
    Row {
        bar: "at most 20 ms more".to_owned(),
        ..crate::cluster::row(what, measured, more, Bar::AtMost(20.0))
    }
}
