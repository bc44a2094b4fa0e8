//! Who may use the export: connections, the client incarnations behind them, and how both are ended.
//!
//! A connection has a seat from its acceptance until the last request accepted from it is executed or dropped; whoever
//! holds a part of it (its thread, its workers, a fault that delays a write) holds the seat. So *drained* is simple: the
//! seat is free. Nothing here touches a request: a link tells its threads what to do ([`Link::reads`],
//! [`Link::executes`]), and they look before each request.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use lockd::ids::ClientId;
use lockd::random::{Random, SystemRandom};
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::Serialize;

use super::counters::{Counters, Counts, Touched};
use super::ended::{Ended, EndedError, ListId};
use super::socket::Socket;

/// How many client incarnations are remembered. Beyond it, the one that came first and is not connected is forgotten,
/// with its cookie and its counters; never one that has been ended.
const CLIENTS_MAX: usize = 1024;

/// A random id of one run of the target; another one means that unflushed writes may be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    fn random() -> Self {
        let mut bytes = [0; 16];
        SystemRandom.fill(&mut bytes);
        Self(bytes)
    }
}

impl std::fmt::Display for BootId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

const OPEN: u8 = 0;
const LEAVING: u8 = 1;
const CLOSED: u8 = 2;

/// A connection as others see it.
#[derive(Debug)]
pub(super) struct Link {
    /// Connections are numbered as they are accepted.
    number: u64,
    socket: Arc<Socket>,
    since: Instant,
    state: AtomicU8,
}

impl Link {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn peer(&self) -> &str {
        self.socket.peer()
    }

    /// Whether its thread may take another request from the socket.
    pub(super) fn reads(&self) -> bool {
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// Whether requests that were accepted may still be executed.
    pub(super) fn executes(&self) -> bool {
        self.state.load(Ordering::Acquire) != CLOSED
    }

    /// Takes no more requests; those accepted are executed and answered.
    pub(super) fn leave(&self) {
        let _ = self.state.compare_exchange(OPEN, LEAVING, Ordering::AcqRel, Ordering::Acquire);
        self.socket.shut_read();
    }

    /// Takes no more requests and drops those not begun.
    pub(super) fn close(&self) {
        self.state.store(CLOSED, Ordering::Release);
        self.socket.shut();
    }

    /// Closes the socket as a lost network would; what was accepted is executed.
    pub(super) fn cut(&self) {
        let _ = self.state.compare_exchange(OPEN, LEAVING, Ordering::AcqRel, Ordering::Acquire);
        self.socket.shut();
    }
}

/// A connection's place in the books, given back when the last holder drops it.
#[derive(Debug)]
pub(super) struct Seat {
    link: Link,
    admission: Arc<Admission>,
}

impl Seat {
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    pub(super) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.admission.books.lock().seats.remove(&self.link.number);
        self.admission.changed.notify_all();
    }
}

/// Why a client is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// It was ended or fenced.
    #[error("client {0} has been ended: it is refused for good")]
    Ended(ClientId),
    /// Another process took its id.
    #[error("client {0} shows another cookie than its first")]
    OtherCookie(ClientId),
    /// A connection says hello twice.
    #[error("this connection said hello before")]
    Again,
    /// A connection that was made before the client's last drain: its client has given it up.
    #[error("client {0} has drained its connections since this one was made")]
    Superseded(ClientId),
}

/// What a client is told at its hello.
#[derive(Debug)]
pub(super) struct Welcome {
    pub(super) boot: BootId,
    pub(super) counters: Arc<Counters>,
    /// The list of ended clients, if they stay refused after a restart.
    pub(super) list: Option<ListId>,
}

/// What became of an attempt to end a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// It is refused for good and drained.
    Ended,
    /// It is connected; who it is.
    Alive(String),
    /// It is refused for good, but requests of it are still being executed.
    Undrained,
}

#[derive(Debug)]
struct Client {
    cookie: [u8; 16],
    counters: Arc<Counters>,
    /// The number of the connection that made it known.
    first: u64,
    /// Connections older than this were given up by the client.
    drained_before: u64,
}

#[derive(Debug)]
struct Place {
    seat: std::sync::Weak<Seat>,
    client: Option<ClientId>,
}

#[derive(Debug)]
struct Books {
    boot: BootId,
    /// Connections wait while a crash is emulated.
    crashing: bool,
    stopped: bool,
    next: u64,
    seats: HashMap<u64, Place>,
    clients: HashMap<ClientId, Client>,
    ended: Ended,
}

/// The books of the target's connections and clients.
#[derive(Debug)]
pub(super) struct Admission {
    books: Mutex<Books>,
    /// A seat has become free, or a crash is over.
    changed: Condvar,
    /// Held while the list of ended clients is written.
    saving: Mutex<()>,
    anonymous: Arc<Counters>,
    size: u64,
    connections_max: usize,
}

/// A client in the status.
#[derive(Clone, Debug, Serialize)]
pub struct ClientStatus {
    /// The incarnation; none for clients that do not say who they are.
    pub client: Option<u64>,
    /// The peers of its connections.
    pub connections: Vec<String>,
    /// What it has asked for.
    #[serde(flatten)]
    pub counts: Counts,
}

impl Books {
    /// The seats of `client`'s connections. To be dropped when the books are not locked: a seat's last holder locks
    /// them.
    fn seats_of(&self, client: ClientId) -> Vec<Arc<Seat>> {
        let mine = self.seats.values().filter(|place| place.client == Some(client));
        mine.filter_map(|place| place.seat.upgrade()).collect()
    }

    fn numbers_of(&self, client: ClientId) -> Vec<u64> {
        let mine = self.seats.iter().filter(|(_, place)| place.client == Some(client));
        mine.map(|(number, _)| *number).collect()
    }

    fn make_room(&mut self) {
        if self.clients.len() < CLIENTS_MAX {
            return;
        }
        let idle = self.clients.iter().filter(|(id, _)| self.numbers_of(**id).is_empty());
        if let Some(oldest) = idle.min_by_key(|(_, client)| client.first).map(|(id, _)| *id) {
            tracing::warn!(
                client = oldest.0,
                "too many clients; this one's cookie and counters are forgotten"
            );
            self.clients.remove(&oldest);
        }
    }
}

impl Admission {
    pub(super) fn new(ended: Ended, size: u64, connections_max: usize) -> Arc<Self> {
        Arc::new(Self {
            books: Mutex::new(Books {
                boot: BootId::random(),
                crashing: false,
                stopped: false,
                next: 1,
                seats: HashMap::new(),
                clients: HashMap::new(),
                ended,
            }),
            changed: Condvar::new(),
            saving: Mutex::new(()),
            anonymous: Arc::new(Counters::new(size)),
            size,
            connections_max,
        })
    }

    /// A seat for a new connection; `None` when there is none to give. Waits while a crash is emulated.
    pub(super) fn admit(self: &Arc<Self>, socket: Arc<Socket>) -> Option<Arc<Seat>> {
        let mut books = self.books.lock();
        while books.crashing {
            self.changed.wait(&mut books);
        }
        if books.stopped || books.seats.len() >= self.connections_max {
            return None;
        }
        let number = books.next;
        books.next += 1;
        let link = Link { number, socket, since: Instant::now(), state: AtomicU8::new(OPEN) };
        let seat = Arc::new(Seat { link, admission: Arc::clone(self) });
        books.seats.insert(number, Place { seat: Arc::downgrade(&seat), client: None });
        Some(seat)
    }

    /// The counters of all who do not say hello.
    pub(super) fn anonymous(&self) -> Arc<Counters> {
        Arc::clone(&self.anonymous)
    }

    /// Binds a connection to a client incarnation.
    pub(super) fn hello(&self, seat: &Seat, client: ClientId, cookie: [u8; 16]) -> Result<Welcome, Refusal> {
        let mut books = self.books.lock();
        if books.ended.contains(client) {
            return Err(Refusal::Ended(client));
        }
        let number = seat.link.number;
        if books.seats.get(&number).is_some_and(|place| place.client.is_some()) {
            return Err(Refusal::Again);
        }
        let counters = if let Some(known) = books.clients.get(&client) {
            if known.cookie != cookie {
                return Err(Refusal::OtherCookie(client));
            }
            if number < known.drained_before {
                return Err(Refusal::Superseded(client));
            }
            Arc::clone(&known.counters)
        } else {
            books.make_room();
            let counters = Arc::new(Counters::new(self.size));
            let known = Client { cookie, counters: Arc::clone(&counters), first: number, drained_before: 0 };
            books.clients.insert(client, known);
            counters
        };
        if let Some(place) = books.seats.get_mut(&number) {
            place.client = Some(client);
        }
        Ok(Welcome { boot: books.boot, counters, list: books.ended.id() })
    }

    /// Waits until the seats `numbers` are free. False when `patience` ran out.
    fn wait_until_free(
        &self,
        books: &mut MutexGuard<'_, Books>,
        numbers: &[u64],
        patience: Duration,
    ) -> bool {
        let deadline = Instant::now() + patience;
        while numbers.iter().any(|number| books.seats.contains_key(number)) {
            if self.changed.wait_until(books, deadline).timed_out() {
                return !numbers.iter().any(|number| books.seats.contains_key(number));
            }
        }
        true
    }

    /// Closes the connections of `client` that were accepted before `seat`'s, and waits until what was accepted from
    /// them is executed or dropped. Returns whether that is so.
    pub(super) fn drain(
        &self,
        seat: &Seat,
        client: ClientId,
        cookie: [u8; 16],
        patience: Duration,
    ) -> Result<(BootId, bool), Refusal> {
        let mut books = self.books.lock();
        if books.ended.contains(client) {
            return Err(Refusal::Ended(client));
        }
        let number = seat.link.number;
        match books.clients.get_mut(&client) {
            Some(known) if known.cookie != cookie => return Err(Refusal::OtherCookie(client)),
            Some(known) => known.drained_before = known.drained_before.max(number),
            // Never seen by this process: there is nothing to drain.
            None => return Ok((books.boot, true)),
        }
        let mut numbers = books.numbers_of(client);
        numbers.retain(|other| *other < number);
        let seats = books.seats_of(client);
        let boot = books.boot;
        drop(books);
        for earlier in seats.iter().filter(|other| other.link.number < number) {
            earlier.link.close();
        }
        drop(seats);
        let mut books = self.books.lock();
        let drained = self.wait_until_free(&mut books, &numbers, patience);
        Ok((boot, drained))
    }

    /// Refuses `client` for good, unless it is connected and `even_if_alive` is not set; and drains it.
    pub(super) fn end(
        &self,
        client: ClientId,
        even_if_alive: bool,
        patience: Duration,
    ) -> Result<(BootId, Ending), EndedError> {
        let mut books = self.books.lock();
        let boot = books.boot;
        let seats = books.seats_of(client);
        let alive = seats.iter().find(|seat| seat.link.reads());
        if let Some(alive) = alive.filter(|_| !even_if_alive) {
            let link = &alive.link;
            let text = format!(
                "client {} at {}, connected for {} s",
                client.0,
                link.peer(),
                link.since.elapsed().as_secs()
            );
            drop(books);
            return Ok((boot, Ending::Alive(text)));
        }
        // From here on no hello of it is accepted.
        let added = books.ended.add(client);
        let numbers = books.numbers_of(client);
        drop(books);
        added?;
        for seat in &seats {
            seat.link.close();
        }
        drop(seats);
        self.save_ended()?;
        let mut books = self.books.lock();
        let drained = self.wait_until_free(&mut books, &numbers, patience);
        tracing::info!(client = client.0, drained, "refused for good");
        Ok((boot, if drained { Ending::Ended } else { Ending::Undrained }))
    }

    fn save_ended(&self) -> Result<(), EndedError> {
        let _one_at_a_time = self.saving.lock();
        let ended = self.books.lock().ended.clone();
        ended.save()
    }

    fn all_seats(&self) -> Vec<Arc<Seat>> {
        let books = self.books.lock();
        books.seats.values().filter_map(|place| place.seat.upgrade()).collect()
    }

    /// Closes all connections as a lost network would.
    pub(super) fn cut_all(&self) {
        for seat in self.all_seats() {
            seat.link.cut();
        }
    }

    /// Closes all connections, lets no new one in until all are gone, then calls `lose` and takes another boot id.
    pub(super) fn crash(&self, lose: impl FnOnce()) -> BootId {
        self.books.lock().crashing = true;
        for seat in self.all_seats() {
            seat.link.close();
        }
        let mut books = self.books.lock();
        while !books.seats.is_empty() {
            self.changed.wait(&mut books);
        }
        drop(books);
        lose();
        let mut books = self.books.lock();
        books.boot = BootId::random();
        books.crashing = false;
        self.changed.notify_all();
        books.boot
    }

    /// Lets nobody in any more, lets all connections finish what was accepted, and closes those that have not after
    /// `patience`. Returns when all seats are free.
    pub(super) fn stop(&self, patience: Duration) {
        self.books.lock().stopped = true;
        for seat in self.all_seats() {
            seat.link.leave();
        }
        let deadline = Instant::now() + patience;
        loop {
            let mut books = self.books.lock();
            while !books.seats.is_empty() && !self.changed.wait_until(&mut books, deadline).timed_out() {}
            if books.seats.is_empty() {
                return;
            }
            drop(books);
            for seat in self.all_seats() {
                tracing::warn!(peer = seat.link.peer(), "takes no answers; closed");
                seat.link.close();
            }
            let mut books = self.books.lock();
            while !books.seats.is_empty() {
                self.changed.wait(&mut books);
            }
        }
    }

    pub(super) fn boot(&self) -> BootId {
        self.books.lock().boot
    }

    /// The list of ended clients, if it outlives this process.
    pub(super) fn list(&self) -> Option<ListId> {
        self.books.lock().ended.id()
    }

    pub(super) fn ended_count(&self) -> usize {
        self.books.lock().ended.len()
    }

    pub(super) fn connection_count(&self) -> usize {
        self.books.lock().seats.len()
    }

    fn counters_of(&self, client: Option<ClientId>) -> Option<Arc<Counters>> {
        match client {
            None => Some(self.anonymous()),
            Some(client) => self.books.lock().clients.get(&client).map(|known| Arc::clone(&known.counters)),
        }
    }

    /// What `client` (those without a hello, if `None`) has touched of `range`; `None` if it is not known.
    pub(super) fn touched(&self, client: Option<ClientId>, range: &std::ops::Range<u64>) -> Option<Touched> {
        self.counters_of(client).map(|counters| counters.touched(range, self.size))
    }

    /// Forgets which regions were touched, by everyone.
    pub(super) fn forget_touched(&self) {
        let books = self.books.lock();
        self.anonymous.forget_touched();
        for client in books.clients.values() {
            client.counters.forget_touched();
        }
    }

    /// All clients, ordered by their ids, those without a hello first.
    pub(super) fn clients(&self) -> Vec<ClientStatus> {
        let books = self.books.lock();
        let mut peers: HashMap<Option<ClientId>, Vec<String>> = HashMap::new();
        let mut seats = Vec::new();
        for place in books.seats.values() {
            let Some(seat) = place.seat.upgrade() else { continue };
            if seat.link.reads() {
                peers.entry(place.client).or_default().push(seat.link.peer().to_owned());
            }
            seats.push(seat);
        }
        let mut known: Vec<_> = books
            .clients
            .iter()
            .map(|(id, client)| (Some(*id), Arc::clone(&client.counters)))
            .chain([(None, self.anonymous())])
            .collect();
        drop(books);
        drop(seats);
        known.sort_by_key(|(id, _)| *id);
        known
            .into_iter()
            .map(|(id, counters)| ClientStatus {
                client: id.map(|id| id.0),
                connections: peers.remove(&id).unwrap_or_default(),
                counts: counters.counts(),
            })
            .collect()
    }
}
