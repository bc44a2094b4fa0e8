//! What PERSISTENT RESERVE IN and INQUIRY bring. Pure; the target's word for lengths is checked.

use super::Key;

/// Room for so many bytes of keys: some thousand.
pub(crate) const KEYS_ROOM: u16 = 16 << 10;
/// Room for a reservation.
pub(crate) const RESERVATION_ROOM: u16 = 256;

/// Service actions of PERSISTENT RESERVE IN.
pub(crate) mod action {
    pub(crate) const KEYS: u8 = 0;
    pub(crate) const RESERVATION: u8 = 1;
}

/// The keys in an answer to READ KEYS.
pub(crate) fn keys_in(bytes: &[u8]) -> Vec<Key> {
    let len = bytes.get(4..8).and_then(|len| len.first_chunk()).map_or(0, |len| u32::from_be_bytes(*len));
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let list = bytes.get(8..).unwrap_or_default();
    let (keys, _) = list[..list.len().min(len)].as_chunks();
    keys.iter().map(|key| Key(u64::from_be_bytes(*key))).collect()
}

/// The holder's key and the type in an answer to READ RESERVATION.
pub(crate) fn reservation_in(bytes: &[u8]) -> Option<(u64, u8)> {
    let len = bytes.get(4..8).and_then(|len| len.first_chunk()).map_or(0, |len| u32::from_be_bytes(*len));
    let key = bytes.get(8..).and_then(|rest| rest.first_chunk()).filter(|_| len >= 16)?;
    Some((u64::from_be_bytes(*key), bytes.get(21).copied().unwrap_or(0) & 0xf))
}

/// The vendor in the standard answer to INQUIRY.
pub(crate) fn vendor_in(bytes: &[u8]) -> [u8; 8] {
    bytes.get(8..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_and_holder_are_read_as_the_standard_lays_them_out() {
        let mut bytes = vec![0, 0, 0, 9, 0, 0, 0, 16];
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0xff, 0xff]);
        assert_eq!(keys_in(&bytes), [Key(1), Key(2)]);
        let mut held = vec![0, 0, 0, 9, 0, 0, 0, 16];
        held.extend([0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0x07, 0, 0]);
        assert_eq!(reservation_in(&held), Some((5, 7)));
        assert_eq!(reservation_in(&[0; 8]), None);
        assert_eq!(vendor_in(b"........LIO-ORG rest"), *b"LIO-ORG ");
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes: Vec<u8>) {
            let _ = (keys_in(&bytes), reservation_in(&bytes), vendor_in(&bytes));
        }
    }
}
