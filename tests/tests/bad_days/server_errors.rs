//! A target that answers with errors: they reach the caller, and nothing is wrong afterwards.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use csvfs::disk::format::data_region;
use csvfs::disk::label::Label;
use lab::mounted::fsck_clean;
use lab::server::{Kind, Server};
use lab::site::{SIZE, format_quick};
use lab::{Mounted, Site, content};
use serde_json::{Value, json};

struct Trouble {
    site: Site,
    server: Server,
    mount: Mounted,
    /// Where file data begins on the LUN, in bytes.
    data: u64,
}

impl Trouble {
    fn new() -> Result<Self> {
        let site = Site::new()?;
        let server = Server::start(Kind::CsvTarget, &site.path(""), SIZE)?;
        format_quick(&server.url())?;
        let mut label = [0; 4096];
        File::open(site.image())?.read_exact_at(&mut label, 0)?;
        let region = data_region(&Label::decode(&label)?);
        let data = region.first().context("a data region")?.bytes().start;
        let mount = site.mount(&server.url())?;
        content::fill(&mount.path().join("before"), 1, 100)?;
        Ok(Self { site, server, mount, data })
    }

    /// Sets a fault on requests of `kind` within a range of bytes.
    fn fault(&self, kind: &str, errno: i32, offset: u64, length: u64) -> Result<()> {
        let action = json!({"error": {"errno": errno}});
        let request =
            json!({"op": "fault", "action": action, "kinds": [kind], "offset": offset, "length": length});
        self.server.control(&request).map(drop)
    }

    fn clear(&self) -> Result<Value> {
        let faults = self.server.control(&json!({"op": "faults"}))?;
        let fired =
            faults["faults"].as_array().is_some_and(|all| all.iter().all(|fault| fault["fired"] != 0));
        ensure!(fired, "the fault did not strike: {faults}");
        self.server.control(&json!({"op": "clear"}))
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.mount.path().join(name)
    }

    /// The mount works as if nothing had been; so does the volume.
    fn works_on(self) -> Result<()> {
        content::check(&self.path("before"), 1, 100)?;
        content::fill(&self.path("after"), 2, 100)?;
        ensure!(self.site.status()?["state"] == "direct", "{}", self.site.status()?);
        self.mount.unmount()?;
        fsck_clean(&self.server.url())?;
        let mount = self.site.mount(&self.server.url())?;
        content::check(&mount.path().join("before"), 1, 100)?;
        content::check(&mount.path().join("after"), 2, 100)?;
        mount.unmount()
    }
}

fn direct(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?)
}

fn is_eio<T>(result: std::io::Result<T>) -> Result<()> {
    match result {
        Ok(_) => anyhow::bail!("it should have failed"),
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(()),
        Err(error) => anyhow::bail!("{error} instead of EIO"),
    }
}

#[test]
fn an_error_of_a_read_reaches_the_reader() -> Result<()> {
    let trouble = Trouble::new()?;
    trouble.fault("read", libc::EIO, trouble.data, SIZE)?;
    let file = direct(&trouble.path("before"))?;
    // As a caller of O_DIRECT must: an aligned place in memory.
    let mut memory = vec![0_u8; 2 * content::BLOCK];
    let start = memory.as_ptr().align_offset(content::BLOCK);
    is_eio(file.read_at(&mut memory[start..start + content::BLOCK], 0))?;
    trouble.clear()?;
    file.read_exact_at(&mut memory[start..start + content::BLOCK], 0)?;
    ensure!(memory[start..start + content::BLOCK] == content::block(1, 0, 0));
    drop(file);
    trouble.works_on()
}

#[test]
fn an_error_of_a_write_reaches_the_writer() -> Result<()> {
    let trouble = Trouble::new()?;
    trouble.fault("write", libc::EIO, trouble.data, SIZE)?;
    // New blocks, and such that are there already.
    is_eio(content::fill(&trouble.path("new"), 3, 20))?;
    let file = OpenOptions::new().write(true).open(trouble.path("before"))?;
    is_eio(file.write_all_at(&content::block(1, 0, 0), 0).and_then(|()| file.sync_all()))?;
    drop(file);
    trouble.clear()?;
    std::fs::remove_file(trouble.path("new"))?;
    trouble.works_on()
}

#[test]
fn a_target_without_space_says_so() -> Result<()> {
    let trouble = Trouble::new()?;
    trouble.fault("write", libc::ENOSPC, trouble.data, SIZE)?;
    let error = content::fill(&trouble.path("new"), 3, 20).expect_err("the target has no space");
    ensure!(matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EIO)), "{error}");
    trouble.clear()?;
    std::fs::remove_file(trouble.path("new"))?;
    trouble.works_on()
}

#[test]
fn a_failed_write_of_metadata_stops_all_changes_and_is_told() -> Result<()> {
    let trouble = Trouble::new()?;
    std::fs::create_dir(trouble.path("folder"))?;
    // The store, but not the claims before it.
    trouble.fault("write", libc::EIO, 1 << 20, trouble.data - (1 << 20))?;
    is_eio(std::fs::write(trouble.path("new"), "x"))?;
    trouble.clear()?;
    let status = trouble.site.wait_state("failed", Duration::from_secs(5))?;
    let problem = status["problem"].to_string();
    ensure!(problem.contains("errno 5") && problem.contains("mount again"), "{problem}");
    is_eio(std::fs::create_dir(trouble.path("other")))?;
    is_eio(std::fs::remove_dir(trouble.path("folder")))?;
    // What is there can still be read.
    content::check(&trouble.path("before"), 1, 100)?;
    ensure!(trouble.path("folder").is_dir() && !trouble.path("new").exists());
    let Trouble { site, server, mut mount, .. } = trouble;
    let log = mount.process().errors();
    ensure!(log.contains("the coordinator stops changing the volume"), "{log}");
    let error = mount.unmount().expect_err("what could not be committed is told").to_string();
    ensure!(error.contains("what was synced is safe"), "{error}");
    let mount = site.mount(&server.url())?;
    content::check(&mount.path().join("before"), 1, 100)?;
    std::fs::create_dir(mount.path().join("other"))?;
    mount.unmount()?;
    fsck_clean(&server.url())
}

#[test]
fn a_failed_flush_is_told_to_who_syncs() -> Result<()> {
    let trouble = Trouble::new()?;
    let file = OpenOptions::new().write(true).open(trouble.path("before"))?;
    file.write_all_at(&content::block(1, 0, 0), 0)?;
    let action = json!({"error": {"errno": libc::EIO}});
    trouble.server.control(&json!({"op": "fault", "action": action, "kinds": ["flush"]}))?;
    is_eio(file.sync_all())?;
    trouble.clear()?;
    drop(file);
    let state = trouble.site.status()?["state"].clone();
    if state == "direct" {
        return trouble.works_on();
    }
    // The flush may have been one of the metadata: then nothing is changed any more, and that is said.
    ensure!(state == "failed", "{state}");
    drop(trouble.mount);
    let mount = trouble.site.mount(&trouble.server.url())?;
    content::check(&mount.path().join("before"), 1, 100)?;
    mount.unmount()?;
    fsck_clean(&trouble.server.url())
}

#[test]
fn cut_connections_cost_nothing() -> Result<()> {
    let trouble = Trouble::new()?;
    for round in 0..5 {
        trouble.server.control(&json!({"op": "cut"}))?;
        content::fill(&trouble.path(&format!("file{round}")), round, 50)?;
    }
    for round in 0..5 {
        content::check(&trouble.path(&format!("file{round}")), round, 50)?;
    }
    trouble.works_on()
}
