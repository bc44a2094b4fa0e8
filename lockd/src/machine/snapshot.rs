//! The whole state as bytes.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic `CSVSTATE` |
//! | 8..10 | version, little-endian |
//! | 10..12 | zero |
//! | 12..16 | CRC-32 of the body |
//! | 16..24 | length of the body in bytes |
//! | 24.. | the body: the fields of the state in their order |
//!
//! What can be made again from the rest (the indices) is not in it. Nothing that breaks an invariant is let in.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};

use super::bounds::SNAPSHOT_BYTES_MAX;
use super::codec::{decode_body, encode_body};
use super::command::Settings;
use super::events::EventLog;
use super::query::BreakRecord;
use super::state::{Client, Escrow, Fence, Holding, NodeRecord, Session, State, Volume};
use crate::ids::{ClientId, Epoch, NodeName, ResourceId, SessionId, VolumeId};
use crate::locks::{LockState, LockTable};
use crate::slots::SlotTable;

const MAGIC: &[u8; 8] = b"CSVSTATE";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 24;

/// Why bytes are not a state, or a state cannot be made bytes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Something else.
    #[error("these {0} bytes are not a snapshot of the cluster's state")]
    NotASnapshot(usize),
    /// Of another version.
    #[error(
        "the snapshot is of version {0}; this program reads version {VERSION}: use the release that wrote it"
    )]
    Version(u16),
    /// Cut off or changed.
    #[error("the snapshot is damaged ({0}); take it from another voter")]
    Damaged(String),
    /// Larger than can be.
    #[error("the state does not fit into {SNAPSHOT_BYTES_MAX} bytes; release what is not needed")]
    TooLong,
}

#[derive(Encode)]
struct Written<'a> {
    time_ns: u64,
    settings: Settings,
    last: (SessionId, ClientId, Epoch),
    nodes: &'a BTreeMap<NodeName, NodeRecord>,
    sessions: &'a BTreeMap<SessionId, Session>,
    clients: &'a BTreeMap<ClientId, Client>,
    slots: &'a SlotTable,
    volumes: &'a BTreeMap<VolumeId, Volume>,
    resources: &'a BTreeMap<ResourceId, Vec<Holding>>,
    locks: &'a LockTable<ResourceId>,
    escrows: &'a BTreeMap<(ResourceId, ClientId), Escrow>,
    fences: &'a BTreeMap<(VolumeId, super::Victim), Fence>,
    breaks: &'a Vec<BreakRecord>,
    events: &'a EventLog,
}

#[derive(Decode)]
struct Read {
    time_ns: u64,
    settings: Settings,
    last: (SessionId, ClientId, Epoch),
    nodes: BTreeMap<NodeName, NodeRecord>,
    sessions: BTreeMap<SessionId, Session>,
    clients: BTreeMap<ClientId, Client>,
    slots: SlotTable,
    volumes: BTreeMap<VolumeId, Volume>,
    resources: BTreeMap<ResourceId, Vec<Holding>>,
    locks: LockTable<ResourceId>,
    escrows: BTreeMap<(ResourceId, ClientId), Escrow>,
    fences: BTreeMap<(VolumeId, super::Victim), Fence>,
    breaks: Vec<BreakRecord>,
    events: EventLog,
}

impl State {
    /// The state as bytes; the same state gives the same bytes.
    ///
    /// # Errors
    /// If it is larger than a snapshot can be.
    pub fn snapshot(&self) -> Result<Vec<u8>, SnapshotError> {
        let body = encode_body(&Written {
            time_ns: self.time_ns,
            settings: self.settings,
            last: (self.last_session, self.last_client, self.last_epoch),
            nodes: &self.nodes,
            sessions: &self.sessions,
            clients: &self.clients,
            slots: &self.slots,
            volumes: &self.volumes,
            resources: &self.resources,
            locks: &self.locks,
            escrows: &self.escrows,
            fences: &self.fences,
            breaks: &self.breaks,
            events: &self.events,
        })
        .filter(|body| body.len() <= SNAPSHOT_BYTES_MAX)
        .ok_or(SnapshotError::TooLong)?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// The state from bytes.
    ///
    /// # Errors
    /// If they are not a whole, undamaged state of a version that is known here.
    pub fn restore(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let header =
            bytes.split_first_chunk::<HEADER_BYTES>().filter(|(header, _)| header.starts_with(MAGIC));
        let (header, body) = header.ok_or(SnapshotError::NotASnapshot(bytes.len()))?;
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        let damaged = |what: &str| SnapshotError::Damaged(what.to_owned());
        let length = header.last_chunk().map(|length| u64::from_le_bytes(*length));
        if length != Some(body.len() as u64) || body.len() > SNAPSHOT_BYTES_MAX {
            return Err(damaged("its length is wrong"));
        }
        let crc = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
        if crc32fast::hash(body) != crc || header[10..12] != [0; 2] {
            return Err(damaged("its checksum is wrong"));
        }
        let state = Self::of(decode_body(body).ok_or_else(|| damaged("its content cannot be read"))?);
        state.check().map_err(SnapshotError::Damaged)?;
        Ok(state)
    }

    fn of(read: Read) -> Self {
        let mut held: BTreeMap<ClientId, std::collections::BTreeSet<ResourceId>> = BTreeMap::new();
        for (resource, holdings) in &read.resources {
            for holding in holdings {
                held.entry(holding.client).or_default().insert(resource.clone());
            }
        }
        let waits = read.locks.list().filter_map(|listed| match listed.state {
            LockState::Waiting(ticket) => Some((ticket, listed.lock.owner.client)),
            LockState::Held(_) => None,
        });
        let tickets = waits.collect();
        let (last_session, last_client, last_epoch) = read.last;
        Self {
            time_ns: read.time_ns,
            settings: read.settings,
            last_session,
            last_client,
            last_epoch,
            nodes: read.nodes,
            sessions: read.sessions,
            clients: read.clients,
            slots: read.slots,
            volumes: read.volumes,
            resources: read.resources,
            locks: read.locks,
            escrows: read.escrows,
            fences: read.fences,
            breaks: read.breaks,
            events: read.events,
            held,
            tickets,
        }
    }
}
