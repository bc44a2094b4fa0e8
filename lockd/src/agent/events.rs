//! What happens in the cluster, fetched and handed to those whom it concerns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::control::{Ask, Told};
use super::core::Core;
use super::session::last_event;
use crate::ids::ClientId;
use crate::local::message::FromLockd;
use crate::machine::{Answer, Audience, Event, EventIndex, EventKind};

/// How long one question for events may wait for some.
const WAIT: Duration = Duration::from_secs(2);
/// How long is waited when nobody answers.
const PAUSE: Duration = Duration::from_millis(100);

/// Fetches events for ever.
pub(super) async fn run(core: Arc<Core>) {
    let mut after = loop {
        match last_event(&core).await {
            Ok(last) => break last,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    };
    loop {
        match fetch(&core, after).await {
            Some(Answer::Events { events, missed, last }) => {
                if missed {
                    tracing::warn!("events were missed");
                    for connection in connections(&core) {
                        connection.push(&FromLockd::Missed);
                    }
                    core.fences.notify_one();
                }
                // A voter that lags knows less than what was seen already.
                after =
                    after.max(events.last().map_or(if missed { last } else { after }, |event| event.index));
                hand_out(&core, events);
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// The events after an index: from this node's own replica, or from a voter, the leader first.
async fn fetch(core: &Core, after: EventIndex) -> Option<Answer> {
    if let Some(seat) = core.route.seat.get() {
        return Some(seat.voter.events(after, WAIT).await);
    }
    let wait_ms = u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX);
    let ask = Ask::Events { after, wait_ms };
    for node in core.route.voters_leader_first() {
        if let Told::Answer(answer) = core.route.ask(&node, &ask, WAIT + Duration::from_secs(1)).await {
            return Some(answer);
        }
    }
    None
}

fn connections(core: &Core) -> Vec<Arc<super::connection::Connection>> {
    core.connections.lock().values().cloned().collect()
}

fn hand_out(core: &Core, events: Vec<Event>) {
    let mut of_clients: BTreeMap<ClientId, Vec<Event>> = BTreeMap::new();
    let mut of_all = Vec::new();
    for event in events {
        match event.to {
            Audience::Client(client) => of_clients.entry(client).or_default().push(event),
            Audience::Everyone => {
                if matches!(event.kind, EventKind::FenceWanted { .. } | EventKind::Fenced { .. }) {
                    core.fences.notify_one();
                }
                of_all.push(event);
            }
        }
    }
    for (client, events) in of_clients {
        core.clients.tell(client, events);
    }
    if of_all.is_empty() {
        return;
    }
    for connection in connections(core) {
        if connection.watching.load(Ordering::Acquire) {
            connection.push(&FromLockd::Events(of_all.clone()));
        }
    }
}
