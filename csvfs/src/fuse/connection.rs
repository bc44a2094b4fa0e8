//! What all threads of one mount share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::InitFlags;

use super::abi::{FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_PARALLEL_DIRECT_WRITES};
use super::caching::Validity;
use super::locks::Locks;
use super::told::{KEPT, Told};
use crate::service::{FileService, OpenMode, Opened};
use crate::types::Attr;

/// One mount: the file system behind it, and what the kernel was promised.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) service: Arc<dyn FileService>,
    pub(super) locks: Arc<Locks>,
    pub(super) validity: Validity,
    extended_setxattr: AtomicBool,
    /// Other nodes use the volume, too.
    shared: bool,
    told: Arc<Told>,
}

impl Connection {
    pub(super) fn new(service: Arc<dyn FileService>, locks: Locks, validity: Validity, shared: bool) -> Self {
        let (extended_setxattr, told) = (AtomicBool::new(false), Arc::default());
        Self { service, locks: Arc::new(locks), validity, extended_setxattr, shared, told }
    }

    /// What the kernel is asked for beyond what a mount always asks for. A file that is open past the page cache may
    /// be mapped shared only where nobody else can change it.
    pub(super) fn wanted(&self) -> InitFlags {
        if self.shared { InitFlags::empty() } else { InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP }
    }

    /// How long the kernel may keep attributes that it has asked for.
    pub(super) fn kept(&self, attr: &Attr) -> Duration {
        if !self.shared {
            return self.validity.attributes(attr);
        }
        if !self.service.stays(attr) {
            return Duration::ZERO;
        }
        self.told.note(attr.ino);
        if self.service.stays(attr) { KEPT } else { Duration::ZERO }
    }

    /// What the kernel was told that it may keep.
    pub(super) fn told(&self) -> &Arc<Told> {
        &self.told
    }

    /// Remembers which capabilities the kernel and we have agreed on, as far as they change the requests' form.
    pub(super) fn agreed(&self, capabilities: InitFlags) {
        let extended = capabilities.contains(InitFlags::FUSE_SETXATTR_EXT);
        self.extended_setxattr.store(extended, Ordering::Release);
    }

    /// Whether SETXATTR has its long form.
    pub(super) fn has_extended_setxattr(&self) -> bool {
        self.extended_setxattr.load(Ordering::Acquire)
    }

    /// A file has been opened: the flags that the kernel is told.
    pub(super) fn opened(&self, opened: &Opened, mode: OpenMode) -> u32 {
        self.validity.opened(opened, mode);
        let cache = if opened.keep_cache { FOPEN_KEEP_CACHE } else { 0 };
        // Where others use the file, the service knows best: with pages in the kernel, O_DIRECT minds them only there.
        let direct = opened.direct || (mode.direct && !self.shared);
        if direct { FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES } else { cache }
    }
}

/// How the flags of open(2) ask for a file to be opened.
pub(super) fn open_mode(flags: u32, kills_set_id: bool, pid: u32) -> OpenMode {
    let flags = flags.cast_signed();
    let access = flags & libc::O_ACCMODE;
    OpenMode {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        direct: flags & libc::O_DIRECT != 0,
        clear_set_id: kills_set_id,
        truncate: flags & libc::O_TRUNC != 0,
        exclusive: flags & libc::O_EXCL != 0,
        pid,
    }
}
