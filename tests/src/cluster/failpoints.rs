//! Points in the daemons at which a test halts them (`lockd::failpoint`).

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Cluster;
use super::node::Node;

/// How often it is looked whether a point was reached.
const LOOK: Duration = Duration::from_millis(2);

impl Node {
    /// Where its daemons look for points.
    pub(super) fn failpoint_folder(&self) -> PathBuf {
        self.folder().join("failpoints")
    }
}

impl Cluster {
    /// Daemons that are started from now on look for points; what they do costs more than otherwise.
    pub fn use_failpoints(&self) -> Result<()> {
        self.nodes.iter().try_for_each(|node| Ok(fs::create_dir_all(node.failpoint_folder())?))
    }

    /// Whichever daemon reaches `point` from now on halts there, one on each node at most.
    pub fn arm(&self, point: &str) -> Result<()> {
        self.disarm(point)?;
        for node in &self.nodes {
            fs::write(node.failpoint_folder().join(point), [])?;
        }
        Ok(())
    }

    /// Nobody halts there any more who has not reached it.
    pub fn disarm(&self, point: &str) -> Result<()> {
        for node in &self.nodes {
            for name in [point.to_owned(), format!("{point}.reached"), format!("{point}.go")] {
                match fs::remove_file(node.failpoint_folder().join(name)) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Waits until a daemon has reached `point`, and has it halt nobody else; the number of that node.
    pub fn await_reached(&self, point: &str, limit: Duration) -> Result<u8> {
        let since = Instant::now();
        loop {
            let mut nodes = self.nodes.iter();
            let reached =
                nodes.find(|node| node.failpoint_folder().join(format!("{point}.reached")).exists());
            if let Some(node) = reached {
                for other in &self.nodes {
                    let _ = fs::remove_file(other.failpoint_folder().join(point));
                }
                return Ok(node.number());
            }
            if since.elapsed() > limit {
                self.disarm(point)?;
                bail!("nobody has come to {point} within {limit:?}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Lets a daemon of node `number` that is halted at `point` go on.
    pub fn let_go(&self, number: u8, point: &str) -> Result<()> {
        let go = self.node(number).failpoint_folder().join(format!("{point}.go"));
        fs::write(&go, []).with_context(|| format!("writing {}", go.display()))
    }
}
