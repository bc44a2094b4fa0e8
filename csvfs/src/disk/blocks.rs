//! Single structures to and from the LUN.

use redirector::blocking;
use redirector::buffer::Pool;
use redirector::lun::Lun;

use super::layout::{BLOCK_LEN, byte};

/// Reads `len` bytes at `offset`, in requests that the LUN accepts.
pub(super) fn read_bytes(lun: &dyn Lun, pool: &Pool, offset: u64, len: u64) -> Result<Vec<u8>, i32> {
    let block = BLOCK_LEN as u64;
    let request = u64::from(lun.geometry().request_max).clamp(block, 1 << 20) / block * block;
    let mut out = Vec::with_capacity(usize::try_from(len).map_err(|_| libc::ENOMEM)?);
    let mut at = offset;
    while at < offset + len {
        let part = request.min(offset + len - at);
        let buffer = pool.take(usize::try_from(part).map_err(|_| libc::ENOMEM)?);
        out.extend_from_slice(&blocking::read(lun, at, buffer)?);
        at += part;
    }
    Ok(out)
}

/// Writes one block; it is durable on return.
pub(super) fn write_block(
    lun: &dyn Lun,
    pool: &Pool,
    block: u64,
    contents: &[u8; BLOCK_LEN],
) -> Result<(), i32> {
    let mut buffer = pool.take(BLOCK_LEN);
    buffer.copy_from_slice(contents);
    blocking::write(lun, byte(block), buffer.share(), true)
}
