//! What `lockctl` asks of the program that holds a file, or is to hold it: lockd carries it without looking.

use std::fmt;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

use crate::ids::{ClientId, Epoch, NodeName, ResourceId};
use crate::machine::Cookie;

/// The longest request or reply, in bytes.
const BYTES_MAX: usize = 2 << 20;
const VERSION: u8 = 1;
const CONFIG: Configuration<LittleEndian, Varint, Limit<BYTES_MAX>> =
    bincode::config::standard().with_limit::<BYTES_MAX>();

/// A request to a holder. Sent to the mount or host that holds the resources; `Acquire` to the one that shall.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum HolderRequest {
    /// Become the owner of these, pinned: until they are released explicitly.
    Acquire(Vec<ResourceId>),
    /// Give these back.
    Release(Vec<ResourceId>),
    /// Hand these over to the program on another node that can hold them.
    Transfer {
        /// The set: all or nothing.
        resources: Vec<ResourceId>,
        /// The node.
        to: NodeName,
        /// Whether the locks that the holder's programs have on the set go along, into escrow for the target (L8): for
        /// programs that move themselves.
        with_locks: bool,
    },
    /// From the holder to the program that is to have the set: take what is offered under the cookie.
    Take {
        /// Of the transfer.
        cookie: Cookie,
        /// Who offers it.
        from: ClientId,
        /// The set: all or nothing.
        resources: Vec<ResourceId>,
        /// Whether locks come along.
        with_locks: bool,
    },
    /// Have the locks that came with a transfer.
    Adopt {
        /// Of the transfer.
        cookie: Cookie,
        /// The adopter's lock owner that gets them all; without, each keeps its owner's number.
        owner: Option<u64>,
    },
    /// Drop the locks that came with a transfer.
    DropLocks {
        /// Of the transfer.
        cookie: Cookie,
    },
    /// Tell how you are ([`HolderReply::Document`]).
    Status,
    /// As `Transfer`, if all of the set is held in this epoch (0: by nobody), and else nothing: for who has looked before.
    TransferIn {
        /// The epoch that is expected (L6).
        epoch: Epoch,
        /// As in `Transfer`.
        resources: Vec<ResourceId>,
        /// As in `Transfer`.
        to: NodeName,
        /// As in `Transfer`.
        with_locks: bool,
    },
    /// From a volume's coordinator to the mount that is to be the next one: agree to take the role.
    TakeRole {
        /// The role.
        role: ResourceId,
        /// In which the asker has it.
        epoch: Epoch,
    },
}

/// The answer to a [`HolderRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum HolderReply {
    /// It is done.
    Done {
        /// The epoch of the new holdings, where there are any.
        epoch: Option<Epoch>,
        /// For a transfer: how long nobody could write to the set, in nanoseconds.
        pause_ns: u64,
        /// Under which cookie locks went into escrow, if they were asked to.
        cookie: Option<Cookie>,
    },
    /// So many locks were adopted or dropped.
    Locks(u64),
    /// It is not done, or not all of it: why, what has changed, if anything has, and what to do.
    Refused(String),
    /// How the program is: a JSON document.
    Document(String),
    /// Nothing is done, because of something that passes by itself: it may be asked for again a moment later.
    Passing(String),
}

/// Whether a holding is in the epoch that is expected, if one is (L6).
///
/// # Errors
/// It is not: in which it is.
pub fn check_epoch(what: impl fmt::Display, held: Epoch, expected: Option<Epoch>) -> Result<(), String> {
    let words = |epoch: Epoch| match epoch {
        Epoch::NOBODY => "by nobody".to_owned(),
        epoch => format!("in epoch {epoch}"),
    };
    match expected {
        Some(expected) if expected != held => Err(format!(
            "nothing was handed over: {what} is held {}, not {}; `lockctl show` tells how it is now",
            words(held),
            words(expected)
        )),
        _ => Ok(()),
    }
}

macro_rules! bytes {
    ($name:ident, $what:literal) => {
        impl $name {
            /// As bytes.
            ///
            /// # Errors
            /// If it is too long: fewer resources at a time.
            pub fn encode(&self) -> Result<Vec<u8>, String> {
                let mut bytes = vec![VERSION];
                let too_long = |_| format!("a {} of more than {BYTES_MAX} bytes; name fewer at once", $what);
                bincode::encode_into_std_write(self, &mut bytes, CONFIG).map_err(too_long)?;
                Ok(bytes)
            }

            /// From bytes.
            ///
            /// # Errors
            /// If they are none.
            pub fn decode(bytes: &[u8]) -> Result<Self, String> {
                match bytes.split_first() {
                    Some((&VERSION, body)) => match bincode::decode_from_slice(body, CONFIG) {
                        Ok((value, used)) if used == body.len() => Ok(value),
                        _ => Err(format!("{} bytes are not a {}", bytes.len(), $what)),
                    },
                    Some((version, _)) => Err(format!("a {} of version {version}, not {VERSION}", $what)),
                    None => Err(format!("an empty {}", $what)),
                }
            }
        }
    };
}

bytes!(HolderRequest, "request to a holder");
bytes!(HolderReply, "holder's reply");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_and_replies_come_back() {
        let resources = vec![ResourceId::Vm("web".to_owned())];
        let to = "n2".parse().expect("a name");
        let request = HolderRequest::Transfer { resources, to, with_locks: true };
        assert_eq!(request.encode().as_deref(), Ok(&b"\x01\x02\x01\x02\x03web\x02n2\x01"[..]));
        assert_eq!(HolderRequest::decode(&request.encode().expect("short")), Ok(request));
        let reply = HolderReply::Done { epoch: Some(Epoch(7)), pause_ns: 1_000, cookie: None };
        assert_eq!(HolderReply::decode(&reply.encode().expect("short")), Ok(reply));
        assert_eq!(HolderRequest::Status.encode().as_deref(), Ok(&b"\x01\x06"[..]));
        let (resources, to) = (vec![ResourceId::Vm("web".to_owned())], "n2".parse().expect("a name"));
        let request = HolderRequest::TransferIn { epoch: Epoch(9), resources, to, with_locks: false };
        assert_eq!(request.encode().as_deref(), Ok(&b"\x01\x07\x09\x01\x02\x03web\x02n2\x00"[..]));
        assert_eq!(HolderRequest::decode(&request.encode().expect("short")), Ok(request));
        let document = HolderReply::Document("{}".to_owned());
        assert_eq!(document.encode().as_deref(), Ok(&b"\x01\x03\x02{}"[..]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = HolderRequest::decode(&bytes);
            let _ = HolderReply::decode(&bytes);
        }
    }
}
