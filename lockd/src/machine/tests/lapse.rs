use std::time::Duration;

use super::super::Lapse;
use crate::clock::BootTime;
use crate::ids::SessionId;
use crate::rules::Rules;

const LEASE: Duration = Duration::from_secs(8);
const GAP: Duration = Duration::from_secs(1);
const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);

const fn at_ms(ms: u64) -> BootTime {
    BootTime((1000 + ms) * 1_000_000)
}

/// A leader that looks every half second; `heard` tells who is heard at which millisecond.
fn run(
    lapse: &mut Lapse,
    from_ms: u64,
    to_ms: u64,
    heard: impl Fn(u64) -> Vec<SessionId>,
) -> Vec<(u64, SessionId)> {
    let rules = Rules::from_test_environment();
    let mut lapsed = Vec::new();
    for ms in (from_ms..=to_ms).step_by(500) {
        for session in heard(ms) {
            lapse.heard(session, at_ms(ms));
        }
        let live: Vec<_> = [A, B].into_iter().filter(|s| !lapsed.iter().any(|(_, l)| l == s)).collect();
        lapsed.extend(lapse.look(rules, at_ms(ms), live).into_iter().map(|session| (ms, session)));
    }
    lapsed
}

#[test]
fn l1_a_session_is_ended_a_full_lease_after_it_was_last_heard() {
    let mut lapse = Lapse::new(LEASE, GAP, at_ms(0));
    let heard = |ms| if ms <= 20_000 { vec![A, B] } else { vec![B] };
    assert_eq!(run(&mut lapse, 0, 60_000, heard), [(28_000, A)]);
    assert_eq!(lapse.last_heard(A), None, "who has ended is forgotten");
}

#[test]
fn l1_a_new_leader_waits_a_full_lease() {
    // The last leader may have answered A just before.
    let mut lapse = Lapse::new(LEASE, GAP, at_ms(0));
    assert_eq!(run(&mut lapse, 0, 9000, |_| vec![B]), [(8000, A)]);
}

#[test]
fn l1_a_leader_that_stood_still_waits_a_full_lease_again() {
    let mut lapse = Lapse::new(LEASE, GAP, at_ms(0));
    assert_eq!(run(&mut lapse, 0, 5000, |_| vec![A, B]), []);
    // Nothing of these 40 seconds was received; the keep-alives may lie in a socket.
    assert_eq!(run(&mut lapse, 45_000, 52_500, |ms| if ms < 46_000 { vec![] } else { vec![B] }), []);
    assert_eq!(run(&mut lapse, 53_000, 53_500, |_| vec![B]), [(53_000, A)]);
}

#[test]
fn l1_a_leader_without_a_quorum_waits_a_full_lease_again() {
    let rules = Rules::from_test_environment();
    let mut lapse = Lapse::new(LEASE, GAP, at_ms(0));
    assert_eq!(run(&mut lapse, 0, 5000, |_| vec![A, B]), []);
    // It looks all along, but nobody can have been answered.
    for ms in (5500..=40_000).step_by(500) {
        lapse.without_quorum(rules, at_ms(ms));
        assert_eq!(lapse.look(rules, at_ms(ms), [A, B]), [], "at {ms} ms");
    }
    assert_eq!(run(&mut lapse, 40_500, 47_500, |_| vec![B]), []);
    assert_eq!(run(&mut lapse, 48_000, 48_500, |_| vec![B]), [(48_000, A)]);
}

#[test]
fn l1_a_session_that_is_opened_under_an_old_leader_has_a_full_lease_to_be_heard() {
    let rules = Rules::from_test_environment();
    let mut lapse = Lapse::new(LEASE, GAP, at_ms(0));
    for ms in (0..=60_000).step_by(500) {
        lapse.heard(A, at_ms(ms));
        assert_eq!(lapse.look(rules, at_ms(ms), [A]), [], "at {ms} ms");
    }
    // The leader looks after B was opened, and before its first keep-alive, which never comes.
    let heard = |_| vec![A];
    assert_eq!(run(&mut lapse, 60_500, 80_000, heard), [(68_500, B)]);
}

#[test]
fn l1_a_session_that_was_heard_before_it_was_seen_is_not_ended() {
    let rules = Rules::from_test_environment();
    let mut lapse = Lapse::new(LEASE, GAP, at_ms(0));
    for ms in (0..=60_000).step_by(500) {
        lapse.heard(A, at_ms(ms));
        if ms == 60_000 {
            // B is opened and heard while the leader looks at what it knew a moment before.
            lapse.heard(B, at_ms(ms));
        }
        assert_eq!(lapse.look(rules, at_ms(ms), [A]), [], "at {ms} ms");
    }
    assert_eq!(run(&mut lapse, 60_500, 68_000, |_| vec![A]), []);
}

#[test]
fn a_clock_that_goes_backwards_ends_nothing() {
    let rules = Rules::from_test_environment();
    let mut lapse = Lapse::new(LEASE, GAP, at_ms(10_000));
    lapse.heard(A, at_ms(10_000));
    lapse.heard(A, at_ms(0));
    assert_eq!(lapse.last_heard(A), Some(at_ms(10_000)));
    assert_eq!(lapse.look(rules, at_ms(0), [A]), []);
    assert_eq!(lapse.look(rules, BootTime(0), [A]), []);
}
