//! A block device as the LUN, and behind csv-target. Skipped where the machine gives no loop device.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::mounted::fsck_clean;
use lab::server::{Kind, Server};
use lab::site::{SIZE, format_quick, refused};
use lab::{Site, content};

/// A loop device; detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(image: &Path) -> Option<Self> {
        let output =
            Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(image).output().ok()?;
        if !output.status.success() {
            eprintln!("SKIPPED: no loop device: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(Self(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())))
    }

    fn url(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

fn image(site: &Site) -> Result<PathBuf> {
    // On a disk: O_DIRECT and holes are then those of a real file system.
    let path = site.image();
    std::fs::File::create(&path)?.set_len(SIZE)?;
    Ok(path)
}

fn allocated(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

#[test]
fn a_volume_on_a_block_device_survives_a_crash_and_gives_space_back() -> Result<()> {
    let site = Site::new()?;
    let path = image(&site)?;
    let Some(device) = Loop::attach(&path) else { return Ok(()) };
    let url = device.url();
    format_quick(&url)?;
    let mount = site.mount(&url)?;
    content::fill(&mount.path().join("kept"), 1, 200)?;
    content::fill(&mount.path().join("gone"), 2, 4000)?;
    // Beside it nobody else of this host gets the device to write.
    site.mount_refused(&url, &[])?.saying(&["in use on this host"])?;
    refused(&["format", "--force", "--lun", &url])?.saying(&["in use on this host"])?;
    refused(&["fsck", "--repair", "--lun", &url])?.saying(&["in use on this host"])?;
    mount.crash();
    // Another host might have it open: the claim is watched, and the store is copied.
    let mount = site.mount(&url)?;
    let opening = site.status()?["opening"]["how"].to_string();
    ensure!(opening.contains("by copy"), "{opening}");
    content::check(&mount.path().join("kept"), 1, 200)?;
    content::check(&mount.path().join("gone"), 2, 4000)?;
    let before = allocated(&path)?;
    std::fs::remove_file(mount.path().join("gone"))?;
    // BLKDISCARD: what is freed goes back to the file below.
    lab::wait::until("the freed blocks are discarded", std::time::Duration::from_secs(20), || {
        allocated(&path).ok().filter(|now| now + (8 << 20) < before)
    })?;
    // BLKZEROOUT and the like: what is zeroed reads as zeros.
    let file = std::fs::File::options().write(true).open(mount.path().join("kept"))?;
    zero(&file, 0, 100 * content::BLOCK as u64)?;
    file.sync_all()?;
    let bytes = std::fs::read(mount.path().join("kept"))?;
    ensure!(bytes[..100 * content::BLOCK].iter().all(|byte| *byte == 0), "zeros");
    ensure!(bytes[100 * content::BLOCK..101 * content::BLOCK] == content::block(1, 100, 0));
    drop(file);
    mount.unmount()?;
    fsck_clean(&url)?;
    let mount = site.mount(&url)?;
    ensure!(std::fs::read(mount.path().join("kept"))? == bytes, "the content after a clean mount");
    mount.unmount()
}

fn zero(file: &std::fs::File, offset: i64, length: u64) -> Result<()> {
    use std::os::fd::AsRawFd;
    let length = i64::try_from(length)?;
    // SAFETY: the descriptor is open for the whole call.
    let status = unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_ZERO_RANGE, offset, length) };
    ensure!(status == 0, "fallocate: {}", std::io::Error::last_os_error());
    Ok(())
}

#[test]
fn a_device_that_has_shrunk_is_refused_and_one_that_has_grown_is_not() -> Result<()> {
    let site = Site::new()?;
    let path = image(&site)?;
    let Some(device) = Loop::attach(&path) else { return Ok(()) };
    let url = device.url();
    format_quick(&url)?;
    let mount = site.mount(&url)?;
    content::fill(&mount.path().join("file"), 1, 100)?;
    mount.unmount()?;
    let resize = |size: u64| -> Result<()> {
        std::fs::File::options().write(true).open(&path)?.set_len(size)?;
        let status = Command::new("losetup").arg("--set-capacity").arg(&device.0).status()?;
        ensure!(status.success(), "losetup --set-capacity");
        Ok(())
    };
    resize(SIZE + (32 << 20))?;
    let mount = site.mount(&url)?;
    content::check(&mount.path().join("file"), 1, 100)?;
    mount.unmount()?;
    resize(SIZE - (16 << 20))?;
    site.mount_refused(&url, &[])?.saying(&["the volume on it has"])?;
    resize(SIZE)?;
    let mount = site.mount(&url)?;
    content::check(&mount.path().join("file"), 1, 100)?;
    mount.unmount()
}

#[test]
fn csv_target_exports_a_block_device() -> Result<()> {
    let site = Site::new()?;
    let path = image(&site)?;
    let Some(device) = Loop::attach(&path) else { return Ok(()) };
    let folder = site.path("target");
    std::fs::create_dir(&folder)?;
    std::os::unix::fs::symlink(&device.0, folder.join("lun.img"))
        .context("the device as the target's file")?;
    let mut server = Server::start(Kind::CsvTarget, &folder, SIZE)?;
    format_quick(&server.url())?;
    let mount = site.mount(&server.url())?;
    content::fill(&mount.path().join("kept"), 1, 500)?;
    content::fill(&mount.path().join("gone"), 2, 500)?;
    std::fs::remove_file(mount.path().join("gone"))?;
    server.restart()?;
    content::fill(&mount.path().join("later"), 3, 100)?;
    mount.crash();
    let mount = site.mount(&server.url())?;
    content::check(&mount.path().join("kept"), 1, 500)?;
    content::check(&mount.path().join("later"), 3, 100)?;
    mount.unmount()?;
    fsck_clean(&server.url())
}
