//! Who writes to the LUN is seen on the LUN itself (V1): by mounts without the cluster, by other clusters, by fsck.

use std::fs;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use lab::cluster::{DaemonSpec, Network, Plan, Ready, VOLUME};
use lab::mounted::fsck_clean;
use lab::{Cluster, programs};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A cluster whose volume is mounted on its first nodes.
fn with_mounts(mounts: u8, test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let plan = Plan { window_ms: 500, fence: "lease".to_owned(), ..Plan::new(3) };
    Cluster::run(plan, |cluster| {
        cluster.init()?;
        cluster.start_lockd()?;
        cluster.format()?;
        (1..=mounts).try_for_each(|number| cluster.mount(number).map(drop))?;
        test(cluster)
    })
}

#[test]
fn v1_a_guest_keeps_others_out_when_the_coordinator_is_dead() -> Result<()> {
    with_mounts(3, |cluster| {
        fs::write(cluster.node(2).mount_point().join("file"), b"written by a guest")?;
        cluster.crash("n1")?;
        // Longer than the window: only the guests still beat.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let url = cluster.target().url();
        let alone = |arguments: &[&str]| -> Result<Output> {
            Ok(cluster.exec("n1", programs::ours("csvfs")?)?.args(arguments).output()?)
        };
        let folder = cluster.node(1).mount_point().display().to_string();
        for arguments in [
            &["mount", "--foreground", "--node", "n1", "--lun", &url, &folder][..],
            &["fsck", "--repair", "--lun", &url],
        ] {
            let refused = alone(arguments)?;
            let text = said(&refused);
            let names = ["\"n2\"", "\"n3\"", &format!("cluster {:?}", cluster.cluster_name())];
            let is_named = (text.contains(names[0]) || text.contains(names[1])) && text.contains(names[2]);
            ensure!(!refused.status.success() && is_named, "csvfs {arguments:?}: {text}");
        }
        cluster.crash("n2")?;
        cluster.crash("n3")?;
        cluster.mount_standalone(1)?;
        cluster.stop("n1", "csvfs")?;
        cluster.target().stop()?;
        fsck_clean(&cluster.target().image_url())
    })
}

#[test]
fn v1_a_second_cluster_on_the_same_lun_is_refused_and_the_first_is_named() -> Result<()> {
    with_mounts(2, |cluster| {
        let folder = cluster.folder().join("other");
        fs::create_dir_all(&folder)?;
        let file = folder.join("other.toml");
        let text = format!(
            "name = \"other\"\n[tls]\ndir = \"tls\"\n\n[[node]]\nname = \"n3\"\naddress = \"{}\"\nport = 7600\n\
             voter = true\n\n[[volume]]\nname = \"{VOLUME}\"\nlun = [\"{}\"]\nfence = \"lease\"\n",
            Network::Lan.address(3),
            cluster.target().url()
        );
        fs::write(&file, text)?;
        let file = file.display().to_string();
        let run = folder.join("run").display().to_string();
        fs::create_dir_all(&run)?;
        cluster.exec_ours("n3", "lockctl", &["init", &file])?;
        let data = folder.join("data").display().to_string();
        let lockd = DaemonSpec::new("other-lockd", programs::ours("lockd")?)
            .args(["--cluster", &file, "--node", "n3", "--data", &data, "--run-dir", &run])
            .ready(Ready::Socket(folder.join("run/other/n3/lockd.sock")));
        cluster.start("n3", lockd)?;
        let mount_point = cluster.node(3).mount_point().display().to_string();
        let mount = |from: &str| -> Result<Output> {
            let mut command = cluster.exec("n3", programs::ours("csvfs")?)?;
            command.args(["mount", "--foreground", "--cluster", &file, "--node", "n3", VOLUME, &mount_point]);
            command.args(["--run-dir", &run]).output().with_context(|| format!("mounting {from}"))
        };
        let refused = mount("beside the first")?;
        let text = said(&refused);
        let named = format!("cluster {:?}", cluster.cluster_name());
        ensure!(!refused.status.success() && text.contains(&named), "{text}");
        // The first has not noticed.
        fs::write(cluster.node(2).mount_point().join("file"), b"still here")?;
        ensure!(fs::read(cluster.node(1).mount_point().join("file"))? == b"still here");
        // A guest alone is reason enough.
        cluster.crash("n1")?;
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let refused = mount("beside a guest")?;
        let text = said(&refused);
        ensure!(!refused.status.success() && text.contains("\"n2\"") && text.contains(&named), "{text}");
        cluster.crash("n2")
    })
}
