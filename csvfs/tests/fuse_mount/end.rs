//! The end of a mount: asked for, refused, forced.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::mounted::{Mounted, errno, flock};

#[test]
fn a_used_file_system_is_not_unmounted() {
    let mut mounted = Mounted::new();
    let file = File::create(mounted.path("file")).unwrap();
    let handle = mounted.handle.take().unwrap();
    assert_eq!(errno(handle.unmounter().unmount()), libc::EBUSY);
    drop(file);
    handle.unmounter().unmount().unwrap();
    handle.wait();
    assert_eq!(fs::read_dir(mounted.root()).unwrap().count(), 0);
}

/// A process that waits for an answer of its own mount cannot be killed: nobody is left to answer.
#[test]
fn a_mount_that_begins_asks_nothing_of_itself() {
    let mounted = Mounted::new();
    assert_eq!((mounted.memory.seen().attributes, mounted.memory.seen().lookups), (0, 0));
    fs::metadata(mounted.root()).unwrap();
    assert_eq!(mounted.memory.seen().attributes, 1);
}

#[test]
fn a_detached_file_system_lives_as_long_as_it_is_used() {
    let mut mounted = Mounted::new();
    let mut file = File::create_new(mounted.path("file")).unwrap();
    let handle = mounted.handle.take().unwrap();
    handle.unmounter().detach().unwrap();
    assert!(!mounted.path("file").exists());
    file.write_all(b"still works").unwrap();
    let (sender, receiver) = channel();
    let waiter = thread::spawn(move || {
        handle.wait();
        sender.send(()).unwrap();
    });
    assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
    drop(file);
    receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    waiter.join().unwrap();
}

#[test]
fn anybody_may_unmount() {
    let mut mounted = Mounted::new();
    let handle = mounted.handle.take().unwrap();
    let status = std::process::Command::new("umount").arg(mounted.root()).status().unwrap();
    assert!(status.success());
    handle.wait();
}

#[test]
fn a_dropped_mount_ends_with_requests_in_flight() {
    let mut mounted = Mounted::new();
    let path = mounted.path("file");
    fs::write(&path, [1; 4096]).unwrap();
    let locked = File::open(&path).unwrap();
    flock(&locked, libc::LOCK_EX).unwrap();
    // Data is answered only when the test says so.
    let go_on = mounted.memory.pause();
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    let (reader_path, waiter_path) = (path.clone(), path.clone());
    let reader = thread::spawn(move || {
        let mut data = Vec::new();
        File::open(&reader_path).and_then(|mut file| file.read_to_end(&mut data))
    });
    let waiter = thread::spawn(move || flock(&File::open(&waiter_path).unwrap(), libc::LOCK_EX));
    while mounted.memory.seen().reads == 0 {
        thread::yield_now();
    }
    drop(mounted.handle.take());
    assert!(matches!(errno(reader.join().unwrap()), libc::ECONNABORTED | libc::ENOTCONN));
    // The waiter may have come too late even to open the file.
    let _ = waiter.join();
    // Answers that come now go nowhere.
    go_on.send(()).unwrap();
    assert_eq!(errno(locked.read_at(&mut [0; 10], 0)), libc::ENOTCONN);
}

#[test]
fn two_mounts_live_side_by_side() {
    let (first, second) = (Mounted::new(), Mounted::new());
    fs::write(first.path("file"), "first").unwrap();
    fs::write(second.path("file"), "second").unwrap();
    drop(first);
    assert_eq!(fs::read(second.path("file")).unwrap(), b"second");
}
