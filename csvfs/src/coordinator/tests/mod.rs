//! A coordinator on a store in memory, asked through its codec.

mod attributes;
mod data;
mod figures;
mod model;
mod names;
mod quarantine;
mod reclaim;
mod rename;
mod rules;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lockd::authority::{Authority, AuthorityError, Holding};
use lockd::clock::{Clock, SystemClock};
use lockd::ids::{ClientId, Epoch, ResourceId, Sequence, SessionId, SlotId, VolumeId};
use lockd::lease::Lease;
use lockd::network::Service;
use lockd::rules::Rules;
use parking_lot::Mutex;
use redb::Database;
use redb::backends::InMemoryBackend;
use redirector::buffer::{Buffer, Slice};
use redirector::lun::{Geometry, Lun, OnDone, OnRead, Outcome, Proof};

use super::{Coordinator, Parts};
use crate::disk::{MetadataSpace, SpaceError};
use crate::proto::codec::{decode, encode};
use crate::proto::{
    Answer, Answered, Created, FileSlots, Head, LayoutPart, Operation, Owned, RenameMode, Reply, Request,
    SetAttr, WrittenRun,
};
use crate::refusal::Refusal;
use crate::store::check::check;
use crate::store::cookie::HashKey;
use crate::store::{dump, initialise};
use crate::types::{Attr, Extent, FileBlock, Ino, LunBlock, Run, Timestamp};

pub const VOLUME: VolumeId = VolumeId([9; 16]);
pub const EPOCH: Epoch = Epoch(5);

/// An authority that tests change at will.
#[derive(Debug)]
pub struct Court {
    pub session: AtomicU64,
    lease: Arc<Lease>,
    pub holdings: Mutex<HashMap<ResourceId, Holding>>,
}

impl Court {
    fn new(session: u64) -> Self {
        let holding = Holding { session: SessionId(session), client: ClientId(1), epoch: EPOCH };
        let holdings = HashMap::from([(ResourceId::Coordinator(VOLUME), holding)]);
        Self {
            session: AtomicU64::new(session),
            lease: Arc::new(Lease::unlimited()),
            holdings: Mutex::new(holdings),
        }
    }

    /// `client` owns `ino` in `epoch`.
    pub fn own(&self, ino: Ino, client: ClientId, epoch: Epoch) {
        let holding = Holding { session: self.session(), client, epoch };
        self.holdings.lock().insert(ResourceId::File(VOLUME, ino.0), holding);
    }
}

impl Authority for Court {
    fn session(&self) -> SessionId {
        SessionId(self.session.load(Ordering::Relaxed))
    }
    fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }
    fn add_client(&self) -> Result<ClientId, AuthorityError> {
        Ok(ClientId(1))
    }
    fn end_client(&self, _client: ClientId) {}
    fn acquire(&self, resource: &ResourceId, client: ClientId) -> Result<Holding, AuthorityError> {
        let holding = Holding { session: self.session(), client, epoch: Epoch(1) };
        self.holdings.lock().insert(resource.clone(), holding);
        Ok(holding)
    }
    fn release(&self, resource: &ResourceId, _client: ClientId, _epoch: Epoch) -> Result<(), AuthorityError> {
        self.holdings.lock().remove(resource);
        Ok(())
    }
    fn holder(&self, resource: &ResourceId) -> Option<Holding> {
        self.holdings.lock().get(resource).copied()
    }
}

/// A LUN that only knows trims and ghosts.
#[derive(Debug, Default)]
pub struct Plate {
    pub ghosts: Mutex<Vec<Range<u64>>>,
    pub trims: Mutex<Vec<Range<u64>>>,
    held: Mutex<Vec<HeldTrim>>,
    pub hold: AtomicBool,
}

struct HeldTrim(OnDone);

impl std::fmt::Debug for HeldTrim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeldTrim")
    }
}

impl Plate {
    /// Lets the trims that are held end, and holds no more.
    pub fn let_go(&self) {
        self.hold.store(false, Ordering::SeqCst);
        let held = std::mem::take(&mut *self.held.lock());
        held.into_iter().for_each(|trim| (trim.0)(Outcome::Done));
    }

    /// Trims that are held.
    pub fn held(&self) -> usize {
        self.held.lock().len()
    }
}

impl Lun for Plate {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: 1 << 40,
            block_size: 4096,
            request_max: 1 << 20,
            trim: true,
            write_zeroes: true,
            volatile_cache: false,
        }
    }
    fn read(&self, _offset: u64, buffer: Buffer, on_read: OnRead) {
        on_read(Outcome::Done, buffer);
    }
    fn write(&self, _offset: u64, _data: Slice, _fua: bool, on_done: OnDone) {
        on_done(Outcome::Done);
    }
    fn flush(&self, on_done: OnDone) {
        on_done(Outcome::Done);
    }
    fn zero(&self, _range: Range<u64>, on_done: OnDone) {
        on_done(Outcome::Done);
    }
    fn trim(&self, range: Range<u64>, on_done: OnDone) {
        self.trims.lock().push(range);
        if self.hold.load(Ordering::SeqCst) {
            self.held.lock().push(HeldTrim(on_done));
        } else {
            on_done(Outcome::Done);
        }
    }
    fn ghosts(&self) -> Vec<Range<u64>> {
        self.ghosts.lock().clone()
    }
    fn prove_ended(&self, _earlier: ClientId) -> Proof {
        Proof::Unprovable
    }
    fn describe(&self) -> String {
        "a plate".to_owned()
    }
}

/// A metadata area that asks for what tests say.
#[derive(Debug, Default)]
pub struct Area {
    pub wanted: AtomicU64,
    pub scarce: AtomicBool,
    pub offered: Mutex<Vec<Run>>,
}

pub const CHUNK: u64 = 16;

impl MetadataSpace for Area {
    fn chunk_blocks(&self) -> u64 {
        CHUNK
    }
    fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::SeqCst)
    }
    fn is_scarce(&self) -> bool {
        self.scarce.load(Ordering::SeqCst)
    }
    fn offer(&self, chunks: &[Run]) -> Result<(), SpaceError> {
        self.wanted.fetch_sub((chunks.len() as u64).min(self.wanted()), Ordering::SeqCst);
        self.offered.lock().extend_from_slice(chunks);
        if !chunks.is_empty() {
            self.scarce.store(false, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// A volume with its coordinator, and a client that asks it.
#[derive(Debug)]
pub struct Volume {
    pub database: Arc<Database>,
    pub court: Arc<Court>,
    pub plate: Arc<Plate>,
    pub area: Arc<Area>,
    pub rules: Rules,
    pub coordinator: Arc<Coordinator>,
    pub settle: Duration,
    pub quiesce: Duration,
    sequence: AtomicU64,
}

pub const FIRST: u64 = 1000;

impl Volume {
    /// A volume of `blocks` blocks, from LUN block [`FIRST`] on.
    pub fn new(blocks: u64) -> Self {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        Self::on(database, blocks)
    }

    /// The same on an empty database.
    pub fn on(database: Database, blocks: u64) -> Self {
        initialise(&database, &[Run { start: LunBlock(FIRST), len: blocks }], Timestamp(1)).unwrap();
        let (database, court) = (Arc::new(database), Arc::new(Court::new(1)));
        let (plate, area) = (Arc::new(Plate::default()), Arc::new(Area::default()));
        let rules = Rules::from_test_environment();
        let coordinator = launch(&database, &court, &plate, &area, rules, [Duration::ZERO; 2]);
        let sequence = AtomicU64::new(1);
        let (settle, quiesce) = (Duration::ZERO, Duration::ZERO);
        Self { database, court, plate, area, rules, coordinator, settle, quiesce, sequence }
    }

    /// The coordinator ends without a word and another starts on the same store.
    pub fn restart(&mut self) {
        self.coordinator.stop();
        self.coordinator = launch(
            &self.database,
            &self.court,
            &self.plate,
            &self.area,
            self.rules,
            [self.settle, self.quiesce],
        );
    }

    /// The next session begins with a restart.
    pub fn next_session(&mut self) {
        self.court.session.fetch_add(1, Ordering::SeqCst);
        self.restart();
    }

    pub fn head(&self) -> Head {
        let sequence = Sequence(self.sequence.fetch_add(1, Ordering::SeqCst));
        Head {
            session: self.court.session(),
            client: ClientId(1),
            coordinator: EPOCH,
            slot: Some((SlotId(0), sequence)),
        }
    }

    pub fn ask_as(&self, head: Head, operation: Operation) -> Reply {
        ask(&*self.coordinator, head, operation)
    }

    pub fn ask(&self, operation: Operation) -> Reply {
        self.ask_as(self.head(), operation)
    }

    /// A refusal, which leaves no trace in the store.
    pub fn refused(&self, operation: Operation) -> Refusal {
        // What is freed in the background is no trace.
        self.coordinator.reclaim().unwrap();
        let before = dump(&self.database).unwrap();
        let refusal = self.ask(operation.clone()).expect_err(&format!("{operation:?}"));
        assert_eq!(dump(&self.database).unwrap(), before, "{operation:?} left a trace");
        refusal
    }

    pub fn entry(&self, operation: Operation) -> Attr {
        match self.ask(operation.clone()) {
            Ok(Answer::Entry(attr)) => attr,
            other => panic!("{operation:?}: {other:?}"),
        }
    }

    pub fn open(&self, ino: Ino) -> Attr {
        match self.ask(Operation::Open { ino, write: false }) {
            Ok(Answer::Opened { attr, .. }) => attr,
            other => panic!("{other:?}"),
        }
    }

    pub fn done(&self, operation: Operation) {
        assert_eq!(self.ask(operation.clone()), Ok(Answer::Done), "{operation:?}");
    }

    pub fn create(&self, parent: Ino, name: &str, what: Created) -> Attr {
        self.entry(create(parent, name, what))
    }

    pub fn file(&self, name: &str) -> Ino {
        self.create(Ino::ROOT, name, Created::File).ino
    }

    pub fn directory(&self, parent: Ino, name: &str) -> Ino {
        self.create(parent, name, Created::Directory).ino
    }

    pub fn attr(&self, ino: Ino) -> Attr {
        self.entry(Operation::GetAttr { ino })
    }

    pub fn lookup(&self, parent: Ino, name: &str) -> Result<Attr, Refusal> {
        match self.ask(Operation::Lookup { parent, name: name.into() }) {
            Ok(Answer::Entry(attr)) => Ok(attr),
            Err(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub fn layout(&self, ino: Ino) -> LayoutPart {
        match self.ask(Operation::Layout { ino, from: FileBlock(0), limit: 1000 }) {
            Ok(Answer::Layout(layout)) => layout,
            other => panic!("{other:?}"),
        }
    }

    pub fn extents(&self, ino: Ino) -> Vec<Extent> {
        self.layout(ino).extents
    }

    pub fn reserve(&self, want: u64) -> Vec<Run> {
        match self.ask(Operation::Reserve { want }) {
            Ok(Answer::Runs(runs)) => runs,
            other => panic!("{other:?}"),
        }
    }

    /// Blocks of the reserve, in one run.
    pub fn one_run(&self, len: u64) -> LunBlock {
        let runs = self.reserve(len);
        assert_eq!((runs.len(), runs[0].len), (1, len), "{runs:?}");
        runs[0].start
    }

    /// Writes `len` fresh blocks at `file`.
    pub fn write(&self, ino: Ino, file: u64, len: u64) -> LunBlock {
        let lun = self.one_run(len);
        let version = self.ask(commit(ino, &[(file, lun.0, len)]));
        assert!(matches!(version, Ok(Answer::Version(_))), "{version:?}");
        lun
    }

    pub fn truncate(&self, ino: Ino, size: u64) -> Reply {
        self.ask(Operation::Truncate { file: owned(ino), size, clear_set_id: false, now: NOW })
    }

    pub fn unlink(&self, parent: Ino, name: &str) -> Reply {
        self.ask(Operation::Unlink { parent, name: name.into(), now: NOW })
    }
}

fn launch(
    database: &Arc<Database>,
    court: &Arc<Court>,
    plate: &Arc<Plate>,
    area: &Arc<Area>,
    rules: Rules,
    times: [Duration; 2],
) -> Arc<Coordinator> {
    Coordinator::start(parts((database, court, plate, area), rules, times, Arc::new(SystemClock))).unwrap()
}

type Ground<'a> = (&'a Arc<Database>, &'a Arc<Court>, &'a Arc<Plate>, &'a Arc<Area>);

/// What a coordinator is made of.
pub fn parts(
    (database, court, plate, area): Ground<'_>,
    rules: Rules,
    [settle, quiesce]: [Duration; 2],
    clock: Arc<dyn Clock>,
) -> Parts {
    Parts {
        database: Arc::clone(database),
        journal: None,
        space: area.clone(),
        lun: plate.clone(),
        authority: court.clone(),
        peers: Arc::new(crate::peers::Alone),
        clock,
        rules,
        key: HashKey([3; 16]),
        epoch: EPOCH,
        openings: Default::default(),
        volume: VOLUME,
        read_only: false,
        discard: true,
        settle,
        quiesce,
        beside: None,
        scrub: false,
    }
}

pub const NOW: Timestamp = Timestamp(1_000_000_000);

/// Asks through the codec and waits.
pub fn ask(service: &dyn Service, head: Head, operation: Operation) -> Reply {
    let receiver = send(service, head, operation);
    receiver.recv_timeout(Duration::from_secs(15)).expect("an answer in time")
}

/// Asks; the answer comes by the channel.
pub fn send(service: &dyn Service, head: Head, operation: Operation) -> std::sync::mpsc::Receiver<Reply> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let bytes = encode(&Request { head, operation }).unwrap();
    service.serve(
        bytes,
        Box::new(move |reply| {
            let reply = match reply {
                Ok(bytes) => decode::<Answered>(&bytes).unwrap().reply,
                Err(error) => Err(Refusal::Io(error.to_string())),
            };
            let _ = sender.send(reply);
        }),
    );
    receiver
}

pub fn close(ino: Ino) -> Operation {
    Operation::Close { files: vec![FileSlots { ino, slots: Vec::new() }] }
}

pub fn create(parent: Ino, name: &str, what: Created) -> Operation {
    let mode = if what == Created::Directory { 0o777 } else { 0o666 };
    Operation::Create {
        parent,
        name: name.into(),
        what,
        mode,
        umask: 0o022,
        uid: 1000,
        gid: 100,
        exclusive: true,
        open: false,
        now: NOW,
    }
}

pub fn owned(ino: Ino) -> Owned {
    Owned { ino, epoch: EPOCH }
}

pub fn commit(ino: Ino, runs: &[(u64, u64, u64)]) -> Operation {
    let written = runs
        .iter()
        .map(|(file, lun, len)| WrittenRun { file: FileBlock(*file), lun: LunBlock(*lun), len: *len })
        .collect();
    let end = runs.iter().map(|(file, _, len)| file.saturating_add(*len)).max().unwrap_or(0);
    Operation::Commit {
        file: owned(ino),
        written,
        size: Some(end.min(1 << 40) * 4096),
        mtime: Some(NOW),
        atime: None,
        clear_set_id: false,
        now: NOW,
    }
}

pub fn rename(from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Operation {
    Operation::Rename {
        parent: from.0,
        name: from.1.into(),
        new_parent: to.0,
        new_name: to.1.into(),
        mode,
        now: NOW,
    }
}

pub fn set_mode(ino: Ino, mode: u32) -> Operation {
    Operation::SetAttr { ino, set: SetAttr { mode: Some(mode), ..SetAttr::default() }, now: NOW }
}

/// Waits for a condition.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Nothing is wrong with the store.
pub fn assert_clean(volume: &Volume, blocks: u64) {
    let region = [Run { start: LunBlock(FIRST), len: blocks }];
    let findings = check(&volume.database, &HashKey([3; 16]), &region, &mut |_, _, _| {}).unwrap();
    assert!(findings.is_clean(), "{findings}");
}
