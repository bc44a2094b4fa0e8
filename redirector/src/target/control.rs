//! The control port: one JSON object per line in, one per line out.
//!
//! | request | answer, beside `"ok": true` |
//! |---|---|
//! | `{"op":"status"}` | boot id, export, connections, clients with their counters, faults |
//! | `{"op":"counters"}` | `clients` with their counters |
//! | `{"op":"touched","client":C,"offset":O,"length":L}` | in how many regions of the range C (null: all without a hello) has read, and has changed |
//! | `{"op":"forget_touched"}` | nothing; all records of touched regions begin anew |
//! | `{"op":"fence","client":C}` or `"clients":[C,…]` | the boot id, when all of them are refused for good, disconnected and drained |
//! | `{"op":"mark"}` | the boot id, and `list_id`: the list of those who are refused (null: it goes with this process) |
//! | `{"op":"fault","action":…,…}` | `fault`, its number; the fields are those of [`FaultSpec`] |
//! | `{"op":"faults"}` | `faults`, and how often each has struck |
//! | `{"op":"release","fault":N}`, `{"op":"clear","fault":N}` | nothing; without a number: every fault |
//! | `{"op":"cut"}` | nothing; all connections are closed |
//! | `{"op":"volatile","on":B}` | nothing; unflushed writes are lost by a crash from now on |
//! | `{"op":"crash"}` | the new boot id |
//!
//! A request that fails is answered by `{"ok": false, "error": TEXT}`.
//!
//! With `--control-tls` only the nodes of one cluster are served, by the certificates of `lockctl init`; what one of them
//! has somebody fenced for is logged with its name.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockd::cluster::tls::node_of;
use lockd::ids::ClientId;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::admission::BootId;
use super::channel::Channel;
use super::fault::{FaultId, FaultSpec};
use super::server::Target;
use super::socket::{Address, Socket};
use super::tls::{self, TlsError};

/// The longest request in bytes.
const LINE_MAX: usize = 64 << 10;
/// Control connections at a time.
const CONNECTIONS_MAX: usize = 64;
/// Clients that one request may have fenced.
const VICTIMS_MAX: usize = 1024;
/// How long a control connection may be silent.
const SILENCE: Duration = Duration::from_secs(600);
/// How long a peer may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Status,
    Counters,
    Touched { client: Option<u64>, offset: u64, length: u64 },
    ForgetTouched,
    Fence { client: Option<u64>, clients: Option<Vec<u64>> },
    Mark,
    Fault(FaultSpec),
    Faults,
    Release { fault: Option<FaultId> },
    Clear { fault: Option<FaultId> },
    Cut,
    Volatile { on: bool },
    Crash,
}

fn failed(error: impl std::fmt::Display) -> Value {
    json!({"ok": false, "error": error.to_string()})
}

fn done(mut answer: Value) -> Value {
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("ok".to_owned(), Value::Bool(true));
    }
    answer
}

fn hex(id: [u8; 16]) -> String {
    BootId(id).to_string()
}

/// Has all of `victims` refused and drained.
fn fence(target: &Target, victims: Vec<u64>, node: Option<&str>) -> Value {
    if victims.is_empty() || victims.len() > VICTIMS_MAX {
        return failed(format_args!("{} clients to fence; give 1 to {VICTIMS_MAX}", victims.len()));
    }
    tracing::warn!(clients = ?victims, node = node.unwrap_or("unknown"), "asked to fence");
    let fenced: Result<Vec<BootId>, _> =
        victims.into_iter().map(|client| target.fence(ClientId(client))).collect();
    match fenced {
        Ok(boots) => done(json!({"boot_id": boots.last().map(ToString::to_string)})),
        Err(error) => failed(error),
    }
}

/// Executes one request of `node`, if it is known who asks.
fn answer(target: &Target, node: Option<&str>, line: &[u8]) -> Value {
    let request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => return failed(format_args!("the request is not understood: {error}")),
    };
    match request {
        Request::Status => serde_json::to_value(target.status()).map_or_else(failed, done),
        Request::Counters => done(json!({"clients": target.admission.clients()})),
        Request::Touched { client, offset, length } => {
            let range = offset..offset.saturating_add(length);
            match target.admission.touched(client.map(ClientId), &range) {
                Some(touched) => serde_json::to_value(touched).map_or_else(failed, done),
                None => failed("this target has not seen that client"),
            }
        }
        Request::ForgetTouched => {
            target.admission.forget_touched();
            done(json!({}))
        }
        Request::Fence { client, clients } => {
            fence(target, client.into_iter().chain(clients.into_iter().flatten()).collect(), node)
        }
        Request::Mark => {
            let (boot, list) = (target.admission.boot(), target.admission.list());
            done(json!({"boot_id": boot.to_string(), "list_id": list.map(hex)}))
        }
        Request::Fault(spec) => match target.faults.add(spec) {
            Ok(id) => done(json!({"fault": id})),
            Err(error) => failed(error),
        },
        Request::Faults => done(json!({"faults": target.faults.list()})),
        Request::Release { fault } => {
            target.faults.release(fault);
            done(json!({}))
        }
        Request::Clear { fault } => {
            target.faults.clear(fault);
            done(json!({}))
        }
        Request::Cut => {
            target.admission.cut_all();
            done(json!({}))
        }
        Request::Volatile { on } => match target.disk.set_volatile(on) {
            Ok(()) => done(json!({})),
            Err(errno) => failed(io::Error::from_raw_os_error(errno)),
        },
        Request::Crash => done(json!({"boot_id": target.crash().to_string()})),
    }
}

/// The control port.
#[derive(Debug)]
pub(super) struct Control {
    target: Arc<Target>,
    tls: Option<Arc<rustls::ServerConfig>>,
    connections: Arc<AtomicUsize>,
}

/// Counts a connection until it is dropped.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Control {
    pub(super) fn new(target: Arc<Target>, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        Self { target, tls, connections: Arc::default() }
    }

    /// Serves a connection in a thread of its own.
    pub(super) fn start(&self, socket: Socket) {
        let before = self.connections.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(Arc::clone(&self.connections));
        if before >= CONNECTIONS_MAX {
            tracing::warn!(peer = socket.peer(), "closed: too many control connections");
            return;
        }
        // The thread must not keep the file open when the target is stopped.
        let (target, tls) = (Arc::downgrade(&self.target), self.tls.clone());
        let serve = move || {
            let _counted = counted;
            let socket = Arc::new(socket);
            let served =
                serve(&socket, tls, |node, line| target.upgrade().map(|target| answer(&target, node, line)));
            if let Err(error) = served {
                tracing::warn!(peer = socket.peer(), %error, "a control connection is closed");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("target-control".into()).spawn(serve) {
            tracing::warn!(%error, "no thread for a control connection");
        }
    }
}

struct ChannelReader<'a>(&'a Channel);

impl Read for ChannelReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

/// Reads a line without its end; `None` at the end of the connection.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let limit = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
    reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
    if line.pop_if(|last| *last == b'\n').is_some() {
        Ok(Some(line))
    } else if line.is_empty() {
        Ok(None)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "a request is too long, or has no end"))
    }
}

fn serve(
    socket: &Arc<Socket>,
    tls: Option<Arc<rustls::ServerConfig>>,
    answer: impl Fn(Option<&str>, &[u8]) -> Option<Value>,
) -> io::Result<()> {
    socket.set_read_timeout(Some(HANDSHAKE))?;
    let channel = match tls {
        Some(config) => Channel::secure(Arc::clone(socket), config)?,
        None => Channel::plain(Arc::clone(socket)),
    };
    socket.set_read_timeout(Some(SILENCE))?;
    let node = channel.peer_certificate().and_then(|certificate| node_of(&certificate));
    let node = node.map(|identity| identity.node.to_string());
    let mut reader = BufReader::new(ChannelReader(&channel));
    while let Some(line) = read_line(&mut reader)? {
        let Some(answer) = answer(node.as_deref(), &line) else { return Ok(()) };
        channel.write(format!("{answer}\n").as_bytes(), &[])?;
    }
    Ok(())
}

/// Why a control request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection.
    #[error("cannot ask the target at {address}: {source}")]
    Io {
        /// The control address.
        address: Address,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The target does not answer in JSON.
    #[error("what answers at {0} is not a csv-target's control port")]
    Stranger(Address),
    /// The target refused.
    #[error("the target refuses: {0}")]
    Refused(String),
}

/// Sends one request to a target's control port and returns its answer. `tls` is the directory of the certificates (with
/// `client-cert.pem`); the target's certificate must be for the host of `address`, or for `localhost` on a Unix socket.
pub fn ask(address: &Address, tls: Option<&Path>, request: &Value) -> Result<Value, ControlError> {
    let config = tls.map(tls::client).transpose()?;
    let io = |source| ControlError::Io { address: address.clone(), source };
    let socket = Socket::connect(address).map_err(io)?;
    let line = match config {
        None => exchange(&socket, request),
        Some(config) => {
            let host = match address {
                Address::Tcp(address) => address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host),
                Address::Unix(_) => "localhost",
            };
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let invalid = |error: &dyn std::error::Error| io::Error::other(error.to_string());
            ServerName::try_from(host).map_err(|error| invalid(&error)).and_then(|name| {
                let session = rustls::ClientConnection::new(config, name).map_err(|error| invalid(&error))?;
                exchange(rustls::StreamOwned::new(session, &socket), request)
            })
        }
    };
    let answer: Value =
        serde_json::from_slice(&line.map_err(io)?).map_err(|_| ControlError::Stranger(address.clone()))?;
    match answer.get("ok").and_then(Value::as_bool) {
        Some(true) => Ok(answer),
        Some(false) => {
            let text = answer.get("error").and_then(Value::as_str).unwrap_or("without a reason");
            Err(ControlError::Refused(text.to_owned()))
        }
        None => Err(ControlError::Stranger(address.clone())),
    }
}

fn exchange(mut stream: impl Read + Write, request: &Value) -> io::Result<Vec<u8>> {
    stream.write_all(format!("{request}\n").as_bytes())?;
    stream.flush()?;
    let mut line = Vec::new();
    // Status may be long; an answer is bounded by the number of clients that a target remembers.
    BufReader::new(stream).take(16 << 20).read_until(b'\n', &mut line)?;
    Ok(line)
}
