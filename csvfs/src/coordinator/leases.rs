//! Which client may keep which names and attributes (V9): the table, without I/O.

use std::collections::{BTreeMap, HashMap};

use lockd::ids::ClientId;

use crate::proto::Key;

/// Leases that a client has at most; the oldest are taken back for new ones.
pub const LEASES_MAX: usize = 65_536;
/// Leases that are taken back at once when a client has too many.
const BATCH: usize = 256;

#[derive(Debug, Default)]
struct Held {
    /// Rising with time.
    next: u64,
    by_age: BTreeMap<u64, Key>,
    ages: HashMap<Key, u64>,
}

impl Held {
    fn remove(&mut self, key: &Key) {
        if let Some(age) = self.ages.remove(key) {
            self.by_age.remove(&age);
        }
    }
}

/// The table.
#[derive(Debug, Default)]
pub struct Leases {
    clients: HashMap<ClientId, Held>,
    by_key: HashMap<Key, Vec<ClientId>>,
}

impl Leases {
    /// `client` may have leases from now on; those that it had are over.
    pub fn begin(&mut self, client: ClientId) {
        self.end(client);
        self.clients.insert(client, Held::default());
    }

    /// `client` has no leases any more, and gets none.
    pub fn end(&mut self, client: ClientId) {
        let Some(held) = self.clients.remove(&client) else { return };
        for key in held.ages.keys() {
            self.drop_holder(key, client);
        }
    }

    /// Grants leases to `client`, if it may have some. `None` if not, or what has to be taken back from it for them.
    pub fn grant(&mut self, client: ClientId, keys: &[Key]) -> Option<Vec<Key>> {
        let held = self.clients.get_mut(&client)?;
        for key in keys {
            held.next += 1;
            let age = held.next;
            match held.ages.insert(key.clone(), age) {
                Some(before) => {
                    held.by_age.remove(&before);
                }
                None => self.by_key.entry(key.clone()).or_default().push(client),
            }
            held.by_age.insert(age, key.clone());
        }
        let mut back = Vec::new();
        if held.ages.len() > LEASES_MAX {
            while back.len() < BATCH
                && let Some((_, key)) = held.by_age.pop_first()
            {
                held.ages.remove(&key);
                back.push(key);
            }
            for key in &back {
                self.drop_holder(key, client);
            }
        }
        Some(back)
    }

    fn drop_holder(&mut self, key: &Key, client: ClientId) {
        if let Some(holders) = self.by_key.get_mut(key) {
            holders.retain(|holder| *holder != client);
            if holders.is_empty() {
                self.by_key.remove(key);
            }
        }
    }

    /// Takes the leases of `keys` back from all but `except`, who is told with its answer: who has to be told of which. It
    /// keeps its own, which does no harm: until its answer has arrived it does not know, and a change of another that
    /// comes in between must reach it.
    pub fn take(&mut self, keys: &[Key], except: Option<ClientId>) -> Vec<(ClientId, Vec<Key>)> {
        let mut told: Vec<(ClientId, Vec<Key>)> = Vec::new();
        for key in keys {
            for client in self.by_key.remove(key).unwrap_or_default() {
                if except == Some(client) {
                    self.by_key.insert(key.clone(), vec![client]);
                    continue;
                }
                if let Some(held) = self.clients.get_mut(&client) {
                    held.remove(key);
                }
                match told.iter_mut().find(|(known, _)| *known == client) {
                    Some((_, keys)) => keys.push(key.clone()),
                    None => told.push((client, vec![key.clone()])),
                }
            }
        }
        told
    }

    /// Whether `client` has the lease of `key`.
    pub fn holds(&self, client: ClientId, key: &Key) -> bool {
        self.by_key.get(key).is_some_and(|holders| holders.contains(&client))
    }

    /// How many leases `client` has.
    #[cfg(test)]
    pub fn count(&self, client: ClientId) -> usize {
        self.clients.get(&client).map_or(0, |held| held.ages.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Ino;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    #[test]
    fn who_has_a_lease_is_told_once_and_the_asker_not() {
        let mut leases = Leases::default();
        leases.begin(A);
        leases.begin(B);
        let key = Key::Attr(Ino(7));
        assert_eq!(leases.grant(A, std::slice::from_ref(&key)), Some(Vec::new()));
        leases.grant(B, std::slice::from_ref(&key));
        assert_eq!(leases.take(std::slice::from_ref(&key), Some(A)), [(B, vec![key.clone()])]);
        // Its answer may be on its way when the next change comes.
        assert_eq!(leases.take(std::slice::from_ref(&key), Some(B)), [(A, vec![key.clone()])]);
        assert_eq!(leases.take(std::slice::from_ref(&key), None), []);
        leases.end(B);
        assert_eq!(leases.grant(B, &[key]), None, "who is not attached gets none");
    }

    #[test]
    fn the_oldest_are_taken_back_at_the_bound() {
        let mut leases = Leases::default();
        leases.begin(A);
        for ino in 0..LEASES_MAX as u64 {
            assert_eq!(leases.grant(A, &[Key::Attr(Ino(ino))]), Some(Vec::new()));
        }
        // Used again: no longer the oldest.
        leases.grant(A, &[Key::Attr(Ino(0))]);
        let back = leases.grant(A, &[Key::Attr(Ino(1 << 40))]).unwrap();
        assert_eq!((back.len(), back[0].clone()), (BATCH, Key::Attr(Ino(1))));
        assert_eq!(leases.count(A), LEASES_MAX + 1 - BATCH);
        leases.end(A);
        assert!(leases.by_key.is_empty());
    }
}
