//! What all structures outside the store have in common: a magic, a CRC-32 over the whole structure, a version.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic |
//! | 8..12 | CRC-32 (IEEE) of all bytes of the structure, these four taken as zero |
//! | 12..16 | version of the structure's layout |
//!
//! What matters of a label, a superblock or a claim lies in its first 512 bytes and the rest of the block is zero, so
//! that a write torn at 512 bytes leaves the old or the new one.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version of every structure that this program writes, and the highest that it reads.
pub const VERSION: u32 = 1;

/// The first 16 bytes of each structure.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Frame {
    /// Which structure it is.
    pub magic: [u8; 8],
    /// See the module's table.
    pub crc: U32,
    /// The layout's version.
    pub version: U32,
}

impl Frame {
    /// A frame whose CRC is filled in by [`seal`].
    #[must_use]
    pub fn new(magic: [u8; 8]) -> Self {
        Self { magic, crc: U32::ZERO, version: U32::new(VERSION) }
    }
}

/// Why a structure cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Damage {
    /// Only zeros: never written.
    #[error("it is blank")]
    Blank,
    /// Something else is there.
    #[error("its magic is {0:02x?}: something else was written there")]
    Magic([u8; 8]),
    /// The bytes have changed since they were written.
    #[error("its checksum is {stored:08x}, but its bytes give {computed:08x}")]
    Checksum {
        /// What the structure says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// Written by a later program.
    #[error("its version is {0}; this program knows versions up to {VERSION}: use a newer csvfs")]
    Version(u32),
    /// It belongs to another volume.
    #[error("it belongs to volume {0}")]
    Foreign(lockd::ids::VolumeId),
    /// The checksum is right, a value is not.
    #[error("its {field} is {value}, which cannot be")]
    Value {
        /// Which field.
        field: &'static str,
        /// The value.
        value: u64,
    },
    /// The LUN could not be read there.
    #[error("it cannot be read (errno {0})")]
    Unreadable(i32),
}

impl Damage {
    /// A value that cannot be.
    pub(super) fn value(field: &'static str, value: impl Into<u64>) -> Self {
        Self::Value { field, value: value.into() }
    }
}

fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..8]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[12..]);
    hasher.finalize()
}

/// Computes the CRC of a whole structure and writes it into its frame.
///
/// # Panics
/// If `bytes` is shorter than a frame.
pub fn seal(bytes: &mut [u8]) {
    let crc = crc(bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// Checks magic, CRC and version of a whole structure.
pub fn check(bytes: &[u8], magic: &[u8; 8]) -> Result<(), Damage> {
    let Ok((frame, _)) = Frame::read_from_prefix(bytes) else { return Err(Damage::Blank) };
    if frame.magic != *magic {
        let blank = bytes.iter().all(|byte| *byte == 0);
        return Err(if blank { Damage::Blank } else { Damage::Magic(frame.magic) });
    }
    let computed = crc(bytes);
    if frame.crc.get() != computed {
        return Err(Damage::Checksum { stored: frame.crc.get(), computed });
    }
    if frame.version.get() > VERSION || frame.version.get() == 0 {
        return Err(Damage::Version(frame.version.get()));
    }
    Ok(())
}

/// Text of fixed length: UTF-8, filled up with zeros.
pub(super) fn put_text<const N: usize>(text: &str) -> [u8; N] {
    let mut end = text.len().min(N);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = [0; N];
    out[..end].copy_from_slice(&text.as_bytes()[..end]);
    out
}

/// The text of a fixed field; what is not UTF-8 is replaced.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
