//! Bytes of what voters write and send: entries, votes, log ids, memberships.
//!
//! Little-endian, hand-laid, the same on disk and on the wire. The versions stand beside the files' headers
//! ([`super::segment::VERSION`], [`super::snapshot::VERSION`]) and the frames ([`super::wire::VERSION`]).
//!
//! ```text
//! log id       term u64, leader u64, index u64
//! option       u8 0 | 1, then the value
//! vote         term u64, node u64, committed u8
//! name         length u8, bytes
//! membership   configurations u8, each: voters u8, voter u64 ...; nodes u8, each: id u64, storage 16 bytes, name
//! entry        log id, kind u8: 0 blank | 1 batch | 2 membership, then that
//! batch        time counted from u64, time u64, commands u32, each: length u32, bytes
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::EntryPayload;

use super::StorageId;
use super::time::Stamp;
use super::types::{Batch, Entry, LogId, Membership, StoredMembership, Vote, Voter};
use crate::ids::{NodeId, NodeName};

/// Bytes that are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a valid {0}")]
pub(super) struct Malformed(pub(super) &'static str);

type Decoded<T> = Result<T, Malformed>;

/// Writes values at the end of a buffer.
#[derive(Debug, Default)]
pub(super) struct Encoder(pub(super) Vec<u8>);

/// A count that the callers keep small; it is checked all the same.
fn count<T: TryFrom<usize>>(length: usize) -> T {
    T::try_from(length).unwrap_or_else(|_| panic!("{length} items do not fit into their count"))
}

impl Encoder {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.u32(count(value.len()));
        self.0.extend_from_slice(value);
    }

    pub(super) fn storage(&mut self, value: StorageId) {
        self.0.extend_from_slice(&value.0);
    }

    pub(super) fn name(&mut self, value: &NodeName) {
        self.u8(count(value.as_str().len()));
        self.0.extend_from_slice(value.as_str().as_bytes());
    }

    pub(super) fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub(super) fn log_id(&mut self, value: &LogId) {
        self.u64(value.leader_id.term);
        self.u64(value.leader_id.node_id.0);
        self.u64(value.index);
    }

    pub(super) fn log_id_option(&mut self, value: Option<&LogId>) {
        self.option(value, Self::log_id);
    }

    pub(super) fn vote(&mut self, value: &Vote) {
        self.u64(value.leader_id.term);
        self.u64(value.leader_id.node_id.0);
        self.u8(u8::from(value.committed));
    }

    pub(super) fn membership(&mut self, value: &Membership) {
        self.u8(count(value.get_joint_config().len()));
        for config in value.get_joint_config() {
            self.u8(count(config.len()));
            for node in config {
                self.u64(node.0);
            }
        }
        self.u8(count(value.nodes().count()));
        for (node, voter) in value.nodes() {
            self.u64(node.0);
            self.storage(voter.storage);
            self.name(&voter.name);
        }
    }

    pub(super) fn stored_membership(&mut self, value: &StoredMembership) {
        self.log_id_option(value.log_id().as_ref());
        self.membership(value.membership());
    }

    pub(super) fn entry(&mut self, value: &Entry) {
        self.log_id(&value.log_id);
        match &value.payload {
            EntryPayload::Blank => self.u8(0),
            EntryPayload::Normal(batch) => {
                self.u8(1);
                self.u64(batch.stamp.base_ns);
                self.u64(batch.stamp.time_ns);
                self.u32(count(batch.commands.len()));
                for command in batch.commands.iter() {
                    self.bytes(command);
                }
            }
            EntryPayload::Membership(membership) => {
                self.u8(2);
                self.membership(membership);
            }
        }
    }
}

/// Reads values from the front of some bytes; never beyond, and never more than there is.
#[derive(Debug)]
pub(super) struct Decoder<'a>(pub(super) &'a [u8]);

impl<'a> Decoder<'a> {
    pub(super) fn take(&mut self, length: usize, what: &'static str) -> Decoded<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Decoded<[u8; N]> {
        self.take(N, what)?.try_into().map_err(|_| Malformed(what))
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Decoded<u8> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Decoded<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Decoded<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn flag(&mut self, what: &'static str) -> Decoded<bool> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed(what)),
        }
    }

    pub(super) fn bytes(&mut self, what: &'static str) -> Decoded<&'a [u8]> {
        let length = self.u32(what)?;
        self.take(usize::try_from(length).map_err(|_| Malformed(what))?, what)
    }

    pub(super) fn text(&mut self, what: &'static str) -> Decoded<String> {
        let bytes = self.bytes(what)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed(what))
    }

    pub(super) fn storage(&mut self) -> Decoded<StorageId> {
        Ok(StorageId(self.array("storage id")?))
    }

    pub(super) fn name(&mut self) -> Decoded<NodeName> {
        let length = self.u8("node name")?;
        let bytes = self.take(usize::from(length), "node name")?;
        let text = std::str::from_utf8(bytes).map_err(|_| Malformed("node name"))?;
        text.parse().map_err(|_| Malformed("node name"))
    }

    pub(super) fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Decoded<T>) -> Decoded<Option<T>> {
        if self.flag("option")? { read(self).map(Some) } else { Ok(None) }
    }

    pub(super) fn log_id(&mut self) -> Decoded<LogId> {
        let (term, node) = (self.u64("log id")?, self.u64("log id")?);
        let leader = openraft::CommittedLeaderId::new(term, NodeId(node));
        Ok(LogId::new(leader, self.u64("log id")?))
    }

    pub(super) fn log_id_option(&mut self) -> Decoded<Option<LogId>> {
        self.option(Self::log_id)
    }

    pub(super) fn vote(&mut self) -> Decoded<Vote> {
        let (term, node) = (self.u64("vote")?, NodeId(self.u64("vote")?));
        Ok(if self.flag("vote")? { Vote::new_committed(term, node) } else { Vote::new(term, node) })
    }

    pub(super) fn membership(&mut self) -> Decoded<Membership> {
        const WHAT: &str = "membership";
        let mut configs = Vec::new();
        for _ in 0..self.u8(WHAT)? {
            let mut config = BTreeSet::new();
            for _ in 0..self.u8(WHAT)? {
                config.insert(NodeId(self.u64(WHAT)?));
            }
            configs.push(config);
        }
        let mut nodes = BTreeMap::new();
        for _ in 0..self.u8(WHAT)? {
            let id = NodeId(self.u64(WHAT)?);
            let storage = self.storage()?;
            nodes.insert(id, Voter { name: self.name()?, storage });
        }
        // openraft would make up a member that it was told nothing about.
        if configs.iter().flatten().any(|voter| !nodes.contains_key(voter)) {
            return Err(Malformed(WHAT));
        }
        Ok(Membership::new(configs, nodes))
    }

    pub(super) fn stored_membership(&mut self) -> Decoded<StoredMembership> {
        let log_id = self.log_id_option()?;
        Ok(StoredMembership::new(log_id, self.membership()?))
    }

    pub(super) fn entry(&mut self) -> Decoded<Entry> {
        const WHAT: &str = "log entry";
        let log_id = self.log_id()?;
        let payload = match self.u8(WHAT)? {
            0 => EntryPayload::Blank,
            1 => {
                let stamp = Stamp { base_ns: self.u64(WHAT)?, time_ns: self.u64(WHAT)? };
                let mut commands = Vec::new();
                for _ in 0..self.u32(WHAT)? {
                    commands.push(self.bytes(WHAT)?.to_vec());
                }
                EntryPayload::Normal(Batch { stamp, commands: Arc::new(commands) })
            }
            2 => EntryPayload::Membership(self.membership()?),
            _ => return Err(Malformed(WHAT)),
        };
        Ok(Entry { log_id, payload })
    }

    /// Nothing may be left.
    pub(super) fn end(&self, what: &'static str) -> Decoded<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed(what)) }
    }
}

#[cfg(test)]
mod tests;
