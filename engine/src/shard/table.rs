//! A table whose slots are reused: each use has a generation, so that a late message for an entry that is gone cannot reach its successor.

use super::chunks::Chunks;

/// What knows its own generation, so that the table needs no place for it.
pub(crate) trait Record {
    fn generation(&self) -> u32;
}

/// Entries by slot.
#[derive(Debug)]
pub(crate) struct Table<T> {
    slots: Chunks<Slot<T>>,
    free: Vec<u32>,
    len: usize,
}

#[derive(Debug)]
enum Slot<T> {
    /// With the generation of the last entry.
    Vacant(u32),
    Used(T),
}

impl<T> Slot<T> {
    fn value(&self) -> Option<&T> {
        if let Slot::Used(value) = self { Some(value) } else { None }
    }
}

impl<T: Record> Table<T> {
    pub(crate) fn new() -> Self {
        Table { slots: Chunks::new(), free: Vec::new(), len: 0 }
    }

    /// Puts the value that `make` builds for its slot and generation; `None` when `slots_max` are in use.
    pub(crate) fn insert(&mut self, slots_max: usize, make: impl FnOnce(u32, u32) -> T) -> Option<(u32, u32)> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < slots_max => self.slots.push(Slot::Vacant(0)),
            None => return None,
        };
        let generation = self.generation(slot).wrapping_add(1);
        let value = make(slot, generation);
        debug_assert_eq!(value.generation(), generation, "a record has the generation that it was given");
        *self.slots.get_mut(slot)? = Slot::Used(value);
        self.len += 1;
        Some((slot, generation))
    }

    /// The slot that the next insertion takes.
    pub(crate) fn next_slot(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.slots.len() as u32)
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let entry = self.slots.get_mut(slot)?;
        let generation = entry.value()?.generation();
        let Slot::Used(value) = std::mem::replace(entry, Slot::Vacant(generation)) else { return None };
        self.free.push(slot);
        self.len -= 1;
        Some(value)
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.slots.get(slot)?.value()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        match self.slots.get_mut(slot)? {
            Slot::Used(value) => Some(value),
            Slot::Vacant(_) => None,
        }
    }

    /// The slot's entry, if it is still the one of that generation.
    pub(crate) fn get_mut_of(&mut self, slot: u32, generation: u32) -> Option<&mut T> {
        self.get_mut(slot).filter(|value| value.generation() == generation)
    }

    /// True exactly when the slot still holds the entry of that generation.
    pub(crate) fn holds(&self, slot: u32, generation: u32) -> bool {
        self.get(slot).is_some_and(|value| value.generation() == generation)
    }

    /// Generation of the slot's present or last entry.
    pub(crate) fn generation(&self, slot: u32) -> u32 {
        match self.slots.get(slot) {
            Some(Slot::Used(value)) => value.generation(),
            Some(Slot::Vacant(generation)) => *generation,
            None => 0,
        }
    }

    /// How often the slot was used that was used most.
    pub(crate) fn generations(&self) -> u32 {
        (0..self.slots.len() as u32).map(|slot| self.generation(slot)).max().unwrap_or(0)
    }

    /// Puts records into their slots, for an empty table; whoever comes later is told from all that were in one before.
    pub(crate) fn restore(&mut self, records: Vec<(u32, T)>, generations: u32) {
        let slots = records.iter().map(|(slot, _)| *slot as usize + 1).max().unwrap_or(0);
        while self.slots.len() < slots {
            self.slots.push(Slot::Vacant(generations));
        }
        for (slot, record) in records {
            if let Some(place) = self.slots.get_mut(slot) {
                *place = Slot::Used(record);
                self.len += 1;
            }
        }
        // The first to be used again is the first there is.
        self.free = (0..slots as u32).rev().filter(|slot| self.get(*slot).is_none()).collect();
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first used slot that is not below `slot`.
    pub(crate) fn next_from(&self, slot: u32) -> Option<u32> {
        (slot..self.slots.len() as u32).find(|slot| self.get(*slot).is_some())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, entry)| entry.value().map(|value| (slot as u32, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Record for (&str, u32) {
        fn generation(&self) -> u32 {
            self.1
        }
    }

    #[test]
    fn a_reused_slot_is_told_from_its_predecessor() {
        let mut table = Table::new();
        let (slot, first) = table.insert(1, |_, generation| ("a", generation)).expect("room for one");
        assert!(table.insert(1, |_, generation| ("b", generation)).is_none(), "full");
        assert_eq!(table.remove(slot), Some(("a", first)));
        assert_eq!((table.remove(slot), table.generation(slot)), (None, first));
        let (again, second) = table.insert(1, |_, generation| ("c", generation)).expect("freed");
        assert_eq!(again, slot);
        assert!(!table.holds(slot, first) && table.holds(slot, second));
        assert_eq!((table.get_mut_of(slot, first).is_none(), table.len()), (true, 1));
    }
}
