//! The header of the lease page.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic `CSVLEASE` |
//! | 8..12 | version, 1 |
//! | 12..16 | lines, this header's included |
//! | 16..32 | the boot during which the page was made |
//! | 32..60 | zero |
//! | 60..64 | CRC-32 of bytes 0..60 |
//!
//! It is written once, before anybody can see the file. Lines follow, of 64 bytes: the session's id, its deadline, and
//! zeros; words of the machine's own byte order, since no other machine sees them.

use super::page::BootId;

/// The bytes of the header.
pub(super) const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"CSVLEASE";
const VERSION: u32 = 1;

/// Why a page cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// It is no lease page, or a damaged one.
    #[error(
        "it is not a lease page, or damaged; stop the clients of this lockd, remove the file, start lockd again"
    )]
    NotAPage,
    /// It is of another release.
    #[error(
        "its version is {0} and this program understands {VERSION}; use programs of one release on a machine"
    )]
    Version(u32),
    /// It was made before the machine was started.
    #[error("it was made before this machine was started")]
    EarlierBoot,
}

pub(super) fn encode(boot: BootId, lines: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&lines.to_le_bytes());
    bytes[16..32].copy_from_slice(&boot.0);
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

pub(super) fn check(bytes: &[u8; HEADER_BYTES], boot: BootId, lines: u32) -> Result<(), HeaderError> {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if &bytes[..8] != MAGIC || number(60) != crc32fast::hash(&bytes[..60]) {
        return Err(HeaderError::NotAPage);
    }
    if number(8) != VERSION {
        return Err(HeaderError::Version(number(8)));
    }
    if number(12) != lines {
        return Err(HeaderError::NotAPage);
    }
    if bytes[16..32] != boot.0 {
        return Err(HeaderError::EarlierBoot);
    }
    Ok(())
}
