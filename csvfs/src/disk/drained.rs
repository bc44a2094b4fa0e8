//! Nothing that this mount has sent may land any more (P7): what must be so before another one may take its place.

use std::time::Duration;

use lockd::clock::Clock;
use lockd::rules::{Rule, Rules};
use redirector::lun::Lun;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Waits until the ghosts that live now are dead: for the target's quiesce time at most. Who calls it has seen to it that
/// nothing more is sent of what he gives away.
pub(crate) fn await_drained(lun: &dyn Lun, clock: &dyn Clock, rules: Rules) {
    let begun = lun.ghosts();
    let lives = || {
        let now = lun.ghosts();
        now.iter().any(|ghost| begun.iter().any(|old| ghost.start < old.end && old.start < ghost.end))
    };
    if rules.keeps(Rule::P7) && !begun.is_empty() {
        tracing::info!(ranges = begun.len(), "waiting until writes of unknown outcome can land no more");
        while lives() {
            clock.sleep(LOOK);
        }
    }
}
