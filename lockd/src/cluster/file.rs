//! From the text of a cluster file to a checked [`Cluster`].

mod check;
mod fencing;
mod place;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use self::place::Places;
use super::{Cluster, ClusterFileError};

/// A cluster file is no larger than this, in bytes.
const FILE_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCluster {
    name: Spanned<String>,
    tls: Option<RawTls>,
    #[serde(default)]
    node: Vec<Spanned<RawNode>>,
    #[serde(default)]
    volume: Vec<Spanned<RawVolume>>,
    lease_s: Option<Spanned<f64>>,
    grace_s: Option<Spanned<f64>>,
    hold_s: Option<Spanned<f64>>,
    watchdog: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    dir: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    name: Spanned<String>,
    address: Spanned<String>,
    port: Option<Spanned<i64>>,
    voter: Option<Spanned<bool>>,
    watchdog: Option<Spanned<String>>,
    #[serde(default)]
    agent: RawAgent,
}

/// What is written to a fence agent's standard input, a line for each.
type RawAgent = BTreeMap<String, Spanned<toml::Value>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVolume {
    name: Spanned<String>,
    lun: Spanned<Vec<Spanned<String>>>,
    fence: Option<Spanned<String>>,
    target_quiesce_s: Option<Spanned<f64>>,
    control: Option<Spanned<Vec<Spanned<String>>>>,
    agent_timeout_s: Option<Spanned<f64>>,
    #[serde(default)]
    agent: RawAgent,
}

impl Cluster {
    /// Reads and checks the cluster file at `path`.
    ///
    /// # Errors
    /// If it cannot be read, or has a mistake: the error names line, column and field.
    pub fn read(path: &Path) -> Result<Self, ClusterFileError> {
        let unreadable = |source| ClusterFileError::Unreadable { path: path.to_owned(), source };
        let length = std::fs::metadata(path).map_err(unreadable)?.len();
        if length > FILE_MAX {
            let source = std::io::Error::other(format!("{length} bytes is more than a cluster file has"));
            return Err(unreadable(source));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text, path)
    }

    /// Checks `text`, the contents of the cluster file at `path`.
    ///
    /// # Errors
    /// If it has a mistake: the error names line, column and field.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ClusterFileError> {
        let places = Places { text, path };
        let raw: RawCluster = toml::from_str(text).map_err(|error| places.syntax(&error))?;
        check::check(raw, &places)
    }
}
