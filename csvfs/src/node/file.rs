//! A file (or directory) that is open on this node.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use lockd::ids::Epoch;
use parking_lot::{Mutex, RwLock};

use super::blocks::BlockLocks;
use super::gate::Gate;
use super::layout::Layout;
use super::marks::Marks;
use super::pages::PageUse;
use super::slots::Slots;
use super::task::Sender;
use super::turn::Turn;
use crate::proto::{Declared, Owned, Served, Term};
use crate::refusal::Refusal;
use crate::slots::Cache;
use crate::types::{Attr, Ino, Kind, Run, Timestamp};

/// Where a file is between its first opening and its last closing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The coordinator and the authority are being asked.
    Opening,
    /// In use, or kept for a while after the last handle was closed.
    Open,
    /// What is pending is committed; then the coordinator is told.
    Closing,
    /// No longer in the table.
    Gone,
}

/// Who executes what is done to the file's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Service {
    /// This node.
    Here {
        /// The ownership that fences what is asked of the coordinator.
        owned: Owned,
        /// The term of service, if others may use the file.
        tenure: u64,
        /// The ownership is this client's own, from the authority; otherwise the coordinator's.
        acquired: bool,
    },
    /// Another node; in which term, if that is known.
    There(Option<Term>),
}

/// Guarded together: who uses the file.
pub(super) struct Life {
    pub(super) phase: Phase,
    /// Handles, and operations by inode while they run.
    pub(super) uses: u64,
    /// Since when nobody has used it, in ticks of the background.
    pub(super) idle_since: u64,
    /// Who waits for the phase to change.
    pub(super) waiting: Vec<Sender<()>>,
}

#[derive(Default)]
pub(super) struct Commits {
    pub(super) running: bool,
    /// Who needs a commit that begins after the running one.
    pub(super) waiting: Vec<Sender<Result<(), Refusal>>>,
}

/// See the module.
pub(super) struct File {
    pub(super) ino: Ino,
    pub(super) life: Mutex<Life>,
    /// The kind, known when it is open.
    pub(super) kind: OnceLock<Kind>,
    /// Who serves it, if it is a regular file. Changed while the gate is stopped and drained.
    pub(super) service: RwLock<Option<Service>>,
    /// One journey at a time: an acquisition from the question to the service, a handing over.
    pub(super) passage: Turn,
    /// Counts requests of other nodes; stopped and drained before the file is served elsewhere.
    pub(super) guests: Gate,
    /// Slots of other nodes' changes, which go with the file.
    pub(super) guest_slots: Mutex<Cache>,
    /// Slots of this node's changes that another executes.
    pub(super) slots: OnceLock<Slots>,
    /// The term in which the first write was acknowledged by another node that no sync has covered.
    pub(super) unsynced: Mutex<Option<u64>>,
    /// The oldest term from which everything has been handed on to this node, which serves the file (P9).
    pub(super) since: AtomicU64,
    /// The coordinator knows that the file is open here.
    pub(super) opened: AtomicBool,
    /// The coordinator knows that the file is open for writing here.
    pub(super) declared: AtomicBool,
    /// Handles of this node that are open for writing.
    pub(super) writers: AtomicU64,
    /// It is to stay with this node: it yields to nobody.
    pub(super) pinned: AtomicBool,
    /// This node has tried to own the file since it was opened.
    pub(super) tried: AtomicBool,
    /// Its data is not changed (V8): known by its server, and by who reads it directly.
    pub(super) sealed: AtomicBool,
    /// Another node serves it, and this one reads it directly: it is sealed, and the layout is lent (V8).
    pub(super) lent: AtomicBool,
    /// How often the layout was called back.
    pub(super) recalls: AtomicU64,
    /// How the kernel of this node uses it.
    pub(super) pages: Mutex<PageUse>,
    /// Counts data requests; stopped and drained before the layout is changed under them (V8).
    pub(super) gate: Gate,
    pub(super) locks: BlockLocks,
    pub(super) layout: RwLock<Layout>,
    /// Whether the layout is here.
    pub(super) loaded: AtomicBool,
    pub(super) loading: Turn,
    /// The version of the layout as the coordinator last told it.
    pub(super) version: AtomicU64,
    /// The size as every reader of this node sees it.
    pub(super) size: AtomicU64,
    /// The size as the coordinator knows it. Changed by whoever has the turn.
    pub(super) known_size: AtomicU64,
    /// Whether the last block holds zeros beyond the end of the file: only then may the file grow over them. False for
    /// a file just opened: what an earlier owner left there is not known.
    pub(super) tail_is_zero: AtomicBool,
    pub(super) tail: Turn,
    /// Appends, one after the other: a failed one leaves no gap before the next.
    pub(super) append: Turn,
    pub(super) marks: Marks,
    /// Something has been written or noted since the last commit began.
    pub(super) dirty: AtomicBool,
    /// The file is on the list of dirty files.
    pub(super) listed: AtomicBool,
    /// One change of the inode's metadata by its owner at a time: commits, truncation, attributes.
    pub(super) turn: Turn,
    pub(super) commits: Mutex<Commits>,
    /// How many write-backs have failed: each handle tells its next sync about them once.
    pub(super) failures: AtomicU64,
    /// Has lost its last name, as far as this node knows.
    pub(super) nameless: AtomicBool,
}

impl File {
    pub(super) fn new(ino: Ino) -> Self {
        Self {
            ino,
            life: Mutex::new(Life { phase: Phase::Opening, uses: 0, idle_since: 0, waiting: Vec::new() }),
            kind: OnceLock::new(),
            service: RwLock::new(None),
            passage: Turn::default(),
            guests: Gate::default(),
            guest_slots: Mutex::default(),
            slots: OnceLock::new(),
            unsynced: Mutex::default(),
            since: AtomicU64::new(0),
            opened: AtomicBool::new(false),
            declared: AtomicBool::new(false),
            writers: AtomicU64::new(0),
            pinned: AtomicBool::new(false),
            tried: AtomicBool::new(false),
            sealed: AtomicBool::new(false),
            lent: AtomicBool::new(false),
            recalls: AtomicU64::new(0),
            pages: Mutex::default(),
            gate: Gate::default(),
            locks: BlockLocks::default(),
            layout: RwLock::default(),
            loaded: AtomicBool::new(false),
            loading: Turn::default(),
            version: AtomicU64::new(0),
            size: AtomicU64::new(0),
            known_size: AtomicU64::new(0),
            tail_is_zero: AtomicBool::new(false),
            tail: Turn::default(),
            append: Turn::default(),
            marks: Marks::default(),
            dirty: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            turn: Turn::default(),
            commits: Mutex::default(),
            failures: AtomicU64::new(0),
            nameless: AtomicBool::new(false),
        }
    }

    /// Takes over what the coordinator says of the inode at its opening.
    pub(super) fn begin(&self, attr: &Attr, service: Option<Service>) {
        let _ = self.kind.set(attr.kind);
        match service {
            Some(Service::Here { .. }) => self.serve(attr, service),
            _ => *self.service.write() = service,
        }
    }

    /// This node serves the file from now on. The caller lets nothing through the gate.
    pub(super) fn serve(&self, attr: &Attr, service: Option<Service>) {
        self.lent.store(false, SeqCst);
        self.sealed.store(attr.sealed, SeqCst);
        self.size.store(attr.size, SeqCst);
        self.known_size.store(attr.size, SeqCst);
        self.tail_is_zero.store(attr.blocks == 0, SeqCst);
        if attr.atime > attr.mtime {
            self.marks.seen();
        }
        *self.service.write() = service;
        self.loaded.store(attr.kind == Kind::File && attr.blocks == 0, SeqCst);
    }

    /// Another node serves the file from now on. The caller has drained and committed it, and keeps the gate stopped.
    pub(super) fn leave(&self) {
        self.sealed.store(false, SeqCst);
        self.lent.store(false, SeqCst);
        self.loaded.store(false, SeqCst);
        *self.layout.write() = Layout::default();
        self.marks.forget(true, true, true);
        *self.service.write() = Some(Service::There(None));
    }

    /// Whether another node serves the file.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(*self.service.read(), Some(Service::There(_)))
    }

    /// The epoch in which this client owns the file, if it does so of its own right.
    pub(super) fn owned_in(&self) -> Option<Epoch> {
        match *self.service.read() {
            Some(Service::Here { owned, acquired: true, .. }) => Some(owned.epoch),
            _ => None,
        }
    }

    /// This node goes on to serve the file, by another right: its own ownership, or the coordinator's. The caller has
    /// drained and committed it, and keeps the gate stopped.
    pub(super) fn serve_by(&self, owned: Owned, acquired: bool) {
        if let Some(Service::Here { owned: old, acquired: before, .. }) = &mut *self.service.write() {
            (*old, *before) = (owned, acquired);
        }
    }

    /// The term in which this node serves the file to others.
    pub(super) fn tenure(&self) -> Option<u64> {
        match *self.service.read() {
            Some(Service::Here { tenure, .. }) => Some(tenure),
            _ => None,
        }
    }

    /// As a coordinator is told of it that knows nothing, if it is open towards the coordinator.
    pub(super) fn declaration(&self) -> Option<Declared> {
        if !self.opened.load(SeqCst) {
            return None;
        }
        let served = match *self.service.read() {
            Some(Service::Here { owned, tenure, acquired: true }) => {
                Some(Served { epoch: owned.epoch, tenure, since: self.since.load(SeqCst) })
            }
            _ => None,
        };
        Some(Declared { ino: self.ino, write: self.declared.load(SeqCst), served })
    }

    /// Whether this node serves the file because nobody owns it.
    pub(super) fn is_served_for_nobody(&self) -> bool {
        matches!(*self.service.read(), Some(Service::Here { acquired: false, .. }))
    }

    /// Who served it because nobody owned it does so no more, or in another term.
    pub(super) fn forget_home(&self) {
        let mut service = self.service.write();
        if matches!(*service, Some(Service::There(Some(term))) if term.owned.is_none()) {
            *service = Some(Service::There(None));
        }
    }

    /// The ownership that fences what is asked for this file. Holds for as long as the caller holds gate or turn.
    pub(super) fn owned(&self) -> Result<Owned, Refusal> {
        match (self.kind.get(), *self.service.read()) {
            (Some(Kind::File), Some(Service::Here { owned, .. })) => Ok(owned),
            (Some(Kind::File), Some(Service::There(_))) => {
                Err(Refusal::Stale(format!("{} is served by another node", self.ino)))
            }
            (Some(Kind::Directory), _) => Err(Refusal::IsDirectory),
            _ => Err(Refusal::Invalid(format!("{} has no data", self.ino))),
        }
    }

    pub(super) fn is_regular(&self) -> bool {
        self.kind.get() == Some(&Kind::File)
    }

    /// The attributes as the owner knows them.
    pub(super) fn apply(&self, attr: &mut Attr) {
        if self.tenure().is_none() {
            return;
        }
        attr.size = self.size.load(SeqCst);
        attr.blocks += self.layout.read().new_blocks();
        self.marks.apply(attr);
    }

    /// A write is done: what it changed has been noted in layout and size before. Whether the file has to be put on
    /// the list of dirty files.
    ///
    /// The order (note first, then look at `dirty`) pairs with that of a commit (reset `dirty`, then collect notes).
    #[inline]
    pub(super) fn touch(&self, now: Timestamp, clear_set_id: bool) -> bool {
        self.marks.written(now, clear_set_id);
        self.soil()
    }

    /// Notes that there is something to commit.
    #[inline]
    pub(super) fn soil(&self) -> bool {
        if !self.dirty.load(SeqCst) {
            self.dirty.store(true, SeqCst);
        }
        self.wants_listing()
    }

    /// Whether the caller has to put the file on the list of dirty files.
    #[inline]
    pub(super) fn wants_listing(&self) -> bool {
        !self.listed.load(SeqCst) && !self.listed.swap(true, SeqCst)
    }

    /// All blocks of the file that are known here.
    pub(super) fn runs(&self) -> Vec<Run> {
        let layout = self.layout.read();
        let all = crate::types::FileBlock(0)..crate::types::FileBlock(u64::MAX);
        layout.pieces(all).map(|piece| Run { start: piece.lun, len: piece.len }).collect()
    }
}
