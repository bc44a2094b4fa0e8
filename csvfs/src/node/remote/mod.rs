//! File redirection: what is done to the data of a file that another node serves.
//!
//! [`client`] sends it there and finds out anew who serves, as often as it is told that the file has moved; [`server`]
//! executes it under the file's gate, in its term only. The frames are in [`wire`].

mod client;
mod sendings;
mod server;
mod wire;

/// Whether a node's reply is anything but what was asked for.
#[cfg(test)]
pub(crate) fn is_refusal(reply: &[u8]) -> bool {
    wire::Told::parse(reply).is_ok_and(|told| told.status != wire::Status::Done)
}

pub(super) use sendings::Sendings;
pub(super) use wire::FIRST_BYTE;
