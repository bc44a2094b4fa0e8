//! `csvfs status`: what the mounts say of themselves, those of this machine and those of its cluster's other nodes.

mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use csvfs::status::cluster::{ClusterStatus, ask};
use csvfs::status::{VolumeStatus, ask_all};
use lockd::client::{Choice, ChoiceError};
use lockd::cluster::Cluster;
use lockd::ids::NodeName;
use serde_json::{Value, json};

/// How long lockd may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct Status {
    /// Only the volume mounted here, with all that its mount says.
    folder: Option<PathBuf>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
    /// The cluster file; without it, the only cluster whose lockd runs on this machine.
    #[arg(long, env = "CSV_CLUSTER", value_name = "FILE")]
    cluster: Option<PathBuf>,
    /// The node whose lockd is asked first, where several run on this machine.
    #[arg(long, env = "CSV_NODE", value_name = "NAME")]
    node: Option<NodeName>,
    /// Where the sockets of lockd and of the mounts are.
    #[arg(long, env = "CSV_RUN_DIR", default_value = super::RUN_DIR)]
    run_dir: PathBuf,
}

/// What is known of the cluster.
enum Found {
    /// No lockd runs here, and none was asked for.
    NoCluster,
    /// Why the cluster cannot be asked.
    Unreached(String),
    Cluster(ClusterStatus),
}

impl Status {
    pub fn run(self) -> Result<ExitCode> {
        let mut local = ask_all(&self.run_dir);
        if let Some(folder) = &self.folder {
            // The folder of a hung mount cannot be resolved; what was typed may be what the mount was told.
            let wanted = folder.canonicalize().unwrap_or_else(|_| folder.clone());
            local.retain(|volume| Path::new(&volume.mountpoint) == wanted);
            if local.is_empty() {
                bail!(
                    "no csvfs volume is mounted on {}; `csvfs status` lists those that are",
                    folder.display()
                );
            }
            return self.print(&Found::NoCluster, &local);
        }
        let found = self.find(&local)?;
        if let Found::Cluster(cluster) = &found {
            // They are in its table.
            local.retain(|volume| volume.cluster.as_ref() != Some(&cluster.cluster));
        }
        self.print(&found, &local)
    }

    fn find(&self, local: &[VolumeStatus]) -> Result<Found> {
        let file = self.cluster.as_ref().map(|file| Cluster::read(file)).transpose()?;
        let choice = Choice {
            run_base: self.run_dir.clone(),
            cluster: file.as_ref().map(|cluster| cluster.name.clone()),
            node: self.node.clone(),
            patience: PATIENCE,
        };
        let connection = match choice.connect() {
            Ok(connection) => connection,
            Err(ChoiceError::NoSocket { .. }) if self.cluster.is_none() => return Ok(Found::NoCluster),
            Err(error) => return Ok(Found::Unreached(crate::say::with_causes(&error.into()))),
        };
        let known: Vec<String> = file
            .map(|cluster| cluster.volumes.into_iter().map(|volume| volume.name).collect())
            .unwrap_or_default();
        Ok(match ask(&connection, local, &known) {
            Ok(cluster) => Found::Cluster(cluster),
            Err(error) => Found::Unreached(error.to_string()),
        })
    }

    /// A cluster that was asked for and is not reached is a failure where there is nothing else to show.
    fn print(&self, found: &Found, local: &[VolumeStatus]) -> Result<ExitCode> {
        if let Found::Unreached(why) = found {
            if local.is_empty() {
                bail!("{why}; no volume is mounted on this machine");
            }
            complain!("csvfs: {why}; only the mounts of this machine are shown");
        }
        if self.json {
            let text = serde_json::to_string_pretty(&document(found, local)?);
            say!("{}", text.context("writing the status as JSON")?);
            return Ok(ExitCode::SUCCESS);
        }
        if let Found::Cluster(cluster) = found {
            show::cluster(cluster);
        } else if local.is_empty() {
            say!("no csvfs volume is mounted on this node");
        }
        local.iter().for_each(show::volume);
        Ok(ExitCode::SUCCESS)
    }
}

/// One list of volumes, whether a cluster has them or a mount alone.
fn document(found: &Found, local: &[VolumeStatus]) -> Result<Value> {
    let mut volumes: Vec<Value> = Vec::new();
    let mut document = json!({});
    if let Found::Cluster(cluster) = found {
        document = serde_json::to_value(cluster)?;
        if let Value::Array(of_cluster) = document["volumes"].take() {
            volumes = of_cluster;
        }
    }
    for volume in local {
        volumes.push(serde_json::to_value(volume)?);
    }
    if let Found::Unreached(why) = found {
        document["problem"] = json!(why);
    }
    document["volumes"] = Value::Array(volumes);
    Ok(document)
}
