//! How a dispatcher waits for the kernel's requests and the LUN's replies: it looks for them a while before it sleeps.
//!
//! To sleep and be woken costs several microseconds where a processor is free at once, and fifty on a virtual machine
//! whose processor has gone to sleep. So a dispatcher goes on looking as long as this has been worth it lately: each time
//! something came soon after it had fallen asleep, it looks twice as long the next time; when nothing came for long, not
//! at all. An idle mount sleeps.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use redirector::attend;

use super::device::Device;
use super::sys;

/// The longest look.
const LOOK_MAX: Duration = Duration::from_micros(80);
/// The first look after none was worth it.
const LOOK_MIN: Duration = Duration::from_micros(5);

/// See the module.
#[derive(Debug)]
pub(super) struct Vigil {
    device: Arc<Device>,
    /// What a sleep ends by: the device, and what is attended. They are waited for by poll(2): who is registered
    /// for good (epoll) costs those who send something at every request, also while this thread is awake.
    descriptors: Vec<libc::pollfd>,
    /// The version of what is attended that `descriptors` belongs to.
    version: Option<u64>,
    look: Look,
    /// When the look began.
    since: Instant,
}

impl Vigil {
    /// One for a thread that attends nothing yet.
    pub(super) fn new(device: &Arc<Device>) -> Self {
        let device = Arc::clone(device);
        Self { device, descriptors: Vec::new(), version: None, look: Look::new(), since: Instant::now() }
    }

    /// Begins a look for work, which is to go on as long as [`Vigil::goes_on`].
    pub(super) fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// Whether it is worth to look again; gives the processor to others first.
    pub(super) fn goes_on(&self) -> bool {
        let goes_on = self.since.elapsed() < self.look.length;
        if goes_on {
            thread::yield_now();
        }
        goes_on
    }

    /// Sleeps until there may be work.
    pub(super) fn sleep(&mut self) {
        let version = Some(attend::version());
        if self.version != version {
            self.version = version;
            self.descriptors.clear();
            self.descriptors.push(sys::readable(self.device.descriptor()));
            self.descriptors.extend(attend::descriptors().into_iter().map(sys::readable));
        }
        sys::wait_for_any(&mut self.descriptors);
        self.look.slept(self.since.elapsed());
    }
}

/// How long it is worth to look.
#[derive(Debug)]
struct Look {
    length: Duration,
    max: Duration,
}

impl Look {
    fn new() -> Self {
        // Where there is one processor, whoever has work for us needs it.
        let several = thread::available_parallelism().is_ok_and(|count| count.get() > 1);
        Self { length: Duration::ZERO, max: if several { LOOK_MAX } else { Duration::ZERO } }
    }

    /// Work came `after` so long.
    fn slept(&mut self, after: Duration) {
        self.length =
            if after > self.max { Duration::ZERO } else { (self.length * 2).clamp(LOOK_MIN, self.max) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_get_longer_while_they_would_have_been_worth_it_and_end_when_not() {
        let mut look = Look { length: Duration::ZERO, max: LOOK_MAX };
        for expected in [5, 10, 20, 40, 80, 80] {
            look.slept(Duration::from_micros(80));
            assert_eq!(look.length, Duration::from_micros(expected));
        }
        look.slept(Duration::from_micros(81));
        assert_eq!(look.length, Duration::ZERO);
    }

    #[test]
    fn a_single_processor_is_never_kept() {
        let mut look = Look { length: Duration::ZERO, max: Duration::ZERO };
        look.slept(Duration::from_micros(1));
        assert_eq!(look.length, Duration::ZERO);
    }
}
