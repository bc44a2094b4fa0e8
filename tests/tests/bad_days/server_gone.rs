//! The server is killed and started again, hangs, or stays away.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::content::Ledger;
use lab::mounted::fsck_clean;
use lab::server::{Kind, Server};
use lab::site::{SIZE, format_quick};
use lab::wait::until;
use lab::{Site, content};
use serde_json::json;

const BLOCKS: u64 = 1500;

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    Ok(options.read(true).write(true).create(true).custom_flags(libc::O_NOFOLLOW).open(path)?)
}

/// Writes, syncs and makes names on the mount while `trouble` happens; all of it must succeed, and be there after a
/// remount.
fn under_load(kind: Kind, trouble: impl FnOnce(&Site, &mut Server) -> Result<()>) -> Result<()> {
    let site = Site::new()?;
    let mut server = Server::start(kind, &site.path(""), SIZE)?;
    under_load_at(&site, &mut server, &[], trouble)
}

/// The same at `site` with the LUN of `server` and further options of the mount.
pub(super) fn under_load_at(
    site: &Site,
    server: &mut Server,
    options: &[&str],
    trouble: impl FnOnce(&Site, &mut Server) -> Result<()>,
) -> Result<()> {
    let url = server.url();
    format_quick(&url)?;
    let mount = site.mount_at(&url, "mnt", options)?;
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let file = open(&mount.path().join("file"))?;
    let (ledger, names) = std::thread::scope(|scope| -> Result<_> {
        let writer = scope.spawn(|| -> Result<Ledger> {
            let mut ledger = Ledger::default();
            let mut round = 0;
            while !stop.load(Ordering::Acquire) {
                round += 1;
                ledger.write(&file, 7, round * 7919 % BLOCKS).context("a write")?;
                if round % 16 == 0 {
                    ledger.sync(&file).context("a sync")?;
                }
                count.fetch_add(1, Ordering::AcqRel);
            }
            ledger.sync(&file).context("the last sync")?;
            Ok(ledger)
        });
        let folder = mount.path();
        let namer = scope.spawn(|| -> Result<u64> {
            let mut names = 0;
            while !stop.load(Ordering::Acquire) {
                std::fs::write(folder.join(format!("name{names}")), names.to_string())
                    .context("a new file")?;
                names += 1;
                // Not so many that the metadata fill the small LUN.
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(names)
        });
        let progress = |more: u64, limit: u64| {
            let from = count.load(Ordering::Acquire);
            until("the load goes on", Duration::from_secs(limit), || {
                (writer.is_finished() || count.load(Ordering::Acquire) > from + more).then_some(())
            })
        };
        let happened =
            progress(200, 20).and_then(|()| trouble(site, server)).and_then(|()| progress(200, 30));
        stop.store(true, Ordering::Release);
        let ledger = writer.join().expect("the writer does not panic");
        let names = namer.join().expect("the namer does not panic");
        happened?;
        Ok((ledger?, names?))
    })?;
    ensure!(ledger.synced() > 0, "nothing was synced");
    ledger.check_all(&file, 7)?;
    drop(file);
    mount.unmount()?;
    fsck_clean(&url)?;
    let mount = site.mount(&url)?;
    ledger.check_all(&File::open(mount.path().join("file"))?, 7)?;
    for name in 0..names {
        let found = std::fs::read_to_string(mount.path().join(format!("name{name}")))?;
        ensure!(found == name.to_string(), "name{name} holds {found:?}");
    }
    mount.unmount()
}

/// Killed, seen to be away, started again.
fn restarted(site: &Site, server: &mut Server) -> Result<()> {
    server.kill();
    let status = site.wait_state("paused", Duration::from_secs(10))?;
    let (path, problem) = (status["path"].to_string(), status["problem"].to_string());
    ensure!(path.contains("down for"), "{path}");
    ensure!(problem.contains("I/O waits") && problem.contains("120 s"), "{problem}");
    server.restart()?;
    site.wait_state("direct", Duration::from_secs(20)).map(drop)
}

#[test]
fn csv_target_is_restarted_under_load() -> Result<()> {
    under_load(Kind::CsvTarget, restarted)
}

#[test]
fn nbdkit_is_restarted_under_load() -> Result<()> {
    under_load(Kind::NbdkitFile, restarted)
}

#[test]
fn tgt_is_restarted_under_load() -> Result<()> {
    under_load(Kind::Tgt, restarted)
}

#[test]
fn csv_target_loses_its_cache_under_load() -> Result<()> {
    under_load(Kind::CsvTarget, |_, server| {
        server.control(&json!({"op": "volatile", "on": true}))?;
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(200));
            server.control(&json!({"op": "crash"}))?;
        }
        Ok(())
    })
}

/// P9: a target that loses what was not flushed gets it again, and then only is a sync answered.
#[test]
fn p9_what_the_target_lost_is_written_again() -> Result<()> {
    let site = Site::new()?;
    let server = Server::start(Kind::CsvTarget, &site.path(""), SIZE)?;
    let url = server.url();
    format_quick(&url)?;
    let mount = site.mount(&url)?;
    content::fill(&mount.path().join("file"), 7, 64)?;
    let file = File::options().read(true).write(true).open(mount.path().join("file"))?;
    server.control(&json!({"op": "volatile", "on": true}))?;
    let mut ledger = Ledger::default();
    (0..64).try_for_each(|index| ledger.write(&file, 7, index))?;
    let boot = server.control(&json!({"op": "status"}))?["boot_id"].clone();
    server.control(&json!({"op": "crash"}))?;
    ensure!(server.control(&json!({"op": "status"}))?["boot_id"] != boot, "the target has not crashed");
    ledger.sync(&file)?;
    server.control(&json!({"op": "crash"}))?;
    drop(file);
    mount.unmount()?;
    let mount = site.mount(&url)?;
    ensure!(ledger.synced() == 64);
    ledger.check_all(&File::open(mount.path().join("file"))?, 7)?;
    mount.unmount()?;
    fsck_clean(&url)
}

fn hung(server: &mut Server) -> Result<()> {
    server.process().signal(libc::SIGSTOP);
    // Longer than half the window, so that the lease lapses meanwhile (L3).
    std::thread::sleep(Duration::from_millis(2500));
    server.process().signal(libc::SIGCONT);
    Ok(())
}

#[test]
fn csv_target_hangs_under_load() -> Result<()> {
    under_load(Kind::CsvTarget, |_, server| hung(server))
}

#[test]
fn nbdkit_hangs_under_load() -> Result<()> {
    under_load(Kind::NbdkitFile, |_, server| hung(server))
}

/// P2: I/O is held so long, and then fails; what was synced is there when the server is back.
#[test]
fn p2_a_server_that_stays_away_gives_eio() -> Result<()> {
    let site = Site::new()?;
    let mut server = Server::start(Kind::CsvTarget, &site.path(""), SIZE)?;
    let url = server.url();
    format_quick(&url)?;
    let mut mount = site.mount_at(&url, "mnt", &["--hold", "2"])?;
    content::fill(&mount.path().join("synced"), 5, 200)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(mount.path().join("synced"))?;
    server.kill();
    let status = site.wait_state("paused", Duration::from_secs(10))?;
    ensure!(status["problem"].to_string().contains("after 2 s"), "{status}");
    let began = std::time::Instant::now();
    let error = std::fs::write(mount.path().join("new"), "x").expect_err("the LUN is gone");
    ensure!(error.raw_os_error() == Some(libc::EIO), "{error}");
    ensure!(began.elapsed() > Duration::from_millis(1500), "it was not held");
    let mut ledger = Ledger::default();
    let error = ledger.write(&file, 5, 3).expect_err("the LUN is gone");
    ensure!(error.raw_os_error() == Some(libc::EIO), "{error}");
    drop(file);
    // The metadata could not be changed: the mount says so, and goes on saying so.
    let status = site.wait_state("failed", Duration::from_secs(10))?;
    ensure!(status["problem"].to_string().contains("mount again"), "{status}");
    server.restart()?;
    until("the LUN is back", Duration::from_secs(10), || {
        std::fs::read(mount.path().join("synced")).ok().map(drop)
    })?;
    let error = std::fs::write(mount.path().join("new"), "x").expect_err("the metadata has failed");
    ensure!(error.raw_os_error() == Some(libc::EIO), "{error}");
    let log = mount.process().errors();
    ensure!(log.contains("held in vain"), "{log}");
    let failed = mount.unmount().expect_err("what could not be committed is told").to_string();
    ensure!(failed.contains("what was synced is safe"), "{failed}");
    let mount = site.mount(&url)?;
    let found = std::fs::read(mount.path().join("synced"))?;
    for (index, chunk) in (0..200).zip(found.chunks(content::BLOCK)) {
        // The write that was given up may have landed or not.
        let may_be_new = index == 3 && chunk == content::block(5, 3, 1);
        ensure!(may_be_new || chunk == content::block(5, index, 0), "block {index}");
    }
    std::fs::write(mount.path().join("new"), "x")?;
    mount.unmount()?;
    fsck_clean(&url)
}
