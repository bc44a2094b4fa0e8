//! Steady writers: how long is nothing acknowledged, and is all there that was?

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::content;

/// Several threads that overwrite the blocks of a file past the kernel's cache, each its own blocks, one write at a time.
#[derive(Debug)]
pub struct Writers {
    path: PathBuf,
    seed: u64,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<(io::Result<()>, Vec<Acknowledged>)>>,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    stop: AtomicBool,
    /// When the last write was acknowledged, in microseconds since the start.
    last: AtomicU64,
    /// The longest time without any, and the longest that one write took, in microseconds since they were asked for last.
    gap: AtomicU64,
    slowest: AtomicU64,
    count: AtomicU64,
}

/// How a block was written last.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    index: u64,
    version: u64,
    /// The next version was sent, and not acknowledged: it may be there.
    open: bool,
}

/// What was acknowledged by the time at which the writers ended.
#[derive(Debug)]
pub struct Written {
    seed: u64,
    blocks: Vec<Acknowledged>,
}

/// What was seen of writers for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The longest time in which no write was acknowledged.
    pub gap: Duration,
    /// The longest that one took.
    pub slowest: Duration,
    /// How many there were.
    pub count: u64,
}

impl Shared {
    fn micros(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn acknowledged(&self, begun: u64) {
        let now = self.micros();
        let before = self.last.swap(now, Ordering::SeqCst);
        self.gap.fetch_max(now.saturating_sub(before), Ordering::SeqCst);
        self.slowest.fetch_max(now.saturating_sub(begun), Ordering::SeqCst);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    fn run(
        &self,
        file: &File,
        seed: u64,
        mut blocks: Vec<Acknowledged>,
    ) -> (io::Result<()>, Vec<Acknowledged>) {
        for at in (0..blocks.len()).cycle() {
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            let Acknowledged { index, version, .. } = blocks[at];
            let data = Aligned::new(&content::block(seed, index, version + 1));
            let begun = self.micros();
            blocks[at].open = true;
            if let Err(error) = file.write_all_at(data.bytes(), index * content::BLOCK as u64) {
                return (Err(error), blocks);
            }
            blocks[at] = Acknowledged { index, version: version + 1, open: false };
            self.acknowledged(begun);
        }
        (Ok(()), blocks)
    }
}

/// A block where `O_DIRECT` wants it.
struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn new(block: &[u8]) -> Self {
        let mut memory = vec![0; 2 * content::BLOCK];
        let at = memory.as_ptr().align_offset(content::BLOCK);
        memory[at..at + content::BLOCK].copy_from_slice(block);
        Self(memory, at)
    }

    fn bytes(&self) -> &[u8] {
        &self.0[self.1..self.1 + content::BLOCK]
    }
}

impl Writers {
    /// `depth` threads over the `blocks` blocks of the file at `path`, whose contents `seed` tells.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn start(path: &Path, seed: u64, blocks: u64, depth: u64) -> Result<Self> {
        let open = || File::options().write(true).custom_flags(libc::O_DIRECT).open(path);
        let shared = Arc::new(Shared {
            start: Instant::now(),
            stop: AtomicBool::new(false),
            last: AtomicU64::new(0),
            gap: AtomicU64::new(0),
            slowest: AtomicU64::new(0),
            count: AtomicU64::new(0),
        });
        let mut threads = Vec::new();
        for number in 0..depth {
            let (file, shared) = (open()?, Arc::clone(&shared));
            let own = (0..blocks).filter(|index| index % depth == number);
            let own = own.map(|index| Acknowledged { index, version: 0, open: false }).collect();
            threads.push(thread::spawn(move || shared.run(&file, seed, own)));
        }
        Ok(Self { path: path.to_owned(), seed, shared, threads })
    }

    /// What was seen since this was asked last.
    pub fn seen(&self) -> Seen {
        let shared = &self.shared;
        // A gap that has not ended yet counts.
        let open = shared.micros().saturating_sub(shared.last.load(Ordering::SeqCst));
        let gap = shared.gap.swap(0, Ordering::SeqCst).max(open);
        Seen {
            gap: Duration::from_micros(gap),
            slowest: Duration::from_micros(shared.slowest.swap(0, Ordering::SeqCst)),
            count: shared.count.swap(0, Ordering::SeqCst),
        }
    }

    /// Ends the writers, demands that none has met an error, and that `path` has what was acknowledged last.
    ///
    /// # Errors
    /// If not.
    pub fn finish(self, path: &Path) -> Result<()> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut written = Written { seed: self.seed, blocks: Vec::new() };
        for thread in self.threads {
            let (ended, blocks) = thread.join().expect("a writer does not panic");
            ended.with_context(|| format!("a write to {} failed", self.path.display()))?;
            written.blocks.extend(blocks);
        }
        written.check(path)
    }

    /// Ends the writers, which may have met errors.
    #[must_use]
    pub fn acknowledged(self) -> Written {
        self.shared.stop.store(true, Ordering::SeqCst);
        let ended = self.threads.into_iter().map(|thread| thread.join().expect("a writer does not panic"));
        Written { seed: self.seed, blocks: ended.flat_map(|(_, blocks)| blocks).collect() }
    }
}

impl Written {
    /// Demands that `path` has what was acknowledged last of each block, or what was sent after that and not acknowledged.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self, path: &Path) -> Result<()> {
        let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        let mut any = false;
        for Acknowledged { index, version, open } in &self.blocks {
            let mut block = Aligned::new(&[0; content::BLOCK]);
            let range = block.1..block.1 + content::BLOCK;
            file.read_exact_at(&mut block.0[range], index * content::BLOCK as u64)?;
            let is = |version| block.bytes() == content::block(self.seed, *index, version);
            ensure!(
                is(*version) || (*open && is(version + 1)),
                "block {index} is not as it was acknowledged (version {version})"
            );
            any |= *version > 0;
        }
        ensure!(any, "nothing was acknowledged");
        Ok(())
    }
}
