//! What a cluster file must keep to, beyond its syntax. The limits of every value are in this file and, for what fences
//! need, in `fencing`.

use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;

use toml::Spanned;

use super::super::{Cluster, ClusterFileError, FenceChoice, Node, PORT_DEFAULT, Program, Volume};
use super::fencing;
use super::place::Places;
use super::{RawCluster, RawNode, RawVolume};
use crate::ids::{InvalidName, NodeName, is_valid_name};
use crate::iscsi::IscsiUri;

const NODES_MAX: usize = 64;
const VOLUMES_MAX: usize = 64;
const LUN_PATHS_MAX: usize = 8;
const LEASE_S: RangeInclusive<f64> = 1.0..=300.0;
const GRACE_S: RangeInclusive<f64> = 0.1..=3600.0;
const HOLD_S: RangeInclusive<f64> = 1.0..=86400.0;
const TARGET_QUIESCE_S: RangeInclusive<f64> = 0.1..=3600.0;
const LUN_SCHEMES: [&str; 6] = ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://", "iscsi://", "file:"];

pub(super) fn check(raw: RawCluster, places: &Places<'_>) -> Result<Cluster, ClusterFileError> {
    let name = valid_name(places, &raw.name, "name")?;
    let folder = places.path.parent().unwrap_or(Path::new(""));
    let tls_dir = match &raw.tls {
        Some(tls) if tls.dir.get_ref().is_empty() => {
            return Err(places.mistake(
                tls.dir.span(),
                "dir in [tls]",
                "a directory is needed, such as \"tls\"",
            ));
        }
        Some(tls) => folder.join(tls.dir.get_ref()),
        None => folder.join("tls"),
    };
    let watchdog = fencing::watchdog(raw.watchdog.as_ref(), "watchdog", places)?;
    let mut nodes = nodes(&raw, places)?;
    for node in &mut nodes {
        node.watchdog = node.watchdog.take().or_else(|| watchdog.clone());
    }
    let cluster = Cluster {
        name,
        tls_dir,
        nodes,
        volumes: volumes(&raw.volume, places)?,
        lease: seconds(places, raw.lease_s.as_ref(), "lease_s", 8.0, LEASE_S)?,
        grace: seconds(places, raw.grace_s.as_ref(), "grace_s", 15.0, GRACE_S)?,
        hold: seconds(places, raw.hold_s.as_ref(), "hold_s", 120.0, HOLD_S)?,
    };
    fencing::check(&cluster, &raw, places)?;
    Ok(cluster)
}

fn nodes(raw: &RawCluster, places: &Places<'_>) -> Result<Vec<Node>, ClusterFileError> {
    let ports = Program::ports(raw.volume.len());
    let mut nodes: Vec<Node> = Vec::new();
    for raw_node in &raw.node {
        let node = node(raw_node.get_ref(), ports, places)?;
        let of = |field: &str| format!("{field} of node {}", node.name);
        for other in &nodes {
            if other.name == node.name {
                let message = format!("there are two nodes {}; a name is given once", node.name);
                return Err(places.mistake(raw_node.get_ref().name.span(), of("name"), message));
            }
            if other.name.id() == node.name.id() {
                let message =
                    format!("its number is that of node {}, by chance; choose another name", other.name);
                return Err(places.mistake(raw_node.get_ref().name.span(), of("name"), message));
            }
            if other.address == node.address && other.port.abs_diff(node.port) < ports {
                let message = format!(
                    "{} port {} collides with node {} (port {}): each node needs {ports} ports in a row for its \
                     programs",
                    node.address, node.port, other.name, other.port
                );
                return Err(places.mistake(raw_node.get_ref().address.span(), of("address"), message));
            }
        }
        nodes.push(node);
    }
    if nodes.len() > NODES_MAX {
        let message = format!("{} nodes are too many; a cluster has at most {NODES_MAX}", nodes.len());
        return Err(places.mistake(raw.node[NODES_MAX].span(), "[[node]]", message));
    }
    check_voters(raw, &nodes, places)?;
    Ok(nodes)
}

fn check_voters(raw: &RawCluster, nodes: &[Node], places: &Places<'_>) -> Result<(), ClusterFileError> {
    let voters = nodes.iter().filter(|node| node.voter).count();
    let message = match voters {
        1 | 3 | 5 => return Ok(()),
        0 => "no node is a voter; give 1, 3 or 5 nodes voter = true".to_owned(),
        _ if voters > 5 => format!(
            "{voters} voters are too many: each change waits for most of them; leave voter = true on 3 or 5 nodes and \
             the others are agents"
        ),
        _ => format!(
            "{voters} voters survive the loss of no more of them than {} would, and stop sooner: an even number has no \
             majority when it is split in halves; make it {} or {} (a witness may run on a machine without the LUN)",
            voters - 1,
            voters - 1,
            voters + 1
        ),
    };
    let flags = raw.node.iter().rev().filter_map(|node| node.get_ref().voter.as_ref());
    let last = flags.into_iter().find(|flag| *flag.get_ref());
    let span = last.map(Spanned::span).or_else(|| raw.node.first().map(Spanned::span));
    Err(places.mistake(span.unwrap_or(0..0), "voter in [[node]]", message))
}

fn node(raw: &RawNode, ports: u16, places: &Places<'_>) -> Result<Node, ClusterFileError> {
    let name: NodeName =
        valid_name(places, &raw.name, "name in [[node]]")?.parse().map_err(|error: InvalidName| {
            places.mistake(raw.name.span(), "name in [[node]]", error.to_string())
        })?;
    let at = |span: Range<usize>, field: &str, message: String| {
        places.mistake(span, format!("{field} of node {name}"), message)
    };
    let text = raw.address.get_ref();
    let address: IpAddr = text.parse().map_err(|_| {
        at(
            raw.address.span(),
            "address",
            format!("{text:?} is not an IP address; host names are not looked up"),
        )
    })?;
    if address.is_unspecified() || address.is_multicast() {
        let message = format!("{address} is not an address at which the other nodes could reach it");
        return Err(at(raw.address.span(), "address", message));
    }
    let port_max = u16::MAX - (ports - 1);
    let port = match &raw.port {
        None => PORT_DEFAULT,
        Some(port) => u16::try_from(*port.get_ref())
            .ok()
            .filter(|port| (1..=port_max).contains(port))
            .ok_or_else(|| {
                at(port.span(), "port", format!("{} is outside the range 1 to {port_max}", port.get_ref()))
            })?,
    };
    let agent = fencing::agent(&raw.agent, &format!("agent of node {name}"), places)?;
    let watchdog = fencing::watchdog(raw.watchdog.as_ref(), &format!("watchdog of node {name}"), places)?;
    let voter = raw.voter.as_ref().is_some_and(|voter| *voter.get_ref());
    Ok(Node { name, address, port, voter, agent, watchdog })
}

fn volumes(raw: &[Spanned<RawVolume>], places: &Places<'_>) -> Result<Vec<Volume>, ClusterFileError> {
    let mut volumes: Vec<Volume> = Vec::new();
    if raw.len() > VOLUMES_MAX {
        let message = format!("{} volumes are too many; a cluster has at most {VOLUMES_MAX}", raw.len());
        return Err(places.mistake(raw[VOLUMES_MAX].span(), "[[volume]]", message));
    }
    for raw in raw.iter().map(Spanned::get_ref) {
        let name = valid_name(places, &raw.name, "name in [[volume]]")?;
        let of = |field: &str| format!("{field} of volume {name}");
        if volumes.iter().any(|other| other.name == name) {
            let message = format!("there are two volumes {name}; a name is given once");
            return Err(places.mistake(raw.name.span(), of("name"), message));
        }
        if !(1..=LUN_PATHS_MAX).contains(&raw.lun.get_ref().len()) {
            let message = format!("{} paths; a LUN has 1 to {LUN_PATHS_MAX}", raw.lun.get_ref().len());
            return Err(places.mistake(raw.lun.span(), of("lun"), message));
        }
        let mut lun = Vec::new();
        for path in raw.lun.get_ref() {
            let url = path.get_ref();
            if !url.starts_with('/') && !LUN_SCHEMES.iter().any(|scheme| url.starts_with(scheme)) {
                let message =
                    format!("{url:?} is no path to a LUN: it begins with {} or /", LUN_SCHEMES.join(", "));
                return Err(places.mistake(path.span(), of("lun"), message));
            }
            // A URL of iSCSI may hold a secret.
            let shown = match url.starts_with("iscsi://").then(|| url.parse::<IscsiUri>()) {
                Some(Ok(unit)) => unit.to_string(),
                Some(Err(error)) => return Err(places.mistake(path.span(), of("lun"), error.to_string())),
                None => url.clone(),
            };
            if let Some(other) = volumes.iter().find(|other| other.lun.contains(url)) {
                let message = format!("{shown:?} is the LUN of volume {} already", other.name);
                return Err(places.mistake(path.span(), of("lun"), message));
            }
            if lun.contains(url) {
                return Err(places.mistake(path.span(), of("lun"), format!("{shown:?} is there twice")));
            }
            lun.push(url.clone());
        }
        let fence = match &raw.fence {
            None => FenceChoice::Auto,
            Some(fence) => {
                let invalid = |error: super::super::InvalidFence| {
                    places.mistake(fence.span(), of("fence"), error.to_string())
                };
                fence.get_ref().parse().map_err(invalid)?
            }
        };
        let field = of("target_quiesce_s");
        let target_quiesce = seconds(places, raw.target_quiesce_s.as_ref(), &field, 10.0, TARGET_QUIESCE_S)?;
        let control = fencing::control(raw, lun.len(), &of("control"), places)?;
        let agent = fencing::agent(&raw.agent, &of("agent"), places)?;
        let field = of("agent_timeout_s");
        let agent_timeout = seconds(
            places,
            raw.agent_timeout_s.as_ref(),
            &field,
            fencing::AGENT_TIMEOUT_DEFAULT_S,
            fencing::AGENT_TIMEOUT_S,
        )?;
        volumes.push(Volume { name, lun, fence, target_quiesce, control, agent, agent_timeout });
    }
    Ok(volumes)
}

fn valid_name(places: &Places<'_>, name: &Spanned<String>, field: &str) -> Result<String, ClusterFileError> {
    if is_valid_name(name.get_ref()) {
        return Ok(name.get_ref().clone());
    }
    Err(places.mistake(name.span(), field, InvalidName(name.get_ref().clone()).to_string()))
}

fn seconds(
    places: &Places<'_>,
    value: Option<&Spanned<f64>>,
    field: &str,
    default: f64,
    range: RangeInclusive<f64>,
) -> Result<Duration, ClusterFileError> {
    let Some(value) = value else { return Ok(Duration::from_secs_f64(default)) };
    if !range.contains(value.get_ref()) {
        let message = format!(
            "{} is outside the range {} to {} (seconds)",
            value.get_ref(),
            range.start(),
            range.end()
        );
        return Err(places.mistake(value.span(), field, message));
    }
    Ok(Duration::from_secs_f64(*value.get_ref()))
}
