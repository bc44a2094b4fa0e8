//! `csvfs fsck`: checks a volume that is not mounted.

use std::io::IsTerminal;
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
        let run = if self.repair { repair_url } else { check_url };
        let report = run(&url, super::rules(), &mut progress())?;
        if self.json {
            say!("{}", report.json());
        } else {
            show(&report);
        }
        Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Shows on a terminal how far a long check has come.
fn progress() -> impl FnMut(&'static str, u64, u64) {
    let shown = std::io::stderr().is_terminal();
    move |what, done, of| {
        if !shown {
        } else if of == 0 {
            crate::say::error(format_args!("\r{what}: {done}    "));
        } else {
            crate::say::error(format_args!("\r{what}: {done} of {of}    "));
        }
    }
}

fn show(report: &Report) {
    if std::io::stderr().is_terminal() {
        crate::say::error(format_args!("\r\x1b[K"));
    }
    for finding in &report.findings {
        say!("{finding}");
    }
    for repair in &report.repairs {
        say!("repaired: {repair}");
    }
    for lost in &report.lost {
        println!("lost: {lost}");
    }
    for note in &report.notes {
        say!("note: {note}");
    }
    say!("{report}");
}
