//! The coordinator: the one client that changes a volume's metadata.
//!
//! Frames come in by [`lockd::network::Service`]. Questions are answered at once, on the asking thread, from the last
//! committed state. Changes go into a queue; one writer takes all that waits, applies it in one transaction, commits it
//! and answers (V3); while one group commits the next one gathers. A reclaimer makes freed blocks free (V7).
//!
//! A failure of the store ends all changing: what is not committed is never acknowledged, and what follows is refused
//! with the cause.

pub mod acl;
mod apply;
mod assembly;
mod attributes;
mod change;
mod clients;
mod core;
mod data;
mod due;
mod gauge;
mod leased;
mod leases;
mod mapping;
mod memory;
mod moving;
mod names;
mod opens;
mod quarantine;
mod question;
mod queue;
mod reclaim;
mod rename;
mod reserve;
mod scrub;
#[cfg(test)]
mod simulated;
mod space;
mod stop;
mod unseal;
mod watch;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;

use lockd::ids::ClientId;
use lockd::network::{CarrierError, OnReply, Service};
use parking_lot::Mutex;

use self::core::Core;
pub use self::core::{Beside, Openings, Parts};
use self::due::{encoded, frame};
use self::queue::{Internal, NotTaken, Pending, Work};
pub use self::scrub::Scrub;
use self::writer::Writer;
use crate::proto::codec::decode;
use crate::proto::{Answered, Bequest, FileSlots, Head, Operation, Request};
use crate::refusal::Refusal;
use crate::store::StoreError;
use crate::types::Run;

/// Why a coordinator could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The session of this node has ended meanwhile.
    #[error("the session of this node has ended; mount again")]
    SessionEnded,
    /// The store cannot be read, or is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chunks of the metadata area could not be recorded.
    #[error(transparent)]
    Space(#[from] crate::disk::SpaceError),
    /// The system has no room for a thread.
    #[error("the coordinator's threads could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// A volume's coordinator.
#[derive(Debug)]
pub struct Coordinator {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Coordinator {
    /// Starts on an opened store: ends the clients of earlier sessions, gives the metadata area again what is recorded
    /// as given, and serves.
    pub fn start(parts: Parts) -> Result<Arc<Self>, StartError> {
        let core = Arc::new(Core::new(parts));
        let mut threads = Vec::new();
        core.snapshot()?;
        let mounts = core.parts.authority.mounts(core.parts.volume).ok_or(StartError::SessionEnded)?;
        assembly::begin(&core, &mounts);
        if !core.parts.read_only {
            take_over(&core)?;
            let writer = Writer::new(Arc::clone(&core))?;
            threads.push(spawn("csvfs-writer", move || writer.serve())?);
            let reclaimer = Arc::clone(&core);
            threads.push(spawn("csvfs-reclaim", move || reclaim::serve(&reclaimer))?);
            let watcher = Arc::clone(&core);
            threads.push(spawn("csvfs-watch", move || watch::serve(&watcher))?);
            // What an earlier coordinator left.
            core.call_reclaimer(false);
            if core.parts.scrub {
                *core.scrub.lock() = Scrub::Running { done: 0, about: 0 };
                let scrubber = Arc::clone(&core);
                threads.push(spawn("csvfs-scrub", move || scrub::serve(&scrubber))?);
            }
        }
        Ok(Arc::new(Self { core, threads: Mutex::new(threads) }))
    }

    /// A client is over (L10): its reserve returns and its slots refuse, in one transaction (V6); what it held open is
    /// closed.
    pub fn end_client(&self, client: ClientId) -> Result<(), Refusal> {
        self.core.may_change()?;
        self.core.run(Internal::EndClient(client))?;
        self.core.call_reclaimer(false);
        Ok(())
    }

    /// Whether `client` is a mount of this volume that has attached.
    #[must_use]
    pub fn knows(&self, client: ClientId) -> bool {
        self.core.clients.knows(client) || self.core.assembly.knows(client)
    }

    /// The mounts that have attached and are not forgotten.
    #[must_use]
    pub fn attached(&self) -> Vec<ClientId> {
        self.core.clients.attached().into_iter().map(|(_, client)| client).collect()
    }

    /// Looks now how sessions stand, for those who know that something has changed.
    pub fn look(&self) {
        self.core.watch.wake();
    }

    /// Makes free now what can be: trims are awaited. Tells how many blocks.
    pub fn reclaim(&self) -> Result<u64, Refusal> {
        self.core.may_change()?;
        self.core.reclaim()
    }

    /// Another mount is to coordinate the volume: no file begins to change its server any more. Whether none does.
    pub fn quieten(&self) -> bool {
        let mut opens = self.core.opens.lock();
        opens.set_quiet(true);
        !opens.is_any_moving()
    }

    /// Serves nobody any more: whoever asks is told that another mount is to coordinate the volume.
    pub fn retire(&self) {
        self.core.retired.store(true, SeqCst);
    }

    /// [`Coordinator::quieten`] is undone.
    pub fn stay(&self) {
        self.core.opens.lock().set_quiet(false);
    }

    /// What the next coordinator is to be told of files that nobody serves: that all in them is committed, and the slots of
    /// their remote users, of which `slots` are those that this node had.
    #[must_use]
    pub fn bequeath(&self, slots: Vec<FileSlots>) -> Bequest {
        Bequest { left: self.core.parts.openings.this, kept: self.core.opens.lock().bequeath(slots) }
    }

    /// Takes no more changes, finishes those that wait, and ends the threads. Whoever waits for space is told that the
    /// coordinator has closed.
    pub fn stop(&self) {
        self.core.queue.stop();
        {
            let mut call = self.core.call.lock();
            call.stop = true;
            call.told.clear();
        }
        self.core.called.notify_all();
        self.core.watch.stop();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        #[cfg(test)]
        self.core.stepped.end();
    }

    /// Why nothing is changed any more, if so.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.core.failure()
    }

    /// Transactions that were committed, and pieces of work that they held.
    #[must_use]
    pub fn commits(&self) -> (u64, u64) {
        let load =
            |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        (load(&self.core.commits), load(&self.core.changes))
    }

    /// How far the check of the whole store is.
    #[must_use]
    pub fn scrub(&self) -> Scrub {
        *self.core.scrub.lock()
    }

    fn ask(&self, head: &Head, operation: &Operation) -> Answered {
        leased::answer(&self.core, head, operation)
    }
}

/// Ends the clients of earlier sessions, and gives the metadata area again what is recorded as given.
fn take_over(core: &Core) -> Result<(), StartError> {
    writer::end_earlier_clients(core)?;
    let mut chunks = Vec::new();
    for row in core.snapshot()?.chunks.range::<u64>(..).map_err(StoreError::from)? {
        let (start, len) = row.map_err(StoreError::from)?;
        chunks.push(Run { start: crate::types::LunBlock(start.value()), len: len.value() });
    }
    if !chunks.is_empty() {
        core.parts.space.offer(&chunks)?;
    }
    Ok(())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Service for Coordinator {
    fn serve(&self, bytes: Vec<u8>, on_reply: OnReply) {
        let request: Request = match decode(&bytes) {
            Ok(request) => request,
            Err(error) => return on_reply(Ok(frame(&Err(Refusal::Invalid(error.to_string()))))),
        };
        if let Err(refusal) = self.core.check_head(&request.head) {
            return on_reply(Ok(frame(&Err(refusal))));
        }
        if !matches!(request.operation, Operation::Attach { .. })
            && let Err(refusal) = assembly::check(&self.core)
        {
            return on_reply(Ok(frame(&Err(refusal))));
        }
        if matches!(request.operation, Operation::Acquire { .. } | Operation::Release { .. })
            && self.core.opens.lock().is_quiet()
        {
            let why = "another mount is to coordinate the volume".to_owned();
            return on_reply(Ok(frame(&Err(Refusal::NotCoordinator(why)))));
        }
        if let Operation::Serving { ino } = request.operation {
            return memory::serving(&self.core, ino, on_reply);
        }
        if !request.operation.changes() {
            return on_reply(Ok(encoded(&self.ask(&request.head, &request.operation))));
        }
        if memory::is_of_memory(&request.operation) {
            return memory::execute(&self.core, request, on_reply);
        }
        if let Err(refusal) = self.core.may_change() {
            return on_reply(Ok(frame(&Err(refusal))));
        }
        if let Operation::Seal { file, seal: false, .. } = request.operation {
            return unseal::begin(&self.core, file.ino, request, on_reply);
        }
        Self::change(&self.core, request, on_reply);
    }
}

impl Coordinator {
    /// Gives a change to the writer.
    fn change(core: &Core, request: Request, on_reply: OnReply) {
        let work = Work::Request(Pending { request: Box::new(request), on_reply, mark: 0, last_try: false });
        match core.queue.push(work) {
            Ok(()) => {}
            Err(NotTaken::Full(Work::Request(pending))) => {
                let full = Refusal::Busy("the coordinator's queue is full; try again".to_owned());
                (pending.on_reply)(Ok(frame(&Err(full))));
            }
            Err(NotTaken::Stopped(Work::Request(pending))) => {
                (pending.on_reply)(Err(CarrierError::Closed("the coordinator has stopped".to_owned())));
            }
            Err(NotTaken::Full(Work::Internal(..)) | NotTaken::Stopped(Work::Internal(..))) => {}
        }
    }
}
