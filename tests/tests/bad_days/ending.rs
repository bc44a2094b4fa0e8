//! The ways in which a mount ends.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::mounted::fsck_clean;
use lab::server::{Kind, Server};
use lab::wait::until;
use lab::{Site, content, programs};

fn umount(folder: &std::path::Path) -> Result<std::process::Output> {
    Ok(Command::new("umount").arg(folder).output()?)
}

#[test]
fn a_busy_mount_is_not_unmounted() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let mount = site.mount(&url)?;
    let mut open = File::create(mount.path().join("open"))?;
    let output = umount(mount.path())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("busy"), "{said}");
    open.write_all(b"goes on")?;
    drop(open);
    mount.unmount()?;
    fsck_clean(&url)
}

#[test]
fn sigterm_unmounts_cleanly() -> Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let site = Site::new()?;
        let url = site.volume()?;
        let mut mount = site.mount(&url)?;
        content::fill(&mount.path().join("file"), 1, 50)?;
        mount.process().signal(signal);
        let ended = mount.process().end(Duration::from_secs(20))?;
        ensure!(ended.success(), "{ended}: {}", mount.process().errors());
        ensure!(mount.process().errors().is_empty(), "{}", mount.process().errors());
        fsck_clean(&url)?;
        let mount = site.mount(&url)?;
        content::check(&mount.path().join("file"), 1, 50)?;
        let how = site.status()?["opening"]["how"].to_string();
        ensure!(how.contains("closed by its last writer") || how.contains("locked"), "{how}");
        mount.unmount()?;
    }
    Ok(())
}

#[test]
fn sigterm_of_a_busy_mount_ends_it_when_its_last_user_is_gone() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let mut mount = site.mount(&url)?;
    let mut open = File::create(mount.path().join("open"))?;
    open.write_all(&content::block(1, 0, 0))?;
    mount.process().signal(libc::SIGTERM);
    until("it says that it is in use", Duration::from_secs(10), || {
        mount.process().errors().contains("is in use").then_some(())
    })?;
    until("it is detached", Duration::from_secs(10), || (!mount.path().join("open").exists()).then_some(()))?;
    // A second signal changes nothing.
    mount.process().signal(libc::SIGTERM);
    ensure!(mount.process().is_alive(), "it must wait for its user");
    open.write_all(&content::block(1, 1, 0))?;
    open.sync_all()?;
    drop(open);
    let ended = mount.process().end(Duration::from_secs(20))?;
    ensure!(ended.success(), "{ended}: {}", mount.process().errors());
    fsck_clean(&url)?;
    let mount = site.mount(&url)?;
    content::check(&mount.path().join("open"), 1, 2)?;
    mount.unmount()
}

#[test]
fn a_killed_mount_gives_errors_and_can_be_mounted_again() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let mut mount = site.mount(&url)?;
    content::fill(&mount.path().join("synced"), 1, 50)?;
    let mut open = File::create(mount.path().join("open"))?;
    open.write_all(b"synced")?;
    open.sync_all()?;
    let removed = File::create(mount.path().join("removed"))?;
    std::fs::remove_file(mount.path().join("removed"))?;
    mount.process().kill();
    let error = open.write_all(b"more").and_then(|()| open.sync_all()).expect_err("nobody serves the mount");
    ensure!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::EIO | libc::ECONNABORTED)), "{error}");
    let error = std::fs::metadata(mount.path().join("synced")).expect_err("nobody serves the mount");
    ensure!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::EIO | libc::ECONNABORTED)), "{error}");
    ensure!(site.status()?.is_null(), "a dead mount is not shown: {}", site.status()?);
    mount.crash();
    // While the application still holds its files.
    let mount = site.mount(&url)?;
    content::check(&mount.path().join("synced"), 1, 50)?;
    ensure!(std::fs::read(mount.path().join("open"))? == b"synced");
    ensure!(!mount.path().join("removed").exists());
    drop((open, removed));
    mount.unmount()?;
    fsck_clean(&url)
}

#[test]
fn nobody_needs_to_listen() -> Result<()> {
    let site = Site::new()?;
    let mut server = Server::start(Kind::NbdkitFile, &site.path(""), 256 << 20)?;
    let url = server.url();
    lab::mounted::format(&url)?;
    let folder = site.path("deaf");
    std::fs::create_dir_all(&folder)?;
    let mut command = Command::new(programs::ours("csvfs")?);
    command.args(["mount", "--foreground", "--lun", &url]).arg(&folder);
    let mut mount = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    drop(mount.stderr.take());
    until("it is mounted", Duration::from_secs(10), || {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        mounts.contains(&*folder.to_string_lossy()).then_some(())
    })?;
    // It complains that the path is down; then it goes on.
    server.restart()?;
    content::fill(&folder.join("file"), 1, 20)?;
    content::check(&folder.join("file"), 1, 20)?;
    // Who lists mounts may look at the first line only.
    let mut status = Command::new(programs::ours("csvfs")?)
        .arg("status")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(status.stdout.take());
    let said = status.wait_with_output()?;
    ensure!(said.status.success() && said.stderr.is_empty(), "{said:?}");
    ensure!(umount(&folder)?.status.success());
    let ended = mount.wait()?;
    ensure!(ended.success(), "{ended}");
    fsck_clean(&url)
}
