//! The clients that have attached: how to call them back, and what is waited for from them.
//!
//! Calls to one client go one after the other; what has to be invalidated meanwhile gathers for the next. A call is
//! repeated until it is answered, or until the client's session has ended: then nothing that it has cached is answered
//! any more (V9), and it is not waited for. No lock is held while something is sent or called.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lockd::authority::{Authority, Standing};
use lockd::ids::{ClientId, Epoch, SessionId};
use lockd::network::{Carrier, CarrierError};
use parking_lot::Mutex;

use crate::proto::codec::{decode, encode};
use crate::proto::{Call, CallAnswer, Callback, Key};
use crate::refusal::Refusal;

/// Keys in one invalidation.
const KEYS_MAX: usize = 1024;

/// What is called when the last of several calls is over.
pub type Then = Box<dyn FnOnce() + Send>;

/// What is called with the answer to a call, or why there is none.
pub type OnAnswer = Box<dyn FnOnce(Result<CallAnswer, Refusal>) + Send>;

/// Something that waits for several calls.
pub struct Wait {
    missing: AtomicUsize,
    then: Mutex<Option<Then>>,
}

impl Wait {
    /// `then` is called by the last [`Wait::over`] of as many as [`Wait::more`] were called, and one.
    pub fn new(then: Then) -> Arc<Self> {
        Arc::new(Self { missing: AtomicUsize::new(1), then: Mutex::new(Some(then)) })
    }

    fn more(&self) {
        self.missing.fetch_add(1, Ordering::AcqRel);
    }

    /// One is over.
    pub fn over(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            let then = self.then.lock().take();
            if let Some(then) = then {
                then();
            }
        }
    }
}

/// Keys that a client has to forget, and who waits for that.
type Batch = (Vec<Key>, Vec<Arc<Wait>>);

/// A question to a client.
struct Ask {
    callback: Callback,
    on_answer: OnAnswer,
    sent: bool,
}

/// What is sent: the next batch, or the question of a number.
#[derive(Clone, Copy)]
enum Which {
    Batch,
    Ask(u64),
}

/// A client that has attached.
struct Member {
    session: SessionId,
    carrier: Arc<dyn Carrier>,
    /// Rises when the client attaches again.
    incarnation: u64,
    /// The one that is under way first.
    batches: VecDeque<Batch>,
    /// The first batch has been sent, and has not been answered.
    sent: bool,
    /// Questions, each on its own: what a node does to answer one may itself have to wait for invalidations.
    asks: BTreeMap<u64, Ask>,
}

/// See the module.
pub struct Clients {
    authority: Arc<dyn Authority>,
    epoch: Epoch,
    members: Mutex<BTreeMap<ClientId, Member>>,
    /// Whether anybody has ever attached.
    any: AtomicBool,
    numbers: AtomicUsize,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").field("attached", &self.members.lock().len()).finish_non_exhaustive()
    }
}

impl Clients {
    /// Nobody has attached.
    pub fn new(authority: Arc<dyn Authority>, epoch: Epoch) -> Self {
        let (any, numbers) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { authority, epoch, members: Mutex::default(), any, numbers }
    }

    /// Whether anybody has attached since the start: only then is kept who knows what.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// `client` can be called by `carrier` from now on. Whatever is waited for from it stays so.
    pub fn attach(self: &Arc<Self>, session: SessionId, client: ClientId, carrier: Arc<dyn Carrier>) {
        self.any.store(true, Ordering::Release);
        let incarnation = self.numbers.fetch_add(1, Ordering::AcqRel) as u64;
        {
            let mut members = self.members.lock();
            let (batches, mut asks) =
                members.remove(&client).map_or_else(Default::default, |member| (member.batches, member.asks));
            asks.values_mut().for_each(|ask: &mut Ask| ask.sent = false);
            let member = Member { session, carrier, incarnation, batches, sent: false, asks };
            members.insert(client, member);
        }
        self.send_all(client);
    }

    /// The sessions of those who have attached, and who they are.
    pub fn attached(&self) -> Vec<(SessionId, ClientId)> {
        self.members.lock().iter().map(|(client, member)| (member.session, *client)).collect()
    }

    /// Whether `client` has attached.
    pub fn knows(&self, client: ClientId) -> bool {
        self.any() && self.members.lock().contains_key(&client)
    }

    /// `client` is waited for no longer: it is over, or its session has ended.
    pub fn forget(&self, client: ClientId) {
        let member = self.members.lock().remove(&client);
        let Some(member) = member else { return };
        for (_, waits) in member.batches {
            waits.iter().for_each(|wait| wait.over());
        }
        for ask in member.asks.into_values() {
            (ask.on_answer)(Err(Refusal::Stale(format!("client {client} is over"))));
        }
    }

    /// Notes what each client is to be told to forget; `wait` is over once more for each that has. Whoever but `asker` is
    /// being told of one of `keys` already, and has not answered, is waited for as well: it may still answer by what it
    /// was told before. Called while the leases are locked. To be followed by [`Clients::tell`].
    pub fn note(
        &self,
        keys: &[Key],
        told: Vec<(ClientId, Vec<Key>)>,
        asker: Option<ClientId>,
        wait: &Arc<Wait>,
    ) -> Vec<ClientId> {
        let mut members = self.members.lock();
        for (_, member) in members.iter_mut().filter(|(client, _)| Some(**client) != asker) {
            let of_these =
                |(all, _): &&mut (Vec<Key>, Vec<Arc<Wait>>)| all.iter().any(|key| keys.contains(key));
            if let Some((_, waits)) = member.batches.iter_mut().rev().find(of_these) {
                wait.more();
                waits.push(Arc::clone(wait));
            }
        }
        let mut noted = Vec::with_capacity(told.len());
        for (client, keys) in told {
            let Some(member) = members.get_mut(&client) else { continue };
            wait.more();
            // The batch under way is fixed; one behind it still takes keys.
            let fixed = usize::from(member.sent);
            match member.batches.iter_mut().skip(fixed).next_back() {
                Some((all, waits)) if all.len() + keys.len() <= KEYS_MAX => {
                    all.extend(keys);
                    waits.push(Arc::clone(wait));
                }
                _ => member.batches.push_back((keys, vec![Arc::clone(wait)])),
            }
            noted.push(client);
        }
        noted
    }

    /// Tells clients what is noted.
    pub fn tell(self: &Arc<Self>, noted: Vec<ClientId>) {
        noted.into_iter().for_each(|client| self.send(client, Which::Batch));
    }

    /// Asks `client`.
    pub fn ask(self: &Arc<Self>, client: ClientId, callback: Callback, on_answer: OnAnswer) {
        let number = self.numbers.fetch_add(1, Ordering::AcqRel) as u64;
        let unsent = {
            let mut members = self.members.lock();
            match members.get_mut(&client) {
                Some(member) => {
                    member.asks.insert(number, Ask { callback, on_answer, sent: false });
                    None
                }
                None => Some(on_answer),
            }
        };
        match unsent {
            Some(on_answer) => on_answer(Err(Refusal::Stale(format!("client {client} has not attached")))),
            None => self.send(client, Which::Ask(number)),
        }
    }

    /// Sends everything to `client` that is not under way.
    fn send_all(self: &Arc<Self>, client: ClientId) {
        let asks: Vec<u64> = {
            let members = self.members.lock();
            let Some(member) = members.get(&client) else { return };
            member.asks.iter().filter(|(_, ask)| !ask.sent).map(|(number, _)| *number).collect()
        };
        self.send(client, Which::Batch);
        asks.into_iter().for_each(|number| self.send(client, Which::Ask(number)));
    }

    /// Sends one call, unless it is under way.
    fn send(self: &Arc<Self>, client: ClientId, which: Which) {
        let (carrier, call, incarnation) = {
            let mut members = self.members.lock();
            let Some(member) = members.get_mut(&client) else { return };
            let what = match which {
                Which::Batch => match member.batches.front() {
                    Some((keys, _)) if !member.sent => {
                        member.sent = true;
                        Callback::Invalidate { keys: keys.clone() }
                    }
                    _ => return,
                },
                Which::Ask(number) => match member.asks.get_mut(&number) {
                    Some(ask) if !ask.sent => {
                        ask.sent = true;
                        ask.callback.clone()
                    }
                    _ => return,
                },
            };
            let call = Call { client, coordinator: self.epoch, what };
            (Arc::clone(&member.carrier), call, member.incarnation)
        };
        // Bounded by KEYS_MAX names of 255 bytes: it fits a frame.
        let frame = encode(&call).expect("a call is smaller than a frame");
        let clients = Arc::clone(self);
        carrier.request(frame, Box::new(move |reply| clients.answered(client, incarnation, which, reply)));
    }

    fn answered(
        self: &Arc<Self>,
        client: ClientId,
        incarnation: u64,
        which: Which,
        reply: Result<Vec<u8>, CarrierError>,
    ) {
        let answer = reply.ok().and_then(|frame| decode::<CallAnswer>(&frame).ok());
        // What a node has not understood it has not forgotten: that is sent again, until its session ends.
        let answer =
            answer.filter(|answer| matches!((which, answer), (Which::Ask(_), _) | (_, CallAnswer::Done)));
        let (batch, ask) = {
            let mut members = self.members.lock();
            let Some(member) = members.get_mut(&client) else { return };
            if member.incarnation != incarnation {
                return;
            }
            // What got no answer is sent again by the next look.
            match which {
                Which::Batch => {
                    member.sent = false;
                    (if answer.is_some() { member.batches.pop_front() } else { None }, None)
                }
                Which::Ask(number) if answer.is_some() => (None, member.asks.remove(&number)),
                Which::Ask(number) => {
                    if let Some(ask) = member.asks.get_mut(&number) {
                        ask.sent = false;
                    }
                    (None, None)
                }
            }
        };
        if let Some((_, waits)) = batch {
            waits.iter().for_each(|wait| wait.over());
            self.send(client, Which::Batch);
        }
        if let (Some(ask), Some(answer)) = (ask, answer) {
            (ask.on_answer)(Ok(answer));
        }
    }

    /// Sends again what got no answer, and finds out whose session is over: who has ended, and who is fenced.
    pub fn look(self: &Arc<Self>) -> Vec<((SessionId, ClientId), Standing)> {
        let mut over = Vec::new();
        for (session, client) in self.attached() {
            match self.authority.standing(session) {
                Standing::Live => self.send_all(client),
                standing => over.push(((session, client), standing)),
            }
        }
        over
    }

    /// Whether a call waits for its answer.
    pub fn is_waiting(&self) -> bool {
        self.any()
            && self
                .members
                .lock()
                .values()
                .any(|member| !member.batches.is_empty() || !member.asks.is_empty())
    }
}
