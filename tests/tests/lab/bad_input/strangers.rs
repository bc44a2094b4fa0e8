//! Who comes to the LUN without belonging to the cluster that has it (V1).

use std::fs;

use anyhow::{Context, Result, ensure};

use super::{done, output, refused, running};

#[test]
fn a_second_cluster_and_a_mount_without_one_are_refused_and_told_who_has_the_volume() -> Result<()> {
    running(2, |cluster| {
        let file = cluster.node(1).mount_point().join("file");
        fs::write(&file, b"of the first cluster")?;
        let url = cluster.target().url();
        let own = |name: &str| cluster.folder().join("other").join(name).display().to_string();
        fs::create_dir_all(cluster.folder().join("other/mnt"))?;

        // Any node of the cluster that beats may be named, and the cluster is.
        let whose = "of the cluster \"lab-";
        // A mount without a cluster, a repair, a format.
        let alone = ["csvfs", "mount", "--foreground", "--lun", &url, &own("mnt"), "--run-dir", &own("run")];
        refused(cluster, "n2", &alone, 1, &[whose])?;
        refused(cluster, "n2", &["csvfs", "fsck", "--repair", "--lun", &url], 1, &[whose]).or_else(|_| {
            // fsck has a code of its own for what it did not do.
            let output = output(cluster, "n2", "csvfs", &["fsck", "--repair", "--lun", &url])?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success() && said.contains(whose), "{output:?}");
            Ok(said)
        })?;
        let format = output(cluster, "n2", "csvfs", &["format", "--lun", &url])?;
        ensure!(!format.status.success(), "{format:?}");

        // A whole second cluster, of one node on node 2's network, with the same LUN.
        let text = fs::read_to_string(cluster.cluster_file())?;
        let volume = text.split("[[volume]]").nth(1).context("a volume")?;
        let second = format!(
            "name = \"second\"\n[tls]\ndir = \"tls\"\n[[node]]\nname = \"m1\"\naddress = \"10.77.0.2\"\nport = 7500\n\
             voter = true\n[[volume]]{volume}"
        );
        let second_file = own("cluster.toml");
        fs::write(&second_file, second)?;
        done(cluster, "n2", &["lockctl", "init", &second_file])?;
        let mut spec = cluster.node(2).lockd()?;
        spec.name = "second".to_owned();
        let program = spec.program.clone();
        let mut spec = lab::cluster::DaemonSpec::new("second", program)
            .args([
                "--cluster",
                &second_file,
                "--node",
                "m1",
                "--data",
                &own("data"),
                "--run-dir",
                &own("run"),
            ])
            .ready(lab::cluster::Ready::Line("is ready".to_owned()));
        spec.environment.clear();
        cluster.start("n2", spec)?;
        let mount = [
            "csvfs",
            "mount",
            "--foreground",
            "--cluster",
            &second_file,
            "--node",
            "m1",
            "vms",
            &own("mnt"),
            "--run-dir",
            &own("run"),
        ];
        refused(cluster, "n2", &mount, 1, &[whose])?;

        // And nothing is lost.
        ensure!(fs::read(cluster.node(2).mount_point().join("file"))? == b"of the first cluster");
        fs::write(&file, b"still")?;
        ensure!(fs::read(cluster.node(2).mount_point().join("file"))? == b"still");
        Ok(())
    })
}
