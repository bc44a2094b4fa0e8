//! What a logical unit says about itself. The decoding is pure; all lengths are the target's word and are checked.

use std::time::Instant;

use super::cdb::{Cdb, page, unmap_list};
use super::page::Page;
use super::sense::Ended;
use super::session::{Payload, Session, SessionError};

/// Bytes that are asked for of a page.
const PAGE_MAX: u16 = 512;
/// The device type of a disk.
const DISK: u8 = 0;

/// What a unit is and can do. Blocks are its logical blocks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Unit {
    /// Its size in blocks.
    pub blocks: u64,
    /// The size of a block in bytes.
    pub block_size: u32,
    /// The bytes by which it is known wherever it is reached: its NAA, EUI-64 or T10 designator. Empty if it has none.
    pub identity: Vec<u8>,
    /// The longest read or write in blocks; zero if it does not say.
    pub transfer_max: u32,
    /// The longest UNMAP in blocks; zero if it cannot.
    pub unmap_max: u32,
    /// The longest WRITE SAME (16) in blocks; zero if it cannot.
    pub write_same_max: u32,
    /// Blocks that were unmapped read as zeros.
    pub unmapped_is_zero: bool,
    /// How it treats writes; none if it did not say.
    pub mode: Option<Mode>,
}

/// How a unit treats writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    /// It refuses them.
    pub read_only: bool,
    /// One can be made durable by itself.
    pub fua: bool,
    /// It may lose a completed one before SYNCHRONIZE CACHE.
    pub volatile_cache: bool,
}

impl Default for Mode {
    /// A unit that does not say is taken for careless.
    fn default() -> Self {
        Self { read_only: false, fua: false, volatile_cache: true }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_be_bytes)
}

impl Unit {
    /// Asks the unit. What it does not know it cannot do.
    ///
    /// # Errors
    /// If it is not reached, is no disk, or has no size.
    pub fn ask<P: Payload>(session: &mut Session<P>, deadline: Instant) -> Result<Self, SessionError> {
        let mut unit = Self::default();
        // What it has to say before anything else is heard here.
        done(session, "TEST UNIT READY", &Cdb::test_unit_ready(), 0, deadline)?;
        let standard = done(session, "INQUIRY", &Cdb::inquiry(None, 96), 96, deadline)?;
        let kind = standard.first().copied().unwrap_or(u8::MAX);
        if kind >> 5 != 0 || kind & 0x1f != DISK {
            let why = "it is no disk; check the LUN's number";
            return Err(SessionError::Nonsense { command: "INQUIRY", why });
        }
        unit.capacity(&done(session, "READ CAPACITY (16)", &Cdb::read_capacity(32), 32, deadline)?)?;
        let pages = vital(session, page::SUPPORTED, deadline)?.unwrap_or_default();
        let has = |page| pages.get(4..).is_some_and(|list| list.contains(&page));
        if has(page::DEVICE_ID) {
            unit.identity = identity(&vital(session, page::DEVICE_ID, deadline)?.unwrap_or_default());
        }
        let limits = match has(page::BLOCK_LIMITS) {
            true => vital(session, page::BLOCK_LIMITS, deadline)?.unwrap_or_default(),
            false => Vec::new(),
        };
        let provisioning = match has(page::PROVISIONING) {
            true => vital(session, page::PROVISIONING, deadline)?.unwrap_or_default(),
            false => Vec::new(),
        };
        unit.limits(&limits, &provisioning);
        if unit.unmap_max > 0 {
            // Of nothing. Some say that they have it, and end each with an error.
            let list = Page::Out(unmap_list(None));
            let (_, ended) = session.run(&Cdb::unmap(8), list, deadline)?;
            if !matches!(ended, Ended::Good(_) | Ended::Conflict) {
                unit.unmap_max = 0;
            }
        }
        unit.ask_mode(session, deadline)?;
        Ok(unit)
    }

    /// Asks how it treats writes. A unit that others have reserved does not say.
    ///
    /// # Errors
    /// If it is not reached.
    pub fn ask_mode<P: Payload>(
        &mut self,
        session: &mut Session<P>,
        deadline: Instant,
    ) -> Result<(), SessionError> {
        let (page, ended) = session.run(&Cdb::mode_sense_caching(255), Page::room(255), deadline)?;
        self.mode = match ended {
            Ended::Good(_) => Some(mode(page.bytes())),
            Ended::Conflict => None,
            _ => Some(Mode::default()),
        };
        Ok(())
    }

    /// The answer to READ CAPACITY (16).
    fn capacity(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        let nonsense = |why| SessionError::Nonsense { command: "READ CAPACITY (16)", why };
        let last = be64(bytes, 0).ok_or_else(|| nonsense("it is too short"))?;
        self.block_size = be32(bytes, 8).unwrap_or(0);
        self.blocks = last.checked_add(1).ok_or_else(|| nonsense("the size overflows"))?;
        let fits = matches!(self.block_size, 512 | 1024 | 2048 | 4096);
        if !fits || self.blocks.checked_mul(u64::from(self.block_size)).is_none() {
            return Err(nonsense("the block size is none of 512 to 4096 bytes, or the size overflows"));
        }
        self.unmapped_is_zero = bytes.get(14).is_some_and(|byte| byte & 0x40 != 0);
        Ok(())
    }

    /// The pages of block limits and of provisioning.
    fn limits(&mut self, limits: &[u8], provisioning: &[u8]) {
        self.transfer_max = be32(limits, 8).unwrap_or(0);
        let can = provisioning.get(5).copied().unwrap_or(0);
        if can & 0x80 != 0 {
            let descriptors = be32(limits, 24).unwrap_or(0);
            self.unmap_max = be32(limits, 20).filter(|_| descriptors > 0).unwrap_or(0);
        }
        if can & 0x40 != 0 {
            // Zero: no limit is reported.
            let longest = be64(limits, 36).unwrap_or(0);
            self.write_same_max =
                if longest == 0 { u32::MAX } else { u32::try_from(longest).unwrap_or(u32::MAX) };
        }
        self.unmapped_is_zero |= can & 0x1c == 0x04;
    }
}

/// The answer to MODE SENSE (10) of the caching page.
fn mode(bytes: &[u8]) -> Mode {
    let device = bytes.get(3).copied().unwrap_or(0);
    let at = 8 + usize::from(be16(bytes, 6).unwrap_or(0));
    let page = bytes.get(at..).filter(|page| page.first().is_some_and(|code| code & 0x3f == 0x08));
    let volatile_cache = page.and_then(|page| page.get(2)).is_none_or(|byte| byte & 0x04 != 0);
    Mode { read_only: device & 0x80 != 0, fua: device & 0x10 != 0, volatile_cache }
}

/// The strongest designator of the unit itself in the device identification page, with its kind.
fn identity(bytes: &[u8]) -> Vec<u8> {
    let len = usize::from(be16(bytes, 2).unwrap_or(0));
    let mut rest = bytes.get(4..).unwrap_or_default();
    rest = &rest[..rest.len().min(len)];
    let mut best: (u8, &[u8]) = (0, &[]);
    while let [_, kind, _, len, after @ ..] = rest {
        let Some(designator) = after.get(..usize::from(*len)) else { break };
        rest = &after[usize::from(*len)..];
        let rank = match (kind >> 4 & 3, kind & 0xf) {
            (0, 3) => 4, // NAA
            (0, 2) => 3, // EUI-64
            (0, 8) => 2, // SCSI name
            (0, 1) => 1, // T10 vendor
            _ => 0,
        };
        if rank > best.0 && !designator.is_empty() {
            best = (rank, designator);
        }
    }
    if best.0 == 0 { Vec::new() } else { [&[best.0][..], best.1].concat() }
}

fn done<P: Payload>(
    session: &mut Session<P>,
    command: &'static str,
    cdb: &Cdb,
    room: usize,
    deadline: Instant,
) -> Result<Vec<u8>, SessionError> {
    let page = if room == 0 { Page::None } else { Page::room(room) };
    match session.run(cdb, page, deadline)? {
        (page, Ended::Good(_)) => Ok(page.bytes().to_vec()),
        (_, ended) => Err(SessionError::Refused { command, ended }),
    }
}

/// A page of vital product data; none if the unit does not have it.
fn vital<P: Payload>(
    session: &mut Session<P>,
    page: u8,
    deadline: Instant,
) -> Result<Option<Vec<u8>>, SessionError> {
    let room = Page::room(usize::from(PAGE_MAX));
    match session.run(&Cdb::inquiry(Some(page), PAGE_MAX), room, deadline)? {
        (found, Ended::Good(_)) if found.bytes().get(1) == Some(&page) => {
            let len = usize::from(be16(found.bytes(), 2).unwrap_or(0)) + 4;
            let bytes = found.bytes();
            Ok(Some(bytes[..bytes.len().min(len)].to_vec()))
        }
        (_, Ended::Good(_) | Ended::Check(_)) => Ok(None),
        (_, ended) => Err(SessionError::Refused { command: "INQUIRY", ended }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_units_answers_are_understood() {
        let mut unit = Unit::default();
        let mut capacity = [0; 32];
        capacity[7] = 0xff;
        capacity[10] = 0x10;
        capacity[14] = 0xc0;
        unit.capacity(&capacity).unwrap();
        assert_eq!((unit.blocks, unit.block_size, unit.unmapped_is_zero), (256, 4096, true));
        capacity[10] = 3;
        assert!(unit.capacity(&capacity).is_err(), "768 bytes");

        let mut limits = [0; 64];
        (limits[10], limits[22], limits[27], limits[42]) = (1, 2, 1, 3);
        unit.limits(&limits, &[0, 0xb2, 0, 4, 0, 0xe0, 0, 0]);
        assert_eq!((unit.transfer_max, unit.unmap_max, unit.write_same_max), (256, 512, 768));
        unit.limits(&[], &[0, 0xb2, 0, 4, 0, 0xe0, 0, 0]);
        assert_eq!((unit.transfer_max, unit.unmap_max, unit.write_same_max), (0, 0, u32::MAX));

        let all = Mode { read_only: true, fua: true, volatile_cache: true };
        assert_eq!(mode(&[0, 30, 0, 0x90, 0, 0, 0, 0, 0x08, 0x12, 0x04]), all);
        let none = Mode { read_only: false, fua: false, volatile_cache: false };
        assert_eq!(mode(&[0, 30, 0, 0, 0, 0, 0, 0, 0x08, 0x12, 0]), none);
        assert_eq!(mode(&[]), Mode::default());
    }

    #[test]
    fn the_strongest_designator_of_the_unit_counts() {
        let t10 = [2, 1, 0, 3, b'a', b'b', b'c'];
        let naa = [1, 3, 0, 2, 0x60, 0x01];
        let port = [1, 0x13, 0, 1, 9];
        let page = |parts: &[&[u8]]| {
            let all = parts.concat();
            [&[0, 0x83, 0, u8::try_from(all.len()).unwrap()][..], &all].concat()
        };
        assert_eq!(identity(&page(&[&t10, &naa, &port])), [4, 0x60, 0x01]);
        assert_eq!(identity(&page(&[&port, &t10])), [1, b'a', b'b', b'c']);
        assert!(identity(&page(&[&port])).is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes: Vec<u8>, other: Vec<u8>) {
            let mut unit = Unit::default();
            let _ = unit.capacity(&bytes);
            unit.limits(&bytes, &other);
            let _ = mode(&bytes);
            let _ = identity(&bytes);
        }
    }
}
