//! A LUN that comes back as something else (P3): I/O is held, and nothing is written to it.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::mounted::fsck_clean;
use lab::server::{Kind, Server};
use lab::site::{SIZE, format_quick};
use lab::wait::until;
use lab::{Mounted, Site, content};

/// A mount, whose server is replaced by `replace` while it is away; what `why` says is in status and log, and the
/// replacing image is not touched; when `put_back` has brought the right one back, the mount goes on.
fn replaced(
    why: &str,
    replace: impl FnOnce(&Site) -> Result<()>,
    put_back: impl FnOnce(&Site) -> Result<()>,
) -> Result<()> {
    let site = Site::new()?;
    let mut server = Server::start(Kind::NbdkitFile, &site.path(""), SIZE)?;
    let url = server.url();
    format_quick(&url)?;
    let mut mount = site.mount(&url)?;
    content::fill(&mount.path().join("before"), 1, 100)?;
    server.kill();
    replace(&site)?;
    let before = std::fs::read(site.image())?;
    server.restart()?;
    let folder = mount.path().to_owned();
    let waiting = std::thread::spawn(move || content::fill(&folder.join("during"), 2, 100));
    let seen = until("the status says why", Duration::from_secs(10), || {
        let status = site.status().ok()?;
        (status["state"] == "paused" && status["path"].to_string().contains(why)).then_some(())
    });
    said(&mut mount, why)?;
    // A few more probes.
    std::thread::sleep(Duration::from_millis(1200));
    ensure!(!waiting.is_finished(), "the write must wait");
    ensure!(std::fs::read(site.image())? == before, "the other LUN was written to");
    seen?;
    server.kill();
    put_back(&site)?;
    server.restart()?;
    waiting.join().expect("the writer does not panic").context("the write that waited")?;
    content::check(&mount.path().join("before"), 1, 100)?;
    content::check(&mount.path().join("during"), 2, 100)?;
    mount.unmount()?;
    fsck_clean(&url)
}

fn said(mount: &mut Mounted, why: &str) -> Result<()> {
    until("the log says why", Duration::from_secs(10), || {
        mount.process().errors().contains(why).then_some(())
    })
}

#[test]
fn p3_a_lun_that_came_back_smaller_is_not_written_to() -> Result<()> {
    replaced(
        "its size was",
        |site| {
            std::fs::copy(site.image(), site.path("kept.img"))?;
            Ok(File::options().write(true).open(site.image())?.set_len(SIZE / 2)?)
        },
        |site| Ok(std::fs::rename(site.path("kept.img"), site.image())?),
    )
}

#[test]
fn p3_another_volume_in_its_place_is_not_written_to() -> Result<()> {
    replaced(
        "another LUN answers there",
        |site| {
            std::fs::rename(site.image(), site.path("kept.img"))?;
            format_quick(&site.new_image(SIZE)?)
        },
        |site| Ok(std::fs::rename(site.path("kept.img"), site.image())?),
    )
}

#[test]
fn p3_a_blank_lun_in_its_place_is_not_written_to() -> Result<()> {
    replaced(
        "another LUN answers there",
        |site| {
            std::fs::rename(site.image(), site.path("kept.img"))?;
            site.new_image(SIZE).map(drop)
        },
        |site| Ok(std::fs::rename(site.path("kept.img"), site.image())?),
    )
}

#[test]
fn a_file_that_shrinks_under_the_mount_gives_errors() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let mount = site.mount(&url)?;
    content::fill(&mount.path().join("before"), 1, 100)?;
    mount.unmount()?;
    let image = File::options().write(true).open(site.image())?;
    image.set_len(SIZE / 2)?;
    drop(image);
    site.mount_refused(&url, &[])?.saying(&["bytes, but the volume on it has", "not the whole LUN"])?;
    File::options().write(true).open(site.image())?.set_len(SIZE)?;
    let mount = site.mount(&url)?;
    content::check(&mount.path().join("before"), 1, 100)?;
    mount.unmount()
}
