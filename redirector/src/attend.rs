//! Replies received by the thread that sends the requests.
//!
//! Waking a thread costs more than a small request: a processor that sleeps is woken by an interrupt, and on a virtual
//! machine that leaves the guest twice. A thread that takes requests in a loop says by [`volunteer`] that it looks after
//! connections, too. What it submits goes by a connection that it attends from then on: it calls [`poll`] between other
//! work, and waits for the connections' [`descriptors`] beside its own. The thread that otherwise receives on such a
//! connection sleeps meanwhile, and takes over when it is told to ([`leave`]), or sees that nobody has received for a
//! while.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::sync::Arc;

/// What became of an attempt to receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Polled {
    /// Something was received.
    Some,
    /// Nothing was there, or another thread is receiving.
    Nothing,
    /// The connection's own thread receives from now on.
    Left,
    /// The connection is broken.
    Ended,
}

/// What is to be received.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Outlook {
    /// Requests that have been sent and whose replies have not been received.
    pub in_flight: usize,
    /// About how many of them have been answered: their replies can be received.
    pub answered: usize,
}

impl Outlook {
    /// How many the other side has still to do.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.in_flight - self.answered
    }
}

/// A connection that can be attended.
pub(crate) trait Source: Send + Sync {
    /// Readable when there is something to receive.
    fn descriptor(&self) -> RawFd;
    /// Receives what is there, without waiting for more, and completes its requests. Without `anyway`, only where
    /// something is expected.
    fn poll(&self, anyway: bool) -> Polled;
    /// What is to be received.
    fn outlook(&self) -> Outlook;
    /// Whether the connection has ended: [`Polled::Ended`], else [`Polled::Nothing`].
    fn peek(&self) -> Polled;
    /// Takes the place of the connection's own thread; false if somebody else has it.
    fn enter(&self) -> bool;
    /// Gives the place back.
    fn leave(&self);
}

struct Attended {
    owner: usize,
    index: usize,
    source: Arc<dyn Source>,
    here: bool,
}

#[derive(Default)]
struct Round {
    volunteer: bool,
    sources: Vec<Attended>,
    version: u64,
}

impl Drop for Round {
    fn drop(&mut self) {
        self.sources.iter().filter(|attended| attended.here).for_each(|attended| attended.source.leave());
    }
}

thread_local! {
    static ROUND: RefCell<Round> = RefCell::default();
}

/// This thread looks after connections from now on: it calls [`poll`] again and again, and [`leave`] before it waits
/// for anything else.
pub fn volunteer() {
    ROUND.with_borrow_mut(|round| round.volunteer = true);
}

/// Gives all connections back for good.
pub fn resign() {
    leave();
    ROUND.with_borrow_mut(|round| {
        (round.volunteer, round.version) = (false, round.version + 1);
        round.sources.clear();
    });
}

/// Receives on the attended connections what is there: whether there was something. Where nothing is in flight only
/// `anyway`: a connection may also end. Nothing may be locked by this thread that the end of a request could need.
pub fn poll(anyway: bool) -> bool {
    // Nothing is borrowed while requests end: their ends may submit others.
    let mut some = false;
    let mut next = 0;
    while let Some((here, source)) = ROUND.with_borrow_mut(|round| {
        let attended = round.sources.get_mut(next)?;
        if !attended.here && attended.source.enter() {
            attended.here = true;
            round.version += 1;
        }
        Some((attended.here, Arc::clone(&attended.source)))
    }) {
        next += 1;
        // Whether the connection has ended is asked in any case.
        match if here { source.poll(anyway) } else { source.peek() } {
            Polled::Some => some = true,
            Polled::Nothing => {}
            Polled::Left => ROUND.with_borrow_mut(|round| {
                round.version += 1;
                let mut all = round.sources.iter_mut();
                if let Some(attended) = all.find(|attended| Arc::ptr_eq(&attended.source, &source)) {
                    attended.here = false;
                }
            }),
            Polled::Ended => {
                some = true;
                ROUND.with_borrow_mut(|round| {
                    round.sources.retain(|attended| !Arc::ptr_eq(&attended.source, &source));
                    round.version += 1;
                });
                next -= 1;
            }
        }
    }
    some
}

/// What is to be received on the connections that this thread attends. One system call for each.
#[must_use]
pub fn outlook() -> Outlook {
    ROUND.with_borrow(|round| {
        let here = round.sources.iter().filter(|attended| attended.here);
        here.map(|attended| attended.source.outlook()).fold(Outlook::default(), |all, one| Outlook {
            in_flight: all.in_flight + one.in_flight,
            answered: all.answered + one.answered,
        })
    })
}

/// Lets the connections' own threads receive until the next [`poll`]: this thread is going to wait for something.
pub fn leave() {
    ROUND.with_borrow_mut(|round| {
        for attended in &mut round.sources {
            if std::mem::take(&mut attended.here) {
                attended.source.leave();
                round.version += 1;
            }
        }
    });
}

/// Another number whenever [`descriptors`] has changed.
#[must_use]
pub fn version() -> u64 {
    ROUND.with_borrow(|round| round.version)
}

/// What becomes readable when there is something to receive. They live until [`version`] changes.
#[must_use]
pub fn descriptors() -> Vec<RawFd> {
    ROUND.with_borrow(|round| {
        let here = round.sources.iter().filter(|attended| attended.here);
        here.map(|attended| attended.source.descriptor()).collect()
    })
}

/// Which of `owner`'s connections this thread attends, or, from now on, of `sources`, which are all of them; `None` if
/// it attends none at the moment.
pub(crate) fn choose<S: Source + 'static>(owner: usize, sources: &[Arc<S>]) -> Option<usize> {
    ROUND.with_borrow_mut(|round| {
        if !round.volunteer {
            return None;
        }
        if let Some(attended) = round.sources.iter().find(|attended| attended.owner == owner) {
            return attended.here.then_some(attended.index);
        }
        let index = sources.iter().position(|source| source.enter())?;
        let source: Arc<dyn Source> = Arc::clone(&sources[index]) as _;
        round.sources.push(Attended { owner, index, source, here: true });
        round.version += 1;
        Some(index)
    })
}

#[cfg(test)]
mod tests;
