//! Volumes of later programs.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use csvfs::disk::features::Features;
use csvfs::disk::label::Label;
use csvfs::disk::layout::SLOTS_AT;
use csvfs::disk::superblock::Superblock;
use lab::Site;
use lab::site::refused;

const BLOCK: usize = 4096;

/// The image, opened for each access alone: a file that is open elsewhere could be written by somebody else.
struct Image(std::path::PathBuf);

impl Image {
    fn of(site: &Site) -> Self {
        Self(site.image())
    }

    fn block(&self, number: u64) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        std::fs::File::open(&self.0)?.read_exact_at(&mut block, number * BLOCK as u64)?;
        Ok(block)
    }

    fn put(&self, number: u64, block: &[u8; BLOCK]) -> Result<()> {
        let image = std::fs::OpenOptions::new().write(true).open(&self.0)?;
        Ok(image.write_all_at(block, number * BLOCK as u64)?)
    }

    /// Rewrites the superblock in force with other features.
    fn set_features(&self, features: Features) -> Result<()> {
        let label = Label::decode(&self.block(0)?)?;
        let slots = (SLOTS_AT..SLOTS_AT + 8).map(|slot| Ok((slot, self.block(slot)?)));
        let slots = slots.collect::<Result<Vec<_>>>()?;
        let decoded = slots
            .iter()
            .filter_map(|(slot, block)| Some((*slot, Superblock::decode(block, label.uuid).ok()?)));
        let (slot, newest) =
            decoded.max_by_key(|(_, superblock)| superblock.epoch).context("a superblock")?;
        self.put(slot, &Superblock { features, ..newest }.encode(label.uuid))
    }
}

/// Sets the version of the structure in `block` and its checksum.
fn with_version(mut block: [u8; BLOCK], version: u32) -> [u8; BLOCK] {
    block[12..16].copy_from_slice(&version.to_le_bytes());
    csvfs::disk::frame::seal(&mut block);
    block
}

fn a_volume_with_a_file(site: &Site) -> Result<String> {
    let url = site.volume()?;
    let mount = site.mount(&url)?;
    std::fs::write(mount.path().join("file"), "kept")?;
    mount.unmount()?;
    Ok(url)
}

fn nobody_touches_it(site: &Site, url: &str, parts: &[&str]) -> Result<()> {
    let before = std::fs::read(site.image())?;
    for options in [&[][..], &["-o", "ro"]] {
        site.mount_refused(url, options)?.saying(parts)?;
    }
    refused(&["fsck", "--lun", url])?.saying(parts)?;
    refused(&["fsck", "--repair", "--lun", url])?.saying(parts)?;
    refused(&["format", "--lun", url])?.saying(&["csvfs volume", "--force"])?;
    ensure!(std::fs::read(site.image())? == before, "the image was changed");
    Ok(())
}

#[test]
fn a_later_format_is_left_alone() -> Result<()> {
    let site = Site::new()?;
    let url = a_volume_with_a_file(&site)?;
    let image = Image::of(&site);
    let label = image.block(0)?;
    image.put(0, &with_version(label, 2))?;
    nobody_touches_it(&site, &url, &["version is 2", "use a newer csvfs"])?;
    image.put(0, &label)?;
    // A superblock of a later version, though an older one is there.
    for slot in SLOTS_AT..SLOTS_AT + 8 {
        let block = image.block(slot)?;
        if block != [0; BLOCK] {
            image.put(slot, &with_version(block, 7))?;
            nobody_touches_it(&site, &url, &["version is 7", "use a newer csvfs"])?;
            image.put(slot, &block)?;
        }
    }
    let mount = site.mount(&url)?;
    ensure!(std::fs::read(mount.path().join("file"))? == b"kept");
    mount.unmount()
}

#[test]
fn an_unknown_incompatible_feature_is_left_alone() -> Result<()> {
    let site = Site::new()?;
    let url = a_volume_with_a_file(&site)?;
    Image::of(&site).set_features(Features { incompatible: 0x40, ..Features::default() })?;
    nobody_touches_it(
        &site,
        &url,
        &["incompatible features 0x40", "use a newer csvfs", "nothing was changed"],
    )
}

#[test]
fn an_unknown_read_only_compatible_feature_can_be_read() -> Result<()> {
    let site = Site::new()?;
    let url = a_volume_with_a_file(&site)?;
    let image = Image::of(&site);
    image.set_features(Features { ro_compatible: 0x8, ..Features::default() })?;
    let before = std::fs::read(site.image())?;
    site.mount_refused(&url, &[])?.saying(&["features 0x8", "read-only", "newer csvfs"])?;
    refused(&["fsck", "--repair", "--lun", &url])?.saying(&["features 0x8"])?;
    let mount = site.mount_at(&url, "mnt", &["-o", "ro"])?;
    ensure!(std::fs::read(mount.path().join("file"))? == b"kept");
    let error = std::fs::write(mount.path().join("new"), "x").expect_err("the mount is read-only");
    ensure!(error.raw_os_error() == Some(libc::EROFS), "{error}");
    mount.unmount()?;
    ensure!(std::fs::read(site.image())? == before, "the image was changed");
    image.set_features(Features { compatible: 0x10, ..Features::default() })?;
    site.mount(&url)?.unmount()
}
