//! The frames of file redirection: a fixed head, little-endian, and data.
//!
//! | request: byte | what | | reply: byte | what |
//! |---|---|---|---|---|
//! | 0..4 | `CSVQ` | | 0..4 | `CSVP` |
//! | 4..6 | version, 1 | | 4..6 | version, 1 |
//! | 6 | kind | | 6 | status |
//! | 7 | flags | | 7 | zero |
//! | 8..16 | session | | 8..16 | value |
//! | 16..24 | client | | 16..20 | length of the data |
//! | 24..28 | slot, `u32::MAX` for none | | 20..24 | CRC-32 of the data |
//! | 28..32 | length of the data | | 24..28 | zero |
//! | 32..40 | sequence | | 28..32 | CRC-32 of bytes 0..28 |
//! | 40..48 | inode | | 32.. | data |
//! | 48..56 | tenure | | | |
//! | 56..64 | offset | | | |
//! | 64..72 | length | | | |
//! | 72..76 | CRC-32 of the data | | | |
//! | 76..80 | CRC-32 of bytes 0..76 | | | |
//! | 80.. | data | | | |
//!
//! The CRC stands last in each head, so that it covers all before it, the data's CRC included. The magic's first byte is
//! no version of [`crate::proto`]: both kinds of frames come to one service.

use lockd::ids::{ClientId, Sequence, SessionId, SlotId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::Ino;

const REQUEST: [u8; 4] = *b"CSVQ";
const REPLY: [u8; 4] = *b"CSVP";
const VERSION: u16 = 1;
const NO_SLOT: u32 = u32::MAX;

/// The most data that one frame carries, in bytes.
pub(in super::super) const DATA_MAX: usize = 1 << 20;

/// The first byte of a request.
pub(in super::super) const FIRST_BYTE: u8 = REQUEST[0];

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(in super::super) enum Kind {
    Read = 1,
    Write = 2,
    Sync = 3,
    Resize = 4,
    Allocate = 5,
    Seek = 6,
    GetAttr = 7,
    SetAttr = 8,
    Seal = 9,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        use Kind::{Allocate, GetAttr, Read, Resize, Seal, Seek, SetAttr, Sync, Write};
        [Read, Write, Sync, Resize, Allocate, Seek, GetAttr, SetAttr, Seal]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }

    /// Whether it changes the file: it then comes in a slot.
    pub(in super::super) fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Resize | Self::Allocate | Self::SetAttr | Self::Seal)
    }
}

/// [`Kind::Write`]: at the end of the file.
pub(in super::super) const APPEND: u8 = 1;
/// [`Kind::Seal`]: the seal is taken off.
pub(in super::super) const UNSEAL: u8 = 1;
/// [`Kind::Write`]: durable when done.
pub(in super::super) const SYNC: u8 = 2;
/// [`Kind::Write`], [`Kind::Resize`]: set-id bits are cleared.
pub(in super::super) const CLEAR_SET_ID: u8 = 4;
/// [`Kind::Sync`]: times may stay behind.
pub(in super::super) const DATA_ONLY: u8 = 8;
/// [`Kind::Allocate`]: the size stays.
pub(in super::super) const KEEP_SIZE: u8 = 16;
/// [`Kind::Allocate`]: punch; with [`ZERO`]: zero; neither: allocate.
pub(in super::super) const PUNCH: u8 = 32;
/// See [`PUNCH`].
pub(in super::super) const ZERO: u8 = 64;
/// [`Kind::Seek`]: a hole is looked for, not data.
pub(in super::super) const HOLE: u8 = 128;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RequestHead {
    magic: [u8; 4],
    version: U16,
    kind: u8,
    flags: u8,
    session: U64,
    client: U64,
    slot: U32,
    data_len: U32,
    sequence: U64,
    ino: U64,
    tenure: U64,
    offset: U64,
    len: U64,
    data_crc: U32,
    crc: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ReplyHead {
    magic: [u8; 4],
    version: U16,
    status: u8,
    zero: u8,
    value: U64,
    data_len: U32,
    data_crc: U32,
    zero_too: U32,
    crc: U32,
}

/// A request without its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) struct Ask {
    pub(in super::super) kind: Kind,
    pub(in super::super) flags: u8,
    pub(in super::super) session: SessionId,
    pub(in super::super) client: ClientId,
    pub(in super::super) slot: Option<(SlotId, Sequence)>,
    pub(in super::super) ino: Ino,
    pub(in super::super) tenure: u64,
    pub(in super::super) offset: u64,
    pub(in super::super) len: u64,
}

/// How a request went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(in super::super) enum Status {
    /// It is done.
    Done = 0,
    /// The file is not served here, or not in the tenure that was named: ask the coordinator.
    Elsewhere = 1,
    /// It was refused; the data says why.
    Refused = 2,
}

/// A reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in super::super) struct Told {
    pub(in super::super) status: Status,
    pub(in super::super) value: u64,
    pub(in super::super) data: Vec<u8>,
}

/// The frame is cut off, damaged, or none of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a frame of file redirection is malformed; are both nodes of one release?")]
pub(in super::super) struct Malformed;

fn crc(head: &[u8]) -> u32 {
    crc32fast::hash(&head[..head.len() - 4])
}

fn data_of(rest: &[u8], len: U32, crc: U32) -> Result<&[u8], Malformed> {
    let is_whole = rest.len() <= DATA_MAX && rest.len() == len.get() as usize;
    if is_whole && crc32fast::hash(rest) == crc.get() { Ok(rest) } else { Err(Malformed) }
}

/// # Panics
/// If the data is longer than [`DATA_MAX`]: callers cut it.
fn length(data: &[u8]) -> U32 {
    assert!(data.len() <= DATA_MAX, "a frame's data is longer than its bound");
    U32::new(u32::try_from(data.len()).unwrap_or(u32::MAX))
}

impl Ask {
    /// The frame of the request.
    pub(in super::super) fn frame(&self, data: &[u8]) -> Vec<u8> {
        let (slot, sequence) = self.slot.map_or((NO_SLOT, 0), |(slot, sequence)| (slot.0, sequence.0));
        let mut head = RequestHead {
            magic: REQUEST,
            version: U16::new(VERSION),
            kind: self.kind as u8,
            flags: self.flags,
            session: U64::new(self.session.0),
            client: U64::new(self.client.0),
            slot: U32::new(slot),
            data_len: length(data),
            sequence: U64::new(sequence),
            ino: U64::new(self.ino.0),
            tenure: U64::new(self.tenure),
            offset: U64::new(self.offset),
            len: U64::new(self.len),
            data_crc: U32::new(crc32fast::hash(data)),
            crc: U32::ZERO,
        };
        head.crc.set(crc(head.as_bytes()));
        let mut frame = Vec::with_capacity(size_of::<RequestHead>() + data.len());
        frame.extend_from_slice(head.as_bytes());
        frame.extend_from_slice(data);
        frame
    }

    /// The request in a frame, and its data.
    pub(in super::super) fn parse(frame: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let (head, rest) = RequestHead::ref_from_prefix(frame).map_err(|_| Malformed)?;
        let is_known = head.magic == REQUEST && head.version.get() == VERSION;
        if !is_known || head.crc.get() != crc(head.as_bytes()) {
            return Err(Malformed);
        }
        let data = data_of(rest, head.data_len, head.data_crc)?;
        let slot =
            (head.slot.get() != NO_SLOT).then_some((SlotId(head.slot.get()), Sequence(head.sequence.get())));
        let ask = Self {
            kind: Kind::of(head.kind).ok_or(Malformed)?,
            flags: head.flags,
            session: SessionId(head.session.get()),
            client: ClientId(head.client.get()),
            slot,
            ino: Ino(head.ino.get()),
            tenure: head.tenure.get(),
            offset: head.offset.get(),
            len: head.len.get(),
        };
        Ok((ask, data))
    }
}

impl Told {
    /// The request is done.
    pub(in super::super) fn done(value: u64, data: Vec<u8>) -> Self {
        Self { status: Status::Done, value, data }
    }

    /// The file is not served here.
    pub(in super::super) fn elsewhere() -> Self {
        Self { status: Status::Elsewhere, value: 0, data: Vec::new() }
    }

    /// The frame of the reply.
    pub(in super::super) fn frame(&self) -> Vec<u8> {
        let mut head = ReplyHead {
            magic: REPLY,
            version: U16::new(VERSION),
            status: self.status as u8,
            zero: 0,
            value: U64::new(self.value),
            data_len: length(&self.data),
            data_crc: U32::new(crc32fast::hash(&self.data)),
            zero_too: U32::ZERO,
            crc: U32::ZERO,
        };
        head.crc.set(crc(head.as_bytes()));
        let mut frame = Vec::with_capacity(size_of::<ReplyHead>() + self.data.len());
        frame.extend_from_slice(head.as_bytes());
        frame.extend_from_slice(&self.data);
        frame
    }

    /// The reply in a frame.
    pub(in super::super) fn parse(frame: &[u8]) -> Result<Self, Malformed> {
        let (head, rest) = ReplyHead::ref_from_prefix(frame).map_err(|_| Malformed)?;
        let is_known = head.magic == REPLY && head.version.get() == VERSION;
        if !is_known || head.crc.get() != crc(head.as_bytes()) {
            return Err(Malformed);
        }
        let statuses = [Status::Done, Status::Elsewhere, Status::Refused];
        let status = statuses.into_iter().find(|status| *status as u8 == head.status).ok_or(Malformed)?;
        let data = data_of(rest, head.data_len, head.data_crc)?.to_vec();
        Ok(Self { status, value: head.value.get(), data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask() -> Ask {
        Ask {
            kind: Kind::Write,
            flags: APPEND | SYNC,
            session: SessionId(1),
            client: ClientId(2),
            slot: Some((SlotId(3), Sequence(4))),
            ino: Ino(5),
            tenure: 6,
            offset: 7,
            len: 8,
        }
    }

    #[test]
    fn the_bytes_of_a_request_stay_as_they_are() {
        let frame = ask().frame(b"xy");
        assert_eq!(frame.len(), 82);
        let mut golden = b"CSVQ\x01\0\x02\x03".to_vec();
        for number in [1_u64, 2] {
            golden.extend_from_slice(&number.to_le_bytes());
        }
        golden.extend_from_slice(&[3, 0, 0, 0, 2, 0, 0, 0]);
        for number in [4_u64, 5, 6, 7, 8] {
            golden.extend_from_slice(&number.to_le_bytes());
        }
        golden.extend_from_slice(&crc32fast::hash(b"xy").to_le_bytes());
        golden.extend_from_slice(&crc32fast::hash(&golden).to_le_bytes());
        golden.extend_from_slice(b"xy");
        assert_eq!(frame, golden);
        assert_eq!(Ask::parse(&frame), Ok((ask(), &b"xy"[..])));
    }

    #[test]
    fn the_bytes_of_a_reply_stay_as_they_are() {
        let told = Told { status: Status::Refused, value: 9, data: b"z".to_vec() };
        let mut golden = b"CSVP\x01\0\x02\0".to_vec();
        golden.extend_from_slice(&9_u64.to_le_bytes());
        golden.extend_from_slice(&[1, 0, 0, 0]);
        golden.extend_from_slice(&crc32fast::hash(b"z").to_le_bytes());
        golden.extend_from_slice(&[0; 4]);
        golden.extend_from_slice(&crc32fast::hash(&golden).to_le_bytes());
        golden.push(b'z');
        assert_eq!(told.frame(), golden);
        assert_eq!(Told::parse(&golden), Ok(told));
    }

    proptest! {
        #[test]
        fn damaged_frames_are_refused(at in 0..82_usize, bit in 0..8_u32, cut in 0..82_usize) {
            let mut frame = ask().frame(b"xy");
            frame[at] ^= 1 << bit;
            prop_assert!(Ask::parse(&frame).is_err());
            prop_assert!(Ask::parse(&frame[..cut]).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Ask::parse(&bytes), Told::parse(&bytes));
        }
    }
}
