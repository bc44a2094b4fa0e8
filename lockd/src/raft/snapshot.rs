//! The state on disk: everything up to one log entry, in one file.
//!
//! ```text
//! offset  size  file "snapshot-<index>"
//!      0     8  magic "CSVSNAPS"
//!      8     4  format version
//!     12     4  CRC-32 of all after it
//!     16        last log id: option; last membership: log id option, membership; id: length u32, text
//!               contents: length u32, bytes: time u64, commands applied u64, the machine's bytes
//! ```
//!
//! A snapshot is written under another name, synced and renamed; then older ones are removed, and only then is the log
//! purged behind it.

use super::StartError;
use super::codec::{Decoder, Encoder, Malformed};
use super::disk::{Disk, TEMPORARY, create_whole};
use super::types::SnapshotMeta;

/// The version of this format.
pub(super) const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"CSVSNAPS";
const PREFIX: &str = "snapshot-";

/// What a snapshot holds beside its place in the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Contents {
    /// The cluster's time of the last command.
    pub(super) time_ns: u64,
    /// How many commands have been applied.
    pub(super) number: u64,
    /// The machine's own bytes.
    pub(super) machine: Vec<u8>,
}

impl Contents {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::default();
        encoder.u64(self.time_ns);
        encoder.u64(self.number);
        encoder.0.extend_from_slice(&self.machine);
        encoder.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder(bytes);
        let (time_ns, number) = (decoder.u64("snapshot")?, decoder.u64("snapshot")?);
        Ok(Self { time_ns, number, machine: decoder.0.to_vec() })
    }
}

fn file_name(meta: &SnapshotMeta) -> String {
    // 0 is the state before the first entry.
    format!("{PREFIX}{:016x}", meta.last_log_id.map_or(0, |last| last.index + 1))
}

fn encode(meta: &SnapshotMeta, contents: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder(MAGIC.to_vec());
    encoder.u32(VERSION);
    encoder.u32(0);
    encoder.log_id_option(meta.last_log_id.as_ref());
    encoder.stored_membership(&meta.last_membership);
    encoder.bytes(meta.snapshot_id.as_bytes());
    encoder.bytes(contents);
    let crc = crc32fast::hash(&encoder.0[16..]);
    encoder.0[12..16].copy_from_slice(&crc.to_le_bytes());
    encoder.0
}

/// Why a file is not a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum BadSnapshot {
    #[error("it has format version {0}")]
    Version(u32),
    #[error("its checksum is wrong")]
    Checksum,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

fn decode(file: &[u8]) -> Result<(SnapshotMeta, Vec<u8>), BadSnapshot> {
    let mut decoder = Decoder(file);
    if decoder.take(MAGIC.len(), "snapshot")? != MAGIC {
        return Err(Malformed("snapshot").into());
    }
    let version = decoder.u32("snapshot")?;
    if version != VERSION {
        return Err(BadSnapshot::Version(version));
    }
    if decoder.u32("snapshot")? != crc32fast::hash(decoder.0) {
        return Err(BadSnapshot::Checksum);
    }
    let meta = SnapshotMeta {
        last_log_id: decoder.log_id_option()?,
        last_membership: decoder.stored_membership()?,
        snapshot_id: decoder.text("snapshot id")?,
    };
    let contents = decoder.bytes("snapshot")?.to_vec();
    decoder.end("snapshot")?;
    Ok((meta, contents))
}

/// Writes a snapshot, then removes all others.
pub(super) fn write(disk: &dyn Disk, meta: &SnapshotMeta, contents: &[u8]) -> std::io::Result<()> {
    let name = file_name(meta);
    create_whole(disk, &name, &encode(meta, contents))?;
    for other in disk.list()? {
        if other.starts_with(PREFIX) && other != name && !other.ends_with(TEMPORARY) {
            disk.remove(&other)?;
        }
    }
    Ok(())
}

/// Reads the newest snapshot; removes what a crash left half-written.
pub(super) fn read_newest(disk: &dyn Disk) -> Result<Option<(SnapshotMeta, Vec<u8>)>, StartError> {
    let failed = |what: &'static str, name: &str| {
        let path = disk.path().join(name);
        move |source| StartError::Disk { what, path, source }
    };
    let mut names = disk.list().map_err(failed("list", ""))?;
    names.retain(|name| name.starts_with(PREFIX));
    names.sort();
    let (leftovers, names): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with(TEMPORARY));
    for name in leftovers {
        disk.remove(&name).map_err(failed("remove", &name))?;
    }
    let Some(name) = names.last() else { return Ok(None) };
    let file = disk.read(name).map_err(failed("read", name))?;
    let path = disk.path().join(name);
    decode(&file).map(Some).map_err(|bad| match bad {
        BadSnapshot::Version(found) => StartError::Version { path, found, known: VERSION },
        bad => StartError::Damaged { path, offset: 0, why: bad.to_string() },
    })
}

#[cfg(test)]
mod tests;
