//! The SCSI commands that are sent, as their bytes (SPC-4, SBC-3). Pure.

/// A command descriptor block of at most 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cdb {
    bytes: [u8; 16],
    len: usize,
}

/// Vital product data pages.
pub mod page {
    /// Which pages there are.
    pub const SUPPORTED: u8 = 0x00;
    /// By what the logical unit is known.
    pub const DEVICE_ID: u8 = 0x83;
    /// How long its requests may be.
    pub const BLOCK_LIMITS: u8 = 0xb0;
    /// What it can do about blocks that are not needed.
    pub const PROVISIONING: u8 = 0xb2;
}

/// Bits of the second byte of writes and of WRITE SAME.
const FUA: u8 = 1 << 3;
const UNMAP: u8 = 1 << 3;

impl Cdb {
    fn new<const N: usize>(bytes: [u8; N]) -> Self {
        const { assert!(N <= 16) }
        let mut all = [0; 16];
        all[..N].copy_from_slice(&bytes);
        Self { bytes: all, len: N }
    }

    /// The bytes of the block.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Sixteen bytes with a block address and a number at their usual places.
    fn long(operation: u8, flags: u8, block: u64, number: u32) -> Self {
        let mut bytes = [0; 16];
        (bytes[0], bytes[1]) = (operation, flags);
        bytes[2..10].copy_from_slice(&block.to_be_bytes());
        bytes[10..14].copy_from_slice(&number.to_be_bytes());
        Self::new(bytes)
    }

    /// TEST UNIT READY.
    #[must_use]
    pub fn test_unit_ready() -> Self {
        Self::new([0; 6])
    }

    /// INQUIRY of a page, or with `None` of the standard data, of at most `length` bytes.
    #[must_use]
    pub fn inquiry(page: Option<u8>, length: u16) -> Self {
        let [high, low] = length.to_be_bytes();
        Self::new([0x12, u8::from(page.is_some()), page.unwrap_or(0), high, low, 0])
    }

    /// MODE SENSE (10) of the caching page, without block descriptors.
    #[must_use]
    pub fn mode_sense_caching(length: u16) -> Self {
        let [high, low] = length.to_be_bytes();
        Self::new([0x5a, 1 << 3, 0x08, 0, 0, 0, 0, high, low, 0])
    }

    /// READ CAPACITY (16).
    #[must_use]
    pub fn read_capacity(length: u32) -> Self {
        Self::long(0x9e, 0x10, 0, length)
    }

    /// READ (16).
    #[must_use]
    pub fn read(block: u64, blocks: u32) -> Self {
        Self::long(0x88, 0, block, blocks)
    }

    /// WRITE (16); with `fua` durable when done.
    #[must_use]
    pub fn write(block: u64, blocks: u32, fua: bool) -> Self {
        Self::long(0x8a, if fua { FUA } else { 0 }, block, blocks)
    }

    /// SYNCHRONIZE CACHE (16) of the whole unit.
    #[must_use]
    pub fn synchronize_cache() -> Self {
        Self::long(0x91, 0, 0, 0)
    }

    /// WRITE SAME (16): one block of data, again and again; with `unmap` the unit may give the blocks up instead, if it
    /// reads them as that data.
    #[must_use]
    pub fn write_same(block: u64, blocks: u32, unmap: bool) -> Self {
        Self::long(0x93, if unmap { UNMAP } else { 0 }, block, blocks)
    }

    /// UNMAP with a list of `length` bytes ([`unmap_list`]).
    #[must_use]
    pub fn unmap(length: u16) -> Self {
        let [high, low] = length.to_be_bytes();
        Self::new([0x42, 0, 0, 0, 0, 0, 0, high, low, 0])
    }

    /// PERSISTENT RESERVE IN with this service action.
    #[must_use]
    pub fn reserve_in(action: u8, length: u16) -> Self {
        let [high, low] = length.to_be_bytes();
        Self::new([0x5e, action, 0, 0, 0, 0, 0, high, low, 0])
    }

    /// PERSISTENT RESERVE OUT with this service action, for the whole unit, with 24 bytes of parameters.
    #[must_use]
    pub fn reserve_out(action: u8, kind: u8) -> Self {
        Self::new([0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0])
    }
}

/// The list of UNMAP: one range, or none.
#[must_use]
pub fn unmap_list(range: Option<(u64, u32)>) -> Vec<u8> {
    let descriptor =
        range.map(|(block, blocks)| [&block.to_be_bytes()[..], &blocks.to_be_bytes(), &[0; 4]].concat());
    let descriptors = descriptor.unwrap_or_default();
    let len = u16::try_from(descriptors.len()).unwrap_or(0);
    [&(len + 6).to_be_bytes()[..], &len.to_be_bytes(), &[0; 4], &descriptors].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_bytes_of_the_standard() {
        let write = Cdb::write(0x0102_0304_0506_0708, 0x0a0b_0c0d, true);
        assert_eq!(write.bytes(), [0x8a, 8, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 0, 0]);
        assert_eq!(Cdb::write(1, 1, false).bytes()[1], 0);
        assert_eq!(Cdb::read(9, 8).bytes(), [0x88, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0]);
        assert_eq!(Cdb::read_capacity(32).bytes(), [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]);
        assert_eq!(Cdb::write_same(1, 2, true).bytes()[..2], [0x93, 8]);
        assert_eq!(Cdb::synchronize_cache().bytes(), [&[0x91][..], &[0; 15]].concat());
        assert_eq!(Cdb::inquiry(Some(page::DEVICE_ID), 0x0102).bytes(), [0x12, 1, 0x83, 1, 2, 0]);
        assert_eq!(Cdb::inquiry(None, 36).bytes(), [0x12, 0, 0, 0, 36, 0]);
        assert_eq!(Cdb::mode_sense_caching(255).bytes(), [0x5a, 8, 8, 0, 0, 0, 0, 0, 255, 0]);
        assert_eq!(Cdb::unmap(24).bytes(), [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!(Cdb::reserve_in(1, 256).bytes(), [0x5e, 1, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(Cdb::reserve_out(5, 7).bytes(), [0x5f, 5, 7, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!(Cdb::test_unit_ready().bytes(), [0; 6]);
    }

    #[test]
    fn the_list_of_unmap_has_the_bytes_of_the_standard() {
        assert_eq!(unmap_list(None), [0, 6, 0, 0, 0, 0, 0, 0]);
        let one = unmap_list(Some((0x0102, 0x0304)));
        assert_eq!(one[..8], [0, 22, 0, 16, 0, 0, 0, 0]);
        assert_eq!(one[8..], [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 3, 4, 0, 0, 0, 0]);
    }
}
