use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;

use super::*;

/// Answers attempts to receive from a list, then with nothing.
#[derive(Default)]
struct Scripted {
    taken: AtomicBool,
    refuses: AtomicBool,
    polls: AtomicUsize,
    answers: Mutex<Vec<Polled>>,
}

impl Scripted {
    fn new(answers: &[Polled]) -> Arc<Self> {
        let answers = answers.iter().rev().copied().collect();
        Arc::new(Self { answers: Mutex::new(answers), ..Self::default() })
    }

    fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Source for Scripted {
    fn descriptor(&self) -> RawFd {
        7
    }

    fn poll(&self, _anyway: bool) -> Polled {
        assert!(self.is_taken(), "only who has taken the place receives");
        self.polls.fetch_add(1, Ordering::Relaxed);
        let polled = self.answers.lock().pop().unwrap_or(Polled::Nothing);
        if polled == Polled::Left {
            self.leave();
        }
        polled
    }

    fn outlook(&self) -> Outlook {
        Outlook { in_flight: 5, answered: 2 }
    }

    fn peek(&self) -> Polled {
        Polled::Nothing
    }

    fn enter(&self) -> bool {
        !self.refuses.load(Ordering::Relaxed) && !self.taken.swap(true, Ordering::Relaxed)
    }

    fn leave(&self) {
        self.taken.store(false, Ordering::Relaxed);
    }
}

#[test]
fn each_volunteer_attends_a_connection_of_its_own_and_nobody_else_any() {
    let sources = [Scripted::new(&[Polled::Some]), Scripted::new(&[])];
    assert_eq!(choose(1, &sources), None, "this thread has not said that it does");
    volunteer();
    assert_eq!(choose(1, &sources), Some(0));
    assert_eq!(choose(1, &sources), Some(0), "the same again");
    // Joined, so that what the threads leave behind is cleared.
    thread::scope(|scope| {
        let second = scope.spawn(|| {
            volunteer();
            assert_eq!(choose(1, &sources), Some(1));
            let third = || {
                volunteer();
                choose(1, &sources)
            };
            assert_eq!(thread::scope(|scope| scope.spawn(third).join().unwrap()), None, "all have somebody");
        });
        second.join().unwrap();
    });
    assert!(sources[0].is_taken() && !sources[1].is_taken(), "a thread that ends gives its place back");
    assert!(poll(false) && !poll(false));
    assert_eq!(descriptors(), [7]);
    assert_eq!((outlook(), outlook().unanswered()), (Outlook { in_flight: 5, answered: 2 }, 3));
    resign();
    assert!(!sources[0].is_taken() && descriptors().is_empty());
    assert_eq!(outlook(), Outlook::default());
    assert_eq!(choose(1, &sources), None);
}

#[test]
fn who_leaves_takes_its_place_again_when_it_looks() {
    let sources = [Scripted::new(&[])];
    volunteer();
    assert_eq!(choose(1, &sources), Some(0));
    let version = version();
    leave();
    assert!(!sources[0].is_taken());
    assert!(descriptors().is_empty() && super::version() != version, "nothing to wait for");
    poll(false);
    assert!(sources[0].is_taken());
    assert_eq!(descriptors(), [7]);
}

#[test]
fn a_connection_that_its_own_thread_keeps_is_left_to_it() {
    let sources = [Scripted::new(&[Polled::Left])];
    volunteer();
    assert_eq!(choose(1, &sources), Some(0));
    sources[0].refuses.store(true, Ordering::Relaxed);
    assert!(!poll(true), "nothing for this thread");
    assert!(descriptors().is_empty());
    poll(true);
    assert_eq!(sources[0].polls.load(Ordering::Relaxed), 1);
    sources[0].refuses.store(false, Ordering::Relaxed);
    poll(true);
    assert_eq!(sources[0].polls.load(Ordering::Relaxed), 2);
}

#[test]
fn a_broken_connection_is_forgotten() {
    let sources = [Scripted::new(&[Polled::Ended])];
    volunteer();
    assert_eq!(choose(1, &sources), Some(0));
    assert!(poll(false));
    assert!(descriptors().is_empty());
    assert!(!poll(true));
    assert_eq!(sources[0].polls.load(Ordering::Relaxed), 1);
}
