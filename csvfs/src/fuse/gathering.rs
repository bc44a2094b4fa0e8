//! How long a dispatcher lets replies of the LUN gather before it receives them.
//!
//! Received as they come, 32 small requests in flight cost a system call for each reply, another that finds no new request,
//! and a wake-up of the server for nothing: what frees room in its socket wakes whoever sleeps on it. So while many are in
//! flight, the dispatcher lets others have the processor until a good part has been answered, or the server is about to run
//! out of work. Where the LUN is slow, so that a short wait brings little, it waits once in 65 times.

use std::thread;
use std::time::{Duration, Instant};

use redirector::attend::{self, Outlook};

/// Replies that are received together, if so many are to come.
const TOGETHER: usize = 12;
/// Requests in flight below which each reply is received at once.
const MANY: usize = 8;
/// A server that has no more than this to do needs new requests, and those come when replies have been received.
const LOW: usize = 4;
/// The longest wait.
const LONGEST: Duration = Duration::from_micros(60);
/// A wait that was long in vain was worth it if it has brought so many.
const WORTH: usize = 4;
/// Waits that are left out after one that was not worth it.
const LEFT_OUT: u32 = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// Waits still to be left out.
    left_out: u32,
}

impl Gathering {
    /// Waits until there is enough to receive, if that is worth it.
    pub(super) fn wait(&mut self) {
        if self.left_out > 0 {
            self.left_out -= 1;
            return;
        }
        let first = attend::outlook();
        let (mut outlook, since) = (first, Instant::now());
        while !is_enough(outlook) && since.elapsed() < LONGEST {
            thread::yield_now();
            outlook = attend::outlook();
        }
        self.waited(first, outlook);
    }

    /// A wait has turned `first` into `last`.
    fn waited(&mut self, first: Outlook, last: Outlook) {
        if !is_enough(last) && last.answered < first.answered + WORTH {
            self.left_out = LEFT_OUT;
        }
    }
}

fn is_enough(outlook: Outlook) -> bool {
    outlook.in_flight < MANY
        || outlook.answered >= TOGETHER.min(outlook.in_flight.div_ceil(2))
        || (outlook.answered > 0 && outlook.unanswered() <= LOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlook(in_flight: usize, answered: usize) -> Outlook {
        Outlook { in_flight, answered }
    }

    #[test]
    fn few_requests_are_not_waited_for() {
        for in_flight in 0..MANY {
            assert!(is_enough(outlook(in_flight, 0)));
        }
        assert!(!is_enough(outlook(MANY, 0)));
    }

    #[test]
    fn half_of_few_and_a_dozen_of_many_are_enough() {
        assert!(!is_enough(outlook(16, 7)) && is_enough(outlook(16, 8)));
        assert!(!is_enough(outlook(100, 11)) && is_enough(outlook(100, 12)));
        assert!(is_enough(outlook(9, 5)), "the server runs out of work");
    }

    #[test]
    fn a_wait_that_brings_little_is_not_repeated_at_once() {
        let mut gathering = Gathering::default();
        gathering.waited(outlook(32, 0), outlook(32, 12));
        gathering.waited(outlook(32, 2), outlook(32, 6));
        assert_eq!(gathering.left_out, 0, "a slow server, but not too slow");
        gathering.waited(outlook(32, 2), outlook(32, 5));
        assert_eq!(gathering.left_out, LEFT_OUT);
        gathering.wait();
        assert_eq!(gathering.left_out, LEFT_OUT - 1);
    }
}
