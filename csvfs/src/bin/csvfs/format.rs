//! `csvfs format`: an empty volume on a LUN.

use std::process::ExitCode;

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
}

impl Format {
    pub fn run(self) -> Result<ExitCode> {
        let url = super::mount::absolute(&self.lun)?;
        let settings = FormatSettings {
            force: self.force,
            name: self.name,
            rules: super::rules(),
            ..FormatSettings::default()
        };
        let made = format_url(&url, &settings)?;
        println!("{made}");
        Ok(ExitCode::SUCCESS)
    }
}
