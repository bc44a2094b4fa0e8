//! redb's own pages, read by our reader.

use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;
use redb::{Durability, ReadableDatabase, StorageBackend, TableDefinition};

use super::header::Header;
use super::ledger::Ledger;
use super::node::{Node, Widths};
use super::table::Definition;
use super::walk::walk;

const NUMBERS: TableDefinition<u64, u64> = TableDefinition::new("numbers");
const TEXTS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("texts");

/// A store in memory, each read of which is checked.
#[derive(Clone, Debug, Default)]
struct Checked {
    bytes: Arc<Mutex<Vec<u8>>>,
    ledger: Arc<Ledger>,
}

impl StorageBackend for Checked {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.bytes.lock()[start..start + out.len()]);
        self.ledger.read(offset, out).map_err(|wrong| std::io::Error::other(wrong.table))
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.bytes.lock().resize(usize::try_from(len).unwrap(), 0);
        self.ledger.cut(len);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        self.bytes.lock()[start..start + data.len()].copy_from_slice(data);
        self.ledger.written(offset, data);
        Ok(())
    }
}

impl Checked {
    /// The same bytes, of which nothing is known.
    fn anew(&self) -> Self {
        Self { bytes: Arc::clone(&self.bytes), ledger: Arc::default() }
    }

    /// With a cache so small that everything is read again and again.
    fn open(&self) -> redb::Database {
        redb::Builder::new().set_cache_size(64 << 10).create_with_backend(self.clone()).unwrap()
    }
}

fn change(database: &redb::Database, round: u64, rows: u64) {
    let mut transaction = database.begin_write().unwrap();
    transaction.set_durability(Durability::Immediate).unwrap();
    transaction.set_quick_repair(true);
    {
        let mut numbers = transaction.open_table(NUMBERS).unwrap();
        let mut texts = transaction.open_table(TEXTS).unwrap();
        for row in 0..rows {
            let key = (row * 7919 + round * 104_729) % 50_000;
            numbers.insert(key, round).unwrap();
            let value = vec![round.to_le_bytes()[0]; usize::try_from(key % 300).unwrap()];
            texts.insert(&key.to_be_bytes()[..], &value[..]).unwrap();
            if row % 3 == 0 {
                numbers.remove((key * 31) % 50_000).unwrap();
                texts.remove(&((key * 17) % 50_000).to_be_bytes()[..]).unwrap();
            }
        }
        if round.is_multiple_of(5) {
            texts.insert(&b"long"[..], &vec![7; 300_000][..]).unwrap();
        }
    }
    transaction.commit().unwrap();
}

fn rows(database: &redb::Database) -> Rows {
    use redb::ReadableTable;
    let transaction = database.begin_read().unwrap();
    let mut all = Vec::new();
    for row in transaction.open_table(NUMBERS).unwrap().iter().unwrap() {
        let (key, value) = row.unwrap();
        let (key, value) = (key.value().to_le_bytes().to_vec(), value.value().to_le_bytes().to_vec());
        all.push(("numbers".to_owned(), key, value));
    }
    for row in transaction.open_table(TEXTS).unwrap().iter().unwrap() {
        let (key, value) = row.unwrap();
        all.push(("texts".to_owned(), key.value().to_vec(), value.value().to_vec()));
    }
    all
}

#[test]
fn every_page_that_is_read_is_checked_and_none_is_held_wrong() {
    let storage = Checked::default();
    let database = storage.open();
    for round in 0..40 {
        change(&database, round, 400);
        let _ = rows(&database);
    }
    assert_eq!(storage.ledger.unknown(), 0);
    drop(database);
    // Opened anew nothing is known but the header.
    let storage = storage.anew();
    let database = storage.open();
    let before = rows(&database);
    for round in 40..60 {
        change(&database, round, 400);
        let _ = rows(&database);
    }
    assert_eq!(storage.ledger.unknown(), 0);
    assert!(before.len() > 1000);
    // After a crash in the middle of a transaction, and with one that was given up.
    let mut transaction = database.begin_write().unwrap();
    transaction.set_quick_repair(true);
    transaction.open_table(NUMBERS).unwrap().insert(1, 1).unwrap();
    transaction.abort().unwrap();
    let crashed = Checked { bytes: Arc::new(Mutex::new(storage.bytes.lock().clone())), ..Checked::default() };
    let reopened = crashed.open();
    assert_eq!(rows(&reopened), rows(&database));
    change(&reopened, 60, 400);
    assert_eq!(crashed.ledger.unknown(), 0);
}

type Rows = Vec<(String, Vec<u8>, Vec<u8>)>;

fn walked(bytes: &[u8]) -> Option<(Rows, super::Walk)> {
    let mut all = Vec::new();
    let found = walk(
        &mut |offset, out| {
            let start = usize::try_from(offset).unwrap();
            let Some(found) = bytes.get(start..start + out.len()) else {
                return Err(crate::disk::area::AreaError::Closed);
            };
            out.copy_from_slice(found);
            Ok(())
        },
        &mut |row| all.push((row.table.to_owned(), row.key.to_vec(), row.value.to_vec())),
    )?;
    Some((all, found))
}

#[test]
fn a_walk_reads_what_redb_reads() {
    let storage = Checked::default();
    let database = storage.open();
    (0..12).for_each(|round| change(&database, round, 400));
    let expected = rows(&database);
    let (found, walk) = walked(&storage.bytes.lock()).unwrap();
    assert_eq!(found, expected);
    assert_eq!((walk.bad.len(), walk.rows, walk.earlier), (0, expected.len() as u64, false));
}

/// Wherever a byte is flipped: redb reads what it read before, or gets an error, and the walk loses nothing but what
/// it says.
#[test]
fn a_flipped_byte_is_an_error_or_does_nothing() {
    let storage = Checked::default();
    let database = storage.open();
    (0..6).for_each(|round| change(&database, round, 200));
    let expected = rows(&database);
    drop(database);
    let whole = storage.bytes.lock().clone();
    let (mut errors, mut same) = (0, 0);
    for at in (0..whole.len()).step_by(3 * 4096 + 373) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        if let Some((found, walk)) = walked(&bytes) {
            assert!(found.iter().all(|row| walk.earlier || expected.contains(row)), "byte {at}");
            assert_eq!(walk.bad.is_empty() && !walk.earlier, found == expected, "byte {at}");
        }
        let damaged = Checked { bytes: Arc::new(Mutex::new(bytes)), ledger: Arc::default() };
        let opened = redb::Builder::new().set_cache_size(64 << 10).create_with_backend(damaged.clone());
        let Ok(database) = opened else {
            errors += 1;
            continue;
        };
        let transaction = database.begin_read().unwrap();
        let read = || -> Result<usize, redb::Error> {
            use redb::ReadableTable;
            let mut count = 0;
            for row in transaction.open_table(NUMBERS)?.iter()? {
                row?;
                count += 1;
            }
            for row in transaction.open_table(TEXTS)?.iter()? {
                row?;
                count += 1;
            }
            Ok(count)
        };
        match read() {
            Ok(count) => {
                assert_eq!(count, expected.len(), "byte {at}");
                same += 1;
            }
            Err(_) => errors += 1,
        }
    }
    assert!(errors > 3 && same > 3, "{errors} errors, {same} without harm");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..5000), key in 0..40_u32, fixed: bool) {
        let _ = Header::decode(&bytes);
        let _ = Definition::decode(&bytes);
        let widths = Widths { key: fixed.then_some(key), value: None };
        for kind in [1, 2] {
            let mut bytes = bytes.clone();
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            prop_assert!(Node::check(&bytes, widths, 5).is_none());
        }
        let _ = walked(&bytes);
    }
}
