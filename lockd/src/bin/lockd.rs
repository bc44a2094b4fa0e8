//! `lockd`: the control plane of a node.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use lockd::agent::{Agent, AgentConfig};
use lockd::cluster::Cluster;
use lockd::ids::NodeName;
use lockd::local::run_dir::RUN_DIR;
use lockd::rules::Rules;
use signal_hook::consts::{SIGINT, SIGTERM};

/// The cluster's control plane on this node: sessions, ownership, locks. Runs in the foreground, and prints one line when
/// it is ready.
#[derive(Debug, Parser)]
#[command(name = "lockd", version)]
struct Arguments {
    /// The cluster file, the same on every node.
    #[arg(long, env = "CSV_CLUSTER")]
    cluster: PathBuf,
    /// The name of this node in the cluster file.
    #[arg(long, env = "CSV_NODE")]
    node: NodeName,
    /// The directory of what must outlive a restart: this node's alone.
    #[arg(long)]
    data: PathBuf,
    /// The directory below which sockets and lease pages are.
    #[arg(long, env = "CSV_RUN_DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
    /// Logs as text or as one JSON document a line; which ones is chosen by RUST_LOG.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.log_format);
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let rules = Rules::from_test_environment();
    for rule in rules.switched_off() {
        eprintln!("lockd: rule {rule} is SWITCHED OFF by CSV_MUTANT; this is for tests and loses data");
    }
    let cluster = Cluster::read(&arguments.cluster)?;
    let Arguments { node, data, run_dir, .. } = arguments;
    let line = format!("lockd: node {node} of cluster {} is ready", cluster.name);
    let config = AgentConfig { cluster, node, data, run_base: run_dir, rules };
    let (ended, mut end) = tokio::sync::mpsc::channel(1);
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.forever().next().is_some() {
            // If lockd has ended already, nobody listens.
            let _ = ended.blocking_send(());
        }
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let agent = Agent::start(config).await?;
        println!("{line}");
        std::io::stdout().flush()?;
        lockd::local::notify::ready();
        end.recv().await;
        agent.stop().await;
        Ok(())
    })
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,openraft=error"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
