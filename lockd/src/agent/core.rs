//! What the parts of a lockd share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::clients::{Clients, RETURN, death_of};
use super::connection::Connection;
use super::fence::Attempts;
use super::nonce::NonceFile;
use super::route::Route;
use super::session::OpenSession;
use super::steward::Steward;
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::cluster::tls::Credentials;
use crate::ids::{ClientId, NodeName, SessionId};
use crate::lease::{BootId, LeasePage};
use crate::local::message::Failure;
use crate::local::process::Incarnation;
use crate::machine::{Command, Refusal, Reply};
use crate::peers::quic::QuicEndpoint;
use crate::random::Random;
use crate::rules::Rules;

/// How often the same trouble is said.
const REMINDER: Duration = Duration::from_secs(10);
/// How long is waited before a client's end is told again.
const RETRY: Duration = Duration::from_millis(500);

/// What the parts of a lockd share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) cluster: Cluster,
    pub(super) node: NodeName,
    pub(super) rules: Rules,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
    pub(super) boot: BootId,
    pub(super) route: Route,
    pub(super) page: LeasePage,
    pub(super) nonce: NonceFile,
    pub(super) clients: Clients,
    pub(super) connections: Mutex<BTreeMap<u64, Arc<Connection>>>,
    pub(super) last_connection: AtomicU64,
    pub(super) open: watch::Receiver<Option<OpenSession>>,
    pub(super) steward: Steward,
    /// The network, as far as its own state is asked for.
    pub(super) endpoint: Arc<QuicEndpoint>,
    /// A fence may be wanted, or something is new about one.
    pub(super) fences: Notify,
    /// What this node has tried about fences.
    pub(super) attempts: Attempts,
    /// By which targets know this node.
    pub(super) credentials: Credentials,
    trouble: Mutex<Trouble>,
}

#[derive(Debug, Default)]
struct Trouble {
    why: Option<String>,
    said: Option<Instant>,
}

/// What a [`Core`] is made of.
pub(super) struct Parts {
    pub(super) cluster: Cluster,
    pub(super) node: NodeName,
    pub(super) rules: Rules,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
    pub(super) boot: BootId,
    pub(super) route: Route,
    pub(super) page: LeasePage,
    pub(super) nonce: NonceFile,
    pub(super) open: watch::Receiver<Option<OpenSession>>,
    pub(super) endpoint: Arc<QuicEndpoint>,
    pub(super) credentials: Credentials,
}

impl Core {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts {
            cluster,
            node,
            rules,
            clock,
            random,
            boot,
            route,
            page,
            nonce,
            open,
            endpoint,
            credentials,
        } = parts;
        Self {
            cluster,
            node,
            rules,
            clock,
            random,
            boot,
            route,
            page,
            nonce,
            open,
            endpoint,
            clients: Clients::default(),
            connections: Mutex::default(),
            last_connection: AtomicU64::new(0),
            steward: Steward::default(),
            fences: Notify::new(),
            attempts: Attempts::default(),
            credentials,
            trouble: Mutex::default(),
        }
    }

    /// The session; waits for one as long as the patience goes.
    pub(super) async fn session(&self, patience: Option<Duration>) -> Result<OpenSession, Failure> {
        self.session_after(None, patience).await
    }

    /// The same, and not `over`, which has ended.
    pub(super) async fn session_after(
        &self,
        over: Option<SessionId>,
        patience: Option<Duration>,
    ) -> Result<OpenSession, Failure> {
        let mut open = self.open.clone();
        let opened = async {
            let is_next =
                |open: &Option<OpenSession>| open.as_ref().is_some_and(|open| over != Some(open.session));
            let session = open.wait_for(is_next).await;
            session.ok().and_then(|session| session.clone())
        };
        let opened = match patience {
            Some(patience) => tokio::time::timeout(patience, opened).await.unwrap_or(None),
            None => opened.await,
        };
        opened.ok_or_else(|| {
            Failure::NoQuorum(self.trouble().unwrap_or_else(|| "this node has no session yet".to_owned()))
        })
    }

    /// The session as it is now.
    pub(super) fn session_now(&self) -> Option<OpenSession> {
        self.open.borrow().clone()
    }

    /// Notes what is wrong, and says it now and then.
    pub(super) fn say(&self, why: &str) {
        let mut trouble = self.trouble.lock();
        let due = trouble.said.is_none_or(|said| said.elapsed() >= REMINDER);
        trouble.why = Some(why.to_owned());
        if due {
            trouble.said = Some(Instant::now());
            drop(trouble);
            tracing::warn!("{why}");
        }
    }

    /// Nothing is wrong any more.
    pub(super) fn fine(&self) {
        let mut trouble = self.trouble.lock();
        if trouble.why.take().is_some() {
            tracing::info!("the cluster answers again");
        }
    }

    /// What is wrong at the moment.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().why.clone()
    }

    /// L10: tells the cluster when the process of a client is proven dead. A process of an earlier start of the machine
    /// is.
    pub(super) fn watch_process(
        self: &Arc<Self>,
        session: SessionId,
        client: ClientId,
        process: Option<Incarnation>,
    ) {
        let core = Arc::clone(self);
        tokio::spawn(async move {
            if let Some(process) = process {
                death_of(process).await;
            }
            core.client_gone(session, client);
        });
    }

    /// The client has ended: its resources become free by and by.
    pub(super) fn client_gone(self: &Arc<Self>, session: SessionId, client: ClientId) {
        let core = Arc::clone(self);
        tokio::spawn(async move {
            let is_current = || core.session_now().is_none_or(|open| open.session == session);
            while core.clients.has(client) && is_current() {
                let command = Command::ClientGone { session, client };
                match core.route.propose(&command, Some(Duration::from_secs(5))).await {
                    Ok(Reply::Done | Reply::Refused(Refusal::SessionEnded(_) | Refusal::ClientEnded(_))) => {
                        tracing::info!(%client, "the client's process has ended");
                        core.clients.remove(client);
                        core.fences.notify_one();
                        return;
                    }
                    Ok(other) => core.say(&format!("the end of {client} is not taken: {other:?}")),
                    Err(failure) => core.say(&failure.to_string()),
                }
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    /// L11: after lockd was started, says which clients have not come back. Those that are dead go by L10; the others are
    /// watched, and may come yet.
    pub(super) fn expect_returns(self: &Arc<Self>, session: SessionId) {
        let core = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(RETURN).await;
            for (client, process) in core.clients.missing(session) {
                let process =
                    process.map_or_else(|| "an earlier boot".to_owned(), |process| process.to_string());
                tracing::warn!(%client, %process, "the client has not registered again; it is freed when it is dead");
            }
        });
    }
}
