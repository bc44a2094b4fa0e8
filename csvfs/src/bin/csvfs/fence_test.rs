//! `csvfs fence-test`: the drill of a volume's fence.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use csvfs::cluster::Place;
use csvfs::drill;
use lockd::ids::NodeName;

#[derive(Debug, Args)]
pub struct FenceTest {
    /// The cluster file.
    #[arg(long, env = "CSV_CLUSTER", value_name = "FILE")]
    cluster: PathBuf,
    /// This node: its certificate is shown to the target.
    #[arg(long, env = "CSV_NODE")]
    node: NodeName,
    /// The volume of the cluster file. Nobody who has it mounted notices the drill.
    #[arg(value_name = "VOLUME")]
    volume: String,
    /// No drill: end the reservation of a volume with fence = "scsi-pr" that nobody has mounted, so that the LUN can be used
    /// by others, or formatted anew.
    #[arg(long)]
    release: bool,
    /// Where the sockets of the node's daemons are.
    #[arg(long, env = "CSV_RUN_DIR", default_value = super::RUN_DIR)]
    run_dir: PathBuf,
}

impl FenceTest {
    pub fn run(self) -> Result<ExitCode> {
        let place = Place::find(&self.cluster, &self.node, &self.volume, &self.run_dir)?;
        if self.release {
            drill::release(&place)?;
            say!("the LUN of volume {} is reserved no more", self.volume);
            return Ok(ExitCode::SUCCESS);
        }
        drill::run(&place, &mut |line| say!("{line}"))?;
        Ok(ExitCode::SUCCESS)
    }
}
