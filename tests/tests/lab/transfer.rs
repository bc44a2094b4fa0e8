//! Sets of files that go from node to node by one command, under the programs that use and lock them.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cluster, programs};
use serde_json::Value;

use super::volume::{lockctl, lockctl_done, text, with_three_mounts};

/// Files of a test, as each node names them.
struct Set<'a> {
    cluster: &'a Cluster,
    names: Vec<String>,
}

impl<'a> Set<'a> {
    /// `count` files, made on node 1.
    fn new(cluster: &'a Cluster, count: usize, bytes: usize) -> Result<Self> {
        let set = Self { cluster, names: (0..count).map(|number| format!("set{number}")).collect() };
        for number in 0..count {
            fs::write(set.path(1, number), vec![0; bytes])?;
        }
        Ok(set)
    }

    fn path(&self, node: u8, number: usize) -> PathBuf {
        self.cluster.node(node).mount_point().join(&self.names[number])
    }

    /// Runs lockctl on `node` with the names of all files at the end.
    fn lockctl(&self, node: u8, arguments: &[&str]) -> Result<Value> {
        let paths: Vec<PathBuf> = (0..self.names.len()).map(|number| self.path(node, number)).collect();
        let mut all = vec!["--json"];
        all.extend_from_slice(arguments);
        for path in &paths {
            all.push(text(path)?);
        }
        let said = lockctl_done(self.cluster, &format!("n{node}"), &all)?;
        serde_json::from_str(&said).with_context(|| format!("lockctl {arguments:?} said {said}"))
    }

    /// Hands all over; the epoch that they have from then on, and the pause in seconds.
    fn transfer(&self, by: u8, to: u8) -> Result<(u64, f64)> {
        let done = self.lockctl(by, &["transfer", "--to", &format!("n{to}")])?;
        let epoch = done[0]["epoch"].as_u64().context("an epoch")?;
        Ok((epoch, done[0]["pause_s"].as_f64().context("a pause")?))
    }

    /// All of the set is held by that node, in that epoch, pinned, as `lockctl ls` shows it.
    fn ensure_at(&self, node: u8, epoch: u64) -> Result<()> {
        let listed: Value = serde_json::from_str(&lockctl_done(self.cluster, "n2", &["--json", "ls"])?)?;
        let listed = listed.as_array().context("a list")?;
        for number in 0..self.names.len() {
            let ino = fs::metadata(self.path(1, number))?.ino();
            let named = |line: &&Value| {
                line["resource"].as_str().is_some_and(|name| name.ends_with(&format!("/file/{ino}")))
            };
            let line = listed.iter().find(named).with_context(|| format!("file {ino} is not held"))?;
            let holder = &line["holders"][0];
            ensure!(holder["node"] == format!("n{node}"), "{line}");
            ensure!(holder["epoch"] == epoch && holder["pinned"] == true, "{line} instead of epoch {epoch}");
        }
        Ok(())
    }
}

/// A program that does not outlive the test.
struct Started(std::process::Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn try_flock(file: &File) -> std::io::Result<()> {
    // SAFETY: the descriptor is open through the call.
    let status = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Locks the first bytes for the open file (OFD).
fn try_ofd(file: &File) -> std::io::Result<()> {
    let lock = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 10,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the structure lives, through the call.
    let status = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Past the kernel's pages: a file of which pages may be mapped stays where it is.
fn open(path: PathBuf) -> Result<File> {
    Ok(File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?)
}

fn ensure_locked(done: std::io::Result<()>, what: &str) -> Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
        other => anyhow::bail!("{what}: {other:?}"),
    }
}

#[test]
fn a_set_moves_under_fio_and_the_locks_on_both_sides_stay() -> Result<()> {
    with_three_mounts(|cluster| {
        let set = Set::new(cluster, 4, 1 << 20)?;
        // The coordinator's node owns files like any other.
        let epoch = set.lockctl(1, &["acquire", "--node", "n1"])?[0]["epoch"].as_u64().context("an epoch")?;
        set.ensure_at(1, epoch)?;
        let (on_two, on_three) = (open(set.path(2, 0))?, open(set.path(3, 1))?);
        try_flock(&on_two)?;
        try_ofd(&on_three)?;
        let (rival_of_two, rival_of_three) = (open(set.path(1, 0))?, open(set.path(2, 1))?);
        let names: Vec<String> = (0..4).map(|number| set.path(2, number).display().to_string()).collect();
        let fio = Command::new(programs::installed("fio")?)
            .args(["--name=lab", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--rw=randwrite"])
            .args(["--bs=4k", "--size=4m", "--io_size=48m", "--verify=crc32c", "--do_verify=1"])
            .args(["--verify_state_save=0", "--rate_iops=3000"])
            .arg(format!("--filename={}", names.join(":")))
            .stdout(Stdio::null())
            .spawn()?;
        let mut fio = Started(fio);
        let (mut owner, mut last, mut moved) = (1, epoch, 0);
        while fio.0.try_wait()?.is_none() {
            let next = owner % 3 + 1;
            let (epoch, _) = set.transfer(owner, next)?;
            ensure!(epoch > last, "epoch {epoch} after {last}");
            set.ensure_at(next, epoch)?;
            ensure_locked(try_flock(&rival_of_two), "flock of n2's file by n1")?;
            ensure_locked(try_ofd(&rival_of_three), "OFD lock of n3's file by n2")?;
            (owner, last, moved) = (next, epoch, moved + 1);
        }
        let status = fio.0.wait()?;
        ensure!(status.success(), "fio found a wrong block, or could not write: {status}");
        ensure!(moved >= 3, "the set has moved {moved} times only");
        // Those who have the locks are still those who let them go.
        drop((on_two, on_three));
        let free = |done: std::io::Result<()>| done.ok();
        let patience = Duration::from_secs(10);
        lab::wait::until("flock to be free", patience, || free(try_flock(&rival_of_two)))?;
        lab::wait::until("the OFD lock to be free", patience, || free(try_ofd(&rival_of_three)))?;
        Ok(())
    })
}

#[test]
fn locks_go_along_with_programs_that_move() -> Result<()> {
    with_three_mounts(|cluster| {
        let set = Set::new(cluster, 2, 4096)?;
        set.lockctl(2, &["acquire", "--node", "n2"])?;
        let (holder, rival) = (open(set.path(2, 0))?, open(set.path(1, 0))?);
        try_flock(&holder)?;
        let done = set.lockctl(2, &["transfer", "--with-locks", "--to", "n3"])?;
        let cookie = done[0]["cookie"].as_str().context("a cookie")?.to_owned();
        ensure_locked(try_flock(&rival), "a lock in escrow")?;
        let stranger = lockctl(cluster, "n1", &["adopt", &cookie, "--node", "n1"])?;
        ensure!(!stranger.status.success(), "n1 has adopted what is for n3");
        let adopted = lockctl_done(cluster, "n1", &["adopt", &cookie, "--node", "n3"])?;
        ensure!(adopted.starts_with("1 locks adopted"), "{adopted}");
        // It is n3's now: its old holder cannot end it.
        drop(holder);
        std::thread::sleep(Duration::from_millis(300));
        ensure_locked(try_flock(&rival), "a lock that was adopted")?;
        let again = lockctl(cluster, "n1", &["adopt", &cookie, "--node", "n3"])?;
        ensure!(String::from_utf8_lossy(&again.stderr).contains("no locks are kept"), "{again:?}");
        // On to n1, where nobody wants it.
        let done = set.lockctl(3, &["transfer", "--with-locks", "--to", "n1"])?;
        let cookie = done[0]["cookie"].as_str().context("a cookie")?.to_owned();
        ensure_locked(try_flock(&rival), "a lock in escrow, again")?;
        let dropped = lockctl_done(cluster, "n1", &["adopt", &cookie, "--drop", "--node", "n1"])?;
        ensure!(dropped.starts_with("1 locks dropped"), "{dropped}");
        try_flock(&rival)?;
        Ok(())
    })
}

#[test]
fn what_cannot_be_handed_over_is_refused_with_the_reason() -> Result<()> {
    with_three_mounts(|cluster| {
        let set = Set::new(cluster, 3, 4096)?;
        let path = |number: usize| set.path(1, number);
        let directory = cluster.node(1).mount_point().join("directory");
        fs::create_dir(&directory)?;
        let refused = |arguments: &[&str], says: &str| -> Result<()> {
            let output = lockctl(cluster, "n1", arguments)?;
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(1) && error.contains(says), "{arguments:?}: {error}");
            Ok(())
        };
        let (one, two) = (path(0), path(1));
        let (one, two) = (text(&one)?, text(&two)?);
        let epoch = set.lockctl(1, &["acquire", "--node", "n2"])?[0]["epoch"].as_u64().context("epoch")?;
        refused(&["transfer", one, two, "--to", "n9"], "n9")?;
        let directory = text(&directory)?;
        refused(&["acquire", directory, "--node", "n3"], "is a directory")?;
        refused(&["transfer", directory, "--to", "n3"], "is a directory")?;
        let shown = lockctl_done(cluster, "n1", &["--json", "show", one])?;
        let shown: Value = serde_json::from_str(&shown)?;
        let resource = shown["resource"].as_str().context("a resource")?;
        let missing = format!("{}/file/999999", resource.split("/file/").next().context("a volume")?);
        refused(&["acquire", &missing, "--node", "n3"], "no such file")?;
        refused(&["transfer", &missing, one, "--to", "n3"], "no such file")?;
        set.ensure_at(2, epoch)?;
        // It is there already: fine.
        let (again, _) = set.transfer(1, 2)?;
        ensure!(again == epoch, "nothing was to be done: epoch {again}, not {epoch}");
        // Of two owners: who looks at one of them only cannot say what is to become of the other's.
        lockctl_done(cluster, "n1", &["transfer", two, "--to", "n3"])?;
        refused(&["transfer", one, two, "--to", "n1", "--with-locks"], "these have 2 (1 files on n2")?;
        refused(&["transfer", one, two, "--to", "n1", "--epoch", "1"], "name each owner's apart")?;
        // A node that has no mount of the volume any more.
        cluster.stop("n3", "csvfs")?;
        refused(&["transfer", one, "--to", "n3"], "not mounted")?;
        cluster.mount(3)?;
        lockctl_done(cluster, "n1", &["release", one])?;
        refused(&["release", one], "nobody holds")?;
        Ok(())
    })
}

#[test]
fn a_set_of_several_owners_goes_on_as_one() -> Result<()> {
    with_three_mounts(|cluster| {
        let set = Set::new(cluster, 7, 4096)?;
        let path = |number: usize| set.path(1, number).display().to_string();
        let paths: Vec<String> = (0..7).map(path).collect();
        let acquire = |numbers: std::ops::Range<usize>, node: &str| {
            let files = paths[numbers].iter().map(String::as_str);
            let arguments: Vec<&str> = ["acquire", "--node", node].into_iter().chain(files).collect();
            lockctl_done(cluster, "n1", &arguments).map(drop)
        };
        // Three by n1 and two by n2, pinned; two by nobody. All get one epoch, by one entry.
        acquire(0..3, "n1")?;
        acquire(3..5, "n2")?;
        let (epoch, _) = set.transfer(1, 3)?;
        set.ensure_at(3, epoch)?;
        // What is there already stays in its epoch.
        lockctl_done(cluster, "n1", &["transfer", &paths[0], &paths[1], "--to", "n1"])?;
        lockctl_done(cluster, "n1", &["transfer", &paths[2], "--to", "n2"])?;
        let (later, _) = set.transfer(2, 3)?;
        let (came, stayed) = set.names.split_at(3);
        Set { cluster, names: came.to_vec() }.ensure_at(3, later)?;
        Set { cluster, names: stayed.to_vec() }.ensure_at(3, epoch)?;
        // In use on all nodes.
        for (number, node) in (0..7).zip([1, 2, 3].into_iter().cycle()) {
            fs::write(set.path(node, number), format!("by {node}"))?;
            let read = fs::read_to_string(set.path(node % 3 + 1, number))?;
            ensure!(read == format!("by {node}"), "{read:?}, not by {node}");
        }
        Ok(())
    })
}

#[test]
fn a_transfer_for_an_epoch_that_is_over_is_refused_and_nothing_moves() -> Result<()> {
    with_three_mounts(|cluster| {
        let set = Set::new(cluster, 3, 4096)?;
        let paths: Vec<PathBuf> = (0..3).map(|number| set.path(1, number)).collect();
        let paths: Vec<&str> = paths.iter().map(|path| text(path)).collect::<Result<_>>()?;
        let transfer = |files: &[&str], to: &str, epoch: &str| {
            lockctl(cluster, "n1", &[&["transfer"], files, &["--to", to, "--epoch", epoch]].concat())
        };
        let refused = |files: &[&str], to: &str, epoch: &str, says: &str| -> Result<()> {
            let output = transfer(files, to, epoch)?;
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_clear =
                error.starts_with("lockctl: nothing was handed over: ") && error.lines().count() == 1;
            ensure!(output.status.code() == Some(1) && is_clear && error.contains(says), "{epoch}: {error}");
            Ok(())
        };
        let first = set.lockctl(1, &["acquire", "--node", "n2"])?[0]["epoch"].as_u64().context("an epoch")?;
        let (second, _) = set.transfer(1, 3)?;
        let (now, _) = set.transfer(1, 2)?;
        for old in [first, second, now + 1, 0] {
            // To where it is, too: whoever asks has not seen how it came there.
            for to in ["n3", "n1", "n2"] {
                refused(&paths, to, &old.to_string(), &format!("is held in epoch e{now}, not"))?;
            }
            set.ensure_at(2, now)?;
        }
        // One of the set has been elsewhere meanwhile.
        lockctl_done(cluster, "n1", &["release", paths[1]])?;
        refused(&paths, "n3", &now.to_string(), &format!("is held by nobody, not in epoch e{now}"))?;
        lockctl_done(cluster, "n1", &["acquire", paths[1], "--node", "n2"])?;
        let shown: Value =
            serde_json::from_str(&lockctl_done(cluster, "n1", &["--json", "show", paths[1]])?)?;
        let later = shown["holders"][0]["epoch"].as_u64().context("an epoch")?;
        ensure!(later > now, "{later} after {now}");
        refused(&paths, "n3", &now.to_string(), &format!("is held in epoch e{later}, not in epoch e{now}"))?;
        let apart = Set { cluster, names: vec!["set0".to_owned(), "set2".to_owned()] };
        apart.ensure_at(2, now)?;
        // As `ls` shows it.
        let done = transfer(&[paths[0], paths[2]], "n3", &format!("e{now}"))?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

        // Of two who have seen the same, one is served.
        let racers = std::thread::scope(|scope| {
            let racers = ["n1", "n3"].map(|to| {
                let (transfer, file) = (&transfer, paths[1]);
                scope.spawn(move || transfer(&[file], to, &later.to_string()))
            });
            racers.map(|racer| racer.join().expect("no panic"))
        });
        let mut won = 0_u8;
        for racer in racers {
            won += u8::from(racer?.status.success());
        }
        ensure!(won == 1, "{won} of two transfers of one epoch were done");

        // What nobody holds has epoch 0.
        lockctl_done(cluster, "n1", &[&["release"], &paths[..]].concat())?;
        refused(&paths, "n3", &later.to_string(), &format!("is held by nobody, not in epoch e{later}"))?;
        let done = transfer(&paths, "n3", "0")?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        refused(&paths, "n2", "0", ", not by nobody")?;

        // What no program holds, by lockd itself.
        lockctl_done(cluster, "n1", &["acquire", "vm/web", "--node", "n1"])?;
        let shown: Value =
            serde_json::from_str(&lockctl_done(cluster, "n1", &["--json", "show", "vm/web"])?)?;
        let epoch = shown["holders"][0]["epoch"].as_u64().context("an epoch")?;
        refused(
            &["vm/web"],
            "n2",
            &(epoch - 1).to_string(),
            &format!("vm/web is held in epoch e{epoch}, not"),
        )?;
        let done = transfer(&["vm/web"], "n2", &epoch.to_string())?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        ensure!(transfer(&["vm/web"], "n2", "soon")?.status.code() == Some(2), "it is no epoch");
        Ok(())
    })
}

/// Figures, not a test: `cargo nextest run --release -p tests --run-ignored only figures_of_transfers --no-capture`.
#[test]
#[ignore = "prints figures; takes a minute"]
fn figures_of_transfers() -> Result<()> {
    with_three_mounts(|cluster| {
        let set = Set::new(cluster, 10, 1 << 20)?;
        set.lockctl(1, &["acquire", "--node", "n2"])?;
        let ends = AtomicBool::new(false);
        let file = open(set.path(2, 0))?;
        // In milliseconds.
        let percentile = |figures: &mut Vec<f64>, at: usize| {
            figures.sort_by(f64::total_cmp);
            figures[figures.len() * at / 100] * 1000.0
        };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut longest: Vec<(Instant, f64)> = Vec::new();
                while !ends.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let written = file.write_all_at(&[7; 4096], 0);
                    assert!(written.is_ok(), "{written:?}");
                    longest.push((begun, begun.elapsed().as_secs_f64()));
                }
                longest
            });
            let mut told = Vec::new();
            let mut spans = Vec::new();
            let mut done = Ok(());
            for turn in 0..200_u8 {
                let (from, to) = if turn % 2 == 0 { (2, 3) } else { (3, 2) };
                let begun = Instant::now();
                match set.transfer(from, to) {
                    Ok((_, pause)) => told.push(pause),
                    Err(error) => {
                        done = Err(error);
                        break;
                    }
                }
                spans.push((begun, Instant::now()));
            }
            ends.store(true, Ordering::Relaxed);
            let writes = writer.join().expect("the writer does not panic");
            done?;
            let seen = spans.iter().map(|(from, to)| {
                let during = writes.iter().filter(|(at, _)| at >= from && at <= to);
                during.map(|(_, span)| *span).fold(0.0, f64::max)
            });
            let mut seen: Vec<f64> = seen.collect();
            eprintln!(
                "10 files, {} transfers: a writer waits {:.2} ms (median), {:.2} ms (p99); lockctl says {:.2} and {:.2}",
                seen.len(),
                percentile(&mut seen, 50),
                percentile(&mut seen, 99),
                percentile(&mut told, 50),
                percentile(&mut told, 99),
            );
            anyhow::Ok(())
        })?;
        drop(file);
        let many = Set { cluster, names: (0..10_000).map(|number| format!("many{number}")).collect() };
        for number in 0..10_000 {
            fs::write(many.path(1, number), b"x")?;
        }
        let inos: Vec<u64> =
            (0..10_000).map(|number| Ok(fs::metadata(many.path(1, number))?.ino())).collect::<Result<_>>()?;
        let shown: Value = serde_json::from_str(&lockctl_done(
            cluster,
            "n1",
            &["--json", "show", text(&many.path(1, 0))?],
        )?)?;
        let resource = shown["resource"].as_str().context("a resource")?;
        let volume = resource.split("/file/").next().context("a volume")?;
        let names: Vec<String> = inos.iter().map(|ino| format!("{volume}/file/{ino}")).collect();
        let lockctl = |arguments: &[&str]| {
            let mut all = vec!["--json", "--timeout", "60"];
            all.extend_from_slice(arguments);
            all.extend(names.iter().map(String::as_str));
            let begun = Instant::now();
            let said = lockctl_done(cluster, "n1", &all)?;
            anyhow::Ok((serde_json::from_str::<Value>(&said)?, begun.elapsed()))
        };
        let (_, took) = lockctl(&["acquire", "--node", "n2"])?;
        eprintln!("10,000 files acquired in {took:?}");
        for to in ["n3", "n2", "n1", "n2"] {
            let (done, took) = lockctl(&["transfer", "--to", to])?;
            eprintln!("10,000 files to {to}: pause {} s, the command {took:?}", done[0]["pause_s"]);
        }
        let (_, took) = lockctl(&["release"])?;
        eprintln!("10,000 files released in {took:?}");
        Ok(())
    })
}
