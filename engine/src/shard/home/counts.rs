//! How many connections of a room are on which shard.

use crate::ids::ShardId;

/// Connections by shard. Those of nearly all rooms, users' above all, are on one: then no list of all shards is needed.
#[derive(Debug)]
pub(super) enum Counts {
    One {
        shard: ShardId,
        count: u32,
    },
    /// By shard.
    Many(Box<[u32]>),
}

impl Counts {
    pub(super) const NONE: Counts = Counts::One { shard: ShardId(0), count: 0 };

    pub(super) fn of(&self, shard: ShardId) -> u32 {
        match self {
            Counts::One { shard: only, count } if *only == shard => *count,
            Counts::One { .. } => 0,
            Counts::Many(counts) => counts[usize::from(shard.0)],
        }
    }

    /// One more on a shard; `shards` is how many the process has.
    pub(super) fn add(&mut self, shard: ShardId, shards: usize) {
        match self {
            Counts::One { shard: only, count } if *only == shard => *count += 1,
            Counts::One { count: 0, .. } => *self = Counts::One { shard, count: 1 },
            Counts::One { shard: other, count } => {
                let mut counts = vec![0; shards].into_boxed_slice();
                (counts[usize::from(other.0)], counts[usize::from(shard.0)]) = (*count, 1);
                *self = Counts::Many(counts);
            }
            Counts::Many(counts) => counts[usize::from(shard.0)] += 1,
        }
    }

    /// One less on a shard that has some.
    pub(super) fn sub(&mut self, shard: ShardId) {
        match self {
            Counts::One { count, .. } => *count -= 1,
            Counts::Many(counts) => counts[usize::from(shard.0)] -= 1,
        }
    }

    /// The shards that have some.
    pub(super) fn holders(&self) -> impl Iterator<Item = ShardId> {
        let (one, many) = match self {
            Counts::One { shard, count } => ((*count > 0).then_some(*shard), &[][..]),
            Counts::Many(counts) => (None, &counts[..]),
        };
        one.into_iter().chain(many.iter().enumerate().filter(|(_, count)| **count > 0).map(|(shard, _)| ShardId(shard as u8)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_the_same_for_one_shard_and_for_many() {
        let mut counts = Counts::NONE;
        let shown = |counts: &Counts| {
            let holders: Vec<u8> = counts.holders().map(|shard| shard.0).collect();
            (holders, [0, 1, 2].map(|shard| counts.of(ShardId(shard))))
        };
        assert_eq!(shown(&counts), (vec![], [0, 0, 0]));
        counts.add(ShardId(2), 3);
        counts.add(ShardId(2), 3);
        assert_eq!(shown(&counts), (vec![2], [0, 0, 2]));
        counts.add(ShardId(0), 3);
        counts.sub(ShardId(2));
        assert_eq!(shown(&counts), (vec![0, 2], [1, 0, 1]));
        counts.sub(ShardId(0));
        assert_eq!(shown(&counts), (vec![2], [0, 0, 1]));
        let mut moved = Counts::NONE;
        moved.add(ShardId(1), 3);
        moved.sub(ShardId(1));
        moved.add(ShardId(0), 3);
        assert_eq!(shown(&moved), (vec![0], [1, 0, 0]));
    }
}
