//! Block 0: what a volume is. Written once by format and never again. Block 255 has a copy, which serves when block 0 is
//! damaged: for reading, and for a repair.
//!
//! | bytes | what |
//! |---|---|
//! | 0..16 | frame, magic `CSVFSLBL` |
//! | 16..32 | uuid (the redirector compares these bytes when a path comes back) |
//! | 32..40 | time of creation, nanoseconds since 1970 |
//! | 40..48 | size of the LUN at format, bytes |
//! | 48..52 | block size, 4096 |
//! | 52..56 | chunk size in blocks, a power of two |
//! | 56..60 | window of claims, milliseconds (V1) |
//! | 60..64 | quiesce: how long a write may be under way after its sender is gone, milliseconds (V2) |
//! | 64..88 | feature flags at format: compatible, read-only compatible, incompatible |
//! | 88..104 | SipHash key of directory entries |
//! | 104..136 | regions, each as first block and number of blocks: slots, claims, map copies |
//! | 136..200 | name of the volume, UTF-8 |
//! | 200..4096 | zero |

use std::time::Duration;

use lockd::clock::WallTime;
use lockd::ids::VolumeId;
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::features::{FeatureBytes, Features};
use super::frame::{self, Damage, Frame};
use super::layout::{self, BLOCK_LEN};
use crate::types::BLOCK;

const MAGIC: [u8; 8] = *b"CSVFSLBL";
/// The longest name of a volume, in bytes.
pub const NAME_LEN_MAX: usize = 64;
const REGIONS: [[u64; 2]; 4] = [
    [layout::SLOTS_AT, layout::SLOTS as u64],
    [layout::CLAIMS_AT, layout::CLAIMS as u64],
    [layout::MAPS_AT[0], layout::MAP_BLOCKS],
    [layout::MAPS_AT[1], layout::MAP_BLOCKS],
];

/// What a volume is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    /// The volume's identity.
    pub uuid: VolumeId,
    /// When it was made.
    pub created: WallTime,
    /// The LUN's size when it was made, in bytes.
    pub lun_size: u64,
    /// The size of a chunk in bytes.
    pub chunk_size: u64,
    /// How long an opener watches the claims of others (V1).
    pub window: Duration,
    /// How long a write may still be under way when its sender is gone (V2).
    pub quiesce: Duration,
    /// The features it was made with.
    pub features: Features,
    /// The key of the hashes in directories.
    pub hash_key: [u8; 16],
    /// The volume's name.
    pub name: String,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LabelBytes {
    frame: Frame,
    uuid: [u8; 16],
    created_ns: I64,
    lun_size: U64,
    block_size: U32,
    chunk_blocks: U32,
    window_ms: U32,
    quiesce_ms: U32,
    features: FeatureBytes,
    hash_key: [u8; 16],
    regions: [[U32; 2]; 4],
    name: [u8; NAME_LEN_MAX],
}

/// A duration as whole milliseconds, saturating.
pub(super) fn millis(span: Duration) -> U32 {
    U32::new(u32::try_from(span.as_millis()).unwrap_or(u32::MAX))
}

impl Label {
    /// The label as it lies on the LUN.
    #[must_use]
    pub fn encode(&self) -> [u8; BLOCK_LEN] {
        let number = |n: u64| U32::new(u32::try_from(n).unwrap_or(u32::MAX));
        let bytes = LabelBytes {
            frame: Frame::new(MAGIC),
            uuid: self.uuid.0,
            created_ns: I64::new(self.created.0),
            lun_size: U64::new(self.lun_size),
            block_size: number(BLOCK),
            chunk_blocks: number(self.chunk_size / BLOCK),
            window_ms: millis(self.window),
            quiesce_ms: millis(self.quiesce),
            features: self.features.into(),
            hash_key: self.hash_key,
            regions: REGIONS.map(|region| region.map(number)),
            name: frame::put_text(&self.name),
        };
        let mut out = [0; BLOCK_LEN];
        out[..size_of::<LabelBytes>()].copy_from_slice(bytes.as_bytes());
        frame::seal(&mut out);
        out
    }

    /// Reads a label from block 0.
    pub fn decode(block: &[u8]) -> Result<Self, Damage> {
        frame::check(block, &MAGIC)?;
        let (bytes, _) = LabelBytes::read_from_prefix(block).map_err(|_| Damage::Blank)?;
        if u64::from(bytes.block_size.get()) != BLOCK {
            return Err(Damage::value("block size", bytes.block_size.get()));
        }
        let chunk_size = u64::from(bytes.chunk_blocks.get()) * BLOCK;
        if chunk_size < layout::CHUNK_MIN || !chunk_size.is_power_of_two() {
            return Err(Damage::value("chunk size in blocks", bytes.chunk_blocks.get()));
        }
        let lun_size = bytes.lun_size.get();
        if lun_size < layout::LUN_MIN || lun_size.div_ceil(chunk_size) > layout::CHUNKS_MAX {
            return Err(Damage::value("LUN size", lun_size));
        }
        for (found, expected) in bytes.regions.iter().flatten().zip(REGIONS.iter().flatten()) {
            if u64::from(found.get()) != *expected {
                return Err(Damage::value("region table", found.get()));
            }
        }
        if bytes.window_ms.get() == 0 {
            return Err(Damage::value("window", 0_u32));
        }
        Ok(Self {
            uuid: VolumeId(bytes.uuid),
            created: WallTime(bytes.created_ns.get()),
            lun_size,
            chunk_size,
            window: Duration::from_millis(bytes.window_ms.get().into()),
            quiesce: Duration::from_millis(bytes.quiesce_ms.get().into()),
            features: bytes.features.into(),
            hash_key: bytes.hash_key,
            name: frame::text(&bytes.name),
        })
    }
}
