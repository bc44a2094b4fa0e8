//! `csvfs`: format, mount, check and ask a volume.

#[macro_use]
mod say;
mod clone;
mod fence_test;
mod format;
mod fsck;
mod mount;
mod options;
mod seal;
mod status;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// A commit of the metadata store allocates and frees hundreds of pieces, some of them large, which costs the C library's
/// allocator a quarter of the writer's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A shared-disk file system for virtual machine hosts.
#[derive(Debug, Parser)]
#[command(name = "csvfs", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Logs as text or as one JSON document a line; which ones is chosen by RUST_LOG.
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an empty volume on a LUN.
    Format(format::Format),
    /// Mount a volume on a folder.
    Mount(mount::MountCommand),
    /// Show the volumes of the cluster on all of its nodes, and the other mounts of this machine: state, since when, why,
    /// and what to do.
    Status(status::Status),
    /// Check a volume that is not mounted, and repair it if asked to.
    Fsck(fsck::Fsck),
    /// Copy a file within a volume by sharing its blocks.
    Clone(clone::Clone),
    /// Seal files: nobody changes their data any more, and every node reads them directly (golden images).
    Seal(seal::Seal),
    /// Prove on the running cluster that a fenced node's writes do not reach a volume.
    FenceTest(fence_test::FenceTest),
    /// Take the seal off files, when every node has stopped to read them directly.
    Unseal(seal::Seal),
}

/// Where sockets are kept.
const RUN_DIR: &str = "/run/csvfs";

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let as_helper =
        words.first().is_some_and(|name| PathBuf::from(name).file_name() == Some("mount.csvfs".as_ref()));
    let arguments = if as_helper {
        match options::helper_arguments(&words[1..]) {
            Ok(words) => Arguments::parse_from(words),
            Err(error) => {
                complain!("mount.csvfs: {error}");
                return ExitCode::from(2);
            }
        }
    } else {
        Arguments::parse_from(words)
    };
    start_log(arguments.log_format);
    let done = match arguments.command {
        Command::Format(command) => command.run(),
        Command::Mount(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Fsck(command) => command.run(),
        Command::Clone(command) => command.run(),
        Command::Seal(command) => command.run(true),
        Command::Unseal(command) => command.run(false),
        Command::FenceTest(command) => command.run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            complain!("csvfs: {}", say::with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Whoever read it may be gone, or its disk full: that must not end a mount.
    let log = log.log_internal_errors(false);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// The rules in force: all, unless a test switches one off, which is said loudly.
fn rules() -> lockd::rules::Rules {
    let rules = lockd::rules::Rules::from_test_environment();
    for rule in rules.switched_off() {
        complain!("csvfs: rule {rule} is SWITCHED OFF by CSV_MUTANT; this is for tests and loses data");
    }
    rules
}
