//! A table whose slots are reused: each use has a generation, so that a late message for an entry that is gone cannot reach its successor.

/// Entries by slot.
#[derive(Debug)]
pub(crate) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Table<T> {
    pub(crate) fn new() -> Self {
        Table { slots: Vec::new(), free: Vec::new(), len: 0 }
    }

    /// Puts the value that `make` builds for its slot and generation; `None` when `slots_max` are in use.
    pub(crate) fn insert(&mut self, slots_max: usize, make: impl FnOnce(u32, u32) -> T) -> Option<(u32, u32)> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < slots_max => {
                self.slots.push(Slot { generation: 0, value: None });
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.value = Some(make(slot, entry.generation));
        self.len += 1;
        Some((slot, entry.generation))
    }

    /// The slot that the next insertion takes.
    pub(crate) fn next_slot(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.slots.len() as u32)
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let value = self.slots.get_mut(slot as usize)?.value.take()?;
        self.free.push(slot);
        self.len -= 1;
        Some(value)
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.slots.get(slot as usize)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.slots.get_mut(slot as usize)?.value.as_mut()
    }

    /// The slot's entry, if it is still the one of that generation.
    pub(crate) fn get_mut_of(&mut self, slot: u32, generation: u32) -> Option<&mut T> {
        let entry = self.slots.get_mut(slot as usize)?;
        if entry.generation == generation { entry.value.as_mut() } else { None }
    }

    /// True exactly when the slot still holds the entry of that generation.
    pub(crate) fn holds(&self, slot: u32, generation: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|entry| entry.generation == generation && entry.value.is_some())
    }

    /// Generation of the slot's present or last entry.
    pub(crate) fn generation(&self, slot: u32) -> u32 {
        self.slots.get(slot as usize).map_or(0, |entry| entry.generation)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first used slot that is not below `slot`.
    pub(crate) fn next_from(&self, slot: u32) -> Option<u32> {
        (slot..self.slots.len() as u32).find(|slot| self.slots[*slot as usize].value.is_some())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, entry)| entry.value.as_ref().map(|value| (slot as u32, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_is_told_from_its_predecessor() {
        let mut table = Table::new();
        let (slot, first) = table.insert(1, |_, _| "a").expect("room for one");
        assert!(table.insert(1, |_, _| "b").is_none(), "full");
        assert_eq!(table.remove(slot), Some("a"));
        assert_eq!(table.remove(slot), None);
        let (again, second) = table.insert(1, |_, _| "c").expect("freed");
        assert_eq!(again, slot);
        assert!(!table.holds(slot, first) && table.holds(slot, second));
        assert_eq!((table.get_mut_of(slot, first).is_none(), table.len()), (true, 1));
    }
}
