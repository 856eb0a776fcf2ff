//! What is kept of what was said in rooms. A room's home appends to it and reads it, and knows of it only the trait [`History`]: this file's
//! `Memory` answers at once, a store beyond this process answers later, and the shard waits for neither ([`super::recollection`]).
//!
//! It knows no members: whether a room still exists is its home's business. Where hosts are joined, `shared` is the store.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use crate::auth::Identity;
use crate::dialect::Keep;
use crate::ids::{EndpointId, MessageId, Room, UserId};
use crate::limits::Limits;
use crate::shard::frozen::FrozenDiary;
use crate::stats::ShardStats;

pub(crate) mod shared;

use super::recollection::Recollection;

/// One kept message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// Its own id, where it has one.
    pub id: Option<MessageId>,
    /// Who said it.
    pub author: UserId,
    /// When it was kept, milliseconds since 1970.
    pub unix_ms: u64,
    /// What is kept of it, JSON.
    pub text: Arc<str>,
    /// Its author as he was when he said it, if he had blocked somebody.
    pub hidden_from: Option<Arc<Identity>>,
}

impl Kept {
    /// True exactly when the author had blocked this user when he said it.
    pub fn is_hidden_from(&self, user: &str) -> bool {
        self.hidden_from.as_ref().is_some_and(|author| author.has_blocked(user))
    }

    fn bytes(&self) -> usize {
        size(&self.text, self.hidden_from.as_deref())
    }
}

/// Which of a room's messages are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Range {
    /// The last so many, without the very last `skip`; of these again the last that together have at most so many bytes.
    Newest {
        /// Messages that are passed over.
        skip: usize,
        /// Messages.
        limit: usize,
        /// Bytes of their texts.
        bytes_max: usize,
    },
    /// The last so many of those that came before the one of this id. Where that is not kept (any more), what is older by its id.
    Before {
        /// The id.
        id: MessageId,
        /// Messages.
        limit: usize,
    },
}

impl Range {
    /// Everything there is.
    pub const ALL: Range = Range::Newest { skip: 0, limit: usize::MAX, bytes_max: usize::MAX };
}

/// A part of a room's past.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Past {
    /// Oldest first.
    pub kept: Vec<Kept>,
    /// How many messages are kept of the room, whatever was asked for.
    pub total: usize,
}

impl Past {
    /// The texts.
    pub(crate) fn texts(self) -> Vec<Arc<str>> {
        self.kept.into_iter().map(|kept| kept.text).collect()
    }
}

/// A part of a room's past as a store says it that all hosts share.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Told {
    /// What it has.
    pub past: Past,
    /// There exactly when nothing has ever gone of it: when the first message that it was given was said, milliseconds since 1970; `u64::MAX` where it
    /// has none. What is older it may have lost.
    pub whole_since: Option<u64>,
}

/// A change of what is kept of a room, for a store that all hosts share. Exactly one host hands on each, but for those that
/// [`Record::Append::is_shared`] says it of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// Something was said.
    Append {
        /// What is kept of it.
        kept: Kept,
        /// See [`Keep::by_id`].
        by_id: bool,
        /// See [`Keep::messages_max`].
        messages_max: usize,
        /// True exactly when several hosts have heard it and each hands it on: the first counts. It has an id then.
        is_shared: bool,
    },
    /// A message has another text now.
    Edit {
        /// The message.
        id: MessageId,
        /// The text.
        text: Arc<str>,
    },
    /// A message is taken back.
    Remove {
        /// The message.
        id: MessageId,
    },
}

impl Record {
    /// That this is kept, by this host alone or by several.
    pub fn append(keep: &Keep, unix_ms: u64, is_shared: bool) -> Record {
        let Keep { id, by_id, author, text, hidden_from, messages_max } = keep.clone();
        Record::Append { kept: Kept { id, author, unix_ms, text, hidden_from }, by_id, messages_max, is_shared }
    }

    /// Bytes it holds on to.
    pub fn bytes(&self) -> usize {
        match self {
            Record::Append { kept, .. } => kept.bytes(),
            Record::Edit { text, .. } => text.len(),
            Record::Remove { .. } => 0,
        }
    }
}

/// What is asked of a store that all hosts share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recall {
    /// A part of a room's past.
    Past(Range),
    /// The message of this id, in whichever room.
    Found(MessageId),
}

/// A message that was found by its id, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The room.
    pub room: Room,
    /// The message.
    pub kept: Kept,
}

/// A store's number for a read that it answers later.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket(pub u64);

/// What a read gives.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Reading<T> {
    /// This.
    Now(T),
    /// A [`super::parcel::Parcel::Recollected`] with this ticket, exactly one. What was appended until it is handled is in it.
    Later(Ticket),
}

/// A store of messages. Writes take effect in the order in which they come and need no answer; reads may be answered later. Whatever is older
/// than the store's bound on age is not there, whether it is still stored or not.
pub trait History: fmt::Debug {
    /// Keeps a message as its room's newest.
    fn append(&mut self, room: &Room, keep: Keep, unix_ms: u64, stats: &ShardStats);
    /// A part of what is kept of a room.
    fn read(&mut self, room: &Room, range: Range, unix_ms: u64) -> Reading<Past>;
    /// The message of this id in whichever room of the endpoint, if it is one that can be found so ([`Keep::by_id`]).
    fn find(&mut self, endpoint: EndpointId, id: MessageId, unix_ms: u64) -> Reading<Option<Found>>;
    /// Replaces a message's text; it keeps its place. Nothing happens where it is not kept (any more).
    fn edit(&mut self, room: &Room, id: MessageId, text: Arc<str>, stats: &ShardStats);
    /// Forgets a message.
    fn remove(&mut self, room: &Room, id: MessageId, stats: &ShardStats);
    /// Forgets all of a room.
    fn forget(&mut self, room: &Room, stats: &ShardStats);
    /// True exactly when the room's home is to be kept although nobody is in, because this shard has messages of it.
    fn holds(&self, room: &Room, unix_ms: u64) -> bool;
    /// True exactly when something must be forgotten before this is kept as well.
    fn is_full_for(&self, keep: &Keep) -> bool;
    /// The same as [`Self::read`], of what is kept in this process.
    fn at_hand(&mut self, room: &Room, range: Range, unix_ms: u64) -> Past {
        match self.read(room, range, unix_ms) {
            Reading::Now(past) => past,
            Reading::Later(_) => Past::default(),
        }
    }
    /// Bytes of everything that is kept in this process.
    fn bytes(&self) -> usize {
        0
    }
    /// The text of a message that is kept in this process.
    fn remembered(&self, _room: &Room, _id: MessageId) -> Option<Arc<str>> {
        None
    }
    /// This was handed to a store that all hosts share: what is under way to be read may not have it.
    fn handed_on(&mut self, _room: &Room, _record: &Record) {}
    /// What is kept in this process, as plain data.
    fn freeze(&self) -> Vec<FrozenDiary>;
    /// Keeps a room's messages again, oldest first; with each whether it can be found by its id.
    fn restore(&mut self, room: &Room, kept: Vec<(Kept, bool)>, stats: &ShardStats);
    /// A read has been answered, or (`None`) will not be: what the reader gets. `None` where nobody has read.
    fn settle(&mut self, _ticket: Ticket, found: Option<Recollection>, _unix_ms: u64) -> Option<Recollection> {
        found
    }
}

/// Share of the process-wide bounds that one shard may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    pub(crate) messages: usize,
    pub(crate) age_ms: u64,
}

impl Bounds {
    pub(crate) fn new(limits: &Limits, shards: usize) -> Bounds {
        Bounds { bytes: limits.kept(limits.history_bytes) / shards, messages: limits.history_messages, age_ms: limits.history_age_ms }
    }

    fn oldest(&self, unix_ms: u64) -> u64 {
        unix_ms.saturating_sub(self.age_ms)
    }
}

/// One room's history takes at most this part of what all of a shard may take.
pub(crate) const ROOM_SHARE: usize = 16;

/// Bytes that a message takes besides its text, so that many short ones are bounded too.
const OVERHEAD_BYTES: usize = std::mem::size_of::<Kept>();

/// The history of rooms in this shard's memory: bounded for each room by number, age and a share of all bytes, and for all by bytes.
#[derive(Debug)]
pub(crate) struct Memory {
    diaries: HashMap<Room, Diary, RandomState>,
    /// Rooms of the messages that can be found by their ids.
    by_id: HashMap<(EndpointId, MessageId), Room, RandomState>,
    bounds: Bounds,
    bytes: usize,
}

/// What is kept of one room; never empty.
#[derive(Default, Debug)]
struct Diary {
    entries: VecDeque<Kept>,
    bytes: usize,
}

impl Memory {
    pub(crate) fn new(bounds: Bounds) -> Memory {
        Memory { diaries: HashMap::default(), by_id: HashMap::default(), bounds, bytes: 0 }
    }

    /// Of a room: index of the first message that is not too old.
    fn fresh(&self, diary: &Diary, unix_ms: u64) -> usize {
        let oldest = self.bounds.oldest(unix_ms);
        diary.entries.partition_point(|kept| kept.unix_ms < oldest)
    }
}

impl Diary {
    /// Takes off the beginning what is too old, too many or too large, one at a time.
    fn next_excess(&mut self, messages_max: usize, oldest: u64, bounds: &Bounds, total: &mut usize) -> Option<Kept> {
        let first = self.entries.front()?;
        let share = (bounds.bytes / ROOM_SHARE).max(first.bytes());
        let fits = self.entries.len() <= messages_max && *total <= bounds.bytes && self.bytes <= share;
        if fits && first.unix_ms >= oldest { None } else { self.pop(0, total) }
    }

    fn pop(&mut self, at: usize, total: &mut usize) -> Option<Kept> {
        let gone = self.entries.remove(at)?;
        self.bytes -= gone.bytes();
        *total -= gone.bytes();
        Some(gone)
    }

    fn position(&self, id: MessageId) -> Option<usize> {
        self.entries.iter().position(|kept| kept.id == Some(id))
    }
}

impl History for Memory {
    fn freeze(&self) -> Vec<FrozenDiary> {
        let freeze = |(room, diary): (&Room, &Diary)| {
            let is_found = |kept: &Kept| kept.id.is_some_and(|id| self.by_id.contains_key(&(room.endpoint, id)));
            let kept = diary.entries.iter().map(|kept| (kept.clone(), is_found(kept))).collect();
            FrozenDiary { endpoint: room.endpoint.0, room: room.name.clone(), kept }
        };
        self.diaries.iter().map(freeze).collect()
    }

    fn restore(&mut self, room: &Room, kept: Vec<(Kept, bool)>, stats: &ShardStats) {
        for (kept, by_id) in kept {
            let Kept { id, author, unix_ms, text, hidden_from } = kept;
            // Its own bound was held when it was said.
            self.append(room, Keep { id, by_id, author, text, hidden_from, messages_max: usize::MAX }, unix_ms, stats);
        }
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn append(&mut self, room: &Room, keep: Keep, unix_ms: u64, stats: &ShardStats) {
        let Keep { id, by_id, author, text, hidden_from, messages_max } = keep;
        let messages_max = messages_max.min(self.bounds.messages);
        if messages_max == 0 {
            return;
        }
        let Memory { diaries, by_id: ids, bounds, bytes } = self;
        let diary = match diaries.get_mut(room) {
            Some(diary) => diary,
            None => diaries.entry(room.clone()).or_default(),
        };
        let kept = Kept { id, author, unix_ms, text, hidden_from };
        *bytes += kept.bytes();
        diary.bytes += kept.bytes();
        diary.entries.push_back(kept);
        if let Some(id) = id.filter(|_| by_id) {
            ids.insert((room.endpoint, id), room.clone());
        }
        counter(stats, room).add(1);
        while let Some(gone) = diary.next_excess(messages_max, bounds.oldest(unix_ms), bounds, bytes) {
            lose(room, &gone, ids, stats);
        }
        if diary.entries.is_empty() {
            diaries.remove(room);
        }
    }

    fn read(&mut self, room: &Room, range: Range, unix_ms: u64) -> Reading<Past> {
        let Some(diary) = self.diaries.get(room) else { return Reading::Now(Past::default()) };
        let fresh = self.fresh(diary, unix_ms);
        let (first, end) = match range {
            Range::Newest { skip, limit, bytes_max } => {
                let end = diary.entries.len().saturating_sub(skip).max(fresh);
                let mut first = fresh.max(end.saturating_sub(limit));
                let mut bytes = diary.entries.range(first..end).map(|kept| kept.text.len()).sum::<usize>();
                // The newest that fit: a past with its beginning cut off still ends where the present begins.
                while bytes > bytes_max {
                    bytes -= diary.entries[first].text.len();
                    first += 1;
                }
                (first, end)
            }
            Range::Before { id, limit } => {
                let older = || diary.entries.iter().rposition(|kept| kept.id.is_some_and(|kept| kept < id)).map_or(0, |last| last + 1);
                let end = diary.position(id).unwrap_or_else(older).max(fresh);
                (fresh.max(end.saturating_sub(limit)), end)
            }
        };
        Reading::Now(Past { kept: diary.entries.range(first..end).cloned().collect(), total: diary.entries.len() - fresh })
    }

    fn find(&mut self, endpoint: EndpointId, id: MessageId, unix_ms: u64) -> Reading<Option<Found>> {
        let found = self.by_id.get(&(endpoint, id)).and_then(|room| {
            let diary = self.diaries.get(room)?;
            let kept = diary.position(id).filter(|at| *at >= self.fresh(diary, unix_ms)).and_then(|at| diary.entries.get(at))?;
            Some(Found { room: room.clone(), kept: kept.clone() })
        });
        Reading::Now(found)
    }

    fn edit(&mut self, room: &Room, id: MessageId, text: Arc<str>, stats: &ShardStats) {
        let Memory { diaries, by_id, bounds, bytes } = self;
        let Some(diary) = diaries.get_mut(room) else { return };
        let Some(kept) = diary.position(id).and_then(|at| diary.entries.get_mut(at)) else { return };
        diary.bytes = diary.bytes - kept.text.len() + text.len();
        *bytes = *bytes - kept.text.len() + text.len();
        kept.text = text;
        // It may be longer now than what there is place for.
        while let Some(gone) = diary.next_excess(usize::MAX, 0, bounds, bytes) {
            lose(room, &gone, by_id, stats);
        }
        if diary.entries.is_empty() {
            diaries.remove(room);
        }
    }

    fn remove(&mut self, room: &Room, id: MessageId, stats: &ShardStats) {
        let Some(diary) = self.diaries.get_mut(room) else { return };
        let Some(gone) = diary.position(id).and_then(|at| diary.pop(at, &mut self.bytes)) else { return };
        if diary.entries.is_empty() {
            self.diaries.remove(room);
        }
        lose(room, &gone, &mut self.by_id, stats);
    }

    fn forget(&mut self, room: &Room, stats: &ShardStats) {
        let Some(diary) = self.diaries.remove(room) else { return };
        self.bytes -= diary.bytes;
        for gone in &diary.entries {
            lose(room, gone, &mut self.by_id, stats);
        }
    }

    fn holds(&self, room: &Room, unix_ms: u64) -> bool {
        let oldest = self.bounds.oldest(unix_ms);
        self.diaries.get(room).is_some_and(|diary| diary.entries.back().is_some_and(|kept| kept.unix_ms >= oldest))
    }

    fn is_full_for(&self, keep: &Keep) -> bool {
        self.bytes + size(&keep.text, keep.hidden_from.as_deref()) > self.bounds.bytes
    }

    fn remembered(&self, room: &Room, id: MessageId) -> Option<Arc<str>> {
        let diary = self.diaries.get(room)?;
        diary.position(id).and_then(|at| diary.entries.get(at)).map(|kept| kept.text.clone())
    }
}

/// An author's identity is counted with each of his messages, although they may share it: whichever goes last frees it.
fn size(text: &str, hidden_from: Option<&Identity>) -> usize {
    text.len() + OVERHEAD_BYTES + hidden_from.map_or(0, Identity::bytes)
}

/// What else follows from a message's going.
fn lose(room: &Room, gone: &Kept, by_id: &mut HashMap<(EndpointId, MessageId), Room, RandomState>, stats: &ShardStats) {
    counter(stats, room).sub(1);
    if let Some(id) = gone.id.filter(|_| !by_id.is_empty()) {
        by_id.remove(&(room.endpoint, id));
    }
}

fn counter<'a>(stats: &'a ShardStats, room: &Room) -> &'a crate::stats::Counter {
    &stats.endpoints[usize::from(room.endpoint.0)].history_messages
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids are as old as their numbers say.
    fn id(number: u128) -> MessageId {
        MessageId::from_u128(number)
    }

    fn keep(number: u128, text: &str) -> Keep {
        let (author, text) = ("alice".into(), text.into());
        Keep { id: Some(id(number)), by_id: true, author, text, hidden_from: None, messages_max: usize::MAX }
    }

    fn memory(bytes: usize) -> (Memory, ShardStats) {
        (Memory::new(Bounds { bytes, messages: 3, age_ms: 1_000 }), ShardStats::new(1))
    }

    fn room(name: &str) -> Room {
        Room::named(EndpointId(0), name)
    }

    fn past(memory: &mut Memory, range: Range, unix_ms: u64) -> Past {
        match memory.read(&room("r"), range, unix_ms) {
            Reading::Now(past) => past,
            Reading::Later(_) => unreachable!("memory is at hand"),
        }
    }

    fn texts(memory: &mut Memory, range: Range, unix_ms: u64) -> Vec<String> {
        past(memory, range, unix_ms).kept.iter().map(|kept| kept.text.to_string()).collect()
    }

    fn found(memory: &mut Memory, number: u128, unix_ms: u64) -> Option<Found> {
        match memory.find(EndpointId(0), id(number), unix_ms) {
            Reading::Now(found) => found,
            Reading::Later(_) => unreachable!("memory is at hand"),
        }
    }

    fn newest(skip: usize, limit: usize, bytes_max: usize) -> Range {
        Range::Newest { skip, limit, bytes_max }
    }

    #[test]
    fn it_is_bounded_by_count_age_and_bytes() {
        // A room's share is a sixteenth: place for three short ones.
        let (mut memory, stats) = memory((3 * OVERHEAD_BYTES + 29) * ROOM_SHARE);
        for i in 0..5 {
            memory.append(&room("r"), keep(i, &i.to_string()), i as u64, &stats);
        }
        assert_eq!(texts(&mut memory, Range::ALL, 5), ["2", "3", "4"]);
        assert_eq!(texts(&mut memory, Range::ALL, 1_003), ["3", "4"], "too old is not shown");
        assert_eq!((past(&mut memory, Range::ALL, 1_003).total, past(&mut memory, Range::ALL, 3_000).total), (2, 0));
        memory.append(&room("r"), keep(6, &"x".repeat(29)), 6, &stats);
        assert_eq!(texts(&mut memory, Range::ALL, 6).len(), 2, "{memory:?}");
        assert_eq!((memory.bytes(), stats.endpoints[0].history_messages.read()), (2 * OVERHEAD_BYTES + 30, 2));
        assert!(!memory.is_full_for(&keep(7, "x")) && memory.is_full_for(&keep(7, &"x".repeat(memory.bounds.bytes))));
        memory.append(&room("r"), Keep { messages_max: 1, ..keep(7, "y") }, 7, &stats);
        assert_eq!(texts(&mut memory, Range::ALL, 7), ["y"]);
        memory.append(&room("r"), Keep { messages_max: 0, ..keep(8, "z") }, 7, &stats);
        assert_eq!(texts(&mut memory, Range::ALL, 7), ["y"]);
        memory.append(&room("r"), keep(9, &"x".repeat(memory.bounds.bytes / ROOM_SHARE)), 7, &stats);
        assert_eq!(past(&mut memory, Range::ALL, 7).total, 1, "one is kept however long it is");
        memory.append(&room("r"), keep(10, &"x".repeat(memory.bounds.bytes)), 7, &stats);
        assert_eq!((memory.diaries.len(), memory.by_id.len(), memory.bytes()), (0, 0, 0), "but not one that there is no place for at all");
    }

    #[test]
    fn parts_are_read_from_the_end_or_from_a_message_backwards() {
        let (mut memory, stats) = memory(100_000);
        for (number, text) in [(1, "aaaa"), (3, "bbb"), (5, "cc")] {
            memory.append(&room("r"), keep(number, text), 0, &stats);
        }
        assert_eq!(texts(&mut memory, newest(0, 2, usize::MAX), 0), ["bbb", "cc"]);
        assert_eq!(texts(&mut memory, newest(1, 2, usize::MAX), 0), ["aaaa", "bbb"]);
        assert_eq!(texts(&mut memory, newest(1, usize::MAX, 3), 0), ["bbb"], "the newest that fit");
        for range in [newest(3, 9, 9), newest(usize::MAX, 9, 9), newest(0, 0, 9), newest(0, 9, 1)] {
            let past = past(&mut memory, range, 0);
            assert_eq!((past.kept.len(), past.total), (0, 3), "{range:?}");
        }
        for (before, limit, expected) in
            [(5, 9, &["aaaa", "bbb"][..]), (5, 1, &["bbb"]), (4, 9, &["aaaa", "bbb"]), (9, 1, &["cc"]), (1, 9, &[]), (0, 9, &[])]
        {
            assert_eq!(texts(&mut memory, Range::Before { id: id(before), limit }, 0), expected, "before {before}");
        }
        assert_eq!(texts(&mut memory, Range::Before { id: id(9), limit: 9 }, 2_000), [""; 0]);
    }

    #[test]
    fn a_message_is_found_by_its_id_edited_in_its_place_and_removed() {
        let (mut memory, stats) = memory(100_000);
        for number in 1..=3 {
            memory.append(&room("r"), keep(number, "text"), number as u64, &stats);
        }
        memory.append(&room("s"), Keep { by_id: false, ..keep(4, "text") }, 4, &stats);
        assert_eq!(found(&mut memory, 4, 4), None, "nobody looks for it");
        let second = Kept { id: Some(id(2)), author: "alice".into(), unix_ms: 2, text: "text".into(), hidden_from: None };
        assert_eq!(found(&mut memory, 2, 4), Some(Found { room: room("r"), kept: second }));
        assert_eq!(found(&mut memory, 2, 2_000), None, "too old");
        memory.edit(&room("r"), id(2), "a longer text".into(), &stats);
        memory.edit(&room("r"), id(9), "nowhere".into(), &stats);
        memory.edit(&room("s"), id(2), "nowhere".into(), &stats);
        assert_eq!(texts(&mut memory, Range::ALL, 4), ["text", "a longer text", "text"]);
        memory.remove(&room("r"), id(2), &stats);
        memory.remove(&room("r"), id(2), &stats);
        assert_eq!((texts(&mut memory, Range::ALL, 4).len(), found(&mut memory, 2, 4)), (2, None));
        assert_eq!((memory.bytes(), stats.endpoints[0].history_messages.read()), (3 * size("text", None), 3));
        memory.append(&room("r"), keep(5, "text"), 5, &stats);
        memory.append(&room("r"), keep(6, "text"), 5, &stats);
        assert_eq!((found(&mut memory, 1, 5), found(&mut memory, 3, 5).is_some()), (None, true), "the oldest made way");
        memory.forget(&room("r"), &stats);
        memory.remove(&room("s"), id(4), &stats);
        assert_eq!((memory.diaries.len(), memory.by_id.len(), memory.bytes()), (0, 0, 0));
        assert_eq!(stats.endpoints[0].history_messages.read(), 0);
    }

    #[test]
    fn an_edit_does_not_grow_beyond_the_bounds() {
        let (mut memory, stats) = memory(2 * size("text", None) * ROOM_SHARE);
        memory.append(&room("r"), keep(1, "text"), 1, &stats);
        memory.append(&room("r"), keep(2, "text"), 1, &stats);
        memory.edit(&room("r"), id(2), "longer".into(), &stats);
        assert_eq!(texts(&mut memory, Range::ALL, 1), ["longer"]);
        memory.edit(&room("r"), id(2), "x".repeat(memory.bounds.bytes).into(), &stats);
        assert_eq!((memory.diaries.len(), memory.by_id.len(), memory.bytes()), (0, 0, 0));
    }

    #[test]
    fn whom_the_author_has_blocked_is_kept_and_counted() {
        let (mut memory, stats) = memory(100_000);
        let blocked: Vec<String> = (0..10).map(|number| format!("user{number}")).collect();
        let author = Arc::new(Identity::from(crate::auth::Details { user: "alice".into(), blocked, ..Default::default() }));
        memory.append(&room("r"), Keep { hidden_from: Some(author.clone()), ..keep(1, "text") }, 1, &stats);
        memory.append(&room("r"), keep(2, "text"), 1, &stats);
        let kept = past(&mut memory, Range::ALL, 1).kept;
        let hidden = |user: &str| kept.iter().map(|kept| kept.is_hidden_from(user)).collect::<Vec<bool>>();
        assert_eq!((hidden("user7"), hidden("bob")), (vec![true, false], vec![false, false]));
        assert!(memory.bytes() >= 2 * size("text", None) + 10 * (size_of::<String>() + "user0".len()));
        drop(kept);
        memory.edit(&room("r"), id(1), "longer text".into(), &stats);
        memory.remove(&room("r"), id(1), &stats);
        assert_eq!((memory.bytes(), Arc::strong_count(&author)), (size("text", None), 1));
        assert!(memory.is_full_for(&Keep { hidden_from: Some(author), ..keep(3, &"x".repeat(100_000 - 3 * OVERHEAD_BYTES)) }));
    }

    #[test]
    fn a_room_is_held_as_long_as_its_newest_message_counts() {
        let (mut memory, stats) = memory(100_000);
        assert!(!memory.holds(&room("r"), 0));
        memory.append(&room("r"), keep(1, "x"), 5, &stats);
        assert!(memory.holds(&room("r"), 1_005) && !memory.holds(&room("r"), 1_006));
    }
}
