//! Logical units of iSCSI targets.
//!
//! A [`link::IscsiLink`] is one session; a thread of its own owns it, because libiscsi's context belongs to one thread. Who
//! submits a request puts it into a queue and wakes the thread if it sleeps; the data go between the socket and the
//! request's own buffer. What a command's end means for its request is decided in [`fate`]; what is done when a session
//! breaks, in [`crate::paths`], as for every way.
//!
//! Assumed of a target: what it had accepted on a session that is gone is executed within `target_quiesce`. A restart, or
//! any reset that may have cost it its cache, is seen by a unit attention (P9); targets that report one to every new
//! session are taken to have been restarted each time, and get again what was not flushed.

pub mod fate;
pub mod flight;
pub mod link;
pub mod portal;
pub mod registration;
mod wake;

pub use registration::Reservation;
