//! `csv-target`: exports a file or block device over NBD, with what a shared disk needs.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use lockd::cluster::Cluster;
use lockd::cluster::tls::Credentials;
use lockd::fencing::TargetControl;
use lockd::ids::NodeName;
use redirector::metrics::MetricsServer;
use redirector::target::{self, Address, Config, Server, Signals};
use serde_json::Value;
use tracing_subscriber::EnvFilter;

/// How long a target may take over a request to its control port: a fence drains.
const ANSWER: Duration = Duration::from_secs(60);

/// Exports a file or block device over NBD, with what a shared disk needs.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Command {
    #[command(subcommand)]
    control: Option<Subcommands>,
    #[command(flatten)]
    serve: Option<Serve>,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Sends one request to a running target's control port and prints the answer.
    Ctl {
        /// The control address: HOST:PORT or unix:PATH.
        #[arg(long)]
        control: Address,
        /// Directory with ca-cert.pem, client-cert.pem and client-key.pem, for a target with --tls.
        #[arg(long, value_name = "DIR", conflicts_with = "cluster")]
        tls: Option<PathBuf>,
        /// The cluster file, for a target with --control-tls; asked is with the certificate of --node.
        #[arg(long, value_name = "FILE", requires = "node")]
        cluster: Option<PathBuf>,
        /// The node of --cluster that asks.
        #[arg(long)]
        node: Option<NodeName>,
        /// The request, such as '{"op":"status"}'.
        request: String,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// The file or block device to export.
    #[arg(long)]
    file: PathBuf,
    /// Its size in bytes, with K, M, G or T for powers of 1024: what it is created with, or must have.
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// The export's name.
    #[arg(long, default_value = "")]
    export: String,
    /// Where to listen: HOST:PORT or unix:PATH. May be given several times.
    #[arg(long, required = true)]
    listen: Vec<Address>,
    /// Directory with ca-cert.pem, server-cert.pem and server-key.pem: demands TLS and a certificate of every client.
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// Where to listen for control requests: HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDR")]
    control: Option<Address>,
    /// Directory with ca.pem, target.pem and target.key, as `lockctl init` makes them: only the nodes of that cluster may
    /// ask at the control port, and fence.
    #[arg(long, value_name = "DIR", requires = "control")]
    control_tls: Option<PathBuf>,
    /// Directory in which the clients that are refused for good are remembered.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Refuse everything that would change the file.
    #[arg(long)]
    read_only: bool,
    /// Serve only clients that say which incarnation they are (csvfs does; other NBD clients do not).
    #[arg(long)]
    require_hello: bool,
    /// Where to serve metrics for Prometheus over HTTP: HOST:PORT.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
    /// How many connections are served at a time.
    #[arg(long, default_value_t = 512)]
    connections_max: usize,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Parses a size in bytes with an optional unit of K, M, G or T.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: give bytes, or a number with K, M, G or T");
    let shift = match text.chars().last().ok_or_else(wrong)?.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let size = number.checked_mul(1 << shift).filter(|size| *size > 0 && i64::try_from(*size).is_ok());
    size.ok_or_else(|| format!("{text:?} is out of range: 1 to {} bytes", i64::MAX))
}

impl Subcommands {
    fn ask(self) -> anyhow::Result<Value> {
        let Self::Ctl { control, tls, cluster, node, request } = self;
        let request = serde_json::from_str(&request).context("the request is not JSON")?;
        let (Some(file), Some(node)) = (cluster, node) else {
            return Ok(target::ask(&control, tls.as_deref(), &request)?);
        };
        let credentials = Credentials::load(&Cluster::read(&file)?, &node)?;
        Ok(TargetControl::new(&control.to_string().parse()?, &credentials)?.ask(&request, ANSWER)?)
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Whoever read it may be gone: that must not end the target.
    let log = log.log_internal_errors(false);
    match format {
        LogFormat::Text => log.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
}

fn serve(serve: Serve) -> anyhow::Result<()> {
    // Before any thread, so that all of them leave the signals to this one.
    let signals = Signals::hold().context("cannot hold signals back")?;
    start_log(serve.log_format);
    if serve.state.is_none() {
        tracing::warn!("without --state, clients that are ended or fenced are let in again after a restart");
    }
    if let (None, None, Some(Address::Tcp(address))) = (&serve.tls, &serve.control_tls, &serve.control) {
        tracing::warn!(
            address,
            "without --control-tls, everyone who reaches the control port may fence clients"
        );
    }
    let config = Config {
        size: serve.size,
        export: serve.export,
        listen: serve.listen,
        read_only: serve.read_only,
        tls: serve.tls,
        control: serve.control,
        control_tls: serve.control_tls,
        state: serve.state,
        require_hello: serve.require_hello,
        connections_max: serve.connections_max,
        ..Config::new(serve.file)
    };
    let server = Server::start(config)?;
    let figures = server.figures();
    let metrics = serve.metrics.map(|address| MetricsServer::serve(&address, figures)).transpose()?;
    let mut ready = format!("csv-target: ready: {}", server.uris().join(" "));
    if let Some(control) = server.control_address() {
        ready.push_str(&format!(" control {control}"));
    }
    if let Some(metrics) = &metrics {
        ready.push_str(&format!(" metrics {}", metrics.address()));
    }
    // Whoever started it may not listen.
    let _ = writeln!(std::io::stdout(), "{ready}");
    lockd::local::notify::ready();
    let signal = signals.wait();
    tracing::info!(signal, "stopping");
    drop(metrics);
    server
        .stop()
        .map_err(std::io::Error::from_raw_os_error)
        .context("the last flush failed: data may be lost")
}

fn main() -> ExitCode {
    let command = Command::parse();
    let done = match (command.control, command.serve) {
        (Some(question), _) => question.ask().map(|answer| {
            let _ = writeln!(std::io::stdout(), "{answer}");
        }),
        (None, Some(options)) => serve(options),
        (None, None) => Err(anyhow::anyhow!("nothing to serve")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "csv-target: {error:#}");
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
        Command::command().debug_assert();
        let all = "csv-target --file lun.img --size 20G --export vms --listen 10.78.0.9:10809 --tls t --control \
                   unix:/c --control-tls c --state s";
        let serve = Command::try_parse_from(all.split(' ')).unwrap().serve.unwrap();
        assert_eq!(serve.size, Some(20 << 30));
        let control = ["csv-target", "ctl", "--control", "unix:/c", r#"{"op":"status"}"#];
        assert!(Command::try_parse_from(control).unwrap().control.is_some());
        let by_node = "csv-target ctl --control 10.78.0.9:10810 --cluster c.toml --node n1 {}";
        assert!(Command::try_parse_from(by_node.split(' ')).unwrap().control.is_some());
        let by_nobody = by_node.replace("--node n1 ", "");
        for wrong in ["csv-target --file x", by_nobody.as_str()] {
            assert_eq!(Command::try_parse_from(wrong.split(' ')).unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("1k"), Ok(1024));
        assert_eq!(parse_size("2T"), Ok(2 << 40));
        for wrong in ["", "G", "0", "-1", "1.5G", "9999999T", "18446744073709551615", "1GB", "é"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
