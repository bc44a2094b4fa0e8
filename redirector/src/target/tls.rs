//! TLS by the cluster's authority: both ends show certificates that it signed.
//!
//! The files have the names that QEMU, libnbd and nbdkit use: `ca-cert.pem`, `server-cert.pem`, `server-key.pem`, and for
//! clients `client-cert.pem`, `client-key.pem`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no certificate or key.
    #[error("cannot read {what} from {path}: {source}")]
    File {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The certificates do not fit together.
    #[error("the certificates in {dir} cannot be used: {reason}")]
    Unusable {
        /// Their directory.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
}

struct Identity {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn read_certificates(path: PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        other => {
            let source = other.err().unwrap_or(rustls::pki_types::pem::Error::NoItemsFound);
            Err(TlsError::File { what: "certificates", path, source })
        }
    }
}

impl Identity {
    fn load(dir: &Path, role: &str) -> Result<Self, TlsError> {
        let unusable = |reason: String| TlsError::Unusable { dir: dir.to_owned(), reason };
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(dir.join("ca-cert.pem"))? {
            roots.add(certificate).map_err(|error| unusable(format!("ca-cert.pem: {error}")))?;
        }
        let chain = read_certificates(dir.join(format!("{role}-cert.pem")))?;
        let path = dir.join(format!("{role}-key.pem"));
        let key = PrivateKeyDer::from_pem_file(&path).map_err(|source| TlsError::File {
            what: "a private key",
            path,
            source,
        })?;
        Ok(Self { roots: Arc::new(roots), chain, key })
    }
}

/// The server's side, with the files in `dir`; clients must show a certificate.
pub(super) fn server(dir: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let unusable = |reason: String| TlsError::Unusable { dir: dir.to_owned(), reason };
    let identity = Identity::load(dir, "server")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots, Arc::clone(&provider))
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder.with_client_cert_verifier(verifier).with_single_cert(identity.chain, identity.key)
        })
        .map_err(|error| unusable(error.to_string()))?;
    Ok(Arc::new(config))
}

/// The client's side, with the files in `dir`.
pub(super) fn client(dir: &Path) -> Result<Arc<ClientConfig>, TlsError> {
    let unusable = |reason: String| TlsError::Unusable { dir: dir.to_owned(), reason };
    let identity = Identity::load(dir, "client")?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder.with_root_certificates(identity.roots).with_client_auth_cert(identity.chain, identity.key)
        })
        .map_err(|error| unusable(error.to_string()))?;
    Ok(Arc::new(config))
}
