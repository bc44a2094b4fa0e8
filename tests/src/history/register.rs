//! Blocks that can be read and written: a file, or what a test puts in its place.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use redirector::buffer::Pool;

use super::operation::{Block, Value};

/// The size of a block in bytes.
pub const BLOCK: usize = 4096;

/// Blocks as one node sees them.
pub trait Register: Debug + Send + Sync {
    /// Writes `value` to `block`.
    fn write(&self, block: Block, value: Value) -> io::Result<()>;

    /// Reads `block`; none for contents that [`encode`] never makes.
    fn read(&self, block: Block) -> io::Result<Option<Value>>;
}

/// Fills a block with `value`.
pub fn encode(value: Value, block: &mut [u8]) {
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&value.0.to_le_bytes());
    }
}

/// The value that fills a block; none if it is not the same everywhere.
#[must_use]
pub fn decode(block: &[u8]) -> Option<Value> {
    let mut words = block.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    let first = words.next()?;
    words.all(|word| word == first).then_some(Value(first))
}

/// A file, read and written directly (`O_DIRECT`), so that no cache of the kernel answers.
#[derive(Debug)]
pub struct FileRegister {
    file: File,
    buffers: Pool,
}

impl FileRegister {
    /// Opens the file at `path`, which must be there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
        Ok(Self { file, buffers: Pool::default() })
    }
}

fn offset(block: Block) -> u64 {
    block.0 * BLOCK as u64
}

impl Register for FileRegister {
    fn write(&self, block: Block, value: Value) -> io::Result<()> {
        let mut bytes = self.buffers.take(BLOCK);
        encode(value, &mut bytes);
        self.file.write_all_at(&bytes, offset(block))
    }

    fn read(&self, block: Block) -> io::Result<Option<Value>> {
        let mut bytes = self.buffers.take(BLOCK);
        self.file.read_exact_at(&mut bytes, offset(block))?;
        Ok(decode(&bytes))
    }
}
