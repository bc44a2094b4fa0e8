//! How a volume is to be opened, and what the layers above do with its store meanwhile.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::ids::{ClientId, Epoch};
use lockd::lease::Lease;
use lockd::rules::Rules;
use redirector::buffer::Pool;

use super::contest::Identity;
use super::journal::Found;
use super::open::OpenError;
use super::tree::{Row, Walk};
use crate::types::Run;

/// How a volume is to be opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Who opens it.
    pub who: Identity,
    /// The nodes of its cluster on which a mount of the volume lives: their claims are not those of the dead.
    pub living_nodes: BTreeSet<String>,
    /// The window of claims, if not the label's. Shorter than that of other writers is refused by nobody, and wrong.
    pub window: Option<Duration>,
    /// How long a write may be under way when its sender is gone, if not what the label says.
    pub quiesce: Option<Duration>,
    /// Opens also when only the copy of the label is whole; otherwise that is refused until a repair.
    pub label_from_copy: bool,
    /// Applies what is in the redo journal.
    pub replay: Replay,
    /// Does not take the store as it is, but has a new one made from what is left of it.
    pub rebuild: Option<Rebuild>,
    /// The memory that the store may use as its cache, in bytes.
    pub cache_bytes: usize,
    /// The most bytes of the store that a copy keeps in memory until it is checked; what is beyond is read again.
    pub copy_memory_max: u64,
    /// A store of at most so many bytes has all of its checksums checked also when it is opened in place; of a larger one
    /// each page is checked when it is read (a copy is always checked whole).
    pub check_max: u64,
    /// How long a write of metadata waits for a lapsed lease to be won back, before it fails (P2).
    pub hold: Duration,
    /// The lease of the session, if a cluster keeps it. Otherwise the heartbeat makes and extends one.
    pub lease: Option<Arc<Lease>>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The rules that are kept.
    pub rules: Rules,
    /// Where buffers come from.
    pub pool: Pool,
}

impl OpenOptions {
    /// The defaults, for `client` on host `host`.
    #[must_use]
    pub fn new(client: ClientId, host: &str, replay: Replay) -> Self {
        Self {
            who: Identity { client, host: host.to_owned(), pid: std::process::id(), cluster: None },
            living_nodes: BTreeSet::new(),
            window: None,
            quiesce: None,
            label_from_copy: false,
            replay,
            rebuild: None,
            cache_bytes: 64 << 20,
            copy_memory_max: 512 << 20,
            check_max: 16 << 20,
            hold: Duration::from_secs(120),
            lease: None,
            clock: Arc::new(SystemClock),
            rules: Rules::all(),
            pool: Pool::default(),
        }
    }
}

/// What applies to a store the changes that are in its redo journal only (V12). It finds out by the store's numbers which
/// they are, and makes the store durable with the numbers of the new epoch if there is one; without one the store is only
/// looked at.
#[derive(Clone)]
pub struct Replay(Option<Arc<OnReplay>>);

/// See [`Replay`].
pub type OnReplay = dyn Fn(&redb::Database, &Found<'_>, Option<Epoch>) -> Result<(), Unapplied> + Send + Sync;

/// Why what is in the journal could not be applied.
#[derive(Debug)]
pub enum Unapplied {
    /// The store failed.
    Store(Box<redb::Error>),
    /// The journal is not what it must be.
    Journal(String),
}

impl Replay {
    /// Done by `on_replay`.
    pub fn new(
        on_replay: impl Fn(&redb::Database, &Found<'_>, Option<Epoch>) -> Result<(), Unapplied>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Some(Arc::new(on_replay)))
    }

    /// For a store that never has a journal.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    pub(super) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn apply(
        &self,
        database: &redb::Database,
        found: &Found<'_>,
        epoch: Option<Epoch>,
    ) -> Result<(), OpenError> {
        let Some(on_replay) = &self.0 else { return Ok(()) };
        on_replay(database, found, epoch).map_err(|error| match error {
            Unapplied::Store(error) => OpenError::Store(error),
            Unapplied::Journal(why) => OpenError::Journal(why),
        })
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Replay").field(&self.0.is_some()).finish()
    }
}

/// What fills the new store: it is given an empty database, the chunks that the metadata area was given of the data
/// region, and the damaged store to read rows from.
#[derive(Clone)]
pub struct Rebuild(pub Arc<OnRebuild>);

/// See [`Rebuild`]; says why it could not be done.
pub type OnRebuild = dyn Fn(&redb::Database, &[Run], &mut Salvage<'_>) -> Result<(), String> + Send + Sync;

/// Reads all rows that can be read.
pub type Salvage<'a> = dyn FnMut(&mut dyn FnMut(Row<'_>)) -> Result<Option<Walk>, OpenError> + 'a;

impl fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rebuild")
    }
}
