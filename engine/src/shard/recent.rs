//! A map that knows which of its entries is the oldest, so that whoever bounds it can forget that one first.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use foldhash::fast::RandomState;

/// Places in the order beyond twice the entries before it is looked through for those that are no longer true.
const ORDER_SLACK: usize = 64;

/// Entries in the order in which they were put in last.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    /// With the stamp of the entry's place in the order; a place with another stamp is out of date.
    entries: HashMap<K, (u64, V), RandomState>,
    order: VecDeque<(K, u64)>,
    stamps: u64,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Recent { entries: HashMap::default(), order: VecDeque::new(), stamps: 0 }
    }
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    /// Puts an entry in as the newest.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.stamps += 1;
        self.order.push_back((key.clone(), self.stamps));
        self.entries.insert(key, (self.stamps, value));
        if self.order.len() > 2 * self.entries.len() + ORDER_SLACK {
            let entries = &self.entries;
            self.order.retain(|(key, stamp)| entries.get(key).is_some_and(|(current, _)| current == stamp));
        }
    }

    /// All entries, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.order.iter().filter_map(|(key, stamp)| {
            let (current, value) = self.entries.get(key)?;
            (current == stamp).then_some((key, value))
        })
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    /// Forgets the oldest entry, if `is_due` says so, and returns it.
    pub(crate) fn pop_oldest_if(&mut self, is_due: impl Fn(&V) -> bool) -> Option<(K, V)> {
        while let Some((key, stamp)) = self.order.front() {
            let current = self.entries.get(key).filter(|(current, _)| current == stamp);
            match current {
                Some((_, value)) if !is_due(value) => return None,
                Some(_) => {
                    let (key, _) = self.order.pop_front()?;
                    let (_, value) = self.entries.remove(&key)?;
                    return Some((key, value));
                }
                None => drop(self.order.pop_front()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_what_was_put_in_again_is_new() {
        let mut recent = Recent::default();
        for key in ["a", "b", "c", "a"] {
            recent.insert(key, recent.len());
        }
        recent.remove(&"b");
        assert_eq!(recent.pop_oldest_if(|_| false), None);
        assert_eq!(recent.pop_oldest_if(|_| true), Some(("c", 2)));
        assert_eq!(recent.pop_oldest_if(|_| true), Some(("a", 3)));
        assert_eq!(recent.pop_oldest_if(|_| true), None);
    }

    #[test]
    fn coming_and_going_leaves_no_trace() {
        let mut recent = Recent::default();
        for _ in 0..10_000 {
            recent.insert("a", ());
            recent.remove(&"a");
        }
        recent.insert("b", ());
        assert!(recent.order.len() <= 2 + ORDER_SLACK, "{} places for one entry", recent.order.len());
    }
}
