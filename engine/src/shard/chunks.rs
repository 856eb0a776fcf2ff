//! A list that grows by blocks and never moves what it has: a doubled `Vec` of records leaves up to half of itself unused, and moves all of them.

/// Entries of a block: some 20 kB of links or connections, so that what is unused is little beside a thousand of them.
const BLOCK: usize = 128;

/// Entries by number.
#[derive(Debug)]
pub(crate) struct Chunks<T>(Vec<Vec<T>>);

impl<T> Chunks<T> {
    pub(crate) fn new() -> Self {
        Chunks(Vec::new())
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        // All blocks but the last are full.
        self.0.last().map_or(0, |last| (self.0.len() - 1) * BLOCK + last.len())
    }

    pub(crate) fn get(&self, at: u32) -> Option<&T> {
        self.0.get(at as usize / BLOCK)?.get(at as usize % BLOCK)
    }

    pub(crate) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.0.get_mut(at as usize / BLOCK)?.get_mut(at as usize % BLOCK)
    }

    /// Adds an entry and returns its number.
    pub(crate) fn push(&mut self, entry: T) -> u32 {
        let at = self.len();
        if at.is_multiple_of(BLOCK) {
            self.0.push(Vec::with_capacity(BLOCK));
        }
        if let Some(last) = self.0.last_mut() {
            last.push(entry);
        }
        at as u32
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_over_blocks() {
        let mut chunks = Chunks::new();
        for i in 0..3 * BLOCK as u32 {
            assert_eq!((chunks.len() as u32, chunks.get(i)), (i, None));
            assert_eq!(chunks.push(i), i);
        }
        *chunks.get_mut(BLOCK as u32).expect("it is there") += 1_000;
        let sum: u32 = (0..3 * BLOCK as u32).sum();
        assert_eq!((chunks.iter().sum::<u32>(), chunks.get(BLOCK as u32 - 1)), (sum + 1_000, Some(&(BLOCK as u32 - 1))));
    }
}
