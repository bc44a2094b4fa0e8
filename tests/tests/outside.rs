//! Programs of others on a real mount: each must be content, and fsck after it.

use std::path::Path;

use anyhow::Result;
use lab::mounted::{format, fsck_clean};
use lab::server::Kind;
use lab::{Mounted, Server, suites};
use tempfile::TempDir;

/// Runs `work` on a fresh volume of an NBD server, unmounts, and checks the volume.
fn on_fresh_volume(kind: Kind, work: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<()> {
    let folder = TempDir::new()?;
    let server = Server::start(kind, folder.path(), 4 << 30)?;
    format(&server.url())?;
    let mount = Mounted::new(&server.url(), &folder.path().join("mnt"))?;
    work(mount.path(), folder.path())?;
    mount.unmount()?;
    fsck_clean(&server.url())
}

#[test]
fn pjdfstest_passes_as_on_ext4() -> Result<()> {
    on_fresh_volume(Kind::NbdkitMemory, suites::pjdfstest)
}

#[test]
fn fsx_finds_no_difference_on_nbdkit() -> Result<()> {
    on_fresh_volume(Kind::NbdkitMemory, |mount, scratch| suites::fsx(mount, scratch, 20_000, 7))
}

/// The same with the bundled target.
#[test]
fn fsx_finds_no_difference_on_csv_target() -> Result<()> {
    on_fresh_volume(Kind::CsvTarget, |mount, scratch| suites::fsx(mount, scratch, 20_000, 8))
}

#[test]
fn fio_verifies_what_it_wrote() -> Result<()> {
    on_fresh_volume(Kind::NbdkitMemory, |mount, scratch| suites::fio_verify(mount, scratch, 32))
}

#[test]
fn stress_ng_finds_no_fault() -> Result<()> {
    on_fresh_volume(Kind::NbdkitMemory, |mount, scratch| suites::stress_ng(mount, scratch, 1))
}

#[test]
fn qemu_img_uses_an_image_on_the_mount() -> Result<()> {
    on_fresh_volume(Kind::NbdkitMemory, suites::qemu_img)
}
