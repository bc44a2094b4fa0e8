//! What the replicated state says about fences, read once for each look.

use std::collections::BTreeMap;

use super::super::core::Core;
use super::PATIENCE;
use crate::ids::{SessionId, VolumeId};
use crate::local::message::Failure;
use crate::machine::{
    Answer, ClientInfo, ClientKind, FenceInfo, Query, SessionInfo, SessionState, VolumeInfo,
};

/// What the state says.
pub(super) struct Seen {
    pub(super) time_ns: u64,
    pub(super) fences: Vec<FenceInfo>,
    pub(super) volumes: BTreeMap<VolumeId, VolumeInfo>,
    pub(super) sessions: BTreeMap<SessionId, SessionInfo>,
    clients: Vec<ClientInfo>,
}

impl Seen {
    pub(super) async fn look(core: &Core, fences: Vec<FenceInfo>) -> Result<Self, Failure> {
        let mut seen = Self {
            time_ns: 0,
            fences,
            volumes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            clients: Vec::new(),
        };
        let ask = |query| core.route.query(query, Some(PATIENCE));
        let (volumes, sessions, clients, status) =
            tokio::join!(ask(Query::Volumes), ask(Query::Sessions), ask(Query::Clients), ask(Query::Status));
        for answer in [volumes, sessions, clients, status] {
            match answer? {
                Answer::Volumes(volumes) => {
                    seen.volumes = volumes.into_iter().map(|info| (info.volume, info)).collect();
                }
                Answer::Sessions(sessions) => {
                    seen.sessions = sessions.into_iter().map(|info| (info.session, info)).collect();
                }
                Answer::Clients(clients) => seen.clients = clients,
                Answer::Status { time_ns, .. } => seen.time_ns = time_ns,
                _ => {}
            }
        }
        // The time of the last entry stands still while nothing happens.
        if let Some(seat) = core.route.seat.get() {
            seen.time_ns = seen.time_ns.max(seat.voter.raft.now_ns());
        }
        Ok(seen)
    }

    /// The mounts of `volume` that `session` has had and that are not freed yet.
    pub(super) fn mounts_of(&self, volume: VolumeId, session: SessionId) -> Vec<&ClientInfo> {
        let mount = ClientKind::Csvfs { volume };
        self.clients.iter().filter(|info| info.session == session && info.kind == mount).collect()
    }

    /// A client, dead or alive.
    pub(super) fn client(&self, client: crate::ids::ClientId) -> Option<&ClientInfo> {
        self.clients.iter().find(|info| info.client == client)
    }

    /// The lowest live session.
    pub(super) fn lowest(&self) -> Option<SessionId> {
        self.sessions.values().find(|info| info.state == SessionState::Live).map(|info| info.session)
    }

    /// The live sessions in the order in which they take up a fence of `volume`: `first`, those that have it mounted, the
    /// others (which may be on a witness).
    pub(super) fn turns(&self, volume: &VolumeInfo, first: Option<SessionId>) -> Vec<SessionId> {
        let live = self.sessions.values().filter(|info| info.state == SessionState::Live);
        let mut turns: Vec<SessionId> = live.map(|info| info.session).collect();
        turns.sort_by_key(|session| (Some(*session) != first, !volume.sessions.contains(session), *session));
        turns
    }
}
