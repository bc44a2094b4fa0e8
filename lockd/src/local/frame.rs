//! Frames of the local socket: a length of four bytes, little-endian, and so many bytes of one message.
//!
//! Before the first frame each side sends a greeting of twelve bytes: the magic `CSVLOCAL`, and the lowest and the highest
//! version that it speaks, two bytes each. The highest that both speak is spoken.

use std::io::{self, Read, Write};

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest message in bytes: a transfer of some ten thousand files.
pub const FRAME_MAX: usize = 4 << 20;

/// The versions of the messages that this program speaks, lowest and highest.
pub const VERSIONS: (u16, u16) = (1, 1);

const MAGIC: &[u8; 8] = b"CSVLOCAL";
const GREETING_BYTES: usize = 12;

const CONFIG: Configuration<LittleEndian, Varint, Limit<FRAME_MAX>> =
    bincode::config::standard().with_limit::<FRAME_MAX>();

/// Why a connection does not go on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side has closed it, or the kernel has.
    #[error("the connection was closed ({0})")]
    Closed(#[from] io::Error),
    /// What connected speaks something else.
    #[error("the other side does not speak this protocol")]
    NotOurs,
    /// The two have no version in common.
    #[error("the other side speaks versions {0} to {1}, this program {v0} to {v1}; use programs of one release",
        v0 = VERSIONS.0, v1 = VERSIONS.1)]
    Version(u16, u16),
    /// A message that is too long.
    #[error("a message of {0} bytes is longer than the limit of {FRAME_MAX} bytes")]
    TooLong(usize),
    /// Bytes that are no message.
    #[error("a frame of {0} bytes is not a message")]
    Malformed(usize),
}

/// The greeting of this program.
#[must_use]
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&VERSIONS.0.to_le_bytes());
    bytes[10..].copy_from_slice(&VERSIONS.1.to_le_bytes());
    bytes
}

/// The version to speak with whoever sent `greeting`.
///
/// # Errors
/// If it is not a greeting, or no version is common.
pub fn agree(greeting: [u8; GREETING_BYTES]) -> Result<u16, FrameError> {
    if &greeting[..8] != MAGIC {
        return Err(FrameError::NotOurs);
    }
    let low = u16::from_le_bytes([greeting[8], greeting[9]]);
    let high = u16::from_le_bytes([greeting[10], greeting[11]]);
    let common = high.min(VERSIONS.1);
    if common < low.max(VERSIONS.0) { Err(FrameError::Version(low, high)) } else { Ok(common) }
}

/// `message` as a frame, its length in front.
///
/// # Errors
/// If it is too long.
pub fn encode<T: Encode>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    bincode::encode_into_std_write(message, &mut frame, CONFIG)
        .map_err(|_| FrameError::TooLong(FRAME_MAX + 1))?;
    let length = frame.len() - 4;
    match u32::try_from(length) {
        Ok(prefix) if length <= FRAME_MAX => frame[..4].copy_from_slice(&prefix.to_le_bytes()),
        _ => return Err(FrameError::TooLong(length)),
    }
    Ok(frame)
}

/// The message of a frame's bytes, its length left out; all of them.
///
/// # Errors
/// If they are no message.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, FrameError> {
    match bincode::decode_from_slice(bytes, CONFIG) {
        Ok((message, used)) if used == bytes.len() => Ok(message),
        _ => Err(FrameError::Malformed(bytes.len())),
    }
}

fn checked(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > FRAME_MAX { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

fn cut_off() -> FrameError {
    FrameError::Closed(io::ErrorKind::UnexpectedEof.into())
}

/// Greets on a blocking stream and reads the other's greeting.
///
/// # Errors
/// If the connection breaks or the other side speaks something else.
pub fn greet(stream: &mut (impl Read + Write)) -> Result<u16, FrameError> {
    stream.write_all(&greeting())?;
    let mut theirs = [0; GREETING_BYTES];
    stream.read_exact(&mut theirs)?;
    agree(theirs)
}

/// Reads a frame from a blocking stream.
///
/// # Errors
/// If the connection breaks or the frame is too long.
pub fn read(stream: &mut impl Read) -> Result<Vec<u8>, FrameError> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix)?;
    let length = checked(prefix)?;
    // Grows as bytes come, so that a length alone costs no memory.
    let mut bytes = Vec::with_capacity(length.min(64 << 10));
    stream.by_ref().take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length { Err(cut_off()) } else { Ok(bytes) }
}

/// Greets as [`greet`], on an asynchronous stream.
///
/// # Errors
/// As [`greet`].
pub async fn greet_async(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<u16, FrameError> {
    stream.write_all(&greeting()).await?;
    let mut theirs = [0; GREETING_BYTES];
    stream.read_exact(&mut theirs).await?;
    agree(theirs)
}

/// Reads a frame as [`read`], from an asynchronous stream.
///
/// # Errors
/// As [`read`].
pub async fn read_async(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, FrameError> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let length = checked(prefix)?;
    let mut bytes = Vec::with_capacity(length.min(64 << 10));
    stream.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length { Err(cut_off()) } else { Ok(bytes) }
}
