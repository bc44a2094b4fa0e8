//! Attributes that the kernel keeps for a moment, where other nodes use the volume.
//!
//! A path is looked up part by part, and after each LOOKUP the kernel wants the attributes that it has just got once more,
//! to check permissions, unless it may keep them. So it may, for [`KEPT`], as long as this node has the lease of them
//! (V9); when the lease is taken back, the kernel is told to forget them before that is answered.
//!
//! The kernel numbers what it is told and what it forgets, and a reply that it had asked for before it was told to forget
//! is not kept. Only for an inode that it does not know yet, it has nothing to forget: the reply that makes it known may
//! still be on its way. Whoever finds the inode unknown therefore waits until what was told is over. Only replies to
//! LOOKUP, GETATTR and STATX may say that attributes are kept: of the others the kernel keeps what they say in any case.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::types::Ino;

/// How long the kernel keeps them. It counts in ticks of its clock, of 1 to 10 ms.
pub(super) const KEPT: Duration = Duration::from_millis(10);
/// After so long nothing that was told is kept: that, two ticks, and what a reply may take from us to the kernel's memory.
const OVER: Duration = Duration::from_millis(60);
/// Those whose time is over are forgotten when there are so many.
const TIDY_AT: usize = 1024;

/// Of which inodes the kernel has been told attributes that it may keep, and until when it may.
#[derive(Debug, Default)]
pub(super) struct Told {
    until: Mutex<HashMap<Ino, Instant>>,
}

impl Told {
    /// The kernel is about to be told. Noted first, and looked at after that whether they still stay: who takes them back
    /// does it the other way round.
    pub(super) fn note(&self, ino: Ino) {
        let now = Instant::now();
        let mut until = self.until.lock();
        if until.len() >= TIDY_AT {
            until.retain(|_, until| *until > now);
        }
        until.insert(ino, now + OVER);
    }

    /// Until when the kernel may keep what it was told of `ino`, or of each inode of which it keeps something.
    pub(super) fn kept(&self, ino: Option<Ino>) -> Vec<(Ino, Instant)> {
        let now = Instant::now();
        let until = self.until.lock();
        let mut kept: Vec<(Ino, Instant)> = match ino {
            Some(ino) => until.get(&ino).map(|until| (ino, *until)).into_iter().collect(),
            None => until.iter().map(|(ino, until)| (*ino, *until)).collect(),
        };
        kept.retain(|(_, until)| *until > now);
        kept.sort_unstable_by_key(|(_, until)| *until);
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_known_until_it_is_over() {
        let told = Told::default();
        let inos = |ino| told.kept(ino).into_iter().map(|(ino, _)| ino).collect::<Vec<_>>();
        assert_eq!((inos(Some(Ino(1))), inos(None)), (vec![], vec![]));
        told.note(Ino(1));
        assert!(told.kept(Some(Ino(1)))[0].1 > Instant::now() + KEPT);
        told.note(Ino(2));
        assert_eq!(inos(Some(Ino(3))), []);
        assert_eq!((inos(None), inos(Some(Ino(2)))), (vec![Ino(1), Ino(2)], vec![Ino(2)]));
        std::thread::sleep(OVER);
        assert_eq!((inos(Some(Ino(1))), inos(None)), (vec![], vec![]));
        for ino in 0..2 * TIDY_AT as u64 {
            told.note(Ino(ino));
        }
        std::thread::sleep(OVER);
        told.note(Ino(1));
        assert_eq!(told.until.lock().len(), 1);
    }
}
