//! `csvfs format`: an empty volume on a LUN.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use csvfs::volume::{FormatSettings, format_url};
use lockd::cluster::Cluster;

#[derive(Debug, Args)]
pub struct Format {
    /// The LUN: nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds://..., file:PATH, /dev/...
    #[arg(long, value_name = "URL", required_unless_present = "cluster")]
    lun: Option<String>,
    /// The cluster file: formats the LUN of one of its volumes.
    #[arg(long, env = "CSV_CLUSTER", value_name = "FILE")]
    cluster: Option<PathBuf>,
    /// The volume of the cluster file.
    #[arg(value_name = "VOLUME")]
    volume: Option<String>,
    /// Also over something that is known: another file system, a partition table, an older volume.
    #[arg(long)]
    force: bool,
    /// The volume's name; in a cluster, that of the cluster file.
    #[arg(long)]
    name: Option<String>,
    /// How long whoever opens the volume watches the claims of others (V1), in milliseconds.
    #[arg(long, hide = true, default_value_t = 10_000, value_name = "MS")]
    window_ms: u64,
    /// How long a write may be under way when its sender is gone (V2), in milliseconds; in a cluster, `target_quiesce_s`
    /// of the cluster file.
    #[arg(long, hide = true, value_name = "MS")]
    quiesce_ms: Option<u64>,
}

impl Format {
    pub fn run(self) -> Result<ExitCode> {
        let defaults = FormatSettings::default();
        let (lun, name, quiesce) = match (self.lun, self.cluster, self.volume) {
            (Some(lun), _, None) => (lun, self.name.unwrap_or(defaults.name), defaults.quiesce),
            (None, Some(file), Some(volume)) => {
                let cluster = Cluster::read(&file)?;
                let Some((_, found)) = cluster.volume(&volume) else {
                    let names: Vec<_> = cluster.volumes.iter().map(|volume| volume.name.as_str()).collect();
                    bail!("{} has no volume {volume:?}; it has {}", file.display(), names.join(", "))
                };
                let lun = found.lun.first().with_context(|| format!("the volume {volume:?} has no LUN"))?;
                (lun.clone(), volume, found.target_quiesce)
            }
            (Some(_), _, Some(volume)) => bail!("with --lun no volume is named, but {volume:?} is"),
            (None, Some(_), None) => bail!("which volume of the cluster? csvfs format --cluster FILE VOLUME"),
            (None, None, _) => {
                bail!("what is to be formatted? give --lun URL, or --cluster FILE and a volume's name")
            }
        };
        let url = super::mount::absolute(&lun)?;
        let settings = FormatSettings {
            force: self.force,
            name,
            window: Duration::from_millis(self.window_ms),
            quiesce: self.quiesce_ms.map_or(quiesce, Duration::from_millis),
            rules: super::rules(),
        };
        let made = format_url(&url, &settings)?;
        say!("{made}");
        Ok(ExitCode::SUCCESS)
    }
}
