//! The thread that writes the log: whatever has come while the last sync ran is written and synced together.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use tokio::sync::watch;

use super::StorageId;
use super::disk::{Disk, create_whole};
use super::segment::{HEADER_BYTES, Header, Record, SEGMENT_BYTES};
use super::types::{LogId, Vote};

/// How many bytes are written before a sync at most.
const GROUP_BYTES: usize = 2 << 20;

/// Called once when a job is durable, or has failed.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Something to be written, in the order of serials.
pub(super) struct Job {
    /// Encoded records.
    pub(super) bytes: Vec<u8>,
    /// The serial of the last of them.
    pub(super) serial: u64,
    /// The highest index among them.
    pub(super) max_index: Option<u64>,
    /// The vote among them.
    pub(super) vote: Option<Vote>,
    /// The purge among them.
    pub(super) purge: Option<LogId>,
    /// Who wants to know.
    pub(super) done: Option<Done>,
}

/// How far the log is durable.
#[derive(Clone, Debug)]
pub(super) struct Durable {
    /// All records up to this serial are.
    pub(super) serial: u64,
    /// Set when the disk has failed; nothing more will be.
    pub(super) failed: Option<Arc<str>>,
}

/// A file of the log, as far as removing it is concerned.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) max_index: Option<u64>,
}

/// The file's name by the serial of its first record.
pub(super) fn segment_name(first_serial: u64) -> String {
    format!("log-{first_serial:016x}")
}

/// Makes an empty file of the log that has room for `room` bytes of records.
pub(super) fn create_segment(disk: &dyn Disk, header: &Header, room: usize) -> io::Result<(Segment, u64)> {
    let size = usize::try_from(SEGMENT_BYTES).unwrap_or(usize::MAX).max(HEADER_BYTES + room);
    let mut content = header.encode().to_vec();
    content.resize(size, 0);
    let name = segment_name(header.first_serial);
    create_whole(disk, &name, &content)?;
    Ok((Segment { name, max_index: None }, size as u64))
}

/// Where the log stands when the writer takes over.
#[derive(Debug)]
pub(super) struct WriterState {
    pub(super) storage: StorageId,
    pub(super) segments: Vec<Segment>,
    /// Where the next record goes in the last file.
    pub(super) offset: u64,
    /// The last file's size.
    pub(super) size: u64,
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    /// The serial of the last durable record.
    pub(super) serial: u64,
}

struct Writer {
    disk: Arc<dyn Disk>,
    state: WriterState,
    durable: watch::Sender<Durable>,
}

/// Starts the thread. It ends when the sender is dropped and all is written.
pub(super) fn start(
    disk: Arc<dyn Disk>,
    state: WriterState,
) -> io::Result<(Sender<Job>, watch::Receiver<Durable>, JoinHandle<()>)> {
    let (jobs, queue) = channel();
    let (durable, watched) = watch::channel(Durable { serial: state.serial, failed: None });
    let writer = Writer { disk, state, durable };
    let thread = std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || writer.run(&queue))?;
    Ok((jobs, watched, thread))
}

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let mut bytes = first.bytes.len();
            let mut group = vec![first];
            while bytes < GROUP_BYTES
                && let Ok(job) = queue.try_recv()
            {
                bytes += job.bytes.len();
                group.push(job);
            }
            let failed = self.durable.borrow().failed.clone();
            let outcome = match failed {
                Some(why) => Err(why),
                None => self.write(&mut group).map_err(|error| self.fail(&error)),
            };
            for job in group {
                if let Some(done) = job.done {
                    done(outcome.clone().map_err(|why| io::Error::other(why.to_string())));
                }
            }
        }
    }

    /// After a write or a sync that failed nobody knows what is on the disk: nothing is acknowledged any more.
    fn fail(&self, error: &io::Error) -> Arc<str> {
        let dir = self.state.segments.last().map_or("", |segment| &segment.name);
        let path = self.disk.path().join(dir);
        let hint = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space on this disk and restart lockd"
            }
            io::ErrorKind::ReadOnlyFilesystem => "the disk has become read-only: repair it and restart lockd",
            _ => "see to the disk and restart lockd",
        };
        let why: Arc<str> = format!("cannot write {}: {error}; {hint}", path.display()).into();
        tracing::error!("this voter steps aside: {why}");
        self.durable.send_modify(|durable| durable.failed = Some(why.clone()));
        why
    }

    fn write(&mut self, group: &mut [Job]) -> io::Result<()> {
        let mut pending: Vec<u8> = Vec::new();
        let mut at = self.state.offset;
        for job in group.iter_mut() {
            let bytes = std::mem::take(&mut job.bytes);
            if self.state.offset + bytes.len() as u64 > self.state.size {
                self.put(&mut pending, at)?;
                self.next_segment(bytes.len())?;
                at = self.state.offset;
            }
            self.state.offset += bytes.len() as u64;
            if pending.is_empty() {
                pending = bytes;
            } else {
                pending.extend_from_slice(&bytes);
            }
            self.state.serial = job.serial;
            if let Some(segment) = self.state.segments.last_mut() {
                segment.max_index = segment.max_index.max(job.max_index);
            }
            self.state.vote = job.vote.or(self.state.vote);
            self.state.purged = job.purge.or(self.state.purged);
        }
        self.put(&mut pending, at)?;
        let serial = self.state.serial;
        self.durable.send_modify(|durable| durable.serial = serial);
        if group.iter().any(|job| job.purge.is_some()) {
            self.remove_purged()?;
        }
        Ok(())
    }

    /// Writes and syncs what is pending for the current file.
    fn put(&self, pending: &mut Vec<u8>, at: u64) -> io::Result<()> {
        if let Some(segment) = self.state.segments.last()
            && !pending.is_empty()
        {
            self.disk.write_at(&segment.name, at, pending)?;
            self.disk.sync(&segment.name)?;
            pending.clear();
        }
        Ok(())
    }

    fn next_segment(&mut self, room: usize) -> io::Result<()> {
        let header = Header {
            storage: self.state.storage,
            first_serial: self.state.serial + 1,
            vote: self.state.vote,
            purged: self.state.purged,
        };
        let (segment, size) = create_segment(&*self.disk, &header, room)?;
        self.state.segments.push(segment);
        self.state.offset = HEADER_BYTES as u64;
        self.state.size = size;
        Ok(())
    }

    /// Removes the oldest files as long as all of their entries are purged; the purge itself is durable already.
    fn remove_purged(&mut self) -> io::Result<()> {
        let Some(purged) = self.state.purged else { return Ok(()) };
        while self.state.segments.len() > 1
            && self.state.segments[0].max_index.is_none_or(|index| index <= purged.index)
        {
            let segment = self.state.segments.remove(0);
            // One at a time: a hole between files would look like damage.
            self.disk.remove(&segment.name)?;
            self.disk.sync_dir()?;
        }
        Ok(())
    }
}

/// The highest index among the entries of a file.
pub(super) fn highest_index(records: &[Record]) -> Option<u64> {
    records
        .iter()
        .filter_map(|record| if let Record::Entry(entry) = record { Some(entry.log_id.index) } else { None })
        .max()
}
