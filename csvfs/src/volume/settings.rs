//! How a volume is opened and served.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::ids::ClientId;
use lockd::random::{Random, SystemRandom};
use lockd::rules::Rules;
use redirector::buffer::Pool;

use crate::disk;
use crate::disk::claim::ClusterMark;
use crate::disk::label::Label;
use crate::disk::member::MemberOptions;
use crate::disk::open::{OpenVolume, Opened};
use crate::node;
use crate::status::Opening;
use crate::store::redo::replayer;

/// One unit of [`node::Options::commit_rounds`].
const COMMIT_ROUND: Duration = Duration::from_millis(500);

/// Everything that can be chosen about an opening.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The rules that are kept: all but in tests.
    pub rules: Rules,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// This node's name.
    pub node: String,
    /// The cluster for which the volume is opened, if for one.
    pub cluster: Option<ClusterMark>,
    /// The nodes of that cluster on which a mount of the volume lives.
    pub living_nodes: BTreeSet<String>,
    /// This process: a number that no other one has had.
    pub client: ClientId,
    /// The secret by which a target knows this process again.
    pub cookie: [u8; 16],
    /// Nothing is written.
    pub read_only: bool,
    /// Freed blocks are discarded on the LUN.
    pub discard: bool,
    /// How long I/O waits for a LUN that is gone (P2).
    pub hold: Duration,
    /// How long the LUN's target may execute what it was sent, if not what the label says (P4, P6, V2): a cluster's volume
    /// has it from the cluster file, for all of its nodes.
    pub quiesce: Option<Duration>,
    /// The window of claims, if not the label's (V1).
    pub window: Option<Duration>,
    /// How long data that nobody syncs stays uncommitted.
    pub commit_every: Duration,
    /// Memory for the store's cache in bytes.
    pub cache_bytes: usize,
    /// A store of at most so many bytes is checked whole also when it is opened in place; a larger one is checked in the
    /// background.
    pub check_max: u64,
    /// Memory for requests.
    pub pool: Pool,
}

impl Settings {
    /// The defaults, for a new process on the node `node`.
    #[must_use]
    pub fn local(node: &str) -> Self {
        let random = SystemRandom;
        let mut cookie = [0; 16];
        random.fill(&mut cookie);
        Self {
            rules: Rules::all(),
            clock: Arc::new(SystemClock),
            node: node.to_owned(),
            cluster: None,
            living_nodes: BTreeSet::new(),
            // Kept positive and away from the end: clients of this process are numbered from it.
            client: ClientId((random.number() >> 2) + 1),
            cookie,
            read_only: false,
            discard: true,
            hold: Duration::from_secs(120),
            quiesce: None,
            window: None,
            commit_every: Duration::from_secs(5),
            cache_bytes: 64 << 20,
            check_max: 16 << 20,
            pool: Pool::default(),
        }
    }

    /// How long the target of the volume with this label may execute what it was sent.
    pub(super) fn quiesce_of(&self, label: &Label) -> Duration {
        self.quiesce.unwrap_or(label.quiesce)
    }

    pub(crate) fn lun_options(&self) -> redirector::open::OpenOptions {
        let mut options = redirector::open::OpenOptions::new(self.client, self.cookie);
        options.rules = self.rules;
        options.clock = Arc::clone(&self.clock);
        options.hold = self.hold;
        options.read_only = self.read_only;
        options
    }

    pub(crate) fn open_options(&self) -> disk::open::OpenOptions {
        let mut options = disk::open::OpenOptions::new(self.client, &self.node, replayer(self.rules));
        options.who.cluster = self.cluster.clone();
        options.living_nodes = self.living_nodes.clone();
        options.window = self.window;
        options.quiesce = self.quiesce;
        options.cache_bytes = self.cache_bytes;
        options.check_max = self.check_max;
        options.hold = self.hold;
        options.clock = Arc::clone(&self.clock);
        options.rules = self.rules;
        options.pool = self.pool.clone();
        options
    }

    pub(super) fn member_options(&self) -> MemberOptions {
        MemberOptions {
            who: self.open_options().who,
            window: self.window,
            clock: Arc::clone(&self.clock),
            rules: self.rules,
            pool: self.pool.clone(),
        }
    }

    pub(super) fn node_options(&self) -> node::Options {
        let rounds = (self.commit_every.as_millis() / COMMIT_ROUND.as_millis()).max(1);
        node::Options {
            commit_rounds: u64::try_from(rounds).unwrap_or(u64::MAX),
            // A volume that is only read is not touched by anybody in the background either.
            background: !self.read_only,
            atime: !self.read_only,
            hold: self.hold,
            ..node::Options::default()
        }
    }

    pub(super) fn describe_opening(&self, opened: &OpenVolume) -> Opening {
        let (copy_s, copied_bytes) = match &opened.opened {
            Opened::InPlace(_) | Opened::Rebuilt => (0.0, 0.0),
            #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
            Opened::Copied { bytes, copying, .. } => (copying.as_secs_f64(), *bytes as f64),
        };
        Opening {
            how: opened.opened.to_string(),
            wait_s: opened.waited.as_secs_f64(),
            open_s: opened.took.as_secs_f64(),
            copy_s,
            copied_bytes,
            warnings: opened.warnings.clone(),
        }
    }
}
