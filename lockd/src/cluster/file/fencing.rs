//! What a cluster file must keep to, so that silent nodes can be fenced as it says.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::super::tls::TARGET_NAME;
use super::super::{Cluster, ClusterFileError, ControlAddress, FenceChoice, InvalidControl};
use super::place::Places;
use super::{RawAgent, RawCluster, RawVolume};

pub(super) const AGENT_TIMEOUT_S: RangeInclusive<f64> = 1.0..=600.0;
pub(super) const AGENT_TIMEOUT_DEFAULT_S: f64 = 60.0;
/// What a fence agent is told about one host, at most.
const AGENT_KEYS_MAX: usize = 64;
const AGENT_VALUE_MAX: usize = 1024;
/// What lockd says to a fence agent itself.
const AGENT_KEYS_OURS: [&str; 3] = ["action", "nodename", "plug"];
/// How far the rates of two hosts' clocks may differ (P5): Linux slews a clock by at most one part in 2000.
const DRIFT: u32 = 1000;

/// How far two hosts' counts of `span` may differ.
fn drift(span: Duration) -> Duration {
    span / DRIFT
}

/// What can only be seen with everything at hand.
pub(super) fn check(
    cluster: &Cluster,
    raw: &RawCluster,
    places: &Places<'_>,
) -> Result<(), ClusterFileError> {
    for (volume, raw_volume) in cluster.volumes.iter().zip(&raw.volume) {
        let raw_volume = raw_volume.get_ref();
        let span = raw_volume.fence.as_ref().map_or_else(|| raw_volume.name.span(), Spanned::span);
        let field = || format!("fence of volume {}", volume.name);
        // P5: by the end of the grace, by whoever's clock, the target has executed what it had.
        let drift = drift(cluster.lease + cluster.grace);
        let least = volume.target_quiesce + drift;
        if volume.fence == FenceChoice::Lease && cluster.grace < least {
            let message = format!(
                "\"lease\" wants grace_s (now {}) to be at least target_quiesce_s and the drift of the clocks, {} + {}: \
                 the target may execute what it has for as long",
                cluster.grace.as_secs_f64(),
                volume.target_quiesce.as_secs_f64(),
                drift.as_secs_f64(),
            );
            return Err(places.mistake(span, field(), message));
        }
        let is_device = matches!(&volume.lun[..], [path] if path.starts_with('/'));
        let is_iscsi = volume.lun.iter().all(|url| url.starts_with("iscsi://"));
        if volume.fence == FenceChoice::ScsiPr && !is_device && !is_iscsi {
            let message = "\"scsi-pr\" wants iscsi:// paths only, or one block device: whoever is fenced must be refused on \
                           every path";
            return Err(places.mistake(span, field(), message));
        }
        if volume.fence == FenceChoice::NbdTarget && volume.control.is_empty() {
            let message = format!(
                "\"nbd-target\" wants the address of csv-target's control port for each path in `lun`: control = \
                 [\"{}\"]",
                vec!["HOST:PORT"; volume.lun.len()].join("\", \"")
            );
            return Err(places.mistake(span, field(), message));
        }
    }
    let has_control = cluster.volumes.iter().any(|volume| !volume.control.is_empty());
    let mut nodes = cluster.nodes.iter().zip(&raw.node);
    if let Some((_, node)) = nodes.find(|(node, _)| has_control && node.name.as_str() == TARGET_NAME) {
        let message = format!(
            "{TARGET_NAME}.pem is the certificate of the csv-targets whose control ports this file names; give the \
             node another name"
        );
        return Err(places.mistake(node.get_ref().name.span(), "name in [[node]]", message));
    }
    Ok(())
}

/// The addresses of the control ports of a volume with so many paths.
pub(super) fn control(
    raw: &RawVolume,
    paths: usize,
    field: &str,
    places: &Places<'_>,
) -> Result<Vec<ControlAddress>, ClusterFileError> {
    let Some(list) = &raw.control else { return Ok(Vec::new()) };
    if list.get_ref().len() != paths {
        let message = format!(
            "{} control ports for {paths} paths in `lun`: whoever is fenced must be refused on every path, so give one \
             for each, in the same order (the same one twice, if one csv-target serves both)",
            list.get_ref().len()
        );
        return Err(places.mistake(list.span(), field, message));
    }
    let address = |text: &Spanned<String>| {
        let parsed = text.get_ref().parse();
        parsed.map_err(|error: InvalidControl| places.mistake(text.span(), field, error.to_string()))
    };
    list.get_ref().iter().map(address).collect()
}

/// What a fence agent is told.
pub(super) fn agent(
    raw: &RawAgent,
    field: &str,
    places: &Places<'_>,
) -> Result<BTreeMap<String, String>, ClusterFileError> {
    let mut keys = BTreeMap::new();
    for (key, value) in raw {
        let mistake = |message: String| places.mistake(value.span(), format!("{key} in {field}"), message);
        let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if key.is_empty() || !key.chars().all(is_fine) {
            return Err(mistake(format!("{key:?} is no key of a fence agent: letters, digits, _ and -")));
        }
        if AGENT_KEYS_OURS.contains(&key.as_str()) {
            return Err(mistake(format!(
                "lockd says {} itself: the action, and the node's name",
                AGENT_KEYS_OURS.join(", ")
            )));
        }
        if keys.len() >= AGENT_KEYS_MAX {
            return Err(mistake(format!("a fence agent is told at most {AGENT_KEYS_MAX} things")));
        }
        let text = match value.get_ref() {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(flag) => flag.to_string(),
            _ => {
                return Err(mistake("a fence agent is told texts, whole numbers, true and false".to_owned()));
            }
        };
        if text.len() > AGENT_VALUE_MAX || text.contains(char::is_control) {
            return Err(mistake(format!("a value is one line of at most {AGENT_VALUE_MAX} bytes")));
        }
        keys.insert(key.clone(), text);
    }
    Ok(keys)
}

/// The watchdog's device.
pub(super) fn watchdog(
    raw: Option<&Spanned<String>>,
    field: &str,
    places: &Places<'_>,
) -> Result<Option<PathBuf>, ClusterFileError> {
    match raw {
        Some(path) if !path.get_ref().starts_with('/') => {
            let message = format!("{:?} is no device: give its path, such as /dev/watchdog", path.get_ref());
            Err(places.mistake(path.span(), field, message))
        }
        path => Ok(path.map(|path| PathBuf::from(path.get_ref()))),
    }
}
