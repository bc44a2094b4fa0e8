//! The replies of the transmission phase, decoded. Pure: bytes in, meaning out.

use zerocopy::FromBytes;

use crate::nbd::wire::{self, chunk};

/// The longest payload of an error chunk that is read, in bytes.
pub const ERROR_PAYLOAD_MAX: u32 = 8192;
/// The bytes of the longest head.
pub const HEAD_MAX: usize = size_of::<wire::ChunkHeader>();

/// The server does not keep to the protocol; nothing that it sends can be trusted any more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Neither kind of reply.
    #[error("the server sent {0:#010x} where a reply must begin")]
    Magic(u32),
    /// A structured reply that was not asked for.
    #[error("the server sent a structured reply that was not negotiated")]
    NotNegotiated,
    /// No such request.
    #[error("the server answered a request {0:#x} that is not in flight")]
    Cookie(u64),
    /// A chunk that fits no request of ours.
    #[error("the server sent a chunk of type {kind:#x} and {length} bytes for {request}")]
    Chunk {
        /// Its type.
        kind: u16,
        /// Its payload.
        length: u32,
        /// What it answers.
        request: &'static str,
    },
    /// Data that were not asked for.
    #[error("the server sent bytes {offset}+{length} for a read of {asked_offset}+{asked_length}")]
    Range {
        /// Of the data.
        offset: u64,
        /// Of the data.
        length: u64,
        /// Of the request.
        asked_offset: u64,
        /// Of the request.
        asked_length: u64,
    },
    /// A read ended too early.
    #[error("the server ended a read of {asked} bytes after {sent} bytes")]
    Short {
        /// Bytes asked for.
        asked: u64,
        /// Bytes sent.
        sent: u64,
    },
}

/// The head of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Head {
    /// A simple reply: an error, or zero and for a read its data.
    Simple {
        /// Whose reply.
        cookie: u64,
        /// Zero, or an error of [`wire::error`].
        error: u32,
    },
    /// A chunk of a structured reply.
    Chunk {
        /// Whose reply.
        cookie: u64,
        /// A type of [`chunk`].
        kind: u16,
        /// Whether it is the last.
        last: bool,
        /// Bytes of payload.
        length: u32,
    },
}

impl Head {
    /// Reads a head from the beginning of `bytes`: it and its length, or `None` when more bytes are needed.
    pub fn decode(bytes: &[u8], structured: bool) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some(magic) = bytes.first_chunk() else { return Ok(None) };
        match u32::from_be_bytes(*magic) {
            wire::SIMPLE_REPLY_MAGIC => {
                let Ok((reply, _)) = wire::SimpleReply::read_from_prefix(bytes) else { return Ok(None) };
                let head = Self::Simple { cookie: reply.cookie.get(), error: reply.error.get() };
                Ok(Some((head, size_of::<wire::SimpleReply>())))
            }
            wire::CHUNK_MAGIC if !structured => Err(ProtocolError::NotNegotiated),
            wire::CHUNK_MAGIC => {
                let Ok((header, _)) = wire::ChunkHeader::read_from_prefix(bytes) else { return Ok(None) };
                let head = Self::Chunk {
                    cookie: header.cookie.get(),
                    kind: header.kind.get(),
                    last: header.flags.get() & chunk::FLAG_DONE != 0,
                    length: header.length.get(),
                };
                Ok(Some((head, size_of::<wire::ChunkHeader>())))
            }
            other => Err(ProtocolError::Magic(other)),
        }
    }
}

/// The error number of an error chunk's payload; a payload that is too short is an input or output error.
#[must_use]
pub fn chunk_error(payload: &[u8]) -> u32 {
    match payload.first_chunk() {
        Some(bytes) if *bytes != [0; 4] => u32::from_be_bytes(*bytes),
        _ => wire::error::EIO,
    }
}

/// The errno that a caller gets for an error number of the wire.
#[must_use]
pub fn errno(error: u32) -> i32 {
    match error {
        wire::error::EPERM => libc::EPERM,
        wire::error::ENOMEM => libc::ENOMEM,
        wire::error::EINVAL => libc::EINVAL,
        wire::error::ENOSPC => libc::ENOSPC,
        wire::error::EOVERFLOW => libc::EOVERFLOW,
        wire::error::ENOTSUP => libc::EOPNOTSUPP,
        _ => libc::EIO,
    }
}

/// Where `length` bytes at `offset` lie within a read of `asked_length` bytes at `asked_offset`.
pub fn place(
    offset: u64,
    length: u64,
    asked_offset: u64,
    asked_length: u64,
) -> Result<std::ops::Range<usize>, ProtocolError> {
    let wrong = ProtocolError::Range { offset, length, asked_offset, asked_length };
    let start = offset.checked_sub(asked_offset).ok_or_else(|| wrong.clone())?;
    let end = start.checked_add(length).filter(|end| *end <= asked_length).ok_or_else(|| wrong.clone())?;
    match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) => Ok(start..end),
        _ => Err(wrong),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>, magic in 0..3, structured: bool) {
            if let Some(start) = bytes.first_chunk_mut() {
                match magic {
                    0 => *start = wire::SIMPLE_REPLY_MAGIC.to_be_bytes(),
                    1 => *start = wire::CHUNK_MAGIC.to_be_bytes(),
                    _ => {}
                }
            }
            if let Ok(Some((_, length))) = Head::decode(&bytes, structured) {
                prop_assert!(length <= bytes.len() && length <= HEAD_MAX);
            }
            let _ = errno(chunk_error(&bytes));
        }

        #[test]
        fn data_land_only_where_they_were_asked_for(offset: u64, length in 0..u64::from(u32::MAX), at: u64, asked in 0..1u64 << 32) {
            if let Ok(range) = place(offset, length, at, asked) {
                prop_assert!(range.len() as u64 == length && range.end as u64 <= asked);
            }
        }

        #[test]
        fn a_head_cut_short_wants_more(cookie: u64, kind: u16, length: u32, cut in 0usize..20) {
            let header = wire::ChunkHeader {
                magic: wire::CHUNK_MAGIC.into(),
                flags: chunk::FLAG_DONE.into(),
                kind: kind.into(),
                cookie: cookie.into(),
                length: length.into(),
            };
            prop_assert_eq!(Head::decode(&header.as_bytes()[..cut], true), Ok(None));
            let head = Head::Chunk { cookie, kind, last: true, length };
            prop_assert_eq!(Head::decode(header.as_bytes(), true), Ok(Some((head, 20))));
        }
    }
}
