//! A byte stream to the server, plain or by TLS: whole messages out, any number of bytes in.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;

use crate::nbd::socket::{Socket, Wait};
use crate::nbd::splice::{Pipe, Sent};

/// Bytes of a write that are encrypted at a time.
const TLS_STEP: usize = 64 << 10;

/// The receiver's own memory for encrypted bytes that have not been decrypted yet.
#[derive(Debug, Default)]
pub struct Cipher {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

/// A stream whose one sender at a time holds its [`Sending`] and whose one receiver has a [`Channel::receive`] of its
/// own; neither waits for the other.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    sending: Mutex<Outgoing>,
    tls: Option<Mutex<ClientConnection>>,
}

/// What a sender needs.
#[derive(Debug, Default)]
struct Outgoing {
    /// Encrypted bytes.
    cipher: Vec<u8>,
    /// The way for pages.
    pages: Pages,
}

/// Whether pages can be sent instead of copies.
#[derive(Debug, Default)]
enum Pages {
    /// Nobody has tried.
    #[default]
    Untried,
    By(Pipe),
    Never,
}

/// The right to send.
#[derive(Debug)]
pub struct Sending<'a> {
    channel: &'a Channel,
    outgoing: MutexGuard<'a, Outgoing>,
}

impl Channel {
    /// A stream without TLS.
    #[must_use]
    pub fn plain(socket: Socket) -> Self {
        Self { socket, sending: Mutex::default(), tls: None }
    }

    /// Shakes hands for TLS on a plain stream.
    pub fn secure(self, config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<Self> {
        let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        // What is written is taken out at once, see `Sending::send`.
        connection.set_buffer_limit(None);
        while connection.is_handshaking() {
            let mut io = Blocking(&self.socket);
            connection.complete_io(&mut io)?;
        }
        Ok(Self { tls: Some(Mutex::new(connection)), ..self })
    }

    /// The socket below.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Waits for the right to send.
    pub fn sending(&self) -> Sending<'_> {
        Sending { channel: self, outgoing: self.sending.lock() }
    }

    /// The right to send, if nobody has it.
    pub fn try_sending(&self) -> Option<Sending<'_>> {
        self.sending.try_lock().map(|outgoing| Sending { channel: self, outgoing })
    }

    /// Whether nothing but the socket holds bytes that have come.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    /// Receives some bytes into `first`, then `second` (TLS: into `first` only); zero at the end.
    pub fn receive(
        &self,
        first: &mut [u8],
        second: &mut [u8],
        cipher: &mut Cipher,
        wait: Wait,
    ) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.socket.receive(first, second, wait) };
        loop {
            {
                let mut tls = tls.lock();
                match tls.reader().read(first) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
                if cipher.start < cipher.end {
                    cipher.start += tls.read_tls(&mut &cipher.bytes[cipher.start..cipher.end])?;
                    tls.process_new_packets().map_err(io::Error::other)?;
                    continue;
                }
            }
            cipher.bytes.resize(TLS_STEP, 0);
            (cipher.start, cipher.end) = (0, 0);
            cipher.end = self.socket.receive(&mut cipher.bytes, &mut [], wait)?;
            if cipher.end == 0 {
                return Ok(0);
            }
        }
    }
}

impl Sending<'_> {
    /// Whether [`Sending::send_lent`] sends pages.
    pub fn lends(&mut self) -> bool {
        if matches!(self.outgoing.pages, Pages::Untried) {
            let pipe = if self.channel.is_plain() { Pipe::new().ok() } else { None };
            self.outgoing.pages = pipe.map_or(Pages::Never, Pages::By);
        }
        matches!(self.outgoing.pages, Pages::By(_))
    }

    /// Sends `head` and then `data`, if possible its pages themselves: they are on loan.
    pub fn send_lent(&mut self, head: &[u8], data: &[u8]) -> io::Result<()> {
        let Pages::By(pipe) = &self.outgoing.pages else {
            return self.send(&mut [IoSlice::new(head), IoSlice::new(data)]);
        };
        let sent = self.channel.socket.send_pages(head, data, pipe);
        if !matches!(sent, Ok(Sent::All)) {
            // What is left in the pipe would come before the next data.
            self.outgoing.pages = Pages::Never;
        }
        match sent? {
            Sent::All => Ok(()),
            Sent::Part(sent) => self.send(&mut [IoSlice::new(&data[sent..])]),
        }
    }

    /// Sends `parts` whole and in order.
    pub fn send(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let Some(tls) = &self.channel.tls else { return self.channel.socket.send(parts) };
        for plain in parts.iter().flat_map(|part| part.chunks(TLS_STEP)) {
            self.outgoing.cipher.clear();
            {
                let mut tls = tls.lock();
                tls.writer().write_all(plain)?;
                while tls.wants_write() {
                    tls.write_tls(&mut self.outgoing.cipher)?;
                }
            }
            // The receiver may use the connection while this waits for room.
            self.channel.socket.send(&mut [IoSlice::new(&self.outgoing.cipher)])?;
        }
        Ok(())
    }
}

struct Blocking<'a>(&'a Socket);

impl Read for Blocking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.receive(buffer, &mut [], Wait::Briefly)
    }
}

impl Write for Blocking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(&mut [IoSlice::new(bytes)])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
