//! What this node has tried about each fence, and when it may try again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::ids::VolumeId;
use crate::machine::{FenceMethod, Victim};

/// The pause after a first failure; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

type Key = (VolumeId, Victim);

/// One fence, as this node pursues it.
#[derive(Debug)]
struct Attempt {
    /// Since when this node knows of it.
    known: Instant,
    /// Since when everything of the victim on this host is seen to be dead.
    dead: Option<Instant>,
    what: String,
    tries: u32,
    begun: Option<Instant>,
    not_before: Option<Instant>,
    last_error: Option<String>,
    success: Option<FenceMethod>,
}

impl Attempt {
    fn new() -> Self {
        Self {
            known: Instant::now(),
            dead: None,
            what: String::new(),
            tries: 0,
            begun: None,
            not_before: None,
            last_error: None,
            success: None,
        }
    }
}

/// What this node has tried about each fence.
#[derive(Debug, Default)]
pub(in super::super) struct Attempts {
    all: Mutex<BTreeMap<Key, Attempt>>,
}

impl Attempts {
    /// Forgets the fences that are over.
    pub(super) fn retain(&self, is_open: impl Fn(&Key) -> bool) {
        self.all.lock().retain(|key, _| is_open(key));
    }

    fn with<T>(&self, key: Key, work: impl FnOnce(&mut Attempt) -> T) -> T {
        work(self.all.lock().entry(key).or_insert_with(Attempt::new))
    }

    /// How long this node has known of a fence.
    pub(super) fn known_for(&self, key: Key) -> Duration {
        self.with(key, |attempt| attempt.known.elapsed())
    }

    /// How long everything of the victim on this host has been seen to be dead.
    pub(super) fn dead_for(&self, key: Key, is_dead: bool) -> Option<Duration> {
        self.with(key, |attempt| {
            attempt.dead = is_dead.then(|| attempt.dead.unwrap_or_else(Instant::now));
            attempt.dead.map(|dead| dead.elapsed())
        })
    }

    /// By what this node has fenced the victim, if it has.
    pub(super) fn success(&self, key: Key) -> Option<FenceMethod> {
        self.all.lock().get(&key).and_then(|attempt| attempt.success)
    }

    /// An attempt begins, unless one is under way or it is too early for the next.
    pub(super) fn begin(&self, key: Key, what: String) -> bool {
        self.with(key, |attempt| {
            let early = attempt.not_before.is_some_and(|not_before| Instant::now() < not_before);
            if attempt.begun.is_some() || early {
                return false;
            }
            attempt.tries += 1;
            attempt.begun = Some(Instant::now());
            attempt.what = what;
            true
        })
    }

    /// The attempt has ended.
    pub(super) fn ended(&self, key: Key, done: Result<FenceMethod, String>) {
        self.with(key, |attempt| {
            attempt.begun = None;
            match done {
                Ok(method) => attempt.success = Some(method),
                Err(why) => {
                    let doublings = attempt.tries.saturating_sub(1).min(16);
                    let pause = PAUSE_MIN.saturating_mul(1 << doublings).min(PAUSE_MAX);
                    attempt.not_before = Some(Instant::now() + pause);
                    attempt.last_error = Some(why);
                }
            }
        });
    }

    /// What was tried, for `lockctl fences`.
    pub(in super::super) fn document(&self) -> Value {
        let all = self.all.lock();
        let tried = all.iter().filter(|(_, attempt)| attempt.tries > 0);
        let line = |((volume, victim), attempt): (&Key, &Attempt)| {
            let now = Instant::now();
            let next = attempt.not_before.map(|not_before| not_before.saturating_duration_since(now));
            json!({
                "volume": volume.to_string(),
                "victim": victim.to_string(),
                "what": attempt.what,
                "tries": attempt.tries,
                "running_s": attempt.begun.map(|begun| begun.elapsed().as_secs_f64()),
                "next_s": next.map(|next| next.as_secs_f64()),
                "last_error": attempt.last_error,
                "succeeded": attempt.success.is_some(),
            })
        };
        tried.map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;

    #[test]
    fn one_attempt_at_a_time_and_none_too_early() {
        let attempts = Attempts::default();
        let key = (VolumeId([1; 16]), Victim::Session(SessionId(7)));
        assert!(attempts.begin(key, "first".to_owned()) && !attempts.begin(key, "second".to_owned()));
        attempts.ended(key, Err("no route".to_owned()));
        assert!(!attempts.begin(key, "too early".to_owned()) && attempts.success(key).is_none());
        let line = &attempts.document()[0];
        assert_eq!((line["tries"].as_u64(), line["last_error"].as_str()), (Some(1), Some("no route")));
        attempts.with(key, |attempt| attempt.not_before = None);
        assert!(attempts.begin(key, "third".to_owned()));
        attempts.ended(key, Ok(FenceMethod::NbdTarget));
        assert_eq!(attempts.success(key), Some(FenceMethod::NbdTarget));
        attempts.retain(|_| false);
        assert_eq!(attempts.success(key), None);
    }

    #[test]
    fn a_victim_that_is_seen_alive_is_dead_for_no_time() {
        let attempts = Attempts::default();
        let key = (VolumeId([1; 16]), Victim::Session(SessionId(7)));
        assert!(attempts.dead_for(key, true).is_some() && attempts.dead_for(key, false).is_none());
    }
}
