//! What happened lately, in one numbered row: the newest push out the oldest. It knows no reader.

use std::collections::VecDeque;

use engine::event::{Event, EventType, EventTypes};

/// Bytes of an entry besides the texts it holds on to.
const ENTRY_BYTES: usize = size_of::<Told>() + 16;

/// One entry.
#[derive(Debug)]
pub(crate) enum Told {
    /// Something happened.
    Event(Event),
    /// So many things happened here of which nobody knows more, because a shard had no place for them.
    Dropped {
        /// How many.
        count: u64,
        /// When that was found, milliseconds since 1970.
        unix_ms: u64,
    },
    /// Before this, for a while or since ever, nobody asked for events of these types: some may be missing.
    Pause {
        /// The types.
        types: EventTypes,
        /// When it ended, milliseconds since 1970.
        unix_ms: u64,
    },
}

impl Told {
    /// Bytes it takes. Names and messages may be shared with others, but nobody knows for how long.
    fn bytes(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Told::Event(event) => {
                    event.bytes() + event.user.as_ref().map_or(0, |user| user.len()) + event.room.as_ref().map_or(0, |room| room.len())
                }
                Told::Dropped { .. } | Told::Pause { .. } => 0,
            }
    }
}

/// What so many entries tell of, from the first one of all: the difference of two is what lies between them.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Weight {
    /// Events, by [`EventType::index`].
    events: [u64; EventType::ALL.len()],
    /// What shards had no place for.
    dropped: u64,
    /// Pauses that concern a type, in the same order.
    pauses: [u64; EventType::ALL.len()],
}

/// What somebody missed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Missed {
    /// Events that were here.
    pub(crate) events: u64,
    /// And those that shards had no place for.
    pub(crate) dropped: u64,
    /// True exactly when there may be more.
    pub(crate) is_more: bool,
}

impl Weight {
    pub(crate) fn add(&mut self, told: &Told) {
        match told {
            Told::Event(event) => self.events[event.kind().index()] += 1,
            Told::Dropped { count, .. } => self.dropped += count,
            Told::Pause { types, .. } => {
                EventType::ALL.into_iter().filter(|kind| types.has(*kind)).for_each(|kind| self.pauses[kind.index()] += 1);
            }
        }
    }

    /// What lies between there and here for a reader of these types.
    pub(crate) fn since(&self, before: &Weight, types: EventTypes) -> Missed {
        let mut missed = Missed { dropped: self.dropped - before.dropped, ..Missed::default() };
        for kind in EventType::ALL.into_iter().filter(|kind| types.has(*kind)).map(EventType::index) {
            missed.events += self.events[kind] - before.events[kind];
            missed.is_more |= self.pauses[kind] > before.pauses[kind];
        }
        missed
    }
}

/// Bounds of a [`Journal`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Entries.
    pub events: usize,
    /// Bytes; the newest entry stays, however large.
    pub bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Journal {
    entries: VecDeque<Told>,
    /// Number of the first of them; numbers count from 1.
    first: u64,
    /// What made way.
    gone: Weight,
    /// Number of the last entry that made way and was no event.
    last_gap: u64,
    bytes: usize,
    bounds: Bounds,
}

impl Journal {
    /// An empty one whose first entry has this number.
    pub(crate) fn new(bounds: Bounds, first: u64) -> Journal {
        Journal { entries: VecDeque::new(), first, gone: Weight::default(), last_gap: 0, bytes: 0, bounds }
    }

    /// Adds the newest entry.
    pub(crate) fn push(&mut self, told: Told) {
        self.bytes += told.bytes();
        self.entries.push_back(told);
        while self.entries.len() > self.bounds.events.max(1) || (self.bytes > self.bounds.bytes && self.entries.len() > 1) {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= oldest.bytes();
            self.gone.add(&oldest);
            if !matches!(oldest, Told::Event(_)) {
                self.last_gap = self.first;
            }
            self.first += 1;
        }
    }

    /// Number of the oldest entry that is kept.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Number that the next entry will have.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// What made way.
    pub(crate) fn gone(&self) -> &Weight {
        &self.gone
    }

    /// What is before a number that is kept or the next one; a walk along the journal. `None` where nobody knows any more.
    pub(crate) fn before(&self, number: u64) -> Option<Weight> {
        let kept = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let mut weight = self.gone;
        self.entries.iter().take(kept).for_each(|told| weight.add(told));
        Some(weight)
    }

    /// What made way since a number, of whatever types, for who comes back from where nobody knows any more what it was.
    pub(crate) fn gone_since(&self, number: u64) -> Missed {
        Missed { events: self.first.saturating_sub(number), dropped: 0, is_more: self.last_gap >= number }
    }

    /// The entry of a number, if it is kept.
    pub(crate) fn get(&self, number: u64) -> Option<&Told> {
        self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(count: u64) -> Told {
        Told::Dropped { count, unix_ms: 0 }
    }

    #[test]
    fn numbers_go_on_while_the_oldest_make_way() {
        let mut journal = Journal::new(Bounds { events: 3, bytes: usize::MAX }, 1);
        assert_eq!((journal.first(), journal.next()), (1, 1));
        for count in 1..=5 {
            journal.push(dropped(count));
        }
        assert_eq!((journal.first(), journal.next()), (3, 6));
        let kept: Vec<_> =
            (0..7).filter(|number| matches!(journal.get(*number), Some(Told::Dropped { count, .. }) if count == number)).collect();
        assert_eq!(kept, [3, 4, 5]);
    }

    #[test]
    fn bytes_are_bounded_but_for_the_newest() {
        let message = |bytes: usize| {
            let what = engine::event::What::Message { message: "x".repeat(bytes).into() };
            Told::Event(Event {
                endpoint: engine::ids::EndpointId(0),
                connection: None,
                user: Some("u".into()),
                room: None,
                unix_ms: 0,
                what,
            })
        };
        let mut journal = Journal::new(Bounds { events: 100, bytes: 10_000 }, 1);
        for _ in 0..50 {
            journal.push(message(1_000));
            assert!(journal.bytes <= 10_000);
        }
        assert!(journal.entries.len() >= 7);
        journal.push(message(20_000));
        assert_eq!((journal.entries.len(), journal.first(), journal.next()), (1, 51, 52));
        journal.push(dropped(1));
        assert_eq!((journal.entries.len(), journal.bytes), (1, ENTRY_BYTES));
    }
}
