//! Feature flags: what a program must know to read or to write a volume.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The features that a volume uses, in three sets of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// A program that does not know one of these may use the volume all the same.
    pub compatible: u64,
    /// A program that does not know one of these may read the volume, but not write it.
    pub ro_compatible: u64,
    /// A program that does not know one of these must not touch the volume.
    pub incompatible: u64,
}

impl Features {
    /// Incompatible: the last changes of the store may be in the redo journal only.
    pub const JOURNAL: u64 = 1;

    /// What this program knows.
    pub const KNOWN: Self = Self { compatible: 0, ro_compatible: 0, incompatible: Self::JOURNAL };

    /// Whether the last changes of the store may be in the redo journal only.
    #[must_use]
    pub fn has_journal(self) -> bool {
        self.incompatible & Self::JOURNAL != 0
    }

    /// The same with a redo journal.
    #[must_use]
    pub fn with_journal(self) -> Self {
        Self { incompatible: self.incompatible | Self::JOURNAL, ..self }
    }

    /// The features of either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            compatible: self.compatible | other.compatible,
            ro_compatible: self.ro_compatible | other.ro_compatible,
            incompatible: self.incompatible | other.incompatible,
        }
    }

    /// The incompatible features that this program does not know.
    #[must_use]
    pub fn unreadable(self) -> u64 {
        self.incompatible & !Self::KNOWN.incompatible
    }

    /// The features that this program does not know and that forbid writing.
    #[must_use]
    pub fn unwritable(self) -> u64 {
        self.unreadable() | self.ro_compatible & !Self::KNOWN.ro_compatible
    }
}

/// On disk: 24 bytes, in the order of [`Features`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct FeatureBytes {
    compatible: U64,
    ro_compatible: U64,
    incompatible: U64,
}

impl From<Features> for FeatureBytes {
    fn from(features: Features) -> Self {
        Self {
            compatible: U64::new(features.compatible),
            ro_compatible: U64::new(features.ro_compatible),
            incompatible: U64::new(features.incompatible),
        }
    }
}

impl From<FeatureBytes> for Features {
    fn from(bytes: FeatureBytes) -> Self {
        Self {
            compatible: bytes.compatible.get(),
            ro_compatible: bytes.ro_compatible.get(),
            incompatible: bytes.incompatible.get(),
        }
    }
}
