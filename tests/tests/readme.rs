//! Every command that the README shows is run, in its order, in one shell.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::programs;
use tempfile::TempDir;

fn commands(text: &str) -> String {
    let mut script = String::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => {
                script += line;
                script.push('\n');
            }
            _ => {}
        }
    }
    script
}

/// Detaches what a failed script may have left mounted below `folder`.
fn clean(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|at| Path::new(at).starts_with(folder));
    for at in below {
        let _ = Command::new("umount").args(["-l", at]).status();
    }
}

#[test]
fn every_command_of_the_readme_works() -> Result<()> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let commands = commands(&std::fs::read_to_string(readme)?);
    ensure!(
        commands.contains("csvfs format") && commands.contains("csv-target"),
        "the README lost its commands"
    );
    let programs_folder = programs::ours("csvfs")?.parent().context("folder")?.to_owned();
    programs::ours("csv-target")?;
    let folder = TempDir::new()?;
    // The server that the tour starts in the background ends with the shell; what is started must be there before it is
    // used, which a person's typing takes care of.
    let script = format!(
        "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{}",
        commands.replace("nbd.sock &\n", "nbd.sock &\nuntil [ -S lab/nbd.sock ]; do sleep 0.01; done\n")
    );
    let path = format!("{}:{}", programs_folder.display(), std::env::var("PATH")?);
    let output =
        Command::new("bash").args(["-c", &script]).current_dir(folder.path()).env("PATH", path).output()?;
    clean(folder.path());
    ensure!(
        output.status.success(),
        "{script}\nfailed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
