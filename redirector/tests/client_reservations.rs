//! `scsi-pr` against tgt: who may write, who is fenced, and what a target that forgets registrations is good for.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod client_harness;

use std::sync::Arc;
use std::time::Duration;

use client_harness::exercise::SIZE;
use client_harness::tgt::Tgt;
use client_harness::{PATIENCE, Place, end, free_port, options, start_read, start_write, try_open, wait_for};
use lockd::clock::{BootTime, Clock, SystemClock};
use lockd::fencing::{Units, key_of, node_key};
use lockd::ids::ClientId;
use lockd::lease::Lease;
use lockd::reservation::{Shown, Trial};
use redirector::iscsi::Reservation;
use redirector::lun::{Lun, Outcome};

/// A client with its lease.
struct Client {
    lun: Arc<dyn Lun>,
    lease: Arc<Lease>,
}

/// The client `number`, registered.
fn client(tgt: &Tgt, number: u64) -> Client {
    let lease = Arc::new(Lease::lapsed());
    lease.extend(BootTime(u64::MAX - 2));
    client_under(tgt, number, lease)
}

/// The same with a lease that is its own.
fn client_under(tgt: &Tgt, number: u64, lease: Arc<Lease>) -> Client {
    let mut options = options();
    options.client = ClientId(number);
    options.hold = Duration::from_secs(60);
    let key = key_of(options.client);
    options.reservation = Some(Reservation {
        key,
        node: "n9".parse().unwrap(),
        lease: Arc::clone(&lease),
        guards_unmap: false,
    });
    Client { lun: try_open(&tgt.uri(), &options).unwrap(), lease }
}

fn fence(tgt: &Tgt, victims: &[u64]) -> String {
    let units = Units::new(&[tgt.uri()], &"n9".parse().unwrap()).unwrap();
    let keys: Vec<_> = victims.iter().map(|number| key_of(ClientId(*number))).collect();
    units.fence(&keys).unwrap()
}

fn write(place: &Place, lun: &dyn Lun, offset: u64, byte: u8) -> Outcome {
    end(&start_write(lun, offset, place.filled(byte, 4096), false))
}

fn byte_at(place: &Place, lun: &dyn Lun, offset: u64) -> u8 {
    let (outcome, buffer) = end(&start_read(lun, offset, place.pool.take(4096)));
    assert_eq!(outcome, Outcome::Done);
    buffer[0]
}

#[test]
fn what_a_target_can_is_tried_and_leaves_nothing_behind() {
    let place = Place::new();
    let tgt = Tgt::open(free_port(), &place.image("image", SIZE));
    let lun = try_open(&tgt.uri(), &options()).unwrap();
    let shown = Shown { aborts: false, persists: false, guards_unmap: false, tried: true };
    let node = "n9".parse().unwrap();
    let trial = Trial { node: &node, key: node_key(&node), scratch: 1 << 20 };
    for _ in 0..2 {
        assert_eq!(lun.try_reservations(trial), Ok(shown));
    }
    assert_eq!(write(&place, &*lun, 0, 1), Outcome::Done, "nothing is reserved");
    let first = client(&tgt, 1);
    assert_eq!(lun.try_reservations(trial), Ok(shown), "beside those who use it");
    assert_eq!(write(&place, &*first.lun, 0, 2), Outcome::Done);
}

#[test]
fn only_who_has_registered_writes_also_when_all_have_left() {
    let place = Place::new();
    let tgt = Tgt::open(free_port(), &place.image("image", SIZE));
    let (first, second) = (client(&tgt, 1), client(&tgt, 2));
    assert!(!first.lun.geometry().trim && !first.lun.geometry().write_zeroes, "tgt lets them pass");
    for (who, byte) in [(&first, 1), (&second, 2), (&first, 3)] {
        assert_eq!(write(&place, &*who.lun, 0, byte), Outcome::Done);
    }
    let stranger = || try_open(&tgt.uri(), &options()).unwrap();
    let refused = stranger();
    assert_eq!(byte_at(&place, &*refused, 0), 3, "reading is free");
    assert_eq!(write(&place, &*refused, 0, 9), Outcome::Failed(libc::EIO));
    wait_for("the reason to be said", || refused.describe().contains("reserved by somebody else"));
    drop(first);
    assert_eq!(write(&place, &*stranger(), 0, 9), Outcome::Failed(libc::EIO));
    drop(second);
    assert_eq!(write(&place, &*stranger(), 0, 9), Outcome::Failed(libc::EIO), "who was fenced stays out");
    assert_eq!(write(&place, &*client(&tgt, 3).lun, 0, 4), Outcome::Done);
}

#[test]
fn nothing_of_who_is_fenced_lands_and_the_others_go_on() {
    let place = Place::new();
    let image = place.image("image", SIZE);
    let tgt = Tgt::open(free_port(), &image);
    let (victim, other) = (client(&tgt, 1), client(&tgt, 2));
    assert_eq!(write(&place, &*victim.lun, 0, 1), Outcome::Done);
    // What the other has under way is aborted with the unit's reset, and sent again.
    let busy: Vec<_> =
        (0..64).map(|i| start_write(&*other.lun, (i + 16) * 65536, place.filled(2, 65536), true)).collect();
    let seen = fence(&tgt, &[1]);
    assert!(seen.contains("1 preempted, 0 not registered, and the unit was reset"), "{seen}");
    assert_eq!(write(&place, &*other.lun, 0, 3), Outcome::Done, "the other");
    let late = write(&place, &*victim.lun, 0, 9);
    assert_eq!(late, Outcome::Failed(libc::EIO));
    assert_eq!(write(&place, &*victim.lun, 4096, 9), Outcome::Failed(libc::EIO), "for good");
    wait_for("the reason to be said", || victim.lun.describe().contains("fenced"));
    assert!(busy.iter().all(|write| end(write) == Outcome::Done));
    assert_eq!((byte_at(&place, &*other.lun, 0), byte_at(&place, &*other.lun, 4096)), (3, 0));
    assert_eq!(byte_at(&place, &*other.lun, 16 * 65536), 2);
    let again = fence(&tgt, &[1]);
    assert!(again.contains("0 preempted, 1 not registered"), "{again}");
    // tgt has kept what the other had registered by the session that the reset ended.
    let units = Units::new(&[tgt.uri()], &"n9".parse().unwrap()).unwrap();
    assert!(units.release().unwrap_err().to_string().contains("mounts are registered"));
    drop(other);
    units.release().unwrap();
    let stranger = try_open(&tgt.uri(), &options()).unwrap();
    assert_eq!(write(&place, &*stranger, 0, 4), Outcome::Done);
}

#[test]
fn what_a_stopped_client_had_sent_is_over_when_the_fence_is_complete() {
    let place = Place::new();
    let tgt = Tgt::open(free_port(), &place.image("image", SIZE));
    let (victim, other) = (client(&tgt, 1), client(&tgt, 2));
    tgt.server.stop();
    let sent: Vec<_> =
        (0..32).map(|i| start_write(&*victim.lun, i * 4096, place.filled(9, 4096), false)).collect();
    let fenced = std::thread::scope(|scope| {
        let fenced = scope.spawn(|| fence(&tgt, &[1]));
        std::thread::sleep(Duration::from_millis(100));
        tgt.server.signal(libc::SIGCONT);
        fenced.join().unwrap()
    });
    assert!(fenced.contains("1 preempted"), "{fenced}");
    assert_eq!(write(&place, &*victim.lun, 0, 9), Outcome::Failed(libc::EIO), "sent later");
    for i in 0..32 {
        assert_eq!(write(&place, &*other.lun, i * 4096, 3), Outcome::Done);
    }
    // The victim goes on trying as long as it likes.
    for late in &sent {
        let _ = late.recv_timeout(PATIENCE).unwrap();
    }
    for i in 0..32 {
        assert_eq!(byte_at(&place, &*other.lun, i * 4096), 3, "a fenced write has landed at {i}");
    }
}

#[test]
fn l3_a_registration_that_the_target_forgot_is_made_again_only_under_the_lease() {
    let place = Place::new();
    let image = place.image("image", SIZE);
    let port = free_port();
    let mut tgt = Tgt::open(port, &image);
    let (first, second) = (client(&tgt, 1), client(&tgt, 2));
    let restart = |tgt: Tgt| {
        tgt.server.kill();
        wait_for("the path to be down", || first.lun.describe().contains("down"));
        Tgt::open(port, &image)
    };
    // The lease holds: whoever holds it has not been fenced.
    tgt = restart(tgt);
    assert_eq!(write(&place, &*first.lun, 0, 1), Outcome::Done);
    assert_eq!(write(&place, &*second.lun, 4096, 1), Outcome::Done);
    let stranger = try_open(&tgt.uri(), &options()).unwrap();
    assert_eq!(write(&place, &*stranger, 0, 9), Outcome::Failed(libc::EIO), "reserved again");
    drop(stranger);

    // A client whose lease has run out cannot tell whether it was fenced meanwhile.
    let short = Arc::new(Lease::lapsed());
    short.extend(SystemClock.boot().after(Duration::from_millis(500)));
    let third = client_under(&tgt, 3, short);
    wait_for("the lease to run out", || !third.lease.holds(&SystemClock));
    tgt = restart(tgt);
    assert_eq!(write(&place, &*first.lun, 0, 2), Outcome::Done);
    let held = start_write(&*third.lun, 8192, place.filled(3, 4096), false);
    wait_for("the reason to be said", || third.lun.describe().contains("the lease has run out"));
    assert!(held.try_recv().is_err());
    third.lease.extend(BootTime(u64::MAX - 2));
    assert_eq!(end(&held), Outcome::Done);

    // And one whose session has ended is fenced for good, whatever the target remembers.
    third.lease.end();
    tgt = restart(tgt);
    let refused = start_write(&*third.lun, 8192, place.filled(9, 4096), false);
    assert_eq!(end(&refused), Outcome::Failed(libc::EIO));
    assert_eq!(byte_at(&place, &*first.lun, 8192), 3);
    drop(tgt);
}
