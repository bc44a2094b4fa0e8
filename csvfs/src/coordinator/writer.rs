//! The one writer: takes what waits, applies it in one transaction, commits, answers (V3).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lockd::authority::Standing;
use lockd::failpoint;
use lockd::ids::{ClientId, Sequence, SessionId};
use lockd::network::CarrierError;
use lockd::rules::Rule;
use lockd::slots::{SLOTS_PER_CLIENT, SlotDecision, SlotRefusal};
use redb::{Durability, ReadableTable};
use zerocopy::little_endian::{U32, U64};

use super::apply::apply;
use super::change::{Change, Hints, Scene, Verdict};
use super::core::Core;
use super::due::{Changed, Due, Making, encoded, frame};
use super::gauge::Gauge;
use super::opens::OnRest;
use super::queue::{Internal, OnInternal, Pending, Work};
use super::stop::Stop;
use crate::disk::journal::Journal;
use crate::proto::{Answered, Key, Operation};
use crate::refusal::Refusal;
use crate::slots::decide;
use crate::store::record::{ClientRecord, Counters, ENDED, SlotRecord};
use crate::store::{Snapshot, StoreError, Tables, pair};
use crate::types::{BLOCK, Ino, Run};

/// What a group leaves behind.
#[derive(Default)]
struct Outcome {
    answers: Vec<Due>,
    continued: Vec<Work>,
    chunks: Vec<Run>,
    gone: Vec<Ino>,
    ended: Vec<ClientId>,
    /// What the coordinator's own work has touched.
    touched: Vec<Key>,
    /// Something is to be reclaimed.
    reclaim: bool,
    /// Somebody waits for space.
    urgent: bool,
}

/// The writer's own state.
pub struct Writer {
    core: Arc<Core>,
    counters: Counters,
    hints: Hints,
    /// Clients that the store knows, of this session.
    known: std::collections::HashSet<ClientId>,
    /// Steps of long operations, to be done with the next group.
    continued: Vec<Work>,
    /// Operations that wait for the reclaimer.
    waiting: Vec<Pending>,
    /// Who waited for files that a client has let go by its end.
    told: Vec<OnRest>,
    gauge: Gauge,
}

impl Writer {
    /// A writer on the store as it is.
    pub fn new(core: Arc<Core>) -> Result<Self, StoreError> {
        let counters = Snapshot::take(&core.parts.database)?.counters;
        Ok(Self {
            core,
            counters,
            hints: Hints::default(),
            known: std::collections::HashSet::new(),
            continued: Vec::new(),
            waiting: Vec::new(),
            told: Vec::new(),
            gauge: Gauge::default(),
        })
    }

    /// Serves until the queue is stopped.
    pub fn serve(mut self) {
        let mut answered = 0;
        while let Some(arrived) = self.core.queue.take(!self.continued.is_empty(), answered) {
            answered = arrived.len();
            self.serve_group(arrived);
            if self.core.queue.is_stopped() {
                self.close();
            }
        }
        self.close();
    }

    /// What goes on, and what has arrived.
    fn serve_group(&mut self, arrived: Vec<Work>) {
        let mut group = std::mem::take(&mut self.continued);
        group.extend(arrived);
        self.core.changes.fetch_add(group.len() as u64, Ordering::Relaxed);
        self.group(group);
    }

    /// Serves what waits now, for those who start it without its thread.
    #[cfg(test)]
    pub fn step(&mut self) {
        if let Some(arrived) = self.core.queue.take_now(!self.continued.is_empty()) {
            self.serve_group(arrived);
        }
    }

    /// Whether there is something to do.
    #[cfg(test)]
    pub fn has_work(&self) -> bool {
        !self.continued.is_empty()
    }

    fn close(&mut self) {
        for pending in self.waiting.drain(..) {
            (pending.on_reply)(Err(CarrierError::Closed("the coordinator stops".to_owned())));
        }
    }

    /// One group: applied, committed, answered.
    fn group(&mut self, group: Vec<Work>) {
        if let Err(refusal) = self.core.may_change().and_then(|()| self.core.holds_role()) {
            self.refuse_all(group, &refusal);
            return;
        }
        let mut outcome = Outcome::default();
        let result = self.transact(group, &mut outcome);
        self.core.opens.lock().buried(&outcome.gone);
        if let Err(error) = result {
            self.core.store_failed(&error);
            self.core.break_down(&error.to_string());
            let refusal = Refusal::Io(error.to_string());
            outcome.answers.into_iter().for_each(|answer| answer.fail(&refusal));
            self.refuse_all(std::mem::take(&mut outcome.continued), &refusal);
            return;
        }
        for client in &outcome.ended {
            self.core.slots.lock().forget(*client);
            self.known.remove(client);
            self.core.end_leases(*client);
        }
        self.core.rested(std::mem::take(&mut self.told));
        self.continued = outcome.continued;
        if !outcome.chunks.is_empty()
            && let Err(error) = self.core.parts.space.offer(&outcome.chunks)
        {
            self.core.break_down(&error.to_string());
        }
        // Nobody waits for that: inodes that are removed here have been out of reach.
        self.core.recall(&outcome.touched, None, Box::new(|| {}));
        outcome.answers.into_iter().for_each(|answer| answer.give(&self.core));
        if outcome.reclaim || outcome.urgent {
            self.core.call_reclaimer(outcome.urgent);
        }
    }

    fn refuse_all(&mut self, group: Vec<Work>, refusal: &Refusal) {
        let bytes = frame(&Err(refusal.clone()));
        for work in group {
            match work {
                Work::Request(pending) => (pending.on_reply)(Ok(bytes.clone())),
                Work::Internal(_, done) => done(Err(refusal.clone())),
            }
        }
        for pending in self.waiting.drain(..) {
            (pending.on_reply)(Ok(bytes.clone()));
        }
    }

    /// Applies `group` in one transaction and commits it.
    fn transact(&mut self, group: Vec<Work>, outcome: &mut Outcome) -> Result<(), StoreError> {
        let core = Arc::clone(&self.core);
        let mut transaction = core.parts.database.begin_write()?;
        if std::mem::take(&mut self.gauge.wanted) {
            let (start, commits) = (core.parts.clock.boot(), core.commits.load(Ordering::Relaxed));
            core.parts.space.measured(transaction.stats()?.allocated_pages() * BLOCK);
            self.gauge.last = Some((commits, start, core.parts.clock.boot().since(start)));
        }
        let scene = Scene {
            rules: core.parts.rules,
            key: core.parts.key,
            opens: &core.opens,
            home: core.home(),
            scarce: core.parts.space.is_scarce(),
            now: core.parts.clock.wall().0,
            // Who attaches does so in this thread: before that nobody has leases.
            tracks: core.clients.any(),
        };
        // Pages that were freed come back only when the store is made durable: with little room at once.
        let journal = core.parts.journal.as_ref().filter(|_| !scene.scarce);
        let tables = if journal.is_some() { Tables::logged(&transaction) } else { Tables::of(&transaction) };
        let mut change = Change::new(tables, self.counters, self.hints, scene);
        let applied = self.apply_group(&mut change, group, outcome);
        outcome.gone.append(&mut change.dying);
        applied?;
        let dirty = change.finish(core.parts.journal.as_ref().map(Journal::epoch))?;
        let settles = std::mem::take(&mut self.gauge.settles) && !dirty;
        let (counters, hints, log) = (change.counters, change.hints, change.tables.take_log());
        // What is in quarantine is looked at again by itself once it has been looked at.
        outcome.reclaim = counters.pending.get() > 0
            || counters.orphans.get() > self.counters.orphans.get()
            || counters.quarantined.get() > self.counters.quarantined.get();
        drop(change);
        if !core.parts.rules.keeps(Rule::V3) {
            // The mutant: acknowledged before it is durable.
            outcome.answers.drain(..).for_each(|answer| answer.give(&core));
        }
        if dirty || settles {
            failpoint::reached("commit.applied");
            let written = match journal {
                Some(journal) => {
                    journal.append(counters.journal_sequence.get(), log.bytes()).map_err(StoreError::below)?
                }
                None => None,
            };
            match written {
                // V12: durable before anybody sees it.
                Some(written) => {
                    written.wait().map_err(StoreError::below)?;
                    let in_memory = transaction.set_durability(Durability::None);
                    in_memory.map_err(|error| StoreError::Damaged(error.to_string()))?;
                    transaction.commit()?;
                }
                None => self.make_durable(transaction)?,
            }
            failpoint::reached("commit.durable");
            let commits = core.commits.fetch_add(1, Ordering::Relaxed) + 1;
            if settles {
                self.gauge.settled = commits;
            }
            core.outdate();
        } else {
            transaction.abort()?;
        }
        self.counters = counters;
        self.hints = hints;
        Ok(())
    }

    /// Commits the store itself, and all that the journal has with it.
    fn make_durable(&self, mut transaction: redb::WriteTransaction) -> Result<(), StoreError> {
        // The allocator's state goes along, so that opening after a crash is instant.
        transaction.set_quick_repair(true);
        transaction.commit()?;
        if let Some(journal) = &self.core.parts.journal {
            journal.begin_anew();
        }
        Ok(())
    }

    fn apply_group(
        &mut self,
        change: &mut Change<'_, '_>,
        group: Vec<Work>,
        outcome: &mut Outcome,
    ) -> Result<(), StoreError> {
        let mut group = group.into_iter();
        let wanted = self.core.parts.space.wanted();
        let mut broken = None;
        if wanted > 0 {
            match change.take_chunks(wanted, self.core.parts.space.chunk_blocks()) {
                Ok(chunks) => outcome.chunks = chunks,
                Err(Stop::Broken(error)) => broken = Some(error),
                Err(Stop::Refused(_)) => {}
            }
        }
        while broken.is_none() {
            let Some(work) = group.next() else { return Ok(()) };
            broken = match work {
                Work::Request(pending) => self.request(change, pending, outcome),
                Work::Internal(internal, done) => self.internal(change, internal, done, outcome),
            };
        }
        outcome.continued.extend(group);
        broken.map_or(Ok(()), Err)
    }

    /// One operation. Returns the store's error, if it broke.
    fn request(
        &mut self,
        change: &mut Change<'_, '_>,
        mut pending: Pending,
        outcome: &mut Outcome,
    ) -> Option<StoreError> {
        change.begin();
        let result = self.execute(change, &pending);
        let head = pending.request.head;
        let slot = (head.client, head.slot.map_or(u32::MAX, |(slot, _)| slot.0));
        let reply = match result {
            Ok(Executed::Repeated(reply)) => {
                outcome.answers.push(Due::Repeated(pending.on_reply, reply, slot));
                return None;
            }
            Ok(Executed::Now(Verdict::More(mark))) => {
                pending.mark = mark;
                outcome.continued.push(Work::Request(pending));
                return None;
            }
            Ok(Executed::Now(Verdict::Done(answer))) => {
                let touched = change.take_touched();
                let outdated =
                    if self.core.clients.knows(head.client) { touched.clone() } else { Vec::new() };
                let answered = Answered { outdated, ..Answered::from(Ok(answer)) };
                let reply = encoded(&answered);
                if let Err(error) = self.remember(change, &pending, &reply) {
                    outcome.answers.push(Due::Reply(pending.on_reply, reply));
                    return Some(error);
                }
                outcome.answers.push(if touched.is_empty() {
                    Due::Reply(pending.on_reply, reply)
                } else {
                    let directories = change.take_directories();
                    let making = Making::of(&pending.request.operation);
                    let changed = Changed { answered, directories, touched, slot, making };
                    Due::Change(pending.on_reply, Box::new(changed))
                });
                return None;
            }
            Err(Stop::Refused(Refusal::NoSpace)) if self.finds_room(change, outcome) => {
                outcome.continued.push(Work::Request(pending));
                return None;
            }
            Err(Stop::Refused(Refusal::NoSpace)) if waits_for_space(change, &pending) => {
                outcome.urgent = true;
                self.waiting.push(pending);
                return None;
            }
            Err(Stop::Refused(refusal)) => {
                let reply = frame(&Err(refusal));
                // Only in memory: whoever repeats it after a restart has it executed for the first time.
                if let Some((slot, sequence)) = head.slot.filter(|(slot, _)| slot.0 < SLOTS_PER_CLIENT) {
                    let mut slots = self.core.slots.lock();
                    let last = slots.get(head.client, slot);
                    if decide(self.core.parts.rules, last, sequence) == SlotDecision::Execute {
                        slots.put(head.client, slot, sequence, reply.clone());
                    }
                }
                reply
            }
            Err(Stop::Broken(error)) => {
                let refusal = Refusal::Io(error.to_string());
                outcome.answers.push(Due::Reply(pending.on_reply, frame(&Err(refusal))));
                return Some(error);
            }
        };
        outcome.answers.push(Due::Reply(pending.on_reply, reply));
        None
    }

    /// Whether the store may have room in the next group for what had none in this one: it has got chunks, into which it
    /// grows after this transaction, or deletions have made room inside of it.
    fn finds_room(&mut self, change: &Change<'_, '_>, outcome: &Outcome) -> bool {
        let commits = self.core.commits.load(Ordering::Relaxed);
        let measure = self.gauge.wanted || self.gauge.may_find(commits, self.core.parts.clock.boot());
        let settle = self.gauge.settles || self.gauge.may_settle(commits);
        if change.scene.scarce && outcome.chunks.is_empty() {
            (self.gauge.wanted, self.gauge.settles) = (measure, settle);
        }
        change.scene.scarce && (measure || settle || !outcome.chunks.is_empty())
    }

    /// Checks who asks and whether it was executed already; executes.
    fn execute(&mut self, change: &mut Change<'_, '_>, pending: &Pending) -> Result<Executed, Stop> {
        let head = &pending.request.head;
        self.core.check_head(head)?;
        let Some((slot, sequence)) = head.slot else {
            return Err(Refusal::Invalid("a change needs a reply slot".to_owned()).into());
        };
        if slot.0 >= SLOTS_PER_CLIENT {
            return Err(Refusal::Invalid(SlotRefusal::NoSuchSlot(slot).to_string()).into());
        }
        if self.core.parts.rules.keeps(Rule::V4) && !self.known.contains(&head.client) {
            let record = change.tables.clients()?.get(head.client.0)?.map(|record| record.value());
            if record.is_some_and(|record| record.flags.get() & ENDED != 0) {
                self.told.append(&mut self.core.opens.lock().end(head.client));
                return Err(Refusal::Stale(format!("client {} is over", head.client)).into());
            }
        }
        let decision = {
            let mut slots = self.core.slots.lock();
            if slots.get(head.client, slot).is_none() {
                // V4: what an earlier process executed is in the store.
                let key = pair(head.client.0, u64::from(slot.0));
                if let Some(value) = change.tables.slots()?.get(key)? {
                    let (sequence, reply) = SlotRecord::parse(value.value())?;
                    slots.put(head.client, slot, Sequence(sequence), reply.to_vec());
                }
            }
            decide(self.core.parts.rules, slots.get(head.client, slot), sequence)
        };
        match decision {
            SlotDecision::Execute => {}
            SlotDecision::Replay(reply) => return Ok(Executed::Repeated(reply)),
            SlotDecision::Refused(refusal) => return Err(Refusal::Stale(refusal.to_string()).into()),
        }
        if let Some(answer) = self.elsewhere(change, pending)? {
            return Ok(Executed::Now(answer.into()));
        }
        self.core.check_owned(head, &pending.request.operation)?;
        let executed = apply(change, &pending.request, pending.mark)?;
        if let Operation::Quarantine { runs } = &pending.request.operation {
            self.core.quarantine.lock().enter(runs, self.core.parts.clock.boot());
        }
        Ok(Executed::Now(executed))
    }

    /// What the node that serves a file has to do, as it knows size and times: the asker is sent there.
    fn elsewhere(
        &self,
        change: &Change<'_, '_>,
        pending: &Pending,
    ) -> Result<Option<crate::proto::Answer>, Stop> {
        let Operation::SetAttr { ino, .. } = pending.request.operation else { return Ok(None) };
        if !self.core.clients.knows(pending.request.head.client) {
            return Ok(None);
        }
        let (home, asker) = (self.core.home(), pending.request.head.client);
        let opens = self.core.opens.lock();
        let term = opens.term(ino, home);
        if !opens.is_written(ino) || term.is_some_and(|term| term.client == asker) {
            return Ok(None);
        }
        drop(opens);
        let record = change.inode(ino)?;
        let is_file = record.kind() == crate::types::Kind::File;
        Ok(is_file.then(|| crate::proto::Answer::Elsewhere(record.attr(ino), term)))
    }

    /// Keeps the reply in its slot, in the transaction of the operation (V4), and the client itself.
    fn remember(
        &mut self,
        change: &mut Change<'_, '_>,
        pending: &Pending,
        reply: &[u8],
    ) -> Result<(), StoreError> {
        let head = &pending.request.head;
        let Some((slot, sequence)) = head.slot else { return Ok(()) };
        if !self.known.contains(&head.client) {
            let record =
                ClientRecord { session: U64::new(head.session.0), flags: U32::ZERO, zero: U32::ZERO };
            change.tables.clients_mut()?.insert(head.client.0, record)?;
            self.known.insert(head.client);
        }
        change.dirty = true;
        if self.core.parts.rules.keeps(Rule::V4) {
            let value = SlotRecord::value(sequence.0, reply);
            change.tables.slots_mut()?.insert(pair(head.client.0, u64::from(slot.0)), value.as_slice())?;
        }
        self.core.slots.lock().put(head.client, slot, sequence, reply.to_vec());
        Ok(())
    }

    /// One piece of the coordinator's own work.
    fn internal(
        &mut self,
        change: &mut Change<'_, '_>,
        internal: Internal,
        done: OnInternal,
        outcome: &mut Outcome,
    ) -> Option<StoreError> {
        change.begin();
        let result = match internal {
            Internal::EndClient(client) => {
                outcome.ended.push(client);
                self.end_client(change, client).map(|()| None)
            }
            Internal::Attach(session, client, carrier) => {
                // Here, so that a change after it notes what it touches.
                self.core.leases.lock().begin(client);
                self.core.clients.attach(session, client, carrier.0);
                Ok(None)
            }
            Internal::Reclaim(from) => change.reclaim(from),
            Internal::Release { free, ghosts } => change.release(&free, &ghosts).map(|()| None),
            Internal::ReleaseQuarantine(free) => change.release_quarantine(&free).map(|()| None),
            Internal::Passed { progress } => {
                for mut pending in std::mem::take(&mut self.waiting) {
                    pending.last_try = !progress;
                    outcome.continued.push(Work::Request(pending));
                }
                Ok(None)
            }
        };
        outcome.touched.append(&mut change.take_touched());
        match result {
            Ok(value) => {
                outcome.answers.push(Due::Internal(done, value));
                None
            }
            Err(Stop::Refused(refusal)) => {
                done(Err(refusal));
                None
            }
            Err(Stop::Broken(error)) => {
                done(Err(Refusal::Io(error.to_string())));
                Some(error)
            }
        }
    }

    /// A client of this session is over: its reserve returns, its slots refuse from now on (V6, V4).
    fn end_client(&mut self, change: &mut Change<'_, '_>, client: ClientId) -> Result<(), Stop> {
        self.told.append(&mut self.core.opens.lock().end(client));
        change.end_reserve(client)?;
        change.dirty = true;
        let known = change.tables.clients()?.get(client.0)?.map(|record| record.value().session);
        let session = known.unwrap_or(U64::new(self.core.parts.authority.session().0));
        let record = ClientRecord { session, flags: U32::new(ENDED), zero: U32::ZERO };
        change.tables.clients_mut()?.insert(client.0, record)?;
        Ok(())
    }
}

/// How an operation came to its end.
enum Executed {
    /// Executed now.
    Now(Verdict),
    /// It was executed before; its reply.
    Repeated(Vec<u8>),
}

/// Whether an operation that found no space should wait for the reclaimer.
fn waits_for_space(change: &Change<'_, '_>, pending: &Pending) -> bool {
    let takes = matches!(pending.request.operation, Operation::Reserve { .. } | Operation::Allocate { .. });
    (takes || change.scene.scarce) && !pending.last_try && change.expects_space()
}

/// Ends the clients of earlier sessions: each one's reserve returns in the transaction of its end (V6).
pub fn end_earlier_clients(core: &Core) -> Result<(), StoreError> {
    let mut earlier = Vec::new();
    for row in core.snapshot()?.clients.range::<u64>(..)? {
        let (client, record) = row?;
        let (session, client) = (SessionId(record.value().session.get()), ClientId(client.value()));
        match core.parts.authority.standing(session) {
            Standing::Fenced => earlier.push(client),
            Standing::Ended => core.unfenced.lock().push((session, client)),
            Standing::Live => {}
        }
    }
    if earlier.is_empty() {
        return Ok(());
    }
    let counters = core.snapshot()?.counters;
    let mut transaction = core.parts.database.begin_write()?;
    transaction.set_quick_repair(true);
    let scene = Scene {
        rules: core.parts.rules,
        key: core.parts.key,
        opens: &core.opens,
        home: core.home(),
        scarce: false,
        now: core.parts.clock.wall().0,
        tracks: false,
    };
    let mut change = Change::new(Tables::of(&transaction), counters, Hints::default(), scene);
    for client in earlier {
        match change.end_reserve(client) {
            Ok(()) => {}
            Err(Stop::Broken(error)) => return Err(error),
            Err(Stop::Refused(refusal)) => return Err(StoreError::Damaged(refusal.to_string())),
        }
        change.tables.clients_mut()?.remove(client.0)?;
    }
    // No record: the store is made durable.
    change.finish(None)?;
    drop(change);
    transaction.commit()?;
    core.outdate();
    Ok(())
}
