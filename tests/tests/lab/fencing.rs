//! Nodes that die, hang and come back on a volume that is fenced by csv-target, or by a fence agent.
//!
//! A process that writes on a node which is to hang is one of its own (`dd`), started before: a test that has a file of a
//! hanging mount open can start no other process, as each new one closes its copy of the descriptor and waits for the
//! mount to answer.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::Cluster;
use lab::cluster::{Plan, TargetKind};
use lab::wait::until;
use tempfile::TempDir;

const FILE: &str = "disk";
const BYTES: usize = 256 << 10;
/// The default lease.
const LEASE: Duration = Duration::from_secs(8);
/// What a busy machine takes longer, and less than a grace; `bench run --only faults` measures it.
const BUSY: Duration = Duration::from_secs(8);
/// How long anything may take that has no bar.
const LIMIT: Duration = Duration::from_secs(40);

fn with(plan: Plan, test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    // The LUN is in memory: a disk's flushes are no part of what is tested.
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    let plan = Plan { window_ms: 500, lun_folder: Some(memory.path().to_owned()), ..plan };
    Cluster::run(plan, test)
}

fn fenced_by_target(nodes: u8) -> Plan {
    Plan { fence: "nbd-target".to_owned(), ..Plan::new(nodes) }
}

/// Makes the node the owner of the file, which it has written.
fn own(cluster: &Cluster, number: u8) -> Result<()> {
    fs::write(cluster.path(1, FILE), vec![0xaa; BYTES])?;
    cluster.acquire(number, &[FILE])?;
    let file = fs::File::options().write(true).open(cluster.path(number, FILE))?;
    file.write_all_at(&vec![0xbb; BYTES], 0)?;
    Ok(file.sync_all()?)
}

/// A node that neither coordinates the volume nor leads lockd, and owns the file.
fn victim(cluster: &Cluster) -> Result<u8> {
    let leader = until("somebody leads", LIMIT, || cluster.leader(2).ok())?;
    let victim = if leader == 3 { 2 } else { 3 };
    own(cluster, victim)?;
    Ok(victim)
}

/// How long it takes from now until the file is written on node 1 with `byte`.
fn overwrite(cluster: &Cluster, byte: u8, since: Instant) -> Result<Duration> {
    let path = cluster.path(1, FILE);
    let write = move || -> std::io::Result<()> {
        let file = fs::File::options().write(true).open(&path)?;
        file.write_all_at(&vec![byte; BYTES], 0)?;
        file.sync_all()
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    // Should the file never come free, this thread waits until the lab is taken away.
    thread::spawn(move || {
        // A sync that spans the loss of the file's server fails, once (P9).
        let written = until("the file is written", LIMIT, || write().ok());
        let _ = sender.send(written.map(|()| since.elapsed()));
    });
    receiver.recv_timeout(LIMIT).context("the file is not free")?
}

fn holds(path: &Path, byte: u8) -> Result<()> {
    let found = fs::read(path).with_context(|| path.display().to_string())?;
    let wrong = found.iter().position(|found| *found != byte);
    ensure!(found.len() == BYTES && wrong.is_none(), "{}: {wrong:?} of {}", path.display(), found.len());
    Ok(())
}

#[test]
fn what_a_dead_node_had_is_free_soon_after_its_lease() -> Result<()> {
    with(fenced_by_target(3), |cluster| {
        cluster.mount_all()?;
        let victim = victim(cluster)?;
        let began = Instant::now();
        cluster.power_off(victim)?;
        let took = overwrite(cluster, 0xcc, began)?;
        eprintln!("free {took:.2?} after the power was off, with a lease of {LEASE:?}");
        ensure!(took <= LEASE + BUSY, "free only after {took:?}");
        ensure!(cluster.target().control(&serde_json::json!({"op": "status"}))?["ended"] == 1);
        let other = 5 - victim;
        holds(&cluster.path(other, FILE), 0xcc)?;
        // It comes back as somebody else.
        cluster.power_on(victim)?;
        holds(&cluster.path(victim, FILE), 0xcc)?;
        cluster.acquire(victim, &[FILE])?;
        cluster.end_clean()
    })
}

#[test]
fn what_the_leader_of_the_voters_had_is_free_an_election_and_a_lease_later() -> Result<()> {
    with(fenced_by_target(3), |cluster| {
        cluster.mount_all()?;
        // Not the node that coordinates the volume.
        while until("somebody leads", LIMIT, || cluster.leader(2).ok())? == 1 {
            cluster.kill("n1", "lockd")?;
            until("another one leads", LIMIT, || cluster.leader(2).ok().filter(|leader| *leader != 1))?;
            cluster.restart("n1", "lockd")?;
        }
        let victim = until("somebody leads", LIMIT, || cluster.leader(2).ok())?;
        own(cluster, victim)?;
        let began = Instant::now();
        cluster.power_off(victim)?;
        let took = overwrite(cluster, 0xcc, began)?;
        eprintln!("free {took:.2?} after the leader's power was off, with a lease of {LEASE:?}");
        // An election takes less than a second.
        ensure!(took <= LEASE * 2 + BUSY, "free only after {took:?}");
        holds(&cluster.path(5 - victim, FILE), 0xcc)?;
        cluster.power_on(victim)?;
        holds(&cluster.path(victim, FILE), 0xcc)?;
        cluster.end_clean()
    })
}

#[test]
fn what_a_killed_mount_had_is_free_long_before_its_lease_is_over() -> Result<()> {
    with(fenced_by_target(3), |cluster| {
        cluster.mount_all()?;
        let victim = victim(cluster)?;
        let host = cluster.node(victim).name();
        let began = Instant::now();
        cluster.kill(&host, "csvfs")?;
        let took = overwrite(cluster, 0xcc, began)?;
        eprintln!("free {took:.2?} after the mount was killed");
        ensure!(took <= LEASE / 2, "free only after {took:?}");
        cluster.restart(&host, "csvfs")?;
        holds(&cluster.path(victim, FILE), 0xcc)?;
        cluster.end_clean()
    })
}

/// Writes the same bytes to the file again and again, on a node that will hang.
fn endless_writer(cluster: &Cluster, number: u8, folder: &Path) -> Result<Child> {
    let bytes = folder.join("bytes");
    fs::write(&bytes, vec![0xee; BYTES])?;
    let (bytes, file) = (bytes.display(), cluster.path(number, FILE).display().to_string());
    let line = format!(
        "while dd if={bytes} of={file} bs=16k oflag=direct conv=notrunc status=none; do echo; done; exit 7"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.spawn()?)
}

#[test]
fn a_node_that_hangs_past_its_lease_writes_nothing_when_it_wakes_up() -> Result<()> {
    with(Plan { lease_ms: Some(3000), ..fenced_by_target(3) }, |cluster| {
        cluster.mount_all()?;
        let victim = victim(cluster)?;
        let host = cluster.node(victim).name();
        let folder = TempDir::new()?;
        let mut writer = endless_writer(cluster, victim, folder.path())?;
        until("the writer writes", LIMIT, || {
            fs::read(cluster.path(1, FILE)).ok().filter(|found| found.starts_with(&[0xee]))
        })?;
        cluster.pause(&host, "csvfs")?;
        cluster.pause(&host, "lockd")?;
        let took = overwrite(cluster, 0xcc, Instant::now())?;
        eprintln!("free {took:.2?} after it hung, with a lease of 3 s");
        for daemon in ["lockd", "csvfs"] {
            cluster.resume(&host, daemon)?;
        }
        let status = until("the writer is told", LIMIT, || writer.try_wait().ok().flatten());
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                writer.kill()?;
                return Err(error);
            }
        };
        ensure!(status.code() == Some(7), "the writer ended with {status}");
        // What it had on its way has had its time.
        thread::sleep(Duration::from_secs(1));
        let other = 5 - victim;
        for number in [1, other] {
            holds(&cluster.path(number, FILE), 0xcc)?;
        }
        let stale = fs::File::options().write(true).open(cluster.path(victim, FILE));
        let errno = stale.and_then(|mut file| file.write_all(&[1])).map_err(|error| error.raw_os_error());
        ensure!(
            matches!(errno, Err(Some(libc::EIO | libc::ESTALE))),
            "an application on it is told {errno:?}"
        );
        // As a new session, when it is mounted anew. What it had can no more be closed in order.
        let ending = Instant::now();
        cluster.daemon(&host, "csvfs")?.stop(LIMIT)?;
        eprintln!("the old mount has ended {:.2?} after it was asked to", ending.elapsed());
        cluster.restart(&host, "csvfs")?;
        holds(&cluster.path(victim, FILE), 0xcc)?;
        cluster.acquire(victim, &[FILE])?;
        cluster.end_clean()
    })
}

#[test]
fn a_new_mount_waits_until_the_hanging_one_is_dead() -> Result<()> {
    with(Plan { lease_ms: Some(2000), ..fenced_by_target(3) }, |cluster| {
        cluster.mount_all()?;
        let victim = victim(cluster)?;
        let host = cluster.node(victim).name();
        cluster.pause(&host, "csvfs")?;
        cluster.pause(&host, "lockd")?;
        overwrite(cluster, 0xcc, Instant::now())?;
        // The node is back, its old mount still hangs.
        cluster.resume(&host, "lockd")?;
        until("it has a new session", LIMIT, || {
            let log = cluster.daemon(&host, "lockd").ok()?.log();
            log.contains("the node starts a new one").then_some(())
        })?;
        let second = TempDir::new()?;
        let spec = cluster.node(victim).mount()?;
        let arguments = spec.arguments.iter().map(|argument| {
            let is_mount_point = Path::new(argument) == cluster.node(victim).mount_point();
            if is_mount_point { second.path().as_os_str().to_owned() } else { argument.clone() }
        });
        let mut command = cluster.exec(&host, &spec.program)?;
        let refused = command.args(arguments).output()?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(!refused.status.success() && said.contains("still runs"), "{said}");
        cluster.daemon(&host, "csvfs")?.kill()?;
        cluster.restart(&host, "csvfs")?;
        holds(&cluster.path(victim, FILE), 0xcc)?;
        cluster.end_clean()
    })
}

#[test]
fn the_only_node_dies_and_comes_back() -> Result<()> {
    with(fenced_by_target(1), |cluster| {
        cluster.mount_all()?;
        let file = fs::File::create(cluster.path(1, FILE))?;
        file.write_all_at(&vec![0xdd; BYTES], 0)?;
        file.sync_all()?;
        drop(file);
        cluster.crash("n1")?;
        // Longer than a lease: nobody is there to end the session, or to fence it.
        thread::sleep(LEASE + Duration::from_secs(1));
        let began = Instant::now();
        cluster.restart("n1", "lockd")?;
        cluster.restart("n1", "csvfs")?;
        eprintln!("mounted {:.2?} after lockd was started again", began.elapsed());
        holds(&cluster.path(1, FILE), 0xdd)?;
        let nobody = cluster.lockctl("n1", &["fences"])?;
        ensure!(nobody.contains("nobody is being fenced"), "{nobody}");
        cluster.end_clean()
    })
}

#[test]
fn with_auto_nothing_less_than_a_proof_is_taken() -> Result<()> {
    let auto = |nodes| Plan { fence: "auto".to_owned(), ..Plan::new(nodes) };
    with(auto(1).target(TargetKind::Nbdkit), |cluster| {
        cluster.init()?;
        cluster.start_lockd()?;
        cluster.format()?;
        let said = format!("{:#}", cluster.mount(1).unwrap_err());
        for word in ["not served by csv-target", "nbd-target", "agent:COMMAND", "fence = \"lease\""] {
            ensure!(said.contains(word), "{word:?} is not in: {said}");
        }
        Ok(())
    })?;
    with(auto(1), |cluster| {
        cluster.mount_all()?;
        let fence = cluster.cluster_status(1)?["volumes"][0]["fence"].as_str().unwrap_or("?").to_owned();
        ensure!(fence.starts_with("nbd-target: the target refuses"), "{fence}");
        cluster.end_clean()
    })
}

#[test]
fn the_drill_proves_that_a_fenced_write_does_not_land() -> Result<()> {
    with(fenced_by_target(2), |cluster| {
        cluster.mount_all()?;
        fs::write(cluster.path(1, FILE), vec![0xaa; BYTES])?;
        let output = cluster.exec_ours("n2", "csvfs", &["fence-test", "vms"])?;
        let said = String::from_utf8(output.stdout)?;
        for word in ["refused for good", "was held at the target", "has not landed", "PROVED"] {
            ensure!(said.contains(word), "{word:?} is not in: {said}");
        }
        // Nobody else has noticed anything.
        fs::write(cluster.path(2, "other"), vec![0xbb; BYTES])?;
        holds(&cluster.path(2, FILE), 0xaa)?;
        ensure!(
            cluster.target().control(&serde_json::json!({"op": "faults"}))?["faults"]
                == serde_json::json!([])
        );
        cluster.end_clean()
    })?;
    with(Plan::new(1), |cluster| {
        let output = cluster.exec_ours("n1", "csvfs", &["fence-test", "vms"])?;
        let said = String::from_utf8(output.stdout)?;
        ensure!(said.contains("nothing to drill") && said.contains("stopped between"), "{said}");
        Ok(())
    })
}

/// A fence agent that does what is written in the file `mode`, and notes what it was told.
fn agent(folder: &Path) -> Result<PathBuf> {
    let script = format!(
        "#!/bin/sh\ncd {}\nwhile read line; do case $line in action=*) action=${{line#action=}};; esac; echo $line \
         >>told; done\nmode=$(cat mode)\ncase $mode-$action in\n*-metadata) echo '<action name=\"status\"/>';;\n\
         fails-off) echo no route to the BMC >&2; exit 1;;\nhangs-off) sleep 60;;\nlies-status) exit 0;;\n\
         *-status) exit 2;;\nesac\n",
        folder.display()
    );
    let path = folder.join("agent");
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[test]
fn an_agent_that_fails_hangs_or_lies_gives_nothing_away() -> Result<()> {
    let folder = TempDir::new()?;
    let agent = agent(folder.path())?;
    let mode = |mode: &str| fs::write(folder.path().join("mode"), mode);
    mode("fails")?;
    let plan = Plan {
        fence: format!("agent:{}", agent.display()),
        lease_ms: Some(2000),
        volume_lines: "agent_timeout_s = 1.0\n[volume.agent]\nip = \"10.1.0.9\"\n".to_owned(),
        ..Plan::new(3)
    };
    with(plan, |cluster| {
        cluster.mount_all()?;
        let victim = victim(cluster)?;
        cluster.power_off(victim)?;
        for (how, words) in [
            ("fails", "no route to the BMC"),
            ("hangs", "did not end within 1s"),
            ("lies", "its status says on"),
        ] {
            mode(how)?;
            let said = || cluster.lockctl("n1", &["fences"]).ok().filter(|said| said.contains(words));
            let said = until(&format!("{how} is told"), LIMIT, said)?;
            ensure!(said.contains("what to do") && said.contains("it has not succeeded yet"), "{said}");
            let held = cluster.lockctl("n1", &["ls"])?;
            ensure!(held.lines().any(|line| line.contains("/file/")), "something was given away: {held}");
        }
        let status = String::from_utf8(cluster.exec_ours("n1", "csvfs", &["status"])?.stdout)?;
        let line = format!("FENCING      node n{victim} for");
        ensure!(status.contains(&line) && status.contains("fence agent has not succeeded"), "{status}");
        mode("works")?;
        overwrite(cluster, 0xcc, Instant::now())?;
        let told = fs::read_to_string(folder.path().join("told"))?;
        let lines = format!("action=off\nnodename=n{victim}\nplug=n{victim}\nip=10.1.0.9\n");
        ensure!(told.contains(&lines), "{told}");
        cluster.power_on(victim)?;
        holds(&cluster.path(victim, FILE), 0xcc)?;
        cluster.end_clean()
    })
}

#[test]
fn a_target_that_has_lost_its_list_is_not_taken_for_the_one_that_had_it() -> Result<()> {
    with(fenced_by_target(2), |cluster| {
        cluster.mount_all()?;
        fs::write(cluster.path(2, FILE), vec![0xaa; BYTES])?;
        // What nobody syncs a killed mount may lose.
        fs::File::open(cluster.path(2, FILE))?.sync_all()?;
        cluster.target().stop()?;
        fs::remove_dir_all(cluster.folder().join("san/state"))?;
        cluster.restart("san", "target")?;
        let why = until("a mount has seen it", LIMIT, || {
            let status = cluster.cluster_status(1).ok()?;
            let path = status["volumes"][0]["nodes"][0]["mount"]["path"].as_str()?.to_owned();
            path.contains("has lost the list").then_some(path)
        })?;
        ensure!(why.contains("mount anew"), "{why}");
        for number in [2, 1] {
            let host = cluster.node(number).name();
            cluster.kill(&host, "csvfs")?;
        }
        for host in ["n1", "n2"] {
            cluster.restart(host, "csvfs")?;
        }
        holds(&cluster.path(1, FILE), 0xaa)?;
        cluster.end_clean()
    })
}

#[test]
fn a_target_that_cannot_be_asked_is_named_with_what_to_do() -> Result<()> {
    with(Plan { lease_ms: Some(2000), ..fenced_by_target(3) }, |cluster| {
        cluster.mount_all()?;
        let victim = victim(cluster)?;
        cluster.power_off(victim)?;
        cluster.pause("san", "target")?;
        let said = until("the trouble is told", LIMIT, || {
            let said = cluster.lockctl("n1", &["fences"]).ok()?;
            said.contains("the last time").then_some(said)
        })?;
        ensure!(said.contains("10.78.0.254:10810") && said.contains("start csv-target"), "{said}");
        cluster.resume("san", "target")?;
        overwrite(cluster, 0xcc, Instant::now())?;
        if cluster.daemon(&cluster.node(victim).name(), "csvfs")?.is_alive() {
            bail!("the victim lives");
        }
        cluster.power_on(victim)?;
        cluster.end_clean()
    })
}
