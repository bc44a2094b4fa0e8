//! This client's registration with a unit whose other users fence by persistent reservations (`scsi-pr`).
//!
//! A unit admits for writing who has registered a key. To be fenced is to lose it. A registration may also be lost without
//! anybody having been fenced: targets forget it when they restart (without APTPL), and some bind it to the session, so that
//! it is gone with the connection. Looking at the unit does not tell the two apart: the key is absent in both cases, and
//! whoever fenced us may have gone, too. What tells them apart is the **lease**: nobody is fenced before his session has been
//! ended, and a session is not ended before its lease is over (L1). So a client that registers anew, and *after* the target
//! has answered sees its lease hold, knows that it had not been fenced when it registered; and whoever is to fence it later
//! finds the key. If the lease does not hold then, the registration is taken back, nothing has been written under it, and
//! it is tried again when the lease is won back; when that is over for good, the client is fenced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockd::clock::Clock;
use lockd::fencing::Units;
use lockd::ids::NodeName;
use lockd::iscsi::reservation::Nexus;
use lockd::iscsi::{IscsiUri, Isid, Page, Payload, Session};
use lockd::lease::Lease;
use lockd::reservation::{Key, Registrant, ReservationError};
use lockd::rules::Rules;

/// How long a session may take to begin.
const OPENING: Duration = Duration::from_secs(2);

/// By what a client registers with a unit.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// Its key: nobody else's, ever.
    pub key: Key,
    /// Its node, whose own key holds the reservation.
    pub node: NodeName,
    /// The lease of its session: as long as it runs, nobody has it fenced.
    pub lease: Arc<Lease>,
    /// Whether the unit refuses UNMAP and WRITE SAME from who has not registered. If not, they are not used: one that is
    /// late would land.
    pub guards_unmap: bool,
}

/// Why a client is not admitted.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// Not now.
    #[error("the lease has run out; this node registers with the LUN again when it is won back")]
    Lapsed,
    /// Never.
    #[error("the session has ended: this client is fenced from the LUN")]
    Ended,
    /// The target.
    #[error(transparent)]
    Target(#[from] ReservationError),
}

impl Reservation {
    /// Whether the client may be registered now.
    pub fn standing(&self, rules: Rules, clock: &dyn Clock) -> Result<(), RegistrationError> {
        if self.lease.admits(rules, clock) {
            Ok(())
        } else if self.lease.has_ended() {
            Err(RegistrationError::Ended)
        } else {
            Err(RegistrationError::Lapsed)
        }
    }

    /// Takes the registration with the unit `uri`, behind `session`, back: the client leaves.
    pub fn leave<P: Payload>(
        &self,
        uri: &IscsiUri,
        session: &mut Session<P>,
        deadline: Instant,
    ) -> Result<(), ReservationError> {
        let mut registrant = Nexus::new(session, deadline);
        registrant.unregister()?;
        if !registrant.keys()?.contains(&self.key) {
            return Ok(());
        }
        // A target that binds registrations to sessions still has those of sessions of ours that broke.
        let id = Isid::of(&[b"leave", &self.key.0.to_le_bytes(), uri.to_string().as_bytes()]);
        let mut other = Session::<Page>::open(uri, id, OPENING)?;
        let (mut other, passing) = (Nexus::new(&mut other, deadline), Key(!self.key.0));
        other.register(passing)?;
        other.preempt(passing, self.key)?;
        other.unregister()
    }

    /// Registers with the unit `uri`, behind `session`, and has only registrants write.
    pub fn enter<P: Payload>(
        &self,
        uri: &IscsiUri,
        session: &mut Session<P>,
        deadline: Instant,
        rules: Rules,
        clock: &dyn Clock,
    ) -> Result<(), RegistrationError> {
        self.standing(rules, clock)?;
        Units::one(uri, &self.node).hold().map_err(|error| error.source)?;
        let mut registrant = Nexus::new(session, deadline);
        registrant.register(self.key)?;
        registrant.reserve(self.key)?;
        self.standing(rules, clock).inspect_err(|_| {
            if let Err(error) = registrant.unregister() {
                tracing::warn!(%error, "a registration that came too late stays; nothing is written under it");
            }
        })
    }
}
