//! Who a machine says that it is, and who it is.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Cluster;
use lab::cluster::is_mounted;

use super::{done, log, prepared, refused, wait_node};

/// A copy of the cluster file in a folder of its own, with other certificates: those that `change` makes there.
fn elsewhere(cluster: &Cluster, change: impl FnOnce(&std::path::Path) -> Result<()>) -> Result<PathBuf> {
    let folder = cluster.folder().join("elsewhere");
    fs::create_dir(&folder)?;
    fs::create_dir(folder.join("tls"))?;
    fs::copy(cluster.cluster_file(), folder.join("cluster.toml"))?;
    for entry in fs::read_dir(cluster.folder().join("tls"))? {
        let entry = entry?;
        fs::copy(entry.path(), folder.join("tls").join(entry.file_name()))?;
    }
    change(&folder)?;
    Ok(folder.join("cluster.toml"))
}

/// Starts lockd on a node with another cluster file than the others'.
fn launch_with(cluster: &Cluster, number: u8, file: &std::path::Path) -> Result<()> {
    let mut spec = cluster.node(number).lockd()?;
    spec.arguments[1] = file.into();
    cluster.launch(&format!("n{number}"), spec).map(drop)
}

#[test]
fn a_foreign_certificate_is_refused_and_both_sides_say_so() -> Result<()> {
    prepared(3, |cluster| {
        let foreign = elsewhere(cluster, |folder| {
            fs::remove_dir_all(folder.join("tls"))?;
            let file = folder.join("cluster.toml").display().to_string();
            cluster.exec_ours("n3", "lockctl", &["init", &file]).map(drop)
        })?;
        for number in [1, 2] {
            cluster.launch(&format!("n{number}"), cluster.node(number).lockd()?)?;
        }
        launch_with(cluster, 3, &foreign)?;
        // A cluster begins when all of its voters have been reached: it says whom it waits for, and why.
        let seen = wait_node(cluster, "n1 does not accept n3", "n1", "n3", |node| {
            node["trouble"].as_str().is_some_and(|why| why.contains("certificate"))
        })?;
        ensure!(seen["reachable"] == false, "{seen}");
        wait_node(cluster, "n3 knows that it is refused", "n3", "n1", |node| {
            node["trouble"].as_str().is_some_and(|why| why.contains("certificate"))
        })?;
        // With its own certificate all is well.
        cluster.kill("n3", "lockd")?;
        let spec = cluster.node(3).lockd()?;
        cluster.start("n3", spec)?;
        super::wait_well(cluster, "n1")
    })
}

#[test]
fn certificates_that_are_missing_swapped_or_of_another_node_are_named_at_the_start() -> Result<()> {
    prepared(3, |cluster| {
        let tls = cluster.folder().join("tls");
        let data = cluster.node(1).data_folder().display().to_string();
        let words = ["lockd", "--node", "n1", "--data", &data];
        let kept = cluster.folder().join("kept");
        let swap = |name: &str, with: Option<&str>, says: &[&str]| -> Result<()> {
            fs::rename(tls.join(name), &kept)?;
            if let Some(with) = with {
                fs::copy(tls.join(with), tls.join(name))?;
            }
            let said = refused(cluster, "n1", &words, 1, says);
            fs::rename(&kept, tls.join(name))?;
            said.map(drop).with_context(|| format!("{name} is {with:?}"))
        };
        swap("n1.pem", None, &["n1.pem"])?;
        swap("n1.key", None, &["n1.key"])?;
        swap("ca.pem", None, &["ca.pem"])?;
        swap("n1.key", Some("n2.key"), &["n1.key is not the key of"])?;
        swap("n1.pem", Some("n1.key"), &["n1.pem holds no"])?;
        // A whole pair of another node: it says of which.
        fs::copy(tls.join("n2.pem"), tls.join("n1.pem"))?;
        fs::copy(tls.join("n2.key"), tls.join("n1.key"))?;
        refused(cluster, "n1", &words, 1, &["n2"])?;
        Ok(())
    })
}

#[test]
fn of_two_machines_with_one_name_the_second_is_refused_and_status_says_so() -> Result<()> {
    super::running(2, |cluster| {
        // A fourth machine, on node 3's network, calls itself n2.
        cluster.stop("n3", "lockd")?;
        let folder = cluster.folder().join("impostor");
        let mut spec = cluster.node(2).lockd()?;
        spec.name = "impostor".to_owned();
        for (index, value) in [(5, folder.join("data")), (7, folder.join("run"))] {
            spec.arguments[index] = value.into();
        }
        spec.ready = lab::cluster::Ready::Started;
        cluster.launch("n3", spec)?;
        let seen = wait_node(cluster, "the impostor is seen", "n1", "n1", |node| {
            node["conflicts"].as_array().is_some_and(|found| !found.is_empty())
        })
        .or_else(|_| {
            wait_node(cluster, "the impostor has ended", "n1", "n2", |_| {
                cluster.daemon("n3", "impostor").is_ok_and(|daemon| !daemon.is_alive())
            })
        })
        .with_context(|| log(cluster, "n3", "impostor"))?;
        ensure!(seen["reachable"] == true, "{seen}");
        // The real one is not disturbed.
        fs::write(cluster.node(2).mount_point().join("file"), b"still n2")?;
        ensure!(fs::read(cluster.node(1).mount_point().join("file"))? == b"still n2");
        done(cluster, "n2", &["lockctl", "status"]).map(drop)
    })
}

/// Issues a node's certificate anew by the cluster's authority, for no time at all.
fn reissue_expired(cluster: &Cluster, node: &str) -> Result<()> {
    let script = r#"
        openssl x509 -x509toreq -in $1.pem -signkey $1.key -copy_extensions copy -out $1.csr
        openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca.key -set_serial 9 -days 0 -copy_extensions copy -out $1.pem"#;
    let mut command = Command::new("sh");
    command.args(["-ec", script, "sh", node]).current_dir(cluster.folder().join("tls"));
    let output = command.output()?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn an_expired_certificate_is_told_before_anything_is_started_with_it() -> Result<()> {
    super::running(2, |cluster| {
        reissue_expired(cluster, "n3")?;
        let data = cluster.node(3).data_folder().display().to_string();
        let mount = cluster.node(3).mount_point().display().to_string();
        cluster.stop("n3", "lockd")?;
        std::thread::sleep(Duration::from_millis(1100));
        refused(cluster, "n3", &["lockd", "--data", &data], 1, &["expired", "lockctl init"])?;
        // The others are a majority, and go on.
        fs::write(cluster.node(2).mount_point().join("file"), b"on")?;
        ensure!(super::lockctl_status(cluster, "n1")?["quorum"] == true);
        // What the message says to do helps.
        for name in ["n3.pem", "n3.key"] {
            fs::remove_file(cluster.folder().join("tls").join(name))?;
        }
        cluster.init()?;
        cluster.restart("n3", "lockd")?;
        super::wait_well(cluster, "n1")?;
        ensure!(!is_mounted(std::path::Path::new(&mount)));
        cluster.mount(3).map(drop)
    })
}
