//! A node with its coordinator, authority and LUN, and the calls of a front end that waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use lockd::authority::Authority;
use lockd::clock::{BootTime, Clock, ManualClock, WallTime};
use lockd::ids::{ClientId, Epoch, ResourceId, SessionId, VolumeId};
use lockd::lease::Lease;
use lockd::network::{Carrier, CarrierError, OnReply, Service};
use lockd::rules::Rules;
use lockd::standalone::Standalone;
use parking_lot::Mutex;
use redb::Database;
use redb::backends::InMemoryBackend;
use redirector::buffer::Pool;

use super::platter::{COMPLETES, Event, Platter};
use crate::coordinator::{self, Coordinator};
use crate::disk::{MetadataSpace, SpaceError};
use crate::node::{Node, Options, Parts};
use crate::proto::{Operation, Request, SetAttr, codec};
use crate::refusal::Refusal;
use crate::service::{Credentials, FileService, HandleId, OpenMode, Opened, Piece, ReadData, WriteMode};
use crate::store::check::check;
use crate::store::cookie::HashKey;
use crate::store::initialise;
use crate::types::{Attr, Ino, LunBlock, Run, Timestamp};

pub const VOLUME: VolumeId = VolumeId([7; 16]);
pub const WHO: Credentials = Credentials { uid: 0, gid: 0, umask: 0 };
/// The first block that files may have.
pub const FIRST: u64 = 8;

#[derive(Debug)]
pub struct NoSpaceNeeded;

impl MetadataSpace for NoSpaceNeeded {
    fn chunk_blocks(&self) -> u64 {
        16
    }
    fn wanted(&self) -> u64 {
        0
    }
    fn is_scarce(&self) -> bool {
        false
    }
    fn offer(&self, _chunks: &[Run]) -> Result<(), SpaceError> {
        Ok(())
    }
}

/// Carries to the coordinator and notes what.
#[derive(Debug)]
struct Wire {
    coordinator: Arc<Coordinator>,
    events: Arc<Mutex<Vec<Event>>>,
    /// So many replies are lost.
    loses: Arc<AtomicU64>,
    /// Whether the node has its threads.
    has_threads: bool,
}

impl Carrier for Wire {
    fn request(&self, frame: Vec<u8>, on_reply: OnReply) {
        let request: Request = codec::decode(&frame).unwrap();
        let reads_store = !request.operation.changes() || matches!(request.operation, Operation::Open { .. });
        // The store's own reads would wait for completions there.
        assert!(!(reads_store && COMPLETES.get() && self.has_threads), "{request:?} where nobody may wait");
        if request.operation.changes() {
            self.events.lock().push(Event::Message(name(&request.operation)));
        }
        let lost = self.loses.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        let on_reply: OnReply = if lost {
            Box::new(move |_| on_reply(Err(CarrierError::TimedOut(Duration::ZERO))))
        } else {
            on_reply
        };
        self.coordinator.serve(frame, on_reply);
    }
}

fn name(operation: &Operation) -> String {
    let text = format!("{operation:?}");
    text.split([' ', '{']).next().unwrap_or_default().to_owned()
}

/// See the module.
pub struct World {
    pub platter: Arc<Platter>,
    pub clock: Arc<ManualClock>,
    pub lease: Arc<Lease>,
    pub node: Arc<Node>,
    /// Replies of the coordinator that are lost from now on.
    pub loses: Arc<AtomicU64>,
    coordinator: Arc<Coordinator>,
    database: Arc<Database>,
    session: u64,
    options: Options,
}

impl World {
    /// A new volume on `platter`.
    pub fn new(platter: Arc<Platter>) -> Self {
        Self::with(platter, Options { background: false, ..Options::default() })
    }

    pub fn with(platter: Arc<Platter>, options: Options) -> Self {
        use redirector::lun::Lun;
        let blocks = platter.geometry().size / 4096 - FIRST;
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        initialise(&database, &[Run { start: LunBlock(FIRST), len: blocks }], Timestamp(1)).unwrap();
        Self::open(platter, Arc::new(database), 1, options)
    }

    fn open(platter: Arc<Platter>, database: Arc<Database>, session: u64, options: Options) -> Self {
        let rules = Rules::from_test_environment();
        let clock = Arc::new(ManualClock::new(BootTime(1 << 40), WallTime(1 << 50)));
        let lease = Arc::new(Lease::lapsed());
        lease.extend(BootTime(1 << 60));
        let first = ClientId(session * 100);
        let authority = Standalone::new(SessionId(session), Arc::clone(&lease), first, Epoch(session * 1000));
        let authority = Arc::new(authority);
        let client = authority.add_client().unwrap();
        let epoch = authority.acquire(&ResourceId::Coordinator(VOLUME), client).unwrap().epoch;
        let coordinator = Coordinator::start(coordinator::Parts {
            database: Arc::clone(&database),
            journal: None,
            space: Arc::new(NoSpaceNeeded),
            lun: Arc::clone(&platter) as _,
            authority: Arc::clone(&authority) as _,
            peers: Arc::new(crate::peers::Alone),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            rules,
            key: HashKey([1; 16]),
            epoch,
            openings: Default::default(),
            volume: VOLUME,
            read_only: false,
            discard: false,
            settle: Duration::ZERO,
            quiesce: Duration::ZERO,
            beside: None,
            scrub: false,
        })
        .unwrap();
        let loses = Arc::new(AtomicU64::new(0));
        let carrier = Arc::new(Wire {
            coordinator: Arc::clone(&coordinator),
            events: Arc::clone(&platter.events),
            loses: Arc::clone(&loses),
            has_threads: options.background,
        });
        let node = Node::start(Parts {
            carrier: Some(carrier),
            lun: Arc::clone(&platter) as _,
            authority,
            beat: None,
            peers: Arc::new(crate::peers::Alone),
            clock: Arc::clone(&clock) as _,
            rules,
            pool: Pool::default(),
            volume: VOLUME,
            client,
            coordinator: epoch,
            options,
        })
        .unwrap();
        let node = Arc::new(node);
        Self { platter, clock, lease, node, loses, coordinator, database, session, options }
    }

    /// The node and its coordinator die; what was not flushed is there or not. The next ones open the volume.
    pub fn crash(self, seed: u64) -> Self {
        self.coordinator.stop();
        let platter = self.platter.crash(seed);
        Self::open(platter, Arc::clone(&self.database), self.session + 1, self.options)
    }

    pub fn events(&self) -> Vec<Event> {
        self.platter.events.lock().clone()
    }

    pub fn file(&self, name: &str) -> Opened {
        let open = OpenMode { read: true, write: true, ..OpenMode::default() };
        wait(|done| self.node.create_open(WHO, Ino::ROOT, name.as_bytes(), 0o644, open, done)).unwrap()
    }

    pub fn open_file(&self, ino: Ino) -> Opened {
        let open = OpenMode { read: true, write: true, ..OpenMode::default() };
        wait(|done| self.node.open(ino, open, done)).unwrap()
    }

    pub fn write(&self, handle: HandleId, offset: u64, data: &[u8]) {
        self.try_write(handle, offset, data).unwrap();
    }

    pub fn try_write(&self, handle: HandleId, offset: u64, data: &[u8]) -> Result<u64, Refusal> {
        let data = slice(data);
        wait(|done| self.node.write(handle, offset, data, WriteMode::default(), done))
    }

    pub fn start_write(&self, handle: HandleId, offset: u64, data: &[u8]) -> Receiver<Result<u64, Refusal>> {
        let data = slice(data);
        start(|done| self.node.write(handle, offset, data, WriteMode::default(), done))
    }

    pub fn read(&self, handle: HandleId, offset: u64, len: u32) -> Vec<u8> {
        bytes(&wait(|done| self.node.read(handle, offset, len, done)).unwrap())
    }

    pub fn sync(&self, handle: HandleId) -> Result<(), Refusal> {
        wait(|done| self.node.sync(handle, done))
    }

    pub fn truncate(&self, ino: Ino, size: u64) -> Attr {
        wait(|done| self.node.set_attr(ino, SetAttr::default(), Some(size), done)).unwrap()
    }

    pub fn attr(&self, ino: Ino) -> Attr {
        wait(|done| self.node.get_attr(ino, done)).unwrap()
    }

    /// Nothing is wrong with the store, once the coordinator has stopped.
    pub fn check(&self) {
        use redirector::lun::Lun;
        self.coordinator.stop();
        let region = Run { start: LunBlock(FIRST), len: self.platter.geometry().size / 4096 - FIRST };
        let findings = check(&self.database, &HashKey([1; 16]), &[region], &mut |_, _, _| {}).unwrap();
        assert!(findings.is_clean(), "{findings}");
    }

    pub fn shut_down(&self) {
        wait(|done| self.node.shut_down(done)).unwrap();
    }
}

pub fn slice(data: &[u8]) -> redirector::buffer::Slice {
    let mut buffer = Pool::default().take(data.len());
    buffer.copy_from_slice(data);
    buffer.share()
}

pub fn bytes(data: &ReadData) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in &data.pieces {
        match piece {
            Piece::Bytes { buffer, skip, len } => all.extend_from_slice(&buffer[*skip..skip + len]),
            Piece::Zeros(len) => all.resize(all.len() + len, 0),
        }
    }
    all
}

/// Starts a request; its answer comes to the receiver.
pub fn start<T: Send + 'static, E: Send + 'static>(
    request: impl FnOnce(Box<dyn FnOnce(Result<T, E>) + Send>),
) -> Receiver<Result<T, E>> {
    let (sender, receiver) = mpsc::channel();
    request(Box::new(move |result| {
        let _ = sender.send(result);
    }));
    receiver
}

/// Makes a request and waits for its answer.
pub fn wait<T: Send + 'static, E: Send + 'static>(
    request: impl FnOnce(Box<dyn FnOnce(Result<T, E>) + Send>),
) -> Result<T, E> {
    start(request).recv_timeout(Duration::from_secs(10)).expect("no answer within 10 s")
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(std::time::Instant::now() < end, "{what} did not come within 10 s");
        std::thread::sleep(Duration::from_micros(200));
    }
}
