//! Somebody who takes a thread's place while it waits for the LUN.
//!
//! A thread that takes requests from the kernel should wait for nothing. One thing it cannot avoid: the coordinator in
//! the same process answers a question on the asking thread, and reads what its cache lacks from the LUN. While that
//! takes longer than usual (a slow array, a server that hangs) others must take requests in its place, lest everything
//! else that the mount could answer waits as well. Such a thread says by [`appoint`] whom to call.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError};
use std::time::Duration;

use crate::attend;

/// How long a thread waits before somebody stands in for it: longer than a good LUN takes, and than waking a thread is
/// worth.
const PATIENCE: Duration = Duration::from_millis(2);

/// Takes the place of a thread that waits.
pub trait StandIn: Send + Sync {
    /// The calling thread waits for a moment.
    fn pauses(&self) {}
    /// The calling thread waits for longer.
    fn begin(&self);
    /// It is back.
    fn end(&self);
}

thread_local! {
    static STAND_IN: RefCell<Option<Arc<dyn StandIn>>> = const { RefCell::new(None) };
}

/// Whoever this thread calls, from now on, when it has to wait for the LUN.
pub fn appoint(stand_in: Arc<dyn StandIn>) {
    STAND_IN.set(Some(stand_in));
}

struct Away(Arc<dyn StandIn>);

impl Drop for Away {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// This thread waits from now on, as long as what is returned lives; its place is taken.
pub(crate) fn go_away() -> Option<impl Drop> {
    STAND_IN.with_borrow(Clone::clone).map(|stand_in| {
        stand_in.begin();
        Away(stand_in)
    })
}

/// Receives what the LUN's completion sends; when that takes long, this thread's place is taken.
pub(crate) fn receive<T>(receiver: &Receiver<T>) -> Result<T, RecvError> {
    let Some(stand_in) = STAND_IN.with_borrow(Clone::clone) else { return receiver.recv() };
    attend::leave();
    stand_in.pauses();
    match receiver.recv_timeout(PATIENCE) {
        Ok(value) => Ok(value),
        Err(RecvTimeoutError::Disconnected) => Err(RecvError),
        Err(RecvTimeoutError::Timeout) => {
            stand_in.begin();
            let _away = Away(stand_in);
            receiver.recv()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI32, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[derive(Default)]
    struct Count {
        begun: AtomicI32,
        away: AtomicI32,
    }

    impl StandIn for Count {
        fn begin(&self) {
            self.begun.fetch_add(1, Ordering::SeqCst);
            self.away.fetch_add(1, Ordering::SeqCst);
        }
        fn end(&self) {
            self.away.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn somebody_stands_in_for_who_waits_long_and_for_nobody_else() {
        let count = Arc::new(Count::default());
        let (sender, receiver) = mpsc::channel();
        sender.send(1).unwrap();
        appoint(Arc::clone(&count) as _);
        assert_eq!(receive(&receiver), Ok(1));
        assert_eq!(count.begun.load(Ordering::SeqCst), 0);

        let seen = Arc::clone(&count);
        let late = std::thread::spawn(move || {
            // Only when somebody stands in does the answer come.
            while seen.away.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            sender.send(2)
        });
        assert_eq!(receive(&receiver), Ok(2));
        assert_eq!((count.begun.load(Ordering::SeqCst), count.away.load(Ordering::SeqCst)), (1, 0));
        late.join().unwrap().unwrap();
        assert_eq!(receive(&receiver), Err(RecvError), "the sender is gone");
    }
}
