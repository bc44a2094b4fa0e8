//! Since when blocks have been in quarantine for the nodes whose ghosts are over them (P6): the coordinator's own way to the LUN
//! knows nothing of those. A ghost that was told of is dead when the quiesce time has passed.

use std::time::Duration;

use lockd::clock::BootTime;

use crate::types::Run;

/// See the module.
#[derive(Debug, Default)]
pub struct Quarantine(Vec<(Run, BootTime)>);

impl Quarantine {
    /// A node has told of these now.
    pub fn enter(&mut self, runs: &[Run], now: BootTime) {
        self.0.extend(runs.iter().map(|run| (*run, now)));
    }

    /// Those whose ghosts are dead by now. `started`: when the coordinator did; what was in quarantine then was told to an
    /// earlier one, who knows when.
    pub fn over(
        &mut self,
        runs: Vec<Run>,
        (started, now): (BootTime, BootTime),
        quiesce: Duration,
    ) -> Vec<Run> {
        if now < started.after(quiesce) {
            return Vec::new();
        }
        self.0.retain(|(_, since)| now < since.after(quiesce));
        let is_over = |run: &Run| !self.0.iter().any(|(told, _)| told.overlaps(*run));
        runs.into_iter().filter(is_over).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LunBlock;

    #[test]
    fn a_ghost_is_dead_a_quiesce_time_after_it_was_told_of() {
        let run = |start| Run { start: LunBlock(start), len: 4 };
        let quiesce = Duration::from_nanos(10);
        let at = |now| (BootTime(100), BootTime(now));
        let mut quarantine = Quarantine::default();
        assert!(quarantine.over(vec![run(0)], at(109), quiesce).is_empty(), "of an earlier coordinator");
        quarantine.enter(&[run(8)], BootTime(105));
        assert_eq!(quarantine.over(vec![run(0), run(8)], at(110), quiesce), [run(0)]);
        assert_eq!(quarantine.over(vec![run(10)], at(114), quiesce), [], "a part of it");
        assert_eq!(quarantine.over(vec![run(8)], at(115), quiesce), [run(8)]);
        assert!(quarantine.0.is_empty());
    }
}
