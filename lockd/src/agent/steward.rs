//! What an operator holds by name without a program: the lockd of the node holds it for him.
//!
//! `lockctl acquire vm/web --node n2` works where no virtual machine host runs, and `volume/UUID/file/7` where the volume
//! is not mounted. The steward does no I/O, so that what it holds can be released and handed over at any time. Its
//! clients end with its process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::core::Core;
use super::forward;
use super::nonce::client_nonce;
use crate::client::{HolderReply, HolderRequest, check_epoch};
use crate::ids::{ClientId, Epoch, NodeName, ResourceId, Sequence, SessionId, SlotId};
use crate::local::process::Incarnation;
use crate::machine::{Answer, ClientKind, Command, Cookie, HoldMode, Move, Operation, Query, Refusal, Reply};

/// How long the cluster may take over one step.
const PATIENCE: Duration = Duration::from_secs(10);

/// The operator's clients of this node, one per kind.
#[derive(Debug, Default)]
pub(super) struct Steward {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    session: SessionId,
    clients: BTreeMap<ClientKind, Own>,
}

/// One client, with one slot in which one command at a time is.
#[derive(Clone, Copy, Debug)]
struct Own {
    client: ClientId,
    sequence: Sequence,
}

fn kind_for(resource: &ResourceId) -> ClientKind {
    match resource {
        ResourceId::Coordinator(volume) | ResourceId::File(volume, _) => {
            ClientKind::Csvfs { volume: *volume }
        }
        ResourceId::Vm(_) => ClientKind::Vmhost,
    }
}

impl Steward {
    /// Whether `client` is one of the steward's.
    pub(super) async fn is(&self, client: ClientId) -> bool {
        self.state.lock().await.clients.values().any(|own| own.client == client)
    }

    /// The client that can hold `resource`.
    pub(super) async fn client_for(
        &self,
        core: &Arc<Core>,
        resource: &ResourceId,
    ) -> Result<ClientId, String> {
        let mut state = self.state.lock().await;
        state.registered(core, kind_for(resource)).await.map(|own| own.client)
    }

    /// How many there are: those that need not be waited for when lockd ends.
    pub(super) async fn count(&self) -> usize {
        self.state.lock().await.clients.len()
    }

    /// Does what an operator asks.
    pub(super) async fn serve(&self, core: &Arc<Core>, request: &[u8]) -> Result<Vec<u8>, String> {
        let request = HolderRequest::decode(request)?;
        let done = match request {
            HolderRequest::Acquire(resources) => self.acquire(core, &resources).await,
            HolderRequest::Release(resources) => self.release(core, &resources).await,
            HolderRequest::Transfer { with_locks: true, .. }
            | HolderRequest::TransferIn { with_locks: true, .. } => {
                Err("nobody has locks there: no program holds these".to_owned())
            }
            HolderRequest::Transfer { resources, to, .. } => self.transfer(core, &resources, &to, None).await,
            HolderRequest::TransferIn { epoch, resources, to, .. } => {
                self.transfer(core, &resources, &to, Some(epoch)).await
            }
            HolderRequest::Take { .. }
            | HolderRequest::TakeRole { .. }
            | HolderRequest::Adopt { .. }
            | HolderRequest::DropLocks { .. } => Err("this volume is not mounted on that node".to_owned()),
            HolderRequest::Status => Err(format!("node {} has no such volume mounted", core.node)),
        };
        done.unwrap_or_else(HolderReply::Refused).encode()
    }

    async fn acquire(&self, core: &Arc<Core>, resources: &[ResourceId]) -> Result<HolderReply, String> {
        let mut state = self.state.lock().await;
        let mut last = None;
        for resource in resources {
            let operation =
                Operation::Acquire { resource: resource.clone(), mode: HoldMode::Exclusive, pinned: true };
            match state.operate(core, kind_for(resource), operation).await? {
                Reply::Acquired(holder) => last = Some(holder.epoch),
                other => return Err(format!("an odd reply: {other:?}")),
            }
        }
        Ok(HolderReply::Done { epoch: last, pause_ns: 0, cookie: None })
    }

    async fn release(&self, core: &Arc<Core>, resources: &[ResourceId]) -> Result<HolderReply, String> {
        let mut state = self.state.lock().await;
        for resource in resources {
            let (epoch, _) = holding(core, resource).await?;
            let operation = Operation::Release { resource: resource.clone(), epoch };
            state.operate(core, kind_for(resource), operation).await?;
        }
        Ok(HolderReply::Done { epoch: None, pause_ns: 0, cookie: None })
    }

    async fn transfer(
        &self,
        core: &Arc<Core>,
        resources: &[ResourceId],
        to: &NodeName,
        expected: Option<Epoch>,
    ) -> Result<HolderReply, String> {
        let Some(first) = resources.first() else { return Err("nothing is named".to_owned()) };
        let mut targets: BTreeMap<ClientKind, ClientId> = BTreeMap::new();
        let mut moves = Vec::with_capacity(resources.len());
        let held = all_holdings(core, resources).await?;
        for (resource, (epoch, from)) in resources.iter().zip(held) {
            // What is held now is named to the state machine, which refuses whatever comes in between (L6).
            check_epoch(resource, epoch, expected)?;
            let kind = kind_for(resource);
            let target = match targets.get(&kind) {
                Some(target) => *target,
                None => forward::holder_on(core, to, resource).await?,
            };
            targets.insert(kind, target);
            moves.push(Move { resource: resource.clone(), epoch, from, to: target });
        }
        let mut cookie = [0; 16];
        core.random.fill(&mut cookie);
        let cookie = Cookie(u128::from_le_bytes(cookie));
        let mut state = self.state.lock().await;
        let began = Instant::now();
        // Nobody writes through a steward: the pause is the commit alone.
        let operation = Operation::Transfer { cookie, moves, escrow: false, pinned: false };
        match state.operate(core, kind_for(first), operation).await? {
            Reply::Transferred { epoch } => {
                let pause_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                Ok(HolderReply::Done { epoch: Some(epoch), pause_ns, cookie: None })
            }
            other => Err(format!("an odd reply: {other:?}")),
        }
    }
}

/// Who holds `resource`, and in which epoch.
async fn holding(core: &Core, resource: &ResourceId) -> Result<(Epoch, ClientId), String> {
    match core.route.query(Query::Resource(resource.clone()), Some(PATIENCE)).await {
        Ok(Answer::Resource(info)) => {
            let holder = info.holders.first().ok_or_else(|| format!("nobody holds {resource}"))?;
            Ok((holder.epoch, holder.client))
        }
        Ok(_) => Err("an odd answer".to_owned()),
        Err(failure) => Err(failure.to_string()),
    }
}

/// The same for many: by the list of what is held, once they are more than a few.
async fn all_holdings(core: &Core, resources: &[ResourceId]) -> Result<Vec<(Epoch, ClientId)>, String> {
    let mut found = Vec::with_capacity(resources.len());
    if resources.len() <= 16 {
        for resource in resources {
            found.push(holding(core, resource).await?);
        }
        return Ok(found);
    }
    let mut all = BTreeMap::new();
    let mut after = None;
    loop {
        let page = core.route.query(Query::Resources { volume: None, after }, Some(PATIENCE)).await;
        let Ok(Answer::Resources(page)) = page else {
            return Err("the holdings cannot be listed".to_owned());
        };
        let Some(last) = page.last() else { break };
        after = Some(last.resource.clone());
        for info in page {
            if let Some(holder) = info.holders.first() {
                all.insert(info.resource, (holder.epoch, holder.client));
            }
        }
    }
    for resource in resources {
        found.push(all.get(resource).copied().ok_or_else(|| format!("nobody holds {resource}"))?);
    }
    Ok(found)
}

impl State {
    /// The client of a kind, registered if it is not yet.
    async fn registered(&mut self, core: &Arc<Core>, kind: ClientKind) -> Result<Own, String> {
        let open = core.session(Some(PATIENCE)).await.map_err(|failure| failure.to_string())?;
        if self.session != open.session {
            // What the clients of an ended session held is gone with it.
            *self = Self { session: open.session, clients: BTreeMap::new() };
        }
        if let Some(own) = self.clients.get(&kind) {
            return Ok(*own);
        }
        let pid = std::process::id();
        let process = Incarnation::of(pid).map_err(|error| error.to_string())?;
        let nonce = client_nonce(process, core.boot, core.random.number());
        let command = Command::AddClient { session: open.session, nonce, kind, pid };
        match core.route.propose(&command, Some(PATIENCE)).await {
            Ok(Reply::Client(client)) => {
                let own = Own { client, sequence: Sequence(1) };
                self.clients.insert(kind, own);
                Ok(own)
            }
            Ok(Reply::Refused(refusal)) => Err(refusal.to_string()),
            Ok(other) => Err(format!("an odd reply: {other:?}")),
            Err(failure) => Err(failure.to_string()),
        }
    }

    async fn operate(
        &mut self,
        core: &Arc<Core>,
        kind: ClientKind,
        operation: Operation,
    ) -> Result<Reply, String> {
        let own = self.registered(core, kind).await?;
        let Own { client, sequence } = own;
        let command = Command::Client { client, slot: SlotId(0), sequence, operation };
        match core.route.propose(&command, Some(PATIENCE)).await {
            Ok(reply) => {
                self.clients.insert(kind, Own { client, sequence: Sequence(sequence.0 + 1) });
                match reply {
                    Reply::Refused(refusal @ (Refusal::ClientEnded(_) | Refusal::Slot(_))) => {
                        // Its successor starts with new slots.
                        self.clients.remove(&kind);
                        Err(refusal.to_string())
                    }
                    Reply::Refused(refusal) => Err(refusal.to_string()),
                    reply => Ok(reply),
                }
            }
            Err(failure) => {
                // Whether it was done is not known, nor which number the slot has: the client is given up, and what it
                // holds stays under it until it can be asked again.
                self.clients.remove(&kind);
                Err(failure.to_string())
            }
        }
    }
}
