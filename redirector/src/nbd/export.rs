//! An export of an NBD server, as a way to a LUN.

use std::fmt;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockd::clock::Clock;
use lockd::ids::ClientId;
use lockd::rules::{Rule, Rules};
use rustls_pki_types::ServerName;

use crate::lun::Proof;
use crate::nbd::channel::Channel;
use crate::nbd::handshake::{Agreement, Credentials, HandshakeError, Negotiation, Tls};
use crate::nbd::link::NbdLink;
use crate::nbd::socket::Socket;
use crate::nbd::{tls, wire};
use crate::open::OpenError;
use crate::paths::way::{Drained, Events, Instance, Link, Purpose, Way};
use crate::uri::{Endpoint, NbdUri};

/// How long a server may take for each step of a connection's beginning.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections to a target whose flush covers all of them, if nothing else is asked for: one for each of the two
/// threads that take requests from the kernel. More only spread small requests, so that fewer are sent together.
pub const CONNECTIONS_DEFAULT: usize = 2;

/// An NBD export and who we are to its server.
pub struct Export {
    uri: NbdUri,
    tls: Option<Tls>,
    credentials: Credentials,
    rules: Rules,
    clock: Arc<dyn Clock>,
    connections: usize,
    /// The bundled target has been met here: a connection without our credentials is never made again.
    identified: AtomicBool,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Export({})", self.uri)
    }
}

impl Export {
    /// The export that `uri` names. Reads the certificates, does not connect.
    pub fn new(
        uri: &NbdUri,
        credentials: Credentials,
        rules: Rules,
        clock: Arc<dyn Clock>,
        connections: Option<usize>,
    ) -> Result<Self, OpenError> {
        let tls = if uri.tls {
            let host = match (&uri.tls_hostname, &uri.endpoint) {
                (Some(name), _) | (None, Endpoint::Tcp(name, _)) => name.as_str(),
                (None, Endpoint::Unix(_)) => "localhost",
            };
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| OpenError::TlsName { lun: uri.to_string(), name: host.to_owned() })?;
            let config = tls::config(uri.tls_certificates.as_deref())
                .map_err(|source| OpenError::Tls { lun: uri.to_string(), source })?;
            Some((config, name))
        } else {
            None
        };
        let connections = uri.connections.or(connections).unwrap_or(CONNECTIONS_DEFAULT).max(1);
        Ok(Self {
            uri: uri.clone(),
            tls,
            credentials,
            rules,
            clock,
            connections,
            identified: AtomicBool::new(false),
        })
    }

    fn dial(&self) -> Result<Socket, OpenError> {
        let unreachable = |source| OpenError::Unreachable { lun: self.uri.to_string(), source };
        let socket = match &self.uri.endpoint {
            Endpoint::Unix(path) => Socket::unix(path, STEP_TIMEOUT).map_err(unreachable)?,
            Endpoint::Tcp(host, port) => {
                // P5: what has not reached the server dies with the connection.
                let drops_unsent = self.rules.keeps(Rule::P5);
                let addresses = (host.as_str(), *port).to_socket_addrs().map_err(unreachable)?;
                let mut last = std::io::ErrorKind::NotFound.into();
                addresses
                    .into_iter()
                    .find_map(|address| {
                        Socket::tcp(address, STEP_TIMEOUT, drops_unsent).map_err(|error| last = error).ok()
                    })
                    .ok_or_else(|| unreachable(last))?
            }
        };
        socket.set_timeout(Some(STEP_TIMEOUT)).map_err(unreachable)?;
        Ok(socket)
    }

    fn negotiation(&self, credentials: Option<Credentials>) -> Result<Negotiation, OpenError> {
        let channel = Channel::plain(self.dial()?);
        let begin = || {
            let mut negotiation = Negotiation::begin(channel, self.tls.as_ref())?;
            if let Some(credentials) = credentials {
                negotiation.hello(credentials)?;
            }
            Ok(negotiation)
        };
        begin().map_err(|source| self.refused(source))
    }

    fn refused(&self, source: HandshakeError) -> OpenError {
        OpenError::Handshake { lun: self.uri.to_string(), export: self.uri.export.clone(), source }
    }

    /// A negotiation in which the bundled target has been told who we are.
    fn introduce(&self) -> Result<Negotiation, OpenError> {
        // Some servers close the connection at an unknown option. Twice, lest a bundled target that is just stopped is
        // taken for one of them, and never where the bundled target has been met before.
        let intolerant = |error: &OpenError| {
            matches!(error, OpenError::Handshake { source: HandshakeError::Intolerant, .. })
                && !self.identified.load(Ordering::Acquire)
        };
        let negotiation = match self.negotiation(Some(self.credentials)) {
            Err(error) if intolerant(&error) => match self.negotiation(Some(self.credentials)) {
                Err(error) if intolerant(&error) => self.negotiation(None),
                result => result,
            },
            result => result,
        }?;
        if negotiation.instance().is_some() {
            self.identified.store(true, Ordering::Release);
        } else if self.identified.load(Ordering::Acquire) {
            return Err(OpenError::OtherServer { lun: self.uri.to_string() });
        }
        Ok(negotiation)
    }

    fn agree(&self, drain: bool) -> Result<Agreement, OpenError> {
        let mut negotiation = self.introduce()?;
        let agree = || {
            let drained = if drain && negotiation.instance().is_some() {
                negotiation.drain(self.credentials)?
            } else {
                Drained::Unproven
            };
            negotiation.go(&self.uri.export, self.uri.structured, drained)
        };
        agree().map_err(|source| self.refused(source))
    }
}

impl Way for Export {
    fn connect(&self, purpose: Purpose, events: Arc<dyn Events>) -> Result<Arc<dyn Link>, OpenError> {
        let first = self.agree(purpose == Purpose::Again)?;
        let (abilities, drained) = (first.abilities.clone(), first.drained);
        // P8: a flush must cover the writes of every connection.
        let several = abilities.multi_conn || !self.rules.keeps(Rule::P8);
        let count = if purpose == Purpose::Probe || !several { 1 } else { self.connections };
        if count == 1 && self.uri.connections.is_some_and(|asked| asked > 1) && purpose == Purpose::First {
            tracing::warn!(
                lun = %self.uri,
                "one connection only: the server does not promise that a flush covers several (NBD_FLAG_CAN_MULTI_CONN)"
            );
        }
        let mut agreements = vec![first];
        while agreements.len() < count {
            let next = self.agree(false)?;
            if next.abilities != abilities {
                return Err(OpenError::Changed { lun: self.uri.to_string() });
            }
            agreements.push(next);
        }
        let link = NbdLink::start(agreements, abilities, drained, events, Arc::clone(&self.clock))
            .map_err(|source| OpenError::Unreachable { lun: self.uri.to_string(), source })?;
        Ok(link)
    }

    fn prove_ended(&self, earlier: ClientId) -> Proof {
        let ended = self.introduce().map(|mut negotiation| {
            if negotiation.instance().is_none() {
                return Proof::Unprovable;
            }
            match negotiation.end(earlier) {
                Ok((wire::end_state::ENDED, peer)) => {
                    Proof::Ended(format!("the target refuses client {earlier} for good and has drained it {peer}"))
                }
                Ok((_, peer)) => Proof::Alive(peer),
                Err(error) => {
                    tracing::warn!(lun = %self.uri, %earlier, %error, "the target could not end an earlier client");
                    Proof::Unprovable
                }
            }
        });
        ended.unwrap_or_else(|error| {
            tracing::warn!(lun = %self.uri, %earlier, %error, "the target could not be asked about an earlier client");
            Proof::Unprovable
        })
    }

    fn drain_for(&self, other: Credentials) -> Option<Instance> {
        let drain = || {
            let mut negotiation = self.introduce()?;
            let Some(instance) = negotiation.instance() else { return Ok(None) };
            let drained = negotiation.drain(other).map_err(|source| self.refused(source))?;
            Ok((drained != Drained::Unproven).then_some(instance))
        };
        drain().unwrap_or_else(|error: OpenError| {
            tracing::debug!(lun = %self.uri, client = %other.client, %error, "a peer's connections are not drained");
            None
        })
    }

    fn name(&self) -> String {
        self.uri.to_string()
    }
}
