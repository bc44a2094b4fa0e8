//! The coordinator follows the storage: one whose blocks go through a peer hands the role to that one.

use std::time::{Duration, Instant};

use super::state::Shared;
use crate::cluster::Roles;

/// How long blocks must have gone through a peer before the role follows them: not for a moment without a path.
const LASTING: Duration = Duration::from_secs(1);
/// How long after an attempt the next one is made.
const RETRY: Duration = Duration::from_secs(5);

/// Since when blocks go through a peer.
#[derive(Debug, Default)]
pub(super) struct Redirected {
    since: Option<Instant>,
    tried: Option<Instant>,
}

impl Redirected {
    /// Blocks go through a peer, or not. Whether the role is to follow them now.
    fn is_due(&mut self, redirected: bool, now: Instant) -> bool {
        if !redirected {
            *self = Self::default();
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let rested = self.tried.is_none_or(|tried| now.duration_since(tried) >= RETRY);
        now.duration_since(since) >= LASTING && rested
    }
}

impl Shared {
    /// Hands the role to the node through which blocks go from here, if they have done so for a while. Whatever may still
    /// land of a lost path must be dead: it would be waited for with the metadata at rest (P7).
    pub(super) fn follow_storage(&self, redirected: &mut Redirected) {
        let through = self.lun.through().filter(|_| self.state.lock().office.is_some());
        let now = Instant::now();
        if !redirected.is_due(through.is_some(), now) || !self.lun.ghosts().is_empty() {
            return;
        }
        let Some(node) = through else { return };
        redirected.tried = Some(now);
        // The thread itself must go on: the next coordinator is found by it.
        let Some(shared) = self.me.upgrade() else { return };
        let moves = move || match shared.give(&node) {
            Ok((_, pause)) => tracing::info!(
                %node,
                pause_ms = pause.as_millis(),
                "no path of this node leads to the LUN: the coordinator's role went where one does"
            ),
            Err(why) => tracing::warn!(%node, %why, "the coordinator's role does not follow the storage yet"),
        };
        if let Err(error) = std::thread::Builder::new().name("csvfs-follow".to_owned()).spawn(moves) {
            tracing::warn!(%error, "no thread: the coordinator's role does not follow the storage yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_without_a_path_moves_nothing() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut redirected = Redirected::default();
        assert!(!redirected.is_due(true, at(0)));
        assert!(!redirected.is_due(true, at(900)));
        assert!(!redirected.is_due(false, at(950)));
        assert!(!redirected.is_due(true, at(1000)));
        assert!(!redirected.is_due(true, at(1900)));
        assert!(redirected.is_due(true, at(2000)));
        redirected.tried = Some(at(2000));
        assert!(!redirected.is_due(true, at(3000)));
        assert!(redirected.is_due(true, at(7000)));
    }
}
