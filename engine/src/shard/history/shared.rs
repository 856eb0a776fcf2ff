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
        let Some(log) = self.logs.get_mut(room) else { return Vec::new() };
        let skipped = usize::try_from(from.saturating_sub(log.first)).unwrap_or(usize::MAX);
        let since = log.records.iter().skip(skipped).cloned().collect();
        log.readers -= 1;
        if log.readers == 0 {
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
    fn append(&mut self, room: &Room, keep: Keep, unix_ms: u64, stats: &ShardStats) {
        self.memory.append(room, keep, unix_ms, stats);
    }

    fn read(&mut self, room: &Room, range: Range, unix_ms: u64) -> Reading<Past> {
        if !self.is_relayed() {
            return self.memory.read(room, range, unix_ms);
        }
        let log = self.logs.entry(room.clone()).or_default();
        log.readers += 1;
        let from = log.end();
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
        let Some(log) = self.logs.get_mut(room) else { return };
        log.records.push_back(record.clone());
        // Of more than there may be only the newest are of interest.
        if log.records.len() > self.records_max {
            log.records.pop_front();
            log.first += 1;
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
