//! Random faults from a seed, while all nodes read and write two files and fio verifies a third: the history of every
//! block is that of a register, fio finds nothing wrong, and afterwards everything goes on.
//!
//! `CSV_SEED=n` chooses the first run's seed, `CSV_RUNS=m` how many there are.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::Cluster;
use lab::cluster::{Cut, Network, Plan, SAN_HOST, Scissors};
use lab::history::{Done, History, Workload, check};
use lab::suites::{fio_verify_command, is_soak};
use lab::wait::until;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redirector::target::{Action, FaultSpec, Kind};
use serde_json::{Value, json};
use tempfile::TempDir;

const NODES: [u8; 3] = [1, 2, 3];
/// The file that is handed to a node, and the one that the coordinator's node serves.
const OWNED: &str = "owned";
const FREE: &str = "free";
const BLOCKS: u64 = 8;
/// Runs on one lab, one after the other: what a fault leaves behind is there for the next ones.
const RUNS: u64 = 4;
const RUNS_SOAK: u64 = 200;
/// How long anything may take that must go on: a lease and an election, and much more on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where the data of files is on the LUN, and no claim.
const DATA: std::ops::Range<u64> = 1 << 20..4 << 30;
/// Where the mounts tell their figures.
const METRICS_PORT: u16 = 9100;

/// What happens, and to which node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    KillMount(u8),
    KillLockd(u8),
    PowerOff(u8),
    PauseMount(u8),
    PauseNode(u8),
    CutLan(u8),
    CutSan(u8),
    /// The network of storage comes and goes.
    FlapSan(u8),
    /// Writes of the node land so much later, and it does not know whether they do.
    LateWrites(u8),
    RestartTarget,
    MoveRole(u8),
    TransferTo(u8),
    /// Some of the node's writes are acknowledged and dropped: a violation, which is never drawn.
    ForgetWrites(u8),
}

impl Fault {
    fn draw(random: &mut SmallRng, victim: u8) -> Self {
        match random.random_range(0..13) {
            0 => Self::KillMount(victim),
            1 => Self::KillLockd(victim),
            2 => Self::PowerOff(victim),
            3 => Self::PauseMount(victim),
            4 => Self::PauseNode(victim),
            5 => Self::CutLan(victim),
            6 => Self::CutSan(victim),
            7 => Self::RestartTarget,
            8 => Self::MoveRole(victim),
            9 => Self::TransferTo(victim),
            10 => Self::FlapSan(victim),
            11 => Self::CutSan(victim),
            _ => Self::LateWrites(victim),
        }
    }

    /// Whether it starts programs: that is not possible while a mount of ours is halted.
    fn starts_programs(self) -> bool {
        matches!(self, Self::RestartTarget | Self::MoveRole(_) | Self::TransferTo(_) | Self::FlapSan(_))
    }
}

/// What one run does.
#[derive(Debug)]
struct Draw {
    seed: u64,
    owner: u8,
    /// Nothing is done to this node.
    calm: u8,
    /// Each with the time until the next one.
    faults: Vec<(Fault, Duration)>,
}

impl Draw {
    fn from(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let node = |random: &mut SmallRng| NODES[random.random_range(0..NODES.len())];
        let (owner, calm) = (node(&mut random), node(&mut random));
        let count = random.random_range(1..=3);
        let mut faults: Vec<_> = (0..count)
            .map(|_| {
                let others: Vec<u8> = NODES.into_iter().filter(|number| *number != calm).collect();
                let victim = others[random.random_range(0..others.len())];
                let fault = Fault::draw(&mut random, victim);
                (fault, Duration::from_millis(random.random_range(50..4000)))
            })
            .collect();
        // Writes that land late are in every run; what starts programs comes before mounts are halted.
        faults.push((Fault::LateWrites(owner), Duration::from_millis(random.random_range(50..1500))));
        faults.sort_by_key(|(fault, _)| !fault.starts_programs());
        Self { seed, owner, calm, faults }
    }
}

/// What has happened in all runs.
#[derive(Debug, Default)]
struct Totals {
    runs: u64,
    faults: u64,
    operations: usize,
    unknown: usize,
    ghosts: u64,
    late: u64,
    /// Requests that a node has executed for another one.
    carried: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, faults, operations, unknown, ghosts, late, carried } = self;
        write!(
            f,
            "{runs} runs, {faults} faults, {operations} reads and writes, {unknown} writes of unknown outcome; ghosts seen \
             alive: {ghosts}, late writes delivered: {late}, requests carried for others: {carried}"
        )
    }
}

/// How many ghosts the mount of a node knows of, and how many requests it has executed for others; nothing if it does not
/// answer.
fn figures(cluster: &Cluster, number: u8) -> Option<[u64; 2]> {
    let limit = Duration::from_millis(200);
    let address = SocketAddr::new(Network::Lan.address(number).into(), METRICS_PORT);
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = cluster.node(number).namespace().within(ask).ok()?.ok()?;
    let figure = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().last()?.parse().ok()
    };
    Some([figure("csvfs_lun_ghosts")?, figure("csvfs_hosted_requests_total")?])
}

/// The most ghosts that each mount knew of at a time, and what each has executed for others, until `stop`.
fn watch(cluster: &Cluster, stop: &AtomicBool) -> [u64; 2] {
    let before = NODES.map(|number| figures(cluster, number).map_or(0, |[_, carried]| carried));
    let mut most = [[0; 2]; NODES.len()];
    while !stop.load(Ordering::Acquire) {
        for (at, number) in NODES.into_iter().enumerate() {
            let [ghosts, carried] = figures(cluster, number).unwrap_or_default();
            // Those that a mount which was started anew counts from nothing are left out.
            most[at] = [most[at][0].max(ghosts), most[at][1].max(carried.saturating_sub(before[at]))];
        }
        thread::sleep(Duration::from_millis(20));
    }
    [0, 1].map(|which| most.iter().map(|seen| seen[which]).sum())
}

/// Late writes that have landed, of all faults that are in force.
fn delivered(cluster: &Cluster) -> Result<u64> {
    let answer = cluster.target().control(&json!({"op": "faults"}))?;
    let faults = answer["faults"].as_array().context("the target's faults")?;
    Ok(faults.iter().filter_map(|fault| fault["delivered"].as_u64()).sum())
}

fn host(number: u8) -> String {
    format!("n{number}")
}

/// Starts a mount that tells its figures.
fn mount(cluster: &Cluster, number: u8) -> Result<()> {
    let metrics = format!("{}:{METRICS_PORT}", Network::Lan.address(number));
    let spec = cluster.node(number).mount()?.args(["--metrics", &metrics]);
    cluster.start(&host(number), spec).map(drop)
}

/// fio on a file of the node that nothing is done to.
fn start_fio(cluster: &Cluster, number: u8, scratch: &TempDir) -> Result<Child> {
    let mut command = fio_verify_command("calm", scratch.path())?;
    command
        .args(["--direct=1", "--ioengine=libaio", "--iodepth=4", "--rw=randwrite", "--bs=4k", "--size=4m"])
        .args(["--io_size=32m", "--rate_iops=800", "--fsync=128", "--verify_backlog=256"])
        .arg(format!("--filename={}", cluster.path(number, "disk").display()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn().context("starting fio")
}

/// The two files with nothing in them, one of them owned; tried until what the last run left is over.
fn make_ready(cluster: &Cluster, owner: u8) -> Result<()> {
    let clean = || -> Result<()> {
        for name in [OWNED, FREE] {
            // Whoever has it by hand gives it back.
            let _ = cluster.lockctl("n1", &["release", &cluster.path(1, name).display().to_string()]);
            fs::write(cluster.path(1, name), vec![0; usize::try_from(BLOCKS * 4096)?])?;
            fs::File::open(cluster.path(1, name))?.sync_all()?;
        }
        cluster.acquire(owner, &[OWNED])
    };
    let since = Instant::now();
    loop {
        match clean() {
            Ok(()) => return Ok(()),
            Err(error) if since.elapsed() > PATIENCE => return Err(error.context("making the files ready")),
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

fn strike(cluster: &Cluster, fault: Fault, scissors: &mut Vec<Scissors<'_>>) -> Result<()> {
    let mut cut = |number, network| scissors.pop().context("more cuts than scissors")?.cut(number, network);
    match fault {
        Fault::KillMount(number) => cluster.kill(&host(number), "csvfs"),
        Fault::KillLockd(number) => cluster.kill(&host(number), "lockd"),
        Fault::PowerOff(number) => {
            cut(number, Network::Lan)?;
            cut(number, Network::San)?;
            cluster.crash(&host(number))
        }
        Fault::PauseMount(number) => cluster.pause(&host(number), "csvfs"),
        Fault::PauseNode(number) => {
            cluster.pause(&host(number), "lockd")?;
            cluster.pause(&host(number), "csvfs")
        }
        Fault::CutLan(number) => cut(number, Network::Lan),
        Fault::CutSan(number) => cut(number, Network::San),
        Fault::FlapSan(number) => {
            for how in [Cut::Reset, Cut::Silent, Cut::Unplugged] {
                cluster.cut(number, Network::San, how)?;
                thread::sleep(Duration::from_millis(600));
                cluster.heal(number, Network::San)?;
                thread::sleep(Duration::from_millis(300));
            }
            Ok(())
        }
        Fault::LateWrites(number) => {
            let Ok(counters) = cluster.target().counters_of_node(number) else {
                // Its mount is dead, or cut off.
                return Ok(());
            };
            let late = Action::Late { ms: Some(700) };
            let spec = FaultSpec { client: counters.client, ..FaultSpec::new(late) };
            cluster.target().fault(&spec.on(Kind::Write).times(3)).map(drop)
        }
        Fault::ForgetWrites(number) => {
            let client = cluster.target().counters_of_node(number)?.client;
            let spec = FaultSpec { client, ..FaultSpec::new(Action::Forget) };
            // Of data, and not of the claims that the node beats.
            cluster.target().fault(&spec.on(Kind::Write).within(DATA).times(5)).map(drop)
        }
        Fault::RestartTarget => {
            cluster.target().kill()?;
            cluster.restart(SAN_HOST, "target")
        }
        // Both may be refused: somebody else has the file, or the role is on its way.
        Fault::MoveRole(number) => {
            let _ = cluster.lockctl(&host(number), &["coordinator", "vms", "--to", &host(number)]);
            Ok(())
        }
        Fault::TransferTo(number) => {
            let path = cluster.path(number, OWNED).display().to_string();
            let _ = cluster.lockctl(&host(number), &["transfer", &path, "--to", &host(number)]);
            Ok(())
        }
    }
}

/// Ends all faults; the daemons of the control plane that have died are back.
fn heal(cluster: &Cluster) -> Result<()> {
    // A mount that stands still must not be waited for by a program that is started.
    for daemon in cluster.daemons() {
        if daemon.is_alive() {
            daemon.resume()?;
        }
    }
    cluster.heal_all()?;
    for number in NODES {
        let daemon = cluster.daemon(&host(number), "lockd")?;
        if !daemon.is_alive() {
            let spec = daemon.spec().clone();
            cluster.launch(&host(number), spec)?;
        }
    }
    NODES.iter().try_for_each(|number| cluster.daemon(&host(*number), "lockd")?.wait_ready())
}

/// Whether the mount of a node serves: it is not dead, and its session has not ended.
fn serves(cluster: &Cluster, number: u8) -> Result<bool> {
    if !cluster.daemon(&host(number), "csvfs")?.is_alive() {
        return Ok(false);
    }
    until("a mount to tell its state", PATIENCE, || {
        let status: Value = cluster.status(number).ok()?;
        match status["state"].as_str()? {
            "failed" => Some(false),
            "paused" => None,
            _ => Some(true),
        }
    })
    .with_context(|| host(number))
}

/// Mounts anew where a mount has died or failed.
fn mend(cluster: &Cluster) -> Result<()> {
    for number in NODES {
        if serves(cluster, number)? {
            continue;
        }
        let daemon = cluster.daemon(&host(number), "csvfs")?;
        if daemon.is_alive() {
            daemon.stop(PATIENCE)?;
        }
        cluster
            .restart(&host(number), "csvfs")
            .with_context(|| format!("mounting {} again", host(number)))?;
    }
    Ok(())
}

/// Strikes, heals, and waits until whoever still serves goes on.
fn happen(cluster: &Cluster, draw: &Draw, scissors: &mut Vec<Scissors<'_>>, done: [&Done; 2]) -> Result<u64> {
    for (fault, pause) in &draw.faults {
        strike(cluster, *fault, scissors).with_context(|| format!("{fault:?}"))?;
        thread::sleep(*pause);
    }
    let late = delivered(cluster)?;
    heal(cluster)?;
    for (at, number) in NODES.into_iter().enumerate() {
        if !serves(cluster, number)? {
            ensure!(number != draw.calm, "the mount that nothing was done to has failed");
            continue;
        }
        for done in done {
            let before = done.succeeded(at);
            until(&format!("n{number} to go on"), PATIENCE, || {
                (done.succeeded(at) > before + 5 || !serves(cluster, number).unwrap_or(true)).then_some(())
            })?;
        }
    }
    Ok(late)
}

fn is_linearizable(name: &str, history: &History) -> Result<()> {
    let Err(violations) = check(history) else { return Ok(()) };
    let said: Vec<String> = violations.iter().take(5).map(ToString::to_string).collect();
    bail!("{name}: {} violations: {}", violations.len(), said.join("\n"))
}

fn one_run(cluster: &Cluster, draw: &Draw, totals: &mut Totals) -> Result<()> {
    make_ready(cluster, draw.owner)?;
    let scratch = TempDir::new()?;
    let mut scissors: Vec<_> = (0..8).map(|_| cluster.ready_to_cut()).collect::<Result<_>>()?;
    let fio = start_fio(cluster, draw.calm, &scratch)?;
    let (owned, free) = (cluster.registers(&NODES, OWNED)?, cluster.registers(&NODES, FREE)?);
    let workload = Workload {
        blocks: BLOCKS,
        threads: 1,
        pause: Duration::from_millis(2),
        seed: draw.seed,
        operations_max: u64::MAX,
        // A write whose answer is lost with the node that served the file is done once more by the next one: two writers
        // of one block, who do not wait for each other, may see that.
        one_writer: true,
    };
    let stop = AtomicBool::new(false);
    let ((happened, free_history), owned_history, seen) = thread::scope(|scope| {
        let watch = scope.spawn(|| watch(cluster, &stop));
        let (inner, owned_history) = workload.run(&owned, |on_owned| {
            let inner = workload.run(&free, |on_free| {
                let happened = happen(cluster, draw, &mut scissors, [on_owned, on_free]);
                on_free.stop();
                happened
            });
            on_owned.stop();
            inner
        });
        stop.store(true, Ordering::Release);
        (inner, owned_history, watch.join().unwrap_or_default())
    });
    drop((owned, free));
    let fio = fio.wait_with_output()?;
    totals.late += happened?;
    totals.ghosts += seen[0];
    totals.carried += seen[1];
    totals.runs += 1;
    totals.faults += draw.faults.len() as u64;
    for (name, history) in [(OWNED, &owned_history), (FREE, &free_history)] {
        is_linearizable(name, history)?;
        totals.operations += history.len();
        totals.unknown += history.unknown();
    }
    ensure!(fio.status.success(), "fio on the calm node: {}", String::from_utf8_lossy(&fio.stderr));
    cluster.target().control(&json!({"op": "clear"}))?;
    mend(cluster)?;
    for name in [OWNED, FREE] {
        let seen = fs::read(cluster.path(1, name))?;
        for number in [2, 3] {
            ensure!(fs::read(cluster.path(number, name))? == seen, "n{number} sees another {name} than n1");
        }
    }
    Ok(())
}

/// Runs `test` on three nodes that have the volume mounted.
fn on_a_cluster(test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    let plan = Plan {
        fence: "nbd-target".to_owned(),
        // Longer than writes are late: a node that goes on through a peer has no other proof that they have landed.
        target_quiesce_ms: Some(2000),
        ..Plan::short_sessions(3, memory.path())
    };
    Cluster::run(plan, |cluster| {
        cluster.init()?;
        cluster.start_lockd()?;
        cluster.format()?;
        NODES.iter().try_for_each(|number| mount(cluster, *number))?;
        test(cluster)
    })
}

#[test]
fn random_faults_leave_one_truth() -> Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("CSV_SEED").unwrap_or(1);
    let runs = number("CSV_RUNS").unwrap_or(if is_soak() { RUNS_SOAK } else { RUNS });
    on_a_cluster(|cluster| {
        let mut totals = Totals::default();
        for seed in first..first + runs {
            let (draw, since) = (Draw::from(seed), Instant::now());
            eprintln!("{draw:?}");
            one_run(cluster, &draw, &mut totals)
                .with_context(|| format!("CSV_SEED={seed} CSV_RUNS=1: {draw:?}"))?;
            eprintln!("seed {seed}: {:.1?}", since.elapsed());
        }
        eprintln!("{totals}");
        ensure!(totals.ghosts > 0 && totals.late > 0, "nothing was late: {totals}");
        ensure!(runs < 20 || totals.carried > 0, "nothing was carried for others: {totals}");
        cluster.end_clean()
    })
}

/// A violation is planted among random faults: some writes of the owner are acknowledged and never come to the disk. The checker
/// must say so, and of the right file.
#[test]
fn a_planted_violation_is_found() -> Result<()> {
    on_a_cluster(|cluster| {
        let mut draw = Draw { owner: 2, ..Draw::from(1) };
        draw.faults.insert(0, (Fault::ForgetWrites(2), Duration::from_millis(500)));
        eprintln!("{draw:?}");
        let said = match one_run(cluster, &draw, &mut Totals::default()) {
            Err(error) => format!("{error:#}"),
            Ok(()) => bail!("writes were acknowledged and dropped, and nothing was found"),
        };
        eprintln!("{said}");
        ensure!(said.contains("owned: ") && said.contains("violations: block "), "another failure: {said}");
        Ok(())
    })
}
