//! A link through a peer: requests on their way to the host.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use lockd::clock::BootTime;
use lockd::ids::NodeName;
use lockd::peers::{Channel, PeerError};
use parking_lot::Mutex;

use super::KEPT_AT_MOST;
use super::way::Traveller;
use super::wire::{self, Answer, Question, Seat, What};
use crate::ghosts::Executor;
use crate::lun::Outcome;
use crate::paths::latency::Latency;
use crate::paths::request::{Command, Request};
use crate::paths::way::{self, Abilities, Drained, Events, Instance, Link};

/// The pause before a request is sent again that came too late.
const AGAIN: Duration = Duration::from_millis(50);

/// What a link is made of.
pub(super) struct Start {
    pub to: NodeName,
    pub traveller: Arc<Traveller>,
    pub number: u64,
    pub seat: Seat,
    /// The host's clock in its welcome.
    pub stamp: u64,
    pub drained: bool,
    pub target: Option<Instance>,
    pub abilities: Abilities,
    pub events: Arc<dyn Events>,
}

/// Requests to one host.
pub(super) struct PeerLink {
    to: NodeName,
    traveller: Arc<Traveller>,
    number: u64,
    seat: Seat,
    drained: Drained,
    target: Option<Instance>,
    abilities: Abilities,
    events: Arc<dyn Events>,
    flight: Mutex<Flight>,
    latency: Latency,
    me: Weak<Self>,
}

struct Flight {
    open: bool,
    last: u64,
    requests: HashMap<u64, Sent>,
    /// Requests that came too late, or have no lease at the moment.
    late: Vec<Request>,
    /// Somebody sends those again.
    again: bool,
    /// The host's clock in an answer, and when that had come.
    exchange: (u64, BootTime),
}

struct Sent {
    request: Request,
    at: BootTime,
}

/// Waits for an answer. The runtime drops it when it ends: then none comes any more.
struct Waits {
    link: Weak<PeerLink>,
    id: u64,
}

impl Waits {
    fn answered(&self, reply: Result<Vec<u8>, PeerError>) {
        if let Some(link) = self.link.upgrade() {
            way::while_completing(|| link.answered(self.id, reply));
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.answered(Err(PeerError::Stopped));
    }
}

impl fmt::Debug for PeerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (to, number, seat) = (&self.to, self.number, self.seat);
        write!(f, "PeerLink({to}, {number}, {seat:?})")
    }
}

impl PeerLink {
    pub(super) fn start(start: Start) -> Arc<Self> {
        let Start { to, traveller, number, seat, stamp, drained, target, abilities, events } = start;
        // The answer has come by now, and the host's clock was read before it came.
        let exchange = (stamp, traveller.clock.boot());
        let (requests, late) = (HashMap::new(), Vec::new());
        let flight = Mutex::new(Flight { open: true, last: 0, requests, late, again: false, exchange });
        let drained = if drained { Drained::ThisInstance } else { Drained::Unproven };
        Arc::new_cyclic(|me| Self {
            to,
            traveller,
            number,
            seat,
            drained,
            target,
            abilities,
            events,
            flight,
            latency: Latency::default(),
            me: Weak::clone(me),
        })
    }

    /// Until when the host may execute a request, by our clock (R1); none: not now.
    fn deadline(&self, request: &Request, now: BootTime) -> Option<BootTime> {
        let most = now.after(KEPT_AT_MOST);
        if request.changes().is_none() {
            return Some(most);
        }
        let lease = self.traveller.lease.deadline();
        let deadline = most.min(lease);
        (deadline > now).then_some(deadline)
    }

    /// The bytes of `request` on the wire.
    fn frame(&self, request: &Request, exchange: (u64, BootTime), deadline: BootTime) -> Vec<u8> {
        let (what, data) = match &request.command {
            Command::Read(offset, buffer, _) => {
                let length = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
                (What::Read { offset: *offset, length }, None)
            }
            Command::Write(offset, data, fua, _) => (What::Write { offset: *offset, fua: *fua }, Some(data)),
            Command::Flush(_) => (What::Flush, None),
            Command::Zero(range, _) => (What::Zero { start: range.start, end: range.end }, None),
            Command::Trim(range, _) => (What::Trim { start: range.start, end: range.end }, None),
        };
        let left = u64::try_from(deadline.since(exchange.1).as_nanos()).unwrap_or(u64::MAX);
        let (who, link, seat, stamp) = (self.traveller.who, self.number, self.seat, exchange.0);
        let question = Question::Do { who, link, seat, stamp, left, what };
        let mut frame = wire::encode(&question, data.map_or(0, |data| data.len()));
        if let Some(data) = data {
            frame.extend_from_slice(data);
        }
        frame
    }

    fn send(&self, request: Request) -> Result<(), Box<Request>> {
        let now = self.traveller.clock.boot();
        let exchange = {
            let flight = self.flight.lock();
            if !flight.open {
                return Err(Box::new(request));
            }
            flight.exchange
        };
        let Some(deadline) = self.deadline(&request, now) else {
            self.put_off(request);
            return Ok(());
        };
        let frame = self.frame(&request, exchange, deadline);
        let id = {
            let mut flight = self.flight.lock();
            if !flight.open {
                return Err(Box::new(request));
            }
            flight.last += 1;
            let id = flight.last;
            flight.requests.insert(id, Sent { request, at: now });
            id
        };
        let Traveller { peers, runtime, hold, .. } = &*self.traveller;
        let asked = peers.request(&self.to, Channel::Block, frame, *hold);
        let waits = Waits { link: Weak::clone(&self.me), id };
        runtime.spawn(async move {
            let reply = asked.await;
            waits.answered(reply);
        });
        Ok(())
    }

    /// Sends `request` a little later: the host would not execute it now.
    fn put_off(&self, request: Request) {
        let mut flight = self.flight.lock();
        if !flight.open {
            drop(flight);
            return self.events.lost("the link is closed", Vec::new(), vec![request]);
        }
        flight.late.push(request);
        if std::mem::replace(&mut flight.again, true) {
            return;
        }
        drop(flight);
        let me = Weak::clone(&self.me);
        self.traveller.runtime.spawn(async move {
            tokio::time::sleep(AGAIN).await;
            if let Some(me) = me.upgrade() {
                way::while_completing(|| me.send_again());
            }
        });
    }

    fn send_again(&self) {
        if self.traveller.lease.has_ended() {
            return self.break_with("the session of this node has ended", None, None);
        }
        let late = {
            let mut flight = self.flight.lock();
            flight.again = false;
            std::mem::take(&mut flight.late)
        };
        for request in late {
            if let Err(request) = self.send(request) {
                self.events.lost("the link is closed", Vec::new(), vec![*request]);
            }
        }
    }

    /// The host has answered the request `id`, or will not.
    fn answered(&self, id: u64, reply: Result<Vec<u8>, PeerError>) {
        let now = self.traveller.clock.boot();
        // If it is not there any more, the link was closed, and the request has been given back.
        let taken = {
            let mut flight = self.flight.lock();
            let sent = flight.requests.remove(&id);
            if let Some(sent) = &sent {
                self.latency.record(now.since(sent.at));
            }
            sent
        };
        let Some(Sent { mut request, .. }) = taken else { return };
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) if error.was_surely_not_executed() => {
                return self.break_with(&error.to_string(), None, Some(request));
            }
            Err(error) => return self.break_with(&error.to_string(), Some(request), None),
        };
        let (answer, data) = match wire::decode::<Answer>(&reply) {
            Ok(decoded) => decoded,
            Err(error) => return self.break_with(&error.to_string(), Some(request), None),
        };
        match answer {
            Answer::Done { stamp } => {
                if let Command::Read(_, buffer, _) = &mut request.command {
                    if buffer.len() != data.len() {
                        let why = format!("{} bytes came for a read of {}", data.len(), buffer.len());
                        return self.break_with(&why, Some(request), None);
                    }
                    buffer.copy_from_slice(data);
                }
                self.exchanged(stamp, now);
                self.events.ended(request, Outcome::Done);
            }
            Answer::Failed { stamp, errno } => {
                self.exchanged(stamp, now);
                self.events.ended(request, Outcome::Failed(errno.max(1)));
            }
            Answer::Late { stamp } => {
                self.exchanged(stamp, now);
                self.put_off(request);
            }
            Answer::Over { why } => self.break_with(&why, None, Some(request)),
            Answer::Unknown => self.break_with("the peer has lost its path", Some(request), None),
            Answer::Welcome { .. } => self.break_with("the peer welcomes who is there", Some(request), None),
        }
    }

    /// The host's clock was `stamp` before `now`.
    fn exchanged(&self, stamp: u64, now: BootTime) {
        let mut flight = self.flight.lock();
        if stamp > flight.exchange.0 {
            flight.exchange = (stamp, now);
        }
    }

    /// Closes the link, because of `why`. Of `sent` nobody knows whether it was executed; `unsent` was not.
    fn break_with(&self, why: &str, sent: Option<Request>, unsent: Option<Request>) {
        let (was_open, others, late) = {
            let mut flight = self.flight.lock();
            let was_open = std::mem::replace(&mut flight.open, false);
            (was_open, std::mem::take(&mut flight.requests), std::mem::take(&mut flight.late))
        };
        if !was_open && sent.is_none() && unsent.is_none() {
            return;
        }
        let sent = sent.into_iter().chain(others.into_values().map(|sent| sent.request)).collect();
        let unsent = unsent.into_iter().chain(late).collect();
        self.events.lost(why, sent, unsent);
    }
}

impl Link for PeerLink {
    fn submit(&self, request: Request) -> Result<(), Box<Request>> {
        self.send(request)
    }

    fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    fn drained(&self) -> Drained {
        self.drained
    }

    fn connections(&self) -> usize {
        1
    }

    fn oldest(&self) -> Option<BootTime> {
        self.flight.lock().requests.values().map(|sent| sent.at).min()
    }

    fn p999(&self) -> Option<Duration> {
        Latency::p999([&self.latency].into_iter())
    }

    fn latencies(&self) -> Vec<(Duration, u64)> {
        Latency::classes([&self.latency].into_iter())
    }

    fn executor(&self) -> Option<Executor> {
        Some(Executor::Peer(self.seat.host))
    }

    fn drained_at(&self) -> Option<Instance> {
        self.target
    }

    fn kept_at_most(&self) -> Duration {
        KEPT_AT_MOST
    }

    fn close(&self, why: &str) {
        self.break_with(why, None, None);
    }
}
