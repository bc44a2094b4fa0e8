//! Requests held back by the thread that starts them, so that one system call sends several: what Linux's block layer
//! calls a plug.
//!
//! A thread that takes many requests from somewhere without waiting between them says so by [`allow`]. From then on a
//! busy link may keep back what this thread submits, until the thread calls [`flush`]: when there is nothing more to take,
//! and before it waits for anything. A request that is kept back has not been sent: if its link breaks meanwhile, it goes
//! another way.

use std::cell::RefCell;
use std::sync::Arc;

use crate::paths::request::Request;

/// Requests that a thread keeps back at most.
const HELD_MAX: usize = 32;

/// Sends what was held back for it.
pub(crate) trait Outlet: Send + Sync {
    /// Sends `requests` in their order; reports those that it cannot send.
    fn send_held(&self, requests: Vec<Request>);
}

#[derive(Default)]
struct Plug {
    allowed: bool,
    /// What is submitted now belongs together: it is held back whether the link is busy or not.
    together: bool,
    outlet: Option<Arc<dyn Outlet>>,
    held: Vec<Request>,
}

impl Drop for Plug {
    fn drop(&mut self) {
        if let Some(outlet) = self.outlet.take() {
            outlet.send_held(std::mem::take(&mut self.held));
        }
    }
}

thread_local! {
    static PLUG: RefCell<Plug> = RefCell::default();
}

/// Lets links hold back what this thread submits. The thread must call [`flush`] before it waits for anything.
pub fn allow() {
    PLUG.with_borrow_mut(|plug| plug.allowed = true);
}

/// Sends what `start` submits by as few system calls as it can. `start` must not wait for anything.
pub fn together(start: impl FnOnce()) {
    let before = PLUG.with_borrow_mut(|plug| {
        let before = (plug.allowed, plug.together);
        (plug.allowed, plug.together) = (true, true);
        before
    });
    start();
    PLUG.with_borrow_mut(|plug| (plug.allowed, plug.together) = before);
    flush();
}

/// Whether this thread holds nothing back.
#[must_use]
pub fn is_empty() -> bool {
    PLUG.with_borrow(|plug| plug.held.is_empty())
}

/// Sends what this thread holds back.
pub fn flush() {
    // Nothing is borrowed while requests are sent: they may end at once, and their ends may start others.
    let (outlet, held) = PLUG.with_borrow_mut(|plug| (plug.outlet.take(), std::mem::take(&mut plug.held)));
    if let Some(outlet) = outlet {
        outlet.send_held(held);
    }
}

/// Whether what this thread submits belongs together.
pub(crate) fn is_together() -> bool {
    PLUG.with_borrow(|plug| plug.together)
}

/// Holds `request` back for `outlet`; it comes back if this thread may not.
pub(crate) fn hold(outlet: &Arc<impl Outlet + 'static>, request: Request) -> Option<Request> {
    let (full, back) = PLUG.with_borrow_mut(|plug| {
        if !plug.allowed {
            return (false, Some(request));
        }
        let of_another = plug.outlet.as_ref().is_some_and(|held| !is_same(held, outlet));
        if of_another {
            return (true, Some(request));
        }
        if plug.outlet.is_none() {
            let outlet: Arc<dyn Outlet> = Arc::clone(outlet) as _;
            plug.outlet = Some(outlet);
        }
        plug.held.push(request);
        (plug.held.len() >= HELD_MAX, None)
    });
    if full {
        flush();
    }
    back
}

fn is_same(held: &Arc<dyn Outlet>, outlet: &Arc<impl Outlet>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(held), Arc::as_ptr(outlet))
}

#[cfg(test)]
mod tests;
