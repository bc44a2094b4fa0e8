//! The control plane as a mount sees it: lockd, with what is asked all the time kept here.
//!
//! What this mount itself holds is known for certain as long as its lease runs: nobody else can end it. What others hold
//! and whose sessions live is kept up to date by lockd's events. That may lag: a session that has ended is refused here
//! before this node reports that it refuses it (F1), and only then is anything of it given away; a holding that is newer
//! than what is known here is asked for ([`Authority::confirmed_holder`]).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use lockd::authority::{Authority, AuthorityError, Handover, Holding, Mount, Standing};
use lockd::client::{ClientError, Listener, LockClient};
use lockd::clock::Clock;
use lockd::ids::{ClientId, Epoch, NodeName, ResourceId, SessionId, VolumeId};
use lockd::lease::Lease;
use lockd::machine::{Answer, ClientKind, ClientState, Event, EventKind, Query, SessionState, Victim};
use lockd::network::OnReply;
use parking_lot::Mutex;
use redirector::peer::Host;

use super::holder::Holder;
use super::mortal::{Mortality, gone};
use crate::coordinator::Coordinator;

/// On which node a client of this volume is, and whether it lives.
type Nodes = HashMap<ClientId, (NodeName, bool)>;

#[derive(Debug, Default)]
struct Known {
    /// What this mount holds.
    own: HashMap<ResourceId, Holding>,
    /// What others hold, as far as it has been asked; `None`: nobody.
    others: HashMap<ResourceId, Option<Holding>>,
    /// Where sessions stand.
    sessions: HashMap<SessionId, Standing>,
    nodes: Nodes,
    /// Counts what made the above old, so that an answer that was on its way is not kept.
    changes: u64,
}

impl Known {
    /// A mount has come or gone.
    fn forget_nodes(&mut self) {
        self.nodes.clear();
        self.changes += 1;
    }
}

/// What the plane asks of lockd: [`LockClient`], or in a simulation one that speaks to a simulated cluster.
pub(crate) trait Control: Authority {
    /// Whether the session has ended.
    fn has_ended(&self) -> bool;
    /// Asks for a part of the cluster's state.
    fn query(&self, query: Query) -> Result<Answer, ClientError>;
}

impl Control for LockClient {
    fn has_ended(&self) -> bool {
        self.has_ended()
    }

    fn query(&self, query: Query) -> Result<Answer, ClientError> {
        self.query(query)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Plane {
    client: OnceLock<Arc<LockClient>>,
    control: OnceLock<Arc<dyn Control>>,
    clock: Arc<dyn Clock>,
    pub(super) volume: VolumeId,
    known: Mutex<Known>,
    /// The coordinator of this process, if it is here.
    coordinator: Mutex<Weak<Coordinator>>,
    /// Called when somebody else may have the coordinator's role.
    on_role: OnceLock<OnRole>,
    pub(super) holder: Holder,
    /// Executes I/O of the others.
    pub(super) host: OnceLock<Arc<Host>>,
    /// Which of the others have ended, and what is asked of them.
    pub(super) mortality: Arc<Mortality>,
}

/// See [`Plane::on_role`].
struct OnRole(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for OnRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnRole")
    }
}

/// Most other holdings that are kept.
const OTHERS_MAX: usize = 65_536;

impl Plane {
    /// The plane of a mount of `volume`; it is of use once [`Plane::connect`] was called.
    #[must_use]
    pub fn new(volume: VolumeId, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            client: OnceLock::new(),
            control: OnceLock::new(),
            clock,
            volume,
            known: Mutex::default(),
            coordinator: Mutex::default(),
            on_role: OnceLock::new(),
            holder: Holder::new(Weak::clone(me), volume),
            host: OnceLock::new(),
            mortality: Arc::default(),
        })
    }

    /// From now on it asks `client`, whose listener it is.
    pub fn connect(&self, client: Arc<LockClient>) {
        // It is connected once.
        let _ = self.control.set(Arc::clone(&client) as _);
        let _ = self.client.set(client);
    }

    /// From now on it asks `control`.
    #[cfg(test)]
    pub(crate) fn connect_simulated(&self, control: Arc<dyn Control>) {
        let _ = self.control.set(control);
    }

    pub(super) fn control(&self) -> &dyn Control {
        &**self.control.get().expect("the plane is connected before it is asked")
    }

    /// The connection to lockd.
    ///
    /// # Panics
    /// Before [`Plane::connect`].
    #[must_use]
    pub fn client(&self) -> &Arc<LockClient> {
        self.client.get().expect("the plane is connected before it is asked")
    }

    /// Which coordinator is told when sessions end.
    pub fn tell(&self, coordinator: &Arc<Coordinator>) {
        *self.coordinator.lock() = Arc::downgrade(coordinator);
    }

    /// None is any more.
    pub fn tell_nobody(&self) {
        *self.coordinator.lock() = Weak::new();
    }

    fn coordinator(&self) -> Option<Arc<Coordinator>> {
        self.coordinator.lock().upgrade()
    }

    /// `on_role` is called when somebody else may have the coordinator's role from now on. It must not wait.
    pub fn on_role(&self, on_role: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_role.set(OnRole(Box::new(on_role)));
    }

    fn role_changed(&self) {
        if let Some(OnRole(on_role)) = self.on_role.get() {
            on_role();
        }
    }

    fn is_role(&self, resource: &ResourceId) -> bool {
        *resource == ResourceId::Coordinator(self.volume)
    }

    /// The node of a client of this volume.
    pub fn node_of(&self, client: ClientId) -> Option<NodeName> {
        let of = |nodes: &Nodes| nodes.get(&client).map(|(node, _)| node.clone());
        if let Some(node) = of(&self.known.lock().nodes) {
            return Some(node);
        }
        of(&self.learn_nodes().ok()?)
    }

    /// The nodes on which a mount of this volume lives; none that is known if lockd does not answer.
    pub fn living_nodes(&self) -> BTreeSet<NodeName> {
        let mut nodes = self.known.lock().nodes.clone();
        if nodes.is_empty() {
            nodes = self.learn_nodes().unwrap_or_else(|error| {
                tracing::debug!(%error, "lockd does not tell which mounts live");
                Nodes::new()
            });
        }
        nodes.into_values().filter(|(_, is_live)| *is_live).map(|(node, _)| node).collect()
    }

    fn learn_nodes(&self) -> Result<Nodes, ClientError> {
        let changes = self.known.lock().changes;
        let clients = self.client().clients_of(ClientKind::Csvfs { volume: self.volume })?;
        let nodes = clients.into_iter();
        let nodes = nodes.map(|info| (info.client, (info.node, info.state == ClientState::Live)));
        let nodes: Nodes = nodes.collect();
        let mut known = self.known.lock();
        if known.changes == changes {
            known.nodes.clone_from(&nodes);
        }
        Ok(nodes)
    }

    /// The live session of a node, if it has one.
    pub(super) fn session_of(&self, node: &NodeName) -> Option<SessionId> {
        let Ok(Answer::Sessions(sessions)) = self.control().query(Query::Sessions) else { return None };
        let live = sessions.into_iter().find(|info| info.node == *node && info.state == SessionState::Live);
        live.map(|info| info.session)
    }

    /// How many files this mount owns.
    pub fn owned_files(&self) -> u64 {
        let known = self.known.lock();
        known.own.keys().filter(|resource| matches!(resource, ResourceId::File(..))).count() as u64
    }

    /// Asks until there is an answer. None if the session has ended.
    fn ask(&self, query: &Query) -> Option<Answer> {
        loop {
            match self.control().query(query.clone()) {
                Ok(answer) => return Some(answer),
                Err(_) if self.control().has_ended() => return None,
                Err(_) => self.clock.sleep(Duration::from_millis(100)),
            }
        }
    }

    fn ask_sessions(&self, session: SessionId) -> Standing {
        loop {
            let changes = self.known.lock().changes;
            match self.control().query(Query::Sessions) {
                Ok(Answer::Sessions(sessions)) => {
                    let mut known = self.known.lock();
                    let stands = |state| match state {
                        SessionState::Live => Standing::Live,
                        SessionState::Ended { .. } => Standing::Ended,
                    };
                    let standing = sessions
                        .iter()
                        .find(|info| info.session == session)
                        .map_or(Standing::Fenced, |info| stands(info.state));
                    if known.changes == changes {
                        known.sessions.insert(session, standing);
                        return standing;
                    }
                }
                // Without lockd nothing new can be learnt, and nothing is given away either.
                _ if self.control().has_ended() => return Standing::Live,
                _ => self.clock.sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Nothing is executed for `victim` any more.
    fn deny(&self, victim: Victim) {
        if let Some(host) = self.host.get() {
            host.deny(victim);
        }
    }

    fn look(&self) {
        if let Some(coordinator) = self.coordinator() {
            coordinator.look();
        }
    }

    fn stands(&self, session: SessionId, standing: Standing) {
        {
            let mut known = self.known.lock();
            known.changes += 1;
            let old = known.sessions.entry(session).or_insert(standing);
            // Fenced is the end of it.
            if *old != Standing::Fenced {
                *old = standing;
            }
        }
        self.look();
    }

    /// The reserves and opens of those of `clients` go that lockd has freed: they have left drained, or are proved dead
    /// and fenced (L10). One that has only ended stays in lockd's list until its fence, or its session's, is complete:
    /// what it has sent may still reach the LUN (invariant 4). Clients of other volumes, and every lockctl, leave nothing
    /// in this one's store.
    fn end_freed(&self, clients: &[ClientId]) {
        let Some(coordinator) = self.coordinator() else { return };
        let known: Vec<ClientId> =
            clients.iter().copied().filter(|client| coordinator.knows(*client)).collect();
        if known.is_empty() {
            return;
        }
        let listed = match self.control().query(Query::Clients) {
            Ok(Answer::Clients(listed)) => listed,
            // Their sessions' ends are looked at all the same.
            other => return tracing::warn!(?other, "which clients are fenced cannot be asked"),
        };
        for client in known.into_iter().filter(|client| !listed.iter().any(|info| info.client == *client)) {
            if let Err(refusal) = coordinator.end_client(client) {
                tracing::warn!(%client, %refusal, "a client that has ended is not forgotten yet");
            }
        }
    }

    /// A set has got `epoch`; what is known of it may be newer.
    fn forget_older(&self, resources: &[ResourceId], epoch: Epoch) {
        let mut known = self.known.lock();
        known.changes += 1;
        for resource in resources {
            let is_newer = |holding: &Option<Holding>| holding.is_some_and(|known| known.epoch >= epoch);
            if !known.others.get(resource).is_some_and(is_newer) {
                known.others.remove(resource);
            }
        }
    }

    /// The same, of a set that is too long to be told: it was of the session `from`, or nobody's.
    fn forget_all_of(&self, from: SessionId, epoch: Epoch) {
        let mut known = self.known.lock();
        known.changes += 1;
        known.others.retain(|_, holding| {
            holding.is_some_and(|holding| holding.session != from || holding.epoch >= epoch)
        });
    }

    fn forget_others(&self, resources: &[ResourceId]) {
        let mut known = self.known.lock();
        known.changes += 1;
        for resource in resources {
            known.others.remove(resource);
        }
    }
}

impl Authority for Plane {
    fn session(&self) -> SessionId {
        self.control().session()
    }

    fn lease(&self) -> &Arc<Lease> {
        self.control().lease()
    }

    fn add_client(&self) -> Result<ClientId, AuthorityError> {
        self.control().add_client()
    }

    fn end_client(&self, client: ClientId) {
        self.known.lock().own.clear();
        self.control().end_client(client);
    }

    fn acquire(&self, resource: &ResourceId, client: ClientId) -> Result<Holding, AuthorityError> {
        let holding = self.control().acquire(resource, client)?;
        self.known.lock().own.insert(resource.clone(), holding);
        Ok(holding)
    }

    fn release(&self, resource: &ResourceId, client: ClientId, epoch: Epoch) -> Result<(), AuthorityError> {
        self.known.lock().own.remove(resource);
        self.control().release(resource, client, epoch)
    }

    fn release_all(
        &self,
        holdings: Vec<(ResourceId, Epoch)>,
        client: ClientId,
    ) -> Result<(), AuthorityError> {
        {
            let mut known = self.known.lock();
            for (resource, _) in &holdings {
                known.own.remove(resource);
            }
        }
        self.control().release_all(holdings, client)
    }

    fn pin(&self, resources: &[ResourceId], client: ClientId) -> Result<(), AuthorityError> {
        self.control().pin(resources, client)
    }

    fn transfer(&self, handover: &Handover) -> Result<Epoch, AuthorityError> {
        // From now on this mount does not know for certain that it holds them.
        let own: Vec<_> = {
            let mut known = self.known.lock();
            let resources = handover.holdings.iter().map(|(resource, _)| resource);
            resources.filter_map(|resource| known.own.remove_entry(resource)).collect()
        };
        match self.control().transfer(handover) {
            Ok(epoch) => {
                if handover.to.1 == handover.from {
                    let resources: Vec<_> =
                        handover.holdings.iter().map(|(resource, _)| resource.clone()).collect();
                    self.arrived(&resources, handover.from, epoch);
                }
                Ok(epoch)
            }
            Err(error @ AuthorityError::SessionEnded(_)) => Err(error),
            Err(error) => {
                self.known.lock().own.extend(own);
                Err(error)
            }
        }
    }

    fn arrived(&self, resources: &[ResourceId], client: ClientId, epoch: Epoch) {
        let holding = Holding { session: self.session(), client, epoch };
        let mut known = self.known.lock();
        for resource in resources {
            known.others.remove(resource);
            known.own.insert(resource.clone(), holding);
        }
    }

    fn learn(&self, resources: &[ResourceId], holding: Holding) {
        if holding.session == self.session() {
            return;
        }
        let mut known = self.known.lock();
        if known.others.len() + resources.len() > OTHERS_MAX {
            known.others.clear();
        }
        for resource in resources {
            known.others.insert(resource.clone(), Some(holding));
        }
    }

    fn holders(&self, resources: &[ResourceId]) -> Vec<Option<Holding>> {
        self.control().holders(resources)
    }

    fn holder(&self, resource: &ResourceId) -> Option<Holding> {
        {
            let known = self.known.lock();
            if let Some(holding) = known.own.get(resource)
                && !self.control().has_ended()
                && self.lease().holds(&*self.clock)
            {
                return Some(*holding);
            }
            if let Some(holding) = known.others.get(resource) {
                return *holding;
            }
        }
        self.confirmed_holder(resource)
    }

    fn confirmed_holder(&self, resource: &ResourceId) -> Option<Holding> {
        let changes = self.known.lock().changes;
        let holding = self.control().holder(resource);
        let mut known = self.known.lock();
        if known.changes == changes && !known.own.contains_key(resource) {
            if known.others.len() >= OTHERS_MAX {
                known.others.clear();
            }
            known.others.insert(resource.clone(), holding);
        }
        holding
    }

    fn mounts(&self, volume: VolumeId) -> Option<Vec<Mount>> {
        let kind = ClientKind::Csvfs { volume };
        let Answer::Clients(clients) = self.ask(&Query::Clients)? else { return None };
        let mounts = clients.into_iter().filter(|info| info.kind == kind).map(|info| Mount {
            session: info.session,
            client: info.client,
            is_live: info.state == ClientState::Live,
        });
        Some(mounts.collect())
    }

    fn owned(&self, volume: VolumeId) -> Option<Vec<(u64, Holding)>> {
        let mut owned = Vec::new();
        let mut after = None;
        loop {
            let query = Query::Resources { volume: Some(volume), after: after.clone() };
            let Answer::Resources(page) = self.ask(&query)? else { return None };
            let Some(last) = page.last() else { return Some(owned) };
            after = Some(last.resource.clone());
            for info in page {
                if let (ResourceId::File(_, ino), Some(holder)) = (info.resource, info.holders.first()) {
                    owned.push((ino, Holding::from(holder)));
                }
            }
        }
    }

    fn standing(&self, session: SessionId) -> Standing {
        if session == self.session() {
            return if self.control().has_ended() { Standing::Ended } else { Standing::Live };
        }
        let known = self.known.lock().sessions.get(&session).copied();
        known.unwrap_or_else(|| self.ask_sessions(session))
    }
}

/// Tells those who wait in vain, on a thread that may be kept waiting.
fn tell_gone(in_vain: Vec<OnReply>) {
    if in_vain.is_empty() {
        return;
    }
    let tell = move || in_vain.into_iter().for_each(|on_reply| on_reply(Err(gone())));
    if let Err(error) = std::thread::Builder::new().name("csvfs-gone".to_owned()).spawn(tell) {
        tracing::error!(%error, "no thread: requests to a mount that has died were dropped");
    }
}

impl Listener for Plane {
    fn serve(&self, client: ClientId, from: &NodeName, request: &[u8]) -> Result<Vec<u8>, String> {
        self.holder.serve(client, from, request)
    }

    fn event(&self, event: &Event) {
        match &event.kind {
            EventKind::HolderChanged { resource, .. } => {
                self.forget_others(std::slice::from_ref(resource));
                if self.is_role(resource) {
                    self.role_changed();
                }
            }
            EventKind::Moved { from, epoch, resources, count, .. } => {
                if *count > resources.len() as u64 {
                    self.forget_all_of(*from, *epoch);
                } else {
                    self.forget_older(resources, *epoch);
                }
                if resources.iter().any(|resource| self.is_role(resource)) {
                    self.role_changed();
                }
            }
            EventKind::Freed { resources, count, .. } => {
                if *count > resources.len() as u64 {
                    self.missed();
                } else {
                    self.forget_others(resources);
                }
                self.role_changed();
            }
            EventKind::SessionEnded { session, .. } => {
                self.stands(*session, Standing::Ended);
                self.deny(Victim::Session(*session));
                tell_gone(self.mortality.end_session(*session));
            }
            EventKind::Fenced { volume, victim: Victim::Session(session) } if *volume == self.volume => {
                self.stands(*session, Standing::Fenced);
            }
            EventKind::ClientAdded { .. } => self.known.lock().forget_nodes(),
            EventKind::ClientEnded { client, .. } => {
                self.known.lock().forget_nodes();
                self.deny(Victim::Client(*client));
                self.look();
                self.end_freed(&[*client]);
                tell_gone(self.mortality.end_client(*client));
            }
            EventKind::Fenced { volume, victim: Victim::Client(client) } if *volume == self.volume => {
                self.end_freed(&[*client]);
            }
            _ => {}
        }
    }

    fn missed(&self) {
        {
            let mut known = self.known.lock();
            known.changes += 1;
            known.others.clear();
            known.sessions.clear();
            known.nodes.clear();
        }
        self.look();
        if let Some(coordinator) = self.coordinator() {
            self.end_freed(&coordinator.attached());
        }
        self.role_changed();
    }

    fn drain(&self, volume: VolumeId, victim: Victim) {
        if volume != self.volume {
            return;
        }
        // From now on the victim is refused here.
        if let Victim::Session(session) = victim {
            self.stands(session, Standing::Ended);
        }
        if let Some(host) = self.host.get() {
            host.refuse(victim);
        }
    }

    fn session_ended(&self, _session: SessionId) {
        self.role_changed();
        self.look();
    }
}
