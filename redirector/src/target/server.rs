//! The target as a whole: what it is started with, its listeners, and the handle by which it is watched and stopped.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lockd::cluster::tls::TargetTls;
use lockd::ids::ClientId;
use parking_lot::Mutex;
use serde::Serialize;

use super::admission::{Admission, BootId, ClientStatus, Ending, Seat};
use super::backing::{Backing, BackingError};
use super::channel::Channel;
use super::connection;
use super::control::Control;
use super::counters::Touched;
use super::disk::Disk;
use super::ended::{Ended, EndedError};
use super::fault::{FaultStatus, Faults};
use super::negotiation::{Offer, negotiate};
use super::socket::{Address, Listener, Socket};
use super::tls::{self, TlsError};
use crate::buffer::Pool;
use crate::metrics::Exposition;
use crate::nbd::wire::NAME_MAX;

/// How long a stopping target waits for clients to take their answers.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What a target is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file or block device to serve.
    pub file: PathBuf,
    /// Its size in bytes: what it is created with, sparse, or what it must have.
    pub size: Option<u64>,
    /// The export's name. The empty name reaches it as well.
    pub export: String,
    /// Where to listen for NBD clients.
    pub listen: Vec<Address>,
    /// Refuses everything that changes the file.
    pub read_only: bool,
    /// The directory of the certificates; with it, TLS is demanded of every client, of the control port's too.
    pub tls: Option<PathBuf>,
    /// Where to listen for control.
    pub control: Option<Address>,
    /// The directory with `ca.pem`, `target.pem` and `target.key` of a cluster: with it, control is for the nodes of that
    /// cluster only.
    pub control_tls: Option<PathBuf>,
    /// Where the list of ended clients is kept; in memory, if nowhere.
    pub state: Option<PathBuf>,
    /// Serves only clients that say who they are.
    pub require_hello: bool,
    /// Says that a flush on one connection covers them all, which it does. For tests of clients.
    pub multi_conn: bool,
    /// Knows the private options. Without them it is a plain NBD server. For tests of clients.
    pub private_options: bool,
    /// NBD connections at a time; more are closed at once.
    pub connections_max: usize,
    /// How long a client waits for a drain.
    pub drain_patience: Duration,
}

impl Config {
    /// A target for `file` that listens nowhere yet, with the defaults of `csv-target`.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            size: None,
            export: String::new(),
            listen: Vec::new(),
            read_only: false,
            tls: None,
            control: None,
            control_tls: None,
            state: None,
            require_hello: false,
            multi_conn: true,
            private_options: true,
            connections_max: 512,
            drain_patience: Duration::from_secs(30),
        }
    }
}

/// Why a target cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The file behind the export.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The list of ended clients.
    #[error(transparent)]
    Ended(#[from] EndedError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificates of the control port.
    #[error(transparent)]
    ControlTls(#[from] lockd::cluster::tls::TlsError),
    /// An address is taken, not this machine's, or forbidden.
    #[error("cannot listen on {address}: {source}{}", hint(source))]
    Listen {
        /// The address.
        address: Address,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The export's name.
    #[error("the export's name has {0} bytes; the protocol allows {NAME_MAX}")]
    LongName(usize),
    /// The system has no thread to give.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program listens there: stop it, or choose another address",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        io::ErrorKind::PermissionDenied => "; choose a port above 1023 or a directory that you may write to",
        io::ErrorKind::NotFound => "; does the directory of the socket exist?",
        _ => "",
    }
}

/// What the target's threads share.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) offer: Offer,
    pub(super) disk: Arc<Disk>,
    pub(super) faults: Arc<Faults>,
    pub(super) admission: Arc<Admission>,
    pool: Pool,
    crash: Mutex<()>,
}

/// The target's state, as the control port and the handle show it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// This run of the target, in hexadecimal.
    pub boot_id: String,
    /// The export's name.
    pub export: String,
    /// Its size in bytes.
    pub size: u64,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Connections that are open, or still have requests under way.
    pub connections: usize,
    /// How many clients are refused for good.
    pub ended: usize,
    /// Written blocks of 4 KiB that only the emulated volatile cache holds.
    pub volatile_blocks: usize,
    /// All clients.
    pub clients: Vec<ClientStatus>,
    /// All faults.
    pub faults: Vec<FaultStatus>,
}

impl Status {
    /// The figures for Prometheus.
    #[must_use]
    pub fn exposition(&self) -> Exposition {
        let mut out = Exposition::default();
        let export = [("export", self.export.as_str())];
        let mut gauge = |name, help, value: u64| out.single(name, "gauge", help, &export, value);
        gauge("csv_target_size_bytes", "Size of the export.", self.size);
        gauge("csv_target_connections", "Open connections.", self.connections as u64);
        gauge("csv_target_ended_clients", "Clients that are refused for good.", self.ended as u64);
        let ids: Vec<String> = self
            .clients
            .iter()
            .map(|client| client.client.map_or_else(|| "none".to_owned(), |id| id.to_string()))
            .collect();
        out.family("csv_target_requests_total", "counter", "Requests, by client incarnation and kind.");
        for (client, id) in self.clients.iter().zip(&ids) {
            let counts = &client.counts;
            for (kind, value) in [
                ("read", counts.reads),
                ("write", counts.writes),
                ("flush", counts.flushes),
                ("trim", counts.trims),
                ("zero", counts.zeroes),
            ] {
                out.sample("csv_target_requests_total", &[export[0], ("client", id), ("kind", kind)], value);
            }
        }
        out.family("csv_target_bytes_total", "counter", "Bytes of read and write requests.");
        for (client, id) in self.clients.iter().zip(&ids) {
            for (kind, value) in [("read", client.counts.bytes_read), ("write", client.counts.bytes_written)]
            {
                out.sample("csv_target_bytes_total", &[export[0], ("client", id), ("kind", kind)], value);
            }
        }
        out
    }
}

/// Why a client could not be fenced.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// The list of ended clients cannot be kept: the client is refused until the target is restarted.
    #[error(transparent)]
    Ended(#[from] EndedError),
    /// It is refused for good, but not drained.
    #[error("client {0} is refused for good, but requests of it are still being executed; ask again")]
    Undrained(ClientId),
}

impl Target {
    pub(super) fn status(&self) -> Status {
        Status {
            boot_id: self.admission.boot().to_string(),
            export: self.offer.name.clone(),
            size: self.offer.size,
            read_only: self.offer.read_only,
            connections: self.admission.connection_count(),
            ended: self.admission.ended_count(),
            volatile_blocks: self.disk.cached_blocks(),
            clients: self.admission.clients(),
            faults: self.faults.list(),
        }
    }

    pub(super) fn fence(&self, client: ClientId) -> Result<BootId, FenceError> {
        match self.admission.end(client, true, self.offer.drain_patience)? {
            (_, Ending::Undrained) => Err(FenceError::Undrained(client)),
            (boot, _) => Ok(boot),
        }
    }

    pub(super) fn crash(&self) -> BootId {
        let _one_at_a_time = self.crash.lock();
        tracing::warn!("a crash is emulated");
        self.faults.crash();
        self.admission.crash(|| {
            let lost = self.disk.lose_cache();
            tracing::warn!(blocks = lost, "unflushed writes are lost");
        })
    }

    fn serve(&self, seat: Arc<Seat>, socket: Arc<Socket>) {
        let channel = Channel::plain(socket);
        let negotiated = match negotiate(&self.offer, &seat, channel) {
            Ok(Some(negotiated)) => negotiated,
            Ok(None) => {
                tracing::debug!(peer = seat.link().peer(), "left before choosing the export");
                seat.link().close();
                return;
            }
            Err(error) => {
                tracing::warn!(peer = seat.link().peer(), connection = seat.link().number(), %error, "closed");
                seat.link().close();
                return;
            }
        };
        let (peer, number) = (seat.link().peer().to_owned(), seat.link().number());
        let client = negotiated.client.map(|client| client.0);
        tracing::info!(peer, connection = number, client, "connected");
        let (disk, faults) = (Arc::clone(&self.disk), Arc::clone(&self.faults));
        match connection::serve(negotiated, disk, faults, self.pool.clone(), seat) {
            Ok(()) => tracing::info!(peer, connection = number, client, "disconnected"),
            Err(error) => tracing::warn!(peer, connection = number, client, %error, "closed"),
        }
    }
}

/// The bundled NBD target.
#[derive(Debug)]
pub struct Server;

#[derive(Debug)]
struct Acceptor {
    listener: Arc<Listener>,
    thread: JoinHandle<()>,
}

/// Calls `serve` with each connection, until the listener is stopped.
fn accept_all(
    listener: Listener,
    stopping: &Arc<AtomicBool>,
    serve: impl Fn(Socket) + Send + 'static,
) -> io::Result<Acceptor> {
    let listener = Arc::new(listener);
    let (accepting, stopping) = (Arc::clone(&listener), Arc::clone(stopping));
    let accept = move || {
        while !stopping.load(Ordering::Acquire) {
            match accepting.accept() {
                Ok(socket) => serve(socket),
                Err(_) if stopping.load(Ordering::Acquire) => {}
                Err(error) => {
                    // No descriptors left, or a peer that was gone at once.
                    tracing::warn!(%error, "a connection could not be accepted");
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("target-accept".into()).spawn(accept)?;
    Ok(Acceptor { listener, thread })
}

impl Server {
    /// Opens the file, listens, and serves until the handle is dropped.
    pub fn start(config: Config) -> Result<ServerHandle, TargetError> {
        if config.export.len() > NAME_MAX {
            return Err(TargetError::LongName(config.export.len()));
        }
        let tls = config.tls.as_deref().map(tls::server).transpose()?;
        let control_tls = config.control_tls.as_deref().map(TargetTls::load).transpose()?;
        let control_tls = control_tls.map_or_else(|| tls.clone(), |TargetTls(config)| Some(config));
        let backing = Backing::open(&config.file, config.size, config.read_only)?;
        let ended = Ended::load(config.state.as_deref())?;
        let size = backing.size();
        let target = Arc::new(Target {
            offer: Offer {
                name: config.export.clone(),
                size,
                read_only: config.read_only,
                multi_conn: config.multi_conn,
                private_options: config.private_options,
                require_hello: config.require_hello,
                tls: tls.clone(),
                drain_patience: config.drain_patience,
            },
            disk: Arc::new(Disk::new(backing)),
            faults: Arc::default(),
            admission: Admission::new(ended, size, config.connections_max),
            pool: Pool::default(),
            crash: Mutex::new(()),
        });
        let bind = |address: &Address| {
            let listen = |source| TargetError::Listen { address: address.clone(), source };
            let listener = Listener::bind(address).map_err(listen)?;
            let bound = listener.address().map_err(listen)?;
            Ok::<_, TargetError>((listener, bound))
        };
        let mut handle = ServerHandle {
            target: Arc::clone(&target),
            addresses: Vec::new(),
            control: None,
            stopping: Arc::default(),
            acceptors: Vec::new(),
        };
        // All are bound before the first is served.
        let listeners = config.listen.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
        let control = config.control.as_ref().map(bind).transpose()?;
        for (listener, bound) in listeners {
            handle.addresses.push(bound);
            let target = Arc::clone(&target);
            let serve = move |socket| start_connection(&target, socket);
            handle
                .acceptors
                .push(accept_all(listener, &handle.stopping, serve).map_err(TargetError::Thread)?);
        }
        if let Some((listener, bound)) = control {
            let control = Control::new(target, control_tls);
            let serve = move |socket| control.start(socket);
            handle
                .acceptors
                .push(accept_all(listener, &handle.stopping, serve).map_err(TargetError::Thread)?);
            handle.control = Some(bound);
        }
        Ok(handle)
    }
}

fn start_connection(target: &Arc<Target>, socket: Socket) {
    let socket = Arc::new(socket);
    let Some(seat) = target.admission.admit(Arc::clone(&socket)) else {
        tracing::warn!(
            peer = socket.peer(),
            "closed: there are too many connections, or the target is stopping"
        );
        return;
    };
    let serving = Arc::clone(target);
    let thread = std::thread::Builder::new().name("target-nbd".into());
    if let Err(error) = thread.spawn(move || serving.serve(seat, socket)) {
        tracing::warn!(%error, "closed: no thread for a connection");
    }
}

/// A running target. Dropping it stops the target as [`ServerHandle::stop`] does.
#[derive(Debug)]
pub struct ServerHandle {
    target: Arc<Target>,
    addresses: Vec<Address>,
    control: Option<Address>,
    stopping: Arc<AtomicBool>,
    acceptors: Vec<Acceptor>,
}

impl ServerHandle {
    /// Makes the target's figures for metrics; needs no longer life than the process.
    pub fn figures(&self) -> impl Fn() -> Exposition + Send + 'static {
        let target = Arc::downgrade(&self.target);
        move || target.upgrade().map_or_else(Exposition::default, |target| target.status().exposition())
    }

    /// The addresses that it listens on, in the order of [`Config::listen`], with the ports that the system chose.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The address of the control port.
    #[must_use]
    pub fn control_address(&self) -> Option<&Address> {
        self.control.as_ref()
    }

    /// The NBD URIs of the export, in the order of [`Config::listen`].
    #[must_use]
    pub fn uris(&self) -> Vec<String> {
        let tls = if self.target.offer.tls.is_some() { "nbds" } else { "nbd" };
        let name = &self.target.offer.name;
        let uri = |address: &Address| match address {
            Address::Tcp(address) => format!("{tls}://{address}/{name}"),
            Address::Unix(path) => format!("{tls}+unix:///{name}?socket={}", path.display()),
        };
        self.addresses.iter().map(uri).collect()
    }

    /// The fault switch.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.target.faults
    }

    /// Clients, counters, faults.
    #[must_use]
    pub fn status(&self) -> Status {
        self.target.status()
    }

    /// What `client` (all that did not say hello, if `None`) has touched of the byte range; `None` if it is not known.
    #[must_use]
    pub fn touched(&self, client: Option<ClientId>, range: std::ops::Range<u64>) -> Option<Touched> {
        self.target.admission.touched(client, &range)
    }

    /// Forgets which ranges were touched, by all clients.
    pub fn forget_touched(&self) {
        self.target.admission.forget_touched();
    }

    /// This run's id.
    #[must_use]
    pub fn boot_id(&self) -> BootId {
        self.target.admission.boot()
    }

    /// Refuses `client` for good, closes its connections, and waits until what was accepted from it is done.
    pub fn fence(&self, client: ClientId) -> Result<BootId, FenceError> {
        self.target.fence(client)
    }

    /// Closes all connections as a lost network would. New ones are let in.
    pub fn cut(&self) {
        self.target.admission.cut_all();
    }

    /// Emulates a volatile write cache, or stops doing so, having written it out. Errors are positive errnos.
    pub fn set_volatile(&self, on: bool) -> Result<(), i32> {
        self.target.disk.set_volatile(on)
    }

    /// Emulates a crash and restart: closes all connections, drops what faults hold back, loses what the volatile cache
    /// holds, and takes another boot id.
    pub fn crash(&self) -> BootId {
        self.target.crash()
    }

    /// Stops accepting, executes and answers what was accepted (faults are cleared), and flushes the file.
    ///
    /// # Errors
    /// The errno of the flush.
    pub fn stop(mut self) -> Result<(), i32> {
        self.shut_down()
    }

    fn shut_down(&mut self) -> Result<(), i32> {
        if self.stopping.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        for acceptor in &self.acceptors {
            acceptor.listener.stop();
        }
        for acceptor in self.acceptors.drain(..) {
            let _ = acceptor.thread.join();
        }
        self.target.faults.clear(None);
        self.target.admission.stop(STOP_PATIENCE);
        if self.target.offer.read_only {
            return Ok(());
        }
        self.target.disk.flush()
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        if let Err(errno) = self.shut_down() {
            tracing::error!(errno, "the last flush failed");
        }
    }
}
