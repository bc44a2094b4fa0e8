//! SCSI-3 persistent reservations, as far as a fence needs them: Write Exclusive - All Registrants, one key for each
//! incarnation that writes.
//!
//! Whoever has registered a key may write, and nobody else. To fence somebody is to remove his key and to have what the
//! unit had accepted from him aborted: by PREEMPT AND ABORT where the target has it, else by PREEMPT and a LOGICAL UNIT
//! RESET, which aborts everybody's commands (the others send theirs again).
//!
//! A key belongs to an I_T nexus: a session that somebody has with the target. Over `iscsi://` each mount and each lockd has
//! its own ([`crate::iscsi::reservation`]); a block device of the kernel has one for all who use it on a host ([`device`]).
//!
//! | module | what |
//! |---|---|
//! | `answer` | what PERSISTENT RESERVE IN brings |
//! | `device` | a block device as a registrant |
//! | `sys` | its system calls |

pub mod answer;
pub mod device;
mod sys;

use std::io;

use crate::ids::NodeName;
use crate::iscsi::SessionError;
use crate::iscsi::sense::Ended;

/// Write Exclusive - All Registrants.
pub(crate) const KIND: u8 = 7;

/// By what a registration is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key(pub u64);

/// Why a reservation cannot be relied on.
#[derive(Debug, thiserror::Error)]
pub enum ReservationError {
    /// The session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The kernel does not take the command to the device, or brings no answer.
    #[error("{command} cannot be sent: {source}; is it a disk of an iSCSI or Fibre Channel target?")]
    Device {
        /// The command.
        command: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The device cannot be opened.
    #[error("the device cannot be opened: {0}")]
    Open(#[source] io::Error),
    /// Somebody of this host uses the device, who is no mount that the cluster knows as alive.
    #[error(
        "a process of this host has the device open that is no live mount of this node: it is not known what it still \
         writes; see csvfs status, and end it"
    )]
    Held,
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
    /// It was tried that it refuses writes from who has not registered, and from whose key was removed. A host with one
    /// nexus, alone at the unit, cannot try.
    pub tried: bool,
}

/// Who tries reservations, and where he may write.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    /// The node.
    pub node: &'a NodeName,
    /// Its key.
    pub key: Key,
    /// The byte from which on 4 KiB are nobody's.
    pub scratch: u64,
}

/// The bytes of the writes of a trial.
pub(crate) const SCRATCH: usize = 4096;

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

/// Somebody who registers with a unit, by whatever way the commands go.
pub trait Registrant {
    /// Registers `key`. Whether it outlives the target's power.
    ///
    /// # Errors
    /// If the target does not take it.
    fn register(&mut self, key: Key) -> Result<bool, ReservationError>;

    /// Has only registrants write from now on. Does nothing where that is so already.
    ///
    /// # Errors
    /// If somebody has another reservation.
    fn reserve(&mut self, own: Key) -> Result<(), ReservationError>;

    /// Removes `victim`'s key, and has what he had sent aborted if the target can.
    ///
    /// # Errors
    /// If the key is still there.
    fn preempt(&mut self, own: Key, victim: Key) -> Result<Removed, ReservationError>;

    /// Whether the target has PREEMPT AND ABORT: tried with a key that nobody has.
    ///
    /// # Errors
    /// If the target does not say.
    fn can_abort(&mut self, own: Key) -> Result<bool, ReservationError>;

    /// Ends the reservation and takes every registration away; `own` is registered for that.
    ///
    /// # Errors
    /// If the target does not do it.
    fn clear(&mut self, own: Key) -> Result<(), ReservationError>;

    /// The keys that are registered, each as often as it is.
    ///
    /// # Errors
    /// If the target does not say.
    fn keys(&mut self) -> Result<Vec<Key>, ReservationError>;

    /// The holder's key and the type of the reservation, if there is one.
    ///
    /// # Errors
    /// If the target does not say.
    fn reservation(&mut self) -> Result<Option<(u64, u8)>, ReservationError>;

    /// The vendor by its own word.
    ///
    /// # Errors
    /// If the target does not say.
    fn vendor(&mut self) -> Result<[u8; 8], ReservationError>;

    /// Has every command of everybody aborted; false if that cannot be.
    ///
    /// # Errors
    /// If it is not known whether it was done.
    fn reset(&mut self) -> Result<bool, ReservationError>;
}

/// LIO. Of a reservation of all registrants its PREEMPT AND ABORT removes the key and aborts nothing
/// (`core_scsi3_pro_preempt` in Linux's `target_core_pr.c`, as its source says): what it had accepted is executed later.
const ABORTS_NOTHING: [u8; 8] = *b"LIO-ORG ";

/// A key that nobody has, by which commands are tried.
pub(crate) fn nobodys(own: Key) -> Key {
    Key(own.0 ^ 0x5a5a_5a5a_0000_0000)
}

/// What RESERVE that met a conflict is to say.
pub(crate) fn foreign(registrant: &mut dyn Registrant) -> ReservationError {
    match registrant.reservation() {
        Ok(found) => {
            let (key, kind) = found.unwrap_or((0, 0));
            ReservationError::Foreign { key, kind }
        }
        Err(error) => error,
    }
}

/// Fences `victims` from the unit: returns when they can write no more and nothing of theirs is under way. Says what was
/// done.
///
/// # Errors
/// If one of them may still write.
pub fn fence(registrant: &mut dyn Registrant, own: Key, victims: &[Key]) -> Result<String, ReservationError> {
    registrant.register(own)?;
    registrant.reserve(own)?;
    let mut removed = Vec::new();
    for victim in victims {
        removed.push(registrant.preempt(own, *victim)?);
    }
    let count = |how| removed.iter().filter(|removed| **removed == how).count();
    let (aborted, preempted, absent) =
        (count(Removed::Aborted), count(Removed::Preempted), count(Removed::Absent));
    // A key that is not there may have been removed by an attempt that did not come to its end.
    let must_reset = preempted > 0
        || registrant.vendor()? == ABORTS_NOTHING
        || (aborted == 0 && !registrant.can_abort(own)?);
    if must_reset && !registrant.reset()? {
        return Err(ReservationError::Weak(
            "does not abort by PREEMPT AND ABORT and refuses LOGICAL UNIT RESET: what it had accepted from the victim may still \
             be executed",
        ));
    }
    let keys = registrant.keys()?;
    if victims.iter().any(|victim| keys.contains(victim)) {
        return Err(ReservationError::Weak("still lists the victim's key after it was preempted"));
    }
    match registrant.reservation()? {
        Some((_, KIND)) => {}
        _ => return Err(ReservationError::Weak("has lost the reservation")),
    }
    let reset = if must_reset { ", and the unit was reset" } else { "" };
    Ok(format!("{aborted} keys preempted and aborted, {preempted} preempted, {absent} not registered{reset}"))
}
