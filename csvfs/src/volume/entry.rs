//! The way into a cluster's volume: the LUN, the fence that it proves, the cluster, and the LUN as the client that the
//! cluster knows.

use std::sync::Arc;
use std::time::Duration;

use lockd::authority::Authority;
use lockd::fencing::key_of;
use lockd::ids::Epoch;
use lockd::machine::FenceMethod;
use redirector::iscsi::Reservation;
use redirector::lun::{Identity, Lun};
use redirector::paths::way::Credentials;

use super::{Settings, VolumeError, label_at};
use crate::cluster::{Member, Place};
use crate::disk::label::Label;
use crate::disk::survey::Survey;

/// What a mount has that has come in.
pub(super) struct Entry {
    pub(super) lun: Arc<dyn Lun>,
    pub(super) label: Label,
    pub(super) member: Member,
    /// With the client as the LUN knows it.
    pub(super) settings: Settings,
}

impl Entry {
    /// Comes in.
    pub(super) fn find(place: &Place, settings: Settings) -> Result<Self, VolumeError> {
        // Until the cluster knows this mount, it only reads.
        let lun = redirector::open::open_all(&place.luns, &settings.lun_options())?;
        let survey = Survey::read(lun.as_ref())?;
        let label = survey.label.clone();
        let proven = place.prove_fence(lun.as_ref())?;
        let fence = proven.method;
        // The epochs of a mount without a cluster are below those of the next superblock epoch.
        let seen = Epoch((survey.superblock.epoch.0 + 1) << 32);
        let member = Member::join(place, label.uuid, fence, seen, Arc::clone(&settings.clock))?;
        // From now on only this volume is accepted when the LUN is reached anew (P3).
        let identity = Identity { offset: label_at(&survey), bytes: label.encode().to_vec() };
        let quiesce = settings.quiesce_of(&label);
        warn_of_label(&label, quiesce);
        let known = matches!(fence, FenceMethod::NbdTarget | FenceMethod::ScsiPr);
        if !known && lun.direct().is_none() {
            lun.expect(identity);
            lun.assume_quiesce(quiesce);
            return Ok(Self { lun, label, member, settings });
        }
        // Opened once more, now that it is known who this mount is: whoever fences its session has this incarnation refused,
        // and no other, by reservations its key; and who its peers are.
        drop(lun);
        let client = if known { member.incarnation } else { settings.client };
        let settings = Settings { client, ..settings };
        let mut options = settings.lun_options();
        let known_as = Credentials { client, cookie: settings.cookie };
        options.peers = member.peer_ways(place, &settings.clock, settings.hold, known_as);
        options.identity = Some(identity);
        options.reservation = proven.shown.map(|shown| Reservation {
            key: key_of(member.incarnation),
            node: place.node.clone(),
            lease: Arc::clone(member.plane.lease()),
            guards_unmap: shown.guards_unmap,
        });
        let lun = redirector::open::open_all(&place.luns, &options)?;
        lun.assume_quiesce(quiesce);
        Ok(Self { lun, label, member, settings })
    }
}

/// Whoever opens the volume without its cluster knows of its label only.
fn warn_of_label(label: &Label, quiesce: Duration) {
    if label.quiesce < quiesce {
        tracing::warn!(
            "the volume was formatted for a target that executes nothing later than {:?} after its sender is gone, and the \
             cluster file says {quiesce:?}: after a crash, mount it without its cluster (or repair it) only when that has \
             passed",
            label.quiesce
        );
    }
}
