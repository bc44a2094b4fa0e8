//! A registered client of the node's session.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::connection::ask;
use super::error::ClientError;
use super::link::{Dialogue, Link, LinkUser};
use super::listener::Listener;
use super::locks::LockWaits;
use super::upcalls::Upcalls;
use crate::ids::{ClientId, NodeName, ResourceId, SessionId};
use crate::lease::{BootId, Lease, LeasePage};
use crate::local::frame::FrameError;
use crate::local::message::{Failure, FromLockd, Recipient, Registered, Request, Response, ToLockd};
use crate::local::run_dir::RunDir;
use crate::machine::{
    Answer, ClientInfo, ClientKind, Command, EventKind, FenceMethod, Operation, Query, Reply, Report,
    ResourceInfo, Victim, decode_reply, encode_command,
};
use crate::random::{Random, SystemRandom};
use crate::slots::{SlotAllocator, SlotUse};

/// How a client is registered.
#[derive(Debug)]
pub struct ClientConfig {
    /// The run directory of the node.
    pub run_dir: RunDir,
    /// What the program is.
    pub kind: ClientKind,
    /// How long lockd is waited for at the start; none: for ever.
    pub wait: Option<Duration>,
    /// For how long a command or a question is tried while there is no quorum; none: for ever, which is what a mount
    /// wants.
    pub patience: Option<Duration>,
    /// What the program does when it is told or asked something.
    pub listener: Arc<dyn Listener>,
}

/// What is called with the reply to an operation, once, on the connection's thread: it must not block.
pub(super) type OnReply = Box<dyn FnOnce(Result<Reply, ClientError>) + Send>;

/// A registered client of the node's session: the control plane as a mount or a virtual machine host sees it.
///
/// It is also an [`Authority`](crate::authority::Authority). Dropped without [`LockClient::leave`], its clients stay
/// registered until the process ends, and go by L10 then.
#[derive(Debug)]
pub struct LockClient {
    pub(super) inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) link: Link,
    pub(super) patience: Option<Duration>,
    pub(super) waits: LockWaits,
    pub(super) upcalls: Upcalls,
    me: Weak<Inner>,
    kind: ClientKind,
    run_dir: RunDir,
    listener: Arc<dyn Listener>,
    first: OnceLock<First>,
    clients: Mutex<BTreeMap<ClientId, Member>>,
    watching: AtomicBool,
    ended: AtomicBool,
}

/// What the first registration told.
#[derive(Debug)]
struct First {
    registered: Registered,
    lease: Arc<Lease>,
}

#[derive(Debug)]
struct Member {
    number: u64,
    kind: ClientKind,
    slots: Arc<SlotAllocator>,
}

impl LockClient {
    /// Connects to lockd and registers this process.
    ///
    /// # Errors
    /// If lockd is not there or cannot register it in time, or the lease page cannot be read.
    pub fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let (upcalls, run_upcalls) = Upcalls::new();
        let inner = Arc::new_cyclic(|me| Inner {
            link: Link::new(config.run_dir.socket()),
            patience: config.patience,
            waits: LockWaits::default(),
            upcalls,
            me: Weak::clone(me),
            kind: config.kind,
            run_dir: config.run_dir,
            listener: config.listener,
            first: OnceLock::new(),
            clients: Mutex::default(),
            watching: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let linked = Arc::clone(&inner);
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let threads = vec![
            thread("lockd-link").spawn(move || linked.link.run(&*linked))?,
            thread("lockd-events").spawn(run_upcalls)?,
        ];
        let client = Self { inner, threads };
        client.register_first(config.wait)?;
        Ok(client)
    }

    fn register_first(&self, wait: Option<Duration>) -> Result<(), ClientError> {
        let deadline = wait.map(|wait| Instant::now() + wait);
        while let (Some(trouble), Some(deadline)) = (self.inner.link.trouble(), deadline) {
            if Instant::now() >= deadline {
                return Err(trouble);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let (registered, number) = self.inner.register(self.inner.kind, wait)?;
        let page = self.inner.run_dir.lease_page();
        let boot = BootId::current()?;
        let lease = Arc::new(LeasePage::view(&page, boot, registered.session, registered.line)?);
        self.inner.add_member(registered.client, number, self.inner.kind);
        // Nobody else registers first.
        let _ = self.inner.first.set(First { registered, lease });
        Ok(())
    }

    /// The first client: the one that [`LockClient::connect`] has registered.
    #[must_use]
    pub fn client(&self) -> ClientId {
        self.first().registered.client
    }

    /// What the program is.
    #[must_use]
    pub fn kind(&self) -> ClientKind {
        self.inner.kind
    }

    /// The session of the node, under which the clients live.
    #[must_use]
    pub fn session_id(&self) -> SessionId {
        self.first().registered.session
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.first().registered.node
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.first().registered.cluster
    }

    /// The lease of the session, as lockd shares it: read before each write (L3).
    #[must_use]
    pub fn shared_lease(&self) -> &Arc<Lease> {
        &self.first().lease
    }

    /// Whether the session has ended: nothing can be held any more, and a new [`LockClient`] is needed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.inner.ended.load(Ordering::Acquire)
    }

    fn first(&self) -> &First {
        self.inner.first.get().expect("connect registers before it returns a client")
    }

    /// Registers one more client of this process.
    ///
    /// # Errors
    /// If it cannot be registered.
    pub fn register(&self, kind: ClientKind) -> Result<ClientId, ClientError> {
        let (registered, number) = self.inner.register(kind, self.inner.patience)?;
        if registered.session != self.session_id() {
            return Err(ClientError::SessionEnded(self.session_id()));
        }
        self.inner.add_member(registered.client, number, kind);
        Ok(registered.client)
    }

    /// Ends `client`, which has drained all that it had under way: what it holds is free at once.
    ///
    /// # Errors
    /// If the cluster does not confirm it.
    pub fn leave(&self, client: ClientId) -> Result<(), ClientError> {
        self.operate(client, Operation::Leave).map(drop)?;
        self.inner.remove_member(client);
        Ok(())
    }

    /// Has an operation done, exactly once, and waits for its reply. A refusal is an error.
    ///
    /// # Errors
    /// If it is refused, or its outcome is not known in time.
    pub fn operate(&self, client: ClientId, operation: Operation) -> Result<Reply, ClientError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        // The receiver may have given up.
        self.inner.operate(client, operation, Box::new(move |reply| drop(sender.send(reply))))?;
        let reply = match self.inner.patience {
            Some(patience) => {
                let patience = patience.saturating_add(Duration::from_secs(2));
                let trouble = |_| self.inner.link.trouble().unwrap_or(ClientError::TimedOut(patience));
                receiver.recv_timeout(patience).map_err(trouble)?
            }
            None => receiver.recv().map_err(|_| ClientError::Closed)?,
        };
        refused(reply?)
    }

    /// Asks the state a question; the leader has been confirmed since (L4).
    ///
    /// # Errors
    /// If there is no quorum, or no answer in time.
    pub fn query(&self, query: Query) -> Result<Answer, ClientError> {
        match ask(&self.inner.link, Request::Query(query), self.inner.patience)? {
            Response::Answer(answer) => Ok(answer),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// A resource: who holds it.
    ///
    /// # Errors
    /// As [`LockClient::query`].
    pub fn resource(&self, resource: &ResourceId) -> Result<ResourceInfo, ClientError> {
        match self.query(Query::Resource(resource.clone()))? {
            Answer::Resource(info) => Ok(info),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// The clients of `kind` in the whole cluster.
    ///
    /// # Errors
    /// As [`LockClient::query`].
    pub fn clients_of(&self, kind: ClientKind) -> Result<Vec<ClientInfo>, ClientError> {
        match self.query(Query::Clients)? {
            Answer::Clients(clients) => Ok(clients.into_iter().filter(|info| info.kind == kind).collect()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Registers a volume with the cluster, which a mount does before it acquires anything of it.
    ///
    /// # Errors
    /// If it is refused.
    pub fn register_volume(&self, command: &Command) -> Result<(), ClientError> {
        self.inner.command_once(command).map(drop)
    }

    /// Reports that `victim` was fenced from `volume` on every path (F1).
    ///
    /// # Errors
    /// If it is refused.
    pub fn report_fenced(
        &self,
        volume: crate::ids::VolumeId,
        victim: Victim,
        method: FenceMethod,
    ) -> Result<(), ClientError> {
        let (reporter, report) = (self.session_id(), Report::Fenced { method });
        self.inner.command_once(&Command::FenceReport { volume, victim, reporter, report }).map(drop)
    }

    /// Sends `request` to a program in the cluster and waits for its answer.
    ///
    /// # Errors
    /// If there is no such program, or no answer in time. What was asked for may then have been done.
    pub fn forward(&self, to: Recipient, request: Vec<u8>) -> Result<Vec<u8>, ClientError> {
        match ask(&self.inner.link, Request::Forward { to, request }, self.inner.patience)? {
            Response::Forwarded(answer) => Ok(answer),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// As [`LockClient::forward`], for at most so long.
    ///
    /// # Errors
    /// As [`LockClient::forward`].
    pub fn forward_within(
        &self,
        to: Recipient,
        request: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        match ask(&self.inner.link, Request::Forward { to, request }, Some(within))? {
            Response::Forwarded(answer) => Ok(answer),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Has the listener told of events that concern everyone, from now on.
    ///
    /// # Errors
    /// If lockd does not answer.
    pub fn watch(&self) -> Result<(), ClientError> {
        self.inner.watching.store(true, Ordering::Release);
        ask(&self.inner.link, Request::Watch(true), self.inner.patience).map(drop)
    }
}

impl Drop for LockClient {
    fn drop(&mut self) {
        self.inner.link.close();
        self.inner.upcalls.close();
        let current = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != current) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A refusal as an error.
pub(super) fn refused(reply: Reply) -> Result<Reply, ClientError> {
    match reply {
        Reply::Refused(refusal) => Err(ClientError::Refused(Box::new(refusal))),
        reply => Ok(reply),
    }
}

impl Inner {
    fn register(
        &self,
        kind: ClientKind,
        patience: Option<Duration>,
    ) -> Result<(Registered, u64), ClientError> {
        let number = SystemRandom.number();
        match ask(&self.link, Request::Register { kind, number, known: None }, patience)? {
            Response::Registered(registered) => Ok((registered, number)),
            _ => Err(ClientError::Unexpected),
        }
    }

    fn add_member(&self, client: ClientId, number: u64, kind: ClientKind) {
        self.clients.lock().insert(client, Member { number, kind, slots: SlotAllocator::new() });
    }

    pub(super) fn remove_member(&self, client: ClientId) {
        let member = self.clients.lock().remove(&client);
        if let Some(member) = member {
            member.slots.close();
        }
        self.waits.end_client(client, &self.upcalls);
    }

    fn session(&self) -> SessionId {
        self.first.get().map_or(SessionId::default(), |first| first.registered.session)
    }

    /// A slot for a command of `client`; waits while all are in use.
    pub(super) fn slot(&self, client: ClientId) -> Result<SlotUse, ClientError> {
        if self.ended.load(Ordering::Acquire) {
            return Err(ClientError::SessionEnded(self.session()));
        }
        let slots = self.clients.lock().get(&client).map(|member| Arc::clone(&member.slots));
        let gone = || ClientError::Refused(Box::new(crate::machine::Refusal::ClientEnded(client)));
        Ok(slots.ok_or_else(gone)?.acquire()?)
    }

    /// Has an operation done in a slot; the reply comes by `on_reply`.
    pub(super) fn operate(
        &self,
        client: ClientId,
        operation: Operation,
        on_reply: OnReply,
    ) -> Result<(), ClientError> {
        let slot = self.slot(client)?;
        self.operate_in(slot, client, operation, on_reply)
    }

    pub(super) fn operate_in(
        &self,
        slot: SlotUse,
        client: ClientId,
        operation: Operation,
        on_reply: OnReply,
    ) -> Result<(), ClientError> {
        let command = Command::Client { client, slot: slot.slot(), sequence: slot.sequence(), operation };
        let bytes = match encode_command(&command) {
            Ok(bytes) => bytes,
            Err(error) => {
                slot.unused();
                return Err(error.into());
            }
        };
        self.send_in(slot, bytes, self.patience, on_reply)
    }

    /// Sends a command until its outcome is known: only then is its slot free. Who asked is told earlier, if it would
    /// not wait so long.
    fn send_in(
        &self,
        slot: SlotUse,
        bytes: Vec<u8>,
        patience: Option<Duration>,
        on_reply: OnReply,
    ) -> Result<(), ClientError> {
        let me = Weak::clone(&self.me);
        let again = bytes.clone();
        let on_response = Box::new(move |response: Result<Response, Failure>| match response {
            Ok(Response::Replied(reply)) => {
                slot.answered();
                on_reply(decode_reply(&reply).map_err(ClientError::from));
            }
            Ok(_) => on_reply(Err(ClientError::Unexpected)),
            Err(Failure::NoQuorum(why)) => {
                on_reply(Err(ClientError::NoQuorum(why)));
                if let Some(me) = me.upgrade() {
                    // If this fails, everything is being closed.
                    let _ = me.send_in(slot, again, None, Box::new(|_| ()));
                }
            }
            Err(failure) => on_reply(Err(failure.into())),
        });
        self.link.request(Request::Command(bytes), patience, on_response).map(drop)
    }

    /// A command that may be executed twice.
    fn command_once(&self, command: &Command) -> Result<Reply, ClientError> {
        match ask(&self.link, Request::Command(encode_command(command)?), self.patience)? {
            Response::Replied(reply) => refused(decode_reply(&reply)?),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks a question; the answer comes by `on_answer`, on the connection's thread. A callback that is dropped means that
    /// this client is being closed.
    pub(super) fn query_async(
        &self,
        query: Query,
        on_answer: Box<dyn FnOnce(Result<Answer, ClientError>) + Send>,
    ) {
        let on_response = Box::new(move |response: Result<Response, Failure>| {
            on_answer(match response {
                Ok(Response::Answer(answer)) => Ok(answer),
                Ok(_) => Err(ClientError::Unexpected),
                Err(failure) => Err(failure.into()),
            });
        });
        // If it cannot be asked, the connection is being closed: the callback is dropped without an answer.
        let _ = self.link.request(Request::Query(query), self.patience, on_response);
    }

    fn end(&self, session: SessionId) {
        let Some(first) = self.first.get() else { return };
        if first.registered.session != session || self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        first.lease.end();
        tracing::error!(%session, "the session has ended; nothing is held under it any more");
        let members = std::mem::take(&mut *self.clients.lock());
        for (client, member) in members {
            member.slots.close();
            self.waits.end_client(client, &self.upcalls);
        }
        self.link.fail_commands(&Failure::SessionEnded(session));
        let listener = Arc::clone(&self.listener);
        self.upcalls.call(Box::new(move || listener.session_ended(session)));
    }

    /// After events were lost: looks what became of the lock requests that wait.
    pub(super) fn look_after_waits(&self) {
        for client in self.waits.clients_waiting() {
            let Some(me) = self.me.upgrade() else { return };
            let on_response = Box::new(move |response| {
                if let Ok(Response::Answer(Answer::Locks(locks))) = response {
                    me.waits.reconcile(client, &locks, &me.upcalls);
                }
            });
            // If it cannot be asked, the connection is being closed.
            let _ = self.link.request(Request::Query(Query::ClientLocks(client)), None, on_response);
        }
    }

    fn ask_listener(&self, id: u64, client: ClientId, from: NodeName, request: Vec<u8>) {
        let Some(me) = self.me.upgrade() else { return };
        let served = self.upcalls.ask(Box::new(move || {
            let answer = me.listener.serve(client, &from, &request);
            me.link.tell(&ToLockd::Answer { id, answer });
        }));
        if !served {
            let answer = Err("the program serves too many requests already; try again".to_owned());
            self.link.tell(&ToLockd::Answer { id, answer });
        }
    }

    fn fence(&self, volume: crate::ids::VolumeId, victim: Victim) {
        let Some(me) = self.me.upgrade() else { return };
        // On refusal lockd tells of it again.
        self.upcalls.ask(Box::new(move || {
            me.listener.drain(volume, victim);
            // If it cannot be told, lockd asks again.
            let _ = me.link.request(Request::Drained { volume, victim }, None, Box::new(|_| ()));
        }));
    }
}

impl LinkUser for Inner {
    fn introduce(&self, dialogue: &mut Dialogue<'_>) -> Result<(), FrameError> {
        let session = self.session();
        let members: Vec<_> = {
            let members = self.clients.lock();
            members.iter().map(|(client, member)| (*client, member.kind, member.number)).collect()
        };
        for (client, kind, number) in members {
            let known = Some((session, client));
            match dialogue.ask(Request::Register { kind, number, known })? {
                Ok(Response::Registered(now)) if now.session == session && now.client == client => {}
                Ok(Response::Registered(_)) | Err(Failure::SessionEnded(_)) => {
                    self.end(session);
                    return Ok(());
                }
                Ok(_) => return Err(FrameError::NotOurs),
                Err(failure) => {
                    tracing::warn!(%client, %failure, "lockd does not take this client back yet");
                    return Err(FrameError::Closed(std::io::Error::other(failure.to_string())));
                }
            }
        }
        if self.watching.load(Ordering::Acquire) {
            // What lockd refuses here is tried again with the next connection.
            let _ = dialogue.ask(Request::Watch(true))?;
        }
        if !self.waits.is_empty() {
            let me = self.me.upgrade();
            self.upcalls.call(Box::new(move || {
                if let Some(me) = me {
                    me.look_after_waits();
                }
            }));
        }
        Ok(())
    }

    fn told(&self, message: FromLockd) {
        match message {
            FromLockd::Reply { .. } => {}
            FromLockd::Ask { id, client, from, request } => self.ask_listener(id, client, from, request),
            FromLockd::Events(events) => {
                for event in events {
                    if let EventKind::Lock { ticket, reply } = event.kind {
                        self.waits.decided(ticket, reply, &self.upcalls);
                    } else if self.upcalls.has_room() {
                        let listener = Arc::clone(&self.listener);
                        self.upcalls.call(Box::new(move || listener.event(&event)));
                    }
                }
            }
            FromLockd::Missed => {
                self.look_after_waits();
                let listener = Arc::clone(&self.listener);
                self.upcalls.call(Box::new(move || listener.missed()));
            }
            FromLockd::Fence { volume, victim } => self.fence(volume, victim),
            FromLockd::SessionEnded(session) => self.end(session),
        }
    }
}
