//! The redo journal: what has been changed since the store was last made durable (V12).
//!
//! A commit of the store is three round trips and 90 KB or so. So a group of operations is acknowledged when its *record* is
//! in the journal, by one write with FUA; the store itself is made durable when the journal is full. An opening applies the
//! records that the store does not hold yet.
//!
//! The journal lies in chunks of its own, which belong to an area as the store's do: a copy of the store (V2) gets a fresh
//! one, and a late write of an earlier incarnation lands where nobody looks. Records lie one behind the other from its
//! first byte, each on whole blocks:
//!
//! | bytes | what |
//! |---|---|
//! | 0..16 | frame, magic `CSVFSJNL`; the CRC covers the header and the record |
//! | 16..32 | uuid of the volume |
//! | 32..40 | epoch of the writer |
//! | 40..48 | sequence, one more than that of the record before, from one incarnation to the next |
//! | 48..52 | length of the record |
//! | 52..56 | zero |
//! | 56.. | the record (`store::redo`), then zeros to the end of the block |
//!
//! # Which records count
//!
//! The store says up to which sequence it holds everything, and in whose epoch: its numbers go along with every change. Of
//! the records from the first byte on, as long as they are whole, of that epoch, and follow one another, those after that
//! sequence count. Whatever lies behind them is older, or the torn rest of a record that nobody was told of. A record that
//! is not whole and has a later one behind it is damaged: its writer has waited for it before it wrote that one. (The last
//! record, damaged, looks as if it were torn: nobody can tell.)
//!
//! The journal is begun anew, from its first byte, only when the store has been made durable: an interruption before that
//! leaves all records, one after it leaves old ones, whose sequences the store has passed. An opening makes the store
//! durable in its own epoch before it writes the first record, so that no record of an earlier one can follow.

use std::fmt;
use std::sync::Arc;

use lockd::ids::{Epoch, VolumeId};
use parking_lot::Mutex;
use redirector::blocking;
use redirector::buffer::Pool;
use redirector::lun::Lun;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::area::{Area, AreaError};
use super::batch::Batch;
use super::frame::{self, Frame};
use super::label::Label;
use super::layout::BLOCK_LEN;
use super::map::{ChunkMap, ChunkUse};
use super::superblock::Side;
use super::survey::Survey;
use crate::types::BLOCK;

const MAGIC: [u8; 8] = *b"CSVFSJNL";
/// How long a journal is, if the volume is not small. It bounds what an opening has to apply.
const LEN_MAX: u64 = 4 << 20;
/// The part of a volume's chunks that its journal may take.
const SHARE: u64 = 64;
/// How much is read at once.
const READ: u64 = 256 << 10;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    frame: Frame,
    uuid: [u8; 16],
    epoch: U64,
    sequence: U64,
    len: U32,
    zero: U32,
}

const HEADER: usize = size_of::<Header>();

/// How many chunks the journal of a volume of `chunks` chunks has.
pub(super) fn chunks_wanted(chunk_size: u64, chunks: u64) -> u32 {
    let most = LEN_MAX.div_ceil(chunk_size);
    u32::try_from(most.min(chunks / SHARE).max(1)).unwrap_or(1)
}

/// Gives an area the journal that a volume like this has, of the chunks in `from`; nothing if they are too few.
pub(super) fn allot(map: &mut ChunkMap, side: Side, chunk_size: u64, from: &[u32]) -> bool {
    let wanted = chunks_wanted(chunk_size, map.chunks() as u64);
    if map.journal(side).next().is_some() {
        return true;
    }
    if from.len() < wanted as usize {
        return false;
    }
    for (index, chunk) in (0..wanted).zip(from) {
        map.assign(*chunk, ChunkUse::Journal(side, index));
    }
    true
}

/// The record as it lies on the LUN, filled up to whole blocks.
fn encode(volume: VolumeId, epoch: Epoch, sequence: u64, record: &[u8], out: &mut [u8]) {
    let header = Header {
        frame: Frame::new(MAGIC),
        uuid: volume.0,
        epoch: U64::new(epoch.0),
        sequence: U64::new(sequence),
        len: U32::new(u32::try_from(record.len()).unwrap_or(u32::MAX)),
        zero: U32::ZERO,
    };
    out[..HEADER].copy_from_slice(header.as_bytes());
    out[HEADER..][..record.len()].copy_from_slice(record);
    out[HEADER + record.len()..].fill(0);
    frame::seal(&mut out[..HEADER + record.len()]);
}

/// The bytes that a record takes.
fn taken(record: usize) -> u64 {
    (HEADER as u64 + record as u64).next_multiple_of(BLOCK)
}

/// Where a journal lies.
#[derive(Clone, Debug)]
struct Place {
    chunks: Vec<u32>,
    chunk_size: u64,
    request_max: u64,
    volume: VolumeId,
}

impl Place {
    fn new(map: &ChunkMap, side: Side, label: &Label, lun: &dyn Lun) -> Option<Self> {
        let chunks: Vec<u32> = map.journal(side).collect();
        let request_max = u64::from(lun.geometry().request_max).clamp(BLOCK, 1 << 20) / BLOCK * BLOCK;
        let place = Self { chunks, chunk_size: label.chunk_size, request_max, volume: label.uuid };
        (!place.chunks.is_empty()).then_some(place)
    }

    fn len(&self) -> u64 {
        (self.chunks.len() as u64 * self.chunk_size).min(LEN_MAX)
    }

    /// Cuts bytes of the journal into requests: where each is on the LUN, and its length.
    fn requests(&self, at: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
        let end = at + len;
        let mut at = at;
        std::iter::from_fn(move || {
            let chunk = *self.chunks.get(usize::try_from(at / self.chunk_size).ok()?).filter(|_| at < end)?;
            let within = at % self.chunk_size;
            let part = (end - at).min(self.chunk_size - within).min(self.request_max);
            at += part;
            Some((u64::from(chunk) * self.chunk_size + within, usize::try_from(part).ok()?))
        })
    }
}

/// A journal that is written.
#[derive(Debug)]
pub struct Journal {
    area: Arc<Area>,
    place: Place,
    epoch: Epoch,
    /// Where the next record goes, in bytes.
    at: Mutex<u64>,
}

/// A record on its way.
pub struct Writing<'a> {
    area: &'a Area,
    batch: Batch,
}

impl fmt::Debug for Writing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writing").finish_non_exhaustive()
    }
}

impl Writing<'_> {
    /// Waits until the record is durable.
    ///
    /// # Errors
    /// If it is not, or if that is unknown: the area has ended then.
    pub fn wait(self) -> Result<(), AreaError> {
        self.batch.wait().map_err(|failure| self.area.fail(failure.into()))
    }
}

impl Journal {
    /// The journal of `area`, to be written from its first byte on; nothing if it has none.
    pub(super) fn of(area: &Arc<Area>, epoch: Epoch) -> Option<Self> {
        let around = area.around();
        let place = Place::new(&area.map(), area.side(), &around.label, around.lun.as_ref())?;
        Some(Self { area: Arc::clone(area), place, epoch, at: Mutex::new(0) })
    }

    /// The epoch of its records.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Begins to write a record; nothing if there is no room: the store has to be made durable then.
    ///
    /// # Errors
    /// If the area has ended or the lease has.
    pub fn append(&self, sequence: u64, record: &[u8]) -> Result<Option<Writing<'_>>, AreaError> {
        let around = self.area.around();
        let mut at = self.at.lock();
        let len = taken(record.len());
        if *at + len > self.place.len() {
            return Ok(None);
        }
        self.area.await_lease()?;
        if let Some(broken) = self.area.broken() {
            return Err(broken);
        }
        let mut buffer = around.pool.take(usize::try_from(len).unwrap_or(BLOCK_LEN));
        encode(self.place.volume, self.epoch, sequence, record, &mut buffer);
        let (buffer, batch) = (buffer.share(), Batch::default());
        let fua = around.lun.geometry().volatile_cache;
        let mut done = 0;
        for (offset, part) in self.place.requests(*at, len) {
            batch.write(around.lun.as_ref(), offset, buffer.part(done..done + part), fua);
            done += part;
        }
        *at += len;
        Ok(Some(Writing { area: &self.area, batch }))
    }

    /// The store has been made durable: the next record is the first again.
    pub fn begin_anew(&self) {
        *self.at.lock() = 0;
    }
}

/// A journal that is read.
#[derive(Debug)]
pub struct Found<'a> {
    lun: &'a dyn Lun,
    pool: &'a Pool,
    place: Option<Place>,
}

/// A journal cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the redo journal cannot be read at byte {offset} of the LUN (errno {errno})")]
pub struct Unreadable {
    /// Where on the LUN.
    pub offset: u64,
    /// What the LUN said.
    pub errno: i32,
}

/// The records that a store does not hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Records {
    /// In the order of their sequences.
    pub list: Vec<Vec<u8>>,
    /// The sequence of the last one.
    pub last: u64,
    /// Why there were more, if there were: what was acknowledged is lost.
    pub lost: Option<Lost>,
}

/// Records that were acknowledged are not there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Lost {
    /// A record is damaged.
    #[error(
        "change {record} in the redo journal is damaged, and change {later} behind it is whole: what was changed from \
         {record} on is lost"
    )]
    Damaged {
        /// Which.
        record: u64,
        /// The first one behind it that is whole.
        later: u64,
    },
    /// The store is older than the journal's first record.
    #[error(
        "the metadata store is older than its redo journal: it holds all up to change {store}, the journal goes on with \
         {journal}: the LUN has lost a write that it had confirmed"
    )]
    Gap {
        /// What the store holds.
        store: u64,
        /// The first record.
        journal: u64,
    },
}

impl<'a> Found<'a> {
    /// The journal of the area in force.
    #[must_use]
    pub fn of(survey: &Survey, lun: &'a dyn Lun, pool: &'a Pool) -> Self {
        let place = Place::new(&survey.map, survey.superblock.side, &survey.label, lun);
        Self { lun, pool, place }
    }

    /// The journal of an area that is open.
    pub(super) fn of_area(area: &'a Area) -> Self {
        let around = area.around();
        let place = Place::new(&area.map(), area.side(), &around.label, around.lun.as_ref());
        Self { lun: around.lun.as_ref(), pool: &around.pool, place }
    }

    /// A volume without a journal.
    #[must_use]
    pub fn none(lun: &'a dyn Lun, pool: &'a Pool) -> Self {
        Self { lun, pool, place: None }
    }

    /// The records that a store does not hold which holds all up to `sequence`.
    ///
    /// # Errors
    /// If the LUN fails.
    pub fn after(&self, epoch: Epoch, sequence: u64) -> Result<Records, Unreadable> {
        let mut records = Records { last: sequence, ..Records::default() };
        let Some(place) = &self.place else { return Ok(records) };
        let mut bytes = Vec::new();
        let (mut at, mut before) = (0, None::<u64>);
        while let Some((found, record)) = self.next(place, &mut bytes, at, epoch)? {
            if before.is_some_and(|before| before.checked_add(1) != Some(found)) {
                break;
            }
            if found > records.last.saturating_add(1) {
                records.lost = Some(Lost::Gap { store: sequence, journal: found });
                return Ok(records);
            }
            at += taken(record.len());
            before = Some(found);
            if found > sequence {
                records.list.push(record.to_vec());
                records.last = found;
            }
        }
        // Of what was there before the journal was begun anew, the store holds everything.
        while at + BLOCK <= place.len() {
            at += BLOCK;
            if let Some((later, _)) = self.next(place, &mut bytes, at, epoch)?
                && later > records.last
            {
                records.lost = Some(Lost::Damaged { record: records.last + 1, later });
                break;
            }
        }
        Ok(records)
    }

    /// The record at `at`, if a whole one of that epoch is there.
    fn next<'b>(
        &self,
        place: &Place,
        bytes: &'b mut Vec<u8>,
        at: u64,
        epoch: Epoch,
    ) -> Result<Option<(u64, &'b [u8])>, Unreadable> {
        if at + BLOCK > place.len() {
            return Ok(None);
        }
        self.fill(place, bytes, at + BLOCK)?;
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let Ok((header, _)) = Header::read_from_prefix(&bytes[start..]) else { return Ok(None) };
        let is_ours = header.frame.magic == MAGIC && header.uuid == place.volume.0;
        let len = header.len.get() as usize;
        if !is_ours || header.epoch.get() != epoch.0 || at + taken(len) > place.len() {
            return Ok(None);
        }
        self.fill(place, bytes, at + taken(len))?;
        let whole = &bytes[start..start + HEADER + len];
        let is_whole = frame::check(whole, &MAGIC).is_ok();
        Ok(is_whole.then(|| (header.sequence.get(), &whole[HEADER..])))
    }

    /// Reads on, up to byte `end` at least.
    fn fill(&self, place: &Place, bytes: &mut Vec<u8>, end: u64) -> Result<(), Unreadable> {
        let have = bytes.len() as u64;
        if have >= end {
            return Ok(());
        }
        let end = end.next_multiple_of(READ).min(place.len());
        for (offset, len) in place.requests(have, end - have) {
            let read = blocking::read(self.lun, offset, self.pool.take(len));
            bytes.extend_from_slice(&read.map_err(|errno| Unreadable { offset, errno })?);
        }
        Ok(())
    }
}
