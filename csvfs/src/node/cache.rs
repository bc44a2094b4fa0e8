//! Names and attributes that this node keeps under leases of the coordinator (V9).
//!
//! An invalidation may overtake the answer whose contents it makes old. What has been invalidated is therefore kept as
//! long as a question is under way that was asked before, and is looked up before an answer is kept.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::proto::{Answer, Answered, Key, Operation};
use crate::refusal::Refusal;
use crate::types::{Attr, Ino};

/// Invalidations that are remembered for questions under way; a question that is older than all of them is not kept.
const LOG_MAX: usize = 8192;
/// Names and attributes that are kept at most: above what the coordinator grants, so that it is never reached.
const KEPT_MAX: usize = 200_000;

/// A question under way: the number of invalidations before it; none if nothing is kept.
#[must_use]
pub(super) struct Asked(Option<u64>);

#[derive(Default)]
struct State {
    names: HashMap<Ino, HashMap<Vec<u8>, Option<Ino>>>,
    names_count: usize,
    /// Directories of which all names are known: another one is absent.
    whole: HashSet<Ino>,
    attrs: HashMap<Ino, Attr>,
    /// The last invalidations; the first of them has the number `log_start`.
    log: VecDeque<Key>,
    log_start: u64,
    /// Questions under way, by the number of invalidations before them.
    asking: BTreeMap<u64, usize>,
}

impl State {
    fn now(&self) -> u64 {
        self.log_start + self.log.len() as u64
    }

    fn is_outdated(&self, since: u64, key: &Key) -> bool {
        since < self.log_start || {
            let skip = usize::try_from(since - self.log_start).unwrap_or(usize::MAX);
            self.log.iter().skip(skip).any(|invalidated| invalidated == key)
        }
    }

    fn remove(&mut self, key: &Key) {
        match key {
            Key::Attr(ino) => {
                self.attrs.remove(ino);
            }
            // Kept with the file.
            Key::Layout(_) => {}
            Key::Names(directory) => {
                self.whole.remove(directory);
            }
            Key::Name { parent, name } => {
                self.whole.remove(parent);
                if let Some(names) = self.names.get_mut(parent) {
                    if names.remove(name).is_some() {
                        self.names_count -= 1;
                    }
                    if names.is_empty() {
                        self.names.remove(parent);
                    }
                }
            }
        }
    }

    fn invalidate(&mut self, keys: &[Key]) {
        for key in keys {
            self.remove(key);
            if !self.asking.is_empty() {
                self.log.push_back(key.clone());
            }
        }
        while self.log.len() > LOG_MAX {
            self.log.pop_front();
            self.log_start += 1;
        }
    }

    fn keep_name(&mut self, parent: Ino, name: &[u8], ino: Option<Ino>) {
        if self.names.entry(parent).or_default().insert(name.to_vec(), ino).is_none() {
            self.names_count += 1;
        }
    }

    fn clear(&mut self) {
        self.names.clear();
        self.names_count = 0;
        self.whole.clear();
        self.attrs.clear();
        // Whatever is under way is older than what is remembered from now on.
        self.log_start = self.now() + 1;
        self.log.clear();
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Cache {
    /// Off until the coordinator has taken this client in.
    is_on: AtomicBool,
    state: Mutex<State>,
}

impl Cache {
    /// Keeps answers from now on, or no longer; what is kept and what is under way is dropped.
    pub(super) fn switch(&self, on: bool) {
        let mut state = self.state.lock();
        state.clear();
        self.is_on.store(on, Ordering::Release);
    }

    /// Drops everything.
    pub(super) fn clear(&self) {
        self.state.lock().clear();
    }

    /// A question is asked.
    pub(super) fn ask(&self) -> Asked {
        if !self.is_on.load(Ordering::Acquire) {
            return Asked(None);
        }
        let mut state = self.state.lock();
        let now = state.now();
        *state.asking.entry(now).or_default() += 1;
        Asked(Some(now))
    }

    /// It is answered: keeps what may be kept, and forgets what the answer says is old.
    pub(super) fn answered(&self, asked: Asked, operation: &Operation, answered: &Answered) {
        let Some(since) = asked.0 else { return };
        let mut state = self.state.lock();
        let attr = match &answered.reply {
            Ok(Answer::Entry(attr) | Answer::Elsewhere(attr, _) | Answer::Opened { attr, .. }) => Some(*attr),
            _ => None,
        };
        let is_full = state.names_count + state.attrs.len() >= KEPT_MAX;
        // What others have invalidated meanwhile; then what this operation itself has made old, and what holds after it.
        let mut attrs: Vec<Attr> = attr.filter(|_| answered.leased_attr).into_iter().collect();
        attrs.extend(&answered.directories);
        attrs.retain(|attr| !is_full && !state.is_outdated(since, &Key::Attr(attr.ino)));
        let name = match operation {
            Operation::Lookup { parent, name } | Operation::Create { parent, name, .. } => {
                Some((*parent, name))
            }
            _ => None,
        };
        let name = name.filter(|(parent, name)| {
            answered.leased_name
                && (attr.is_some() || answered.reply == Err(Refusal::NotFound))
                && !is_full
                && !state.is_outdated(since, &Key::Name { parent: *parent, name: (*name).clone() })
        });
        let mut whole = answered.all_names.clone();
        whole.retain(|directory| {
            let is_current = !state.is_outdated(since, &Key::Names(*directory));
            is_current
                && match operation {
                    // What it has done to the names that were known is known, too.
                    Operation::Create { parent, .. } if directory == parent => {
                        state.whole.contains(directory) && name.is_some()
                    }
                    Operation::Unlink { parent, .. } | Operation::RemoveDirectory { parent, .. } => {
                        directory == parent && state.whole.contains(directory)
                    }
                    // A new directory has none.
                    _ => !is_full,
                }
        });
        state.invalidate(&answered.outdated);
        state.whole.extend(whole);
        for attr in attrs {
            state.attrs.insert(attr.ino, attr);
        }
        if let Some((parent, name)) = name {
            state.keep_name(parent, name, attr.map(|attr| attr.ino));
        }
        if let Some(count) = state.asking.get_mut(&since) {
            *count -= 1;
            if *count == 0 {
                state.asking.remove(&since);
            }
        }
        // Nobody needs what came before the oldest question.
        let oldest = state.asking.keys().next().copied().unwrap_or(u64::MAX);
        while state.log_start < oldest && state.log.pop_front().is_some() {
            state.log_start += 1;
        }
    }

    /// These are old.
    pub(super) fn invalidate(&self, keys: &[Key]) {
        if self.is_on.load(Ordering::Acquire) {
            self.state.lock().invalidate(keys);
        }
    }

    /// What a name stands for, if that is known, and its attributes, if those are.
    pub(super) fn lookup(&self, parent: Ino, name: &[u8]) -> Option<Result<(Ino, Option<Attr>), Refusal>> {
        if !self.is_on.load(Ordering::Acquire) {
            return None;
        }
        let state = self.state.lock();
        match state.names.get(&parent).and_then(|names| names.get(name)) {
            Some(Some(ino)) => Some(Ok((*ino, state.attrs.get(ino).copied()))),
            Some(None) => Some(Err(Refusal::NotFound)),
            None => state.whole.contains(&parent).then_some(Err(Refusal::NotFound)),
        }
    }

    /// The attributes of `ino`, if they are known.
    pub(super) fn attr(&self, ino: Ino) -> Option<Attr> {
        if !self.is_on.load(Ordering::Acquire) {
            return None;
        }
        self.state.lock().attrs.get(&ino).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Created;
    use crate::types::{Kind, Timestamp};

    fn attr(size: u64) -> Attr {
        let now = Timestamp(1);
        let (ino, kind, mode, nlink, uid, gid, rdev, blocks) = (Ino(7), Kind::File, 0o644, 1, 0, 0, 0, 0);
        let (atime, mtime, ctime, btime) = (now, now, now, now);
        let sealed = false;
        Attr { ino, kind, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, btime, sealed }
    }

    fn answer(size: u64) -> Answered {
        Answered { leased_name: true, leased_attr: true, ..Answered::from(Ok(Answer::Entry(attr(size)))) }
    }

    fn lookup() -> Operation {
        Operation::Lookup { parent: Ino::ROOT, name: b"a".to_vec() }
    }

    fn cache() -> Cache {
        let cache = Cache::default();
        cache.switch(true);
        cache
    }

    #[test]
    fn an_answer_that_was_overtaken_by_its_invalidation_is_not_kept() {
        let cache = cache();
        let asked = cache.ask();
        cache.invalidate(&[Key::Attr(Ino(7))]);
        cache.answered(asked, &lookup(), &answer(1));
        assert_eq!(cache.attr(Ino(7)), None);
        assert_eq!(cache.lookup(Ino::ROOT, b"a"), Some(Ok((Ino(7), None))), "the name was not touched");
        let asked = cache.ask();
        cache.answered(asked, &lookup(), &answer(2));
        assert_eq!(cache.attr(Ino(7)), Some(attr(2)));
        assert!(cache.state.lock().log.is_empty() && cache.state.lock().asking.is_empty());
    }

    #[test]
    fn what_an_answer_says_is_old_is_forgotten_and_nothing_is_kept_over_a_switch() {
        let cache = cache();
        let asked = cache.ask();
        cache.answered(asked, &lookup(), &answer(1));
        let outdated = vec![Key::Name { parent: Ino::ROOT, name: b"a".to_vec() }, Key::Attr(Ino(7))];
        let (asked, late) = (cache.ask(), cache.ask());
        let removed = Answered { outdated, ..Answered::from(Ok(Answer::Done)) };
        cache.answered(asked, &Operation::Space, &removed);
        assert!(cache.attr(Ino(7)).is_none() && cache.lookup(Ino::ROOT, b"a").is_none());
        cache.switch(true);
        cache.answered(late, &lookup(), &answer(1));
        assert!(cache.attr(Ino(7)).is_none() && cache.lookup(Ino::ROOT, b"a").is_none());
    }

    #[test]
    fn a_name_that_is_taken_back_ends_that_all_names_are_known() {
        let cache = cache();
        let make = |parent, what| Operation::Create {
            parent,
            name: b"a".to_vec(),
            what,
            mode: 0o755,
            umask: 0,
            uid: 0,
            gid: 0,
            exclusive: true,
            open: false,
            now: Timestamp(1),
        };
        let with = |all_names: &[Ino]| Answered { all_names: all_names.to_vec(), ..answer(0) };
        cache.answered(cache.ask(), &make(Ino::ROOT, Created::Directory), &with(&[Ino(7)]));
        assert_eq!(cache.lookup(Ino(7), b"b"), Some(Err(Refusal::NotFound)));
        // One of which it was not known that all names are.
        cache.answered(cache.ask(), &make(Ino(9), Created::File), &with(&[Ino(9)]));
        assert_eq!(cache.lookup(Ino(9), b"b"), None);
        // Without the name that was made, what is absent is not known.
        let unnamed = Answered { leased_name: false, ..with(&[Ino(7)]) };
        let before = cache.ask();
        cache.answered(cache.ask(), &make(Ino(7), Created::File), &with(&[Ino(7)]));
        assert_eq!(cache.lookup(Ino(7), b"b"), Some(Err(Refusal::NotFound)));
        cache.invalidate(&[Key::Name { parent: Ino(7), name: b"a".to_vec() }]);
        assert_eq!((cache.lookup(Ino(7), b"a"), cache.lookup(Ino(7), b"b")), (None, None));
        cache.answered(before, &make(Ino(7), Created::File), &unnamed);
        assert_eq!(cache.lookup(Ino(7), b"b"), None);
    }

    #[test]
    fn an_absent_name_is_kept() {
        let cache = cache();
        let asked = cache.ask();
        let absent = Answered { leased_name: true, ..Answered::from(Err(Refusal::NotFound)) };
        cache.answered(asked, &lookup(), &absent);
        assert_eq!(cache.lookup(Ino::ROOT, b"a"), Some(Err(Refusal::NotFound)));
    }
}
