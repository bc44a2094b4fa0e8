//! Who is let in: hello, drain, end, fence; and that the list of ended clients outlives the target.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use lockd::ids::ClientId;
use redirector::blocking;
use redirector::buffer::Pool;
use redirector::nbd::wire::{drained, end_state, opt, rep};
use redirector::open::{OpenOptions, open};
use redirector::target::{Action, FaultSpec, HELLO_LIST_IN_MEMORY, Kind};

use crate::lab::{Lab, cookie, eventually};

#[test]
fn hello_binds_a_connection_to_an_incarnation() {
    let lab = Lab::new();
    let mut first = lab.connect();
    let reply = first.hello(7, cookie(7)).unwrap();
    assert_eq!((reply.version.get(), reply.flags.get()), (1, 0));
    assert_eq!(reply.boot_id, lab.server.boot_id().0);
    assert_eq!(first.hello(7, cookie(7)), Err(rep::ERR_INVALID), "once per connection");
    assert_eq!(lab.connect().hello(7, cookie(8)), Err(rep::ERR_POLICY), "another cookie");
    assert!(lab.connect().hello(7, cookie(7)).is_ok(), "another connection of the same incarnation");
    let mut short = lab.connect();
    assert_eq!(short.option(opt::HELLO, &[1; 31]).unwrap_err().0, rep::ERR_INVALID);
    assert_eq!(short.option(opt::HELLO, &[0; 32]).unwrap_err().0, rep::ERR_INVALID, "version 0");
}

#[test]
fn without_a_state_directory_hello_says_so() {
    let lab = Lab::with(|config| config.state = None);
    assert_eq!(lab.connect().hello(7, cookie(7)).unwrap().flags.get(), HELLO_LIST_IN_MEMORY);
}

#[test]
fn a_plain_server_knows_none_of_it() {
    let lab = Lab::with(|config| config.private_options = false);
    assert_eq!(lab.connect().hello(7, cookie(7)), Err(rep::ERR_UNSUP));
}

#[test]
fn strangers_are_refused_where_a_hello_is_demanded() {
    let lab = Lab::with(|config| config.require_hello = true);
    assert_eq!(lab.connect().go().unwrap_err().0, rep::ERR_POLICY);
    let mut stranger = lab.connect();
    stranger.send_option(opt::EXPORT_NAME, b"vms");
    assert!(stranger.is_closed());
    assert_eq!(lab.client(1).flush().unwrap(), 0);
}

#[test]
fn drain_closes_earlier_connections_and_no_others() {
    let lab = Lab::new();
    let (mut one, mut two, mut other) = (lab.client(7), lab.client(7), lab.client(8));
    let mut fresh = lab.connect();
    fresh.hello(7, cookie(7)).unwrap();
    let mut later = lab.client(7);
    assert_eq!(fresh.drain(7, cookie(9)), Err(rep::ERR_POLICY));
    let reply = fresh.drain(7, cookie(7)).unwrap();
    assert_eq!((reply.drained, reply.boot_id), (drained::FOR_GOOD, lab.server.boot_id().0));
    assert!(one.is_closed() && two.is_closed());
    assert_eq!(other.flush().unwrap(), 0);
    assert_eq!(later.flush().unwrap(), 0, "a later connection stays");
    fresh.go().unwrap();
    assert_eq!(fresh.flush().unwrap(), 0);
    // A client that this process has never seen has nothing to drain.
    assert_eq!(lab.connect().drain(1234, cookie(0)).unwrap().drained, drained::FOR_GOOD);
}

#[test]
fn a_connection_older_than_the_drain_cannot_come_in_after_it() {
    let lab = Lab::new();
    let _known = lab.client(7);
    let mut late = lab.connect();
    let mut fresh = lab.connect();
    fresh.hello(7, cookie(7)).unwrap();
    fresh.drain(7, cookie(7)).unwrap();
    late.send_option(
        opt::HELLO,
        &[1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7],
    );
    assert!(late.is_closed());
}

#[test]
fn drain_waits_for_the_ghost() {
    let lab = Lab::new();
    let late = FaultSpec::new(Action::Late { ms: None }).on(Kind::Write).times(1);
    lab.server.faults().add(late).unwrap();
    let mut writer = lab.client(7);
    writer.send_write(1, 0, &[5; 4096]);
    assert!(writer.is_closed());
    eventually("a ghost is held", || lab.server.faults().held() == 1);
    let mut fresh = lab.client(8);
    assert_eq!(fresh.read(0, 1).unwrap(), [0], "the ghost has not landed");

    let (sender, receiver) = mpsc::channel();
    let mut draining = lab.connect();
    let drainer =
        std::thread::spawn(move || sender.send(draining.drain(7, cookie(7)).unwrap().drained).unwrap());
    assert!(receiver.recv_timeout(Duration::from_millis(200)).is_err(), "not drained while the ghost lives");
    lab.server.faults().release(None);
    assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(drained::FOR_GOOD));
    drainer.join().unwrap();
    assert_eq!(fresh.read(0, 1).unwrap(), [5], "drained means that it has landed");
}

#[test]
fn a_drain_that_takes_too_long_says_so() {
    let lab = Lab::with(|config| config.drain_patience = Duration::from_millis(50));
    lab.server.faults().add(FaultSpec::new(Action::Late { ms: None })).unwrap();
    let mut writer = lab.client(7);
    writer.send_write(1, 0, &[5; 4096]);
    assert!(writer.is_closed());
    assert_eq!(lab.connect().drain(7, cookie(7)).unwrap().drained, drained::NO);
    let mut ender = lab.connect();
    ender.hello(8, cookie(8)).unwrap();
    assert_eq!(ender.end(7), Err(rep::ERR_PLATFORM));
    assert_eq!(lab.connect().hello(7, cookie(7)), Err(rep::ERR_POLICY), "refused all the same");
    lab.server.faults().clear(None);
    eventually("the ghost has landed", || lab.server.faults().held() == 0);
    assert_eq!(ender.end(7).unwrap().0.state, end_state::ENDED);
}

#[test]
fn a_hung_request_is_dropped_by_a_drain() {
    let lab = Lab::new();
    lab.server.faults().add(FaultSpec::new(Action::Hang).on(Kind::Write)).unwrap();
    let mut writer = lab.client(7);
    writer.send_write(1, 0, &[5; 4096]);
    eventually("it hangs", || lab.server.faults().held() == 1);
    assert_eq!(lab.connect().drain(7, cookie(7)).unwrap().drained, drained::FOR_GOOD);
    lab.server.faults().clear(None);
    assert!(writer.is_closed());
    assert_eq!(lab.peer().read(0, 1).unwrap(), [0]);
}

#[test]
fn end_refuses_an_earlier_client_for_good_unless_it_is_alive() {
    let mut lab = Lab::new();
    let mut mount = lab.connect();
    assert_eq!(mount.end(7), Err(rep::ERR_POLICY), "hello first");
    mount.hello(8, cookie(8)).unwrap();
    let earlier = lab.client(7);
    let (reply, who) = mount.end(7).unwrap();
    assert_eq!(reply.state, end_state::ALIVE);
    assert!(who.contains("client 7"), "{who}");
    drop(earlier);
    eventually("it is gone", || lab.server.status().connections == 1);
    let (reply, _) = mount.end(7).unwrap();
    assert_eq!((reply.state, reply.boot_id), (end_state::ENDED, lab.server.boot_id().0));
    assert_eq!(mount.end(7).unwrap().0.state, end_state::ENDED, "once more is as well");
    assert_eq!(mount.end(99).unwrap().0.state, end_state::ENDED, "one that was never seen");
    let boot = lab.server.boot_id();
    lab.restart();
    assert_ne!(lab.server.boot_id(), boot);
    for client in [7, 99] {
        assert_eq!(lab.connect().hello(client, cookie(client)), Err(rep::ERR_POLICY));
        assert_eq!(lab.connect().drain(client, cookie(client)), Err(rep::ERR_POLICY));
    }
    assert!(lab.connect().hello(8, cookie(8)).is_ok());
}

#[test]
fn a_fence_closes_a_live_client_and_drains_it() {
    let mut lab = Lab::new();
    let (mut victim, mut other) = (lab.client(7), lab.client(8));
    lab.server.faults().add(FaultSpec::new(Action::Late { ms: Some(150) }).on(Kind::Write).times(1)).unwrap();
    let mut ghost = lab.client(7);
    ghost.send_write(1, 0, &[5; 4096]);
    assert!(ghost.is_closed());
    lab.server.fence(ClientId(7)).unwrap();
    assert_eq!(other.read(0, 1).unwrap(), [5], "the fence waited for what had been accepted");
    assert!(victim.is_closed());
    assert_eq!(lab.connect().hello(7, cookie(7)), Err(rep::ERR_POLICY));
    assert_eq!(other.flush().unwrap(), 0);
    drop(other);
    lab.restart();
    assert_eq!(lab.connect().hello(7, cookie(7)), Err(rep::ERR_POLICY));
}

#[test]
fn a_list_that_cannot_be_kept_is_an_error_and_the_client_is_refused() {
    let lab = Lab::new();
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    let mut mount = lab.connect();
    mount.hello(8, cookie(8)).unwrap();
    assert_eq!(mount.end(7), Err(rep::ERR_PLATFORM));
    assert_eq!(lab.connect().hello(7, cookie(7)), Err(rep::ERR_POLICY));
    std::fs::create_dir(lab.path("state")).unwrap();
    assert_eq!(mount.end(7).unwrap().0.state, end_state::ENDED);
}

#[test]
fn many_incarnations_are_bounded() {
    let lab = Lab::new();
    let _kept = lab.client(1);
    for client in 2..1200 {
        let mut peer = lab.connect();
        peer.hello(client, cookie(client)).unwrap();
    }
    let clients = lab.server.status().clients;
    assert!(clients.len() <= 1025, "{}", clients.len());
    assert!(clients.iter().any(|status| status.client == Some(1)), "one that is connected is not forgotten");
}

#[test]
fn a_mount_that_is_refused_for_good_fails_at_once_and_holds_nothing() {
    let lab = Lab::new();
    let options = OpenOptions { hold: Duration::from_secs(300), ..OpenOptions::new(ClientId(7), cookie(7)) };
    let lun = open(&lab.uri().parse().unwrap(), &options).unwrap();
    let write = || blocking::write(lun.as_ref(), 0, Pool::default().take_zeroed(4096).share(), false);
    assert_eq!(write(), Ok(()));
    lab.server.fence(ClientId(7)).unwrap();
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(write(), Err(libc::EIO));
    }
    assert_eq!(blocking::flush(lun.as_ref()), Err(libc::EIO));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(lun.figures().held, 0);
    assert!(lun.describe().contains("has been ended"), "{}", lun.describe());
}
