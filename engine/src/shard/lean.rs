//! Lists that cost a connection little while they are short: one with a few places of its own, and one that is nearly always empty.

use std::ops::{Deref, DerefMut};

/// A list with `N` places of its own; only one that has been longer has a block.
#[derive(Clone, Debug)]
pub(crate) enum Few<T, const N: usize> {
    /// The first `count` places are its entries.
    Own {
        count: u8,
        places: [T; N],
    },
    Many(Vec<T>),
}

impl<T: Copy + Default, const N: usize> Few<T, N> {
    pub(crate) fn new() -> Self {
        const { assert!(N <= u8::MAX as usize) };
        Few::Own { count: 0, places: [T::default(); N] }
    }

    pub(crate) fn push(&mut self, entry: T) {
        match self {
            Few::Many(entries) => entries.push(entry),
            Few::Own { count, places } if usize::from(*count) < N => {
                places[usize::from(*count)] = entry;
                *count += 1;
            }
            Few::Own { places, .. } => *self = Few::Many(places.iter().copied().chain([entry]).collect()),
        }
    }

    /// Takes an entry away; the last one takes its place.
    pub(crate) fn swap_remove(&mut self, index: usize) -> T {
        match self {
            Few::Many(entries) => entries.swap_remove(index),
            Few::Own { count, places } => {
                let last = usize::from(*count) - 1;
                places[..=last].swap(index, last);
                *count -= 1;
                places[last]
            }
        }
    }

    /// Takes an entry away if it is there; the others keep their order.
    pub(crate) fn remove(&mut self, entry: T)
    where
        T: PartialEq,
    {
        let Some(index) = self.iter().position(|other| *other == entry) else { return };
        match self {
            Few::Many(entries) => drop(entries.remove(index)),
            Few::Own { count, places } => {
                places[index..usize::from(*count)].rotate_left(1);
                *count -= 1;
            }
        }
    }
}

impl<T, const N: usize> Deref for Few<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Few::Own { count, places } => &places[..usize::from(*count)],
            Few::Many(entries) => entries,
        }
    }
}

impl<T, const N: usize> DerefMut for Few<T, N> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Few::Own { count, places } => &mut places[..usize::from(*count)],
            Few::Many(entries) => entries,
        }
    }
}

/// A list that is nearly always empty, and then nothing but a pointer.
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "an empty `Vec` is three words in a record of which there are a million")]
pub(crate) struct Seldom<T>(Option<Box<Vec<T>>>);

impl<T> Seldom<T> {
    pub(crate) fn new() -> Self {
        Seldom(None)
    }

    /// The list, to be changed; [`Self::tidy`] when it may have become empty.
    pub(crate) fn list(&mut self) -> &mut Vec<T> {
        self.0.get_or_insert_default()
    }

    /// Lets go of the block of an empty list.
    pub(crate) fn tidy(&mut self) {
        self.0.take_if(|list| list.is_empty());
    }

    /// Bytes of its block.
    pub(crate) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |list| list.capacity() * size_of::<T>())
    }

    pub(crate) fn push(&mut self, entry: T) {
        self.list().push(entry);
    }

    pub(crate) fn swap_remove(&mut self, index: usize) -> T {
        let entry = self.list().swap_remove(index);
        self.tidy();
        entry
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        if let Some(list) = &mut self.0 {
            list.retain(keep);
            self.tidy();
        }
    }

    /// All entries; none are left.
    pub(crate) fn take(&mut self) -> Vec<T> {
        self.0.take().map_or_else(Vec::new, |list| *list)
    }
}

impl<T> From<Vec<T>> for Seldom<T> {
    fn from(list: Vec<T>) -> Self {
        Seldom((!list.is_empty()).then(|| Box::new(list)))
    }
}

impl<T> Deref for Seldom<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_ref().map_or(&[], |list| list)
    }
}

impl<T> DerefMut for Seldom<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0.as_mut().map_or(&mut [], |list| list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_as_many_are() {
        let (mut few, mut vec) = (Few::<u32, 3>::new(), Vec::new());
        let mut same = |change: &dyn Fn(&mut Few<u32, 3>, &mut Vec<u32>)| {
            change(&mut few, &mut vec);
            assert_eq!(*few, *vec);
        };
        for remove in [0, 1, 2] {
            for entry in [1, 2, 3] {
                same(&|few, vec| {
                    few.push(entry);
                    vec.push(entry);
                });
            }
            same(&|few, vec| assert_eq!(few.swap_remove(remove), vec.swap_remove(remove)));
            for entry in [2, 9, 3, 1] {
                same(&|few, vec| {
                    few.remove(entry);
                    vec.retain(|other| *other != entry);
                });
            }
        }
        for entry in 0..9 {
            same(&|few, vec| {
                few.push(entry);
                vec.push(entry);
            });
        }
        same(&|few, vec| assert_eq!(few.swap_remove(4), vec.swap_remove(4)));
        same(&|few, vec| {
            few.remove(7);
            vec.retain(|other| *other != 7);
        });
    }

    #[test]
    fn an_empty_list_has_no_block() {
        let mut list = Seldom::new();
        list.retain(|_: &u8| true);
        assert!(list.0.is_none() && list.is_empty() && list.take().is_empty());
        list.push(1);
        list.push(2);
        assert_eq!((list.swap_remove(0), &list[..]), (1, &[2][..]));
        list.retain(|_| false);
        assert!(list.0.is_none());
        list.push(3);
        assert_eq!((list.take(), list.0.is_none(), size_of::<Seldom<u64>>()), (vec![3], true, 8));
    }
}
