//! The superblock: which area of the store is current, and whether the last writer closed it.
//!
//! An incarnation writes the slot of its epoch modulo 8; the valid slot with the highest epoch counts. The newest one
//! is also contained in the chunk map that is written right after it ("sealed"), before anything is acknowledged in
//! its epoch: when the newest slot is damaged that shows, and the chunk map serves in its place.
//!
//! | bytes | what |
//! |---|---|
//! | 0..16 | frame, magic `CSVFSSUP` |
//! | 16..32 | uuid of the volume |
//! | 32..40 | epoch |
//! | 40 | current area: 0 = A, 1 = B |
//! | 41 | 1 when the epoch's writer closed it and all its writes were done, else 0 |
//! | 42..48 | zero |
//! | 48..72 | feature flags now |
//! | 72..80 | size of the volume in bytes: what the LUN must have at least |
//! | 80..88 | time of writing, nanoseconds since 1970 |
//! | 88..96 | client that writes in this epoch |
//! | 96..4096 | zero |

use lockd::clock::WallTime;
use lockd::ids::{ClientId, Epoch, VolumeId};
use zerocopy::little_endian::{I64, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::features::{FeatureBytes, Features};
use super::frame::{self, Damage, Frame};
use super::layout::{self, BLOCK_LEN};

const MAGIC: [u8; 8] = *b"CSVFSSUP";

/// One of the two areas that take turns in holding the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl Side {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub(super) fn index(self) -> usize {
        usize::from(self == Self::B)
    }

    pub(super) fn from_byte(byte: u8) -> Result<Self, Damage> {
        match byte {
            0 => Ok(Self::A),
            1 => Ok(Self::B),
            _ => Err(Damage::value("area", byte)),
        }
    }

    pub(super) fn byte(self) -> u8 {
        u8::from(self == Self::B)
    }
}

/// The state of a volume in one epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// The epoch.
    pub epoch: Epoch,
    /// The area that holds the store.
    pub side: Side,
    /// Whether the writer has closed the volume, all of its writes done.
    pub clean: bool,
    /// The features in use.
    pub features: Features,
    /// The volume's size in bytes.
    pub size: u64,
    /// When it was written.
    pub written: WallTime,
    /// The writer.
    pub client: ClientId,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SuperblockBytes {
    frame: Frame,
    uuid: [u8; 16],
    epoch: U64,
    side: u8,
    clean: u8,
    zero: [u8; 6],
    features: FeatureBytes,
    size: U64,
    written_ns: I64,
    client: U64,
}

impl Superblock {
    /// The slot that an epoch's superblock goes to.
    #[must_use]
    pub fn slot(epoch: Epoch) -> usize {
        usize::try_from(epoch.0 % layout::SLOTS as u64).unwrap_or(0)
    }

    /// The superblock as it lies on the LUN.
    #[must_use]
    pub fn encode(&self, volume: VolumeId) -> [u8; BLOCK_LEN] {
        let bytes = SuperblockBytes {
            frame: Frame::new(MAGIC),
            uuid: volume.0,
            epoch: U64::new(self.epoch.0),
            side: self.side.byte(),
            clean: u8::from(self.clean),
            zero: [0; 6],
            features: self.features.into(),
            size: U64::new(self.size),
            written_ns: I64::new(self.written.0),
            client: U64::new(self.client.0),
        };
        let mut out = [0; BLOCK_LEN];
        out[..size_of::<SuperblockBytes>()].copy_from_slice(bytes.as_bytes());
        frame::seal(&mut out);
        out
    }

    /// Reads a slot's block; it must belong to `volume`.
    pub fn decode(block: &[u8], volume: VolumeId) -> Result<Self, Damage> {
        frame::check(block, &MAGIC)?;
        let (bytes, _) = SuperblockBytes::read_from_prefix(block).map_err(|_| Damage::Blank)?;
        if bytes.uuid != volume.0 {
            return Err(Damage::Foreign(VolumeId(bytes.uuid)));
        }
        if bytes.clean > 1 {
            return Err(Damage::value("clean flag", bytes.clean));
        }
        Ok(Self {
            epoch: Epoch(bytes.epoch.get()),
            side: Side::from_byte(bytes.side)?,
            clean: bytes.clean == 1,
            features: bytes.features.into(),
            size: bytes.size.get(),
            written: WallTime(bytes.written_ns.get()),
            client: ClientId(bytes.client.get()),
        })
    }
}
