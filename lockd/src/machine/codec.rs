//! Commands, replies and the body of snapshots as bytes. The only place that knows by what they are encoded.

use bincode::config::{Configuration, Limit};
use bincode::{Decode, Encode};

use super::bounds::{MESSAGE_BYTES_MAX, SNAPSHOT_BYTES_MAX};
use super::command::Command;
use super::reply::Reply;

/// The version of commands and replies.
const VERSION: u8 = 1;

type Config<const LIMIT: usize> =
    Configuration<bincode::config::LittleEndian, bincode::config::Varint, Limit<LIMIT>>;

/// Containers of decoded values are counted in memory, where they are larger than as bytes.
const MESSAGE: Config<{ 8 * MESSAGE_BYTES_MAX }> = bincode::config::standard().with_limit();

/// The same, for the whole state.
const SNAPSHOT: Config<{ 8 * SNAPSHOT_BYTES_MAX }> = bincode::config::standard().with_limit();

/// Why bytes are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// Of a version that this program does not know.
    #[error("version {0} is not understood here (version {VERSION} is); bring all nodes to one release")]
    Version(u8),
    /// Cut off, or not what it should be.
    #[error("{bytes} bytes are not a {what}")]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// How many bytes there are.
        bytes: usize,
    },
    /// Too long.
    #[error("a {what} of more than {limit} bytes; ask for less at once")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// How long it may be.
        limit: usize,
    },
}

/// A command as bytes.
///
/// # Errors
/// If it is too long.
pub fn encode_command(command: &Command) -> Result<Vec<u8>, CodecError> {
    encode(command, "command")
}

/// A command from bytes.
///
/// # Errors
/// If they are not one.
pub fn decode_command(bytes: &[u8]) -> Result<Command, CodecError> {
    decode(bytes, "command")
}

/// A reply as bytes.
///
/// # Errors
/// If it is too long.
pub fn encode_reply(reply: &Reply) -> Result<Vec<u8>, CodecError> {
    encode(reply, "reply")
}

/// A reply from bytes.
///
/// # Errors
/// If they are not one.
pub fn decode_reply(bytes: &[u8]) -> Result<Reply, CodecError> {
    decode(bytes, "reply")
}

fn encode<T: Encode>(value: &T, what: &'static str) -> Result<Vec<u8>, CodecError> {
    let too_long = || CodecError::TooLong { what, limit: MESSAGE_BYTES_MAX };
    let mut bytes = vec![VERSION];
    bincode::encode_into_std_write(value, &mut bytes, MESSAGE).map_err(|_| too_long())?;
    if bytes.len() > MESSAGE_BYTES_MAX { Err(too_long()) } else { Ok(bytes) }
}

fn decode<T: Decode<()>>(bytes: &[u8], what: &'static str) -> Result<T, CodecError> {
    let malformed = || CodecError::Malformed { what, bytes: bytes.len() };
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLong { what, limit: MESSAGE_BYTES_MAX });
    }
    let (version, body) = bytes.split_first().ok_or_else(malformed)?;
    if *version != VERSION {
        return Err(CodecError::Version(*version));
    }
    let (value, used) = bincode::decode_from_slice(body, MESSAGE).map_err(|_| malformed())?;
    if used == body.len() { Ok(value) } else { Err(malformed()) }
}

/// The body of a snapshot; none if it is too long. Its header has the version.
pub(super) fn encode_body<T: Encode>(value: &T) -> Option<Vec<u8>> {
    bincode::encode_to_vec(value, SNAPSHOT).ok()
}

/// A snapshot's body from bytes that have passed their checksum.
pub(super) fn decode_body<T: Decode<()>>(bytes: &[u8]) -> Option<T> {
    let (value, used) = bincode::decode_from_slice(bytes, SNAPSHOT).ok()?;
    (used == bytes.len()).then_some(value)
}
