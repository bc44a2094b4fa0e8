//! A volume whose first block is damaged.

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use lab::mounted::{csvfs_ok, fsck_clean};
use lab::site::refused;
use lab::{Site, content};

#[test]
fn a_damaged_label_costs_nothing() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let mount = site.mount(&url)?;
    content::fill(&mount.path().join("file"), 1, 100)?;
    mount.unmount()?;
    for damage in [&[0; 4096][..], b"\xff\xfe", &[0x5a; 17 << 10]] {
        std::fs::File::options().write(true).open(site.image())?.write_all_at(damage, 0)?;
        site.mount_refused(&url, &[])?.saying(&["block 0", "fsck --repair", "-o ro"])?;
        refused(&["format", "--lun", &url])?.saying(&["csvfs volume"])?;
        let reading = site.mount_at(&url, "mnt", &["-o", "ro"])?;
        content::check(&reading.path().join("file"), 1, 100)?;
        reading.unmount()?;
        let found = lab::mounted::csvfs(&["fsck", "--lun", &url])?;
        ensure!(found.status.code() == Some(1), "{found:?}");
        let said = String::from_utf8_lossy(&found.stdout).into_owned();
        ensure!(said.contains("the label in block 0 is damaged"), "{said}");
        let said = csvfs_ok(&["fsck", "--repair", "--lun", &url])?;
        ensure!(said.contains("repaired: the label in block 0"), "{said}");
        fsck_clean(&url)?;
        let mount = site.mount(&url)?;
        content::check(&mount.path().join("file"), 1, 100)?;
        mount.unmount()?;
    }
    Ok(())
}
