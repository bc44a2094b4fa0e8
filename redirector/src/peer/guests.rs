//! Those for whom a host executes requests. Pure.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use lockd::ids::{ClientId, NodeName, SessionId};
use lockd::machine::Victim;

/// A mount under a session.
pub(super) type Key = (SessionId, ClientId);

/// Whom a host serves, and whom not any more.
#[derive(Debug, Default)]
pub(super) struct Guests {
    known: HashMap<Key, Guest>,
    /// Sessions and clients that are never served again.
    refused: HashSet<Victim>,
    closed: bool,
}

#[derive(Debug)]
struct Guest {
    node: NodeName,
    /// The link in use.
    link: u64,
    in_flight: usize,
    /// What was changed by requests of unknown outcome.
    haunted: Vec<Range<u64>>,
}

impl Guests {
    /// Why `key` is not to be served, if so.
    fn refusal(&self, (session, client): Key) -> Option<String> {
        if self.closed {
            return Some("its mount is being closed".to_owned());
        }
        let gone = self.refused.contains(&Victim::Session(session))
            || self.refused.contains(&Victim::Client(client));
        gone.then(|| {
            format!("it refuses {session} and its {client}, which are being fenced or have been (F1)")
        })
    }

    /// Whether `key` of `node` has been admitted, and not been refused since.
    pub fn knows(&self, key: Key, node: &NodeName) -> bool {
        self.refusal(key).is_none() && self.known.get(&key).is_some_and(|guest| guest.node == *node)
    }

    /// `key` lives on `node`: it is served from now on, unless it was refused meanwhile.
    pub fn admit(&mut self, key: Key, node: &NodeName) -> Result<(), String> {
        if let Some(why) = self.refusal(key) {
            return Err(why);
        }
        let new = || Guest { node: node.clone(), link: 0, in_flight: 0, haunted: Vec::new() };
        self.known.entry(key).or_insert_with(new);
        Ok(())
    }

    /// `key` makes the link `link`: what comes by earlier ones is refused from now on.
    pub fn connect(&mut self, key: Key, link: u64) -> Result<(), String> {
        if let Some(why) = self.refusal(key) {
            return Err(why);
        }
        match self.known.get_mut(&key) {
            Some(guest) if guest.link < link => {
                guest.link = link;
                Ok(())
            }
            Some(guest) => Err(format!("link {link} is over: link {} has been made", guest.link)),
            None => Err("it was not admitted".to_owned()),
        }
    }

    /// A request of `key` begins, by `link`; by none of its links: one that only looks.
    pub fn enter(&mut self, key: Key, node: &NodeName, link: Option<u64>) -> Result<(), String> {
        if let Some(why) = self.refusal(key) {
            return Err(why);
        }
        let Some(guest) = self.known.get_mut(&key).filter(|guest| guest.node == *node) else {
            return Err("it was not admitted".to_owned());
        };
        if let Some(link) = link.filter(|link| *link != guest.link) {
            return Err(format!("link {link} is over: link {} has been made", guest.link));
        }
        guest.in_flight += 1;
        Ok(())
    }

    /// A request of `key` has ended; of one that changed `haunted` nobody knows how.
    pub fn leave(&mut self, key: Key, haunted: Option<Range<u64>>) {
        if let Some(guest) = self.known.get_mut(&key) {
            guest.in_flight = guest.in_flight.saturating_sub(1);
            guest.haunted.extend(haunted);
        }
    }

    /// Whether nothing of those guests that are `such` is in flight or may still land, when `ghosts` live.
    pub fn have_drained(&mut self, ghosts: &[Range<u64>], such: impl Fn(&Key) -> bool) -> bool {
        let lives = |range: &Range<u64>| {
            ghosts.iter().any(|ghost| ghost.start < range.end && range.start < ghost.end)
        };
        let mut drained = true;
        for (_, guest) in self.known.iter_mut().filter(|(key, _)| such(key)) {
            guest.haunted.retain(lives);
            drained &= guest.in_flight == 0 && guest.haunted.is_empty();
        }
        drained
    }

    /// `victim` is not served any more.
    pub fn refuse(&mut self, victim: Victim) {
        self.refused.insert(victim);
    }

    /// Forgets the guests that are `such` and are refused: they have drained.
    pub fn forget(&mut self, such: impl Fn(&Key) -> bool) {
        self.known.retain(|key, _| !such(key));
    }

    /// Nobody is served any more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether nobody is.
    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

/// Whether a guest is, or is under, `victim`.
pub(super) fn is_of(victim: Victim, (session, client): &Key) -> bool {
    match victim {
        Victim::Session(ended) => ended == *session,
        Victim::Client(ended) => ended == *client,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    const KEY: Key = (SessionId(1), ClientId(2));

    #[test]
    fn an_older_link_is_refused_and_what_was_in_flight_is_waited_for() {
        let mut guests = Guests::default();
        let (n1, n2) = ("n1".parse::<NodeName>().unwrap(), "n2".parse::<NodeName>().unwrap());
        assert!(guests.enter(KEY, &n1, Some(1)).is_err(), "not admitted");
        guests.admit(KEY, &n1).unwrap();
        guests.connect(KEY, 1).unwrap();
        assert!(guests.enter(KEY, &n2, Some(1)).is_err(), "of another node");
        guests.enter(KEY, &n1, Some(1)).unwrap();
        guests.enter(KEY, &n1, None).unwrap();
        guests.leave(KEY, None);
        guests.connect(KEY, 2).unwrap();
        assert!(guests.connect(KEY, 2).is_err() && guests.connect(KEY, 1).is_err());
        assert!(guests.enter(KEY, &n1, Some(1)).unwrap_err().contains("link 2 has been made"));
        assert!(!guests.have_drained(&[], |key| *key == KEY));
        guests.leave(KEY, Some(0..4096));
        let ghost = 2048..8192;
        assert!(!guests.have_drained(std::slice::from_ref(&ghost), |key| *key == KEY), "its ghost lives");
        assert!(guests.have_drained(&[], |key| *key == KEY));
        assert!(
            guests.have_drained(std::slice::from_ref(&ghost), |key| *key == KEY),
            "a later ghost is not its own"
        );
    }

    #[test]
    fn who_is_refused_stays_so_and_is_waited_for() {
        for victim in [Victim::Session(KEY.0), Victim::Client(KEY.1)] {
            let mut guests = Guests::default();
            let n1 = "n1".parse::<NodeName>().unwrap();
            guests.admit(KEY, &n1).unwrap();
            guests.enter(KEY, &n1, None).unwrap();
            guests.refuse(victim);
            assert!(!guests.knows(KEY, &n1));
            assert!(guests.enter(KEY, &n1, None).unwrap_err().contains("F1"));
            assert!(!guests.have_drained(&[], |key| is_of(victim, key)));
            guests.leave(KEY, None);
            assert!(guests.have_drained(&[], |key| is_of(victim, key)));
            guests.forget(|key| is_of(victim, key));
            assert!(guests.admit(KEY, &n1).is_err(), "also when it was asked about before it was refused");
        }
    }
}
