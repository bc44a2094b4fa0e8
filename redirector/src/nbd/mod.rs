//! Network block devices: the wire, and our client.

pub mod wire;
