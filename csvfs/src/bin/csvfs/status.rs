//! `csvfs status`: what the mounts of this node say of themselves.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use csvfs::status::{VolumeStatus, ask_all};

#[derive(Debug, Args)]
pub struct Status {
    /// Only the volume mounted here.
    folder: Option<PathBuf>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
    /// Where the sockets of the mounts are.
    #[arg(long, env = "CSV_RUN_DIR", default_value = super::RUN_DIR)]
    run_dir: PathBuf,
}

impl Status {
    pub fn run(self) -> Result<ExitCode> {
        let mut volumes = ask_all(&self.run_dir);
        if let Some(folder) = &self.folder {
            // The folder of a hung mount cannot be resolved; what was typed may be what the mount was told.
            let wanted = folder.canonicalize().unwrap_or_else(|_| folder.clone());
            volumes.retain(|volume| Path::new(&volume.mountpoint) == wanted);
            if volumes.is_empty() {
                bail!(
                    "no csvfs volume is mounted on {}; `csvfs status` lists those that are",
                    folder.display()
                );
            }
        }
        if self.json {
            let text = serde_json::to_string_pretty(&serde_json::json!({ "volumes": volumes }));
            say!("{}", text.context("writing the status as JSON")?);
        } else if volumes.is_empty() {
            say!("no csvfs volume is mounted on this node");
        } else {
            for volume in &volumes {
                show(volume);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(volume: &VolumeStatus) {
    let mode = if volume.read_only { ", read-only" } else { "" };
    say!("{} on {}{mode}", volume.lun, volume.mountpoint);
    say!("  volume       {} {}", volume.volume, volume.name);
    say!("  node         {} (pid {}), session {}", volume.node, volume.pid, volume.session);
    say!("  coordinator  {}", volume.coordinator);
    say!("  I/O          {}: {}", volume.state, volume.path);
    if !volume.problem.is_empty() {
        say!("  PROBLEM      {}", volume.problem);
    }
    say!("  metadata     {}", volume.metadata);
    say!("  fence        {}", volume.fence);
    let opening = &volume.opening;
    say!(
        "  opened       {} in {:.2} s, after {:.1} s of waiting",
        opening.how,
        opening.open_s,
        opening.wait_s
    );
    for warning in &opening.warnings {
        say!("  warning      {warning}");
    }
    let gib = |blocks: u64| {
        #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
        let blocks = blocks as f64;
        blocks * 4096.0 / f64::from(1 << 30)
    };
    say!(
        "  space        {:.1} GiB free of {:.1} GiB, {} inodes",
        gib(volume.blocks_free),
        gib(volume.blocks),
        volume.inodes
    );
    let counters = &volume.counters;
    say!(
        "  served       {} reads, {} writes, {} syncs; {} in flight",
        counters.reads,
        counters.writes,
        counters.syncs,
        counters.in_flight
    );
}
