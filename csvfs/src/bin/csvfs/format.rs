//! `csvfs format`: an empty volume on a LUN.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use csvfs::volume::{FormatSettings, format_url};

#[derive(Debug, Args)]
pub struct Format {
    /// The LUN: nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds://..., file:PATH, /dev/...
    #[arg(long, value_name = "URL")]
    lun: String,
    /// Also over something that is known: another file system, a partition table, an older volume.
    #[arg(long)]
    force: bool,
    /// The volume's name.
    #[arg(long, default_value = "csvfs")]
    name: String,
    /// How long whoever opens the volume watches the claims of others (V1), in milliseconds.
    #[arg(long, hide = true, default_value_t = 10_000, value_name = "MS")]
    window_ms: u64,
    /// How long a write may be under way when its sender is gone (V2), in milliseconds.
    #[arg(long, hide = true, default_value_t = 10_000, value_name = "MS")]
    quiesce_ms: u64,
}

impl Format {
    pub fn run(self) -> Result<ExitCode> {
        let url = super::mount::absolute(&self.lun)?;
        let settings = FormatSettings {
            force: self.force,
            name: self.name,
            window: Duration::from_millis(self.window_ms),
            quiesce: Duration::from_millis(self.quiesce_ms),
            rules: super::rules(),
        };
        let made = format_url(&url, &settings)?;
        say!("{made}");
        Ok(ExitCode::SUCCESS)
    }
}
