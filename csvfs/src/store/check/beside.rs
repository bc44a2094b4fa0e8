//! What stands beside inodes and blocks: extended attributes, clients, numbers.

use std::collections::HashSet;

use redb::ReadableTable;

use super::Findings;
use super::facts::Facts;
use super::finding::{Count, Finding};
use crate::coordinator::acl::{self, Acl};
use crate::store::record::{ACCESS_ACL, DEFAULT_ACL, XATTRS};
use crate::store::{Result, Snapshot, high};
use crate::types::Ino;

/// Extended attributes belong to inodes that say that they have them.
pub fn check_xattrs(snapshot: &Snapshot, facts: &mut Facts, findings: &mut Findings) -> Result<()> {
    for row in snapshot.xattrs.iter()? {
        let (key, value) = row?;
        let key = key.value();
        let Some((number, name)) = key.split_first_chunk::<8>() else {
            findings.push(Finding::Xattr { ino: Ino(0), name: key.to_vec(), exists: false });
            continue;
        };
        let ino = u64::from_be_bytes(*number);
        let Some(fact) = facts.inode(ino) else {
            findings.push(Finding::Xattr { ino: Ino(ino), name: name.to_vec(), exists: false });
            continue;
        };
        let flag = match name {
            acl::ACCESS => ACCESS_ACL,
            acl::DEFAULT => DEFAULT_ACL,
            _ => 0,
        };
        if flag != 0 && !matches!(Acl::parse(value.value()), Ok(Some(_))) {
            findings.push(Finding::Xattr { ino: Ino(ino), name: name.to_vec(), exists: true });
            continue;
        }
        fact.attributes |= u8::try_from(flag | XATTRS).unwrap_or(0);
    }
    let marked = u8::try_from(XATTRS).unwrap_or(0);
    for fact in &facts.inodes {
        // An inode may still be marked when its last attribute is gone.
        if fact.flags | marked != fact.attributes | marked || fact.attributes & !fact.flags != 0 {
            findings.push(Finding::XattrFlags { ino: Ino(fact.ino), flags: u32::from(fact.attributes) });
        }
    }
    Ok(())
}

/// Reserves and slots belong to clients on record.
pub fn check_clients(snapshot: &Snapshot, findings: &mut Findings) -> Result<()> {
    let mut known = HashSet::new();
    for row in snapshot.clients.iter()? {
        known.insert(row?.0.value());
    }
    let mut unknown = Vec::new();
    for row in snapshot.reserves.iter()? {
        unknown.push(high(row?.0.value()));
        unknown.dedup();
    }
    for row in snapshot.slots.iter()? {
        unknown.push(high(row?.0.value()));
        unknown.dedup();
    }
    unknown.sort_unstable();
    unknown.dedup();
    for client in unknown.into_iter().filter(|client| !known.contains(client)) {
        findings.push(Finding::UnknownClient(client));
    }
    Ok(())
}

/// The volume's numbers of inodes.
pub fn check_numbers(snapshot: &Snapshot, facts: &Facts, findings: &mut Findings) {
    let counters = &snapshot.counters;
    super::number(findings, Count::Inodes, counters.inodes.get(), facts.inodes.len() as u64);
    let orphans = facts.inodes.iter().filter(|fact| fact.orphan).count() as u64;
    super::number(findings, Count::Orphans, counters.orphans.get(), orphans);
    if counters.next_ino.get() <= facts.last {
        super::number(findings, Count::NextIno, counters.next_ino.get(), facts.last + 1);
    }
}
