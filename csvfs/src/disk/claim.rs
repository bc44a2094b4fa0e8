//! A claim: who wants to write, or writes, to the volume, in a block of its own (V1).
//!
//! | bytes | what |
//! |---|---|
//! | 0..16 | frame, magic `CSVFSCLM` |
//! | 16..32 | uuid of the volume |
//! | 32..40 | client |
//! | 40..48 | epoch that the client has, or wants |
//! | 48..56 | counter, raised with each beat |
//! | 56 | state: 1 = claiming, 2 = writing, 3 = closed |
//! | 57 | 1 = a member: it writes file data at its cluster's behest, and has not opened the store; else 0 |
//! | 58..60 | zero |
//! | 60..64 | process id |
//! | 64..72 | when the client started, nanoseconds since 1970 |
//! | 72..80 | when this beat was written, likewise |
//! | 80..84 | window that the client beats by, milliseconds |
//! | 84..88 | zero |
//! | 88..152 | host name, UTF-8 |
//! | 152..168 | identity of the cluster that the client belongs to; zeros: none |
//! | 168..232 | name of that cluster, UTF-8 |
//! | 232..4096 | zero |

use std::fmt;
use std::time::Duration;

use lockd::clock::WallTime;
use lockd::ids::{ClientId, Epoch, VolumeId};
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::frame::{self, Damage, Frame};
use super::label::millis;
use super::layout::BLOCK_LEN;

const MAGIC: [u8; 8] = *b"CSVFSCLM";
/// The longest window that a claim may ask others to wait for.
pub const WINDOW_MAX: Duration = Duration::from_secs(600);

/// What the owner of a claim is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClaimState {
    /// It waits whether anybody else writes.
    Claiming,
    /// It writes.
    Writing,
    /// It has ended, or has been ended; all that it sent is known to be done, or cannot do harm any more.
    Closed,
}

/// A cluster, as claims name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterMark {
    /// What tells it from others of the same name: made of the certificate of its authority. Never zero.
    pub id: [u8; 16],
    /// Its name.
    pub name: String,
}

/// Who wants to write, or writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The client.
    pub client: ClientId,
    /// The epoch that it has, or wants.
    pub epoch: Epoch,
    /// How often it has beaten.
    pub counter: u64,
    /// What it is doing.
    pub state: ClaimState,
    /// Its process id on its host.
    pub pid: u32,
    /// When it started.
    pub started: WallTime,
    /// When it last beat, by its host's clock.
    pub beaten: WallTime,
    /// The window that it beats by.
    pub window: Duration,
    /// Its host.
    pub host: String,
    /// The cluster that it belongs to; none for a mount without one.
    pub cluster: Option<ClusterMark>,
    /// It writes file data at its cluster's behest, and has not opened the store.
    pub is_member: bool,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {} on host {:?} (client {}, epoch {})",
            self.pid, self.host, self.client, self.epoch
        )?;
        match &self.cluster {
            Some(cluster) => write!(f, " of the cluster {:?}", cluster.name),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ClaimBytes {
    frame: Frame,
    uuid: [u8; 16],
    client: U64,
    epoch: U64,
    counter: U64,
    state: u8,
    is_member: u8,
    zero: [u8; 2],
    pid: U32,
    started_ns: I64,
    beaten_ns: I64,
    window_ms: U32,
    zero_too: U32,
    host: [u8; 64],
    cluster: [u8; 16],
    cluster_name: [u8; 64],
}

impl Claim {
    /// Whether its client belongs to `cluster`.
    #[must_use]
    pub fn is_of(&self, cluster: Option<&ClusterMark>) -> bool {
        self.cluster.as_ref().zip(cluster).is_some_and(|(own, cluster)| own.id == cluster.id)
    }

    /// Whether its client is a member of `cluster` that whoever opens the volume for that cluster need not look out for:
    /// it writes where the cluster lets it.
    #[must_use]
    pub fn is_fellow_of(&self, cluster: Option<&ClusterMark>) -> bool {
        self.is_member && self.is_of(cluster)
    }

    /// Whether its client may still write, as far as the claim says.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state != ClaimState::Closed
    }

    /// The claim as it lies on the LUN.
    #[must_use]
    pub fn encode(&self, volume: VolumeId) -> [u8; BLOCK_LEN] {
        let bytes = ClaimBytes {
            frame: Frame::new(MAGIC),
            uuid: volume.0,
            client: U64::new(self.client.0),
            epoch: U64::new(self.epoch.0),
            counter: U64::new(self.counter),
            state: match self.state {
                ClaimState::Claiming => 1,
                ClaimState::Writing => 2,
                ClaimState::Closed => 3,
            },
            is_member: u8::from(self.is_member),
            zero: [0; 2],
            pid: U32::new(self.pid),
            started_ns: I64::new(self.started.0),
            beaten_ns: I64::new(self.beaten.0),
            window_ms: millis(self.window),
            zero_too: U32::ZERO,
            host: frame::put_text(&self.host),
            cluster: self.cluster.as_ref().map_or([0; 16], |cluster| cluster.id),
            cluster_name: self.cluster.as_ref().map_or([0; 64], |cluster| frame::put_text(&cluster.name)),
        };
        let mut out = [0; BLOCK_LEN];
        out[..size_of::<ClaimBytes>()].copy_from_slice(bytes.as_bytes());
        frame::seal(&mut out);
        out
    }

    /// Reads a claim block; it must belong to `volume`.
    pub fn decode(block: &[u8], volume: VolumeId) -> Result<Self, Damage> {
        frame::check(block, &MAGIC)?;
        let (bytes, _) = ClaimBytes::read_from_prefix(block).map_err(|_| Damage::Blank)?;
        if bytes.uuid != volume.0 {
            return Err(Damage::Foreign(VolumeId(bytes.uuid)));
        }
        let window = Duration::from_millis(bytes.window_ms.get().into());
        if window > WINDOW_MAX {
            return Err(Damage::value("window", bytes.window_ms.get()));
        }
        Ok(Self {
            client: ClientId(bytes.client.get()),
            epoch: Epoch(bytes.epoch.get()),
            counter: bytes.counter.get(),
            state: match bytes.state {
                1 => ClaimState::Claiming,
                2 => ClaimState::Writing,
                3 => ClaimState::Closed,
                other => return Err(Damage::value("state", other)),
            },
            pid: bytes.pid.get(),
            started: WallTime(bytes.started_ns.get()),
            beaten: WallTime(bytes.beaten_ns.get()),
            window,
            host: frame::text(&bytes.host),
            cluster: (bytes.cluster != [0; 16])
                .then(|| ClusterMark { id: bytes.cluster, name: frame::text(&bytes.cluster_name) }),
            is_member: match bytes.is_member {
                0 => false,
                1 => true,
                other => return Err(Damage::value("member", other)),
            },
        })
    }
}
