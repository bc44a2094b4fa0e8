//! Machines as the nodes of a cluster.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::lio::INITIATORS;
use super::{File, Machine, Plan, VmLab};
use crate::cluster::Network;
use crate::programs;

const CLUSTER: &str = "vmlab";
const VOLUME: &str = "vms";
/// Where the volume is mounted in each of them.
const MOUNT: &str = "/mnt";
/// How many bytes [`Nodes::write`] writes.
pub const BYTES: usize = 64 << 10;

/// The nodes n1, n2, ... of which the first is the voter.
#[derive(Debug)]
pub struct Nodes {
    machines: Vec<Machine>,
}

/// The cluster file of `count` nodes: its own lines at the top, and those of its volume.
fn cluster_file(count: u8, top: &str, volume: &str) -> String {
    let mut text = format!("name = \"{CLUSTER}\"\n{top}\n[tls]\ndir = \"tls\"\n");
    for number in 1..=count {
        let (address, voter) = (Network::Lan.address(number), number == 1);
        text += &format!("\n[[node]]\nname = \"n{number}\"\naddress = \"{address}\"\nvoter = {voter}\n");
    }
    text + &format!("\n[[volume]]\nname = \"{VOLUME}\"\n{volume}\n")
}

/// The cluster file and the certificates, as every node has them.
fn configuration(lab: &VmLab, text: &str) -> Result<Vec<File>> {
    let folder = lab.path("etc");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("cluster.toml");
    std::fs::write(&path, text)?;
    let output = Command::new(programs::ours("lockctl")?).arg("init").arg(&path).output()?;
    ensure!(output.status.success(), "lockctl init: {}", String::from_utf8_lossy(&output.stderr));
    let mut files = vec![File::new("/etc/csvfs/cluster.toml", text)];
    for entry in std::fs::read_dir(folder.join("tls"))? {
        let entry = entry?;
        let to = Path::new("/etc/csvfs/tls").join(entry.file_name());
        files.push(File::new(to, std::fs::read(entry.path())?));
    }
    Ok(files)
}

impl Nodes {
    /// Switches `count` machines on, as the nodes of a cluster whose file has the lines `top` at its top and `volume` for
    /// its volume.
    pub fn start(lab: &VmLab, count: u8, top: &str, volume: &str) -> Result<Self> {
        let files = configuration(lab, &cluster_file(count, top, volume))?;
        let machine = |number: u8| {
            let name = format!("n{number}");
            let initiator = INITIATORS.get(usize::from(number) - 1).context("there are three initiators")?;
            let mut plan = Plan::new(&name, number);
            plan.files.clone_from(&files);
            let line = format!("InitiatorName={initiator}\n");
            plan.files.push(File::new("/etc/iscsi/initiatorname.iscsi", line));
            Machine::start(lab, plan)
        };
        Ok(Self { machines: (1..=count).map(machine).collect::<Result<_>>()? })
    }

    /// The machine of a node.
    #[must_use]
    pub fn node(&self, number: u8) -> &Machine {
        &self.machines[usize::from(number) - 1]
    }

    /// The same, to switch it off.
    pub fn node_mut(&mut self, number: u8) -> &mut Machine {
        &mut self.machines[usize::from(number) - 1]
    }

    /// Starts lockd on a node; it may not be ready yet.
    pub fn launch_lockd(&self, number: u8) -> Result<()> {
        let arguments = "--cluster /etc/csvfs/cluster.toml --data /var/lib/lockd";
        self.node(number).launch("lockd", &format!("RUST_LOG=info lockd {arguments} --node n{number}"))
    }

    /// Waits until the lockd of a node is ready.
    pub fn await_lockd(&self, number: u8) -> Result<()> {
        let socket = format!("/run/csvfs/{CLUSTER}/n{number}/lockd.sock");
        self.node(number).wait("lockd is ready", &format!("[ -S {socket} ]"))
    }

    fn numbers(&self) -> impl Iterator<Item = u8> {
        (1..).take(self.machines.len())
    }

    /// Starts lockd everywhere, and waits until each is ready.
    pub fn start_lockd(&self) -> Result<()> {
        self.numbers().try_for_each(|number| self.launch_lockd(number))?;
        self.numbers().try_for_each(|number| self.await_lockd(number))
    }

    /// The command line of csvfs on a node, with the cluster's file and `rest` behind it.
    #[must_use]
    pub fn csvfs(number: u8, command: &str, rest: &str) -> String {
        format!("csvfs {command} --cluster /etc/csvfs/cluster.toml --node n{number} {rest}")
    }

    /// Formats the volume, on n1.
    pub fn format(&self) -> Result<()> {
        let format = format!("csvfs format --cluster /etc/csvfs/cluster.toml {VOLUME} --window-ms 500");
        self.node(1).sh(&format).map(drop)
    }

    /// Mounts the volume on a node.
    pub fn mount(&self, number: u8) -> Result<()> {
        let node = self.node(number);
        let mount = Self::csvfs(number, "mount --foreground", &format!("{VOLUME} {MOUNT}"));
        node.launch("csvfs", &format!("RUST_LOG=info {mount}"))?;
        let mounted = format!("grep -q ' {MOUNT} fuse' /proc/mounts || ! kill -0 $(cat /run/csvfs.pid)");
        node.wait("csvfs mounts", &format!("{{ {mounted}; }}"))?;
        let said = node.run(&format!("grep -q ' {MOUNT} fuse' /proc/mounts"))?;
        ensure!(said.code == 0, "csvfs on n{number} has not mounted: {}", node.log("csvfs")?);
        Ok(())
    }

    /// Makes a node the owner of a file of the volume, by hand.
    pub fn acquire(&self, number: u8, file: &str) -> Result<()> {
        let acquire =
            format!("lockctl acquire {MOUNT}/{file} --node n{number} --cluster /etc/csvfs/cluster.toml");
        self.node(number).sh(&acquire).map(drop)
    }

    /// Unmounts on a node: csvfs is asked to end.
    pub fn unmount(&self, number: u8) -> Result<()> {
        self.node(number).stop("csvfs")
    }

    /// The script that fills a file of the volume with a letter and syncs it.
    #[must_use]
    pub fn write(file: &str, letter: char) -> String {
        format!(
            "head -c {BYTES} /dev/zero | tr '\\0' {letter} | dd of={MOUNT}/{file} bs={BYTES} iflag=fullblock \
             conv=notrunc,fsync"
        )
    }

    /// Demands that a file, read on a node, is full of a letter.
    pub fn holds(&self, number: u8, file: &str, letter: char) -> Result<()> {
        let others = self.node(number).sh(&format!("tr -d {letter} <{MOUNT}/{file} | wc -c"))?;
        let size = self.node(number).sh(&format!("wc -c <{MOUNT}/{file}"))?;
        let seen = (others.trim(), size.trim());
        ensure!(
            seen == ("0", BYTES.to_string().as_str()),
            "{file} on n{number} is not all {letter}: {seen:?}"
        );
        Ok(())
    }
}
