//! The position of a name in its directory.
//!
//! A cookie is the 55 low bits of a keyed hash of the name, then 8 bits that tell names of equal hash apart. It fits a
//! signed 64-bit offset, stays the same while the entry exists, and is never 0, 1 or 2, which a front end uses for the
//! start, `.` and `..`. The key, of the volume's label, keeps people from making names that collide.

use std::hash::Hasher;
use std::ops::RangeInclusive;

use siphasher::sip::SipHasher13;

/// How many names of equal hash a directory can have.
pub const SAME_HASH_MAX: u64 = 256;

/// The key of a volume's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashKey(pub [u8; 16]);

impl HashKey {
    /// The cookies that `name` can have; the first is tried first.
    #[must_use]
    pub fn cookies(&self, name: &[u8]) -> RangeInclusive<u64> {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write(name);
        let hash = (hasher.finish() & ((1 << 55) - 1)).max(1);
        let first = hash * SAME_HASH_MAX;
        first..=first + (SAME_HASH_MAX - 1)
    }
}
