//! A volume on an iSCSI unit: a mount that is killed, a secret that is kept, a reservation of somebody else's.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::mounted::{csvfs_ok, fsck_clean};
use lab::server::{Kind, Server};
use lab::site::{SIZE, format_quick, refused};
use lab::{Site, content};
use lockd::fencing::Units;

#[test]
fn a_mount_over_iscsi_is_killed_and_nothing_that_was_synced_is_lost() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::Tgt, &site.path(""), SIZE)?;
    let url = server.url();
    format_quick(&url)?;
    let mount = site.mount(&url)?;
    fs::create_dir(mount.path().join("folder"))?;
    content::fill(&mount.path().join("folder/file"), 7, 512)?;
    let path = site.status()?["path"].to_string();
    ensure!(path.contains("iscsi://127.0.0.1") && path.contains("up for"), "{path}");
    mount.crash();
    let mount = site.mount(&url)?;
    content::check(&mount.path().join("folder/file"), 7, 512)?;
    fs::remove_dir_all(mount.path().join("folder"))?;
    mount.unmount()?;
    fsck_clean(&url)
}

#[test]
fn the_secret_goes_to_the_target_and_nowhere_else() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::Tgt, &site.path(""), SIZE)?;
    let admin = |words: &[&str]| -> Result<()> {
        let mut command = std::process::Command::new("tgtadm");
        command.env("TGT_IPC_SOCKET", site.path("tgtd")).args(["-C", "0", "--lld", "iscsi"]);
        let output = command.args(words).output()?;
        ensure!(output.status.success(), "tgtadm {words:?}: {output:?}");
        Ok(())
    };
    admin(&["--op", "new", "--mode", "account", "--user", "me", "--password", "hunter2hunter2"])?;
    admin(&["--op", "bind", "--mode", "account", "--tid", "1", "--user", "me"])?;
    let plain = server.url();
    let with = |login: &str| plain.replacen("iscsi://", &format!("iscsi://{login}@"), 1);
    let url = with("me%hunter2hunter2");
    format_quick(&url)?;
    // In the background: the secret is on no command line of ours.
    let (run, folder) = (site.text("run"), site.text("mnt"));
    fs::create_dir_all(&folder)?;
    csvfs_ok(&["mount", "--lun", &url, &folder, "--run-dir", &run])?;
    let status = site.status()?;
    let pid = status["pid"].as_u64().unwrap_or_default();
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    let done = csvfs_ok(&["status", "--run-dir", &run]);
    let unmounted = std::process::Command::new("umount").arg(&folder).status()?;
    ensure!(unmounted.success(), "umount {folder}");
    ensure!(line.contains("iscsi://me@") && !line.contains("hunter2"), "{line}");
    ensure!(!done?.contains("hunter2") && !status.to_string().contains("hunter2"), "{status}");
    for wrong in ["me%wrongwrongwrong", "me"] {
        let said = refused(&["fsck", "--lun", &with(wrong)])?.saying(&["CHAP"])?.said;
        ensure!(!said.contains("wrongwrong") && !said.contains("hunter2"), "{said}");
    }
    Ok(())
}

#[test]
fn a_unit_that_somebody_else_has_reserved_is_not_written_to() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::Tgt, &site.path(""), SIZE)?;
    let url = server.url();
    format_quick(&url)?;
    let mount = site.mount(&url)?;
    content::fill(&mount.path().join("file"), 7, 8)?;
    mount.unmount()?;
    Units::new(std::slice::from_ref(&url), &"stranger".parse()?).map_err(anyhow::Error::msg)?.hold()?;
    site.mount_refused(&url, &[])?.saying(&["errno 5"])?;
    fsck_clean(&url)?;
    std::thread::sleep(Duration::from_millis(10));
    Ok(())
}
