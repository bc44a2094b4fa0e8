//! Which lockd is asked.

use std::time::Duration;

use lockd::client::{Choice, ChoiceError, ClientError, Connection};
use lockd::cluster::Cluster;
use lockd::local::run_dir::RunDir;

use crate::Common;

impl Common {
    /// How long to try.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }

    fn choice(&self) -> anyhow::Result<Choice> {
        let cluster = match &self.cluster {
            Some(file) => Some(Cluster::read(file)?.name),
            None => None,
        };
        let (run_base, node) = (self.run_dir.clone(), self.node.clone());
        Ok(Choice { run_base, cluster, node, patience: self.patience() })
    }

    /// A connection to a lockd: the named node's, the only one, or any that answers.
    pub(crate) fn connect(&self) -> anyhow::Result<Connection> {
        Ok(self.choice()?.connect()?)
    }

    /// Tries `connect` with each lockd that there is.
    pub(crate) fn reach<T>(
        &self,
        connect: impl Fn(&RunDir, Duration) -> Result<T, ClientError>,
    ) -> anyhow::Result<T> {
        self.choice()?.reach(connect).map_err(|error: ChoiceError| error.into())
    }
}
