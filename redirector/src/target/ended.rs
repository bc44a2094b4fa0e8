//! The list of client incarnations that are refused for good, kept across restarts.
//!
//! The file `ended` in the state directory, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic `CSVENDED` |
//! | 8..12 | version, 1 |
//! | 12..16 | count |
//! | 16..16 + 8 count | the clients' ids, ascending |
//! | then 4 | CRC-32 of all before it |
//!
//! It is replaced whole: written beside, synced, renamed, and the directory synced; so that a crash leaves the old list
//! or the new one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lockd::ids::ClientId;

const MAGIC: [u8; 8] = *b"CSVENDED";
const VERSION: u32 = 1;
/// The most clients that a list holds: 8 MiB.
const CLIENTS_MAX: usize = 1 << 20;
const HEADER: usize = 16;

/// Why the list of ended clients cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum EndedError {
    /// The system refused.
    #[error("cannot {doing} {path}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is not such a list, or not whole.
    #[error(
        "{path}, the list of clients that are refused for good, is damaged ({reason}); restore it from a copy. Without \
         it fenced clients would be let in: remove it only when none of them can be alive"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The list is full.
    #[error("the list of clients that are refused for good is full ({CLIENTS_MAX} entries)")]
    Full,
}

fn encode(clients: &BTreeSet<ClientId>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + clients.len() * 8 + 4);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(u32::try_from(clients.len()).unwrap_or(u32::MAX).to_le_bytes());
    for client in clients {
        bytes.extend(client.0.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<BTreeSet<ClientId>, &'static str> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or("too short")?;
    let (header, ids) = body.split_first_chunk::<HEADER>().ok_or("too short")?;
    if header[..8] != MAGIC {
        return Err("wrong magic");
    }
    if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
        return Err("wrong checksum");
    }
    if header[8..12] != VERSION.to_le_bytes() {
        return Err("a version that this program does not know");
    }
    let (ids, rest) = ids.as_chunks::<8>();
    let count = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
    if count != ids.len() || !rest.is_empty() || count > CLIENTS_MAX {
        return Err("wrong length");
    }
    Ok(ids.iter().map(|id| ClientId(u64::from_le_bytes(*id))).collect())
}

/// The clients that are refused for good.
#[derive(Debug, Clone, Default)]
pub(super) struct Ended {
    /// Where the list is kept; in memory only if `None`.
    dir: Option<PathBuf>,
    clients: BTreeSet<ClientId>,
}

impl Ended {
    /// Reads the list in `dir`, which is made if it is absent.
    pub(super) fn load(dir: Option<&Path>) -> Result<Self, EndedError> {
        let Some(dir) = dir else { return Ok(Self::default()) };
        fs::create_dir_all(dir).map_err(|source| EndedError::System {
            doing: "make the state directory",
            path: dir.to_owned(),
            source,
        })?;
        let path = dir.join("ended");
        let clients = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).map_err(|reason| EndedError::Damaged { path, reason })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(source) => return Err(EndedError::System { doing: "read", path, source }),
        };
        Ok(Self { dir: Some(dir.to_owned()), clients })
    }

    pub(super) fn is_durable(&self) -> bool {
        self.dir.is_some()
    }

    pub(super) fn contains(&self, client: ClientId) -> bool {
        self.clients.contains(&client)
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Adds `client` in memory. False when the list is full.
    pub(super) fn add(&mut self, client: ClientId) -> Result<(), EndedError> {
        if self.clients.len() >= CLIENTS_MAX && !self.clients.contains(&client) {
            return Err(EndedError::Full);
        }
        self.clients.insert(client);
        Ok(())
    }

    /// Makes the list durable.
    pub(super) fn save(&self) -> Result<(), EndedError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let fresh = dir.join("ended.new");
        let write = || {
            let mut file = File::create(&fresh)?;
            file.write_all(&encode(&self.clients))?;
            file.sync_all()?;
            fs::rename(&fresh, dir.join("ended"))?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|source| EndedError::System {
            doing: "keep the list of ended clients in",
            path: dir.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes() {
        let bytes = encode(&BTreeSet::from([ClientId(0x0102), ClientId(3)]));
        let mut expected = b"CSVENDED\x01\0\0\0\x02\0\0\0\x03\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0".to_vec();
        expected.extend(crc32fast::hash(&expected).to_le_bytes());
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_list_survives_and_damage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let mut ended = Ended::load(Some(&state)).unwrap();
        ended.add(ClientId(9)).unwrap();
        ended.save().unwrap();
        assert!(Ended::load(Some(&state)).unwrap().contains(ClientId(9)));
        let mut bytes = fs::read(state.join("ended")).unwrap();
        bytes[17] ^= 1;
        fs::write(state.join("ended"), bytes).unwrap();
        assert!(matches!(Ended::load(Some(&state)), Err(EndedError::Damaged { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn round_trip(ids in prop::collection::btree_set(any::<u64>(), 0..50)) {
            let clients: BTreeSet<_> = ids.into_iter().map(ClientId).collect();
            prop_assert_eq!(decode(&encode(&clients)), Ok(clients));
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
