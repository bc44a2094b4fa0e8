//! The first part of a connection: fixed newstyle negotiation, and the private options by which a client says who it is.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lockd::ids::ClientId;
use zerocopy::{FromBytes, IntoBytes};

use super::admission::{Ending, Refusal, Seat};
use super::channel::Channel;
use super::counters::Counters;
use super::inbox::Inbox;
use super::request::{Limits, PAYLOAD_MAX};
use crate::nbd::wire::{
    self, Drain, DrainReply, End, EndReply, Greeting, Hello, HelloList, HelloReply, InfoBlockSize,
    InfoExport, OptionHeader, OptionReplyHeader, drained, end_state, export_flag, handshake_flag, info, opt,
    rep,
};

/// In the flags of [`HelloReply`]: clients that are ended are let in again after a restart of the target.
pub const HELLO_LIST_IN_MEMORY: u32 = 1;

/// How long the target waits for each word of a client that negotiates.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most options of a connection.
const OPTIONS_MAX: usize = 256;
/// The block size that suits the backing file best, in bytes.
const PREFERRED_BLOCK: u32 = 4096;

/// What the target offers.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) read_only: bool,
    pub(super) multi_conn: bool,
    pub(super) private_options: bool,
    pub(super) require_hello: bool,
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    pub(super) drain_patience: Duration,
}

impl Offer {
    fn flags(&self) -> u16 {
        use export_flag as flag;
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_DF;
        flags |= if self.read_only {
            flag::READ_ONLY
        } else {
            flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
        };
        if self.multi_conn { flags | flag::CAN_MULTI_CONN } else { flags }
    }

    /// The empty name is the default export: this one.
    fn is_named(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}

/// A connection that is ready for requests.
#[derive(Debug)]
pub(super) struct Negotiated {
    pub(super) channel: Channel,
    pub(super) inbox: Inbox,
    pub(super) limits: Limits,
    pub(super) client: Option<ClientId>,
    pub(super) counters: Arc<Counters>,
}

/// Why a negotiation came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum NegotiationError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it closed in the middle of a word")]
    Truncated,
    #[error("it does not speak NBD: {0}")]
    Protocol(&'static str),
    #[error("it asked for the export {0:?}")]
    UnknownExport(String),
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    #[error("it wants to go without TLS")]
    TlsRequired,
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What follows an option.
enum Next {
    Option,
    Requests,
    Leave,
}

struct Negotiation<'a> {
    offer: &'a Offer,
    seat: &'a Seat,
    channel: Channel,
    inbox: Inbox,
    no_zeroes: bool,
    structured: bool,
    client: Option<ClientId>,
    counters: Arc<Counters>,
    out: Vec<u8>,
}

/// Negotiates. `None` when the client left in an orderly way.
pub(super) fn negotiate(
    offer: &Offer,
    seat: &Seat,
    channel: Channel,
) -> Result<Option<Negotiated>, NegotiationError> {
    channel.socket().set_read_timeout(Some(PATIENCE))?;
    let mut negotiation = Negotiation {
        offer,
        seat,
        channel,
        inbox: Inbox::new(),
        no_zeroes: false,
        structured: false,
        client: None,
        counters: seat.admission().anonymous(),
        out: Vec::new(),
    };
    if !negotiation.greet()? {
        return Ok(None);
    }
    for _ in 0..OPTIONS_MAX {
        match negotiation.option()? {
            Next::Option => {}
            Next::Leave => return Ok(None),
            Next::Requests => {
                negotiation.channel.socket().set_read_timeout(None)?;
                let Negotiation { channel, inbox, structured, client, counters, .. } = negotiation;
                let limits = Limits { size: offer.size, read_only: offer.read_only, structured };
                return Ok(Some(Negotiated { channel, inbox, limits, client, counters }));
            }
        }
    }
    Err(NegotiationError::Protocol("too many options"))
}

/// Splits the name of `OPT_GO` and `OPT_INFO` and the kinds of information asked for.
fn parse_go(payload: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let (length, rest) = payload.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (name, rest) = rest.split_at_checked(length)?;
    let (count, rest) = rest.split_first_chunk::<2>()?;
    let (wanted, odd) = rest.as_chunks::<2>();
    let fits = usize::from(u16::from_be_bytes(*count)) == wanted.len() && odd.is_empty();
    (fits && name.len() <= wire::NAME_MAX)
        .then(|| (name, wanted.iter().map(|kind| u16::from_be_bytes(*kind)).collect()))
}

impl Negotiation<'_> {
    fn greet(&mut self) -> Result<bool, NegotiationError> {
        let greeting = Greeting {
            init_magic: wire::INIT_MAGIC.into(),
            option_magic: wire::OPTION_MAGIC.into(),
            flags: (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).into(),
        };
        self.channel.write(greeting.as_bytes(), &[])?;
        // A port scan, or somebody who waits for the port to be there.
        if !self.inbox.need(&self.channel, 4)? {
            return if self.inbox.len() == 0 { Ok(false) } else { Err(NegotiationError::Truncated) };
        }
        let flags = self.inbox.bytes().first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        self.inbox.used(4);
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        if flags & !known != 0 {
            return Err(NegotiationError::Protocol("unknown flags"));
        }
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        Ok(true)
    }

    /// Reads and answers one option.
    fn option(&mut self) -> Result<Next, NegotiationError> {
        const HEADER: usize = size_of::<OptionHeader>();
        if !self.inbox.need(&self.channel, HEADER)? {
            return if self.inbox.len() == 0 { Ok(Next::Leave) } else { Err(NegotiationError::Truncated) };
        }
        let header = OptionHeader::read_from_prefix(self.inbox.bytes());
        let (header, _) = header.map_err(|_| NegotiationError::Truncated)?;
        if header.magic != wire::OPTION_MAGIC {
            return Err(NegotiationError::Protocol("wrong magic of an option"));
        }
        self.inbox.used(HEADER);
        if header.length.get() > wire::OPTION_MAX {
            return Err(NegotiationError::Protocol("an option too long"));
        }
        let mut payload = vec![0; usize::try_from(header.length.get()).unwrap_or(0)];
        if !self.inbox.fill(&self.channel, &mut payload)? {
            return Err(NegotiationError::Truncated);
        }
        self.out.clear();
        let next = self.answer(header.option.get(), &payload)?;
        if !self.out.is_empty() {
            self.channel.write(&self.out, &[])?;
        }
        Ok(next)
    }

    fn reply(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let header = OptionReplyHeader {
            magic: wire::OPTION_REPLY_MAGIC.into(),
            option: option.into(),
            kind: kind.into(),
            length: u32::try_from(length).unwrap_or(u32::MAX).into(),
        };
        self.out.extend_from_slice(header.as_bytes());
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    fn refuse(&mut self, option: u32, kind: u32, text: &str) -> Next {
        tracing::debug!(peer = self.seat.link().peer(), option, text, "an option is refused");
        self.reply(option, kind, &[text.as_bytes()]);
        Next::Option
    }

    fn answer(&mut self, option: u32, payload: &[u8]) -> Result<Next, NegotiationError> {
        if option == opt::ABORT {
            self.reply(option, rep::ACK, &[]);
            // The client may have gone already.
            let _ = self.channel.write(&std::mem::take(&mut self.out), &[]);
            return Ok(Next::Leave);
        }
        if self.offer.tls.is_some() && !self.channel.is_secure() && option != opt::STARTTLS {
            if option == opt::EXPORT_NAME {
                return Err(NegotiationError::TlsRequired);
            }
            return Ok(self.refuse(option, rep::ERR_TLS_REQD, "this server wants TLS"));
        }
        match option {
            opt::STARTTLS => self.start_tls(payload),
            opt::EXPORT_NAME => self.export_name(payload),
            opt::LIST if payload.is_empty() => {
                let name = self.offer.name.clone();
                let length = u32::try_from(name.len()).unwrap_or(0).to_be_bytes();
                self.reply(option, rep::SERVER, &[&length, name.as_bytes()]);
                self.reply(option, rep::ACK, &[]);
                Ok(Next::Option)
            }
            opt::STRUCTURED_REPLY if payload.is_empty() => {
                self.structured = true;
                self.reply(option, rep::ACK, &[]);
                Ok(Next::Option)
            }
            opt::LIST | opt::STRUCTURED_REPLY => {
                Ok(self.refuse(option, rep::ERR_INVALID, "this option has no payload"))
            }
            opt::GO | opt::INFO => Ok(self.go(option, payload)),
            opt::HELLO if self.offer.private_options => self.hello(payload),
            opt::DRAIN if self.offer.private_options => self.drain(payload),
            opt::END if self.offer.private_options => Ok(self.end(payload)),
            _ => Ok(self.refuse(option, rep::ERR_UNSUP, "this server does not know the option")),
        }
    }

    fn start_tls(&mut self, payload: &[u8]) -> Result<Next, NegotiationError> {
        if !payload.is_empty() {
            return Ok(self.refuse(opt::STARTTLS, rep::ERR_INVALID, "this option has no payload"));
        }
        if self.channel.is_secure() {
            return Ok(self.refuse(opt::STARTTLS, rep::ERR_INVALID, "TLS is spoken already"));
        }
        let Some(config) = self.offer.tls.clone() else {
            return Ok(self.refuse(opt::STARTTLS, rep::ERR_POLICY, "this server has no certificates"));
        };
        // What came in the clear behind the option could have been put there by anyone.
        if self.inbox.len() != 0 {
            return Err(NegotiationError::Protocol("bytes in the clear behind STARTTLS"));
        }
        self.reply(opt::STARTTLS, rep::ACK, &[]);
        self.channel.write(&std::mem::take(&mut self.out), &[])?;
        let socket = Arc::clone(self.channel.socket());
        self.channel = Channel::secure(socket, config).map_err(NegotiationError::Tls)?;
        self.structured = false;
        Ok(Next::Option)
    }

    fn must_say_hello(&self) -> bool {
        self.offer.require_hello && self.client.is_none()
    }

    fn export_name(&mut self, name: &[u8]) -> Result<Next, NegotiationError> {
        if !self.offer.is_named(name) || self.must_say_hello() {
            return Err(NegotiationError::UnknownExport(String::from_utf8_lossy(name).into_owned()));
        }
        self.out.extend_from_slice(&self.offer.size.to_be_bytes());
        self.out.extend_from_slice(&self.offer.flags().to_be_bytes());
        if !self.no_zeroes {
            self.out.extend_from_slice(&[0; 124]);
        }
        Ok(Next::Requests)
    }

    fn go(&mut self, option: u32, payload: &[u8]) -> Next {
        let Some((name, wanted)) = parse_go(payload) else {
            return self.refuse(option, rep::ERR_INVALID, "the payload is not a name and a list of kinds");
        };
        if !self.offer.is_named(name) {
            let text = format!("there is no export {:?} here", String::from_utf8_lossy(name));
            return self.refuse(option, rep::ERR_UNKNOWN, &text);
        }
        if option == opt::GO && self.must_say_hello() {
            return self.refuse(
                option,
                rep::ERR_POLICY,
                "this server serves only clients that say who they are",
            );
        }
        let export = InfoExport {
            info: info::EXPORT.into(),
            size: self.offer.size.into(),
            flags: self.offer.flags().into(),
        };
        self.reply(option, rep::INFO, &[export.as_bytes()]);
        let blocks = InfoBlockSize {
            info: info::BLOCK_SIZE.into(),
            minimum: 1.into(),
            preferred: PREFERRED_BLOCK.into(),
            maximum: PAYLOAD_MAX.into(),
        };
        self.reply(option, rep::INFO, &[blocks.as_bytes()]);
        if wanted.contains(&info::NAME) {
            let name = self.offer.name.clone();
            self.reply(option, rep::INFO, &[&info::NAME.to_be_bytes(), name.as_bytes()]);
        }
        self.reply(option, rep::ACK, &[]);
        if option == opt::GO { Next::Requests } else { Next::Option }
    }

    fn hello(&mut self, payload: &[u8]) -> Result<Next, NegotiationError> {
        let hello = Hello::read_from_bytes(payload).ok().filter(|hello| hello.version.get() >= 1);
        let Some(hello) = hello else {
            return Ok(self.refuse(opt::HELLO, rep::ERR_INVALID, "the payload is not a hello"));
        };
        let client = ClientId(hello.client.get());
        match self.seat.admission().hello(self.seat, client, hello.cookie) {
            Ok(welcome) => {
                self.client = Some(client);
                self.counters = welcome.counters;
                let reply = HelloReply {
                    version: wire::PRIVATE_VERSION.into(),
                    reserved: 0.into(),
                    flags: if welcome.list.is_some() { 0 } else { HELLO_LIST_IN_MEMORY }.into(),
                    boot_id: welcome.boot.0,
                };
                let list = welcome.list.map(|list_id| HelloList { list_id });
                let list = list.as_ref().map_or(&[][..], |list| list.as_bytes());
                self.reply(opt::HELLO, opt::HELLO, &[reply.as_bytes(), list]);
                self.reply(opt::HELLO, rep::ACK, &[]);
                Ok(Next::Option)
            }
            Err(refusal) => self.refuse_client(opt::HELLO, refusal),
        }
    }

    fn refuse_client(&mut self, option: u32, refusal: Refusal) -> Result<Next, NegotiationError> {
        let kind = match refusal {
            // The client tries again on a fresh connection, if it is there at all.
            Refusal::Superseded(_) => return Err(refusal.into()),
            Refusal::Again => rep::ERR_INVALID,
            Refusal::Ended(_) | Refusal::OtherCookie(_) => rep::ERR_POLICY,
        };
        tracing::warn!(peer = self.seat.link().peer(), %refusal, "refused");
        Ok(self.refuse(option, kind, &refusal.to_string()))
    }

    fn drain(&mut self, payload: &[u8]) -> Result<Next, NegotiationError> {
        let Ok(drain) = Drain::read_from_bytes(payload) else {
            return Ok(self.refuse(
                opt::DRAIN,
                rep::ERR_INVALID,
                "the payload is not a client and its cookie",
            ));
        };
        let client = ClientId(drain.client.get());
        let patience = self.offer.drain_patience;
        match self.seat.admission().drain(self.seat, client, drain.cookie, patience) {
            Ok((boot, is_drained)) => {
                // For good: the lock of the backing file is free only when all threads of an earlier process have left
                // the file, and this process holds it.
                let drained = if is_drained { drained::FOR_GOOD } else { drained::NO };
                let reply = DrainReply { boot_id: boot.0, drained, padding: [0; 7] };
                self.reply(opt::DRAIN, opt::DRAIN, &[reply.as_bytes()]);
                self.reply(opt::DRAIN, rep::ACK, &[]);
                Ok(Next::Option)
            }
            Err(refusal) => self.refuse_client(opt::DRAIN, refusal),
        }
    }

    fn end(&mut self, payload: &[u8]) -> Next {
        let Ok(end) = End::read_from_bytes(payload) else {
            return self.refuse(opt::END, rep::ERR_INVALID, "the payload is not a client");
        };
        if self.client.is_none() {
            return self.refuse(opt::END, rep::ERR_POLICY, "only who has said hello may end another client");
        }
        let client = ClientId(end.client.get());
        let (boot, ending) = match self.seat.admission().end(client, false, self.offer.drain_patience) {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, client = client.0, "cannot be refused for good");
                return self.refuse(opt::END, rep::ERR_PLATFORM, &error.to_string());
            }
        };
        let (state, text) = match ending {
            Ending::Ended => (end_state::ENDED, String::new()),
            Ending::Alive(text) => (end_state::ALIVE, text),
            Ending::Undrained => {
                let text = "it is refused for good, but requests of it are still being executed; ask again";
                return self.refuse(opt::END, rep::ERR_PLATFORM, text);
            }
        };
        let reply = EndReply { state, padding: [0; 7], boot_id: boot.0 };
        self.reply(opt::END, opt::END, &[reply.as_bytes(), text.as_bytes()]);
        self.reply(opt::END, rep::ACK, &[]);
        Next::Option
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_payload_of_go() {
        assert_eq!(parse_go(b"\0\0\0\x03vms\0\x01\0\x03"), Some((&b"vms"[..], vec![3])));
        assert_eq!(parse_go(b"\0\0\0\0\0\0"), Some((&b""[..], vec![])));
        for wrong in
            [&b""[..], b"\0\0\0\x09vms\0\0", b"\0\0\0\x03vms", b"\0\0\0\0\0\x02\0\x03", b"\0\0\0\0\0\0\0"]
        {
            assert_eq!(parse_go(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn arbitrary_payloads_of_go_are_decoded_or_refused(payload in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some((name, wanted)) = parse_go(&payload) {
                prop_assert_eq!(payload.len(), 6 + name.len() + 2 * wanted.len());
            }
        }
    }
}
