//! The volume's structures, opening and closing, on a LUN in memory.

mod bench_clock;
mod bench_lun;
mod crash;
mod damage;
mod formatting;
mod journal;
mod measure;
mod members;
mod opening;
mod structures;

use std::sync::Arc;

use lockd::ids::ClientId;
use lockd::random::Random;
use lockd::rules::Rules;
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use redirector::lun::Lun;

pub(super) use bench_clock::BenchClock;
pub(super) use bench_lun::{BenchLun, Event, Image, Survival, Wire, after_power_cut};

use super::format::{FormatError, FormatOptions, format};
use super::label::Label;
use super::open::{OpenError, OpenOptions, OpenVolume, Replay, open};

pub(super) const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");
pub(super) const MIB: u64 = 1 << 20;

/// Counts up: the same uuid and key in every run.
#[derive(Debug)]
pub(super) struct Counting;

impl Random for Counting {
    fn fill(&self, out: &mut [u8]) {
        (1..).zip(out).for_each(|(value, byte)| *byte = value);
    }
}

pub(super) fn format_options(clock: &BenchClock) -> FormatOptions {
    FormatOptions {
        name: "test".to_owned(),
        clock: Arc::new(clock.clone()),
        random: Arc::new(Counting),
        ..FormatOptions::default()
    }
}

pub(super) fn make(lun: &BenchLun, clock: &BenchClock) -> Result<Label, FormatError> {
    make_with(lun, &format_options(clock))
}

pub(super) fn make_with(lun: &BenchLun, options: &FormatOptions) -> Result<Label, FormatError> {
    let wire: Arc<dyn Lun> = lun.wire();
    format(&wire, options, |database, free| {
        assert!(!free.is_empty());
        put(database, 0, &[7; 100]);
        Ok::<_, std::io::Error>(())
    })
}

pub(super) fn put(database: &redb::Database, key: u64, value: &[u8]) {
    try_put(database, key, value).unwrap();
}

pub(super) fn try_put(database: &redb::Database, key: u64, value: &[u8]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    transaction.open_table(TABLE)?.insert(key, value)?;
    Ok(transaction.commit()?)
}

pub(super) fn keys(database: &redb::Database) -> Vec<u64> {
    let transaction = database.begin_read().unwrap();
    let table = transaction.open_table(TABLE).unwrap();
    table.iter().unwrap().map(|entry| entry.unwrap().0.value()).collect()
}

pub(super) fn options(client: u64, clock: &BenchClock) -> OpenOptions {
    let mut options = OpenOptions::new(ClientId(client), &format!("host{client}"), Replay::none());
    options.who.pid = 4000 + u32::try_from(client).unwrap();
    options.clock = Arc::new(clock.clone());
    options.rules = Rules::from_test_environment();
    options
}

pub(super) fn open_as(wire: &Arc<Wire>, client: u64, clock: &BenchClock) -> Result<OpenVolume, OpenError> {
    let lun: Arc<dyn Lun> = wire.clone();
    open(lun, options(client, clock))
}

/// With a heart that beats every 100 ms of real time.
pub(super) fn quick(options: OpenOptions) -> OpenOptions {
    let short = Some(std::time::Duration::from_millis(400));
    OpenOptions { window: short, quiesce: short, ..options }
}
