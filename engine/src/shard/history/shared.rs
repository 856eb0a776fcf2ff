//! The history that all hosts share, as one shard sees it: what it says itself it hands on with what it tells the others; what it wants to know it
//! asks, and what it has handed on since is put on top of the answer. Memory goes on beside it: it is what this host knows alone, and the
//! answer where nobody else can give one. It knows no store and no way to one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use foldhash::fast::RandomState;

use super::{Found, History, Kept, Memory, Past, Range, Reading, Record, Ticket, Told};
use crate::dialect::Keep;
use crate::ids::{EndpointId, MessageId, Room};
use crate::shard::World;
use crate::shard::frozen::FrozenDiary;
use crate::shard::recollection::Recollection;
use crate::stats::ShardStats;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    memory: Memory,
    world: Arc<World>,
    tickets: u64,
    pending: HashMap<Ticket, Pending>,
    /// What was handed on about rooms that are being read.
    logs: HashMap<Room, Log, RandomState>,
    records_max: usize,
}

/// A read under way.
#[derive(Debug)]
enum Pending {
    Past {
        room: Room,
        range: Range,
        /// The first record that cannot be in the answer.
        from: u64,
    },
    Found {
        endpoint: EndpointId,
        id: MessageId,
    },
}

/// Records of one room since the first read that is still under way.
#[derive(Default, Debug)]
struct Log {
    readers: usize,
    /// Number of the first record.
    first: u64,
    records: VecDeque<Record>,
}

impl Log {
    fn end(&self) -> u64 {
        self.first + self.records.len() as u64
    }
}

impl Shared {
    pub(crate) fn new(memory: Memory, world: Arc<World>) -> Shared {
        let records_max = world.config.limits.history_messages.max(1);
        Shared { memory, world, tickets: 0, pending: HashMap::new(), logs: HashMap::default(), records_max }
    }

    fn ticket(&mut self, pending: Pending) -> Ticket {
        self.tickets += 1;
        self.pending.insert(Ticket(self.tickets), pending);
        Ticket(self.tickets)
    }

    fn is_relayed(&self) -> bool {
        self.world.is_relayed.load(Ordering::Relaxed)
    }

    /// What a room's readers have missed since; nobody reads it any more after the last.
    fn records_since(&mut self, room: &Room, from: u64) -> Vec<Record> {
        let Some(noted) = self.logs.get_mut(room) else { return Vec::new() };
        let skipped = usize::try_from(from.saturating_sub(noted.first)).unwrap_or(usize::MAX);
        let since = noted.records.iter().skip(skipped).cloned().collect();
        noted.readers -= 1;
        if noted.readers == 0 {
            self.logs.remove(room);
        }
        since
    }

    /// The answer, and what is known here besides.
    fn unite(&mut self, room: &Room, range: Range, told: Told, since: Vec<Record>, unix_ms: u64) -> Past {
        let Told { mut past, whole_since } = told;
        if let Some(whole_since) = whole_since {
            self.fill(room, range, &mut past, whole_since, unix_ms);
        }
        let is_end_wanted = matches!(range, Range::Newest { skip: 0, .. });
        for record in since {
            match record {
                Record::Append { kept, .. } => {
                    if is_known(&past, &kept) {
                        continue;
                    }
                    past.total += 1;
                    if is_end_wanted {
                        past.kept.push(kept);
                    }
                }
                Record::Edit { id, text } => {
                    if let Some(kept) = past.kept.iter_mut().find(|kept| kept.id == Some(id)) {
                        kept.text = text;
                    }
                }
                Record::Remove { id } => {
                    let before = past.kept.len();
                    past.kept.retain(|kept| kept.id != Some(id));
                    past.total -= (before - past.kept.len()).min(past.total);
                }
            }
        }
        past.total = past.total.min(self.records_max);
        if let Range::Newest { limit, bytes_max, .. } = range {
            cut(&mut past.kept, limit.min(self.records_max), bytes_max);
        }
        past
    }

    /// A store that has lost everything, and of which nothing has gone since, is made up for by what is remembered here of the time before.
    fn fill(&mut self, room: &Room, range: Range, past: &mut Past, whole_since: u64, unix_ms: u64) {
        let Range::Newest { skip, limit, .. } = range else { return };
        let remembered = self.memory.at_hand(room, Range::ALL, unix_ms);
        let known: HashSet<MessageId> = past.kept.iter().filter_map(|kept| kept.id).collect();
        let is_empty = past.total == 0;
        let is_lost = |kept: &Kept| kept.unix_ms < whole_since && kept.id.map_or(is_empty, |id| !known.contains(&id));
        let lost: Vec<Kept> = remembered.kept.into_iter().filter(is_lost).collect();
        let missing = limit.saturating_sub(past.kept.len());
        let end = lost.len().saturating_sub(skip.saturating_sub(past.total));
        // Only where the store's own part reaches back to its beginning do they follow it without a gap.
        let is_beginning_told = past.kept.len() + skip >= past.total;
        if is_beginning_told {
            let start = end.saturating_sub(missing);
            past.kept.splice(0..0, lost[start..end].iter().cloned());
        }
        past.total += lost.len();
    }
}

/// True exactly when the message is in the answer already: one that several hosts keep may be.
fn is_known(past: &Past, kept: &Kept) -> bool {
    kept.id.is_some() && past.kept.iter().rev().any(|known| known.id == kept.id)
}

/// Leaves the newest that fit.
fn cut(kept: &mut Vec<Kept>, limit: usize, bytes_max: usize) {
    let mut first = kept.len().saturating_sub(limit);
    let mut bytes: usize = kept[first..].iter().map(|kept| kept.text.len()).sum();
    while bytes > bytes_max {
        bytes -= kept[first].text.len();
        first += 1;
    }
    kept.drain(..first);
}

impl History for Shared {
    fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    fn append(&mut self, room: &Room, keep: Keep, unix_ms: u64, stats: &ShardStats) {
        self.memory.append(room, keep, unix_ms, stats);
    }

    fn read(&mut self, room: &Room, range: Range, unix_ms: u64) -> Reading<Past> {
        if !self.is_relayed() {
            return self.memory.read(room, range, unix_ms);
        }
        let noted = self.logs.entry(room.clone()).or_default();
        noted.readers += 1;
        let from = noted.end();
        Reading::Later(self.ticket(Pending::Past { room: room.clone(), range, from }))
    }

    fn find(&mut self, endpoint: EndpointId, id: MessageId, unix_ms: u64) -> Reading<Option<Found>> {
        match self.memory.find(endpoint, id, unix_ms) {
            Reading::Now(None) if self.is_relayed() => Reading::Later(self.ticket(Pending::Found { endpoint, id })),
            found => found,
        }
    }

    fn edit(&mut self, room: &Room, id: MessageId, text: Arc<str>, stats: &ShardStats) {
        self.memory.edit(room, id, text, stats);
    }

    fn remove(&mut self, room: &Room, id: MessageId, stats: &ShardStats) {
        self.memory.remove(room, id, stats);
    }

    fn forget(&mut self, room: &Room, stats: &ShardStats) {
        self.memory.forget(room, stats);
    }

    fn freeze(&self) -> Vec<FrozenDiary> {
        self.memory.freeze()
    }

    fn restore(&mut self, room: &Room, kept: Vec<(Kept, bool)>, stats: &ShardStats) {
        self.memory.restore(room, kept, stats);
    }

    fn holds(&self, room: &Room, unix_ms: u64) -> bool {
        self.memory.holds(room, unix_ms)
    }

    fn is_full_for(&self, keep: &Keep) -> bool {
        self.memory.is_full_for(keep)
    }

    fn at_hand(&mut self, room: &Room, range: Range, unix_ms: u64) -> Past {
        self.memory.at_hand(room, range, unix_ms)
    }

    fn remembered(&self, room: &Room, id: MessageId) -> Option<Arc<str>> {
        self.memory.remembered(room, id)
    }

    fn handed_on(&mut self, room: &Room, record: &Record) {
        let Some(noted) = self.logs.get_mut(room) else { return };
        noted.records.push_back(record.clone());
        // Of more than there may be only the newest are of interest.
        if noted.records.len() > self.records_max {
            noted.records.pop_front();
            noted.first += 1;
        }
    }

    fn settle(&mut self, ticket: Ticket, found: Option<Recollection>, unix_ms: u64) -> Option<Recollection> {
        match (self.pending.remove(&ticket)?, found) {
            (Pending::Past { room, range, from }, found) => {
                let since = self.records_since(&room, from);
                let past = match found {
                    Some(Recollection::Told(told)) => self.unite(&room, range, told, since, unix_ms),
                    _ => self.memory.at_hand(&room, range, unix_ms),
                };
                Some(Recollection::Past(past))
            }
            (Pending::Found { .. }, Some(Recollection::Found(found))) => Some(Recollection::Found(found)),
            (Pending::Found { endpoint, id }, _) => match self.memory.find(endpoint, id, unix_ms) {
                Reading::Now(found) => Some(Recollection::Found(found)),
                Reading::Later(_) => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Bounds;
    use super::*;
    use crate::config::{Config, DialectKind, Endpoint};
    use crate::shard::address::Addresses;

    struct Host {
        shared: Shared,
        stats: ShardStats,
    }

    impl Host {
        fn new() -> Host {
            let mut config = Config::new(([127, 0, 0, 1], 0), 1, vec![Endpoint::new("r", DialectKind::Rooms, "/")]);
            config.limits.history_messages = 5;
            let bounds = Bounds::new(&config.limits, 1);
            let addresses = Addresses::new(&config.limits, 10);
            let world = Arc::new(World::new(config, addresses, 0));
            let host = Host { shared: Shared::new(Memory::new(bounds), world), stats: ShardStats::new(1) };
            host.set_relayed(true);
            host
        }

        fn set_relayed(&self, is_relayed: bool) {
            self.shared.world.is_relayed.store(is_relayed, Ordering::Relaxed);
        }

        /// Said here: kept in memory and handed on.
        fn say(&mut self, number: u64) {
            self.shared.handed_on(&room(), &Record::append(&keep(number), number, false));
            self.hear(number);
        }

        fn hear(&mut self, number: u64) {
            self.shared.append(&room(), keep(number), number, &self.stats);
        }

        fn read(&mut self, range: Range) -> Ticket {
            match self.shared.read(&room(), range, 0) {
                Reading::Later(ticket) => ticket,
                Reading::Now(past) => panic!("{past:?} at once"),
            }
        }

        fn settle(&mut self, ticket: Ticket, told: Option<Told>) -> Option<(Vec<u64>, usize)> {
            match self.shared.settle(ticket, told.map(Recollection::Told), 0)? {
                Recollection::Past(past) => Some((past.kept.iter().map(|kept| kept.unix_ms).collect(), past.total)),
                other => panic!("{other:?}"),
            }
        }
    }

    fn room() -> Room {
        Room::named(EndpointId(0), "r")
    }

    fn id(number: u64) -> MessageId {
        MessageId::from_u64_pair(number, 1)
    }

    fn keep(number: u64) -> Keep {
        Keep { id: Some(id(number)), by_id: true, author: "a".into(), text: "{}".into(), hidden_from: None, messages_max: 9 }
    }

    fn told(numbers: &[u64], total: usize) -> Option<Told> {
        let kept = |number: &u64| {
            let Record::Append { kept, .. } = Record::append(&keep(*number), *number, false) else { unreachable!("it is one") };
            kept
        };
        Some(Told { past: Past { kept: numbers.iter().map(kept).collect(), total }, whole_since: None })
    }

    const LAST_THREE: Range = Range::Newest { skip: 0, limit: 3, bytes_max: 9_999 };

    #[test]
    fn what_is_said_while_a_read_is_under_way_is_added_once() {
        let mut host = Host::new();
        host.say(1);
        let first = host.read(LAST_THREE);
        host.say(2);
        let second = host.read(LAST_THREE);
        // From another host: in the answer already.
        host.hear(3);
        host.say(4);
        assert_eq!(host.settle(second, told(&[1, 2, 3], 3)), Some((vec![2, 3, 4], 4)));
        assert_eq!(host.settle(first, told(&[1, 2], 2)), Some((vec![1, 2, 4], 3)), "of those that several may keep, one");
        assert_eq!(host.settle(first, told(&[], 0)), None, "it was answered");
        assert!(host.shared.logs.is_empty() && host.shared.pending.is_empty());
        let page = host.read(Range::Newest { skip: 1, limit: 2, bytes_max: 99 });
        let older = host.read(Range::Before { id: id(2), limit: 9 });
        host.say(5);
        assert_eq!(host.settle(page, told(&[2, 3], 4)), Some((vec![2, 3], 5)), "a page of what was");
        assert_eq!(host.settle(older, told(&[1], 4)), Some((vec![1], 5)));
    }

    #[test]
    fn changes_under_way_count() {
        let mut host = Host::new();
        let ticket = host.read(Range::ALL);
        host.shared.handed_on(&room(), &Record::Edit { id: id(1), text: "{\"new\":1}".into() });
        host.shared.handed_on(&room(), &Record::Remove { id: id(2) });
        let Some(Recollection::Past(past)) = host.shared.settle(ticket, told(&[1, 2, 3], 3).map(Recollection::Told), 0) else {
            panic!("a past")
        };
        assert_eq!((past.kept.len(), &*past.kept[0].text, past.total), (2, "{\"new\":1}", 2));
    }

    #[test]
    fn where_nobody_answers_memory_does_and_where_nobody_can_it_does_at_once() {
        let mut host = Host::new();
        host.say(1);
        let ticket = host.read(LAST_THREE);
        host.say(2);
        assert_eq!(host.settle(ticket, None), Some((vec![1, 2], 2)));
        host.set_relayed(false);
        let Reading::Now(past) = host.shared.read(&room(), LAST_THREE, 0) else { panic!("at once") };
        assert_eq!(past.total, 2);
        let Reading::Now(found) = host.shared.find(EndpointId(0), id(9), 0) else { panic!("at once") };
        assert_eq!(found, None);
        host.set_relayed(true);
        assert!(matches!(host.shared.find(EndpointId(0), id(1), 0), Reading::Now(Some(_))), "it is at hand");
        let Reading::Later(ticket) = host.shared.find(EndpointId(0), id(9), 0) else { panic!("others may have it") };
        assert_eq!(host.shared.settle(ticket, None, 0), Some(Recollection::Found(None)));
    }

    #[test]
    fn what_is_noted_for_readers_is_bounded() {
        let mut host = Host::new();
        let ticket = host.read(Range::ALL);
        for number in 1..100 {
            host.say(number);
        }
        assert!(host.shared.logs[&room()].records.len() <= 5);
        assert_eq!(host.settle(ticket, told(&[], 0)), Some((vec![95, 96, 97, 98, 99], 5)));
    }

    #[test]
    fn a_store_that_lost_everything_is_made_up_for() {
        let mut host = Host::new();
        for number in 1..=3 {
            host.say(number);
        }
        let whole = |numbers: &[u64], since| told(numbers, numbers.len()).map(|told| Told { whole_since: Some(since), ..told });
        let all = |host: &mut Host, told| {
            let ticket = host.read(Range::ALL);
            host.settle(ticket, told)
        };
        assert_eq!(all(&mut host, whole(&[], u64::MAX)), Some((vec![1, 2, 3], 3)));
        assert_eq!(all(&mut host, whole(&[3], 3)), Some((vec![1, 2, 3], 3)));
        assert_eq!(all(&mut host, told(&[3], 1)), Some((vec![3], 1)), "something has gone there: who knows why they are missing");
        let page = host.read(Range::Newest { skip: 2, limit: 1, bytes_max: 99 });
        let empty = Some(Told { past: Past { kept: vec![], total: 1 }, whole_since: Some(3) });
        assert_eq!(host.settle(page, empty), Some((vec![1], 3)));
    }
}
