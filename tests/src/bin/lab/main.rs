//! `lab`: a cluster on this machine to play with, every host a network namespace.

mod up;

use std::fmt::Display;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use lab::Cluster;
use lab::cluster::{self, Cut, Network, State};
use serde_json::json;

/// A cluster on this machine to play with: every host is a network namespace.
///
/// The nodes are n1, n2, ...; the host that serves the LUN is san. Files, mounts and processes are seen by the whole
/// machine; only the network is separate.
#[derive(Debug, Parser)]
#[command(name = "lab", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    which: Which,
}

/// Which lab.
#[derive(Clone, Debug, Args)]
struct Which {
    /// The lab's name.
    #[arg(long, global = true, default_value = "demo")]
    name: String,
    /// The folder of all labs.
    #[arg(long, global = true, default_value_os_t = cluster::base_folder())]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the lab: nodes, networks, the LUN, and the daemons that are built.
    Up(up::Up),
    /// End it: unmount, stop the daemons, and leave nothing behind.
    Down,
    /// Show nodes, daemons, mounts and cuts.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a command on a host: n1, n2, ..., san.
    #[command(trailing_var_arg = true)]
    Exec {
        /// The host.
        host: String,
        /// The command and its arguments.
        #[arg(required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Cut a node off a network.
    Cut {
        /// The node.
        node: String,
        /// lan or san.
        network: Network,
        /// Only between it and this other node.
        #[arg(long, value_name = "NODE", conflicts_with = "how")]
        from: Option<String>,
        /// silent: packets are lost; unplugged: the interface has no carrier; reset: connections are reset, then packets
        /// are lost.
        #[arg(long, default_value = "silent")]
        how: Cut,
    },
    /// Undo a cut.
    Heal {
        /// The node.
        node: String,
        /// lan or san.
        network: Network,
        /// Only what was cut between it and this other node.
        #[arg(long, value_name = "NODE")]
        from: Option<String>,
    },
    /// Limit a node's interface to so many bytes a second and direction.
    Shape {
        /// The node.
        node: String,
        /// lan or san.
        network: Network,
        /// The rate with K, M or G for powers of 1000, or `none`.
        rate: String,
    },
    /// Kill a daemon (SIGKILL).
    Kill(Daemon),
    /// Stop a daemon's threads (SIGSTOP); its sockets stay.
    Pause(Daemon),
    /// Let a paused daemon go on.
    Resume(Daemon),
    /// Ask a daemon to end (SIGTERM), and wait for that.
    Stop(Daemon),
    /// Start a daemon again that has ended, with its command line.
    Start(Daemon),
}

/// A daemon on a host.
#[derive(Debug, Args)]
struct Daemon {
    /// The host: n1, n2, ..., san.
    host: String,
    /// The daemon: lockd, csvfs, target.
    daemon: String,
}

impl Which {
    fn folder(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// Demands that there is such a lab: nothing else is touched, let alone removed.
    fn check(&self) -> Result<()> {
        if !self.folder().join("state.json").exists() {
            bail!("there is no lab {} in {}; make one by `lab up`", self.name, self.dir.display());
        }
        Ok(())
    }

    fn attach(&self) -> Result<Cluster> {
        self.check()?;
        Cluster::attach(&self.folder())
    }
}

fn down(which: &Which) -> Result<()> {
    let folder = which.folder();
    which.check()?;
    match Cluster::attach(&folder) {
        Ok(cluster) => cluster.down()?,
        // From before the machine was started anew, or of another version of this program.
        Err(_) => cluster::remove(&which.name, &folder, &[])?,
    }
    say(format_args!("the lab {} is gone", which.name));
    Ok(())
}

/// Prints a line. Whoever reads it may have heard enough.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Daemons and cuts as one document.
fn document(cluster: &Cluster, state: &State) -> serde_json::Value {
    let daemons: Vec<_> = cluster
        .daemons()
        .iter()
        .map(|daemon| {
            let process = daemon.process();
            json!({
                "host": daemon.host(),
                "name": daemon.spec().name,
                "pid": process.map(|id| id.pid),
                "state": match process {
                    Some(id) if id.is_paused() => "paused",
                    Some(id) if id.is_alive() => "running",
                    _ => "ended",
                },
                "log": daemon.log_path(),
            })
        })
        .collect();
    let nodes: Vec<_> = cluster
        .nodes()
        .iter()
        .map(|node| {
            json!({
                "name": node.name(),
                "lan": Network::Lan.address(node.number()),
                "san": Network::San.address(node.number()),
                "namespace": node.namespace().name(),
                "mount_point": node.mount_point(),
                "mounted": cluster::is_mounted(&node.mount_point()),
            })
        })
        .collect();
    json!({
        "name": state.name,
        "folder": cluster.folder(),
        "cluster_file": cluster.cluster_file(),
        "lun": cluster.target().url(),
        "nodes": nodes,
        "daemons": daemons,
        "cuts": state.cuts,
    })
}

fn status(cluster: &Cluster, as_json: bool) -> Result<()> {
    let state = cluster.state();
    let all = document(cluster, &state);
    if as_json {
        say(serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    say(format_args!("lab {} in {}; LUN {}", state.name, cluster.folder().display(), cluster.target().url()));
    for node in cluster.nodes() {
        let (lan, san) = (Network::Lan.address(node.number()), Network::San.address(node.number()));
        let at = node.mount_point();
        let mounted = if cluster::is_mounted(&at) { "mounted on" } else { "not mounted on" };
        say(format_args!("{:4} lan {lan}, san {san}, {mounted} {}", node.name(), at.display()));
    }
    for daemon in all["daemons"].as_array().into_iter().flatten() {
        let text = |key: &str| daemon[key].as_str().unwrap_or_default().to_owned();
        let pid = daemon["pid"].as_u64().map(|pid| format!(", pid {pid}")).unwrap_or_default();
        say(format_args!("{:4} {} {}{pid}; log {}", text("host"), text("name"), text("state"), text("log")));
    }
    for cut in &state.cuts {
        match &cut.to {
            Some(to) => say(format_args!("cut: {} of {} to {to}", cut.network, cut.host)),
            None => say(format_args!("cut: {} of {} ({:?})", cut.network, cut.host, cut.how)),
        }
    }
    Ok(())
}

fn run(arguments: Arguments) -> Result<()> {
    let which = arguments.which;
    let number = |cluster: &Cluster, name: &str| cluster.node_named(name).map(cluster::Node::number);
    match arguments.command {
        Command::Up(up) => up.run(&which.name, &which.dir),
        Command::Down => down(&which),
        Command::Status { json } => status(&which.attach()?, json),
        Command::Exec { host, command } => {
            let cluster = which.attach()?;
            let (program, rest) = command.split_first().context("no command")?;
            // It becomes the command, so that signals and the exit code are the command's own.
            let mut command = cluster.exec(&host, program)?;
            // The project's own programs are found without a path.
            if let Some(ours) = std::env::current_exe().ok().as_deref().and_then(std::path::Path::parent) {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let paths = std::iter::once(ours.to_owned()).chain(std::env::split_paths(&path));
                command.env("PATH", std::env::join_paths(paths)?);
            }
            let error = command.args(rest).exec();
            Err(error).with_context(|| format!("running {program} on {host}"))
        }
        Command::Cut { node, network, from, how } => {
            let cluster = which.attach()?;
            let node = number(&cluster, &node)?;
            match from {
                Some(from) => cluster.cut_link(node, number(&cluster, &from)?, network),
                None => cluster.cut(node, network, how),
            }
        }
        Command::Heal { node, network, from } => {
            let cluster = which.attach()?;
            let node = number(&cluster, &node)?;
            match from {
                Some(from) => cluster.heal_link(node, number(&cluster, &from)?, network),
                None => cluster.heal(node, network),
            }
        }
        Command::Shape { node, network, rate } => {
            let cluster = which.attach()?;
            let rate =
                if rate == "none" { None } else { Some(up::parse_rate(&rate).map_err(anyhow::Error::msg)?) };
            cluster.shape(number(&cluster, &node)?, network, rate)
        }
        Command::Kill(Daemon { host, daemon }) => which.attach()?.kill(&host, &daemon),
        Command::Pause(Daemon { host, daemon }) => which.attach()?.pause(&host, &daemon),
        Command::Resume(Daemon { host, daemon }) => which.attach()?.resume(&host, &daemon),
        Command::Stop(Daemon { host, daemon }) => which.attach()?.stop(&host, &daemon),
        Command::Start(Daemon { host, daemon }) => which.attach()?.restart(&host, &daemon),
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        let fine = [
            "lab up --nodes 3 --target nbdkit --rate-lan 100M --rate-san 1G --voters 3 --dir /tmp/x",
            "lab exec n1 ls -l --color",
            "lab cut n2 san --how unplugged",
            "lab cut n2 lan --from n1",
            "lab kill n1 lockd --name other",
            "lab up --nodes 1 --standalone",
        ];
        for line in fine {
            Arguments::try_parse_from(line.split(' ')).unwrap();
        }
        for line in ["lab cut n2 wan", "lab exec n1", "lab up --rate-lan fast", "lab kill n1"] {
            assert_eq!(Arguments::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
