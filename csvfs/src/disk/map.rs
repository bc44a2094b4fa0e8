//! The chunk map: what each chunk of the LUN is for. It lies outside the store, because the store is found by it.
//!
//! Header, one block:
//!
//! | bytes | what |
//! |---|---|
//! | 0..16 | frame, magic `CSVFSMAP`; the CRC covers header and entries |
//! | 16..32 | uuid of the volume |
//! | 32..40 | epoch of the writer |
//! | 40..48 | generation, raised with each write |
//! | 48..56 | sealed superblock: epoch |
//! | 56..64 | sealed superblock: client |
//! | 64..72 | sealed superblock: size of the volume |
//! | 72..96 | sealed superblock: feature flags |
//! | 96..104 | sealed superblock: time of writing |
//! | 104 | sealed superblock: current area |
//! | 105..108 | zero |
//! | 108..112 | number of chunks |
//! | 112..128 | length in bytes of area A, of area B |
//! | 128..4096 | zero |
//!
//! Then 4 bytes for each chunk, filled up with zeros to a whole block: use (0 = file data, 1 = structures outside the
//! store, 2 = area A, 3 = area B, 4 = spare, 5 = reserve, 6 = spent, 7 = journal of area A, 8 = journal of area B), a zero
//! byte, 16 bits of index in its area or journal.
//!
//! There are two copies. Each change is written to the first, and when that is durable to the second: so at any time
//! at least one is whole, and a copy that is damaged later takes nothing with it. The valid one with the highest epoch
//! and generation counts.
//!
//! *Sealed* is the newest superblock that was durable when the map was written. Nothing is acknowledged in an epoch
//! before its superblock is sealed; so a missing superblock slot whose epoch is sealed is damage, and one whose epoch
//! is not sealed was never in force.

use std::collections::{BTreeMap, BTreeSet};

use lockd::clock::WallTime;
use lockd::ids::{ClientId, Epoch, VolumeId};
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::features::FeatureBytes;
use super::frame::{self, Damage, Frame};
use super::layout::{self, BLOCK_LEN};
use super::superblock::{Side, Superblock};
use crate::types::{BLOCK, LunBlock, Run};

const MAGIC: [u8; 8] = *b"CSVFSMAP";
/// The longest area: as many chunks as there can be, of the largest size.
const AREA_LEN_MAX: u64 = 1 << 60;

/// What a chunk is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChunkUse {
    /// File data; the store says which of its blocks are free.
    Data,
    /// The structures outside the store: the first chunk.
    System,
    /// A part of an area of the store.
    Store(Side, u32),
    /// A part of the redo journal of an area.
    Journal(Side, u32),
    /// For the growth of the current area.
    Spare,
    /// For the copy of the current area (V2).
    Reserve,
    /// Held an earlier area: becomes reserve when no write of its time can be under way any more (V2).
    Spent,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MapBytes {
    frame: Frame,
    uuid: [u8; 16],
    epoch: U64,
    generation: U64,
    sealed_epoch: U64,
    sealed_client: U64,
    sealed_size: U64,
    sealed_features: FeatureBytes,
    sealed_ns: I64,
    sealed_side: u8,
    zero: [u8; 3],
    chunks: U32,
    lens: [U64; 2],
}

/// What each chunk of the LUN is for, and the areas of the store that they make up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkMap {
    /// Who wrote it.
    pub epoch: Epoch,
    /// Raised with each write.
    pub generation: u64,
    /// The newest superblock that was durable when it was written; never marked clean here.
    pub sealed: Superblock,
    /// The lengths of the two areas in bytes.
    pub lens: [u64; 2],
    uses: Vec<ChunkUse>,
    /// For each area, the chunk of each index.
    tables: [Vec<Option<u32>>; 2],
    /// For each area, the chunks of its journal by index.
    journals: [BTreeMap<u32, u32>; 2],
    spare: BTreeSet<u32>,
    reserve: BTreeSet<u32>,
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl ChunkMap {
    /// A map of `chunks` chunks, all for file data but the first.
    #[must_use]
    pub fn new(chunks: usize, sealed: Superblock) -> Self {
        let mut uses = vec![ChunkUse::Data; chunks];
        uses[0] = ChunkUse::System;
        Self {
            epoch: sealed.epoch,
            generation: 0,
            sealed,
            lens: [0; 2],
            uses,
            tables: [Vec::new(), Vec::new()],
            journals: [BTreeMap::new(), BTreeMap::new()],
            spare: BTreeSet::new(),
            reserve: BTreeSet::new(),
        }
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.uses.len()
    }

    /// What `chunk` is for; nothing beyond the end.
    #[must_use]
    pub fn usage(&self, chunk: u32) -> Option<ChunkUse> {
        self.uses.get(chunk as usize).copied()
    }

    /// Gives `chunk` another use.
    ///
    /// # Panics
    /// If there is no such chunk, or another one is at that place of the area.
    pub fn assign(&mut self, chunk: u32, usage: ChunkUse) {
        match self.uses[chunk as usize] {
            ChunkUse::Store(side, index) => self.tables[side.index()][index as usize] = None,
            ChunkUse::Journal(side, index) => drop(self.journals[side.index()].remove(&index)),
            ChunkUse::Spare => drop(self.spare.remove(&chunk)),
            ChunkUse::Reserve => drop(self.reserve.remove(&chunk)),
            ChunkUse::Data | ChunkUse::System | ChunkUse::Spent => {}
        }
        match usage {
            ChunkUse::Store(side, index) => {
                let table = &mut self.tables[side.index()];
                if table.len() <= index as usize {
                    table.resize(index as usize + 1, None);
                }
                assert!(table[index as usize].is_none(), "two chunks for index {index} of area {side:?}");
                table[index as usize] = Some(chunk);
            }
            ChunkUse::Journal(side, index) => {
                let before = self.journals[side.index()].insert(index, chunk);
                assert!(before.is_none(), "two chunks for index {index} of the journal of area {side:?}");
            }
            ChunkUse::Spare => drop(self.spare.insert(chunk)),
            ChunkUse::Reserve => drop(self.reserve.insert(chunk)),
            ChunkUse::Data | ChunkUse::System | ChunkUse::Spent => {}
        }
        self.uses[chunk as usize] = usage;
    }

    /// The chunk at `index` of an area.
    #[must_use]
    pub fn locate(&self, side: Side, index: u64) -> Option<u32> {
        self.tables[side.index()].get(usize::try_from(index).ok()?).copied().flatten()
    }

    /// Gives a spare chunk to `index` of an area; nothing when none is left.
    pub fn grow(&mut self, side: Side, index: u64) -> Option<u32> {
        let index = u32::try_from(index).ok().filter(|index| u64::from(*index) < layout::CHUNKS_MAX)?;
        let chunk = *self.spare.first()?;
        self.assign(chunk, ChunkUse::Store(side, index));
        Some(chunk)
    }

    /// The chunks of an area with their index, in the area's order.
    pub fn area(&self, side: Side) -> impl Iterator<Item = (u32, u32)> {
        let table = self.tables[side.index()].iter().enumerate();
        table.filter_map(|(index, chunk)| chunk.map(|chunk| (number(index), chunk)))
    }

    /// The chunks of an area's journal, in its order: as many as follow one another from the first.
    pub fn journal(&self, side: Side) -> impl Iterator<Item = u32> {
        let chunks = self.journals[side.index()].iter().zip(0..);
        chunks.take_while(|((index, _), expected)| **index == *expected).map(|((_, chunk), _)| *chunk)
    }

    /// All chunks of an area and of its journal.
    #[must_use]
    pub fn all_of(&self, side: Side) -> Vec<u32> {
        self.area(side).map(|(_, chunk)| chunk).chain(self.journals[side.index()].values().copied()).collect()
    }

    /// The chunks that the current area may grow into.
    #[must_use]
    pub fn spare(&self) -> &BTreeSet<u32> {
        &self.spare
    }

    /// The chunks that wait for a copy.
    #[must_use]
    pub fn reserve(&self) -> &BTreeSet<u32> {
        &self.reserve
    }

    /// The chunks that held an earlier area.
    #[must_use]
    pub fn spent(&self) -> Vec<u32> {
        let spent = self.uses.iter().enumerate().filter(|(_, usage)| **usage == ChunkUse::Spent);
        spent.map(|(chunk, _)| number(chunk)).collect()
    }

    /// The chunks for file data as runs of blocks, on a LUN of `size` bytes.
    #[must_use]
    pub fn data_runs(&self, chunk_size: u64, size: u64) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (chunk, _) in self.uses.iter().enumerate().filter(|(_, usage)| **usage == ChunkUse::Data) {
            let start = chunk as u64 * chunk_size;
            let end = (start + chunk_size).min(size);
            let run = Run { start: LunBlock::holding(start), len: end.saturating_sub(start) / BLOCK };
            match runs.last_mut() {
                Some(last) if last.end() == run.start => last.len += run.len,
                _ if run.len > 0 => runs.push(run),
                _ => {}
            }
        }
        runs
    }

    /// The map as it lies on the LUN, header first.
    #[must_use]
    pub fn encode(&self, volume: VolumeId) -> Vec<u8> {
        let bytes = MapBytes {
            frame: Frame::new(MAGIC),
            uuid: volume.0,
            epoch: U64::new(self.epoch.0),
            generation: U64::new(self.generation),
            sealed_epoch: U64::new(self.sealed.epoch.0),
            sealed_client: U64::new(self.sealed.client.0),
            sealed_size: U64::new(self.sealed.size),
            sealed_features: self.sealed.features.into(),
            sealed_ns: I64::new(self.sealed.written.0),
            sealed_side: self.sealed.side.byte(),
            zero: [0; 3],
            chunks: U32::new(number(self.uses.len())),
            lens: self.lens.map(U64::new),
        };
        let mut out = vec![0; Self::encoded_len(self.uses.len())];
        out[..size_of::<MapBytes>()].copy_from_slice(bytes.as_bytes());
        for (entry, usage) in out[BLOCK_LEN..].chunks_exact_mut(4).zip(&self.uses) {
            let (kind, index) = match usage {
                ChunkUse::Data => (0, 0),
                ChunkUse::System => (1, 0),
                ChunkUse::Store(side, index) => (2 + side.byte(), *index),
                ChunkUse::Spare => (4, 0),
                ChunkUse::Reserve => (5, 0),
                ChunkUse::Spent => (6, 0),
                ChunkUse::Journal(side, index) => (7 + side.byte(), *index),
            };
            entry[0] = kind;
            entry[2..].copy_from_slice(&index.to_le_bytes()[..2]);
        }
        frame::seal(&mut out);
        out
    }

    /// The bytes that a map of so many chunks takes on the LUN.
    #[must_use]
    pub fn encoded_len(chunks: usize) -> usize {
        BLOCK_LEN + (chunks * 4).next_multiple_of(BLOCK_LEN)
    }

    /// Reads a copy from the region kept for it; it must belong to `volume`.
    pub fn decode(region: &[u8], volume: VolumeId) -> Result<Self, Damage> {
        let (bytes, _) = MapBytes::read_from_prefix(region).map_err(|_| Damage::Blank)?;
        let chunks = bytes.chunks.get();
        // Before the CRC, which covers as much as the number of chunks says: a wrong number is a wrong CRC.
        let len = usize::try_from(chunks).map(Self::encoded_len).unwrap_or(usize::MAX);
        let whole = region.get(..len).unwrap_or(region);
        frame::check(whole, &MAGIC)?;
        if chunks == 0 || u64::from(chunks) > layout::CHUNKS_MAX || region.len() < len {
            return Err(Damage::value("number of chunks", chunks));
        }
        if bytes.uuid != volume.0 {
            return Err(Damage::Foreign(VolumeId(bytes.uuid)));
        }
        let sealed = Superblock {
            epoch: Epoch(bytes.sealed_epoch.get()),
            side: Side::from_byte(bytes.sealed_side)?,
            clean: false,
            features: bytes.sealed_features.into(),
            size: bytes.sealed_size.get(),
            written: WallTime(bytes.sealed_ns.get()),
            client: ClientId(bytes.sealed_client.get()),
        };
        let mut map = Self::new(chunks as usize, sealed);
        map.epoch = Epoch(bytes.epoch.get());
        map.generation = bytes.generation.get();
        map.lens = bytes.lens.map(U64::get);
        if let Some(len) = map.lens.iter().find(|len| !len.is_multiple_of(BLOCK) || **len > AREA_LEN_MAX) {
            return Err(Damage::value("length of an area", *len));
        }
        for (chunk, entry) in (0..chunks).zip(whole[BLOCK_LEN..].chunks_exact(4)) {
            let index = u32::from(u16::from_le_bytes([entry[2], entry[3]]));
            let usage = match entry[0] {
                0 => ChunkUse::Data,
                1 => ChunkUse::System,
                2 => ChunkUse::Store(Side::A, index),
                3 => ChunkUse::Store(Side::B, index),
                4 => ChunkUse::Spare,
                5 => ChunkUse::Reserve,
                6 => ChunkUse::Spent,
                7 => ChunkUse::Journal(Side::A, index),
                8 => ChunkUse::Journal(Side::B, index),
                other => return Err(Damage::value("use of a chunk", other)),
            };
            if (chunk == 0) != (usage == ChunkUse::System) {
                return Err(Damage::value("use of the first chunk, or first use of another,", entry[0]));
            }
            let is_taken = match usage {
                ChunkUse::Store(side, index) => map.locate(side, index.into()).is_some(),
                ChunkUse::Journal(side, index) => map.journals[side.index()].contains_key(&index),
                _ => false,
            };
            if is_taken {
                return Err(Damage::value("index of two chunks", index));
            }
            if chunk > 0 {
                map.assign(chunk, usage);
            }
        }
        Ok(map)
    }
}
