//! The node: open files, their layouts, the reserve, and the data path between the front end and the LUN.
//!
//! Metadata is asked of the coordinator, in messages; file data goes from the front end's buffer to the LUN and back,
//! decided here by the file's owner. Of the two, [`Node`] is the whole: it implements
//! [`FileService`](crate::service::FileService).
//!
//! | module | what |
//! |---|---|
//! | `service` | the front end's words, given to the parts |
//! | `names`, `open`, `closings` | names and attributes; opening, closing, ownership |
//! | `read`, `write` | the data path |
//! | `commit`, `commit_set` | flush, then tell the coordinator (V5): of one file, of several |
//! | `resize`, `copy` | what the owner holds still for (V8) |
//! | `seal` | sealed files, which every node reads directly (V8) |
//! | `gate`, `blocks`, `layout`, `stock`, `marks` | the state of a file and of the reserve, without I/O |
//! | `cache` | names and attributes under leases (V9) |
//! | `owner`, `yielding`, `journeys`, `offer` | files that come here, and that go, once; sets that only go where they are meant to |
//! | `attaching`, `resigning` | a coordinator learns what is open here; another one coordinates |
//! | `remote`, `callback` | I/O at another node; what others ask of this one |
//! | `pages` | what the kernel keeps of a file that other nodes use |
//! | `slots` | reply slots of this node's requests |
//! | `media`, `channel` | the LUN under the lease (L3); the coordinator in slots (L5) |
//! | `task`, `turn` | steps that wait, without a thread of their own |
//! | `background`, `asker` | the two threads: what is done by itself; questions that a completion raises |
//!
//! # What a request costs here
//!
//! A read of one extent, and a write of whole blocks into one extent that is the file's own, with the lease unlimited:
//!
//! | | read | write |
//! |---|---|---|
//! | system calls, wake-ups, thread hand-overs | 0 | 0 |
//! | copies of the data | 0 | 0 |
//! | requests to the LUN, messages to the coordinator | 1, 0 | 1, 0 |
//! | allocations | 3: the plan, the completion, the list of pieces (buffers are recycled) | 1: the completion |
//! | shared locks held | handle table's shard and layout, for a look-up each | the same |
//! | contended atomics | 2 of the gate, 2 counters | the same, and 2 for each 256 KiB of block locks |
//!
//! A limited lease adds a clock read to each; a write reads the clock for its time stamp. A write into a hole costs a
//! task (about six small allocations) and the layout's lock for writing, and still one request to the LUN.
//!
//! # Bounds
//!
//! Requests in flight are bounded by the front end. A layout is held whole while its file is open (about 60 bytes for
//! each extent), idle files (2048) are closed first. Uncommitted extents beyond `dirty_parts_max` start a commit. The
//! reserve is at most `reserve_max` blocks, and a file's speculation an eighth of what is free of it.

mod asker;
mod attaching;
mod background;
mod blocks;
mod cache;
mod callback;
mod channel;
mod closings;
mod commit;
mod commit_set;
mod copy;
mod counters;
mod file;
mod gate;
mod journeys;
mod layout;
mod marks;
mod media;
mod names;
mod offer;
mod open;
mod owner;
mod pages;
mod read;
mod remote;
mod reserve;
mod resigning;
mod resize;
mod seal;
mod service;
mod slots;
mod stock;
mod table;
mod task;
#[cfg(test)]
mod tests;
mod turn;
mod write;
mod yielding;

#[cfg(test)]
pub(crate) use remote::is_refusal;

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockd::authority::Authority;
use lockd::clock::{BootTime, Clock};
use lockd::ids::{ClientId, Epoch, VolumeId};
use lockd::lease::Lease;
use lockd::machine::Cookie;
use lockd::network::Carrier;
use lockd::rules::Rules;
use parking_lot::Mutex;
use redirector::buffer::Pool;
use redirector::lun::Lun;

use crate::peers::Peers;
use crate::proto::{Bequest, FileSlots};
use crate::refusal::Refusal;
use crate::service::{Done, Pages};
use crate::types::{Ino, Timestamp};
use asker::Asker;
use background::{Alarm, Background};
use channel::Channel;
use counters::Counters;
pub use counters::Figures;
use file::File;
use media::Media;
use offer::Closed;
pub use offer::{Given, Offer};
use open::Handle;
pub use owner::SetRefusal;
use reserve::Reserve;
use table::Table;

/// How many ticks a node that ends waits for what other nodes still do to its files.
const GUESTS_WAIT: usize = 200;

/// What a node is made of.
#[derive(Debug)]
pub struct Parts {
    /// The way to the volume's coordinator; none if it is not known yet: everything waits for [`Node::follow`].
    pub carrier: Option<Arc<dyn Carrier>>,
    /// The LUN.
    pub lun: Arc<dyn Lun>,
    /// Who grants ownership, and the lease.
    pub authority: Arc<dyn Authority>,
    /// The lease of this mount's claim on the LUN (V1), where it is not the authority's: both are needed to write.
    pub beat: Option<Arc<Lease>>,
    /// The ways to the other nodes.
    pub peers: Arc<dyn Peers>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The rules that are kept.
    pub rules: Rules,
    /// Memory for reads.
    pub pool: Pool,
    /// The volume.
    pub volume: VolumeId,
    /// This process, as the authority has registered it.
    pub client: ClientId,
    /// The epoch in which the coordinator serves.
    pub coordinator: Epoch,
    /// How the node behaves.
    pub options: Options,
}

/// How a node behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Half seconds between commits of what nobody syncs.
    pub commit_rounds: u64,
    /// Blocks of 4 KiB that the reserve starts with, and at most.
    pub reserve_min: u64,
    /// See `reserve_min`.
    pub reserve_max: u64,
    /// Uncommitted extents of a file that start a commit.
    pub dirty_parts_max: usize,
    /// How long a request waits for a lapsed lease to be won back, before it fails (P2).
    pub hold: Duration,
    /// Whether the time of the last read is kept (relatime).
    pub atime: bool,
    /// Whether other nodes use the volume: the coordinator calls this one back, and files are served by one of them.
    pub cluster: bool,
    /// Whether the node has threads of its own, for what it does by itself and for questions that come up where nobody
    /// may wait. A simulation has none and calls [`Node::round`].
    pub background: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            commit_rounds: 10,
            reserve_min: 4096,
            reserve_max: 131_072,
            dirty_parts_max: 4096,
            hold: Duration::from_secs(120),
            atime: true,
            cluster: false,
            background: true,
        }
    }
}

/// What is called with the outcome for a set of files.
pub type SetDone<T> = Box<dyn FnOnce(Result<T, SetRefusal>) + Send>;

/// The state that all parts share.
struct Core {
    channel: Channel,
    media: Arc<Media>,
    authority: Arc<dyn Authority>,
    peers: Arc<dyn Peers>,
    /// Files that were given up lately, and what was answered: the coordinator may ask again.
    journeys: Mutex<journeys::Journeys>,
    /// Openings and closings that the coordinator is being told of. Stopped and drained while it is told all that is open.
    openings: gate::Gate,
    /// Files that change their server at this moment. Stopped and drained likewise.
    givings: gate::Gate,
    /// One attachment at a time.
    attaching: turn::Turn,
    /// This node is ceasing to be the coordinator's: it serves nothing more that nobody owns.
    resigns: AtomicBool,
    /// What it hands on to the next coordinator of what it has served for nobody.
    legacy: Mutex<Bequest>,
    /// Requests to other nodes that are under way.
    sendings: remote::Sendings,
    closings: closings::Closings,
    /// Files that this node offers to others.
    offers: Mutex<offer::Offers>,
    /// Files that this node keeps.
    pins: Mutex<HashSet<Ino>>,
    clock: Arc<dyn Clock>,
    rules: Rules,
    volume: VolumeId,
    client: ClientId,
    options: Options,
    files: Table<Ino, Arc<File>>,
    handles: Table<u64, Arc<Handle>>,
    next_handle: AtomicU64,
    /// Counts the slots towards the servers of files.
    next_slots: AtomicU64,
    reserve: Reserve,
    /// Files with something to commit.
    dirty: Mutex<Vec<Ino>>,
    /// Open files that nobody uses.
    idle: AtomicU64,
    /// How many files have been closed, counted before each leaves the table.
    closed: AtomicU64,
    /// The background closes idle files: one sweep at a time, so that a coordinator that hangs gathers none.
    sweeps: AtomicBool,
    /// Rounds of the background.
    ticks: AtomicU64,
    /// The node is being shut down: nothing is opened any more.
    ended: AtomicBool,
    counters: Counters,
    /// The page cache of the front end, if it has one.
    pages: OnceLock<Arc<dyn Pages>>,
}

impl Core {
    fn now(&self) -> Timestamp {
        Timestamp(self.clock.wall().0)
    }
}

/// See the module.
pub struct Node {
    core: Arc<Core>,
    _background: Option<Background>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("volume", &self.core.volume).finish_non_exhaustive()
    }
}

impl Node {
    /// Starts a node.
    ///
    /// # Errors
    /// If its threads cannot be started.
    pub fn start(parts: Parts) -> std::io::Result<Self> {
        let asker = if parts.options.background { Some(Asker::start()?) } else { None };
        Self::with(parts, asker)
    }

    /// Starts a node without threads: `run` runs, one after the other, the questions that may wait.
    #[cfg(test)]
    pub(crate) fn simulated(
        parts: Parts,
        run: impl Fn(asker::Job) + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        Self::with(parts, Some(Asker::simulated(run)))
    }

    fn with(parts: Parts, asker: Option<Asker>) -> std::io::Result<Self> {
        let Parts {
            carrier,
            lun,
            authority,
            beat,
            peers,
            clock,
            rules,
            pool,
            volume,
            client,
            coordinator,
            options,
        } = parts;
        let lease = Arc::clone(authority.lease());
        let alarm = Arc::new(Alarm::default());
        let media = Arc::new(Media::new(
            lun,
            pool,
            [Some(lease), beat],
            Arc::clone(&clock),
            rules,
            options.hold,
            Arc::clone(&alarm),
        ));
        let who = (authority.session(), client);
        let core = Arc::new(Core {
            channel: Channel::new(carrier, who, coordinator, asker, Arc::clone(&media), options.cluster),
            media,
            authority,
            peers,
            journeys: Mutex::default(),
            openings: gate::Gate::default(),
            givings: gate::Gate::default(),
            attaching: turn::Turn::default(),
            resigns: AtomicBool::new(false),
            legacy: Mutex::default(),
            sendings: remote::Sendings::default(),
            closings: closings::Closings::default(),
            offers: Mutex::default(),
            pins: Mutex::default(),
            clock,
            rules,
            volume,
            client,
            options,
            files: Table::new(),
            handles: Table::new(),
            next_handle: AtomicU64::new(1),
            next_slots: AtomicU64::new(0),
            reserve: Reserve::new(options.reserve_min),
            dirty: Mutex::default(),
            idle: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            sweeps: AtomicBool::new(false),
            ticks: AtomicU64::new(1),
            ended: AtomicBool::new(false),
            counters: Counters::default(),
            pages: OnceLock::new(),
        });
        let background = if options.background { Some(Background::start(&core, alarm)?) } else { None };
        Ok(Self { core, _background: background })
    }

    /// Whether something waits for [`Node::tick`].
    #[cfg(test)]
    pub(crate) fn awaits_tick(&self) -> bool {
        self.core.media.is_awaited()
    }

    /// Lets those look again who wait for a lease, a ghost or another node, for those who start the node without its
    /// thread.
    #[cfg(test)]
    pub(crate) fn tick(&self) {
        self.core.media.tick();
    }

    /// One round of what the node does by itself, for those who start it without its thread.
    pub fn round(&self) {
        self.core.media.tick();
        self.core.round();
    }

    /// The node's state in figures.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let core = &self.core;
        Figures {
            in_flight: core.files.values().iter().map(|file| file.gate.in_flight()).sum(),
            open: core.files.len() as u64,
            handles: core.handles.len() as u64,
            reserve_blocks: core.reserve.stock.lock().free(),
            ..core.counters.figures()
        }
    }

    /// Lets the coordinator of a cluster's volume know that this node is here; what it is told is kept from then on.
    /// To be called before the node serves a front end.
    pub fn attach(&self, done: Done<()>) {
        let core = Arc::clone(&self.core);
        task::run(async move { done(core.attach().await) });
    }

    /// Another mount coordinates the volume, in the epoch `coordinator`: what waits for an answer is asked of that one, by
    /// `carrier`, when it knows this node.
    pub fn follow(&self, carrier: Arc<dyn Carrier>, coordinator: Epoch, done: Done<()>) {
        let core = Arc::clone(&self.core);
        task::run(async move { done(core.follow(carrier, coordinator).await) });
    }

    /// The epoch of the coordinator that this node asks.
    #[must_use]
    pub fn coordinator(&self) -> Epoch {
        self.core.channel.coordinator()
    }

    /// Does of [`Node::resign`] what stops nothing yet.
    pub fn prepare_to_resign(&self, done: Done<()>) {
        let core = Arc::clone(&self.core);
        task::run(async move { done(core.prepare_to_resign().await) });
    }

    /// This node is to be the coordinator's no more: what it serves for nobody is stopped, drained and committed, and is
    /// served by the next coordinator's node. Tells the slots of its remote users. If that is refused, all goes on.
    pub fn resign(&self, done: Done<Vec<FileSlots>>) {
        let core = Arc::clone(&self.core);
        task::run(async move { done(core.resign().await) });
    }

    /// [`Node::resign`] is undone: the coordinator stays.
    pub fn stay(&self) {
        self.core.resigns.store(false, SeqCst);
        self.core.media.tick();
    }

    /// Nobody is asked any more until [`Node::follow`]. The next coordinator is handed `bequest`.
    pub fn hang_up(&self, bequest: Bequest) {
        *self.core.legacy.lock() = bequest;
        self.core.channel.switch(None, Epoch::NOBODY);
    }

    /// Makes this node the owner of files, open or not, until they are released: it yields them to nobody, but for what it
    /// offers itself. Tells the epoch that all of them have, if it is one. With `offer`, which another node has made, all
    /// of them come at once, or none.
    pub fn pin(&self, files: Vec<Ino>, offer: Option<Cookie>, done: SetDone<Option<Epoch>>) {
        let core = Arc::clone(&self.core);
        task::run(async move { done(core.pin(&files, offer).await) });
    }

    /// Whether this is the coordinator's node: it serves what nobody owns.
    #[must_use]
    pub fn is_home(&self) -> bool {
        self.core.is_home()
    }

    /// Makes files nobody's: pins of this node end, and whichever node owns them gives them back.
    pub fn unpin(&self, files: Vec<Ino>, done: Done<()>) {
        let core = Arc::clone(&self.core);
        task::run(async move { done(core.unpin(&files).await) });
    }

    /// Makes this node the owner of files, however small they are and whoever uses them, for as long as they are open here
    /// and no other node acquires them. Those that one server has come together.
    pub fn acquire(&self, files: Vec<Ino>, done: SetDone<()>) {
        let core = Arc::clone(&self.core);
        task::run(async move { done(core.acquire_set(&files).await) });
    }

    /// Whether this node owns a file.
    #[must_use]
    pub fn owns(&self, ino: Ino) -> bool {
        self.core.files.get(ino).is_some_and(|file| file.owned_in().is_some())
    }

    /// Whether this node owns a file until it is released.
    #[must_use]
    pub fn pins(&self, ino: Ino) -> bool {
        self.core.pins.lock().contains(&ino)
    }

    /// The epoch in which this node owns a file; [`Epoch::NOBODY`] if it does not.
    #[must_use]
    pub fn owned_in(&self, ino: Ino) -> Epoch {
        self.core.files.get(ino).and_then(|file| file.owned_in()).unwrap_or(Epoch::NOBODY)
    }

    /// The node's clock, of which [`Given::stopped`] is.
    #[must_use]
    pub fn now_boot(&self) -> BootTime {
        self.core.clock.boot()
    }

    /// From now on the session that the offer names may have the set, pins or not, until [`Node::close_offer`].
    pub fn offer(&self, offer: Offer) {
        self.core.offers.lock().open(offer);
    }

    /// Ends an offer, and tells what became of it once that is certain: none if nobody has taken the set up, and then
    /// nobody will.
    pub fn close_offer(&self, cookie: Cookie, done: Done<Option<Given>>) {
        let closed = self.core.offers.lock().close(cookie);
        task::run(async move {
            let outcome = match closed {
                Closed::Unused => return done(Ok(None)),
                Closed::Over(outcome) => outcome,
                Closed::Running(outcome) => {
                    let dropped = || Err(Refusal::Io("the handing over was dropped".to_owned()));
                    outcome.await.unwrap_or_else(dropped)
                }
            };
            done(outcome.map(Some));
        });
    }

    /// Ends the node for a clean unmount: every file is stopped, drained, committed and closed, and the reserve given
    /// back. Open handles are gone. `done` is told the first error; what could not be committed is lost.
    pub fn shut_down(&self, done: Done<()>) {
        let core = Arc::clone(&self.core);
        task::run(async move { done(core.shut_down().await) });
    }
}

impl Core {
    async fn shut_down(self: &Arc<Self>) -> Result<(), Refusal> {
        self.ended.store(true, SeqCst);
        for handle in self.handles.take_all() {
            self.end_handle(&handle);
        }
        let pinned = std::mem::take(&mut *self.pins.lock());
        for file in pinned.into_iter().filter_map(|ino| self.files.get(ino)) {
            self.let_go(&file);
        }
        // Requests of other nodes that are under way keep files in use; new ones are sent elsewhere.
        for _ in 0..GUESTS_WAIT {
            if !self.close_idle(u64::MAX).await {
                break;
            }
            self.media.tick_passed().await;
        }
        let left = self.files.len();
        self.refill_ended().await;
        self.give_up_reserve().await;
        if left > 0 {
            return Err(Refusal::Io(format!("{left} files could not be committed; see the log")));
        }
        Ok(())
    }
}
