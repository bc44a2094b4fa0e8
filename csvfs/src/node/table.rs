//! A concurrent map whose guards stay inside.

use std::hash::Hash;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// Values are handed out as clones (`Arc`s), so that nobody holds a shard's lock over a second access.
pub(super) struct Table<K, V>(DashMap<K, V>);

impl<K: Eq + Hash + Copy, V: Clone> Table<K, V> {
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

    pub(super) fn values(&self) -> Vec<V> {
        self.0.iter().map(|entry| entry.value().clone()).collect()
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
