//! What a certificate says about its holder, and whether to believe it.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::ids::NodeName;

/// Who a certificate says its holder is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: NodeName,
}

impl Identity {
    /// The URI that stands in the certificate.
    pub(super) fn uri(cluster: &str, node: &NodeName) -> String {
        format!("csv://{cluster}/{node}")
    }

    /// What stands in a certificate, whether or not it is to be believed.
    pub(super) fn claimed(certificate: &EndEntityCert<'_>) -> Option<Self> {
        let mut uris = certificate.valid_uri_names();
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Self::from_uri(uri),
            _ => None,
        }
    }

    fn from_uri(uri: &str) -> Option<Self> {
        let (cluster, node) = uri.strip_prefix("csv://")?.split_once('/')?;
        Some(Self { cluster: cluster.to_owned(), node: node.parse().ok()? })
    }
}

/// Why a certificate is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another authority issued it.
    #[error(
        "the certificate{claim} was not issued by this cluster's authority: the ca.pem and the certificates of all nodes \
         must come from one `lockctl init`"
    )]
    UnknownIssuer {
        /// Who it says it is, in words.
        claim: String,
    },
    /// Its time is over.
    #[error(
        "the certificate expired {} ago, if this machine's clock is right: remove the node's .pem and .key and run \
         `lockctl init` again", rough(*.ago)
    )]
    Expired {
        /// Since when.
        ago: Duration,
    },
    /// Its time has not begun.
    #[error("the certificate will not be valid before {} from now: is this machine's clock right?", rough(*.ahead))]
    NotYetValid {
        /// Until when.
        ahead: Duration,
    },
    /// It names no node.
    #[error("the certificate names no node: it has not one URI of the form csv://CLUSTER/NODE")]
    Nameless,
    /// It is of another cluster with the same authority.
    #[error("the certificate is of cluster {theirs}, but this is cluster {ours}")]
    OtherCluster {
        /// The certificate's cluster.
        theirs: String,
        /// This cluster.
        ours: String,
    },
    /// The cluster file does not know the node.
    #[error("the certificate is of node {0}, which the cluster file does not name")]
    NotInCluster(NodeName),
    /// It is another node's.
    #[error(
        "the certificate is of node {found}, but it should be of node {wanted}: is {wanted}'s address in the cluster file right?"
    )]
    OtherNode {
        /// The certificate's node.
        found: NodeName,
        /// The node that was meant.
        wanted: NodeName,
    },
    /// It is no certificate, or has marks that we do not know.
    #[error("the certificate is not usable: {0}")]
    Malformed(String),
}

/// A time in its largest unit.
fn rough(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// For what a certificate is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// By the one who was connected to.
    Server,
    /// By the one who connects.
    Client,
}

/// Checks authority, time and usage of `certificate`, and returns who it names.
pub(super) fn identify(
    certificate: &CertificateDer<'_>,
    anchors: &[TrustAnchor<'_>],
    now: UnixTime,
    side: Side,
) -> Result<Identity, IdentityError> {
    let malformed = |error: webpki::Error| IdentityError::Malformed(error.to_string());
    let parsed = EndEntityCert::try_from(certificate).map_err(malformed)?;
    let identity = Identity::claimed(&parsed);
    let usage = match side {
        Side::Server => KeyUsage::server_auth(),
        Side::Client => KeyUsage::client_auth(),
    };
    let verified =
        parsed.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, anchors, &[], now, usage, None, None);
    verified.map_err(|error| match error {
        webpki::Error::CertExpired { time, not_after } => {
            IdentityError::Expired { ago: since(time, not_after) }
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            IdentityError::NotYetValid { ahead: since(not_before, time) }
        }
        // A foreign authority of our own making has the same name, so that only the signature tells it from ours.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            let claim = identity.as_ref().map_or(String::new(), |claimed| {
                format!(" of {}", Identity::uri(&claimed.cluster, &claimed.node))
            });
            IdentityError::UnknownIssuer { claim }
        }
        error => malformed(error),
    })?;
    identity.ok_or(IdentityError::Nameless)
}

/// Until when `certificate` is valid. `None` if it is no certificate.
pub(super) fn valid_until(certificate: &CertificateDer<'_>, anchors: &[TrustAnchor<'_>]) -> Option<UnixTime> {
    // The library does not show a certificate's times but in the error of a check at another time.
    let end_of_time = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    match parsed.verify_for_usage(algorithms, anchors, &[], end_of_time, KeyUsage::server_auth(), None, None)
    {
        Err(webpki::Error::CertExpired { not_after, .. }) => Some(not_after),
        _ => None,
    }
}

fn since(later: UnixTime, earlier: UnixTime) -> Duration {
    Duration::from_secs(later.as_secs().saturating_sub(earlier.as_secs()))
}
