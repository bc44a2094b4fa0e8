//! The two networks of the lab, and what can happen to them.
//!
//! A namespace of its own holds the switches: one bridge per network, with one port per host. In every host the
//! interfaces are called `lan` and `san`, so that nothing of the lab has a name in the machine's own network. Cuts are
//! made at the switch, where the hosts do not see them, with what every kernel has: a port that is taken out of its
//! bridge, a port that is down, a neighbour's hardware address that leads nowhere.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::namespace::{Feeder, Namespace};

/// The last byte of the target's address.
pub const TARGET: u8 = 254;
/// So that QUIC may use the packets that make it fast; switches for storage carry them.
const MTU: u32 = 9000;
/// The hardware address of the bridges: what is sent to it ends there, as they have no protocol address.
const NOWHERE: &str = "02:00:00:00:00:fe";
/// How much the shaper lets through at once, in bytes: the largest packet that the kernel hands it, and more when the
/// rate asks for it.
const BURST_MIN: u64 = 128 << 10;

/// One of the two networks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Between the nodes: 10.77.0.0/24.
    Lan,
    /// From the nodes to the target: 10.78.0.0/24.
    San,
}

impl Network {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Lan, Self::San];

    /// Its name, which is also that of the interfaces.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::San => "san",
        }
    }

    /// The address of the host with this number.
    #[must_use]
    pub fn address(self, host: u8) -> Ipv4Addr {
        match self {
            Self::Lan => Ipv4Addr::new(10, 77, 0, host),
            Self::San => Ipv4Addr::new(10, 78, 0, host),
        }
    }

    fn port(self, host: u8) -> String {
        format!("{}{host}", self.name())
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|network| network.name() == text);
        found.ok_or_else(|| format!("{text:?} is no network of the lab: say lan or san"))
    }
}

/// How a network is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// Packets are lost, in both directions; nobody is told.
    Silent,
    /// The cable is pulled: the host sees that its interface has no carrier.
    Unplugged,
    /// Established TCP connections are reset on both sides first, as by a firewall that says so; then as `Silent`.
    Reset,
}

impl FromStr for Cut {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "silent" => Ok(Self::Silent),
            "unplugged" => Ok(Self::Unplugged),
            "reset" => Ok(Self::Reset),
            _ => Err(format!("{text:?} is no way to cut: say silent, unplugged or reset")),
        }
    }
}

/// The switches.
#[derive(Clone, Debug)]
pub struct Switch {
    namespace: Namespace,
}

impl Switch {
    /// The switches in `namespace`.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace }
    }

    /// Makes the namespace and the bridges.
    pub fn make(&self) -> Result<()> {
        self.namespace.make()?;
        let mut lines = String::new();
        for network in Network::ALL {
            lines += &format!("link add {network} address {NOWHERE} mtu {MTU} type bridge\n");
            lines += &format!("link set {network} up\n");
        }
        self.namespace.ip(&lines)
    }

    /// Gives `namespace` an interface on `network`, as the host with this number.
    pub fn plug(&self, namespace: &Namespace, network: Network, host: u8) -> Result<()> {
        let (port, address, name) = (network.port(host), network.address(host), namespace.name());
        let mac = match network {
            Network::Lan => format!("02:00:00:00:4d:{host:02x}"),
            Network::San => format!("02:00:00:00:4e:{host:02x}"),
        };
        self.namespace.ip(&format!(
            "link add {port} mtu {MTU} type veth peer name {network} address {mac} mtu {MTU} netns {name}\n\
             link set {port} master {network} up\n"
        ))?;
        // Without duplicate address detection of IPv6, which nobody here uses, an interface is usable at once.
        namespace.ip(&format!("address add {address}/24 dev {network}\nlink set {network} up\n"))
    }

    /// Limits what goes to and comes from the host's interface to so many bytes a second, each; no number lifts the
    /// limit.
    pub fn shape(
        &self,
        namespace: &Namespace,
        network: Network,
        host: u8,
        bytes_s: Option<u64>,
    ) -> Result<()> {
        let port = network.port(host);
        for (place, device) in [(namespace, network.name()), (&self.namespace, port.as_str())] {
            match bytes_s {
                Some(rate) => {
                    let burst = (rate / 100).max(BURST_MIN);
                    place.tc(&format!(
                        "qdisc replace dev {device} root tbf rate {rate}bps burst {burst} latency 100ms\n"
                    ))?;
                }
                None => {
                    // It fails if there was no limit.
                    let _ = place.tc(&format!("qdisc delete dev {device} root\n"));
                }
            }
        }
        Ok(())
    }

    /// What [`Switch::cut`] will need, so that it starts no process when it cuts.
    pub(super) fn ready(&self) -> Result<Feeder> {
        self.namespace.ready_ip()
    }

    /// Cuts the host off `network` silently.
    pub(super) fn cut_by(ready: Feeder, network: Network, host: u8) -> Result<()> {
        ready.feed(&format!("link set {} nomaster\n", network.port(host)))
    }

    /// Cuts the host off `network`.
    pub fn cut(&self, namespace: &Namespace, network: Network, host: u8, how: Cut) -> Result<()> {
        let port = network.port(host);
        if how == Cut::Reset {
            reset_connections(namespace, network.address(host))?;
        }
        match how {
            Cut::Silent | Cut::Reset => self.namespace.ip(&format!("link set {port} nomaster\n")),
            Cut::Unplugged => self.namespace.ip(&format!("link set {port} down\n")),
        }
    }

    /// Undoes [`Switch::cut`].
    pub fn heal(&self, network: Network, host: u8) -> Result<()> {
        let port = network.port(host);
        self.namespace.ip(&format!("link set {port} master {network}\nlink set {port} up\n"))
    }

    /// Loses what `from` sends to the host `to`; the other direction is not touched.
    pub fn cut_way(&self, from: &Namespace, to: u8, network: Network) -> Result<()> {
        let address = network.address(to);
        from.ip(&format!("neighbour replace {address} lladdr {NOWHERE} dev {network} nud permanent\n"))
    }

    /// Undoes [`Switch::cut_way`].
    pub fn heal_way(&self, from: &Namespace, to: u8, network: Network) -> Result<()> {
        let address = network.address(to);
        // Replaced first, as deleting what is not there is an error.
        from.ip(&format!(
            "neighbour replace {address} lladdr {NOWHERE} dev {network} nud permanent\n\
             neighbour delete {address} dev {network}\n"
        ))
    }
}

/// Resets the TCP connections of `namespace` from `address`: both ends see a reset.
fn reset_connections(namespace: &Namespace, address: Ipv4Addr) -> Result<()> {
    let output = namespace
        .command("ss")?
        .args(["--kill", "--tcp", "--no-header", "state", "connected", "src"])
        .arg(address.to_string())
        .output()
        .context("starting ss (of the package iproute2)")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ss cannot reset connections: {errors}");
    Ok(())
}
