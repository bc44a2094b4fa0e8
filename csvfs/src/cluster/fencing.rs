//! What a volume's LUN proves of fencing, when a mount tries it; and under which incarnation a mount is known there.

use std::time::Duration;

use lockd::cluster::tls::Credentials;
use lockd::cluster::{ControlAddress, FenceChoice};
use lockd::fencing::{TargetControl, TargetMark};
use lockd::machine::FenceMethod;
use redirector::lun::Lun;

use super::error::ClusterError;
use super::member::Place;

/// How long a target may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);

impl Place {
    /// By which method a node that goes silent is fenced from the volume: the one that the cluster file names, if the LUN
    /// is good for it, or for `auto` the strongest that the LUN proves.
    ///
    /// # Errors
    /// If it proves too little; the text says what there is to choose from.
    pub(crate) fn prove_fence(&self, lun: &dyn Lun) -> Result<FenceMethod, ClusterError> {
        let volume = self.in_file();
        match &volume.fence {
            FenceChoice::Lease => Ok(FenceMethod::Lease),
            FenceChoice::Agent(_) => Ok(FenceMethod::Agent),
            FenceChoice::NbdTarget => self.prove_target(lun, &volume.control).map_err(|why| {
                ClusterError::FenceUnproven { volume: self.volume.clone(), fence: "nbd-target", why }
            }),
            FenceChoice::Auto => self
                .prove_target(lun, &volume.control)
                .map_err(|why| ClusterError::NoFence { volume: self.volume.clone(), why }),
            FenceChoice::ScsiPr => Err(ClusterError::FenceUnproven {
                volume: self.volume.clone(),
                fence: "scsi-pr",
                why: "this release has no persistent reservations; nbd-target, agent:COMMAND and lease are there".to_owned(),
            }),
        }
    }

    /// Whether csv-target is behind the LUN, keeps its list of refused clients, and obeys this cluster's nodes.
    fn prove_target(&self, lun: &dyn Lun, control: &[ControlAddress]) -> Result<FenceMethod, String> {
        let seen = lun.target().ok_or("the LUN is not served by csv-target, or not over nbd")?;
        if control.is_empty() {
            return Err("the volume has no `control` in the cluster file: the addresses of csv-target's --control, one \
                        for each path in `lun`"
                .to_owned());
        }
        let Some(list) = seen.list else {
            return Err(
                "csv-target was started without --state: it would let in whoever was fenced after a restart"
                    .to_owned(),
            );
        };
        let seen = TargetMark { boot: hex(seen.boot), list: Some(hex(list)) };
        let credentials = Credentials::load(&self.cluster, &self.node).map_err(|error| error.to_string())?;
        for (at, address) in control.iter().enumerate() {
            let target = TargetControl::new(address, &credentials);
            let mark = target.and_then(|target| target.mark(PATIENCE)).map_err(|error| error.to_string())?;
            if mark.list.is_none() {
                return Err(format!("the csv-target at {address} was started without --state"));
            }
            // Only the first path is in use; whoever answers for it must be who serves it.
            if at == 0 && mark != seen {
                return Err(format!(
                    "what answers at {address} is not the csv-target that serves the LUN: give the addresses in \
                     `control` in the order of the paths in `lun`"
                ));
            }
        }
        Ok(FenceMethod::NbdTarget)
    }
}

fn hex(id: [u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a fence guarantees, for whoever relies on it (`docs/GUARANTEES.md`).
#[must_use]
pub fn guarantee(method: FenceMethod) -> &'static str {
    match method {
        FenceMethod::Lease => {
            "lease: a node that went silent is waited for, for lease + grace; nothing stops it at the LUN, if it was \
             stopped between looking at its lease and sending"
        }
        FenceMethod::NbdTarget => {
            "nbd-target: the target refuses a node that went silent for good, and has finished what it had accepted, \
             before anything is given away"
        }
        FenceMethod::Agent => "agent: a host that went silent is switched off before anything is given away",
        FenceMethod::ScsiPr => "scsi-pr: the target rejects and aborts what a node that went silent sends",
        FenceMethod::Quiesce => "quiesce: what dead processes have sent is waited for",
    }
}
