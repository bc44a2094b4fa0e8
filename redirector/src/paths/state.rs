//! The state of one path, decided from what is seen of it. Pure.

use std::fmt;
use std::time::Duration;

use lockd::clock::BootTime;

/// Answers of fresh connections after which a path is used again (P3).
const ANSWERS: u32 = 3;
/// The least path time-out.
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// The greatest path time-out.
const TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// What a path is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// It answers.
    Up,
    /// It is connected, but a request is older than the path time-out.
    Suspect,
    /// It is not connected.
    Down,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
        })
    }
}

/// The state of a path, since when, and why.
#[derive(Clone, Debug)]
pub struct PathState {
    condition: Condition,
    since: BootTime,
    why: String,
    answers: u32,
    next_probe: BootTime,
    probe_every: Duration,
}

impl PathState {
    /// A path that has not been tried: it is used after one answer.
    #[must_use]
    pub fn untried(now: BootTime, probe_every: Duration) -> Self {
        let (why, answers) = ("not tried yet".to_owned(), ANSWERS - 1);
        Self { condition: Condition::Down, since: now, why, answers, next_probe: now, probe_every }
    }

    /// What it is good for.
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Since when.
    #[must_use]
    pub fn since(&self) -> BootTime {
        self.since
    }

    /// Why.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    fn change(&mut self, condition: Condition, why: &str, now: BootTime) {
        if self.condition != condition {
            self.condition = condition;
            self.since = now;
        }
        why.clone_into(&mut self.why);
    }

    /// The connection is lost. The first probe is due at once.
    pub fn lost(&mut self, why: &str, now: BootTime) {
        self.change(Condition::Down, why, now);
        self.answers = 0;
        self.next_probe = now;
    }

    /// How old a request may be: three times the 99.9th percentile that the path has shown, within limits.
    #[must_use]
    pub fn timeout(p999: Option<Duration>) -> Duration {
        p999.map_or(TIMEOUT_MAX, |p999| (p999 * 3).clamp(TIMEOUT_MIN, TIMEOUT_MAX))
    }

    /// The oldest request in flight was sent at `oldest`: a connected path is Up or Suspect.
    pub fn observe(&mut self, oldest: Option<BootTime>, p999: Option<Duration>, now: BootTime) {
        if self.condition == Condition::Down {
            return;
        }
        let age = oldest.map_or(Duration::ZERO, |oldest| now.since(oldest));
        if age > Self::timeout(p999) {
            self.change(Condition::Suspect, &format!("no answer for {} ms", age.as_millis()), now);
        } else if self.condition == Condition::Suspect {
            self.change(Condition::Up, "answers again", now);
        }
    }

    /// When the next probe is due, if the path is down.
    #[must_use]
    pub fn next_probe(&self) -> Option<BootTime> {
        (self.condition == Condition::Down).then_some(self.next_probe)
    }

    /// When a path that is not down may be asked again.
    #[must_use]
    pub fn next_question(&self) -> BootTime {
        self.next_probe
    }

    /// It was asked, without an answer that says anything of the link in use.
    pub fn asked(&mut self, now: BootTime) {
        self.next_probe = now.after(self.probe_every);
    }

    /// It answers, and is not in use.
    pub fn stands_by(&mut self, now: BootTime) {
        self.answers = 0;
        self.change(Condition::Up, "answers", now);
    }

    /// Its state counts from `now`.
    pub fn counts_from(&mut self, now: BootTime) {
        self.since = now;
    }

    /// A probe has been answered, or failed with a reason. Whether the path may be used again.
    pub fn probed(&mut self, result: Result<(), &str>, now: BootTime) -> bool {
        self.next_probe = now.after(self.probe_every);
        match result {
            Ok(()) => self.answers += 1,
            Err(why) => {
                self.answers = 0;
                self.change(Condition::Down, why, now);
            }
        }
        self.answers >= ANSWERS
    }

    /// The path is connected.
    pub fn recovered(&mut self, now: BootTime) {
        self.answers = 0;
        self.change(Condition::Up, "connected", now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(500);

    fn up() -> PathState {
        let mut state = PathState::untried(at(0), EVERY);
        state.recovered(at(0));
        state
    }

    fn at(ms: u64) -> BootTime {
        BootTime(ms * 1_000_000)
    }

    #[test]
    fn a_down_path_is_used_after_three_answers_in_a_row() {
        let mut state = up();
        assert_eq!(state.next_probe(), None);
        state.lost("reset", at(10));
        assert_eq!((state.condition(), state.since(), state.why()), (Condition::Down, at(10), "reset"));
        assert_eq!(state.next_probe(), Some(at(10)));
        assert!(!state.probed(Ok(()), at(11)));
        assert_eq!(state.next_probe(), Some(at(511)));
        assert!(!state.probed(Ok(()), at(511)));
        assert!(!state.probed(Err("refused"), at(1011)));
        assert_eq!((state.since(), state.why()), (at(10), "refused"));
        assert!(!state.probed(Ok(()), at(1511)));
        assert!(!state.probed(Ok(()), at(2011)));
        assert!(state.probed(Ok(()), at(2511)));
        state.recovered(at(2512));
        assert_eq!((state.condition(), state.since()), (Condition::Up, at(2512)));
    }

    #[test]
    fn an_old_request_makes_a_path_suspect_until_it_answers() {
        let mut state = up();
        state.observe(Some(at(0)), None, at(5000));
        assert_eq!(state.condition(), Condition::Up);
        state.observe(Some(at(0)), None, at(5001));
        assert_eq!((state.condition(), state.since()), (Condition::Suspect, at(5001)));
        state.observe(Some(at(0)), None, at(9000));
        assert_eq!((state.since(), state.why()), (at(5001), "no answer for 9000 ms"));
        state.observe(None, None, at(9500));
        assert_eq!((state.condition(), state.since()), (Condition::Up, at(9500)));
    }

    #[test]
    fn the_time_out_follows_what_the_path_has_shown() {
        assert_eq!(PathState::timeout(None), Duration::from_secs(5));
        assert_eq!(PathState::timeout(Some(Duration::from_millis(1))), Duration::from_secs(1));
        assert_eq!(PathState::timeout(Some(Duration::from_millis(700))), Duration::from_millis(2100));
        assert_eq!(PathState::timeout(Some(Duration::from_secs(9))), Duration::from_secs(5));
    }
}
