//! A network that loses, repeats, delays and reorders frames, from a seed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockd::ids::{ClientId, SessionId};
use lockd::network::{Carrier, CarrierError, OnReply, Service};
use parking_lot::{Condvar, Mutex};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::peers::Peers;

/// How long an asker waits before it sends again.
const PATIENCE: Duration = Duration::from_millis(8);

type Act = Box<dyn FnOnce() + Send>;

/// Makes another answer of one.
pub type Alter = Arc<dyn Fn(Vec<u8>) -> Vec<u8> + Send + Sync>;

#[derive(Default)]
struct Timeline {
    acts: BinaryHeap<Reverse<(Instant, u64)>>,
    bodies: HashMap<u64, Act>,
    next: u64,
    ended: bool,
}

/// What all carriers of one network share.
pub struct Network {
    random: Mutex<SmallRng>,
    /// Frames are lost and so on, each with this probability; none if zero.
    trouble: f64,
    timeline: Mutex<Timeline>,
    changed: Condvar,
    services: Mutex<HashMap<ClientId, Arc<dyn Service>>>,
    /// Clients that no frame reaches.
    cut: Mutex<HashSet<ClientId>>,
    /// Clients whose answers are lost, though they hear all and may ask: how many have been.
    mute: Mutex<HashMap<ClientId, u64>>,
    /// What becomes of the answers that clients are given.
    altered: Mutex<HashMap<ClientId, Alter>>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

impl Network {
    pub fn new(seed: u64, trouble: f64) -> Arc<Self> {
        let network = Arc::new(Self {
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            trouble,
            timeline: Mutex::default(),
            changed: Condvar::new(),
            services: Mutex::default(),
            cut: Mutex::default(),
            mute: Mutex::default(),
            altered: Mutex::default(),
        });
        // Two threads, so that what one frame sets off does not hold up the next.
        for _ in 0..2 {
            let weak = Arc::clone(&network);
            std::thread::spawn(move || weak.pump());
        }
        network
    }

    pub fn end(&self) {
        self.timeline.lock().ended = true;
        self.changed.notify_all();
        self.services.lock().clear();
    }

    pub fn serve(&self, client: ClientId, service: Arc<dyn Service>) {
        self.services.lock().insert(client, service);
    }

    pub fn cut(&self, client: ClientId) {
        self.cut.lock().insert(client);
    }

    pub fn heal(&self, client: ClientId) {
        self.cut.lock().remove(&client);
    }

    /// Whatever `client` answers is lost from now on.
    pub fn mute(&self, client: ClientId) {
        self.mute.lock().insert(client, 0);
    }

    /// The answers of `client` are heard again.
    pub fn unmute(&self, client: ClientId) {
        self.mute.lock().remove(&client);
    }

    /// How many answers of `client` have been lost since [`Network::mute`].
    pub fn lost(&self, client: ClientId) -> u64 {
        self.mute.lock().get(&client).copied().unwrap_or_default()
    }

    fn loses_answer_of(&self, client: ClientId) -> bool {
        self.mute.lock().get_mut(&client).map(|lost| *lost += 1).is_some()
    }

    /// What `client` is answered by others passes through `alter` from now on.
    pub fn alter(&self, client: ClientId, alter: Alter) {
        self.altered.lock().insert(client, alter);
    }

    /// It is answered as others answer.
    pub fn leave(&self, client: ClientId) {
        self.altered.lock().remove(&client);
    }

    fn pump(&self) {
        loop {
            let act = {
                let mut timeline = self.timeline.lock();
                loop {
                    if timeline.ended {
                        return;
                    }
                    let now = Instant::now();
                    match timeline.acts.peek().map(|Reverse((at, number))| (*at, *number)) {
                        Some((at, number)) if at <= now => {
                            timeline.acts.pop();
                            break timeline.bodies.remove(&number);
                        }
                        Some((at, _)) => {
                            self.changed.wait_until(&mut timeline, at);
                        }
                        None => self.changed.wait(&mut timeline),
                    }
                }
            };
            if let Some(act) = act {
                act();
            }
        }
    }

    fn later(&self, after: Duration, act: Act) {
        {
            let mut timeline = self.timeline.lock();
            if timeline.ended {
                return;
            }
            let number = timeline.next;
            timeline.next += 1;
            timeline.acts.push(Reverse((Instant::now() + after, number)));
            timeline.bodies.insert(number, act);
        }
        self.changed.notify_all();
    }

    fn happens(&self) -> bool {
        self.trouble > 0.0 && self.random.lock().random_bool(self.trouble)
    }

    fn delay(&self) -> Duration {
        if self.happens() {
            Duration::from_micros(self.random.lock().random_range(0..6000))
        } else {
            Duration::ZERO
        }
    }

    /// A carrier to `service`, from or to `end`: cut with it.
    pub fn carrier(self: &Arc<Self>, end: ClientId, service: Arc<dyn Service>) -> Arc<dyn Carrier> {
        Arc::new(Wire { network: Arc::clone(self), end, service, is_to_end: false })
    }
}

impl Peers for Arc<Network> {
    fn way(&self, _session: SessionId, client: ClientId) -> Option<Arc<dyn Carrier>> {
        let service = self.services.lock().get(&client).map(Arc::clone)?;
        Some(Arc::new(Wire { network: Arc::clone(self), end: client, service, is_to_end: true }))
    }
}

#[derive(Debug)]
struct Wire {
    network: Arc<Network>,
    end: ClientId,
    service: Arc<dyn Service>,
    /// The end is who is asked, not who asks.
    is_to_end: bool,
}

impl Carrier for Wire {
    fn request(&self, frame: Vec<u8>, on_reply: OnReply) {
        let network = &self.network;
        let on_reply = Arc::new(Mutex::new(Some(on_reply)));
        let tell = move |reply: Result<Vec<u8>, CarrierError>| {
            let on_reply = on_reply.lock().take();
            if let Some(on_reply) = on_reply {
                on_reply(reply);
            }
        };
        let give_up = tell.clone();
        network.later(PATIENCE, Box::new(move || give_up(Err(CarrierError::TimedOut(PATIENCE)))));
        if network.cut.lock().contains(&self.end) || network.happens() {
            return;
        }
        let copies = 1 + usize::from(network.happens());
        for copy in 0..copies {
            let (service, frame, tell) = (Arc::clone(&self.service), frame.clone(), tell.clone());
            let (back, end, is_to_end) = (Arc::clone(network), self.end, self.is_to_end);
            // A copy may come long after its original was answered.
            let late = if copy > 0 { PATIENCE * 3 } else { Duration::ZERO };
            let deliver = move || {
                let reply = move |reply: Result<Vec<u8>, CarrierError>| {
                    if back.cut.lock().contains(&end)
                        || back.happens()
                        || matches!(reply, Err(CarrierError::TimedOut(_)))
                    {
                        return;
                    }
                    if is_to_end && back.loses_answer_of(end) {
                        return;
                    }
                    let alter = if is_to_end { None } else { back.altered.lock().get(&end).cloned() };
                    let reply = match alter {
                        Some(alter) => reply.map(|bytes| alter(bytes)),
                        None => reply,
                    };
                    let delay = back.delay();
                    back.later(delay, Box::new(move || tell(reply)));
                };
                service.serve(frame, Box::new(reply));
            };
            network.later(late + network.delay(), Box::new(deliver));
        }
    }
}
