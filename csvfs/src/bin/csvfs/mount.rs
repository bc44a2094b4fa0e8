//! `csvfs mount`: serves a volume on a folder, in the foreground or as a process of its own.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use csvfs::cluster::Place;
use csvfs::fuse;
use csvfs::status::StatusSocket;
use csvfs::volume::{Settings, Volume};
use lockd::ids::NodeName;
use redirector::metrics::MetricsServer;
use redirector::uri::{Endpoint, LunUri};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::options;

#[derive(Debug, Args)]
pub struct MountCommand {
    /// The LUN of a mount without a cluster: nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds://..., file:PATH,
    /// /dev/... Several times: the paths to one LUN, the preferred one first.
    #[arg(long, value_name = "URL", required_unless_present = "cluster")]
    lun: Vec<String>,
    /// The cluster file: mounts one of its volumes, together with its other nodes.
    #[arg(long, env = "CSV_CLUSTER", value_name = "FILE")]
    cluster: Option<PathBuf>,
    /// Where to mount it; before that, with --cluster, the volume's name.
    #[arg(required = true, num_args = 1..=2, value_names = ["VOLUME", "FOLDER"])]
    places: Vec<PathBuf>,
    /// Options of mount(8): ro, nosuid, nodev, noexec, noatime, nodiscard, ...
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground; prints one line when the mount is ready.
    #[arg(short, long)]
    foreground: bool,
    /// Do everything but mount, as mount(8) asks with -f.
    #[arg(long, hide = true)]
    fake: bool,
    /// This node's name, shown to whoever finds the volume in use.
    #[arg(long, env = "CSV_NODE", value_name = "NAME")]
    node: Option<String>,
    /// How long I/O waits for a LUN that is gone, in seconds.
    #[arg(long, value_name = "SECONDS")]
    hold: Option<u64>,
    /// Where a mount in the background writes what it has to say.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Where to serve metrics for Prometheus over HTTP: HOST:PORT.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
    /// Where the status socket is put.
    #[arg(long, env = "CSV_RUN_DIR", default_value = super::RUN_DIR)]
    run_dir: PathBuf,
}

/// What is mounted.
enum Source {
    /// A LUN, by this mount alone: its paths.
    Lun(Vec<LunUri>),
    /// A volume of a cluster.
    Cluster(Place),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lun(urls) => {
                let urls: Vec<_> = urls.iter().map(LunUri::to_string).collect();
                f.write_str(&urls.join(" "))
            }
            Self::Cluster(place) => write!(f, "{}/{}", place.cluster.name, place.volume),
        }
    }
}

impl MountCommand {
    pub fn run(self) -> Result<ExitCode> {
        let (source, folder) = self.source()?;
        let folder = folder.canonicalize().with_context(|| format!("the folder {}", folder.display()))?;
        if !folder.is_dir() {
            bail!("{} is not a folder", folder.display());
        }
        let (mut options, discard) = options::parse(&self.options)?;
        if self.fake {
            return Ok(ExitCode::SUCCESS);
        }
        if !self.foreground {
            return self.in_background(&folder);
        }
        let node = match self.node {
            Some(name) => name,
            None => host_name()?,
        };
        let hold = match &source {
            Source::Lun(_) => Duration::from_secs(120),
            Source::Cluster(place) => place.cluster.hold,
        };
        let settings = Settings {
            rules: super::rules(),
            read_only: options.read_only,
            discard,
            hold: self.hold.map_or(hold, Duration::from_secs),
            ..Settings::local(&node)
        };
        options.source = source.to_string();
        let volume = match &source {
            Source::Lun(urls) => Volume::open_url(urls, settings)?,
            Source::Cluster(place) => {
                // What another node changes is not to be seen late: the kernel keeps nothing.
                options.caching = fuse::Caching::none();
                Volume::join(place, settings)?
            }
        };
        let served = serve(&volume, &source, &folder, &options, &self.run_dir, self.metrics.as_deref());
        let closed = volume.close().context("closing the volume");
        served?;
        closed?;
        Ok(ExitCode::SUCCESS)
    }

    /// What to mount, and where.
    fn source(&self) -> Result<(Source, &Path)> {
        match (&self.lun[..], &self.cluster, &self.places[..]) {
            (luns @ [_, ..], _, [folder]) => {
                let urls = luns.iter().map(|lun| absolute(lun)).collect::<Result<_>>()?;
                Ok((Source::Lun(urls), folder))
            }
            ([], Some(file), [volume, folder]) => {
                let Some(node) = &self.node else {
                    bail!("a mount of a cluster needs --node: this machine's name in {}", file.display())
                };
                let node: NodeName = node.parse()?;
                let place = Place::find(file, &node, &volume.to_string_lossy(), &self.run_dir)?;
                Ok((Source::Cluster(place), folder))
            }
            ([_, ..], _, _) => bail!("with --lun, only the folder is named: csvfs mount --lun URL FOLDER"),
            ([], Some(_), _) => {
                bail!(
                    "with --cluster, volume and folder are named: csvfs mount --cluster FILE --node NODE VOLUME FOLDER"
                )
            }
            ([], None, _) => {
                bail!("what is to be mounted? give --lun URL, or --cluster FILE and the volume's name")
            }
        }
    }

    /// Starts this program again as a process of its own and waits until that is ready.
    fn in_background(&self, folder: &Path) -> Result<ExitCode> {
        let log = self
            .log
            .clone()
            .unwrap_or_else(|| self.run_dir.join(format!("mount-{}.log", std::process::id())));
        if let Some(parent) = log.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        let errors = File::create(&log).with_context(|| format!("creating the log {}", log.display()))?;
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.args(["mount", "--foreground"]).arg("--run-dir").arg(&self.run_dir);
        for lun in &self.lun {
            let lun = absolute(lun)?;
            command.args(["--lun", &lun.to_string()]);
            if let LunUri::Iscsi(unit) = &lun
                && let Some((variable, secret)) = unit.secret_variable()
            {
                command.env(variable, secret);
            }
        }
        if let (true, Some(file)) = (self.lun.is_empty(), &self.cluster) {
            let file = file.canonicalize().with_context(|| format!("the cluster file {}", file.display()))?;
            command.arg("--cluster").arg(file).arg(&self.places[0]);
        }
        command.arg(folder);
        if let Some(hold) = self.hold {
            command.args(["--hold", &hold.to_string()]);
        }
        for list in &self.options {
            command.args(["-o", list]);
        }
        if let Some(node) = &self.node {
            command.args(["--node", node]);
        }
        if let Some(address) = &self.metrics {
            command.args(["--metrics", address]);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .current_dir("/")
            // So that a Ctrl-C at the terminal does not reach it.
            .process_group(0)
            .spawn()
            .context("starting the process of the mount")?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line).context("waiting for the mount")?;
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        crate::say::error(format_args!("{said}"));
        if line.is_empty() {
            let status = child.wait().context("waiting for the mount")?;
            let _ = std::fs::remove_file(&log);
            if said.is_empty() {
                bail!("the process of the mount ended ({status})");
            }
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn serve(
    volume: &Volume,
    source: &Source,
    folder: &Path,
    options: &fuse::MountOptions,
    run_dir: &Path,
    metrics: Option<&str>,
) -> Result<()> {
    let reporter = volume.reporter(source.to_string(), folder.display().to_string());
    let figures = Arc::clone(&reporter);
    let metrics =
        metrics.map(|address| MetricsServer::serve(address, move || figures.exposition())).transpose()?;
    // Before there is a mount that they would leave behind.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("catching signals")?;
    let mount =
        fuse::mount(folder, options, volume.service(), volume.locks(), volume.client(), volume.pool())?;
    // A mount without its status socket works; it is only not seen by `csvfs status`.
    let status = StatusSocket::serve(run_dir, move || reporter.status())
        .inspect_err(|error| tracing::warn!("csvfs status will not see this mount: {error}"));
    let ending = signals.handle();
    let unmounter = mount.unmounter();
    let at = folder.to_owned();
    let catcher = std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                if let Err(error) = unmounter.unmount() {
                    complain!(
                        "csvfs: {} is in use ({error}); it ends when its last user is gone",
                        at.display()
                    );
                    if let Err(error) = unmounter.detach() {
                        complain!("csvfs: {} cannot be detached: {error}", at.display());
                    }
                }
            }
        })
        .context("starting a thread")?;
    say!("{source} is mounted on {}", folder.display());
    lockd::local::notify::ready();
    mount.wait();
    drop((status, metrics));
    ending.close();
    let _ = catcher.join();
    Ok(())
}

/// The URL with the paths of files, sockets and certificates made absolute, so that it means the same to a process
/// elsewhere.
pub fn absolute(text: &str) -> Result<LunUri> {
    let from_here = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    Ok(match LunUri::from_str(text)? {
        LunUri::File(path) => LunUri::File(from_here(path)),
        LunUri::Nbd(mut nbd) => {
            if let Endpoint::Unix(socket) = nbd.endpoint {
                nbd.endpoint = Endpoint::Unix(from_here(socket));
            }
            nbd.tls_certificates = nbd.tls_certificates.map(from_here);
            LunUri::Nbd(nbd)
        }
        LunUri::Iscsi(unit) => LunUri::Iscsi(unit.with_files(|path| from_here(path.to_owned()))),
        other => other,
    })
}

fn host_name() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading this machine's name")?;
    Ok(name.trim().to_owned())
}
