//! The check of a peer's certificate during the handshake, as rustls asks for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};

use super::identity::{Identity, IdentityError, Side, identify};
use crate::ids::NodeName;

/// What rustls puts before our words in an error's text.
const RUSTLS_PREFIX: &str = "unexpected error: ";

/// Where the check of an outgoing connection leaves why it failed.
#[derive(Clone, Default, Debug)]
pub(crate) struct Verdict(Arc<Mutex<Option<IdentityError>>>);

impl Verdict {
    /// Takes the reason why the last check failed.
    pub(crate) fn take(&self) -> Option<IdentityError> {
        self.0.lock().take()
    }

    /// Our words in the text of a handshake error, as the other side sends it.
    pub(crate) fn words_in(text: &str) -> &str {
        text.strip_prefix(RUSTLS_PREFIX).unwrap_or(text)
    }
}

/// Whom to believe: the authority, the cluster and its nodes.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    pub(super) cluster: String,
    pub(super) nodes: BTreeSet<NodeName>,
}

impl Trust {
    /// Who the holder of `certificate` is, if that is a node of this cluster.
    pub(super) fn check(
        &self,
        certificate: &CertificateDer<'_>,
        now: UnixTime,
        side: Side,
    ) -> Result<Identity, IdentityError> {
        let identity = identify(certificate, &self.anchors, now, side)?;
        if identity.cluster != self.cluster {
            let ours = self.cluster.clone();
            return Err(IdentityError::OtherCluster { theirs: identity.cluster, ours });
        }
        if !self.nodes.contains(&identity.node) {
            return Err(IdentityError::NotInCluster(identity.node));
        }
        Ok(identity)
    }
}

/// Checks the certificate of a peer that connects to us, or to which we connect.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    pub(super) trust: Arc<Trust>,
    /// The node that we meant, if we connect.
    pub(super) wanted: Option<NodeName>,
    pub(super) verdict: Verdict,
    pub(super) provider: Arc<CryptoProvider>,
}

impl PeerVerifier {
    fn check(&self, certificate: &CertificateDer<'_>, now: UnixTime, side: Side) -> Result<(), Error> {
        let checked = self.trust.check(certificate, now, side).and_then(|identity| match &self.wanted {
            Some(wanted) if *wanted != identity.node => {
                Err(IdentityError::OtherNode { found: identity.node, wanted: wanted.clone() })
            }
            _ => Ok(()),
        });
        checked.map_err(|error| {
            // General: its text goes to the other side as it is, in the reason of the connection's close.
            let text = error.to_string();
            *self.verdict.0.lock() = Some(error);
            Error::General(text)
        })
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken between nodes".to_owned())
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, now, Side::Server).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, now, Side::Client).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
