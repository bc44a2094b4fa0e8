//! Which path is used when.

use super::*;
use crate::lun::Geometry;

const EVERY: Duration = Duration::from_millis(500);

fn at(ms: u64) -> BootTime {
    BootTime(ms * 1_000_000)
}

fn target(instance: u8) -> Abilities {
    let geometry = Geometry {
        size: 1 << 20,
        block_size: 512,
        request_max: 1 << 20,
        trim: true,
        write_zeroes: true,
        volatile_cache: true,
    };
    let instance = (instance > 0).then_some([instance; 16]);
    let restarts = if instance.is_some() { Restarts::ByBootId } else { Restarts::Unseen };
    Abilities {
        geometry,
        read_only: false,
        fua: true,
        flush: true,
        multi_conn: true,
        instance,
        list: None,
        restarts,
    }
}

/// Two paths to targets `first` and `second`: the first in use since 0, the second known to answer.
fn two(first: u8, second: u8) -> Roster {
    let mut roster = Roster::new(2, 0, at(0), EVERY);
    roster.connected(0, &target(first), at(0));
    assert_eq!(roster.next_probe(1), Some(at(0)));
    roster.probed(1, Ok(&target(second)), at(1));
    roster
}

fn make_late(roster: &mut Roster, now: BootTime) {
    roster.observe(Some(at(0)), None, now);
    assert_eq!(roster.state().condition(), Condition::Suspect);
}

#[test]
fn a_path_that_was_never_tried_stands_by_after_one_answer() {
    let roster = two(1, 1);
    assert_eq!(roster.paths()[1].state.condition(), Condition::Up);
    assert_eq!(roster.choice(), Some(0));
    assert_eq!((roster.next_probe(0), roster.next_probe(1)), (None, Some(at(2001))));
}

#[test]
fn the_next_path_is_used_when_one_is_lost_and_the_first_again_after_three_answers_and_a_rest() {
    let mut roster = two(1, 1);
    roster.lost("reset", at(70_000));
    assert_eq!(roster.choice(), Some(1));
    roster.connected(1, &target(1), at(70_001));
    for ms in [70_500, 71_000] {
        roster.probed(0, Ok(&target(1)), at(ms));
        assert_eq!(roster.better(at(ms)), None);
    }
    roster.probed(0, Ok(&target(1)), at(71_500));
    assert_eq!(roster.better(at(71_501)), None, "it has only just answered");
    assert_eq!(roster.next_decision(at(71_501)), Some(at(72_000)));
    assert_eq!(roster.better(at(72_000)), Some(0));
    assert_eq!(roster.better(at(74_500)), None, "who knows whether it still answers");
}

#[test]
fn a_path_that_flaps_has_to_answer_for_longer_each_time() {
    let mut roster = two(1, 1);
    for (round, rest) in [(1_u64, 1000), (2, 2000), (3, 4000)] {
        let start = round * 100_000;
        roster.connected(0, &target(0), at(start));
        roster.lost("reset", at(start + 10));
        roster.connected(1, &target(0), at(start + 11));
        (1..=3).for_each(|probe| roster.probed(0, Ok(&target(1)), at(start + probe * 500)));
        let up = start + 1500;
        roster.probed(0, Ok(&target(1)), at(up + rest - 1));
        assert_eq!((roster.better(at(up + rest - 1)), roster.better(at(up + rest))), (None, Some(0)));
    }
    roster.connected(0, &target(0), at(500_000));
    roster.lost("reset", at(600_000));
    assert_eq!(roster.path_mut(0).rest, REST.0, "it was good for more than a minute");
}

#[test]
fn what_waits_for_a_slow_target_goes_to_another_one_at_once_and_not_to_the_same() {
    for (second, expected) in [(2, Some(1)), (1, None), (0, None)] {
        let mut roster = two(1, second);
        make_late(&mut roster, at(6000));
        assert_eq!(roster.rescue(at(6000)), None, "nobody has asked the other since");
        assert_eq!((roster.next_probe(0), roster.next_probe(1)), (Some(at(0)), Some(at(6000))));
        roster.probed(1, Ok(&target(second)), at(6001));
        roster.probed(0, Ok(&target(1)), at(6002));
        assert_eq!(roster.rescue(at(6300)), expected);
        assert_eq!(
            roster.state().condition(),
            Condition::Suspect,
            "an answer to a probe is none of the link"
        );
    }
}

#[test]
fn a_late_path_that_answers_no_fresh_connection_is_dead() {
    let mut roster = two(1, 1);
    make_late(&mut roster, at(6000));
    roster.probed(1, Ok(&target(1)), at(6001));
    assert_eq!((roster.rescue(at(6199)), roster.rescue(at(6200))), (None, Some(1)));
    assert_eq!(roster.next_decision(at(6001)), Some(at(6200)));
}

#[test]
fn only_what_is_known_to_be_one_process_is_one_target() {
    assert!(Roster::new(1, 0, at(0), EVERY).is_one_target());
    assert!(two(1, 1).is_one_target());
    assert!(!two(1, 2).is_one_target() && !two(0, 0).is_one_target());
    let mut roster = Roster::new(2, 0, at(0), EVERY);
    roster.connected(0, &target(1), at(0));
    assert!(!roster.is_one_target(), "the second has not been met");
}

#[test]
fn each_path_has_the_list_that_its_target_had_at_first() {
    let mut roster = Roster::new(2, 0, at(0), EVERY);
    assert_eq!(roster.list(0), None);
    roster.recognised(0, Some([1; 16]));
    roster.recognised(1, Some([2; 16]));
    roster.recognised(0, Some([3; 16]));
    assert_eq!((roster.list(0), roster.list(1)), (Some([1; 16]), Some([2; 16])));
}

#[test]
fn a_path_that_answers_and_cannot_be_used_is_down_again_with_the_reason() {
    let mut roster = Roster::new(1, 0, at(0), EVERY);
    roster.connected(0, &target(1), at(0));
    roster.lost("reset", at(1000));
    for ms in [1001, 1500, 2000] {
        assert_eq!(roster.choice(), None);
        roster.probed(0, Ok(&target(1)), at(ms));
    }
    assert_eq!((roster.choice(), roster.is_live()), (Some(0), false));
    roster.probed(0, Err("the lease has run out"), at(2001));
    assert_eq!((roster.choice(), roster.state().why()), (None, "the lease has run out"));
}

#[test]
fn who_stands_by_is_asked_before_the_path_in_use_is_late() {
    let mut roster = two(1, 1);
    assert!(!roster.observe(Some(at(0)), None, at(4700)));
    assert_eq!(roster.next_probe(0), None);
    assert!(roster.observe(Some(at(0)), None, at(4800)), "in doubt");
    assert_eq!((roster.next_probe(0), roster.next_probe(1)), (Some(at(0)), Some(at(4800))));
    roster.probed(1, Ok(&target(1)), at(4801));
    assert!(!roster.observe(Some(at(0)), None, at(4900)));
    assert_eq!(roster.rescue(at(5000)), None, "it is not late");
    assert!(roster.observe(Some(at(0)), None, at(5001)));
    assert_eq!(roster.rescue(at(5001)), Some(1), "the path in use has not answered since");
    assert!(roster.observe(None, None, at(5002)));
    assert_eq!((roster.next_probe(0), roster.rescue(at(5300))), (None, None));
}

#[test]
fn among_peers_the_quickest_is_chosen_and_none_before_a_direct_path() {
    let mut roster = Roster::new(1, 2, at(0), EVERY);
    roster.connected(0, &target(1), at(0));
    for (peer, took) in [(1, 900), (2, 300)] {
        roster.took(peer, Duration::from_micros(took));
        roster.probed(peer, Ok(&target(1)), at(10));
    }
    assert_eq!(roster.choice(), Some(0));
    roster.lost("reset", at(20));
    assert_eq!(roster.choice(), Some(2));
    roster.took(2, Duration::from_micros(4000));
    assert_eq!(roster.choice(), Some(1), "it has become slow");
    roster.connected(1, &target(1), at(30));
    assert_eq!(roster.better(at(90_000)), None, "one peer is as good as another");
    (1..=3).for_each(|probe| roster.probed(0, Ok(&target(1)), at(100_000 + probe)));
    assert_eq!(roster.better(at(101_500)), Some(0));
}
