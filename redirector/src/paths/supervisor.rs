//! The thread that looks after a path: probes it, brings it back, lets ghosts die, and ends holds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use lockd::clock::BootTime;
use lockd::rules::Rule;

use crate::buffer::{Buffer, Pool};
use crate::lun::{Identity, Outcome};
use crate::open::OpenError;
use crate::paths::kept::Change;
use crate::paths::request::{Command, Request};
use crate::paths::state::Condition;
use crate::paths::tenure::Standing;
use crate::paths::traffic::{LinkEvents, Live, REPLAYED, Traffic, given_up_at};
use crate::paths::way::{self, Abilities, Drained, Events, Link, Purpose};

/// The longest rest of the supervisor.
const REST_MAX: Duration = Duration::from_millis(250);
/// How long a probe's read may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Replayed changes in flight at most.
const REPLAY_BATCH: usize = 128;
/// How long a batch of them may take.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(60);

/// Looks after the path until it is stopped.
pub fn run(traffic: &Arc<Traffic>) {
    way::mark_completing();
    while !traffic.stopped.load(Ordering::Acquire) {
        let now = traffic.clock.boot();
        traffic.observe(now);
        traffic.end_holds(now);
        traffic.lay_ghosts(now);
        if traffic.flush_wanted.swap(false, Ordering::AcqRel) {
            traffic.flush_kept();
        }
        let refused = traffic.refused.load(Ordering::Acquire);
        let due = {
            let trouble = traffic.trouble.lock();
            trouble.state.next_probe().is_some_and(|due| due <= now)
        };
        if due && !refused {
            traffic.probe();
        } else {
            traffic.resend();
        }
        traffic.rest();
    }
}

impl Traffic {
    fn rest(&self) {
        let mut trouble = self.trouble.lock();
        let now = self.clock.boot();
        let probe = trouble.state.next_probe().filter(|_| !self.refused.load(Ordering::Acquire));
        let soon = probe.into_iter().chain(trouble.ghosts.next_death()).min();
        let hold = trouble.held.front().map(|request| given_up_at(request, self.hold));
        let due = soon.into_iter().chain(hold).min().map_or(REST_MAX, |due| due.since(now));
        let work = self.flush_wanted.load(Ordering::Acquire) || self.stopped.load(Ordering::Acquire);
        if !work && !due.is_zero() {
            self.news.wait_for(&mut trouble, due.clamp(Duration::from_millis(1), REST_MAX));
        }
    }

    /// Up or Suspect, by the age of the oldest request. A link that has not answered for the whole hold time is given
    /// up: its requests are of unknown outcome then.
    fn observe(&self, now: BootTime) {
        let Some(live) = self.live.load_full() else { return };
        let oldest = live.link.oldest();
        self.trouble.lock().state.observe(oldest, live.link.p999(), now);
        if oldest.is_some_and(|oldest| now.since(oldest) > self.hold) {
            live.link.close(&format!("no answer for {} s", self.hold.as_secs()));
        }
    }

    /// Gives up what was held for too long (P2).
    pub(super) fn end_holds(&self, now: BootTime) {
        let over: Vec<_> = {
            let mut trouble = self.trouble.lock();
            let over = |request: &Request| given_up_at(request, self.hold) <= now;
            let mut given_up: Vec<_> = trouble.waiting.extract_if(.., |request| over(request)).collect();
            if trouble.held.iter().any(over) {
                let (end, held) = trouble.held.drain(..).partition::<Vec<_>, _>(over);
                trouble.held = held.into();
                given_up.extend(end);
            }
            given_up
        };
        if !over.is_empty() {
            tracing::error!(lun = self.way.name(), requests = over.len(), "I/O was held in vain: EIO");
            self.room.notify_all();
            over.into_iter().for_each(Request::give_up);
        }
    }

    /// Removes dead ghosts, and sends what waited for them.
    fn lay_ghosts(&self, now: BootTime) {
        let free = {
            let mut trouble = self.trouble.lock();
            trouble.ghosts.expire(now);
            if self.live.load().is_none() {
                return;
            }
            self.calm.store(trouble.ghosts.is_empty(), Ordering::Release);
            std::mem::take(&mut trouble.waiting)
        };
        if !free.is_empty() {
            self.room.notify_all();
        }
        self.dispatch_late(free);
    }

    /// Sends what was held although the path is up: it came back late.
    fn resend(&self) {
        let late = {
            let mut trouble = self.trouble.lock();
            if self.live.load().is_none() {
                return;
            }
            std::mem::take(&mut trouble.held)
        };
        if !late.is_empty() {
            self.room.notify_all();
            self.dispatch_late(late);
        }
    }

    /// Asks on a fresh connection whether the LUN is there and is the same; brings the path back after three answers
    /// (P3).
    fn probe(self: &Arc<Self>) {
        let result = self.way.connect(Purpose::Probe, Arc::new(Discard)).and_then(|link| {
            let same = self.check(&*link);
            link.close("the probe is over");
            same
        });
        let answered = self.judge(result);
        if answered {
            let result = self.bring_back(Purpose::Again);
            self.judge(result);
        }
    }

    /// The target refuses this client for good: what is held is in vain, and what comes will be.
    fn give_up_all(&self, why: &OpenError) {
        tracing::error!(lun = self.way.name(), %why, "the LUN is lost to this process: all I/O fails from now on");
        let held: Vec<Request> = {
            let mut trouble = self.trouble.lock();
            // Under the lock, so that nothing is held after this.
            self.refused.store(true, Ordering::Release);
            let held = std::mem::take(&mut trouble.held);
            held.into_iter().chain(std::mem::take(&mut trouble.waiting)).collect()
        };
        self.room.notify_all();
        held.into_iter().for_each(Request::give_up);
    }

    /// Tells the path's state about an answer or an error; a LUN that is not the same is logged once.
    fn judge(&self, result: Result<(), OpenError>) -> bool {
        if let Err(why) = &result
            && why.is_for_good()
        {
            self.give_up_all(why);
        }
        let now = self.clock.boot();
        let mut trouble = self.trouble.lock();
        if trouble.state.condition() != Condition::Down {
            return true;
        }
        match result {
            Ok(()) => trouble.state.probed(Ok(()), now),
            Err(error) => {
                let why = error.to_string();
                if matches!(error, OpenError::OtherLun { .. } | OpenError::OtherServer { .. })
                    && trouble.warned.as_ref() != Some(&why)
                {
                    tracing::warn!(lun = self.way.name(), why, "the path stays down; I/O is held");
                    trouble.warned = Some(why.clone());
                }
                trouble.state.probed(Err(&why), now)
            }
        }
    }

    /// Whether the link leads to the same LUN, and the LUN answers.
    pub(super) fn check(&self, link: &dyn Link) -> Result<(), OpenError> {
        let identity = self.trouble.lock().identity.clone();
        let other = |why: String| Err(OpenError::OtherLun { lun: self.way.name(), why });
        let check = self.rules.keeps(Rule::P3);
        if check && let Some(why) = difference(&self.abilities, link.abilities()) {
            return other(why);
        }
        let Identity { offset, bytes } =
            identity.unwrap_or_else(|| Identity { offset: 0, bytes: Vec::new() });
        let block = u64::from(link.abilities().geometry.block_size.max(512));
        let start = offset / block * block;
        let end = (offset + bytes.len().max(1) as u64).next_multiple_of(block);
        let end = end.min(link.abilities().geometry.size).max(start);
        let length = usize::try_from(end - start).unwrap_or_default();
        let read = read(link, start, Pool::default().take(length));
        let buffer = read.map_err(|source| OpenError::Unreachable { lun: self.way.name(), source })?;
        let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let found = buffer.get(at..).and_then(|rest| rest.get(..bytes.len()));
        if check && found != Some(&bytes) {
            return other(format!(
                "the {} bytes at {offset} that identify the volume are different: another LUN answers there; I/O is \
                 held until the right one is back",
                bytes.len()
            ));
        }
        Ok(())
    }

    /// Makes a link again, has earlier requests drained, replays what a restarted target may have lost, and sends what
    /// was held.
    pub(super) fn bring_back(self: &Arc<Self>, purpose: Purpose) -> Result<(), OpenError> {
        let generation = {
            let mut trouble = self.trouble.lock();
            trouble.generation += 1;
            trouble.generation
        };
        let events = Arc::new(LinkEvents::new(Arc::clone(self), generation));
        let link = self.way.connect(purpose, Arc::<LinkEvents>::clone(&events) as Arc<dyn Events>)?;
        events.leads_to(link.abilities().instance);
        self.apply_drain(&*link);
        let usable = self.check(&*link).and_then(|()| self.replay(&*link, &events));
        if let Err(error) = usable {
            link.close("the link cannot be used");
            return Err(error);
        }
        let (pending, failed) = {
            let mut trouble = self.trouble.lock();
            if !events.accept() || self.stopped.load(Ordering::Acquire) {
                drop(trouble);
                link.close("the link cannot be used");
                let source = std::io::ErrorKind::ConnectionReset.into();
                return Err(OpenError::Unreachable { lun: self.way.name(), source });
            }
            trouble.instance = link.abilities().instance;
            trouble.warned = None;
            self.keeps.store(self.keeps_for(link.abilities()), Ordering::Release);
            trouble.state.recovered(self.clock.boot());
            self.live.store(Some(Arc::new(Live { link, generation })));
            self.calm.store(trouble.ghosts.is_empty(), Ordering::Release);
            let mut pending = std::mem::take(&mut trouble.held);
            pending.extend(std::mem::take(&mut trouble.waiting));
            self.fail_flushes(pending.into())
        };
        if purpose == Purpose::Again {
            tracing::info!(lun = self.way.name(), requests = pending.len(), "the path is up again");
        }
        self.room.notify_all();
        failed.into_iter().for_each(|request| request.finish(Outcome::Failed(libc::EIO)));
        self.dispatch_late(pending);
        Ok(())
    }

    /// P4: the target's proof kills ghosts.
    fn apply_drain(&self, link: &dyn Link) {
        let mut trouble = self.trouble.lock();
        match (link.drained(), link.abilities().instance) {
            (Drained::ThisInstance, Some(instance)) => trouble.ghosts.drained(instance),
            (Drained::EveryInstance, Some(_)) => trouble.ghosts.drained_everywhere(),
            _ => false,
        };
    }

    /// P9: if something was lost, the flushes that wait are told, or else the next one.
    fn fail_flushes(&self, pending: Vec<Request>) -> (Vec<Request>, Vec<Request>) {
        if !self.flush_fails.load(Ordering::Acquire) {
            return (pending, Vec::new());
        }
        let (flushes, others): (Vec<_>, Vec<_>) = pending
            .into_iter()
            .partition(|request| matches!(request.command, Command::Flush(_)) && !request.background);
        if !flushes.is_empty() {
            self.flush_fails.store(false, Ordering::Release);
        }
        (others, flushes)
    }

    /// Whether completed changes are kept for this target: it may lose them, and it tells when.
    pub(super) fn keeps_for(&self, abilities: &Abilities) -> bool {
        self.rules.keeps(Rule::P9) && abilities.flush && abilities.instance.is_some() && !abilities.read_only
    }

    /// P9: a target that was restarted gets again what it may have lost.
    fn replay(&self, link: &dyn Link, events: &LinkEvents) -> Result<(), OpenError> {
        let (earlier, half_replayed) = {
            let trouble = self.trouble.lock();
            (trouble.instance, trouble.ghosts.any(|ghost| ghost.token & REPLAYED != 0))
        };
        if !self.keeps.load(Ordering::Acquire) || earlier.is_none() || earlier == link.abilities().instance {
            return Ok(());
        }
        if half_replayed {
            // A late copy of an older change could undo a newer one that is replayed now.
            let why =
                "an earlier replay was cut off, and copies of it may still land; waiting until they are dead";
            let source = std::io::Error::other(why);
            return Err(OpenError::Unreachable { lun: self.way.name(), source });
        }
        let ended = self.await_lease(link, events)? == Standing::Ended;
        let tenure = self.tenure.lock().clone();
        let batches = {
            let mut kept = self.kept.lock();
            if ended {
                // Nothing of it may be written any more, and nobody asks: what the session had is over.
                kept.abandon();
            }
            if kept.is_incomplete() {
                self.flush_fails.store(true, Ordering::Release);
                kept.reported();
                tracing::error!(
                    lun = self.way.name(),
                    "the target was restarted, and more had been written since the last flush than is kept: the next \
                     flush fails"
                );
            }
            kept.batches(REPLAY_BATCH)
        };
        let changes: usize = batches.iter().map(Vec::len).sum();
        tracing::warn!(
            lun = self.way.name(),
            changes,
            "the target was restarted: replaying what was not flushed"
        );
        for mut batch in batches {
            // What the lease is kept alive by is durable when it is done, and may have been written anew in the lobby.
            batch.retain(|change| !tenure.as_ref().is_some_and(|tenure| tenure.is_free(&change.range())));
            // L3: it may run out in the middle.
            if tenure.as_ref().is_some_and(|tenure| tenure.now(self.rules, &*self.clock) != Standing::Holds) {
                let why =
                    "the lease has run out while what was not flushed was written again; it begins anew";
                let source = std::io::Error::other(why);
                return Err(OpenError::Unreachable { lun: self.way.name(), source });
            }
            match self.replay_batch(link, batch) {
                Outcome::Done => {}
                Outcome::Failed(errno) if !events.is_broken() => {
                    tracing::error!(lun = self.way.name(), errno, "the target refused a replayed write");
                    self.flush_fails.store(true, Ordering::Release);
                }
                Outcome::Failed(_) | Outcome::Unknown => {
                    let source = std::io::ErrorKind::ConnectionReset.into();
                    return Err(OpenError::Unreachable { lun: self.way.name(), source });
                }
            }
        }
        Ok(())
    }

    fn replay_batch(&self, link: &dyn Link, batch: Vec<Change>) -> Outcome {
        let (sender, receiver) = mpsc::channel();
        let count = batch.len();
        for change in batch {
            let sender = sender.clone();
            let on_done = Box::new(move |outcome| {
                // The supervisor may have stopped waiting.
                let _ = sender.send(outcome);
            });
            let command = match change {
                Change::Write(offset, data) => Command::Write(offset, data, false, on_done),
                Change::Zero(range) => Command::Zero(range, on_done),
            };
            if let Err(request) = link.submit(Request::new(command, self.clock.boot())) {
                request.finish(Outcome::Unknown);
            }
        }
        let mut worst = Outcome::Done;
        for _ in 0..count {
            match receiver.recv_timeout(REPLAY_TIMEOUT).unwrap_or(Outcome::Unknown) {
                Outcome::Done => {}
                Outcome::Failed(errno) => worst = Outcome::Failed(errno),
                Outcome::Unknown => return Outcome::Unknown,
            }
        }
        worst
    }
}

/// What a link that came back lacks of what the first one had.
fn difference(first: &Abilities, now: &Abilities) -> Option<String> {
    let (then, here) = (&first.geometry, &now.geometry);
    if here.size < then.size {
        return Some(format!("its size was {} bytes and is {} bytes now", then.size, here.size));
    }
    if here.block_size > then.block_size || here.request_max < then.request_max {
        return Some("its limits of block and request size are narrower than before".to_owned());
    }
    if first.list.is_some() && now.list != first.list {
        return Some(
            "the target has lost the list of clients that it refuses for good (its --state directory is another one), so \
             that it might let in whoever was fenced: end this mount and mount anew, or bring the directory back"
                .to_owned(),
        );
    }
    let lacks = [
        (now.read_only && !first.read_only, "it is read-only now"),
        (then.trim && !here.trim, "it cannot trim any more"),
        (then.write_zeroes && !here.write_zeroes, "it cannot write zeroes any more"),
        (first.fua && !now.fua, "it cannot make single writes durable any more"),
        (first.flush && !now.flush, "it cannot flush any more"),
        (first.multi_conn && !now.multi_conn, "its flush does not cover several connections any more"),
    ];
    lacks.iter().find(|(lacks, _)| *lacks).map(|(_, why)| (*why).to_owned())
}

/// Reads by a link on trial.
fn read(link: &dyn Link, offset: u64, buffer: Buffer) -> std::io::Result<Buffer> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let on_read = Box::new(move |outcome, buffer| {
        // The supervisor may have stopped waiting.
        let _ = sender.send((outcome, buffer));
    });
    let request = Request::new(Command::Read(offset, buffer, on_read), BootTime::default());
    if let Err(request) = link.submit(request) {
        request.finish(Outcome::Unknown);
    }
    match receiver.recv_timeout(PROBE_TIMEOUT) {
        Ok((Outcome::Done, buffer)) => Ok(buffer),
        Ok((Outcome::Failed(errno), _)) => Err(std::io::Error::from_raw_os_error(errno)),
        Ok((Outcome::Unknown, _)) => Err(std::io::ErrorKind::ConnectionReset.into()),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// Hears about a probe's requests.
pub(super) struct Discard;

impl Events for Discard {
    fn ended(&self, request: Request, outcome: Outcome) {
        request.finish(outcome);
    }

    fn lost(&self, _why: &str, sent: Vec<Request>, unsent: Vec<Request>) {
        sent.into_iter().chain(unsent).for_each(|request| request.finish(Outcome::Unknown));
    }
}
