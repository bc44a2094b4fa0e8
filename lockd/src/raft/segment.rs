//! One file of the log: its bytes.
//!
//! ```text
//! offset  size  segment header
//!      0     8  magic "CSVRAFTL"
//!      8     4  format version
//!     12     4  CRC-32 of the header with this field zero
//!     16    16  storage id of the voter
//!     32     8  serial of the first record in this file
//!     40    24  vote when the file was begun: term, node, flags (bit 0: there is one, bit 1: committed)
//!     64    32  last purged log id then: flags (bit 0: there is one), term, leader, index
//!     96    32  zero
//!
//! offset  size  record, at a multiple of 8
//!      0     2  magic 0x5243
//!      2     1  kind: 1 entry, 2 vote, 3 truncate since index, 4 purge up to log id
//!      3     1  zero
//!      4     4  length of the body
//!      8     8  serial: 1, 2, 3, ... over all files
//!     16     8  durable: all records up to this serial were synced before this one was written
//!     24     4  CRC-32 of storage id, bytes 0 to 24, and the body
//!     28     4  zero
//!     32        body, padded with zeros to a multiple of 8
//! ```
//!
//! A file begins as zeros of its full size, so that a sync has data to write and no metadata: on a file system with a
//! journal that is one write instead of three.
//!
//! *What a crash leaves, and what is damage.* A record that was synced is never torn. Where reading stops, at a record
//! that is not whole, the rest was never acknowledged, and is wiped, unless it can be seen that it was: a later record
//! says that this one was durable, or the record is bad although each of its sectors has been written (a sector is
//! written whole or not at all, and was zero before). That is damage, and the voter does not start: it would have
//! forgotten what it had acknowledged.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::StorageId;
use super::codec::{Decoder, Encoder, Malformed};
use super::types::{Entry, LogId, Vote};
use crate::ids::NodeId;

/// The version of this format.
pub(super) const VERSION: u32 = 1;
/// The size of a file of the log in bytes; a record that is larger gets a larger file.
pub(super) const SEGMENT_BYTES: u64 = 4 << 20;
/// The size of a file's header in bytes.
pub(super) const HEADER_BYTES: usize = 128;
const RECORD_HEADER_BYTES: usize = 32;
const SECTOR: usize = 512;
const MAGIC: [u8; 8] = *b"CSVRAFTL";
const RECORD_MAGIC: u16 = 0x5243;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    storage: [u8; 16],
    first_serial: U64,
    vote_term: U64,
    vote_node: U64,
    vote_flags: U64,
    purged_flags: U64,
    purged_term: U64,
    purged_leader: U64,
    purged_index: U64,
    zero: [u8; 32],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    magic: U16,
    kind: u8,
    zero: u8,
    length: U32,
    serial: U64,
    durable: U64,
    crc: U32,
    zero_too: [u8; 4],
}

const _: () = assert!(size_of::<RawRecord>() == RECORD_HEADER_BYTES);

/// What stands at the beginning of a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Header {
    pub(super) storage: StorageId,
    pub(super) first_serial: u64,
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
}

/// Why a header cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum BadHeader {
    Version(u32),
    Damaged(&'static str),
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let vote = self.vote.unwrap_or_default();
        let purged = self.purged.unwrap_or_default();
        let mut raw = RawHeader {
            magic: MAGIC,
            version: U32::new(VERSION),
            crc: U32::ZERO,
            storage: self.storage.0,
            first_serial: U64::new(self.first_serial),
            vote_term: U64::new(vote.leader_id.term),
            vote_node: U64::new(vote.leader_id.node_id.0),
            vote_flags: U64::new(u64::from(self.vote.is_some()) | u64::from(vote.committed) << 1),
            purged_flags: U64::new(u64::from(self.purged.is_some())),
            purged_term: U64::new(purged.leader_id.term),
            purged_leader: U64::new(purged.leader_id.node_id.0),
            purged_index: U64::new(purged.index),
            zero: [0; 32],
        };
        raw.crc = U32::new(crc32fast::hash(raw.as_bytes()));
        zerocopy::transmute!(raw)
    }

    pub(super) fn decode(file: &[u8]) -> Result<Self, BadHeader> {
        let (mut raw, _) =
            RawHeader::read_from_prefix(file).map_err(|_| BadHeader::Damaged("the file is too short"))?;
        if raw.magic != MAGIC {
            return Err(BadHeader::Damaged("this is not a file of the log"));
        }
        if raw.version.get() != VERSION {
            return Err(BadHeader::Version(raw.version.get()));
        }
        let crc = raw.crc.get();
        raw.crc = U32::ZERO;
        if crc != crc32fast::hash(raw.as_bytes()) {
            return Err(BadHeader::Damaged("the header's checksum is wrong"));
        }
        let vote_flags = raw.vote_flags.get();
        let leader = openraft::CommittedLeaderId::new(raw.purged_term.get(), NodeId(raw.purged_leader.get()));
        Ok(Self {
            storage: StorageId(raw.storage),
            first_serial: raw.first_serial.get(),
            vote: (vote_flags & 1 != 0).then(|| {
                let mut vote = Vote::new(raw.vote_term.get(), NodeId(raw.vote_node.get()));
                vote.committed = vote_flags & 2 != 0;
                vote
            }),
            purged: (raw.purged_flags.get() & 1 != 0).then(|| LogId::new(leader, raw.purged_index.get())),
        })
    }
}

/// One change of the log.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Record {
    Entry(Entry),
    Vote(Vote),
    Truncate(u64),
    Purge(LogId),
}

impl Record {
    /// Appends the record's bytes to `out`.
    pub(super) fn encode(&self, storage: StorageId, serial: u64, durable: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + RECORD_HEADER_BYTES, 0);
        let mut encoder = Encoder(std::mem::take(out));
        let kind = match self {
            Self::Entry(entry) => {
                encoder.entry(entry);
                1
            }
            Self::Vote(vote) => {
                encoder.vote(vote);
                2
            }
            Self::Truncate(since) => {
                encoder.u64(*since);
                3
            }
            Self::Purge(upto) => {
                encoder.log_id(upto);
                4
            }
        };
        *out = encoder.0;
        let length = out.len() - start - RECORD_HEADER_BYTES;
        let mut raw = RawRecord {
            magic: U16::new(RECORD_MAGIC),
            kind,
            zero: 0,
            length: U32::new(u32::try_from(length).expect("entries are limited to a few MiB")),
            serial: U64::new(serial),
            durable: U64::new(durable),
            crc: U32::ZERO,
            zero_too: [0; 4],
        };
        let body = &out[start + RECORD_HEADER_BYTES..];
        raw.crc = U32::new(crc(storage, &raw, body));
        out[start..start + RECORD_HEADER_BYTES].copy_from_slice(raw.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }

    fn decode(kind: u8, body: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder(body);
        let record = match kind {
            1 => Self::Entry(decoder.entry()?),
            2 => Self::Vote(decoder.vote()?),
            3 => Self::Truncate(decoder.u64("truncation")?),
            4 => Self::Purge(decoder.log_id()?),
            _ => return Err(Malformed("kind of record")),
        };
        decoder.end("record")?;
        Ok(record)
    }
}

fn crc(storage: StorageId, raw: &RawRecord, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&storage.0);
    hasher.update(&raw.as_bytes()[..24]);
    hasher.update(body);
    hasher.finalize()
}

/// A whole record found in a file.
struct Found<'a> {
    kind: u8,
    serial: u64,
    durable: u64,
    body: &'a [u8],
    end: usize,
}

fn find(storage: StorageId, file: &[u8], at: usize) -> Option<Found<'_>> {
    let (raw, _) = RawRecord::read_from_prefix(file.get(at..)?).ok()?;
    if raw.magic.get() != RECORD_MAGIC {
        return None;
    }
    let start = at + RECORD_HEADER_BYTES;
    let end = start.checked_add(usize::try_from(raw.length.get()).ok()?)?;
    let body = file.get(start..end)?;
    (crc(storage, &raw, body) == raw.crc.get()).then(|| Found {
        kind: raw.kind,
        serial: raw.serial.get(),
        durable: raw.durable.get(),
        body,
        end: end.next_multiple_of(8).min(file.len()),
    })
}

/// What is in a file of the log.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) records: Vec<Record>,
    /// The serial that the next record has.
    pub(super) next_serial: u64,
    /// Where the next record goes.
    pub(super) end: usize,
    /// Whether there is something behind the end that was never acknowledged and must be wiped.
    pub(super) torn: bool,
}

/// Damage: where, and what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Damage(pub(super) u64, pub(super) String);

/// Reads all records of a file.
pub(super) fn scan(header: &Header, file: &[u8]) -> Result<Scan, Damage> {
    let mut scan =
        Scan { records: Vec::new(), next_serial: header.first_serial, end: HEADER_BYTES, torn: false };
    let damage = |at: usize, why: String| Damage(at as u64, why);
    while let Some(found) = find(header.storage, file, scan.end) {
        if found.serial != scan.next_serial {
            let why = format!("record {} stands where {} should", found.serial, scan.next_serial);
            return Err(damage(scan.end, why));
        }
        let record =
            Record::decode(found.kind, found.body).map_err(|error| damage(scan.end, error.to_string()))?;
        scan.records.push(record);
        scan.next_serial += 1;
        scan.end = found.end;
    }
    let rest = &file[scan.end..];
    let Some(last) = rest.iter().rposition(|byte| *byte != 0) else { return Ok(scan) };
    let later =
        (scan.end + 8..scan.end + last + 1).step_by(8).filter_map(|at| find(header.storage, file, at));
    if let Some(proof) = later.into_iter().find(|found| found.durable >= scan.next_serial) {
        let why = format!(
            "record {} is not what was written, and record {} shows that it had been",
            scan.next_serial, proof.serial
        );
        return Err(damage(scan.end, why));
    }
    if !has_unwritten_sector(file, scan.end, claimed_end(file, scan.end).unwrap_or(scan.end + last + 1)) {
        let why = format!("the checksum of record {}, the last one, is wrong", scan.next_serial);
        return Err(damage(scan.end, why));
    }
    scan.torn = true;
    Ok(scan)
}

/// Where the record at `at` ends, by its own word.
fn claimed_end(file: &[u8], at: usize) -> Option<usize> {
    let (raw, _) = RawRecord::read_from_prefix(file.get(at..)?).ok()?;
    let end = at + RECORD_HEADER_BYTES + usize::try_from(raw.length.get()).ok()?;
    (raw.magic.get() == RECORD_MAGIC && end <= file.len()).then_some(end)
}

/// Whether some sector still has the zeros that it had before, as far as it belongs to `start..end`.
fn has_unwritten_sector(file: &[u8], start: usize, end: usize) -> bool {
    let mut at = start;
    while at < end {
        let next = (at / SECTOR + 1) * SECTOR;
        if file[at..next.min(end)].iter().all(|byte| *byte == 0) {
            return true;
        }
        at = next;
    }
    false
}

#[cfg(test)]
mod tests;
