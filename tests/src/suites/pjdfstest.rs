//! pjdfstest 0.2: POSIX, call by call.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{open_to_all, run, text};
use crate::programs;

const SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
expected_failures = []
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// What ext4 passes (383 cases) but one, which asks the C library for the limit of links: it knows that of ext4 by name, and
/// of no FUSE file system. That case is skipped, as are those for other systems.
pub fn pjdfstest(folder: &Path, scratch: &Path) -> Result<()> {
    let settings = scratch.join("pjdfstest.toml");
    std::fs::write(&settings, SETTINGS)?;
    // The suite changes users, who must reach the folder.
    open_to_all(scratch)?;
    open_to_all(folder)?;
    let mut command = Command::new(programs::installed("pjdfstest")?);
    let output = run(command.arg("-c").arg(&settings).arg("-p").arg(folder))?;
    let text = text(&output);
    let failed: Vec<&str> = text.lines().filter(|line| line.contains("FAILED")).collect();
    ensure!(output.status.success() && failed.is_empty(), "pjdfstest: {failed:#?}\n{text}");
    ensure!(text.contains("0 failed") && text.contains("382 passed"), "not all cases ran: {text}");
    Ok(())
}
