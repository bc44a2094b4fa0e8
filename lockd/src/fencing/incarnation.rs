//! Under which number a client is known at a target.

use ring::digest::{SHA256, digest};

use crate::ids::ClientId;
use crate::machine::Nonce;

/// The incarnation by which a mount registers with a target: made of the nonce by which the cluster knows the client, so
/// that whoever fences a session finds the incarnations of all its clients in the replicated state. Other clusters, and
/// this one after it was begun anew, use other numbers.
#[must_use]
pub fn incarnation(client: Nonce) -> ClientId {
    let bytes = [&b"csvfs incarnation"[..], &client.0.to_le_bytes()].concat();
    let hash = digest(&SHA256, &bytes);
    let first = hash.as_ref().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    // Positive, and away from the end.
    ClientId((first >> 2) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_incarnation_of_a_client_never_changes() {
        assert_eq!(incarnation(Nonce(7)), incarnation(Nonce(7)));
        assert_ne!(incarnation(Nonce(7)), incarnation(Nonce(8)));
        // Golden: nodes of two releases must mean the same.
        assert_eq!(incarnation(Nonce(0)).0, 0x07d1_99b2_8906_be47);
    }
}
