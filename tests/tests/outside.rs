//! Programs of others on a real mount: each must be content, and fsck after it.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use lab::mounted::{format, fsck_clean};
use lab::server::Kind;
use lab::{Mounted, Server, programs};
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

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// pjdfstest 0.2: what ext4 passes (383 cases) but one, which asks the C library for the limit of links: it knows that of
/// ext4 by name, and of no FUSE file system. That case is skipped, as are those for other systems.
#[test]
fn pjdfstest_passes_as_on_ext4() -> Result<()> {
    on_fresh_volume(Kind::NbdkitMemory, |mount, folder| {
        let settings = folder.join("pjdfstest.toml");
        std::fs::write(
            &settings,
            r#"
            [features]
            posix_fallocate = {}
            rename_ctime = {}
            stat_st_birthtime = {}
            utime_now = {}
            utimensat = {}
            [settings]
            naptime = 0.01
            allow_remount = false
            expected_failures = []
            [dummy_auth]
            entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
            "#,
        )?;
        // The suite changes users, who must reach the mount through the scratch folder.
        open_to_all(folder)?;
        open_to_all(mount)?;
        let output = Command::new(programs::installed("pjdfstest")?)
            .arg("-c")
            .arg(&settings)
            .arg("-p")
            .arg(mount)
            .output()?;
        let text = text(&output);
        let failed: Vec<&str> = text.lines().filter(|line| line.contains("FAILED")).collect();
        ensure!(output.status.success() && failed.is_empty(), "pjdfstest: {failed:#?}\n{text}");
        ensure!(text.contains("0 failed") && text.contains("382 passed"), "not all cases ran: {text}");
        Ok(())
    })
}

fn open_to_all(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?)
}

fn fsx(kind: Kind, seed: u32) -> Result<()> {
    on_fresh_volume(kind, |mount, folder| {
        let settings = folder.join("fsx.toml");
        std::fs::write(
            &settings,
            "[weights]\nclose_open = 2\ninvalidate = 2\ntruncate = 10\nfsync = 2\nfdatasync = 2\nposix_fallocate = 5\n\
             punch_hole = 10\nsendfile = 5\ncopy_file_range = 10\nposix_fadvise = 2\n",
        )?;
        let output = Command::new(programs::installed("fsx")?)
            .arg("-f")
            .arg(&settings)
            .args(["-N", "20000", "-S", &seed.to_string(), "-P"])
            .arg(folder)
            .arg(mount.join("fsx"))
            .output()?;
        ensure!(output.status.success(), "fsx with seed {seed}: {}", text(&output));
        Ok(())
    })
}

/// fsx 0.3: 20,000 operations with punch, copy and mmap.
#[test]
fn fsx_finds_no_difference_on_nbdkit() -> Result<()> {
    fsx(Kind::NbdkitMemory, 7)
}

/// The same with the bundled target.
#[test]
fn fsx_finds_no_difference_on_csv_target() -> Result<()> {
    fsx(Kind::CsvTarget, 8)
}

/// fio writes and verifies, buffered and with O_DIRECT, in blocks of many sizes.
#[test]
fn fio_verifies_what_it_wrote() -> Result<()> {
    on_fresh_volume(Kind::NbdkitMemory, |mount, folder| {
        for (name, direct, engine, sizes) in [
            ("direct", "1", "io_uring", "4k-64k"),
            ("buffered", "0", "psync", "512-16k"),
            ("sync", "0", "sync", "4k-4k"),
        ] {
            let output = Command::new(programs::installed("fio")?)
                .args([
                    "--rw=randrw",
                    "--verify=crc32c",
                    "--verify_state_save=0",
                    "--do_verify=1",
                    "--verify_fatal=1",
                    "--size=32m",
                ])
                .args(["--iodepth=16", "--numjobs=2", "--fsync=64", "--randseed=3"])
                .args([
                    &format!("--name={name}"),
                    &format!("--direct={direct}"),
                    &format!("--ioengine={engine}"),
                ])
                .args([&format!("--bsrange={sizes}"), &format!("--directory={}", mount.display())])
                // Where it leaves the state of its verification.
                .current_dir(folder)
                .output()?;
            ensure!(output.status.success(), "fio {name}: {}", text(&output));
        }
        Ok(())
    })
}

/// A short round of stress-ng's file system class, each stressor in turn.
#[test]
fn stress_ng_finds_no_fault() -> Result<()> {
    on_fresh_volume(Kind::NbdkitMemory, |mount, folder| {
        // Left out are stressors that do not touch the mount but the machine: devices, /proc, other file systems.
        let left_out =
            "bind-mount,binderfs,dev,fanotify,file-ioctl,hdd,inotify,io,ioprio,procfs,sync-file,verity";
        let output = Command::new(programs::installed("stress-ng")?)
            .args(["--class", "filesystem", "--sequential", "1", "--timeout", "1", "--verify"])
            .args(["--exclude", left_out, "--temp-path"])
            .arg(mount)
            .current_dir(folder)
            .output()?;
        let text = text(&output);
        ensure!(output.status.success() && !text.contains("fail:"), "stress-ng ({}): {text}", output.status);
        Ok(())
    })
}

/// An image is made, filled and compared by qemu-img on the mount.
#[test]
fn qemu_img_uses_an_image_on_the_mount() -> Result<()> {
    on_fresh_volume(Kind::NbdkitMemory, |mount, folder| {
        let source = folder.join("source.raw");
        let pattern: Vec<u8> =
            (0..8 << 20).map(|i: u32| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        std::fs::write(&source, pattern)?;
        let image = mount.join("disk.qcow2");
        for arguments in [
            vec!["convert", "-O", "qcow2", "-t", "none", path(&source), path(&image)],
            vec!["compare", path(&source), path(&image)],
            vec!["resize", path(&image), "64M"],
            vec!["check", path(&image)],
            vec!["snapshot", "-c", "first", path(&image)],
        ] {
            let output = Command::new(programs::installed("qemu-img")?).args(&arguments).output()?;
            ensure!(output.status.success(), "qemu-img {arguments:?}: {}", text(&output));
        }
        Ok(())
    })
}

fn path(path: &Path) -> &str {
    path.to_str().expect("scratch paths are plain text")
}
