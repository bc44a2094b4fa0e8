//! Replies, put together in a buffer that goes to the socket in one piece.

use zerocopy::IntoBytes;

use crate::nbd::wire::{self, ChunkHeader, SimpleReply, chunk, error};

/// The longest head of a reply with data: a chunk's header and its offset.
pub(super) const HEAD_MAX: usize = size_of::<ChunkHeader>() + 8;

/// The protocol's number for an errno of Linux.
pub(super) fn error_number(errno: i32) -> u32 {
    match errno {
        libc::EPERM | libc::EACCES | libc::EROFS => error::EPERM,
        libc::ENOMEM => error::ENOMEM,
        libc::EINVAL => error::EINVAL,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => error::ENOSPC,
        libc::EOVERFLOW => error::EOVERFLOW,
        libc::EOPNOTSUPP => error::ENOTSUP,
        libc::ESHUTDOWN => error::ESHUTDOWN,
        _ => error::EIO,
    }
}

/// A reply without data. `errno` is zero when all is well.
pub(super) fn simple(out: &mut Vec<u8>, cookie: u64, errno: i32) {
    let error = if errno == 0 { 0 } else { error_number(errno) };
    let reply =
        SimpleReply { magic: wire::SIMPLE_REPLY_MAGIC.into(), error: error.into(), cookie: cookie.into() };
    out.extend_from_slice(reply.as_bytes());
}

fn chunk_header(out: &mut Vec<u8>, cookie: u64, kind: u16, length: u32) {
    let header = ChunkHeader {
        magic: wire::CHUNK_MAGIC.into(),
        flags: chunk::FLAG_DONE.into(),
        kind: kind.into(),
        cookie: cookie.into(),
        length: length.into(),
    };
    out.extend_from_slice(header.as_bytes());
}

/// The head of a successful read's reply; `length` bytes of data follow.
pub(super) fn data_head(out: &mut Vec<u8>, structured: bool, cookie: u64, offset: u64, length: u32) {
    if structured {
        chunk_header(out, cookie, chunk::OFFSET_DATA, length + 8);
        out.extend_from_slice(&offset.to_be_bytes());
    } else {
        simple(out, cookie, 0);
    }
}

/// The whole reply to a structured read of nothing but a hole.
pub(super) fn hole(out: &mut Vec<u8>, cookie: u64, offset: u64, length: u32) {
    chunk_header(out, cookie, chunk::OFFSET_HOLE, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

/// The reply to a failed read.
pub(super) fn failed_read(out: &mut Vec<u8>, structured: bool, cookie: u64, errno: i32) {
    if structured {
        chunk_header(out, cookie, chunk::ERROR, 6);
        out.extend_from_slice(&error_number(errno).to_be_bytes());
        out.extend_from_slice(&0u16.to_be_bytes());
    } else {
        simple(out, cookie, errno);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut out = Vec::new();
        simple(&mut out, 0x0102, libc::ENOSPC);
        assert_eq!(out, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 1, 2]);
        out.clear();
        data_head(&mut out, true, 1, 0x1000, 512);
        assert_eq!(out.len(), HEAD_MAX);
        assert_eq!(out[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1]);
        assert_eq!(out[16..], [0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0x10, 0]);
        out.clear();
        hole(&mut out, 1, 0x1000, 512);
        assert_eq!(out[6..8], [0, 2]);
        assert_eq!(out[16..], [0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0]);
        out.clear();
        failed_read(&mut out, true, 1, libc::EIO);
        assert_eq!(out[6..8], [0x80, 1]);
        assert_eq!(out[16..], [0, 0, 0, 6, 0, 0, 0, 5, 0, 0]);
    }

    #[test]
    fn unknown_errors_are_io_errors() {
        assert_eq!(error_number(libc::ETIMEDOUT), error::EIO);
        assert_eq!(error_number(libc::EOPNOTSUPP), error::ENOTSUP);
    }
}
