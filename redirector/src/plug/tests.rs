use std::sync::mpsc;
use std::thread;

use lockd::clock::BootTime;
use parking_lot::Mutex;

use super::*;
use crate::paths::request::Command;

/// Remembers what was sent together.
#[derive(Default)]
struct Sent(Mutex<Vec<Vec<u64>>>);

fn trim(at: u64) -> Request {
    Request::new(Command::Trim(at..at + 1, Box::new(|_| ())), BootTime(0))
}

fn place(request: &Request) -> u64 {
    request.changes().unwrap().start
}

impl Outlet for Sent {
    fn send_held(&self, requests: Vec<Request>) {
        self.0.lock().push(requests.iter().map(place).collect());
    }
}

impl Sent {
    fn groups(&self) -> Vec<Vec<u64>> {
        self.0.lock().clone()
    }
}

#[test]
fn a_thread_that_has_not_allowed_it_sends_at_once() {
    let outlet = Arc::new(Sent::default());
    assert_eq!(hold(&outlet, trim(1)).as_ref().map(place), Some(1));
}

#[test]
fn what_is_held_goes_in_order_at_the_flush_or_when_it_is_enough() {
    allow();
    let outlet = Arc::new(Sent::default());
    for at in 0..HELD_MAX as u64 + 2 {
        assert!(hold(&outlet, trim(at)).is_none());
    }
    assert_eq!(outlet.groups(), [(0..HELD_MAX as u64).collect::<Vec<_>>()]);
    flush();
    assert_eq!(outlet.groups()[1..], [vec![HELD_MAX as u64, HELD_MAX as u64 + 1]]);
    flush();
    assert_eq!(outlet.groups().len(), 2, "nothing was held");
}

#[test]
fn requests_of_one_lun_do_not_wait_behind_another() {
    allow();
    let (one, other) = (Arc::new(Sent::default()), Arc::new(Sent::default()));
    assert!(hold(&one, trim(1)).is_none());
    assert!(hold(&other, trim(2)).is_some(), "it is sent at once");
    assert_eq!(one.groups(), [[1]], "and what was held before it");
    assert!(other.groups().is_empty());
}

#[test]
fn together_ends_with_a_flush_and_restores_what_was() {
    let outlet = Arc::new(Sent::default());
    assert!(!is_together());
    together(|| {
        assert!(is_together());
        for at in 0..20 {
            assert!(hold(&outlet, trim(at)).is_none());
        }
    });
    assert_eq!(outlet.groups(), [(0..20).collect::<Vec<_>>()]);
    assert!(!is_together());
    assert!(hold(&outlet, trim(1)).is_some(), "this thread has not allowed it otherwise");
}

#[test]
fn a_thread_that_ends_leaves_nothing_behind() {
    let outlet = Arc::new(Sent::default());
    let (sender, receiver) = mpsc::channel();
    let of_thread = Arc::clone(&outlet);
    let thread = thread::spawn(move || {
        allow();
        assert!(hold(&of_thread, trim(7)).is_none());
        sender.send(of_thread.groups().len()).unwrap();
    });
    assert_eq!(receiver.recv(), Ok(0), "held");
    thread.join().unwrap();
    assert_eq!(outlet.groups(), [[7]]);
}
