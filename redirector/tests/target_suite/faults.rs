//! Each switch of the fault switchboard does what it says, and only that.

use std::time::{Duration, Instant};

use redirector::nbd::wire::error;
use redirector::target::{Action, FaultSpec, Kind};

use crate::lab::{Lab, MIB, eventually};

#[test]
fn delayed_requests_come_late_and_together() {
    let lab = Lab::new();
    let mut peer = lab.peer();
    let delay = FaultSpec::new(Action::Delay { ms: 150 }).on(Kind::Write);
    let id = lab.server.faults().add(delay).unwrap();
    let begin = Instant::now();
    for cookie in 0..20 {
        peer.send_write(cookie, cookie * 4096, &[1; 4096]);
    }
    peer.send(3, 0, 99, 0, 0, &[]);
    assert_eq!(peer.reply().unwrap().0, 99, "others are not delayed");
    for _ in 0..20 {
        assert_eq!(peer.reply().unwrap().1, 0);
    }
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(150), "{took:?}");
    assert!(took < Duration::from_millis(20 * 150), "one after the other: {took:?}");
    assert_eq!(lab.server.faults().fired(id), 20);
    eventually("all are delivered", || lab.server.faults().list()[0].delivered == 20);
}

#[test]
fn errors_strike_the_requests_they_name() {
    let lab = Lab::new();
    let mut peer = lab.peer();
    let spec = FaultSpec::new(Action::Error { errno: libc::ENOSPC }).on(Kind::Write).within(MIB..2 * MIB);
    let id = lab.server.faults().add(spec.after(1).times(2)).unwrap();
    assert_eq!(peer.write(0, &[1; 512]).unwrap(), 0);
    let answers: Vec<_> = (0..4).map(|_| peer.write(MIB, &[1; 512]).unwrap()).collect();
    assert_eq!(answers, [0, error::ENOSPC, error::ENOSPC, 0]);
    assert_eq!(lab.server.faults().fired(id), 2);
    lab.server.faults().clear(None);
    lab.server.faults().add(FaultSpec::new(Action::Error { errno: libc::EIO }).on(Kind::Flush)).unwrap();
    assert_eq!(peer.flush().unwrap(), error::EIO);
    assert_eq!(peer.trim(0, 4096).unwrap(), 0);
    lab.server.faults().clear(None);
    lab.server.faults().add(FaultSpec::new(Action::Error { errno: libc::EIO }).on(Kind::Read)).unwrap();
    assert_eq!(peer.read_error(0, 4096).unwrap(), error::EIO);
}

#[test]
fn a_forgotten_change_is_answered_and_not_executed() {
    let lab = Lab::new();
    let mut peer = lab.peer();
    assert_eq!(peer.write(0, &[1; 512]).unwrap(), 0);
    let id = lab.server.faults().add(FaultSpec::new(Action::Forget).times(2)).unwrap();
    assert_eq!(peer.read(0, 512).unwrap(), [1; 512]);
    assert_eq!(peer.write(0, &[2; 512]).unwrap(), 0);
    assert_eq!(peer.read(0, 512).unwrap(), [1; 512], "as if it had not been written");
    assert_eq!(lab.server.faults().fired(id), 2);
    assert_eq!(peer.write(0, &[3; 512]).unwrap(), 0);
    assert_eq!(peer.read(0, 512).unwrap(), [3; 512]);
}

#[test]
fn a_cut_closes_the_connection_and_executes_nothing() {
    let lab = Lab::new();
    lab.server.faults().add(FaultSpec::new(Action::Cut).on(Kind::Write).after(2).times(1)).unwrap();
    let mut peer = lab.peer();
    assert_eq!(peer.write(0, &[1; 512]).unwrap(), 0);
    assert_eq!(peer.write(512, &[1; 512]).unwrap(), 0);
    assert!(peer.write(1024, &[1; 512]).is_err());
    assert_eq!(lab.peer().read(0, 1536).unwrap()[1024..], [0; 512]);
    let mut others = [lab.peer(), lab.client(5)];
    lab.server.cut();
    assert!(others.iter_mut().all(|peer| peer.is_closed()));
    assert_eq!(lab.peer().flush().unwrap(), 0, "new ones are let in");
}

#[test]
fn hung_requests_are_answered_when_released() {
    let lab = Lab::new();
    let mut peer = lab.peer();
    lab.server.faults().add(FaultSpec::new(Action::Hang).on(Kind::Write)).unwrap();
    peer.send_write(1, 0, &[1; 512]);
    eventually("it hangs", || lab.server.faults().held() == 1);
    peer.send(0, 0, 2, 0, 512, &[]);
    assert_eq!(peer.reply().unwrap(), (2, 0), "a read passes it");
    let mut data = [9; 512];
    std::io::Read::read_exact(&mut peer.stream, &mut data).unwrap();
    assert_eq!(data, [0; 512], "it has not been executed");
    lab.server.faults().release(None);
    assert_eq!(peer.reply().unwrap(), (1, 0));
    assert_eq!(peer.read(0, 512).unwrap(), [1; 512]);
}

#[test]
fn late_delivery_makes_a_ghost() {
    let lab = Lab::new();
    let id =
        lab.server.faults().add(FaultSpec::new(Action::Late { ms: None }).on(Kind::Write).times(1)).unwrap();
    let mut writer = lab.peer();
    writer.send_write(1, 0, &[1; 4096]);
    assert!(writer.is_closed(), "never answered");
    eventually("the ghost is held", || lab.server.faults().held() == 1);
    let mut other = lab.peer();
    assert_eq!(other.read(0, 1).unwrap(), [0]);
    other.write(0, &[2; 4096]).unwrap();
    lab.server.faults().release(Some(id));
    eventually("the ghost has landed", || lab.server.faults().list()[0].delivered == 1);
    assert_eq!(other.read(0, 4096).unwrap(), [1; 4096], "it overwrites what came after it");
    // The other way: after a time.
    lab.server.faults().add(FaultSpec::new(Action::Late { ms: Some(30) }).on(Kind::Zero)).unwrap();
    other.send(6, 0, 1, 0, 4096, &[]);
    assert!(other.is_closed());
    let mut third = lab.peer();
    eventually("the zeroes have landed", || third.read(0, 4096).unwrap() == [0; 4096]);
}

#[test]
fn a_crash_loses_what_was_not_flushed_and_changes_the_boot_id() {
    let lab = Lab::new();
    lab.server.set_volatile(true).unwrap();
    let mut peer = lab.client(7);
    peer.write(0, &[1; 4096]).unwrap();
    peer.flush().unwrap();
    peer.write(4096, &[2; 4096]).unwrap();
    peer.write_with(1, 8192, &[3; 4096]).unwrap();
    peer.write(0, &[4; 100]).unwrap();
    assert_eq!(peer.read(4096, 1).unwrap(), [2], "before the crash it is there");
    assert_eq!(lab.server.status().volatile_blocks, 2);
    // What hangs is lost as well.
    lab.server.faults().add(FaultSpec::new(Action::Hang).on(Kind::Write)).unwrap();
    peer.send_write(9, 12_288, &[5; 4096]);
    eventually("it hangs", || lab.server.faults().held() == 1);
    let boot = lab.server.boot_id();
    let after = lab.server.crash();
    assert_ne!(after, boot);
    assert!(peer.is_closed());
    lab.server.faults().clear(None);
    let mut again = lab.connect();
    assert_eq!(again.hello(7, crate::lab::cookie(7)).unwrap().boot_id, after.0);
    again.go().unwrap();
    let data = again.read(0, 16_384).unwrap();
    assert_eq!(data[..4096], [1; 4096]);
    assert_eq!(data[4096..8192], [0; 4096], "written, not flushed: lost");
    assert_eq!(data[8192..12_288], [3; 4096], "FUA: kept");
    assert_eq!(data[12_288..], [0; 4096]);
    again.write(0, &[6; 4096]).unwrap();
    lab.server.set_volatile(false).unwrap();
    lab.server.crash();
    assert_eq!(lab.peer().read(0, 1).unwrap(), [6], "a real cache of the kernel loses nothing");
}

#[test]
fn without_a_volatile_cache_a_crash_loses_nothing() {
    let lab = Lab::new();
    lab.peer().write(0, &[1; 4096]).unwrap();
    lab.server.crash();
    assert_eq!(lab.peer().read(0, 4096).unwrap(), [1; 4096]);
}

#[test]
fn stopping_the_target_lands_its_ghosts() {
    let mut lab = Lab::new();
    lab.server.faults().add(FaultSpec::new(Action::Late { ms: None })).unwrap();
    let mut writer = lab.peer();
    writer.send_write(1, 0, &[1; 4096]);
    assert!(writer.is_closed());
    eventually("a ghost is held", || lab.server.faults().held() == 1);
    lab.restart();
    assert_eq!(lab.peer().read(0, 1).unwrap(), [1]);
}
