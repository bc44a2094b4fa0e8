//! The machine of one voter, and its snapshots, as openraft drives them.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder};
use parking_lot::RwLock;
use tokio::sync::broadcast;

use super::disk::Disk;
use super::log::Log;
use super::snapshot::{self, Contents};
use super::time::ClusterTime;
use super::types::{
    Entry, LogId, Proposed, Replies, SnapshotMeta, StorageError, StoredMembership, TypeConfig, Voter,
};
use super::{Machine, Output, StartError};
use crate::clock::Clock;
use crate::ids::NodeId;
use crate::rules::Rules;

/// How many applications a subscriber may be behind before it is told that it has missed some.
const SUBSCRIPTION: usize = 8192;

/// What has happened to the machine of this node.
#[derive(Debug)]
pub enum Application<E> {
    /// A command was applied.
    Applied {
        /// The how-manieth command of the cluster, from 1.
        number: u64,
        /// The cluster's time of the command in nanoseconds.
        time_ns: u64,
        /// The log entry that it came in.
        index: u64,
        /// What came of it.
        output: Output<E>,
    },
    /// The state was replaced by a snapshot of another voter: what came of the commands up to `number` was not seen
    /// here.
    Restored {
        /// The last command in the snapshot.
        number: u64,
    },
}

/// The machine of one voter. Clones are the same machine.
#[derive(Debug)]
pub(super) struct State<M: Machine> {
    shared: Arc<Shared<M>>,
}

impl<M: Machine> Clone for State<M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

#[derive(Debug)]
struct Shared<M: Machine> {
    disk: Arc<dyn Disk>,
    log: Log,
    time: ClusterTime,
    current: RwLock<Current<M>>,
    /// Of the last snapshot on disk.
    saved: RwLock<Option<SnapshotMeta>>,
    /// A snapshot is written by one at a time, until this says that the directory is not ours any more.
    writing: Arc<tokio::sync::Mutex<Closed>>,
    applications: broadcast::Sender<Arc<Application<M::Event>>>,
}

/// Whether the directory has been given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Closed(bool);

#[derive(Debug)]
struct Current<M> {
    applied: Option<LogId>,
    membership: StoredMembership,
    time_ns: u64,
    number: u64,
    machine: M,
}

fn failure(subject: ErrorSubject<NodeId>, verb: ErrorVerb, why: impl ToString) -> StorageError {
    StorageError::from_io_error(subject, verb, std::io::Error::other(why.to_string()))
}

fn restore<M: Machine>(meta: &SnapshotMeta, contents: &[u8]) -> Result<Current<M>, String> {
    let Contents { time_ns, number, machine } =
        Contents::decode(contents).map_err(|error| error.to_string())?;
    Ok(Current {
        applied: meta.last_log_id,
        membership: meta.last_membership.clone(),
        time_ns,
        number,
        machine: M::restore(&machine).map_err(|error| error.to_string())?,
    })
}

impl<M: Machine> State<M> {
    /// The state in the directory's snapshot, or `machine`, the state before the first command.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        log: Log,
        clock: Arc<dyn Clock>,
        rules: Rules,
        machine: M,
    ) -> Result<Self, StartError> {
        let (current, saved) = match snapshot::read_newest(&*disk)? {
            Some((meta, contents)) => {
                let current = restore(&meta, &contents)
                    .map_err(|why| StartError::State { path: disk.path().to_owned(), why })?;
                (current, Some(meta))
            }
            None => {
                let membership = StoredMembership::default();
                (Current { applied: None, membership, time_ns: 0, number: 0, machine }, None)
            }
        };
        let time = ClusterTime::new(clock, rules, current.time_ns);
        let (applications, _) = broadcast::channel(SUBSCRIPTION);
        let (current, saved) = (RwLock::new(current), RwLock::new(saved));
        let writing = Arc::new(tokio::sync::Mutex::new(Closed(false)));
        Ok(Self { shared: Arc::new(Shared { disk, log, time, current, saved, writing, applications }) })
    }

    pub(super) fn time(&self) -> &ClusterTime {
        &self.shared.time
    }

    pub(super) fn read<R>(&self, look: impl FnOnce(&M) -> R) -> R {
        look(&self.shared.current.read().machine)
    }

    /// The time and the number of the last command.
    pub(super) fn last(&self) -> (u64, u64) {
        let current = self.shared.current.read();
        (current.time_ns, current.number)
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<Application<M::Event>>> {
        self.shared.applications.subscribe()
    }

    fn apply_one(&self, current: &mut Current<M>, entry: Entry) -> Replies {
        let index = entry.log_id.index;
        current.applied = Some(entry.log_id);
        let batch = match entry.payload {
            EntryPayload::Blank => return Replies::default(),
            EntryPayload::Membership(membership) => {
                current.membership = StoredMembership::new(Some(entry.log_id), membership);
                return Replies::default();
            }
            EntryPayload::Normal(batch) => batch,
        };
        let listened = self.shared.applications.receiver_count() > 0;
        let mut replies = Vec::with_capacity(batch.commands.len());
        let first_ns = self.shared.time.settle(batch.stamp, current.time_ns);
        for (time_ns, command) in (first_ns..).zip(batch.commands.iter()) {
            current.time_ns = time_ns;
            current.number += 1;
            let number = current.number;
            let output = current.machine.apply(time_ns, command);
            replies.push(Proposed { number, reply: output.reply.clone() });
            if listened {
                let application = Application::Applied { number, time_ns, index, output };
                // Nobody listens any more: nothing is lost.
                let _ = self.shared.applications.send(Arc::new(application));
            }
        }
        self.shared.time.applied(batch.stamp, first_ns, current.time_ns);
        Replies(replies)
    }

    /// Waits for the snapshot that is being written, and writes no more: the directory may be another's.
    pub(super) async fn close(&self) {
        *self.shared.writing.lock().await = Closed(true);
        self.shared.disk.release();
    }

    async fn save(&self, meta: SnapshotMeta, contents: Vec<u8>) -> std::io::Result<Vec<u8>> {
        let one = self.shared.writing.clone().lock_owned().await;
        if *one == Closed(true) {
            return Err(std::io::Error::other("the voter has been shut down"));
        }
        let state = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            // Until it is written, also when nobody waits for it any more.
            let _one = one;
            // A snapshot that was built while a newer one was received is not needed any more.
            let newer =
                state.shared.saved.read().as_ref().is_some_and(|saved| saved.last_log_id > meta.last_log_id);
            if !newer {
                snapshot::write(&*state.shared.disk, &meta, &contents)?;
                *state.shared.saved.write() = Some(meta);
            }
            Ok(contents)
        });
        written
            .await
            .map_err(|error| std::io::Error::other(format!("writing a snapshot was ended: {error}")))?
    }
}

impl<M: Machine> RaftSnapshotBuilder<TypeConfig> for State<M> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let (meta, contents) = {
            let current = self.shared.current.read();
            let contents = Contents {
                time_ns: current.time_ns,
                number: current.number,
                machine: current.machine.snapshot(),
            };
            let last = current.applied;
            let snapshot_id = match last {
                Some(last) => format!("{}-{}-{}", last.leader_id.term, last.leader_id.node_id.0, last.index),
                None => "none".to_owned(),
            };
            let last_membership = current.membership.clone();
            (SnapshotMeta { last_log_id: last, last_membership, snapshot_id }, contents.encode())
        };
        let contents = self
            .save(meta.clone(), contents)
            .await
            .map_err(|error| failure(ErrorSubject::Snapshot(None), ErrorVerb::Write, error))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(contents)) })
    }
}

impl<M: Machine> RaftStateMachine<TypeConfig> for State<M> {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId>, openraft::StoredMembership<NodeId, Voter>), StorageError> {
        let current = self.shared.current.read();
        Ok((current.applied, current.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Replies>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        if let Some(last) = entries.last() {
            // The leader's own copy: see `super::log`.
            let serial = self.shared.log.serial_of(last.log_id.index);
            self.shared
                .log
                .durable(serial)
                .await
                .map_err(|why| failure(ErrorSubject::Apply(last.log_id), ErrorVerb::Write, why))?;
        }
        let mut current = self.shared.current.write();
        Ok(entries.into_iter().map(|entry| self.apply_one(&mut current, entry)).collect())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let subject = || ErrorSubject::Snapshot(Some(meta.signature()));
        let contents = snapshot.into_inner();
        let current = restore(meta, &contents).map_err(|why| failure(subject(), ErrorVerb::Read, why))?;
        self.save(meta.clone(), contents)
            .await
            .map_err(|error| failure(subject(), ErrorVerb::Write, error))?;
        let number = current.number;
        self.shared.time.replaced(current.time_ns);
        *self.shared.current.write() = current;
        // Nobody listens: nothing is lost.
        let _ = self.shared.applications.send(Arc::new(Application::Restored { number }));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let _one = self.shared.writing.lock().await;
        let disk = self.shared.disk.clone();
        let read = tokio::task::spawn_blocking(move || {
            snapshot::read_newest(&*disk).map_err(|error| error.to_string())
        });
        let found = read
            .await
            .map_err(|error| error.to_string())
            .flatten()
            .map_err(|why| failure(ErrorSubject::Snapshot(None), ErrorVerb::Read, why))?;
        Ok(found.map(|(meta, contents)| Snapshot { meta, snapshot: Box::new(Cursor::new(contents)) }))
    }
}
