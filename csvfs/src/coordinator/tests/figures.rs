//! Figures, not tests: `cargo test --release -p csvfs figures -- --ignored --nocapture`.

use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use redb::StorageBackend;

use super::*;

/// Memory that counts what is written to it.
#[derive(Debug, Default)]
struct Counting {
    inner: InMemoryBackend,
    writes: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
    syncs: Arc<AtomicUsize>,
}

impl StorageBackend for Counting {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.inner.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(data.len(), Ordering::Relaxed);
        self.inner.write(offset, data)
    }
}

/// Processor time of this process in seconds, in steps of 10 ms.
fn processor_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Creates `count` files with `depth` requests under way, as `depth` threads do, each in its own directory.
fn creates(depth: usize, count: usize) {
    let backend = Counting::default();
    let (writes, bytes, syncs) =
        (Arc::clone(&backend.writes), Arc::clone(&backend.bytes), Arc::clone(&backend.syncs));
    let volume = Volume::on(Database::builder().create_with_backend(backend).unwrap(), 1 << 20);
    let directories: Vec<Ino> = (0..depth).map(|i| volume.directory(Ino::ROOT, &format!("d{i}"))).collect();
    for round in 0..2 {
        let before = [&writes, &bytes, &syncs].map(|counter| counter.load(Ordering::Relaxed));
        let (start, processor) = (Instant::now(), processor_s());
        for i in 0..count / depth {
            let answers: Vec<_> = (0..depth)
                .map(|slot| {
                    let sequence = Sequence((round * count + i) as u64 + 100_000);
                    let slot_id = SlotId(u32::try_from(slot).unwrap());
                    let head = Head { slot: Some((slot_id, sequence)), ..volume.head() };
                    let operation = create(directories[slot], &format!("file-{round}-{i}"), Created::File);
                    send(&*volume.coordinator, head, operation)
                })
                .collect();
            for answer in answers {
                assert!(matches!(answer.recv().unwrap(), Ok(Answer::Entry(_))));
            }
        }
        let took = start.elapsed();
        let after = [&writes, &bytes, &syncs].map(|counter| counter.load(Ordering::Relaxed));
        #[expect(clippy::cast_precision_loss, reason = "figures to read")]
        let each = |i: usize| (after[i] - before[i]) as f64 / count as f64;
        println!(
            "depth {depth}: {:.1} us per create, {:.1} us of processor; {:.2} writes, {:.0} bytes, {:.2} syncs each",
            took.as_secs_f64() * 1e6 / f64::from(u32::try_from(count).unwrap()),
            (processor_s() - processor) * 1e6 / f64::from(u32::try_from(count).unwrap()),
            each(0),
            each(1),
            each(2)
        );
    }
}

#[test]
#[ignore = "prints figures"]
fn figures_of_creates() {
    for depth in [1, 8, 64] {
        creates(depth, 16_000);
    }
}

/// What a transaction costs before anything is done in it, and a commit of one row.
#[test]
#[ignore = "prints figures"]
fn figures_of_transactions() {
    let volume = Volume::new(1 << 20);
    for i in 0..5000 {
        volume.file(&format!("file {i}"));
    }
    volume.coordinator.stop();
    let rounds = 2000;
    let time = |what: &str, body: &dyn Fn()| {
        let start = processor_s();
        (0..rounds).for_each(|_| body());
        println!("{what}: {:.1} us", (processor_s() - start) * 1e6 / f64::from(rounds));
    };
    let begin = || {
        let mut transaction = volume.database.begin_write().unwrap();
        transaction.set_quick_repair(true);
        transaction
    };
    time("begin and abort", &|| begin().abort().unwrap());
    time("begin, open all tables, abort", &|| {
        let transaction = begin();
        crate::store::Tables::of(&transaction).create().unwrap();
        transaction.abort().unwrap();
    });
    time("commit of one row", &|| {
        let transaction = begin();
        crate::store::Tables::of(&transaction).orphans_mut().unwrap().insert(1, 1).unwrap();
        transaction.commit().unwrap();
    });
    time("snapshot", &|| drop(crate::store::Snapshot::take(&volume.database).unwrap()));
}
