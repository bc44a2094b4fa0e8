//! A place that the users of all nodes write, and what they read there: is there one order in which each of them happened once,
//! between its begin and its end (invariant 7, linearizability)?
//!
//! Each value is written once, so that the question is decided by the *zones* of the values (Gibbons and Korach, "Testing
//! Shared Memories", 1997): of a value's write and reads, the time from the first end to the last begin, in which it was
//! certainly there (*forward*); or, if all of them overlap, the time from the last begin to the first end, within which it was
//! there at least once. Wrong is a read before its write, two forward zones that overlap, and another zone within a forward one.

use std::collections::BTreeMap;

/// When something begins or ends: each time is counted once.
pub type Time = u64;

/// What was done with one value.
#[derive(Clone, Copy, Debug)]
struct Value {
    /// When its write began.
    written_from: Time,
    first_end: Time,
    last_begin: Time,
    is_read: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Race {
    /// The first value is what was there before; what that was the first read tells, if it is not known.
    first: Option<u64>,
    values: BTreeMap<u64, Value>,
    /// Counts how often it was begun anew.
    pub round: u64,
    /// It is not known what is there, and nothing is checked.
    is_open: bool,
    /// Nor will it be.
    is_over: bool,
}

/// The end of what has not ended.
const NEVER: Time = Time::MAX;

impl Default for Race {
    fn default() -> Self {
        Self { first: Some(0), values: BTreeMap::new(), round: 0, is_open: false, is_over: false }
    }
}

impl Race {
    /// A server may have been lost: what it had done may be undone, or done again by the next one. Nothing is checked before
    /// [`Race::resume`].
    pub fn suspend(&mut self) {
        (self.is_open, self.round) = (true, self.round + 1);
        self.values.clear();
    }

    /// Nothing that began before is under way any more, and whoever was lost is fenced.
    pub fn resume(&mut self) {
        if self.is_open && !self.is_over {
            (self.is_open, self.first, self.round) = (false, None, self.round + 1);
            self.values.clear();
        }
    }

    /// A write was refused, and may happen at any time, or never.
    pub fn end(&mut self) {
        self.suspend();
        self.is_over = true;
    }

    /// While nothing was under way the value has become zero.
    pub fn clear(&mut self) {
        if !self.is_open {
            (self.first, self.round) = (Some(0), self.round + 1);
            self.values.clear();
        }
    }

    /// A write begins.
    pub fn begins(&mut self, word: u64, now: Time) {
        let value = Value { written_from: now, first_end: NEVER, last_begin: now, is_read: false };
        self.values.insert(word, value);
    }

    /// A write was refused, and is not done.
    pub fn is_undone(&mut self, word: u64) {
        self.values.remove(&word);
    }

    /// A write of that round is done.
    pub fn is_done(&mut self, word: u64, now: Time, round: u64) {
        if round == self.round
            && let Some(value) = self.values.get_mut(&word)
        {
            value.first_end = value.first_end.min(now);
        }
    }

    /// `word` was read, from `began` in that round to `now`. Whether anything was checked.
    ///
    /// # Errors
    /// Why that is wrong.
    pub fn is_read(&mut self, word: u64, began: Time, now: Time, round: u64) -> Result<bool, String> {
        if self.is_open || round != self.round {
            return Ok(false);
        }
        if !self.values.contains_key(&word) {
            if self.first.is_some_and(|first| first != word) {
                return Err(format!("{word:#x} is read, which was over before"));
            }
            self.first = Some(word);
            let before = Value { written_from: 0, first_end: 0, last_begin: 0, is_read: true };
            self.values.insert(word, before);
        }
        if let Some(value) = self.values.get_mut(&word) {
            value.is_read = true;
            value.first_end = value.first_end.min(now);
            value.last_begin = value.last_begin.max(began);
            if now < value.written_from {
                return Err(format!("{word:#x} is read before it is written"));
            }
        }
        self.check().map(|()| self.values.len() > 2)
    }

    fn check(&self) -> Result<(), String> {
        // A write of unknown outcome that nobody has read may never have happened.
        let counts = |value: &Value| value.is_read || value.first_end != NEVER;
        let known: Vec<_> = self.values.iter().filter(|(_, value)| counts(value)).collect();
        for (word, value) in known.iter().filter(|(_, value)| value.first_end < value.last_begin) {
            for (other, inner) in known.iter().filter(|(other, _)| other != word) {
                let (from, to) =
                    (inner.first_end.min(inner.last_begin), inner.first_end.max(inner.last_begin));
                let is_forward = inner.first_end < inner.last_begin;
                let overlaps = from < value.last_begin && value.first_end < to;
                let is_within = value.first_end < from && to < value.last_begin;
                let is_wrong = if is_forward { overlaps } else { is_within };
                if is_wrong {
                    return Err(format!(
                        "{word:#x} is there before and after {other:#x}, which happened in between"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Race;

    #[test]
    fn a_value_that_comes_back_is_noticed() {
        let mut race = Race::default();
        race.begins(1, 1);
        race.begins(2, 2);
        // Both are under way: either may be the last.
        assert_eq!(race.is_read(1, 3, 4, 0), Ok(false));
        assert_eq!(race.is_read(2, 5, 6, 0), Ok(false));
        assert!(race.clone().is_read(1, 7, 8, 0).is_err(), "the first is done twice");
        race.is_done(1, 7, 0);
        race.is_done(2, 8, 0);
        assert!(race.clone().is_read(1, 9, 10, 0).is_err());
        assert!(race.clone().is_read(0, 9, 10, 0).is_err());
        assert!(race.is_read(2, 9, 10, 0).is_ok());
    }

    #[test]
    fn what_overlaps_is_in_either_order() {
        let mut race = Race::default();
        race.begins(1, 1);
        race.is_done(1, 2, 0);
        race.begins(2, 3);
        assert!(race.is_read(2, 4, 9, 0).is_ok());
        assert!(race.is_read(1, 5, 8, 0).is_ok(), "it may have been before the other");
        assert!(race.clone().is_read(1, 10, 11, 0).is_err(), "not after one that has ended");
        race.suspend();
        assert_eq!(race.is_read(1, 10, 11, 0), Ok(false));
        race.resume();
        assert_eq!(race.is_read(1, 12, 13, race.round), Ok(false));
        assert!(race.is_read(2, 14, 15, race.round).is_err(), "one of them was there");
    }
}
