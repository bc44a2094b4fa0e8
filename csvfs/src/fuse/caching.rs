//! How long the kernel may answer from what it was told.
//!
//! The kernel itself forgets the attributes that its own operations change: a write, truncation or fallocate those of
//! the file, a change of a directory's entries those of the directory, link, unlink, rename and setxattr those of the
//! inode (all names of an inode are one inode to it, so that hard links need no care), a read the time of access, the
//! end of a page's write-back the times of change. Where nothing else changes the volume, three cases are left:
//!
//! - an asynchronous direct write makes it forget when the write starts, and not when it ends: what it asks in between
//!   would be kept with the old times. Attributes of a file that is open for direct writing are not kept.
//! - a write that takes away set-id bits makes it forget size and times only, and exec would believe the old mode.
//!   Attributes of a file with set-id bits are not kept.
//! - whatever another node changes: in a cluster, nothing is kept unless the node holds the inode or directory alone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::service::{HandleId, OpenMode, Opened};
use crate::types::{Attr, Ino, Kind};

/// How long the kernel may keep names and attributes without asking again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caching {
    /// Names that exist.
    pub entries: Duration,
    /// Names that do not exist.
    pub absent: Duration,
    /// Attributes of inodes.
    pub attributes: Duration,
}

impl Caching {
    /// For a mount that nobody shares the volume with: an hour.
    #[must_use]
    pub const fn alone() -> Self {
        let hour = Duration::from_secs(3600);
        Self { entries: hour, absent: hour, attributes: hour }
    }

    /// For a volume that others change, too: nothing is kept.
    #[must_use]
    pub const fn none() -> Self {
        Self { entries: Duration::ZERO, absent: Duration::ZERO, attributes: Duration::ZERO }
    }
}

/// What may be kept at the moment, with the handles that forbid it.
#[derive(Debug)]
pub(super) struct Validity {
    caching: Caching,
    direct_writers: Mutex<DirectWriters>,
    direct_writers_count: AtomicUsize,
}

/// The handles that were opened for direct writing, and how many each file has.
#[derive(Debug, Default)]
struct DirectWriters {
    handles: HashMap<HandleId, Ino>,
    files: HashMap<Ino, usize>,
}

impl Validity {
    pub(super) fn new(caching: Caching) -> Self {
        Self { caching, direct_writers: Mutex::default(), direct_writers_count: AtomicUsize::new(0) }
    }

    /// For a name that exists.
    pub(super) fn entry(&self) -> Duration {
        self.caching.entries
    }

    /// For a name that does not exist.
    pub(super) fn absent(&self) -> Duration {
        self.caching.absent
    }

    /// For these attributes.
    pub(super) fn attributes(&self, attr: &Attr) -> Duration {
        let set_id = attr.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        if attr.kind == Kind::File && (set_id || self.is_written_directly(attr.ino)) {
            return Duration::ZERO;
        }
        self.caching.attributes
    }

    fn is_written_directly(&self, ino: Ino) -> bool {
        self.direct_writers_count.load(Ordering::Acquire) > 0
            && self.direct_writers.lock().files.contains_key(&ino)
    }

    /// A file has been opened; called before the kernel is told.
    pub(super) fn opened(&self, opened: &Opened, mode: OpenMode) {
        if mode.direct && mode.write {
            let mut writers = self.direct_writers.lock();
            writers.handles.insert(opened.handle, opened.attr.ino);
            *writers.files.entry(opened.attr.ino).or_default() += 1;
            self.direct_writers_count.store(writers.handles.len(), Ordering::Release);
        }
    }

    /// A handle is closed.
    pub(super) fn released(&self, handle: HandleId) {
        if self.direct_writers_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut writers = self.direct_writers.lock();
        let Some(ino) = writers.handles.remove(&handle) else { return };
        if let Some(count) = writers.files.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                writers.files.remove(&ino);
            }
        }
        self.direct_writers_count.store(writers.handles.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    fn attr(kind: Kind, mode: u32) -> Attr {
        let now = Timestamp(1);
        let (ino, nlink, uid, gid, rdev, size, blocks) = (Ino(7), 1, 0, 0, 0, 0, 0);
        Attr {
            ino,
            kind,
            mode,
            nlink,
            uid,
            gid,
            rdev,
            size,
            blocks,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            sealed: false,
        }
    }

    #[test]
    fn attributes_of_direct_writers_and_set_id_files_are_not_kept() {
        let validity = Validity::new(Caching::alone());
        let file = attr(Kind::File, 0o644);
        let hour = Duration::from_secs(3600);
        assert_eq!(validity.attributes(&file), hour);
        assert_eq!(validity.attributes(&attr(Kind::File, 0o4755)), Duration::ZERO);
        assert_eq!(validity.attributes(&attr(Kind::Directory, 0o2755)), hour);

        let mode = OpenMode { write: true, direct: true, ..OpenMode::default() };
        let opened =
            |handle| Opened { handle: HandleId(handle), attr: file, direct: false, keep_cache: true };
        validity.opened(&opened(1), mode);
        validity.opened(&opened(2), mode);
        validity.opened(&opened(3), OpenMode { write: true, ..OpenMode::default() });
        validity.released(HandleId(1));
        validity.released(HandleId(3));
        assert_eq!(validity.attributes(&file), Duration::ZERO);
        validity.released(HandleId(2));
        assert_eq!(validity.attributes(&file), hour);
    }
}
