//! What a restarted target may have lost is written again before anything else goes there (P9).

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use lockd::rules::Rule;

use crate::lun::Outcome;
use crate::open::OpenError;
use crate::paths::kept::Change;
use crate::paths::request::{Command, Request};
use crate::paths::tenure::Standing;
use crate::paths::traffic::{LinkEvents, REPLAYED, Traffic};
use crate::paths::way::{Abilities, Link};

/// Replayed changes in flight at most.
const REPLAY_BATCH: usize = 128;
/// How long a batch of them may take.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(60);

impl Traffic {
    /// P9: if something was lost, the flushes that wait are told, or else the next one.
    pub(super) fn fail_flushes(&self, pending: Vec<Request>) -> (Vec<Request>, Vec<Request>) {
        if !self.flush_fails.load(Ordering::Acquire) {
            return (pending, Vec::new());
        }
        let (flushes, others): (Vec<_>, Vec<_>) = pending
            .into_iter()
            .partition(|request| matches!(request.command, Command::Flush(_)) && !request.background);
        if !flushes.is_empty() {
            self.flush_fails.store(false, Ordering::Release);
        }
        (others, flushes)
    }

    /// Whether completed changes are kept for this target: it may lose them, and it tells when.
    pub(super) fn keeps_for(&self, abilities: &Abilities) -> bool {
        self.rules.keeps(Rule::P9) && abilities.flush && abilities.instance.is_some() && !abilities.read_only
    }

    /// P9: a target that was restarted gets again what it may have lost.
    pub(super) fn replay(&self, link: &dyn Link, events: &LinkEvents) -> Result<(), OpenError> {
        let (earlier, half_replayed) = {
            let trouble = self.trouble.lock();
            (trouble.instance, trouble.ghosts.any(|ghost| ghost.token & REPLAYED != 0))
        };
        if !self.keeps.load(Ordering::Acquire) || earlier.is_none() || earlier == link.abilities().instance {
            return Ok(());
        }
        if half_replayed {
            // A late copy of an older change could undo a newer one that is replayed now.
            let why =
                "an earlier replay was cut off, and copies of it may still land; waiting until they are dead";
            let source = std::io::Error::other(why);
            return Err(OpenError::Unreachable { lun: self.name(), source });
        }
        let ended = self.await_lease(link, events)? == Standing::Ended;
        let tenure = self.tenure.lock().clone();
        let batches = {
            let mut kept = self.kept.lock();
            if ended {
                // Nothing of it may be written any more, and nobody asks: what the session had is over.
                kept.abandon();
            }
            if kept.is_incomplete() {
                self.flush_fails.store(true, Ordering::Release);
                kept.reported();
                tracing::error!(
                    lun = self.name(),
                    "the target was restarted, and more had been written since the last flush than is kept: the next \
                     flush fails"
                );
            }
            kept.batches(REPLAY_BATCH)
        };
        let changes: usize = batches.iter().map(Vec::len).sum();
        tracing::warn!(
            lun = self.name(),
            changes,
            "the target was restarted: replaying what was not flushed"
        );
        for mut batch in batches {
            // What the lease is kept alive by is durable when it is done, and may have been written anew in the lobby.
            batch.retain(|change| !tenure.as_ref().is_some_and(|tenure| tenure.is_free(&change.range())));
            // L3: it may run out in the middle.
            if tenure.as_ref().is_some_and(|tenure| tenure.now(self.rules, &*self.clock) != Standing::Holds) {
                let why =
                    "the lease has run out while what was not flushed was written again; it begins anew";
                let source = std::io::Error::other(why);
                return Err(OpenError::Unreachable { lun: self.name(), source });
            }
            match self.replay_batch(link, batch) {
                Outcome::Done => {}
                Outcome::Failed(errno) if !events.is_broken() => {
                    tracing::error!(lun = self.name(), errno, "the target refused a replayed write");
                    self.flush_fails.store(true, Ordering::Release);
                }
                Outcome::Failed(_) | Outcome::Unknown => {
                    let source = std::io::ErrorKind::ConnectionReset.into();
                    return Err(OpenError::Unreachable { lun: self.name(), source });
                }
            }
        }
        Ok(())
    }

    fn replay_batch(&self, link: &dyn Link, batch: Vec<Change>) -> Outcome {
        let (sender, receiver) = mpsc::channel();
        let count = batch.len();
        for change in batch {
            let sender = sender.clone();
            let on_done = Box::new(move |outcome| {
                // The supervisor may have stopped waiting.
                let _ = sender.send(outcome);
            });
            let command = match change {
                Change::Write(offset, data) => Command::Write(offset, data, false, on_done),
                Change::Zero(range) => Command::Zero(range, on_done),
            };
            if let Err(request) = link.submit(Request::new(command, self.clock.boot())) {
                request.finish(Outcome::Unknown);
            }
        }
        let mut worst = Outcome::Done;
        for _ in 0..count {
            match receiver.recv_timeout(REPLAY_TIMEOUT).unwrap_or(Outcome::Unknown) {
                Outcome::Done => {}
                Outcome::Failed(errno) => worst = Outcome::Failed(errno),
                Outcome::Unknown => return Outcome::Unknown,
            }
        }
        worst
    }
}
