//! What the leader does beside leading: it hears the sessions, ends the lapsed ones, and lets time pass (L1, L4).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::control::Told;
use super::voter::{Voter, told};
use crate::clock::Clock;
use crate::ids::SessionId;
use crate::machine::{Command, EndCause, Lapse, Reply, Settings, decode_reply, encode_command};
use crate::raft::Leadership;
use crate::rules::{Rule, Rules};

/// How often the leader looks at the sessions.
const LOOK: Duration = Duration::from_millis(100);
/// A longer time between two looks is a gap in the leader's own clock: it then waits a full lease again (L1).
const GAP_MAX: Duration = Duration::from_secs(2);

/// The leader's duties, on a voter. They rest while another leads.
#[derive(Debug)]
pub(super) struct Office {
    voter: Arc<Voter>,
    clock: Arc<dyn Clock>,
    rules: Rules,
    settings: Settings,
    state: Mutex<Option<Term>>,
}

/// One term of office. Nothing of it is known to the next.
#[derive(Debug)]
struct Term {
    number: u64,
    lapse: Lapse,
    /// Sessions whose end was proposed and is not known to have failed: their keep-alives are not answered.
    ending: BTreeSet<SessionId>,
    configured: bool,
}

impl Office {
    pub(super) fn new(voter: Arc<Voter>, clock: Arc<dyn Clock>, rules: Rules, settings: Settings) -> Self {
        Self { voter, clock, rules, settings, state: Mutex::new(None) }
    }

    /// Whether this node leads, as far as it knows.
    pub(super) fn leads(&self) -> bool {
        self.voter.raft.leadership().here
    }

    /// Answers a keep-alive: after a quorum has confirmed, since it was received, that this node leads (L4).
    pub(super) async fn keep_alive(&self, session: SessionId) -> Told {
        let leadership = self.voter.raft.leadership();
        if !leadership.here {
            return Told::NotLeader(leadership.leader);
        }
        let received = self.clock.boot();
        let term = {
            let mut state = self.state.lock();
            let term = self.term(&mut state, &leadership);
            // L1: it may end at any moment, and whoever is answered has a lease.
            if term.ending.contains(&session) {
                return Told::Unknown(format!("session {session} is being ended"));
            }
            term.lapse.heard(session, received);
            term.number
        };
        if let Err(error) = self.voter.raft.confirm_leader().await {
            return told(error);
        }
        let still = self
            .state
            .lock()
            .as_ref()
            .is_some_and(|now| now.number == term && !now.ending.contains(&session));
        if !still {
            return Told::Unknown("the leader's term has changed".to_owned());
        }
        self.voter.raft.peek(|replica| {
            if replica.state.live_sessions().any(|live| live == session) {
                Told::Alive { lease_ns: replica.state.settings().lease_ns }
            } else {
                Told::SessionOver
            }
        })
    }

    /// The term of office that `leadership` tells of: a new one has heard nobody yet.
    fn term<'a>(&self, state: &'a mut Option<Term>, leadership: &Leadership) -> &'a mut Term {
        if state.as_ref().is_none_or(|term| term.number != leadership.term) {
            let lease_ns = self.voter.raft.peek(|replica| replica.state.settings().lease_ns);
            let lease = Duration::from_nanos(lease_ns.max(self.settings.lease_ns));
            let lapse = Lapse::new(lease, GAP_MAX, self.clock.boot());
            *state =
                Some(Term { number: leadership.term, lapse, ending: BTreeSet::new(), configured: false });
        }
        state.as_mut().expect("set above")
    }

    /// Does the leader's duties for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let mut changes = self.voter.raft.watch_leadership();
        loop {
            // Whichever comes first: a new leader takes office at once.
            let _ = tokio::time::timeout(LOOK, changes.changed()).await;
            let leadership = self.voter.raft.leadership();
            if leadership.here {
                self.look(&leadership).await;
            } else {
                *self.state.lock() = None;
            }
        }
    }

    async fn look(self: &Arc<Self>, leadership: &Leadership) {
        let now_ns = self.voter.raft.now_ns();
        let (live, settings, wakes_at_ns, overdue) = self.voter.raft.peek(|replica| {
            let state = &replica.state;
            let settings = state.settings();
            let overdue = state.overdue_reporters(now_ns, settings.lease_ns);
            (state.live_sessions().collect::<Vec<_>>(), settings, state.wakes_at_ns(), overdue)
        });
        let now = self.clock.boot();
        let quorum = self.voter.raft.leads_with_quorum();
        let (lapsed, silent, configured) = {
            let mut state = self.state.lock();
            let term = self.term(&mut state, leadership);
            term.lapse.set_lease(Duration::from_nanos(settings.lease_ns));
            term.ending.retain(|session| live.contains(session));
            if !quorum {
                term.lapse.without_quorum(self.rules, now);
            }
            let lapsed = term.lapse.look(self.rules, now, live.iter().copied());
            let lapsed: Vec<_> = lapsed.into_iter().filter(|session| term.ending.insert(*session)).collect();
            // F1: who does not report about a fence for a whole lease is fenced itself.
            let silent = overdue.into_iter().filter(|_| quorum && self.rules.keeps(Rule::F1));
            let silent: Vec<_> = silent.filter(|session| term.ending.insert(*session)).collect();
            (lapsed, silent, term.configured)
        };
        if !configured {
            self.configure(leadership.term, settings).await;
        }
        let lapsed = lapsed.into_iter().map(|session| (session, EndCause::Lapsed));
        let silent = silent.into_iter().map(|session| (session, EndCause::Forced));
        for (session, cause) in lapsed.chain(silent) {
            let office = Arc::clone(self);
            let term = leadership.term;
            tokio::spawn(async move { office.end(term, session, cause).await });
        }
        if wakes_at_ns.is_some_and(|at| at <= self.voter.raft.now_ns()) {
            // If it is not applied, the next look proposes it again.
            let _ = self.propose(&Command::Tick).await;
        }
    }

    /// Ends a session by an entry of the log.
    async fn end(&self, term: u64, session: SessionId, cause: EndCause) {
        let why = match cause {
            EndCause::Lapsed => "nothing was heard of the session for a full lease; it is ended",
            _ => {
                "the session has not reported for a full lease that it refuses who is being fenced; it is ended"
            }
        };
        tracing::warn!(%session, "{why}");
        let told = self.propose(&Command::EndSession { session, cause }).await;
        let surely_not = matches!(told, Told::NotLeader(_) | Told::NoQuorum(_) | Told::Refused(_));
        let mut state = self.state.lock();
        // Otherwise the mark stays until the state shows the end, or the term is over: until then it may come.
        if surely_not && let Some(now) = state.as_mut().filter(|now| now.number == term) {
            now.ending.remove(&session);
        }
    }

    /// Makes the cluster file's times the cluster's, before any session is opened in this term.
    async fn configure(&self, term: u64, now: Settings) {
        if now != self.settings {
            match self.propose(&Command::Configure(self.settings)).await {
                Told::Replied(reply) => {
                    if let Ok(Reply::Refused(refusal)) = decode_reply(&reply) {
                        tracing::warn!(%refusal, "the times of the cluster file are not in force");
                    }
                }
                // The next look tries again.
                _ => return,
            }
        }
        if let Some(current) = self.state.lock().as_mut().filter(|current| current.number == term) {
            current.configured = true;
        }
    }

    /// Whether the leader, which this node is, has done what comes before everything else.
    pub(super) fn is_ready(&self) -> bool {
        self.state.lock().as_ref().is_some_and(|term| term.configured)
    }

    async fn propose(&self, command: &Command) -> Told {
        match encode_command(command) {
            Ok(command) => self.voter.propose(command).await,
            Err(error) => Told::Refused(error.to_string()),
        }
    }
}
