//! The identifiers of the cluster, each of its own type so that none is taken for another.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bincode::de::{BorrowDecoder, Decoder};
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Decode, Encode};

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
impl Epoch {
    /// The epoch of what nobody holds: it is never granted.
    pub const NOBODY: Self = Self(0);
}

impl FromStr for Epoch {
    type Err = String;

    /// From its number, as documents have it, or from what it is shown as.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix('e').unwrap_or(text).parse();
        number.map(Self).map_err(|_| format!("{text:?} is no epoch: say a number, such as 7 or e7"))
    }
}

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

number!(
    /// A node as a number, where one is needed (the votes of a consensus group): derived from its name, the same on
    /// every machine and in every version. [`NodeName::id`] makes it; the cluster file is checked for collisions.
    NodeId(u64), "node "
);

/// The name of a node: 1 to 63 of `a-z`, `0-9` and `-`, with no `-` at either end. It stands in certificates, in paths
/// and on command lines, hence the narrow alphabet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);

/// What is not the name of a node, of a cluster or of a volume.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a valid name: use 1 to 63 of a-z, 0-9 and -, with no - at either end")]
pub struct InvalidName(pub String);

/// Whether `text` can name a node, a cluster or a volume.
#[must_use]
pub fn is_valid_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The node's number: FNV-1a of the name in 64 bits.
    #[must_use]
    pub fn id(&self) -> NodeId {
        NodeId(self.0.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        }))
    }
}

impl FromStr for NodeName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_valid_name(text) { Ok(Self(text.into())) } else { Err(InvalidName(text.to_owned())) }
    }
}

impl TryFrom<String> for NodeName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<Context> Decode<Context> for NodeName {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let text: String = Decode::decode(decoder)?;
        text.parse().map_err(|_| DecodeError::Other("what should be the name of a node is none"))
    }
}

impl<'de, Context> BorrowDecode<'de, Context> for NodeName {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Decode::decode(decoder)
    }
}

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

/// What is not the name of a resource.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no resource: use volume/UUID/file/INODE, volume/UUID/coordinator or vm/NAME")]
pub struct InvalidResource(pub String);

impl FromStr for VolumeId {
    type Err = InvalidResource;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidResource(text.to_owned());
        let places: Vec<usize> = text.char_indices().filter(|(_, c)| *c == '-').map(|(at, _)| at).collect();
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let hexadecimal = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !hexadecimal || !(places.is_empty() || places == [8, 13, 18, 23]) {
            return Err(invalid());
        }
        u128::from_str_radix(&digits, 16).map(|number| Self(number.to_be_bytes())).map_err(|_| invalid())
    }
}

impl FromStr for ResourceId {
    type Err = InvalidResource;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidResource(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            ["volume", volume, "coordinator"] => Ok(Self::Coordinator(volume.parse()?)),
            ["volume", volume, "file", ino] => {
                Ok(Self::File(volume.parse()?, ino.parse().map_err(|_| invalid())?))
            }
            ["vm", name] if !name.is_empty() => Ok(Self::Vm(name.to_owned())),
            _ => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_read_as_it_is_shown_and_as_a_number() {
        for epoch in [Epoch::NOBODY, Epoch(7), Epoch(u64::MAX)] {
            assert_eq!(epoch.to_string().parse(), Ok(epoch));
            assert_eq!(epoch.0.to_string().parse(), Ok(epoch));
        }
        for wrong in ["", "e", "-1", "7e", "ee7", "18446744073709551616"] {
            let refused = wrong.parse::<Epoch>().expect_err(wrong);
            assert!(refused.contains("such as 7 or e7"), "{refused}");
        }
    }

    #[test]
    fn a_resource_is_read_as_it_is_written() {
        let volume = VolumeId([0xab; 16]);
        for resource in
            [ResourceId::Coordinator(volume), ResourceId::File(volume, 77), ResourceId::Vm("web".into())]
        {
            assert_eq!(resource.to_string().parse(), Ok(resource));
        }
        for text in ["", "vm/", "vm/a/b", "volume/x/file/1", "volume//coordinator", "file/1", "/mnt/vms/a"] {
            assert!(text.parse::<ResourceId>().is_err(), "{text}");
        }
    }
}
