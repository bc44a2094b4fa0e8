//! How fast a LUN is by itself: `lun_rate URI [SECONDS] [DEPTH] [THREADS]`.
//!
//! Drives the LUN at a fixed depth from a few threads (four): 4 KiB random reads and writes, then 1 MiB sequential ones at
//! depth 4. Compare with fio on the same server:
//!
//!     nbdkit -f -U /tmp/s memory 1G
//!     fio --name=x --ioengine=nbd --uri='nbd+unix:///?socket=/tmp/s' --rw=randread --bs=4k --iodepth=32 --time_based \
//!         --runtime=5 --size=1G
//!
//! It writes to the LUN.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lockd::ids::ClientId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redirector::buffer::Pool;
use redirector::lun::{Lun, Outcome};
use redirector::open::{OpenOptions, open};

struct Load {
    name: &'static str,
    write: bool,
    len: usize,
    random: bool,
    depth: usize,
}

/// One thread's share: keeps `depth` requests in flight, sends the next when one has ended.
fn drive(lun: &dyn Lun, load: &Load, depth: usize, seed: u64, stop: &AtomicBool, count: &AtomicU64) -> bool {
    let pool = Pool::default();
    let (sender, receiver) = mpsc::channel();
    let mut random = SmallRng::seed_from_u64(seed);
    let places = lun.geometry().size / load.len as u64;
    let mut next = seed * 1_000_003 % places;
    let data = pool.take_zeroed(load.len).share();
    let mut flying = 0;
    let mut good = true;
    loop {
        while flying < depth && !stop.load(Ordering::Relaxed) {
            next = if load.random { random.random_range(0..places) } else { (next + 1) % places };
            let (offset, sender) = (next * load.len as u64, sender.clone());
            if load.write {
                let on_done = Box::new(move |outcome| sender.send(outcome).unwrap_or_default());
                lun.write(offset, data.clone(), false, on_done);
            } else {
                let on_read = Box::new(move |outcome, _| sender.send(outcome).unwrap_or_default());
                lun.read(offset, pool.take(load.len), on_read);
            }
            flying += 1;
        }
        if flying == 0 {
            return good;
        }
        good &= receiver.recv() == Ok(Outcome::Done);
        flying -= 1;
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let uri = arguments.next().context("usage: lun_rate URI [SECONDS] [DEPTH] [THREADS]")?.parse()?;
    let seconds = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let depth: usize = arguments.next().map_or(Ok(32), |text| text.parse())?;
    let threads_max: usize = arguments.next().map_or(Ok(4), |text| text.parse())?;
    let lun = open(&uri, &OpenOptions::new(ClientId(1), [1; 16]))?;
    println!("{}", lun.describe());
    let load = |name, write, len, random, depth| Load { name, write, len, random, depth };
    for load in [
        load("4 KiB random read", false, 4096, true, depth),
        load("4 KiB random write", true, 4096, true, depth),
        load("1 MiB sequential read", false, 1 << 20, false, 4),
        load("1 MiB sequential write", true, 1 << 20, false, 4),
    ] {
        let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
        let start = Instant::now();
        let threads = threads_max.clamp(1, load.depth);
        let good = std::thread::scope(|scope| {
            let drivers: Vec<_> = (0..threads as u64)
                .map(|seed| {
                    let (lun, load, stop, count) = (Arc::clone(&lun), &load, &stop, &count);
                    scope.spawn(move || drive(&*lun, load, load.depth / threads, seed, stop, count))
                })
                .collect();
            std::thread::sleep(Duration::from_secs(seconds));
            stop.store(true, Ordering::Relaxed);
            drivers.into_iter().all(|driver| driver.join().unwrap_or(false))
        });
        ensure!(good, "{}: a request failed", load.name);
        let rate = u128::from(count.load(Ordering::Relaxed)) * 1_000_000 / start.elapsed().as_micros().max(1);
        println!(
            "{:24} depth {:3}: {rate:8}/s, {:6} MiB/s",
            load.name,
            load.depth,
            (rate * load.len as u128) >> 20
        );
    }
    Ok(())
}
