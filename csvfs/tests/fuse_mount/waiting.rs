//! Dispatchers that wait for the LUN.

use std::fs;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use csvfs::fuse::{Caching, MountOptions};
use redirector::memory::Fault;

use crate::mounted::Mounted;

const LOOKUPS: usize = 7;

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} did not come about");
        thread::sleep(Duration::from_millis(1));
    }
}

/// More lookups wait for the LUN than there are dispatchers, and the mount goes on answering what needs no LUN.
#[test]
fn lookups_that_wait_for_the_lun_hold_up_nothing_else() {
    let options = MountOptions { caching: Caching::none(), ..MountOptions::default() };
    assert!(usize::from(options.threads) < LOOKUPS);
    let mounted = Mounted::with(&options);
    fs::write(mounted.path("warm"), "warm").unwrap();
    for number in 0..LOOKUPS {
        fs::write(mounted.path(&format!("cold {number}")), "").unwrap();
    }
    let lun = &mounted.memory.lun;
    // The second time those who stood in the first time do it again.
    for _ in 0..2 {
        lun.plan(|_| Fault::Hold);
        let waiting: Vec<_> = (0..LOOKUPS)
            .map(|number| {
                let path = mounted.path(&format!("cold {number}"));
                thread::spawn(move || fs::metadata(path).map(drop))
            })
            .collect();
        until("every lookup waits for the LUN", || lun.held() == LOOKUPS);
        let (told, tell) = channel();
        let warm = mounted.path("warm");
        thread::spawn(move || told.send(fs::read(warm)));
        let read = tell.recv_timeout(Duration::from_secs(20)).expect("the mount answers meanwhile");
        assert_eq!(read.unwrap(), b"warm");
        lun.heal();
        assert_eq!(lun.release(), LOOKUPS);
        for lookup in waiting {
            lookup.join().unwrap().unwrap();
        }
    }
}
