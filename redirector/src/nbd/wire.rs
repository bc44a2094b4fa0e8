//! The NBD protocol's constants and structures, as the client and the bundled target speak it.
//!
//! NBD's own structures are big-endian (the NBD protocol document, "fixed newstyle" and "structured replies"). The
//! private options of the bundled target ([`opt::HELLO`] and its fellows) carry little-endian payloads; a server that
//! answers [`rep::ERR_UNSUP`] to them is a plain NBD server.
//!
//! Order of the options of a connection: STARTTLS, STRUCTURED_REPLY, HELLO, DRAIN or END, GO.

#![allow(
    missing_debug_implementations,
    reason = "zerocopy's derives generate types without it; ours all have it"
)]

use zerocopy::byteorder::{big_endian as be, little_endian as le};
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

/// The default TCP port.
pub const PORT: u16 = 10809;
/// The first magic of a server's greeting: `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// The second magic of a greeting and the magic of each option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The magic of a reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// The magic of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// The magic of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The magic of a structured reply's chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// The longest export name in bytes.
pub const NAME_MAX: usize = 4096;
/// The longest payload of an option or of its reply that either side accepts, in bytes.
pub const OPTION_MAX: u32 = 65536;
/// The longest read or write of a server that does not tell its limit, in bytes.
pub const REQUEST_MAX_DEFAULT: u32 = 32 << 20;

/// Flags of the greeting (server) and of its answer (client).
pub mod handshake_flag {
    /// Both: fixed newstyle.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// Both: no 124 zero bytes after `OPT_EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 2;
}

/// Option codes.
pub mod opt {
    /// Chooses an export and ends the negotiation; no error can be told.
    pub const EXPORT_NAME: u32 = 1;
    /// Ends the negotiation and the connection.
    pub const ABORT: u32 = 2;
    /// Lists the exports.
    pub const LIST: u32 = 3;
    /// Starts TLS.
    pub const STARTTLS: u32 = 5;
    /// Asks about an export.
    pub const INFO: u32 = 6;
    /// Asks about an export, chooses it, and ends the negotiation.
    pub const GO: u32 = 7;
    /// Asks for structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Private: binds the connection to a client incarnation ([`super::Hello`], [`super::HelloReply`]).
    pub const HELLO: u32 = 0x4353_0001;
    /// Private: drains the client's earlier connections ([`super::Drain`], [`super::DrainReply`]).
    pub const DRAIN: u32 = 0x4353_0002;
    /// Private: ends an earlier client for good ([`super::End`], [`super::EndReply`]).
    pub const END: u32 = 0x4353_0003;
}

/// Types of replies to options. A private option's data reply has the option's own code as its type.
pub mod rep {
    /// Done; the last reply of an option.
    pub const ACK: u32 = 1;
    /// An export's name (`OPT_LIST`).
    pub const SERVER: u32 = 2;
    /// A piece of information ([`super::info`]).
    pub const INFO: u32 = 3;
    /// Set in every error.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// Forbidden by the server's policy.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option's payload is wrong.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// Not supported on the server's platform.
    pub const ERR_PLATFORM: u32 = ERROR | 4;
    /// The server wants TLS first.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server shuts down.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// The server wants to be asked for block sizes.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    /// The request is too long.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Types of information in `REP_INFO`.
pub mod info {
    /// Size and transmission flags ([`super::InfoExport`]).
    pub const EXPORT: u16 = 0;
    /// The canonical name.
    pub const NAME: u16 = 1;
    /// A description.
    pub const DESCRIPTION: u16 = 2;
    /// Block sizes ([`super::InfoBlockSize`]).
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod export_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// The export is read-only.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `CMD_FLUSH` is known.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// `CMD_FLAG_FUA` is known.
    pub const SEND_FUA: u16 = 1 << 3;
    /// A rotational device.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// `CMD_TRIM` is known.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `CMD_WRITE_ZEROES` is known.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// `CMD_FLAG_DF` is known.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers the writes completed on any.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CMD_CACHE` is known.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// `CMD_FLAG_FAST_ZERO` is known.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Command codes.
pub mod cmd {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Disconnect; has no reply.
    pub const DISC: u16 = 2;
    /// Make completed writes durable.
    pub const FLUSH: u16 = 3;
    /// Discard.
    pub const TRIM: u16 = 4;
    /// Prefetch.
    pub const CACHE: u16 = 5;
    /// Zero.
    pub const WRITE_ZEROES: u16 = 6;
}

/// Command flags.
pub mod cmd_flag {
    /// Durable when answered.
    pub const FUA: u16 = 1;
    /// `WRITE_ZEROES` shall keep the blocks allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// `READ` shall be answered in one chunk.
    pub const DF: u16 = 1 << 2;
    /// `WRITE_ZEROES` shall fail rather than be slow.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Flags and types of a structured reply's chunks.
pub mod chunk {
    /// Flag: the last chunk of the reply.
    pub const FLAG_DONE: u16 = 1;
    /// No payload.
    pub const NONE: u16 = 0;
    /// Payload: the offset (u64) and the data.
    pub const OFFSET_DATA: u16 = 1;
    /// Payload: the offset (u64) and the length (u32) of a hole.
    pub const OFFSET_HOLE: u16 = 2;
    /// Set in the type of every error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// Payload: the error (u32), a length (u16) and that many bytes of text.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// As `ERROR`, followed by the offset (u64) of the error.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Error numbers of replies.
pub mod error {
    /// Not permitted; the export is read-only.
    pub const EPERM: u32 = 1;
    /// Input or output error.
    pub const EIO: u32 = 5;
    /// Out of memory.
    pub const ENOMEM: u32 = 12;
    /// Invalid argument.
    pub const EINVAL: u32 = 22;
    /// No space left.
    pub const ENOSPC: u32 = 28;
    /// Value too large.
    pub const EOVERFLOW: u32 = 75;
    /// Not supported.
    pub const ENOTSUP: u32 = 95;
    /// The server shuts down.
    pub const ESHUTDOWN: u32 = 108;
}

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident, $size:literal { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, Unaligned)]
            #[repr(C)]
            pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }

            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

wire! {
    /// What a server says first.
    Greeting, 18 {
        /// [`INIT_MAGIC`].
        init_magic: be::U64,
        /// [`OPTION_MAGIC`].
        option_magic: be::U64,
        /// [`handshake_flag`].
        flags: be::U16,
    }

    /// The head of an option; `length` payload bytes follow.
    OptionHeader, 16 {
        /// [`OPTION_MAGIC`].
        magic: be::U64,
        /// [`opt`].
        option: be::U32,
        /// Bytes of payload.
        length: be::U32,
    }

    /// The head of a reply to an option; `length` payload bytes follow.
    OptionReplyHeader, 20 {
        /// [`OPTION_REPLY_MAGIC`].
        magic: be::U64,
        /// The option that is answered.
        option: be::U32,
        /// [`rep`].
        kind: be::U32,
        /// Bytes of payload.
        length: be::U32,
    }

    /// `INFO_EXPORT`.
    InfoExport, 12 {
        /// [`info::EXPORT`].
        info: be::U16,
        /// The export's size in bytes.
        size: be::U64,
        /// [`export_flag`].
        flags: be::U16,
    }

    /// `INFO_BLOCK_SIZE`, in bytes.
    InfoBlockSize, 14 {
        /// [`info::BLOCK_SIZE`].
        info: be::U16,
        /// Requests are multiples of this.
        minimum: be::U32,
        /// Requests had better be multiples of this.
        preferred: be::U32,
        /// The longest payload.
        maximum: be::U32,
    }

    /// A request; a write's data follows.
    RequestHeader, 28 {
        /// [`REQUEST_MAGIC`].
        magic: be::U32,
        /// [`cmd_flag`].
        flags: be::U16,
        /// [`cmd`].
        command: be::U16,
        /// Comes back in the reply.
        cookie: be::U64,
        /// Byte offset.
        offset: be::U64,
        /// Bytes.
        length: be::U32,
    }

    /// A simple reply; a successful read's data follows.
    SimpleReply, 16 {
        /// [`SIMPLE_REPLY_MAGIC`].
        magic: be::U32,
        /// Zero or one of [`error`].
        error: be::U32,
        /// The request's cookie.
        cookie: be::U64,
    }

    /// A chunk of a structured reply; `length` payload bytes follow.
    ChunkHeader, 20 {
        /// [`CHUNK_MAGIC`].
        magic: be::U32,
        /// [`chunk::FLAG_DONE`].
        flags: be::U16,
        /// A type of [`chunk`].
        kind: be::U16,
        /// The request's cookie.
        cookie: be::U64,
        /// Bytes of payload.
        length: be::U32,
    }

    /// `OPT_HELLO`: binds this connection to a client incarnation. Refused with [`rep::ERR_POLICY`] when that
    /// incarnation has been ended, or shows another cookie than its first.
    Hello, 32 {
        /// [`PRIVATE_VERSION`].
        version: le::U16,
        /// Zero.
        reserved: le::U16,
        /// Zero.
        flags: le::U32,
        /// The client incarnation.
        client: le::U64,
        /// A secret of that incarnation.
        cookie: [u8; 16],
    }

    /// The answer to `OPT_HELLO`, type [`opt::HELLO`], before the ACK.
    HelloReply, 24 {
        /// The version that the target speaks, at most the one asked for.
        version: le::U16,
        /// Zero.
        reserved: le::U16,
        /// Zero.
        flags: le::U32,
        /// A random id of the target's process.
        boot_id: [u8; 16],
    }

    /// Behind the [`HelloReply`], when the list of ended clients outlives the target's process.
    HelloList, 16 {
        /// The list's id: another one means that the target has lost the list that it had.
        list_id: [u8; 16],
    }

    /// `OPT_DRAIN`: closes all other connections of that client and waits until every request that was accepted from
    /// them is executed.
    Drain, 24 {
        /// The client incarnation.
        client: le::U64,
        /// Its cookie.
        cookie: [u8; 16],
    }

    /// The answer to `OPT_DRAIN`, type [`opt::DRAIN`], before the ACK.
    DrainReply, 24 {
        /// The target's process.
        boot_id: [u8; 16],
        /// [`drained`].
        drained: u8,
        /// Zero.
        padding: [u8; 7],
    }

    /// `OPT_END`, after `OPT_HELLO`: refuses an earlier client for good, unless it is connected.
    End, 8 {
        /// The earlier client incarnation.
        client: le::U64,
    }

    /// The answer to `OPT_END`, type [`opt::END`], before the ACK; a description of the peer in UTF-8 follows.
    EndReply, 24 {
        /// [`end_state`].
        state: u8,
        /// Zero.
        padding: [u8; 7],
        /// The target's process.
        boot_id: [u8; 16],
    }
}

/// The version of the private options.
pub const PRIVATE_VERSION: u16 = 1;

/// How far a drain reaches.
pub mod drained {
    /// Not drained; the target gave up waiting.
    pub const NO: u8 = 0;
    /// All that this process of the target accepted is executed. Nothing is said about an earlier process.
    pub const INSTANCE: u8 = 1;
    /// As `INSTANCE`, and no earlier process of the target has anything left that could still be executed (it holds a
    /// lock of the store that is free only when the last request of an earlier process has ended).
    pub const FOR_GOOD: u8 = 2;
}

/// What became of `OPT_END`.
pub mod end_state {
    /// The client is refused for good, and drained.
    pub const ENDED: u8 = 0;
    /// The client has live connections; nothing was changed.
    pub const ALIVE: u8 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_a_request() {
        let header = RequestHeader {
            magic: REQUEST_MAGIC.into(),
            flags: cmd_flag::FUA.into(),
            command: cmd::WRITE.into(),
            cookie: 0x0102_0304_0506_0708.into(),
            offset: 0x1000.into(),
            length: 0x200.into(),
        };
        let golden = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0,
        ];
        assert_eq!(header.as_bytes(), golden);
        assert_eq!(RequestHeader::read_from_bytes(&golden), Ok(header));
    }

    #[test]
    fn golden_bytes_of_the_private_options() {
        let hello = Hello {
            version: PRIVATE_VERSION.into(),
            reserved: 0.into(),
            flags: 0.into(),
            client: 0x0a0b.into(),
            cookie: [7; 16],
        };
        let mut golden = vec![1, 0, 0, 0, 0, 0, 0, 0, 0x0b, 0x0a, 0, 0, 0, 0, 0, 0];
        golden.extend([7; 16]);
        assert_eq!(hello.as_bytes(), golden);

        let reply = DrainReply { boot_id: [3; 16], drained: drained::INSTANCE, padding: [0; 7] };
        let mut golden = vec![3; 16];
        golden.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(reply.as_bytes(), golden);

        let reply = EndReply { state: end_state::ALIVE, padding: [0; 7], boot_id: [9; 16] };
        let mut golden = vec![1, 0, 0, 0, 0, 0, 0, 0];
        golden.extend([9; 16]);
        assert_eq!(reply.as_bytes(), golden);
        assert_eq!(opt::HELLO.to_be_bytes(), *b"CS\0\x01");
    }

    #[test]
    fn magics_spell_their_names() {
        assert_eq!(INIT_MAGIC.to_be_bytes(), *b"NBDMAGIC");
        assert_eq!(OPTION_MAGIC.to_be_bytes(), *b"IHAVEOPT");
    }
}
