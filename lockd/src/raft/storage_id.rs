//! The identity of a voter's directory.

use std::fmt;

/// The identity of a voter's directory: random, made when the directory is, and presented with every frame between
/// voters. The cluster's membership names each voter with its storage id.
///
/// A voter that comes back with an empty directory has forgotten whom it voted for and which entries it acknowledged;
/// if it voted again, two leaders could be elected in one term, and acknowledged commands be lost. Its new directory
/// has another id, so that the others refuse it, until `rejoin` has taken the voter out of the membership and put it in
/// again with its new id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StorageId(pub [u8; 16]);

impl fmt::Display for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
