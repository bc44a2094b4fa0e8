//! Unsealing a file (V8): first every node that reads it directly returns its layout, then the seal is taken off.
//!
//! Between the two, and until the change is answered, nobody is given the layout: an opening is told that the file is not
//! sealed, and reads through its server. A coordinator that ends in between leaves a sealed file. A node that does not
//! answer is waited for until its session has ended: from then on it answers no read (L3).

use std::collections::HashMap;
use std::sync::Arc;

use lockd::ids::ClientId;
use lockd::network::OnReply;
use lockd::rules::Rule;
use parking_lot::Mutex;

use super::Coordinator;
use super::clients::Then;
use super::core::Core;
use crate::proto::{Key, Request};
use crate::types::Ino;

#[derive(Default)]
struct Unsealing {
    /// Every layout has been returned.
    returned: bool,
    /// Requests for it that are not answered: late copies among them.
    requests: usize,
    /// Those that wait for the layouts.
    waiting: Vec<Then>,
}

/// Files that are being unsealed.
#[derive(Default)]
pub struct Unsealings(Mutex<HashMap<Ino, Unsealing>>);

impl Unsealings {
    fn has(&self, ino: Ino) -> bool {
        self.0.lock().contains_key(&ino)
    }

    /// A request more. `then` goes on when the layouts have been returned; what is given back goes on now, and `true`:
    /// they are to be called back.
    fn enter(&self, ino: Ino, then: Then) -> (Option<Then>, bool) {
        let mut all = self.0.lock();
        let unsealing = all.entry(ino).or_default();
        unsealing.requests += 1;
        if unsealing.returned {
            return (Some(then), false);
        }
        unsealing.waiting.push(then);
        (None, unsealing.requests == 1)
    }

    fn returned(&self, ino: Ino) -> Vec<Then> {
        let mut all = self.0.lock();
        let Some(unsealing) = all.get_mut(&ino) else { return Vec::new() };
        unsealing.returned = true;
        std::mem::take(&mut unsealing.waiting)
    }

    fn leave(&self, ino: Ino) {
        let mut all = self.0.lock();
        if let Some(unsealing) = all.get_mut(&ino) {
            unsealing.requests -= 1;
            if unsealing.requests == 0 {
                all.remove(&ino);
            }
        }
    }
}

/// Unseals `ino`, as `request` asks.
pub fn begin(core: &Arc<Core>, ino: Ino, request: Request, on_reply: OnReply) {
    if !core.parts.rules.keeps(Rule::V8) {
        return Coordinator::change(core, request, on_reply);
    }
    let (owner, answered) = (Arc::clone(core), Arc::clone(core));
    let on_reply: OnReply = Box::new(move |reply| {
        answered.unsealing.leave(ino);
        on_reply(reply);
    });
    let (now, is_first) =
        core.unsealing.enter(ino, Box::new(move || Coordinator::change(&owner, request, on_reply)));
    if let Some(now) = now {
        return now();
    }
    if is_first {
        let owner = Arc::clone(core);
        let returned = move || owner.unsealing.returned(ino).into_iter().for_each(|then| then());
        core.recall(&[Key::Layout(ino)], None, Box::new(returned));
        core.watch.wake();
    }
}

/// Whether `client`, which opens the sealed file `ino`, is given its layout to read it directly: it returns it when it is
/// called back.
pub fn lend(core: &Core, ino: Ino, client: ClientId) -> bool {
    // In this order: who unseals it after the look finds the lease.
    core.clients.knows(client) && core.grant(client, &[Key::Layout(ino)]) && !core.unsealing.has(ino)
}
