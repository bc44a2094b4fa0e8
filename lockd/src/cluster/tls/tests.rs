use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use tempfile::TempDir;

use super::issue::{Authority, Validity};
use super::*;
use crate::cluster::Cluster;
use crate::ids::NodeName;

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// A cluster with nodes on loopback, all of them voters, its certificates in `folder`.
pub(crate) fn cluster(folder: &Path, cluster: &str, nodes: &[(&str, u16)]) -> Cluster {
    let mut text = format!("name = \"{cluster}\"\n");
    for (n, (node, port)) in nodes.iter().enumerate() {
        let voter = n == 0;
        text.push_str(&format!(
            "[[node]]\nname = \"{node}\"\naddress = \"127.0.0.1\"\nport = {port}\nvoter = {voter}\n"
        ));
    }
    Cluster::parse(&text, &folder.join("cluster.toml")).unwrap()
}

/// Replaces the certificate of `node` by one that is valid from and to so many seconds from now.
pub(crate) fn reissue(cluster: &Cluster, node: &str, from: i64, to: i64) {
    let key = std::fs::read_to_string(cluster.tls_dir.join("ca.key")).unwrap();
    let authority = Authority::new(&cluster.name, KeyPair::from_pem(&key).unwrap());
    let at = |seconds: i64| {
        let span = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 { SystemTime::now() - span } else { SystemTime::now() + span }
    };
    let address = cluster.node(&name(node)).unwrap().address;
    let validity = Validity { from: at(from), to: at(to) };
    let (certificate, key) = authority.issue(&name(node), address, validity).unwrap();
    std::fs::write(cluster.tls_dir.join(format!("{node}.pem")), certificate.pem()).unwrap();
    std::fs::write(cluster.tls_dir.join(format!("{node}.key")), key.serialize_pem()).unwrap();
}

fn made() -> (TempDir, Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path(), "lab", &[("n1", 7400), ("n2", 7410)]);
    init(&cluster).unwrap();
    (folder, cluster)
}

fn refusal(cluster: &Cluster, node: &str) -> String {
    let text = Credentials::load(cluster, &name(node)).unwrap_err().to_string();
    text.replace(cluster.tls_dir.to_str().unwrap(), "TLS")
}

#[test]
fn init_makes_an_authority_and_a_certificate_for_each_node() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path(), "lab", &[("n1", 7400), ("n2", 7410)]);
    let report = init(&cluster).unwrap();
    assert_eq!(report.authority, Made::New);
    assert_eq!(report.nodes, [(name("n1"), Made::New), (name("n2"), Made::New)]);
    let mut files: Vec<_> = std::fs::read_dir(&cluster.tls_dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
            entry.file_name().into_string().unwrap()
        })
        .collect();
    files.sort();
    assert_eq!(files, ["ca.key", "ca.pem", "n1.key", "n1.pem", "n2.key", "n2.pem"]);
    assert_eq!(cluster.tls_dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);

    let one = Credentials::load(&cluster, &name("n1")).unwrap();
    assert!((1824..=1826).contains(&one.days_left()), "{}", one.days_left());
    let two = Credentials::load(&cluster, &name("n2")).unwrap();
    let identity = one.identify(&two.certificate).unwrap();
    assert_eq!(identity, Identity { cluster: "lab".to_owned(), node: name("n2") });
    assert!(!format!("{one:?}").contains("PRIVATE"));
}

#[test]
fn init_overwrites_nothing_and_adds_a_node_later() {
    let (folder, first) = made();
    let before: Vec<_> =
        ["ca.key", "n1.pem"].iter().map(|file| std::fs::read(first.tls_dir.join(file)).unwrap()).collect();
    let larger = cluster(folder.path(), "lab", &[("n1", 7400), ("n2", 7410), ("n3", 7420)]);
    let report = init(&larger).unwrap();
    assert_eq!(report.authority, Made::Kept);
    let made: Vec<_> = report.nodes.iter().map(|(_, made)| *made).collect();
    assert_eq!(made, [Made::Kept, Made::Kept, Made::New]);
    let after: Vec<_> =
        ["ca.key", "n1.pem"].iter().map(|file| std::fs::read(first.tls_dir.join(file)).unwrap()).collect();
    assert_eq!(before, after);
    let one = Credentials::load(&larger, &name("n1")).unwrap();
    one.identify(&Credentials::load(&larger, &name("n3")).unwrap().certificate).unwrap();

    // Nothing to make needs no key of the authority; a new node does.
    std::fs::remove_file(larger.tls_dir.join("ca.key")).unwrap();
    assert!(init(&larger).unwrap().nodes.iter().all(|(_, made)| *made == Made::Kept));
    let largest = cluster(folder.path(), "lab", &[("n1", 7400), ("n4", 7430)]);
    assert!(matches!(init(&largest), Err(TlsError::AuthorityKeyMissing { owner, .. }) if owner == "node n4"));
    std::fs::remove_file(larger.tls_dir.join("n1.key")).unwrap();
    assert!(matches!(init(&larger), Err(TlsError::HalfThere { .. })));
}

#[test]
fn an_authority_of_other_files_is_not_used() {
    let (folder, first) = made();
    let (_other_folder, other) = made();
    std::fs::copy(other.tls_dir.join("ca.key"), first.tls_dir.join("ca.key")).unwrap();
    let larger = cluster(folder.path(), "lab", &[("n1", 7400), ("n3", 7420)]);
    assert!(matches!(init(&larger), Err(TlsError::OtherAuthority { .. })));
    std::fs::write(first.tls_dir.join("ca.key"), "no key").unwrap();
    assert!(matches!(init(&larger), Err(TlsError::NotPem { wanted: "key", .. })));
    std::fs::remove_file(first.tls_dir.join("ca.pem")).unwrap();
    assert!(matches!(init(&larger), Err(TlsError::HalfThere { .. })));
}

#[test]
fn certificates_that_the_others_would_refuse_are_not_loaded() {
    let (folder, first) = made();
    reissue(&first, "n1", -864_000, -259_200);
    assert_eq!(
        refusal(&first, "n1"),
        "TLS/n1.pem: the certificate expired 3 days ago, if this machine's clock is right: remove the node's .pem and \
         .key and run `lockctl init` again"
    );
    reissue(&first, "n1", 7_300, 864_000);
    assert_eq!(
        refusal(&first, "n1").replace("1 hour ", "2 hours "),
        "TLS/n1.pem: the certificate will not be valid before 2 hours from now: is this machine's clock right?"
    );
    reissue(&first, "n1", -60, 864_000);
    let credentials = Credentials::load(&first, &name("n1")).unwrap();
    assert!((9..=10).contains(&credentials.days_left()));

    let (_other_folder, other) = made();
    for file in ["n2.pem", "n2.key"] {
        std::fs::copy(other.tls_dir.join(file), first.tls_dir.join(file)).unwrap();
    }
    assert_eq!(
        refusal(&first, "n2"),
        "TLS/n2.pem: the certificate of csv://lab/n2 was not issued by this cluster's authority: the ca.pem and the \
         certificates of all nodes must come from one `lockctl init`"
    );
    for file in ["pem", "key"] {
        let (from, to) = (format!("n1.{file}"), format!("n2.{file}"));
        std::fs::copy(first.tls_dir.join(from), first.tls_dir.join(to)).unwrap();
    }
    assert_eq!(
        refusal(&first, "n2"),
        "TLS/n2.pem: the certificate is of node n1, but it should be of node n2: is n2's address in the cluster file \
         right?"
    );
    let renamed = cluster(folder.path(), "prod", &[("n1", 7400)]);
    assert_eq!(
        refusal(&renamed, "n1"),
        "TLS/n1.pem: the certificate is of cluster lab, but this is cluster prod"
    );
    let without = cluster(folder.path(), "lab", &[("n3", 7400)]);
    assert_eq!(
        refusal(&without, "n1"),
        "TLS/n1.pem: the certificate is of node n1, which the cluster file does not name"
    );
}

#[test]
fn files_that_are_not_what_they_should_be_are_named() {
    let (_folder, cluster) = made();
    std::fs::copy(cluster.tls_dir.join("n1.key"), cluster.tls_dir.join("n2.key")).unwrap();
    assert_eq!(
        refusal(&cluster, "n2"),
        "TLS/n2.key is not the key of TLS/n2.pem: they come from different runs of `lockctl init`"
    );
    std::fs::write(cluster.tls_dir.join("n1.pem"), "garbage").unwrap();
    assert_eq!(refusal(&cluster, "n1"), "TLS/n1.pem holds no certificate in PEM format: no items found");
    std::fs::remove_file(cluster.tls_dir.join("n1.pem")).unwrap();
    assert!(refusal(&cluster, "n1").starts_with("TLS/n1.pem cannot be read: No such file"));

    let (_folder, cluster) = made();
    std::fs::copy(cluster.tls_dir.join("n1.pem"), cluster.tls_dir.join("ca.pem")).unwrap();
    let text = refusal(&cluster, "n2");
    assert!(text.contains("was not issued by this cluster's authority"), "{text}");
}
