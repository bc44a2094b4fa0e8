//! Who is who: the cluster's certificate authority, the certificates of its nodes, and their check.
//!
//! [`init`] makes, in the cluster file's TLS directory, `ca.pem` and `ca.key`, and for each node `NODE.pem` and
//! `NODE.key`. `ca.key` stays with the administrator, who needs it to add a node; a node needs `ca.pem` and its own two
//! files. A node's certificate names it by the URI `csv://CLUSTER/NODE`; the IP address is in it too, for ordinary TLS
//! clients of `csv-target`, but is nowhere taken for an identity. Certificates serve both as client and as server.
//!
//! The csv-targets whose control ports the cluster file names share `target.pem` and `target.key`, which name their hosts
//! and serve as a server's only.
//!
//! A peer is accepted when its certificate was issued by this cluster's authority, is within its time, names this
//! cluster and a node of the cluster file; and, for a connection that we make, the node that we meant. TLS 1.3 only,
//! without tickets: every connection shows its certificate anew, and there is no early data.

mod credentials;
mod error;
mod identity;
mod issue;
mod target;
#[cfg(test)]
pub(crate) mod tests;
mod verify;

pub use credentials::Credentials;
pub use error::TlsError;
pub use identity::{Identity, IdentityError};
pub use issue::{InitReport, Made, init};
pub use target::{TargetTls, node_of};
pub(crate) use verify::Verdict;

/// The name of the authority's certificate in the TLS directory.
const CA_CERTIFICATE: &str = "ca.pem";
/// Whose certificate and key those of the targets are, as files are named.
pub(crate) const TARGET_NAME: &str = "target";
/// The name of the authority's key in the TLS directory.
const CA_KEY: &str = "ca.key";
