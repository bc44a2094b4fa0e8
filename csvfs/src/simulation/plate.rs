//! Where the store lies: whoever opens it gets a copy of what the last one has written (V2), and who has had it before writes
//! no more to any that counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use lockd::ids::Epoch;
use parking_lot::Mutex;
use redb::StorageBackend;

use crate::coordinator::Openings;

/// The metadata areas of a volume: the one in force.
#[derive(Debug, Default)]
pub struct Plates {
    bytes: Mutex<Arc<Mutex<Vec<u8>>>>,
    openings: Arc<AtomicU64>,
}

/// One opening's.
#[derive(Debug)]
pub struct Plate {
    bytes: Arc<Mutex<Vec<u8>>>,
    opening: u64,
    openings: Arc<AtomicU64>,
}

impl Plates {
    /// A copy, which is the one in force from now on.
    pub fn copy(&self) -> Plate {
        let opening = self.openings.fetch_add(1, SeqCst) + 1;
        let mut bytes = self.bytes.lock();
        let copied = bytes.lock().clone();
        *bytes = Arc::new(Mutex::new(copied));
        Plate { bytes: Arc::clone(&bytes), opening, openings: Arc::clone(&self.openings) }
    }
}

impl Plate {
    /// The numbers of this opening and of the one before.
    pub fn openings(&self) -> Openings {
        Openings { last: Epoch(self.opening - 1), this: Epoch(self.opening) }
    }

    fn check(&self) -> Result<(), std::io::Error> {
        if self.openings.load(SeqCst) == self.opening {
            return Ok(());
        }
        Err(std::io::Error::other("another mount has opened the store"))
    }
}

impl StorageBackend for Plate {
    fn len(&self) -> Result<u64, std::io::Error> {
        Ok(self.bytes.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        let bytes = self.bytes.lock();
        let at = usize::try_from(offset).map_err(std::io::Error::other)?;
        let found = bytes.get(at..at + out.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.check()?;
        self.bytes.lock().resize(usize::try_from(len).map_err(std::io::Error::other)?, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.check()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.check()?;
        let mut bytes = self.bytes.lock();
        let at = usize::try_from(offset).map_err(std::io::Error::other)?;
        let place = bytes.get_mut(at..at + data.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        place.copy_from_slice(data);
        Ok(())
    }
}
