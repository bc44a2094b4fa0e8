//! How much the state may hold. Refusals name the bound.

use std::fmt;

use bincode::{Decode, Encode};

/// Nodes whose last session is remembered.
pub const NODES_MAX: usize = 1024;
/// Sessions that live or are not yet fenced.
pub const SESSIONS_MAX: usize = 1024;
/// Clients that live or whose holdings are not yet free, of all sessions.
pub const CLIENTS_MAX: usize = crate::slots::CLIENTS_MAX;
/// The same, of one session.
pub const CLIENTS_PER_SESSION_MAX: usize = 512;
/// Volumes.
pub const VOLUMES_MAX: usize = 256;
/// Resources that are held.
pub const RESOURCES_MAX: usize = 1 << 20;
/// File locks, of all clients.
pub const LOCKS_MAX: usize = 1 << 20;
/// Resources whose locks are in escrow.
pub const ESCROWS_MAX: usize = 1 << 17;
/// Moves of one transfer.
pub const MOVES_MAX: usize = 16_384;
/// Entries of the log of broken holdings, which are kept for good.
pub const BREAKS_MAX: usize = 4096;
/// Events that are kept.
pub const EVENTS_MAX: usize = 16_384;
/// Resources that one event names; an event of more tells their number.
pub const EVENT_RESOURCES_MAX: usize = 64;
/// Lines of one answer; the next query goes on after the last.
pub const PAGE_MAX: usize = 10_000;
/// The longest name of a virtual machine, in bytes.
pub const VM_NAME_MAX: usize = 128;
/// The longest text of an operator (name, reason), in bytes.
pub const TEXT_MAX: usize = 256;
/// The longest encoded command or reply, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// The longest snapshot, in bytes.
pub const SNAPSHOT_BYTES_MAX: usize = 1 << 30;

/// What there can be no more of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Bound {
    /// [`NODES_MAX`]
    Nodes,
    /// [`SESSIONS_MAX`]
    Sessions,
    /// [`CLIENTS_MAX`]
    Clients,
    /// [`CLIENTS_PER_SESSION_MAX`]
    ClientsOfSession,
    /// [`VOLUMES_MAX`]
    Volumes,
    /// [`RESOURCES_MAX`]
    Resources,
    /// [`LOCKS_MAX`]
    Locks,
    /// [`ESCROWS_MAX`]
    Escrows,
    /// [`MOVES_MAX`]
    Moves,
    /// [`BREAKS_MAX`]
    Breaks,
    /// The numbers of sessions, clients or epochs.
    Numbers,
}

impl Bound {
    /// How many there may be.
    #[must_use]
    pub const fn limit(self) -> u64 {
        (match self {
            Self::Nodes => NODES_MAX,
            Self::Sessions => SESSIONS_MAX,
            Self::Clients => CLIENTS_MAX,
            Self::ClientsOfSession => CLIENTS_PER_SESSION_MAX,
            Self::Volumes => VOLUMES_MAX,
            Self::Resources => RESOURCES_MAX,
            Self::Locks => LOCKS_MAX,
            Self::Escrows => ESCROWS_MAX,
            Self::Moves => MOVES_MAX,
            Self::Breaks => BREAKS_MAX,
            Self::Numbers => usize::MAX >> 1,
        }) as u64
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nodes => "nodes with a session",
            Self::Sessions => "sessions",
            Self::Clients => "clients",
            Self::ClientsOfSession => "clients of one session",
            Self::Volumes => "volumes",
            Self::Resources => "held resources",
            Self::Locks => "file locks",
            Self::Escrows => "resources with locks in escrow",
            Self::Moves => "moves in one transfer",
            Self::Breaks => "entries in the log of broken holdings",
            Self::Numbers => "numbers given out",
        })
    }
}
