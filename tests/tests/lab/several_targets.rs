//! A volume with several paths, each to a csv-target of its own: a fence is complete when all of them have refused (F1).

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Cluster;
use lab::cluster::{DaemonSpec, Plan, Ready, SAN_HOST, TargetKind, VOLUME, lun_url};
use lab::programs;
use lab::wait::until;
use lockd::cluster::Cluster as ClusterFile;
use lockd::cluster::tls::Credentials;
use lockd::fencing::TargetControl;
use serde_json::{Value, json};
use tempfile::TempDir;

const SECOND: &str = "target2";
const LUN_PORT: u16 = 10819;
const CONTROL_PORT: u16 = 10820;
const LIMIT: Duration = Duration::from_secs(40);

/// The address of the host of the targets.
fn host(cluster: &Cluster) -> Result<String> {
    let url = cluster.target().url();
    let address = url.strip_prefix("nbd://").and_then(|rest| rest.split(':').next());
    Ok(address.with_context(|| format!("no address in {url}"))?.to_owned())
}

/// The second target: it serves an image of its own, of which nobody reads or writes anything.
fn second(cluster: &Cluster) -> Result<DaemonSpec> {
    let address = host(cluster)?;
    let folder = cluster.folder().join("second");
    fs::create_dir_all(&folder)?;
    let image = folder.join("lun.img");
    if !image.exists() {
        fs::File::create(&image)?.set_len(64 << 20)?;
    }
    let tls = cluster.folder().join("tls");
    let [image, state, tls] = [image, folder.join("state"), tls].map(|path| path.display().to_string());
    Ok(DaemonSpec::new(SECOND, programs::ours("csv-target")?)
        .args(["--export", VOLUME, "--listen", &format!("{address}:{LUN_PORT}")])
        .args(["--control", &format!("{address}:{CONTROL_PORT}"), "--control-tls", &tls])
        .args(["--file", &image, "--state", &state])
        .ready(Ready::Line("ready".to_owned())))
}

/// How many clients the second target refuses for good.
fn refused_by_second(cluster: &Cluster) -> Result<u64> {
    let (file, address) = (cluster.cluster_file(), format!("{}:{CONTROL_PORT}", host(cluster)?));
    let ask = || -> Result<Value> {
        let credentials = Credentials::load(&ClusterFile::read(&file)?, &"n1".parse()?)?;
        let target = TargetControl::new(&address.parse()?, &credentials)?;
        Ok(target.ask(&json!({"op": "status"}), Duration::from_secs(5))?)
    };
    let status = cluster.node(1).namespace().within(ask)??;
    status["ended"].as_u64().with_context(|| format!("{status}"))
}

fn refused_by_first(cluster: &Cluster) -> Result<u64> {
    let status = cluster.target().control(&json!({"op": "status"}))?;
    status["ended"].as_u64().with_context(|| format!("{status}"))
}

#[test]
fn f1_a_fence_is_complete_when_every_listed_target_has_refused() -> Result<()> {
    let memory = TempDir::new_in("/dev/shm").context("a folder in memory")?;
    let plan = Plan { fence: "nbd-target".to_owned(), ..Plan::short_sessions(3, memory.path()) };
    Cluster::run(plan, |cluster| {
        let address = host(cluster)?;
        let (file, first) = (cluster.cluster_file(), lun_url(TargetKind::CsvTarget));
        let text = fs::read_to_string(&file)?;
        let text = text
            .replace(
                &format!("[\"{first}\"]"),
                &format!("[\"{first}\", \"nbd://{address}:{LUN_PORT}/{VOLUME}\"]"),
            )
            .replace(":10810\"]", &format!(":10810\", \"{address}:{CONTROL_PORT}\"]"));
        ensure!(
            text.contains(&format!(":{LUN_PORT}")) && text.contains(&format!(":{CONTROL_PORT}")),
            "{text}"
        );
        fs::write(&file, text)?;
        cluster.init()?;
        cluster.start(SAN_HOST, second(cluster)?)?;
        cluster.start_lockd()?;
        cluster.format()?;
        (1..=3).try_for_each(|number| cluster.mount(number).map(drop))?;
        fs::write(cluster.path(3, "disk"), b"of n3")?;
        cluster.acquire(3, &["disk"])?;
        ensure!((refused_by_first(cluster)?, refused_by_second(cluster)?) == (0, 0));

        // Its mount dies, and both refuse it.
        cluster.kill("n3", "csvfs")?;
        until("the file to be written", LIMIT, || fs::write(cluster.path(1, "disk"), b"of n1").ok())?;
        ensure!(
            (refused_by_first(cluster)?, refused_by_second(cluster)?) == (1, 1),
            "{} and {}",
            refused_by_first(cluster)?,
            refused_by_second(cluster)?
        );
        cluster.restart("n3", "csvfs")?;
        cluster.acquire(3, &["disk"])?;

        // One of them does not answer: nothing is given away before it does.
        cluster.kill(SAN_HOST, SECOND)?;
        cluster.power_off(3)?;
        let path = cluster.path(1, "disk");
        let writes =
            thread::spawn(move || until("the file to be written", LIMIT, || fs::write(&path, b"again").ok()));
        let since = Instant::now();
        until("the fence to be tried", LIMIT, || {
            let fences: Value =
                serde_json::from_str(&cluster.lockctl("n1", &["--json", "fences"]).ok()?).ok()?;
            let said = fences.to_string();
            said.contains(&format!("{address}:{CONTROL_PORT}")).then_some(())
        })?;
        thread::sleep(Duration::from_secs(3));
        ensure!(refused_by_first(cluster)? >= 2, "the first target has not been asked");
        ensure!(!writes.is_finished(), "what n3 had was given away while a target did not refuse it");
        cluster.restart(SAN_HOST, SECOND)?;
        writes.join().map_err(|_| anyhow::anyhow!("the writer has panicked"))??;
        eprintln!("free {:.2?} after the power was off", since.elapsed());
        ensure!(refused_by_second(cluster)? >= 2, "the second target does not refuse it");
        cluster.power_on(3)?;
        ensure!(fs::read(cluster.path(3, "disk"))? == b"again");
        cluster.end_clean()
    })
}
