//! The cluster file of a lab.

use std::fmt::Write;
use std::net::SocketAddr;

use super::network::{Network, TARGET};
use super::plan::{Plan, TargetKind};
use crate::tgt;

/// The port of the LUN.
pub const LUN_PORT: u16 = 10809;
/// The port of the LUN by iSCSI.
const PORTAL_PORT: u16 = 3260;
/// The port of the bundled target's control requests.
pub const CONTROL_PORT: u16 = 10810;
/// The name of the volume, and of the export.
pub const VOLUME: &str = "vms";

/// Where tgt listens.
#[must_use]
pub(super) fn portal() -> SocketAddr {
    SocketAddr::new(Network::San.address(TARGET).into(), PORTAL_PORT)
}

/// The URL of the LUN, as every node reaches it.
#[must_use]
pub fn lun_url(target: TargetKind) -> String {
    match target {
        TargetKind::CsvTarget | TargetKind::Nbdkit => {
            format!("nbd://{}:{LUN_PORT}/{VOLUME}", Network::San.address(TARGET))
        }
        TargetKind::Tgt => tgt::url(portal()),
    }
}

/// The cluster file for `plan` of the cluster `name`.
#[must_use]
pub fn cluster_file(name: &str, plan: &Plan) -> String {
    let mut text = format!("name = \"{name}\"\n");
    let times = [("lease_s", plan.lease_ms), ("grace_s", plan.grace_ms), ("hold_s", plan.hold_ms)];
    let seconds = |text: &mut String, (key, value): (&str, Option<u32>)| {
        if let Some(ms) = value {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{key} = {:?}", f64::from(ms) / 1000.0);
        }
    };
    for time in times {
        seconds(&mut text, time);
    }
    text += "\n[tls]\ndir = \"tls\"\n";
    for number in 1..=plan.nodes {
        let address = Network::Lan.address(number);
        let voter = number <= plan.voters;
        text += &format!("\n[[node]]\nname = \"n{number}\"\naddress = \"{address}\"\nvoter = {voter}\n");
    }
    text += &format!("\n[[volume]]\nname = \"{VOLUME}\"\nlun = [\"{}\"]\n", lun_url(plan.target));
    text += &format!("fence = \"{}\"\n", plan.fence);
    if plan.has_control() {
        text += &format!("control = [\"{}:{CONTROL_PORT}\"]\n", Network::San.address(TARGET));
    }
    seconds(&mut text, ("target_quiesce_s", plan.target_quiesce_ms));
    text += &plan.volume_lines;
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_file_is_as_documented() {
        let plan = Plan {
            voters: 1,
            lease_ms: Some(3000),
            target_quiesce_ms: Some(250),
            fence: "nbd-target".to_owned(),
            volume_lines: "agent_timeout_s = 3.0\n".to_owned(),
            ..Plan::new(2)
        };
        let expected = r#"name = "lab"
lease_s = 3.0

[tls]
dir = "tls"

[[node]]
name = "n1"
address = "10.77.0.1"
voter = true

[[node]]
name = "n2"
address = "10.77.0.2"
voter = false

[[volume]]
name = "vms"
lun = ["nbd://10.78.0.254:10809/vms"]
fence = "nbd-target"
control = ["10.78.0.254:10810"]
target_quiesce_s = 0.25
agent_timeout_s = 3.0
"#;
        assert_eq!(cluster_file("lab", &plan), expected);
    }
}
