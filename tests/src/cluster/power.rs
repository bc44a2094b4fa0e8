//! The power of a node.

use anyhow::{Result, ensure};

use super::Cluster;
use super::network::Network;

impl Cluster {
    /// Takes a node's power away: it is cut off both networks, and all that runs on it is killed.
    pub fn power_off(&self, number: u8) -> Result<()> {
        // From the first cut on no process is started: it would wait for mounts that wait for this node.
        let [lan, san] = [self.ready_to_cut()?, self.ready_to_cut()?];
        lan.cut(number, Network::Lan)?;
        san.cut(number, Network::San)?;
        let node = self.node(number);
        self.crash(&node.name())?;
        let left = node.namespace().processes();
        ensure!(left.is_empty(), "{} has no power, and there still run on it {left:?}", node.name());
        Ok(())
    }

    /// Gives it back: the networks, lockd, the mount.
    pub fn power_on(&self, number: u8) -> Result<()> {
        let host = self.node(number).name();
        for network in Network::ALL {
            self.heal(number, network)?;
        }
        self.restart(&host, "lockd")?;
        self.restart(&host, "csvfs")
    }
}
