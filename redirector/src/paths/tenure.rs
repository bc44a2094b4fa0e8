//! The lease under which a LUN is changed, as far as its paths must know of it (L3).

use std::ops::Range;
use std::sync::Arc;

use lockd::clock::Clock;
use lockd::lease::Lease;
use lockd::rules::Rules;

use crate::paths::request::Request;

/// Whose lease changes need that are sent later than they were submitted, and where they need none.
#[derive(Clone, Debug)]
pub struct Tenure {
    /// The lease.
    pub lease: Arc<Lease>,
    /// The bytes of the LUN by which the lease is kept alive.
    pub free: Range<u64>,
}

/// Whether a request may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It may.
    Holds,
    /// Not before the lease is won back.
    Lapsed,
    /// Never.
    Ended,
}

impl Tenure {
    /// Whether these bytes may be changed without the lease.
    #[must_use]
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        self.free.start <= range.start && range.end <= self.free.end
    }

    /// Whether `request` may be sent now.
    #[must_use]
    pub fn standing(&self, request: &Request, rules: Rules, clock: &dyn Clock) -> Standing {
        let needs = request.changes().is_some_and(|range| !self.is_free(&range));
        if needs { self.now(rules, clock) } else { Standing::Holds }
    }

    /// Whether what needs the lease may be sent now.
    #[must_use]
    pub fn now(&self, rules: Rules, clock: &dyn Clock) -> Standing {
        if self.lease.admits(rules, clock) {
            Standing::Holds
        } else if self.lease.has_ended() {
            Standing::Ended
        } else {
            Standing::Lapsed
        }
    }
}
