//! Civil time jumps by hours on one node, under load: leases, epochs and fences go by CLOCK_BOOTTIME, so nothing changes but the
//! times of files.
//!
//! A time namespace cannot shift CLOCK_REALTIME, and the machine's own clock is not ours. Our programs read their clocks by
//! the C library, also where other crates do it for them (the certificates' validity): a small library that is preloaded shifts
//! what all of the process sees.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use lab::Cluster;
use lab::cluster::{DaemonSpec, Plan};
use lab::history::{Done, Workload, check};
use lab::wait::until;
use serde_json::Value;
use tempfile::TempDir;

const FILE: &str = "disk";
const BLOCKS: u64 = 8;
const HOUR: i64 = 3600;
/// How long a jump lasts: longer than a lease and its grace.
const LASTS: Duration = Duration::from_secs(5);
/// That of [`Plan::short_sessions`].
const LEASE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);
/// How far the times of files may be off beside the jump: what a busy machine takes longer.
const OFF: i64 = 60;

/// The civil clocks of the lab's hosts.
struct Clocks {
    library: PathBuf,
    folder: TempDir,
}

impl Clocks {
    fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/wall_clock/shift.c");
        let library = folder.path().join("shift.so");
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        let output = command.output().context("running cc, the linker of our programs")?;
        ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Self { library, folder })
    }

    fn file(&self, number: u8) -> PathBuf {
        self.folder.path().join(format!("n{number}"))
    }

    /// Sets the clock of a host so many seconds ahead of the machine's, for what runs there now and later.
    fn set(&self, number: u8, ahead_s: i64) -> Result<()> {
        let file = File::options().write(true).create(true).truncate(false).open(self.file(number))?;
        Ok(file.write_all_at(&ahead_s.to_ne_bytes(), 0)?)
    }

    /// A daemon that goes by the clock of a host.
    fn on(&self, number: u8, spec: DaemonSpec) -> DaemonSpec {
        let (library, file) = (self.library.display().to_string(), self.file(number).display().to_string());
        spec.env("LD_PRELOAD", &library).env("WALL_CLOCK_SHIFT", &file)
    }
}

fn seconds(time: SystemTime) -> Result<i64> {
    Ok(i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH)?.as_secs())?)
}

/// How far the clock is ahead by which a node stamps the files that are made there.
fn ahead_s(cluster: &Cluster, number: u8) -> Result<i64> {
    let path = cluster.path(number, &format!("stamped{number}"));
    let _ = fs::remove_file(&path);
    drop(File::create(&path)?);
    Ok(fs::metadata(&path)?.mtime() - seconds(SystemTime::now())?)
}

/// What must not change: the sessions that live, and who coordinates since which epoch.
fn standing(cluster: &Cluster) -> Result<(Vec<u64>, Value, Value)> {
    let status: Value = serde_json::from_str(&cluster.lockctl("n1", &["--json", "status"])?)?;
    let sessions = status["state"]["sessions"].as_array().context("no sessions")?;
    let mut sessions: Vec<u64> = sessions.iter().filter_map(|session| session["session"].as_u64()).collect();
    sessions.sort_unstable();
    let status = cluster.cluster_status(1)?;
    let volume = &status["volumes"][0];
    Ok((sessions, volume["coordinator"].clone(), volume["coordinator_epoch"].clone()))
}

/// All nodes go on, and nothing has failed anywhere.
fn goes_on(done: &Done) -> Result<()> {
    for at in 0..3 {
        let before = done.succeeded(at);
        until(&format!("n{} to go on", at + 1), PATIENCE, || {
            (done.succeeded(at) > before + 5).then_some(())
        })?;
        ensure!(done.failed(at) == 0, "{} operations have failed on n{}", done.failed(at), at + 1);
    }
    Ok(())
}

#[test]
fn civil_time_that_jumps_by_hours_changes_nothing_but_the_times_of_files() -> Result<()> {
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    let clocks = Clocks::new()?;
    Cluster::run(Plan::short_sessions(3, memory.path()), |cluster| {
        (1..=3).try_for_each(|number| clocks.set(number, 0))?;
        cluster.init()?;
        let started: Result<Vec<_>> = (1..=3)
            .map(|number| {
                cluster.launch(&format!("n{number}"), clocks.on(number, cluster.node(number).lockd()?))
            })
            .collect();
        started?.iter().try_for_each(|daemon| daemon.wait_ready())?;
        cluster.format()?;
        for number in 1..=3 {
            cluster.start(&format!("n{number}"), clocks.on(number, cluster.node(number).mount()?))?;
        }
        fs::write(cluster.path(1, FILE), vec![0; usize::try_from(BLOCKS * 4096)?])?;
        cluster.acquire(2, &[FILE])?;
        let before = standing(cluster)?;
        let registers = cluster.registers(&[1, 2, 3], FILE)?;
        let (pause, operations_max) = (Duration::from_millis(2), u64::MAX);
        let workload = Workload { blocks: BLOCKS, threads: 1, pause, operations_max, ..Workload::default() };
        let (happened, history) = workload.run(&registers, |done| {
            let happened = (|| -> Result<()> {
                for number in 1..=3 {
                    for ahead in [6 * HOUR, -6 * HOUR, 0] {
                        clocks.set(number, ahead)?;
                        let stamped = ahead_s(cluster, number)?;
                        ensure!(
                            (stamped - ahead).abs() < OFF,
                            "the clock of n{number} is {stamped} s ahead, not {ahead}"
                        );
                        thread::sleep(LASTS);
                        goes_on(done).with_context(|| format!("n{number} is {ahead} s ahead"))?;
                        let now = standing(cluster)?;
                        ensure!(
                            now == before,
                            "n{number} is {ahead} s ahead: {now:?}, and before {before:?}"
                        );
                    }
                }
                // A lease does not last longer where civil time goes back while it runs.
                clocks.set(3, 6 * HOUR)?;
                goes_on(done)?;
                cluster.pause("n3", "lockd")?;
                clocks.set(3, -6 * HOUR)?;
                thread::sleep(LEASE + Duration::from_millis(500));
                let before = done.succeeded(2);
                thread::sleep(Duration::from_secs(1));
                ensure!(done.succeeded(2) == before, "n3 reads or writes without its lease");
                Ok(())
            })();
            let resumed = cluster.resume("n3", "lockd");
            done.stop();
            happened.and(resumed)
        });
        happened?;
        drop(registers);
        if let Err(violations) = check(&history) {
            let said: Vec<String> = violations.iter().map(ToString::to_string).collect();
            bail!("{}", said.join("\n"));
        }
        // Its session has ended. New connections, whose certificates are looked at, are made with nodes whose clocks are off.
        clocks.set(1, 6 * HOUR)?;
        cluster.daemon("n3", "csvfs")?.stop(PATIENCE)?;
        cluster.restart("n3", "csvfs")?;
        ensure!(fs::read(cluster.path(3, FILE))? == fs::read(cluster.path(1, FILE))?);
        // With twelve hours between the two, a mount dies and its files are free as soon as otherwise.
        fs::write(cluster.path(3, "other"), b"x")?;
        cluster.acquire(3, &["other"])?;
        cluster.kill("n3", "csvfs")?;
        fs::write(cluster.path(1, "other"), b"y")?;
        cluster.restart("n3", "csvfs")?;
        ensure!(fs::read(cluster.path(3, "other"))? == b"y");
        cluster.end_clean()
    })
}
