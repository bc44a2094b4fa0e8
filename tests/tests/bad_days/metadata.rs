//! Damage in the metadata store.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use csvfs::disk::map::ChunkUse;
use csvfs::disk::open::{OpenOptions, open};
use csvfs::disk::survey::Survey;
use csvfs::store::Tables;
use csvfs::store::record::InodeRecord;
use csvfs::types::{Ino, LINK_MAX};
use lab::mounted::{csvfs, fsck_clean};
use lab::site::refused;
use lab::{Site, content};
use lockd::ids::ClientId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redb::ReadableTable;
use redirector::lun::Lun;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

fn lun(url: &str) -> Result<Arc<dyn Lun>> {
    let options = redirector::open::OpenOptions::new(ClientId(77), [7; 16]);
    Ok(redirector::open::open(&url.parse()?, &options)?)
}

/// A volume with some files, closed.
fn used() -> Result<(Site, String)> {
    let site = Site::new()?;
    let url = site.volume()?;
    let mount = site.mount(&url)?;
    for file in 0..40 {
        content::fill(&mount.path().join(format!("file{file}")), file, 3)?;
    }
    std::fs::create_dir(mount.path().join("folder"))?;
    mount.unmount()?;
    Ok((site, url))
}

/// Where the store's pages lie on the LUN, in bytes: those that hold something.
fn pages(site: &Site, url: &str) -> Result<Vec<u64>> {
    let survey = Survey::read(lun(url)?.as_ref())?;
    let side = survey.superblock.side;
    let len = survey.map.lens[usize::from(side == csvfs::disk::superblock::Side::B)];
    let chunk = survey.label.chunk_size;
    let image = std::fs::File::open(site.image())?;
    let mut pages = Vec::new();
    for (index, at) in survey.map.area(side) {
        for page in (0..chunk).step_by(4096) {
            let mut bytes = [0; 4096];
            image.read_exact_at(&mut bytes, u64::from(at) * chunk + page)?;
            if u64::from(index) * chunk + page < len && bytes != [0; 4096] {
                pages.push(u64::from(at) * chunk + page);
            }
        }
    }
    ensure!(survey.map.usage(1).is_some_and(|usage| matches!(usage, ChunkUse::Store(..))));
    Ok(pages)
}

fn flip(site: &Site, at: u64) -> Result<()> {
    let image = std::fs::File::options().read(true).write(true).open(site.image())?;
    let mut byte = [0];
    image.read_exact_at(&mut byte, at)?;
    Ok(image.write_all_at(&[byte[0] ^ 0x40], at)?)
}

/// A flipped byte anywhere in the store is found by mount and fsck, or lies where nothing is kept: then all is right.
#[test]
fn a_flipped_byte_is_found_or_does_no_harm() -> Result<()> {
    let (site, url) = used()?;
    let pages = pages(&site, &url)?;
    let mut random = SmallRng::seed_from_u64(5);
    let kept = std::fs::read(site.image())?;
    let (mut found, mut harmless) = (0, 0);
    for round in 0..24 {
        let at = pages[random.random_range(0..pages.len())] + random.random_range(0..4096);
        flip(&site, at)?;
        let output = csvfs(&["fsck", "--lun", &url])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            matches!(output.status.code(), Some(0 | 1)),
            "byte {at}: {:?}: {said}{errors}",
            output.status
        );
        ensure!(!errors.contains("panicked"), "byte {at}: {errors}");
        if output.status.success() {
            let mount = site.mount(&url)?;
            for file in 0..40 {
                content::check(&mount.path().join(format!("file{file}")), file, 3)
                    .with_context(|| format!("byte {at} in round {round}"))?;
            }
            mount.unmount()?;
            harmless += 1;
        } else {
            ensure!(
                said.contains("damaged") || said.contains("inode") || said.contains("LUN blocks"),
                "{said}"
            );
            let refused = site.mount_refused(&url, &[])?;
            refused.saying(&["fsck"]).with_context(|| format!("byte {at}"))?;
            found += 1;
        }
        std::fs::write(site.image(), &kept)?;
    }
    println!("{found} found, {harmless} harmless of {} pages", pages.len());
    ensure!(found > 0, "no flipped byte was found");
    Ok(())
}

/// Changes the store behind the volume's back.
fn edit(url: &str, change: impl FnOnce(&mut Tables<'_>) -> Result<()>) -> Result<()> {
    let volume = open(
        lun(url)?,
        OpenOptions::new(ClientId(77), "test", csvfs::store::redo::replayer(lockd::rules::Rules::all())),
    )?;
    let transaction = volume.database.begin_write()?;
    change(&mut Tables::of(&transaction))?;
    transaction.commit()?;
    volume.close()?;
    Ok(())
}

fn set_links(tables: &mut Tables<'_>, ino: u64, links: u32) -> Result<()> {
    let mut record = {
        let row = tables.inodes()?.get(ino)?.context("the inode")?;
        InodeRecord::parse(Ino(ino), row.value())?.0
    };
    record.nlink = U32::new(links);
    tables.inodes_mut()?.insert(ino, record.as_bytes())?;
    Ok(())
}

/// Findings in the store come in words, with exit code 1, and are mended.
#[test]
fn wrong_counts_are_explained_and_mended() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let (site, url) = used()?;
    let mount = site.mount(&url)?;
    let ino = std::fs::metadata(mount.path().join("file7"))?.ino();
    mount.unmount()?;
    edit(&url, |tables| set_links(tables, ino, LINK_MAX - 1))?;
    let output = csvfs(&["fsck", "--lun", &url])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(said.contains(&format!("says that it has {} links, but it has 1", LINK_MAX - 1)), "{said}");
    // As many links as there can be, and one more.
    let mount = site.mount(&url)?;
    std::fs::hard_link(mount.path().join("file7"), mount.path().join("link"))?;
    let error = std::fs::hard_link(mount.path().join("file7"), mount.path().join("more"))
        .expect_err("too many links");
    ensure!(error.raw_os_error() == Some(libc::EMLINK), "{error}");
    mount.unmount()?;
    let output = csvfs(&["fsck", "--repair", "--json", "--lun", &url])?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.success() && report["clean"] == true, "{report}");
    ensure!(report["repairs"].to_string().contains("links"), "{report}");
    fsck_clean(&url)?;
    let mount = site.mount(&url)?;
    ensure!(std::fs::metadata(mount.path().join("file7"))?.nlink() == 2);
    for file in 0..40 {
        content::check(&mount.path().join(format!("file{file}")), file, 3)?;
    }
    mount.unmount()?;
    refused(&["fsck", "--lun", "file:/none"])?.saying(&["no file"]).map(drop)
}
