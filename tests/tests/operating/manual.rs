//! Every command that the manual shows is run, on the machine for which it is meant, in its order.
//!
//! A machine is a namespace of the lab with a file system view and a name of its own: `/etc`, `/run`, `/srv` and `/var/lib`
//! are its alone. `systemctl`, `ssh` and `scp` are small programs of the test, of which the first starts what the installed
//! units say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use lab::Cluster;
use lab::cluster::{Daemon, DaemonSpec, Plan, Ready};
use lab::mounted::fsck_clean;

use crate::installed::Installed;

/// How long one block may take, in seconds.
const BLOCK_S: &str = "150";
/// What the manual calls the host of the lab that serves the LUN.
const STORAGE: &str = "storage";

/// Commands, and the machines on which they are run.
struct Block {
    line: usize,
    hosts: Vec<String>,
    commands: String,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut inside = false;
    for (line, words) in text.lines().enumerate() {
        if let Some(hosts) = words.strip_prefix("```sh") {
            let hosts = hosts.split_whitespace().map(str::to_owned).collect();
            blocks.push(Block { line: line + 1, hosts, commands: String::new() });
            inside = true;
        } else if words == "```" {
            inside = false;
        } else if let Some(block) = blocks.last_mut().filter(|_| inside) {
            block.commands += words;
            block.commands.push('\n');
        }
    }
    blocks
}

/// The machines.
struct Machines<'a> {
    cluster: &'a Cluster,
    installed: &'a Installed,
    folder: PathBuf,
}

impl<'a> Machines<'a> {
    fn new(cluster: &'a Cluster, installed: &'a Installed) -> Result<Self> {
        let folder = cluster.folder().join("machines");
        fs::create_dir(&folder)?;
        Ok(Self { cluster, installed, folder })
    }

    /// Makes a machine: a process that keeps its view of the file system.
    fn make(&self, name: &str) -> Result<()> {
        let own = self.folder.join(name);
        let host = if name == STORAGE { "san" } else { name };
        let script = r#"set -e
            mkdir -p "$1/run" "$1/srv" "$1/lib"
            cp -a /etc "$1/etc" && rm -rf "$1/etc/csvfs" && mkdir "$1/etc/csvfs"
            hostname "$2"
            for pair in etc:/etc run:/run srv:/srv lib:/var/lib; do mount --bind "$1/${pair%%:*}" "${pair#*:}"; done
            trap 'exit 0' TERM
            echo ready
            while :; do sleep 1 & wait $!; done"#;
        let spec = DaemonSpec::new("machine", "/usr/bin/unshare".into())
            .args(["--mount", "--uts", "--propagation", "private", "sh", "-c", script, "sh"])
            .args([own.display().to_string(), name.to_owned()])
            .ready(Ready::Line("ready".to_owned()));
        let daemon: Arc<Daemon> = self.cluster.start(host, spec)?;
        let process = daemon.process().context("the machine has ended")?;
        fs::write(self.folder.join(format!("{name}.pid")), process.pid.to_string())?;
        Ok(())
    }

    fn run(&self, host: &str, commands: &str) -> Result<Output> {
        let shims = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/operating/shims");
        let programs = self.installed.prefix.join("bin");
        let path = format!("{}:{}:{}", shims.display(), programs.display(), std::env::var("PATH")?);
        let pid = fs::read_to_string(self.folder.join(format!("{host}.pid")))
            .with_context(|| format!("there is no machine {host}"))?;
        let output = Command::new("nsenter")
            .args(["--target", &pid, "--mount", "--net", "--uts", "--", "timeout", BLOCK_S])
            .args(["bash", "-euo", "pipefail", "-c", commands])
            .env("PATH", path)
            .env("MANUAL_HOSTS", &self.folder)
            .env("MANUAL_UNITS", self.installed.units())
            .env_remove("CSV_CLUSTER")
            .env_remove("CSV_NODE")
            .current_dir("/")
            .output()?;
        if !output.status.success() {
            bail!(
                "on {host}:\n{commands}failed ({}):\n{}{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
                self.logs()
            );
        }
        Ok(output)
    }

    /// What the services have said.
    fn logs(&self) -> String {
        let mut said = String::new();
        for host in ["storage", "n1", "n2", "n3", "n4"] {
            let Ok(entries) = fs::read_dir(self.folder.join(host).join("run/units")) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.extension().is_some_and(|extension| extension == "log") {
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    let lines: Vec<_> = text.lines().rev().take(15).collect();
                    let lines: Vec<_> = lines.into_iter().rev().collect();
                    said += &format!("--- {}\n{}\n", path.display(), lines.join("\n"));
                }
            }
        }
        said
    }
}

#[test]
fn every_command_of_the_manual_works() -> Result<()> {
    let installed = Installed::new()?;
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/OPERATING.md");
    let blocks = blocks(&fs::read_to_string(manual)?);
    ensure!(blocks.len() > 20, "the manual lost its commands: {} blocks", blocks.len());
    for needed in
        ["voters add", "voters rejoin", "lockctl transfer", "csvfs status", "systemctl restart lockd"]
    {
        ensure!(
            blocks.iter().any(|block| block.commands.contains(needed)),
            "the manual does not show {needed}"
        );
    }
    Cluster::run(Plan::new(4), |cluster| {
        // The manual starts its own.
        cluster.target().stop()?;
        let machines = Machines::new(cluster, &installed)?;
        for name in [STORAGE, "n1", "n2", "n3", "n4"] {
            machines.make(name)?;
        }
        let mut said = String::new();
        for block in &blocks {
            ensure!(!block.hosts.is_empty(), "line {}: on which machine?", block.line);
            for host in &block.hosts {
                let output = machines
                    .run(host, &block.commands)
                    .with_context(|| format!("OPERATING.md, line {}", block.line))?;
                said += &String::from_utf8_lossy(&output.stdout);
            }
        }
        for shown in ["made on n2", "volume vms", "coordinator  n1", "handed over to node n3, pause"] {
            ensure!(said.contains(shown), "nothing showed {shown:?}:\n{said}");
        }
        for host in ["n3", "n2", "n1"] {
            machines.run(host, "systemctl stop csvfs@vms\nsystemctl stop lockd\n")?;
        }
        machines.run(STORAGE, "systemctl stop csv-target@vms\n")?;
        let image = machines.folder.join(STORAGE).join("srv/luns/vms.img");
        fsck_clean(&format!("file:{}", image.display()))
    })
}
