//! Names too long, files too large, too many of them.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use csvfs::types::{FILE_SIZE_MAX, NAME_MAX, XATTR_VALUE_MAX};
use lab::Site;
use lab::mounted::fsck_clean;
use lab::server::{Kind, Server};
use lab::site::format_quick;

fn fails<T>(result: io::Result<T>, errno: i32) -> Result<()> {
    match result {
        Ok(_) => anyhow::bail!("it should have failed with errno {errno}"),
        Err(error) => {
            ensure!(error.raw_os_error() == Some(errno), "{error} instead of errno {errno}");
            Ok(())
        }
    }
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes())?, CString::new(name)?);
    // SAFETY: both strings and the value are valid for the duration of the call.
    let status =
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn names_and_links_have_a_longest_length() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let mount = site.mount(&url)?;
    let longest = mount.path().join("n".repeat(NAME_MAX));
    let too_long = mount.path().join("n".repeat(NAME_MAX + 1));
    std::fs::write(&longest, "x")?;
    fails(std::fs::write(&too_long, "x"), libc::ENAMETOOLONG)?;
    fails(std::fs::create_dir(&too_long), libc::ENAMETOOLONG)?;
    fails(std::fs::rename(&longest, &too_long), libc::ENAMETOOLONG)?;
    fails(std::fs::hard_link(&longest, &too_long), libc::ENAMETOOLONG)?;
    fails(std::fs::metadata(&too_long), libc::ENAMETOOLONG)?;
    fails(std::os::unix::fs::symlink("t".repeat(4096), mount.path().join("link")), libc::ENAMETOOLONG)?;
    std::os::unix::fs::symlink("t".repeat(4095), mount.path().join("link"))?;
    ensure!(std::fs::read_link(mount.path().join("link"))?.as_os_str().len() == 4095);
    let deep = mount.path().join("d/".repeat(2048));
    fails(std::fs::metadata(deep), libc::ENAMETOOLONG)?;
    mount.unmount()?;
    fsck_clean(&url)
}

#[test]
fn a_thousand_nested_folders_work() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::NbdkitMemory, &site.path(""), 64 << 20)?;
    let url = server.url();
    format_quick(&url)?;
    let mount = site.mount(&url)?;
    let nested = |depth: usize| mount.path().join("d/".repeat(depth));
    std::fs::create_dir_all(nested(1000))?;
    std::fs::write(nested(1000).join("file"), "deep")?;
    ensure!(std::fs::read(nested(1000).join("file"))? == b"deep");
    std::fs::rename(nested(500), mount.path().join("half"))?;
    ensure!(std::fs::read(mount.path().join("half").join("d/".repeat(500)).join("file"))? == b"deep");
    mount.unmount()?;
    fsck_clean(&url)?;
    let mount = site.mount(&url)?;
    std::fs::remove_dir_all(mount.path().join("half"))?;
    std::fs::remove_dir_all(mount.path().join("d"))?;
    mount.unmount()?;
    fsck_clean(&url)
}

#[test]
fn files_have_a_greatest_size() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let mount = site.mount(&url)?;
    let file = File::create(mount.path().join("file"))?;
    file.set_len(FILE_SIZE_MAX)?;
    fails(file.set_len(FILE_SIZE_MAX + 1), libc::EFBIG)?;
    fails(file.write_all_at(b"x", FILE_SIZE_MAX), libc::EFBIG)?;
    file.write_all_at(b"last", FILE_SIZE_MAX - 4)?;
    file.sync_all()?;
    ensure!(file.metadata()?.len() == FILE_SIZE_MAX);
    drop(file);
    mount.unmount()?;
    fsck_clean(&url)?;
    let mount = site.mount(&url)?;
    let mut end = [0; 8];
    File::open(mount.path().join("file"))?.read_exact_at(&mut end, FILE_SIZE_MAX - 8)?;
    ensure!(&end == b"\0\0\0\0last", "{end:?}");
    std::fs::remove_file(mount.path().join("file"))?;
    mount.unmount()?;
    fsck_clean(&url)
}

#[test]
fn attributes_have_a_greatest_size() -> Result<()> {
    let site = Site::new()?;
    let url = site.volume()?;
    let mount = site.mount(&url)?;
    let file = mount.path().join("file");
    std::fs::write(&file, "x")?;
    set_xattr(&file, "user.largest", &vec![1; XATTR_VALUE_MAX])?;
    fails(set_xattr(&file, "user.larger", &vec![1; XATTR_VALUE_MAX + 1]), libc::E2BIG)?;
    fails(set_xattr(&file, &format!("user.{}", "n".repeat(256)), b"x"), libc::ERANGE)?;
    mount.unmount()?;
    fsck_clean(&url)
}

/// 50,000 entries in a soak; otherwise as many as a busy machine makes in a few seconds.
#[test]
fn a_large_folder_is_listed_and_removed() -> Result<()> {
    let entries: usize = if std::env::var_os("CSV_SOAK").is_some() { 50_000 } else { 10_000 };
    let site = Site::new()?;
    let server = Server::start(Kind::NbdkitMemory, &site.path(""), 256 << 20)?;
    let url = server.url();
    format_quick(&url)?;
    let mount = site.mount(&url)?;
    let folder = mount.path().join("large");
    std::fs::create_dir(&folder)?;
    let each = |work: &(dyn Fn(usize) -> io::Result<()> + Sync)| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    scope.spawn(move || (0..entries).filter(|i| i % 8 == thread).try_for_each(work))
                })
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })
    };
    each(&|i| File::create(folder.join(format!("entry-{i:06}"))).map(drop)).context("creating")?;
    let listed = || -> Result<usize> {
        let names = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<io::Result<std::collections::BTreeSet<_>>>()?;
        Ok(names.len())
    };
    ensure!(listed()? == entries, "{} of {entries} are listed", listed()?);
    // A listing that is under way while entries go shows each of the others once.
    let mut listing = std::fs::read_dir(&folder)?;
    let mut seen = listing.by_ref().take(100).collect::<io::Result<Vec<_>>>()?.len();
    each(&|i| if i % 2 == 0 { std::fs::remove_file(folder.join(format!("entry-{i:06}"))) } else { Ok(()) })?;
    seen += listing.collect::<io::Result<Vec<_>>>()?.len();
    ensure!(seen >= entries / 2 && seen <= entries, "{seen}");
    ensure!(listed()? == entries / 2);
    fails(std::fs::remove_dir(&folder), libc::ENOTEMPTY)?;
    std::fs::remove_dir_all(&folder)?;
    mount.unmount()?;
    fsck_clean(&url)
}
