//! TLS with certificates of the cluster's own authority, on the NBD port and on the control port.

use std::path::Path;
use std::time::Duration;

use lockd::cluster::Cluster;
use lockd::cluster::tls::Credentials;
use lockd::fencing::TargetControl;
use lockd::ids::ClientId;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use redirector::nbd::wire::{opt, rep};
use redirector::target::{Address, ask};
use serde_json::json;

use crate::lab::{Lab, noise, run};

/// Writes an authority and a server's and a client's certificate of it to `dir`.
fn certify(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "the cluster's authority");
    std::fs::write(dir.join("ca-cert.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    for (role, usage) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, role);
        params.extended_key_usages.push(usage);
        std::fs::write(dir.join(format!("{role}-cert.pem")), params.signed_by(&key, &issuer).unwrap().pem())
            .unwrap();
        std::fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
    }
}

fn secure_lab() -> Lab {
    Lab::with(|config| {
        let dir = config.file.with_file_name("tls");
        certify(&dir);
        config.tls = Some(dir);
        config.listen.push(Address::Tcp("127.0.0.1:0".to_owned()));
        config.control = Some(Address::Tcp("127.0.0.1:0".to_owned()));
    })
}

/// The URI of the TCP address, with the certificates in `dir`.
fn uri(lab: &Lab, dir: &Path) -> String {
    let uri = lab.server.uris()[1].replace("127.0.0.1", "localhost");
    format!("{uri}?tls-certificates={}", dir.display())
}

#[test]
fn libnbd_copies_through_tls() {
    let lab = secure_lab();
    let source = lab.path("source.img");
    std::fs::write(&source, noise(3, 64 << 20)).unwrap();
    let (uri, back) = (uri(&lab, &lab.path("tls")), lab.path("back.img"));
    assert!(run("nbdinfo", &[&uri]).contains("with TLS"));
    run("nbdcopy", &["--flush", source.to_str().unwrap(), &uri]);
    run("nbdcopy", &["--connections=2", &uri, back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == std::fs::read(&source).unwrap());
}

#[test]
fn nothing_is_served_in_the_clear_or_to_strangers() {
    let lab = secure_lab();
    let mut peer = lab.connect();
    for option in [opt::LIST, opt::GO, opt::HELLO, opt::STRUCTURED_REPLY] {
        assert_eq!(peer.option(option, &[]).unwrap_err().0, rep::ERR_TLS_REQD);
    }
    peer.send_option(opt::EXPORT_NAME, b"vms");
    assert!(peer.is_closed());
    // A certificate of another authority, and none at all.
    let stranger = lab.path("stranger");
    certify(&stranger);
    std::fs::copy(lab.path("tls").join("ca-cert.pem"), stranger.join("ca-cert.pem")).unwrap();
    let refused = |dir: &Path| {
        let output = std::process::Command::new("nbdinfo").arg(uri(&lab, dir)).output().unwrap();
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    };
    refused(&stranger);
    std::fs::remove_file(stranger.join("client-cert.pem")).unwrap();
    std::fs::remove_file(stranger.join("client-key.pem")).unwrap();
    refused(&stranger);
    // Bytes in the clear that follow STARTTLS at once are not carried over into the session.
    let mut injected = lab.connect();
    let mut bytes = b"IHAVEOPT\0\0\0\x05\0\0\0\0".to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    std::io::Write::write_all(&mut injected.stream, &bytes).unwrap();
    assert!(injected.is_closed());
}

#[test]
fn control_demands_a_certificate_too() {
    let lab = secure_lab();
    let address = lab.server.control_address().unwrap();
    let tls = lab.path("tls");
    let status = ask(address, Some(&tls), &json!({"op": "status"})).unwrap();
    assert_eq!(status["boot_id"], lab.server.boot_id().to_string());
    ask(address, Some(&tls), &json!({"op": "fence", "client": 7})).unwrap();
    assert_eq!(lab.server.status().ended, 1);
    assert!(ask(address, None, &json!({"op": "status"})).is_err());
    let stranger = lab.path("stranger");
    certify(&stranger);
    std::fs::copy(tls.join("ca-cert.pem"), stranger.join("ca-cert.pem")).unwrap();
    assert!(ask(address, Some(&stranger), &json!({"op": "status"})).is_err());
    let refused = ask(address, Some(&tls), &json!({"op": "reboot"})).unwrap_err().to_string();
    assert!(refused.contains("not understood"), "{refused}");
}

const CLUSTER: &str = r#"
name = "lab"
[[node]]
name = "n1"
address = "10.77.0.1"
voter = true
[[volume]]
name = "vms"
lun = ["nbd://127.0.0.1/vms"]
control = ["127.0.0.1:1"]
"#;

/// A cluster with its certificates in `dir`.
fn cluster(dir: &Path) -> Cluster {
    std::fs::create_dir_all(dir).unwrap();
    let cluster = Cluster::parse(CLUSTER, &dir.join("cluster.toml")).unwrap();
    lockd::cluster::tls::init(&cluster).unwrap();
    cluster
}

#[test]
fn the_nodes_of_a_cluster_fence_by_their_certificates_and_nobody_else_does() {
    let within = Duration::from_secs(10);
    let mut mine = None;
    let mut lab = Lab::with(|config| {
        let cluster = cluster(&config.file.with_file_name("cluster"));
        config.control_tls = Some(cluster.tls_dir.clone());
        config.control = Some(Address::Tcp("127.0.0.1:0".to_owned()));
        mine = Some(cluster);
    });
    let (mine, stranger) = (mine.unwrap(), cluster(&lab.path("stranger")));
    let address = |lab: &Lab| lab.server.control_address().unwrap().to_string().parse().unwrap();
    let control = |lab: &Lab, cluster: &Cluster| {
        let credentials = Credentials::load(cluster, &"n1".parse().unwrap()).unwrap();
        TargetControl::new(&address(lab), &credentials).unwrap()
    };
    let before = control(&lab, &mine).mark(within).unwrap();
    assert_eq!(before.boot, lab.server.boot_id().to_string());
    let (_first, mut second) = (lab.client(7), lab.client(8));
    control(&lab, &mine).fence(&[ClientId(7), ClientId(8), ClientId(9)], within).unwrap();
    assert!(second.is_closed());
    assert_eq!(lab.server.status().ended, 3);
    let refused = control(&lab, &mine).fence(&[], within).unwrap_err().to_string();
    assert!(refused.contains("0 clients to fence"), "{refused}");
    let foreign = control(&lab, &stranger).mark(within).unwrap_err().to_string();
    assert!(foreign.contains("--control-tls"), "{foreign}");
    assert!(ask(lab.server.control_address().unwrap(), None, &json!({"op": "status"})).is_err());
    assert_eq!(lab.server.status().ended, 3);
    // A restart keeps the list, a lost directory does not.
    lab.restart();
    let after = control(&lab, &mine).mark(within).unwrap();
    assert!(after.boot != before.boot && after.list == before.list && after.list.is_some());
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    lab.restart();
    assert_ne!(control(&lab, &mine).mark(within).unwrap().list, before.list);
}
