//! A path is taken into use: connected, recognised (P3), drained (P4) and brought up to date (P9).

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use lockd::clock::BootTime;
use lockd::rules::Rule;

use crate::buffer::{Buffer, Pool};
use crate::ghosts::Executor;
use crate::lun::{Identity, Outcome};
use crate::open::OpenError;
use crate::paths::request::{Command, Request};
use crate::paths::traffic::{LinkEvents, Live, Traffic, Trouble};
use crate::paths::way::{Abilities, Drained, Events, Link, Purpose};

/// How long a probe's read may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

impl Traffic {
    /// The target refuses this client for good: what is held is in vain, and what comes will be.
    pub(super) fn give_up_all(&self, why: &OpenError) {
        tracing::error!(lun = self.name(), %why, "the LUN is lost to this process: all I/O fails from now on");
        let (held, live) = {
            let mut trouble = self.trouble.lock();
            // Under the lock, so that nothing is held after this.
            self.refused.store(true, Ordering::Release);
            let mut held = Vec::from(std::mem::take(&mut trouble.held));
            held.append(&mut trouble.waiting);
            (held, self.live.load_full())
        };
        self.room.notify_all();
        held.into_iter().for_each(Request::give_up);
        // Another path may be in use, to a target that has not heard of it yet.
        if let Some(live) = live {
            live.link.close("the target refuses this client for good");
        }
    }

    /// Whether the link leads to the same LUN, and the LUN answers.
    pub(super) fn check(&self, index: usize, link: &dyn Link) -> Result<(), OpenError> {
        let (identity, list) = {
            let trouble = self.trouble.lock();
            (trouble.identity.clone(), trouble.roster.list(index))
        };
        let other = |why: String| Err(OpenError::OtherLun { lun: self.ways[index].name(), why });
        let check = self.rules.keeps(Rule::P3);
        let expected = Abilities { list, ..self.abilities.clone() };
        if check && let Some(why) = difference(&expected, link.abilities()) {
            return other(why);
        }
        let lasting = link.abilities().fua || !link.abilities().flush || link.abilities().instance.is_some();
        if self.direct > 1 && self.rules.keeps(Rule::P8) && !lasting {
            return other(
                "its server cannot make single writes durable (FUA), which one of several paths to a LUN must".to_owned(),
            );
        }
        let Identity { offset, bytes } =
            identity.unwrap_or_else(|| Identity { offset: 0, bytes: Vec::new() });
        let block = u64::from(link.abilities().geometry.block_size.max(512));
        let start = offset / block * block;
        let end = (offset + bytes.len().max(1) as u64).next_multiple_of(block);
        let end = end.min(link.abilities().geometry.size).max(start);
        let length = usize::try_from(end - start).unwrap_or_default();
        let read = read(link, start, Pool::default().take(length));
        let buffer = read.map_err(|source| match self.ways[index].through() {
            Some(node) => OpenError::NoPeer {
                node: node.to_string(),
                why: format!("the LUN is not read through it: {source}"),
            },
            None => OpenError::Unreachable { lun: self.ways[index].name(), source },
        })?;
        let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let found = buffer.get(at..).and_then(|rest| rest.get(..bytes.len()));
        if check && found != Some(&bytes) {
            return other(format!(
                "the {} bytes at {offset} that identify the volume are different: another LUN answers there; I/O is \
                 held until the right one is back",
                bytes.len()
            ));
        }
        self.trouble.lock().roster.recognised(index, link.abilities().list);
        Ok(())
    }

    /// Makes a link by the path `index`, has earlier requests drained, replays what a restarted target may have lost, and sends
    /// what was held.
    pub(super) fn bring_back(self: &Arc<Self>, index: usize, purpose: Purpose) -> Result<(), OpenError> {
        let generation = {
            let mut trouble = self.trouble.lock();
            trouble.last_generation += 1;
            trouble.last_generation
        };
        let events = Arc::new(LinkEvents::new(Arc::clone(self), generation));
        let link = self.ways[index].connect(purpose, Arc::<LinkEvents>::clone(&events) as Arc<dyn Events>)?;
        events.is_by(&*link);
        self.apply_drain(&*link);
        let usable = self.check(index, &*link).and_then(|()| self.replay(&*link, &events));
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
                return Err(OpenError::Unreachable { lun: self.ways[index].name(), source });
            }
            trouble.generation = generation;
            trouble.instance = link.abilities().instance;
            self.current.store(index, Ordering::Release);
            trouble.roster.connected(index, link.abilities(), self.clock.boot());
            self.keeps.store(self.keeps_for(link.abilities()), Ordering::Release);
            self.settle_durability(&trouble);
            if !self.keeps.load(Ordering::Acquire) {
                // Nothing more is added, so that it must not be written again later.
                self.kept.lock().abandon();
            }
            self.live.store(Some(Arc::new(Live {
                link,
                generation,
                direct: index < self.direct,
                broken: events.broken(),
            })));
            self.calm.store(trouble.ghosts.is_empty(), Ordering::Release);
            let mut pending = std::mem::take(&mut trouble.held);
            pending.extend(std::mem::take(&mut trouble.waiting));
            self.fail_flushes(pending.into())
        };
        if index >= self.direct {
            tracing::warn!(
                through = self.name(),
                requests = pending.len(),
                "no path of this node leads to the LUN: I/O is redirected through a peer"
            );
        } else if purpose == Purpose::Again {
            tracing::info!(lun = self.name(), requests = pending.len(), "the path is up again");
        }
        self.room.notify_all();
        failed.into_iter().for_each(|request| request.finish(Outcome::Failed(libc::EIO)));
        self.dispatch_late(pending);
        Ok(())
    }

    /// P4: the target's proof kills ghosts.
    fn apply_drain(&self, link: &dyn Link) {
        let mut trouble = self.trouble.lock();
        if let Some(instance) = link.drained_at() {
            trouble.ghosts.drained(Executor::Target(instance));
        }
        match (link.drained(), link.executor()) {
            (Drained::ThisInstance, Some(executor)) => trouble.ghosts.drained(executor),
            // What was sent to another server of the same store is not known there.
            (Drained::EveryInstance, Some(executor)) if !trouble.roster.is_one_target() => {
                trouble.ghosts.drained(executor)
            }
            (Drained::EveryInstance, Some(_)) => trouble.ghosts.drained_everywhere(),
            _ => false,
        };
    }

    /// P8: whether the paths may lead to several servers, so that every write must be durable by itself.
    pub(super) fn settle_durability(&self, trouble: &Trouble) {
        let durable = self.rules.keeps(Rule::P8) && !trouble.roster.is_one_target();
        if self.durable.swap(durable, Ordering::AcqRel) != durable {
            self.kept.lock().flush_early(durable);
        }
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
        (!first.flush && now.flush, "it may lose what was written before a flush, which the others cannot"),
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
