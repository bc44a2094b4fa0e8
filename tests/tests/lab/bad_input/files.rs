//! Mistakes in the cluster file, in file names and in options.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::{prepared, refused};

#[test]
fn a_mistake_in_the_cluster_file_is_named_by_every_program_with_line_and_field() -> Result<()> {
    prepared(1, |cluster| {
        let good = fs::read_to_string(cluster.cluster_file())?;
        let file = cluster.folder().join("wrong.toml");
        let path = file.to_str().context("text")?;
        // The mistake, and what all of them say of it.
        let mistakes: [(&str, &str, &[&str]); 7] = [
            ("fence = \"lease\"", "fense = \"lease\"", &["wrong.toml:", "fense"]),
            ("fence = \"lease\"", "fence = \"hope\"", &["wrong.toml:", "fence", "hope"]),
            ("10.77.0.1", "ten.77.0.1", &["wrong.toml:", "address"]),
            ("voter = true", "voter = \"yes\"", &["wrong.toml:", "voter"]),
            ("voter = true", "voter = false", &["wrong.toml:", "voter"]),
            ("nbd://", "nbd//", &["wrong.toml", "lun"]),
            ("[tls]", "[tls", &["wrong.toml:"]),
        ];
        for (from, to, says) in mistakes {
            ensure!(good.contains(from), "the file has no {from}: {good}");
            fs::write(&file, good.replacen(from, to, 1))?;
            let data = cluster.node(1).data_folder().display().to_string();
            let mount = cluster.node(1).mount_point().display().to_string();
            for words in [
                &["lockd", "--cluster", path, "--node", "n1", "--data", &data][..],
                &["lockctl", "init", path],
                &["lockctl", "status", "--cluster", path],
                &["csvfs", "mount", "--cluster", path, "--node", "n1", "vms", &mount],
                &["csvfs", "format", "--cluster", path, "vms"],
                &["csvfs", "status", "--cluster", path],
            ] {
                // Who only looks for lockd does not care for the LUN's URL.
                refused(cluster, "n1", words, 1, says).with_context(|| format!("{from} -> {to}"))?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_file_node_or_volume_that_is_not_there_is_named_with_those_that_are() -> Result<()> {
    prepared(1, |cluster| {
        let file = cluster.cluster_file().display().to_string();
        let mount = cluster.node(1).mount_point().display().to_string();
        let mount_of = |node, volume| {
            ["csvfs", "mount", "--cluster", &file, "--node", node, volume, &mount].map(str::to_owned)
        };
        let words = mount_of("n1", "other");
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        refused(cluster, "n1", &words, 1, &["other", "vms"])?;
        let words = mount_of("n9", "vms");
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        refused(cluster, "n1", &words, 1, &["n9"])?;
        refused(cluster, "n1", &["csvfs", "format", "--cluster", &file, "other"], 1, &["other", "vms"])?;
        refused(cluster, "n1", &["lockd", "--node", "n9", "--data", &mount], 1, &["no node n9"])?;
        refused(cluster, "n1", &["csvfs", "status", "--cluster", "/no/file"], 1, &["/no/file"])?;
        refused(cluster, "n1", &["lockctl", "init", "/no/file"], 1, &["/no/file"])?;
        // Usage is told apart.
        for words in [
            &["lockctl", "transfer", "x"][..],
            &["lockd"],
            &["csvfs", "mount"],
            &["lockctl", "status", "--timeout", "0"],
        ] {
            let output = super::output(cluster, "san", words[0], &words[1..])?;
            let code = output.status.code();
            ensure!(code == Some(2) || words == ["lockd"] && code == Some(2), "{words:?}: {output:?}");
        }
        Ok(())
    })
}
