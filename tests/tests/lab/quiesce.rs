//! One quiesce time holds for a volume: that of the cluster file, for all mounts, and in the label for whoever opens the volume
//! without its cluster.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::cluster::{Plan, TargetKind, VOLUME};
use lab::{Cluster, programs};

/// What the mount on node `number` assumes of its target.
fn assumed(cluster: &Cluster, number: u8) -> Result<String> {
    let status = cluster.status(number)?;
    let path = status["path"].as_str().with_context(|| format!("no path: {status}"))?;
    Ok(path.to_owned())
}

#[test]
fn the_quiesce_time_of_the_cluster_file_holds_everywhere() -> Result<()> {
    let plan = Plan { target_quiesce_ms: Some(1500), ..Plan::new(2).target(TargetKind::Nbdkit) };
    Cluster::run(plan, |cluster| {
        cluster.init()?;
        cluster.start_lockd()?;
        cluster.format()?;
        let expected = "nothing later than 1.5 s after";
        cluster.mount(1)?;
        let said = assumed(cluster, 1)?;
        ensure!(said.contains(expected), "n1: {said}");

        // A node whose file says something else would not wait for as long as the others.
        let other = cluster.folder().join("other.toml");
        let text = fs::read_to_string(cluster.cluster_file())?;
        fs::write(&other, text.replace("target_quiesce_s = 1.5", "target_quiesce_s = 0.5"))?;
        let node = cluster.node(2);
        let [file, run, folder] =
            [&other, &node.run_folder(), &node.mount_point()].map(|it| it.display().to_string());
        let arguments =
            ["mount", "--foreground", "--cluster", &file, "--node", "n2", "--run-dir", &run, VOLUME, &folder];
        let refused = cluster.exec("n2", programs::ours("csvfs")?)?.args(arguments).output()?;
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        let expected_why =
            "with target_quiesce_s = 1.5, and this mount would have 0.5: give all nodes the same";
        ensure!(!refused.status.success() && why.contains(expected_why), "{why}");
        cluster.mount(2)?;
        let said = assumed(cluster, 2)?;
        ensure!(said.contains(expected), "n2: {said}");
        cluster.stop("n2", "csvfs")?;
        cluster.stop("n1", "csvfs")?;

        // When nobody has it mounted it may be changed, and then holds for all.
        fs::write(cluster.cluster_file(), text.replace("target_quiesce_s = 1.5", "target_quiesce_s = 0.5"))?;
        cluster.restart("n1", "csvfs")?;
        let said = assumed(cluster, 1)?;
        ensure!(said.contains("nothing later than 0.5 s after"), "n1, later: {said}");
        cluster.stop("n1", "csvfs")?;

        // The label has what the file said when the volume was made.
        cluster.mount_standalone(1)?;
        let said = assumed(cluster, 1)?;
        ensure!(said.contains(expected), "alone: {said}");
        cluster.stop("n1", "csvfs")
    })
}
