//! How long requests take: counts by powers of two, written by one thread, read by any.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Class `n` counts latencies below `2^n` microseconds.
const CLASSES: usize = 32;
/// A percentile of fewer latencies says nothing.
const MEANINGFUL: u64 = 1000;

/// A histogram of latencies.
#[derive(Debug, Default)]
pub struct Latency {
    counts: [AtomicU32; CLASSES],
}

impl Latency {
    /// Counts one. Only one thread may do so.
    pub fn record(&self, latency: Duration) {
        let micros = latency.as_micros();
        let class = (u128::BITS - micros.leading_zeros()) as usize;
        let count = &self.counts[class.min(CLASSES - 1)];
        // No other writer: no read-modify-write needed. Saturates rather than wraps.
        count.store(count.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }

    /// How many latencies several histograms have in each class, by the class's upper bound; without classes above the
    /// last that has any.
    pub fn classes<'a>(all: impl Iterator<Item = &'a Self>) -> Vec<(Duration, u64)> {
        let mut sums = [0u64; CLASSES];
        for latency in all {
            for (sum, count) in sums.iter_mut().zip(&latency.counts) {
                *sum += u64::from(count.load(Ordering::Relaxed));
            }
        }
        let used = sums.iter().rposition(|sum| *sum > 0).map_or(0, |last| last + 1);
        (0..).zip(&sums[..used]).map(|(class, sum)| (Duration::from_micros(1 << class), *sum)).collect()
    }

    /// The upper bound of the class in which the 99.9th percentile of several histograms lies; `None` if they hold
    /// too few.
    pub fn p999<'a>(all: impl Iterator<Item = &'a Self>) -> Option<Duration> {
        let mut sums = [0u64; CLASSES];
        for latency in all {
            for (sum, count) in sums.iter_mut().zip(&latency.counts) {
                *sum += u64::from(count.load(Ordering::Relaxed));
            }
        }
        let total: u64 = sums.iter().sum();
        if total < MEANINGFUL {
            return None;
        }
        let mut above = total / 1000;
        let class = sums.iter().enumerate().rev().find(|(_, sum)| {
            let found = **sum > above;
            above = above.saturating_sub(**sum);
            found
        });
        class.map(|(class, _)| Duration::from_micros(1 << class))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_that_of_the_slowest_thousandth() {
        let latency = Latency::default();
        for _ in 0..999 {
            latency.record(Duration::from_micros(100));
        }
        assert_eq!(Latency::p999([&latency].into_iter()), None);
        latency.record(Duration::from_secs(2));
        assert_eq!(Latency::p999([&latency].into_iter()), Some(Duration::from_micros(128)));
        let classes = Latency::classes([&latency].into_iter());
        assert_eq!((classes.len(), classes[7]), (22, (Duration::from_micros(128), 999)));
        assert_eq!(classes[21], (Duration::from_micros(1 << 21), 1));
        assert!(Latency::classes([&Latency::default()].into_iter()).is_empty());
        for _ in 0..5 {
            latency.record(Duration::from_secs(2));
        }
        assert_eq!(Latency::p999([&latency].into_iter()), Some(Duration::from_micros(1 << 21)));
    }
}
