//! How QUIC is set up, and what the end of a connection means.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, ConnectionError, ConnectionId, ConnectionIdGenerator, EndpointConfig,
    IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};

use super::channel_lanes::LANES;
use super::versions;
use crate::cluster::tls::{Credentials, TlsError, Verdict};
use crate::ids::NodeName;

/// A connection over which nothing has come for so long is lost.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Between hosts of one cluster the first guess of the round trip can be short.
const RTT_GUESS: Duration = Duration::from_millis(50);
/// Found by measurement: 8900 with segmentation offload collapses, the default of 1452 costs half of the throughput.
const MTU_MAX: u16 = 6400;
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
/// As much as the system allows, at most this, in bytes.
const SOCKET_BUFFER: usize = 8 << 20;
/// The name that TLS wants to be given; the certificates are checked for a node's URI instead.
pub(super) const SERVER_NAME: &str = "csv";

/// The TLS alert `no_application_protocol` as a QUIC error code.
const NO_COMMON_VERSION: u64 = 0x100 + 120;

/// Why we close a connection: the codes are those of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Close {
    /// This end stops.
    Stopped = 1,
    /// Another machine has the same node name.
    Duplicate = 2,
    /// What came is not our protocol.
    Protocol = 3,
    /// This is another program's port.
    OtherProgram = 4,
    /// A newer connection takes the place of this one.
    Replaced = 5,
}

impl Close {
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(u32::from(self as u8))
    }
}

/// Closes `connection`, if it is not closed already: how it ended first is what counts.
pub(super) fn close(connection: &Connection, close: Close, why: &str) {
    if connection.close_reason().is_none() {
        connection.close(close.code(), why.as_bytes());
    }
}

/// Why there is no connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) why: String,
    /// Whether it is a refusal, which somebody has to do something about.
    pub(super) refused: bool,
}

impl Failure {
    pub(super) fn passing(why: impl Into<String>) -> Self {
        Self { why: why.into(), refused: false }
    }

    pub(super) fn refusal(why: impl Into<String>) -> Self {
        Self { why: why.into(), refused: true }
    }
}

fn transport() -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(RTT_GUESS)
        .initial_mtu(1200)
        .mtu_discovery_config(Some(mtu))
        .max_concurrent_bidi_streams(VarInt::from_u32(LANES + 1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW));
    Arc::new(transport)
}

fn refused(what: &'static str, why: &dyn std::fmt::Display) -> TlsError {
    TlsError::Library { what, why: why.to_string() }
}

/// How incoming connections are taken.
pub(super) fn server_config(credentials: &Credentials, spoken: &[u16]) -> Result<ServerConfig, TlsError> {
    let tls = credentials.server_config(versions::protocols(spoken))?;
    let tls = QuicServerConfig::try_from(tls).map_err(|error| refused("QUIC with these ciphers", &error))?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(transport()).migration(false).max_incoming(128);
    Ok(config)
}

/// How node `wanted` is connected to. Why its certificate is not accepted is left in `verdict`.
pub(super) fn client_config(
    credentials: &Credentials,
    wanted: &NodeName,
    spoken: &[u16],
    verdict: Verdict,
) -> Result<ClientConfig, TlsError> {
    let tls = credentials.client_config(wanted, versions::protocols(spoken), verdict)?;
    let tls = QuicClientConfig::try_from(tls).map_err(|error| refused("QUIC with these ciphers", &error))?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(transport());
    Ok(config)
}

/// Names connections at random. QUIC's own names carry a mark by which an incarnation knows them for its own and drops
/// those of its predecessor, without the reset that would end the connection at once.
#[derive(Debug)]
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; 8]>())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// How datagrams are taken, whoever they come from.
pub(super) fn endpoint_config(credentials: &Credentials) -> Result<EndpointConfig, TlsError> {
    // The same in every incarnation: a restarted node answers to packets of its former connections with resets that the
    // other side believes, so that it connects anew at once instead of after the idle time-out.
    let secret = credentials.derive_secret("csv: stateless resets");
    let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config
        .cid_generator(|| Box::new(RandomIds))
        .max_udp_payload_size(MTU_MAX)
        .map_err(|error| refused("QUIC with this packet size", &error))?;
    Ok(config)
}

/// A socket with room for bursts.
pub(super) fn socket(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    // The system may give less; then bursts are lost and sent again.
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// What the end of a connection means, as we saw it.
pub(super) fn explain(error: &ConnectionError, spoken: &[u16]) -> Failure {
    let no_common_version = || {
        let ours = versions::text(spoken);
        Failure::refusal(format!(
            "it speaks none of our wire versions ({ours}): upgrade the node with the older release; a release speaks its \
             own version and the previous one"
        ))
    };
    match error {
        ConnectionError::TransportError(error) if u64::from(error.code) == NO_COMMON_VERSION => {
            no_common_version()
        }
        ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == NO_COMMON_VERSION => {
            no_common_version()
        }
        ConnectionError::TransportError(error) if is_tls(u64::from(error.code)) => {
            let words = Verdict::words_in(&error.reason);
            Failure::refusal(format!("we do not accept it: {words}"))
        }
        ConnectionError::ConnectionClosed(close) if is_tls(u64::from(close.error_code)) => {
            let reason = String::from_utf8_lossy(&close.reason);
            Failure::refusal(format!("it does not accept us: {}", Verdict::words_in(&reason)))
        }
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            let codes = [Close::Duplicate, Close::Protocol, Close::OtherProgram];
            Failure { refused: codes.iter().any(|code| code.code() == close.error_code), why: reason }
        }
        ConnectionError::TimedOut => Failure::passing("nothing came from it any more"),
        ConnectionError::Reset => Failure::passing("it has restarted"),
        ConnectionError::LocallyClosed => Failure::passing("closed by this node"),
        other => Failure::passing(other.to_string()),
    }
}

fn is_tls(code: u64) -> bool {
    (0x100..0x200).contains(&code)
}
