//! What has been recorded: requests with when they started and ended, and marks.

use std::ops::Range;

use crate::memory::Image;

/// The bytes of a change.
#[derive(Clone, Debug)]
pub(super) enum Bytes {
    Data(Box<[u8]>),
    /// A range filled with one byte: zeroed or trimmed.
    Filled(u8),
}

/// A write, zero or trim.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub range: Range<u64>,
    pub bytes: Bytes,
    pub fua: bool,
}

impl Change {
    /// Puts the part `range` of the LUN, which lies within the change, into `image`.
    pub fn apply_part(&self, image: &mut Image, range: &Range<u64>) {
        match &self.bytes {
            Bytes::Filled(byte) => image.fill(range.clone(), *byte),
            Bytes::Data(data) => {
                let from_start = |at: u64| usize::try_from(at - self.range.start).expect("within the data");
                image.write(range.start, &data[from_start(range.start)..from_start(range.end)]);
            }
        }
    }

    /// Puts all of the change into `image`.
    pub fn apply(&self, image: &mut Image) {
        self.apply_part(image, &self.range);
    }
}

/// A place in the record: how many events came before it.
pub(super) type Position = usize;

/// A change or a flush.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// `None`: a flush.
    pub change: Option<Change>,
    pub started: Position,
    pub done: Option<Position>,
}

/// What a program has done to a LUN: every change and flush, when each started and ended, and the marks between them.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub(super) base: Image,
    pub(super) requests: Vec<Request>,
    pub(super) marks: Vec<(Position, u64)>,
    pub(super) events: Position,
}

impl Record {
    fn event(&mut self) -> Position {
        self.events += 1;
        self.events - 1
    }

    /// A request starts; returns its number.
    pub(super) fn start(&mut self, change: Option<Change>) -> usize {
        let started = self.event();
        self.requests.push(Request { change, started, done: None });
        self.requests.len() - 1
    }

    /// The request `number` is done.
    pub(super) fn done(&mut self, number: usize) {
        let done = self.event();
        self.requests[number].done = Some(done);
    }

    pub(super) fn mark(&mut self, mark: u64) {
        let at = self.event();
        self.marks.push((at, mark));
    }

    /// How many changes have been recorded.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.requests.iter().filter(|request| request.change.is_some()).count()
    }

    /// How many flushes have been recorded.
    #[must_use]
    pub fn flushes(&self) -> usize {
        self.requests.len() - self.changes()
    }
}
