//! Ceasing to be the server of files: a set of them, all or none.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use lockd::authority::Handover;
use lockd::client::check_epoch;
use lockd::clock::BootTime;
use lockd::failpoint;
use lockd::ids::{Epoch, ResourceId};
use lockd::machine::Cookie;
use lockd::rules::Rule;

use super::Core;
use super::file::{File, Phase};
use super::gate::Stop;
use super::journeys::Begun;
use super::offer::{Given, Terms};
use super::resize::Still;
use super::task::promise;
use crate::proto::{CallAnswer, FileSlots, Next, Operation, Owned};
use crate::refusal::Refusal;
use crate::slots::Cache;
use crate::types::{FileBlock, Ino};

/// Bytes of slots that go with the answer to a call; more are handed over before.
const SLOTS_BYTES: usize = 512 << 10;

/// What the coordinator asks for.
pub(super) struct Demand {
    /// The epoch in which it serves.
    pub(super) coordinator: Epoch,
    pub(super) journey: u64,
    /// With the terms that are to end.
    pub(super) files: Vec<(Ino, u64)>,
    /// Only what is not being written here.
    pub(super) soft: bool,
    pub(super) next: Option<Next>,
}

/// A file of the set. One that is not open here has nothing pending, and is not held.
struct Leaving {
    ino: Ino,
    tenure: u64,
    file: Option<Arc<File>>,
}

impl Leaving {
    /// The epoch in which this client owns it.
    fn epoch(&self) -> Epoch {
        self.file.as_ref().and_then(|file| file.owned_in()).unwrap_or(Epoch::NOBODY)
    }
}

/// The set has gone.
struct Gone {
    epoch: Option<Epoch>,
    slots: Vec<FileSlots>,
    stopped: BootTime,
}

impl Core {
    /// Executes a call of the coordinator, once.
    pub(super) async fn give_up(self: &Arc<Self>, demand: Demand) -> CallAnswer {
        let journey = demand.journey;
        let begun = self.journeys.lock().begin(journey);
        match begun {
            Begun::Answered(answer) => answer,
            Begun::UnderWay(receiver) => {
                let dropped = || CallAnswer::Refused(Refusal::Io("the call was dropped".to_owned()));
                receiver.await.unwrap_or_else(dropped)
            }
            Begun::Execute => {
                let answer = match self.give_up_offered(demand).await {
                    Ok(Gone { epoch, slots, .. }) => CallAnswer::Yielded { epoch, slots },
                    Err(refusal) => CallAnswer::Refused(refusal),
                };
                let waiting = self.journeys.lock().end(journey, &answer);
                waiting.into_iter().for_each(|waiter| waiter.send(answer.clone()));
                answer
            }
        }
    }

    /// Who offered the set learns what became of it.
    async fn give_up_offered(self: &Arc<Self>, demand: Demand) -> Result<Gone, Refusal> {
        let offered = demand.next.and_then(|next| Some((next, next.offer?)));
        let Some((next, cookie)) = offered else { return self.give_up_held(demand, Terms::default()).await };
        let terms = self.offers.lock().take(cookie, &next, &demand.files)?;
        let result = self.give_up_held(demand, terms).await;
        let outcome = match &result {
            Ok(gone) => Ok(Given {
                epoch: gone.epoch.unwrap_or(Epoch::NOBODY),
                stopped: gone.stopped,
                took: self.clock.boot().since(gone.stopped),
            }),
            Err(refusal) => Err(refusal.clone()),
        };
        let waiting = self.offers.lock().end(cookie, &outcome);
        if let Some(waiting) = waiting {
            waiting.send(outcome);
        }
        result
    }

    /// Holds what is open of the set meanwhile.
    async fn give_up_held(self: &Arc<Self>, mut demand: Demand, terms: Terms) -> Result<Gone, Refusal> {
        // In the order of their numbers, like everybody who takes several turns.
        demand.files.sort_unstable();
        let mut set = Vec::with_capacity(demand.files.len());
        for (ino, tenure) in &demand.files {
            set.push(Leaving { ino: *ino, tenure: *tenure, file: self.join(*ino).await });
        }
        let result = self.hand_over(&set, &demand, terms).await;
        for file in set.iter().filter_map(|leaving| leaving.file.as_ref()) {
            self.let_go(file);
        }
        result
    }

    /// Joins those who have a file open, if anybody has.
    async fn join(&self, ino: Ino) -> Option<Arc<File>> {
        loop {
            let file = self.files.get(ino)?;
            let waits = {
                let mut life = file.life.lock();
                match life.phase {
                    Phase::Open => {
                        if life.uses == 0 {
                            self.idle.fetch_sub(1, SeqCst);
                        }
                        life.uses += 1;
                        break Some(Arc::clone(&file));
                    }
                    Phase::Opening | Phase::Closing => {
                        let (sender, receiver) = promise();
                        life.waiting.push(sender);
                        Some(receiver)
                    }
                    Phase::Gone => None,
                }
            };
            if let Some(waits) = waits {
                waits.await;
            }
        }
    }

    /// Stops, drains, flushes, commits, has the authority transfer, and forgets. Refused at any step before the
    /// authority's, all of the set goes on here as if nothing had happened (L7).
    async fn hand_over(
        self: &Arc<Self>,
        set: &[Leaving],
        demand: &Demand,
        terms: Terms,
    ) -> Result<Gone, Refusal> {
        failpoint::reached("yield.begun");
        let next = demand.next;
        let files: Vec<Arc<File>> = set.iter().filter_map(|leaving| leaving.file.clone()).collect();
        let own_wish = next.is_some_and(|next| next.client == self.client);
        let is_offered = next.is_some_and(|next| next.offer.is_some());
        let mut passages = Vec::new();
        // Its own acquisition has them.
        for file in files.iter().filter(|_| !own_wish) {
            passages.push(file.passage.take().await);
        }
        // L6: what has its passage taken changes owners no more, and the authority is named the same epoch.
        for leaving in set {
            check_epoch(leaving.ino, leaving.epoch(), terms.epoch).map_err(Refusal::Stale)?;
        }
        let mut leavings = Vec::new();
        for file in &files {
            if !own_wish {
                leavings.push(file.leave_with_pages()?);
            }
            if file.pinned.load(SeqCst) && !own_wish && !is_offered {
                return Err(Refusal::Busy(format!(
                    "{} is pinned to the node that owns it; release it there",
                    file.ino
                )));
            }
            if demand.soft && file.writers.load(SeqCst) > 0 {
                return Err(Refusal::Busy(format!(
                    "{} is being written on the node that serves it",
                    file.ino
                )));
            }
        }
        if is_offered {
            // What is pending is committed before anything is stopped: little is left to do afterwards.
            self.commit_ahead(&files).await?;
        }
        let stopped = self.clock.boot();
        let (_guests, stills) = self.hold_all_still(&files).await;
        failpoint::reached("yield.stopped");
        for Leaving { ino, tenure, file } in set {
            // Nothing is pending of what has come back to the coordinator's node and has not been used there since, nor of
            // what was closed here, and opened again, before the call came. Whose it is the authority knows.
            if file.as_ref().is_some_and(|file| file.tenure() != Some(*tenure) && !file.is_elsewhere()) {
                let own = file.as_ref().and_then(|file| file.tenure());
                return Err(Refusal::Stale(format!(
                    "{ino} is not served here in term {tenure}, but in {own:?}"
                )));
            }
        }
        self.commit_set(&files).await?;
        let all = FileBlock(0)..FileBlock(u64::MAX);
        let fresh = files.iter().flat_map(|file| file.layout.write().cut_fresh(&all)).collect();
        self.put_back(fresh, false).await;
        // Not of one that this node is only about to become: it is not known there that this node serves it.
        let in_place = own_wish || (next.is_none() && self.is_home_of(demand.coordinator));
        let slots = if in_place { Vec::new() } else { self.hand_slots(demand.journey, &files).await? };
        failpoint::reached("yield.committed");
        // What another coordinator is told of this node holds: nothing is given for one that is not any more.
        let giving = self.givings.enter().await;
        if demand.coordinator != self.channel.coordinator() {
            return Err(Refusal::Passing("another mount coordinates the volume now".to_owned()));
        }
        if self.resigns.load(SeqCst) {
            return Err(Refusal::Passing("another mount is to coordinate the volume".to_owned()));
        }
        let epoch = self.give(set, next, terms.escrow).await?;
        failpoint::reached("yield.given");
        for file in &files {
            if in_place {
                let owned =
                    Owned { ino: file.ino, epoch: epoch.unwrap_or_else(|| self.channel.coordinator()) };
                file.serve_by(owned, epoch.is_some());
            } else {
                file.leave();
                *file.guest_slots.lock() = Cache::default();
            }
        }
        drop(giving);
        drop(stills);
        if is_offered {
            // The pins have gone with the files.
            for file in files.iter().filter(|file| self.pins.lock().remove(&file.ino)) {
                file.pinned.store(false, SeqCst);
                self.let_go(file);
            }
        }
        Ok(Gone { epoch, slots, stopped })
    }

    /// V8, P7: nothing of the set is in flight, and nothing will land later. All are stopped before any is waited for.
    pub(super) async fn hold_all_still(self: &Arc<Self>, files: &[Arc<File>]) -> (Vec<Stop>, Vec<Still>) {
        // Others' requests end first, as they pass the gate, too; new ones are told to ask who serves.
        let guests: Vec<Stop> = files.iter().map(|file| file.guests.stop()).collect();
        for file in files {
            file.guests.drain().await;
        }
        let stops = self.rules.keeps(Rule::V8);
        let _gates: Vec<Stop> = files.iter().filter(|_| stops).map(|file| file.gate.stop()).collect();
        let mut stills = Vec::with_capacity(files.len());
        for file in files {
            stills.push(self.hold_still(file).await);
        }
        (guests, stills)
    }

    async fn commit_ahead(self: &Arc<Self>, files: &[Arc<File>]) -> Result<(), Refusal> {
        let mut turns = Vec::with_capacity(files.len());
        for file in files {
            turns.push(file.turn.take().await);
        }
        self.commit_set(files).await
    }

    /// The slots that go with the answer. Those that it has no room for are handed over now; if the set stays all the
    /// same, the coordinator has copies that nobody asks for.
    async fn hand_slots(&self, journey: u64, files: &[Arc<File>]) -> Result<Vec<FileSlots>, Refusal> {
        let mut slots = Vec::new();
        let mut room = SLOTS_BYTES;
        for file in files {
            let of_file = self.slots_of(file);
            if of_file.is_empty() {
                continue;
            }
            if of_file.len() > room && !slots.is_empty() {
                let slots = std::mem::take(&mut slots);
                self.channel.call(Operation::HandSlots { journey, slots }).await?;
                room = SLOTS_BYTES;
            }
            room = room.saturating_sub(of_file.len());
            slots.push(FileSlots { ino: file.ino, slots: of_file });
        }
        Ok(slots)
    }

    /// One entry of the authority: the next owner has the whole set. The epoch, if there is one.
    async fn give(
        &self,
        set: &[Leaving],
        next: Option<Next>,
        escrow: Option<Cookie>,
    ) -> Result<Option<Epoch>, Refusal> {
        let (volume, client) = (self.volume, self.client);
        let holding = |leaving: &Leaving| (ResourceId::File(volume, leaving.ino.0), leaving.epoch());
        let holdings: Vec<(ResourceId, Epoch)> = set.iter().map(holding).collect();
        match next {
            Some(Next { session, client: to, pinned, .. }) => {
                let handover = Handover { holdings, from: client, to: (session, to), pinned, escrow };
                self.with_authority(move |authority| authority.transfer(&handover)).await.map(Some)
            }
            None => {
                // What this node has acquired and could not take up is nobody's before the coordinator's node serves it.
                let is_untaken = |file: &Arc<File>| file.is_elsewhere();
                let untaken = set.iter().filter(|leaving| leaving.file.as_ref().is_some_and(is_untaken));
                self.drop_unclaimed(untaken.map(|leaving| leaving.ino).collect()).await;
                let held = holdings.into_iter().filter(|(_, epoch)| *epoch != Epoch::NOBODY).collect();
                self.with_authority(move |authority| authority.release_all(held, client)).await?;
                Ok(None)
            }
        }
    }
}
