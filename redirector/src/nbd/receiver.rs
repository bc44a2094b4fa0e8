//! The receiving half of a connection: reads replies, several with one system call, and completes their requests at
//! once, on the thread that has received (see [`super::post`]).

use std::fmt;
use std::io;
use std::sync::Arc;

use lockd::clock::{BootTime, Clock};

use crate::lun::Outcome;
use crate::nbd::channel::{Channel, Cipher};
use crate::nbd::connection::Connection;
use crate::nbd::flight::Entry;
use crate::nbd::reply::{self, HEAD_MAX, Head, ProtocolError};
use crate::nbd::socket::{WHOLE_MIN, Wait};
use crate::nbd::wire::{self, chunk};
use crate::paths::request::{Command, Request};
use crate::paths::way::Events;
use crate::stand_in;

/// Bytes that are received ahead at most. What is left of a large read goes straight to the caller's buffer.
const AHEAD: usize = 64 << 10;

/// A reply that is longer is received by the connection's own thread, which may wait for the rest of it.
const LARGE: usize = 32 << 10;

/// The head of a structured reply and the offset of its data. After the shorter head of a simple reply the first bytes of
/// its data come along, and are copied to their place.
const LARGE_HEAD: usize = HEAD_MAX + 8;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The server closed it.
    #[error("the server closed the connection")]
    Closed,
    /// The system reports an error.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The server sent something wrong.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The server shuts down.
    #[error("the server says that it shuts down")]
    ShuttingDown,
}

/// What an attempt to receive has brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ready {
    /// Requests were completed.
    Some,
    /// There was nothing, or not enough.
    Nothing,
    /// The beginning of a large reply, for who may wait for the rest, which is still to be received from the socket.
    Large,
}

/// What has been received and not yet understood.
pub struct Receiver {
    connection: Arc<Connection>,
    events: Arc<dyn Events>,
    clock: Arc<dyn Clock>,
    cipher: Cipher,
    ahead: Box<[u8]>,
    start: usize,
    end: usize,
    /// How many bytes are received ahead: few after a large reply, so that the next one's data is not copied.
    eager: usize,
    now: BootTime,
    /// The request whose reply is being received, if it is not among those in flight.
    current: Option<Request>,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("ahead", &(self.start..self.end)).finish_non_exhaustive()
    }
}

impl Receiver {
    /// A receiver that begins with what the negotiation left in `cipher`.
    pub fn new(
        connection: Arc<Connection>,
        events: Arc<dyn Events>,
        clock: Arc<dyn Clock>,
        cipher: Cipher,
    ) -> Self {
        let ahead = vec![0; AHEAD].into_boxed_slice();
        let now = clock.boot();
        Self { connection, events, clock, cipher, ahead, start: 0, end: 0, eager: AHEAD, now, current: None }
    }

    /// Receives what is there, and completes its requests. Waits for nothing, or, with `waits`, for the rest of a large
    /// reply.
    pub fn ready(&mut self, waits: bool) -> Result<Ready, ConnectionError> {
        let mut some = Ready::Nothing;
        loop {
            let needed = match Head::decode(&self.ahead[self.start..self.end], self.connection.structured)? {
                None => HEAD_MAX,
                Some((head, length)) => {
                    let whole = length + self.payload(&head);
                    let is_here = whole <= self.end - self.start;
                    if whole > LARGE && !is_here && !waits {
                        return Ok(Ready::Large);
                    }
                    if whole > LARGE || is_here {
                        self.eager = if whole > LARGE { LARGE_HEAD } else { AHEAD };
                        self.start += length;
                        self.reply(head)?;
                        some = Ready::Some;
                        // What comes after the last whole reply is worth a look of its own, when there is time for it.
                        if self.start == self.end && self.connection.channel.is_plain() {
                            return Ok(some);
                        }
                        continue;
                    }
                    whole
                }
            };
            if !self.more(needed)? {
                return Ok(some);
            }
        }
    }

    /// Whether the last reply was a large one, so that the next one may be, too.
    pub fn is_at_large(&self) -> bool {
        self.eager < AHEAD
    }

    /// The length of what follows `head`.
    fn payload(&self, head: &Head) -> usize {
        match *head {
            Head::Simple { cookie, error: 0 } => self.connection.flight().data_len(cookie),
            Head::Simple { .. } => 0,
            Head::Chunk { length, .. } => length as usize,
        }
    }

    /// The request whose reply was cut short by an error.
    pub fn into_current(self) -> Option<Request> {
        self.current
    }

    fn reply(&mut self, head: Head) -> Result<(), ConnectionError> {
        match head {
            Head::Simple { error: wire::error::ESHUTDOWN, .. } => Err(ConnectionError::ShuttingDown),
            Head::Simple { cookie, error } => self.simple(cookie, error),
            Head::Chunk { cookie, kind, last, length } => self.chunk(cookie, kind, last, length),
        }
    }

    /// Receives more ahead, if something is there, up to `needed` bytes at least.
    fn more(&mut self, needed: usize) -> Result<bool, ConnectionError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start + needed > AHEAD {
            self.ahead.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let connection = &self.connection;
        let until = AHEAD.min(self.end + self.eager.max(needed));
        let ahead = &mut self.ahead[self.end..until];
        match connection.channel.receive(ahead, &mut [], &mut self.cipher, Wait::No) {
            Ok(0) => Err(ConnectionError::Closed),
            Ok(received) => {
                self.end += received;
                self.now = self.clock.boot();
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Receives exactly `bytes`: first what has come ahead, the rest straight from the socket.
    fn fill(&mut self, mut bytes: &mut [u8]) -> Result<(), ConnectionError> {
        let there = bytes.len().min(self.end - self.start);
        bytes[..there].copy_from_slice(&self.ahead[self.start..self.start + there]);
        self.start += there;
        bytes = &mut bytes[there..];
        while !bytes.is_empty() {
            // Nothing is ahead now: what follows this payload may come with it, unless it is received whole.
            let ahead = if bytes.len() >= WHOLE_MIN { &mut [] } else { &mut self.ahead[..] };
            let received = receive_rest(&self.connection.channel, bytes, ahead, &mut self.cipher)?;
            if received == 0 {
                return Err(ConnectionError::Closed);
            }
            let of_bytes = received.min(bytes.len());
            bytes = &mut bytes[of_bytes..];
            (self.start, self.end) = (0, received - of_bytes);
        }
        Ok(())
    }

    fn simple(&mut self, cookie: u64, error: u32) -> Result<(), ConnectionError> {
        let mut entry = self.connection.flight().take(cookie, true)?;
        if error == 0 {
            entry = self.receive_data(entry, None)?;
        } else {
            entry.error = Some(error);
        }
        self.complete(entry);
        Ok(())
    }

    /// Receives a read's data: all of it, or the part that a chunk brings.
    fn receive_data(&mut self, entry: Entry, part: Option<(u64, u64)>) -> Result<Entry, ConnectionError> {
        let Entry { mut request, sent, mut received, error, loan } = entry;
        if let Command::Read(at, mut buffer, on_read) = request.command {
            let asked = buffer.len() as u64;
            let (offset, length) = part.unwrap_or((at, asked));
            let result = match reply::place(offset, length, at, asked) {
                Ok(range) => self.fill(&mut buffer[range]),
                Err(error) => Err(error.into()),
            };
            request.command = Command::Read(at, buffer, on_read);
            if let Err(error) = result {
                self.current = Some(request);
                return Err(error);
            }
            received += length;
        }
        Ok(Entry { request, sent, received, error, loan })
    }

    fn chunk(&mut self, cookie: u64, kind: u16, last: bool, length: u32) -> Result<(), ConnectionError> {
        // A payload that is no data is short; it is read before the request is touched.
        let mut small = [0; 12];
        let mut error = None;
        let mut data = None;
        match (kind, length) {
            (chunk::NONE, 0) => {}
            (chunk::OFFSET_DATA, 9..) => {
                self.fill(&mut small[..8])?;
                data = Some(u64::from(length) - 8);
            }
            (chunk::OFFSET_HOLE, 12) => self.fill(&mut small)?,
            (kind, 0..=reply::ERROR_PAYLOAD_MAX) if kind & chunk::ERROR_BIT != 0 => {
                let mut payload = vec![0; length as usize];
                self.fill(&mut payload)?;
                error = Some(reply::chunk_error(&payload));
            }
            _ => return Err(ProtocolError::Chunk { kind, length, request: "any request" }.into()),
        }
        if error == Some(wire::error::ESHUTDOWN) {
            return Err(ConnectionError::ShuttingDown);
        }
        let mut entry = self.connection.flight().take(cookie, last)?;
        let (offset, rest) =
            (u64_at(&small, 0), u32::from_be_bytes([small[8], small[9], small[10], small[11]]));
        let is_read = matches!(entry.request.command, Command::Read(..));
        if let Some(length) = data {
            if !is_read {
                self.current = Some(entry.request);
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                return Err(
                    ProtocolError::Chunk { kind, length, request: "a request that reads nothing" }.into()
                );
            }
            entry = self.receive_data(entry, Some((offset, length)))?;
        } else if kind == chunk::OFFSET_HOLE {
            entry = self.zero_hole(entry, offset, u64::from(rest))?;
        } else {
            entry.error = entry.error.or(error);
        }
        if last {
            self.complete_structured(entry)
        } else if let Err(entry) = self.connection.flight().put_back(cookie, entry) {
            self.current = Some(entry.request);
            Err(ConnectionError::Closed)
        } else {
            Ok(())
        }
    }

    fn zero_hole(&mut self, mut entry: Entry, offset: u64, length: u64) -> Result<Entry, ConnectionError> {
        let placed = match &mut entry.request.command {
            Command::Read(at, buffer, _) => {
                reply::place(offset, length, *at, buffer.len() as u64).map(|range| buffer[range].fill(0))
            }
            _ => {
                let request = "a request that reads nothing";
                Err(ProtocolError::Chunk { kind: chunk::OFFSET_HOLE, length: 12, request })
            }
        };
        match placed {
            Ok(()) => {
                entry.received += length;
                Ok(entry)
            }
            Err(error) => {
                self.current = Some(entry.request);
                Err(error.into())
            }
        }
    }

    fn complete_structured(&mut self, entry: Entry) -> Result<(), ConnectionError> {
        if let Command::Read(_, buffer, _) = &entry.request.command {
            let asked = buffer.len() as u64;
            if entry.error.is_none() && entry.received != asked {
                let error = ProtocolError::Short { asked, sent: entry.received };
                self.current = Some(entry.request);
                return Err(error.into());
            }
        }
        self.complete(entry);
        Ok(())
    }

    fn complete(&mut self, entry: Entry) {
        if self.connection.flight().waiting > 0 {
            self.connection.notify();
        }
        self.connection.latency.record(self.now.since(entry.sent));
        // Who says that a write is done has read it; who refuses it may not have.
        if let (None, Some(loan)) = (entry.error, entry.loan) {
            loan.returned();
        }
        let outcome = match entry.error {
            None => Outcome::Done,
            Some(error) => Outcome::Failed(reply::errno(error)),
        };
        self.events.ended(entry.request, outcome);
    }
}

/// Receives some of what must come. When that takes long, the place of this thread is taken.
fn receive_rest(
    channel: &Channel,
    bytes: &mut [u8],
    ahead: &mut [u8],
    cipher: &mut Cipher,
) -> io::Result<usize> {
    let mut receive = || channel.receive(bytes, ahead, cipher, Wait::Briefly);
    match receive() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        result => return result,
    }
    let _away = stand_in::go_away();
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
