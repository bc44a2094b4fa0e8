//! Blocks through peers: this mount's ways through the others, and what it executes for them (R1).

use std::sync::Arc;
use std::time::Duration;

use lockd::authority::{Authority, Standing};
use lockd::clock::Clock;
use lockd::ids::{ClientId, NodeName, SessionId};
use lockd::machine::{Answer, ClientKind, ClientState, Query};
use lockd::peers::Channel;
use lockd::rules::Rules;
use redirector::lun::Lun;
use redirector::paths::way::{Credentials, Way};
use redirector::peer::{Admits, Host, HostFigures, HostOptions, PeerWay, Traveller, Who};

use super::member::{Member, Place};
use super::plane::Plane;

impl Member {
    /// The ways to the LUN through the other nodes, in the order of the cluster file; I/O is held for `hold`, and the target
    /// knows this mount as `known_as`.
    pub(crate) fn peer_ways(
        &self,
        place: &Place,
        clock: &Arc<dyn Clock>,
        hold: Duration,
        known_as: Credentials,
    ) -> Vec<Arc<dyn Way>> {
        let runtime = self.runtime.lock().as_ref().map(|runtime| runtime.handle().clone());
        let Some(runtime) = runtime else { return Vec::new() };
        let plane = Arc::downgrade(&self.plane);
        let lives = move |node: &NodeName| {
            plane.upgrade().is_some_and(|plane: Arc<Plane>| plane.living_nodes().contains(node))
        };
        let who = Who { volume: self.plane.volume, session: self.plane.session(), client: self.client };
        let traveller = Arc::new(Traveller {
            peers: Arc::clone(&self.endpoint) as _,
            runtime,
            who,
            known_as,
            lease: Arc::clone(self.plane.lease()),
            clock: Arc::clone(clock),
            hold,
            lives: Box::new(lives),
        });
        let others = place.cluster.nodes.iter().filter(|node| node.name != place.node);
        others.map(|node| Arc::new(PeerWay::new(node.name.clone(), Arc::clone(&traveller))) as _).collect()
    }

    /// From now on the others' I/O is executed on the direct paths of `lun`, if it has such.
    pub(crate) fn host_others(&self, lun: &Arc<dyn Lun>, clock: &Arc<dyn Clock>, rules: Rules) {
        let Some(direct) = lun.direct() else { return };
        let host = Host::new(HostOptions {
            volume: self.plane.volume,
            direct,
            admits: Arc::clone(&self.plane) as _,
            clock: Arc::clone(clock),
            rules,
        });
        // It is set once.
        let _ = self.plane.host.set(Arc::clone(&host));
        self.switchboard.connect(Channel::Block, host);
    }

    /// Nobody's I/O is executed here any more.
    pub(crate) fn host_nobody(&self) {
        self.switchboard.disconnect(Channel::Block);
        if let Some(host) = self.plane.host.get() {
            host.close();
        }
    }
}

impl Plane {
    /// What was executed for others here.
    pub(crate) fn hosted(&self) -> Option<HostFigures> {
        self.host.get().map(|host| host.figures())
    }
}

impl Admits for Plane {
    fn admits(&self, node: &NodeName, session: SessionId, client: ClientId) -> Result<(), String> {
        let answer = self.control().query(Query::Clients);
        let Ok(Answer::Clients(clients)) = answer else {
            return Err("its lockd does not tell now who lives".to_owned());
        };
        let kind = ClientKind::Csvfs { volume: self.volume };
        let known = clients.into_iter().find(|info| info.client == client && info.kind == kind);
        let lives = known.is_some_and(|info| {
            info.session == session && info.node == *node && info.state == ClientState::Live
        });
        if lives && self.standing(session) == Standing::Live {
            Ok(())
        } else {
            Err(format!("{client} under {session} is no live mount of the volume on {node}"))
        }
    }
}
