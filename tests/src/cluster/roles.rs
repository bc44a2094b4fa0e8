//! Who leads the voters, who coordinates the volume, and how the second is changed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Cluster;
use super::config::VOLUME;

fn number_of(node: &Value) -> Option<u8> {
    node.as_str()?.strip_prefix('n')?.parse().ok()
}

impl Cluster {
    /// The number of the node that leads lockd, as this one sees it.
    pub fn leader(&self, asked: u8) -> Result<u8> {
        let said = self.lockctl(&self.node(asked).name(), &["--json", "status"])?;
        let status: Value = serde_json::from_str(&said).context("lockctl's status is not JSON")?;
        number_of(&status["leader"]).with_context(|| format!("nobody leads: {status}"))
    }

    /// The number of the node that coordinates the volume, as this one sees it.
    pub fn coordinator(&self, asked: u8) -> Result<u8> {
        let status = self.cluster_status(asked)?;
        number_of(&status["volumes"][0]["coordinator"])
            .with_context(|| format!("nobody coordinates: {status}"))
    }

    /// Moves the coordinator's role, asked for on one node, to another; gives the pause that lockctl names.
    ///
    /// # Errors
    /// If it is not moved, or the one that is asked sees another coordinator afterwards.
    pub fn move_coordinator(&self, asked: u8, to: u8) -> Result<Duration> {
        let (host, name) = (self.node(asked).name(), self.node(to).name());
        let said = self.lockctl(&host, &["--json", "coordinator", VOLUME, "--to", &name])?;
        let document: Value = serde_json::from_str(&said).context("lockctl's answer is not JSON")?;
        let pause = document[0]["pause_s"].as_f64().with_context(|| format!("no pause in {said}"))?;
        let now = self.coordinator(asked)?;
        ensure!(now == to, "the role was moved to {name}, and n{now} has it");
        Ok(Duration::from_secs_f64(pause))
    }
}
