//! A clock that goes on only when somebody sleeps, and lets others act meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockd::clock::{BootTime, Clock, WallTime};
use parking_lot::Mutex;

type OnSleep = Arc<dyn Fn() + Send + Sync>;

#[derive(Clone, Default)]
pub struct BenchClock {
    now: Arc<AtomicU64>,
    on_sleep: Arc<Mutex<Option<OnSleep>>>,
}

impl std::fmt::Debug for BenchClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BenchClock")
    }
}

impl BenchClock {
    pub fn new() -> Self {
        let clock = Self::default();
        clock.advance(Duration::from_secs(1000));
        clock
    }

    pub fn advance(&self, span: Duration) {
        self.now.fetch_add(u64::try_from(span.as_nanos()).unwrap(), Ordering::SeqCst);
    }

    /// What happens elsewhere whenever somebody sleeps.
    pub fn on_sleep(&self, act: impl Fn() + Send + Sync + 'static) {
        *self.on_sleep.lock() = Some(Arc::new(act));
    }
}

impl Clock for BenchClock {
    fn boot(&self) -> BootTime {
        BootTime(self.now.load(Ordering::SeqCst))
    }

    fn wall(&self) -> WallTime {
        WallTime(i64::try_from(self.now.load(Ordering::SeqCst)).unwrap())
    }

    fn sleep(&self, span: Duration) {
        self.advance(span);
        let act = self.on_sleep.lock().clone();
        if let Some(act) = act {
            act();
        }
        // A heart's thread, which goes by real time, gets its turn.
        std::thread::sleep(span.min(Duration::from_millis(1)));
    }
}
