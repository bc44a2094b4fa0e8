//! A LUN that carries something else, or a volume in use.

use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::Site;
use lab::mounted::csvfs_ok;
use lab::server::{Kind, Server};
use lab::site::{SIZE, format_quick, refused};

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Format without --force and mount are refused and name `what`; the image stays as it was.
fn is_kept(site: &Site, what: &str) -> Result<()> {
    let (url, before) = (site.image_url(), std::fs::read(site.image())?);
    refused(&["format", "--lun", &url])?.saying(&[what, "--force", "lost"])?;
    site.mount_refused(&url, &[])?.saying(&["no csvfs volume", what])?;
    refused(&["fsck", "--lun", &url])?.saying(&["no csvfs volume", what])?;
    refused(&["fsck", "--repair", "--lun", &url])?.saying(&["no csvfs volume", what])?;
    ensure!(std::fs::read(site.image())? == before, "{what}: the image was changed");
    csvfs_ok(&["format", "--force", "--lun", &url])?;
    Ok(())
}

#[test]
fn other_file_systems_are_kept() -> Result<()> {
    let site = Site::new()?;
    let image = site.text("lun.img");
    site.new_image(SIZE)?;
    run("mkfs.ext4", &["-q", &image])?;
    is_kept(&site, "ext4")?;
    site.new_image(SIZE)?;
    run("mkswap", &[&image])?;
    is_kept(&site, "swap space")
}

#[test]
fn other_signatures_are_kept() -> Result<()> {
    let site = Site::new()?;
    for (what, at, bytes) in [
        ("an XFS file system", 0, &b"XFSB"[..]),
        ("a Btrfs file system", 0x1_0040, b"_BHRfS_M"),
        ("an LVM physical volume", 0x200, b"LABELONE"),
        ("a GPT partition table", 512, b"EFI PART"),
        ("a LUKS container", 0, b"LUKS\xba\xbe"),
        ("a qcow2 image", 0, b"QFI\xfb"),
        ("an NTFS file system", 3, b"NTFS    "),
    ] {
        site.new_image(SIZE)?;
        std::fs::OpenOptions::new().write(true).open(site.image())?.write_all_at(bytes, at)?;
        is_kept(&site, what)?;
    }
    Ok(())
}

#[test]
fn a_blank_lun_is_no_volume_and_says_how_to_make_one() -> Result<()> {
    let site = Site::new()?;
    let url = site.new_image(SIZE)?;
    site.mount_refused(&url, &[])?.saying(&["no csvfs volume", "csvfs format"])?;
    Ok(())
}

#[test]
fn a_volume_is_not_formatted_by_mistake() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let mount = site.mount(&url)?;
    std::fs::write(mount.path().join("file"), "kept")?;
    mount.unmount()?;
    refused(&["format", "--lun", &url])?.saying(&["the csvfs volume \"csvfs\"", "--force"])?;
    let mount = site.mount(&url)?;
    ensure!(std::fs::read(mount.path().join("file"))? == b"kept");
    mount.unmount()?;
    csvfs_ok(&["format", "--force", "--name", "new", "--lun", &url])?;
    let mount = site.mount(&url)?;
    ensure!(std::fs::read_dir(mount.path())?.next().is_none());
    mount.unmount()
}

fn in_use(site: &Site, url: &str) -> Result<()> {
    format_quick(url)?;
    let mut mount = site.mount(url)?;
    std::fs::write(mount.path().join("file"), "kept")?;
    let pid = mount.process().pid().to_string();
    refused(&["format", "--force", "--lun", url])?.saying(&["in use by", &pid, "unmount"])?;
    std::fs::write(mount.path().join("more"), "kept")?;
    mount.unmount()?;
    let mount = site.mount(url)?;
    ensure!(std::fs::read(mount.path().join("file"))? == b"kept");
    ensure!(std::fs::read(mount.path().join("more"))? == b"kept");
    mount.unmount()
}

#[test]
fn a_mounted_file_is_not_formatted_even_by_force() -> Result<()> {
    let site = Site::new()?;
    let url = site.new_image(SIZE)?;
    in_use(&site, &url)
}

#[test]
fn a_mounted_nbdkit_is_not_formatted_even_by_force() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::NbdkitMemory, &site.path(""), SIZE)?;
    in_use(&site, &server.url())
}

#[test]
fn a_mounted_csv_target_is_not_formatted_even_by_force() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::CsvTarget, &site.path(""), SIZE)?;
    in_use(&site, &server.url())
}
