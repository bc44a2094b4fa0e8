//! One connection of the local socket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::core::Core;
use super::requests;
use crate::ids::{ClientId, NodeName, VolumeId};
use crate::local::frame::{self, FrameError};
use crate::local::message::{FromLockd, ToLockd};
use crate::local::process::Process;
use crate::machine::Victim;

/// How many frames may wait for a client to read them; events beyond are lost, and the client is told.
const QUEUE: usize = 1024;
/// How many requests of one connection are served at once; further ones wait in the socket.
const REQUESTS_MAX: usize = 512;
/// How many requests may wait for one client's answers.
const ASKS_MAX: usize = 256;
/// How long a new connection may take to greet.
const GREETING: Duration = Duration::from_secs(5);

/// One connection of the local socket.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) process: Process,
    pub(super) watching: AtomicBool,
    out: mpsc::Sender<Vec<u8>>,
    missed: AtomicBool,
    last_ask: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    clients: BTreeSet<ClientId>,
    asks: BTreeMap<u64, oneshot::Sender<Result<Vec<u8>, String>>>,
    drained: BTreeSet<(VolumeId, Victim)>,
}

impl Connection {
    /// Sends what the client has not asked for. If it does not read, it is lost, and the client told later.
    pub(super) fn push(&self, message: &FromLockd) {
        if self.missed.load(Ordering::Acquire) {
            let missed = frame::encode(&FromLockd::Missed).unwrap_or_default();
            if self.out.try_send(missed).is_err() {
                return;
            }
            self.missed.store(false, Ordering::Release);
        }
        let sent = frame::encode(message).is_ok_and(|bytes| self.out.try_send(bytes).is_ok());
        if !sent {
            self.missed.store(true, Ordering::Release);
        }
    }

    /// Whether `client` was registered here.
    pub(super) fn has(&self, client: ClientId) -> bool {
        self.state.lock().clients.contains(&client)
    }

    pub(super) fn add(&self, client: ClientId) {
        self.state.lock().clients.insert(client);
    }

    pub(super) fn remove(&self, client: ClientId) {
        self.state.lock().clients.remove(&client);
    }

    pub(super) fn has_drained(&self, volume: VolumeId, victim: Victim) -> bool {
        self.state.lock().drained.contains(&(volume, victim))
    }

    pub(super) fn drained(&self, volume: VolumeId, victim: Victim) {
        self.state.lock().drained.insert((volume, victim));
    }

    /// The fence is over: nothing needs to be remembered of it.
    pub(super) fn forget_drained(&self, volume: VolumeId, victim: Victim) {
        self.state.lock().drained.remove(&(volume, victim));
    }

    /// Asks the client and waits for its answer.
    pub(super) async fn ask(
        &self,
        client: ClientId,
        from: NodeName,
        request: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, String> {
        let id = self.last_ask.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if state.asks.len() >= ASKS_MAX {
                return Err(format!("{client} has {ASKS_MAX} requests to answer already; try again"));
            }
            state.asks.insert(id, sender);
        }
        let message = frame::encode(&FromLockd::Ask { id, client, from, request });
        let told = async {
            let bytes = message.map_err(|error| error.to_string())?;
            self.out.send(bytes).await.map_err(|_| format!("{client} has closed its connection"))?;
            answer.await.unwrap_or_else(|_| Err(format!("{client} has closed its connection")))
        };
        let answered = tokio::time::timeout(within, told).await;
        self.state.lock().asks.remove(&id);
        answered
            .unwrap_or_else(|_| Err(format!("{client} has not answered within {within:?}; it may yet do it")))
    }

    fn answered(&self, id: u64, answer: Result<Vec<u8>, String>) {
        let waiting = self.state.lock().asks.remove(&id);
        if let Some(waiting) = waiting {
            // Whoever asked may have given up.
            let _ = waiting.send(answer);
        }
    }
}

/// Serves a connection until it ends. Whatever comes that is no message ends it.
pub(super) async fn serve(core: Arc<Core>, id: u64, stream: UnixStream) {
    match open(&core, id, stream).await {
        Ok(()) | Err(FrameError::Closed(_)) => {}
        Err(error) => tracing::warn!(connection = id, %error, "a local connection was ended"),
    }
}

async fn open(core: &Arc<Core>, id: u64, mut stream: UnixStream) -> Result<(), FrameError> {
    let greeted = tokio::time::timeout(GREETING, frame::greet_async(&mut stream)).await;
    greeted.map_err(|_| FrameError::NotOurs)??;
    let stream = stream.into_std()?;
    let (process, _) = Process::of_peer(&stream)?;
    let stream = UnixStream::from_std(stream)?;
    let (read, write) = stream.into_split();
    let (out, queue) = mpsc::channel(QUEUE);
    let connection = Arc::new(Connection {
        id,
        process,
        watching: AtomicBool::new(false),
        out: out.clone(),
        missed: AtomicBool::new(false),
        last_ask: AtomicU64::new(1),
        state: Mutex::default(),
    });
    core.connections.lock().insert(id, Arc::clone(&connection));
    let writing = tokio::spawn(write_out(write, queue));
    let ended = read_in(core, &connection, BufReader::with_capacity(64 << 10, read), out).await;
    core.connections.lock().remove(&id);
    core.clients.disconnected(core, &connection);
    connection.state.lock().asks.clear();
    writing.abort();
    ended
}

async fn write_out(mut stream: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    let mut batch = Vec::new();
    while let Some(bytes) = queue.recv().await {
        batch.extend_from_slice(&bytes);
        while batch.len() < 256 << 10
            && let Ok(more) = queue.try_recv()
        {
            batch.extend_from_slice(&more);
        }
        if stream.write_all(&batch).await.is_err() {
            // The reader notices.
            return;
        }
        batch.clear();
        batch.shrink_to(256 << 10);
    }
}

async fn read_in(
    core: &Arc<Core>,
    connection: &Arc<Connection>,
    mut stream: BufReader<tokio::net::unix::OwnedReadHalf>,
    out: mpsc::Sender<Vec<u8>>,
) -> Result<(), FrameError> {
    let room = Arc::new(Semaphore::new(REQUESTS_MAX));
    loop {
        let bytes = frame::read_async(&mut stream).await?;
        match frame::decode(&bytes)? {
            ToLockd::Request { id, patience_ms, request } => {
                let Ok(place) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
                let (core, connection, out) = (Arc::clone(core), Arc::clone(connection), out.clone());
                let patience = (patience_ms > 0).then(|| Duration::from_millis(u64::from(patience_ms)));
                tokio::spawn(async move {
                    let reply = tokio::select! {
                        reply = requests::answer(&core, &connection, request, patience) => reply,
                        // Nobody waits for the answer any more.
                        () = out.closed() => return,
                    };
                    let bytes = frame::encode(&FromLockd::Reply { id, reply }).unwrap_or_else(|error| {
                        let reply = Err(crate::local::message::Failure::Refused(error.to_string()));
                        frame::encode(&FromLockd::Reply { id, reply }).unwrap_or_default()
                    });
                    // If the connection has gone, the client asks again on another.
                    let _ = out.send(bytes).await;
                    drop(place);
                });
            }
            ToLockd::Answer { id, answer } => connection.answered(id, answer),
        }
    }
}
