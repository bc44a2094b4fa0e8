//! iSCSI by libiscsi: sessions with targets, the SCSI commands that are used, and what units say.
//!
//! The redirector's `iscsi://` LUN carries a volume's I/O by it; the lockds fence by it (`fencing`). The only module with
//! the library's C interface is `sys`; the only one that calls it is `session`.
//!
//! | module | what |
//! |---|---|
//! | `uri` | the URL of a unit, and the secret |
//! | `session` | login, commands in flight, their ends |
//! | `page` | the data of our own commands |
//! | `cdb` | the commands' bytes |
//! | `sense` | how commands end, unit attentions |
//! | `unit` | what a unit is and can do |
//! | `reservation` | persistent reservations by a session |

pub mod cdb;
pub mod page;
pub mod reservation;
pub mod sense;
pub mod session;
mod sys;
pub mod unit;
pub mod uri;

pub use page::Page;
pub use sense::{Attention, Ended, Sense};
pub use session::{Isid, Payload, Session, SessionError, Transfer};
pub use unit::Unit;
pub use uri::{IscsiUri, IscsiUriError, Role};
