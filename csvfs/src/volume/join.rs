//! A volume of a cluster: the mount that holds the coordinator's role opens the store, the others ask it.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use lockd::authority::Authority;
use lockd::failpoint;
use lockd::lease::Lease;
use redirector::lun::Lun;

use super::entry::Entry;
use super::{Control, Office, Settings, Volume, VolumeError};
use crate::cluster::{Place, Role};
use crate::coordinator::{self, Coordinator};
use crate::disk::member::MemberClaim;
use crate::disk::open::OpenError;
use crate::node::{self, Node};
use crate::refusal::Refusal;
use crate::status::Opening;
use crate::store::cookie::HashKey;

/// How long after a coordinator did not answer it is asked again.
const RETRY: Duration = Duration::from_millis(300);

impl Volume {
    /// Joins the cluster and opens its volume at `place`.
    pub fn join(place: &Place, settings: Settings) -> Result<Self, VolumeError> {
        // Whether a mount may write is for the kernel to say: as a member it keeps its part of the volume all the same.
        let settings = Settings { read_only: false, cluster: Some(place.mark()?), ..settings };
        let begun = settings.clock.boot();
        let Entry { lun, label, member, settings } = Entry::find(place, settings)?;
        let authority: Arc<dyn Authority> = Arc::clone(&member.plane) as _;
        failpoint::reached("mount.joined");
        let mut warned = false;
        loop {
            let (carrier, epoch, office, coordinator, beat, opening) = match member.role()? {
                Role::Coordinator(epoch) => {
                    let ground = Self::take(&lun, &settings)?;
                    let database = Arc::new(ground.database);
                    let coordinator = Coordinator::start(coordinator::Parts {
                        database: Arc::clone(&database),
                        space: ground.space,
                        lun: Arc::clone(&lun),
                        authority: Arc::clone(&authority),
                        peers: Arc::clone(&member.ways) as _,
                        clock: Arc::clone(&settings.clock),
                        rules: settings.rules,
                        key: HashKey(label.hash_key),
                        epoch,
                        volume: label.uuid,
                        read_only: false,
                        discard: settings.discard,
                        settle: ground.settle,
                        journal: ground.journal,
                        beside: Some(ground.beside),
                        scrub: !ground.checked,
                    })?;
                    let carrier = member.serve_coordinator(&coordinator);
                    let office = Office { coordinator, database, hold: ground.hold };
                    (carrier, epoch, Some(office), None, ground.lease, ground.opening)
                }
                Role::Guest(node, epoch) => {
                    let opening = Opening {
                        how: format!("through the coordinator on {node}"),
                        open_s: settings.clock.boot().since(begun).as_secs_f64(),
                        ..Opening::default()
                    };
                    let beat = Arc::new(Lease::lapsed());
                    (member.way_to_coordinator(&node), epoch, None, Some(node.to_string()), beat, opening)
                }
            };
            let options = node::Options { cluster: true, ..settings.node_options() };
            let node = Node::start(node::Parts {
                carrier,
                lun: Arc::clone(&lun),
                authority: Arc::clone(&authority),
                beat: Some(Arc::clone(&beat)),
                peers: Arc::clone(&member.ways) as _,
                clock: Arc::clone(&settings.clock),
                rules: settings.rules,
                pool: settings.pool.clone(),
                volume: label.uuid,
                client: member.client,
                coordinator: epoch,
                options,
            })
            .map_err(VolumeError::Thread)?;
            let node = Arc::new(node);
            member.serve_node(&node);
            match attach(&node) {
                Ok(()) => {
                    failpoint::reached("mount.attached");
                    // V1: before the first write. The coordinator serves, so that it has opened the volume.
                    let claim = match &office {
                        Some(_) => None,
                        None => Some(claim(&lun, &settings, &beat)?),
                    };
                    let (client, control) = (member.client, Control::Cluster(member));
                    return Ok(Self {
                        label,
                        lun,
                        control,
                        client,
                        office,
                        claim,
                        coordinator,
                        node,
                        opening,
                        settings,
                    });
                }
                Err(refusal) if office.is_some() => return Err(VolumeError::NotTaken(refusal)),
                // It is still opening the volume, or has just gone.
                Err(refusal) => {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!(%refusal, "the coordinator does not answer yet; asking again");
                    }
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}

/// The claim of a mount that does not open the store.
fn claim(lun: &Arc<dyn Lun>, settings: &Settings, beat: &Arc<Lease>) -> Result<MemberClaim, VolumeError> {
    let mut claim = MemberClaim::claim(lun, &settings.member_options(), beat).map_err(OpenError::from)?;
    claim.start().map_err(VolumeError::Thread)?;
    Ok(claim)
}

/// Makes the node known to the coordinator.
fn attach(node: &Node) -> Result<(), Refusal> {
    let (sender, receiver) = sync_channel(1);
    node.attach(Box::new(move |result| drop(sender.send(result))));
    receiver.recv().unwrap_or_else(|_| Err(Refusal::Io("the node has ended".to_owned())))
}
