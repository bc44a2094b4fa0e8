//! TLS for NBD: certificates from a directory laid out as libnbd and QEMU have it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Where certificates are looked for when the URI names no directory.
const DEFAULT_DIR: &str = "/etc/pki/libnbd";

/// What is wrong with the certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error(
        "{path} cannot be used: {why}; a directory for TLS holds ca-cert.pem, and client-cert.pem and client-key.pem \
         if the server asks for a certificate; name it by ?tls-certificates=DIR"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The files do not fit together.
    #[error("the certificates in {dir} cannot be used: {source}")]
    Material {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

fn certificates(path: PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(list) if list.is_empty() => {
            Err(TlsError::File { path, why: "it holds no certificate".to_owned() })
        }
        Ok(list) => Ok(list),
        Err(error) => Err(TlsError::File { path, why: error.to_string() }),
    }
}

/// The configuration of a client: trusts `ca-cert.pem`, shows `client-cert.pem` if it is there.
pub fn config(dir: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let dir = dir.unwrap_or(Path::new(DEFAULT_DIR));
    let material = |source| TlsError::Material { dir: dir.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(dir.join("ca-cert.pem"))? {
        roots.add(certificate).map_err(material)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(material)?
        .with_root_certificates(roots);
    let own = dir.join("client-cert.pem");
    let config = if own.exists() {
        let path = dir.join("client-key.pem");
        let key = PrivateKeyDer::from_pem_file(&path)
            .map_err(|error| TlsError::File { path, why: error.to_string() })?;
        builder.with_client_auth_cert(certificates(own)?, key).map_err(material)?
    } else {
        builder.with_no_client_auth()
    };
    Ok(Arc::new(config))
}
