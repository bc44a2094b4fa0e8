//! A cluster on loopback addresses that no other test has.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::cluster::tls::{Credentials, init};
use crate::cluster::{Cluster, Program};
use crate::ids::NodeName;
use crate::peers::quic::{QuicConfig, QuicEndpoint};
use crate::peers::{BoxFuture, Channel, FRAME_MAX, NotServed, PeerError, Peers, Serve};

pub(super) const LONG: Duration = Duration::from_secs(15);
pub(super) const SHORT: Duration = Duration::from_millis(300);

static ADDRESSES: AtomicU8 = AtomicU8::new(1);

pub(super) fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// An address of this machine that no other process of these tests uses.
pub(super) fn fresh_address() -> IpAddr {
    let pid = std::process::id();
    let octet = |number: u32| u8::try_from(number % 250).unwrap() + 2;
    let last = ADDRESSES.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(127, octet(pid), octet(pid / 250), last).into()
}

/// A cluster file for nodes at addresses, the certificates of one `lockctl init` beside it.
pub(super) struct World {
    _folder: TempDir,
    pub(super) cluster: Arc<Cluster>,
}

impl World {
    pub(super) fn new(nodes: &[&str]) -> Self {
        let nodes: Vec<_> = nodes.iter().map(|node| (*node, fresh_address())).collect();
        Self::at(&nodes)
    }

    pub(super) fn at(nodes: &[(&str, IpAddr)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cluster = describe(folder.path(), nodes, 7400);
        init(&cluster).unwrap();
        Self { _folder: folder, cluster: Arc::new(cluster) }
    }

    /// The same certificates, but another cluster file.
    pub(super) fn variant(&self, nodes: &[(&str, IpAddr)], port: u16) -> Arc<Cluster> {
        Arc::new(describe(self.cluster.tls_dir.parent().unwrap(), nodes, port))
    }

    pub(super) fn address(&self, node: &str) -> IpAddr {
        self.cluster.node(&name(node)).unwrap().address
    }

    pub(super) fn config(&self, node: &str) -> QuicConfig {
        config(&self.cluster, node)
    }

    pub(super) fn start(&self, node: &str) -> QuicEndpoint {
        QuicEndpoint::start(self.config(node), Arc::new(Oddities)).unwrap()
    }
}

fn describe(folder: &Path, nodes: &[(&str, IpAddr)], port: u16) -> Cluster {
    let mut text = "name = \"lab\"\n".to_owned();
    for (n, (node, address)) in nodes.iter().enumerate() {
        text.push_str(&format!("[[node]]\nname = \"{node}\"\naddress = \"{address}\"\nport = {port}\n"));
        text.push_str(&format!("voter = {}\n", n == 0));
    }
    Cluster::parse(&text, &folder.join("cluster.toml")).unwrap()
}

pub(super) fn config(cluster: &Arc<Cluster>, node: &str) -> QuicConfig {
    let credentials = Credentials::load(cluster, &name(node)).unwrap();
    QuicConfig::new(cluster.clone(), credentials, Program::Lockd)
}

/// Answers as the request's first word says.
#[derive(Debug)]
pub(super) struct Oddities;

impl Serve for Oddities {
    fn serve<'a>(
        &'a self,
        from: &'a NodeName,
        channel: Channel,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, NotServed>> {
        Box::pin(async move {
            if frame.starts_with(b"who") {
                Ok(format!("{from} on {channel}").into_bytes())
            } else if frame.starts_with(b"hang") {
                std::future::pending().await
            } else if frame.starts_with(b"refuse") {
                Err(NotServed("not here".to_owned()))
            } else if frame.starts_with(b"swell") {
                Ok(vec![0; FRAME_MAX + 1])
            } else if let [b'w', b'a', b'i', b't', ms, ..] = frame[..] {
                tokio::time::sleep(Duration::from_millis(ms.into())).await;
                Ok(frame)
            } else {
                Ok(frame)
            }
        })
    }
}

/// Asks for an echo.
pub(super) async fn echo(peers: &QuicEndpoint, to: &str, within: Duration) -> Result<(), PeerError> {
    let reply = peers.request(&name(to), Channel::Control, b"hello".to_vec(), within).await?;
    assert_eq!(reply, b"hello");
    Ok(())
}

/// Waits until `condition` holds.
pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came about that {what}");
}
