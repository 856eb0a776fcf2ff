//! What the stream of events held lately, in memory: every host reads all of it anyway, so who comes back to this one gets from here what he has
//! missed, without asking Redis for it again. It remembers; who is entitled to what it is told.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::ids::EndpointId;
use crate::shard::parcel::{Arrival, Target};
use crate::wire::sio::{EntryId, Offset};

/// Bytes that an event takes here besides its own.
const OVERHEAD_BYTES: usize = 256;

#[derive(Debug)]
struct Noted {
    id: EntryId,
    arrival: Arc<Arrival>,
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Journal {
    events: VecDeque<Noted>,
    bytes: usize,
    bytes_max: usize,
    /// Counts the events that have been forgotten.
    first: u64,
    places: HashMap<Offset, u64, RandomState>,
    /// Nothing is missing after this entry.
    floor: EntryId,
}

impl Journal {
    pub(super) fn new(bytes_max: usize) -> Journal {
        Journal { events: VecDeque::new(), bytes: 0, bytes_max, first: 0, places: HashMap::default(), floor: EntryId::default() }
    }

    /// What came before is not known, or is not worth anything any more: it begins anew, behind this entry.
    pub(super) fn begin(&mut self, floor: EntryId) {
        *self = Journal { floor, ..Journal::new(self.bytes_max) };
    }

    /// Something is missing before this entry. What came before it is known all the same, one by one.
    pub(super) fn note_gap(&mut self, id: EntryId) {
        self.floor = self.floor.max(id);
    }

    /// Notes an event. Later ones have later ids.
    pub(super) fn note(&mut self, id: EntryId, arrival: Arc<Arrival>) {
        let bytes = OVERHEAD_BYTES + arrival.bytes();
        self.places.insert(arrival.emit.offset, self.first + self.events.len() as u64);
        self.bytes += bytes;
        self.events.push_back(Noted { id, arrival, bytes });
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= oldest.bytes;
            // A gap is noted when it is read, and events before it perhaps only afterwards.
            self.floor = self.floor.max(oldest.id);
            let offset = oldest.arrival.emit.offset;
            if self.places.get(&offset) == Some(&self.first) {
                self.places.remove(&offset);
            }
            self.first += 1;
        }
    }

    /// The last events, of at most so many bytes, and the entry behind which nothing is missing then.
    pub(super) fn freeze(&self, bytes_max: usize) -> (EntryId, Vec<(EntryId, Arc<Arrival>)>) {
        let (mut bytes, mut from) = (0, self.events.len());
        while let Some(noted) = from.checked_sub(1).and_then(|at| self.events.get(at)).filter(|noted| bytes + noted.bytes <= bytes_max) {
            bytes += noted.bytes;
            from -= 1;
        }
        let floor = from.checked_sub(1).and_then(|at| self.events.get(at)).map_or(self.floor, |last| last.id.max(self.floor));
        (floor, self.events.range(from..).map(|noted| (noted.id, noted.arrival.clone())).collect())
    }

    /// Bytes it holds on to.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn of(&self, offset: Offset) -> Option<&Noted> {
        let place = self.places.get(&offset)?;
        self.events.get(usize::try_from(place.checked_sub(self.first)?).ok()?)
    }

    /// The event with this offset.
    pub(super) fn find(&self, offset: Offset) -> Option<&Arc<Arrival>> {
        self.of(offset).map(|noted| &noted.arrival)
    }

    /// The entry of the event with this offset. Clients of Node's servers know our events, too, by their entries.
    pub(super) fn entry(&self, offset: Offset) -> Option<EntryId> {
        let by_id = || match offset {
            Offset::Entry(id) => self.events.binary_search_by_key(&id, |noted| noted.id).ok().map(|_| id),
            Offset::Own(_) => None,
        };
        self.of(offset).map(|noted| noted.id).or_else(by_id)
    }

    /// Everything after an entry for who is in rooms of these names, but volatile events; `None` when it is not all here any more. Everybody is in the room without a name.
    pub(super) fn since(&self, mark: EntryId, endpoint: EndpointId, names: &HashSet<&str>) -> Option<Vec<Arc<Arrival>>> {
        if mark < self.floor {
            return None;
        }
        let is_in = |target: &Target| matches!(target, Target::Room(name) if names.contains(&**name));
        let from = self.events.partition_point(|noted| noted.id <= mark);
        let events = self.events.range(from..).map(|noted| &noted.arrival);
        let is_meant = |arrival: &&Arc<Arrival>| {
            let emit = &arrival.emit;
            emit.to.endpoint == endpoint && !emit.volatile && emit.to.targets.iter().any(is_in) && !emit.to.except.iter().any(is_in)
        };
        Some(events.filter(is_meant).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::parcel::{Emit, Selection};

    fn arrival(number: u64, room: &str, except: &[&str], volatile: bool) -> Arc<Arrival> {
        let except = except.iter().map(|name| Target::Room((*name).into())).collect();
        let to = Selection { except, ..Selection::of(EndpointId(0), vec![Target::Room(room.into())]) };
        let emit = Emit { volatile, ..Emit::new(to, "e", "", number, 0) };
        Arc::new(Arrival { emit, text: None, hidden_from: None, is_foreign: false })
    }

    fn id(ms: u64) -> EntryId {
        EntryId { ms, number: 0 }
    }

    fn since(journal: &Journal, ms: u64, names: &[&str]) -> Option<Vec<u64>> {
        let found = journal.since(id(ms), EndpointId(0), &names.iter().copied().collect())?;
        Some(found.iter().map(|arrival| if let Offset::Own(number) = arrival.emit.offset { number } else { 0 }).collect())
    }

    #[test]
    fn it_tells_what_is_for_whom() {
        let mut journal = Journal::new(100_000);
        journal.note(id(1), arrival(1, "r", &[], false));
        journal.note(id(2), arrival(2, "", &[], false));
        journal.note(id(3), arrival(3, "r", &["s"], false));
        journal.note(id(4), arrival(4, "r", &[], true));
        journal.note(id(5), arrival(5, "other", &[], false));
        assert_eq!(since(&journal, 0, &["r", "", "s"]), Some(vec![1, 2]));
        assert_eq!(since(&journal, 1, &["r", "t"]), Some(vec![3]));
        assert_eq!(since(&journal, 9, &["r"]), Some(vec![]));
        assert_eq!(journal.entry(Offset::Own(3)), Some(id(3)));
        assert_eq!((journal.entry(Offset::Entry(id(3))), journal.entry(Offset::Entry(id(6)))), (Some(id(3)), None));
        assert!(journal.find(Offset::Own(9)).is_none());
    }

    #[test]
    fn nobody_goes_on_over_a_gap() {
        let mut journal = Journal::new(5 * (OVERHEAD_BYTES + 120));
        journal.note_gap(id(3));
        for number in 1..5 {
            journal.note(id(number), arrival(number, "r", &[], false));
        }
        assert_eq!((since(&journal, 2, &["r"]), since(&journal, 3, &["r"])), (None, Some(vec![4])));
        assert_eq!(journal.entry(Offset::Own(1)), Some(id(1)), "what was before it is known");
        assert_eq!(journal.freeze(OVERHEAD_BYTES + 200).0, id(3));
        assert_eq!(journal.freeze(3 * (OVERHEAD_BYTES + 120)).0, id(3), "also where less is left out");
        journal.note_gap(id(9));
        for number in 5..9 {
            journal.note(id(number), arrival(number, "r", &[], false));
        }
        assert!(journal.entry(Offset::Own(1)).is_none() && since(&journal, 8, &["r"]).is_none(), "also when it has forgotten some");
    }

    #[test]
    fn what_it_has_forgotten_it_does_not_tell_of() {
        let mut journal = Journal::new(3 * (OVERHEAD_BYTES + 120));
        for number in 1..10 {
            journal.note(id(number), arrival(number, "r", &[], false));
        }
        let kept = journal.events.len() as u64;
        assert!((1..9).contains(&kept) && journal.bytes() <= 3 * (OVERHEAD_BYTES + 120) && journal.places.len() as u64 == kept);
        assert_eq!((since(&journal, 8 - kept, &["r"]), since(&journal, 9 - kept, &["r"]).map(|all| all.len() as u64)), (None, Some(kept)));
        assert!(journal.entry(Offset::Own(1)).is_none() && journal.entry(Offset::Own(9)) == Some(id(9)));
        journal.begin(id(20));
        assert_eq!((since(&journal, 19, &["r"]), since(&journal, 20, &["r"]), journal.bytes()), (None, Some(vec![]), 0));
    }
}
