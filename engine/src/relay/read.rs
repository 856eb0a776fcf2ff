//! Reading streams on from where one was: in the order of the entries, each once, whatever the connection does meanwhile. One request at a time
//! over a connection of its own, because Redis answers it when there is something to read. It knows what is read by ids and numbers only.
//!
//! At the start what the streams still hold is read as *past*: nobody here is to be told of it, but who comes back may have missed it. After
//! each new connection it is looked whether the entry read last is still there. If not, it was trimmed, then there may be a gap, which
//! is counted; or Redis has gone back to an older state, then what may have been lost is read again and what was read before is left out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::append::GAP;
use super::frozen::FrozenReader;
use super::request::{Call, Lost, Reply, Request};
use crate::limits::{RELAY_BLOCK_MS, RELAY_HOSTS_MAX, RELAY_READ_ENTRIES_MAX, RELAY_READ_IDS, RELAY_RETRY_MS};
use crate::wire::sio::EntryId;

/// Bytes that an entry, or a field of one, takes besides its own.
const ENTRY_BYTES: usize = 48;

/// One entry of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// Index of the stream.
    pub(super) stream: usize,
    pub(super) id: EntryId,
    /// Fields and values.
    pub(super) fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// True exactly when it was there before this host was.
    pub(super) is_past: bool,
}

impl Entry {
    /// Bytes it holds on to.
    pub(super) fn bytes(&self) -> usize {
        ENTRY_BYTES + self.fields.iter().map(|(field, value)| ENTRY_BYTES + field.len() + value.len()).sum::<usize>()
    }

    /// The value of a field, if it is text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(field, _)| field == name.as_bytes())?;
        std::str::from_utf8(value).ok()
    }
}

/// What was read.
#[derive(Default, Debug)]
pub(super) struct Batch {
    pub(super) entries: Vec<Entry>,
    /// Entries that are missing for good, as far as that is known; one for a gap whose size is not.
    pub(super) missing: u64,
    /// Entries that had been read before.
    pub(super) doubles: u64,
    /// There when the first stream is not what it was: what was read of it up to here and before is worth nothing any more.
    pub(super) floor: Option<EntryId>,
    /// The last entry of the first stream before which something is missing.
    pub(super) gap: Option<EntryId>,
}

impl Batch {
    fn note_gap(&mut self, entry: &Entry) {
        if entry.stream == 0 {
            self.gap = Some(entry.id);
        }
    }
}

/// What is asked of Redis now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    /// Nothing.
    Nothing,
    /// What each stream has.
    Look,
    /// The past of the stream of this index.
    Past(usize),
    /// What comes next.
    Next,
}

#[derive(Debug)]
struct Stream {
    key: String,
    /// Read up to here; `None` before the first look.
    cursor: Option<EntryId>,
    /// The past is read up to here, and to be read up to there.
    past: Option<(EntryId, EntryId)>,
    /// The entries read last; no others are to be left out when it is read again.
    recent: VecDeque<EntryId>,
    /// There while entries may come that were read before: these were.
    known: HashSet<EntryId>,
    /// By the host that put them there: the number of its last entry.
    numbers: HashMap<Arc<str>, u64>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reader {
    streams: Vec<Stream>,
    is_connected: bool,
    has_looked: bool,
    asked: Asked,
    /// Entries that are asked for at once.
    count: usize,
    /// Not before then, because Redis has refused, or was lost.
    retry_ms: u64,
}

impl Reader {
    pub(super) fn new(keys: Vec<String>) -> Reader {
        let stream =
            |key| Stream { key, cursor: None, past: None, recent: VecDeque::new(), known: HashSet::new(), numbers: HashMap::new() };
        let streams = keys.into_iter().map(stream).collect();
        Reader { streams, is_connected: false, has_looked: false, asked: Asked::Nothing, count: RELAY_READ_ENTRIES_MAX, retry_ms: 0 }
    }

    /// Where it goes on after a reload, by stream.
    pub(super) fn freeze(&self) -> Vec<FrozenReader> {
        let frozen = |stream: &Stream| FrozenReader {
            cursor: stream.cursor,
            past: stream.past,
            recent: stream.recent.iter().copied().collect(),
            known: stream.known.iter().copied().collect(),
            numbers: stream.numbers.iter().map(|(host, number)| (host.clone(), *number)).collect(),
        };
        self.streams.iter().map(frozen).collect()
    }

    pub(super) fn thaw(&mut self, frozen: Vec<FrozenReader>) {
        for (stream, FrozenReader { cursor, past, recent, known, numbers }) in self.streams.iter_mut().zip(frozen) {
            (stream.cursor, stream.past) = (cursor, past);
            (stream.recent, stream.known, stream.numbers) = (recent.into(), known.into_iter().collect(), numbers.into_iter().collect());
        }
    }

    /// Up to where a stream was read; `None` while its past is not.
    pub(super) fn cursor(&self, stream: usize) -> Option<EntryId> {
        let stream = self.streams.get(stream)?;
        if stream.past.is_some() { None } else { stream.cursor }
    }

    /// The last number read of a host's entries in a stream; 0 for none.
    pub(super) fn number(&self, stream: usize, host: &str) -> u64 {
        self.streams.get(stream).and_then(|stream| stream.numbers.get(host)).copied().unwrap_or(0)
    }

    pub(super) fn handle_connected(&mut self) {
        (self.is_connected, self.has_looked, self.asked, self.retry_ms) = (true, false, Asked::Nothing, 0);
    }

    pub(super) fn handle_lost(&mut self) {
        self.is_connected = false;
    }

    /// The connection goes on, but what Redis has may be less than it was.
    pub(super) fn handle_replaced(&mut self) {
        self.has_looked = false;
    }

    /// When what Redis has refused or not answered is asked again; `u64::MAX` where there is none.
    pub(super) fn retry_ms(&self) -> u64 {
        if self.retry_ms == 0 || !self.is_connected { u64::MAX } else { self.retry_ms }
    }

    /// The next request, if none is under way.
    pub(super) fn poll(&mut self, now_ms: u64) -> Option<Request> {
        if !self.is_connected || self.asked != Asked::Nothing || now_ms < self.retry_ms {
            return None;
        }
        let (asked, request) = if !self.has_looked {
            (Asked::Look, self.look())
        } else if let Some((index, from, to)) = self.next_past() {
            let call = Call::new("XRANGE").arg(&self.streams[index].key).arg(format!("({from}")).arg(to.to_string());
            (Asked::Past(index), call.arg("COUNT").number(self.count as i128).into())
        } else {
            (Asked::Next, self.read().into())
        };
        (self.asked, self.retry_ms) = (asked, 0);
        Some(request)
    }

    fn next_past(&self) -> Option<(usize, EntryId, EntryId)> {
        self.streams.iter().enumerate().find_map(|(index, stream)| stream.past.map(|(from, to)| (index, from, to)))
    }

    /// Asks of each stream what its first and its last entry are, and whether the one that was read last is there.
    fn look(&self) -> Request {
        let one = |name: &str, key: &str, from: &str, to: &str| Call::new(name).arg(key).arg(from).arg(to).arg("COUNT").number(1);
        let calls = self.streams.iter().flat_map(|Stream { key, cursor, .. }| {
            let cursor = cursor.unwrap_or_default().to_string();
            [one("XRANGE", key, "-", "+"), one("XREVRANGE", key, "+", "-"), one("XRANGE", key, &cursor, &cursor)]
        });
        Request::atomic(calls.collect())
    }

    fn read(&self) -> Call {
        let call = Call::new("XREAD").arg("COUNT").number(self.count as i128).arg("BLOCK").number(RELAY_BLOCK_MS as i128).arg("STREAMS");
        let call = self.streams.iter().fold(call, |call, stream| call.arg(&stream.key));
        self.streams.iter().fold(call, |call, stream| call.arg(stream.cursor.unwrap_or_default().to_string()))
    }

    /// Redis has answered, or never will.
    pub(super) fn handle_reply(&mut self, now_ms: u64, replies: Result<Vec<Reply>, Lost>) -> Batch {
        let asked = std::mem::replace(&mut self.asked, Asked::Nothing);
        let mut batch = Batch::default();
        let replies = match replies {
            Ok(replies) if !replies.iter().any(|reply| reply.error().is_some()) => replies,
            Ok(_) => {
                // It may be loading its file; it is looked at from the beginning.
                (self.has_looked, self.retry_ms) = (false, now_ms + RELAY_RETRY_MS);
                return batch;
            }
            Err(_) => {
                // It may have been too much at once. In a cluster the connection goes on all the same.
                (self.count, self.has_looked, self.retry_ms) = ((self.count / 2).max(1), false, now_ms + RELAY_RETRY_MS);
                return batch;
            }
        };
        self.count = (self.count + 1).min(RELAY_READ_ENTRIES_MAX);
        match asked {
            Asked::Nothing => {}
            Asked::Look => self.take_look(&replies, &mut batch),
            Asked::Past(index) => {
                let entries = replies.first().map_or(&[][..], Reply::list);
                let read: Vec<Entry> = entries.iter().filter_map(|entry| entry_of(index, entry, true)).collect();
                let stream = &mut self.streams[index];
                let last = read.last().map(|entry| entry.id);
                stream.past = stream.past.and_then(|(_, to)| last.filter(|last| *last < to).map(|last| (last, to)));
                for entry in read {
                    stream.note(entry.id);
                    if stream.count(&entry).is_some_and(|missing| missing > 0) {
                        batch.note_gap(&entry);
                    }
                    batch.entries.push(entry);
                }
            }
            Asked::Next => {
                for of_stream in replies.first().map_or(&[][..], Reply::list) {
                    let [key, entries] = of_stream.list() else { continue };
                    let Some(index) = self.streams.iter().position(|stream| key.bytes() == Some(stream.key.as_bytes())) else { continue };
                    for entry in entries.list().iter().filter_map(|entry| entry_of(index, entry, false)) {
                        self.streams[index].take(entry, &mut batch);
                    }
                }
            }
        }
        batch
    }

    fn take_look(&mut self, replies: &[Reply], batch: &mut Batch) {
        self.has_looked = true;
        let id_of = |reply: Option<&Reply>| EntryId::parse(reply?.list().first()?.list().first()?.text()?);
        for (index, stream) in self.streams.iter_mut().enumerate() {
            let (first, last) = (id_of(replies.get(3 * index)), id_of(replies.get(3 * index + 1)));
            let is_there = id_of(replies.get(3 * index + 2)).is_some();
            let Some(cursor) = stream.cursor else {
                stream.cursor = Some(last.unwrap_or_default());
                stream.past = last.map(|last| (EntryId::default(), last));
                if let Some(first) = first.filter(|_| index == 0) {
                    // What was before it may have been trimmed.
                    batch.floor = Some(first);
                }
                continue;
            };
            if is_there || cursor == EntryId::default() {
                continue;
            }
            if first.is_some_and(|first| first > cursor) {
                // Trimmed, or lost as a whole: what was between is gone for us. Numbers tell how much of our own kind.
                batch.missing += 1;
                if index == 0 {
                    batch.floor = Some(first.unwrap_or(cursor));
                }
                continue;
            }
            // It has gone back. Whatever is after the oldest that is remembered is read again.
            stream.known = stream.recent.iter().copied().collect();
            let oldest = stream.recent.front().copied().unwrap_or(cursor);
            stream.cursor = Some(last.map_or(EntryId::default(), |last| last.min(oldest)));
            if index == 0 {
                batch.floor = Some(cursor.max(last.unwrap_or_default()));
            }
        }
    }
}

impl Stream {
    fn note(&mut self, id: EntryId) {
        if self.recent.len() >= RELAY_READ_IDS {
            self.recent.pop_front();
        }
        self.recent.push_back(id);
    }

    fn take(&mut self, entry: Entry, batch: &mut Batch) {
        self.cursor = Some(entry.id);
        if !self.known.is_empty() {
            if self.known.contains(&entry.id) {
                // What is an uringcast host's is known by its number, too, and by that alone if the same id was given twice.
                if entry.text("n").is_none() {
                    batch.doubles += 1;
                    return;
                }
            } else if self.recent.back().is_some_and(|last| entry.id > *last) {
                self.known = HashSet::new();
            }
        }
        match self.count(&entry) {
            Some(missing) => {
                batch.missing += missing;
                if missing > 0 {
                    batch.note_gap(&entry);
                }
            }
            None => {
                batch.doubles += 1;
                return;
            }
        }
        self.note(entry.id);
        batch.entries.push(entry);
    }

    /// Notes the number that an uringcast host gave to its entry: how many are missing before it, or nothing if it was read before. One that stands for what found
    /// no place counts as one that is missing.
    fn count(&mut self, entry: &Entry) -> Option<u64> {
        let gap = u64::from(entry.text(GAP).is_some());
        let (Some(host), Some(number)) = (entry.text("h"), entry.text("n").and_then(|number| number.parse::<u64>().ok())) else {
            return Some(gap);
        };
        match self.numbers.get_mut(host) {
            Some(last) if number <= *last => None,
            Some(last) => {
                let missing = number - *last - 1;
                *last = number;
                Some(missing + gap)
            }
            None => {
                if self.numbers.len() >= RELAY_HOSTS_MAX {
                    // Hosts come and go, each with a new name; which of them go first matters to nobody by then.
                    self.numbers.clear();
                }
                self.numbers.insert(host.into(), number);
                Some(gap)
            }
        }
    }
}

/// Reads one entry as Redis answers it; nothing for one that was deleted.
fn entry_of(stream: usize, reply: &Reply, is_past: bool) -> Option<Entry> {
    let [id, fields] = reply.list() else { return None };
    let id = EntryId::parse(id.text()?)?;
    let words = fields.list().chunks_exact(2);
    let fields = words.filter_map(|pair| Some((pair[0].bytes()?.to_vec(), pair[1].bytes()?.to_vec()))).collect();
    Some(Entry { stream, id, fields, is_past })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u64, fields: &[(&str, &str)]) -> Reply {
        let words = fields.iter().flat_map(|(field, value)| [field, value]).map(|word| Reply::Bytes(word.as_bytes().to_vec()));
        Reply::List(vec![Reply::Bytes(format!("{id}-0").into_bytes()), Reply::List(words.collect())])
    }

    fn numbered(id: u64, number: u64) -> Reply {
        entry(id, &[("h", "host"), ("n", &number.to_string())])
    }

    fn read(entries: Vec<Reply>) -> Result<Vec<Reply>, Lost> {
        Ok(vec![Reply::List(vec![Reply::List(vec![Reply::Bytes(b"s".to_vec()), Reply::List(entries)])])])
    }

    fn look(entries: &[u64], cursor: bool) -> Result<Vec<Reply>, Lost> {
        let of = |id: Option<&u64>| Reply::List(id.map(|id| entry(*id, &[])).into_iter().collect());
        Ok(vec![of(entries.first()), of(entries.last()), of(entries.first().filter(|_| cursor))])
    }

    fn ids(batch: &Batch) -> Vec<u64> {
        batch.entries.iter().map(|entry| entry.id.ms).collect()
    }

    /// A reader of a stream that was empty when it came.
    fn reader() -> Reader {
        let mut reader = Reader::new(vec!["s".into()]);
        assert!(reader.poll(1).is_none(), "there is no connection");
        reader.handle_connected();
        assert!(reader.poll(1).is_some_and(|look| look.is_atomic));
        let _ = reader.handle_reply(1, look(&[], false));
        reader
    }

    fn cursor_asked(reader: &mut Reader) -> String {
        let request = reader.poll(1).expect("it reads");
        let words: Vec<_> = request.calls[0].words().collect();
        String::from_utf8_lossy(words.last().expect("words")).into_owned()
    }

    fn reconnect(reader: &mut Reader, entries: &[u64], cursor: bool) -> Batch {
        let _ = reader.handle_reply(1, Err(Lost::Connection));
        reader.handle_lost();
        assert!(reader.poll(1).is_none());
        reader.handle_connected();
        assert!(reader.poll(1).is_some());
        reader.handle_reply(1, look(entries, cursor))
    }

    #[test]
    fn it_reads_the_past_as_past_and_then_on() {
        let mut reader = Reader::new(vec!["s".into()]);
        reader.handle_connected();
        assert!(reader.poll(1).is_some());
        let _ = reader.handle_reply(1, look(&[3, 7], false));
        assert_eq!(reader.cursor(0), None);
        assert!(reader.poll(1).is_some_and(|request| request.calls[0].word(0) == b"XRANGE"));
        let past = reader.handle_reply(1, Ok(vec![Reply::List(vec![numbered(3, 1), numbered(7, 2)])]));
        assert!(ids(&past) == [3, 7] && past.entries.iter().all(|entry| entry.is_past));
        assert_eq!(cursor_asked(&mut reader), "7-0");
        assert!(reader.poll(1).is_none(), "one at a time");
        let next = reader.handle_reply(1, read(vec![numbered(8, 3)]));
        assert!(ids(&next) == [8] && !next.entries[0].is_past && next.missing == 0);
        assert_eq!(cursor_asked(&mut reader), "8-0");
        assert!(reader.handle_reply(1, Ok(vec![Reply::Nil])).entries.is_empty());
        assert_eq!(reader.cursor(0), Some(EntryId { ms: 8, number: 0 }));
    }

    #[test]
    fn after_an_outage_it_goes_on_where_it_was() {
        let mut reader = reader();
        assert_eq!(cursor_asked(&mut reader), "0-0");
        assert_eq!(ids(&reader.handle_reply(1, read(vec![numbered(1, 1), numbered(2, 2)]))), [1, 2]);
        assert!(reader.poll(1).is_some());
        assert_eq!(reconnect(&mut reader, &[2, 5], true).missing, 0);
        assert_eq!(cursor_asked(&mut reader), "2-0");
    }

    #[test]
    fn what_was_trimmed_is_counted() {
        let mut reader = reader();
        assert!(reader.poll(1).is_some());
        let _ = reader.handle_reply(1, read(vec![numbered(1, 1)]));
        assert!(reader.poll(1).is_some());
        assert_eq!(reconnect(&mut reader, &[5, 6], false).missing, 1);
        assert_eq!(cursor_asked(&mut reader), "1-0");
        let next = reader.handle_reply(1, read(vec![numbered(5, 4), numbered(6, 5)]));
        assert_eq!((ids(&next), next.missing), (vec![5, 6], 2));
    }

    #[test]
    fn what_found_no_place_is_missing_before_the_entry_that_stands_for_it() {
        let gap = |id, number: &str| entry(id, &[("gap", "1"), ("h", "host"), ("n", number)]);
        let mut reader = Reader::new(vec!["s".into()]);
        reader.handle_connected();
        assert!(reader.poll(1).is_some());
        let _ = reader.handle_reply(1, look(&[1, 4], false));
        assert!(reader.poll(1).is_some());
        let past = reader.handle_reply(1, Ok(vec![Reply::List(vec![numbered(1, 1), gap(2, "2"), numbered(4, 3)])]));
        assert_eq!((past.missing, past.gap), (0, Some(EntryId { ms: 2, number: 0 })), "whoever comes later has missed nothing");
        assert!(reader.poll(1).is_some());
        let next = reader.handle_reply(1, read(vec![numbered(5, 4), gap(6, "5"), numbered(7, 6)]));
        assert_eq!((next.missing, next.gap), (1, Some(EntryId { ms: 6, number: 0 })));
    }

    #[test]
    fn a_redis_that_went_back_is_read_again_without_doubles() {
        let mut reader = reader();
        assert!(reader.poll(1).is_some());
        let node = |id| entry(id, &[("uid", "node")]);
        let first = reader.handle_reply(1, read(vec![numbered(1, 1), node(2), numbered(3, 2), node(4)]));
        assert_eq!(first.entries.len(), 4);
        assert!(reader.poll(1).is_some());
        // 3 and 4 are gone; another master has 5, which is what 3 was, and 6.
        let _ = reconnect(&mut reader, &[1, 6], false);
        assert_eq!(cursor_asked(&mut reader), "1-0");
        let next = reader.handle_reply(1, read(vec![node(2), numbered(5, 2), node(6)]));
        assert_eq!((ids(&next), next.doubles), (vec![6], 2));
    }

    #[test]
    fn what_is_too_much_at_once_is_read_in_smaller_parts() {
        let mut reader = reader();
        for _ in 0..20 {
            assert!(reader.poll(1).is_some());
            let _ = reconnect(&mut reader, &[], false);
        }
        assert!(reader.poll(1).is_some_and(|request| request.calls[0].word(2).len() == 1), "fewer than ten");
    }

    #[test]
    fn a_refusal_begins_anew() {
        let mut reader = reader();
        assert!(reader.poll(1).is_some());
        let _ = reader.handle_reply(1, Ok(vec![Reply::Error("LOADING".into())]));
        assert!(reader.poll(1).is_none() && reader.retry_ms() == 1 + RELAY_RETRY_MS, "not at once");
        assert!(reader.poll(1 + RELAY_RETRY_MS).is_some_and(|request| request.is_atomic));
    }
}
