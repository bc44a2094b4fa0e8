use std::sync::mpsc::channel;

use openraft::testing::{StoreBuilder, Suite};

use super::*;
use crate::clock::SystemClock;
use crate::raft::disk::RealDisk;
use crate::raft::disk::faulty::{Crash, FaultyDisk};
use crate::raft::segment::SEGMENT_BYTES;
use crate::raft::state::State;
use crate::raft::time::Stamp;
use crate::raft::types::Batch;
use crate::raft::{Machine, Output, StartError};
use crate::rules::Rules;

const STORAGE: StorageId = StorageId([7; 16]);
const NODE: NodeId = NodeId(1);

impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

#[derive(Debug, Default)]
struct Nothing;

impl Machine for Nothing {
    type Event = ();

    fn apply(&mut self, _: u64, _: &[u8]) -> Output<()> {
        Output::reply(Vec::new())
    }

    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(_: &[u8]) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }
}

struct InDirectory;

impl StoreBuilder<TypeConfig, Log, State<Nothing>, tempfile::TempDir> for InDirectory {
    async fn build(&self) -> Result<(tempfile::TempDir, Log, State<Nothing>), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::open(dir.path()).unwrap());
        let log = Log::start(NODE, STORAGE, disk.clone(), recover(&*disk, STORAGE).unwrap()).unwrap();
        let state = State::open(disk, log.clone(), Arc::new(SystemClock), Rules::all(), Nothing).unwrap();
        Ok((dir, log, state))
    }
}

#[test]
fn openraft_s_own_suite() {
    // openraft's suite builds memberships of nodes that it says nothing about.
    Suite::test_all(InDirectory).unwrap();
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(term, NODE), index)
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let stamp = Stamp { base_ns: 0, time_ns: index };
    let commands = Arc::new(vec![vec![u8::try_from(index % 250).unwrap() + 1; bytes]]);
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(Batch { stamp, commands }) }
}

/// What a voter may rely on.
#[derive(Clone, Default, Debug, PartialEq)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
}

#[derive(Clone, Debug)]
enum Step {
    Vote(u64),
    Append(u64, std::ops::Range<u64>, usize),
    Truncate(u64),
    Purge(u64),
}

impl Model {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Vote(term) => self.vote = Some(Vote::new(*term, NODE)),
            Step::Append(term, range, bytes) => {
                self.entries.extend(range.clone().map(|index| (index, entry(*term, index, *bytes))));
            }
            Step::Truncate(since) => drop(self.entries.split_off(since)),
            Step::Purge(upto) => {
                self.purged = Some(self.entries[upto].log_id);
                self.entries = self.entries.split_off(&(upto + 1));
            }
        }
    }

    fn of(recovered: &Recovered) -> Self {
        Self { entries: recovered.entries.clone(), vote: recovered.vote, purged: recovered.purged }
    }
}

/// Does one step and waits until it is durable.
fn perform(log: &Log, step: &Step) -> Result<(), String> {
    let records: Vec<Record> = match step {
        Step::Vote(term) => vec![Record::Vote(Vote::new(*term, NODE))],
        Step::Append(term, range, bytes) => {
            range.clone().map(|index| Record::Entry(entry(*term, index, *bytes))).collect()
        }
        Step::Truncate(since) => vec![Record::Truncate(*since)],
        Step::Purge(upto) => {
            // The purged id is that of the entry.
            let core = log.shared.core.lock();
            let id = core.entries.get(upto).map(|kept| kept.entry.log_id).unwrap_or(id(1, *upto));
            vec![Record::Purge(id)]
        }
    };
    let (sender, done) = channel();
    {
        let mut core = log.shared.core.lock();
        let job_done: Done = Box::new(move |outcome| drop(sender.send(outcome)));
        log.submit(&mut core, &records, Some(job_done))?;
        let serial = core.last_serial;
        for record in records {
            match record {
                Record::Entry(entry) => {
                    let bytes = size(&entry);
                    core.entries.insert(entry.log_id.index, Kept { entry, serial, bytes });
                    core.bytes += bytes as u64;
                }
                Record::Truncate(since) => Log::remove(&mut core, since..),
                Record::Purge(upto) => Log::remove(&mut core, ..=upto.index),
                Record::Vote(_) => {}
            }
        }
    }
    done.recv().map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

fn open(disk: &FaultyDisk) -> Result<(Log, Model), StartError> {
    let recovered = recover(disk, STORAGE)?;
    let model = Model::of(&recovered);
    let log = Log::start(NODE, STORAGE, Arc::new(disk.clone()), recovered).unwrap();
    Ok((log, model))
}

fn history() -> Vec<Step> {
    let large = usize::try_from(SEGMENT_BYTES / 3).unwrap();
    vec![
        Step::Vote(1),
        Step::Append(1, 0..3, 20),
        Step::Append(1, 3..9, 700),
        Step::Vote(2),
        Step::Truncate(5),
        Step::Append(2, 5..7, 100),
        Step::Append(2, 7..9, large),
        Step::Append(2, 9..10, large),
        Step::Purge(6),
        Step::Append(2, 10..12, large),
        Step::Vote(3),
        Step::Purge(10),
        Step::Append(3, 12..13, 5_000_000),
        Step::Append(3, 13..15, 10),
    ]
}

#[test]
fn a_crash_at_any_point_loses_nothing_that_was_acknowledged() {
    let disk = FaultyDisk::default();
    let (log, _) = open(&disk).unwrap();
    for step in history() {
        perform(&log, &step).unwrap();
    }
    log.close();
    let operations = disk.operations();
    assert!(operations > 40, "{operations}");
    for fuel in 0..operations {
        let disk = FaultyDisk::default();
        disk.crash_after(fuel);
        let (mut acknowledged, mut tried) = (Model::default(), Model::default());
        if let Ok((log, _)) = open(&disk) {
            for step in history() {
                tried.step(&step);
                if perform(&log, &step).is_err() {
                    break;
                }
                acknowledged = tried.clone();
            }
            log.close();
        }
        let crashes =
            [Crash::Killed, Crash::Power(fuel), Crash::Power(fuel + 1_000), Crash::Power(fuel + 2_000)];
        for crash in crashes {
            let rebooted = disk.reboot(crash);
            let (log, found) = open(&rebooted).unwrap_or_else(|error| panic!("{fuel} {crash:?}: {error}"));
            // What was under way may be there in part: a prefix of its entries, or of its effect.
            assert!(found.vote == acknowledged.vote || found.vote == tried.vote, "{fuel} {crash:?}");
            assert!(found.purged == acknowledged.purged || found.purged == tried.purged, "{fuel} {crash:?}");
            let purged = found.purged.map_or(0, |purged| purged.index + 1);
            for (index, entry) in &acknowledged.entries {
                let given_up = *index < purged || !tried.entries.contains_key(index);
                let kept = found.entries.get(index);
                assert!(
                    kept == Some(entry) || (given_up && kept.is_none()),
                    "{fuel} {crash:?}: entry {index}"
                );
            }
            for (index, entry) in &found.entries {
                let known = acknowledged.entries.get(index).or(tried.entries.get(index));
                assert_eq!(known, Some(entry), "{fuel} {crash:?}: entry {index}");
            }
            // And it goes on from there, twice.
            let next = found.entries.keys().next_back().map_or(purged, |last| last + 1);
            perform(&log, &Step::Append(9, next..next + 2, 600)).unwrap();
            log.close();
            let (log, again) = open(&rebooted.reboot(Crash::Killed)).unwrap();
            log.close();
            assert_eq!(again.entries.last_key_value().map(|(index, _)| *index), Some(next + 1));
            assert_eq!(again.entries.len(), found.entries.len() + 2);
        }
    }
}

#[test]
fn a_flipped_bit_is_found() {
    let disk = FaultyDisk::default();
    let (log, _) = open(&disk).unwrap();
    let mut ends = Vec::new();
    for step in [Step::Vote(1), Step::Append(1, 0..4, 900), Step::Append(1, 4..5, 30), Step::Vote(2)] {
        perform(&log, &step).unwrap();
        ends.push(());
    }
    log.close();
    let name = disk.names("log-").remove(0);
    let file = disk.read(&name).unwrap();
    let end = file.iter().rposition(|byte| *byte != 0).unwrap();
    let intact = Model::of(&recover(&disk, STORAGE).unwrap());
    for offset in (0..=end).step_by(11) {
        let flipped = disk.reboot(Crash::Killed);
        flipped.flip(&name, offset);
        match recover(&flipped, STORAGE) {
            Err(StartError::Damaged { path, .. }) => assert!(path.ends_with(&name)),
            Err(StartError::Version { .. }) => assert!((8..12).contains(&offset)),
            Err(error) => panic!("{offset}: {error}"),
            // Bytes that say nothing: padding.
            Ok(recovered) => {
                assert_eq!(Model::of(&recovered), intact, "a flipped bit at {offset} was not found")
            }
        }
    }
}

#[test]
fn a_missing_file_is_found() {
    let disk = FaultyDisk::default();
    let (log, _) = open(&disk).unwrap();
    let large = usize::try_from(SEGMENT_BYTES / 2).unwrap();
    for index in 0..6 {
        perform(&log, &Step::Append(1, index..index + 1, large)).unwrap();
    }
    log.close();
    let names = disk.names("log-");
    assert!(names.len() > 3);
    for lost in &names[..names.len() - 1] {
        let disk = disk.reboot(Crash::Killed);
        disk.remove(lost).unwrap();
        let found = recover(&disk, STORAGE);
        assert!(matches!(found, Err(StartError::Damaged { .. })), "{lost}: {found:?}");
    }
    assert!(matches!(recover(&disk, StorageId([8; 16])), Err(StartError::Damaged { .. })));
}

#[tokio::test]
async fn a_full_disk_acknowledges_nothing_more() {
    let disk = FaultyDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    log.save_vote(&Vote::new(1, NODE)).await.unwrap();
    disk.fail(std::io::ErrorKind::StorageFull);
    let error = log.save_vote(&Vote::new(2, NODE)).await.unwrap_err().to_string();
    assert!(error.contains("free space on this disk"), "{error}");
    assert!(log.durable(1_000).await.is_err());
    let disk = disk.reboot(Crash::Killed);
    log.close();
    let (log, found) = open(&disk).unwrap();
    log.close();
    assert_eq!(found.vote, Some(Vote::new(1, NODE)));
}

#[tokio::test]
async fn the_leader_s_entries_are_readable_before_they_are_durable() {
    let disk = FaultyDisk::default();
    let (mut log, _) = open(&disk).unwrap();
    log.save_vote(&Vote::new_committed(1, NODE)).await.unwrap();
    {
        let mut core = log.shared.core.lock();
        let record = Record::Entry(entry(1, 0, 10));
        log.submit(&mut core, std::slice::from_ref(&record), None).unwrap();
        let serial = core.last_serial;
        core.entries.insert(0, Kept { entry: entry(1, 0, 10), serial, bytes: 1 });
    }
    log.durable(log.serial_of(0)).await.unwrap();
    assert_eq!(log.durable_up_to(id(1, 0)), Some(id(1, 0)));
    {
        // An entry whose record the writer has not got yet.
        let mut core = log.shared.core.lock();
        core.entries.insert(1, Kept { entry: entry(1, 1, 10), serial: u64::MAX, bytes: 1 });
    }
    assert_eq!(log.durable_up_to(id(1, 1)), Some(id(1, 0)), "a commit index is lowered to what is durable");
    assert_eq!(log.limited_get_log_entries(0, 5).await.unwrap().len(), 2);
    log.close();
}
