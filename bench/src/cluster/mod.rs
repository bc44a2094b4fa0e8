//! Several nodes on one volume, as namespaces of this machine.
//!
//! The LUN is in memory, so that the figures are those of the programs. What lockd writes is on the disk of the temporary
//! folder; where a figure is that disk's own (a flush may take milliseconds), it is taken once more with lockd's files in
//! memory.

mod data;
mod leader;
mod locks;
mod names;
mod sixteen;
mod transfer;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lab::Cluster;
use lab::cluster::{Plan, base_folder};
use tempfile::TempDir;

pub use data::processor_s;

use crate::figure::{Bar, Row, Spread};
use crate::stage::Effort;

/// What the system keeps in memory.
const MEMORY: &str = "/dev/shm";
const LUN: u64 = 4 << 30;

/// Where a lab's lockds keep their files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Logs {
    Disk,
    Memory,
}

impl Logs {
    /// How a row names it.
    fn said(self) -> &'static str {
        match self {
            Self::Disk => "",
            Self::Memory => ", lockd's log in memory",
        }
    }
}

/// A folder in memory.
pub fn folder_in_memory() -> Result<TempDir> {
    TempDir::new_in(MEMORY).context("a folder in memory")
}

/// A lab and the folder of its LUN.
#[derive(Debug)]
pub struct Stage {
    /// The lab.
    pub lab: Cluster,
    /// After the lab, so that it goes later.
    _memory: TempDir,
}

impl Stage {
    /// So many nodes, nothing mounted.
    fn new(nodes: u8, logs: Logs) -> Result<Self> {
        let base = match logs {
            Logs::Disk => base_folder(),
            Logs::Memory => PathBuf::from(MEMORY).join("csv-lab"),
        };
        Self::on(folder_in_memory()?, Plan { base, window_ms: 500, ..Plan::new(nodes).lun(LUN) })
    }

    /// What `plan` says, nothing mounted, with its LUN in `memory`: the one that is there, or a fresh one.
    pub fn on(memory: TempDir, plan: Plan) -> Result<Self> {
        let lun_folder = Some(memory.path().to_owned());
        Ok(Self { lab: Cluster::up(Plan { lun_folder, ..plan })?, _memory: memory })
    }

    /// So many nodes that have the volume mounted.
    fn mounted(nodes: u8, logs: Logs) -> Result<Self> {
        let stage = Self::new(nodes, logs)?;
        stage.lab.mount_all()?;
        Ok(stage)
    }

    /// Ends it in order; what does not end well is said, and is no reason to lose the figures that are taken.
    pub fn end(self) {
        if let Err(error) = self.lab.down() {
            eprintln!("  the lab did not end well: {error:#}");
        }
    }
}

/// A row whose figure is `figure`.
pub fn row(what: impl Into<String>, measured: impl Into<String>, figure: Spread, bar: Bar) -> Row {
    Row {
        what: what.into(),
        measured: measured.into(),
        figure: figure.to_string(),
        bar: bar.to_string(),
        kept: bar.kept(figure.median),
    }
}

/// A row that no bar is set for.
pub fn noted(what: impl Into<String>, measured: impl Into<String>, figure: Spread) -> Row {
    Row { bar: "written down".to_owned(), kept: true, ..row(what, measured, figure, Bar::AtLeast(0.0)) }
}

/// The rows of `measure`; a figure that could not be taken is a row that says why, so that the others are taken.
pub fn rows_of(what: &str, measure: impl FnOnce() -> Result<Vec<Row>>) -> Vec<Row> {
    eprintln!("  {what}");
    let rows = measure().unwrap_or_else(|error| {
        let measured = format!("not measured: {error:#}").replace(['\n', '|'], " ");
        vec![Row {
            what: what.to_owned(),
            measured,
            figure: "none".to_owned(),
            bar: "works".to_owned(),
            kept: false,
        }]
    });
    // A long run shows what it has.
    rows.iter().for_each(|row| eprintln!("    {}: {}", row.what, row.measured));
    rows
}

/// The figures of a cluster of three, then those of one of sixteen.
pub fn figures(_folder: &Path, effort: Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for logs in [Logs::Disk, Logs::Memory] {
        let stage = Stage::mounted(3, logs)?;
        let lab = &stage.lab;
        rows.extend(rows_of("transfers under a writer", || transfer::pauses(lab, logs, effort)));
        rows.extend(rows_of("locks", || locks::pairs(lab, logs, effort)));
        if logs == Logs::Disk {
            rows.extend(rows_of("an owned file on another node", || data::owned(lab, effort)));
            rows.extend(rows_of("a file through its owner", || data::through_owner(lab, effort)));
            rows.extend(rows_of("creation from another node", || names::creation(lab, effort)));
            rows.extend(rows_of("cached names on another node", || names::cached(lab, effort)));
            rows.extend(rows_of("a transfer of 10,000 files", || transfer::many(lab, effort)));
            rows.extend(rows_of("the leader killed", || leader::killed(lab, effort)));
        }
        stage.end();
    }
    rows.extend(rows_of("sixteen nodes", sixteen::works));
    Ok(rows)
}
