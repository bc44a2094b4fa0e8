//! `csvfs fsck`: checks a volume that is not mounted.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use csvfs::fsck::{Report, check_url, repair_url};

#[derive(Debug, Args)]
pub struct Fsck {
    /// The LUN: nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds://..., file:PATH, /dev/...
    #[arg(long, value_name = "URL")]
    lun: String,
    /// Repair what can be repaired.
    #[arg(long)]
    repair: bool,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

impl Fsck {
    pub fn run(self) -> Result<ExitCode> {
        let url = super::mount::absolute(&self.lun)?;
        let report =
            if self.repair { repair_url(&url, super::rules())? } else { check_url(&url, super::rules())? };
        if self.json {
            println!("{}", report.json());
        } else {
            show(&report);
        }
        Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn show(report: &Report) {
    for finding in &report.findings {
        println!("{finding}");
    }
    for repair in &report.repairs {
        println!("repaired: {repair}");
    }
    println!("{report}");
}
