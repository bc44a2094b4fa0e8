//! Frames on a stream: a header of 16 bytes and the payload.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 2 | magic `CV` |
//! | 2 | 1 | kind |
//! | 3 | 1 | channel, 0 where there is none |
//! | 4 | 4 | length of the payload in bytes, little-endian |
//! | 8 | 8 | id of the request, chosen by the one who asks, little-endian |
//!
//! The version is agreed on for the whole connection (ALPN). There is no checksum of our own: TLS authenticates every
//! byte.

use bytes::{Buf, Bytes};
use quinn::{ReadError, RecvStream};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::peers::FRAME_MAX;

/// The size of a header in bytes.
pub(super) const HEADER: usize = 16;
const MAGIC: [u8; 2] = *b"CV";
/// How much is read from a stream at once, in bytes.
const CHUNK: usize = 256 << 10;

/// What a frame is. The bytes are those of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Request = 1,
    Reply = 2,
    /// There will be no reply; the payload says why.
    NotServed = 3,
    /// The reply does not fit; the payload is its length, 8 bytes.
    TooLarge = 4,
    /// The first frame of a connection, from the one who connects.
    Hello = 5,
    /// The answer to Hello.
    Welcome = 6,
    /// Is anybody there?
    Ping = 7,
    /// Yes.
    Pong = 8,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Request,
        Self::Reply,
        Self::NotServed,
        Self::TooLarge,
        Self::Hello,
        Self::Welcome,
        Self::Ping,
        Self::Pong,
    ];
}

/// The header of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// The channel's byte, not checked yet.
    pub(super) channel: u8,
    pub(super) length: usize,
    pub(super) id: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 2],
    kind: u8,
    channel: u8,
    length: U32,
    id: U64,
}

/// What a stream does not carry on with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("what came is no frame: {0}")]
    Garbage(&'static str),
    #[error("a frame of {0} bytes came; the limit is {FRAME_MAX}")]
    TooLarge(usize),
    #[error("the stream ended within a frame")]
    Truncated,
    #[error("{0}")]
    Stream(#[from] ReadError),
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER] {
        // Checked where frames come in: no payload is longer than FRAME_MAX.
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        let raw = RawHeader {
            magic: MAGIC,
            kind: self.kind as u8,
            channel: self.channel,
            length: U32::new(length),
            id: U64::new(self.id),
        };
        zerocopy::transmute!(raw)
    }

    pub(super) fn decode(bytes: [u8; HEADER]) -> Result<Self, FrameError> {
        let raw: RawHeader = zerocopy::transmute!(bytes);
        if raw.magic != MAGIC {
            return Err(FrameError::Garbage("it does not begin with the mark of a frame"));
        }
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == raw.kind);
        let kind = kind.ok_or(FrameError::Garbage("its kind is unknown"))?;
        let length = raw.length.get() as usize;
        if length > FRAME_MAX {
            return Err(FrameError::TooLarge(length));
        }
        Ok(Self { kind, channel: raw.channel, length, id: raw.id.get() })
    }
}

/// Reads frames from a stream, header and payload apart, so that room can be made for a payload before it is read.
pub(super) struct FrameReader {
    stream: RecvStream,
    chunk: Bytes,
}

impl FrameReader {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, chunk: Bytes::new() }
    }

    /// The next header, `None` at the end of the stream. The payload must be read before the next header.
    pub(super) async fn header(&mut self) -> Result<Option<Header>, FrameError> {
        let mut bytes = [0; HEADER];
        let mut filled = 0;
        while filled < HEADER {
            if self.chunk.is_empty() && !self.fill().await? {
                return if filled == 0 { Ok(None) } else { Err(FrameError::Truncated) };
            }
            let length = self.chunk.len().min(HEADER - filled);
            self.chunk.copy_to_slice(&mut bytes[filled..filled + length]);
            filled += length;
        }
        Header::decode(bytes).map(Some)
    }

    /// The payload of the frame whose header was read last.
    pub(super) async fn payload(&mut self, length: usize) -> Result<Vec<u8>, FrameError> {
        let mut payload = Vec::with_capacity(length);
        while payload.len() < length {
            if self.chunk.is_empty() && !self.fill().await? {
                return Err(FrameError::Truncated);
            }
            let part = self.chunk.split_to(self.chunk.len().min(length - payload.len()));
            payload.extend_from_slice(&part);
        }
        Ok(payload)
    }

    async fn fill(&mut self) -> Result<bool, FrameError> {
        match self.stream.read_chunk(CHUNK, true).await? {
            Some(chunk) => {
                self.chunk = chunk.bytes;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_of_a_header_never_change() {
        let header =
            Header { kind: Kind::Request, channel: 3, length: 0x0001_0203, id: 0x1122_3344_5566_7788 };
        let bytes = [b'C', b'V', 1, 3, 3, 2, 1, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
        assert_eq!(header.encode(), bytes);
        assert_eq!(Header::decode(bytes), Ok(header));
        let kinds = Kind::ALL.map(|kind| kind as u8);
        assert_eq!(kinds, [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_bytes_are_a_header_or_refused(mut bytes: [u8; HEADER], marked: bool) {
            if marked {
                bytes[..3].copy_from_slice(b"CV\x02");
                bytes[7] = 0;
            }
            if let Ok(header) = Header::decode(bytes) {
                prop_assert!(header.length <= FRAME_MAX);
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
