//! The connection to the local lockd: it waits for lockd, and comes back after lockd was started again.

use std::collections::BTreeMap;
use std::fmt;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::error::ClientError;
use super::outbox::Outbox;
use crate::local::frame::{self, FrameError};
use crate::local::message::{Failure, FromLockd, Request, Response, ToLockd};

/// How long is waited between attempts to reach lockd.
const RETRY: Duration = Duration::from_millis(100);
/// How long lockd may take over greetings and each registration of a new connection.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);
/// How often a lockd that is not there is mentioned in the log.
const REMINDER: Duration = Duration::from_secs(10);
/// How many requests may be open at once.
const PENDING_MAX: usize = 16_384;

/// What is called with the answer to a request, once, on the connection's thread: it must not block.
pub(super) type OnResponse = Box<dyn FnOnce(Result<Response, Failure>) + Send>;

/// What the connection's thread tells and asks whoever uses it.
pub(super) trait LinkUser: Send + Sync {
    /// A new connection: registers anew whoever is registered, by asking on it.
    fn introduce(&self, dialogue: &mut Dialogue<'_>) -> Result<(), FrameError>;
    /// Something that is no answer to a request. Must not block.
    fn told(&self, message: FromLockd);
}

/// A connection on which nobody else asks yet.
pub(super) struct Dialogue<'a> {
    reader: &'a mut BufReader<UnixStream>,
    outbox: &'a Outbox,
    /// What came in between.
    aside: Vec<FromLockd>,
}

impl Dialogue<'_> {
    /// Asks and waits for the answer.
    pub(super) fn ask(&mut self, request: Request) -> Result<Result<Response, Failure>, FrameError> {
        let message = ToLockd::Request { id: u64::MAX, patience_ms: 0, request };
        self.outbox.send(&frame::encode(&message)?);
        loop {
            match frame::decode(&frame::read(self.reader)?)? {
                FromLockd::Reply { id: u64::MAX, reply } => return Ok(reply),
                FromLockd::Reply { .. } => {}
                other => self.aside.push(other),
            }
        }
    }
}

struct Pending {
    request: Request,
    patience_ms: u32,
    on_response: OnResponse,
}

#[derive(Default)]
struct State {
    pending: BTreeMap<u64, Pending>,
    last_id: u64,
    up: Option<Arc<Outbox>>,
    /// Why there is no connection.
    trouble: String,
    closed: bool,
}

/// The connection to the local lockd.
pub(super) struct Link {
    socket: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Link")
            .field("socket", &self.socket)
            .field("up", &state.up.is_some())
            .field("pending", &state.pending.len())
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Asks; the answer comes by `on_response`. Returns by what the request can be forgotten.
    pub(super) fn request(
        &self,
        request: Request,
        patience: Option<Duration>,
        on_response: OnResponse,
    ) -> Result<u64, ClientError> {
        let patience_ms =
            patience.map_or(0, |patience| u32::try_from(patience.as_millis()).unwrap_or(u32::MAX).max(1));
        let (id, outbox, bytes) = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(ClientError::Closed);
            }
            if state.pending.len() >= PENDING_MAX {
                return Err(ClientError::Failed(format!("{PENDING_MAX} requests to lockd are open already")));
            }
            state.last_id += 1;
            let id = state.last_id;
            let message = ToLockd::Request { id, patience_ms, request };
            let bytes = frame::encode(&message).map_err(|error| ClientError::Failed(error.to_string()))?;
            let ToLockd::Request { request, .. } = message else { return Err(ClientError::Unexpected) };
            state.pending.insert(id, Pending { request, patience_ms, on_response });
            (id, state.up.clone(), bytes)
        };
        if let Some(outbox) = outbox {
            outbox.send(&bytes);
        }
        Ok(id)
    }

    /// Waits no longer for an answer: its callback is dropped.
    pub(super) fn forget(&self, id: u64) {
        let forgotten = self.state.lock().pending.remove(&id);
        drop(forgotten);
    }

    /// Why there is no connection at the moment; none if there is one.
    pub(super) fn trouble(&self) -> Option<ClientError> {
        let state = self.state.lock();
        let (socket, why) = (self.socket.clone(), state.trouble.clone());
        if state.up.is_some() { None } else { Some(ClientError::NotThere { socket, why }) }
    }

    /// Sends what needs no answer. Without a connection it is lost.
    pub(super) fn tell(&self, message: &ToLockd) {
        let outbox = self.state.lock().up.clone();
        if let (Some(outbox), Ok(bytes)) = (outbox, frame::encode(message)) {
            outbox.send(&bytes);
        }
    }

    /// Answers every open command with `failure`: it will never be executed.
    pub(super) fn fail_commands(&self, failure: &Failure) {
        let failed: Vec<Pending> = {
            let mut state = self.state.lock();
            let commands = state.pending.extract_if(.., |_, pending| {
                matches!(pending.request, Request::Command(_) | Request::Register { .. })
            });
            commands.map(|(_, pending)| pending).collect()
        };
        for pending in failed {
            (pending.on_response)(Err(failure.clone()));
        }
    }

    /// Ends the connection for good; open requests are dropped.
    pub(super) fn close(&self) {
        let (up, pending) = {
            let mut state = self.state.lock();
            state.closed = true;
            (state.up.take(), std::mem::take(&mut state.pending))
        };
        self.changed.notify_all();
        if let Some(outbox) = up {
            outbox.close();
        }
        drop(pending);
    }

    fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Keeps the connection until it is closed. The body of the connection's thread.
    pub(super) fn run(&self, user: &dyn LinkUser) {
        let mut reminded: Option<Instant> = None;
        while !self.is_closed() {
            let ended = self.serve_once(user, &mut reminded);
            let mut state = self.state.lock();
            state.up = None;
            state.trouble = ended.to_string();
            if state.closed {
                return;
            }
            drop(state);
            if reminded.is_none_or(|at| at.elapsed() > REMINDER) {
                reminded = Some(Instant::now());
                tracing::warn!(socket = %self.socket.display(), %ended, "waiting for lockd");
            }
            self.fail_what_cannot_be_repeated();
            let mut state = self.state.lock();
            if !state.closed {
                self.changed.wait_for(&mut state, RETRY);
            }
        }
    }

    fn serve_once(&self, user: &dyn LinkUser, reminded: &mut Option<Instant>) -> FrameError {
        match self.connect(user) {
            Ok(mut reader) => {
                if reminded.take().is_some() {
                    tracing::info!(socket = %self.socket.display(), "lockd is there again");
                }
                loop {
                    match self.receive(&mut reader, user) {
                        Ok(()) => {}
                        Err(error) => return error,
                    }
                }
            }
            Err(error) => error,
        }
    }

    fn connect(&self, user: &dyn LinkUser) -> Result<BufReader<UnixStream>, FrameError> {
        let mut stream = UnixStream::connect(&self.socket)?;
        // A lockd that hangs here is as good as none.
        stream.set_read_timeout(Some(GREETING_PATIENCE))?;
        frame::greet(&mut stream)?;
        let outbox = Arc::new(Outbox::new(stream.try_clone()?));
        let mut reader = BufReader::with_capacity(64 << 10, stream);
        let mut dialogue = Dialogue { reader: &mut reader, outbox: &outbox, aside: Vec::new() };
        user.introduce(&mut dialogue)?;
        let aside = dialogue.aside;
        reader.get_ref().set_read_timeout(None)?;
        let frames = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(FrameError::Closed(std::io::ErrorKind::ConnectionAborted.into()));
            }
            state.up = Some(Arc::clone(&outbox));
            state.trouble.clear();
            let mut frames = Vec::new();
            for (id, Pending { request, patience_ms, .. }) in &state.pending {
                let (id, patience_ms) = (*id, *patience_ms);
                let message = ToLockd::Request { id, patience_ms, request: request.clone() };
                frames.extend(frame::encode(&message)?);
            }
            frames
        };
        outbox.send(&frames);
        for message in aside {
            user.told(message);
        }
        Ok(reader)
    }

    fn receive(&self, reader: &mut BufReader<UnixStream>, user: &dyn LinkUser) -> Result<(), FrameError> {
        match frame::decode(&frame::read(reader)?)? {
            FromLockd::Reply { id, reply } => {
                let pending = self.state.lock().pending.remove(&id);
                if let Some(pending) = pending {
                    (pending.on_response)(reply);
                }
            }
            other => user.told(other),
        }
        Ok(())
    }

    /// A command has its slot and may be sent again; what a holder was asked to do may not.
    fn fail_what_cannot_be_repeated(&self) {
        let failed: Vec<Pending> = {
            let mut state = self.state.lock();
            let once = |_: &u64, pending: &mut Pending| {
                matches!(pending.request, Request::Forward { .. } | Request::Voters(_))
            };
            state.pending.extract_if(.., once).map(|(_, pending)| pending).collect()
        };
        for pending in failed {
            let why = "the connection to lockd was lost before the answer came; look what was done";
            (pending.on_response)(Err(Failure::Refused(why.to_owned())));
        }
    }
}
