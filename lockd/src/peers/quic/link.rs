//! Our side towards one node: keeps a connection to it, and sends requests over it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::contact::Contact;
use super::outbound::{Answer, Outbound};
use super::rooms::{Limits, Rooms};
use super::status::{PeerState, PeerStatus};
use super::transport::Failure;
use crate::ids::NodeName;
use crate::peers::{Channel, FRAME_MAX, PeerError};

/// Our side towards one node.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) node: NodeName,
    pub(super) address: SocketAddr,
    pub(super) state: watch::Sender<LinkState>,
    pub(super) contact: Arc<Contact>,
    /// Somebody asks, and there is no connection.
    pub(super) demand: Notify,
    /// The node is there: it has connected to us.
    pub(super) nudge: Notify,
    limits: Limits,
    rooms: Rooms,
    in_flight: AtomicUsize,
    requests: AtomicU64,
    failures: AtomicU64,
}

/// How the connection is.
#[derive(Clone, Debug)]
pub(super) enum LinkState {
    Unused,
    /// A connection is being made; why there is none since the last attempt.
    Connecting(Option<Failure>),
    Up(Arc<Outbound>),
    Down(Failure),
    Stopped,
}

/// Counts a request while it lives; it has failed unless it says otherwise.
struct Counted<'a> {
    link: &'a Link,
    succeeded: bool,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.link.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.link.failures.fetch_add(u64::from(!self.succeeded), Ordering::Relaxed);
    }
}

impl Link {
    pub(super) fn new(node: NodeName, address: SocketAddr, limits: Limits) -> Self {
        Self {
            node,
            address,
            state: watch::Sender::new(LinkState::Unused),
            contact: Arc::new(Contact::new()),
            demand: Notify::new(),
            nudge: Notify::new(),
            limits,
            rooms: Rooms::new(limits),
            in_flight: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn request(
        &self,
        channel: Channel,
        mut frame: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        let deadline = Instant::now() + within;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut counted = Counted { link: self, succeeded: false };

        let node = || self.node.clone();
        let room = timeout_at(deadline, self.rooms.enter(channel, frame.len())).await;
        let Ok(_place) = room else {
            return Err(PeerError::Busy { node: node(), channel, limit: self.limits.requests, within });
        };
        loop {
            let outbound = self.connected(deadline, within).await?;
            let timed_out = || PeerError::TimedOut { node: node(), within };
            match timeout_at(deadline, outbound.ask(channel, frame)).await {
                Err(_) => return Err(timed_out()),
                Ok(Err(back)) => {
                    // Lost before it was sent: wait until the link has noticed, then for the next connection.
                    frame = back;
                    let mut state = self.state.subscribe();
                    let noticed = state.wait_for(
                        |state| !matches!(state, LinkState::Up(now) if Arc::ptr_eq(now, &outbound)),
                    );
                    if timeout_at(deadline, noticed).await.is_err() {
                        let why = "the connection was lost just now".to_owned();
                        return Err(PeerError::Unreachable { node: node(), within, why });
                    }
                }
                Ok(Ok(asked)) => {
                    return match timeout_at(deadline, asked.answer()).await {
                        Err(_) => Err(timed_out()),
                        Ok(Some(Answer::Reply(reply))) => {
                            counted.succeeded = true;
                            Ok(reply)
                        }
                        Ok(Some(Answer::NotServed(why))) => Err(PeerError::NotServed { node: node(), why }),
                        Ok(Some(Answer::TooLarge(length))) => {
                            Err(PeerError::TooLarge { node: node(), length, limit: FRAME_MAX })
                        }
                        Ok(None) => Err(PeerError::Lost { node: node(), why: loss(&outbound) }),
                    };
                }
            }
        }
    }

    /// The connection, as soon as there is one.
    async fn connected(&self, deadline: Instant, within: Duration) -> Result<Arc<Outbound>, PeerError> {
        let mut state = self.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                LinkState::Up(outbound) => return Ok(outbound.clone()),
                LinkState::Stopped => return Err(PeerError::Stopped),
                LinkState::Down(Failure { why, refused: true }) => {
                    return Err(PeerError::Refused { node: self.node.clone(), why: why.clone() });
                }
                LinkState::Unused | LinkState::Connecting(_) | LinkState::Down(_) => {}
            }
            self.demand.notify_one();
            if timeout_at(deadline, state.changed()).await.is_err() {
                let why = match &*self.state.borrow() {
                    LinkState::Down(failure) | LinkState::Connecting(Some(failure)) => failure.why.clone(),
                    _ => "it does not answer".to_owned(),
                };
                return Err(PeerError::Unreachable { node: self.node.clone(), within, why });
            }
        }
    }

    /// Requests that wait for room, for the connection or for their answer.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn status(&self, asks_us: bool) -> PeerStatus {
        let link_state = self.state.borrow().clone();
        let state = match &link_state {
            LinkState::Unused => PeerState::Unused,
            LinkState::Up(_) => PeerState::Connected,
            LinkState::Stopped => PeerState::Stopped,
            LinkState::Connecting(None) => PeerState::Connecting,
            LinkState::Down(failure) | LinkState::Connecting(Some(failure)) if failure.refused => {
                PeerState::Refused(failure.why.clone())
            }
            LinkState::Down(failure) | LinkState::Connecting(Some(failure)) => {
                PeerState::Unreachable(failure.why.clone())
            }
        };
        let outbound = match &link_state {
            LinkState::Up(outbound) => Some(outbound),
            _ => None,
        };
        PeerStatus {
            node: self.node.clone(),
            address: self.address,
            state,
            asks_us,
            last_contact: self.contact.ago(),
            round_trip: outbound.map(|outbound| outbound.connection.rtt()),
            version: outbound.map(|outbound| outbound.version),
            incarnation: outbound.map(|outbound| outbound.incarnation),
            in_flight: self.in_flight(),
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

fn loss(outbound: &Outbound) -> String {
    let reason = outbound.connection.close_reason();
    reason.map_or("its stream ended".to_owned(), |reason| super::transport::explain(&reason, &[]).why)
}
