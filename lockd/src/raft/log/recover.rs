//! Reading the log back at a start.

use std::collections::BTreeMap;

use crate::raft::disk::{Disk, TEMPORARY};
use crate::raft::segment::{self, BadHeader, HEADER_BYTES, Header, Record, VERSION};
use crate::raft::types::{Entry, LogId, Vote};
use crate::raft::writer::{Segment, WriterState, create_segment, highest_index};
use crate::raft::{StartError, StorageId};

/// The log as it was found.
#[derive(Debug)]
pub(in crate::raft) struct Recovered {
    pub(in crate::raft) entries: BTreeMap<u64, Entry>,
    pub(in crate::raft) vote: Option<Vote>,
    pub(in crate::raft) purged: Option<LogId>,
    pub(in crate::raft) writer: WriterState,
}

/// Reads the log of voter directory `storage` in `disk`, and wipes what a crash left half-written. Makes a log where
/// there is none.
pub(in crate::raft) fn recover(disk: &dyn Disk, storage: StorageId) -> Result<Recovered, StartError> {
    let failed = |what: &'static str, name: &str| {
        let path = disk.path().join(name);
        move |source| StartError::Disk { what, path, source }
    };
    let damaged = |name: &str, offset: u64, why: String| StartError::Damaged {
        path: disk.path().join(name),
        offset,
        why,
    };
    let mut names: Vec<String> = disk.list().map_err(failed("list", ""))?;
    names.retain(|name| name.starts_with("log-"));
    names.sort();
    let (leftovers, names): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with(TEMPORARY));
    for name in leftovers {
        disk.remove(&name).map_err(failed("remove", &name))?;
    }

    let mut entries = BTreeMap::new();
    let (mut vote, mut purged) = (None, None);
    let mut segments = Vec::new();
    let (mut offset, mut size, mut next_serial) = (0, 0, None);
    for (nth, name) in names.iter().enumerate() {
        let file = disk.read(name).map_err(failed("read", name))?;
        let header = Header::decode(&file).map_err(|bad| match bad {
            BadHeader::Version(found) => {
                StartError::Version { path: disk.path().join(name), found, known: VERSION }
            }
            BadHeader::Damaged(why) => damaged(name, 0, why.to_owned()),
        })?;
        if header.storage != storage {
            return Err(damaged(name, 16, format!("it belongs to voter directory {}", header.storage)));
        }
        if next_serial.is_some_and(|next| next != header.first_serial) {
            return Err(damaged(name, 32, "a file of the log before this one is missing".to_owned()));
        }
        let scan = segment::scan(&header, &file).map_err(|damage| damaged(name, damage.0, damage.1))?;
        if scan.torn {
            if nth + 1 < names.len() {
                return Err(damaged(name, scan.end as u64, "the log goes on in another file".to_owned()));
            }
            tracing::info!(file = %name, offset = scan.end, "wiping what a crash left half-written");
            disk.write_at(name, scan.end as u64, &vec![0; file.len() - scan.end])
                .and_then(|()| disk.sync(name))
                .map_err(failed("write to", name))?;
        }
        vote = header.vote.or(vote);
        purged = header.purged.max(purged);
        segments.push(Segment { name: name.clone(), max_index: highest_index(&scan.records) });
        for record in scan.records {
            match record {
                Record::Entry(entry) => {
                    let index = entry.log_id.index;
                    entries.split_off(&index);
                    entries.insert(index, entry);
                }
                Record::Vote(saved) => vote = Some(saved),
                Record::Truncate(since) => drop(entries.split_off(&since)),
                Record::Purge(upto) => {
                    entries.retain(|kept, _| *kept > upto.index);
                    purged = Some(upto);
                }
            }
        }
        (offset, size, next_serial) = (scan.end as u64, file.len() as u64, Some(scan.next_serial));
    }
    if let Some(purged) = purged {
        entries.retain(|kept, _| *kept > purged.index);
    }
    let first = purged.map_or(0, |purged: LogId| purged.index + 1);
    if let Some((missing, _)) = (first..).zip(entries.keys()).find(|(expected, found)| expected != *found) {
        let name = segments.first().map_or("", |segment| segment.name.as_str());
        return Err(damaged(name, 0, format!("entry {missing} is missing in the log")));
    }
    if segments.is_empty() {
        let header = Header { storage, first_serial: 1, vote: None, purged: None };
        let (segment, room) = create_segment(disk, &header, 0).map_err(failed("make", "log"))?;
        segments.push(segment);
        (offset, size, next_serial) = (HEADER_BYTES as u64, room, Some(1));
    }
    let serial = next_serial.unwrap_or(1) - 1;
    let writer = WriterState { storage, segments, offset, size, vote, purged, serial };
    Ok(Recovered { entries, vote, purged, writer })
}
