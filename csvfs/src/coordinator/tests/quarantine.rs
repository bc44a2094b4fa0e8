//! What is in quarantine becomes free by itself (P6): nobody has to ask for anything meanwhile. By a clock that only the test
//! moves, and without threads.

use lockd::clock::ManualClock;

use super::*;
use crate::store::Snapshot;

/// Between two looks of a coordinator without threads.
const ROUND: Duration = Duration::from_millis(100);

/// A coordinator without threads on a volume.
struct Still {
    volume: Volume,
    coordinator: Arc<Coordinator>,
    clock: Arc<ManualClock>,
}

impl Still {
    /// What is there is taken over by a coordinator whose predecessor's writes may land for `settle`.
    fn take_over(volume: Volume, settle: Duration, quiesce: Duration) -> Self {
        volume.coordinator.stop();
        let clock = Arc::new(ManualClock::default());
        let Volume { database, court, plate, area, rules, .. } = &volume;
        let ground = (database, court, plate, area);
        let parts = parts(ground, *rules, [settle, quiesce], Arc::clone(&clock) as _);
        let coordinator = Coordinator::simulated(parts).unwrap();
        Self { volume, coordinator, clock }
    }

    fn done(&self, operation: Operation) {
        let answer = send(&*self.coordinator, self.volume.head(), operation);
        while self.coordinator.step() {}
        assert_eq!(answer.try_recv().unwrap(), Ok(Answer::Done));
    }

    /// One round, a while later.
    fn round(&self) {
        self.clock.advance(ROUND);
        self.coordinator.round();
        while self.coordinator.step() {}
    }

    fn quarantined(&self) -> u64 {
        Snapshot::take(&self.volume.database).unwrap().counters.quarantined.get()
    }

    /// How long it takes until nothing is in quarantine, if it takes no longer than `limit`.
    fn drains_within(&self, limit: Duration) -> Option<Duration> {
        let mut passed = Duration::ZERO;
        while self.quarantined() > 0 {
            if passed > limit {
                return None;
            }
            self.round();
            passed += ROUND;
        }
        Some(passed)
    }

    fn ends_clean(self, blocks: u64) {
        self.coordinator.stop();
        assert_clean(&self.volume, blocks);
    }
}

/// A volume on which three blocks of a reserve are in quarantine.
fn haunted() -> Volume {
    let mut volume = Volume::new(300);
    volume.quiesce = Duration::from_secs(3600);
    volume.restart();
    let run = Run { start: volume.one_run(10), len: 3 };
    volume.done(Operation::Quarantine { runs: vec![run] });
    volume
}

/// Found: the first pass of a coordinator came while writes of the last one could still land, and what was in quarantine was
/// looked at again only when something else was freed.
#[test]
fn what_a_coordinator_finds_in_quarantine_becomes_free_by_itself() {
    for (settle_s, quiesce_s, expected_s) in [(10, 3, 10), (3, 10, 10), (0, 5, 5)] {
        let [settle, quiesce, expected] = [settle_s, quiesce_s, expected_s].map(Duration::from_secs);
        let still = Still::take_over(haunted(), settle, quiesce);
        assert_eq!(still.quarantined(), 3);
        let took = still.drains_within(Duration::from_secs(60)).expect("it stays in quarantine");
        assert!(
            took >= expected && took <= expected + Duration::from_secs(1),
            "{took:?} with {settle:?}, {quiesce:?}"
        );
        still.ends_clean(300);
    }
}

/// Found: blocks that a node had put into quarantine, and nothing else, were not looked at before something was freed.
#[test]
fn what_a_node_puts_into_quarantine_becomes_free_by_itself() {
    let quiesce = Duration::from_secs(3);
    let volume = Volume::new(300);
    let run = Run { start: volume.one_run(10), len: 3 };
    let still = Still::take_over(volume, Duration::ZERO, quiesce);
    // It has looked, and there was nothing.
    (0..100).for_each(|_| still.round());
    still.done(Operation::Quarantine { runs: vec![run] });
    assert_eq!(still.quarantined(), 3);
    let took = still.drains_within(Duration::from_secs(60)).expect("it stays in quarantine");
    assert!(took >= quiesce && took <= quiesce + Duration::from_secs(1), "{took:?}");
    still.ends_clean(300);
}

#[test]
fn p6_what_lies_under_a_ghost_of_the_coordinators_own_is_free_when_that_is_dead() {
    let still = Still::take_over(haunted(), Duration::ZERO, Duration::from_secs(1));
    let haunted = Run { start: LunBlock(FIRST), len: 300 };
    still.volume.plate.ghosts.lock().push(haunted.bytes());
    assert_eq!(still.drains_within(Duration::from_secs(60)), None);
    still.volume.plate.ghosts.lock().clear();
    let took = still.drains_within(Duration::from_secs(60)).expect("it stays in quarantine");
    assert!(took <= Duration::from_secs(1), "{took:?}");
    still.ends_clean(300);
}

#[test]
fn the_coordinators_threads_do_the_same() {
    let mut volume = haunted();
    (volume.settle, volume.quiesce) = (Duration::from_millis(300), Duration::from_millis(600));
    volume.restart();
    until("the quarantine's end", || {
        Snapshot::take(&volume.database).unwrap().counters.quarantined.get() == 0
    });
    assert_clean(&volume, 300);
}
