//! A full volume: writes and creates say so, deletes work, and then writes do again.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use lab::mounted::fsck_clean;
use lab::server::{Kind, Server};
use lab::site::{SIZE, format_quick};
use lab::{Mounted, Site, content};

/// A volume in memory: these tests write much.
fn mounted() -> Result<(Site, Server, Mounted)> {
    let site = Site::new()?;
    let server = Server::start(Kind::NbdkitMemory, &site.path(""), SIZE)?;
    format_quick(&server.url())?;
    let mount = site.mount(&server.url())?;
    Ok((site, server, mount))
}

fn no_space(error: &io::Error) -> Result<()> {
    ensure!(error.raw_os_error() == Some(libc::ENOSPC), "{error} instead of ENOSPC");
    Ok(())
}

/// Appends to the file until there is no space; tells how many blocks were taken, all of them synced.
fn fill_up(path: &Path, seed: u64) -> Result<u64> {
    let mut file = File::options().create(true).append(true).open(path)?;
    let mut blocks = 0;
    loop {
        match file.write_all(&content::block(seed, blocks, 0)) {
            Ok(()) => blocks += 1,
            Err(error) => {
                no_space(&error)?;
                break;
            }
        }
    }
    file.sync_all()?;
    Ok(blocks)
}

fn free_bytes(path: &Path) -> Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `statvfs` is plain memory, the path a valid C string.
    let stat = unsafe {
        let mut stat = std::mem::zeroed::<libc::statvfs>();
        ensure!(libc::statvfs(path.as_ptr(), &raw mut stat) == 0, "statvfs: {}", io::Error::last_os_error());
        stat
    };
    Ok(stat.f_bavail * stat.f_frsize)
}

#[test]
fn a_volume_that_is_full_of_data_can_be_emptied_and_filled_again() -> Result<()> {
    let (site, server, mount) = mounted()?;
    let at = |name: &str| mount.path().join(name);
    content::fill(&at("kept"), 1, 100)?;
    let mut taken = Vec::new();
    for round in 0..2 {
        let blocks = fill_up(&at("large"), 7)?;
        ensure!(blocks * 4096 > SIZE / 4, "only {blocks} blocks were taken");
        ensure!(free_bytes(mount.path())? < 4 << 20, "{} bytes are free", free_bytes(mount.path())?);
        taken.push(blocks);
        // Still full, and still readable.
        no_space(&content::fill(&at("more"), 8, 4096).expect_err("the volume is full"))?;
        std::fs::remove_file(at("more"))?;
        let mut found = std::fs::read(at("large"))?;
        found.truncate(usize::try_from(blocks)? * content::BLOCK);
        for (index, chunk) in (0..).zip(found.chunks(content::BLOCK)) {
            ensure!(chunk == content::block(7, index, 0), "block {index} in round {round}");
        }
        // An overwrite of what is there needs no space.
        content::check(&at("kept"), 1, 100)?;
        std::fs::remove_file(at("large"))?;
        content::fill(&at(&format!("after{round}")), round, 50)?;
    }
    ensure!(taken[1] + 200 > taken[0], "space is lost: {taken:?}");
    let blocks = fill_up(&at("large"), 7)?;
    mount.unmount()?;
    fsck_clean(&server.url())?;
    // Full, it is mounted, emptied and used.
    let mount = site.mount(&server.url())?;
    ensure!(std::fs::metadata(mount.path().join("large"))?.len() >= blocks * 4096);
    std::fs::remove_file(mount.path().join("large"))?;
    content::fill(&mount.path().join("last"), 9, 500)?;
    content::check(&mount.path().join("kept"), 1, 100)?;
    mount.unmount()?;
    fsck_clean(&server.url())
}

/// V2: each growth of the metadata reserves as much again for a copy: a full volume can be taken over.
#[test]
fn v2_a_full_volume_is_taken_over_by_copy() -> Result<()> {
    let (site, server, mount) = mounted()?;
    content::fill(&mount.path().join("kept"), 1, 100)?;
    fill_up(&mount.path().join("large"), 7)?;
    mount.crash();
    let mount = site.mount(&server.url())?;
    let how = site.status()?["opening"]["how"].to_string();
    ensure!(how.contains("by copy"), "{how}");
    content::check(&mount.path().join("kept"), 1, 100)?;
    std::fs::remove_file(mount.path().join("large"))?;
    content::fill(&mount.path().join("after"), 2, 100)?;
    mount.unmount()?;
    fsck_clean(&server.url())
}

/// Names of full length with attributes, by several threads, until there is no space for more.
fn fill_with_names(folder: &Path) -> Result<usize> {
    let made = AtomicUsize::new(0);
    let one = |thread: usize| -> Result<()> {
        let folder = folder.join(format!("folder{thread}"));
        std::fs::create_dir(&folder).or_else(|error| no_space(&error).map_err(io::Error::other))?;
        for i in 0.. {
            let path = folder.join(format!("{i:0>250}"));
            let created = File::create(&path).and_then(|file| {
                made.fetch_add(1, Ordering::Relaxed);
                use std::os::unix::ffi::OsStrExt;
                let (path, value) =
                    (std::ffi::CString::new(path.as_os_str().as_bytes())?, vec![1_u8; 60_000]);
                // SAFETY: the strings and the value are valid for the duration of the call.
                let status = unsafe {
                    libc::setxattr(
                        path.as_ptr(),
                        c"user.large".as_ptr(),
                        value.as_ptr().cast(),
                        value.len(),
                        0,
                    )
                };
                drop(file);
                if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
            });
            if let Err(error) = created {
                return no_space(&error);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || one(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    Ok(made.into_inner())
}

#[test]
fn a_volume_that_is_full_of_metadata_can_be_emptied() -> Result<()> {
    let (site, server, mount) = mounted()?;
    content::fill(&mount.path().join("kept"), 1, 100)?;
    let names = fill_with_names(mount.path())?;
    ensure!(names > 20, "only {names} names were made");
    let error = std::fs::create_dir_all(mount.path().join("one/more/and/more"));
    if let Err(error) = error {
        no_space(&error)?;
    }
    content::check(&mount.path().join("kept"), 1, 100)?;
    for thread in 0..4 {
        std::fs::remove_dir_all(mount.path().join(format!("folder{thread}")))?;
    }
    std::fs::create_dir_all(mount.path().join("one/more"))?;
    content::fill(&mount.path().join("after"), 2, 100)?;
    ensure!(site.status()?["state"] == "direct", "{}", site.status()?);
    mount.unmount()?;
    fsck_clean(&server.url())?;
    let mount = site.mount(&server.url())?;
    content::check(&mount.path().join("after"), 2, 100)?;
    mount.unmount()
}
