//! The system calls: `IOC_PR_*` of `linux/pr.h`, which go to every path of a multipath device, and `SG_IO`, by which is asked
//! what the former do not tell.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use crate::iscsi::cdb::Cdb;
use crate::iscsi::sense::{Ended, Sense};

/// `_IOW('p', 200, struct pr_registration)` and those that follow.
const REGISTER: libc::Ioctl = 0x4018_70c8;
const RESERVE: libc::Ioctl = 0x4010_70c9;
const PREEMPT_ABORT: libc::Ioctl = 0x4018_70cc;
const CLEAR: libc::Ioctl = 0x4010_70cd;
/// `PR_WRITE_EXCLUSIVE_ALL_REGS`: the standard's type 7.
const KIND: u32 = 5;
/// `PR_FL_IGNORE_KEY`.
const IGNORE_KEY: u32 = 1;
const SG_IO: libc::Ioctl = 0x2285;
/// `SG_SCSI_RESET`, and `SG_SCSI_RESET_DEVICE`: the logical unit, without anything larger if that fails
/// (`SG_SCSI_RESET_NO_ESCALATE`).
const SG_SCSI_RESET: libc::Ioctl = 0x2284;
const RESET_DEVICE: libc::c_int = 1 | 0x100;
const SG_TIMEOUT_MS: u32 = 20_000;

/// `struct pr_registration` and `struct pr_preempt`.
#[repr(C)]
struct Pair {
    old: u64,
    new: u64,
    /// Flags, or the type.
    first: u32,
    second: u32,
}

/// `struct pr_reservation` and `struct pr_clear`.
#[repr(C)]
struct Single {
    key: u64,
    first: u32,
    second: u32,
}

/// `struct sg_io_hdr` of `scsi/sg.h`.
#[repr(C)]
struct SgIo {
    interface_id: libc::c_int,
    direction: libc::c_int,
    cdb_len: u8,
    sense_max: u8,
    iovec_count: u16,
    len: u32,
    data: *mut libc::c_void,
    cdb: *const u8,
    sense: *mut u8,
    timeout_ms: u32,
    flags: u32,
    pack_id: libc::c_int,
    private: *mut libc::c_void,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_len: u8,
    host_status: u16,
    driver_status: u16,
    residual: libc::c_int,
    duration: u32,
    info: u32,
}

/// How a command of `IOC_PR_*` ended. The kernel gives the status that the target gave as a positive number, with more in
/// its upper bits on some releases; without the sense.
fn ended(result: libc::c_int) -> io::Result<Ended> {
    match result {
        0 => Ok(Ended::Good(0)),
        1.. => Ok(match result & 0xff {
            0x18 => Ended::Conflict,
            0x08 | 0x28 => Ended::Busy,
            0x40 => Ended::Aborted,
            status => Ended::Other(status),
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// REGISTER, with APTPL: the nexus had `old` and has `new` then, zero being none; without `old`, whatever it had.
pub(super) fn register(file: &File, old: Option<u64>, new: u64) -> io::Result<Ended> {
    let flags = if old.is_none() { IGNORE_KEY } else { 0 };
    let argument = Pair { old: old.unwrap_or(0), new, first: flags, second: 0 };
    // SAFETY: the kernel reads one `pr_registration`, which outlives the call.
    ended(unsafe { libc::ioctl(file.as_raw_fd(), REGISTER, &raw const argument) })
}

/// RESERVE.
pub(super) fn reserve(file: &File, own: u64) -> io::Result<Ended> {
    let argument = Single { key: own, first: KIND, second: 0 };
    // SAFETY: the kernel reads one `pr_reservation`.
    ended(unsafe { libc::ioctl(file.as_raw_fd(), RESERVE, &raw const argument) })
}

/// PREEMPT AND ABORT.
pub(super) fn preempt_abort(file: &File, own: u64, victim: u64) -> io::Result<Ended> {
    let argument = Pair { old: own, new: victim, first: KIND, second: 0 };
    // SAFETY: the kernel reads one `pr_preempt`.
    ended(unsafe { libc::ioctl(file.as_raw_fd(), PREEMPT_ABORT, &raw const argument) })
}

/// CLEAR.
pub(super) fn clear(file: &File, own: u64) -> io::Result<Ended> {
    let argument = Single { key: own, first: 0, second: 0 };
    // SAFETY: the kernel reads one `pr_clear`.
    ended(unsafe { libc::ioctl(file.as_raw_fd(), CLEAR, &raw const argument) })
}

/// LOGICAL UNIT RESET: it is done when this returns.
pub(super) fn reset(file: &File) -> io::Result<()> {
    let argument = RESET_DEVICE;
    // SAFETY: the kernel reads one int.
    match unsafe { libc::ioctl(file.as_raw_fd(), SG_SCSI_RESET, &raw const argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The data of a command.
pub(super) enum Data<'a> {
    /// It brings them.
    In(&'a mut [u8]),
    /// It takes them.
    Out(&'a [u8]),
}

/// Sends a command to the disk itself.
pub(super) fn command(file: &File, cdb: &Cdb, data: Data<'_>) -> io::Result<Ended> {
    let (direction, pointer, len) = match data {
        Data::In(bytes) => (-3, bytes.as_mut_ptr(), bytes.len()),
        // The kernel only reads them.
        Data::Out(bytes) => (-2, bytes.as_ptr().cast_mut(), bytes.len()),
    };
    let mut sense = [0_u8; 32];
    let mut header = SgIo {
        interface_id: libc::c_int::from(b'S'),
        direction,
        cdb_len: u8::try_from(cdb.bytes().len()).unwrap_or(0),
        sense_max: 32,
        iovec_count: 0,
        len: u32::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?,
        data: pointer.cast(),
        cdb: cdb.bytes().as_ptr(),
        sense: sense.as_mut_ptr(),
        timeout_ms: SG_TIMEOUT_MS,
        flags: 0,
        pack_id: 0,
        private: ptr::null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_len: 0,
        host_status: 0,
        driver_status: 0,
        residual: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: the header is one `sg_io_hdr`; its data, command and sense outlive the call and have the lengths that it
    // says; what goes out is only read.
    if unsafe { libc::ioctl(file.as_raw_fd(), SG_IO, &raw mut header) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(match header.status {
        0 if header.host_status != 0 => Ended::Lost,
        0 => Ended::Good(0),
        0x02 => Ended::Check(sense_in(&sense)),
        0x18 => Ended::Conflict,
        0x08 | 0x28 => Ended::Busy,
        0x40 => Ended::Aborted,
        status => Ended::Other(status.into()),
    })
}

/// The sense in its fixed or its descriptor format.
fn sense_in(bytes: &[u8; 32]) -> Sense {
    let (key, high, low) = match bytes[0] & 0x7f {
        0x72 | 0x73 => (bytes[1], bytes[2], bytes[3]),
        _ => (bytes[2], bytes[12], bytes[13]),
    };
    Sense { key: key & 0xf, code: u16::from_be_bytes([high, low]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_and_numbers_are_those_of_the_kernel() {
        assert_eq!((size_of::<Pair>(), size_of::<Single>(), size_of::<SgIo>()), (24, 16, 88));
        let number =
            |size: usize, number: u32| 1 << 30 | u32::try_from(size).unwrap() << 16 | 0x70 << 8 | number;
        let all = [(REGISTER, 24, 200), (RESERVE, 16, 201), (PREEMPT_ABORT, 24, 204), (CLEAR, 16, 205)];
        for (request, size, at) in all {
            assert_eq!(libc::Ioctl::from(number(size, at)), request);
        }
    }

    #[test]
    fn a_conflict_is_a_positive_number() {
        assert_eq!(ended(0x118).unwrap(), Ended::Conflict);
        assert_eq!(ended(0x18).unwrap(), Ended::Conflict);
        assert_eq!(ended(0).unwrap(), Ended::Good(0));
        assert_eq!(ended(2).unwrap(), Ended::Other(2));
    }

    #[test]
    fn sense_is_read_in_both_formats() {
        let mut fixed = [0; 32];
        (fixed[0], fixed[2], fixed[12], fixed[13]) = (0x70, 0x06, 0x2a, 0x03);
        let mut descriptor = [0; 32];
        descriptor[..4].copy_from_slice(&[0x72, 0x06, 0x2a, 0x03]);
        let expected = Sense { key: 6, code: 0x2a03 };
        assert_eq!((sense_in(&fixed), sense_in(&descriptor)), (expected, expected));
    }
}
