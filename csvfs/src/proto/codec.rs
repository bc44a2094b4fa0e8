//! Messages to bytes and back, with a version and a size limit.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

use super::VERSION;

/// The longest frame in bytes: the largest extended attribute or directory part, with room for its envelope.
pub const FRAME_MAX: usize = 1 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<FRAME_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<FRAME_MAX>();

/// Why a frame could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The frame is of a version that this program does not speak.
    #[error(
        "message version {0} is not understood here (version {VERSION} is); bring both nodes to one release"
    )]
    Version(u8),
    /// The frame is cut off, too long, or not a message.
    #[error("malformed message of {0} bytes")]
    Malformed(usize),
    /// A message too large to send.
    #[error("the message does not fit into {FRAME_MAX} bytes")]
    TooLarge,
}

/// Encodes `message` as a frame.
pub fn encode<T: Encode>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = Vec::with_capacity(128);
    frame.push(VERSION);
    bincode::encode_into_std_write(message, &mut frame, CONFIG).map_err(|_| CodecError::TooLarge)?;
    if frame.len() > FRAME_MAX {
        return Err(CodecError::TooLarge);
    }
    Ok(frame)
}

/// Decodes a frame; trailing bytes are refused.
pub fn decode<T: Decode<()>>(frame: &[u8]) -> Result<T, CodecError> {
    let malformed = || CodecError::Malformed(frame.len());
    let (version, body) = frame.split_first().ok_or_else(malformed)?;
    if *version != VERSION {
        return Err(CodecError::Version(*version));
    }
    let (message, used) = bincode::decode_from_slice(body, CONFIG).map_err(|_| malformed())?;
    if used != body.len() {
        return Err(malformed());
    }
    Ok(message)
}
