//! Requests and replies between machines, over QUIC with mutual TLS.
//!
//! What is sent: `frame` (header and payload), `hello` (who speaks), `versions`. How it is sent: `transport`
//! (QUIC's settings), `channel_lanes` (streams), `writer`, `rooms` (what may be in flight). Who sends it:
//! `link` and `dial` towards a node, `outbound` on a connection; `accept` and `inbound` from a node; all of it
//! joined in `endpoint`.

mod accept;
mod channel_lanes;
mod contact;
mod control;
mod dial;
mod endpoint;
mod frame;
mod hello;
mod inbound;
mod link;
mod outbound;
mod rooms;
mod status;
#[cfg(test)]
mod tests;
mod transport;
mod versions;
mod writer;

pub use endpoint::{QuicConfig, QuicEndpoint, StartError};
pub use rooms::Limits;
pub use status::{NodeConflict, PeerState, PeerStatus};
