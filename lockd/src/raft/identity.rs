//! Whose directory it is.
//!
//! ```text
//! offset  size  file "voter"
//!      0     8  magic "CSVVOTER"
//!      8     4  format version
//!     12    16  storage id
//!     28        node name: length u8, bytes
//!             4  CRC-32 of all before it
//! ```
//!
//! The file is made after the first file of the log: a directory with this file and without a log has lost its log.

use super::codec::{Decoder, Encoder};
use super::disk::{Disk, create_whole};
use super::{StartError, StorageId};
use crate::ids::NodeName;
use crate::random::Random;

const VERSION: u32 = 1;
const MAGIC: &[u8] = b"CSVVOTER";
const FILE: &str = "voter";

/// Whose directory it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    pub(super) storage: StorageId,
    pub(super) node: NodeName,
}

impl Identity {
    /// A new one for `node`.
    pub(super) fn new(node: &NodeName, random: &dyn Random) -> Self {
        let mut storage = [0; 16];
        random.fill(&mut storage);
        Self { storage: StorageId(storage), node: node.clone() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder(MAGIC.to_vec());
        encoder.u32(VERSION);
        encoder.storage(self.storage);
        encoder.name(&self.node);
        let crc = crc32fast::hash(&encoder.0);
        encoder.u32(crc);
        encoder.0
    }

    /// Reads the directory's identity; `None` when it has none, nor anything else of a voter.
    pub(super) fn read(disk: &dyn Disk, node: &NodeName) -> Result<Option<Self>, StartError> {
        let path = disk.path().join(FILE);
        let failed = |what: &'static str| {
            let path = path.clone();
            move |source| StartError::Disk { what, path, source }
        };
        let damaged = |why: &str| StartError::Damaged { path: path.clone(), offset: 0, why: why.to_owned() };
        let names = disk.list().map_err(failed("list"))?;
        let has = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
        if !names.iter().any(|name| name == FILE) {
            return if has("snapshot-") {
                Err(damaged("it is missing, and a snapshot is there"))
            } else {
                Ok(None)
            };
        }
        let bytes = disk.read(FILE).map_err(failed("read"))?;
        let split = bytes.len().checked_sub(4).ok_or_else(|| damaged("it is too short"))?;
        let (content, crc) = bytes.split_at(split);
        if !content.starts_with(MAGIC) || crc != crc32fast::hash(content).to_le_bytes() {
            return Err(damaged("its checksum is wrong"));
        }
        let mut decoder = Decoder(&content[MAGIC.len()..]);
        let malformed = |_| damaged("it cannot be read");
        let version = decoder.u32("version").map_err(malformed)?;
        if version != VERSION {
            return Err(StartError::Version { path: path.clone(), found: version, known: VERSION });
        }
        let storage = decoder.storage().map_err(malformed)?;
        let found = decoder.name().map_err(malformed)?;
        if &found != node {
            return Err(StartError::Foreign { dir: disk.path().to_owned(), found, node: node.clone() });
        }
        if !has("log-") {
            return Err(damaged("the log of this voter is missing"));
        }
        Ok(Some(Self { storage, node: found }))
    }

    /// Makes the directory this voter's.
    pub(super) fn write(&self, disk: &dyn Disk) -> std::io::Result<()> {
        create_whole(disk, FILE, &self.encode())
    }
}
