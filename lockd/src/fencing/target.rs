//! A csv-target's control port, as the nodes of a cluster ask it.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};

use crate::cluster::ControlAddress;
use crate::cluster::tls::{Credentials, TlsError};
use crate::ids::ClientId;

/// The longest answer in bytes: status names every client that the target remembers.
const ANSWER_MAX: u64 = 16 << 20;
/// How long a target may take to refuse and drain.
const FENCE_PATIENCE: Duration = Duration::from_secs(10);

/// Why a target has not done what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum TargetControlError {
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It cannot be reached, does not answer in time, or does not show a certificate for its address.
    #[error("the control port of the target at {address} cannot be asked: {source}{}", hint(source))]
    Io {
        /// Where.
        address: ControlAddress,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It answers what a csv-target does not.
    #[error("what answers at {0} is not a csv-target's control port")]
    Stranger(ControlAddress),
    /// It has not done it.
    #[error("the target at {address} has not done it: {why}")]
    Refused {
        /// Where.
        address: ControlAddress,
        /// Its words.
        why: String,
    },
}

fn hint(error: &io::Error) -> &'static str {
    let text = error.to_string();
    if text.contains("certificate") {
        "; csv-target must be started with --control-tls and the target.pem that `lockctl init` has made for this host"
    } else {
        ""
    }
}

/// By what a target is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetMark {
    /// This run of it, in hexadecimal.
    pub boot: String,
    /// The list of clients that it refuses for good, in hexadecimal, if that outlives the run.
    pub list: Option<String>,
}

/// A csv-target's control port.
#[derive(Clone, Debug)]
pub struct TargetControl {
    address: ControlAddress,
    config: Arc<ClientConfig>,
}

impl TargetControl {
    /// The control port at `address`, asked by the node of `credentials`. Does not connect.
    ///
    /// # Errors
    /// If the cryptographic library refuses.
    pub fn new(address: &ControlAddress, credentials: &Credentials) -> Result<Self, TargetControlError> {
        Ok(Self { address: address.clone(), config: Arc::new(credentials.target_client()?) })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &ControlAddress {
        &self.address
    }

    /// Has `victims` refused for good and their connections closed, and waits until everything that was accepted from
    /// them is executed or dropped.
    ///
    /// # Errors
    /// If that is not certain for each of them: then none may be taken for fenced.
    pub fn fence(&self, victims: &[ClientId], within: Duration) -> Result<(), TargetControlError> {
        let victims: Vec<u64> = victims.iter().map(|victim| victim.0).collect();
        self.ask(&json!({"op": "fence", "clients": victims}), within).map(drop)
    }

    /// By what the target is known.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn mark(&self, within: Duration) -> Result<TargetMark, TargetControlError> {
        let answer = self.ask(&json!({"op": "mark"}), within)?;
        let text = |key: &str| answer[key].as_str().map(str::to_owned);
        let boot = text("boot_id").ok_or_else(|| TargetControlError::Stranger(self.address.clone()))?;
        Ok(TargetMark { boot, list: text("list_id") })
    }

    /// Sends one request and returns its answer, within so long altogether.
    ///
    /// # Errors
    /// If there is none, or it says that the request has failed.
    pub fn ask(&self, request: &Value, within: Duration) -> Result<Value, TargetControlError> {
        let address = || self.address.clone();
        let line = self.exchange(request, Instant::now() + within);
        let line = line.map_err(|source| TargetControlError::Io { address: address(), source })?;
        let answer: Value =
            serde_json::from_slice(&line).map_err(|_| TargetControlError::Stranger(address()))?;
        match answer["ok"].as_bool() {
            Some(true) => Ok(answer),
            Some(false) => {
                let why = answer["error"].as_str().unwrap_or("without a reason").to_owned();
                Err(TargetControlError::Refused { address: address(), why })
            }
            None => Err(TargetControlError::Stranger(address())),
        }
    }

    fn exchange(&self, request: &Value, deadline: Instant) -> io::Result<Vec<u8>> {
        let invalid = |error: &dyn std::error::Error| io::Error::other(error.to_string());
        let name = ServerName::try_from(self.address.host.clone()).map_err(|error| invalid(&error))?;
        let session =
            ClientConnection::new(Arc::clone(&self.config), name).map_err(|error| invalid(&error))?;
        let socket = Bounded { socket: self.connect(deadline)?, deadline };
        let mut stream = StreamOwned::new(session, socket);
        stream.write_all(format!("{request}\n").as_bytes())?;
        stream.flush()?;
        let mut line = Vec::new();
        BufReader::new(stream).take(ANSWER_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(line) }
    }

    fn connect(&self, deadline: Instant) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in (self.address.host.as_str(), self.address.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, left(deadline)?) {
                Ok(socket) => {
                    socket.set_nodelay(true)?;
                    return Ok(socket);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// The targets of a volume: one for each path to its LUN.
#[derive(Clone, Debug)]
pub struct Targets(Vec<TargetControl>);

impl Targets {
    /// Those at `addresses`, asked by the node of `credentials`.
    ///
    /// # Errors
    /// If the cryptographic library refuses.
    pub fn new(addresses: &[ControlAddress], credentials: &Credentials) -> Result<Self, TargetControlError> {
        // One csv-target may serve several paths.
        let addresses: BTreeSet<_> = addresses.iter().collect();
        let all: Result<_, _> =
            addresses.into_iter().map(|address| TargetControl::new(address, credentials)).collect();
        Ok(Self(all?))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &TargetControl> {
        self.0.iter()
    }

    /// Fences `victims` from the volume: every target refuses them for good and has drained them (F1).
    ///
    /// # Errors
    /// At the first target for which that is not certain.
    pub fn fence(&self, victims: &[ClientId]) -> Result<(), TargetControlError> {
        // Who never registered with a target has nothing there.
        if victims.is_empty() {
            return Ok(());
        }
        self.0.iter().try_for_each(|target| target.fence(victims, FENCE_PATIENCE))
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A socket that is used until a deadline, however often a byte arrives.
#[derive(Debug)]
struct Bounded {
    socket: TcpStream,
    deadline: Instant,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(left(self.deadline)?))?;
        match self.socket.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            read => read,
        }
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(left(self.deadline)?))?;
        match self.socket.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}
