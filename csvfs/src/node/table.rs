//! A concurrent map whose guards stay inside.

use std::hash::Hash;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// Values are handed out as clones (`Arc`s), so that nobody holds a shard's lock over a second access.
pub(super) struct Table<K, V>(DashMap<K, V>);

impl<K: Ord + Hash + Copy, V: Clone> Table<K, V> {
    pub(super) fn new() -> Self {
        Self(DashMap::new())
    }

    pub(super) fn get(&self, key: K) -> Option<V> {
        self.0.get(&key).map(|value| value.clone())
    }

    /// The value of `key`, and whether `make` has just made it.
    pub(super) fn get_or_insert(&self, key: K, make: impl FnOnce() -> V) -> (V, bool) {
        match self.0.entry(key) {
            Entry::Occupied(entry) => (entry.get().clone(), false),
            Entry::Vacant(entry) => (entry.insert(make()).clone(), true),
        }
    }

    pub(super) fn insert(&self, key: K, value: V) {
        self.0.insert(key, value);
    }

    pub(super) fn remove(&self, key: K) -> Option<V> {
        self.0.remove(&key).map(|(_, value)| value)
    }

    /// All values, in the order of their keys: what a node does to all of its files it does in one order, everywhere.
    pub(super) fn values(&self) -> Vec<V> {
        let mut all: Vec<(K, V)> = self.0.iter().map(|entry| (*entry.key(), entry.value().clone())).collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all.into_iter().map(|(_, value)| value).collect()
    }

    /// Takes every value out.
    pub(super) fn take_all(&self) -> Vec<V> {
        let values = self.values();
        self.0.clear();
        values
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
