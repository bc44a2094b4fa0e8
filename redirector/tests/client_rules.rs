//! The rules of paths against a scripted server. Each test fails when its rule is switched off (`CSV_MUTANT`).

#![allow(clippy::unwrap_used, reason = "a test may")]

mod client_harness;

use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use client_harness::fake::Fake;
use client_harness::{
    Place, end, options, start_flush, start_read, start_trim, start_write, start_zero, try_open, wait_for,
};
use lockd::clock::BootTime;
use lockd::ids::ClientId;
use lockd::lease::Lease;
use proptest::prelude::*;
use redirector::lun::{Identity, Lun, Outcome, Proof};
use redirector::nbd::wire::{self, cmd};
use redirector::plug;

/// Long enough for what must not happen to happen.
const A_WHILE: Duration = Duration::from_millis(250);

fn assert_pending<T: std::fmt::Debug>(what: &str, receiver: &Receiver<T>) {
    if let Ok(ended) = receiver.recv_timeout(A_WHILE) {
        panic!("{what} has ended: {ended:?}");
    }
}

fn byte_at(place: &Place, lun: &dyn Lun, offset: u64) -> u8 {
    let (outcome, buffer) = end(&start_read(lun, offset, place.pool.take(4096)));
    assert_eq!(outcome, Outcome::Done);
    buffer[0]
}

/// A write of 0x11 at 0 whose first copy the server has swallowed, and that is done by its second.
fn haunted_write(place: &Place, fake: &Fake, lun: &dyn Lun) {
    fake.script.lock().swallow = Some(cmd::WRITE);
    let write = start_write(lun, 0, place.filled(0x11, 4096), false);
    wait_for("the write to arrive", || fake.swallowed() == 1);
    fake.script.lock().swallow = None;
    fake.cut();
    assert_eq!(end(&write), Outcome::Done, "it is sent again");
}

#[test]
fn p2_io_is_held_while_the_path_is_down_and_goes_on() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    let lun = try_open(&fake.uri(), &options()).unwrap();
    fake.script.lock().swallow = Some(cmd::READ);
    let in_flight = start_read(&*lun, 0, place.pool.take(4096));
    wait_for("the read to arrive", || fake.swallowed() == 1);
    {
        let mut script = fake.script.lock();
        script.swallow = None;
        script.refuse = true;
    }
    fake.cut();
    wait_for("the path to be down", || lun.describe().contains("down"));
    let new = start_write(&*lun, 0, place.filled(3, 4096), false);
    assert_pending("the read in flight", &in_flight);
    assert_pending("the new write", &new);
    fake.script.lock().refuse = false;
    assert_eq!(end(&in_flight).0, Outcome::Done);
    assert_eq!(end(&new), Outcome::Done);
    assert!(lun.describe().contains("up for"), "{}", lun.describe());
}

#[test]
fn p2_what_is_held_for_too_long_fails_and_a_sent_write_is_unknown() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    let mut options = options();
    options.hold = Duration::from_millis(400);
    options.target_quiesce = Duration::from_secs(60);
    let lun = try_open(&fake.uri(), &options).unwrap();
    fake.script.lock().swallow = Some(cmd::WRITE);
    let write = start_write(&*lun, 8192, place.filled(3, 4096), false);
    wait_for("the write to arrive", || fake.swallowed() == 1);
    fake.script.lock().refuse = true;
    fake.cut();
    let read = start_read(&*lun, 0, place.pool.take(4096));
    assert_pending("the read", &read);
    assert_eq!(end(&write), Outcome::Unknown);
    assert_eq!(end(&read).0, Outcome::Failed(libc::EIO));
    assert_eq!(
        end(&start_write(&*lun, 0, place.filled(3, 4096), false)),
        Outcome::Failed(libc::EIO),
        "never sent"
    );
    if options.rules.keeps(lockd::rules::Rule::P7) {
        assert_eq!(lun.ghosts().first(), Some(&(8192..12288)));
    }
}

#[test]
fn p2_what_is_held_back_when_the_link_breaks_goes_by_the_next_one() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    let lun = try_open(&fake.uri(), &options()).unwrap();
    let mut write = None;
    plug::together(|| {
        write = Some(start_write(&*lun, 4096, place.filled(0x77, 4096), false));
        assert!(!plug::is_empty(), "it is held back");
        fake.script.lock().refuse = true;
        fake.cut();
        wait_for("the path to be down", || lun.describe().contains("down"));
    });
    let write = write.unwrap();
    assert_pending("the write that was held back", &write);
    fake.script.lock().refuse = false;
    assert_eq!(end(&write), Outcome::Done);
    assert!(lun.ghosts().is_empty(), "it was never sent by the broken link");
    assert_eq!(byte_at(&place, &*lun, 4096), 0x77);
}

#[test]
fn p3_a_lun_that_comes_back_smaller_is_not_used() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    let lun = try_open(&fake.uri(), &options()).unwrap();
    fake.script.lock().size /= 2;
    fake.cut();
    let read = start_read(&*lun, 0, place.pool.take(4096));
    assert_pending("a read of a smaller LUN", &read);
    assert!(lun.describe().contains("its size was 4194304 bytes and is 2097152"), "{}", lun.describe());
    fake.script.lock().size *= 2;
    assert_eq!(end(&read).0, Outcome::Done);
}

#[test]
fn p3_another_lun_is_not_used() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    let lun = try_open(&fake.uri(), &options()).unwrap();
    fake.script.lock().disk[4100..4103].copy_from_slice(b"uid");
    lun.expect(Identity { offset: 4100, bytes: b"uid".to_vec() });
    fake.script.lock().disk[4100] = b'x';
    fake.cut();
    let read = start_read(&*lun, 0, place.pool.take(4096));
    assert_pending("a read of another LUN", &read);
    assert!(lun.describe().contains("another LUN answers there"), "{}", lun.describe());
    fake.script.lock().disk[4100] = b'u';
    assert_eq!(end(&read).0, Outcome::Done);
    let mut options = options();
    options.identity = Some(Identity { offset: 4100, bytes: b"UID".to_vec() });
    assert!(
        try_open(&fake.uri(), &options).unwrap_err().to_string().contains("not the LUN that was expected")
    );
}

#[test]
fn p4_a_new_write_waits_for_the_ghost() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    let lun = try_open(&fake.uri(), &options()).unwrap();
    haunted_write(&place, &fake, &*lun);
    let over = start_write(&*lun, 0, place.filled(0x22, 4096), false);
    let elsewhere = start_write(&*lun, 65536, place.filled(0x33, 4096), false);
    assert_eq!(end(&elsewhere), Outcome::Done);
    assert_pending("a write over a ghost", &over);
    fake.land();
    assert_eq!(end(&over), Outcome::Done);
    assert_eq!(byte_at(&place, &*lun, 0), 0x22);
    assert!(lun.ghosts().is_empty());
}

#[test]
fn a_ghost_is_dead_after_the_quiesce_time_of_the_volume() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    let mut options = options();
    options.target_quiesce = Duration::from_secs(3600);
    let lun = try_open(&fake.uri(), &options).unwrap();
    lun.assume_quiesce(Duration::from_millis(1500));
    assert!(lun.describe().contains("nothing later than 1.5 s"), "{}", lun.describe());
    haunted_write(&place, &fake, &*lun);
    assert_eq!(lun.ghosts().first(), Some(&(0..4096)));
    let over = start_write(&*lun, 0, place.filled(0x22, 4096), false);
    assert_pending("a write over a ghost", &over);
    assert_eq!(end(&over), Outcome::Done);
    assert!(lun.ghosts().is_empty());
}

#[test]
fn a_drain_by_the_target_kills_the_ghost_at_once() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    fake.script.lock().boot = Some([1; 16]);
    let mut options = options();
    options.target_quiesce = Duration::from_secs(60);
    let lun = try_open(&fake.uri(), &options).unwrap();
    haunted_write(&place, &fake, &*lun);
    assert_eq!(lun.ghosts(), []);
    assert_eq!(end(&start_write(&*lun, 0, place.filled(0x22, 4096), false)), Outcome::Done);
}

#[test]
fn p4_the_drain_of_a_new_instance_proves_nothing_of_the_old_one() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    fake.script.lock().boot = Some([1; 16]);
    let mut options = options();
    options.target_quiesce = Duration::from_secs(60);
    let lun = try_open(&fake.uri(), &options).unwrap();
    fake.script.lock().swallow = Some(cmd::WRITE);
    let write = start_write(&*lun, 0, place.filled(0x11, 4096), false);
    wait_for("the write to arrive", || fake.swallowed() == 1);
    fake.restart();
    assert_eq!(end(&write), Outcome::Done);
    let over = start_write(&*lun, 0, place.filled(0x22, 4096), false);
    assert_pending("a write over a ghost", &over);
    // The next connection leads to a target that holds its store's lock: nothing of earlier instances is left.
    fake.script.lock().drained = wire::drained::FOR_GOOD;
    fake.cut();
    assert_eq!(end(&over), Outcome::Done);
}

#[test]
fn p5_what_has_not_reached_the_server_dies_with_the_connection() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = redirector::nbd::socket::Socket::tcp(
        ([127, 0, 0, 1], port).into(),
        Duration::from_secs(5),
        options().rules.keeps(lockd::rules::Rule::P5),
    )
    .unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let data = place.filled(1, 64 << 10);
    socket.set_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut sent = 0;
    while socket.send(&mut [std::io::IoSlice::new(&data)]).is_ok() {
        sent += data.len();
    }
    assert!(sent > 0, "the socket takes something");
    socket.shutdown();
    drop(socket);
    let mut received = 0;
    let mut buffer = vec![0; 1 << 20];
    let broken = loop {
        match server.read(&mut buffer) {
            Ok(0) => break false,
            Ok(count) => received += count,
            Err(_) => break true,
        }
    };
    assert!(broken && received < sent, "{received} of {sent} bytes were delivered after the end");
}

#[test]
fn p6_a_zero_of_unknown_outcome_is_a_ghost_too() {
    for (command, start) in [
        (cmd::WRITE_ZEROES, start_zero as fn(&dyn Lun, std::ops::Range<u64>) -> Receiver<Outcome>),
        (cmd::TRIM, start_trim),
    ] {
        let place = Place::new();
        let fake = Fake::start(place.dir.path());
        let lun = try_open(&fake.uri(), &options()).unwrap();
        fake.script.lock().swallow = Some(command);
        let zero = start(&*lun, 0..65536);
        wait_for("the request to arrive", || fake.swallowed() == 1);
        fake.script.lock().swallow = None;
        fake.cut();
        assert_eq!(end(&zero), Outcome::Done);
        let over = start_write(&*lun, 4096, place.filled(0x22, 4096), false);
        assert_pending("a write over the ghost", &over);
        fake.land();
        assert_eq!(end(&over), Outcome::Done);
        assert_eq!(byte_at(&place, &*lun, 4096), 0x22);
    }
}

#[test]
fn p7_drained_means_no_ghosts() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    let lun = try_open(&fake.uri(), &options()).unwrap();
    assert!(lun.ghosts().is_empty());
    haunted_write(&place, &fake, &*lun);
    // Nothing is in flight, and still it is not drained.
    assert_eq!(lun.ghosts().first(), Some(&(0..4096)));
    wait_for("the ghost to die", || lun.ghosts().is_empty());
}

#[test]
fn p8_a_flush_covers_the_writes_of_every_connection() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    fake.script.lock().multi_conn = false;
    let mut options = options();
    options.connections = Some(4);
    let lun = try_open(&fake.uri(), &options).unwrap();
    // One that is not answered: beside it the writes go round all connections that there are.
    fake.script.lock().swallow = Some(cmd::READ);
    let _unanswered = start_read(&*lun, 0, place.pool.take(4096));
    wait_for("the read", || fake.swallowed() == 1);
    for i in 0..16u64 {
        assert_eq!(end(&start_write(&*lun, i * 4096, place.filled(7, 4096), false)), Outcome::Done);
    }
    assert_eq!(end(&start_flush(&*lun)), Outcome::Done);
    assert!(
        fake.script.lock().durable[..65536].iter().all(|byte| *byte == 7),
        "a flushed write is not durable"
    );
    // Where the target covers all of them, all are used.
    fake.script.lock().swallow = None;
    fake.script.lock().multi_conn = true;
    let lun = try_open(&fake.uri(), &options).unwrap();
    assert!(lun.describe().contains("4 connections"), "{}", lun.describe());
}

#[test]
fn p9_a_restarted_target_gets_again_what_was_not_flushed() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    fake.script.lock().boot = Some([1; 16]);
    let lun = try_open(&fake.uri(), &options()).unwrap();
    let write = |offset, byte, fua| {
        assert_eq!(end(&start_write(&*lun, offset, place.filled(byte, 4096), fua)), Outcome::Done);
    };
    write(0, 1, false);
    write(0, 2, false);
    write(4096, 3, false);
    write(4096, 4, true);
    write(8192, 5, false);
    assert_eq!(end(&start_zero(&*lun, 8192..12288)), Outcome::Done);
    fake.restart();
    assert_eq!(byte_at(&place, &*lun, 0), 2);
    assert_eq!(byte_at(&place, &*lun, 4096), 4, "an older write must not undo a durable one");
    assert_eq!(byte_at(&place, &*lun, 8192), 0);
    assert_eq!(end(&start_flush(&*lun)), Outcome::Done);
    let before = fake.script.lock().log.len();
    fake.restart();
    assert_eq!(byte_at(&place, &*lun, 0), 2);
    let script = fake.script.lock();
    assert!(
        script.log[before..].iter().all(|seen| seen.command != cmd::WRITE),
        "what is flushed is not replayed"
    );
}

#[test]
fn p9_a_flush_fails_once_when_too_much_was_written() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    fake.script.lock().boot = Some([1; 16]);
    let mut options = options();
    options.kept_max = 16384;
    let lun = try_open(&fake.uri(), &options).unwrap();
    // The flush that makes room does not come about.
    fake.script.lock().swallow = Some(cmd::FLUSH);
    for i in 0..8 {
        assert_eq!(end(&start_write(&*lun, i * 4096, place.filled(1, 4096), false)), Outcome::Done);
    }
    wait_for("the background flush", || fake.swallowed() == 1);
    fake.restart();
    assert_eq!(byte_at(&place, &*lun, 0), 1);
    assert_eq!(end(&start_flush(&*lun)), Outcome::Failed(libc::EIO));
    assert_eq!(end(&start_flush(&*lun)), Outcome::Done);
}

#[test]
fn a_background_flush_makes_room_for_what_is_kept() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    fake.script.lock().boot = Some([1; 16]);
    let mut options = options();
    options.kept_max = 65536;
    let lun = try_open(&fake.uri(), &options).unwrap();
    if !options.rules.keeps(lockd::rules::Rule::P9) {
        return;
    }
    for i in 0..8 {
        assert_eq!(end(&start_write(&*lun, i * 4096, place.filled(1, 4096), false)), Outcome::Done);
    }
    wait_for("the background flush", || fake.script.lock().durable[28672] == 1);
}

#[test]
fn an_earlier_client_is_ended_by_the_target() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    let lun = try_open(&fake.uri(), &options()).unwrap();
    assert_eq!(lun.prove_ended(ClientId(3)), Proof::Unprovable);
    fake.script.lock().boot = Some([1; 16]);
    fake.script.lock().alive.push(4);
    assert!(matches!(lun.prove_ended(ClientId(3)), Proof::Ended(_)));
    assert_eq!(lun.prove_ended(ClientId(4)), Proof::Alive("node n2".to_owned()));
    assert_eq!(fake.script.lock().ended, [3]);
}

#[test]
fn requests_made_by_completions_do_not_wait_for_themselves() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    let lun = try_open(&fake.uri(), &options()).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    for i in 0..600u64 {
        let (lun_again, sender, pool) = (lun.clone(), sender.clone(), place.pool.clone());
        let offset = i % 128 * 4096;
        lun.read(
            offset,
            place.pool.take(4096),
            Box::new(move |outcome, buffer| {
                assert_eq!(outcome, Outcome::Done);
                let _ = pool;
                lun_again.write(
                    offset,
                    buffer.share(),
                    false,
                    Box::new(move |outcome| drop((outcome, sender))),
                );
            }),
        );
    }
    drop(sender);
    let ended = receiver.recv_timeout(client_harness::PATIENCE);
    assert_eq!(ended, Err(std::sync::mpsc::RecvTimeoutError::Disconnected) as Result<(), _>);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..4, cookie in 0..3u64) {
        let place = Place::new();
        let fake = Fake::start(place.dir.path());
        let mut options = options();
        options.hold = Duration::from_millis(60);
        let lun = try_open(&fake.uri(), &options).unwrap();
        let magic = match kind {
            0 => wire::SIMPLE_REPLY_MAGIC,
            1 => wire::CHUNK_MAGIC,
            _ => 0x1234_5678,
        };
        let mut garbage = [&magic.to_be_bytes()[..], &bytes].concat();
        if kind == 0 && garbage.len() >= 16 {
            garbage[8..16].copy_from_slice(&(1u64 << 16 | cookie).to_be_bytes());
        }
        // Enough to keep no request waiting for the rest of what looks like a reply.
        garbage.resize(garbage.len() + 20000, 0);
        fake.script.lock().garbage = Some(garbage);
        for _ in 0..3 {
            let _ = end(&start_read(&*lun, 0, place.pool.take(4096)));
        }
    }
}

#[test]
fn l3_a_held_write_is_sent_only_under_the_lease() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    let lun = try_open(&fake.uri(), &options()).unwrap();
    let lease = Arc::new(Lease::lapsed());
    lun.under(Arc::clone(&lease), 0..4096);
    // One of unknown outcome, one that was never sent, and a beat.
    let hold = |sent_at, new_at| {
        let before = fake.swallowed();
        fake.script.lock().swallow = Some(cmd::WRITE);
        let sent = start_write(&*lun, sent_at, place.filled(1, 4096), false);
        wait_for("the write to arrive", || fake.swallowed() == before + 1);
        {
            let mut script = fake.script.lock();
            script.swallow = None;
            script.refuse = true;
        }
        fake.cut();
        wait_for("the path to be down", || lun.describe().contains("down"));
        let new = start_write(&*lun, new_at, place.filled(2, 4096), false);
        let beat = start_write(&*lun, 0, place.filled(3, 4096), false);
        fake.script.lock().refuse = false;
        assert_eq!(end(&beat), Outcome::Done, "the path is up again");
        (sent, new)
    };
    let (sent, new) = hold(8192, 16384);
    assert_pending("a write of unknown outcome, without the lease", &sent);
    assert_pending("a write that was held, without the lease", &new);
    assert_eq!(fake.script.lock().disk[16384], 0);
    lease.extend(BootTime(u64::MAX - 1));
    assert_eq!([end(&sent), end(&new)], [Outcome::Done; 2], "won back");

    let lease = Arc::new(Lease::lapsed());
    lun.under(Arc::clone(&lease), 0..4096);
    let (sent, new) = hold(32768, 65536);
    lease.end();
    assert_eq!(end(&sent), Outcome::Unknown);
    assert_eq!(end(&new), Outcome::Failed(libc::EIO));
    assert_eq!(fake.script.lock().disk[65536], 0, "never sent");
}

#[test]
fn l3_what_a_target_lost_is_written_again_only_under_the_lease() {
    let place = Place::new();
    let fake = Fake::start(place.dir.path());
    fake.script.lock().boot = Some([1; 16]);
    let lun = try_open(&fake.uri(), &options()).unwrap();
    let lease = Arc::new(Lease::lapsed());
    lease.extend(BootTime(u64::MAX - 2));
    lun.under(Arc::clone(&lease), 0..4096);
    assert_eq!(end(&start_write(&*lun, 8192, place.filled(1, 4096), false)), Outcome::Done);
    assert_eq!(end(&start_write(&*lun, 0, place.filled(2, 4096), true)), Outcome::Done);

    // The target loses the write; when it is back the lease has run out. Beats get through, and nothing else does.
    let lease = Arc::new(Lease::lapsed());
    lun.under(Arc::clone(&lease), 0..4096);
    fake.restart();
    assert_eq!(end(&start_write(&*lun, 0, place.filled(3, 4096), true)), Outcome::Done, "a beat");
    let claims = end(&start_read(&*lun, 0, place.pool.take(4096)));
    assert_eq!((claims.0, claims.1[0]), (Outcome::Done, 3), "what beats read");
    let read = start_read(&*lun, 8192, place.pool.take(4096));
    assert_pending("a read of what is not written again yet", &read);
    assert_eq!(fake.script.lock().disk[8192], 0, "written again without the lease");
    lease.extend(BootTime(u64::MAX - 1));
    let (outcome, found) = end(&read);
    assert_eq!((outcome, found[0]), (Outcome::Done, 1), "won back");
    assert_eq!(fake.script.lock().disk[0], 3, "the beat is not undone");

    // The lease is over for good: what was lost stays lost, and the LUN can be read.
    assert_eq!(end(&start_write(&*lun, 12288, place.filled(4, 4096), false)), Outcome::Done);
    lun.under(Arc::new(Lease::lapsed()), 0..4096);
    fake.restart();
    let read = start_read(&*lun, 12288, place.pool.take(4096));
    let ended = Arc::new(Lease::lapsed());
    ended.end();
    assert_pending("a read before it is decided", &read);
    lun.under(ended, 0..4096);
    fake.cut();
    assert_eq!(end(&read).1[0], 0);
    assert_eq!(fake.script.lock().disk[12288], 0);
}
