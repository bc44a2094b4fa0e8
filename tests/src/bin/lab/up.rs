//! `lab up`.

use std::path::Path;

use anyhow::Result;
use clap::Args;
use lab::Cluster;
use lab::cluster::{Node, Plan, TargetKind, voters_of};
use lab::programs;

use super::say;

#[derive(Debug, Args)]
pub struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// How many of them are voters; by default 1 of up to two, 3 of up to four, 5 of more.
    #[arg(long)]
    voters: Option<u8>,
    /// What serves the LUN: csv-target, nbdkit or tgt.
    #[arg(long, default_value = "csv-target")]
    target: TargetKind,
    /// The size of the LUN, with K, M or G for powers of 1000.
    #[arg(long, default_value = "8G", value_parser = parse_rate)]
    size: u64,
    /// Bytes a second and direction of each node's LAN interface, with K, M or G for powers of 1000.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate_lan: Option<u64>,
    /// The same of its SAN interface.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate_san: Option<u64>,
    /// How sessions are fenced, as in the cluster file.
    #[arg(long, default_value = "lease")]
    fence: String,
    /// One mount on n1 without a cluster, instead of one on every node with lockd.
    #[arg(long)]
    standalone: bool,
}

/// Parses a number of bytes with an optional unit of K, M or G.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number of bytes: give one, with K, M or G if you like");
    let (digits, unit) = match text.chars().last().map(|last| last.to_ascii_uppercase()) {
        Some('K') => (&text[..text.len() - 1], 1000),
        Some('M') => (&text[..text.len() - 1], 1_000_000),
        Some('G') => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

/// The programs of a cluster that are not built.
fn missing() -> Vec<&'static str> {
    ["lockd", "lockctl", "csvfs"].into_iter().filter(|name| programs::ours(name).is_err()).collect()
}

impl Up {
    pub fn run(self, name: &str, base: &Path) -> Result<()> {
        let plan = Plan {
            name: Some(name.to_owned()),
            base: std::path::absolute(base)?,
            voters: self.voters.unwrap_or_else(|| voters_of(self.nodes)),
            target: self.target,
            // Whole blocks, as a volume needs.
            lun_bytes: self.size / 4096 * 4096,
            rate_lan: self.rate_lan,
            rate_san: self.rate_san,
            fence: self.fence,
            kept: true,
            ..Plan::new(self.nodes)
        };
        let cluster = Cluster::up(plan)?;
        say(format_args!("the lab {name} is up: {} nodes, LUN {}", self.nodes, cluster.target().url()));
        if let Err(error) = serve(&cluster, self.standalone) {
            eprintln!("{}", cluster.last_words(10));
            let hint = "what is up stays, so that you can look; end it by `lab down`";
            return Err(error.context(hint));
        }
        say(format_args!("cluster file {}", cluster.cluster_file().display()));
        say(format_args!(
            "try `lab status`, `lab exec n1 COMMAND`, `lab cut n1 san`, and `lab down` in the end"
        ));
        Ok(())
    }
}

fn serve(cluster: &Cluster, standalone: bool) -> Result<()> {
    if standalone {
        cluster.format_standalone()?;
        let at = cluster.mount_standalone(1)?;
        say(format_args!("n1 has a mount of its own on {}", at.display()));
        return Ok(());
    }
    let missing = missing();
    if !missing.is_empty() {
        say(format_args!(
            "not built: {}; the networks and the LUN are there without (--standalone mounts it on n1)",
            missing.join(", ")
        ));
        return Ok(());
    }
    cluster.init()?;
    cluster.start_lockd()?;
    cluster.format()?;
    for number in cluster.nodes().iter().map(Node::number) {
        let at = cluster.mount(number)?;
        say(format_args!("n{number} has the volume on {}", at.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!(parse_rate("5"), Ok(5));
        assert_eq!(parse_rate("10m"), Ok(10_000_000));
        for wrong in ["", "M", "-1", "1.5G", "99999999999G", "é"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}
