//! Records of rooms, found by name or slot. The index has slots and no names: a hash table is up to half empty, and a slot is all that is empty then.

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::chunks::Chunks;
use crate::ids::Room;

/// Records by room.
#[derive(Debug)]
pub(crate) struct Named<T> {
    entries: Chunks<Option<Entry<T>>>,
    free: Vec<u32>,
    index: HashTable<u32>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Entry<T> {
    room: Room,
    value: T,
}

impl<T> Named<T> {
    pub(crate) fn new() -> Self {
        Named { entries: Chunks::new(), free: Vec::new(), index: HashTable::new(), hasher: RandomState::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// The slot of a room's record, its own for as long as there is one.
    pub(crate) fn find(&self, room: &Room) -> Option<u32> {
        self.index.find(self.hasher.hash_one(room), |slot| self.room(*slot) == Some(room)).copied()
    }

    pub(crate) fn contains(&self, room: &Room) -> bool {
        self.find(room).is_some()
    }

    /// The room of a slot.
    pub(crate) fn room(&self, slot: u32) -> Option<&Room> {
        self.entries.get(slot)?.as_ref().map(|entry| &entry.room)
    }

    pub(crate) fn at(&self, slot: u32) -> Option<&T> {
        self.entries.get(slot)?.as_ref().map(|entry| &entry.value)
    }

    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.entries.get_mut(slot)?.as_mut().map(|entry| &mut entry.value)
    }

    pub(crate) fn get(&self, room: &Room) -> Option<&T> {
        self.at(self.find(room)?)
    }

    pub(crate) fn get_mut(&mut self, room: &Room) -> Option<&mut T> {
        self.at_mut(self.find(room)?)
    }

    /// Puts the record of a room that has none, and returns its slot.
    pub(crate) fn insert(&mut self, room: Room, value: T) -> u32 {
        debug_assert!(!self.contains(&room), "one record each");
        let hash = self.hasher.hash_one(&room);
        let entry = Some(Entry { room, value });
        let slot = match self.free.pop() {
            Some(slot) => {
                if let Some(place) = self.entries.get_mut(slot) {
                    *place = entry;
                }
                slot
            }
            None => self.entries.push(entry),
        };
        let (entries, hasher) = (&self.entries, &self.hasher);
        let hash_of = |slot: &u32| entries.get(*slot).and_then(Option::as_ref).map_or(0, |entry| hasher.hash_one(&entry.room));
        self.index.insert_unique(hash, slot, hash_of);
        slot
    }

    pub(crate) fn remove(&mut self, room: &Room) -> Option<T> {
        let entries = &self.entries;
        let is_it = |slot: &u32| entries.get(*slot).and_then(Option::as_ref).is_some_and(|entry| entry.room == *room);
        let (slot, _) = self.index.find_entry(self.hasher.hash_one(room), is_it).ok()?.remove();
        self.free.push(slot);
        self.entries.get_mut(slot)?.take().map(|entry| entry.value)
    }

    /// All rooms, in no order.
    pub(crate) fn rooms(&self) -> impl Iterator<Item = &Room> {
        self.entries.iter().flatten().map(|entry| &entry.room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::EndpointId;

    #[test]
    fn records_are_found_by_name_and_slot_until_they_are_removed() {
        let mut named = Named::new();
        let room = |n: u32| Room::named(EndpointId(0), &n.to_string());
        let slots: Vec<u32> = (0..1_000).map(|n| named.insert(room(n), n)).collect();
        for n in (0..1_000).step_by(2) {
            assert_eq!(named.remove(&room(n)), Some(n));
        }
        assert_eq!((named.remove(&room(0)), named.get(&room(2)), named.len()), (None, None, 500));
        for n in (1..1_000).step_by(2) {
            *named.get_mut(&room(n)).expect("it stays") += 1;
            assert_eq!((named.find(&room(n)), named.at(slots[n as usize])), (Some(slots[n as usize]), Some(&(n + 1))));
        }
        assert!(slots.contains(&named.insert(room(0), 7)), "slots are reused");
        assert_eq!((named.rooms().count(), named.get(&room(0))), (501, Some(&7)));
        assert!(!named.contains(&Room::named(EndpointId(1), "0")), "another endpoint's");
    }
}
