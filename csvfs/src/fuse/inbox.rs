//! Where a request lands: its head in one place, a write's data in aligned buffers.
//!
//! One readv fills, in this order, the head (header and fixed part of a WRITE: 80 bytes), and the data at its own
//! place in a small, a middle and a large buffer of the pool. Data that fits into the small buffer is handed on as it
//! is; longer data lacks its first 4 KiB (or 64 KiB), which are copied to the front of the buffer that it fits into.
//! So a 4 KiB write is not copied, none is copied for more than a sixteenth of 1 MiB, and no small write in flight
//! holds a large buffer.

use std::io::{self, IoSlice, IoSliceMut};

use redirector::buffer::{Buffer, Pool};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::abi::{HEAD, InHeader};
use super::device::Device;

/// The longest data of a write, in bytes.
pub(super) const WRITE_MAX: usize = 1 << 20;
const SMALL: usize = 4 << 10;
const MIDDLE: usize = 64 << 10;

/// The landing place of one dispatcher thread.
#[derive(Debug)]
pub(super) struct Inbox {
    pool: Pool,
    head: [u8; HEAD],
    small: Buffer,
    middle: Buffer,
    large: Buffer,
    len: usize,
}

impl Inbox {
    pub(super) fn new(pool: Pool) -> Self {
        let (small, middle, large) = (pool.take(SMALL), pool.take(MIDDLE), pool.take(WRITE_MAX));
        Self { pool, head: [0; HEAD], small, middle, large, len: 0 }
    }

    /// Waits for the next request.
    pub(super) fn receive(&mut self, device: &Device) -> io::Result<()> {
        self.len = 0;
        self.len = device.receive(&mut [
            IoSliceMut::new(&mut self.head),
            IoSliceMut::new(&mut self.small),
            IoSliceMut::new(&mut self.middle[SMALL..]),
            IoSliceMut::new(&mut self.large[MIDDLE..]),
        ])?;
        Ok(())
    }

    /// As if `message` had been received.
    #[cfg(test)]
    pub(super) fn put(&mut self, message: &[u8]) {
        let mut rest = message;
        let parts =
            [&mut self.head[..], &mut self.small[..], &mut self.middle[SMALL..], &mut self.large[MIDDLE..]];
        for part in parts {
            let len = rest.len().min(part.len());
            part[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
        }
        self.len = message.len() - rest.len();
    }

    /// The length of the message in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The request's header; `None` if the message is too short for one, or not as long as it says.
    pub(super) fn header(&self) -> Option<InHeader> {
        let header = InHeader::read_from_bytes(self.head.get(..size_of::<InHeader>())?).ok()?;
        (self.len >= size_of::<InHeader>() && header.len as usize == self.len).then_some(header)
    }

    /// The fixed part of a request if it lies in the head; `None` if the message is too short for it.
    pub(super) fn fixed<T: FromBytes + KnownLayout + Immutable>(&self) -> Option<T> {
        let body = self.head.get(size_of::<InHeader>()..self.len.min(HEAD))?;
        T::read_from_prefix(body).ok().map(|(fixed, _)| fixed)
    }

    /// The message in its parts.
    pub(super) fn parts(&self) -> [IoSlice<'_>; 4] {
        let len = |from: usize, size: usize| self.len.saturating_sub(from).min(size);
        [
            IoSlice::new(&self.head[..len(0, HEAD)]),
            IoSlice::new(&self.small[..len(HEAD, SMALL)]),
            IoSlice::new(&self.middle[SMALL..SMALL + len(HEAD + SMALL, MIDDLE - SMALL)]),
            IoSlice::new(&self.large[MIDDLE..MIDDLE + len(HEAD + MIDDLE, WRITE_MAX - MIDDLE)]),
        ]
    }

    /// What follows the header, in one piece.
    pub(super) fn body(&self) -> Vec<u8> {
        let [head, rest @ ..] = self.parts();
        let mut body = Vec::with_capacity(self.len);
        body.extend_from_slice(head.get(size_of::<InHeader>()..).unwrap_or_default());
        rest.iter().for_each(|part| body.extend_from_slice(part));
        body
    }

    /// Takes the data of a write, `len` bytes, out; `None` if the message is not that long.
    pub(super) fn take_data(&mut self, len: usize) -> Option<Buffer> {
        if self.len != HEAD + len {
            return None;
        }
        self.len = 0;
        let mut data = if len <= SMALL {
            std::mem::replace(&mut self.small, self.pool.take(SMALL))
        } else if len <= MIDDLE {
            self.middle[..SMALL].copy_from_slice(&self.small);
            std::mem::replace(&mut self.middle, self.pool.take(MIDDLE))
        } else {
            self.large[..SMALL].copy_from_slice(&self.small);
            self.large[SMALL..MIDDLE].copy_from_slice(&self.middle[SMALL..]);
            std::mem::replace(&mut self.large, self.pool.take(WRITE_MAX))
        };
        data.truncate(len);
        Some(data)
    }
}

#[cfg(test)]
mod tests {
    use redirector::buffer::ALIGNMENT;

    use super::*;
    use crate::fuse::abi::opcode;

    fn message(body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(size_of::<InHeader>() + body.len()).unwrap();
        [&len.to_le_bytes()[..], &opcode::WRITE.to_le_bytes(), &[0; 32], body].concat()
    }

    #[test]
    fn data_of_each_class_is_whole_and_aligned() {
        let mut inbox = Inbox::new(Pool::default());
        for len in
            [0, 1, SMALL - 1, SMALL, SMALL + 1, MIDDLE - 1, MIDDLE, MIDDLE + 1, WRITE_MAX - 1, WRITE_MAX]
        {
            let body: Vec<u8> = (0..40 + len).map(|place| u8::try_from(place % 251).unwrap()).collect();
            inbox.put(&message(&body));
            assert!(inbox.header().is_some());
            assert_eq!(inbox.body(), body);
            assert!(inbox.take_data(len + 1).is_none());
            let data = inbox.take_data(len).unwrap();
            assert!(data[..] == body[40..], "{len} bytes");
            assert_eq!(data.as_ptr() as usize % ALIGNMENT, 0);
            assert!(inbox.header().is_none(), "taken once");
        }
    }

    #[test]
    fn short_messages_have_no_header() {
        let mut inbox = Inbox::new(Pool::default());
        let whole = message(&[1, 2, 3]);
        for len in 0..whole.len() {
            inbox.put(&whole[..len]);
            assert!(inbox.header().is_none());
        }
        inbox.put(&whole);
        assert_eq!(inbox.body(), [1, 2, 3]);
        assert!(inbox.fixed::<[u8; 3]>().is_some() && inbox.fixed::<[u8; 4]>().is_none());
    }
}
