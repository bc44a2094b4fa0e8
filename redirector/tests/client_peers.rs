//! Blocks through a peer: a node without a path, its host, and a scripted target behind both. Each test fails when its rule
//! is switched off (`CSV_MUTANT`).

#![allow(clippy::unwrap_used, reason = "a test may")]

mod client_harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use client_harness::fake::Fake;
use client_harness::portal::Portal;
use client_harness::{Place, end, options, start_flush, start_read, start_write, wait_for};
use lockd::clock::SystemClock;
use lockd::ids::{ClientId, NodeName, SessionId, VolumeId};
use lockd::lease::Lease;
use lockd::machine::Victim;
use lockd::peers::local::{Faults, LocalNetwork};
use lockd::peers::{Channel, Peers};
use redirector::lun::{Lun, Outcome};
use redirector::nbd::wire::{cmd, drained};
use redirector::open::open_all;
use redirector::paths::way::Credentials;
use redirector::peer::wire::{Answer, Question, Seat, What, decode, encode};
use redirector::peer::{Admits, Host, HostOptions, PeerWay, Traveller, Who};

const VOLUME: VolumeId = VolumeId([5; 16]);
/// Less than what a path time-out takes.
const AT_ONCE: Duration = Duration::from_millis(900);

fn name(number: u8) -> NodeName {
    format!("n{number}").parse().unwrap()
}

fn who(number: u8) -> Who {
    Who { volume: VOLUME, session: SessionId(number.into()), client: ClientId(100 + u64::from(number)) }
}

/// Lets each node's own mount in.
#[derive(Debug, Default)]
struct Doorman(AtomicBool);

impl Admits for Doorman {
    fn admits(&self, node: &NodeName, session: SessionId, client: ClientId) -> Result<(), String> {
        let known = (1..=3).any(|number| {
            (name(number), who(number).session, who(number).client) == (node.clone(), session, client)
        });
        if known && !self.0.load(Ordering::SeqCst) { Ok(()) } else { Err("nobody knows it".to_owned()) }
    }
}

/// A node: its own way to the target, its LUN, and what it does for others.
struct Node {
    portal: Portal,
    lun: Arc<dyn Lun>,
    host: Arc<Host>,
}

/// Two nodes before one csv-target.
struct Scene {
    place: Place,
    fake: Fake,
    network: LocalNetwork,
    runtime: tokio::runtime::Runtime,
    doorman: Arc<Doorman>,
}

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        let fake = Fake::start(place.dir.path());
        fake.script.lock().boot = Some([1; 16]);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { place, fake, network: LocalNetwork::new(1), runtime, doorman: Arc::default() }
    }

    fn peers(&self, number: u8) -> Arc<dyn Peers> {
        self.network.peers(&name(number))
    }

    /// The node `number`, whose peers are `others`.
    fn node(&self, number: u8, others: &[u8]) -> Node {
        let portal = Portal::start(self.place.dir.path(), &format!("n{number}"), &self.fake.socket);
        let mut options = options();
        options.client = who(number).client;
        // Nothing here may depend on that somebody waits so long.
        options.target_quiesce = Duration::from_secs(60);
        let traveller = Arc::new(Traveller {
            peers: self.peers(number),
            runtime: self.runtime.handle().clone(),
            who: who(number),
            known_as: Credentials { client: options.client, cookie: options.cookie },
            lease: Arc::new(Lease::unlimited()),
            clock: Arc::new(SystemClock),
            hold: Duration::from_secs(120),
            lives: Box::new(|_| true),
        });
        let way = |other: &u8| Arc::new(PeerWay::new(name(*other), Arc::clone(&traveller))) as _;
        options.peers = others.iter().map(way).collect();
        let lun = open_all(&[portal.uri().parse().unwrap()], &options).unwrap();
        let host = Host::new(HostOptions {
            volume: VOLUME,
            direct: lun.direct().unwrap(),
            admits: Arc::clone(&self.doorman) as _,
            clock: Arc::new(SystemClock),
            rules: options.rules,
        });
        self.network.start(&name(number), Arc::clone(&host) as _);
        Node { portal, lun, host }
    }

    /// Both nodes, each the other's peer, the paths known to answer.
    fn both(&self) -> (Node, Node) {
        let (one, two) = (self.node(1, &[2]), self.node(2, &[1]));
        for (node, other) in [(&one, "n2"), (&two, "n1")] {
            wait_for("the peer to stand by", || node.lun.describe().contains(&format!("peer {other}: up")));
        }
        (one, two)
    }

    fn write(&self, lun: &dyn Lun, offset: u64, byte: u8) -> std::sync::mpsc::Receiver<Outcome> {
        start_write(lun, offset, self.place.filled(byte, 4096), false)
    }

    /// Asks as node `from` does, in its own words.
    fn ask(&self, from: u8, to: u8, question: &Question, data: &[u8]) -> Result<Answer, String> {
        let mut frame = encode(question, data.len());
        frame.extend_from_slice(data);
        let asked = self.peers(from).request(&name(to), Channel::Block, frame, Duration::from_secs(5));
        let reply = self.runtime.block_on(asked).map_err(|error| error.to_string())?;
        decode::<Answer>(&reply).map(|(answer, _)| answer).map_err(|error| error.to_string())
    }

    /// A seat at `to` for the link `link` of node `from`.
    fn welcome(&self, from: u8, to: u8, link: u64) -> (Seat, u64) {
        match self
            .ask(from, to, &Question::Hello { who: who(from), link: Some(link), known_as: None }, &[])
            .unwrap()
        {
            Answer::Welcome { seat, stamp, .. } => (seat, stamp),
            other => panic!("{other:?}"),
        }
    }

    fn wrote(&self, byte: u8) -> usize {
        let log = &self.fake.script.lock().log;
        log.iter().filter(|seen| seen.command == cmd::WRITE && seen.data.first() == Some(&byte)).count()
    }
}

fn go_through(node: &Node, peer: &str) {
    node.portal.shut();
    wait_for("the peer to be used", || node.lun.through().is_some_and(|through| through.as_str() == peer));
}

#[test]
fn p1_a_node_without_a_path_goes_through_a_peer_and_back() {
    let scene = Scene::new();
    let (one, two) = scene.both();
    scene.fake.script.lock().swallow = Some(cmd::WRITE);
    let write = scene.write(&*one.lun, 0, 0x11);
    wait_for("the write to arrive", || scene.fake.swallowed() == 1);
    scene.fake.script.lock().swallow = None;
    let start = Instant::now();
    one.portal.shut();
    assert_eq!(end(&write), Outcome::Done);
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    assert_eq!(one.lun.through(), Some(name(2)));
    assert_eq!(one.lun.ghosts(), [], "the peer has had the target drain what was sent directly");
    assert!(two.host.figures().done > 0);
    // Reads, writes and flushes, more than are in flight at a time.
    let reads: Vec<_> = (0..400).map(|_| start_read(&*one.lun, 0, scene.place.pool.take(4096))).collect();
    for read in reads {
        let (outcome, buffer) = end(&read);
        assert_eq!((outcome, buffer[0], buffer[4095]), (Outcome::Done, 0x11, 0x11));
    }
    assert_eq!(end(&scene.write(&*one.lun, 8192, 0x22)), Outcome::Done);
    assert_eq!(end(&start_flush(&*one.lun)), Outcome::Done);
    assert_eq!(scene.fake.script.lock().durable[8192], 0x22);
    one.portal.open();
    let mut longest = Duration::ZERO;
    wait_for("its own path to be used again", || {
        let start = Instant::now();
        assert_eq!(end(&scene.write(&*one.lun, 12288, 0x33)), Outcome::Done);
        longest = longest.max(start.elapsed());
        one.lun.through().is_none()
    });
    assert!(longest < AT_ONCE, "a write took {longest:?} while the path was changed");
    assert_eq!(one.lun.ghosts(), [], "the target has drained what it had");
}

#[test]
fn p1_another_peer_is_used_when_one_dies() {
    let scene = Scene::new();
    let (one, two, three) = (scene.node(1, &[2, 3]), scene.node(2, &[]), scene.node(3, &[]));
    wait_for("both peers to stand by", || one.lun.describe().matches("peer n").count() == 2);
    wait_for("both peers to stand by", || one.lun.describe().matches("up for").count() == 3);
    one.portal.shut();
    wait_for("a peer to be used", || one.lun.through().is_some());
    let used = one.lun.through().unwrap();
    scene.network.isolate(&used);
    assert_eq!(end(&scene.write(&*one.lun, 0, 0x11)), Outcome::Done);
    assert!(one.lun.through().is_some_and(|now| now != used), "{}", one.lun.describe());
    drop((two, three));
}

#[test]
fn r1_nobody_is_redirected_twice() {
    let scene = Scene::new();
    let (one, two) = scene.both();
    go_through(&one, "n2");
    two.portal.shut();
    wait_for("the host's path to be lost", || !two.lun.is_working());
    let write = scene.write(&*one.lun, 0, 0x11);
    std::thread::sleep(Duration::from_millis(500));
    assert!(write.try_recv().is_err(), "it is held: nobody has a path");
    assert!(one.lun.through().is_none() && two.lun.through().is_none(), "neither goes through the other");
    two.portal.open();
    assert_eq!(end(&write), Outcome::Done);
}

#[test]
fn r1_what_comes_too_late_is_not_executed() {
    let scene = Scene::new();
    let two = scene.node(2, &[]);
    // As a mount whose lease ends while its write is on its way.
    let (seat, stamp) = scene.welcome(1, 2, 1);
    let ask = |left: Duration, byte: u8| {
        let left = u64::try_from(left.as_nanos()).unwrap();
        let what = What::Write { offset: 0, fua: false };
        let question = Question::Do { who: who(1), link: 1, seat, stamp, left, what };
        scene.ask(1, 2, &question, &[byte; 4096])
    };
    let slow = Duration::from_millis(400);
    scene.network.set_faults(Faults { delay: slow..=slow, ..Faults::default() });
    let late = ask(slow / 2, 0x11).unwrap();
    assert!(matches!(late, Answer::Late { .. }), "{late:?}");
    let timely = ask(Duration::from_secs(60), 0x22).unwrap();
    assert!(matches!(timely, Answer::Done { .. }), "{timely:?}");
    assert_eq!((scene.wrote(0x11), scene.wrote(0x22)), (0, 1));
    assert_eq!(two.host.figures().late, 1);
}

#[test]
fn r1_a_host_serves_only_who_may_what_may_be() {
    let scene = Scene::new();
    let _two = scene.node(2, &[]);
    let size = client_harness::fake::SIZE as u64;
    let (seat, stamp) = scene.welcome(1, 2, 7);
    let left = u64::MAX / 2;
    let question = |who, link, seat, what| Question::Do { who, link, seat, stamp, left, what };
    let write = What::Write { offset: 0, fua: false };
    let over = |answer: Answer| matches!(answer, Answer::Over { .. });
    let data = [0x11; 4096];
    // Another node says that it is n1's mount; a mount that nobody knows; another volume.
    assert!(over(scene.ask(3, 2, &question(who(1), 7, seat, write), &data).unwrap()));
    assert!(over(
        scene.ask(3, 2, &Question::Hello { who: who(1), link: Some(8), known_as: None }, &[]).unwrap()
    ));
    let stranger = Who { client: ClientId(9), ..who(1) };
    assert!(over(
        scene.ask(1, 2, &Question::Hello { who: stranger, link: Some(1), known_as: None }, &[]).unwrap()
    ));
    let elsewhere = Who { volume: VolumeId([6; 16]), ..who(1) };
    assert!(over(
        scene.ask(1, 2, &Question::Hello { who: elsewhere, link: Some(1), known_as: None }, &[]).unwrap()
    ));
    // An earlier link; one that only looks; another run of the host, and another path of it.
    assert!(over(scene.ask(1, 2, &question(who(1), 6, seat, write), &data).unwrap()));
    assert!(over(scene.ask(1, 2, &question(who(1), 0, seat, write), &data).unwrap()));
    let other_run = Seat { host: [0; 16], ..seat };
    assert!(over(scene.ask(1, 2, &question(who(1), 7, other_run, write), &data).unwrap()));
    let other_path = Seat { path: seat.path + 1, ..seat };
    assert!(over(scene.ask(1, 2, &question(who(1), 7, other_path, write), &data).unwrap()));
    // Beyond the LUN, and beside its blocks.
    for what in [
        What::Read { offset: size, length: 4096 },
        What::Read { offset: u64::MAX - 4095, length: 4096 },
        What::Read { offset: 0, length: u32::MAX },
        What::Write { offset: size - 512, fua: false },
        What::Zero { start: 0, end: size + 4096 },
        What::Trim { start: 8192, end: 4096 },
    ] {
        let answer = scene.ask(1, 2, &question(who(1), 7, seat, what), &data).unwrap();
        assert!(matches!(answer, Answer::Failed { errno: libc::EINVAL, .. }), "{what:?}: {answer:?}");
    }
    assert_eq!(scene.wrote(0x11), 0);
    // Bytes that are no message.
    for garbage in [vec![], vec![0xff; 64], vec![1; 3], vec![1; 9000]] {
        let asked = scene.peers(1).request(&name(2), Channel::Block, garbage, Duration::from_secs(5));
        assert!(scene.runtime.block_on(asked).is_err());
    }
    assert!(matches!(
        scene.ask(1, 2, &question(who(1), 7, seat, write), &data).unwrap(),
        Answer::Done { .. }
    ));
    assert_eq!(scene.wrote(0x11), 1);
}

#[test]
fn r1_who_is_being_fenced_is_not_served() {
    let scene = Scene::new();
    let (one, two) = scene.both();
    go_through(&one, "n2");
    assert_eq!(end(&scene.write(&*one.lun, 0, 0x11)), Outcome::Done);
    two.host.deny(Victim::Session(who(1).session));
    let write = scene.write(&*one.lun, 0, 0x22);
    std::thread::sleep(Duration::from_millis(500));
    assert!(write.try_recv().is_err(), "nobody serves it any more: it is held");
    assert_eq!(scene.wrote(0x22), 0);
}

#[test]
fn f1_what_a_host_carries_is_waited_for_before_it_reports() {
    let scene = Scene::new();
    let (one, two) = scene.both();
    go_through(&one, "n2");
    scene.fake.script.lock().swallow = Some(cmd::WRITE);
    let write = scene.write(&*one.lun, 0, 0x11);
    wait_for("the write to arrive", || scene.fake.swallowed() == 1);
    let reported = std::thread::scope(|scope| {
        let host = Arc::clone(&two.host);
        let refusing = scope.spawn(move || host.refuse(Victim::Client(who(1).client)));
        std::thread::sleep(Duration::from_millis(300));
        let early = refusing.is_finished();
        // The host's connection breaks, and the target has drained it when it is back.
        scene.fake.script.lock().swallow = None;
        two.portal.shut();
        two.portal.open();
        refusing.join().unwrap();
        early
    });
    assert!(!reported, "it was reported with a write under way");
    assert!(write.try_recv().is_err());
}

#[test]
fn p4_a_write_over_what_a_lost_peer_may_still_send_waits() {
    let scene = Scene::new();
    let (one, _two) = scene.both();
    go_through(&one, "n2");
    scene.fake.script.lock().swallow = Some(cmd::WRITE);
    let first = scene.write(&*one.lun, 0, 0x11);
    wait_for("the write to arrive", || scene.fake.swallowed() == 1);
    scene.fake.script.lock().swallow = None;
    // The peer is lost with it, and the node's own path is back.
    scene.network.stop(&name(2));
    one.portal.open();
    wait_for("its own path to be used again", || one.lun.through().is_none() && one.lun.is_working());
    assert_eq!(end(&first), Outcome::Done);
    // The target has drained this node's own connections. What the peer has sent it cannot know.
    assert_eq!(one.lun.ghosts(), std::slice::from_ref(&(0..4096)));
    let second = scene.write(&*one.lun, 0, 0x22);
    std::thread::sleep(Duration::from_millis(300));
    assert!(second.try_recv().is_err(), "it overtakes the peer's copy");
    scene.fake.land();
    assert_eq!(scene.fake.script.lock().disk[0], 0x11);
}

/// What a host says of the links that came before decides which ghosts are dead.
#[test]
fn p4_a_host_that_still_carries_something_says_so() {
    let scene = Scene::new();
    let two = scene.node(2, &[]);
    let (seat, stamp) = scene.welcome(1, 2, 1);
    scene.fake.script.lock().swallow = Some(cmd::WRITE);
    let what = What::Write { offset: 0, fua: false };
    let question = Question::Do { who: who(1), link: 1, seat, stamp, left: u64::MAX / 2, what };
    let mut frame = encode(&question, 4096);
    frame.extend_from_slice(&[0x11; 4096]);
    let asked = scene.peers(1).request(&name(2), Channel::Block, frame, Duration::from_secs(60));
    let carried = scene.runtime.spawn(asked);
    wait_for("the write to arrive", || scene.fake.swallowed() == 1);
    let hello =
        |link| scene.ask(1, 2, &Question::Hello { who: who(1), link: Some(link), known_as: None }, &[]);
    let early = hello(2).unwrap();
    assert!(matches!(early, Answer::Welcome { drained: false, .. }), "{early:?}");
    // The host's own path breaks, and the target drains it when it is back: the write has ended, nobody knows how.
    scene.fake.script.lock().swallow = None;
    two.portal.shut();
    two.portal.open();
    let reply = scene.runtime.block_on(carried).unwrap().unwrap();
    assert_eq!(decode::<Answer>(&reply).unwrap().0, Answer::Unknown);
    wait_for("the host's path to be used again", || two.lun.is_working());
    let late = hello(3).unwrap();
    assert!(matches!(late, Answer::Welcome { drained: true, .. }), "{late:?}");
}

/// The host asks the target to drain what the node sent directly. Only when that says that it has, the ghost is dead.
#[test]
fn p4_what_the_target_has_not_drained_for_the_host_is_still_waited_for() {
    let scene = Scene::new();
    let (one, _two) = scene.both();
    {
        let mut script = scene.fake.script.lock();
        (script.swallow, script.drained) = (Some(cmd::WRITE), drained::NO);
    }
    let first = scene.write(&*one.lun, 0, 0x11);
    wait_for("the write to arrive", || scene.fake.swallowed() == 1);
    scene.fake.script.lock().swallow = None;
    one.portal.shut();
    assert_eq!(end(&first), Outcome::Done);
    assert_eq!(one.lun.through(), Some(name(2)));
    assert_eq!(one.lun.ghosts(), std::slice::from_ref(&(0..4096)));
    let second = scene.write(&*one.lun, 0, 0x22);
    assert_eq!(end(&scene.write(&*one.lun, 8192, 0x33)), Outcome::Done, "elsewhere nobody waits");
    std::thread::sleep(Duration::from_millis(300));
    assert!(second.try_recv().is_err(), "it overtakes the copy that may still land");
    scene.fake.land();
    assert_eq!(scene.fake.script.lock().disk[0], 0x11);
}

#[test]
fn p9_what_a_restarted_target_lost_is_written_again_through_the_peer() {
    let scene = Scene::new();
    let (one, _two) = scene.both();
    go_through(&one, "n2");
    assert_eq!(end(&scene.write(&*one.lun, 0, 0x11)), Outcome::Done);
    scene.fake.restart();
    assert_eq!(scene.fake.script.lock().disk[0], 0, "it was not flushed");
    assert_eq!(end(&start_flush(&*one.lun)), Outcome::Done);
    assert_eq!(scene.fake.script.lock().durable[0], 0x11);
}
