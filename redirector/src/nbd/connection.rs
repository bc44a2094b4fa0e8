//! One connection in its transmission phase: the sending half. The submitting thread itself sends, by one system call;
//! the receiving half is in [`super::receiver`].

use std::io::{self, IoSlice};

use lockd::clock::BootTime;
use parking_lot::{Condvar, Mutex};
use zerocopy::IntoBytes;

use crate::attend;
use crate::buffer::Slice;
use crate::nbd::channel::{Channel, Sending};
use crate::nbd::flight::Flight;
use crate::nbd::splice::LENT_MIN;
use crate::nbd::wire::{self, cmd, cmd_flag};
use crate::paths::latency::Latency;
use crate::paths::request::{Command, Request};

/// A connection and the requests in flight on it.
#[derive(Debug)]
pub struct Connection {
    /// The stream.
    pub channel: Channel,
    /// Whether replies may be structured.
    pub structured: bool,
    /// How long requests took.
    pub latency: Latency,
    flight: Mutex<Flight>,
    room: Condvar,
}

impl Connection {
    /// A connection with nothing in flight.
    #[must_use]
    pub fn new(channel: Channel, structured: bool) -> Self {
        let (flight, room) = (Mutex::default(), Condvar::new());
        Self { channel, structured, latency: Latency::default(), flight, room }
    }

    /// The requests in flight.
    pub fn flight(&self) -> parking_lot::MutexGuard<'_, Flight> {
        self.flight.lock()
    }

    /// Tells waiting submitters that there is room, or that the connection is closed.
    pub fn notify(&self) {
        self.room.notify_all();
    }

    /// Sends `request` by the right to send; waits for room. It comes back if the connection is closed and nothing of
    /// it has been sent.
    pub fn submit(
        &self,
        sending: &mut Sending<'_>,
        request: Request,
        now: BootTime,
    ) -> Result<(), Box<Request>> {
        let (mut header, data) = header(&request);
        let lent = data.as_ref().filter(|data| data.len() >= LENT_MIN && sending.lends());
        {
            let mut flight = self.room();
            if flight.is_closed() {
                return Err(Box::new(request));
            }
            header.cookie = flight.insert(request, now, lent.map(Slice::lend)).into();
        }
        let (header, is_lent) = (header.as_bytes(), lent.is_some());
        let data = data.as_deref().unwrap_or_default();
        let sent = if is_lent {
            sending.send_lent(header, data)
        } else {
            sending.send(&mut [IoSlice::new(header), IoSlice::new(data)])
        };
        self.has_sent(sent);
        Ok(())
    }

    /// Sends `requests` in their order, as many by one system call as find room at a time; waits for room. Those come
    /// back of which nothing has been sent because the connection is closed.
    pub fn submit_all(
        &self,
        sending: &mut Sending<'_>,
        requests: Vec<Request>,
        now: BootTime,
    ) -> Vec<Request> {
        let mut requests = requests.into_iter().peekable();
        let mut messages = Vec::with_capacity(requests.len());
        while requests.peek().is_some() {
            {
                let mut flight = self.room();
                if flight.is_closed() {
                    return requests.collect();
                }
                while flight.has_room()
                    && let Some(request) = requests.next()
                {
                    let (mut header, data) = header(&request);
                    header.cookie = flight.insert(request, now, None).into();
                    messages.push((header, data));
                }
            }
            let mut parts: Vec<_> = messages
                .iter()
                .flat_map(|(header, data)| [header.as_bytes(), data.as_deref().unwrap_or_default()])
                .map(IoSlice::new)
                .collect();
            self.has_sent(sending.send(&mut parts));
            messages.clear();
        }
        Vec::new()
    }

    /// Whether the holder of the right to send can send a short request without waiting.
    pub fn takes_at_once(&self, _sending: &Sending<'_>) -> bool {
        self.flight().has_room() && self.channel.socket().is_writable()
    }

    /// Waits until a request finds room in flight, or the connection is closed.
    fn room(&self) -> parking_lot::MutexGuard<'_, Flight> {
        let mut flight = self.flight.lock();
        if !flight.has_room() {
            // Room comes by replies, which another thread must receive now.
            drop(flight);
            attend::leave();
            flight = self.flight.lock();
        }
        while !flight.has_room() && !flight.is_closed() {
            flight.waiting += 1;
            self.room.wait(&mut flight);
            flight.waiting -= 1;
        }
        flight
    }

    fn has_sent(&self, sent: io::Result<()>) {
        if sent.is_err() {
            // The receiver sees the end of the stream and reports what is in flight, these requests too.
            self.channel.socket().shutdown();
        }
    }

    /// Says good-bye, if nobody is sending.
    pub fn disconnect(&self) {
        let Some(mut sending) = self.channel.try_sending() else { return };
        self.channel.socket().deliver_on_close();
        let header = command(cmd::DISC, 0, 0, 0);
        // The server sees the end of the stream anyway.
        let _ = sending.send(&mut [IoSlice::new(header.as_bytes())]);
    }
}

fn command(command: u16, flags: u16, offset: u64, length: u64) -> wire::RequestHeader {
    wire::RequestHeader {
        magic: wire::REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: command.into(),
        cookie: 0.into(),
        offset: offset.into(),
        // Requests are split before they come here.
        length: u32::try_from(length).unwrap_or(u32::MAX).into(),
    }
}

fn header(request: &Request) -> (wire::RequestHeader, Option<Slice>) {
    match &request.command {
        Command::Read(offset, buffer, _) => (command(cmd::READ, 0, *offset, buffer.len() as u64), None),
        Command::Write(offset, data, fua, _) => {
            let flags = if *fua { cmd_flag::FUA } else { 0 };
            (command(cmd::WRITE, flags, *offset, data.len() as u64), Some(data.clone()))
        }
        Command::Flush(_) => (command(cmd::FLUSH, 0, 0, 0), None),
        Command::Zero(range, _) => {
            (command(cmd::WRITE_ZEROES, 0, range.start, range.end - range.start), None)
        }
        Command::Trim(range, _) => (command(cmd::TRIM, 0, range.start, range.end - range.start), None),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;
    use crate::buffer::Pool;
    use crate::nbd::socket::Socket;

    const LEN: usize = 1 << 20;

    #[test]
    fn p4_data_of_a_broken_connection_is_read_late_as_it_was_sent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server");
        let listener = UnixListener::bind(&path).unwrap();
        let socket = Socket::unix(&path, Duration::from_secs(5)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let connection = Connection::new(Channel::plain(socket), false);
        let pool = Pool::default();
        let filled = |byte| {
            let mut buffer = pool.take(LEN);
            buffer.fill(byte);
            buffer.share()
        };
        let request = Request::new(Command::Write(0, filled(7), false, Box::new(drop)), BootTime::default());
        connection.submit(&mut connection.channel.sending(), request, BootTime::default()).unwrap();
        let requests = connection.flight().close();
        assert_eq!(requests.len(), 1);
        drop(requests);
        let other = filled(9);
        let mut seen = vec![0; size_of::<wire::RequestHeader>() + LEN];
        server.read_exact(&mut seen).unwrap();
        assert!(seen[size_of::<wire::RequestHeader>()..].iter().all(|byte| *byte == 7));
        drop(other);
    }
}
