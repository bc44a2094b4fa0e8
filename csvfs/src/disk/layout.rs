//! Where things are on the LUN, in blocks of 4 KiB. All of it lies in the first chunk, which is at least 1 MiB long.
//!
//! | blocks | what | written |
//! |---|---|---|
//! | 0 | label | once, by format |
//! | 8..16 | superblock slots; an incarnation writes the slot of its epoch modulo 8 | at open and close |
//! | 16..80 | claims, one block each | by each writer every quarter of the window |
//! | 80..145 | chunk map, first copy: one block of header, then 4 bytes for each chunk | when the store grows |
//! | 145..210 | chunk map, second copy | after the first copy is durable |
//! | 254 | what `csvfs fence-test` writes; read by nobody else | by the drill |
//! | 255 | copy of the label | by format, and by an opening that finds none |
//! | from the second chunk | file data and the chunks of the store | |

use std::ops::Range;

use crate::types::BLOCK;

/// The most chunks that a volume can have: what a chunk map copy has room for.
pub const CHUNKS_MAX: u64 = 65_536;
/// The most chunks that format makes, so that the LUN can grow fourfold.
pub const CHUNKS_AT_FORMAT: u64 = 16_384;
/// The least size of a chunk in bytes.
pub const CHUNK_MIN: u64 = 1 << 20;
/// The least size of a LUN in bytes.
pub const LUN_MIN: u64 = 64 << 20;
/// How many superblock slots there are.
pub const SLOTS: usize = 8;
/// How many claim blocks there are: as many writers as may be or have been without a clean close.
pub const CLAIMS: usize = 64;
/// The first block of the superblock slots.
pub const SLOTS_AT: u64 = 8;
/// The first block of the claims.
pub const CLAIMS_AT: u64 = 16;
/// The first blocks of the two copies of the chunk map.
pub const MAPS_AT: [u64; 2] = [80, 145];
/// The blocks that are kept for one copy of the chunk map.
pub const MAP_BLOCKS: u64 = 65;
/// The copy of the label: the last block of the first MiB, far from what a stray partition table overwrites.
pub const LABEL_COPY_AT: u64 = 255;
/// The block of the fence drill.
pub const DRILL_AT: u64 = 254;
/// How much of the LUN is read to see all of the structures outside the store, in bytes.
pub const HEAD: u64 = (LABEL_COPY_AT + 1) * BLOCK;
/// The bytes of the LUN that hold the volume's uuid: a path that comes back is checked by them.
pub const UUID_AT: Range<u64> = 16..32;

/// A block as bytes of the LUN.
pub(super) const fn byte(block: u64) -> u64 {
    block * BLOCK
}

/// A block as a length in memory.
pub(super) const BLOCK_LEN: usize = 4096;

/// The size of a chunk for a LUN of `size` bytes: the least power of two of at least 1 MiB that gives at most
/// [`CHUNKS_AT_FORMAT`] chunks.
#[must_use]
pub fn chunk_size(size: u64) -> u64 {
    let mut chunk = CHUNK_MIN;
    while size.div_ceil(chunk) > CHUNKS_AT_FORMAT {
        chunk *= 2;
    }
    chunk
}
