//! What has happened, in order: as a hash, and in words where somebody wants to read it.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::Duration;

/// How much of it is shown with a failure.
const TAIL: usize = 120;

/// See the module.
pub struct Trace {
    hash: u64,
    count: u64,
    last: VecDeque<(Duration, &'static str, Vec<u64>)>,
    is_kept: bool,
}

impl Trace {
    /// Nothing has happened. `CSV_TRACE` asks for words.
    pub fn new() -> Self {
        let is_kept = std::env::var_os("CSV_TRACE").is_some();
        if is_kept {
            // What the code itself says, too.
            let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
        }
        Self { hash: 0xcbf2_9ce4_8422_2325, count: 0, last: VecDeque::new(), is_kept }
    }

    fn mix(&mut self, number: u64) {
        for byte in number.to_le_bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// One thing more.
    pub fn note(&mut self, now: Duration, what: &'static str, numbers: &[u64]) {
        self.count += 1;
        self.mix(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        what.bytes().for_each(|byte| self.mix(u64::from(byte)));
        numbers.iter().for_each(|number| self.mix(*number));
        if self.is_kept {
            self.last.push_back((now, what, numbers.to_vec()));
        }
    }

    /// All of it as one number.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Whether it is kept in words.
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// The last of it in words.
    pub fn tail(&self) -> String {
        let mut text = format!(" ({} things had happened; CSV_TRACE=1 shows the last)", self.count);
        let tail =
            std::env::var("CSV_TRACE").ok().and_then(|tail| tail.parse().ok()).unwrap_or(TAIL).max(TAIL);
        for (time, what, numbers) in self.last.iter().skip(self.last.len().saturating_sub(tail)) {
            let _ = write!(text, "\n{time:>14.6?} {what} {numbers:?}");
        }
        text
    }
}
