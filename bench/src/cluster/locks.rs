//! File locks, each durable at a majority of the voters before it is answered.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::Cluster;
use lab::cluster::base_folder;

use super::{Logs, row};
use crate::figure::{Bar, Row, Spread};
use crate::stage::Effort;

/// Lock and unlock pairs of one client on its own file, until the time is over.
fn pairs_of(file: &File, until: Instant) -> Result<u32> {
    let mut done = 0;
    while Instant::now() < until {
        file.lock()?;
        file.unlock()?;
        done += 1;
    }
    Ok(done)
}

/// How long this disk takes for a flush of one block that is written in place, in milliseconds: what no lock that is on it
/// can do without.
pub fn flush_ms() -> Result<f64> {
    let mut file = tempfile::NamedTempFile::new_in(std::env::temp_dir())?;
    file.write_all(&[0; 64 << 10])?;
    file.as_file().sync_all()?;
    let mut times = Vec::new();
    for turn in 0_u8..50 {
        file.as_file().write_all_at(&[turn; 4096], u64::from(turn % 16) * 4096)?;
        let began = Instant::now();
        file.as_file().sync_data()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Spread::of(times).median)
}

/// flock and its end, by one client and by 32, on a node that does not coordinate the volume.
pub fn pairs(lab: &Cluster, logs: Logs, effort: Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let span = Duration::from_secs(effort.seconds.into());
    for (clients, bar) in [(1_u32, 300.0), (32, 4000.0)] {
        let create = |client: u32| File::create(lab.path(2, &format!("locked{client}")));
        let files = (0..clients).map(create).collect::<Result<Vec<_>, _>>()?;
        let mut rates = Vec::new();
        for _ in 0..effort.rounds {
            let began = Instant::now();
            let done: u32 = std::thread::scope(|scope| {
                let parts: Vec<_> =
                    files.iter().map(|file| scope.spawn(move || pairs_of(file, began + span))).collect();
                parts.into_iter().map(|part| part.join().expect("no panic")).sum::<Result<u32>>()
            })?;
            rates.push(f64::from(done) / began.elapsed().as_secs_f64());
        }
        let rate = Spread::of(rates);
        let beside = match logs {
            Logs::Memory => String::new(),
            Logs::Disk => {
                let flush = flush_ms()?;
                let most = f64::from(clients) * 1e3 / (2.0 * flush);
                let folder = base_folder();
                format!("; a flush in {} takes {flush:.2} ms: at most {most:.0}", folder.display())
            }
        };
        let what =
            format!("lock + unlock pairs on a mount, durable, 3 voters, {clients} client(s){}", logs.said());
        rows.push(row(what, format!("{rate} a second{beside}"), rate, Bar::AtLeast(bar)));
    }
    Ok(rows)
}
