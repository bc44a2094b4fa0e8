//! A link that leads to a restarted target before the lease has been won back.
//!
//! What the target may have lost is written again before anything else goes to it (P9), and, like every change that is
//! sent late, only under the lease (L3): after the lease has run out somebody else may have taken the volume over, and
//! the blocks may belong to other files by now. Where the lease is kept alive by beats on the LUN itself, nobody can win
//! it back without the LUN: so the link serves those beats, and what they read, and nothing else, until it is decided.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::open::OpenError;
use crate::paths::request::{Command, Request};
use crate::paths::tenure::{Standing, Tenure};
use crate::paths::traffic::{LinkEvents, Traffic};
use crate::paths::way::Link;

/// How long the lobby rests between two looks.
const REST: Duration = Duration::from_millis(20);

impl Traffic {
    /// Waits until the lease admits changes, or is over for good, and says which. Fails when the link is lost, or the LUN
    /// closed.
    pub(super) fn await_lease(&self, link: &dyn Link, events: &LinkEvents) -> Result<Standing, OpenError> {
        let Some(tenure) = self.tenure.lock().clone() else { return Ok(Standing::Holds) };
        let mut told = false;
        loop {
            match tenure.now(self.rules, &*self.clock) {
                Standing::Lapsed => {}
                decided => return Ok(decided),
            }
            if events.is_broken() || self.stopped.load(Ordering::Acquire) {
                let source = std::io::ErrorKind::ConnectionReset.into();
                return Err(OpenError::Unreachable { lun: self.name(), source });
            }
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(
                    lun = self.name(),
                    "the target was restarted, and the lease has run out: what was not flushed is written again when the \
                     lease is won back"
                );
            }
            for beat in self.beats(&tenure) {
                if let Err(beat) = link.submit(beat) {
                    self.trouble.lock().held.push_back(*beat);
                }
            }
            self.end_holds(self.clock.boot());
            let mut trouble = self.trouble.lock();
            self.news.wait_for(&mut trouble, REST);
        }
    }

    /// Takes those of the held requests that the lease is kept alive by. P4: none that overlaps a ghost.
    fn beats(&self, tenure: &Tenure) -> Vec<Request> {
        let mut trouble = self.trouble.lock();
        let held = std::mem::take(&mut trouble.held);
        let (beats, held) = held.into_iter().partition::<VecDeque<_>, _>(|request| {
            let range = match &request.command {
                Command::Flush(_) if let Some(written) = &request.after => written.clone(),
                Command::Read(offset, buffer, _) => *offset..offset + buffer.len() as u64,
                Command::Write(offset, data, ..) => *offset..offset + data.len() as u64,
                Command::Flush(_) | Command::Zero(..) | Command::Trim(..) => return false,
            };
            tenure.is_free(&range)
                && !request.changes().is_some_and(|range| trouble.ghosts.blocks(&range, request.token))
        });
        trouble.held = held;
        beats.into()
    }
}
