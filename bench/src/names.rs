//! Names: creation, memory of a large listing, and volumes of a million files.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::server::Kind;
use lab::{Mounted, Server};

use crate::figure::{Bar, Rounds, Row};
use crate::stage::{Effort, Volume, fsck, peak_resident, resident, timed};

const LUN: u64 = 2 << 30;

/// Durable creations a second, with one thread and with eight, each in a directory of its own.
pub fn creation(folder: &Path, effort: Effort) -> Result<Vec<Row>> {
    let volume = Volume::served(Kind::NbdkitMemory, folder, LUN)?;
    let mut rows = Vec::new();
    for (threads, bar) in [(1_usize, 1500.0), (8, 8000.0)] {
        let mut rounds = Rounds::default();
        for round in 0..effort.rounds {
            let top = volume.mount.path().join(format!("create-{threads}-{round}"));
            rounds.add(vec![create_rate(&top, threads, Duration::from_secs(effort.seconds.into()), true)?]);
        }
        let rate = rounds.contender(0);
        rows.push(Row {
            what: format!("file creation, durable, {threads} thread(s)"),
            measured: format!("{rate} a second"),
            figure: rate.to_string(),
            bar: Bar::AtLeast(bar).to_string(),
            kept: Bar::AtLeast(bar).kept(rate.median),
        });
    }
    Ok(rows)
}

/// Files made a second by so many threads, each in its own directory below `top`; opened for writing, as creat(2) does,
/// or for reading as well.
pub fn create_rate(top: &Path, threads: usize, span: Duration, read: bool) -> Result<f64> {
    std::fs::create_dir(top)?;
    let folders: Vec<_> = (0..threads).map(|i| top.join(i.to_string())).collect();
    for folder in &folders {
        std::fs::create_dir(folder)?;
    }
    let start = Instant::now();
    let made: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = folders
            .iter()
            .map(|folder| {
                scope.spawn(move || -> Result<u64> {
                    let mut made = 0;
                    while start.elapsed() < span {
                        let path = folder.join(format!("file-{made}"));
                        File::options().read(read).write(true).create_new(true).open(path)?;
                        made += 1;
                    }
                    Ok(made)
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a creating thread does not panic"))
            .sum::<Result<u64>>()
    })?;
    #[expect(clippy::cast_precision_loss, reason = "counts of files are far below 2^52")]
    Ok(made as f64 / start.elapsed().as_secs_f64())
}

/// The resident memory of a mount with 100,000 files listed and 100 open.
pub fn listing(folder: &Path) -> Result<Vec<Row>> {
    let files = 100_000;
    let mut volume = Volume::served(Kind::NbdkitMemory, folder, LUN)?;
    let top = volume.mount.path().join("many");
    std::fs::create_dir(&top)?;
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let top = &top;
            scope.spawn(move || {
                for i in (worker..files).step_by(8) {
                    File::create_new(top.join(format!("file-{i}"))).expect("creating a file on the mount");
                }
            });
        }
    });
    let mut listed = 0;
    for entry in std::fs::read_dir(&top)? {
        entry?.metadata()?;
        listed += 1;
    }
    anyhow::ensure!(listed == files, "listed {listed} of {files} files");
    let open: Result<Vec<_>, _> = (0..100).map(|i| File::open(top.join(format!("file-{i}")))).collect();
    let open = open?;
    let pid = volume.mount.process().pid();
    let (now, peak) = (mebibytes(resident(pid)?), mebibytes(peak_resident(pid)?));
    drop(open);
    Ok(vec![Row {
        what: "resident memory, 100,000 files listed, 100 open".to_owned(),
        measured: format!("{now:.0} MiB, {peak:.0} MiB at its peak"),
        figure: format!("{now:.0} MiB"),
        bar: "at most 200 MiB".to_owned(),
        kept: now <= 200.0,
    }])
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Opening and checking a volume of `files` files, empty. They are made past the kernel, and then
/// the volume is mounted, changed and killed, so that what is opened is what a crash leaves.
pub fn million(folder: &Path, files: u64) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (kind, how) in [(Kind::CsvTarget, "in place (csv-target)"), (Kind::NbdkitFile, "by copy (nbdkit)")] {
        let place = folder.join(format!("{kind:?}"));
        std::fs::create_dir_all(&place)?;
        let server = Server::start(kind, &place, 10 << 30)?;
        lab::mounted::format(&server.url())?;
        let ((), made) = timed(|| load(&server.url(), files))?;
        let mount = Mounted::new(&server.url(), &place.join("mnt"))?;
        File::create_new(mount.path().join("last"))?;
        mount.crash();
        let mut mount = Mounted::new(&server.url(), &place.join("mnt"))?;
        let opening = opening_seconds(&mut mount)?;
        File::open(mount.path().join("last")).context("a file that was acknowledged before the crash")?;
        let allowed = 0.5 + opening.copy_s;
        rows.push(Row {
            what: format!("opening {files} files after kill -9, {how}, V1's wait not counted"),
            measured: format!(
                "{:.2} s in all, {:.0} MiB copied in {:.2} s (made in {:.0} s)",
                opening.open_s,
                opening.copied_mib,
                opening.copy_s,
                made.as_secs_f64()
            ),
            figure: format!("{:.2} s", opening.open_s),
            bar: format!("at most {allowed:.2} s"),
            kept: opening.open_s <= allowed,
        });
        mount.unmount()?;
        if kind == Kind::CsvTarget {
            rows.push(check_row(&server.url(), &place, files)?);
        }
    }
    Ok(rows)
}

/// Creations under way at once while a volume is filled.
const FILLING: usize = 48;
/// Files in one directory of a filled volume.
const DIRECTORY: u64 = 10_000;

/// Puts `files` files on the volume at `url`, which nobody has mounted, past the kernel.
pub fn load(url: &str, files: u64) -> Result<()> {
    use csvfs::proto::Created;
    use csvfs::refusal::Refusal;
    use csvfs::service::Credentials;
    use csvfs::types::{Attr, Ino};
    use csvfs::volume::{Settings, Volume};
    use std::sync::mpsc;

    let volume = Volume::open_url(&[url.parse()?], Settings::local("bench"))?;
    let service = volume.service();
    let who = Credentials { uid: 0, gid: 0, umask: 0 };
    let (sender, receiver) = mpsc::channel::<Result<Attr, Refusal>>();
    let create = |parent: Ino, name: String, what: Created| {
        let sender = sender.clone();
        let done = Box::new(move |result| {
            let _ = sender.send(result);
        });
        service.create(who, parent, name.as_bytes(), what, 0o644, done);
    };
    for directory in 0..files.div_ceil(DIRECTORY) {
        create(Ino::ROOT, format!("d{directory}"), Created::Directory);
        let parent = receiver.recv()??.ino;
        let here = DIRECTORY.min(files - directory * DIRECTORY);
        let mut under_way = 0;
        for i in 0..here {
            if under_way == FILLING {
                receiver.recv()??;
                under_way -= 1;
            }
            create(parent, format!("file-{i}"), Created::File);
            under_way += 1;
        }
        for _ in 0..under_way {
            receiver.recv()??;
        }
    }
    drop(service);
    volume.close()?;
    Ok(())
}

struct Opening {
    open_s: f64,
    copy_s: f64,
    copied_mib: f64,
}

/// What the mount says of its own opening in its status.
fn opening_seconds(mount: &mut Mounted) -> Result<Opening> {
    let path = mount.path().display().to_string();
    let status = lab::mounted::csvfs_ok(&["status", "--json", &path])?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let opening = &status["volumes"][0]["opening"];
    let number = |name: &str| {
        opening[name].as_f64().with_context(|| format!("status has no opening.{name}: {status}"))
    };
    Ok(Opening {
        open_s: number("open_s")?,
        copy_s: number("copy_s")?,
        copied_mib: number("copied_bytes")? / f64::from(1 << 20),
    })
}

fn check_row(url: &str, place: &Path, files: u64) -> Result<Row> {
    let report = place.join("fsck.time");
    let program = lab::programs::ours("csvfs")?;
    let ((), took) = timed(|| {
        let mut command = std::process::Command::new("/usr/bin/time");
        command.args(["-f", "%M", "-o"]).arg(&report).arg(&program).args(["fsck", "--lun", url]);
        match command.status() {
            Ok(status) => {
                anyhow::ensure!(status.success(), "fsck of {url} failed: {status}");
                Ok(())
            }
            // Without time(1) the memory is not measured, the time is.
            Err(_) => fsck(url),
        }
    })?;
    let peak_kib: Option<u64> =
        std::fs::read_to_string(&report).ok().and_then(|text| text.trim().parse().ok());
    let memory = peak_kib.map_or("not measured".to_owned(), |kib| format!("{} MiB", kib >> 10));
    let seconds = took.as_secs_f64();
    Ok(Row {
        what: format!("fsck of {files} files"),
        measured: format!("{seconds:.1} s, {memory} resident at its peak"),
        figure: format!("{seconds:.1} s"),
        bar: "at most 20 s, 1 GiB".to_owned(),
        kept: seconds <= 20.0 && peak_kib.is_none_or(|kib| kib <= 1 << 20),
    })
}
