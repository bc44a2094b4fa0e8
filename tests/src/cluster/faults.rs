//! What happens to the networks of a running lab.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::identity::ProcessId;
use super::namespace::{Feeder, Reached};
use super::network::{Cut, Network, Switch, TARGET};
use super::state::CutState;
use super::{Cluster, SAN_HOST};

/// A port where nobody listens: a host that is reached refuses it.
const QUIET_PORT: u16 = 9;

impl Cluster {
    /// Limits a node's interface to so many bytes a second and direction; no number lifts the limit.
    pub fn shape(&self, number: u8, network: Network, bytes_s: Option<u64>) -> Result<()> {
        self.switch.shape(self.node(number).namespace(), network, number, bytes_s)
    }

    /// Cuts a node off a network.
    pub fn cut(&self, number: u8, network: Network, how: Cut) -> Result<()> {
        let node = self.node(number);
        self.switch.cut(node.namespace(), network, number, how)?;
        self.save_cut(number, network, how)
    }

    /// What [`Scissors::cut`] needs, to be asked for before files of the mounts are opened. No process can be started while
    /// a mount is halted of which this one has a file open: the kernel tells the mount that the new one closes its copy, and
    /// waits. Descriptors are closed in their order, so those of the scissors come first.
    pub fn ready_to_cut(&self) -> Result<Scissors<'_>> {
        Ok(Scissors { cluster: self, ready: self.switch.ready()? })
    }

    fn save_cut(&self, number: u8, network: Network, how: Cut) -> Result<()> {
        let cut = CutState { host: self.node(number).name(), to: None, network, how };
        self.save(|state| {
            state.cuts.retain(|old| !old.is_of(&cut));
            state.cuts.push(cut);
        })
    }

    /// Gives a node its network back. What is cut between it and single others stays cut.
    pub fn heal(&self, number: u8, network: Network) -> Result<()> {
        self.switch.heal(network, number)?;
        let host = self.node(number).name();
        let cut = CutState { host, to: None, network, how: Cut::Silent };
        self.save(|state| state.cuts.retain(|old| !old.is_of(&cut)))
    }

    /// Cuts two nodes off each other, in both directions; each still reaches the others.
    pub fn cut_link(&self, one: u8, other: u8, network: Network) -> Result<()> {
        self.cut_way(one, other, network)?;
        self.cut_way(other, one, network)
    }

    /// Undoes [`Cluster::cut_link`].
    pub fn heal_link(&self, one: u8, other: u8, network: Network) -> Result<()> {
        self.heal_way(one, other, network)?;
        self.heal_way(other, one, network)
    }

    /// The host of this number: a node, or that of the target.
    fn host(&self, number: u8) -> String {
        if number == TARGET { SAN_HOST.to_owned() } else { self.node(number).name() }
    }

    fn number(&self, host: &str) -> Result<u8> {
        if host == SAN_HOST { Ok(TARGET) } else { Ok(self.node_named(host)?.number()) }
    }

    fn way(&self, from: u8, to: u8, network: Network) -> CutState {
        let [host, to] = [from, to].map(|number| self.host(number));
        CutState { host, to: Some(to), network, how: Cut::Silent }
    }

    /// Loses what one host sends to another, nodes or [`TARGET`]; the other direction still works.
    pub fn cut_way(&self, from: u8, to: u8, network: Network) -> Result<()> {
        let cut = self.way(from, to, network);
        self.switch.cut_way(self.namespace(&self.host(from))?, to, network)?;
        self.save(|state| {
            state.cuts.retain(|old| !old.is_of(&cut));
            state.cuts.push(cut);
        })
    }

    /// Undoes [`Cluster::cut_way`].
    pub fn heal_way(&self, from: u8, to: u8, network: Network) -> Result<()> {
        let cut = self.way(from, to, network);
        self.switch.heal_way(self.namespace(&self.host(from))?, to, network)?;
        self.save(|state| state.cuts.retain(|old| !old.is_of(&cut)))
    }

    /// Heals every cut and resumes every paused daemon: what a fault test does before it demands progress.
    pub fn heal_all(&self) -> Result<()> {
        for cut in self.state().cuts {
            let from = self.number(&cut.host)?;
            match &cut.to {
                Some(to) => self.heal_way(from, self.number(to)?, cut.network)?,
                None => self.heal(from, cut.network)?,
            }
        }
        for daemon in self.daemons() {
            if daemon.process().is_some_and(ProcessId::is_paused) {
                daemon.resume()?;
            }
        }
        Ok(())
    }

    /// Whether packets go from one node to another and back.
    pub fn ping(&self, from: u8, to: u8, network: Network, limit: Duration) -> Result<bool> {
        let address = SocketAddr::new(network.address(to).into(), QUIET_PORT);
        // A host that refuses has been reached.
        Ok(matches!(
            self.node(from).namespace().reaches(address, limit)?,
            Reached::Accepted | Reached::Refused
        ))
    }
}

/// A silent cut that is ready to be made.
#[derive(Debug)]
pub struct Scissors<'a> {
    cluster: &'a Cluster,
    ready: Feeder,
}

impl Scissors<'_> {
    /// Cuts a node off a network.
    pub fn cut(self, number: u8, network: Network) -> Result<()> {
        Switch::cut_by(self.ready, network, number)?;
        self.cluster.save_cut(number, network, Cut::Silent)
    }
}

impl CutState {
    /// Whether both are about the same connection.
    fn is_of(&self, other: &Self) -> bool {
        (&self.host, &self.to, self.network) == (&other.host, &other.to, other.network)
    }
}
