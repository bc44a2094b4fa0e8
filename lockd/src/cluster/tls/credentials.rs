//! A node's own certificate and key, and whom it believes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};

use super::identity::{Identity, IdentityError, Side, valid_until};
use super::verify::{PeerVerifier, Trust, Verdict};
use super::{CA_CERTIFICATE, TlsError};
use crate::cluster::Cluster;
use crate::ids::NodeName;

/// A node's own certificate and key, and whom it believes: what a handshake needs.
#[derive(Clone)]
pub struct Credentials {
    node: NodeName,
    trust: Arc<Trust>,
    pub(super) certificate: CertificateDer<'static>,
    key: Arc<PrivateKeyDer<'static>>,
    provider: Arc<CryptoProvider>,
    expires: SystemTime,
    roots: Arc<RootCertStore>,
}

impl Credentials {
    /// Loads the credentials of `node` from the cluster's TLS directory and checks that the other nodes will accept
    /// them.
    ///
    /// # Errors
    /// If a file is not there or not what it should be, if the key does not fit, if the certificate is expired, of
    /// another authority, cluster or node.
    pub fn load(cluster: &Cluster, node: &NodeName) -> Result<Self, TlsError> {
        let authority = cluster.tls_dir.join(CA_CERTIFICATE);
        let path = cluster.tls_dir.join(format!("{node}.pem"));
        let key_path = cluster.tls_dir.join(format!("{node}.key"));

        let anchor = read_authority(&authority)?;
        let certificate = read_certificate(&path)?;
        let key = read_key(&key_path)?;

        let trust = Trust {
            anchors: vec![anchor],
            cluster: cluster.name.clone(),
            nodes: cluster.nodes.iter().map(|node| node.name.clone()).collect(),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        match CertifiedKey::from_der(vec![certificate.clone()], key.clone_key(), &provider) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(TlsError::KeyMismatch { key: key_path, certificate: path });
            }
            Err(error) => return Err(not_pem(&key_path, "key that can be used", &error)),
        }
        let invalid = |source| TlsError::Certificate { path: path.clone(), source };
        let identity = trust.check(&certificate, UnixTime::now(), Side::Server).map_err(invalid)?;
        if identity.node != *node {
            return Err(invalid(IdentityError::OtherNode { found: identity.node, wanted: node.clone() }));
        }
        let expires = valid_until(&certificate, &trust.anchors)
            .map_or(SystemTime::UNIX_EPOCH, |until| UNIX_EPOCH + Duration::from_secs(until.as_secs()));
        Ok(Self {
            roots: Arc::new(RootCertStore { roots: trust.anchors.clone() }),
            node: node.clone(),
            trust: Arc::new(trust),
            certificate,
            key: Arc::new(key),
            provider,
            expires,
        })
    }

    /// The node whose credentials these are.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// When the certificate expires.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// How many whole days the certificate is still valid; 0 on its last day and after it.
    #[must_use]
    pub fn days_left(&self) -> u64 {
        self.expires.duration_since(SystemTime::now()).unwrap_or_default().as_secs() / 86_400
    }

    /// Who the holder of `certificate` is, by the same check as in the handshake.
    ///
    /// # Errors
    /// If it is not a node of this cluster.
    pub fn identify(&self, certificate: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
        self.trust.check(certificate, UnixTime::now(), Side::Client)
    }

    /// What a server needs: it demands the certificate of a node of this cluster, and speaks one of `protocols`, the
    /// first that both know.
    ///
    /// # Errors
    /// If the cryptographic library refuses.
    pub fn server_config(&self, protocols: Vec<Vec<u8>>) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(refused)?
            .with_client_cert_verifier(Arc::new(self.verifier(None, Verdict::default())))
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(refused)?;
        config.alpn_protocols = protocols;
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// What a client needs to connect to node `wanted`, and to no other. The reason why it does not accept the other
    /// side is left in `verdict`.
    pub(crate) fn client_config(
        &self,
        wanted: &NodeName,
        protocols: Vec<Vec<u8>>,
        verdict: Verdict,
    ) -> Result<ClientConfig, TlsError> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(refused)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.verifier(Some(wanted.clone()), verdict)))
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(refused)?;
        config.alpn_protocols = protocols;
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        Ok(config)
    }

    /// What this node needs to ask a csv-target at its control port: it believes whoever this cluster's authority has
    /// issued a certificate for the host that is asked.
    pub(crate) fn target_client(&self) -> Result<ClientConfig, TlsError> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(refused)?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(refused)?;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// A secret that only this node knows and that is the same in all of its incarnations.
    pub(crate) fn derive_secret(&self, purpose: &str) -> [u8; 32] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.key.secret_der());
        let mut secret = [0; 32];
        secret.copy_from_slice(ring::hmac::sign(&key, purpose.as_bytes()).as_ref());
        secret
    }

    fn verifier(&self, wanted: Option<NodeName>, verdict: Verdict) -> PeerVerifier {
        PeerVerifier { trust: self.trust.clone(), wanted, verdict, provider: self.provider.clone() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("cluster", &self.trust.cluster)
            .field("node", &self.node)
            .field("days_left", &self.days_left())
            .finish_non_exhaustive()
    }
}

pub(super) fn read_authority(path: &Path) -> Result<TrustAnchor<'static>, TlsError> {
    let certificate = read_certificate(path)?;
    let anchor = webpki::anchor_from_trusted_cert(&certificate);
    Ok(anchor.map_err(|error| not_pem(path, "certificate of an authority", &error))?.to_owned())
}

pub(super) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| not_pem(path, "key", &error))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
}

pub(super) fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(&read(path)?).map_err(|error| not_pem(path, "certificate", &error))
}

fn not_pem(path: &Path, wanted: &'static str, error: &dyn fmt::Display) -> TlsError {
    TlsError::NotPem { path: PathBuf::from(path), wanted, why: error.to_string() }
}

pub(super) fn refused(error: rustls::Error) -> TlsError {
    TlsError::Library { what: "a configuration for TLS", why: error.to_string() }
}
