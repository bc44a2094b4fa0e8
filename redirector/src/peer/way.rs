//! The way through a peer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockd::clock::Clock;
use lockd::ids::{ClientId, NodeName};
use lockd::lease::Lease;
use lockd::peers::{Channel, PeerError, Peers};
use tokio::runtime::Handle;

use super::link::{PeerLink, Start};
use super::wire::{self, Answer, Question, Who};
use crate::lun::Proof;
use crate::open::OpenError;
use crate::paths::way::{Abilities, Credentials, Events, Link, Purpose, Way};

/// How long a host may take to welcome somebody; for as long as half of it it waits for what came by earlier links.
pub(super) const WELCOME: Duration = Duration::from_secs(1);

/// What all ways through peers have in common.
pub struct Traveller {
    /// The other nodes.
    pub peers: Arc<dyn Peers>,
    /// Where the requests to them wait.
    pub runtime: Handle,
    /// For whom they are.
    pub who: Who,
    /// By what the target knows this client.
    pub known_as: Credentials,
    /// The lease of that session: a change is executed only under it.
    pub lease: Arc<Lease>,
    /// The clock of the lease.
    pub clock: Arc<dyn Clock>,
    /// How long I/O is held.
    pub hold: Duration,
    /// Whether a mount of the volume lives on a node, as far as is known without asking it.
    pub lives: Box<dyn Fn(&NodeName) -> bool + Send + Sync>,
}

impl fmt::Debug for Traveller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traveller").field("who", &self.who).finish_non_exhaustive()
    }
}

/// The way through one peer.
#[derive(Debug)]
pub struct PeerWay {
    to: NodeName,
    traveller: Arc<Traveller>,
    last_link: AtomicU64,
}

impl PeerWay {
    /// The way through the node `to`.
    #[must_use]
    pub fn new(to: NodeName, traveller: Arc<Traveller>) -> Self {
        Self { to, traveller, last_link: AtomicU64::new(0) }
    }

    fn unreachable(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OpenError {
        OpenError::NoPeer { node: self.to.to_string(), why: source.into().to_string() }
    }

    fn ask(&self, question: &Question) -> Result<Answer, OpenError> {
        let Traveller { peers, runtime, .. } = &*self.traveller;
        let frame = wire::encode(question, 0);
        let (sender, answered) = std::sync::mpsc::sync_channel(1);
        let asked = peers.request(&self.to, Channel::Block, frame, WELCOME);
        runtime.spawn(async move {
            // Whoever asked waits.
            let _ = sender.send(asked.await);
        });
        // The runtime drops the request when it ends.
        let reply = answered.recv().unwrap_or(Err(PeerError::Stopped));
        let reply = reply.map_err(|error| match error {
            // Its words say what is the matter without naming the node again.
            PeerError::NotServed { why, .. } => self.unreachable(why),
            other => self.unreachable(other),
        })?;
        wire::decode::<Answer>(&reply).map(|(answer, _)| answer).map_err(|error| self.unreachable(error))
    }
}

impl Way for PeerWay {
    fn connect(&self, purpose: Purpose, events: Arc<dyn Events>) -> Result<Arc<dyn Link>, OpenError> {
        if !(self.traveller.lives)(&self.to) {
            return Err(self.unreachable("no mount of the volume lives there"));
        }
        let number = (purpose != Purpose::Probe).then(|| self.last_link.fetch_add(1, Ordering::Relaxed) + 1);
        let known_as = (purpose == Purpose::Again).then_some(self.traveller.known_as);
        match self.ask(&Question::Hello { who: self.traveller.who, link: number, known_as })? {
            Answer::Welcome { seat, stamp, drained, target, abilities } => Ok(PeerLink::start(Start {
                to: self.to.clone(),
                traveller: Arc::clone(&self.traveller),
                number: number.unwrap_or(0),
                seat,
                stamp,
                drained,
                target,
                abilities: Abilities::from(&abilities),
                events,
            })),
            Answer::Over { why } => Err(self.unreachable(why)),
            other => Err(self.unreachable(format!("it welcomes by {other:?}"))),
        }
    }

    fn prove_ended(&self, _earlier: ClientId) -> Proof {
        Proof::Unprovable
    }

    fn name(&self) -> String {
        format!("peer {}", self.to)
    }

    fn through(&self) -> Option<&NodeName> {
        Some(&self.to)
    }
}
