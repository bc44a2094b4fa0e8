//! Several paths to one LUN, against scripted servers. Each test fails when its rule is switched off (`CSV_MUTANT`).

#![allow(clippy::unwrap_used, reason = "a test may")]

mod client_harness;

use std::sync::Arc;
use std::time::{Duration, Instant};

use client_harness::fake::Fake;
use client_harness::portal::Portal;
use client_harness::{
    Place, end, open_paths, options, start_flush, start_read, start_trim, start_write, start_zero, wait_for,
};
use lockd::rules::Rule;
use redirector::lun::{Identity, Lun, Outcome, Proof};
use redirector::nbd::wire::{self, cmd};

/// Less than what a path time-out takes.
const AT_ONCE: Duration = Duration::from_millis(900);

/// A csv-target that is reached by two portals.
struct Scene {
    place: Place,
    fake: Fake,
    first: Portal,
    second: Portal,
}

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        let fake = Fake::start(place.dir.path());
        fake.script.lock().boot = Some([1; 16]);
        let portal = |name| Portal::start(place.dir.path(), name, &fake.socket);
        let (first, second) = (portal("first"), portal("second"));
        Self { place, fake, first, second }
    }

    /// The LUN, with both paths known to answer.
    fn open(&self) -> Arc<dyn Lun> {
        let mut options = options();
        // Nothing here may depend on that somebody waits so long.
        options.target_quiesce = Duration::from_secs(60);
        let lun = open_paths(&[self.first.uri(), self.second.uri()], &options).unwrap();
        wait_for("the second path to stand by", || lun.describe().contains("second: up"));
        lun
    }

    /// As many answered reads as show how fast the path is.
    fn show(&self, lun: &dyn Lun) {
        for _ in 0..2000 {
            assert_eq!(end(&start_read(lun, 0, self.place.pool.take(4096))).0, Outcome::Done);
        }
    }
}

fn is_by(lun: &dyn Lun, name: &str) -> bool {
    lun.describe().split("; beside").next().is_some_and(|text| text.contains(name) && text.contains("up for"))
}

#[test]
fn p1_what_a_lost_path_had_goes_by_the_next_and_later_by_the_first_again() {
    let scene = Scene::new();
    let lun = scene.open();
    assert!(is_by(&*lun, "first"), "{}", lun.describe());
    scene.fake.script.lock().swallow = Some(cmd::WRITE);
    let write = start_write(&*lun, 0, scene.place.filled(0x11, 4096), false);
    wait_for("the write to arrive", || scene.fake.swallowed() == 1);
    scene.fake.script.lock().swallow = None;
    let start = Instant::now();
    scene.first.shut();
    assert_eq!(end(&write), Outcome::Done);
    assert!(start.elapsed() < AT_ONCE, "nobody waits for the first path: {:?}", start.elapsed());
    assert!(is_by(&*lun, "second") && lun.describe().contains("first: down"), "{}", lun.describe());
    assert_eq!(lun.ghosts(), [], "the target has drained what came by the first path");
    scene.first.open();
    let mut longest = Duration::ZERO;
    wait_for("the first path to be used again", || {
        let start = Instant::now();
        assert_eq!(end(&start_write(&*lun, 4096, scene.place.filled(0x22, 4096), false)), Outcome::Done);
        longest = longest.max(start.elapsed());
        is_by(&*lun, "first")
    });
    assert!(longest < AT_ONCE, "a write took {longest:?} while the path was changed");
    assert_eq!(lun.ghosts(), []);
    assert!(lun.describe().contains("second: up"), "{}", lun.describe());
    let (outcome, buffer) = end(&start_read(&*lun, 0, scene.place.pool.take(8192)));
    assert_eq!((outcome, buffer[0], buffer[4096]), (Outcome::Done, 0x11, 0x22));
}

#[test]
fn p1_a_path_that_drops_everything_is_left() {
    let scene = Scene::new();
    let lun = scene.open();
    scene.show(&*lun);
    scene.first.silence();
    let start = Instant::now();
    let write = start_write(&*lun, 0, scene.place.filled(0x11, 4096), false);
    assert_eq!(end(&write), Outcome::Done);
    let gap = start.elapsed();
    assert!(gap < Duration::from_secs(1) + AT_ONCE, "the path time-out is a second here: {gap:?}");
    assert!(is_by(&*lun, "second"), "{}", lun.describe());
}

#[test]
fn p1_a_target_that_is_slow_is_not_asked_the_same_again_by_its_other_path() {
    let scene = Scene::new();
    let lun = scene.open();
    scene.show(&*lun);
    scene.fake.script.lock().swallow = Some(cmd::WRITE);
    let write = start_write(&*lun, 0, scene.place.filled(0x11, 4096), false);
    wait_for("the path to be late", || lun.describe().contains("suspect"));
    std::thread::sleep(AT_ONCE);
    assert!(write.try_recv().is_err() && lun.describe().contains("first: suspect"), "{}", lun.describe());
    assert_eq!(scene.fake.swallowed(), 1);
    assert_eq!(
        end(&start_read(&*lun, 0, scene.place.pool.take(4096))).0,
        Outcome::Done,
        "others are answered"
    );
}

#[test]
fn p1_what_waits_for_a_slow_target_goes_to_another_target() {
    let (place, other) = (Place::new(), Place::new());
    let (first, second) = (Fake::start(place.dir.path()), Fake::start(other.dir.path()));
    for (fake, boot) in [(&first, 1), (&second, 2)] {
        let mut script = fake.script.lock();
        // Each says that nothing of earlier clients is left, and speaks of itself only.
        (script.boot, script.drained) = (Some([boot; 16]), wire::drained::FOR_GOOD);
    }
    let lun = open_paths(&[first.uri(), second.uri()], &options()).unwrap();
    wait_for("the second path to stand by", || lun.describe().matches("up for").count() == 2);
    for _ in 0..2000 {
        assert_eq!(end(&start_read(&*lun, 0, place.pool.take(4096))).0, Outcome::Done);
    }
    first.script.lock().swallow = Some(cmd::WRITE);
    let write = start_write(&*lun, 0, place.filled(0x11, 4096), false);
    assert_eq!(end(&write), Outcome::Done);
    assert_eq!(second.script.lock().disk[0], 0x11);
    if options().rules.keeps(Rule::P7) {
        assert_eq!(lun.ghosts().first(), Some(&(0..4096)), "the slow target may execute it later");
    }
}

#[test]
fn p8_what_is_written_to_several_servers_of_one_store_is_durable_at_once() {
    let (place, other) = (Place::new(), Place::new());
    let (first, second) = (Fake::start(place.dir.path()), Fake::start(other.dir.path()));
    let lun = open_paths(&[first.uri(), second.uri()], &options()).unwrap();
    assert_eq!(end(&start_write(&*lun, 0, place.filled(0x11, 4096), false)), Outcome::Done);
    assert_eq!(end(&start_zero(&*lun, 4096..8192)), Outcome::Done);
    let log = first.script.lock().log.clone();
    assert!(log.iter().any(|seen| seen.command == cmd::WRITE && seen.fua), "{log:?}");
    assert!(!log.iter().any(|seen| seen.command == cmd::WRITE_ZEROES), "zeroes cannot be: {log:?}");
    assert_eq!(log.iter().filter(|seen| seen.command == cmd::WRITE && seen.fua).count(), 2, "{log:?}");
    assert!(lun.describe().contains("every write is made durable by itself"), "{}", lun.describe());
    // Two ways to what is known to be one process need none of that.
    let scene = Scene::new();
    let lun = scene.open();
    assert_eq!(end(&start_write(&*lun, 0, scene.place.filled(0x11, 4096), false)), Outcome::Done);
    assert_eq!(end(&start_trim(&*lun, 8192..12288)), Outcome::Done);
    assert!(!scene.fake.script.lock().log.iter().any(|seen| seen.fua));
}

#[test]
fn p3_a_path_to_another_lun_is_not_used() {
    let (place, other) = (Place::new(), Place::new());
    let (first, second) = (Fake::start(place.dir.path()), Fake::start(other.dir.path()));
    first.script.lock().disk[4096..4099].copy_from_slice(b"uid");
    let mut options = options();
    options.identity = Some(Identity { offset: 4096, bytes: b"uid".to_vec() });
    let lun = open_paths(&[first.uri(), second.uri()], &options).unwrap();
    wait_for("the second path to be refused", || lun.describe().contains("another LUN answers there"));
    first.script.lock().refuse = true;
    first.cut();
    let read = start_read(&*lun, 0, place.pool.take(4096));
    assert!(read.recv_timeout(Duration::from_millis(300)).is_err(), "{}", lun.describe());
    first.script.lock().refuse = false;
    assert_eq!(end(&read).0, Outcome::Done);
    assert!(!second.script.lock().log.iter().any(|seen| seen.command == cmd::WRITE));
}

#[test]
fn a_lun_is_opened_by_the_path_that_answers() {
    let scene = Scene::new();
    scene.first.shut();
    let lun = open_paths(&[scene.first.uri(), scene.second.uri()], &options()).unwrap();
    assert!(is_by(&*lun, "second"), "{}", lun.describe());
    assert_eq!(end(&start_write(&*lun, 0, scene.place.filled(0x11, 4096), false)), Outcome::Done);
    assert_eq!(end(&start_flush(&*lun)), Outcome::Done);
    scene.second.shut();
    let error = open_paths(&[scene.first.uri(), scene.second.uri()], &options()).unwrap_err().to_string();
    assert!(error.contains("/first") && error.contains("broke during the negotiation"), "{error}");
}

#[test]
fn an_earlier_client_has_ended_when_every_target_says_so() {
    let (place, other) = (Place::new(), Place::new());
    let (first, second) = (Fake::start(place.dir.path()), Fake::start(other.dir.path()));
    first.script.lock().boot = Some([1; 16]);
    second.script.lock().boot = Some([2; 16]);
    let lun = open_paths(&[first.uri(), second.uri()], &options()).unwrap();
    assert!(matches!(lun.prove_ended(lockd::ids::ClientId(3)), Proof::Ended(_)));
    second.script.lock().alive.push(4);
    assert!(matches!(lun.prove_ended(lockd::ids::ClientId(4)), Proof::Alive(_)));
}
