//! `bench run` measures the figures of `docs/PERFORMANCE.md` and prints them as a table.

mod cluster;
mod faults;
mod figure;
mod fio;
mod io;
mod names;
mod paths;
mod stage;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use figure::Row;
use stage::Effort;

/// Measures a mount beside the raw LUN and beside other programs.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures and prints the table.
    Run {
        /// One short round: whether it works, not how fast.
        #[arg(long)]
        quick: bool,
        /// Also the volumes of a million files.
        #[arg(long)]
        full: bool,
        /// Only figures whose group has this in its name: nbd, file, thin, creation, listing, million, cluster,
        /// paths, faults.
        #[arg(long)]
        only: Option<String>,
        /// Interleaved rounds of each figure.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// Where images of local LUNs are put.
        #[arg(long, default_value = "target/bench")]
        folder: PathBuf,
    },
}

type Group = fn(&Path, Effort, bool) -> Result<Vec<Row>>;

const GROUPS: [(&str, Group); 9] = [
    ("nbd", |folder, effort, _| io::on_nbd(folder, effort)),
    ("file", |folder, effort, _| io::on_file(folder, effort)),
    ("thin", |folder, effort, _| io::thin(folder, effort)),
    ("creation", |folder, effort, _| names::creation(folder, effort)),
    ("listing", |folder, _, _| names::listing(folder)),
    ("million", |folder, _, full| names::million(folder, if full { 1_000_000 } else { 20_000 })),
    ("cluster", |folder, effort, _| cluster::figures(folder, effort)),
    ("paths", |_, effort, _| paths::figures(effort)),
    ("faults", |_, effort, full| faults::figures(effort, if full { 1_000_000 } else { 20_000 })),
];

fn main() -> Result<()> {
    if cfg!(debug_assertions) {
        bail!("figures count only in a release build: run `make bench`");
    }
    let Command::Run { quick, full, only, rounds, folder } = Arguments::parse().command;
    let effort = if quick { Effort { rounds: 1, seconds: 1 } } else { Effort { rounds, seconds: 2 } };
    let mut rows = Vec::new();
    for (name, group) in GROUPS {
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        eprintln!("measuring: {name}");
        let place = folder.join(name);
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir_all(&place)?;
        let place = place.canonicalize()?;
        rows.extend(group(&place, effort, full)?);
        let _ = std::fs::remove_dir_all(&place);
    }
    println!("{}", figure::table(&rows));
    Ok(())
}
