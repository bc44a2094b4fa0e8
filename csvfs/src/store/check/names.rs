//! Directory entries against inodes: every name leads to an inode, every inode to the root.

use redb::ReadableTable;

use super::facts::{Climb, Facts};
use super::finding::{EntryFault, Finding};
use super::{Findings, Progress};
use crate::store::cookie::HashKey;
use crate::store::record::EntryRecord;
use crate::store::{Result, Snapshot, high, low};
use crate::types::{Ino, Kind, NAME_MAX};

/// Reads every directory entry.
pub fn check_entries(
    snapshot: &Snapshot,
    key: &HashKey,
    facts: &mut Facts,
    findings: &mut Findings,
    progress: &mut Progress<'_>,
) -> Result<()> {
    // The names of the present directory and hash that came before.
    let mut alike: Vec<Vec<u8>> = Vec::new();
    let mut group = (0, 0);
    let mut in_directory = (0, false);
    let mut done = 0;
    for row in snapshot.entries.iter()? {
        let (place, value) = row?;
        let (parent, cookie) = (high(place.value()), low(place.value()));
        done += 1;
        progress.step("names", done, snapshot.counters.inodes.get());
        let mut find = |name: &[u8], ino: Option<Ino>, fault| {
            let name = String::from_utf8_lossy(name).into_owned();
            findings.push(Finding::Entry { parent: Ino(parent), cookie, name, ino, fault });
        };
        let Ok((ino, kind, name)) = EntryRecord::parse(value.value()) else {
            find(b"?", None, EntryFault::Unreadable);
            continue;
        };
        if in_directory.0 != parent {
            in_directory = (parent, facts.directory(parent).is_some());
        }
        if !in_directory.1 {
            find(name, Some(ino), EntryFault::NoDirectory);
            continue;
        }
        if group != (parent, cookie >> 8) {
            group = (parent, cookie >> 8);
            alike.clear();
        }
        let twice = alike.iter().any(|earlier| earlier == name);
        alike.push(name.to_vec());
        if let Some(fault) = fault(facts, key, Ino(parent), cookie, (ino, kind, name), twice) {
            find(name, Some(ino), fault);
            // A wrong type or place is mended where it is; the name counts.
            if !matches!(fault, EntryFault::OtherKind(_) | EntryFault::Misplaced | EntryFault::OtherParent(_))
            {
                continue;
            }
        }
        if let Some(fact) = facts.inode(ino.0) {
            fact.names = fact.names.saturating_add(1);
        }
        if let Some(directory) = facts.directory(ino.0) {
            directory.named_in = parent;
            if let Some(above) = facts.directory(parent) {
                above.subdirectories = above.subdirectories.saturating_add(1);
            }
        }
    }
    Ok(())
}

fn fault(
    facts: &mut Facts,
    key: &HashKey,
    parent: Ino,
    cookie: u64,
    (ino, kind, name): (Ino, Kind, &[u8]),
    twice: bool,
) -> Option<EntryFault> {
    let found = facts.inode(ino.0).map(|fact| fact.kind);
    let directory = facts.directory(ino.0).copied();
    if name.is_empty()
        || name.len() > NAME_MAX
        || name == b"."
        || name == b".."
        || name.iter().any(|byte| matches!(byte, b'/' | 0))
    {
        return Some(EntryFault::BadName);
    }
    let Some(found) = found else { return Some(EntryFault::NoInode) };
    if twice {
        return Some(EntryFault::Twice);
    }
    if let Some(directory) = directory
        && (ino == Ino::ROOT || directory.named_in != 0)
    {
        return Some(EntryFault::SecondName);
    }
    if found != kind {
        return Some(EntryFault::OtherKind(found));
    }
    if !key.cookies(name).contains(&cookie) {
        return Some(EntryFault::Misplaced);
    }
    directory
        .filter(|directory| directory.parent != parent.0)
        .map(|directory| EntryFault::OtherParent(Ino(directory.parent)))
}

/// Compares what was counted with what the inodes say, and climbs from every directory to the root.
pub fn check_links(facts: &mut Facts, findings: &mut Findings) {
    for at in 0..facts.directories.len() {
        if climb(facts, at) == Climb::Lost {
            let directory = facts.directories[at];
            // One without a name is found below.
            if directory.named_in != 0 {
                findings.push(Finding::Ring(Ino(directory.ino)));
            }
        }
    }
    let mut directories = facts.directories.iter();
    for fact in &facts.inodes {
        let ino = Ino(fact.ino);
        let mut found = fact.names;
        if fact.kind == Kind::Directory {
            let subdirectories = directories.next().map_or(0, |directory| directory.subdirectories);
            if ino == Ino::ROOT || fact.names > 0 {
                found = subdirectories.saturating_add(2);
            } else if subdirectories > 0 || !fact.orphan {
                findings.push(Finding::Unreachable(ino));
                continue;
            }
        } else if fact.names == 0 && !fact.orphan {
            findings.push(Finding::Unreachable(ino));
            continue;
        }
        if fact.orphan && found > 0 {
            findings.push(Finding::NotAnOrphan(ino));
        }
        if fact.nlink != found {
            findings.push(Finding::Links { ino, says: fact.nlink, found });
        }
    }
}

/// Climbs from a directory by the names found until it meets one whose way is known.
fn climb(facts: &mut Facts, start: usize) -> Climb {
    let mut way = Vec::new();
    let mut at = Some(start);
    let end = loop {
        let Some(here) = at else { break Climb::Lost };
        let directory = &mut facts.directories[here];
        match directory.climb {
            Climb::Unknown if directory.ino == Ino::ROOT.0 => {
                directory.climb = Climb::Reached;
                break Climb::Reached;
            }
            Climb::Unknown => {
                directory.climb = Climb::Trying;
                way.push(here);
                let parent = directory.named_in;
                at = facts.position(parent);
            }
            Climb::Trying => break Climb::Lost,
            known => break known,
        }
    };
    for here in way {
        facts.directories[here].climb = end;
    }
    facts.directories[start].climb
}
