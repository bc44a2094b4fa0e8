//! A new volume's store.

use redb::Database;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::record::{Counters, InodeRecord};
use super::{COUNTERS_ROW, Result, Tables, VERSION};
use crate::types::{Ino, Kind, Run, Timestamp};

/// Fills an empty database: the root directory, and `free`, the blocks of the data region.
pub fn initialise(database: &Database, free: &[Run], now: Timestamp) -> Result<()> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    {
        let mut tables = Tables::of(&transaction);
        tables.create()?;
        let mut root = InodeRecord::new(Kind::Directory, 0o755, 0, 0, now);
        root.nlink = U32::new(2);
        root.parent = U64::new(Ino::ROOT.0);
        tables.inodes_mut()?.insert(Ino::ROOT.0, root.as_bytes())?;
        let mut total = 0;
        for run in free.iter().filter(|run| run.len > 0) {
            tables.free_mut()?.insert(run.start.0, run.len)?;
            total += run.len;
        }
        let counters = Counters {
            version: U64::new(VERSION),
            next_ino: U64::new(Ino::ROOT.0 + 1),
            inodes: U64::new(1),
            total: U64::new(total),
            free: U64::new(total),
            ..Counters::default()
        };
        tables.counters_mut()?.insert(COUNTERS_ROW, counters)?;
    }
    transaction.commit()?;
    Ok(())
}
