//! A connection's bytes, in the clear or through TLS.
//!
//! One thread reads, several write. With TLS both directions share the session's state, which is locked only while it
//! works on bytes in memory, never while a socket is waited for.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::ServerConnection;
use rustls::pki_types::CertificateDer;

use super::socket::Socket;

const CIPHERTEXT: usize = 64 << 10;
/// How much plaintext becomes ciphertext at a time, in bytes.
const PLAINTEXT: usize = 128 << 10;

/// Ciphertext that was received and not yet understood.
#[derive(Debug)]
struct Received {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

#[derive(Debug)]
struct Tls {
    session: Mutex<ServerConnection>,
    received: Mutex<Received>,
}

/// Both directions of a connection.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Arc<Socket>,
    tls: Option<Tls>,
    /// Held by who writes; the ciphertext on its way.
    sending: Mutex<Vec<u8>>,
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Channel {
    pub(super) fn plain(socket: Arc<Socket>) -> Self {
        Self { socket, tls: None, sending: Mutex::default() }
    }

    /// Shakes hands as the server of `config` and speaks TLS from then on.
    pub(super) fn secure(socket: Arc<Socket>, config: Arc<rustls::ServerConfig>) -> io::Result<Self> {
        let mut session = ServerConnection::new(config).map_err(invalid)?;
        let mut io = &*socket;
        while session.is_handshaking() {
            session.complete_io(&mut io)?;
        }
        let received = Received { bytes: vec![0; CIPHERTEXT].into_boxed_slice(), start: 0, end: 0 };
        let tls = Tls { session: Mutex::new(session), received: Mutex::new(received) };
        Ok(Self { socket, tls: Some(tls), sending: Mutex::default() })
    }

    pub(super) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// The certificate that the other side has shown, and that was accepted.
    pub(super) fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        let session = self.tls.as_ref()?.session.lock();
        session.peer_certificates()?.first().map(|certificate| certificate.clone().into_owned())
    }

    pub(super) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Waits for bytes; zero means that the peer has closed. For one thread at a time.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return (&*self.socket).read(buffer) };
        let mut received = tls.received.lock();
        loop {
            let mut session = tls.session.lock();
            match session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A peer that closes without a word of TLS has closed all the same.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            if received.start < received.end {
                let mut unread = &received.bytes[received.start..received.end];
                let taken = session.read_tls(&mut unread)?;
                received.start += taken;
                session.process_new_packets().map_err(invalid)?;
                let must_answer = session.wants_write();
                drop(session);
                if must_answer {
                    self.send_pending(tls)?;
                }
                continue;
            }
            drop(session);
            let got = (&*self.socket).read(&mut received.bytes)?;
            (received.start, received.end) = (0, got);
            if got == 0 {
                return Ok(0);
            }
        }
    }

    /// Sends what TLS itself has to say.
    fn send_pending(&self, tls: &Tls) -> io::Result<()> {
        let mut sending = self.sending.lock();
        encrypt(&mut tls.session.lock(), &[], &mut sending)?;
        (&*self.socket).write_all(&sending)
    }

    /// Sends `head` and then `data`, whole; other threads' bytes come before or after.
    pub(super) fn write(&self, head: &[u8], data: &[u8]) -> io::Result<()> {
        let mut sending = self.sending.lock();
        let Some(tls) = &self.tls else { return write_both(&self.socket, head, data) };
        for part in [head, data] {
            for piece in part.chunks(PLAINTEXT) {
                let mut rest = piece;
                while !rest.is_empty() {
                    let taken = encrypt(&mut tls.session.lock(), rest, &mut sending)?;
                    rest = &rest[taken..];
                    (&*self.socket).write_all(&sending)?;
                }
            }
        }
        Ok(())
    }
}

/// Turns a beginning of `plain` into ciphertext, which replaces what is in `out`. Returns how much it took.
fn encrypt(session: &mut ServerConnection, plain: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
    out.clear();
    let taken = session.writer().write(plain)?;
    while session.wants_write() {
        session.write_tls(out)?;
    }
    if taken == 0 && !plain.is_empty() {
        return Err(io::Error::new(io::ErrorKind::WriteZero, "TLS takes no more data"));
    }
    Ok(taken)
}

fn write_both(socket: &Socket, head: &[u8], data: &[u8]) -> io::Result<()> {
    let mut socket = socket;
    if data.is_empty() {
        return socket.write_all(head);
    }
    let mut parts = [IoSlice::new(head), IoSlice::new(data)];
    let mut rest = &mut parts[..];
    while !rest.is_empty() {
        match socket.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
