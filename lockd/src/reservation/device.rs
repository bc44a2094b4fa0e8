//! A block device of the kernel as a registrant.
//!
//! The kernel has one nexus with the target (or one for each path of a multipath device, which it registers together), and
//! everybody on the host writes through it. So the host has one key: that of the mount while the device is mounted, else
//! the node's, which keeps the reservation. Whoever changes it must know that nobody else of this host can write any more,
//! or is the mount itself: what decides is the *claim*, the device opened with `O_EXCL`. The kernel gives it to one open
//! file, and takes it back when that file's last request has ended, so that a claim also proves that of a process that was
//! killed nothing is under way. Who has no claim changes nothing, and acts only by the key of a mount that he knows is
//! alive, if that is the key that is registered.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::answer::{KEYS_ROOM, RESERVATION_ROOM, action, keys_in, reservation_in, vendor_in};
use super::sys::{self, Data};
use super::{KIND, Key, Registrant, Removed, ReservationError, SCRATCH, Shown, Trial, foreign, nobodys};
use crate::iscsi::cdb::{Cdb, unmap_list};
use crate::iscsi::sense::Ended;

/// How often a command is sent again that the target has not begun: a unit attention looks like any other refusal here.
const TRIES: u32 = 12;
const PAUSE: Duration = Duration::from_millis(20);
/// How long a device that somebody of this host has claimed is tried again.
const CLAIM: Duration = Duration::from_secs(2);

/// A device that is open.
#[derive(Debug)]
pub struct Device<'a> {
    file: &'a File,
    is_claimed: bool,
}

impl<'a> Device<'a> {
    /// The device behind `file`, opened with `O_EXCL`.
    #[must_use]
    pub fn claimed(file: &'a File) -> Self {
        Self { file, is_claimed: true }
    }

    /// Changes the host's key from `old` to `new`, or takes it back.
    ///
    /// # Errors
    /// If `old` is not what is registered: it has been removed.
    pub fn exchange(&mut self, old: Key, new: Option<Key>) -> Result<(), ReservationError> {
        let new = new.map_or(0, |key| key.0);
        let ended = again("REGISTER", || sys::register(self.file, Some(old.0), new))?;
        good("REGISTER", ended)
    }

    fn ask(&self, command: &'static str, cdb: &Cdb, room: u16) -> Result<Vec<u8>, ReservationError> {
        let mut bytes = vec![0; usize::from(room)];
        let ended = again(command, || sys::command(self.file, cdb, Data::In(&mut bytes)))?;
        good(command, ended).map(|()| bytes)
    }

    /// Has a command taken that brings data, and says whether it was a conflict.
    fn is_refused(&self, command: &'static str, cdb: &Cdb, data: &[u8]) -> Result<bool, ReservationError> {
        Ok(again(command, || sys::command(self.file, cdb, Data::Out(data)))? == Ended::Conflict)
    }
}

fn again(
    command: &'static str,
    mut send: impl FnMut() -> io::Result<Ended>,
) -> Result<Ended, ReservationError> {
    for _ in 1..TRIES {
        match send().map_err(|source| ReservationError::Device { command, source })? {
            Ended::Check(sense) if sense.attention().is_some() || sense.is_aborted() => {}
            Ended::Busy | Ended::Aborted | Ended::Lost | Ended::Other(_) => thread::sleep(PAUSE),
            ended => return Ok(ended),
        }
    }
    send().map_err(|source| ReservationError::Device { command, source })
}

fn good(command: &'static str, ended: Ended) -> Result<(), ReservationError> {
    match ended {
        Ended::Good(_) => Ok(()),
        ended => Err(ReservationError::Refused { command, ended }),
    }
}

impl Registrant for Device<'_> {
    /// The kernel always asks for APTPL.
    fn register(&mut self, key: Key) -> Result<bool, ReservationError> {
        let (command, old) = match self.is_claimed {
            true => ("REGISTER AND IGNORE with APTPL", None),
            false => ("REGISTER", Some(key.0)),
        };
        let ended = again(command, || sys::register(self.file, old, key.0))?;
        good(command, ended).map(|()| true)
    }

    fn reserve(&mut self, own: Key) -> Result<(), ReservationError> {
        match again("RESERVE", || sys::reserve(self.file, own.0))? {
            Ended::Conflict => Err(foreign(self)),
            ended => good("RESERVE", ended),
        }
    }

    fn preempt(&mut self, own: Key, victim: Key) -> Result<Removed, ReservationError> {
        let command = "PREEMPT AND ABORT";
        match again(command, || sys::preempt_abort(self.file, own.0, victim.0))? {
            Ended::Good(_) => Ok(Removed::Aborted),
            // There is no such key, or we have none ourselves.
            ended => {
                let keys = self.keys()?;
                if keys.contains(&own) && !keys.contains(&victim) {
                    return Ok(Removed::Absent);
                }
                Err(ReservationError::Refused { command, ended })
            }
        }
    }

    fn can_abort(&mut self, own: Key) -> Result<bool, ReservationError> {
        let ended = again("PREEMPT AND ABORT", || sys::preempt_abort(self.file, own.0, nobodys(own).0))?;
        Ok(matches!(ended, Ended::Conflict | Ended::Good(_)))
    }

    fn clear(&mut self, own: Key) -> Result<(), ReservationError> {
        self.register(own)?;
        let ended = again("CLEAR", || sys::clear(self.file, own.0))?;
        good("CLEAR", ended)
    }

    fn keys(&mut self) -> Result<Vec<Key>, ReservationError> {
        Ok(keys_in(&self.ask("READ KEYS", &Cdb::reserve_in(action::KEYS, KEYS_ROOM), KEYS_ROOM)?))
    }

    fn reservation(&mut self) -> Result<Option<(u64, u8)>, ReservationError> {
        let cdb = Cdb::reserve_in(action::RESERVATION, RESERVATION_ROOM);
        Ok(reservation_in(&self.ask("READ RESERVATION", &cdb, RESERVATION_ROOM)?))
    }

    fn vendor(&mut self) -> Result<[u8; 8], ReservationError> {
        Ok(vendor_in(&self.ask("INQUIRY", &Cdb::inquiry(None, 36), 36)?))
    }

    fn reset(&mut self) -> Result<bool, ReservationError> {
        let command = "LOGICAL UNIT RESET";
        sys::reset(self.file).map_err(|source| ReservationError::Device { command, source })?;
        Ok(true)
    }
}

/// A device as somebody uses it who is no mount.
#[derive(Debug)]
pub struct Visit {
    file: File,
    is_claimed: bool,
    own: Key,
}

fn open(path: &Path, flags: libc::c_int) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

impl Visit {
    /// Opens the device at `path`: by a claim, as the node that has the key `node`; or beside the mount of this host that
    /// is registered, if it has one of the keys `mounts`.
    ///
    /// # Errors
    /// If neither can be.
    pub fn begin(path: &Path, node: Key, mounts: &[Key]) -> Result<Self, ReservationError> {
        let until = Instant::now() + CLAIM;
        loop {
            match open(path, libc::O_EXCL) {
                Ok(file) => return Ok(Self { file, is_claimed: true, own: node }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(ReservationError::Open(error)),
            }
            let file = open(path, 0).map_err(ReservationError::Open)?;
            for own in mounts {
                let mut device = Device { file: &file, is_claimed: false };
                match device.register(*own) {
                    Ok(_) => return Ok(Self { file, is_claimed: false, own: *own }),
                    Err(ReservationError::Refused { ended: Ended::Conflict, .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            if Instant::now() >= until {
                return Err(ReservationError::Held);
            }
            thread::sleep(PAUSE);
        }
    }

    /// The key by which it is registered, or is to be.
    #[must_use]
    pub fn own(&self) -> Key {
        self.own
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> Device<'_> {
        Device { file: &self.file, is_claimed: self.is_claimed }
    }
}

/// Tries whether reservations hold at a device that is claimed, by the key of this host's node, which stays registered.
/// That who has not registered is refused can be tried only where somebody else is registered: the host has one nexus, and
/// the reservation ends with the last registration. It is tried by a write where the trial may.
///
/// # Errors
/// If they do not hold, or somebody who is none of this cluster has it reserved.
pub fn try_out(device: &mut Device<'_>, trial: Trial<'_>) -> Result<Shown, ReservationError> {
    let node = trial.key;
    device.register(node)?;
    device.reserve(node)?;
    if !matches!(device.reservation()?, Some((_, KIND))) {
        return Err(ReservationError::Weak("does not show the reservation that it has taken"));
    }
    if !device.can_abort(node)? {
        return Err(ReservationError::Weak(
            "has no PREEMPT AND ABORT, without which nobody is fenced from a block device: name it by iscsi://",
        ));
    }
    let mut shown = Shown { aborts: true, persists: true, guards_unmap: false, tried: false };
    if device.keys()?.iter().any(|key| *key != node) {
        let refused = without_key(device, node, trial.scratch)?;
        if !refused.write {
            return Err(ReservationError::Weak("lets write who has not registered"));
        }
        shown.guards_unmap = refused.unmap;
        shown.tried = true;
    }
    Ok(shown)
}

/// What is refused to who has no key.
struct Refusals {
    write: bool,
    unmap: bool,
}

fn without_key(device: &mut Device<'_>, node: Key, scratch: u64) -> Result<Refusals, ReservationError> {
    let block_size = block_size(device)?;
    let blocks = u32::try_from(SCRATCH as u64 / block_size).unwrap_or(0);
    let list = unmap_list(None);
    device.exchange(node, None)?;
    let write = Cdb::write(scratch / block_size, blocks, false);
    let tried = device.is_refused("WRITE", &write, &[0; SCRATCH]).and_then(|write| {
        let unmap = Cdb::unmap(u16::try_from(list.len()).unwrap_or(0));
        Ok(Refusals { write, unmap: device.is_refused("UNMAP", &unmap, &list)? })
    });
    // Also where it did not hold.
    device.register(node)?;
    tried
}

fn block_size(device: &Device<'_>) -> Result<u64, ReservationError> {
    let command = "READ CAPACITY (16)";
    let mut bytes = [0; 32];
    let ended = again(command, || sys::command(device.file, &Cdb::read_capacity(32), Data::In(&mut bytes)))?;
    good(command, ended)?;
    let size = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    if !matches!(size, 512 | 1024 | 2048 | 4096) {
        return Err(ReservationError::Weak("says that its blocks are none of 512 to 4096 bytes"));
    }
    Ok(size.into())
}
