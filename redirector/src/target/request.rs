//! Requests: decoded from a connection's bytes, and checked against what the export is.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use zerocopy::FromBytes;

use crate::nbd::wire::{self, RequestHeader, cmd, cmd_flag};

/// The longest read or write, in bytes.
pub(super) const PAYLOAD_MAX: u32 = wire::REQUEST_MAX_DEFAULT;
pub(super) const HEADER: usize = size_of::<RequestHeader>();

/// What a request does to the export.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Makes completed writes durable.
    Flush,
    /// Gives storage up.
    Trim,
    /// Zeroes.
    Zero,
}

impl Kind {
    /// How many kinds there are.
    pub(super) const COUNT: usize = 5;

    /// Whether it changes what the export holds.
    pub(super) fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::Zero)
    }
}

/// A request that may be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    /// [`cmd_flag`].
    pub(super) flags: u16,
    pub(super) cookie: u64,
    /// Lies within the export; empty for a flush.
    pub(super) range: Range<u64>,
}

impl Request {
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The length of its data in bytes, either way.
    pub(super) fn data_len(&self) -> usize {
        match self.kind {
            Kind::Read | Kind::Write => {
                usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX)
            }
            _ => 0,
        }
    }
}

/// What a connection's next header means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// A request to execute; a write's data follows.
    Request(Request),
    /// The client leaves.
    Disconnect,
    /// A request that is refused with this errno (of Linux), after `payload` bytes of it have been skipped.
    Refused { cookie: u64, errno: i32, payload: u64, is_read: bool },
}

/// What of an export decides whether a request is valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) size: u64,
    pub(super) read_only: bool,
    /// Whether this connection has structured replies.
    pub(super) structured: bool,
}

/// Decodes a header. `None` means that the bytes are not a request: nothing that follows can be understood.
pub(super) fn decode(bytes: &[u8; HEADER], limits: &Limits) -> Option<Decoded> {
    let header = RequestHeader::read_from_bytes(bytes).ok()?;
    if header.magic != wire::REQUEST_MAGIC {
        return None;
    }
    let (flags, cookie, length) = (header.flags.get(), header.cookie.get(), header.length.get());
    let command = header.command.get();
    let (kind, allowed) = match command {
        cmd::READ => (Some(Kind::Read), cmd_flag::FUA | if limits.structured { cmd_flag::DF } else { 0 }),
        cmd::WRITE => (Some(Kind::Write), cmd_flag::FUA),
        cmd::FLUSH => (Some(Kind::Flush), cmd_flag::FUA),
        cmd::TRIM => (Some(Kind::Trim), cmd_flag::FUA),
        cmd::WRITE_ZEROES => (Some(Kind::Zero), cmd_flag::FUA | cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO),
        cmd::DISC => return Some(Decoded::Disconnect),
        _ => (None, 0),
    };
    let refused = |errno| {
        let payload = if command == cmd::WRITE { u64::from(length) } else { 0 };
        Some(Decoded::Refused { cookie, errno, payload, is_read: command == cmd::READ })
    };
    let Some(kind) = kind.filter(|_| flags & !allowed == 0) else { return refused(libc::EINVAL) };
    if kind == Kind::Flush {
        let valid = header.offset.get() == 0 && length == 0;
        let request = Request { kind, flags, cookie, range: 0..0 };
        return if valid { Some(Decoded::Request(request)) } else { refused(libc::EINVAL) };
    }
    if kind.changes() && limits.read_only {
        return refused(libc::EPERM);
    }
    if length == 0 {
        return refused(libc::EINVAL);
    }
    if matches!(kind, Kind::Read | Kind::Write) && length > PAYLOAD_MAX {
        return refused(libc::EOVERFLOW);
    }
    let end = header.offset.get().checked_add(u64::from(length)).filter(|end| *end <= limits.size);
    let Some(end) = end else {
        let no_room = matches!(kind, Kind::Write | Kind::Zero);
        return refused(if no_room { libc::ENOSPC } else { libc::EINVAL });
    };
    Some(Decoded::Request(Request { kind, flags, cookie, range: header.offset.get()..end }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;

    const LIMITS: Limits = Limits { size: 1 << 30, read_only: false, structured: true };

    fn header(command: u16, flags: u16, offset: u64, length: u32) -> [u8; HEADER] {
        let header = RequestHeader {
            magic: wire::REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: 7.into(),
            offset: offset.into(),
            length: length.into(),
        };
        header.as_bytes().try_into().unwrap()
    }

    fn errno(command: u16, flags: u16, offset: u64, length: u32, limits: &Limits) -> i32 {
        match decode(&header(command, flags, offset, length), limits) {
            Some(Decoded::Refused { errno, .. }) => errno,
            Some(Decoded::Request(_)) => 0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn errors_are_those_of_the_protocol() {
        let end = LIMITS.size;
        assert_eq!(errno(cmd::READ, 0, end - 1, 1, &LIMITS), 0);
        assert_eq!(errno(cmd::READ, 0, end - 1, 2, &LIMITS), libc::EINVAL);
        assert_eq!(errno(cmd::READ, 0, u64::MAX, 2, &LIMITS), libc::EINVAL);
        assert_eq!(errno(cmd::WRITE, 0, end, 1, &LIMITS), libc::ENOSPC);
        assert_eq!(errno(cmd::WRITE_ZEROES, 0, end - 1, u32::MAX, &LIMITS), libc::ENOSPC);
        assert_eq!(errno(cmd::TRIM, 0, end, 1, &LIMITS), libc::EINVAL);
        assert_eq!(errno(cmd::WRITE, 0, 0, PAYLOAD_MAX, &LIMITS), 0);
        assert_eq!(errno(cmd::WRITE, 0, 0, PAYLOAD_MAX + 1, &LIMITS), libc::EOVERFLOW);
        assert_eq!(errno(cmd::TRIM, 0, 0, PAYLOAD_MAX * 4, &LIMITS), 0);
        assert_eq!(errno(cmd::READ, 0, 0, 0, &LIMITS), libc::EINVAL);
        assert_eq!(errno(cmd::WRITE, cmd_flag::DF, 0, 1, &LIMITS), libc::EINVAL);
        assert_eq!(errno(cmd::READ, cmd_flag::DF, 0, 1, &LIMITS), 0);
        assert_eq!(
            errno(cmd::READ, cmd_flag::DF, 0, 1, &Limits { structured: false, ..LIMITS }),
            libc::EINVAL
        );
        assert_eq!(errno(99, 0, 0, 1, &LIMITS), libc::EINVAL);
        assert_eq!(errno(cmd::FLUSH, 0, 0, 1, &LIMITS), libc::EINVAL);
        for command in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
            assert_eq!(errno(command, 0, 0, 1, &Limits { read_only: true, ..LIMITS }), libc::EPERM);
        }
    }

    #[test]
    fn a_refused_write_still_has_its_data_behind_it() {
        let refused = decode(&header(cmd::WRITE, 0, LIMITS.size, 9), &LIMITS);
        let expected = Decoded::Refused { cookie: 7, errno: libc::ENOSPC, payload: 9, is_read: false };
        assert_eq!(refused, Some(expected));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn what_is_accepted_lies_within_the_export(
            bytes in any::<[u8; HEADER]>(), keep_magic in any::<bool>(), command in 0..9u16, small in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if keep_magic {
                bytes[..4].copy_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
                bytes[4..6].fill(0);
                bytes[6..8].copy_from_slice(&command.to_be_bytes());
            }
            if small {
                bytes[16..20].fill(0);
            }
            if let Some(Decoded::Request(request)) = decode(&bytes, &LIMITS) {
                prop_assert!(request.range.start <= request.range.end && request.range.end <= LIMITS.size);
                prop_assert!(request.data_len() <= PAYLOAD_MAX as usize);
            }
        }
    }
}
