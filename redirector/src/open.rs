//! Opens the LUN that a name names.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::ids::ClientId;
use lockd::iscsi::SessionError;
use lockd::rules::Rules;

use crate::file::{self, FileLun, FileLunError, Registration};
use crate::iscsi::Reservation;
use crate::iscsi::portal::Portal;
use crate::lun::{Identity, Lun};
use crate::nbd::export::Export;
use crate::nbd::handshake::{Credentials, HandshakeError};
use crate::nbd::tls::TlsError;
use crate::paths::PathSet;
use crate::paths::way::Way;
use crate::uri::LunUri;

/// How a LUN is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Which rules are kept; all but in tests.
    pub rules: Rules,
    /// The clocks of this node.
    pub clock: Arc<dyn Clock>,
    /// Who opens: the incarnation that the bundled target admits.
    pub client: ClientId,
    /// A secret of that incarnation, drawn at random by it.
    pub cookie: [u8; 16],
    /// What must be read at a place of the LUN, if that is known already; see also [`Lun::expect`].
    pub identity: Option<Identity>,
    /// How long I/O is held while no path works.
    pub hold: Duration,
    /// How long a target that cannot prove anything may still execute what it was sent, until it is known which volume is
    /// there ([`Lun::assume_quiesce`]): an assumption, shown in status.
    pub target_quiesce: Duration,
    /// Connections to a target that allows several; the URI's `connections=` goes before.
    pub connections: Option<usize>,
    /// The pause between two probes of a path that is down.
    pub probe_every: Duration,
    /// Completed writes that are kept until a flush, in bytes at most (P9).
    pub kept_max: usize,
    /// Nothing will be written.
    pub read_only: bool,
    /// Where the others fence by persistent reservations: by what this client registers.
    pub reservation: Option<Reservation>,
    /// The ways through peers, for when no path leads to the LUN.
    pub peers: Vec<Arc<dyn Way>>,
}

impl OpenOptions {
    /// The defaults of the design, for the client `client` with its secret `cookie`.
    #[must_use]
    pub fn new(client: ClientId, cookie: [u8; 16]) -> Self {
        Self {
            rules: Rules::all(),
            clock: Arc::new(SystemClock),
            client,
            cookie,
            identity: None,
            hold: Duration::from_secs(120),
            target_quiesce: Duration::from_secs(10),
            connections: None,
            probe_every: Duration::from_millis(500),
            kept_max: 64 << 20,
            read_only: false,
            reservation: None,
            peers: Vec::new(),
        }
    }
}

/// Why a LUN could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nobody answers.
    #[error("{lun} cannot be reached: {source}; check that the server runs and listens there")]
    Unreachable {
        /// The LUN.
        lun: String,
        /// What the system says.
        source: io::Error,
    },
    /// The server and we did not agree.
    #[error("{lun}: export {export:?}: {source}")]
    Handshake {
        /// The LUN.
        lun: String,
        /// The export.
        export: String,
        /// Why.
        source: HandshakeError,
    },
    /// The certificates cannot be used.
    #[error("{lun}: {source}")]
    Tls {
        /// The LUN.
        lun: String,
        /// Why.
        source: TlsError,
    },
    /// A host name that no certificate can carry.
    #[error("{lun}: {name:?} is no name that a certificate can carry; give one by ?tls-hostname=NAME")]
    TlsName {
        /// The LUN.
        lun: String,
        /// The name.
        name: String,
    },
    /// The iSCSI target and we did not agree.
    #[error("{lun}: {source}")]
    Iscsi {
        /// The LUN.
        lun: String,
        /// Why.
        source: SessionError,
    },
    /// The target refuses this client for good.
    #[error("{lun}: {why}")]
    Refused {
        /// The LUN.
        lun: String,
        /// Why.
        why: String,
    },
    /// The server that answers is not the bundled target any more.
    #[error(
        "{lun}: another server than the csv-target that was there answers now; start csv-target again, or mount anew"
    )]
    OtherServer {
        /// The LUN.
        lun: String,
    },
    /// The server changed between two connections.
    #[error("{lun} changed while it was being opened (the server was restarted?); try again")]
    Changed {
        /// The LUN.
        lun: String,
    },
    /// The export is read-only.
    #[error("{lun} is exported read-only: mount with -o ro, or export it writable")]
    ReadOnly {
        /// The LUN.
        lun: String,
    },
    /// Nothing there.
    #[error("{lun} has a size of 0 bytes: check the export")]
    Empty {
        /// The LUN.
        lun: String,
    },
    /// Not the LUN that was expected.
    #[error("{lun} is not the LUN that was expected: {why}")]
    OtherLun {
        /// The LUN.
        lun: String,
        /// What is different.
        why: String,
    },
    /// A peer that does not serve.
    #[error("peer {node}: {why}")]
    NoPeer {
        /// The peer.
        node: String,
        /// Why.
        why: String,
    },
    /// A file or a block device beside other paths.
    #[error(
        "{lun} cannot be one of several paths: the kernel looks after the paths of its devices (multipath); name it alone, or \
         name paths by nbd://"
    )]
    NoPath {
        /// The file or the device.
        lun: String,
    },
    /// A file or a block device.
    #[error(transparent)]
    File(#[from] FileLunError),
}

impl OpenError {
    /// Whether the target refuses this client for good: it has been fenced, or another has its number.
    pub(crate) fn is_for_good(&self) -> bool {
        matches!(self, Self::Handshake { source: HandshakeError::NotAdmitted(_), .. } | Self::Refused { .. })
    }
}

/// Opens `uri`. Blocks until the LUN answers, or the reason why not is known.
pub fn open(uri: &LunUri, options: &OpenOptions) -> Result<Arc<dyn Lun>, OpenError> {
    open_all(std::slice::from_ref(uri), options)
}

/// Opens the LUN to which all of `uris` lead, the preferred one first (P1). Blocks until one answers, or the reasons why none
/// does are known.
pub fn open_all(uris: &[LunUri], options: &OpenOptions) -> Result<Arc<dyn Lun>, OpenError> {
    if let [LunUri::Device(path) | LunUri::File(path)] = uris {
        let file = file::Options { read_only: options.read_only, ..file::Options::default() };
        let reservation = options.reservation.clone().filter(|_| !options.read_only);
        let registration =
            reservation.map(|own| Registration::new(own, options.rules, Arc::clone(&options.clock)));
        return Ok(Arc::new(FileLun::open_as(path, file, registration)?));
    }
    let ways = uris.iter().map(|uri| way(uri, options)).collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(PathSet::open(ways, options)?))
}

fn way(uri: &LunUri, options: &OpenOptions) -> Result<Arc<dyn Way>, OpenError> {
    match uri {
        LunUri::Nbd(nbd) => {
            let credentials = Credentials { client: options.client, cookie: options.cookie };
            let clock = Arc::clone(&options.clock);
            Ok(Arc::new(Export::new(nbd, credentials, options.rules, clock, options.connections)?))
        }
        LunUri::Iscsi(unit) => {
            let (reservation, clock) = (options.reservation.clone(), Arc::clone(&options.clock));
            Ok(Arc::new(Portal::new(unit, options.client, reservation, options.rules, clock)))
        }
        LunUri::Device(_) | LunUri::File(_) => Err(OpenError::NoPath { lun: uri.to_string() }),
    }
}
