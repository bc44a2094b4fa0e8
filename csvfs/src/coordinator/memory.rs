//! Changes of what the coordinator has in memory only: opens, attachments, who serves a file.
//!
//! They cost no transaction and are answered as soon as they can be. A late copy of one must not undo a later one: each
//! has its slot like any other change, kept in memory.

use std::sync::Arc;

use lockd::ids::ClientId;
use lockd::network::OnReply;
use lockd::slots::{SLOTS_PER_CLIENT, SlotRefusal};

use super::assembly;
use super::core::Core;
use super::due::{encoded, frame};
use super::moving;
use super::opens::Opening;
use super::question;
use super::queue::{Internal, Way, Work};
use super::stop::Stop;
use super::unseal;
use crate::proto::{
    ATTACH_SLOT, Answer, Answered, Declared, FileSlots, Head, Kept, Key, OpenedFile, Operation, Reply,
    Request,
};
use crate::refusal::Refusal;
use crate::slots::Begun;
use crate::store::pair;
use crate::store::record::SlotRecord;
use crate::types::{Attr, Ino};

/// Copies of a command that wait for the answer of the first; the oldest have long been given up by who sent them.
const COPIES_MAX: usize = 4;
/// Bytes of an answer to many openings, about, and of one of them without its slots: well below
/// [`FRAME_MAX`](crate::proto::codec::FRAME_MAX).
const SET_BYTES: usize = 512 << 10;
const OPENED_BYTES: usize = 192;

/// Whether `operation` is one of these.
pub fn is_of_memory(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Open { .. }
            | Operation::Close { .. }
            | Operation::Attach { .. }
            | Operation::OpenSet { .. }
            | Operation::Acquire { .. }
            | Operation::Release { .. }
            | Operation::HandSlots { .. }
    )
}

/// What ends a command: keeps the reply in its slot and gives it.
pub struct Finish {
    core: Arc<Core>,
    /// Who asks.
    pub head: Head,
    on_reply: OnReply,
}

impl Finish {
    fn with(self, answer: &Answered) {
        let bytes = encoded(answer);
        let mut copies = Vec::new();
        if let Some((slot, sequence)) = self.head.slot {
            let client = self.head.client;
            self.core.slots.lock().put(client, slot, sequence, bytes.clone());
            copies = self.core.copies.lock().remove(&(client, slot)).unwrap_or_default();
            copies.retain(|(of, _)| *of == sequence);
        }
        (self.on_reply)(Ok(bytes.clone()));
        copies.into_iter().for_each(|(_, on_reply)| on_reply(Ok(bytes.clone())));
    }

    /// With this reply.
    pub fn reply(self, reply: Reply) {
        self.with(&Answered::from(reply));
    }
}

/// Executes such a change once.
pub fn execute(core: &Arc<Core>, request: Request, on_reply: OnReply) {
    let head = request.head;
    let attaches = matches!(request.operation, Operation::Attach { .. });
    let begun = match begin(core, &head, attaches) {
        Ok(begun) => begun,
        Err(refusal) => return on_reply(Ok(frame(&Err(refusal)))),
    };
    match begun {
        Begun::Execute => {}
        Begun::Repeated(reply) => return on_reply(Ok(reply)),
        Begun::Refused(refusal) => return on_reply(Ok(frame(&Err(Refusal::Stale(refusal.to_string()))))),
        // The first copy may take its time: this one is answered with it, or asked for again.
        Begun::UnderWay => {
            if let Some((slot, sequence)) = head.slot {
                let mut copies = core.copies.lock();
                let copies = copies.entry((head.client, slot)).or_default();
                copies.truncate(COPIES_MAX - 1);
                copies.insert(0, (sequence, on_reply));
            }
            return;
        }
    }
    let finish = Finish { core: Arc::clone(core), head, on_reply };
    match request.operation {
        Operation::Open { ino, write } => open(core, ino, write, finish),
        Operation::Close { files } => {
            for FileSlots { ino, slots } in files {
                let closed = core.opens.lock().close(ino, head.client, slots);
                if closed.frees {
                    core.call_reclaimer(false);
                }
                core.rested(closed.told);
            }
            finish.reply(Ok(Answer::Done));
        }
        Operation::Attach { first, last, open, left, kept } => {
            let kept = if left == core.parts.openings.last { kept } else { Vec::new() };
            match core.assembly.gather(head.client, (first, last), open, kept) {
                Some((open, kept)) => attach(core, open, kept, finish),
                None => finish.reply(Ok(Answer::Done)),
            }
        }
        Operation::OpenSet { files } => open_set(core, files, finish),
        Operation::Acquire { files, claim } => moving::acquire(core, &files, claim, finish),
        Operation::Release { files } => moving::release(core, &files, finish),
        Operation::HandSlots { journey, slots } => {
            core.opens.lock().handed_over(journey, slots);
            finish.reply(Ok(Answer::Done));
        }
        _ => finish.reply(Err(Refusal::Invalid("not a change of memory".to_owned()))),
    }
}

fn begin(core: &Core, head: &Head, attaches: bool) -> Result<Begun, Refusal> {
    let Some((slot, sequence)) = head.slot else {
        return Err(Refusal::Invalid("a change needs a reply slot".to_owned()));
    };
    let is_there = if attaches { slot == ATTACH_SLOT } else { slot.0 < SLOTS_PER_CLIENT };
    if !is_there {
        return Err(Refusal::Invalid(SlotRefusal::NoSuchSlot(slot).to_string()));
    }
    let is_known = core.slots.lock().get(head.client, slot).is_some();
    if !is_known {
        // V4: what an earlier process executed is in the store.
        let failed = |error: crate::store::StoreError| Refusal::Io(error.to_string());
        let snapshot = core.snapshot().map_err(failed)?;
        let key = pair(head.client.0, u64::from(slot.0));
        let stored = snapshot.slots.get(key).map_err(|error| failed(error.into()))?;
        let stored = stored.map(|value| {
            let (last, reply) = SlotRecord::parse(value.value())?;
            Ok((lockd::ids::Sequence(last), reply.to_vec()))
        });
        if let Some((last, reply)) = stored.transpose().map_err(failed)? {
            let mut slots = core.slots.lock();
            if slots.get(head.client, slot).is_none() {
                slots.put(head.client, slot, last, reply);
            }
        }
    }
    Ok(core.slots.lock().begin(core.parts.rules, head.client, slot, sequence))
}

/// The attributes of `ino` as committed.
fn attr(core: &Core, ino: Ino) -> Result<Attr, Refusal> {
    let snapshot = core.snapshot().map_err(|error| Refusal::Io(error.to_string()))?;
    match question::answer(&snapshot, &core.parts.key, &Operation::GetAttr { ino }).map_err(Stop::refusal)? {
        Answer::Entry(attr) => Ok(attr),
        _ => Err(Refusal::NotFound),
    }
}

/// Who serves `ino`, as `client` is told; `opened` also for a client that does not attach.
fn opened(core: &Core, ino: Ino, client: Option<ClientId>) -> Reply {
    let attr = attr(core, ino)?;
    let home = core.home();
    let mut opens = core.opens.lock();
    match opens.term(ino, home) {
        Some(term) => {
            let slots = if client == Some(term.client) { opens.take_slots(ino) } else { Vec::new() };
            Ok(Answer::Opened { attr, term, slots })
        }
        None if opens.is_open(ino) => Ok(Answer::Elsewhere(attr, None)),
        None => Err(Refusal::Stale(format!("nobody has {ino} open"))),
    }
}

fn open(core: &Arc<Core>, ino: Ino, write: bool, finish: Finish) {
    let client = finish.head.client;
    let opening = core.opens.lock().open(ino, client, write);
    if opening == Opening::Refused {
        return finish.reply(Err(Refusal::NotFound));
    }
    // Also of one that writes already: those who are told because of its first opening may not have answered yet.
    let keys = if write { vec![Key::Attr(ino)] } else { Vec::new() };
    let outdated = keys.clone();
    let owner = Arc::clone(core);
    // V9: size and times of a file that is being written are in nobody's cache.
    let then = move || {
        let is_sealed = attr(&owner, ino).is_ok_and(|attr| attr.sealed);
        let is_lent = is_sealed && unseal::lend(&owner, ino, client);
        let mut reply = opened(&owner, ino, Some(client));
        match &mut reply {
            // Its server is told how it is; the others, whether it is lent to them. Read after the grant: what has been
            // unsealed since is not sealed here.
            Ok(Answer::Opened { term, .. }) if term.client == client => {}
            Ok(Answer::Opened { attr, .. } | Answer::Elsewhere(attr, _)) => attr.sealed &= is_lent,
            _ => {}
        }
        if reply.is_err() {
            let closed = owner.opens.lock().close(ino, client, Vec::new());
            owner.rested(closed.told);
        }
        finish.with(&Answered { outdated, ..Answered::from(reply) });
    };
    core.recall(&keys, Some(client), Box::new(then));
}

/// As [`open`], of many. The answer is of as many as fit into it: the slots of those behind stay here.
fn open_set(core: &Arc<Core>, files: Vec<Declared>, finish: Finish) {
    let client = finish.head.client;
    let mut outdated = Vec::new();
    let opened: Vec<(Ino, bool)> = {
        let mut opens = core.opens.lock();
        let mut open = |Declared { ino, write, .. }| {
            let opening = opens.open(ino, client, write);
            if write {
                outdated.push(Key::Attr(ino));
            }
            (ino, opening != Opening::Refused)
        };
        files.into_iter().map(&mut open).collect()
    };
    let keys = outdated.clone();
    let owner = Arc::clone(core);
    // V9, as above.
    let then = move || {
        let mut replies = Vec::with_capacity(opened.len());
        let mut room = SET_BYTES;
        let mut told = Vec::new();
        for (ino, is_open) in opened {
            let slots = owner.opens.lock().slots_len(ino);
            room = room.saturating_sub(OPENED_BYTES + slots);
            if room == 0 && !replies.is_empty() {
                break;
            }
            let reply = if is_open { opened_one(&owner, ino, client) } else { Err(Refusal::NotFound) };
            if is_open && reply.is_err() {
                told.append(&mut owner.opens.lock().close(ino, client, Vec::new()).told);
            }
            replies.push(reply);
        }
        owner.rested(told);
        finish.with(&Answered { outdated, ..Answered::from(Ok(Answer::OpenedSet(replies))) });
    };
    core.recall(&keys, Some(client), Box::new(then));
}

/// Of many; whoever has just acquired them takes them up with that.
fn opened_one(core: &Core, ino: Ino, client: ClientId) -> Result<OpenedFile, Refusal> {
    let attr = attr(core, ino)?;
    let home = core.home();
    let mut opens = core.opens.lock();
    if !opens.is_open(ino) {
        return Err(Refusal::Stale(format!("nobody has {ino} open")));
    }
    let term = opens.term_for(ino, client, home);
    let is_server = term.is_some_and(|term| term.client == client);
    let slots = if is_server { opens.take_slots(ino) } else { Vec::new() };
    Ok(OpenedFile { attr, term, slots })
}

/// The client can be called, has no leases, and holds this open.
fn attach(core: &Arc<Core>, open: Vec<Declared>, kept: Vec<Kept>, finish: Finish) {
    let Head { session, client, .. } = finish.head;
    let Some(carrier) = core.parts.peers.way(session, client) else {
        return finish
            .reply(Err(Refusal::Busy(format!("no way to client {client} is known yet; try again"))));
    };
    let owner = Arc::clone(core);
    let done = move |attached: Result<Option<u64>, Refusal>| {
        if let Err(refusal) = attached {
            return finish.reply(Err(refusal));
        }
        let held: Vec<(Ino, bool)> = open.iter().map(|open| (open.ino, open.write)).collect();
        let (written, told) = owner.opens.lock().declare(client, &held);
        owner.rested(told);
        owner.call_reclaimer(false);
        let finish = assembly::attached(&owner, (session, client), &open, kept, finish);
        owner.watch.wake();
        // Nobody has leases before all are answered.
        let Some(finish) = finish else { return };
        let keys: Vec<Key> = written.into_iter().map(Key::Attr).collect();
        owner.clone().recall(&keys, Some(client), Box::new(move || finish.reply(Ok(Answer::Done))));
    };
    // A coordinator that has stopped takes no work; whoever asks it is told by the carrier.
    let _ = core.queue.push(Work::Internal(Internal::Attach(session, client, Way(carrier)), Box::new(done)));
}

/// Who serves `ino`, when it rests.
pub fn serving(core: &Arc<Core>, ino: Ino, on_reply: OnReply) {
    let owner = Arc::clone(core);
    let answer = Box::new(move || on_reply(Ok(frame(&opened(&owner, ino, None)))));
    let now = core.opens.lock().wait(ino, answer);
    if let Some(now) = now {
        now();
    }
}
