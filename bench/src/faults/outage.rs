//! One fault: how long until the victim's file is written elsewhere and names are made, and whether it has happened.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::Cluster;
use lab::wait::until;
use serde_json::json;

use super::LIMIT;
use super::cast::Cast;
use super::own::Own;

const BYTES: usize = 256 << 10;
/// What the file holds before the fault, and after it.
const BEFORE: u8 = 0xbb;
const AFTER: u8 = 0xcc;

/// What befalls the victim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is cut off LAN and SAN, and all its processes are killed.
    NodeDead,
    /// Its `csvfs mount` is killed.
    MountKilled,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NodeDead => "node dead",
            Self::MountKilled => "csvfs killed, its node alive",
        })
    }
}

impl Fault {
    fn happen(self, lab: &Cluster, victim: u8) -> Result<()> {
        match self {
            Self::NodeDead => lab.power_off(victim),
            Self::MountKilled => lab.kill(&lab.node(victim).name(), "csvfs"),
        }
    }

    fn undo(self, lab: &Cluster, victim: u8) -> Result<()> {
        match self {
            Self::NodeDead => lab.power_on(victim),
            Self::MountKilled => lab.restart(&lab.node(victim).name(), "csvfs"),
        }
    }
}

/// What it cost.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// Until the victim's file was written on another node, durably, in seconds.
    pub file_s: f64,
    /// Until a file was made on another node, in seconds.
    pub names_s: f64,
    /// The owner's longest write meanwhile, and in a control run of the same length, in milliseconds.
    pub longest_ms: (f64, f64),
}

/// How many clients the target refuses.
fn refused(lab: &Cluster) -> Result<u64> {
    let status = lab.target().control(&json!({"op": "status"}))?;
    status["ended"].as_u64().with_context(|| format!("the target does not count whom it refuses: {status}"))
}

fn write(path: &Path, byte: u8) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(&[byte; BYTES], 0)?;
    file.sync_all()
}

/// Does it on a thread; the seconds from `since` until it is done. Should that never be, the thread waits until the lab is
/// taken away.
fn timed_since(since: Instant, work: impl FnOnce() -> Result<()> + Send + 'static) -> Receiver<Result<f64>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let done = work().map(|()| since.elapsed().as_secs_f64());
        // Nobody listens if it took too long.
        let _ = sender.send(done);
    });
    receiver
}

impl Outage {
    /// Has `fault` befall the victim of `cast`, once; the names of files end in `tag`.
    pub fn measure(lab: &Cluster, fault: Fault, cast: Cast, tag: &str) -> Result<Self> {
        let Cast { victim, heir, owner, .. } = cast;
        let name = format!("disk-{tag}");
        write(&lab.path(victim, &name), BEFORE)?;
        lab.acquire(victim, &[&name])?;
        write(&lab.path(victim, &name), BEFORE)?;
        let own = Own::file(lab, owner, &format!("own-{tag}"))?;
        let refused_before = refused(lab)?;
        let (inherited, made) = (lab.path(heir, &name), lab.path(owner, &format!("made-{tag}")));
        let ((file_s, names_s, span), longest) = own.during(|| {
            let began = Instant::now();
            fault.happen(lab, victim)?;
            // A sync that spans the loss of the file's server fails, once (P9).
            let write = move || until("the file is written", LIMIT, || write(&inherited, AFTER).ok());
            let written = timed_since(began, write);
            let create = move || File::create_new(&made).map(drop).context("making a file");
            let made = timed_since(began, create);
            let done = |what: Receiver<Result<f64>>| what.recv_timeout(LIMIT).context("it takes too long")?;
            let file_s = done(written).context("writing the victim's file")?;
            Ok((file_s, done(made).context("making a file on another node")?, began.elapsed()))
        })?;
        Self::has_happened(lab, fault, cast, refused_before)?;
        let found = fs::read(lab.path(owner, &name))?;
        ensure!(found == [AFTER; BYTES], "n{owner} does not see what n{heir} wrote");
        fault.undo(lab, victim)?;
        until("all see who leads", LIMIT, || {
            [victim, heir, owner].iter().all(|n| lab.leader(*n).is_ok()).then_some(())
        })?;
        let ((), quiet) = own.during(|| {
            thread::sleep(span);
            Ok(())
        })?;
        fs::remove_file(lab.path(owner, &format!("own-{tag}")))?;
        Ok(Self { file_s, names_s, longest_ms: (longest, quiet) })
    }

    fn has_happened(lab: &Cluster, fault: Fault, cast: Cast, refused_before: u64) -> Result<()> {
        let Cast { victim, heir, owner, coordinates } = cast;
        let host = lab.node(victim).name();
        ensure!(!lab.daemon(&host, "csvfs")?.is_alive(), "the mount on {host} lives");
        let lockd_lives = lab.daemon(&host, "lockd")?.is_alive();
        ensure!(lockd_lives == (fault == Fault::MountKilled), "lockd on {host}: alive is {lockd_lives}");
        let refused = refused(lab)? - refused_before;
        ensure!(refused == 1, "the target refuses {refused} more clients");
        if fault == Fault::NodeDead {
            let leader = lab.leader(owner)?;
            ensure!(leader != victim, "{host} is dead, and leads");
        }
        if coordinates {
            let now = lab.coordinator(owner)?;
            ensure!(now == heir || now == owner, "{host} has lost its mount, and coordinates");
            let takeover = lab.status(now)?["takeover"].clone();
            ensure!(
                takeover["from"] == host.as_str() && takeover["planned"] == false,
                "n{now} says {takeover}"
            );
        }
        Ok(())
    }
}
