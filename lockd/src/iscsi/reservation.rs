//! Persistent reservations by a session: each has a nexus of its own with the unit.
//!
//! Targets differ in what they take for a nexus. By the standard it is the initiator's name with the session's id, so that
//! mounts and lockds of one host can register under one name. LIO, which goes by the name alone for whoever does not hold
//! the reservation himself, wants a name for each of them ([`Role`]).

use std::time::{Duration, Instant};

use super::cdb::{Cdb, unmap_list};
use super::page::Page;
use super::sense::Ended;
use super::session::{Isid, Payload, Session};
use super::unit::Unit;
use super::uri::{IscsiUri, Role};
use crate::ids::NodeName;
use crate::reservation::answer::{KEYS_ROOM, RESERVATION_ROOM, action, keys_in, reservation_in, vendor_in};
use crate::reservation::{
    KIND, Key, Registrant, Removed, ReservationError, SCRATCH, Shown, Trial, foreign, nobodys,
};

/// How long a session may take to begin.
const OPENING: Duration = Duration::from_secs(5);

/// Service actions of PERSISTENT RESERVE OUT.
mod out {
    pub const RESERVE: u8 = 1;
    pub const CLEAR: u8 = 3;
    pub const PREEMPT: u8 = 4;
    pub const PREEMPT_AND_ABORT: u8 = 5;
    pub const REGISTER_AND_IGNORE: u8 = 6;
}

fn parameters(own: u64, service: u64, persists: bool) -> Page {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&own.to_be_bytes());
    bytes[8..16].copy_from_slice(&service.to_be_bytes());
    bytes[20] = u8::from(persists);
    Page::Out(bytes.to_vec())
}

/// A session as a registrant.
#[derive(Debug)]
pub struct Nexus<'a, P> {
    session: &'a mut Session<P>,
    deadline: Instant,
}

impl<'a, P: Payload> Nexus<'a, P> {
    /// Reservations by `session`, which has nothing else in flight.
    pub fn new(session: &'a mut Session<P>, deadline: Instant) -> Self {
        Self { session, deadline }
    }

    fn out(&mut self, action: u8, page: Page) -> Result<Ended, ReservationError> {
        let kind = if matches!(action, out::REGISTER_AND_IGNORE) { 0 } else { KIND };
        Ok(self.session.run(&Cdb::reserve_out(action, kind), page, self.deadline)?.1)
    }

    /// Takes the registration back. The last one's takes the reservation with it.
    ///
    /// # Errors
    /// If the target does not take it.
    pub fn unregister(&mut self) -> Result<(), ReservationError> {
        match self.out(out::REGISTER_AND_IGNORE, parameters(0, 0, false))? {
            Ended::Good(_) => Ok(()),
            ended => Err(ReservationError::Refused { command: "REGISTER AND IGNORE", ended }),
        }
    }
}

impl<P: Payload> Registrant for Nexus<'_, P> {
    fn register(&mut self, key: Key) -> Result<bool, ReservationError> {
        // Some targets register although they refuse to persist; then the second one changes nothing.
        for persists in [true, false] {
            match self.out(out::REGISTER_AND_IGNORE, parameters(0, key.0, persists))? {
                Ended::Good(_) => return Ok(persists),
                // LIO that has no folder to keep them in says that it is not ready.
                Ended::Check(sense) if persists && (sense.is_unknown_command() || sense.is_not_ready()) => {}
                ended => return Err(ReservationError::Refused { command: "REGISTER AND IGNORE", ended }),
            }
        }
        unreachable!("the second round returns")
    }

    fn reserve(&mut self, own: Key) -> Result<(), ReservationError> {
        match self.out(out::RESERVE, parameters(own.0, 0, false))? {
            Ended::Good(_) => Ok(()),
            Ended::Conflict => Err(foreign(self)),
            ended => Err(ReservationError::Refused { command: "RESERVE", ended }),
        }
    }

    fn preempt(&mut self, own: Key, victim: Key) -> Result<Removed, ReservationError> {
        let pair = || parameters(own.0, victim.0, false);
        let (command, ended, how) = match self.out(out::PREEMPT_AND_ABORT, pair())? {
            Ended::Check(sense) if sense.is_unknown_command() => {
                ("PREEMPT", self.out(out::PREEMPT, pair())?, Removed::Preempted)
            }
            ended => ("PREEMPT AND ABORT", ended, Removed::Aborted),
        };
        match ended {
            Ended::Good(_) => Ok(how),
            // There is no such key, or we have none ourselves.
            Ended::Conflict => {
                let keys = self.keys()?;
                if keys.contains(&own) && !keys.contains(&victim) {
                    return Ok(Removed::Absent);
                }
                Err(ReservationError::Refused { command, ended })
            }
            ended => Err(ReservationError::Refused { command, ended }),
        }
    }

    fn clear(&mut self, own: Key) -> Result<(), ReservationError> {
        self.register(own)?;
        match self.out(out::CLEAR, parameters(own.0, 0, false))? {
            Ended::Good(_) => Ok(()),
            ended => Err(ReservationError::Refused { command: "CLEAR", ended }),
        }
    }

    fn keys(&mut self) -> Result<Vec<Key>, ReservationError> {
        let room = Page::room(usize::from(KEYS_ROOM));
        match self.session.run(&Cdb::reserve_in(action::KEYS, KEYS_ROOM), room, self.deadline)? {
            (page, Ended::Good(_)) => Ok(keys_in(page.bytes())),
            (_, ended) => Err(ReservationError::Refused { command: "READ KEYS", ended }),
        }
    }

    fn reservation(&mut self) -> Result<Option<(u64, u8)>, ReservationError> {
        let room = Page::room(usize::from(RESERVATION_ROOM));
        let cdb = Cdb::reserve_in(action::RESERVATION, RESERVATION_ROOM);
        match self.session.run(&cdb, room, self.deadline)? {
            (page, Ended::Good(_)) => Ok(reservation_in(page.bytes())),
            (_, ended) => Err(ReservationError::Refused { command: "READ RESERVATION", ended }),
        }
    }

    fn can_abort(&mut self, own: Key) -> Result<bool, ReservationError> {
        match self.out(out::PREEMPT_AND_ABORT, parameters(own.0, nobodys(own).0, false))? {
            Ended::Conflict | Ended::Good(_) => Ok(true),
            Ended::Check(sense) if sense.is_unknown_command() => Ok(false),
            ended => Err(ReservationError::Refused { command: "PREEMPT AND ABORT", ended }),
        }
    }

    fn vendor(&mut self) -> Result<[u8; 8], ReservationError> {
        match self.session.run(&Cdb::inquiry(None, 36), Page::room(36), self.deadline)? {
            (page, Ended::Good(_)) => Ok(vendor_in(page.bytes())),
            (_, ended) => Err(ReservationError::Refused { command: "INQUIRY", ended }),
        }
    }

    fn reset(&mut self) -> Result<bool, ReservationError> {
        Ok(self.session.reset_unit(self.deadline)?)
    }
}

/// The id of the sessions by which `node` itself registers with the unit `uri`, whichever of its programs does. So that a
/// unit keeps one registration of each node; one that begins ends one that is under way.
#[must_use]
pub fn node_isid(node: &NodeName, uri: &IscsiUri) -> Isid {
    Isid::of(&[b"node", node.as_str().as_bytes(), uri.to_string().as_bytes()])
}

/// A stranger who tries to write.
struct Stranger<'a> {
    session: &'a mut Session<Page>,
    write: Cdb,
    deadline: Instant,
}

impl Stranger<'_> {
    /// With data: LIO takes a write of no blocks for none.
    fn writes(&mut self) -> Result<Ended, ReservationError> {
        Ok(self.session.run(&self.write, Page::Out(vec![0; SCRATCH]), self.deadline)?.1)
    }

    fn unmaps_nothing(&mut self) -> Result<Ended, ReservationError> {
        let list = unmap_list(None);
        let unmap = Cdb::unmap(u16::try_from(list.len()).unwrap_or(0));
        Ok(self.session.run(&unmap, Page::Out(list), self.deadline)?.1)
    }
}

/// Tries on `uri` whether reservations hold: by the node's own key, and by a session and a key that nobody else uses: `number`
/// is drawn at random. Nobody who uses the unit notices, and nothing is written but where the trial may.
///
/// # Errors
/// If they do not hold, or somebody who is none of this cluster has the unit reserved.
pub fn try_out(uri: &IscsiUri, trial: Trial<'_>, number: u64) -> Result<Shown, ReservationError> {
    let deadline = Instant::now() + 2 * OPENING;
    let (as_node, as_drill) = (uri.as_role(Role::Node), uri.as_role(Role::Drill));
    let mut guard = Session::<Page>::open(&as_node, node_isid(trial.node, uri), OPENING)?;
    let id = Isid::of(&[b"stranger", &number.to_le_bytes(), uri.to_string().as_bytes()]);
    let mut stranger = Session::<Page>::open(&as_drill, id, OPENING)?;
    let block_size = u64::from(Unit::ask(&mut stranger, deadline)?.block_size);
    let blocks = u32::try_from(SCRATCH as u64 / block_size).unwrap_or(0);
    let write = Cdb::write(trial.scratch / block_size, blocks, false);
    let mut stranger = Stranger { session: &mut stranger, write, deadline };
    let mut guard = Nexus::new(&mut guard, deadline);
    let was_registered = guard.keys()?.contains(&trial.key);
    let persists = guard.register(trial.key)?;
    let shown = guard.reserve(trial.key).and_then(|()| {
        try_as(&mut guard, &mut stranger, trial.key, Key(number.rotate_left(17) | 2))
            .map(|(aborts, guards_unmap)| Shown { aborts, persists, guards_unmap, tried: true })
    });
    // Also where it did not hold: nothing is left behind that was not there.
    let cleaned = if was_registered { Ok(()) } else { guard.unregister() };
    let shown = shown?;
    cleaned?;
    Ok(shown)
}

/// Whether PREEMPT AND ABORT is there, and UNMAP guarded.
fn try_as(
    guard: &mut Nexus<'_, Page>,
    stranger: &mut Stranger<'_>,
    mine: Key,
    theirs: Key,
) -> Result<(bool, bool), ReservationError> {
    if stranger.writes()? != Ended::Conflict {
        return Err(ReservationError::Weak("lets write who has not registered"));
    }
    let guards_unmap = stranger.unmaps_nothing()? == Ended::Conflict;
    Nexus::new(stranger.session, stranger.deadline).register(theirs)?;
    let registered = stranger.writes();
    let removed = guard.preempt(mine, theirs)?;
    if registered? == Ended::Conflict {
        return Err(ReservationError::Weak(
            "refuses writes from who has registered, so it does not tell the sessions of one initiator apart (LIO does not): \
             add roles=named to the URL, and allow at the target, for the name NAME of each host, NAME:node and NAME:drill as \
             well",
        ));
    }
    if stranger.writes()? != Ended::Conflict {
        return Err(ReservationError::Weak("lets write whose key was preempted"));
    }
    Ok((removed == Removed::Aborted, guards_unmap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_the_bytes_of_the_standard() {
        let Page::Out(bytes) = parameters(1, 2, true) else { panic!("it goes out") };
        assert_eq!(bytes[..16], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!((bytes.len(), bytes[20]), (24, 1));
    }
}
