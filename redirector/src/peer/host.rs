//! The host: executes the requests of nodes that have lost their own paths, on this node's direct path (R1).

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use lockd::clock::{BootTime, Clock};
use lockd::ids::{ClientId, NodeName, SessionId, VolumeId};
use lockd::machine::Victim;
use lockd::peers::{BoxFuture, Channel, NotServed, Serve};
use lockd::rules::{Rule, Rules};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::guests::{Guests, Key, is_of};
use super::way::WELCOME;
use super::wire::{self, Answer, Question, Seat, Told, What, Who, cut};
use crate::buffer::Pool;
use crate::lun::{Geometry, Outcome};
use crate::paths::request::{Command, Request};
use crate::paths::way::{Credentials, Direct, Instance};

/// The pause between two looks whether ghosts are dead.
const LOOK: Duration = Duration::from_millis(20);
/// How long a guest waits at most for the target to drain its connections.
const TARGET_DRAINS: Duration = Duration::from_millis(200);
/// The longest range that is zeroed or discarded at once, in bytes.
const RANGE_MAX: u64 = 128 << 20;

/// Whether somebody may be served.
pub trait Admits: Send + Sync + fmt::Debug {
    /// Whether `client` under `session` is a live mount of the volume on `node`. May wait.
    ///
    /// # Errors
    /// Why not.
    fn admits(&self, node: &NodeName, session: SessionId, client: ClientId) -> Result<(), String>;
}

/// What a host is made of.
#[derive(Debug)]
pub struct HostOptions {
    /// The volume that is served.
    pub volume: VolumeId,
    /// This node's own way to the LUN.
    pub direct: Weak<dyn Direct>,
    /// Who may be served.
    pub admits: Arc<dyn Admits>,
    /// The clock by which requests are late.
    pub clock: Arc<dyn Clock>,
    /// Which rules are kept; all but in tests.
    pub rules: Rules,
}

/// What a host has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostFigures {
    /// Requests executed for others.
    pub done: u64,
    /// Requests that came too late and were not executed.
    pub late: u64,
    /// Requests that were refused.
    pub refused: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Host {
    /// This run of it.
    id: [u8; 16],
    options: HostOptions,
    guests: Mutex<Guests>,
    /// Something has ended.
    news: Condvar,
    pool: Pool,
    done: AtomicU64,
    late: AtomicU64,
    refused: AtomicU64,
    me: Weak<Self>,
}

type Reply = oneshot::Sender<Vec<u8>>;

/// One request of a guest.
struct Asked<'a> {
    who: Who,
    link: u64,
    seat: Seat,
    /// Until when it may be executed.
    deadline: BootTime,
    what: What,
    data: &'a [u8],
}

impl Host {
    /// A host that serves until it is closed.
    #[must_use]
    pub fn new(options: HostOptions) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            id: rand::random(),
            options,
            guests: Mutex::default(),
            news: Condvar::new(),
            pool: Pool::default(),
            done: AtomicU64::new(0),
            late: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            me: Weak::clone(me),
        })
    }

    /// F1: `victim` is not served any more. Returns when what was carried for it is done and no ghost of it is left.
    pub fn refuse(&self, victim: Victim) {
        let mut guests = self.guests.lock();
        guests.refuse(victim);
        if self.options.rules.keeps(Rule::F1) {
            while !guests.have_drained(&self.ghosts(), |key| is_of(victim, key)) && !guests.is_closed() {
                self.news.wait_for(&mut guests, LOOK);
            }
        }
        guests.forget(|key| is_of(victim, key));
    }

    /// `victim` is not served any more, from this moment on; what was carried for it is not waited for.
    pub fn deny(&self, victim: Victim) {
        self.guests.lock().refuse(victim);
    }

    /// Nobody is served any more; waits a moment for what is under way.
    pub fn close(&self) {
        let until = self.options.clock.boot().after(WELCOME);
        let mut guests = self.guests.lock();
        guests.close();
        while !guests.have_drained(&self.ghosts(), |_| true) && self.options.clock.boot() < until {
            self.news.wait_for(&mut guests, LOOK);
        }
    }

    /// What it has done so far.
    #[must_use]
    pub fn figures(&self) -> HostFigures {
        HostFigures {
            done: self.done.load(Ordering::Relaxed),
            late: self.late.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    fn ghosts(&self) -> Vec<Range<u64>> {
        self.options.direct.upgrade().map_or_else(Vec::new, |direct| direct.ghosts())
    }

    fn stamp(&self) -> u64 {
        self.options.clock.boot().0
    }

    /// Admits `who` of the node `from`, and, for a new link, ends its earlier ones, and its own connections to the target. May
    /// wait.
    fn welcome(
        &self,
        from: &NodeName,
        who: Who,
        link: Option<u64>,
        known_as: Option<Credentials>,
    ) -> Result<Answer, String> {
        if who.volume != self.options.volume {
            return Err(format!("it serves another volume: {}, and not {}", self.options.volume, who.volume));
        }
        let key = (who.session, who.client);
        if !self.guests.lock().knows(key, from) {
            self.options.admits.admits(from, who.session, who.client)?;
            self.guests.lock().admit(key, from)?;
        }
        let direct = self.options.direct.upgrade().ok_or("its mount is being closed")?;
        let (path, abilities) = direct.seat()?;
        let drained = match link {
            Some(link) => self.end_earlier(key, link)?,
            None => false,
        };
        let (seat, abilities) = (Seat { host: self.id, path }, Told::from(&abilities));
        let target = known_as.and_then(|client| drain_at_target(direct, client));
        Ok(Answer::Welcome { seat, stamp: self.stamp(), drained, target, abilities })
    }

    /// Ends the links of `key` before `link`. Whether what came by them is done, and no ghost of it left.
    fn end_earlier(&self, key: Key, link: u64) -> Result<bool, String> {
        let until = self.options.clock.boot().after(WELCOME / 2);
        let mut guests = self.guests.lock();
        guests.connect(key, link)?;
        loop {
            if guests.have_drained(&self.ghosts(), |other| *other == key) {
                return Ok(true);
            }
            if self.options.clock.boot() >= until {
                return Ok(false);
            }
            self.news.wait_for(&mut guests, LOOK);
        }
    }

    fn begin(&self, from: &NodeName, asked: &Asked<'_>, reply: Reply) {
        if let Err((answer, reply)) = self.try_begin(from, asked, reply) {
            let count = if matches!(answer, Answer::Late { .. }) { &self.late } else { &self.refused };
            count.fetch_add(1, Ordering::Relaxed);
            send(reply, wire::encode(&answer, 0));
        }
    }

    /// R1: checks a request, and has it executed.
    fn try_begin(&self, from: &NodeName, asked: &Asked<'_>, reply: Reply) -> Result<(), (Answer, Reply)> {
        let checks = self.options.rules.keeps(Rule::R1);
        let key = (asked.who.session, asked.who.client);
        let over = |why: String| Answer::Over { why: cut(why) };
        if asked.who.volume != self.options.volume || asked.seat.host != self.id {
            return Err((over("it has been started anew".to_owned()), reply));
        }
        let looks = asked.link == 0 && matches!(asked.what, What::Read { .. });
        let link = (!looks).then_some(asked.link);
        if let Err(why) = self.guests.lock().enter(key, from, link)
            && checks
        {
            return Err((over(why), reply));
        }
        let entered = Entered { host: Weak::clone(&self.me), key, haunted: None };
        let direct = self.options.direct.upgrade();
        let seat = direct.as_ref().ok_or_else(|| "its mount is being closed".to_owned());
        let (direct, geometry) = match seat.and_then(|direct| Ok((direct, direct.seat()?.1.geometry))) {
            Ok(found) => found,
            Err(why) => return Err((over(why), reply)),
        };
        if checks && let Err(errno) = check(asked, &geometry) {
            tracing::warn!(node = %from, what = ?asked.what, "a peer asks for what cannot be: refused");
            return Err((Answer::Failed { stamp: self.stamp(), errno }, reply));
        }
        let now = self.options.clock.boot();
        if checks && asked.deadline <= now {
            return Err((Answer::Late { stamp: now.0 }, reply));
        }
        let request = Request::new(self.command(asked, entered, reply), now);
        if let Err((request, why)) = direct.carry(asked.seat.path, request) {
            // Who asked hears that it was not executed.
            tracing::debug!(why, "a request of a peer is not executed");
            request.finish(Outcome::Failed(NOT_EXECUTED));
        }
        Ok(())
    }

    /// What the direct path is asked; when it has answered, `entered` leaves and the guest gets its `reply`.
    fn command(&self, asked: &Asked<'_>, entered: Entered, reply: Reply) -> Command {
        match asked.what {
            What::Read { offset, length } => {
                let buffer = self.pool.take(length as usize);
                let on_read = move |outcome, buffer: crate::buffer::Buffer| {
                    entered.answer(outcome, Some(&buffer), None, reply);
                };
                Command::Read(offset, buffer, Box::new(on_read))
            }
            What::Write { offset, fua } => {
                let mut buffer = self.pool.take(asked.data.len());
                buffer.copy_from_slice(asked.data);
                let range = offset..offset + asked.data.len() as u64;
                let on_done = move |outcome| entered.answer(outcome, None, Some(range), reply);
                Command::Write(offset, buffer.share(), fua, Box::new(on_done))
            }
            What::Flush => {
                Command::Flush(Box::new(move |outcome| entered.answer(outcome, None, None, reply)))
            }
            What::Zero { start, end } => {
                let on_done = move |outcome| entered.answer(outcome, None, Some(start..end), reply);
                Command::Zero(start..end, Box::new(on_done))
            }
            What::Trim { start, end } => {
                let on_done = move |outcome| entered.answer(outcome, None, Some(start..end), reply);
                Command::Trim(start..end, Box::new(on_done))
            }
        }
    }
}

/// Has the target drain a guest's own connections, if that does not take long: a guest in need waits for its welcome.
fn drain_at_target(direct: Arc<dyn Direct>, client: Credentials) -> Option<Instance> {
    let (sender, drained) = std::sync::mpsc::sync_channel(1);
    let drain = move || {
        // Whoever waited may have given up.
        let _ = sender.send(direct.drain_for(client));
    };
    std::thread::Builder::new().name("lun-drain".to_owned()).spawn(drain).ok()?;
    let target = drained.recv_timeout(TARGET_DRAINS).ok().flatten();
    tracing::debug!(client = %client.client, done = target.is_some(), "a guest's connections were to be drained");
    target
}

/// What a request that the direct path did not take is finished with: no target answers so.
const NOT_EXECUTED: i32 = i32::MAX;

/// A guest's request in flight; it leaves when this is dropped.
struct Entered {
    host: Weak<Host>,
    key: Key,
    haunted: Option<Range<u64>>,
}

impl Entered {
    /// The request, which changed `changed`, has ended with `outcome`.
    fn answer(mut self, outcome: Outcome, read: Option<&[u8]>, changed: Option<Range<u64>>, reply: Reply) {
        let Some(host) = self.host.upgrade() else { return };
        let stamp = host.stamp();
        let answer = match outcome {
            Outcome::Done => {
                host.done.fetch_add(1, Ordering::Relaxed);
                let mut bytes = wire::encode(&Answer::Done { stamp }, read.map_or(0, <[u8]>::len));
                bytes.extend_from_slice(read.unwrap_or_default());
                bytes
            }
            Outcome::Failed(NOT_EXECUTED) => {
                host.refused.fetch_add(1, Ordering::Relaxed);
                wire::encode(&Answer::Over { why: "the path that it had is over".to_owned() }, 0)
            }
            Outcome::Failed(errno) => wire::encode(&Answer::Failed { stamp, errno }, 0),
            Outcome::Unknown => {
                self.haunted = changed;
                wire::encode(&Answer::Unknown, 0)
            }
        };
        // It leaves before the guest can know.
        drop(self);
        send(reply, answer);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(host) = self.host.upgrade() {
            host.guests.lock().leave(self.key, self.haunted.take());
            host.news.notify_all();
        }
    }
}

/// R1: whether `asked` lies within the LUN.
fn check(asked: &Asked<'_>, geometry: &Geometry) -> Result<(), i32> {
    let (start, length, most) = match asked.what {
        What::Read { offset, length } => {
            (offset, u64::from(length), u64::from(geometry.request_max.min(wire::DATA_MAX)))
        }
        What::Write { offset, .. } => {
            (offset, asked.data.len() as u64, u64::from(geometry.request_max.min(wire::DATA_MAX)))
        }
        What::Flush => return Ok(()),
        What::Zero { start, end } | What::Trim { start, end } => {
            (start, end.checked_sub(start).ok_or(libc::EINVAL)?, RANGE_MAX)
        }
    };
    let block = u64::from(geometry.block_size);
    let fits = start.checked_add(length).is_some_and(|end| end <= geometry.size);
    let aligned = start.is_multiple_of(block) && length.is_multiple_of(block);
    if fits && aligned && length > 0 && length <= most { Ok(()) } else { Err(libc::EINVAL) }
}

fn send(reply: Reply, bytes: Vec<u8>) {
    // Who asked may have gone.
    let _ = reply.send(bytes);
}

impl Serve for Host {
    fn serve<'a>(
        &'a self,
        from: &'a NodeName,
        _channel: Channel,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, NotServed>> {
        Box::pin(async move {
            let (question, data) =
                wire::decode::<Question>(&frame).map_err(|error| NotServed(error.to_string()))?;
            match question {
                Question::Hello { who, link, known_as } => {
                    let me = self.me.upgrade().ok_or_else(|| NotServed("it ends".to_owned()))?;
                    let from = from.clone();
                    let welcome =
                        tokio::task::spawn_blocking(move || me.welcome(&from, who, link, known_as)).await;
                    let answer = welcome.map_err(|error| NotServed(error.to_string()))?;
                    let answer = answer.unwrap_or_else(|why| Answer::Over { why: cut(why) });
                    Ok(wire::encode(&answer, 0))
                }
                Question::Do { who, link, seat, stamp, left, what } => {
                    let deadline = BootTime(stamp.saturating_add(left));
                    let (reply, answer) = oneshot::channel();
                    self.begin(from, &Asked { who, link, seat, deadline, what, data }, reply);
                    answer.await.map_err(|_| NotServed("its mount was closed under the request".to_owned()))
                }
            }
        })
    }
}
