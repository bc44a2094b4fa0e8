//! The clients of this node: which process each is, and the proof that it is dead (L10, L11).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::connection::Connection;
use super::core::Core;
use super::former::{self, Former};
use super::nonce::{client_nonce, incarnation_of};
use super::session::OpenSession;
use crate::ids::{ClientId, ResourceId, SessionId, VolumeId};
use crate::local::message::{Failure, FromLockd, Registered};
use crate::local::process::{Incarnation, Process};
use crate::machine::{Answer, ClientInfo, ClientKind, ClientState, Command, Event, Query, Refusal, Reply};
use crate::rules::Rule;

/// How long clients have to register again after lockd was started (L11).
pub(super) const RETURN: Duration = Duration::from_secs(5);

/// A client of this node.
#[derive(Clone, Debug)]
struct Member {
    kind: ClientKind,
    /// None: it is of an earlier start of the machine.
    process: Option<Incarnation>,
    connection: Option<Arc<Connection>>,
}

#[derive(Debug, Default)]
struct State {
    session: SessionId,
    members: BTreeMap<ClientId, Member>,
}

/// The clients of this node's session.
#[derive(Debug, Default)]
pub(super) struct Clients {
    state: Mutex<State>,
    /// What earlier sessions have run here.
    pub(super) former: Former,
}

impl Clients {
    /// A session was opened, or resumed: then it has clients, which must come back (L11).
    pub(super) async fn begin(&self, core: &Arc<Core>, session: SessionId) {
        *self.state.lock() = State { session, members: BTreeMap::new() };
        let found = loop {
            match core.route.query(Query::Clients, Some(RETURN)).await {
                Ok(Answer::Clients(clients)) => break clients,
                Ok(_) => break Vec::new(),
                Err(failure) => core.say(&failure.to_string()),
            }
        };
        self.former.add(former::mounts_among(core, &found, session));
        let live = |info: &ClientInfo| info.session == session && info.state == ClientState::Live;
        let found: Vec<_> = found.into_iter().filter(live).collect();
        for info in found {
            let process = incarnation_of(info.nonce, core.boot);
            let member = Member { kind: info.kind, process, connection: None };
            self.state.lock().members.insert(info.client, member);
            core.watch_process(session, info.client, process);
        }
        core.expect_returns(session);
    }

    /// Whether `client` is one of this node's session.
    pub(super) fn has(&self, client: ClientId) -> bool {
        self.state.lock().members.contains_key(&client)
    }

    /// What is shown of the clients: id, kind, process, and whether it is connected.
    pub(super) fn list(&self) -> Vec<(ClientId, ClientKind, Option<Incarnation>, bool)> {
        let state = self.state.lock();
        let show = |(id, member): (&ClientId, &Member)| {
            (*id, member.kind, member.process, member.connection.is_some())
        };
        state.members.iter().map(show).collect()
    }

    /// After the time to come back: the clients that have not, by process.
    pub(super) fn missing(&self, session: SessionId) -> Vec<(ClientId, Option<Incarnation>)> {
        let state = self.state.lock();
        if state.session != session {
            return Vec::new();
        }
        let missing = state.members.iter().filter(|(_, member)| member.connection.is_none());
        missing.map(|(client, member)| (*client, member.process)).collect()
    }

    /// Registers a client of the process behind `connection`, or finds the one that it registered by that number. Who has
    /// none yet is registered under the next session if this one has ended meanwhile (L2).
    pub(super) async fn register(
        &self,
        core: &Arc<Core>,
        connection: &Arc<Connection>,
        kind: ClientKind,
        number: u64,
        known: Option<(SessionId, ClientId)>,
        patience: Option<Duration>,
    ) -> Result<Registered, Failure> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let process = connection.process.incarnation();
        let nonce = client_nonce(process, core.boot, number);
        let mut over = None;
        loop {
            let open = core.session_after(over, left()).await?;
            let session = open.session;
            if let Some((before, _)) = known.filter(|(before, _)| *before != session) {
                return Err(Failure::SessionEnded(before));
            }
            // F2: under the session, so that all earlier ones have ended, and what they have run here is known.
            if let (ClientKind::Csvfs { volume }, None) = (kind, known) {
                former::wait_until_over(core, volume, left()).await?;
            }
            let command = Command::AddClient { session, nonce, kind, pid: process.pid };
            let added = match core.route.propose(&command, left()).await? {
                Reply::Client(client) => self.add(core, connection, &open, (client, kind, process)),
                Reply::Refused(Refusal::SessionEnded(_)) => None,
                Reply::Refused(refusal) => return Err(Failure::Refused(refusal.to_string())),
                other => return Err(Failure::Refused(format!("an odd reply: {other:?}"))),
            };
            match added {
                Some(registered) => return Ok(registered),
                None if known.is_some() => return Err(Failure::SessionEnded(session)),
                None => {
                    tracing::warn!(%session, "a program that registers waits for the next session: this one has ended");
                    over = Some(session);
                }
            }
        }
    }

    /// A client has been registered under the session `open`; nothing if that is over already.
    fn add(
        &self,
        core: &Arc<Core>,
        connection: &Arc<Connection>,
        open: &OpenSession,
        (client, kind, process): (ClientId, ClientKind, Incarnation),
    ) -> Option<Registered> {
        let session = open.session;
        let new = {
            let mut state = self.state.lock();
            if state.session != session {
                return None;
            }
            let connection = Some(Arc::clone(connection));
            let member = Member { kind, process: Some(process), connection };
            state.members.insert(client, member).is_none()
        };
        connection.add(client);
        if new {
            core.watch_process(session, client, Some(process));
        }
        let (cluster, node) = (core.cluster.name.clone(), core.node.clone());
        Some(Registered { session, client, line: open.line, cluster, node })
    }

    /// The connection of `client`, if it has one.
    pub(super) fn connection_of(&self, client: ClientId) -> Option<Arc<Connection>> {
        self.state.lock().members.get(&client)?.connection.clone()
    }

    /// The client that can hold `resource`, if there is one with a connection.
    pub(super) fn suitable(&self, resource: &ResourceId) -> Option<ClientId> {
        let wanted = match resource {
            ResourceId::Coordinator(volume) | ResourceId::File(volume, _) => {
                ClientKind::Csvfs { volume: *volume }
            }
            ResourceId::Vm(_) => ClientKind::Vmhost,
        };
        let state = self.state.lock();
        let mut found = state.members.iter();
        found.find(|(_, member)| member.kind == wanted && member.connection.is_some()).map(|(id, _)| *id)
    }

    /// The connections of the mounts of `volume`.
    pub(super) fn mounts_of(&self, volume: VolumeId) -> Vec<Arc<Connection>> {
        let state = self.state.lock();
        let mounts = state.members.values().filter(|member| member.kind == ClientKind::Csvfs { volume });
        let mut connections: Vec<_> = mounts.filter_map(|member| member.connection.clone()).collect();
        connections.sort_by_key(|connection| connection.id);
        connections.dedup_by_key(|connection| connection.id);
        connections
    }

    /// Whether any volume is mounted on this node.
    pub(super) fn has_mounts(&self) -> bool {
        self.state.lock().members.values().any(|member| matches!(member.kind, ClientKind::Csvfs { .. }))
    }

    /// Whether a mount of `volume` on this node lives that has no connection: it cannot be asked whether it has drained.
    pub(super) fn has_mute_mount(&self, volume: VolumeId) -> bool {
        let state = self.state.lock();
        let kind = ClientKind::Csvfs { volume };
        state.members.values().any(|member| member.kind == kind && member.connection.is_none())
    }

    /// A connection has gone. That proves nothing about its process (L10).
    pub(super) fn disconnected(&self, core: &Arc<Core>, connection: &Connection) {
        let (session, gone) = {
            let mut state = self.state.lock();
            let mut gone = Vec::new();
            for (client, member) in &mut state.members {
                if member.connection.as_ref().is_some_and(|of| of.id == connection.id) {
                    member.connection = None;
                    gone.push(*client);
                }
            }
            (state.session, gone)
        };
        if !core.rules.keeps(Rule::L10) {
            for client in gone {
                core.client_gone(session, client);
            }
        }
    }

    /// A client has ended, by itself or by proof.
    pub(super) fn remove(&self, client: ClientId) {
        let removed = self.state.lock().members.remove(&client);
        if let Some(connection) = removed.and_then(|member| member.connection) {
            connection.remove(client);
        }
    }

    /// The session is over, and with it all clients.
    pub(super) fn session_ended(&self, session: SessionId) {
        let members = {
            let mut state = self.state.lock();
            if state.session != session {
                return;
            }
            std::mem::take(&mut state.members)
        };
        self.former.add(members.values().filter_map(|member| match member.kind {
            ClientKind::Csvfs { volume } => Some((volume, member.process?)),
            ClientKind::Vmhost | ClientKind::Tool => None,
        }));
        for connection in members.into_values().filter_map(|member| member.connection) {
            connection.push(&FromLockd::SessionEnded(session));
        }
    }

    /// Hands events to those whom they concern.
    pub(super) fn tell(&self, client: ClientId, events: Vec<Event>) {
        if let Some(connection) = self.connection_of(client) {
            connection.push(&FromLockd::Events(events));
        }
    }
}

/// Waits for the end of a process.
pub(super) async fn death_of(process: Incarnation) {
    loop {
        let watched = match Process::open(process) {
            Ok(None) => return,
            Ok(Some(watched)) => watched.ended().await,
            Err(error) => Err(error),
        };
        match watched {
            Ok(()) => return,
            Err(error) => {
                // Without proof nothing is freed.
                tracing::error!(%process, %error, "cannot watch a process; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
