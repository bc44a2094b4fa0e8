//! nbdkit's error filter: another server than ours that answers with errors, switched on and off by a file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{Result, ensure};
use lab::mounted::fsck_clean;
use lab::server::{Kind, Server};
use lab::site::{SIZE, format_quick};
use lab::{Mounted, Site, content};

struct Trouble {
    site: Site,
    server: Server,
    mount: Mounted,
}

const BLOCKS: u64 = 60;

impl Trouble {
    fn new() -> Result<Self> {
        let site = Site::new()?;
        let server = Server::start(Kind::NbdkitErrors, &site.path(""), SIZE)?;
        format_quick(&server.url())?;
        let mount = site.mount(&server.url())?;
        content::fill(&mount.path().join("before"), 1, BLOCKS)?;
        Ok(Self { site, server, mount })
    }

    fn trigger(&self, what: &str, on: bool) -> Result<()> {
        let file = self.site.path(what);
        if on {
            File::create(file).map(drop)?
        } else {
            std::fs::remove_file(file)?
        }
        Ok(())
    }
}

/// Memory for O_DIRECT.
struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn new() -> Self {
        let memory = vec![0; 2 * content::BLOCK];
        let start = memory.as_ptr().align_offset(content::BLOCK);
        Self(memory, start)
    }

    fn block(&mut self) -> &mut [u8] {
        &mut self.0[self.1..self.1 + content::BLOCK]
    }
}

fn is_eio<T>(result: std::io::Result<T>) -> Result<()> {
    let error = result.err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(libc::EIO), "{error:?} instead of EIO");
    Ok(())
}

#[test]
fn errors_of_another_server_reach_readers_and_nothing_wrong_is_read() -> Result<()> {
    let trouble = Trouble::new()?;
    let path = trouble.mount.path().join("before");
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path)?;
    let mut memory = Aligned::new();
    let at = |index: u64| index * content::BLOCK as u64;
    for round in 0..5 {
        trouble.trigger("fail-reads", true)?;
        for index in 0..BLOCKS {
            // An error, and no byte that was not written.
            is_eio(file.read_at(memory.block(), at(index)))?;
        }
        trouble.trigger("fail-reads", false)?;
        for index in 0..BLOCKS {
            file.read_exact_at(memory.block(), at(index))?;
            ensure!(memory.block() == content::block(1, index, 0), "block {index} in round {round}");
        }
    }
    drop(file);
    content::fill(&trouble.mount.path().join("after"), 2, BLOCKS)?;
    let Trouble { site, server, mount } = trouble;
    ensure!(site.status()?["state"] == "direct", "{}", site.status()?);
    mount.unmount()?;
    fsck_clean(&server.url())?;
    let mount = site.mount(&server.url())?;
    content::check(&mount.path().join("before"), 1, BLOCKS)?;
    content::check(&mount.path().join("after"), 2, BLOCKS)?;
    mount.unmount()
}

#[test]
fn errors_of_another_server_reach_writers_and_what_was_synced_stays() -> Result<()> {
    let trouble = Trouble::new()?;
    let path = trouble.mount.path().join("before");
    trouble.trigger("fail-writes", true)?;
    let file = OpenOptions::new().write(true).open(&path)?;
    is_eio(file.write_all_at(&content::block(9, 0, 0), 0).and_then(|()| file.sync_all()))?;
    trouble.trigger("fail-writes", false)?;
    drop(file);
    // Nothing was written of the new bytes: the target said so.
    content::check(&path, 1, BLOCKS)?;
    let Trouble { site, server, mount } = trouble;
    let state = site.status()?["state"].clone();
    if state == "direct" {
        content::fill(&mount.path().join("after"), 2, BLOCKS)?;
        mount.unmount()?;
    } else {
        // A commit may have met an error: then nothing is changed any more, and that is said.
        ensure!(state == "failed", "{state}");
        drop(mount);
    }
    let mount = site.mount(&server.url())?;
    content::check(&mount.path().join("before"), 1, BLOCKS)?;
    content::fill(&mount.path().join("later"), 3, BLOCKS)?;
    mount.unmount()?;
    fsck_clean(&server.url())
}

#[test]
fn a_server_that_cannot_read_refuses_a_mount_and_the_next_one_works() -> Result<()> {
    let trouble = Trouble::new()?;
    let Trouble { site, server, mount } = trouble;
    mount.unmount()?;
    File::create(site.path("fail-reads"))?;
    site.mount_refused(&server.url(), &[])?.saying(&["Input/output error"])?;
    std::fs::remove_file(site.path("fail-reads"))?;
    let mount = site.mount(&server.url())?;
    content::check(&mount.path().join("before"), 1, BLOCKS)?;
    mount.unmount()?;
    fsck_clean(&server.url())
}
