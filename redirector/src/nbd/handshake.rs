//! The negotiation: from a fresh connection to one that takes requests.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use lockd::ids::ClientId;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use zerocopy::{FromBytes, IntoBytes};

use crate::lun::Geometry;
use crate::nbd::channel::{Channel, Cipher};
use crate::nbd::socket::Wait;
use crate::nbd::wire::{self, drained, export_flag, handshake_flag, info, opt, rep};
pub use crate::paths::way::Credentials;
use crate::paths::way::{Abilities, Drained, Instance, ListId, Restarts};

/// How long a drain may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Replies to one option at most.
const REPLIES_MAX: usize = 256;

/// Why a server could not be agreed with.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection broke, or the server did not answer in time.
    #[error("the connection broke during the negotiation: {0}")]
    Io(#[from] io::Error),
    /// The server closed the connection at our private option: it may be a server that tolerates no unknown option.
    #[error("the server closed the connection at an option that it does not know")]
    Intolerant,
    /// Not a server that we can talk to.
    #[error("{0}")]
    TooOld(&'static str),
    /// Against the protocol.
    #[error("the server does not keep to the NBD protocol: {0}")]
    Protocol(String),
    /// No export of that name.
    #[error("the server has no export of that name{0}")]
    NoExport(String),
    /// The server demands TLS.
    #[error("the server demands TLS: write nbds:// or nbds+unix://")]
    TlsDemanded,
    /// The server has no TLS.
    #[error(
        "the server does not offer TLS: write nbd:// if an open connection is acceptable, or configure TLS there"
    )]
    TlsMissing,
    /// TLS failed.
    #[error("TLS failed: {0}; check the certificates on both sides")]
    Tls(io::Error),
    /// The bundled target does not admit this client.
    #[error("the target refuses this client: {0}")]
    NotAdmitted(String),
    /// Any other refusal.
    #[error("the server refused (error {0:#x}): {1}")]
    Refused(u32, String),
}

/// TLS as the client wants it.
pub type Tls = (Arc<ClientConfig>, ServerName<'static>);

/// What was agreed.
#[derive(Debug)]
pub struct Agreement {
    /// The stream.
    pub channel: Channel,
    /// Bytes of the stream that were received too early.
    pub cipher: Cipher,
    /// Whether replies may be structured.
    pub structured: bool,
    /// What the export can do.
    pub abilities: Abilities,
    /// What was proved of earlier connections.
    pub drained: Drained,
}

/// A connection in negotiation.
#[derive(Debug)]
pub struct Negotiation {
    channel: Channel,
    cipher: Cipher,
    instance: Option<Instance>,
    list: Option<ListId>,
}

enum Reply {
    Done(Vec<(u32, Vec<u8>)>),
    Error(u32, String),
}

fn text(payload: &[u8]) -> String {
    let shown = payload.get(..payload.len().min(400)).unwrap_or_default();
    String::from_utf8_lossy(shown).chars().filter(|c| !c.is_control()).collect()
}

impl Negotiation {
    /// Greets, and starts TLS if it is demanded.
    pub fn begin(channel: Channel, tls: Option<&Tls>) -> Result<Self, HandshakeError> {
        let mut this = Self { channel, cipher: Cipher::default(), instance: None, list: None };
        let mut greeting = [0; size_of::<wire::Greeting>()];
        this.receive(&mut greeting)?;
        let greeting = wire::Greeting::read_from_bytes(&greeting)
            .map_err(|_| HandshakeError::Protocol("no greeting".to_owned()))?;
        if greeting.init_magic.get() != wire::INIT_MAGIC {
            return Err(HandshakeError::Protocol(
                "it does not greet like an NBD server; check the port".to_owned(),
            ));
        }
        if greeting.option_magic.get() != wire::OPTION_MAGIC {
            return Err(HandshakeError::TooOld(
                "the server speaks oldstyle NBD; use a server of the last ten years",
            ));
        }
        let flags = greeting.flags.get();
        if flags & handshake_flag::FIXED_NEWSTYLE == 0 {
            return Err(HandshakeError::TooOld(
                "the server does not speak fixed newstyle NBD; use a newer one",
            ));
        }
        let answer = u32::from(flags & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES));
        this.channel.sending().send(&mut [IoSlice::new(&answer.to_be_bytes())])?;
        if let Some(tls) = tls {
            this = this.start_tls(tls)?;
        }
        Ok(this)
    }

    fn receive(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.channel.receive(bytes, &mut [], &mut self.cipher, Wait::Briefly)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                received => bytes = &mut bytes[received..],
            }
        }
        Ok(())
    }

    fn send_option(&mut self, option: u32, payload: &[u8]) -> Result<(), HandshakeError> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = wire::OptionHeader {
            magic: wire::OPTION_MAGIC.into(),
            option: option.into(),
            length: length.into(),
        };
        Ok(self.channel.sending().send(&mut [IoSlice::new(header.as_bytes()), IoSlice::new(payload)])?)
    }

    fn ask(&mut self, option: u32, payload: &[u8]) -> Result<Reply, HandshakeError> {
        self.send_option(option, payload)?;
        let mut data = Vec::new();
        for _ in 0..REPLIES_MAX {
            let mut header = [0; size_of::<wire::OptionReplyHeader>()];
            self.receive(&mut header)?;
            let header = wire::OptionReplyHeader::read_from_bytes(&header)
                .map_err(|_| HandshakeError::Protocol("no reply to an option".to_owned()))?;
            if header.magic.get() != wire::OPTION_REPLY_MAGIC || header.option.get() != option {
                let what =
                    format!("a reply to option {:#x} where {option:#x} was asked", header.option.get());
                return Err(HandshakeError::Protocol(what));
            }
            if header.length.get() > wire::OPTION_MAX {
                return Err(HandshakeError::Protocol(format!("a reply of {} bytes", header.length.get())));
            }
            let mut payload = vec![0; usize::try_from(header.length.get()).unwrap_or_default()];
            self.receive(&mut payload)?;
            match header.kind.get() {
                rep::ACK => return Ok(Reply::Done(data)),
                rep::ERR_TLS_REQD => return Err(HandshakeError::TlsDemanded),
                kind if kind & rep::ERROR != 0 => return Ok(Reply::Error(kind, text(&payload))),
                kind => data.push((kind, payload)),
            }
        }
        Err(HandshakeError::Protocol("it does not stop replying to an option".to_owned()))
    }

    fn start_tls(mut self, tls: &Tls) -> Result<Self, HandshakeError> {
        match self.ask(opt::STARTTLS, &[])? {
            Reply::Done(_) => {}
            Reply::Error(..) => return Err(HandshakeError::TlsMissing),
        }
        let (config, name) = tls;
        let channel = self.channel.secure(Arc::clone(config), name.clone()).map_err(HandshakeError::Tls)?;
        Ok(Self { channel, ..self })
    }

    /// Binds the connection to this client, if the server is the bundled target.
    pub fn hello(&mut self, credentials: Credentials) -> Result<(), HandshakeError> {
        let hello = wire::Hello {
            version: wire::PRIVATE_VERSION.into(),
            reserved: 0.into(),
            flags: 0.into(),
            client: credentials.client.0.into(),
            cookie: credentials.cookie,
        };
        let reply = match self.ask(opt::HELLO, hello.as_bytes()) {
            Err(HandshakeError::Io(error)) if closed(&error) => return Err(HandshakeError::Intolerant),
            reply => reply?,
        };
        match reply {
            Reply::Done(data) => {
                let (reply, rest): (wire::HelloReply, _) = data_of(&data, opt::HELLO)?;
                self.instance = Some(reply.boot_id);
                self.list = wire::HelloList::read_from_prefix(rest).ok().map(|(list, _)| list.list_id);
                Ok(())
            }
            Reply::Error(rep::ERR_POLICY, why) => Err(HandshakeError::NotAdmitted(why)),
            // Everything else is how plain servers answer to an unknown option.
            Reply::Error(..) => Ok(()),
        }
    }

    /// Whether the server is the bundled target, and which process of it.
    #[must_use]
    pub fn instance(&self) -> Option<Instance> {
        self.instance
    }

    /// Closes this client's earlier connections and waits until their requests are executed.
    pub fn drain(&mut self, credentials: Credentials) -> Result<Drained, HandshakeError> {
        self.channel.socket().set_timeout(Some(DRAIN_TIMEOUT))?;
        let drain = wire::Drain { client: credentials.client.0.into(), cookie: credentials.cookie };
        match self.ask(opt::DRAIN, drain.as_bytes())? {
            Reply::Done(data) => {
                let reply: wire::DrainReply = data_of(&data, opt::DRAIN)?.0;
                Ok(match reply.drained {
                    _ if Some(reply.boot_id) != self.instance => Drained::Unproven,
                    drained::INSTANCE => Drained::ThisInstance,
                    drained::FOR_GOOD => Drained::EveryInstance,
                    _ => Drained::Unproven,
                })
            }
            Reply::Error(..) => Ok(Drained::Unproven),
        }
    }

    /// Ends an earlier client: the state ([`wire::end_state`]) and the target's description of it.
    pub fn end(&mut self, earlier: ClientId) -> Result<(u8, String), HandshakeError> {
        self.channel.socket().set_timeout(Some(DRAIN_TIMEOUT))?;
        match self.ask(opt::END, wire::End { client: earlier.0.into() }.as_bytes())? {
            Reply::Done(data) => {
                let (reply, rest): (wire::EndReply, _) = data_of(&data, opt::END)?;
                Ok((reply.state, text(rest)))
            }
            Reply::Error(kind, why) => Err(HandshakeError::Refused(kind, why)),
        }
    }

    /// Chooses the export; with `structured`, replies may be structured if the server knows how.
    pub fn go(
        mut self,
        export: &str,
        structured: bool,
        drained: Drained,
    ) -> Result<Agreement, HandshakeError> {
        let structured = structured && matches!(self.ask(opt::STRUCTURED_REPLY, &[])?, Reply::Done(_));
        let length = u32::try_from(export.len()).unwrap_or(u32::MAX);
        let mut payload = length.to_be_bytes().to_vec();
        payload.extend(export.as_bytes());
        payload.extend(1u16.to_be_bytes());
        payload.extend(info::BLOCK_SIZE.to_be_bytes());
        let facts = match self.ask(opt::GO, &payload)? {
            Reply::Done(data) => Facts::read(&data)?,
            Reply::Error(rep::ERR_UNKNOWN, _) => return Err(HandshakeError::NoExport(self.exports())),
            Reply::Error(rep::ERR_UNSUP, _) => self.export_name(export)?,
            Reply::Error(kind, why) => return Err(HandshakeError::Refused(kind, why)),
        };
        let abilities = facts.abilities(self.instance, self.list)?;
        Ok(Agreement { channel: self.channel, cipher: self.cipher, structured, abilities, drained })
    }

    /// The way of servers without `OPT_GO`.
    fn export_name(&mut self, export: &str) -> Result<Facts, HandshakeError> {
        self.send_option(opt::EXPORT_NAME, export.as_bytes())?;
        let mut answer = [0; 10];
        match self.receive(&mut answer) {
            Err(error) if closed(&error) => return Err(HandshakeError::NoExport(String::new())),
            result => result?,
        }
        let (size, flags) = answer.split_at(8);
        let size = size.try_into().map_or(0, u64::from_be_bytes);
        let flags = flags.try_into().map_or(0, u16::from_be_bytes);
        Ok(Facts { size, flags, block_size: None })
    }

    /// The names of the exports that there are, for an error message.
    fn exports(&mut self) -> String {
        let Ok(Reply::Done(data)) = self.ask(opt::LIST, &[]) else { return String::new() };
        let names: Vec<_> =
            data.iter().take(8).filter_map(|(_, payload)| payload.get(4..)).map(text).collect();
        if names.is_empty() { String::new() } else { format!("; it has {names:?}") }
    }
}

fn closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

fn data_of<T: FromBytes>(data: &[(u32, Vec<u8>)], kind: u32) -> Result<(T, &[u8]), HandshakeError> {
    let payload = data.iter().find(|(of, _)| *of == kind).map(|(_, payload)| payload.as_slice());
    payload
        .and_then(|payload| T::read_from_prefix(payload).ok())
        .ok_or_else(|| HandshakeError::Protocol(format!("no data in its reply to option {kind:#x}")))
}

/// What the server tells about the export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Facts {
    size: u64,
    flags: u16,
    block_size: Option<(u32, u32)>,
}

impl Facts {
    fn read(data: &[(u32, Vec<u8>)]) -> Result<Self, HandshakeError> {
        let (mut export, mut block_size) = (None, None);
        for payload in data.iter().filter(|(kind, _)| *kind == rep::INFO).map(|(_, payload)| payload) {
            match payload.first_chunk().map(|kind| u16::from_be_bytes(*kind)) {
                Some(info::EXPORT) => export = wire::InfoExport::read_from_bytes(payload).ok(),
                Some(info::BLOCK_SIZE) => {
                    block_size = wire::InfoBlockSize::read_from_bytes(payload)
                        .ok()
                        .map(|sizes| (sizes.minimum.get(), sizes.maximum.get()));
                }
                _ => {}
            }
        }
        let export = export
            .ok_or_else(|| HandshakeError::Protocol("it does not tell the export's size".to_owned()))?;
        Ok(Self { size: export.size.get(), flags: export.flags.get(), block_size })
    }

    fn abilities(
        self,
        instance: Option<Instance>,
        list: Option<ListId>,
    ) -> Result<Abilities, HandshakeError> {
        let (minimum, maximum) = self.block_size.unwrap_or((512, wire::REQUEST_MAX_DEFAULT));
        if !minimum.is_power_of_two() || minimum > 4096 {
            let what = format!("its smallest block is {minimum} bytes; a power of two up to 4096 is needed");
            return Err(HandshakeError::Protocol(what));
        }
        let request_max = maximum.min(wire::REQUEST_MAX_DEFAULT) / 4096 * 4096;
        if request_max == 0 {
            return Err(HandshakeError::Protocol(format!(
                "its longest request is {maximum} bytes; 4096 are needed"
            )));
        }
        let can = |flag| self.flags & flag != 0;
        Ok(Abilities {
            geometry: Geometry {
                size: self.size - self.size % u64::from(minimum),
                block_size: minimum,
                request_max,
                trim: can(export_flag::SEND_TRIM),
                write_zeroes: can(export_flag::SEND_WRITE_ZEROES),
                volatile_cache: can(export_flag::SEND_FLUSH),
            },
            read_only: can(export_flag::READ_ONLY),
            fua: can(export_flag::SEND_FUA),
            flush: can(export_flag::SEND_FLUSH),
            multi_conn: can(export_flag::CAN_MULTI_CONN),
            instance,
            list,
            restarts: if instance.is_some() { Restarts::ByBootId } else { Restarts::Unseen },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_information_never_panics(data: Vec<(u32, Vec<u8>)>, more: Vec<u8>, kind in 0u16..5) {
            let mut data = data;
            data.push((rep::INFO, [&kind.to_be_bytes()[..], &more].concat()));
            if let Ok(facts) = Facts::read(&data) {
                let _ = facts.abilities(None, None);
            }
            let _ = data_of::<wire::HelloReply>(&data, rep::INFO);
        }

        #[test]
        fn limits_are_checked(size: u64, flags: u16, minimum: u32, maximum: u32) {
            let facts = Facts { size, flags, block_size: Some((minimum, maximum)) };
            if let Ok(abilities) = facts.abilities(None, None) {
                let geometry = abilities.geometry;
                prop_assert!(geometry.block_size.is_power_of_two() && geometry.block_size <= 4096);
                prop_assert!(geometry.request_max >= 4096 && geometry.size.is_multiple_of(u64::from(minimum)));
            }
        }
    }
}
