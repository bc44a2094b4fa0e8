//! What a command's end means for its request. Pure.

use lockd::iscsi::{Attention, Ended};

use crate::lun::Outcome;

/// How often a request is sent again that the target did not begin.
const TRIES_MAX: u32 = 64;

/// What becomes of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It has ended.
    Finish(Outcome),
    /// It was not executed, and is sent again at once.
    Again,
    /// The same after a rest.
    Later,
    /// It was not executed, and the session must be begun anew to see what has changed.
    Anew(&'static str),
    /// The target was reset: what was not flushed may be lost, and nothing that was in flight is answered for sure.
    Reset(&'static str),
    /// It was not executed, and this client may not write any more.
    Refused(&'static str),
    /// Nobody knows.
    Unknown(&'static str),
}

/// Decides. `registered`: this client has a key at the target; `tries`: how often the request has been sent.
#[must_use]
pub fn decide(ended: Ended, registered: bool, tries: u32) -> Fate {
    let again = |fate| if tries < TRIES_MAX { fate } else { Fate::Finish(Outcome::Failed(libc::EIO)) };
    match ended {
        Ended::Good(0) => Fate::Finish(Outcome::Done),
        Ended::Good(_) => Fate::Finish(Outcome::Failed(libc::EIO)),
        Ended::Check(sense) if sense.is_done() => Fate::Finish(Outcome::Done),
        Ended::Check(sense) => match sense.attention() {
            Some(Attention::Reset) => Fate::Reset("the target says that it was switched on or reset"),
            Some(Attention::Preempted) if registered => {
                Fate::Refused("somebody has removed this client's registration from the LUN: it is fenced")
            }
            Some(Attention::Changed) => Fate::Anew("the target says that the LUN has changed"),
            Some(Attention::Cleared) => {
                Fate::Reset("somebody has had the commands of all initiators cleared")
            }
            Some(Attention::Preempted | Attention::Harmless) => again(Fate::Again),
            None if sense.is_aborted() => again(Fate::Again),
            None if sense.is_not_ready() => Fate::Anew("the LUN is not ready"),
            None => Fate::Finish(Outcome::Failed(sense.errno())),
        },
        Ended::Conflict if registered => {
            Fate::Refused("the target refuses this client's writes: its registration is gone, it is fenced")
        }
        Ended::Conflict => Fate::Refused(
            "the LUN is reserved by somebody else (RESERVATION CONFLICT): a cluster that fences by scsi-pr uses it, or \
             another initiator; find out who before anything is written here (csvfs fence-test --release VOLUME ends a \
             cluster's own reservation)",
        ),
        Ended::Busy => again(Fate::Later),
        Ended::Aborted => again(Fate::Again),
        Ended::Lost => Fate::Unknown("the session broke"),
        Ended::Other(_) => Fate::Unknown("the target ended a command with a status that nobody knows"),
    }
}

#[cfg(test)]
mod tests {
    use lockd::iscsi::Sense;

    use super::*;

    fn check(key: u8, code: u16) -> Ended {
        Ended::Check(Sense { key, code })
    }

    #[test]
    fn what_was_not_executed_is_sent_again_and_what_is_unknown_is_not() {
        assert_eq!(decide(Ended::Good(0), true, 1), Fate::Finish(Outcome::Done));
        assert_eq!(decide(Ended::Good(512), true, 1), Fate::Finish(Outcome::Failed(libc::EIO)));
        assert_eq!(decide(check(6, 0x2907), true, 1), Fate::Again);
        assert_eq!(decide(check(0xb, 0), true, 1), Fate::Again);
        assert_eq!(decide(Ended::Busy, true, 1), Fate::Later);
        assert_eq!(decide(Ended::Busy, true, TRIES_MAX), Fate::Finish(Outcome::Failed(libc::EIO)));
        assert!(matches!(decide(Ended::Lost, true, 1), Fate::Unknown(_)));
        assert!(matches!(decide(Ended::Other(0x30), true, 1), Fate::Unknown(_)));
        assert_eq!(decide(check(3, 0x1100), true, 1), Fate::Finish(Outcome::Failed(libc::EIO)));
        assert_eq!(decide(check(7, 0x2707), true, 1), Fate::Finish(Outcome::Failed(libc::ENOSPC)));
        assert_eq!(decide(check(1, 0x1701), true, 1), Fate::Finish(Outcome::Done));
    }

    #[test]
    fn a_reset_ends_the_session_and_a_preemption_the_client() {
        assert!(matches!(decide(check(6, 0x2900), true, 1), Fate::Reset(_)));
        assert!(matches!(decide(check(6, 0x2f00), true, 1), Fate::Reset(_)));
        assert!(matches!(decide(check(6, 0x2a09), true, 1), Fate::Anew(_)));
        assert!(matches!(decide(check(6, 0x2a05), true, 1), Fate::Refused(_)));
        assert_eq!(decide(check(6, 0x2a05), false, 1), Fate::Again, "of somebody else's concern");
        for registered in [true, false] {
            assert!(matches!(decide(Ended::Conflict, registered, 1), Fate::Refused(_)));
        }
    }
}
