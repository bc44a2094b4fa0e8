//! What is used of libiscsi 1.19 (`iscsi/iscsi.h` and `iscsi/scsi-lowlevel.h`), declared by hand.
//!
//! Functions are preferred to fields. Two structures are looked into all the same: [`Sense`], which the library fills in,
//! and the beginning of its task ([`TaskHead`]), because no function tells how many bytes of a transfer are missing. Both
//! are part of the interface that `libiscsi.so.7` keeps: a change of them would change that number. A test reads back
//! what the library has put there.

use std::ffi::{c_char, c_int, c_uchar, c_void};

/// A session's context; opaque.
#[repr(C)]
pub struct Context {
    _private: [u8; 0],
}

/// The beginning of `struct scsi_task`; the library makes it, so that its length does not matter.
#[repr(C)]
pub struct TaskHead {
    pub status: c_int,
    pub cdb_size: c_int,
    pub xfer_dir: c_int,
    pub expxferlen: c_int,
    pub cdb: [c_uchar; 16],
    pub residual_status: c_int,
    pub residual: usize,
}

/// `struct scsi_sense`. The library writes all of it; what follows the code is never looked at, and has room to spare.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sense {
    pub error_type: c_uchar,
    pub key: c_int,
    pub ascq: c_int,
    pub rest: [c_int; 13],
}

/// What is called when a request of the library's has ended: the context, a status, data that depend on the request, and
/// what was given with the request.
pub type Callback = unsafe extern "C" fn(*mut Context, c_int, *mut c_void, *mut c_void);

pub const SESSION_NORMAL: c_int = 2;
pub const HEADER_DIGEST_NONE: c_int = 0;
pub const XFER_NONE: c_int = 0;
pub const XFER_READ: c_int = 1;
pub const XFER_WRITE: c_int = 2;

pub const STATUS_GOOD: c_int = 0;
pub const STATUS_CHECK_CONDITION: c_int = 2;
pub const STATUS_BUSY: c_int = 8;
pub const STATUS_RESERVATION_CONFLICT: c_int = 0x18;
pub const STATUS_TASK_SET_FULL: c_int = 0x28;
pub const STATUS_TASK_ABORTED: c_int = 0x40;
pub const STATUS_REDIRECT: c_int = 0x101;

pub const RESIDUAL_UNDERFLOW: c_int = 1;
/// The response of a task management function that was executed.
pub const TASK_MANAGEMENT_COMPLETE: u32 = 0;

#[link(name = "iscsi")]
unsafe extern "C" {
    pub fn iscsi_create_context(initiator_name: *const c_char) -> *mut Context;
    pub fn iscsi_destroy_context(context: *mut Context) -> c_int;
    pub fn iscsi_set_targetname(context: *mut Context, name: *const c_char) -> c_int;
    pub fn iscsi_set_session_type(context: *mut Context, kind: c_int) -> c_int;
    pub fn iscsi_set_header_digest(context: *mut Context, digest: c_int) -> c_int;
    pub fn iscsi_set_initiator_username_pwd(
        context: *mut Context,
        user: *const c_char,
        secret: *const c_char,
    ) -> c_int;
    pub fn iscsi_set_isid_random(context: *mut Context, random: u32, qualifier: u32) -> c_int;
    pub fn iscsi_set_noautoreconnect(context: *mut Context, state: c_int);
    pub fn iscsi_set_tcp_user_timeout(context: *mut Context, milliseconds: c_int);
    pub fn iscsi_connect_async(
        context: *mut Context,
        portal: *const c_char,
        callback: Callback,
        private: *mut c_void,
    ) -> c_int;
    pub fn iscsi_login_async(context: *mut Context, callback: Callback, private: *mut c_void) -> c_int;
    pub fn iscsi_logout_async(context: *mut Context, callback: Callback, private: *mut c_void) -> c_int;
    pub fn iscsi_get_target_address(context: *mut Context) -> *const c_char;
    pub fn iscsi_get_error(context: *mut Context) -> *const c_char;
    pub fn iscsi_get_fd(context: *mut Context) -> c_int;
    pub fn iscsi_which_events(context: *mut Context) -> c_int;
    pub fn iscsi_service(context: *mut Context, events: c_int) -> c_int;
    pub fn iscsi_scsi_command_async(
        context: *mut Context,
        lun: c_int,
        task: *mut TaskHead,
        callback: Callback,
        data: *mut c_void,
        private: *mut c_void,
    ) -> c_int;
    pub fn iscsi_task_mgmt_lun_reset_async(
        context: *mut Context,
        lun: u32,
        callback: Callback,
        private: *mut c_void,
    ) -> c_int;
    pub fn scsi_create_task(
        cdb_size: c_int,
        cdb: *const c_uchar,
        xfer_dir: c_int,
        expxferlen: c_int,
    ) -> *mut TaskHead;
    pub fn scsi_free_scsi_task(task: *mut TaskHead);
    pub fn scsi_task_add_data_in_buffer(task: *mut TaskHead, len: c_int, buffer: *mut c_uchar) -> c_int;
    pub fn scsi_task_add_data_out_buffer(task: *mut TaskHead, len: c_int, buffer: *mut c_uchar) -> c_int;
    pub fn scsi_task_get_status(task: *mut TaskHead, sense: *mut Sense) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_librarys_structures_are_as_declared() {
        let cdb: [u8; 16] = std::array::from_fn(|byte| u8::try_from(byte + 1).unwrap());
        // SAFETY: the library copies the bytes; the task is freed once.
        unsafe {
            let task = scsi_create_task(16, cdb.as_ptr(), XFER_READ, 4096);
            assert!(!task.is_null());
            assert_eq!(((*task).cdb_size, (*task).xfer_dir, (*task).expxferlen), (16, XFER_READ, 4096));
            assert_eq!(((*task).cdb, (*task).residual_status, (*task).residual), (cdb, 0, 0));
            // The library writes no more than there is room for, and what it writes is where it is read.
            let mut sense = Sense { error_type: 0xee, key: -1, ascq: -1, rest: [-1; 13] };
            scsi_task_get_status(task, &raw mut sense);
            assert_eq!((sense.error_type, sense.key, sense.ascq), (0, 0, 0));
            assert_eq!(sense.rest[4..], [-1; 9]);
            scsi_free_scsi_task(task);
        }
        let mut sense = Sense { error_type: 0, key: 0, ascq: 0, rest: [0; 13] };
        // Descriptor format, unit attention, registrations preempted.
        let bytes = [0x72_u8, 6, 0x2a, 5, 0, 0, 0, 0];
        unsafe extern "C" {
            fn scsi_parse_sense_data(sense: *mut Sense, bytes: *const u8);
        }
        // SAFETY: the header has the sizes; the descriptors' length is zero.
        unsafe { scsi_parse_sense_data(&raw mut sense, bytes.as_ptr()) };
        assert_eq!((sense.error_type, sense.key, sense.ascq), (0x72, 6, 0x2a05));
    }
}
