//! The list of client incarnations that are refused for good, kept across restarts.
//!
//! The file `ended` in the state directory, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic `CSVENDED` |
//! | 8..12 | version, 2 |
//! | 12..16 | count |
//! | 16..32 | the list's id, drawn at random when it was begun |
//! | 32..32 + 8 count | the clients' ids, ascending |
//! | then 4 | CRC-32 of all before it |
//!
//! Version 1 had no id: its clients began at 16. Clients remember the id, so that a target which has lost its list is not
//! taken for the one that still refuses whoever was fenced.
//!
//! It is replaced whole: written beside, synced, renamed, and the directory synced; so that a crash leaves the old list
//! or the new one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lockd::ids::ClientId;
use lockd::random::{Random, SystemRandom};

const MAGIC: [u8; 8] = *b"CSVENDED";
const VERSION: u32 = 2;
/// The version without an id.
const VERSION_NAMELESS: u32 = 1;
/// The most clients that a list holds: 8 MiB.
const CLIENTS_MAX: usize = 1 << 20;
const HEADER: usize = 16;

/// By which clients know a list again.
pub(super) type ListId = [u8; 16];

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

fn encode(id: ListId, clients: &BTreeSet<ClientId>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + id.len() + clients.len() * 8 + 4);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(u32::try_from(clients.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(id);
    for client in clients {
        bytes.extend(client.0.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

/// The list's id, if it has one, and the clients.
fn decode(bytes: &[u8]) -> Result<(Option<ListId>, BTreeSet<ClientId>), &'static str> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or("too short")?;
    let (header, rest) = body.split_first_chunk::<HEADER>().ok_or("too short")?;
    if header[..8] != MAGIC {
        return Err("wrong magic");
    }
    if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
        return Err("wrong checksum");
    }
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (id, ids) = match number(8) {
        VERSION_NAMELESS => (None, rest),
        VERSION => {
            let (id, ids) = rest.split_first_chunk().ok_or("too short")?;
            (Some(*id), ids)
        }
        _ => return Err("a version that this program does not know"),
    };
    let (ids, odd) = ids.as_chunks::<8>();
    let count = number(12) as usize;
    if count != ids.len() || !odd.is_empty() || count > CLIENTS_MAX {
        return Err("wrong length");
    }
    Ok((id, ids.iter().map(|id| ClientId(u64::from_le_bytes(*id))).collect()))
}

/// The clients that are refused for good.
#[derive(Debug, Clone, Default)]
pub(super) struct Ended {
    /// Where the list is kept, and its id; in memory only if `None`.
    kept: Option<(PathBuf, ListId)>,
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
        let (id, clients) = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).map_err(|reason| EndedError::Damaged { path, reason })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, BTreeSet::new()),
            Err(source) => return Err(EndedError::System { doing: "read", path, source }),
        };
        if let Some(id) = id {
            return Ok(Self { kept: Some((dir.to_owned(), id)), clients });
        }
        let mut id = ListId::default();
        SystemRandom.fill(&mut id);
        let begun = Self { kept: Some((dir.to_owned(), id)), clients };
        // Before anybody is told of it.
        begun.save()?;
        Ok(begun)
    }

    /// The list's id; none if it does not outlive the target.
    pub(super) fn id(&self) -> Option<ListId> {
        self.kept.as_ref().map(|(_, id)| *id)
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
        let Some((dir, id)) = &self.kept else { return Ok(()) };
        let fresh = dir.join("ended.new");
        let write = || {
            let mut file = File::create(&fresh)?;
            file.write_all(&encode(*id, &self.clients))?;
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
        let clients = BTreeSet::from([ClientId(0x0102), ClientId(3)]);
        let ids = b"\x03\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0";
        let sealed = |parts: &[&[u8]]| {
            let mut bytes = parts.concat();
            bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
            bytes
        };
        let expected = sealed(&[b"CSVENDED\x02\0\0\0\x02\0\0\0", &[7; 16], ids]);
        assert_eq!(encode([7; 16], &clients), expected);
        // What the release before has written.
        let before = sealed(&[b"CSVENDED\x01\0\0\0\x02\0\0\0", ids]);
        assert_eq!(decode(&before), Ok((None, clients)));
    }

    #[test]
    fn a_list_keeps_its_id_and_a_lost_one_comes_back_as_another() {
        let dir = tempfile::tempdir().unwrap();
        let id = Ended::load(Some(dir.path())).unwrap().id();
        assert!(id.is_some() && Ended::load(Some(dir.path())).unwrap().id() == id);
        fs::remove_file(dir.path().join("ended")).unwrap();
        assert_ne!(Ended::load(Some(dir.path())).unwrap().id(), id);
        assert_eq!(Ended::load(None).unwrap().id(), None);
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
        fn round_trip(id: [u8; 16], ids in prop::collection::btree_set(any::<u64>(), 0..50)) {
            let clients: BTreeSet<_> = ids.into_iter().map(ClientId).collect();
            prop_assert_eq!(decode(&encode(id, &clients)), Ok((Some(id), clients)));
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
