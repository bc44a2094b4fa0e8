//! The iSCSI client against tgt: everything that a volume does, a target that is killed, secrets, unit attentions.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod client_harness;

use std::time::Duration;

use client_harness::exercise::{SIZE, exercise};
use client_harness::tgt::{TARGET, Tgt};
use client_harness::{
    Place, end, free_port, options, start_flush, start_read, start_trim, start_write, start_zero, try_open,
    wait_for,
};
use redirector::lun::Outcome;

#[test]
fn everything_that_a_volume_does_is_done() {
    let place = Place::new();
    let tgt = Tgt::open(free_port(), &place.image("image", SIZE));
    exercise(&place, &tgt.uri(), 11);
    let lun = try_open(&tgt.uri(), &options()).unwrap();
    let geometry = lun.geometry();
    assert!(geometry.trim && geometry.write_zeroes && geometry.volatile_cache, "{geometry:?}");
    assert_eq!(geometry.block_size, 512);
    assert!(lun.describe().contains("by a unit attention"), "{}", lun.describe());
    assert!(lun.target().is_none(), "it is no csv-target");
}

#[test]
fn a_unit_with_blocks_of_4096_bytes() {
    let place = Place::new();
    let tgt = Tgt::start(free_port(), &place.image("image", SIZE), &["--blocksize", "4096"]);
    tgt.bind();
    exercise(&place, &tgt.uri(), 12);
    assert_eq!(try_open(&tgt.uri(), &options()).unwrap().geometry().block_size, 4096);
}

#[test]
fn zeros_and_holes_are_made_by_the_target() {
    let place = Place::new();
    let image = place.image("image", SIZE);
    let tgt = Tgt::open(free_port(), &image);
    let lun = try_open(&tgt.uri(), &options()).unwrap();
    let allocated = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&image).unwrap().blocks() * 512
    };
    let whole = |byte| start_write(&*lun, 1 << 20, place.filled(byte, 4 << 20), true);
    assert_eq!(end(&whole(7)), Outcome::Done);
    wait_for("the file to have blocks", || allocated() >= 4 << 20);
    assert_eq!(end(&start_trim(&*lun, 1 << 20..5 << 20)), Outcome::Done);
    wait_for("the blocks to be given up", || allocated() < 1 << 20);
    assert_eq!(end(&whole(7)), Outcome::Done);
    assert_eq!(end(&start_zero(&*lun, (1 << 20) + 4096..3 << 20)), Outcome::Done);
    let (outcome, buffer) = end(&start_read(&*lun, 1 << 20, place.pool.take(4 << 20)));
    assert_eq!(outcome, Outcome::Done);
    let zeroed = 4096..2 << 20;
    assert!(buffer.iter().enumerate().all(|(at, byte)| *byte == if zeroed.contains(&at) { 0 } else { 7 }));
}

#[test]
fn a_target_is_killed_with_requests_in_flight_and_started_again() {
    let place = Place::new();
    let image = place.image("image", SIZE);
    let port = free_port();
    let mut tgt = Tgt::open(port, &image);
    let lun = try_open(&tgt.uri(), &options()).unwrap();
    for round in 1..=3u8 {
        // None of them is executed before it is killed.
        tgt.server.stop();
        let writes: Vec<_> =
            (0..96).map(|i| start_write(&*lun, i * 65536, place.filled(round, 65536), i % 8 == 0)).collect();
        let reads: Vec<_> = (96..160).map(|i| start_read(&*lun, i * 65536, place.pool.take(65536))).collect();
        tgt.server.kill();
        wait_for("the path to be down", || lun.describe().contains("down"));
        tgt = Tgt::open(port, &image);
        for write in &writes {
            assert_eq!(end(write), Outcome::Done);
        }
        for read in &reads {
            assert_eq!(end(read).0, Outcome::Done);
        }
        assert_eq!(end(&start_flush(&*lun)), Outcome::Done);
        for i in 0..96 {
            let (outcome, buffer) = end(&start_read(&*lun, i * 65536, place.pool.take(65536)));
            assert_eq!(outcome, Outcome::Done);
            assert!(buffer.iter().all(|byte| *byte == round), "round {round}: lost at {i}");
        }
    }
}

#[test]
fn p9_what_was_not_flushed_is_written_again_after_a_restart() {
    let place = Place::new();
    let image = place.image("image", SIZE);
    let port = free_port();
    let tgt = Tgt::open(port, &image);
    let lun = try_open(&tgt.uri(), &options()).unwrap();
    assert_eq!(end(&start_write(&*lun, 4096, place.filled(1, 4096), false)), Outcome::Done);
    assert_eq!(end(&start_flush(&*lun)), Outcome::Done);
    assert_eq!(end(&start_write(&*lun, 8192, place.filled(2, 4096), false)), Outcome::Done);
    tgt.server.kill();
    // A cache that is lost with the machine: also what was flushed, so that it is seen what is written again.
    std::fs::write(&image, vec![0; usize::try_from(SIZE).unwrap()]).unwrap();
    let _tgt = Tgt::open(port, &image);
    let byte = |at| end(&start_read(&*lun, at, place.pool.take(4096))).1[0];
    assert_eq!((byte(8192), byte(4096)), (2, 0));
}

#[test]
fn a_target_that_hangs_is_suspect_until_it_answers() {
    let place = Place::new();
    let tgt = Tgt::open(free_port(), &place.image("image", SIZE));
    let lun = try_open(&tgt.uri(), &options()).unwrap();
    for _ in 0..1100 {
        assert_eq!(end(&start_read(&*lun, 0, place.pool.take(4096))).0, Outcome::Done);
    }
    tgt.server.stop();
    let write = start_write(&*lun, 0, place.filled(5, 4096), false);
    wait_for("the path to be suspect", || lun.describe().contains("suspect"));
    assert!(write.try_recv().is_err());
    tgt.server.signal(libc::SIGCONT);
    assert_eq!(end(&write), Outcome::Done);
    wait_for("the path to be up", || lun.describe().contains("up for"));
    assert!(lun.ghosts().is_empty(), "nothing was sent twice");
}

#[test]
fn a_target_that_hangs_for_the_whole_hold_time_is_given_up() {
    let place = Place::new();
    let tgt = Tgt::open(free_port(), &place.image("image", SIZE));
    let mut options = options();
    options.hold = Duration::from_millis(300);
    let lun = try_open(&tgt.uri(), &options).unwrap();
    tgt.server.stop();
    let write = start_write(&*lun, 0, place.filled(5, 4096), false);
    assert_eq!(end(&write), Outcome::Unknown);
    assert!(!lun.ghosts().is_empty());
    tgt.server.signal(libc::SIGCONT);
    let done = || end(&start_read(&*lun, 0, place.pool.take(4096))).0 == Outcome::Done;
    wait_for("the path to be back", done);
}

#[test]
fn only_who_knows_the_secret_is_let_in() {
    let place = Place::new();
    let tgt = Tgt::start(free_port(), &place.image("image", SIZE), &[]);
    let account = ["--op", "new", "--mode", "account", "--user", "csvfs", "--password", "hunter2hunter2"];
    tgt.admin(&account);
    tgt.admin(&["--op", "bind", "--mode", "account", "--tid", "1", "--user", "csvfs"]);
    tgt.bind();
    let host = format!("127.0.0.1:{}/{TARGET}/1", tgt.port);
    exercise(&place, &format!("iscsi://csvfs%hunter2hunter2@{host}"), 13);

    let secret = place.path("secret");
    std::fs::write(&secret, "hunter2hunter2\n").unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let by_file = format!("iscsi://csvfs@{host}?secret-file={}", secret.display());
    let lun = try_open(&by_file, &options()).unwrap();
    assert!(!format!("{} {lun:?}", lun.describe()).contains("hunter2"));

    for wrong in ["csvfs%wrongwrongwrong@", "nobody%hunter2hunter2@", ""] {
        let error = try_open(&format!("iscsi://{wrong}{host}"), &options()).unwrap_err().to_string();
        assert!(error.contains("refuses the login") && error.contains("CHAP"), "{wrong}: {error}");
        assert!(!error.contains("wrongwrong") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn errors_at_opening_say_what_is_wrong() {
    let place = Place::new();
    let tgt = Tgt::open(free_port(), &place.image("image", SIZE));
    let error = |uri: &str| try_open(uri, &options()).map(|_| ()).unwrap_err().to_string();
    let host = format!("iscsi://127.0.0.1:{}", tgt.port);
    let text = error(&format!("{host}/iqn.2026-01.lab:none/1"));
    assert!(text.contains("check the target's name"), "{text}");
    let text = error(&format!("{host}/{TARGET}/7"));
    assert!(text.contains("there is no such LUN") || text.contains("it is no disk"), "{text}");
    let text = error(&format!("{host}/{TARGET}/0"));
    assert!(text.contains("it is no disk"), "the controller: {text}");
    let text = error(&format!("iscsi://127.0.0.1:{}/{TARGET}/1", free_port()));
    assert!(text.contains("cannot be reached"), "{text}");
    tgt.update("readonly=1");
    let text = error(&tgt.uri());
    assert!(text.contains("read-only"), "{text}");
}

#[test]
fn p3_another_unit_at_the_same_address_is_not_used() {
    let place = Place::new();
    let image = place.image("image", SIZE);
    let port = free_port();
    let tgt = Tgt::open(port, &image);
    let lun = try_open(&tgt.uri(), &options()).unwrap();
    assert_eq!(end(&start_write(&*lun, 0, place.filled(1, 4096), false)), Outcome::Done);
    tgt.server.kill();
    wait_for("the path to be down", || lun.describe().contains("down"));
    let read = start_read(&*lun, 0, place.pool.take(4096));
    let smaller = Tgt::open(port, &place.image("smaller", SIZE / 2));
    wait_for("the smaller one to be seen", || lun.describe().contains("its size was"));
    smaller.server.kill();
    let other = Tgt::numbered("2", port, &place.image("other", SIZE), &[]);
    other.bind();
    wait_for("the other one to be seen", || lun.describe().contains("another logical unit"));
    assert!(read.try_recv().is_err(), "held");
    other.server.kill();
    let _tgt = Tgt::open(port, &image);
    let (outcome, buffer) = end(&read);
    assert_eq!((outcome, buffer[0]), (Outcome::Done, 1));
}
