//! The second part of a connection: requests and replies.
//!
//! The connection's thread takes many small requests from the socket at a time, executes those that need no waiting by
//! itself, and sends the answers together when it has nothing more to read: a queue of 32 small requests costs one
//! receive, 32 reads or writes of the page cache, and one send. Writes go to the page cache as they arrive, whatever
//! their length. The rest (long reads, flushes, zeroes, trims, durable writes to a disk that takes its time) goes to the
//! workers, which answer by themselves.

use std::io;
use std::sync::Arc;

use lockd::ids::ClientId;

use super::admission::{Link, Seat};
use super::backing::Zeroing;
use super::channel::Channel;
use super::counters::Counters;
use super::disk::Disk;
use super::fault::{Action, Fate, Fault, Faults, Hold};
use super::inbox::Inbox;
use super::negotiation::Negotiated;
use super::reply;
use super::request::{Decoded, HEADER, Kind, Limits, Request, decode};
use super::workers::Workers;
use crate::buffer::{Buffer, Pool};
use crate::nbd::wire::cmd_flag;

/// Reads and writes up to this many bytes are executed by the connection's own thread.
const SHORT: usize = 64 << 10;
/// A longer write is executed in pieces of at least this size, in bytes, as they arrive: what was just received is then
/// written while it is in the processor's cache, which costs a third less than to receive all of it first.
const PIECE: usize = 64 << 10;
/// Answers are sent when they have become so long, in bytes.
const BATCH: usize = 128 << 10;

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it closed in the middle of a request")]
    Truncated,
    #[error("what it sent is no request")]
    Garbage,
}

/// What a connection's threads share.
#[derive(Debug)]
struct Exchange {
    disk: Arc<Disk>,
    faults: Arc<Faults>,
    pool: Pool,
    channel: Channel,
    limits: Limits,
    client: Option<ClientId>,
    seat: Arc<Seat>,
}

/// A request with a write's data.
#[derive(Debug)]
struct Job {
    request: Request,
    data: Option<Buffer>,
}

#[derive(Debug)]
struct Connection {
    exchange: Arc<Exchange>,
    counters: Arc<Counters>,
    inbox: Inbox,
    /// Answers that wait to be sent together.
    out: Vec<u8>,
    workers: Workers<Job>,
}

/// Serves a connection until it ends. When this returns, all that its workers were given is executed or dropped.
pub(super) fn serve(
    negotiated: Negotiated,
    disk: Arc<Disk>,
    faults: Arc<Faults>,
    pool: Pool,
    seat: Arc<Seat>,
) -> Result<(), ConnectionError> {
    let Negotiated { channel, inbox, limits, client, counters } = negotiated;
    let exchange = Arc::new(Exchange { disk, faults, pool, channel, limits, client, seat });
    let out = Vec::with_capacity(BATCH + SHORT + reply::HEAD_MAX);
    let mut connection =
        Connection { exchange: Arc::clone(&exchange), counters, inbox, out, workers: Workers::new() };
    let ended = connection.run();
    let sent = connection.send();
    drop(connection);
    exchange.link().cut();
    ended.and(sent)
}

impl Exchange {
    fn link(&self) -> &Link {
        self.seat.link()
    }

    /// Executes a request; returns zero or an errno. For a read, fills `data`.
    fn perform(&self, request: &Request, data: &mut [u8]) -> i32 {
        let fua = request.has(cmd_flag::FUA);
        let range = request.range.clone();
        let done = match request.kind {
            Kind::Read => self.disk.read(data, range.start),
            Kind::Write => self.disk.write(data, range.start, fua),
            Kind::Flush => self.disk.flush(),
            Kind::Trim => self.disk.trim(range, fua),
            Kind::Zero => {
                let how = Zeroing {
                    may_punch: !request.has(cmd_flag::NO_HOLE),
                    only_fast: request.has(cmd_flag::FAST_ZERO),
                };
                self.disk.zero(range, how, fua)
            }
        };
        if let Err(errno) = done {
            tracing::warn!(?request, errno, "the disk refused a request");
            return errno;
        }
        0
    }

    /// Executes a job and answers it, unless its connection was closed from here.
    fn execute(&self, job: Job) {
        if !self.link().executes() {
            return;
        }
        if self.execute_and_answer(job).is_err() {
            // The client is gone; its thread finds out by the same socket.
            self.link().cut();
        }
    }

    fn execute_and_answer(&self, job: Job) -> io::Result<()> {
        let Job { request, data } = job;
        let mut head = Vec::with_capacity(reply::HEAD_MAX);
        if request.kind != Kind::Read {
            let errno = match data {
                Some(mut data) => self.perform(&request, &mut data),
                None => self.perform(&request, &mut []),
            };
            reply::simple(&mut head, request.cookie, errno);
            return self.channel.write(&head, &[]);
        }
        let (structured, cookie, offset) = (self.limits.structured, request.cookie, request.range.start);
        let length = request.data_len();
        if structured && !request.has(cmd_flag::DF) && length > SHORT && self.disk.is_hole(&request.range) {
            reply::hole(&mut head, cookie, offset, u32_of(length));
            return self.channel.write(&head, &[]);
        }
        let mut data = self.pool.take(length);
        match self.perform(&request, &mut data) {
            0 => {
                reply::data_head(&mut head, structured, cookie, offset, u32_of(length));
                self.channel.write(&head, &data)
            }
            errno => {
                reply::failed_read(&mut head, structured, cookie, errno);
                self.channel.write(&head, &[])
            }
        }
    }

    /// Waits as a fault demands, then executes the job, or not.
    fn execute_held(&self, hold: &Hold, is_ghost: bool, job: Job) {
        if hold.wait(|| !is_ghost && !self.link().executes()) == Fate::Drop {
            return;
        }
        if is_ghost {
            let mut data = job.data;
            let data = data.as_deref_mut().unwrap_or(&mut []);
            if job.request.kind != Kind::Read {
                self.perform(&job.request, data);
            }
        } else {
            self.execute(job);
        }
        hold.delivered();
    }
}

/// How much of a write to execute at once when `ready` of the `left` bytes from `offset` are there: whole pages, but at
/// its end.
fn piece_of(offset: u64, ready: usize, left: usize) -> usize {
    const PAGE: u64 = 4096;
    if ready == left {
        return ready;
    }
    let over = usize::try_from((offset + ready as u64) % PAGE).unwrap_or(0);
    if over < ready { ready - over } else { ready }
}

fn u32_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

impl Connection {
    fn run(&mut self) -> Result<(), ConnectionError> {
        let exchange = Arc::clone(&self.exchange);
        loop {
            if self.inbox.len() < HEADER {
                self.send()?;
                if !self.inbox.need(&exchange.channel, HEADER)? {
                    let is_between = self.inbox.len() == 0 || !exchange.link().reads();
                    return if is_between { Ok(()) } else { Err(ConnectionError::Truncated) };
                }
            }
            if !exchange.link().reads() {
                return Ok(());
            }
            let Some(header) = self.inbox.bytes().first_chunk::<HEADER>() else {
                return Err(ConnectionError::Truncated);
            };
            let decoded = decode(header, &exchange.limits);
            self.inbox.used(HEADER);
            match decoded.ok_or(ConnectionError::Garbage)? {
                Decoded::Disconnect => return Ok(()),
                Decoded::Refused { cookie, errno, payload, is_read } => {
                    tracing::debug!(peer = exchange.link().peer(), errno, "an invalid request is refused");
                    if !self.inbox.skip(&exchange.channel, payload)? {
                        return Err(ConnectionError::Truncated);
                    }
                    reply::failed_read(&mut self.out, is_read && exchange.limits.structured, cookie, errno);
                }
                Decoded::Request(request) => self.accept(request)?,
            }
            if self.out.len() >= BATCH {
                self.send()?;
            }
        }
    }

    /// Sends the answers that wait.
    fn send(&mut self) -> Result<(), ConnectionError> {
        if !self.out.is_empty() {
            self.exchange.channel.write(&self.out, &[])?;
            self.out.clear();
        }
        Ok(())
    }

    fn accept(&mut self, request: Request) -> Result<(), ConnectionError> {
        self.counters.count(request.kind, request.range.clone());
        let faults = &self.exchange.faults;
        if faults.are_armed()
            && let Some(fault) = faults.strike(&request, self.exchange.client)
        {
            return self.suffer(fault, request);
        }
        match request.kind {
            Kind::Read if request.data_len() <= SHORT => self.read_now(request),
            Kind::Write if !self.waits_for_disk(&request) => self.write_now(&request),
            Kind::Flush if self.exchange.disk.flushes_quickly() => {
                let errno = self.exchange.perform(&request, &mut []);
                reply::simple(&mut self.out, request.cookie, errno);
                Ok(())
            }
            _ => {
                let job = self.job(request)?;
                self.submit(job)
            }
        }
    }

    fn waits_for_disk(&self, request: &Request) -> bool {
        request.has(cmd_flag::FUA) && !self.exchange.disk.flushes_quickly()
    }

    /// Reads straight into the answers that wait, if the data is in memory.
    fn read_now(&mut self, request: Request) -> Result<(), ConnectionError> {
        let exchange = &self.exchange;
        if !exchange.link().executes() {
            return Ok(());
        }
        let (structured, cookie, offset) = (exchange.limits.structured, request.cookie, request.range.start);
        let length = request.data_len();
        let before = self.out.len();
        reply::data_head(&mut self.out, structured, cookie, offset, u32_of(length));
        let start = self.out.len();
        self.out.resize(start + length, 0);
        match exchange.disk.read_if_ready(&mut self.out[start..], offset) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.out.truncate(before);
                self.submit(Job { request, data: None })
            }
            Err(errno) => {
                tracing::warn!(?request, errno, "the disk refused a request");
                self.out.truncate(before);
                reply::failed_read(&mut self.out, structured, cookie, errno);
                Ok(())
            }
        }
    }

    /// Writes straight from the bytes received, piece by piece. A write whose client goes away in the middle of it may
    /// be executed in part, as any write that was not answered.
    fn write_now(&mut self, request: &Request) -> Result<(), ConnectionError> {
        let exchange = Arc::clone(&self.exchange);
        let fua = request.has(cmd_flag::FUA);
        let (mut offset, mut errno) = (request.range.start, 0);
        while offset < request.range.end {
            let left = usize::try_from(request.range.end - offset).unwrap_or(usize::MAX);
            let wanted = left.min(PIECE);
            if self.inbox.len() < wanted {
                self.send()?;
                if !self.inbox.need(&exchange.channel, wanted)? {
                    return Err(ConnectionError::Truncated);
                }
            }
            let piece = piece_of(offset, left.min(self.inbox.len()), left);
            // Dropped, then: no answer must say that it was executed.
            if !exchange.link().executes() {
                return Ok(());
            }
            if errno == 0 {
                errno = exchange.disk.write(&self.inbox.bytes()[..piece], offset, fua).err().unwrap_or(0);
            }
            self.inbox.used(piece);
            offset += piece as u64;
        }
        if errno != 0 {
            tracing::warn!(?request, errno, "the disk refused a request");
        }
        reply::simple(&mut self.out, request.cookie, errno);
        Ok(())
    }

    /// The request with its data, which is received now.
    fn job(&mut self, request: Request) -> Result<Job, ConnectionError> {
        if request.kind != Kind::Write {
            return Ok(Job { request, data: None });
        }
        let length = request.data_len();
        if self.inbox.len() < length {
            self.send()?;
        }
        let mut data = self.exchange.pool.take(length);
        if !self.inbox.fill(&self.exchange.channel, &mut data)? {
            return Err(ConnectionError::Truncated);
        }
        Ok(Job { request, data: Some(data) })
    }

    fn submit(&mut self, job: Job) -> Result<(), ConnectionError> {
        let bytes = job.request.data_len();
        if self.workers.is_full(bytes) {
            self.send()?;
        }
        let exchange = Arc::clone(&self.exchange);
        let execute = move |job| exchange.execute(job);
        if let Err(job) = self.workers.submit(job, bytes, execute) {
            self.exchange.execute(job);
        }
        Ok(())
    }

    /// Does to a request what a fault demands.
    fn suffer(&mut self, fault: Arc<Fault>, request: Request) -> Result<(), ConnectionError> {
        let job = self.job(request)?;
        let exchange = Arc::clone(&self.exchange);
        let is_ghost = matches!(fault.action(), Action::Late { .. });
        match fault.action() {
            Action::Error { errno } => {
                let structured = job.request.kind == Kind::Read && exchange.limits.structured;
                reply::failed_read(&mut self.out, structured, job.request.cookie, errno);
                return Ok(());
            }
            Action::Cut => {
                exchange.link().cut();
                return Ok(());
            }
            Action::Forget if job.request.kind == Kind::Read => return self.submit(job),
            Action::Forget => {
                reply::simple(&mut self.out, job.request.cookie, 0);
                return Ok(());
            }
            Action::Delay { .. } | Action::Hang | Action::Late { .. } => {}
        }
        let Some(hold) = exchange.faults.hold(fault) else {
            tracing::warn!("too many requests are held back; this one passes");
            return self.submit(job);
        };
        if is_ghost {
            exchange.link().cut();
        }
        let held = std::thread::Builder::new().name("target-held".into());
        held.spawn(move || exchange.execute_held(&hold, is_ghost, job))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_at_pages() {
        assert_eq!(piece_of(0, 70_000, 100_000), 69_632);
        assert_eq!(piece_of(100, 70_000, 100_000), 69_632 - 100);
        assert_eq!(piece_of(100, 3000, 100_000), 3000, "less than a page is better than nothing");
        assert_eq!(piece_of(100, 70_000, 70_000), 70_000);
    }
}
