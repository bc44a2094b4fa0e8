use std::time::Duration;

use super::*;
use crate::clock::{ManualClock, SystemClock, WallTime};

const LEASE: Duration = Duration::from_secs(8);

#[test]
fn l3_nothing_is_admitted_past_the_deadline() {
    let rules = Rules::from_test_environment();
    let clock = ManualClock::new(BootTime(5_000), WallTime(0));
    let lease = Lease::lapsed();
    assert!(!lease.admits(rules, &clock), "not granted yet");
    let sent = clock.boot();
    clock.advance(Duration::from_secs(1));
    lease.extend(sent.after(LEASE));
    assert!(lease.admits(rules, &clock));
    // The lease counts from when the keep-alive was sent, not from when it was answered.
    clock.advance(Duration::from_nanos(6_999_999_999));
    assert!(lease.admits(rules, &clock));
    clock.advance(Duration::from_nanos(1));
    assert!(!lease.admits(rules, &clock), "the deadline itself is past it");
    // Late is not ended: the session goes on (L2).
    lease.extend(clock.boot().after(LEASE));
    assert!(lease.admits(rules, &clock));
}

#[test]
fn l3_a_write_that_was_admitted_says_nothing_about_the_answer_to_a_read() {
    let rules = Rules::from_test_environment();
    let clock = ManualClock::default();
    let lease = Lease::lapsed();
    lease.extend(clock.boot().after(LEASE));
    assert!(lease.admits(rules, &clock), "the read starts");
    clock.advance(LEASE);
    assert!(!lease.admits(rules, &clock), "its data came too late to be answered");
}

#[test]
fn l3_an_ended_lease_admits_nothing_and_an_old_answer_does_not_shorten_one() {
    let rules = Rules::from_test_environment();
    let clock = ManualClock::default();
    let lease = Lease::lapsed();
    lease.extend(BootTime(100));
    lease.extend(BootTime(50));
    assert_eq!(lease.deadline(), BootTime(100), "answers may come in any order");
    lease.end();
    assert!(!lease.admits(rules, &clock));
    lease.extend(BootTime(200));
    assert!(!lease.admits(rules, &clock), "a keep-alive that is answered late does not bring it back");
}

#[test]
fn an_unlimited_lease_holds_by_any_clock() {
    let lease = Lease::unlimited();
    assert!(lease.holds(&ManualClock::new(BootTime(u64::MAX), WallTime(0))));
    assert!(lease.holds(&SystemClock));
    lease.end();
    assert!(!lease.holds(&SystemClock));
}
