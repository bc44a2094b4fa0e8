//! Nothing that this mount has sent may land any more (P7): what must be so before another one may take its place.

use std::time::Duration;

use lockd::clock::Clock;
use lockd::rules::{Rule, Rules};
use redirector::lun::Lun;

/// Between two looks, at first and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// By how much the longest wait is longer than the quiesce time: more than a peer may keep.
pub(crate) const MARGIN: Duration = Duration::from_secs(10);

/// Waits until the ghosts that live now are dead, at most for `limit`, which is longer than any ghost lives: the target's
/// quiesce time, and what a peer may keep. Who calls it has seen to it that nothing more is sent of what he gives away.
pub(crate) fn await_drained(lun: &dyn Lun, clock: &dyn Clock, rules: Rules, limit: Duration) {
    let (begun, until) = (lun.ghosts(), clock.boot().after(limit));
    let lives = || {
        let now = lun.ghosts();
        now.iter().any(|ghost| begun.iter().any(|old| ghost.start < old.end && old.start < ghost.end))
    };
    if rules.keeps(Rule::P7) && !begun.is_empty() {
        tracing::info!(ranges = begun.len(), "waiting until writes of unknown outcome can land no more");
        let mut pause = LOOK.0;
        while lives() && clock.boot() < until {
            clock.sleep(pause);
            pause = (pause * 2).min(LOOK.1);
        }
        if lives() {
            tracing::warn!(
                seconds = limit.as_secs(),
                "writes of unknown outcome are still named, longer than the target may execute them: taken for dead"
            );
        }
    }
}
