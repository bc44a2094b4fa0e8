//! The units as installed: systemd reads them without a complaint, their commands exist, and what they forbid is not needed.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::cluster::is_mounted;
use lab::programs;
use lab::wait::until;
use tempfile::TempDir;

use crate::installed::Installed;
use crate::unit::Unit;

const UNITS: [&str; 3] = ["lockd.service", "csvfs@.service", "csv-target@.service"];

/// Settings that give a service a mount namespace of its own: a mount inside is seen by nobody else.
const OWN_NAMESPACE: [&str; 17] = [
    "ProtectSystem",
    "ProtectHome",
    "PrivateTmp",
    "PrivateDevices",
    "PrivateMounts",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectProc",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "InaccessiblePaths",
    "TemporaryFileSystem",
    "BindPaths",
    "RootDirectory",
    "ProtectHostname",
];

#[test]
fn systemd_reads_the_units_without_a_complaint() -> Result<()> {
    let installed = Installed::new()?;
    let Ok(analyze) = programs::installed("systemd-analyze") else {
        // The other tests read the units themselves.
        return Ok(());
    };
    let units = UNITS.map(|unit| installed.units().join(unit));
    let output = Command::new(&analyze).arg("verify").args(&units).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && said.is_empty(), "systemd-analyze verify: {said}");
    // It must be able to complain.
    let wrong = installed.units().join("wrong.service");
    std::fs::write(&wrong, "[Service]\nExecStart=/no/such/program\nRestart=sometimes\n")?;
    let output = Command::new(&analyze).arg("verify").arg(&wrong).output()?;
    ensure!(!output.stderr.is_empty(), "a wrong unit passes: {output:?}");
    Ok(())
}

#[test]
fn each_command_of_the_units_exists_with_all_of_its_flags() -> Result<()> {
    let installed = Installed::new()?;
    for name in UNITS {
        let unit = Unit::read(&installed.units().join(name))?;
        let (program, words) = unit.command()?;
        ensure!(program.exists(), "{name}: {} is not there", program.display());
        let subcommand = words.first().filter(|word| word.chars().all(|c| c.is_ascii_lowercase()));
        let help = Command::new(&program).args(subcommand).arg("--help").output()?;
        let help = String::from_utf8(help.stdout)?;
        let known: Vec<&str> = help.split([' ', ',', '\n']).collect();
        let flags: Vec<_> = words.iter().filter(|word| word.starts_with("--")).collect();
        ensure!(!flags.is_empty(), "{name} has no flags: {words:?}");
        for flag in flags {
            ensure!(known.contains(flag), "{name}: {flag} is unknown to {}: {help}", program.display());
        }
        // A program without its folder or cluster file says what is missing, and a wrong command line is told apart.
        let wrong = Command::new(&program).args(subcommand).arg("--no-such-flag").output()?;
        ensure!(wrong.status.code() == Some(2), "{name}: {wrong:?}");
        ensure!(
            unit.one("RestartPreventExitStatus")? == "2",
            "{name} is tried again for a wrong command line"
        );
        ensure!(unit.one("Type")? == "notify" && unit.one("StartLimitIntervalSec")? == "0", "{name}");
        ensure!(unit.one("After")?.contains("network-online.target"), "{name} starts before the network");
        ensure!(unit.one("Wants")?.contains("network-online.target"), "{name} does not ask for the network");
        for file in unit.all("EnvironmentFile") {
            let folder = file.trim_start_matches('-').rsplit_once('/').map(|(folder, _)| folder);
            ensure!(folder == Some("/etc/csvfs"), "{name}: {file}");
        }
    }
    Ok(())
}

#[test]
fn the_mount_of_a_volume_is_seen_by_the_machine_and_outlives_lockd() -> Result<()> {
    let installed = Installed::new()?;
    let unit = Unit::read(&installed.units().join("csvfs@.service"))?;
    for key in unit.keys() {
        ensure!(!OWN_NAMESPACE.contains(&key), "{key} would hide the mount from everybody else");
    }
    ensure!(unit.one("After")?.contains("lockd.service") && unit.one("Wants")?.contains("lockd.service"));
    for strong in ["Requires", "BindsTo", "PartOf"] {
        ensure!(unit.all(strong).is_empty(), "{strong}: a restart of lockd would unmount");
    }
    ensure!(unit.one("TimeoutStartSec")? == "infinity", "a mount waits for the cluster as long as it takes");
    let lockd = Unit::read(&installed.units().join("lockd.service"))?;
    for unit in [&unit, &lockd] {
        ensure!(unit.one("RuntimeDirectory")? == "csvfs", "{}", unit.name);
        ensure!(
            unit.one("RuntimeDirectoryPreserve")? == "yes",
            "a restart of {} takes all sockets away",
            unit.name
        );
    }
    // L11: it is back well before the lease (8 s) of its clients is over.
    ensure!(lockd.one("Restart")? == "always" && lockd.one("RestartSec")? == "500ms");
    Ok(())
}

/// The capabilities of a unit as setpriv takes them.
fn bounding(unit: &Unit) -> Result<String> {
    let names = unit.one("CapabilityBoundingSet")?.split(' ').filter(|name| !name.is_empty());
    let names = names.map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    Ok(format!("-all{}", names.collect::<String>()))
}

/// A daemon that ends with the value.
struct Running(Child);

impl Running {
    fn end(&mut self) -> Result<Output> {
        let status = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status()?;
        ensure!(status.success(), "kill: {status}");
        let status = until("it ends", Duration::from_secs(20), || self.0.try_wait().ok().flatten())?;
        Ok(Output { status, stdout: Vec::new(), stderr: Vec::new() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A site of its own: what the units name by environment or by systemd's folders is in one folder.
struct Site {
    installed: Installed,
    folder: TempDir,
}

impl Site {
    /// Starts the unit's program with the unit's words, capabilities and environment; waits until it has told the service
    /// manager that it is ready.
    fn start(&self, name: &str, instance: &str, environment: &[(&str, String)]) -> Result<Running> {
        let unit = Unit::read(&self.installed.units().join(name))?;
        let (program, words) = unit.command()?;
        let notify = self.folder.path().join(format!("{name}.notify"));
        let manager = UnixDatagram::bind(&notify)?;
        manager.set_read_timeout(Some(Duration::from_secs(30)))?;
        let value = |word: &str| -> Option<String> {
            let name = word.trim_start_matches("$").trim_start_matches('{').trim_end_matches('}');
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone())
        };
        let mut command = Command::new(programs::installed("setpriv")?);
        command
            .args(["--bounding-set", &bounding(&unit)?, "--inh-caps", "-all", "--no-new-privs"])
            .arg(program);
        for word in words {
            match word.strip_prefix("/var/lib/csvfs/") {
                Some(state) => command.arg(self.folder.path().join(state.replace("%i", instance))),
                // A variable without braces is several words, or none.
                None if word.starts_with("${") => command.arg(value(word).context(word.to_owned())?),
                None if word.starts_with('$') => {
                    command.args(value(word).unwrap_or_default().split_whitespace())
                }
                None => command.arg(word.replace("%i", instance)),
            };
        }
        let log = std::fs::File::create(self.folder.path().join(format!("{name}.log")))?;
        let mut child = Running(
            command
                .env("NOTIFY_SOCKET", &notify)
                .envs(environment.iter().cloned())
                .env("CSV_RUN_DIR", self.folder.path().join("run"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()?,
        );
        let mut said = [0; 64];
        match manager.recv(&mut said) {
            Ok(length) => ensure!(&said[..length] == b"READY=1", "{name} said {said:?}"),
            Err(error) => {
                let log = std::fs::read_to_string(self.folder.path().join(format!("{name}.log")))?;
                bail!("{name} was not ready ({error}), {:?}: {log}", child.0.try_wait());
            }
        }
        Ok(child)
    }
}

#[test]
fn the_daemons_work_with_the_rights_of_their_units_and_say_when_they_are_ready() -> Result<()> {
    let site = Site { installed: Installed::new()?, folder: TempDir::new()? };
    let at = |name: &str| site.folder.path().join(name);
    let text = |path: PathBuf| path.display().to_string();
    // An address of this process alone, so that tests run beside each other.
    let pid = std::process::id();
    let address = format!("127.{}.{}.{}", 64 + (pid >> 16) % 64, (pid >> 8) & 255, 1 + (pid & 255) % 254);
    let listen = format!("unix:{}", text(at("nbd.sock")));
    let target = [
        ("CSV_FILE", text(at("lun.img"))),
        ("CSV_LISTEN", listen),
        ("CSV_TARGET_FLAGS", "--size 200M".to_owned()),
    ];
    let mut target = site.start("csv-target@.service", "vms", &target)?;
    let lun = format!("nbd+unix:///vms?socket={}", text(at("nbd.sock")));
    let file = format!(
        "name = \"units\"\n[tls]\ndir = \"tls\"\n[[node]]\nname = \"n1\"\naddress = \"{address}\"\nvoter = true\n\
         [[volume]]\nname = \"vms\"\nlun = [\"{lun}\"]\nfence = \"lease\"\n"
    );
    std::fs::write(at("cluster.toml"), file)?;
    let ours = |program: &str, words: &[&str]| -> Result<()> {
        let output = Command::new(programs::ours(program)?).args(words).output()?;
        ensure!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let cluster = text(at("cluster.toml"));
    ours("lockctl", &["init", &cluster])?;
    ours("csvfs", &["format", "--cluster", &cluster, "vms", "--window-ms", "500", "--quiesce-ms", "500"])?;
    let node = [("CSV_CLUSTER", cluster.clone()), ("CSV_NODE", "n1".to_owned())];
    let mut lockd = site.start("lockd.service", "", &node)?;
    let folder = at("mnt");
    std::fs::create_dir(&folder)?;
    let mount =
        [&node[..], &[("CSV_FOLDER", text(folder.clone())), ("CSV_MOUNT_FLAGS", "-o noatime".to_owned())]];
    let mut mount = site.start("csvfs@.service", "vms", &mount.concat())?;
    let used = (|| {
        ensure!(is_mounted(&folder), "it is ready and not mounted");
        std::fs::write(folder.join("file"), b"by the unit")?;
        ensure!(std::fs::read(folder.join("file"))? == b"by the unit");
        // A file of another user, whose folder only that user may enter, is read all the same: rights are the kernel's.
        std::fs::create_dir(folder.join("private"))?;
        std::os::unix::fs::chown(folder.join("private"), Some(1234), Some(1234))?;
        Ok(())
    })();
    let ended = mount.end();
    if ended.is_err() || used.is_err() {
        let _ = Command::new("umount").arg("-l").arg(&folder).status();
    }
    used?;
    ensure!(ended?.status.success(), "the mount did not end well");
    ensure!(!is_mounted(&folder));
    ensure!(lockd.end()?.status.success(), "lockd did not end well");
    ensure!(target.end()?.status.success(), "the target did not end well");
    Ok(())
}
