//! The authority and the certificates that it issues.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::identity::{Identity, Side, identify};
use super::{CA_CERTIFICATE, CA_KEY, TARGET_NAME, TlsError};
use crate::cluster::{Cluster, Node};
use crate::ids::NodeName;

const DAY: Duration = Duration::from_secs(86_400);
const CA_DAYS: u32 = 7_305;
const NODE_DAYS: u32 = 1_826;

/// What [`init`] did about a certificate and its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Made {
    /// They were made.
    New,
    /// They were there and were left as they are.
    Kept,
}

/// What [`init`] has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InitReport {
    /// The directory of the files.
    pub directory: PathBuf,
    /// The authority.
    pub authority: Made,
    /// Each node of the cluster file.
    pub nodes: Vec<(NodeName, Made)>,
    /// The csv-targets whose control ports the cluster file names; none if it names none.
    pub target: Option<Made>,
}

/// A span of civil time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Validity {
    pub(super) from: SystemTime,
    pub(super) to: SystemTime,
}

impl Validity {
    /// From a day ago, since the clocks of hosts differ, for `days`.
    fn starting_now(days: u32) -> Self {
        let now = SystemTime::now();
        Self { from: now - DAY, to: now + DAY * days }
    }

    fn apply(self, params: &mut CertificateParams) {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + self.from.duration_since(UNIX_EPOCH).unwrap_or_default();
        params.not_after = epoch + self.to.duration_since(UNIX_EPOCH).unwrap_or_default();
    }
}

/// The authority of a cluster: what can issue certificates.
pub(super) struct Authority {
    cluster: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority with that key. The rest of it follows from the cluster's name.
    pub(super) fn new(cluster: &str, key: KeyPair) -> Self {
        Self { cluster: cluster.to_owned(), issuer: Issuer::new(authority_params(cluster), key) }
    }

    /// Its own certificate.
    pub(super) fn certificate(&self) -> Result<rcgen::Certificate, rcgen::Error> {
        authority_params(&self.cluster).self_signed(self.issuer.key())
    }

    /// A certificate for a node, and its key.
    pub(super) fn issue(
        &self,
        node: &NodeName,
        address: IpAddr,
        validity: Validity,
    ) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
        self.sign(
            &node.to_string(),
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            vec![SanType::URI(Identity::uri(&self.cluster, node).try_into()?), SanType::IpAddress(address)],
            validity,
        )
    }

    /// A certificate for the csv-targets at `hosts`, and its key. It is of no use to a client.
    fn issue_target(
        &self,
        hosts: &BTreeSet<String>,
        validity: Validity,
    ) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
        let name = |host: &String| match host.parse() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => Ok(SanType::DnsName(host.as_str().try_into()?)),
        };
        let names = hosts.iter().map(name).collect::<Result<_, rcgen::Error>>()?;
        self.sign("targets", vec![ExtendedKeyUsagePurpose::ServerAuth], names, validity)
    }

    fn sign(
        &self,
        whose: &str,
        usages: Vec<ExtendedKeyUsagePurpose>,
        names: Vec<SanType>,
        validity: Validity,
    ) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
        let mut params = CertificateParams::default();
        validity.apply(&mut params);
        params.distinguished_name = distinguished_name(&format!("{whose} of csvfs cluster {}", self.cluster));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.subject_alt_names = names;
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }
}

fn authority_params(cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    Validity::starting_now(CA_DAYS).apply(&mut params);
    params.distinguished_name = distinguished_name(&format!("authority of csvfs cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn distinguished_name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// Makes what is missing of the cluster's authority and of its nodes' certificates and keys: all of it the first time,
/// those of a new node later. What is there is never overwritten. Only the owner of the files may read them.
///
/// # Errors
/// If a file cannot be read or made, if only half of a pair is there, if a new node needs a certificate and the
/// authority's key is not at hand.
pub fn init(cluster: &Cluster) -> Result<InitReport, TlsError> {
    let directory = cluster.tls_dir.clone();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(|source| TlsError::Unwritable { path: directory.clone(), source })?;

    let mut missing = Vec::new();
    let mut nodes = Vec::new();
    for node in &cluster.nodes {
        let pair = Pair::of(&directory, node.name.as_str());
        let there = pair.is_there()?;
        nodes.push((node.name.clone(), if there { Made::Kept } else { Made::New }));
        if !there {
            missing.push((Owner::Node(node), pair));
        }
    }
    let hosts = cluster.control_hosts();
    let mut target = None;
    if !hosts.is_empty() {
        let pair = Pair::of(&directory, TARGET_NAME);
        if pair.is_there()? {
            check_hosts(&pair.certificate, &hosts)?;
            target = Some(Made::Kept);
        } else {
            missing.push((Owner::Targets(&hosts), pair));
            target = Some(Made::New);
        }
    }

    let pair = Pair { certificate: directory.join(CA_CERTIFICATE), key: directory.join(CA_KEY) };
    let authority_made = if exists(&pair.certificate) { Made::Kept } else { Made::New };
    let authority = match (authority_made, missing.first()) {
        (Made::New, _) if exists(&pair.key) => {
            return Err(TlsError::HalfThere { present: pair.key, missing: pair.certificate });
        }
        (Made::New, _) => {
            let authority = Authority::new(&cluster.name, KeyPair::generate().map_err(refused)?);
            let certificate = authority.certificate().map_err(refused)?;
            pair.write(&certificate, authority.issuer.key())?;
            authority
        }
        (Made::Kept, None) => return Ok(InitReport { directory, authority: Made::Kept, nodes, target }),
        (Made::Kept, Some((owner, _))) if !exists(&pair.key) => {
            return Err(TlsError::AuthorityKeyMissing { key: pair.key, owner: owner.to_string() });
        }
        (Made::Kept, Some(_)) => load_authority(&cluster.name, &pair)?,
    };
    for (owner, pair) in missing {
        let validity = Validity::starting_now(NODE_DAYS);
        let issued = match owner {
            Owner::Node(node) => authority.issue(&node.name, node.address, validity),
            Owner::Targets(hosts) => authority.issue_target(hosts, validity),
        };
        let (certificate, key) = issued.map_err(refused)?;
        pair.write(&certificate, &key)?;
    }
    Ok(InitReport { directory, authority: authority_made, nodes, target })
}

/// Whose certificate is missing.
enum Owner<'a> {
    Node(&'a Node),
    Targets(&'a BTreeSet<String>),
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {}", node.name),
            Self::Targets(_) => f.write_str("the targets"),
        }
    }
}

/// Whether the targets' certificate at `path` is for all of these hosts.
fn check_hosts(path: &Path, hosts: &BTreeSet<String>) -> Result<(), TlsError> {
    let pem = std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })?;
    let not_pem = |why: String| TlsError::NotPem { path: path.to_owned(), wanted: "certificate", why };
    let certificate = CertificateDer::from_pem_slice(&pem).map_err(|error| not_pem(error.to_string()))?;
    let parsed = webpki::EndEntityCert::try_from(&certificate).map_err(|error| not_pem(error.to_string()))?;
    let is_named = |host: &&String| {
        let name = ServerName::try_from(host.as_str());
        name.is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok())
    };
    match hosts.iter().find(|host| !is_named(host)) {
        Some(host) => Err(TlsError::OtherHosts { path: path.to_owned(), host: host.clone() }),
        None => Ok(()),
    }
}

/// The authority whose files are there, if they belong together and to this cluster.
fn load_authority(cluster: &str, pair: &Pair) -> Result<Authority, TlsError> {
    let unreadable = |path: &Path, source| TlsError::Unreadable { path: path.to_owned(), source };
    let key = std::fs::read_to_string(&pair.key).map_err(|source| unreadable(&pair.key, source))?;
    let key = KeyPair::from_pem(&key).map_err(|error| TlsError::NotPem {
        path: pair.key.clone(),
        wanted: "key",
        why: error.to_string(),
    })?;
    let pem = std::fs::read(&pair.certificate).map_err(|source| unreadable(&pair.certificate, source))?;
    let not_pem = |why| TlsError::NotPem { path: pair.certificate.clone(), wanted: "certificate", why };
    let certificate = CertificateDer::from_pem_slice(&pem).map_err(|error| not_pem(error.to_string()))?;
    let anchor =
        webpki::anchor_from_trusted_cert(&certificate).map_err(|error| not_pem(error.to_string()))?;

    // Issue one on trial: what the other nodes check is what counts.
    let authority = Authority::new(cluster, key);
    let node: NodeName = "trial".parse().map_err(|_| not_pem("the trial name is not valid".to_owned()))?;
    let (trial, _) =
        authority.issue(&node, IpAddr::from([127, 0, 0, 1]), Validity::starting_now(1)).map_err(refused)?;
    match identify(trial.der(), &[anchor], UnixTime::now(), Side::Server) {
        Ok(_) => Ok(authority),
        Err(_) => Err(TlsError::OtherAuthority {
            certificate: pair.certificate.clone(),
            key: pair.key.clone(),
            cluster: cluster.to_owned(),
        }),
    }
}

fn refused(error: rcgen::Error) -> TlsError {
    TlsError::Library { what: "to make a certificate", why: error.to_string() }
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The files of a certificate and its key.
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn of(directory: &Path, name: &str) -> Self {
        Self {
            certificate: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        }
    }

    fn is_there(&self) -> Result<bool, TlsError> {
        match (exists(&self.certificate), exists(&self.key)) {
            (true, true) => Ok(true),
            (false, false) => Ok(false),
            (true, false) => {
                Err(TlsError::HalfThere { present: self.certificate.clone(), missing: self.key.clone() })
            }
            (false, true) => {
                Err(TlsError::HalfThere { present: self.key.clone(), missing: self.certificate.clone() })
            }
        }
    }

    fn write(&self, certificate: &rcgen::Certificate, key: &KeyPair) -> Result<(), TlsError> {
        write_new(&self.key, &key.serialize_pem())?;
        write_new(&self.certificate, &certificate.pem())
    }
}

fn write_new(path: &Path, text: &str) -> Result<(), TlsError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| TlsError::Unwritable { path: path.to_owned(), source })
}
