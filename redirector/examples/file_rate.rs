//! The rates of a file LUN beside those of fio on the same file: `file_rate FILE [ROUNDS [SECONDS]]`.
//!
//! The file must exist (a GiB is enough, written once) and is overwritten. Rounds are interleaved; medians are printed.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redirector::buffer::{Buffer, Pool};
use redirector::file::{FileLun, Options};
use redirector::lun::{Lun, Outcome};

/// A workload: its name, as fio names it, the bytes of a request, and how many are in flight.
struct Workload {
    name: &'static str,
    writes: bool,
    random: bool,
    len: usize,
    depth: usize,
}

const WORKLOADS: [Workload; 5] = [
    Workload { name: "randread", writes: false, random: true, len: 4096, depth: 32 },
    Workload { name: "randwrite", writes: true, random: true, len: 4096, depth: 32 },
    Workload { name: "randread", writes: false, random: true, len: 4096, depth: 1 },
    Workload { name: "read", writes: false, random: false, len: 1 << 20, depth: 4 },
    Workload { name: "write", writes: true, random: false, len: 1 << 20, depth: 4 },
];

type Answers = (SyncSender<Option<Buffer>>, Receiver<Option<Buffer>>);

/// Requests a second.
fn lun_rate(path: &Path, work: &Workload, time: Duration) -> Result<f64, Box<dyn std::error::Error>> {
    let lun = Arc::new(FileLun::open(path, Options::default())?);
    let pool = Pool::default();
    let (sender, receiver): Answers = mpsc::sync_channel(work.depth);
    let places = lun.geometry().size / work.len as u64;
    let mut random = SmallRng::seed_from_u64(1);
    let data = pool.take_zeroed(work.len).share();
    let started = Instant::now();
    let (mut count, mut in_flight) = (0_u64, 0);
    while started.elapsed() < time {
        let buffer = if in_flight < work.depth { None } else { receiver.recv()? };
        in_flight += usize::from(in_flight < work.depth);
        let place = if work.random { random.random_range(0..places) } else { count % places };
        let (offset, sender) = (place * work.len as u64, sender.clone());
        if work.writes {
            let answer = move |outcome| {
                assert_eq!(outcome, Outcome::Done);
                drop(sender.send(None));
            };
            lun.write(offset, data.clone(), false, Box::new(answer));
        } else {
            let buffer = buffer.unwrap_or_else(|| pool.take(work.len));
            let answer = move |outcome, buffer| {
                assert_eq!(outcome, Outcome::Done);
                drop(sender.send(Some(buffer)));
            };
            lun.read(offset, buffer, Box::new(answer));
        }
        count += 1;
    }
    for _ in 0..in_flight {
        let _ = receiver.recv()?;
    }
    #[allow(clippy::cast_precision_loss)]
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// What fio reaches.
fn fio_rate(path: &Path, work: &Workload, time: Duration) -> Result<f64, Box<dyn std::error::Error>> {
    let output = Command::new("fio")
        .args(["--name=rate", "--ioengine=io_uring", "--direct=1", "--time_based", "--output-format=json"])
        .arg(format!("--filename={}", path.display()))
        .args([format!("--rw={}", work.name), format!("--bs={}", work.len)])
        .args([format!("--iodepth={}", work.depth), format!("--runtime={}ms", time.as_millis())])
        .output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let direction = if work.writes { "write" } else { "read" };
    report["jobs"][0][direction]["iops"].as_f64().ok_or_else(|| "fio reports no rate".into())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(path) = args.next() else {
        eprintln!("usage: file_rate FILE [ROUNDS [SECONDS]]");
        return ExitCode::from(2);
    };
    let mut number = |default| args.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rounds, seconds): (u64, u64) = (number(3), number(2));
    let time = Duration::from_secs(seconds.max(1));
    for work in WORKLOADS {
        let (mut ours, mut fios) = (Vec::new(), Vec::new());
        for _ in 0..rounds.max(1) {
            let rates = fio_rate(path.as_ref(), &work, time)
                .and_then(|fio| Ok((fio, lun_rate(path.as_ref(), &work, time)?)));
            match rates {
                Ok((fio, lun)) => {
                    fios.push(fio);
                    ours.push(lun);
                }
                Err(error) => {
                    eprintln!("{error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        let (ours, fio) = (median(ours), median(fios));
        let Workload { name, len, depth, .. } = work;
        println!("{name:9} {len:7} bytes, depth {depth:2}: {ours:9.0}/s, fio {fio:9.0}/s: {:.2}", ours / fio);
    }
    ExitCode::SUCCESS
}
