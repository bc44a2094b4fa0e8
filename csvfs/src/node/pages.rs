//! The pages that this node's kernel keeps of a file, where other nodes use it too.
//!
//! Whether an open may leave pages in the kernel's cache, and so be mapped shared and writable, is decided when it is
//! opened: only where this node serves the file. Everything that another node does to the file is then executed here,
//! so that the pages can be kept right: a change of another node is executed, then the pages of its range are dropped,
//! then it is answered. A file with such opens stays where it is.
//!
//! A page that a program has changed in a mapping is written back before it is dropped, and holds what the change of the
//! other node found, where the program has stored nothing. So for as long as a change is under way, whatever the page
//! cache writes back to its range takes the change's own bytes: a [`Cover`]. Noted before the change takes its block
//! locks, and looked at by the write-back under its own, so that one of the two sees the other.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use redirector::buffer::{Pool, Slice};

use super::Core;
use super::file::File;
use super::task::promise;
use crate::proto::Claim;
use crate::refusal::Refusal;
use crate::service::OpenMode;
use crate::types::Ino;

/// An open that may leave pages in the kernel's cache.
struct Keeper {
    handle: u64,
    pid: u32,
}

/// A change of another node that is under way: where, and the bytes that it writes (zeros if none).
struct Change {
    number: u64,
    bytes: Range<u64>,
    data: Option<Slice>,
}

/// How the kernel of this node uses a file.
#[derive(Default)]
pub(super) struct PageUse {
    keepers: Vec<Keeper>,
    /// Opens past the page cache that may write.
    past: usize,
    /// The file is on its way to another node: no open keeps pages.
    leaving: bool,
    changes: Vec<Change>,
    numbers: u64,
}

/// What an open is to the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kept {
    /// The kernel may keep pages for it.
    Pages,
    /// It goes past the page cache, and may write.
    PastWriting,
    /// It goes past the page cache.
    Past,
}

impl PageUse {
    /// Takes note of an open; `here`: this node serves the file.
    fn enter(&mut self, handle: u64, mode: OpenMode, here: bool) -> Kept {
        let mapped = !self.keepers.is_empty();
        let alone = self.past == 0 && !mode.direct && mode.read;
        if here && !self.leaving && (mapped || alone) {
            self.keepers.push(Keeper { handle, pid: mode.pid });
            return Kept::Pages;
        }
        if mode.write {
            self.past += 1;
            return Kept::PastWriting;
        }
        Kept::Past
    }

    fn leave(&mut self, handle: u64, kept: Kept) {
        match kept {
            Kept::Pages => self.keepers.retain(|keeper| keeper.handle != handle),
            Kept::PastWriting => self.past -= 1,
            Kept::Past => {}
        }
    }
}

/// The process of a thread, and the name of its program, as long as it runs: the kernel names the thread that opens.
fn process_of(thread: u32) -> (u32, String) {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    let process = process.unwrap_or(thread);
    let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
    let name = name.ok().map(|name| name.trim_end().to_owned());
    (process, name.unwrap_or_else(|| "which has ended; its file is still open elsewhere".to_owned()))
}

/// Keeps a file from being opened with pages while it goes to another node.
pub(super) struct Leaving<'a>(&'a File);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.pages.lock().leaving = false;
    }
}

/// A change of another node, while it is under way.
pub(super) struct Cover {
    file: Arc<File>,
    number: u64,
}

impl Cover {
    /// The change is about to write `data` at `offset`, or zeros to all of `bytes`.
    pub(super) fn set(&self, bytes: Range<u64>, data: Option<Slice>) {
        self.file.pages.lock().changes.push(Change { number: self.number, bytes, data });
    }

    /// Everything that the change has touched, as one range; nothing if it has touched nothing.
    pub(super) fn range(&self) -> Option<Range<u64>> {
        let pages = self.file.pages.lock();
        let own = pages.changes.iter().filter(|change| change.number == self.number);
        own.map(|change| change.bytes.clone())
            .reduce(|all, bytes| all.start.min(bytes.start)..all.end.max(bytes.end))
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        self.file.pages.lock().changes.retain(|change| change.number != self.number);
    }
}

impl File {
    /// Whether the kernel may have pages of the file for an open that keeps them.
    pub(super) fn has_pages(&self) -> bool {
        !self.pages.lock().keepers.is_empty()
    }

    /// Takes note of an open, and says what it is to the page cache.
    pub(super) fn enter_pages(&self, handle: u64, mode: OpenMode) -> Kept {
        let mut pages = self.pages.lock();
        // Under the lock: who hands the file over says so first.
        let here = self.tenure().is_some();
        pages.enter(handle, mode, here)
    }

    pub(super) fn leave_pages(&self, handle: u64, kept: Kept) {
        self.pages.lock().leave(handle, kept);
    }

    /// The file is to go to another node: refused, naming the process, while an open keeps pages of it.
    pub(super) fn leave_with_pages(&self) -> Result<Leaving<'_>, Refusal> {
        let (thread, more) = {
            let mut pages = self.pages.lock();
            let Some(keeper) = pages.keepers.first() else {
                pages.leaving = true;
                return Ok(Leaving(self));
            };
            (keeper.pid, pages.keepers.len() - 1)
        };
        let others = if more == 0 { String::new() } else { format!(", and {more} more opens") };
        let (pid, name) = process_of(thread);
        Err(Refusal::Busy(format!(
            "{} stays on the node that serves it: process {pid} ({name}){others} has it open there such that it may map \
             its pages; end it, or have it open the file with O_DIRECT or for writing only",
            self.ino
        )))
    }

    /// Refuses, naming the process, while an open keeps pages of the file.
    pub(super) fn check_no_pages(&self) -> Result<(), Refusal> {
        self.leave_with_pages().map(drop)
    }

    /// A change of another node begins.
    pub(super) fn cover(self: &Arc<Self>) -> Cover {
        let mut pages = self.pages.lock();
        pages.numbers += 1;
        Cover { file: Arc::clone(self), number: pages.numbers }
    }

    /// Whether changes of other nodes are under way.
    pub(super) fn has_covers(&self) -> bool {
        !self.pages.lock().changes.is_empty()
    }

    /// What the page cache writes back at `offset`, with the bytes of the changes that are under way. The caller holds
    /// the locks of its blocks.
    pub(super) fn covered(&self, offset: u64, data: &Slice, pool: &Pool) -> Slice {
        let pages = self.pages.lock();
        let end = offset + data.len() as u64;
        let overlaps = |change: &&Change| change.bytes.start < end && change.bytes.end > offset;
        if !pages.changes.iter().any(|change| overlaps(&change)) {
            return data.clone();
        }
        let mut all = pool.take(data.len());
        all[..data.len()].copy_from_slice(data);
        for change in pages.changes.iter().filter(overlaps) {
            let bytes = change.bytes.start.max(offset)..change.bytes.end.min(end);
            let within = |at: u64, start: u64| usize::try_from(at - start).expect("within a slice's length");
            let target = within(bytes.start, offset)..within(bytes.end, offset);
            match &change.data {
                Some(data) => {
                    let from = within(bytes.start, change.bytes.start);
                    let part = &data[from..from + target.len()];
                    all[target].copy_from_slice(part);
                }
                None => all[target].fill(0),
            }
        }
        all.share().part(0..data.len())
    }
}

impl Core {
    /// Whether this node's front end has a page cache that opens may use.
    pub(super) fn has_page_cache(&self) -> bool {
        self.options.cluster && self.pages.get().is_some()
    }

    /// Has the kernel write back and drop its pages of a range. Called with no gate, turn or lock held that a
    /// write-back needs.
    pub(super) async fn drop_pages(&self, file: &File, bytes: Range<u64>) {
        let Some(pages) = self.pages.get() else { return };
        let (sender, receiver) = promise();
        pages.drop_range(file.ino, bytes, Box::new(move || sender.send(())));
        receiver.await;
    }

    /// Has the kernel forget the attributes of an inode, or of all, that it keeps under this node's leases.
    pub(super) async fn drop_attributes(&self, ino: Option<Ino>) {
        let Some(pages) = self.pages.get() else { return };
        let (sender, receiver) = promise();
        pages.drop_attributes(ino, Box::new(move || sender.send(())));
        receiver.await;
    }

    /// An open for reading and writing is to keep pages: this node tries to serve the file.
    pub(super) async fn come_to_serve(self: &Arc<Self>, file: &Arc<File>, mode: OpenMode) {
        let wants = self.has_page_cache()
            && mode.read
            && mode.write
            && !mode.direct
            && file.is_regular()
            && file.is_elsewhere();
        if !wants {
            return;
        }
        file.tried.store(true, SeqCst);
        // Also from a server that has a use for it: a program that needs its pages fails without them.
        let claim = Claim { automatic: false, pinned: false, offer: None };
        if let Err(refusal) = self.acquire(std::slice::from_ref(file), claim).await {
            tracing::debug!(ino = file.ino.0, %refusal, "the file stays where it is, and is opened without pages");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(bytes: &[u8]) -> Slice {
        let mut buffer = Pool::default().take(bytes.len());
        buffer[..bytes.len()].copy_from_slice(bytes);
        buffer.share().part(0..bytes.len())
    }

    #[test]
    fn what_is_written_back_takes_the_bytes_of_changes_under_way() {
        let file = Arc::new(File::new(Ino(7)));
        let pool = Pool::default();
        let (one, two) = (file.cover(), file.cover());
        assert_eq!(&file.covered(0, &slice(b"abcdefgh"), &pool)[..], b"abcdefgh");
        one.set(2..4, Some(slice(b"XY")));
        two.set(6..u64::MAX, None);
        assert_eq!(&file.covered(0, &slice(b"abcdefgh"), &pool)[..], b"abXYef\0\0");
        assert_eq!(&file.covered(3, &slice(b"def"), &pool)[..], b"Yef");
        assert_eq!(&file.covered(4, &slice(b"ef"), &pool)[..], b"ef");
        assert_eq!((one.range(), two.range()), (Some(2..4), Some(6..u64::MAX)));
        drop(two);
        assert_eq!(&file.covered(0, &slice(b"abcdefgh"), &pool)[..], b"abXYefgh");
        drop(one);
        assert!(!file.has_covers());
    }

    #[test]
    fn opens_that_keep_pages_and_writers_past_them_do_not_mix() {
        let mut pages = PageUse::default();
        let (read, write) = (true, true);
        let rw = OpenMode { read, write, ..OpenMode::default() };
        let append = OpenMode { write, ..OpenMode::default() };
        let direct = OpenMode { direct: true, ..rw };
        let ro = OpenMode { read, ..OpenMode::default() };
        assert_eq!(pages.enter(1, append, true), Kept::PastWriting);
        assert_eq!(pages.enter(2, rw, true), Kept::PastWriting);
        assert_eq!(pages.enter(3, ro, true), Kept::Past);
        pages.leave(1, Kept::PastWriting);
        pages.leave(2, Kept::PastWriting);
        // With the last that writes past the cache gone, pages may be kept; then everybody does.
        assert_eq!(pages.enter(4, rw, true), Kept::Pages);
        assert_eq!(pages.enter(5, direct, true), Kept::Pages);
        assert_eq!(pages.enter(6, append, true), Kept::Pages);
        for handle in [4, 5, 6] {
            pages.leave(handle, Kept::Pages);
        }
        assert_eq!(pages.enter(7, direct, true), Kept::PastWriting);
        pages.leave(7, Kept::PastWriting);
        assert_eq!(pages.enter(8, ro, false), Kept::Past);
        pages.leaving = true;
        assert_eq!(pages.enter(9, rw, true), Kept::PastWriting);
    }
}
