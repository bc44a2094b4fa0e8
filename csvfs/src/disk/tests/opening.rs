//! Opening and closing: in place, by copy, refused.

use std::sync::Arc;
use std::time::Duration;

use lockd::clock::Clock;
use lockd::ids::Epoch;
use lockd::lease::Lease;
use parking_lot::Mutex;
use redirector::buffer::Pool;
use redirector::lun::{Lun, Outcome, Proof};

use super::*;
use crate::disk::claim::{Claim, ClaimState};
use crate::disk::contest::{ContestError, write_claim};
use crate::disk::layout;
use crate::disk::open::Opened;
use crate::disk::survey::Survey;
use crate::types::BLOCK;

fn crash(wire: &Wire, volume: OpenVolume) {
    wire.cut();
    drop(volume);
}

#[test]
fn a_closed_volume_opens_in_place_without_a_wait() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    let label = make(&lun, &clock).unwrap();
    assert_eq!((label.chunk_size, label.name.as_str()), (MIB, "test"));
    clock.on_sleep(|| panic!("a wait for nothing"));
    let mut expected = vec![0];
    for round in 1..=10 {
        let volume = open_as(&lun.wire(), round, &clock).unwrap();
        assert!(matches!(volume.opened, Opened::InPlace(_)), "{}", volume.opened);
        assert!(volume.warnings.is_empty(), "{:?}", volume.warnings);
        assert_eq!(volume.session.0, volume.epoch.0);
        assert_eq!(keys(&volume.database), expected);
        put(&volume.database, round, &[1; 5000]);
        expected.push(round);
        volume.close().unwrap();
    }
}

#[test]
fn after_a_crash_the_store_is_copied_unless_the_writes_are_known_to_have_ended() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    for client in 1..=6 {
        let wire = lun.wire();
        let volume = open_as(&wire, client, &clock).unwrap();
        let expected = match client {
            1 | 4 => "in place",
            _ => "by copy",
        };
        assert!(volume.opened.to_string().starts_with(expected), "client {client}: {}", volume.opened);
        assert_eq!(keys(&volume.database), (0..client).collect::<Vec<_>>());
        put(&volume.database, client, &[1; 5000]);
        crash(&wire, volume);
        if client == 3 {
            // Client 3 has copied, and its earlier, dead ones are superseded.
            lun.prove(ClientId(3), Proof::Ended("drained".to_owned()));
        }
    }
}

#[test]
fn a_locked_lun_needs_neither_wait_nor_copy() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    lun.prove_alone(Proof::Ended("the file is locked".to_owned()));
    clock.on_sleep(|| panic!("a wait for nothing"));
    for client in 1..=3 {
        let wire = lun.wire();
        let volume = open_as(&wire, client, &clock).unwrap();
        assert!(matches!(volume.opened, Opened::InPlace(_)));
        put(&volume.database, client, &[1; 5000]);
        crash(&wire, volume);
    }
    lun.prove_alone(Proof::Alive("process 77".to_owned()));
    let error = open_as(&lun.wire(), 4, &clock).unwrap_err();
    assert!(error.to_string().contains("host3"), "{error}");
}

#[test]
fn claims_of_the_dead_keep_nobody_out_however_many() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let fill = |first: u64| {
        let (wire, now) = (lun.wire(), Survey::read(lun.wire().as_ref()).unwrap());
        let free = (0..).zip(&now.claims).filter(|(_, claim)| !claim.as_ref().is_ok_and(Claim::is_open));
        for (block, _) in free {
            let claim = Claim {
                client: ClientId(first + block),
                epoch: Epoch(block % 2),
                counter: 7,
                state: if block % 3 == 0 { ClaimState::Claiming } else { ClaimState::Writing },
                pid: 1,
                started: clock.wall(),
                beaten: clock.wall(),
                window: now.label.window,
                host: "dead".to_owned(),
                cluster: None,
                is_member: false,
            };
            let block = usize::try_from(block).unwrap();
            write_claim(wire.as_ref(), &Pool::default(), &now.label, block, &claim).unwrap();
        }
        assert_eq!(Survey::read(lun.wire().as_ref()).unwrap().open_claims().count(), layout::CLAIMS);
    };
    for client in 1..=4 {
        fill(client * 1000);
        lun.prove_alone(if client < 3 { Proof::Ended("locked".to_owned()) } else { Proof::Unprovable });
        let wire = lun.wire();
        let volume = open_as(&wire, client, &clock).unwrap();
        let how = if client < 3 { "in place" } else { "by copy" };
        assert!(volume.opened.to_string().starts_with(how), "client {client}: {}", volume.opened);
        put(&volume.database, client, &[1]);
        crash(&wire, volume);
    }
    fill(9000);
    // A live one among them is still seen.
    let last = Arc::new(open_as(&lun.wire(), 5000, &clock).unwrap());
    let beating = Arc::clone(&last);
    clock.on_sleep(move || beating.hold.beat().unwrap());
    let error = open_as(&lun.wire(), 5001, &clock).unwrap_err();
    assert!(error.to_string().contains("host5000"), "{error}");
    put(&last.database, 9, &[9]);
}

#[test]
fn a_client_that_the_target_knows_to_be_alive_is_not_robbed() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let first = open_as(&lun.wire(), 1, &clock).unwrap();
    lun.prove(ClientId(1), Proof::Alive("connected from 10.1.1.1".to_owned()));
    let error = open_as(&lun.wire(), 2, &clock).unwrap_err();
    assert!(error.to_string().contains("10.1.1.1"), "{error}");
    first.hold.beat().unwrap();
    put(&first.database, 1, &[1]);
    first.close().unwrap();
    open_as(&lun.wire(), 3, &clock).unwrap().close().unwrap();
}

#[test]
fn v1_a_second_mount_is_refused_and_names_the_first() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let first = Arc::new(open_as(&lun.wire(), 1, &clock).unwrap());
    let beating = Arc::clone(&first);
    clock.on_sleep(move || beating.hold.beat().unwrap());
    for client in [0, 2] {
        let error = open_as(&lun.wire(), client, &clock).unwrap_err();
        assert!(matches!(error, OpenError::Contest(ContestError::Writing(_))), "{error}");
        let text = error.to_string();
        assert!(text.contains("host1") && text.contains("4001") && text.contains("c1"), "{text}");
    }
    put(&first.database, 1, &[1]);
}

#[test]
fn v1_a_writer_that_was_away_is_fenced_when_it_comes_back() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let first = open_as(&lun.wire(), 1, &clock).unwrap();
    // It is stopped; the second watches, and takes over.
    let second = open_as(&lun.wire(), 2, &clock).unwrap();
    assert!(!first.lease.holds(&clock), "its lease has run out long before");
    let beat = first.hold.beat();
    assert!(beat.is_err(), "it went on beside {}", second.hold.claim());
    assert!(first.hold.fenced().is_some_and(|why| why.contains("host2")));
    assert!(!first.lease.holds(&clock));
    assert!(try_put(&first.database, 1, &[1]).is_err());
    put(&second.database, 2, &[2]);
    second.close().unwrap();
    assert_eq!(keys(&open_as(&lun.wire(), 3, &clock).unwrap().database), [0, 2]);
}

#[test]
fn v1_of_two_racing_openers_at_most_one_wins() {
    // The second opener runs as a whole before each single request of the first.
    let base = BenchLun::new(64 * MIB);
    let clock = BenchClock::new();
    make(&base, &clock).unwrap();
    let image = base.image();
    for same_block in [false, true] {
        let (mut request, mut both_tried) = (1, 0);
        loop {
            let (lun, clock) = (BenchLun::from_image(image.clone()), BenchClock::new());
            let second: Arc<Mutex<Option<OpenVolume>>> = Arc::default();
            // Whoever has it goes on beating, also while the other one waits.
            let beating = Arc::clone(&second);
            clock.on_sleep(move || {
                if let Some(volume) = beating.lock().as_ref() {
                    let _ = volume.hold.beat();
                }
            });
            let wire = lun.wire();
            let (slot, other, its_clock) = (Arc::clone(&second), lun.clone(), clock.clone());
            let rival = if same_block { 1 + 64 } else { 2 };
            wire.before(request, move || {
                let opened = open(other.wire() as Arc<dyn Lun>, quick(options(rival, &its_clock)));
                *slot.lock() = opened.ok();
            });
            let first = open(wire.clone() as Arc<dyn Lun>, quick(options(1, &clock)));
            let ran = wire.requests() >= request;
            if let Some(second) = second.lock().as_ref() {
                let _ = second.hold.beat();
                both_tried += 1;
                let first_lives = first.as_ref().is_ok_and(|first| first.hold.beat().is_ok());
                let second_lives = second.hold.fenced().is_none();
                assert!(
                    !(first_lives && second_lives),
                    "request {request}, same block {same_block}: both have the volume"
                );
            }
            if !ran {
                break;
            }
            request += 1;
        }
        assert!(both_tried > 3, "the rival succeeded only {both_tried} times");
    }
}

#[test]
fn v2_a_late_write_of_an_earlier_incarnation_cannot_hurt() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let wire = lun.wire();
    let first = open_as(&wire, 1, &clock).unwrap();
    for key in 1..200 {
        put(&first.database, key, &[1; 300]);
    }
    // Its last commit is under way when the host dies, and stays under way.
    wire.cut();
    assert!(try_put(&first.database, 999, &[9; 300]).is_err());
    assert!(first.area.broken().is_some());
    drop(first);
    assert!(!wire.ghosts().is_empty());

    let wire = lun.wire();
    let second = open_as(&wire, 2, &clock).unwrap();
    for key in 200..400 {
        put(&second.database, key, &[2; 300]);
    }
    assert!(lun.deliver_late() > 0, "nothing was late: the test has tested nothing");
    crash(&wire, second);

    lun.prove_alone(Proof::Ended("for this test".to_owned()));
    let third = open_as(&lun.wire(), 3, &clock);
    let found = third.map(|third| keys(&third.database)).unwrap_or_default();
    assert_eq!(found, (0..400).collect::<Vec<_>>(), "acknowledged entries are lost");
}

/// Found: a mount that had handed the store on wrote its last chunk maps again when the target was restarted, over those of the
/// mount that had it since: whatever no flush has followed is kept for that (P9).
#[test]
fn p9_nothing_but_claims_is_written_to_a_store_after_its_last_flush() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let volume = open_as(&lun.wire(), 1, &clock).unwrap();
    put(&volume.database, 1, &[1; 300]);
    lun.forget_events();
    volume.close().unwrap();
    let events = lun.events();
    let flushed = events.iter().rposition(|event| matches!(event, Event::Flush)).unwrap();
    let claims = layout::CLAIMS_AT * BLOCK..(layout::CLAIMS_AT + layout::CLAIMS as u64) * BLOCK;
    let superblock = events
        .iter()
        .position(|event| matches!(event, Event::Write { offset, .. } if *offset < claims.start));
    assert!(superblock.is_some_and(|at| at < flushed), "{superblock:?} {flushed}");
    for event in &events[flushed..] {
        let Event::Write { offset, .. } = event else { continue };
        assert!(claims.contains(offset), "{offset} is written after the last flush");
    }
}

/// Found: a store was closed, and opened in place by the next mount, while a copy of its writes that was lost on its way and had
/// been sent again could still land.
#[test]
fn p7_a_store_is_not_closed_while_a_write_to_it_may_land() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let wire = lun.wire();
    let first = open_as(&wire, 1, &clock).unwrap();
    wire.double(true);
    put(&first.database, 1, &[1; 300]);
    wire.double(false);
    assert!(!wire.ghosts().is_empty(), "nothing may land: the test tests nothing");
    let (slept, target) = (std::sync::atomic::AtomicU64::new(0), lun.clone());
    clock.on_sleep(move || {
        if slept.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 2 {
            target.deliver_late();
        }
    });
    first.close().unwrap();
    assert_eq!(wire.ghosts(), [], "closed while writes may land");
}

#[test]
fn p2_the_area_does_not_wait_for_a_lease_longer_than_io_is_held() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let (wire, lease) = (lun.wire(), Arc::new(Lease::lapsed()));
    lease.extend(clock.boot().after(Duration::from_secs(3600)));
    let mut options = options(1, &clock);
    options.lease = Some(Arc::clone(&lease));
    options.hold = Duration::from_secs(1);
    let volume = open(wire as Arc<dyn Lun>, options).unwrap();
    clock.advance(Duration::from_secs(3601));
    let (began, its_clock) = (clock.boot(), clock.clone());
    // Without the rule it would be waited for for ever.
    clock.on_sleep(move || {
        assert!(its_clock.boot().since(began) < Duration::from_secs(9), "the lease is waited for in vain");
    });
    assert!(try_put(&volume.database, 1, &[1]).is_err());
    let error = volume.area.broken().unwrap();
    assert!(error.to_string().contains("no heartbeat"), "{error}");
}

#[test]
fn l3_the_area_starts_no_write_without_a_lease() {
    let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
    make(&lun, &clock).unwrap();
    let (wire, lease) = (lun.wire(), Arc::new(Lease::lapsed()));
    lease.extend(clock.boot().after(Duration::from_secs(3600)));
    let mut options = options(1, &clock);
    options.lease = Some(Arc::clone(&lease));
    let volume = open(wire.clone() as Arc<dyn Lun>, options).unwrap();
    clock.advance(Duration::from_secs(3601));
    let written: Arc<Mutex<Vec<bool>>> = Arc::default();
    let (log, its_lease, its_clock) = (Arc::clone(&written), Arc::clone(&lease), clock.clone());
    wire.on_write(move |_| log.lock().push(its_lease.holds(&its_clock)));
    // Won back after a while.
    let (again, its_clock) = (Arc::clone(&lease), clock.clone());
    clock.on_sleep(move || again.extend(its_clock.boot().after(Duration::from_secs(1))));
    put(&volume.database, 1, &[1]);
    assert!(!written.lock().is_empty());
    assert!(written.lock().iter().all(|held| *held), "a write started without a lease: {:?}", written.lock());
    lease.end();
    assert!(try_put(&volume.database, 2, &[1]).is_err());
    assert!(written.lock().iter().all(|held| *held));
    let error = volume.area.broken().unwrap();
    assert!(error.to_string().contains("lease has ended"), "{error}");
}

#[test]
fn a_failed_write_ends_the_area_for_good() {
    for outcome in [Outcome::Failed(libc::EIO), Outcome::Unknown] {
        let (lun, clock) = (BenchLun::new(64 * MIB), BenchClock::new());
        make(&lun, &clock).unwrap();
        let wire = lun.wire();
        let volume = open_as(&wire, 1, &clock).unwrap();
        wire.fail_write_after(0, outcome);
        assert!(try_put(&volume.database, 1, &[1]).is_err());
        let cause = volume.area.broken().unwrap();
        assert!(try_put(&volume.database, 2, &[1]).is_err());
        assert_eq!(volume.area.broken(), Some(cause.clone()), "the first cause is kept");
        assert!(volume.area.sync().is_err_and(|error| error == cause));
        assert!(volume.close().is_err());
    }
}
