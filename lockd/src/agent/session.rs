//! The node's session: opened, kept alive, and opened anew when it has ended (L1, L2, L11).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::control::{Ask, Told};
use super::core::Core;
use crate::clock::BootTime;
use crate::ids::SessionId;
use crate::lease::{Lease, LineNumber};
use crate::local::message::Failure;
use crate::machine::{Answer, Command, Query, Refusal, Reply};
use crate::rules::{Rule, Rules};

/// How often the session is kept alive.
pub(super) const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// How many keep-alives may be on their way.
const UNDER_WAY_MAX: usize = 8;
/// How long is waited before a session is kept alive for the first time once more.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// How long is waited before a session that was refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A session that lives, as far as this node knows.
#[derive(Clone, Debug)]
pub(super) struct OpenSession {
    pub(super) session: SessionId,
    pub(super) line: LineNumber,
    pub(super) lease: Arc<Lease>,
}

/// Until when a session has its lease that sent a keep-alive at `sent` and was answered at `answered` (L1).
fn lease_until(rules: Rules, sent: BootTime, answered: BootTime, lease: Duration) -> BootTime {
    if rules.keeps(Rule::L1) { sent.after(lease) } else { answered.after(lease) }
}

enum Beat {
    Alive { sent: BootTime, answered: BootTime, lease: Duration },
    Over,
    Unanswered(Failure),
}

/// Opens sessions and keeps them alive, for ever.
pub(super) async fn run(core: Arc<Core>, open: watch::Sender<Option<OpenSession>>) {
    loop {
        let session = open_session(&core).await;
        tracing::info!(session = %session.session, node = %core.node, "the session is open");
        open.send_replace(Some(session.clone()));
        keep_alive(&core, &session).await;
        session.lease.end();
        open.send_replace(None);
        tracing::error!(session = %session.session, "the session has ended; the node starts a new one");
        core.clients.session_ended(session.session);
        forget_nonce(&core);
    }
}

fn forget_nonce(core: &Core) {
    if let Err(error) = core.nonce.forget() {
        // The cluster refuses the old one, and it is forgotten then.
        tracing::warn!(%error, "the file of the ended session could not be removed");
    }
}

async fn open_session(core: &Arc<Core>) -> OpenSession {
    loop {
        match try_open(core).await {
            Ok(Reply::Session(session)) => {
                let (line, lease) = core.page.begin(session);
                let open = OpenSession { session, line, lease: Arc::new(lease) };
                // One that was resumed may be about to be ended: nobody starts under it before it has its lease.
                if is_granted(core, &open).await {
                    core.clients.begin(core, session).await;
                    return open;
                }
                open.lease.end();
                tracing::warn!(%session, "the session of this node was being ended; a new one is opened");
                forget_nonce(core);
            }
            // L2: it has ended while lockd was away.
            Ok(Reply::Refused(Refusal::SessionEnded(session))) => {
                tracing::warn!(%session, "the session of this node has ended; a new one is opened");
                forget_nonce(core);
            }
            Ok(reply) => {
                let why = match reply {
                    Reply::Refused(refusal) => refusal.to_string(),
                    reply => format!("an odd reply: {reply:?}"),
                };
                core.say(&format!("no session yet: {why}"));
                tokio::time::sleep(RETRY).await;
            }
            Err(why) => {
                core.say(&format!("no session yet: {why}"));
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Keeps a session alive for the first time. False if it has ended.
async fn is_granted(core: &Arc<Core>, open: &OpenSession) -> bool {
    loop {
        match beat(core, open.session).await {
            Beat::Alive { sent, answered, lease } => {
                open.lease.extend(lease_until(core.rules, sent, answered, lease));
                return true;
            }
            Beat::Over => return false,
            Beat::Unanswered(failure) => {
                core.say(&format!("session {} has no lease yet: {failure}", open.session));
                tokio::time::sleep(FIRST_RETRY).await;
            }
        }
    }
}

async fn try_open(core: &Core) -> Result<Reply, String> {
    // L11: the session that was there before, if it has not been ended.
    let kept = if core.rules.keeps(Rule::L11) { core.nonce.read() } else { Ok(None) };
    let kept = kept.map_err(|error| format!("the data directory cannot be read: {error}"))?;
    let nonce = match kept {
        Some(nonce) => nonce,
        None => {
            let drawn = core.nonce.draw(&*core.random);
            drawn.map_err(|error| format!("the data directory cannot be written: {error}"))?
        }
    };
    let command = Command::OpenSession { node: core.node.clone(), nonce };
    core.route.propose(&command, Some(Duration::from_secs(5))).await.map_err(|failure| failure.to_string())
}

/// Keeps the session alive until it has ended.
async fn keep_alive(core: &Arc<Core>, session: &OpenSession) {
    let (beats, mut answers) = mpsc::channel(UNDER_WAY_MAX);
    let mut ticks = tokio::time::interval(KEEP_ALIVE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut under_way = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                if under_way < UNDER_WAY_MAX {
                    under_way += 1;
                    let (core, beats, session) = (Arc::clone(core), beats.clone(), session.session);
                    tokio::spawn(async move { drop(beats.send(beat(&core, session).await).await) });
                }
            }
            Some(answer) = answers.recv() => {
                under_way -= 1;
                match answer {
                    Beat::Alive { sent, answered, lease } => {
                        session.lease.extend(lease_until(core.rules, sent, answered, lease));
                        core.fine();
                    }
                    Beat::Over => return,
                    // L2: lapsed is not ended; only the cluster says that a session has.
                    Beat::Unanswered(failure) => core.say(&failure.to_string()),
                }
            }
        }
    }
}

async fn beat(core: &Core, session: SessionId) -> Beat {
    let sent = core.clock.boot();
    match core.route.ask_leader(Ask::KeepAlive(session), Some(KEEP_ALIVE * 4)).await {
        Ok(Told::Alive { lease_ns }) => {
            let lease = Duration::from_nanos(lease_ns);
            Beat::Alive { sent, answered: core.clock.boot(), lease }
        }
        Ok(Told::SessionOver) => Beat::Over,
        Ok(other) => Beat::Unanswered(super::route::unexpected(&other)),
        Err(failure) => Beat::Unanswered(failure),
    }
}

/// The last event that there is: what is followed begins there.
pub(super) async fn last_event(core: &Core) -> Result<crate::machine::EventIndex, Failure> {
    match core.route.query(Query::Status, Some(Duration::from_secs(5))).await? {
        Answer::Status { last_event, .. } => Ok(last_event),
        _ => Err(Failure::Refused("the status is none".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l1_a_lease_counts_from_when_the_keep_alive_was_sent() {
        let rules = Rules::from_test_environment();
        let sent = BootTime(1_000_000_000);
        let answered = sent.after(Duration::from_secs(3));
        let until = lease_until(rules, sent, answered, Duration::from_secs(8));
        // The leader has received it after it was sent, and ends the session no earlier than a lease after that.
        assert_eq!(until, sent.after(Duration::from_secs(8)));
    }
}
