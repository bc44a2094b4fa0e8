//! What a lab is to be like.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The most nodes of a lab: the addresses from 10.77.0.1 on.
pub const NODES_MAX: u8 = 64;
/// The least rate in bytes a second that a network can be shaped to.
pub const RATE_MIN: u64 = 10_000;
/// The least LUN in bytes: what a volume needs.
pub const LUN_MIN: u64 = 64 << 20;
/// The longest name of a lab, in bytes.
const NAME_MAX: usize = 16;
/// The longest path of the folder of labs, in bytes.
const BASE_MAX: usize = 40;

/// What serves the LUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// The bundled target.
    CsvTarget,
    /// nbdkit's file plugin.
    Nbdkit,
    /// tgt, by iSCSI.
    Tgt,
}

impl std::str::FromStr for TargetKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "csv-target" => Ok(Self::CsvTarget),
            "nbdkit" => Ok(Self::Nbdkit),
            "tgt" => Ok(Self::Tgt),
            _ => Err(format!("{text:?} is no target of the lab: say csv-target, nbdkit or tgt")),
        }
    }
}

/// What a lab is to be like.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The lab's name, unique on the machine; none: one that nobody else has.
    pub name: Option<String>,
    /// The folder of all labs.
    pub base: PathBuf,
    /// How many nodes.
    pub nodes: u8,
    /// How many of them, from the first on, are voters.
    pub voters: u8,
    /// What serves the LUN.
    pub target: TargetKind,
    /// Further arguments of the target, at the end of its command line.
    pub target_args: Vec<String>,
    /// The LUN's size in bytes.
    pub lun_bytes: u64,
    /// The folder of the LUN's image, which its maker takes away; none: the lab's own.
    pub lun_folder: Option<PathBuf>,
    /// Bytes a second and direction of each node's LAN interface; none: as fast as the machine is.
    pub rate_lan: Option<u64>,
    /// The same of its SAN interface.
    pub rate_san: Option<u64>,
    /// How the volume's sessions are fenced, as in the cluster file.
    pub fence: String,
    /// `lease_s` of the cluster file in milliseconds, if not its default.
    pub lease_ms: Option<u32>,
    /// `grace_s` of the cluster file in milliseconds, if not its default.
    pub grace_ms: Option<u32>,
    /// `hold_s` of the cluster file in milliseconds, if not its default.
    pub hold_ms: Option<u32>,
    /// `target_quiesce_s` of the cluster file's volume in milliseconds, if not its default.
    pub target_quiesce_ms: Option<u32>,
    /// Further lines of the cluster file's volume.
    pub volume_lines: String,
    /// For how long whoever opens the volume watches the claims of others (V1), in milliseconds; without a cluster also the
    /// quiesce time that the volume is formatted with (V2).
    pub window_ms: u64,
    /// Whether the lab stays when the program that made it ends.
    pub kept: bool,
}

/// How many voters so many nodes have by default.
#[must_use]
pub fn voters_of(nodes: u8) -> u8 {
    match nodes {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

/// The folder of all labs, unless another one is asked for.
#[must_use]
pub fn base_folder() -> PathBuf {
    std::env::temp_dir().join("csv-lab")
}

impl Plan {
    /// As [`Plan::new`], with sessions that end soon when they are silent, and the LUN in `folder`.
    #[must_use]
    pub fn short_sessions(nodes: u8, folder: &Path) -> Self {
        Self {
            window_ms: 1000,
            lease_ms: Some(2000),
            grace_ms: Some(2000),
            target_quiesce_ms: Some(500),
            lun_folder: Some(folder.to_owned()),
            ..Self::new(nodes)
        }
    }

    /// `nodes` nodes and the bundled target, unshaped, gone with its owner.
    #[must_use]
    pub fn new(nodes: u8) -> Self {
        Self {
            name: None,
            base: base_folder(),
            nodes,
            voters: voters_of(nodes),
            target: TargetKind::CsvTarget,
            target_args: Vec::new(),
            lun_bytes: 4 << 30,
            lun_folder: None,
            rate_lan: None,
            rate_san: None,
            fence: "lease".to_owned(),
            lease_ms: None,
            grace_ms: None,
            hold_ms: None,
            target_quiesce_ms: Some(2000),
            volume_lines: String::new(),
            window_ms: 2000,
            kept: false,
        }
    }

    /// With this target.
    #[must_use]
    pub fn target(self, target: TargetKind) -> Self {
        Self { target, ..self }
    }

    /// With each node's LAN interface limited to so many bytes a second and direction.
    #[must_use]
    pub fn rate_lan(self, bytes_s: u64) -> Self {
        Self { rate_lan: Some(bytes_s), ..self }
    }

    /// With each node's SAN interface limited to so many bytes a second and direction.
    #[must_use]
    pub fn rate_san(self, bytes_s: u64) -> Self {
        Self { rate_san: Some(bytes_s), ..self }
    }

    /// With a LUN of so many bytes.
    #[must_use]
    pub fn lun(self, lun_bytes: u64) -> Self {
        Self { lun_bytes, ..self }
    }

    /// Whether the cluster file names a control port, which then obeys the cluster's nodes only.
    #[must_use]
    pub fn has_control(&self) -> bool {
        self.target == TargetKind::CsvTarget && matches!(self.fence.as_str(), "nbd-target" | "auto")
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// Names the value and what is allowed.
    pub fn check(&self) -> Result<()> {
        let Self { nodes, voters, lun_bytes, .. } = self;
        ensure!((1..=NODES_MAX).contains(nodes), "{nodes} nodes: a lab has 1 to {NODES_MAX}");
        ensure!(
            matches!(voters, 1 | 3 | 5) && voters <= nodes,
            "{voters} voters: 1, 3 or 5, and not more than the {nodes} nodes"
        );
        ensure!(*lun_bytes >= LUN_MIN, "a LUN of {lun_bytes} bytes: it needs at least {LUN_MIN}");
        for rate in [self.rate_lan, self.rate_san].into_iter().flatten() {
            ensure!(rate >= RATE_MIN, "a rate of {rate} bytes a second: at least {RATE_MIN}");
        }
        if let Some(name) = &self.name {
            let is_fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            ensure!(
                (1..=NAME_MAX).contains(&name.len()) && name.chars().all(is_fine),
                "{name:?} cannot name a lab: 1 to {NAME_MAX} of a to z, 0 to 9 and the hyphen"
            );
        }
        let base = self.base.as_os_str().len();
        ensure!(
            self.base.is_absolute() && base <= BASE_MAX,
            "{} cannot be the folder of labs: an absolute path of at most {BASE_MAX} bytes, as the paths of sockets \
             in it must not be longer than 107",
            self.base.display()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_with_its_limit() {
        Plan::new(3).check().unwrap();
        let wrong = [
            (Plan::new(0), "1 to 64"),
            (Plan::new(65), "1 to 64"),
            (Plan { voters: 2, ..Plan::new(3) }, "1, 3 or 5"),
            (Plan { voters: 3, ..Plan::new(2) }, "not more than the 2 nodes"),
            (Plan::new(1).lun(1 << 20), "67108864"),
            (Plan::new(1).rate_san(1), "at least 10000"),
            (Plan { name: Some("a.b".to_owned()), ..Plan::new(1) }, "a.b"),
        ];
        for (plan, part) in wrong {
            let said = plan.check().unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
    }
}
