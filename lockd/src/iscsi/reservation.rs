//! SCSI-3 persistent reservations, as far as a fence needs them: Write Exclusive - All Registrants, one key for each
//! incarnation that writes.
//!
//! Whoever has registered a key may write, and nobody else. To fence somebody is to remove his key and to have what the
//! unit had accepted from him aborted: by PREEMPT AND ABORT where the target has it, else by PREEMPT and a LOGICAL UNIT
//! RESET, which aborts everybody's commands (the others send theirs again).

use std::time::{Duration, Instant};

use super::cdb::{Cdb, unmap_list};
use super::page::Page;
use super::sense::Ended;
use super::session::{Isid, Payload, Session, SessionError};
use super::uri::IscsiUri;

/// Write Exclusive - All Registrants.
const KIND: u8 = 7;
/// Room for so many bytes of keys: some thousand.
const KEYS_ROOM: u16 = 16 << 10;
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

/// Service actions of PERSISTENT RESERVE IN.
mod into {
    pub const KEYS: u8 = 0;
    pub const RESERVATION: u8 = 1;
}

/// By what a registration is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key(pub u64);

/// Why a reservation cannot be relied on.
#[derive(Debug, thiserror::Error)]
pub enum ReservationError {
    /// The session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The unit does not know the command, or refuses it.
    #[error("the target refuses {command}: {ended}")]
    Refused {
        /// The command.
        command: &'static str,
        /// How it ended.
        ended: Ended,
    },
    /// Somebody else's.
    #[error(
        "the LUN is reserved by somebody who is none of this cluster (key {key:#018x}, type {kind}): find out who uses \
         it, and have the reservation released"
    )]
    Foreign {
        /// The key of who holds it; zero if that cannot be told.
        key: u64,
        /// Its type.
        kind: u8,
    },
    /// Somebody may write.
    #[error(
        "{0} mounts are registered with the LUN: unmount everywhere first (a dead one's key is removed when it is fenced: \
         lockctl fences)"
    )]
    InUse(usize),
    /// The target does not do what a reservation is for.
    #[error("the target {0}")]
    Weak(&'static str),
}

/// What a unit has shown when reservations were tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// It has PREEMPT AND ABORT. If not, everything on the unit is aborted for one victim.
    pub aborts: bool,
    /// Registrations outlive its power.
    pub persists: bool,
    /// It refuses also UNMAP (and so, it is taken, WRITE SAME) from who has not registered.
    pub guards_unmap: bool,
}

/// How a victim's key went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removed {
    /// By PREEMPT AND ABORT.
    Aborted,
    /// By PREEMPT: what the unit has accepted may still be executed.
    Preempted,
    /// It was not there.
    Absent,
}

fn parameters(own: u64, service: u64, persists: bool) -> Page {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&own.to_be_bytes());
    bytes[8..16].copy_from_slice(&service.to_be_bytes());
    bytes[20] = u8::from(persists);
    Page::Out(bytes.to_vec())
}

/// The keys in an answer to READ KEYS. The target's word for their number is checked.
fn keys_in(bytes: &[u8]) -> Vec<Key> {
    let len = bytes.get(4..8).and_then(|len| len.first_chunk()).map_or(0, |len| u32::from_be_bytes(*len));
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let list = bytes.get(8..).unwrap_or_default();
    let (keys, _) = list[..list.len().min(len)].as_chunks();
    keys.iter().map(|key| Key(u64::from_be_bytes(*key))).collect()
}

/// The holder's key and the type in an answer to READ RESERVATION.
fn reservation_in(bytes: &[u8]) -> Option<(u64, u8)> {
    let len = bytes.get(4..8).and_then(|len| len.first_chunk()).map_or(0, |len| u32::from_be_bytes(*len));
    let key = bytes.get(8..).and_then(|rest| rest.first_chunk()).filter(|_| len >= 16)?;
    Some((u64::from_be_bytes(*key), bytes.get(21).copied().unwrap_or(0) & 0xf))
}

/// A session as a registrant.
#[derive(Debug)]
pub struct Registrant<'a, P> {
    session: &'a mut Session<P>,
    deadline: Instant,
}

impl<'a, P: Payload> Registrant<'a, P> {
    /// Reservations by `session`, which has nothing else in flight.
    pub fn new(session: &'a mut Session<P>, deadline: Instant) -> Self {
        Self { session, deadline }
    }

    fn out(&mut self, action: u8, page: Page) -> Result<Ended, ReservationError> {
        let kind = if matches!(action, out::REGISTER_AND_IGNORE) { 0 } else { KIND };
        Ok(self.session.run(&Cdb::reserve_out(action, kind), page, self.deadline)?.1)
    }

    /// Registers `key`, whatever was registered from here before. Whether it outlives the target's power.
    ///
    /// # Errors
    /// If the target does not take it.
    pub fn register(&mut self, key: Key) -> Result<bool, ReservationError> {
        // Some targets register although they refuse to persist; then the second one changes nothing.
        for persists in [true, false] {
            match self.out(out::REGISTER_AND_IGNORE, parameters(0, key.0, persists))? {
                Ended::Good(_) => return Ok(persists),
                Ended::Check(sense) if sense.is_unknown_command() && persists => {}
                ended => return Err(ReservationError::Refused { command: "REGISTER AND IGNORE", ended }),
            }
        }
        unreachable!("the second round returns")
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

    /// Ends the reservation and takes every registration away; `own` is registered for that.
    ///
    /// # Errors
    /// If the target does not do it.
    pub fn clear(&mut self, own: Key) -> Result<(), ReservationError> {
        self.register(own)?;
        match self.out(out::CLEAR, parameters(own.0, 0, false))? {
            Ended::Good(_) => Ok(()),
            ended => Err(ReservationError::Refused { command: "CLEAR", ended }),
        }
    }

    /// Has only registrants write from now on. Does nothing where that is so already.
    ///
    /// # Errors
    /// If somebody has another reservation.
    pub fn reserve(&mut self, own: Key) -> Result<(), ReservationError> {
        match self.out(out::RESERVE, parameters(own.0, 0, false))? {
            Ended::Good(_) => Ok(()),
            Ended::Conflict => {
                let (key, kind) = self.reservation()?.unwrap_or((0, 0));
                Err(ReservationError::Foreign { key, kind })
            }
            ended => Err(ReservationError::Refused { command: "RESERVE", ended }),
        }
    }

    /// The keys that are registered, each as often as it is.
    ///
    /// # Errors
    /// If the target does not say.
    pub fn keys(&mut self) -> Result<Vec<Key>, ReservationError> {
        let room = Page::room(usize::from(KEYS_ROOM));
        match self.session.run(&Cdb::reserve_in(into::KEYS, KEYS_ROOM), room, self.deadline)? {
            (page, Ended::Good(_)) => Ok(keys_in(page.bytes())),
            (_, ended) => Err(ReservationError::Refused { command: "READ KEYS", ended }),
        }
    }

    /// The holder's key and the type of the reservation, if there is one.
    ///
    /// # Errors
    /// If the target does not say.
    pub fn reservation(&mut self) -> Result<Option<(u64, u8)>, ReservationError> {
        match self.session.run(&Cdb::reserve_in(into::RESERVATION, 256), Page::room(256), self.deadline)? {
            (page, Ended::Good(_)) => Ok(reservation_in(page.bytes())),
            (_, ended) => Err(ReservationError::Refused { command: "READ RESERVATION", ended }),
        }
    }

    /// Removes `victim`'s key, and has what he had sent aborted if the target can.
    ///
    /// # Errors
    /// If the key is still there.
    pub fn preempt(&mut self, own: Key, victim: Key) -> Result<Removed, ReservationError> {
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

    /// Fences `victims` from the unit: returns when they can write no more and nothing of theirs is under way. Says what
    /// was done.
    ///
    /// # Errors
    /// If one of them may still write.
    pub fn fence(&mut self, own: Key, victims: &[Key]) -> Result<String, ReservationError> {
        self.register(own)?;
        self.reserve(own)?;
        let mut removed = Vec::new();
        for victim in victims {
            removed.push(self.preempt(own, *victim)?);
        }
        let count = |how| removed.iter().filter(|removed| **removed == how).count();
        let (aborted, preempted, absent) =
            (count(Removed::Aborted), count(Removed::Preempted), count(Removed::Absent));
        // A key that is not there may have been removed by an attempt that did not come to its end.
        let must_reset = preempted > 0 || (aborted == 0 && !self.can_abort(own)?);
        if must_reset && !self.session.reset_unit(self.deadline)? {
            return Err(ReservationError::Weak(
                "has no PREEMPT AND ABORT and refuses LOGICAL UNIT RESET: what it had accepted from the victim may still \
                 be executed",
            ));
        }
        let keys = self.keys()?;
        if victims.iter().any(|victim| keys.contains(victim)) {
            return Err(ReservationError::Weak("still lists the victim's key after it was preempted"));
        }
        match self.reservation()? {
            Some((_, KIND)) => {}
            _ => return Err(ReservationError::Weak("has lost the reservation")),
        }
        let reset = if must_reset { ", and the unit was reset" } else { "" };
        Ok(format!(
            "{aborted} keys preempted and aborted, {preempted} preempted, {absent} not registered{reset}"
        ))
    }

    /// Whether the target has PREEMPT AND ABORT: tried with a key that nobody has.
    fn can_abort(&mut self, own: Key) -> Result<bool, ReservationError> {
        let nobody = Key(own.0 ^ 0x5a5a_5a5a_0000_0000);
        match self.out(out::PREEMPT_AND_ABORT, parameters(own.0, nobody.0, false))? {
            Ended::Conflict | Ended::Good(_) => Ok(true),
            Ended::Check(sense) if sense.is_unknown_command() => Ok(false),
            ended => Err(ReservationError::Refused { command: "PREEMPT AND ABORT", ended }),
        }
    }
}

/// Tries on `uri` whether reservations hold, with two sessions and keys that nobody else uses: `number` is drawn at random.
/// Nobody who uses the unit notices, and no block is written.
///
/// # Errors
/// If they do not hold, or somebody who is none of this cluster has the unit reserved.
pub fn try_out(uri: &IscsiUri, number: u64) -> Result<Shown, ReservationError> {
    let deadline = Instant::now() + 2 * OPENING;
    let id = |role: &str| Isid::of(&[role.as_bytes(), &number.to_le_bytes(), uri.to_string().as_bytes()]);
    let (mine, theirs) = (Key(number | 1), Key(number.rotate_left(17) | 2));
    let mut guard = Session::<Page>::open(uri, id("guard"), OPENING)?;
    let mut stranger = Session::<Page>::open(uri, id("stranger"), OPENING)?;
    let mut guard = Registrant::new(&mut guard, deadline);
    let persists = guard.register(mine)?;
    let shown = guard.reserve(mine).and_then(|()| {
        let mut write =
            |page, cdb: &Cdb| -> Result<Ended, ReservationError> { Ok(stranger.run(cdb, page, deadline)?.1) };
        // Of no blocks: whether it is allowed is decided before.
        if write(Page::None, &Cdb::write(0, 0, false))? != Ended::Conflict {
            return Err(ReservationError::Weak("lets write who has not registered"));
        }
        let list = unmap_list(None);
        let unmap = Cdb::unmap(u16::try_from(list.len()).unwrap_or(0));
        let guards_unmap = write(Page::Out(list), &unmap)? == Ended::Conflict;
        Registrant::new(&mut stranger, deadline).register(theirs)?;
        let removed = guard.preempt(mine, theirs)?;
        let after = stranger.run(&Cdb::write(0, 0, false), Page::None, deadline)?.1;
        if after != Ended::Conflict {
            return Err(ReservationError::Weak("lets write whose key was preempted"));
        }
        Ok(Shown { aborts: removed == Removed::Aborted, persists, guards_unmap })
    });
    // Also where it did not hold: nothing is left behind.
    let cleaned = guard.unregister();
    let shown = shown?;
    cleaned?;
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_and_holder_are_read_as_the_standard_lays_them_out() {
        let mut bytes = vec![0, 0, 0, 9, 0, 0, 0, 16];
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0xff, 0xff]);
        assert_eq!(keys_in(&bytes), [Key(1), Key(2)]);
        let mut held = vec![0, 0, 0, 9, 0, 0, 0, 16];
        held.extend([0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0x07, 0, 0]);
        assert_eq!(reservation_in(&held), Some((5, 7)));
        assert_eq!(reservation_in(&[0; 8]), None);
        let Page::Out(bytes) = parameters(1, 2, true) else { panic!("it goes out") };
        assert_eq!(bytes[..16], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!((bytes.len(), bytes[20]), (24, 1));
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes: Vec<u8>) {
            let _ = (keys_in(&bytes), reservation_in(&bytes));
        }
    }
}
