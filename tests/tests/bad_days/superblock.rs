//! Damage outside the metadata store: label, superblock slots, claims, chunk map.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use csvfs::disk::layout::{CLAIMS_AT, LABEL_COPY_AT, MAPS_AT, SLOTS, SLOTS_AT};
use lab::Site;
use lab::mounted::{csvfs, csvfs_ok, fsck_clean};
use lab::site::refused;
use serde_json::Value;

const BLOCK: usize = 4096;

/// A volume that has been mounted a few times, with a file.
fn used() -> Result<(Site, String)> {
    let site = Site::new()?;
    let url = site.volume()?;
    for round in 0..3 {
        let mount = site.mount(&url)?;
        std::fs::write(mount.path().join(format!("file{round}")), "kept")?;
        mount.unmount()?;
    }
    Ok((site, url))
}

fn damage(site: &Site, block: u64) -> Result<()> {
    let image = std::fs::OpenOptions::new().write(true).open(site.image())?;
    Ok(image.write_all_at(b"damage", block * BLOCK as u64 + 40)?)
}

fn is_used(site: &Site, block: u64) -> Result<bool> {
    let mut bytes = [0; BLOCK];
    std::fs::File::open(site.image())?.read_exact_at(&mut bytes, block * BLOCK as u64)?;
    Ok(bytes != [0; BLOCK])
}

fn fsck(url: &str, arguments: &[&str]) -> Result<(bool, Value)> {
    let mut all = vec!["fsck", "--json", "--lun", url];
    all.extend(arguments);
    let output = csvfs(&all)?;
    let report = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("a report: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((output.status.success(), report))
}

/// fsck finds what `parts` say and exits with 1; --repair mends it; the files are there.
fn is_found_and_mended(site: &Site, url: &str, parts: &[&str]) -> Result<()> {
    let (is_clean, report) = fsck(url, &[])?;
    let findings = report["findings"].to_string();
    ensure!(!is_clean && report["clean"] == false, "fsck should find something: {report}");
    for part in parts {
        ensure!(findings.contains(part), "{part:?} is not in {findings}");
    }
    let (is_clean, report) = fsck(url, &["--repair"])?;
    ensure!(is_clean && report["clean"] == true, "{report}");
    ensure!(report["repairs"].to_string().contains(parts[0]), "{report}");
    fsck_clean(url)?;
    let mount = site.mount(url)?;
    for round in 0..3 {
        ensure!(std::fs::read(mount.path().join(format!("file{round}")))? == b"kept");
    }
    mount.unmount()?;
    fsck_clean(url)
}

#[test]
fn each_damaged_superblock_slot_is_named_and_mended() -> Result<()> {
    let (site, url) = used()?;
    let mut tried = 0;
    for slot in 0..SLOTS as u64 {
        if is_used(&site, SLOTS_AT + slot)? {
            damage(&site, SLOTS_AT + slot)?;
            is_found_and_mended(&site, &url, &[&format!("superblock slot {slot} is damaged")])?;
            tried += 1;
        }
    }
    ensure!(tried >= 3, "only {tried} slots were in use");
    Ok(())
}

#[test]
fn a_mount_goes_on_with_one_damaged_slot_and_says_so() -> Result<()> {
    let (site, url) = used()?;
    for slot in 0..SLOTS as u64 {
        if is_used(&site, SLOTS_AT + slot)? {
            damage(&site, SLOTS_AT + slot)?;
            break;
        }
    }
    let mount = site.mount(&url)?;
    let warnings = site.status()?["opening"]["warnings"].to_string();
    ensure!(warnings.contains("superblock slot"), "{warnings}");
    ensure!(std::fs::read(mount.path().join("file0"))? == b"kept");
    mount.unmount()
}

#[test]
fn the_chunk_map_stands_in_for_all_superblock_slots() -> Result<()> {
    let (site, url) = used()?;
    for slot in 0..SLOTS as u64 {
        damage(&site, SLOTS_AT + slot)?;
    }
    is_found_and_mended(&site, &url, &["superblock slot 0 is damaged", "superblock slot 7 is damaged"])
}

#[test]
fn without_superblocks_and_chunk_map_nothing_is_mounted() -> Result<()> {
    let (site, url) = used()?;
    for block in (0..SLOTS as u64).map(|slot| SLOTS_AT + slot).chain(MAPS_AT) {
        damage(&site, block)?;
    }
    let before = std::fs::read(site.image())?;
    let parts = ["both copies of the chunk map are damaged", "backup"];
    site.mount_refused(&url, &[])?.saying(&parts)?;
    site.mount_refused(&url, &["-o", "ro"])?.saying(&parts)?;
    refused(&["fsck", "--lun", &url])?.saying(&parts)?;
    refused(&["fsck", "--repair", "--lun", &url])?.saying(&parts)?;
    ensure!(std::fs::read(site.image())? == before, "the image was changed");
    Ok(())
}

#[test]
fn a_label_that_is_damaged_with_its_copy_is_named() -> Result<()> {
    let (site, url) = used()?;
    damage(&site, 0)?;
    damage(&site, LABEL_COPY_AT)?;
    let before = std::fs::read(site.image())?;
    let parts = ["the label in block 0 is damaged", "backup"];
    site.mount_refused(&url, &[])?.saying(&parts)?;
    refused(&["fsck", "--lun", &url])?.saying(&parts)?;
    refused(&["fsck", "--repair", "--lun", &url])?.saying(&parts)?;
    refused(&["format", "--lun", &url])?.saying(&["csvfs volume", "damaged", "--force"])?;
    ensure!(std::fs::read(site.image())? == before, "the image was changed");
    csvfs_ok(&["format", "--force", "--lun", &url]).map(drop)
}

#[test]
fn a_damaged_copy_of_the_chunk_map_is_mended() -> Result<()> {
    let (site, url) = used()?;
    for (copy, at) in MAPS_AT.into_iter().enumerate() {
        damage(&site, at)?;
        is_found_and_mended(&site, &url, &[&format!("copy {} of the chunk map is damaged", copy + 1)])?;
    }
    Ok(())
}

#[test]
fn a_damaged_claim_is_mended() -> Result<()> {
    let (site, url) = used()?;
    damage(&site, CLAIMS_AT + 5)?;
    is_found_and_mended(&site, &url, &["claim block 5 is damaged"])
}
