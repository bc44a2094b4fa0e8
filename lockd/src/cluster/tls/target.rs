//! The certificates of csv-targets: what one needs to serve its control port to the nodes of a cluster, and to no others.

use std::path::Path;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;

use super::credentials::{read_authority, read_certificate, read_key, refused};
use super::identity::Identity;
use super::{CA_CERTIFICATE, TARGET_NAME, TlsError};

/// A csv-target's certificate and key, and the authority whose nodes it obeys.
#[derive(Clone, Debug)]
pub struct TargetTls(pub Arc<ServerConfig>);

impl TargetTls {
    /// Reads `ca.pem`, `target.pem` and `target.key` in `folder`, as `lockctl init` has made them.
    ///
    /// # Errors
    /// If one is not there, is not what it should be, or does not belong to the others.
    pub fn load(folder: &Path) -> Result<Self, TlsError> {
        let anchor = read_authority(&folder.join(CA_CERTIFICATE))?;
        let path = folder.join(format!("{TARGET_NAME}.pem"));
        let certificate = read_certificate(&path)?;
        let key_path = folder.join(format!("{TARGET_NAME}.key"));
        let key = read_key(&key_path)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(RootCertStore { roots: vec![anchor] });
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let verifier =
            verifier.map_err(|error| TlsError::Library { what: "the authority", why: error.to_string() })?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(refused)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    TlsError::KeyMismatch { key: key_path, certificate: path }
                }
                error => refused(error),
            })?;
        config.send_tls13_tickets = 0;
        Ok(Self(Arc::new(config)))
    }
}

/// The node that a certificate names, which has been checked already.
#[must_use]
pub fn node_of(certificate: &CertificateDer<'_>) -> Option<Identity> {
    Identity::claimed(&webpki::EndEntityCert::try_from(certificate).ok()?)
}
