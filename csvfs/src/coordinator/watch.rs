//! The thread that looks after clients: repeats calls, ends those whose sessions are over.

use std::sync::Arc;
use std::time::Duration;

use lockd::authority::Standing;
use lockd::ids::ClientId;
use parking_lot::{Condvar, Mutex};

use super::assembly;
use super::core::Core;
use super::moving;
use super::queue::Internal;

/// Between two looks while a call waits for its answer.
const SOON: Duration = Duration::from_millis(10);
/// Between two looks at sessions.
const REST: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
struct State {
    stop: bool,
    wake: bool,
}

/// Wakes the thread.
#[derive(Debug, Default)]
pub struct Watch {
    state: Mutex<State>,
    changed: Condvar,
}

impl Watch {
    /// Ends the thread.
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// Lets it look now.
    pub fn wake(&self) {
        self.state.lock().wake = true;
        self.changed.notify_all();
    }

    /// Rests; whether to go on.
    fn rest(&self, idle: bool, soon: bool) -> bool {
        let mut state = self.state.lock();
        while idle && !state.stop && !state.wake {
            self.changed.wait(&mut state);
        }
        if !state.stop && !state.wake {
            self.changed.wait_for(&mut state, if soon { SOON } else { REST });
        }
        state.wake = false;
        !state.stop
    }
}

/// Looks until the coordinator stops. While nobody has attached it sleeps.
pub fn serve(core: &Arc<Core>) {
    loop {
        let idle = !core.clients.any() && core.unfenced.lock().is_empty();
        if !core.watch.rest(idle, core.clients.is_waiting()) {
            return;
        }
        look(core);
    }
}

/// Sends again what got no answer, and looks how sessions stand.
pub fn look(core: &Arc<Core>) {
    assembly::look(core);
    for (client, standing) in core.clients.look() {
        core.end_leases(client.1);
        core.unfenced.lock().push(client);
        if standing == Standing::Ended {
            tracing::warn!(
                session = client.0.0,
                client = client.1.0,
                "a session has ended; waiting for its fence"
            );
        }
    }
    moving::settle(core);
    for client in fenced(core) {
        if let Err(refusal) = core.run(Internal::EndClient(client)) {
            tracing::warn!(client = client.0, %refusal, "a client that is over could not be ended");
        }
        core.call_reclaimer(false);
    }
}

/// Takes those out whose sessions are fenced: what they hold may be given away.
fn fenced(core: &Core) -> Vec<ClientId> {
    let mut unfenced = core.unfenced.lock();
    let authority = &core.parts.authority;
    let (fenced, rest) =
        unfenced.iter().partition(|(session, _)| authority.standing(*session) == Standing::Fenced);
    *unfenced = rest;
    fenced.into_iter().map(|(_, client): (_, ClientId)| client).collect()
}
