//! One session's line of the lease page.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::mapping::Mapping;
use super::{ENDED, extend};
use crate::clock::BootTime;
use crate::ids::SessionId;

/// Words of a line: one cache line, so that sessions do not disturb each other.
pub(super) const LINE_WORDS: usize = 8;
/// The word of a line that names its session; 0 while it has none.
pub(super) const SESSION_WORD: usize = 0;
/// The word of a line that is the deadline.
pub(super) const DEADLINE_WORD: usize = 1;

/// One session's line of a page, written by lockd or only viewed.
#[derive(Debug)]
pub(super) struct LeaseLine {
    page: Arc<Mapping>,
    /// The index of the line's first word.
    at: usize,
    session: SessionId,
    /// Whoever only views the lease has ended it for himself.
    ended: AtomicBool,
}

impl LeaseLine {
    pub(super) fn new(page: Arc<Mapping>, line: usize, session: SessionId) -> Self {
        Self { page, at: line * LINE_WORDS, session, ended: AtomicBool::new(false) }
    }

    /// The deadline, or [`ENDED`] when the line belongs to another session by now.
    #[inline]
    pub(super) fn deadline(&self) -> u64 {
        if self.ended.load(Ordering::Acquire) {
            return ENDED;
        }
        // The deadline first: a line that changes hands gets its new session before its new deadline, so that a new
        // deadline is never taken for this session's.
        let deadline = self.page.word(self.at + DEADLINE_WORD).load(Ordering::Acquire);
        let session = self.page.word(self.at + SESSION_WORD).load(Ordering::Acquire);
        if session == self.session.0 { deadline } else { ENDED }
    }

    pub(super) fn extend(&self, deadline: BootTime) {
        if self.page.writable() && !self.ended.load(Ordering::Acquire) {
            extend(self.page.word(self.at + DEADLINE_WORD), deadline);
        }
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        if self.page.writable() {
            self.page.word(self.at + DEADLINE_WORD).store(ENDED, Ordering::Release);
        }
    }
}
