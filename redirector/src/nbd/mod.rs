//! Network block devices: the wire, and our client.
//!
//! The client is made for many small requests: the submitting thread sends header and payload by one system call under
//! a lock of that connection only, and whoever is at the connection's [`post`], the thread that submits or the connection's
//! own, receives replies, several by one system call, and completes the requests itself. A large read's data go from the
//! socket into the caller's buffer.
//!
//! [`export::Export`] makes links; what is done when one breaks is decided in [`crate::paths`].

pub mod channel;
pub mod connection;
pub mod export;
pub mod flight;
pub mod handshake;
pub mod link;
pub mod post;
pub mod receiver;
pub mod reply;
pub mod socket;
pub mod splice;
pub mod tls;
pub mod wire;
