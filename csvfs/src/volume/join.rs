//! A volume of a cluster: the mount that holds the coordinator's role opens the store, the others ask it.

use std::sync::Arc;

use lockd::authority::Authority;
use lockd::failpoint;
use lockd::ids::Epoch;
use lockd::lease::Lease;

use super::entry::Entry;
use super::succession::Succession;
use super::{Control, Settings, Volume, VolumeError};
use crate::cluster::Place;
use crate::node::{self, Node};

impl Volume {
    /// Joins the cluster and opens its volume at `place`.
    pub fn join(place: &Place, settings: Settings) -> Result<Self, VolumeError> {
        // Whether a mount may write is for the kernel to say: as a member it keeps its part of the volume all the same.
        let settings = Settings {
            read_only: false,
            cluster: Some(place.mark()?),
            node: place.node.to_string(),
            quiesce: Some(place.in_file().target_quiesce),
            ..settings
        };
        let Entry { lun, label, member, settings } = Entry::find(place, settings)?;
        let member = Arc::new(member);
        member.host_others(&lun, &settings.clock, settings.rules);
        let authority: Arc<dyn Authority> = Arc::clone(&member.plane) as _;
        failpoint::reached("mount.joined");
        let beat = Arc::new(Lease::lapsed());
        let options = node::Options { cluster: true, ..settings.node_options() };
        let node = Node::start(node::Parts {
            carrier: None,
            lun: Arc::clone(&lun),
            authority: Arc::clone(&authority),
            beat: Some(Arc::clone(&beat)),
            peers: Arc::clone(&member.ways) as _,
            clock: Arc::clone(&settings.clock),
            rules: settings.rules,
            pool: settings.pool.clone(),
            volume: label.uuid,
            client: member.client,
            coordinator: Epoch::NOBODY,
            options,
        })
        .map_err(VolumeError::Thread)?;
        let node = Arc::new(node);
        member.serve_node(&node);
        let succession = Succession::start(&member, &node, &lun, label.clone(), settings.clone(), beat)
            .map_err(VolumeError::Thread)?;
        let opening = succession.joined()?;
        let (client, control) = (member.client, Control::Cluster(succession));
        Ok(Self { label, lun, control, client, office: None, node, opening, settings })
    }
}
