//! What the lockds of a cluster ask each other, on [`Channel::Control`](crate::peers::Channel::Control).

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

use crate::ids::{ClientId, NodeName, ResourceId, SessionId};
use crate::local::message::VotersChange;
use crate::machine::{Answer, EventIndex, Query};

/// The version of these messages.
const VERSION: u8 = 1;
/// The longest message, in bytes.
const BYTES_MAX: usize = crate::peers::FRAME_MAX;
const CONFIG: Configuration<LittleEndian, Varint, Limit<{ 4 * BYTES_MAX }>> =
    bincode::config::standard().with_limit();

/// A request from lockd to lockd.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(super) enum Ask {
    /// To the leader: have this command applied ([`encode_command`](crate::machine::encode_command)).
    Propose(Vec<u8>),
    /// To the leader: this session lives (L1).
    KeepAlive(SessionId),
    /// To the leader: what the state says now (L4).
    Query(Query),
    /// To the leader: change the voters.
    Voters(VotersChange),
    /// To any voter: the events after an index, when there are some, or after so long.
    Events {
        /// Which.
        after: EventIndex,
        /// How long to wait for one, in milliseconds.
        wait_ms: u32,
    },
    /// To any node: how it is.
    Status,
    /// To the node of a client: a request for that client.
    Forward {
        /// For whom.
        client: ClientId,
        /// The request.
        request: Vec<u8>,
    },
    /// To a node: a request for whoever can hold the resource there.
    ForwardToNode {
        /// Which resource.
        resource: ResourceId,
        /// The request.
        request: Vec<u8>,
    },
    /// To a node: the client that would hold the resource there on an operator's behalf.
    Steward(ResourceId),
}

/// The answer to an [`Ask`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(super) enum Told {
    /// To Propose: the reply's bytes.
    Replied(Vec<u8>),
    /// To KeepAlive: the session lives, and its lease is so long, in nanoseconds.
    Alive {
        /// The lease L.
        lease_ns: u64,
    },
    /// To KeepAlive: the session has ended (L2).
    SessionOver,
    /// To Query and Events.
    Answer(Answer),
    /// To Status: a document.
    Document(String),
    /// To Forward and ForwardToNode: the answer's bytes.
    Forwarded(Vec<u8>),
    /// To Steward.
    Client(ClientId),
    /// To Voters.
    Done,
    /// Another node leads, or none that is known. It was not done.
    NotLeader(Option<NodeName>),
    /// There is no quorum. It was not done.
    NoQuorum(String),
    /// It may have been done, or be done later: ask again.
    Unknown(String),
    /// It was not done, and will not be by asking again.
    Refused(String),
}

pub(super) fn encode<T: Encode>(message: &T) -> Result<Vec<u8>, String> {
    let mut bytes = vec![VERSION];
    match bincode::encode_into_std_write(message, &mut bytes, CONFIG) {
        Ok(_) if bytes.len() <= BYTES_MAX => Ok(bytes),
        _ => Err(format!("a message of more than {BYTES_MAX} bytes; ask for less at once")),
    }
}

pub(super) fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&VERSION, body)) => match bincode::decode_from_slice(body, CONFIG) {
            Ok((message, used)) if used == body.len() => Ok(message),
            _ => Err(format!("{} bytes are not a message between lockds", bytes.len())),
        },
        Some((version, _)) => {
            Err(format!("message version {version} is not understood here (version {VERSION} is)"))
        }
        None => Err("an empty message".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_come_back() {
        let ask = Ask::Events { after: EventIndex(300), wait_ms: 1_000 };
        let bytes = encode(&ask).expect("short");
        assert_eq!(bytes, [1, 4, 251, 44, 1, 251, 232, 3]);
        assert_eq!(decode(&bytes), Ok(ask));
        assert!(decode::<Ask>(&bytes[..4]).is_err());
        assert!(decode::<Ask>(&[2, 5]).expect_err("a later version").contains("version 2"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Ask>(&bytes);
            let _ = decode::<Told>(&bytes);
        }
    }
}
