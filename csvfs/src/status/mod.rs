//! What a mount says of itself: a document that anybody on the node can ask for, on a socket under `/run/csvfs`.
//!
//! A mount answers on `/run/csvfs/local/PID.sock`: who connects gets one JSON document and the end of the stream. `csvfs
//! status` asks every socket there; in a cluster it asks the mounts of the other nodes by way of lockd (`cluster`).

pub mod cluster;
mod socket;

pub use socket::{StatusError, StatusSocket, ask_all};

use serde::{Deserialize, Serialize};

/// The state of one mounted volume on one node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// The volume's uuid.
    pub volume: String,
    /// The volume's name, given when it was formatted.
    pub name: String,
    /// The LUN's URL.
    pub lun: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// The cluster, where the mount belongs to one.
    #[serde(default)]
    pub cluster: Option<String>,
    /// This node.
    pub node: String,
    /// The process that serves the mount.
    pub pid: u32,
    /// The node that may change metadata.
    pub coordinator: String,
    /// The session, which is the superblock's epoch for a mount without a cluster.
    pub session: u64,
    /// Whether the mount is read-only.
    pub read_only: bool,
    /// `direct`; `redirected (file)` when no path to the LUN works from here and other nodes serve all files; `paused` when
    /// I/O waits; `failed` when it waits for nothing any more.
    pub state: String,
    /// Since when, in seconds before now; none where that is not known.
    #[serde(default)]
    pub since_s: Option<f64>,
    /// What is wrong with the mount and what to do about it; empty when all is well.
    pub problem: String,
    /// The LUN as the redirector describes it: path, state, since when, why, and what is assumed of the target.
    pub path: String,
    /// Whether all checksums of the metadata have been checked since it was opened.
    #[serde(default)]
    pub metadata: String,
    /// How the node is kept from writing when it should not, and what that guarantees.
    pub fence: String,
    /// How the volume was opened.
    pub opening: Opening,
    /// How this mount has last taken the coordinator's role over from another one; none if it never did.
    #[serde(default)]
    pub takeover: Option<Takeover>,
    /// What the mount has done since it started.
    pub counters: Counters,
    /// Blocks of 4 KiB: all, and free.
    pub blocks: u64,
    /// Free blocks of 4 KiB.
    pub blocks_free: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Files that this node owns, the coordinator's role not counted: their I/O goes from here to the LUN.
    #[serde(default)]
    pub owned_files: u64,
}

/// How a volume was opened, and how long it took.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Opening {
    /// `clean`, `in place` or `by copy` (rule V2).
    pub how: String,
    /// Seconds spent waiting for other writers to show themselves (rule V1).
    pub wait_s: f64,
    /// Seconds of opening, that wait left out.
    pub open_s: f64,
    /// Seconds of copying the store, which are part of `open_s`.
    pub copy_s: f64,
    /// Bytes that were copied.
    pub copied_bytes: f64,
    /// What was found damaged and could be tolerated.
    pub warnings: Vec<String>,
}

/// How a mount has taken the coordinator's role over.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Takeover {
    /// When it began to serve, in nanoseconds since 1970.
    pub at_ns: i64,
    /// Seconds from when it had the role, or was handed it, until all nodes were served.
    pub took_s: f64,
    /// The node that had the role before.
    pub from: String,
    /// How the store was opened (rule V2).
    pub how: String,
    /// It was handed over; else the last coordinator was gone.
    pub planned: bool,
}

/// Requests since the mount started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Reads of file data.
    pub reads: u64,
    /// Writes of file data.
    pub writes: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Syncs.
    pub syncs: u64,
    /// Requests being served now.
    pub in_flight: u64,
}
