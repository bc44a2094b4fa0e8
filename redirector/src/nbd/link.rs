//! Several connections to one export, used as one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use lockd::clock::{BootTime, Clock};
use parking_lot::{Condvar, Mutex};

use crate::attend;
use crate::nbd::channel::Sending;
use crate::nbd::connection::Connection;
use crate::nbd::handshake::Agreement;
use crate::nbd::post::Post;
use crate::nbd::receiver::Receiver;
use crate::paths::latency::Latency;
use crate::paths::request::Request;
use crate::paths::way::{self, Abilities, Drained, Events, Link};
use crate::plug::{self, Outlet};

/// Requests in flight from which on small ones may be held back.
const BUSY: usize = 4;
/// Bytes of a write that is held back at most: a longer one is worth a system call of its own.
const HELD_DATA_MAX: usize = 32 << 10;

/// Bytes of a write at most that is sent by a thread which must not wait: a socket that takes any takes so many.
const AT_ONCE_MAX: usize = 16 << 10;

/// How long a receiver waits at a time for the rest of a reply.
const REST_TIMEOUT: Duration = Duration::from_millis(20);

/// The connections of one client to one export. When one of them breaks, all are closed.
pub struct NbdLink {
    connections: Vec<Arc<Connection>>,
    /// Who receives on each of them.
    posts: Vec<Arc<Post>>,
    next: AtomicUsize,
    broken: AtomicBool,
    deferred: Mutex<VecDeque<Request>>,
    deferral: Condvar,
    sender_runs: AtomicBool,
    abilities: Abilities,
    drained: Drained,
    events: Arc<dyn Events>,
    clock: Arc<dyn Clock>,
    this: std::sync::Weak<Self>,
}

impl fmt::Debug for NbdLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdLink")
            .field("connections", &self.connections.len())
            .field("broken", &self.broken)
            .field("abilities", &self.abilities)
            .finish_non_exhaustive()
    }
}

impl NbdLink {
    /// Starts the receivers of `agreements`, of which there is at least one; the first tells what the target can do.
    pub fn start(
        agreements: Vec<Agreement>,
        abilities: Abilities,
        drained: Drained,
        events: Arc<dyn Events>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Arc<Self>> {
        let (connections, ciphers): (Vec<_>, Vec<_>) = agreements
            .into_iter()
            .map(|agreed| (Arc::new(Connection::new(agreed.channel, agreed.structured)), agreed.cipher))
            .unzip();
        for connection in &connections {
            connection.channel.socket().set_receive_timeout(REST_TIMEOUT)?;
        }
        let link = Arc::new_cyclic(|this| {
            let post = |(connection, cipher): (&Arc<Connection>, _)| {
                let (events, clock) = (Arc::clone(&events), Arc::clone(&clock));
                let receiver = Receiver::new(Arc::clone(connection), events, clock, cipher);
                Arc::new(Post::new(connection, receiver, this.clone()))
            };
            let posts = connections.iter().zip(ciphers).map(post).collect();
            Self {
                connections,
                posts,
                next: AtomicUsize::new(0),
                broken: AtomicBool::new(false),
                deferred: Mutex::default(),
                deferral: Condvar::new(),
                sender_runs: AtomicBool::new(false),
                abilities,
                drained,
                events,
                clock,
                this: this.clone(),
            }
        });
        for post in &link.posts {
            let (post, of) = (Arc::clone(post), Arc::clone(&link));
            let started = thread::Builder::new().name("nbd-receive".to_owned()).spawn(move || {
                post.serve();
                drop(of);
            });
            if let Err(error) = started {
                link.break_with("no thread", None);
                return Err(error);
            }
        }
        Ok(link)
    }

    /// Closes all connections, because of `why`; `current` is a request whose reply was cut short.
    pub(super) fn break_with(&self, why: &str, current: Option<Request>) {
        let mut sent: Vec<_> = current.into_iter().collect();
        let mut unsent = VecDeque::new();
        if !self.broken.swap(true, Ordering::AcqRel) {
            for connection in &self.connections {
                connection.channel.socket().shutdown();
            }
            for connection in &self.connections {
                sent.extend(connection.flight().close());
                connection.notify();
            }
            self.posts.iter().for_each(|post| post.has_broken());
            unsent = std::mem::take(&mut *self.deferred.lock());
            self.deferral.notify_all();
        } else if sent.is_empty() {
            return;
        }
        self.events.lost(why, sent, unsent.into());
    }

    fn send(&self, request: Request) -> Result<(), Box<Request>> {
        let (index, mut sending) = self.turn(request.data_len().max(request.read_len()) > HELD_DATA_MAX);
        let sent = self.connections[index].submit(&mut sending, request, self.clock.boot());
        self.posts[index].has_sent();
        sent
    }

    /// The next connection, and the right to send on it: the one that this thread attends, if any, for what is not
    /// `large`. Another one on which somebody is sending is passed over, once round.
    fn turn(&self, large: bool) -> (usize, Sending<'_>) {
        // No other link gets this address as long as somebody attends one of ours: its post refers to us.
        let owner = std::ptr::from_ref(self).addr();
        if !large && let Some(index) = attend::choose(owner, &self.posts) {
            return (index, self.connections[index].channel.sending());
        }
        let count = self.connections.len();
        // One request at a time stays on one connection: its threads, here and at the server, are warm.
        let first = if count == 1 || self.connections[0].flight().is_empty() {
            0
        } else {
            self.next.fetch_add(1, Ordering::Relaxed) % count
        };
        for step in 0..count {
            let index = (first + step) % count;
            if let Some(sending) = self.connections[index].channel.try_sending() {
                return (index, sending);
            }
        }
        (first, self.connections[first].channel.sending())
    }

    /// Whether so much is in flight that a small request may wait for others to be sent with it.
    fn is_busy(&self) -> bool {
        let mut in_flight = 0;
        self.connections.iter().any(|connection| {
            in_flight += connection.flight().len();
            in_flight >= BUSY
        })
    }

    /// Sends a request if that needs no waiting, neither for room nor for somebody else who is sending.
    fn send_at_once(&self, request: Request) -> Result<(), Box<Request>> {
        if request.data_len() <= AT_ONCE_MAX {
            for (connection, post) in self.connections.iter().zip(&self.posts) {
                let Some(mut sending) = connection.channel.try_sending() else { continue };
                if connection.takes_at_once(&sending) {
                    let sent = connection.submit(&mut sending, request, self.clock.boot());
                    post.has_sent();
                    return sent;
                }
            }
        }
        Err(Box::new(request))
    }

    /// Hands a request to the sender thread, so that the submitting thread does not wait.
    fn defer(&self, request: Request) -> Result<(), Box<Request>> {
        {
            let mut deferred = self.deferred.lock();
            if self.broken.load(Ordering::Acquire) {
                return Err(Box::new(request));
            }
            deferred.push_back(request);
        }
        if !self.sender_runs.swap(true, Ordering::AcqRel)
            && let Some(link) = self.this.upgrade()
        {
            let started =
                thread::Builder::new().name("nbd-send".to_owned()).spawn(move || link.send_deferred());
            if let Err(error) = started {
                self.break_with(&format!("no thread to send with: {error}"), None);
            }
            return Ok(());
        }
        self.deferral.notify_one();
        Ok(())
    }

    fn send_deferred(&self) {
        loop {
            let request = {
                let mut deferred = self.deferred.lock();
                loop {
                    if let Some(request) = deferred.pop_front() {
                        break request;
                    }
                    if self.broken.load(Ordering::Acquire) {
                        return;
                    }
                    self.deferral.wait(&mut deferred);
                }
            };
            if let Err(request) = self.send(request) {
                self.events.lost("the connection is closed", Vec::new(), vec![*request]);
            }
        }
    }
}

impl Outlet for NbdLink {
    fn send_held(&self, requests: Vec<Request>) {
        let unsent = {
            let (index, mut sending) = self.turn(false);
            let unsent = self.connections[index].submit_all(&mut sending, requests, self.clock.boot());
            self.posts[index].has_sent();
            unsent
        };
        if !unsent.is_empty() {
            self.events.lost("the connection is closed", Vec::new(), unsent);
        }
    }
}

impl Link for NbdLink {
    fn submit(&self, request: Request) -> Result<(), Box<Request>> {
        if way::completing() {
            return self.send_at_once(request).or_else(|request| self.defer(*request));
        }
        if request.data_len() > HELD_DATA_MAX || !(plug::is_together() || self.is_busy()) {
            return self.send(request);
        }
        let Some(this) = self.this.upgrade() else { return self.send(request) };
        match plug::hold(&this, request) {
            None => Ok(()),
            Some(back) => self.send(back),
        }
    }

    fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    fn drained(&self) -> Drained {
        self.drained
    }

    fn connections(&self) -> usize {
        self.connections.len()
    }

    fn oldest(&self) -> Option<BootTime> {
        self.connections.iter().filter_map(|connection| connection.flight().oldest()).min()
    }

    fn p999(&self) -> Option<Duration> {
        Latency::p999(self.connections.iter().map(|connection| &connection.latency))
    }

    fn latencies(&self) -> Vec<(Duration, u64)> {
        Latency::classes(self.connections.iter().map(|connection| &connection.latency))
    }

    fn close(&self, why: &str) {
        if self.oldest().is_none() {
            for connection in &self.connections {
                connection.disconnect();
            }
        }
        self.break_with(why, None);
    }
}
