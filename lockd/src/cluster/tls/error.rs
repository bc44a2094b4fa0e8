//! Why certificates could not be made or loaded.

use std::path::PathBuf;

use super::IdentityError;

/// Why certificates could not be made or loaded.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(
        "{path} cannot be read: {source}; `lockctl init` makes it, and each node needs a copy of ca.pem and its own two files"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file or directory cannot be made.
    #[error("{path} cannot be written: {source}; nothing that was there has been changed")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path} holds no {wanted} in PEM format: {why}")]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What the parser says.
        why: String,
    },
    /// Of a certificate and its key only one is there.
    #[error(
        "{present} is there but {missing} is not; bring it back, or remove {present} to have both made anew"
    )]
    HalfThere {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// The authority cannot issue certificates for new nodes.
    #[error(
        "{key} is not there, and without it no certificate can be issued for {owner}: run `lockctl init` where the cluster was made"
    )]
    AuthorityKeyMissing {
        /// The authority's key.
        key: PathBuf,
        /// Who has no certificate yet.
        owner: String,
    },
    /// The targets' certificate was made for other control ports.
    #[error(
        "{path} is not for {host}, which the cluster file names in `control`: remove it and its key, run `lockctl init` \
         again, and copy both to the targets"
    )]
    OtherHosts {
        /// The certificate.
        path: PathBuf,
        /// A host that it does not name.
        host: String,
    },
    /// The authority's key does not belong to its certificate, or the authority is another cluster's.
    #[error(
        "{certificate} was not made for cluster {cluster} with {key}: they come from different runs of `lockctl init`"
    )]
    OtherAuthority {
        /// The authority's certificate.
        certificate: PathBuf,
        /// The authority's key.
        key: PathBuf,
        /// The cluster.
        cluster: String,
    },
    /// A key does not belong to its certificate.
    #[error("{key} is not the key of {certificate}: they come from different runs of `lockctl init`")]
    KeyMismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// Our own certificate would not be accepted by the others.
    #[error("{path}: {source}")]
    Certificate {
        /// The certificate.
        path: PathBuf,
        /// What is wrong with it.
        source: IdentityError,
    },
    /// The cryptographic library refuses.
    #[error("the cryptographic library refuses {what}: {why}")]
    Library {
        /// What was wanted of it.
        what: &'static str,
        /// Its words.
        why: String,
    },
}
