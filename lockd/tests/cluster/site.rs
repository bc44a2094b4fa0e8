//! A cluster of lockd processes on this machine, gone with the value.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockd::client::{ClientConfig, Deaf, Listener, LockClient};
use lockd::ids::VolumeId;
use lockd::local::run_dir::RunDir;
use lockd::machine::{ClientKind, Command as MachineCommand, FenceMethod};
use tempfile::TempDir;

pub const VOLUME: VolumeId = VolumeId([0x51; 16]);
pub const MOUNT: ClientKind = ClientKind::Csvfs { volume: VOLUME };

/// How long anything may take that should happen at all.
const PATIENCE: Duration = Duration::from_secs(15);

pub struct Site {
    dir: TempDir,
    voters: usize,
    lockds: Vec<Option<Child>>,
}

impl Site {
    /// A cluster of so many voters and agents, all started, with a lease of so many seconds.
    pub fn start(voters: usize, agents: usize, lease_s: f64) -> Self {
        let mut site = Self::prepare(voters, agents, lease_s);
        for node in 0..voters + agents {
            site.start_node(node);
        }
        site
    }

    pub fn prepare(voters: usize, agents: usize, lease_s: f64) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let pid = std::process::id();
        // Each test is a process of its own, with an address of its own.
        let address = format!("127.{}.{}.{}", 64 + (pid >> 16) % 64, (pid >> 8) & 255, 1 + (pid & 255) % 254);
        let mut file =
            format!("name = \"lab\"\nlease_s = {lease_s:?}\ngrace_s = 1.0\n[tls]\ndir = \"tls\"\n");
        for node in 0..voters + agents {
            let port = 17_400 + 10 * node;
            writeln!(
                file,
                "[[node]]\nname = \"n{node}\"\naddress = \"{address}\"\nport = {port}\nvoter = {}",
                node < voters
            )
            .expect("text");
        }
        file.push_str("[[volume]]\nname = \"vms\"\nlun = [\"file:/nowhere\"]\nfence = \"lease\"\n");
        file.push_str("target_quiesce_s = 0.5\n");
        std::fs::write(dir.path().join("cluster.toml"), file).expect("the cluster file");
        let lockds = (0..voters + agents).map(|_| None).collect();
        let site = Self { dir, voters, lockds };
        let made = site.lockctl(&["init", &site.file()]);
        assert!(made.status.success(), "{made:?}");
        site
    }

    pub fn file(&self) -> String {
        self.dir.path().join("cluster.toml").display().to_string()
    }

    pub fn run_base(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn run_dir(&self, node: usize) -> RunDir {
        RunDir::of(&self.run_base(), "lab", &format!("n{node}"))
    }

    /// Changes the cluster file, before its nodes are started.
    pub fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.file()).expect("the cluster file");
        assert!(text.contains(from), "{from}");
        std::fs::write(self.file(), text.replace(from, to)).expect("the cluster file");
    }

    /// What a lockd says that does not start.
    pub fn refusal_of(&self, node: usize) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_lockd"))
            .args(["--cluster", &self.file(), "--node", &format!("n{node}")])
            .arg("--data")
            .arg(self.dir.path().join(format!("data{node}")))
            .arg("--run-dir")
            .arg(self.run_base())
            .output()
            .expect("lockd runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub fn start_node(&mut self, node: usize) {
        let log = self.dir.path().join(format!("n{node}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_lockd"))
            .args(["--cluster", &self.file(), "--node", &format!("n{node}")])
            .arg("--data")
            .arg(self.dir.path().join(format!("data{node}")))
            .arg("--run-dir")
            .arg(self.run_base())
            .env("RUST_LOG", "lockd=info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("lockd starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert!(line.contains("is ready"), "lockd of n{node} did not start: {}", self.log(node));
        self.lockds[node] = Some(child);
    }

    pub fn log(&self, node: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("n{node}.log"))).unwrap_or_default()
    }

    pub fn pid(&self, node: usize) -> u32 {
        self.lockds[node].as_ref().expect("it runs").id()
    }

    pub fn signal(&self, node: usize, signal: i32) {
        send(self.pid(node), signal);
    }

    pub fn kill(&mut self, node: usize) {
        let mut child = self.lockds[node].take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    /// Ends a node's lockd as a service manager does.
    pub fn stop(&mut self, node: usize) {
        self.signal(node, libc::SIGTERM);
        let mut child = self.lockds[node].take().expect("it runs");
        assert!(child.wait().expect("reaped").success());
    }

    pub fn lockctl(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lockctl"))
            .arg("--run-dir")
            .arg(self.run_base())
            .args(arguments)
            .env_remove("CSV_NODE")
            .env_remove("CSV_CLUSTER")
            .stdin(Stdio::null())
            .output()
            .expect("lockctl runs")
    }

    /// What a command prints as JSON.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.lockctl(&[&["--json"], arguments].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// The node that leads.
    pub fn leader(&self) -> usize {
        wait_for("a leader", || {
            let status = self.json(&["status"]);
            let leader = status["leader"].as_str()?.trim_start_matches('n').parse().ok()?;
            (status["quorum"] == true).then_some(leader)
        })
    }

    /// A voter that does not lead.
    pub fn follower(&self) -> usize {
        let leader = self.leader();
        (0..self.voters).find(|node| *node != leader).expect("more than one voter")
    }

    pub fn client(&self, node: usize, kind: ClientKind) -> LockClient {
        self.listening(node, kind, Arc::new(Deaf))
    }

    pub fn listening(&self, node: usize, kind: ClientKind, listener: Arc<dyn Listener>) -> LockClient {
        connect(self.run_dir(node), kind, listener)
    }

    /// A mount's client: of a volume that is registered.
    pub fn mount(&self, node: usize) -> LockClient {
        self.register_volume(node);
        self.client(node, MOUNT)
    }

    pub fn register_volume(&self, node: usize) {
        self.register_volume_fenced(node, FenceMethod::Lease);
    }

    pub fn register_volume_fenced(&self, node: usize, fence: FenceMethod) {
        let tool = self.client(node, ClientKind::Tool);
        let command = MachineCommand::RegisterVolume {
            volume: VOLUME,
            name: "vms".to_owned(),
            fence,
            quiesce_ns: 500_000_000,
            epoch_floor: lockd::ids::Epoch(0),
        };
        tool.register_volume(&command).expect("registered");
        tool.leave(tool.client()).expect("left");
    }
}

pub fn connect(run_dir: RunDir, kind: ClientKind, listener: Arc<dyn Listener>) -> LockClient {
    let (wait, patience) = (Some(PATIENCE), Some(PATIENCE));
    LockClient::connect(ClientConfig { run_dir, kind, wait, patience, listener }).expect("a client")
}

pub fn send(pid: u32, signal: i32) {
    let status = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

/// Waits until `look` finds something.
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_for_within(what, PATIENCE, look)
}

pub fn wait_for_within<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < within, "waited {within:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in self.lockds.iter_mut().flatten() {
            // A stopped one is killed as well; it may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for node in 0..self.lockds.len() {
                let log = self.log(node);
                let lines: Vec<_> = log.lines().rev().take(30).collect();
                eprintln!("--- n{node}");
                for line in lines.iter().rev() {
                    eprintln!("{line}");
                }
            }
        }
    }
}
