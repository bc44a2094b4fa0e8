//! Requests to mounts that end with their clients: whoever waits for the answer of one that has died is told at once, and
//! not only when a frame has waited in vain.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lockd::ids::{ClientId, SessionId};
use lockd::network::{Carrier, CarrierError, OnReply};
use parking_lot::Mutex;

/// How many ended clients are remembered; they come back to nobody's mind but that of a late request.
const ENDED_MAX: usize = 65_536;

/// One who may end.
type Peer = (SessionId, ClientId);

#[derive(Default)]
struct State {
    last: u64,
    open: HashMap<u64, (Peer, OnReply)>,
    sessions: HashSet<SessionId>,
    clients: HashSet<ClientId>,
}

impl State {
    fn has_ended(&self, (session, client): Peer) -> bool {
        self.sessions.contains(&session) || self.clients.contains(&client)
    }
}

/// Who has ended, and which requests to others are under way.
#[derive(Default)]
pub(super) struct Mortality(Mutex<State>);

impl fmt::Debug for Mortality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        f.debug_struct("Mortality")
            .field("under_way", &state.open.len())
            .field("ended", &(state.sessions.len() + state.clients.len()))
            .finish()
    }
}

impl Mortality {
    /// Whether the client, or its session, is known to have ended.
    pub(super) fn has_ended(&self, peer: Peer) -> bool {
        self.0.lock().has_ended(peer)
    }

    /// Notes that a session has ended. Returns the requests that are in vain from now on: they are to be told.
    #[must_use]
    pub(super) fn end_session(&self, session: SessionId) -> Vec<OnReply> {
        self.end(|state| bounded(&mut state.sessions).extend([session]))
    }

    /// The same of a client.
    #[must_use]
    pub(super) fn end_client(&self, client: ClientId) -> Vec<OnReply> {
        self.end(|state| bounded(&mut state.clients).extend([client]))
    }

    fn end(&self, note: impl FnOnce(&mut State)) -> Vec<OnReply> {
        let mut state = self.0.lock();
        note(&mut state);
        let State { open, sessions, clients, .. } = &mut *state;
        let in_vain = open
            .extract_if(|_, ((session, client), _)| sessions.contains(session) || clients.contains(client));
        in_vain.map(|(_, (_, on_reply))| on_reply).collect()
    }

    fn begin(&self, peer: Peer, on_reply: OnReply) -> Result<u64, OnReply> {
        let mut state = self.0.lock();
        if state.has_ended(peer) {
            return Err(on_reply);
        }
        state.last += 1;
        let number = state.last;
        state.open.insert(number, (peer, on_reply));
        Ok(number)
    }

    fn take(&self, number: u64) -> Option<OnReply> {
        self.0.lock().open.remove(&number).map(|(_, on_reply)| on_reply)
    }
}

/// Makes room for one more.
fn bounded<T>(set: &mut HashSet<T>) -> &mut HashSet<T> {
    if set.len() >= ENDED_MAX {
        set.clear();
    }
    set
}

/// What is told to whoever waits for one who has ended: it looks how his session stands, and who serves now.
pub(super) fn gone() -> CarrierError {
    CarrierError::TimedOut(Duration::ZERO)
}

/// A way to one client, as long as it lives.
#[derive(Debug)]
pub(super) struct Mortal {
    pub(super) way: Arc<dyn Carrier>,
    pub(super) peer: Peer,
    pub(super) mortality: Arc<Mortality>,
}

impl Carrier for Mortal {
    fn request(&self, frame: Vec<u8>, on_reply: OnReply) {
        match self.mortality.begin(self.peer, on_reply) {
            Ok(number) => {
                let mortality = Arc::clone(&self.mortality);
                self.way.request(
                    frame,
                    Box::new(move |reply| {
                        // An answer that comes after its sender's end is nobody's.
                        if let Some(on_reply) = mortality.take(number) {
                            on_reply(reply);
                        }
                    }),
                );
            }
            Err(on_reply) => on_reply(Err(gone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Keeps what it is given.
    #[derive(Default)]
    struct Silent(Mutex<Vec<OnReply>>);

    impl fmt::Debug for Silent {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Silent")
        }
    }

    impl Carrier for Silent {
        fn request(&self, _frame: Vec<u8>, on_reply: OnReply) {
            self.0.lock().push(on_reply);
        }
    }

    type Told = Receiver<Result<Vec<u8>, CarrierError>>;

    fn ask(mortality: &Arc<Mortality>, way: &Arc<Silent>, peer: Peer) -> Told {
        let (sender, receiver) = channel();
        let (way, mortality) = (Arc::clone(way) as Arc<dyn Carrier>, Arc::clone(mortality));
        let carrier = Mortal { way, peer, mortality };
        carrier.request(Vec::new(), Box::new(move |reply| drop(sender.send(reply))));
        receiver
    }

    #[test]
    fn who_waits_for_one_that_ends_is_told_at_once_and_once() {
        let (mortality, way) = (Arc::<Mortality>::default(), Arc::<Silent>::default());
        let peers = [(SessionId(1), ClientId(1)), (SessionId(1), ClientId(2)), (SessionId(2), ClientId(3))];
        let told = peers.map(|peer| ask(&mortality, &way, peer));
        let tell = |in_vain: Vec<OnReply>| in_vain.into_iter().for_each(|on_reply| on_reply(Err(gone())));
        tell(mortality.end_client(ClientId(2)));
        assert!(told[0].try_recv().is_err() && told[2].try_recv().is_err());
        assert_eq!(told[1].try_recv(), Ok(Err(gone())));
        tell(mortality.end_session(SessionId(1)));
        assert_eq!(told[0].try_recv(), Ok(Err(gone())));
        // What comes later is for nobody, or in vain.
        for on_reply in std::mem::take(&mut *way.0.lock()) {
            on_reply(Ok(vec![7]));
        }
        assert!(told[0].try_recv().is_err() && told[1].try_recv().is_err());
        assert_eq!(told[2].try_recv(), Ok(Ok(vec![7])));
        assert_eq!(ask(&mortality, &way, peers[1]).try_recv(), Ok(Err(gone())));
        assert!(way.0.lock().is_empty() && mortality.has_ended(peers[0]) && !mortality.has_ended(peers[2]));
    }
}
