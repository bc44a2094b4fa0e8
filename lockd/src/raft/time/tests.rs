use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::clock::{ManualClock, WallTime};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND_NS: u64 = 1_000_000_000;
const STEP: Duration = Duration::from_micros(1);

/// What of a voter matters here.
struct Voter {
    clock: Arc<ManualClock>,
    time: ClusterTime,
    last_ns: u64,
    applied: usize,
}

impl Voter {
    fn new(wall: Duration) -> Self {
        let wall_ns = i64::try_from(wall.as_nanos()).unwrap();
        // Each node has its own boot time; here it goes with its civil time.
        let clock = Arc::new(ManualClock::new(BootTime(wall_ns.unsigned_abs()), WallTime(wall_ns)));
        let time = ClusterTime::new(clock.clone(), Rules::from_test_environment(), 0);
        Self { clock, time, last_ns: 0, applied: 0 }
    }

    /// As the voter's queue does when nothing is on its way.
    fn give(&self) -> Stamp {
        self.time.next(1, self.time.is_broken())
    }

    fn apply(&mut self, stamp: Stamp) -> u64 {
        self.last_ns = self.time.settle(stamp, self.last_ns);
        self.time.applied(stamp, self.last_ns, self.last_ns);
        self.applied += 1;
        self.last_ns
    }

    fn commit(&mut self) -> u64 {
        let stamp = self.give();
        self.apply(stamp)
    }
}

fn pass(voters: &[&Voter], span: Duration) {
    voters.iter().for_each(|voter| voter.clock.advance(span));
}

#[test]
fn l9_a_leader_whose_civil_time_is_wrong_goes_on_from_the_last_entry() {
    for (first, second) in [(HOUR, HOUR * 2), (HOUR * 2, HOUR)] {
        let (mut one, mut other) = (Voter::new(first), Voter::new(second));
        let stamp = one.give();
        let start_ns = one.apply(stamp);
        assert_eq!(start_ns, u64::try_from(first.as_nanos()).unwrap(), "civil time, once");
        other.apply(stamp);
        pass(&[&one, &other], Duration::from_secs(3));
        let stamp = other.give();
        assert_eq!(other.apply(stamp), start_ns + 3 * SECOND_NS);
        one.apply(stamp);
        one.clock.set_wall(WallTime(i64::MAX));
        pass(&[&one, &other], Duration::from_secs(3));
        assert_eq!(one.commit(), start_ns + 6 * SECOND_NS);
    }
}

#[test]
fn l9_what_one_leader_counted_too_little_is_not_made_up_for_by_the_next() {
    let (mut early, mut late) = (Voter::new(HOUR), Voter::new(HOUR));
    let first = early.give();
    let first_ns = early.apply(first);
    pass(&[&early, &late], Duration::from_secs(100));
    // It hears of the first entry only now, and is the leader.
    late.apply(first);
    let second = late.give();
    assert!(late.apply(second) < first_ns + SECOND_NS);
    // The first leader comes back and has the second entry in its log, but has not applied it.
    let third = early.give();
    let fourth = early.time.next(1, false);
    let second_ns = early.apply(second);
    for stamp in [third, fourth] {
        let settled_ns = early.apply(stamp);
        assert!(settled_ns < second_ns + SECOND_NS, "a hundred seconds at once");
        assert!(early.time.now_ns() < second_ns + SECOND_NS);
    }
    pass(&[&early], Duration::from_secs(1));
    assert!(early.time.is_broken());
    assert_eq!(early.commit(), second_ns + SECOND_NS + 2);
}

#[test]
fn a_busy_leader_counts_all_the_time_that_passes() {
    let mut leader = Voter::new(HOUR);
    let start_ns = leader.commit();
    let mut on_the_way = leader.give();
    for _ in 0..1000 {
        pass(&[&leader], Duration::from_millis(5));
        let next = leader.time.next(1, false);
        assert!(!leader.time.is_broken());
        leader.apply(on_the_way);
        on_the_way = next;
    }
    assert_eq!(leader.apply(on_the_way), start_ns + 5 * SECOND_NS);
}

#[test]
fn a_refused_command_leaves_no_mark() {
    let mut leader = Voter::new(HOUR);
    let start_ns = leader.commit();
    pass(&[&leader], Duration::from_secs(1));
    leader.give();
    leader.time.lost();
    assert!(leader.time.is_broken());
    pass(&[&leader], Duration::from_secs(1));
    assert_eq!(leader.commit(), start_ns + 2 * SECOND_NS);
    assert!(!leader.time.is_broken());
}

#[test]
fn a_restarted_voter_goes_on_from_its_last_command() {
    let clock = Arc::new(ManualClock::new(BootTime(7), WallTime(i64::MAX)));
    let time = ClusterTime::new(clock.clone(), Rules::all(), 500);
    clock.advance(Duration::from_nanos(50));
    assert_eq!(time.next(3, time.is_broken()), Stamp { base_ns: 500, time_ns: 550 });
    assert_eq!(time.next(1, time.is_broken()), Stamp { base_ns: 552, time_ns: 553 });
    time.replaced(400);
    clock.advance(Duration::from_nanos(1));
    assert_eq!(time.now_ns(), 401);
}

/// An entry, and when it was given its time and got into the log: no node sees this time.
#[derive(Clone, Copy, Debug)]
struct Logged {
    stamp: Stamp,
    given: Duration,
    logged: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Time passes.
    Pass(Duration),
    /// The leader's entries up to here are committed.
    Commit,
    /// A voter applies one committed entry.
    Apply(usize),
    /// A voter becomes leader; what was not committed is lost when the flag says so.
    Lead(usize, bool),
    /// A voter, leader or not, gives an entry its time...
    Give(usize),
    /// ... and gets it into the log, if it leads by now.
    Append(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let voter = 0..3_usize;
    prop_oneof![
        2 => (1..5_000_000_000_u64).prop_map(|nanos| Step::Pass(Duration::from_nanos(nanos))),
        2 => Just(Step::Commit),
        6 => voter.clone().prop_map(Step::Apply),
        1 => (voter.clone(), any::<bool>()).prop_map(|(voter, lose)| Step::Lead(voter, lose)),
        4 => voter.clone().prop_map(Step::Give),
        4 => voter.prop_map(Step::Append),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn l9_no_run_of_leaders_makes_time_run_faster(steps in proptest::collection::vec(step(), 1..80)) {
        let mut voters = [HOUR, HOUR * 2, HOUR * 3].map(Voter::new);
        let mut held: [VecDeque<(Stamp, Duration)>; 3] = Default::default();
        let (mut log, mut committed, mut leader) = (Vec::<Logged>::new(), 0, 0);
        let mut now = Duration::ZERO;
        for step in steps {
            // No clock stands still while something is done: a command is known by its time.
            now += STEP;
            voters.iter().for_each(|voter| voter.clock.advance(STEP));
            match step {
                Step::Pass(span) => {
                    now += span;
                    voters.iter().for_each(|voter| voter.clock.advance(span));
                }
                Step::Commit => committed = log.len(),
                Step::Apply(voter) => {
                    let voter = &mut voters[voter];
                    if voter.applied < committed {
                        voter.apply(log[voter.applied].stamp);
                    }
                }
                Step::Lead(voter, lose) => {
                    leader = voter;
                    if lose {
                        log.truncate(committed);
                    }
                }
                Step::Give(voter) => {
                    let time = &voters[voter].time;
                    // Sometimes it believes wrongly that nothing is on its way: it costs time, but makes none.
                    held[voter].push_back((time.next(1, time.is_broken()), now));
                }
                Step::Append(voter) => {
                    if let Some((stamp, given)) = held[voter].pop_front() {
                        if voter == leader {
                            log.push(Logged { stamp, given, logged: now });
                        } else {
                            voters[voter].time.lost();
                        }
                    }
                }
            }
        }
        // Whoever applies it all gets the same times.
        let mut last = Voter::new(Duration::ZERO);
        let times: Vec<u64> = log.iter().map(|entry| last.apply(entry.stamp)).collect();
        prop_assert!(times.is_sorted_by(|one, next| one < next));
        for (at, later) in log.iter().enumerate() {
            for (before, earlier) in log[..at].iter().enumerate() {
                let passed = u64::try_from((later.logged - earlier.given).as_nanos()).unwrap();
                let (told, commands) = (times[at] - times[before], (at - before) as u64);
                prop_assert!(told <= passed + commands, "{told} ns in {passed} ns: {log:?}");
            }
        }
    }
}
