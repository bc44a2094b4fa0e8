//! The coordinator of a volume dies, is unmounted, or hands its role over, under load: metadata operations wait and then
//! succeed, an owner's I/O goes on, and nothing that was acknowledged is lost.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::cluster::Plan;
use lab::suites::fio_verify_command;
use lab::wait::until;
use lab::{Cluster, content};
use tempfile::TempDir;

const VOLUME: &str = "vms";
/// How long anything may take that must go on: a lease and its grace, and much more on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three nodes, whose sessions end soon when they are silent.
fn with_three_nodes(test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    Cluster::run_mounted(Plan::short_sessions(3, memory.path()), test)
}

/// Counts what goes on.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    /// Files that n2 has made, each with what is in it durable.
    made: AtomicU64,
    /// Syncs that told that what was written was lost with the node that served the file (P9).
    lost: AtomicU64,
    /// The longest time one of these steps took, and one write of n3 to its own file, in microseconds.
    longest_step: AtomicU64,
    longest_write: AtomicU64,
}

impl Load {
    fn took(longest: &AtomicU64, since: Instant) {
        let took = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        longest.fetch_max(took, Ordering::SeqCst);
    }

    fn micros(longest: &AtomicU64) -> Duration {
        Duration::from_micros(longest.load(Ordering::SeqCst))
    }

    /// Files are made, renamed and taken away on n2, each once.
    fn make_names(&self, cluster: &Cluster) -> Result<()> {
        let folder = cluster.path(2, "names");
        fs::create_dir(&folder)?;
        while !self.stop.load(Ordering::SeqCst) {
            let (number, since) = (self.made.load(Ordering::SeqCst), Instant::now());
            let (made, kept) = (folder.join(format!("new{number}")), folder.join(format!("file{number}")));
            let file = OpenOptions::new().write(true).create_new(true).open(&made);
            let file = file.with_context(|| format!("making new{number}"))?;
            file.write_all_at(&number.to_le_bytes(), 0)?;
            if let Err(error) = file.sync_all() {
                ensure!(error.raw_os_error() == Some(libc::EIO), "syncing new{number}: {error}");
                self.lost.fetch_add(1, Ordering::SeqCst);
                // As a program does that has kept its data.
                file.write_all_at(&number.to_le_bytes(), 0)?;
                file.sync_all().with_context(|| format!("syncing new{number} again"))?;
            }
            drop(file);
            fs::rename(&made, &kept).with_context(|| format!("renaming new{number}"))?;
            if number % 4 == 3 {
                fs::remove_file(&kept).with_context(|| format!("removing file{number}"))?;
            }
            Self::took(&self.longest_step, since);
            self.made.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn write_own(&self, cluster: &Cluster) -> Result<()> {
        let file = OpenOptions::new().write(true).open(cluster.path(3, "own"))?;
        let mut number = 0_u64;
        while !self.stop.load(Ordering::SeqCst) {
            let since = Instant::now();
            file.write_all_at(&number.to_le_bytes(), number % 64 * 4096)?;
            Self::took(&self.longest_write, since);
            number += 1;
            thread::sleep(Duration::from_micros(500));
        }
        file.sync_all().context("the owner's sync")
    }

    /// Waits until more has been made.
    fn goes_on(&self) -> Result<()> {
        let before = self.made.load(Ordering::SeqCst);
        until("n2 to make further names", PATIENCE, || {
            (self.made.load(Ordering::SeqCst) > before + 5 || self.stop.load(Ordering::SeqCst)).then_some(())
        })
    }

    /// Every file that was acknowledged is there, on node `number`.
    fn check(&self, cluster: &Cluster, number: u8) -> Result<()> {
        let folder = cluster.path(number, "names");
        for at in 0..self.made.load(Ordering::SeqCst) {
            let path = folder.join(format!("file{at}"));
            if at % 4 == 3 {
                ensure!(!path.exists(), "file{at} was removed, and n{number} sees it");
                continue;
            }
            let found = fs::read(&path).with_context(|| format!("file{at} on n{number}"))?;
            ensure!(found == at.to_le_bytes(), "file{at} on n{number} has {found:?}");
        }
        Ok(())
    }
}

/// Names are made on n2, n3 writes a file of its own and fio verifies another, while `happens` does what it does.
fn under_load(cluster: &Cluster, happens: impl FnOnce(&Load) -> Result<()>) -> Result<Load> {
    let scratch = TempDir::new()?;
    content::fill(&cluster.path(3, "own"), 7, 64)?;
    content::fill(&cluster.path(3, "verified"), 7, 1024)?;
    cluster.acquire(3, &["own", "verified"])?;
    let mut command = fio_verify_command("owned", scratch.path())?;
    command
        .args(["--direct=1", "--ioengine=libaio", "--iodepth=4", "--rw=randwrite", "--bs=4k"])
        .args(["--size=4m", "--io_size=1g", "--rate_iops=800", "--verify_backlog=256"])
        .args(["--time_based", "--runtime=600"])
        .arg(format!("--filename={}", cluster.path(3, "verified").display()))
        .stdout(Stdio::null());
    let mut fio = command.spawn()?;
    let load = Load::default();
    let done = thread::scope(|scope| {
        let names = scope.spawn(|| {
            let made = load.make_names(cluster);
            load.stop.store(true, Ordering::SeqCst);
            made
        });
        let own = scope.spawn(|| {
            let written = load.write_own(cluster);
            load.stop.store(true, Ordering::SeqCst);
            written
        });
        let happened = load.goes_on().and_then(|()| happens(&load)).and_then(|()| load.goes_on());
        let fio_lives = fio.try_wait().map(|ended| ended.is_none());
        load.stop.store(true, Ordering::SeqCst);
        let join = |thread: thread::ScopedJoinHandle<'_, Result<()>>| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread has panicked"),
        };
        let (names, own) = (join(names), join(own));
        names.context("n2")?;
        own.context("n3")?;
        happened?;
        ensure!(fio_lives?, "fio has ended: it found a wrong block, or could not write");
        Ok(())
    });
    // SAFETY: a signal to a child that has not been waited for.
    unsafe { libc::kill(i32::try_from(fio.id())?, libc::SIGINT) };
    let status = fio.wait()?;
    done?;
    // By the signal, or as it ends when it has got one.
    ensure!(status.code().is_none_or(|code| code == 0 || code == 128), "fio: {status}");
    eprintln!(
        "{} files made; the longest step {:.2?}, the longest write of the owner {:.2?}",
        load.made.load(Ordering::SeqCst),
        Load::micros(&load.longest_step),
        Load::micros(&load.longest_write)
    );
    Ok(load)
}

/// Nothing was lost: every node that stopped to serve a file had handed it over.
fn without_loss(load: &Load) -> Result<()> {
    let lost = load.lost.load(Ordering::SeqCst);
    ensure!(lost == 0, "{lost} syncs were refused");
    Ok(())
}

/// The role has gone to another node than n1, which the status tells how.
fn taken_over(cluster: &Cluster, planned: bool) -> Result<()> {
    let now =
        until("another coordinator", PATIENCE, || cluster.coordinator(2).ok().filter(|node| *node != 1))?;
    let takeover = until("the takeover", PATIENCE, || {
        cluster.status(now).ok().map(|status| status["takeover"].clone()).filter(|it| !it.is_null())
    })?;
    eprintln!("n{now}: {takeover}");
    ensure!(takeover["from"] == "n1" && takeover["planned"] == planned, "{takeover}");
    Ok(())
}

fn check_everywhere(cluster: &Cluster, load: &Load) -> Result<()> {
    (1..=3).try_for_each(|number| load.check(cluster, number))
}

#[test]
fn a_coordinators_mount_is_killed_under_load() -> Result<()> {
    with_three_nodes(|cluster| {
        let load = under_load(cluster, |_| {
            cluster.kill("n1", "csvfs")?;
            taken_over(cluster, false)
        })?;
        cluster.restart("n1", "csvfs")?;
        check_everywhere(cluster, &load)
    })
}

#[test]
fn a_coordinators_whole_node_dies_under_load() -> Result<()> {
    with_three_nodes(|cluster| {
        let load = under_load(cluster, |_| {
            cluster.power_off(1)?;
            taken_over(cluster, false)
        })?;
        cluster.power_on(1)?;
        check_everywhere(cluster, &load)
    })
}

#[test]
fn a_coordinators_mount_ends_under_load() -> Result<()> {
    with_three_nodes(|cluster| {
        let load = under_load(cluster, |_| {
            cluster.stop("n1", "csvfs")?;
            taken_over(cluster, true)
        })?;
        without_loss(&load)?;
        cluster.restart("n1", "csvfs")?;
        check_everywhere(cluster, &load)
    })
}

#[test]
fn the_role_moves_back_and_forth_under_load() -> Result<()> {
    with_three_nodes(|cluster| {
        // What nobody owns is written on n2, and served by whoever coordinates.
        let shared = File::create(cluster.path(2, "shared"))?;
        let mut pauses = Vec::new();
        let load = under_load(cluster, |load| {
            for round in 0_u64..12 {
                let to = [2, 3, 1][usize::try_from(round)? % 3];
                shared.write_all_at(&round.to_le_bytes(), round * 4096)?;
                pauses.push(cluster.move_coordinator(1, to)?.as_secs_f64());
                // P9: it was handed over, so that nothing of it is lost.
                shared.sync_all().with_context(|| format!("round {round}"))?;
                load.goes_on()?;
            }
            Ok(())
        })?;
        without_loss(&load)?;
        pauses.sort_by(f64::total_cmp);
        eprintln!("pauses in s: {pauses:.3?}");
        ensure!(pauses[pauses.len() / 2] < 1.0, "the role moves too slowly: {pauses:?}");
        check_everywhere(cluster, &load)
    })
}

#[test]
fn the_role_stays_where_it_is_when_the_other_node_cannot_have_it() -> Result<()> {
    with_three_nodes(|cluster| {
        cluster.stop("n3", "csvfs")?;
        let refused = cluster.lockctl("n2", &["coordinator", VOLUME, "--to", "n3"]);
        let refused = format!("{:#}", refused.expect_err("n3 has no mount"));
        ensure!(refused.contains("not mounted on node n3"), "{refused}");
        fs::write(cluster.path(2, "after"), b"x")?;
        ensure!(cluster.coordinator(1)? == 1);
        cluster.restart("n3", "csvfs")
    })
}

/// Found: the role was handed on to whoever asked first while its mount ended, or to nobody.
#[test]
fn an_unmount_and_a_move_at_the_same_time_lose_nothing() -> Result<()> {
    with_three_nodes(|cluster| {
        let shared = File::create(cluster.path(3, "shared"))?;
        for round in 0_u64..8 {
            let (from, to) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
            if cluster.coordinator(3)? != from {
                cluster.move_coordinator(3, from)?;
            }
            shared.write_all_at(&round.to_le_bytes(), round * 4096)?;
            let name = format!("n{from}");
            let moved = thread::scope(|scope| {
                let moves = scope.spawn(|| {
                    thread::sleep(Duration::from_millis(round * 3));
                    cluster.lockctl("n3", &["coordinator", VOLUME, "--to", &format!("n{to}")])
                });
                cluster.stop(&name, "csvfs")?;
                Ok::<_, anyhow::Error>(moves.join())
            })?;
            // The role is where it was to go, or the mount that took it has no reason to give it away.
            if let Ok(Err(why)) = moved {
                eprintln!("round {round}: {why:#}");
            }
            shared.sync_all().with_context(|| format!("round {round}: what was handed on is lost"))?;
            cluster.restart(&name, "csvfs")?;
        }
        Ok(())
    })
}

/// The role is on its way to n2, which dies before it has opened the store.
#[test]
fn what_is_handed_on_comes_to_the_one_who_opens_the_store() -> Result<()> {
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    Cluster::run(Plan::short_sessions(3, memory.path()), |cluster| {
        cluster.use_failpoints()?;
        cluster.init()?;
        cluster.start_lockd()?;
        cluster.format()?;
        (1..=3).try_for_each(|number| cluster.mount(number).map(drop))?;
        let shared = File::create(cluster.path(3, "shared"))?;
        shared.write_all_at(&[7; 8192], 0)?;
        cluster.arm("takeover.acquired")?;
        thread::scope(|scope| {
            let moves = scope.spawn(|| cluster.lockctl("n1", &["coordinator", VOLUME, "--to", "n2"]));
            let at = cluster.await_reached("takeover.acquired", PATIENCE)?;
            ensure!(at == 2, "n{at} has the role");
            // n1 has told it what is left, or tries to.
            thread::sleep(Duration::from_millis(500));
            cluster.kill("n2", "csvfs")?;
            let _ = moves.join();
            Ok(())
        })?;
        shared.sync_all().context("what was written at n1 was committed there, and is said to be lost")?;
        drop(shared);
        ensure!(cluster.coordinator(3)? != 2);
        cluster.restart("n2", "csvfs")?;
        ensure!(fs::read(cluster.path(2, "shared"))? == [7; 8192]);
        (1..=3).try_for_each(|number| cluster.stop(&format!("n{number}"), "csvfs"))
    })
}
