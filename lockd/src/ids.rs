//! The identifiers of the cluster, each of its own type so that none is taken for another.

use std::fmt;

use bincode::{Decode, Encode};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number!(
    /// One incarnation of a node, held by its lockd. Never used again once it has ended (L2).
    SessionId(u64), "s"
);
number!(
    /// One incarnation of a process under a session: a mount, a virtual machine host.
    ClientId(u64), "c"
);
number!(
    /// The fencing token of an ownership or of the coordinator role: raised with every change of holder.
    Epoch(u64), "e"
);
number!(
    /// The number of one of a client's reply slots (L5).
    SlotId(u32), "slot "
);
number!(
    /// The sequence number of a command within its slot (L5). The first command of a slot has sequence 1.
    Sequence(u64), "#"
);

number!(
    /// A grant of a file lock: raised with every grant, so that a late unlock does not end a newer one (L8).
    GrantId(u64), "grant "
);
number!(
    /// A lock request that waits; tickets rise in the order in which requests came.
    Ticket(u64), "ticket "
);

/// The identity of a volume: the 16 bytes of its superblock's uuid.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct VolumeId(pub [u8; 16]);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What can be held: one name in the cluster's table of resources.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub enum ResourceId {
    /// `volume/<uuid>/coordinator`
    Coordinator(VolumeId),
    /// `volume/<uuid>/file/<ino>`
    File(VolumeId, u64),
    /// `vm/<name>`
    Vm(String),
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator(volume) => write!(f, "volume/{volume}/coordinator"),
            Self::File(volume, ino) => write!(f, "volume/{volume}/file/{ino}"),
            Self::Vm(name) => write!(f, "vm/{name}"),
        }
    }
}
