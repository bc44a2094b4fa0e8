//! What a file's owner has noted about an inode and not yet told the coordinator: times, and cleared set-id bits.

use std::sync::atomic::{AtomicI64, AtomicU8, Ordering::SeqCst};

use crate::types::{Attr, Timestamp};

const MTIME: u8 = 1;
const ATIME: u8 = 2;
const CLEAR_SET_ID: u8 = 4;
const ALL: u8 = MTIME | ATIME | CLEAR_SET_ID;
/// The same three, while a commit carries them.
const SENT_SHIFT: u8 = 3;
/// The local modification time is the last one, though the coordinator may know it by now.
const KNOWN: u8 = 64;
/// The access time has been noted since the last change of the file.
const SEEN: u8 = 128;

const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o0010;

/// See the module. A write's note costs two atomic loads and a store once the first has been made.
#[derive(Default)]
pub(super) struct Marks {
    flags: AtomicU8,
    mtime: AtomicI64,
    atime: AtomicI64,
}

/// What a commit tells the coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Noted {
    pub(super) mtime: Option<Timestamp>,
    pub(super) atime: Option<Timestamp>,
    pub(super) clear_set_id: bool,
}

impl Noted {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Marks {
    /// The file has been written.
    #[inline]
    pub(super) fn written(&self, now: Timestamp, clear_set_id: bool) {
        self.mtime.store(now.0, SeqCst);
        let set = MTIME | KNOWN | if clear_set_id { CLEAR_SET_ID } else { 0 };
        let flags = self.flags.load(SeqCst);
        if flags & set != set || flags & SEEN != 0 {
            let _ = self.flags.fetch_update(SeqCst, SeqCst, |flags| Some((flags | set) & !SEEN));
        }
    }

    /// Whether a read has to note its time (relatime: the first after a change).
    #[inline]
    pub(super) fn wants_atime(&self) -> bool {
        self.flags.load(SeqCst) & SEEN == 0
    }

    /// The file has been read.
    pub(super) fn read(&self, now: Timestamp) {
        self.atime.store(now.0, SeqCst);
        self.flags.fetch_or(ATIME | SEEN, SeqCst);
    }

    /// The access time that is known is as good as a new one.
    pub(super) fn seen(&self) {
        self.flags.fetch_or(SEEN, SeqCst);
    }

    /// Whether there is something to tell.
    pub(super) fn is_dirty(&self) -> bool {
        self.flags.load(SeqCst) & ALL != 0
    }

    /// A commit begins: what it has to tell. Ended by [`Marks::committed`] or [`Marks::failed`].
    pub(super) fn begin(&self) -> Noted {
        let before = self.flags.fetch_update(SeqCst, SeqCst, |flags| {
            Some(flags & !ALL | (flags & ALL) << SENT_SHIFT | flags & ALL << SENT_SHIFT)
        });
        let flags = before.unwrap_or_default();
        Noted {
            mtime: (flags & MTIME != 0).then(|| Timestamp(self.mtime.load(SeqCst))),
            atime: (flags & ATIME != 0).then(|| Timestamp(self.atime.load(SeqCst))),
            clear_set_id: flags & CLEAR_SET_ID != 0,
        }
    }

    pub(super) fn committed(&self) {
        self.flags.fetch_and(!(ALL << SENT_SHIFT), SeqCst);
    }

    pub(super) fn failed(&self) {
        let _ = self.flags.fetch_update(SeqCst, SeqCst, |flags| {
            Some(flags & !(ALL << SENT_SHIFT) | flags >> SENT_SHIFT & ALL)
        });
    }

    /// Somebody sets these by a request of its own, which must not be overwritten by an earlier note. Returns what to
    /// give to [`Marks::restore`] if the request fails.
    pub(super) fn forget(&self, mtime: bool, atime: bool, set_id: bool) -> u8 {
        let mask = if mtime { MTIME | KNOWN } else { 0 }
            | if atime { ATIME } else { 0 }
            | if set_id { CLEAR_SET_ID } else { 0 };
        self.flags.fetch_and(!mask, SeqCst) & mask
    }

    pub(super) fn restore(&self, forgotten: u8) {
        self.flags.fetch_or(forgotten, SeqCst);
    }

    /// The attributes with what is noted here.
    pub(super) fn apply(&self, attr: &mut Attr) {
        let flags = self.flags.load(SeqCst);
        let pending = |flag: u8| flags & (flag | flag << SENT_SHIFT) != 0;
        let mtime = Timestamp(self.mtime.load(SeqCst));
        if pending(MTIME) {
            attr.mtime = mtime;
            attr.ctime = attr.ctime.max(mtime);
        } else if flags & KNOWN != 0 {
            attr.mtime = attr.mtime.max(mtime);
        }
        if pending(ATIME) {
            attr.atime = Timestamp(self.atime.load(SeqCst));
        }
        if pending(CLEAR_SET_ID) {
            let group = if attr.mode & S_IXGRP != 0 { S_ISGID } else { 0 };
            attr.mode &= !(S_ISUID | group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_made_during_a_commit_is_told_by_the_next() {
        let marks = Marks::default();
        marks.written(Timestamp(1), true);
        let noted = marks.begin();
        assert_eq!(noted, Noted { mtime: Some(Timestamp(1)), atime: None, clear_set_id: true });
        marks.written(Timestamp(2), false);
        marks.committed();
        assert_eq!(marks.begin(), Noted { mtime: Some(Timestamp(2)), ..Noted::default() });
        marks.failed();
        assert_eq!(marks.begin().mtime, Some(Timestamp(2)), "a failed commit is told again");
    }

    #[test]
    fn a_time_that_was_set_is_not_overwritten() {
        let marks = Marks::default();
        marks.written(Timestamp(5), false);
        let forgotten = marks.forget(true, false, false);
        assert!(!marks.is_dirty());
        marks.restore(forgotten);
        assert!(marks.is_dirty());
    }
}
