//! `lockctl`: looks at the control plane of a cluster, and changes what it holds.

mod commands;
mod fences;
mod gather;
mod holdings;
mod lockd;
mod names;
mod quorum;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use ::lockd::ids::{Epoch, NodeName};
use ::lockd::local::run_dir::RUN_DIR;
use ::lockd::machine::Cookie;
use clap::{Parser, Subcommand};

/// Looks at the control plane of a cluster, and changes what it holds.
///
/// Files are named by their path on a mounted volume, or as a resource: volume/UUID/file/INODE, vm/NAME.
#[derive(Debug, Parser)]
#[command(name = "lockctl", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// What every command understands.
#[derive(Debug, clap::Args)]
struct Common {
    /// One JSON document instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// The cluster file; without it, the only cluster whose lockd runs on this machine.
    #[arg(long, global = true, env = "CSV_CLUSTER", value_name = "FILE")]
    cluster: Option<PathBuf>,
    /// The node: for `acquire` and `adopt` the one that is to hold, otherwise the one whose lockd is asked.
    #[arg(long, global = true, env = "CSV_NODE")]
    node: Option<NodeName>,
    /// The directory below which the sockets are.
    #[arg(long, global = true, env = "CSV_RUN_DIR", default_value = RUN_DIR, value_name = "DIR")]
    run_dir: PathBuf,
    /// How long to try, in seconds.
    #[arg(long, global = true, default_value_t = 10.0, value_parser = seconds, value_name = "SECONDS")]
    timeout: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err(format!("{text:?} is not a number of seconds from 0.1 to 86400")),
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the cluster's CA, and a certificate for each node that has none.
    Init {
        /// The cluster file.
        file: PathBuf,
    },
    /// Show nodes, voters, quorum and sessions.
    Status,
    /// List what is held.
    Ls,
    /// Show who holds a file, since when, and its locks.
    Show {
        /// A path or resource.
        path: String,
    },
    /// Make a node the owner of files, until they are released.
    Acquire {
        /// Paths or resources. `-` reads them from standard input, one a line.
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Give files back.
    Release {
        /// Paths or resources.
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Hand files over to another node: all of them, or none.
    Transfer {
        /// Paths or resources. `-` reads them from standard input, one a line.
        #[arg(required = true)]
        paths: Vec<String>,
        /// The node that gets them.
        #[arg(long, value_name = "NODE")]
        to: NodeName,
        /// The locks of the programs on the node that has them go along, for programs that move themselves: into escrow,
        /// under a cookie that is printed.
        #[arg(long)]
        with_locks: bool,
        /// Only if all of them are held in this epoch, as `ls` and `show` tell it; 0: if nobody holds any of them.
        #[arg(long, value_name = "EPOCH")]
        epoch: Option<Epoch>,
    },
    /// Take over the locks that came to a node with files that were handed over, or drop them.
    Adopt {
        /// The cookie that `transfer --with-locks` printed.
        cookie: Cookie,
        /// The lock owner of the node's mount that gets them all; without, each keeps its owner's number.
        #[arg(long)]
        owner: Option<u64>,
        /// Drop them.
        #[arg(long, conflicts_with = "owner")]
        drop: bool,
    },
    /// Move the coordinator of a volume to another node.
    Coordinator {
        /// The volume's name.
        volume: String,
        /// The node that gets it.
        #[arg(long, value_name = "NODE")]
        to: NodeName,
    },
    /// Show or change the voters.
    Voters {
        #[command(subcommand)]
        change: Option<Voters>,
    },
    /// Show who is being fenced, since when, and who has not reported yet.
    Fences,
    /// Show what operators have freed by `break`: the log is kept for good.
    Breaks,
    /// What this program calls itself with, to ask a mount that may not answer.
    #[command(name = names::RESOLVE, hide = true)]
    ResolvePaths,
    /// Free what a dead holder has that the cluster cannot fence, after making sure that its node is off.
    Break {
        /// A path or resource, or `session/NUMBER` for all that an ended session has.
        path: String,
        /// The node that you have made sure is off, or cut off from the storage.
        #[arg(long, value_name = "NODE")]
        confirm_node: Option<String>,
        /// Who you are, for the log.
        #[arg(long, env = "USER", default_value = "unknown", value_name = "NAME")]
        operator: String,
    },
}

#[derive(Debug, Subcommand)]
enum Voters {
    /// Make a node a voter. Its lockd must run, with `voter = true` in its cluster file.
    Add {
        /// Which.
        voter: NodeName,
    },
    /// Take a node's vote away.
    Remove {
        /// Which.
        voter: NodeName,
    },
    /// Let a voter that has lost its directory take part again.
    Rejoin {
        /// Which.
        voter: NodeName,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match commands::run(&arguments.common, arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
