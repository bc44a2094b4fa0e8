//! What the threads of a coordinator share.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockd::authority::{Authority, Standing};
use lockd::clock::{BootTime, Clock};
use lockd::ids::{ClientId, Epoch, ResourceId, Sequence, SessionId, SlotId, VolumeId};
use lockd::network::OnReply;
use lockd::rules::{Rule, Rules};
use parking_lot::{Condvar, Mutex};
use redb::Database;
use redirector::lun::Lun;

use super::assembly::Assembly;
use super::clients::{Clients, Wait};
use super::leases::Leases;
use super::moving::Doubt;
use super::opens::{OnRest, Opens};
use super::quarantine::Quarantine;
use super::queue::{Internal, Queue, Work};
use super::scrub::Scrub;
use super::unseal::Unsealings;
use super::watch::Watch;
use crate::disk::MetadataSpace;
use crate::disk::journal::Journal;
use crate::peers::Peers;
use crate::proto::{Head, Key, Operation, Owned};
use crate::refusal::Refusal;
use crate::slots::Cache;
use crate::store::cookie::HashKey;
use crate::store::{Result, Snapshot, StoreError};

/// What a coordinator is made of.
#[derive(Debug)]
pub struct Parts {
    /// The store, opened by rule V2.
    pub database: Arc<Database>,
    /// The metadata area's need for room.
    pub space: Arc<dyn MetadataSpace>,
    /// Where groups are made durable between two commits of the store, if there is such a place.
    pub journal: Option<Journal>,
    /// The LUN, for trims and ghosts.
    pub lun: Arc<dyn Lun>,
    /// Sessions, holdings, epochs.
    pub authority: Arc<dyn Authority>,
    /// The ways to the nodes of clients that attach.
    pub peers: Arc<dyn Peers>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The rules that are kept.
    pub rules: Rules,
    /// The key of names, from the volume's label.
    pub key: HashKey,
    /// The epoch in which this coordinator serves.
    pub epoch: Epoch,
    /// By whom the store was opened.
    pub openings: Openings,
    /// Which volume it is.
    pub volume: VolumeId,
    /// Nothing is changed.
    pub read_only: bool,
    /// Freed blocks are trimmed.
    pub discard: bool,
    /// Opens the store once more for reading, after a failure: then only what needs the damaged page fails.
    pub beside: Option<Beside>,
    /// Reads the whole store once in the background, so that damage is found.
    pub scrub: bool,
    /// For so long after the start, writes that earlier incarnations sent may still land: nothing that is freed is
    /// given out again before. Zero where they are proved to be over.
    pub settle: Duration,
    /// For so long after a node has told of a ghost, that one may still land (P6).
    pub quiesce: Duration,
}

/// The epochs in which the store was opened for writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Openings {
    /// By whoever had it before.
    pub last: Epoch,
    /// For this coordinator.
    pub this: Epoch,
}

/// Tenures of one coordinator: each has a range of its own.
const TENURE_BITS: u32 = 32;

/// Answers by client and slot: the first is that of the request that was executed.
pub type Held = HashMap<(ClientId, u32), Vec<(OnReply, Vec<u8>)>>;
/// Late copies by client and slot: the sequence, and who waits.
pub type Copies = HashMap<(ClientId, SlotId), Vec<(Sequence, OnReply)>>;
type OpenBeside = dyn Fn() -> Result<Database, Box<dyn Error + Send + Sync>> + Send + Sync;

/// How to open the store once more, for reading.
#[derive(Clone)]
pub struct Beside(Arc<OpenBeside>);

impl Beside {
    /// By calling `open`.
    pub fn new(
        open: impl Fn() -> Result<Database, Box<dyn Error + Send + Sync>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(open))
    }
}

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Beside")
    }
}

/// When the reclaimer is to run.
#[derive(Debug, Default)]
pub struct Call {
    /// Something was freed.
    pub wanted: bool,
    /// Somebody waits for it.
    pub urgent: bool,
    /// It is to look again by itself then: something is held back that time makes free.
    pub due: Option<BootTime>,
    /// Who is told what the next whole pass did.
    pub told: Vec<Sender<Result<u64, Refusal>>>,
    /// It is to end.
    pub stop: bool,
}

/// The shared state.
pub struct Core {
    /// As given at the start.
    pub parts: Parts,
    /// Work for the writer.
    pub queue: Queue,
    /// Who has what open.
    pub opens: Mutex<Opens>,
    /// Who has attached.
    pub clients: Arc<Clients>,
    /// Who has not, of those that an earlier coordinator knew.
    pub assembly: Assembly,
    /// Another mount is to coordinate the volume: nobody is served any more.
    pub retired: AtomicBool,
    /// Who may keep what (V9).
    pub leases: Mutex<Leases>,
    /// Late copies of commands of memory that are being executed.
    pub copies: Mutex<Copies>,
    /// Reply slots that are in memory.
    pub slots: Mutex<Cache>,
    /// Files of which only the authority knows who has them.
    pub doubts: Mutex<Vec<Doubt>>,
    /// Files that are being unsealed.
    pub unsealing: Unsealings,
    /// Answers that wait for others' caches, and late copies of their requests: by client and slot.
    pub held: Mutex<Held>,
    /// The last committed state, once somebody has asked for it.
    snapshot: Mutex<Option<Arc<Snapshot>>>,
    /// What is read instead of the store proper, once that has failed.
    reader: Mutex<Option<Arc<Database>>>,
    /// How far the check in the background is.
    pub scrub: Mutex<Scrub>,
    /// Transactions that were committed by the writer.
    pub commits: AtomicU64,
    /// Changes that were asked of it.
    pub changes: AtomicU64,
    /// Why nothing is changed any more.
    broken: OnceLock<String>,
    /// Since when blocks are in quarantine.
    pub quarantine: Mutex<Quarantine>,
    /// Work for the reclaimer.
    pub call: Mutex<Call>,
    /// Wakes the thread that looks after sessions.
    pub watch: Watch,
    /// Clients of sessions that have ended and are not fenced.
    pub unfenced: Mutex<Vec<(SessionId, ClientId)>>,
    /// Wakes it.
    pub called: Condvar,
    /// When the coordinator started.
    pub started: BootTime,
    /// Where there are no threads, the writer between its steps.
    #[cfg(test)]
    pub stepped: super::simulated::Stepped,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl Core {
    /// The state around `parts`.
    pub fn new(parts: Parts) -> Self {
        let started = parts.clock.boot();
        let clients = Arc::new(Clients::new(Arc::clone(&parts.authority), parts.epoch));
        let tenures = parts.epoch.0 << TENURE_BITS;
        Self {
            parts,
            queue: Queue::default(),
            opens: Mutex::new(Opens::new(tenures)),
            clients,
            assembly: Assembly::default(),
            retired: AtomicBool::new(false),
            leases: Mutex::default(),
            slots: Mutex::default(),
            doubts: Mutex::default(),
            unsealing: Unsealings::default(),
            quarantine: Mutex::default(),
            held: Mutex::default(),
            copies: Mutex::default(),
            snapshot: Mutex::default(),
            reader: Mutex::default(),
            scrub: Mutex::default(),
            commits: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            broken: OnceLock::new(),
            call: Mutex::default(),
            called: Condvar::new(),
            watch: Watch::default(),
            unfenced: Mutex::default(),
            started,
            #[cfg(test)]
            stepped: super::simulated::Stepped::default(),
        }
    }

    /// The last committed state.
    pub fn snapshot(&self) -> Result<Arc<Snapshot>> {
        let mut current = self.snapshot.lock();
        if let Some(snapshot) = &*current {
            return Ok(Arc::clone(snapshot));
        }
        let reader = self.reader.lock().clone();
        let database = reader.as_ref().unwrap_or(&self.parts.database);
        let snapshot = Arc::new(Snapshot::take(database)?);
        *current = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// A commit has made the last state old.
    pub fn outdate(&self) {
        // A store that was opened once more while the last commit was on its way does not know of it.
        let reader = self.reader.lock().take();
        let old = self.snapshot.lock().take();
        drop((reader, old));
    }

    /// Whether `snapshot` is still the last state: no change after it has looked for who knows the old one.
    pub fn is_current(&self, snapshot: &Arc<Snapshot>) -> bool {
        self.snapshot.lock().as_ref().is_some_and(|current| Arc::ptr_eq(current, snapshot))
    }

    /// The coordinator's own node: who serves the files that nobody owns.
    pub fn home(&self) -> (SessionId, ClientId) {
        let role = ResourceId::Coordinator(self.parts.volume);
        let holding = self.parts.authority.holder(&role);
        holding.map_or((self.parts.authority.session(), ClientId(0)), |holding| {
            (holding.session, holding.client)
        })
    }

    /// V9: calls `then` when nobody but `asker` has any of `keys` in its cache any more. What `asker` has, it is told
    /// with its answer.
    pub fn recall(&self, keys: &[Key], asker: Option<ClientId>, then: super::clients::Then) {
        if keys.is_empty() || !self.clients.any() || !self.parts.rules.keeps(Rule::V9) {
            return then();
        }
        let wait = Wait::new(then);
        let noted = {
            let mut leases = self.leases.lock();
            let told = leases.take(keys, asker);
            self.clients.note(keys, told, asker, &wait)
        };
        self.clients.tell(noted);
        wait.over();
    }

    /// Grants leases to `client`; whether it has them.
    pub fn grant(&self, client: ClientId, keys: &[Key]) -> bool {
        let noted = self.grant_in(&mut self.leases.lock(), client, keys);
        let is_granted = noted.is_some();
        self.clients.tell(noted.unwrap_or_default());
        is_granted
    }

    /// The same, with the leases locked: who has to be told, because it has too many.
    pub fn grant_in(&self, leases: &mut Leases, client: ClientId, keys: &[Key]) -> Option<Vec<ClientId>> {
        let back = leases.grant(client, keys)?;
        if back.is_empty() {
            return Some(Vec::new());
        }
        let wait = Wait::new(Box::new(|| {}));
        let noted = self.clients.note(&[], vec![(client, back)], None, &wait);
        wait.over();
        Some(noted)
    }

    /// Tells those who waited for files to rest.
    pub fn rested(&self, told: Vec<OnRest>) {
        told.into_iter().for_each(|told| told());
    }

    /// `client` is over, or its session has ended: it answers nothing from its cache any more.
    pub fn end_leases(&self, client: ClientId) {
        self.leases.lock().end(client);
        self.clients.forget(client);
    }

    /// Nothing is changed from now on, because of `cause`.
    pub fn break_down(&self, cause: &str) {
        if self.broken.set(cause.to_owned()).is_ok() {
            tracing::error!(cause, "the coordinator stops changing the volume");
        }
    }

    /// The database has failed: it answers nothing any more, so nothing is changed, and the store is opened once more to
    /// be read. (A record that contradicts itself is no such failure.)
    pub fn store_failed(&self, error: &StoreError) {
        if !matches!(error, StoreError::Database(_)) {
            return;
        }
        // Whoever comes second hears of the database only that it has failed before.
        self.break_down(&self.parts.space.trouble().unwrap_or_else(|| error.to_string()));
        let Some(Beside(open)) = &self.parts.beside else { return };
        match open() {
            Ok(database) => {
                let before = self.reader.lock().replace(Arc::new(database));
                let old = self.snapshot.lock().take();
                drop((before, old));
            }
            Err(error) => tracing::warn!(%error, "the metadata store cannot be read any more"),
        }
    }

    /// Why nothing is changed any more, if so.
    pub fn failure(&self) -> Option<String> {
        self.broken.get().cloned()
    }

    /// Refuses when nothing may be changed.
    pub fn may_change(&self) -> Result<(), Refusal> {
        if self.parts.read_only {
            return Err(Refusal::ReadOnly);
        }
        match self.broken.get() {
            Some(cause) => Err(Refusal::Io(format!("the volume cannot be changed any more: {cause}"))),
            None => Ok(()),
        }
    }

    /// Refuses who asks under an old session or knows an old coordinator.
    pub fn check_head(&self, head: &Head) -> Result<(), Refusal> {
        // V3: switched off, anybody may ask.
        if !self.parts.rules.keeps(Rule::V3) {
            return Ok(());
        }
        if self.parts.authority.standing(head.session) != Standing::Live {
            return Err(Refusal::Stale(format!("session {} is over", head.session)));
        }
        if head.coordinator != self.parts.epoch {
            let (named, epoch) = (head.coordinator, self.parts.epoch);
            return Err(Refusal::NotCoordinator(format!("it serves in {epoch}, not in {named}")));
        }
        if self.retired.load(SeqCst) {
            return Err(Refusal::NotCoordinator("another mount is to coordinate the volume".to_owned()));
        }
        // V4: whoever is over gets no answer any more.
        if self.parts.rules.keeps(Rule::V4) && self.opens.lock().is_over(head.client) {
            return Err(Refusal::Stale(format!("client {} is over", head.client)));
        }
        Ok(())
    }

    /// Whether this is still the coordinator (invariant 3).
    pub fn holds_role(&self) -> Result<(), Refusal> {
        if !self.parts.rules.keeps(Rule::V3) {
            return Ok(());
        }
        let role = ResourceId::Coordinator(self.parts.volume);
        match self.parts.authority.holder(&role) {
            Some(holding) if holding.epoch == self.parts.epoch => Ok(()),
            _ => Err(Refusal::NotCoordinator(format!(
                "another mount may coordinate the volume by now; this one did in {}",
                self.parts.epoch
            ))),
        }
    }

    /// Checks the file epochs that an operation names (V3, and V8 where the owner must have stopped the file).
    pub fn check_owned(&self, head: &Head, operation: &Operation) -> Result<(), Refusal> {
        let (rule, files): (Rule, Vec<&Owned>) = match operation {
            Operation::Commit { file, .. } | Operation::Seal { file, .. } => (Rule::V3, vec![file]),
            Operation::CommitSet { parts } => (Rule::V3, parts.iter().map(|part| &part.file).collect()),
            Operation::Truncate { file, .. } | Operation::Allocate { file, .. } => (Rule::V8, vec![file]),
            Operation::Clone { source, target, .. } => (Rule::V8, vec![source, target]),
            _ => return Ok(()),
        };
        if !self.parts.rules.keeps(rule) {
            return Ok(());
        }
        files.into_iter().try_for_each(|file| self.check_owner(head, file))
    }

    /// A file is its owner's, in the ownership's epoch; one that nobody owns is the coordinator's, in its epoch.
    fn check_owner(&self, head: &Head, file: &Owned) -> Result<(), Refusal> {
        let resource = ResourceId::File(self.parts.volume, file.ino.0);
        let role = ResourceId::Coordinator(self.parts.volume);
        let authority = &self.parts.authority;
        let owns = |holding: Option<lockd::authority::Holding>| {
            let holding = holding.or_else(|| authority.holder(&role));
            holding.is_some_and(|holding| holding.client == head.client && holding.epoch == file.epoch)
        };
        if owns(authority.holder(&resource)) || owns(authority.confirmed_holder(&resource)) {
            return Ok(());
        }
        Err(Refusal::Stale(format!("{} is not owned by {} in {}", file.ino, head.client, file.epoch)))
    }

    /// Lets the reclaimer run.
    pub fn call_reclaimer(&self, urgent: bool) {
        let mut call = self.call.lock();
        call.wanted = true;
        call.urgent |= urgent;
        drop(call);
        self.called.notify_all();
    }

    /// Has the reclaimer do a whole pass, and tells how many blocks it freed. There is one pass at a time: a trim of one
    /// must not meet blocks that another has made free.
    pub fn reclaim(&self) -> Result<u64, Refusal> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut call = self.call.lock();
        if !call.stop {
            call.told.push(sender);
            (call.wanted, call.urgent) = (true, true);
        }
        drop(call);
        self.called.notify_all();
        receiver.recv().map_err(|_| Refusal::Io("the coordinator has stopped".to_owned()))?
    }

    /// The next of what somebody else sends here; none when nobody does any more.
    pub fn receive<T>(&self, receiver: &std::sync::mpsc::Receiver<T>) -> Option<T> {
        #[cfg(test)]
        if self.stepped.is_on() {
            return self.receive_in_step(receiver);
        }
        receiver.recv().ok()
    }

    /// Has the writer do `work` and waits for the commit.
    pub fn run(&self, work: Internal) -> Result<Option<u64>, Refusal> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let done = Box::new(move |result| {
            let _ = sender.send(result);
        });
        let stopped = || Refusal::Io("the coordinator has stopped".to_owned());
        self.queue.push(Work::Internal(work, done)).map_err(|_| stopped())?;
        #[cfg(test)]
        if self.stepped.is_on() {
            return self.step_until(&receiver);
        }
        receiver.recv().map_err(|_| stopped())?
    }
}
