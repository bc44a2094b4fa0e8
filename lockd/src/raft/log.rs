//! Log and vote of a voter.
//!
//! *Why not a database.* What is written is appended once, read back only at a start, and dropped from the front. An
//! append-only file does that with one write and one `fdatasync` for everything that came while the last sync ran (see
//! [`super::writer`]); a copy-on-write tree needs two syncs and some 17 writes for the same (redb 4), which on a disk
//! with 1 to 5 ms a sync is half the speed for one client. Reading back is a scan of a few MiB. What is not purged is
//! kept in memory too: snapshots bound it.
//!
//! *The leader's own sync runs beside the others'.* openraft 0.9 waits for the leader's log to be durable before it
//! sends an entry to anybody: two syncs in a row for each commit. This store therefore says "flushed" at once while
//! this node is the leader, and keeps the promise where it matters: [`Log::durable`] is awaited
//! 1. before a follower's acknowledgement is passed to openraft, so that no entry is committed without the leader's
//!    copy when openraft has counted it ([`super::network`]);
//! 2. before a commit index is sent to a follower: it is lowered to what is durable here ([`super::network`]), for a
//!    leader that is the only voter and has learners;
//! 3. before an entry is applied, hence before anybody is answered ([`super::state`]).
//!
//! A node stops being the leader only by saving a higher vote, which waits for everything before it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::StorageId;
use super::disk::Disk;
use super::segment::Record;
use super::types::{Entry, LogId, StorageError, TypeConfig, Vote};
use super::writer::{self, Done, Durable, Job, WriterState};
use crate::ids::NodeId;

mod recover;

pub(super) use recover::{Recovered, recover};

/// How many bytes of entries are handed out for one message to a follower, but always one entry.
const READ_BYTES: usize = 2 << 20;

/// Log and vote of a voter. Clones are the same log.
#[derive(Clone, Debug)]
pub(super) struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: NodeId,
    storage: StorageId,
    core: Mutex<Core>,
    durable: watch::Receiver<Durable>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone, Debug)]
struct Kept {
    entry: Entry,
    serial: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Core {
    entries: BTreeMap<u64, Kept>,
    bytes: u64,
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    last_serial: u64,
    /// `None` after shutdown.
    jobs: Option<Sender<Job>>,
}

fn size(entry: &Entry) -> usize {
    64 + match &entry.payload {
        EntryPayload::Normal(batch) => batch.commands.iter().map(|command| command.len() + 4).sum(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

fn failure(subject: ErrorSubject<NodeId>, why: &str) -> StorageError {
    StorageError::from_io_error(subject, ErrorVerb::Write, std::io::Error::other(why.to_owned()))
}

impl Log {
    /// The log of `node` as it was found, with its writer running.
    pub(super) fn start(
        node: NodeId,
        storage: StorageId,
        disk: Arc<dyn Disk>,
        recovered: Recovered,
    ) -> std::io::Result<Self> {
        let Recovered { entries, vote, purged, writer } = recovered;
        let last_serial = writer.serial;
        let state = WriterState { storage, ..writer };
        let (jobs, durable, thread) = writer::start(disk, state)?;
        let entries: BTreeMap<_, _> = entries
            .into_iter()
            .map(|(index, entry)| (index, Kept { bytes: size(&entry), serial: last_serial, entry }))
            .collect();
        let bytes = entries.values().map(|kept| kept.bytes as u64).sum();
        let core = Core { entries, bytes, vote, purged, committed: None, last_serial, jobs: Some(jobs) };
        let thread = Mutex::new(Some(thread));
        Ok(Self { shared: Arc::new(Shared { node, storage, core: Mutex::new(core), durable, thread }) })
    }

    /// Waits until all records up to `serial` are durable.
    ///
    /// # Errors
    /// The text says why they never will be.
    pub(super) async fn durable(&self, serial: u64) -> Result<(), String> {
        let mut durable = self.shared.durable.clone();
        let reached = durable.wait_for(|durable| durable.failed.is_some() || durable.serial >= serial).await;
        match reached.as_deref() {
            Ok(Durable { failed: Some(why), .. }) => Err(why.to_string()),
            Ok(_) => Ok(()),
            Err(_) => Err("the log has been closed".to_owned()),
        }
    }

    /// The serial of the entry at `index`; of the newest entry at or below it. What is no longer in the log is durable.
    pub(super) fn serial_of(&self, index: u64) -> u64 {
        self.shared.core.lock().entries.range(..=index).next_back().map_or(0, |(_, kept)| kept.serial)
    }

    /// The last log id up to `upto` that is durable here.
    pub(super) fn durable_up_to(&self, upto: LogId) -> Option<LogId> {
        let serial = self.shared.durable.borrow().serial;
        let core = self.shared.core.lock();
        if core.entries.first_key_value().is_none_or(|(first, _)| *first > upto.index) {
            return Some(upto);
        }
        let durable = core.entries.range(..=upto.index).rev().find(|(_, kept)| kept.serial <= serial);
        durable.map(|(_, kept)| kept.entry.log_id).or(core.purged)
    }

    /// Why the disk failed, when it has.
    pub(super) fn failed(&self) -> Option<Arc<str>> {
        self.shared.durable.borrow().failed.clone()
    }

    /// The size of all entries that are not purged, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.shared.core.lock().bytes
    }

    /// The last entry that openraft has called committed since this start.
    pub(super) fn committed(&self) -> Option<LogId> {
        self.shared.core.lock().committed
    }

    /// Writes what is waiting, and ends the writer. Nothing can be written after it.
    pub(super) fn close(&self) {
        self.shared.core.lock().jobs = None;
        let thread = self.shared.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the log had panicked");
        }
    }

    /// Hands records to the writer. The lock is held until the job is queued, so that jobs come in order of serials.
    fn submit(&self, core: &mut Core, records: &[Record], done: Option<Done>) -> Result<(), String> {
        let durable = self.shared.durable.borrow().clone();
        if let Some(why) = durable.failed {
            return Err(why.to_string());
        }
        let mut job = Job {
            bytes: Vec::new(),
            serial: 0,
            max_index: writer::highest_index(records),
            vote: None,
            purge: None,
            done,
        };
        for record in records {
            core.last_serial += 1;
            record.encode(self.shared.storage, core.last_serial, durable.serial, &mut job.bytes);
            match record {
                Record::Vote(vote) => job.vote = Some(*vote),
                Record::Purge(upto) => job.purge = Some(*upto),
                Record::Entry(_) | Record::Truncate(_) => {}
            }
        }
        job.serial = core.last_serial;
        let jobs = core.jobs.as_ref().ok_or("the log has been closed")?;
        jobs.send(job).map_err(|_| "the thread that writes the log has ended".to_owned())
    }

    fn remove(core: &mut Core, range: impl RangeBounds<u64>) {
        let indices: Vec<u64> = core.entries.range(range).map(|(index, _)| *index).collect();
        for index in indices {
            if let Some(kept) = core.entries.remove(&index) {
                core.bytes -= kept.bytes as u64;
            }
        }
    }
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let core = self.shared.core.lock();
        // openraft may ask for an empty range, on which BTreeMap would panic.
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let entries = core.entries.range(start..).take_while(|(index, _)| range.contains(*index));
        Ok(entries.map(|(_, kept)| kept.entry.clone()).collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let core = self.shared.core.lock();
        let mut bytes = 0;
        let mut entries = Vec::new();
        for (_, kept) in core.entries.range(start..end.max(start)) {
            bytes += kept.bytes;
            if bytes > READ_BYTES && !entries.is_empty() {
                break;
            }
            entries.push(kept.entry.clone());
        }
        Ok(entries)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let core = self.shared.core.lock();
        let last = core.entries.last_key_value().map(|(_, kept)| kept.entry.log_id);
        Ok(LogState { last_purged_log_id: core.purged, last_log_id: last.or(core.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let (sender, written) = oneshot::channel();
        let done: Done = Box::new(move |outcome| {
            // The receiver is there: it is awaited below.
            let _ = sender.send(outcome);
        });
        {
            let mut core = self.shared.core.lock();
            self.submit(&mut core, &[Record::Vote(*vote)], Some(done))
                .map_err(|why| failure(ErrorSubject::Vote, &why))?;
            core.vote = Some(*vote);
        }
        match written.await {
            Ok(outcome) => outcome.map_err(|error| failure(ErrorSubject::Vote, &error.to_string())),
            Err(_) => Err(failure(ErrorSubject::Vote, "the log has been closed")),
        }
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.shared.core.lock().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // For status only: what is committed is learnt again from the leader after a restart.
        self.shared.core.lock().committed = committed;
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records: Vec<Record> = entries.into_iter().map(Record::Entry).collect();
        let mut core = self.shared.core.lock();
        let leads =
            core.vote.is_some_and(|vote| vote.committed && vote.leader_id.node_id == self.shared.node);
        let first_serial = core.last_serial + 1;
        let (now, done): (_, Option<Done>) = if leads {
            (Some(callback), None)
        } else {
            (None, Some(Box::new(move |outcome| callback.log_io_completed(outcome))))
        };
        self.submit(&mut core, &records, done).map_err(|why| failure(ErrorSubject::Logs, &why))?;
        for (serial, record) in (first_serial..).zip(records) {
            if let Record::Entry(entry) = record {
                let bytes = size(&entry);
                core.bytes += bytes as u64;
                let index = entry.log_id.index;
                if let Some(old) = core.entries.insert(index, Kept { entry, serial, bytes }) {
                    core.bytes -= old.bytes as u64;
                }
            }
        }
        drop(core);
        if let Some(callback) = now {
            callback.log_io_completed(Ok(()));
        }
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let mut core = self.shared.core.lock();
        self.submit(&mut core, &[Record::Truncate(log_id.index)], None)
            .map_err(|why| failure(ErrorSubject::Logs, &why))?;
        Self::remove(&mut core, log_id.index..);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let mut core = self.shared.core.lock();
        self.submit(&mut core, &[Record::Purge(log_id)], None)
            .map_err(|why| failure(ErrorSubject::Logs, &why))?;
        core.purged = Some(log_id);
        Self::remove(&mut core, ..=log_id.index);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
