//! What `lockctl` says to a person, with mounts and voters as they run.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::Cluster;
use lab::wait::until;

use super::volume::{lockctl, lockctl_done, text, with_three_mounts};

/// What it says when it fails.
fn refused(cluster: &Cluster, node: &str, arguments: &[&str]) -> Result<String> {
    let output = lockctl(cluster, node, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "lockctl {arguments:?}: {}: {said}", output.status);
    Ok(said)
}

#[test]
fn without_a_quorum_it_says_so_names_who_is_silent_and_what_to_do() -> Result<()> {
    with_three_mounts(|cluster| {
        let path = cluster.path(1, "file");
        fs::write(&path, b"x")?;
        let path = text(&path)?;
        lockctl_done(cluster, "n1", &["acquire", path, "--node", "n1"])?;
        cluster.kill("n2", "lockd")?;
        cluster.kill("n3", "lockd")?;
        for command in
            [&["acquire", path, "--node", "n2"][..], &["transfer", path, "--to", "n2"], &["release", path]]
        {
            let start = Instant::now();
            let said = refused(cluster, "n1", &[&["--timeout", "1"], command].concat())?;
            ensure!(start.elapsed() < Duration::from_secs(8), "{command:?} took {:?}", start.elapsed());
            ensure!(
                said.contains("no quorum: 2 of 3 voters do not answer node n1: n2 (last heard of "),
                "{said}"
            );
            ensure!(
                said.contains(", n3 (last heard of ") && said.contains("start lockd on more of them"),
                "{said}"
            );
            ensure!(said.contains("nothing was asked for"), "{said}");
        }
        cluster.restart("n2", "lockd")?;
        cluster.restart("n3", "lockd")?;
        until("it is done with a quorum", Duration::from_secs(30), || {
            lockctl(cluster, "n1", &["release", path]).ok()?.status.success().then_some(())
        })
    })
}

#[test]
fn of_many_paths_each_that_is_wrong_is_named() -> Result<()> {
    with_three_mounts(|cluster| {
        let folder = cluster.path(2, "many");
        fs::create_dir(&folder)?;
        let paths: Vec<PathBuf> = (0..400).map(|number| folder.join(format!("file{number}"))).collect();
        paths.iter().try_for_each(|path| fs::write(path, b"x"))?;
        let mut named: Vec<&str> = paths.iter().map(|path| text(path)).collect::<Result<_>>()?;
        let missing = folder.join("missing").display().to_string();
        named.insert(321, &missing);
        named.push("/proc/version");
        let said = refused(cluster, "n2", &[&["acquire", "--node", "n2"], &named[..]].concat())?;
        ensure!(said.contains(&format!("there is no file {missing}, ")), "{said}");
        ensure!(said.contains("/proc/version is not on a volume of a cluster"), "{said}");
        ensure!(said.lines().count() == 2, "{said}");
        ensure!(
            lockctl_done(cluster, "n2", &["ls"])?.lines().all(|line| !line.contains("/file/")),
            "nothing is done"
        );

        named.retain(|name| *name != missing && !name.starts_with("/proc"));
        let done =
            lockctl_done(cluster, "n2", &[&["--json", "acquire", "--node", "n2"], &named[..]].concat())?;
        let done: serde_json::Value = serde_json::from_str(&done)?;
        // Each is what its path names, in the order in which they were named.
        for (number, path) in paths.iter().enumerate() {
            let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(path)?);
            let resource = done[number]["resource"].as_str().unwrap_or_default();
            ensure!(
                resource.ends_with(&format!("/file/{ino}")),
                "{} is said to be {resource}",
                path.display()
            );
        }
        Ok(())
    })
}
