//! `mount.csvfs`, as mount(8) calls it, and mounts in the background.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::mounted::fsck_clean;
use lab::wait::until;
use lab::{Site, content, programs};

/// The helper's name as a link to our program, and where it mounts; unmounted when dropped.
struct Helper {
    link: PathBuf,
    folder: PathBuf,
}

impl Helper {
    fn new(site: &Site) -> Result<Self> {
        let (link, folder) = (site.path("mount.csvfs"), site.path("mnt"));
        std::os::unix::fs::symlink(programs::ours("csvfs")?, &link)?;
        std::fs::create_dir(&folder)?;
        Ok(Self { link, folder })
    }

    fn call(&self, url: &str, more: &[&str]) -> Result<Output> {
        // The mount goes on as a process of its own, which must not hold the test's output open.
        let mut command = Command::new(&self.link);
        command.arg(url).arg(&self.folder).args(more);
        command.output().context("calling mount.csvfs")
    }

    fn options(&self) -> Option<String> {
        let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
        let line = mounts
            .lines()
            .find(|line| line.split(' ').nth(1).map(PathBuf::from) == Some(self.folder.clone()))?;
        line.split(' ').nth(3).map(str::to_owned)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if self.options().is_some() {
            let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
        }
    }
}

#[test]
fn mount_csvfs_mounts_with_the_options_of_mount() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let helper = Helper::new(&site)?;
    let output = helper.call(&url, &["-n", "-v", "-o", "rw,noatime,nosuid,noexec,_netdev"])?;
    ensure!(output.status.success(), "{output:?}");
    let options = helper.options().context("it is not mounted")?;
    for option in ["noatime", "nosuid", "noexec", "rw"] {
        ensure!(options.split(',').any(|word| word == option), "{option} is not in {options}");
    }
    content::fill(&helper.folder.join("file"), 1, 20)?;
    content::check(&helper.folder.join("file"), 1, 20)?;
    ensure!(Command::new("umount").arg(&helper.folder).status()?.success());
    // The process in the background closes the volume after umount has returned.
    until("the volume is closed", Duration::from_secs(20), || fsck_clean(&url).ok())?;
    let output = helper.call(&url, &["-o", "ro"])?;
    ensure!(output.status.success(), "{output:?}");
    content::check(&helper.folder.join("file"), 1, 20)?;
    let error = std::fs::write(helper.folder.join("new"), "x").expect_err("it is read-only");
    ensure!(error.raw_os_error() == Some(libc::EROFS), "{error}");
    Ok(())
}

#[test]
fn mount_csvfs_fails_as_the_mount_would() -> Result<()> {
    let site = Site::new()?;
    let helper = Helper::new(&site)?;
    let missing = format!("file:{}", site.text("none.img"));
    let output = helper.call(&missing, &["-o", "rw"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("there is no file"), "{said}");
    ensure!(helper.options().is_none());
    let output = helper.call(&missing, &["-q"])?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    let url = site.volume()?;
    let output = helper.call(&url, &["-f"])?;
    ensure!(output.status.success() && helper.options().is_none(), "-f mounts nothing: {output:?}");
    Ok(())
}
