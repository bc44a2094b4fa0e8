//! What a volume's LUN proves of fencing, when a mount tries it; and under which incarnation a mount is known there.

use std::time::Duration;

use lockd::cluster::tls::Credentials;
use lockd::cluster::{ControlAddress, FenceChoice};
use lockd::fencing::{TargetControl, TargetMark, node_key};
use lockd::iscsi::reservation::try_out;
use lockd::machine::FenceMethod;
use lockd::random::{Random, SystemRandom};
use lockd::reservation::{Shown, Trial};
use redirector::lun::Lun;
use redirector::uri::LunUri;

use super::error::ClusterError;
use super::member::Place;
use crate::disk::layout;
use crate::types::BLOCK;

/// How long a target may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a LUN has proved of fencing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Proven {
    /// By which method a node that goes silent is fenced.
    pub(crate) method: FenceMethod,
    /// What was seen when reservations were tried, if they are the method.
    pub(crate) shown: Option<Shown>,
}

impl From<FenceMethod> for Proven {
    fn from(method: FenceMethod) -> Self {
        Self { method, shown: None }
    }
}

impl Place {
    /// By which method a node that goes silent is fenced from the volume: the one that the cluster file names, if the LUN
    /// is good for it, or for `auto` the strongest that the LUN proves.
    ///
    /// # Errors
    /// If it proves too little; the text says what there is to choose from.
    pub(crate) fn prove_fence(&self, lun: &dyn Lun) -> Result<Proven, ClusterError> {
        let volume = self.in_file();
        let unproven = |fence, why| ClusterError::FenceUnproven { volume: self.volume.clone(), fence, why };
        match &volume.fence {
            FenceChoice::Lease => Ok(FenceMethod::Lease.into()),
            FenceChoice::Agent(_) => Ok(FenceMethod::Agent.into()),
            FenceChoice::NbdTarget => self
                .prove_target(lun, &volume.control)
                .map(Proven::from)
                .map_err(|why| unproven("nbd-target", why)),
            FenceChoice::ScsiPr => {
                let shown = self.prove_reservations(lun).map_err(|why| unproven("scsi-pr", why))?;
                Ok(Proven { method: FenceMethod::ScsiPr, shown: Some(shown) })
            }
            FenceChoice::Auto if self.luns.iter().any(|lun| matches!(lun, LunUri::Iscsi(_))) => {
                let whole = self.prove_reservations(lun).and_then(whole);
                let none = |why| ClusterError::NoFence { volume: self.volume.clone(), why };
                Ok(Proven { method: FenceMethod::ScsiPr, shown: Some(whole.map_err(none)?) })
            }
            FenceChoice::Auto if matches!(self.luns[..], [LunUri::Device(_)]) => {
                let why = "on a block device it cannot be tried whether the target keeps out who has no key, while no other \
                           host has one; asked for by name, fence = \"scsi-pr\" does without"
                    .to_owned();
                Err(ClusterError::NoFence { volume: self.volume.clone(), why })
            }
            FenceChoice::Auto => self
                .prove_target(lun, &volume.control)
                .map(Proven::from)
                .map_err(|why| ClusterError::NoFence { volume: self.volume.clone(), why }),
        }
    }

    /// What reservations are good for, on every path: the least that one of them has shown.
    fn prove_reservations(&self, lun: &dyn Lun) -> Result<Shown, String> {
        let trial = Trial {
            node: &self.node,
            key: node_key(&self.node),
            // Nobody has anything there but a drill.
            scratch: layout::DRILL_AT * BLOCK,
        };
        let mut least = lun.try_reservations(trial)?;
        for path in self.luns.iter().skip(1) {
            let LunUri::Iscsi(unit) = path else {
                return Err(format!("the path {path} is no iscsi:// unit"));
            };
            let shown = try_out(unit, trial, SystemRandom.number() >> 1);
            let shown = shown.map_err(|error| format!("on the path {path} {error}"))?;
            least = Shown {
                aborts: least.aborts && shown.aborts,
                persists: least.persists && shown.persists,
                guards_unmap: least.guards_unmap && shown.guards_unmap,
                tried: least.tried && shown.tried,
            };
        }
        Ok(least)
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

/// Without being asked for by name, only a target that does all of it by itself is relied on.
fn whole(shown: Shown) -> Result<Shown, String> {
    let lacks = [
        (!shown.aborts, "the target has no PREEMPT AND ABORT"),
        (!shown.guards_unmap, "the target lets UNMAP pass from who has not registered"),
    ];
    match lacks.iter().find(|(lacks, _)| *lacks) {
        None => Ok(shown),
        Some((_, why)) => Err(format!(
            "{why}; asked for by name, fence = \"scsi-pr\" does without: a victim's commands are aborted by a reset of the \
             unit, and nobody sends UNMAP or WRITE SAME"
        )),
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
        FenceMethod::ScsiPr => {
            "scsi-pr: the target rejects what a node that went silent sends, and has aborted what it had accepted, before \
             anything is given away"
        }
        FenceMethod::Quiesce => "quiesce: what dead processes have sent is waited for",
    }
}
