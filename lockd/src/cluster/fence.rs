//! The ways to keep a silent node away from a volume, as the cluster file names them.

use std::fmt;
use std::str::FromStr;

/// How a node that went silent is kept away from a volume's LUN.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum FenceChoice {
    /// The strongest that the LUN proves when it is tried at mount.
    Auto,
    /// SCSI persistent reservations.
    ScsiPr,
    /// The bundled NBD target refuses the session.
    NbdTarget,
    /// A fence agent switches the host off: the command.
    Agent(String),
    /// Wait until the lease and the grace time are over.
    Lease,
}

/// What is no way of fencing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "no fence is called {0:?}; there are \"auto\", \"scsi-pr\", \"nbd-target\", \"agent:COMMAND\" and \"lease\""
)]
pub struct InvalidFence(pub String);

impl FromStr for FenceChoice {
    type Err = InvalidFence;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "scsi-pr" => Ok(Self::ScsiPr),
            "nbd-target" => Ok(Self::NbdTarget),
            "lease" => Ok(Self::Lease),
            _ => match text.strip_prefix("agent:").map(str::trim) {
                Some(command) if !command.is_empty() => Ok(Self::Agent(command.to_owned())),
                _ => Err(InvalidFence(text.to_owned())),
            },
        }
    }
}

impl fmt::Display for FenceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::ScsiPr => f.write_str("scsi-pr"),
            Self::NbdTarget => f.write_str("nbd-target"),
            Self::Agent(command) => write!(f, "agent:{command}"),
            Self::Lease => f.write_str("lease"),
        }
    }
}
