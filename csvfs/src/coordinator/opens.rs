//! Who holds which inode open, for writing or not, and who serves it.
//!
//! An inode outlives its last name as long as anybody holds it open. Kept in memory only: opening costs no transaction.
//! What was open when a coordinator ended is declared anew by the nodes (V10), or was open in a session that is over.

use std::collections::{BTreeMap, HashSet};

use lockd::ids::{ClientId, Epoch, SessionId};

use crate::proto::{FileSlots, Kept, Term};
use crate::types::Ino;

/// What is called when a file has come to rest at a server.
pub type OnRest = Box<dyn FnOnce() + Send>;

/// The owner of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Its session.
    pub session: SessionId,
    /// Who.
    pub client: ClientId,
    /// The epoch of the ownership.
    pub epoch: Epoch,
}

/// How a journey ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rest {
    /// The files go on as before.
    Stays,
    /// They are served by their owner from now on, or by the coordinator's node, in a new term.
    Moved(Option<Owner>),
    /// The same node goes on to serve them, in the same term; they have this owner, or none.
    InPlace(Option<Owner>),
}

/// An inode that somebody holds open.
#[derive(Default)]
struct Entry {
    /// Who, and whether for writing.
    holders: Vec<(ClientId, bool)>,
    /// Who owns it; if nobody does, the coordinator's node serves it.
    owner: Option<Owner>,
    tenure: u64,
    since: u64,
    /// The slots of remote users, while no server has them.
    slots: Vec<u8>,
    /// On its way from one server to the next: the number of this journey.
    moving: Option<u64>,
    waiting: Vec<OnRest>,
}

impl Entry {
    fn term(&self, home: (SessionId, ClientId)) -> Term {
        let (session, client) = self.owner.map_or(home, |owner| (owner.session, owner.client));
        let owned = self.owner.map(|owner| owner.epoch);
        Term { session, client, tenure: self.tenure, since: self.since, owned }
    }
}

/// The table of opens.
#[derive(Default)]
pub struct Opens {
    /// In order, so that what is done to all of a client's files has one order.
    by_inode: BTreeMap<Ino, Entry>,
    /// Inodes that a transaction under way removes.
    dying: HashSet<Ino>,
    /// Inodes without a name that somebody holds open.
    orphans: HashSet<Ino>,
    /// Inodes on a journey of which nobody knows how it has ended, open or not.
    in_doubt: BTreeMap<Ino, u64>,
    /// Owners who are dead, and whose files are not given away yet.
    dead_owners: BTreeMap<Ino, Owner>,
    /// Somebody may have inodes open of which nothing is known: none is removed.
    holds_back: bool,
    /// No file begins to change its server.
    is_quiet: bool,
    /// Clients that are over.
    ended: HashSet<ClientId>,
    /// The last tenure that was given out.
    tenure: u64,
}

impl std::fmt::Debug for Opens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opens").field("open", &self.by_inode.len()).finish_non_exhaustive()
    }
}

/// How an opening went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// Refused: the inode is being removed, or the client is over.
    Refused,
    /// Open; nobody else learns of it.
    Open,
    /// Open for writing by a client that did not have it so: from now on its attributes are known to its server only.
    BeginsWriting,
}

/// How a closing went.
#[derive(Default)]
pub struct Closed {
    /// It was an orphan's last holder.
    pub frees: bool,
    /// Who waited for the file to rest.
    pub told: Vec<OnRest>,
}

impl Opens {
    /// Tenures are given out from above `first`.
    pub fn new(first: u64) -> Self {
        Self { tenure: first, ..Self::default() }
    }

    fn next_tenure(&mut self) -> u64 {
        self.tenure += 1;
        self.tenure
    }

    /// `client` holds `ino` open.
    pub fn open(&mut self, ino: Ino, client: ClientId, write: bool) -> Opening {
        if self.dying.contains(&ino) || self.ended.contains(&client) {
            return Opening::Refused;
        }
        if !self.by_inode.contains_key(&ino) {
            let tenure = self.next_tenure();
            let moving = self.in_doubt.get(&ino).copied();
            let owner = self.dead_owners.get(&ino).copied();
            self.by_inode.insert(ino, Entry { owner, tenure, since: tenure, moving, ..Entry::default() });
        }
        let Some(entry) = self.by_inode.get_mut(&ino) else { return Opening::Refused };
        let was_writing = entry.holders.iter().any(|(holder, write)| *write && *holder == client);
        match entry.holders.iter_mut().find(|(holder, _)| *holder == client) {
            Some(holder) => holder.1 |= write,
            None => entry.holders.push((client, write)),
        }
        if write && !was_writing { Opening::BeginsWriting } else { Opening::Open }
    }

    /// `client` holds `ino` open no more. `slots`: what its server hands over.
    pub fn close(&mut self, ino: Ino, client: ClientId, slots: Vec<u8>) -> Closed {
        let Some(entry) = self.by_inode.get_mut(&ino) else { return Closed::default() };
        entry.holders.retain(|(holder, _)| *holder != client);
        if !slots.is_empty() {
            entry.slots = slots;
        }
        if entry.holders.is_empty() {
            let told = self.by_inode.remove(&ino).map_or_else(Vec::new, |entry| entry.waiting);
            return Closed { frees: self.orphans.remove(&ino), told };
        }
        if entry.owner.is_some_and(|owner| owner.client == client) {
            // If it moves, its journey goes on.
            self.tenure += 1;
            (entry.owner, entry.tenure) = (None, self.tenure);
        }
        Closed::default()
    }

    /// Nothing is removed from now on, or it may be: nobody knows what a dead mount has open.
    pub fn hold_back(&mut self, holds_back: bool) {
        self.holds_back = holds_back;
    }

    /// `owner`, who has just declared that it has `ino` open, says that it serves it in this term, which an earlier
    /// coordinator has given out. To be followed by [`Opens::settle`].
    pub fn claim(&mut self, ino: Ino, owner: Owner, tenure: u64, since: u64) {
        if let Some(entry) = self.by_inode.get_mut(&ino) {
            (entry.owner, entry.tenure, entry.since) = (Some(owner), tenure, since);
        }
    }

    /// All have declared what they have open. `owned` is what has an owner; `lives` says whose node does. What the last
    /// coordinator's node hands on of files that nobody serves is `kept`.
    pub fn settle(&mut self, owned: BTreeMap<Ino, Owner>, lives: impl Fn(ClientId) -> bool, kept: Vec<Kept>) {
        let tenure = self.next_tenure();
        let mut untaken = HashSet::new();
        for (ino, entry) in &mut self.by_inode {
            let owner = owned.get(ino).copied();
            if entry.owner == owner {
                continue;
            }
            // Who claims it has committed it, and given it back. Who owns it and does not claim it has been given it by the
            // last coordinator, and takes it up now: unless its slots are handed on, whatever was under way has none.
            if owner.is_some() {
                untaken.insert(*ino);
                entry.since = tenure;
            }
            (entry.owner, entry.tenure) = (owner, tenure);
        }
        for Kept { ino, owned, since, slots } in kept {
            // What an owner had that is dead now is lost with it.
            let is_nobodys = |entry: &&mut Entry| entry.owner.is_none() && !owned;
            let is_untaken = untaken.contains(&ino);
            let entry = self.by_inode.get_mut(&ino);
            if let Some(entry) = entry.filter(|entry| is_nobodys(entry) || is_untaken) {
                (entry.since, entry.slots) = (since.min(entry.since), slots);
            }
        }
        self.dead_owners = owned.into_iter().filter(|(_, owner)| !lives(owner.client)).collect();
    }

    /// These have no name; those of them that are open are reclaimed when they are closed.
    pub fn without_name(&mut self, orphans: &[Ino]) {
        let open = orphans.iter().filter(|ino| self.by_inode.contains_key(ino));
        self.orphans.extend(open.copied());
    }

    /// What the next coordinator has to know of files that nobody serves, because nobody owns them or (what only the owner
    /// knows) their owner has not taken them up yet: that everything in them is committed, and the slots of their remote users,
    /// of which `slots` are those that this node had.
    pub fn bequeath(&self, slots: Vec<FileSlots>) -> Vec<Kept> {
        let mut slots: BTreeMap<Ino, Vec<u8>> =
            slots.into_iter().map(|FileSlots { ino, slots }| (ino, slots)).collect();
        let resting = self.by_inode.iter().filter(|(_, entry)| entry.moving.is_none());
        let kept = resting.map(|(ino, entry)| {
            let slots = slots.remove(ino).unwrap_or_else(|| entry.slots.clone());
            Kept { ino: *ino, owned: entry.owner.is_some(), since: entry.since, slots }
        });
        kept.collect()
    }

    /// No file begins to change its server from now on, or may again.
    pub fn set_quiet(&mut self, is_quiet: bool) {
        self.is_quiet = is_quiet;
    }

    /// Whether no file begins to change its server.
    pub fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Whether a file is on its way from one server to another.
    pub fn is_any_moving(&self) -> bool {
        self.by_inode.values().any(|entry| entry.moving.is_some())
    }

    /// Whether `client` owns `ino`.
    pub fn is_owner(&self, ino: Ino, client: ClientId) -> bool {
        let owner = self.by_inode.get(&ino).and_then(|entry| entry.owner);
        owner.is_some_and(|owner| owner.client == client)
    }

    /// Whether anybody holds `ino` open.
    pub fn is_open(&self, ino: Ino) -> bool {
        self.by_inode.contains_key(&ino)
    }

    /// Whether `client` holds `ino` open.
    pub fn is_holder(&self, ino: Ino, client: ClientId) -> bool {
        self.by_inode.get(&ino).is_some_and(|entry| entry.holders.iter().any(|(holder, _)| *holder == client))
    }

    /// Whether `client` alone holds `ino` open, and nobody owns it.
    pub fn is_only_holder(&self, ino: Ino, client: ClientId) -> bool {
        self.by_inode.get(&ino).is_some_and(|entry| {
            entry.owner.is_none()
                && entry.moving.is_none()
                && entry.holders.iter().all(|(holder, _)| *holder == client)
        })
    }

    /// Whether somebody has `ino` open for writing.
    pub fn is_written(&self, ino: Ino) -> bool {
        self.by_inode.get(&ino).is_some_and(|entry| entry.holders.iter().any(|(_, write)| *write))
    }

    /// Whether somebody else than `client` has `ino` open for writing, `home` (who serves it) not counted.
    pub fn is_written_by_others(&self, ino: Ino, client: ClientId, home: ClientId) -> bool {
        self.by_inode.get(&ino).is_some_and(|entry| {
            entry.holders.iter().any(|(holder, write)| *write && *holder != client && *holder != home)
        })
    }

    /// Who serves `ino`, which is open; `home` if nobody owns it. `None` while it moves.
    pub fn term(&self, ino: Ino, home: (SessionId, ClientId)) -> Option<Term> {
        let entry = self.by_inode.get(&ino)?;
        entry.moving.is_none().then(|| entry.term(home))
    }

    /// The same, as `client` is told that takes up what it has acquired: its own term also when the file is to leave it
    /// already. It yields after it has taken it up only; nobody but itself could end that journey.
    pub fn term_for(&self, ino: Ino, client: ClientId, home: (SessionId, ClientId)) -> Option<Term> {
        let entry = self.by_inode.get(&ino)?;
        let is_owner = entry.owner.is_some_and(|owner| owner.client == client);
        (is_owner || entry.moving.is_none()).then(|| entry.term(home))
    }

    /// Takes the slots that no server has.
    pub fn take_slots(&mut self, ino: Ino) -> Vec<u8> {
        self.by_inode.get_mut(&ino).map_or_else(Vec::new, |entry| std::mem::take(&mut entry.slots))
    }

    /// How long the slots that no server has are, in bytes.
    pub fn slots_len(&self, ino: Ino) -> usize {
        self.by_inode.get(&ino).map_or(0, |entry| entry.slots.len())
    }

    /// Begins to move `files`: nobody is named as their server until [`Opens::rest`]. The journey's number; none if one of
    /// them moves already, or is not open: then none moves.
    pub fn depart(&mut self, files: &[Ino]) -> Option<u64> {
        let can = |ino: &Ino| self.by_inode.get(ino).is_some_and(|entry| entry.moving.is_none());
        if !files.iter().all(can) {
            return None;
        }
        self.tenure += 1;
        for ino in files {
            if let Some(entry) = self.by_inode.get_mut(ino) {
                entry.moving = Some(self.tenure);
            }
        }
        Some(self.tenure)
    }

    /// The last server of files on that journey has handed over their slots.
    pub fn handed_over(&mut self, journey: u64, slots: Vec<FileSlots>) {
        for FileSlots { ino, slots } in slots {
            if let Some(entry) = self.by_inode.get_mut(&ino).filter(|entry| entry.moving == Some(journey)) {
                entry.slots = slots;
            }
        }
    }

    /// How the journey of `files` ends will be known later, and they are on it meanwhile, even if nobody has them open.
    pub fn doubt(&mut self, files: &[Ino], journey: u64) {
        let is_on_it = |ino: &&Ino| self.by_inode.get(ino).is_none_or(|entry| entry.moving == Some(journey));
        let on_it: Vec<Ino> = files.iter().filter(is_on_it).copied().collect();
        self.in_doubt.extend(on_it.into_iter().map(|ino| (ino, journey)));
    }

    /// The journey of `files` has ended so. Nothing happens to those that ended it with all who had them open.
    pub fn rest(&mut self, files: &[Ino], journey: u64, rest: Rest) -> Vec<OnRest> {
        let tenure = self.next_tenure();
        let mut told = Vec::new();
        for ino in files {
            if self.in_doubt.get(ino) == Some(&journey) {
                self.in_doubt.remove(ino);
            }
            let entry = self.by_inode.get_mut(ino).filter(|entry| entry.moving == Some(journey));
            let Some(entry) = entry else { continue };
            entry.moving = None;
            // Who has closed it meanwhile serves nothing.
            let holds = |owner: &Owner| entry.holders.iter().any(|(holder, _)| *holder == owner.client);
            match rest {
                Rest::Stays => {}
                Rest::Moved(owner) => (entry.owner, entry.tenure) = (owner.filter(holds), tenure),
                Rest::InPlace(owner) => entry.owner = owner.filter(holds),
            }
            told.append(&mut entry.waiting);
        }
        told
    }

    /// Calls `waiter` when `ino` moves no more; gives it back if that is now.
    pub fn wait(&mut self, ino: Ino, waiter: OnRest) -> Option<OnRest> {
        match self.by_inode.get_mut(&ino) {
            Some(entry) if entry.moving.is_some() => {
                entry.waiting.push(waiter);
                None
            }
            _ => Some(waiter),
        }
    }

    /// `ino` has lost its last name: it is removed by the transaction under way, unless somebody holds it open.
    pub fn bury(&mut self, ino: Ino) -> bool {
        if self.is_open(ino) {
            self.orphans.insert(ino);
            return false;
        }
        // V10: later, when all that is open is known.
        if self.holds_back {
            return false;
        }
        self.dying.insert(ino);
        true
    }

    /// `client` holds `ino` open, which never had a name.
    pub fn open_unnamed(&mut self, ino: Ino, client: ClientId) {
        self.open(ino, client, true);
        self.orphans.insert(ino);
    }

    /// `ino` has a name again.
    pub fn adopted(&mut self, ino: Ino) {
        self.orphans.remove(&ino);
    }

    /// The transaction that removed `gone` is committed.
    pub fn buried(&mut self, gone: &[Ino]) {
        for ino in gone {
            self.dying.remove(ino);
        }
    }

    /// `client` is over: what it held open is closed. What it served goes to the coordinator's node, and what was
    /// written there and not committed is lost. Tells who waited for such files.
    pub fn end(&mut self, client: ClientId) -> Vec<OnRest> {
        self.ended.insert(client);
        self.let_go(client)
    }

    /// What `client` holds open is what it will declare now.
    pub fn let_go(&mut self, client: ClientId) -> Vec<OnRest> {
        let mut told = Vec::new();
        self.dead_owners.retain(|_, owner| owner.client != client);
        let tenure = &mut self.tenure;
        self.by_inode.retain(|_, entry| {
            entry.holders.retain(|(holder, _)| *holder != client);
            if entry.owner.is_some_and(|owner| owner.client == client) {
                *tenure += 1;
                (entry.owner, entry.tenure, entry.since) = (None, *tenure, *tenure);
            }
            if entry.holders.is_empty() {
                told.append(&mut entry.waiting);
            }
            !entry.holders.is_empty()
        });
        self.orphans.retain(|ino| self.by_inode.contains_key(ino));
        told
    }

    /// `client`, which has just attached, holds these open; what it held and does not declare is closed. Tells which
    /// inodes are being written from now on.
    pub fn declare(&mut self, client: ClientId, open: &[(Ino, bool)]) -> (Vec<Ino>, Vec<OnRest>) {
        let declared: BTreeMap<Ino, bool> = open.iter().copied().collect();
        let held: Vec<Ino> = self.by_inode.keys().copied().collect();
        let mut told = Vec::new();
        for ino in held {
            if !declared.contains_key(&ino) && self.is_holder(ino, client) {
                told.append(&mut self.close(ino, client, Vec::new()).told);
            }
        }
        let mut written = Vec::new();
        for (ino, write) in declared {
            if self.open(ino, client, write) == Opening::BeginsWriting {
                written.push(ino);
            }
        }
        (written, told)
    }

    /// Whether `client` is over.
    pub fn is_over(&self, client: ClientId) -> bool {
        self.ended.contains(&client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(7);
    const USER: ClientId = ClientId(3);
    const OWNER: Owner = Owner { session: SessionId(2), client: ClientId(2), epoch: Epoch(5) };
    const HOME: (SessionId, ClientId) = (SessionId(1), ClientId(1));

    /// What a coordinator hands on of a file with this owner, and since when it was handed over.
    fn bequeathed(owner: Option<Owner>) -> (Vec<Kept>, u64) {
        let mut opens = Opens::new(100);
        for client in [USER, OWNER.client] {
            opens.open(INO, client, true);
        }
        let journey = opens.depart(&[INO]).unwrap();
        opens.rest(&[INO], journey, Rest::Moved(owner));
        (opens.bequeath(Vec::new()), opens.term(INO, HOME).unwrap().since)
    }

    /// Since when the next coordinator says that it was, with what lockd says of the owner then.
    fn since(kept: Vec<Kept>, owner: Option<Owner>) -> u64 {
        let mut opens = Opens::new(200);
        for client in [USER, OWNER.client] {
            opens.open(INO, client, true);
        }
        let owned = owner.map(|owner| (INO, owner)).into_iter().collect();
        opens.settle(owned, |_| true, kept);
        opens.term(INO, HOME).unwrap().since
    }

    /// Found: the next coordinator said of what an owner had served, who died while the role moved, that nothing of it was
    /// lost.
    #[test]
    fn what_an_owner_had_that_dies_while_the_role_moves_is_not_said_to_be_kept() {
        let (kept, before) = bequeathed(Some(OWNER));
        assert_eq!(
            since(kept.clone(), Some(OWNER)),
            before,
            "the owner has not taken it up: nothing is lost"
        );
        assert!(since(kept, None) > 200, "the owner is gone, and what it had");
        let (kept, before) = bequeathed(None);
        assert_eq!(since(kept, None), before, "nobody owned it: all was committed");
    }
}
