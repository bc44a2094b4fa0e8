//! The whole store as bytes, for comparisons in tests and for looking into a damaged one.

use redb::{Database, ReadableTable};
use zerocopy::IntoBytes;

use super::{COUNTERS_ROW, Result, Snapshot};

/// A row: the name of its table, its key and its value.
pub type Row = (&'static str, Vec<u8>, Vec<u8>);

/// Every row of every table: the table's name, the key and the value. Only for small volumes: it is all in memory.
pub fn dump(database: &Database) -> Result<Vec<Row>> {
    let snapshot = Snapshot::take(database)?;
    let mut rows = Vec::new();
    macro_rules! numbers {
        ($($table:ident: $bytes:expr),* $(,)?) => {$(
            for row in snapshot.$table.iter()? {
                let (key, value) = row?;
                let bytes = $bytes(value.value());
                rows.push((stringify!($table), key.value().to_be_bytes().to_vec(), bytes));
            }
        )*};
    }
    fn bytes(value: &[u8]) -> Vec<u8> {
        value.to_vec()
    }
    numbers! {
        inodes: bytes,
        entries: bytes,
        extents: |record: super::record::ExtentRecord| record.as_bytes().to_vec(),
        free: |len: u64| len.to_le_bytes().to_vec(),
        shared: |record: super::record::SharedRecord| record.as_bytes().to_vec(),
        orphans: |since: i64| since.to_le_bytes().to_vec(),
        reserves: |len: u64| len.to_le_bytes().to_vec(),
        pending: |record: super::record::HeldRecord| record.as_bytes().to_vec(),
        quarantine: |record: super::record::HeldRecord| record.as_bytes().to_vec(),
        slots: bytes,
        clients: |record: super::record::ClientRecord| record.as_bytes().to_vec(),
        chunks: |len: u64| len.to_le_bytes().to_vec(),
    }
    for row in snapshot.xattrs.iter()? {
        let (key, value) = row?;
        rows.push(("xattrs", key.value().to_vec(), value.value().to_vec()));
    }
    rows.push(("counters", vec![COUNTERS_ROW], snapshot.counters.as_bytes().to_vec()));
    Ok(rows)
}
