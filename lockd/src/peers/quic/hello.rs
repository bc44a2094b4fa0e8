//! The first frames of a connection: which incarnation of which program speaks.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `CSVH` |
//! | 4 | 2 | program, as its port offset, little-endian |
//! | 6 | 2 | 0 |
//! | 8 | 8 | incarnation, little-endian |
//!
//! More bytes may follow in later versions; they are not looked at.

use zerocopy::byteorder::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::cluster::Program;

/// The size of a hello in bytes.
const LENGTH: usize = 16;
/// A hello with later versions' additions is no longer than this, in bytes.
pub(super) const LENGTH_MAX: usize = 4096;
const MAGIC: [u8; 4] = *b"CSVH";

/// Who speaks: a program of a node, and which of its incarnations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    pub(super) program: Program,
    /// Drawn at random when the endpoint starts.
    pub(super) incarnation: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHello {
    magic: [u8; 4],
    program: U16,
    zero: U16,
    incarnation: U64,
}

impl Hello {
    pub(super) fn encode(self) -> Vec<u8> {
        let raw = RawHello {
            magic: MAGIC,
            program: U16::new(self.program.port_offset()),
            zero: U16::new(0),
            incarnation: U64::new(self.incarnation),
        };
        raw.as_bytes().to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (raw, _) = RawHello::read_from_prefix(bytes).ok()?;
        if raw.magic != MAGIC || bytes.len() < LENGTH {
            return None;
        }
        let program = Program::from_port_offset(raw.program.get())?;
        Some(Self { program, incarnation: raw.incarnation.get() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_of_a_hello_never_change() {
        let hello = Hello { program: Program::Vmhost, incarnation: 0x0102_0304_0506_0708 };
        let mut bytes = vec![b'C', b'S', b'V', b'H', 2, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!(hello.encode(), bytes);
        bytes.push(99);
        assert_eq!(Hello::decode(&bytes), Some(hello), "later versions may add to it");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn any_bytes_are_a_hello_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..40), marked: bool) {
            if marked && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            let _ = Hello::decode(&bytes);
        }
    }
}
