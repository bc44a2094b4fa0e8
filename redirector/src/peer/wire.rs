//! What a node without a path and its host say to each other: a header by bincode, and the data behind it.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};
use lockd::ids::{ClientId, SessionId, VolumeId};

use crate::lun::Geometry;
use crate::paths::way::{Abilities, Credentials, Instance, ListId, Restarts};

/// The version of these messages: the first byte of each. A host and a client of different ones do not serve each other.
const VERSION: u8 = 1;
/// The longest header in bytes.
const HEADER_MAX: usize = 1 << 10;
/// The most data that one request carries, in bytes: with its header it fits into a frame.
pub const DATA_MAX: u32 = 4 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<HEADER_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<HEADER_MAX>();

/// A message that is none, or of another version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// It is of this version.
    #[error(
        "it speaks version {0} of redirected I/O, and this node speaks {VERSION}; bring both to one release"
    )]
    Version(u8),
    /// It cannot be read.
    #[error("a message of {0} bytes is no message of redirected I/O")]
    Garbage(usize),
}

/// Who has I/O executed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct Who {
    /// The volume.
    pub volume: VolumeId,
    /// The session of its node.
    pub session: SessionId,
    /// The mount.
    pub client: ClientId,
}

/// Where it is executed: ends when the host, or its path, is another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Seat {
    /// This run of the host.
    pub host: [u8; 16],
    /// The number of its link to the target.
    pub path: u64,
}

/// What is to be done. Offsets and lengths in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum What {
    /// Read.
    Read {
        /// Where.
        offset: u64,
        /// How much.
        length: u32,
    },
    /// Write the data behind the header.
    Write {
        /// Where.
        offset: u64,
        /// Whether it is durable when done.
        fua: bool,
    },
    /// Make what was done durable.
    Flush,
    /// Zero.
    Zero {
        /// From.
        start: u64,
        /// To.
        end: u64,
    },
    /// Discard.
    Trim {
        /// From.
        start: u64,
        /// To.
        end: u64,
    },
}

/// What a client asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Question {
    /// Whether there is a path.
    Hello {
        /// Who asks.
        who: Who,
        /// The number of the link that is made: earlier ones end. None: it is only asked.
        link: Option<u64>,
        /// By what the target knows the client, whose own connections there it has given up.
        known_as: Option<Credentials>,
    },
    /// Do something.
    Do {
        /// For whom.
        who: Who,
        /// The link; 0 for who only asks.
        link: u64,
        /// Where.
        seat: Seat,
        /// The host's clock in the last answer, in ns.
        stamp: u64,
        /// Until how long after that it may be executed, in ns.
        left: u64,
        /// What.
        what: What,
    },
}

/// What a host answers.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Answer {
    /// To a Hello.
    Welcome {
        /// The seat.
        seat: Seat,
        /// The host's clock.
        stamp: u64,
        /// Whether all that came by earlier links is done, and no ghost of it left.
        drained: bool,
        /// The target, if it has executed what it had accepted on the client's own connections.
        target: Option<Instance>,
        /// What the target can do.
        abilities: Told,
    },
    /// The target has done it; what was read is behind the header.
    Done {
        /// The host's clock.
        stamp: u64,
    },
    /// The target has refused it.
    Failed {
        /// The host's clock.
        stamp: u64,
        /// Why.
        errno: i32,
    },
    /// The host's path was lost under it. The seat is over.
    Unknown,
    /// It came too late and will not be executed.
    Late {
        /// The host's clock.
        stamp: u64,
    },
    /// It will not be executed, and nothing will at this seat.
    Over {
        /// Why, in words.
        why: String,
    },
}

/// [`Abilities`], as they are told.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Told {
    size: u64,
    block_size: u32,
    request_max: u32,
    flags: u16,
    instance: Option<Instance>,
    list: Option<ListId>,
    restarts: u8,
}

const TRIM: u16 = 1;
const WRITE_ZEROES: u16 = 1 << 1;
const VOLATILE: u16 = 1 << 2;
const READ_ONLY: u16 = 1 << 3;
const FUA: u16 = 1 << 4;
const FLUSH: u16 = 1 << 5;
const MULTI_CONN: u16 = 1 << 6;

impl From<&Abilities> for Told {
    fn from(abilities: &Abilities) -> Self {
        let Geometry { size, block_size, request_max, trim, write_zeroes, volatile_cache } =
            abilities.geometry;
        let flags = [
            (TRIM, trim),
            (WRITE_ZEROES, write_zeroes),
            (VOLATILE, volatile_cache),
            (READ_ONLY, abilities.read_only),
            (FUA, abilities.fua),
            (FLUSH, abilities.flush),
            (MULTI_CONN, abilities.multi_conn),
        ];
        Self {
            size,
            block_size,
            request_max: request_max.min(DATA_MAX),
            flags: flags.iter().filter(|(_, set)| *set).map(|(flag, _)| flag).sum(),
            instance: abilities.instance,
            list: abilities.list,
            restarts: match abilities.restarts {
                Restarts::Unseen => 0,
                Restarts::ByBootId => 1,
                Restarts::ByAttention => 2,
            },
        }
    }
}

impl From<&Told> for Abilities {
    fn from(told: &Told) -> Self {
        let has = |flag| told.flags & flag != 0;
        Self {
            geometry: Geometry {
                size: told.size,
                block_size: told.block_size,
                request_max: told.request_max.min(DATA_MAX),
                trim: has(TRIM),
                write_zeroes: has(WRITE_ZEROES),
                volatile_cache: has(VOLATILE),
            },
            read_only: has(READ_ONLY),
            fua: has(FUA),
            flush: has(FLUSH),
            multi_conn: has(MULTI_CONN),
            instance: told.instance,
            list: told.list,
            restarts: match told.restarts {
                1 => Restarts::ByBootId,
                2 => Restarts::ByAttention,
                _ => Restarts::Unseen,
            },
        }
    }
}

/// The bytes of `message` with room for `data` bytes behind it.
pub fn encode(message: &impl Encode, data: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_MAX / 4 + data);
    bytes.push(VERSION);
    // Every message fits: the texts are cut where they are made, and a vector takes what it is given.
    let encoded = bincode::encode_into_std_write(message, &mut bytes, CONFIG);
    debug_assert!(encoded.is_ok(), "{encoded:?}");
    bytes
}

/// The message in `bytes`, and the data behind it.
pub fn decode<M: Decode<()>>(bytes: &[u8]) -> Result<(M, &[u8]), WireError> {
    match bytes {
        [VERSION, rest @ ..] => {
            let read = bincode::decode_from_slice(rest, CONFIG);
            let (message, length) = read.map_err(|_| WireError::Garbage(bytes.len()))?;
            Ok((message, &rest[length..]))
        }
        [other, ..] => Err(WireError::Version(*other)),
        [] => Err(WireError::Garbage(0)),
    }
}

/// A text that fits into a header.
pub fn cut(mut text: String) -> String {
    let mut end = text.len().min(HEADER_MAX / 2);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn who() -> Who {
        Who { volume: VolumeId([1; 16]), session: SessionId(2), client: ClientId(3) }
    }

    #[test]
    fn the_bytes_of_a_message_never_change() {
        let seat = Seat { host: [4; 16], path: 5 };
        let what = What::Write { offset: 0x1000, fua: true };
        let question = Question::Do { who: who(), link: 6, seat, stamp: 7, left: 8, what };
        let mut bytes = encode(&question, 3);
        bytes.extend_from_slice(b"abc");
        let u64s = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let expected = [
            vec![1, 1, 0, 0, 0],
            vec![1; 16],
            u64s(&[2, 3, 6]),
            vec![4; 16],
            u64s(&[5, 7, 8]),
            vec![1, 0, 0, 0],
            u64s(&[0x1000]),
            vec![1],
            b"abc".to_vec(),
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(decode::<Question>(&bytes), Ok((question, b"abc".as_slice())));
        assert_eq!(decode::<Question>(&[2, 0]), Err(WireError::Version(2)));
    }

    #[test]
    fn abilities_arrive_as_they_were_told() {
        let geometry = Geometry {
            size: 1 << 30,
            block_size: 512,
            request_max: 1 << 20,
            trim: true,
            write_zeroes: false,
            volatile_cache: true,
        };
        let abilities = Abilities {
            geometry,
            read_only: false,
            fua: true,
            flush: true,
            multi_conn: false,
            instance: Some([7; 16]),
            list: None,
            restarts: Restarts::ByBootId,
        };
        assert_eq!(Abilities::from(&Told::from(&abilities)), abilities);
        let long = cut("ä".repeat(4000));
        let answer = Answer::Over { why: long };
        assert_eq!(decode::<Answer>(&encode(&answer, 0)).unwrap().0, answer);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), marked: bool) {
            let mut bytes = bytes;
            if marked && let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = decode::<Question>(&bytes);
            let _ = decode::<Answer>(&bytes);
        }
    }
}
