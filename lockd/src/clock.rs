//! Time as the protocols see it: one clock for leases, one for time stamps.

use std::fmt::Debug;
use std::time::Duration;

mod manual;

pub use manual::ManualClock;

/// A point on `CLOCK_BOOTTIME`, in nanoseconds since boot. It goes on while the machine sleeps and never goes
/// backwards; it means nothing on another machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BootTime(pub u64);

impl BootTime {
    /// This point plus `span`, saturating at the end of time.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this point, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A point of civil time in nanoseconds since 1970, for time stamps only. It may jump.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct WallTime(pub i64);

/// The clocks of a node.
pub trait Clock: Send + Sync + Debug {
    /// Now on `CLOCK_BOOTTIME`.
    fn boot(&self) -> BootTime;
    /// Now in civil time.
    fn wall(&self) -> WallTime;
    /// Lets the calling thread rest for `span` of `boot` time.
    fn sleep(&self, span: Duration);
}

/// The clocks of the machine this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

fn read(clock: libc::clockid_t) -> (i64, i64) {
    let mut spec = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `spec` is a valid, writable timespec for the duration of the call.
    let status = unsafe { libc::clock_gettime(clock, &mut spec) };
    assert_eq!(status, 0, "clock_gettime({clock}) failed: this kernel lacks a clock that leases need");
    (spec.tv_sec, spec.tv_nsec)
}

impl Clock for SystemClock {
    fn boot(&self) -> BootTime {
        let (seconds, nanos) = read(libc::CLOCK_BOOTTIME);
        BootTime(seconds.unsigned_abs() * 1_000_000_000 + nanos.unsigned_abs())
    }

    fn wall(&self) -> WallTime {
        let (seconds, nanos) = read(libc::CLOCK_REALTIME);
        WallTime(seconds * 1_000_000_000 + nanos)
    }

    fn sleep(&self, span: Duration) {
        std::thread::sleep(span);
    }
}
