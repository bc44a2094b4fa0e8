//! A file (or directory) that is open on this node.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use parking_lot::{Mutex, RwLock};

use super::blocks::BlockLocks;
use super::gate::Gate;
use super::layout::Layout;
use super::marks::Marks;
use super::task::Sender;
use super::turn::Turn;
use crate::proto::Owned;
use crate::refusal::Refusal;
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
    /// Kind and ownership (of a regular file), known when it is open.
    pub(super) opened: OnceLock<(Kind, Option<Owned>)>,
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
            opened: OnceLock::new(),
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
    pub(super) fn begin(&self, attr: &Attr, owned: Option<Owned>) {
        self.size.store(attr.size, SeqCst);
        self.known_size.store(attr.size, SeqCst);
        self.loaded.store(attr.kind == Kind::File && attr.blocks == 0, SeqCst);
        self.tail_is_zero.store(attr.blocks == 0, SeqCst);
        if attr.atime > attr.mtime {
            self.marks.seen();
        }
        let _ = self.opened.set((attr.kind, owned));
    }

    /// The ownership that fences what is asked for this file.
    pub(super) fn owned(&self) -> Result<Owned, Refusal> {
        match self.opened.get() {
            Some((Kind::File, Some(owned))) => Ok(*owned),
            Some((Kind::Directory, _)) => Err(Refusal::IsDirectory),
            _ => Err(Refusal::Invalid(format!("{} has no data", self.ino))),
        }
    }

    pub(super) fn is_regular(&self) -> bool {
        matches!(self.opened.get(), Some((Kind::File, _)))
    }

    /// The attributes as the owner knows them.
    pub(super) fn apply(&self, attr: &mut Attr) {
        if !self.is_regular() {
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
