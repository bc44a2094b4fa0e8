//! Notes what is done, while it is done.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::operation::{Block, History, Kind, Operation, Tick, Value};

/// Notes operations of several threads.
#[derive(Debug)]
pub struct Recorder {
    ticks: AtomicU64,
    values: AtomicU64,
    history: Mutex<History>,
}

impl Default for Recorder {
    fn default() -> Self {
        // The first moment and the first value are those from before the history.
        Self { ticks: AtomicU64::new(1), values: AtomicU64::new(1), history: Mutex::default() }
    }
}

impl Recorder {
    /// This moment. An operation that began after another had ended has the later moment: the counter is one, and is
    /// raised by who begins and who ends.
    fn now(&self) -> Tick {
        Tick(self.ticks.fetch_add(1, Ordering::SeqCst))
    }

    fn note(&self, block: Block, operation: Operation) {
        self.history.lock().blocks.entry(block).or_default().push(operation);
    }

    /// Notes a write by `node` of a value of its own, which `write` is to carry out.
    pub fn write<E>(
        &self,
        node: usize,
        block: Block,
        write: impl FnOnce(Value) -> Result<(), E>,
    ) -> Result<(), E> {
        let value = Value(self.values.fetch_add(1, Ordering::Relaxed));
        let began = self.now();
        let done = write(value);
        let ended = if done.is_ok() { self.now() } else { Tick::NEVER };
        self.note(block, Operation { node, kind: Kind::Write(value), began, ended });
        done
    }

    /// Notes a read by `node`, which `read` is to carry out; it gives no value for contents that no write has written.
    pub fn read<E>(
        &self,
        node: usize,
        block: Block,
        read: impl FnOnce() -> Result<Option<Value>, E>,
    ) -> Result<(), E> {
        let began = self.now();
        let value = read()?;
        let ended = self.now();
        let kind = value.map_or(Kind::ReadTorn, Kind::Read);
        self.note(block, Operation { node, kind, began, ended });
        Ok(())
    }

    /// What was noted.
    #[must_use]
    pub fn finish(self) -> History {
        self.history.into_inner()
    }
}
