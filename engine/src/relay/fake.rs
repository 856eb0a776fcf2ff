//! A Redis of a test's own: as much of one as the relay asks for, in memory, with a clock that the test moves. The scripts, which it does not
//! understand, are known by their text and done by hand ([`scripts`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use super::request::{Call, Kind, Reply, Request};
use crate::wire::sio::EntryId;

mod scripts;

/// Fields and values, as they came.
pub(super) type Words = Vec<Vec<u8>>;

type Key = Vec<u8>;

/// What a key has.
enum Value {
    Text(Vec<u8>),
    Hash(BTreeMap<Key, Vec<u8>>),
    Set(BTreeSet<Key>),
    Stream(Stream),
}

#[derive(Default)]
struct Stream {
    entries: VecDeque<(EntryId, Words)>,
    last: EntryId,
    /// That ever were.
    added: usize,
}

/// What was published, in order.
pub(super) struct Published {
    pub(super) channel: Vec<u8>,
    pub(super) payload: Vec<u8>,
    pub(super) kind: Kind,
}

#[derive(Default)]
pub(super) struct Fake {
    pub(super) now_ms: u64,
    pub(super) published: Vec<Published>,
    /// Who listens to a channel, by a number of the test's.
    pub(super) listeners: BTreeMap<(u8, Key), BTreeSet<usize>>,
    /// Keys that were deleted while they were there, until a test takes them.
    pub(super) taken: BTreeSet<Key>,
    keys: BTreeMap<Key, (Value, u64)>,
}

/// A kind of channel, as a number.
pub(super) fn sort(kind: Kind) -> u8 {
    match kind {
        Kind::Channel => 0,
        Kind::Pattern => 1,
        Kind::Sharded => 2,
    }
}

impl Fake {
    pub(super) fn new(now_ms: u64) -> Fake {
        Fake { now_ms, ..Fake::default() }
    }

    pub(super) fn perform(&mut self, request: &Request) -> Vec<Reply> {
        request.calls.iter().map(|call| self.call(call)).collect()
    }

    /// An entry of somebody else.
    pub(super) fn add(&mut self, stream: &str, fields: &[(&str, &str)]) -> EntryId {
        let words = fields.iter().flat_map(|(field, value)| [field.as_bytes().to_vec(), value.as_bytes().to_vec()]).collect();
        self.append(stream.as_bytes(), words)
    }

    /// The fields of a hash, for oracles.
    pub(super) fn hashes(&self, suffix: &str) -> impl Iterator<Item = (&[u8], &BTreeMap<Key, Vec<u8>>)> {
        self.keys.iter().filter_map(move |(key, (value, _))| match value {
            Value::Hash(hash) if key.ends_with(suffix.as_bytes()) => Some((&**key, hash)),
            _ => None,
        })
    }

    fn append(&mut self, stream: &[u8], words: Words) -> EntryId {
        let now_ms = self.now_ms;
        let stream = self.stream_mut(stream);
        let last = stream.last;
        let id = if last.ms >= now_ms { EntryId { number: last.number + 1, ..last } } else { EntryId { ms: now_ms, number: 0 } };
        stream.entries.push_back((id, words));
        (stream.last, stream.added) = (id, stream.added + 1);
        id
    }

    fn live(&self, key: &[u8]) -> Option<&Value> {
        self.keys.get(key).filter(|(_, until_ms)| *until_ms > self.now_ms).map(|(value, _)| value)
    }

    fn live_mut(&mut self, key: &[u8], make: impl Fn() -> Value) -> &mut Value {
        if self.live(key).is_none() {
            self.keys.insert(key.to_vec(), (make(), u64::MAX));
        }
        &mut self.keys.get_mut(key).expect("it was just made").0
    }

    fn stream_mut(&mut self, key: &[u8]) -> &mut Stream {
        match self.live_mut(key, || Value::Stream(Stream::default())) {
            Value::Stream(stream) => stream,
            _ => panic!("{} is no stream", String::from_utf8_lossy(key)),
        }
    }

    fn hash_mut(&mut self, key: &[u8]) -> &mut BTreeMap<Key, Vec<u8>> {
        match self.live_mut(key, || Value::Hash(BTreeMap::new())) {
            Value::Hash(hash) => hash,
            _ => panic!("{} is no hash", String::from_utf8_lossy(key)),
        }
    }

    fn set_mut(&mut self, key: &[u8]) -> &mut BTreeSet<Key> {
        match self.live_mut(key, || Value::Set(BTreeSet::new())) {
            Value::Set(set) => set,
            _ => panic!("{} is no set", String::from_utf8_lossy(key)),
        }
    }

    fn text(&self, key: &[u8]) -> Option<&[u8]> {
        if let Some(Value::Text(text)) = self.live(key) { Some(text) } else { None }
    }

    fn hash(&self, key: &[u8]) -> Option<&BTreeMap<Key, Vec<u8>>> {
        if let Some(Value::Hash(hash)) = self.live(key) { Some(hash) } else { None }
    }

    fn set(&self, key: &[u8]) -> Option<&BTreeSet<Key>> {
        if let Some(Value::Set(set)) = self.live(key) { Some(set) } else { None }
    }

    fn stream(&self, key: &[u8]) -> Option<&Stream> {
        if let Some(Value::Stream(stream)) = self.live(key) { Some(stream) } else { None }
    }

    /// What has nothing in it is not there.
    fn tidy(&mut self, key: &[u8]) {
        let is_empty = match self.live(key) {
            Some(Value::Hash(hash)) => hash.is_empty(),
            Some(Value::Set(set)) => set.is_empty(),
            _ => false,
        };
        if is_empty {
            self.keys.remove(key);
        }
    }

    fn expire(&mut self, key: &[u8], in_ms: u64) -> bool {
        let until_ms = self.now_ms + in_ms;
        self.live(key).is_some() && self.keys.get_mut(key).is_some_and(|(_, until)| std::mem::replace(until, until_ms) > 0)
    }

    fn call(&mut self, call: &Call) -> Reply {
        let key = call.word(1);
        let bulk = |bytes: &[u8]| Reply::Bytes(bytes.to_vec());
        let count = |yes: bool| Reply::Int(i64::from(yes));
        match call.word(0) {
            b"PING" => Reply::Text("PONG".into()),
            verb @ (b"PUBLISH" | b"SPUBLISH") => {
                let kind = if verb == b"PUBLISH" { Kind::Channel } else { Kind::Sharded };
                let heard = self.listeners.get(&(sort(kind), key.to_vec())).map_or(0, BTreeSet::len);
                self.published.push(Published { channel: key.to_vec(), payload: call.word(2).to_vec(), kind });
                Reply::Int(heard as i64)
            }
            b"PUBSUB" => {
                let kind = if key == b"NUMSUB" { Kind::Channel } else { Kind::Sharded };
                let channels = call.words().skip(2);
                let heard = |channel: &[u8]| self.listeners.get(&(sort(kind), channel.to_vec())).map_or(0, BTreeSet::len);
                Reply::List(channels.flat_map(|channel| [bulk(channel), Reply::Int(heard(channel) as i64)]).collect())
            }
            b"GET" => self.text(key).map_or(Reply::Nil, bulk),
            b"EXISTS" => count(self.live(key).is_some()),
            b"DEL" => {
                let gone: Vec<Key> = call.words().skip(1).filter(|key| self.keys.remove(*key).is_some()).map(<[u8]>::to_vec).collect();
                let count = gone.len();
                self.taken.extend(gone);
                Reply::Int(count as i64)
            }
            b"PEXPIRE" => {
                let in_ms = number(call.word(2));
                count(self.expire(key, in_ms))
            }
            b"SET" => self.set_text(call),
            b"HSET" => count(self.hash_mut(key).insert(call.word(2).to_vec(), call.word(3).to_vec()).is_none()),
            b"HSETNX" => {
                let hash = self.hash_mut(key);
                let is_new = !hash.contains_key(call.word(2));
                hash.entry(call.word(2).to_vec()).or_insert_with(|| call.word(3).to_vec());
                count(is_new)
            }
            b"HGET" => self.hash(key).and_then(|hash| hash.get(call.word(2))).map_or(Reply::Nil, |value| bulk(value)),
            b"HDEL" => {
                let was_there = self.hash(key).is_some() && self.hash_mut(key).remove(call.word(2)).is_some();
                self.tidy(key);
                count(was_there)
            }
            b"HKEYS" => Reply::List(self.hash(key).into_iter().flat_map(|hash| hash.keys().map(|field| bulk(field))).collect()),
            b"HLEN" => Reply::Int(self.hash(key).map_or(0, BTreeMap::len) as i64),
            b"HSCAN" => {
                let pairs = self.hash(key).into_iter().flatten().flat_map(|(field, value)| [bulk(field), bulk(value)]).collect();
                Reply::List(vec![bulk(b"0"), Reply::List(pairs)])
            }
            b"SADD" => count(self.set_mut(key).insert(call.word(2).to_vec())),
            b"SREM" => {
                let was_there = self.set(key).is_some() && self.set_mut(key).remove(call.word(2));
                self.tidy(key);
                count(was_there)
            }
            b"SISMEMBER" => count(self.set(key).is_some_and(|set| set.contains(call.word(2)))),
            b"SMEMBERS" => Reply::List(self.set(key).into_iter().flatten().map(|member| bulk(member)).collect()),
            b"SRANDMEMBER" => {
                let some = number(call.word(2)) as usize;
                Reply::List(self.set(key).into_iter().flatten().take(some).map(|member| bulk(member)).collect())
            }
            b"SSCAN" => {
                let members = self.set(key).into_iter().flatten().map(|member| bulk(member)).collect();
                Reply::List(vec![bulk(b"0"), Reply::List(members)])
            }
            b"XRANGE" | b"XREVRANGE" => self.range(call),
            b"XREAD" => self.read(call),
            b"EVAL" => self.eval(call),
            verb => panic!("this Redis does not know {}", String::from_utf8_lossy(verb)),
        }
    }

    fn set_text(&mut self, call: &Call) -> Reply {
        let (key, value) = (call.word(1), call.word(2));
        let (mut until_ms, mut at) = (u64::MAX, 3);
        while at < call.words().len() {
            match call.word(at) {
                b"NX" if self.live(key).is_some() => return Reply::Nil,
                b"XX" if self.live(key).is_none() => return Reply::Nil,
                b"PX" => {
                    at += 1;
                    until_ms = self.now_ms + number(call.word(at));
                }
                _ => {}
            }
            at += 1;
        }
        self.keys.insert(key.to_vec(), (Value::Text(value.to_vec()), until_ms));
        Reply::Text("OK".into())
    }

    fn range(&self, call: &Call) -> Reply {
        let is_forward = call.word(0) == b"XRANGE";
        let (from, to) = if is_forward { (call.word(2), call.word(3)) } else { (call.word(3), call.word(2)) };
        let some = if call.words().len() > 5 { number(call.word(5)) as usize } else { usize::MAX };
        let Some(stream) = self.stream(call.word(1)) else { return Reply::List(Vec::new()) };
        let (first, end) = (stream.first_from(bound(from)), stream.first_behind(bound(to)));
        let found = stream.entries.range(first.min(end)..end);
        Reply::List(if is_forward { found.take(some).map(shown).collect() } else { found.rev().take(some).map(shown).collect() })
    }

    fn read(&self, call: &Call) -> Reply {
        let streams = (call.words().len() - 6) / 2;
        let mut all = Vec::new();
        for at in 0..streams {
            let (key, cursor) = (call.word(6 + at), bound(call.word(6 + streams + at)));
            let Some(stream) = self.stream(key) else { continue };
            let first = stream.first_from(match cursor {
                Bound::Included(id) => Bound::Excluded(id),
                other => other,
            });
            let new: Vec<Reply> = stream.entries.range(first..).take(number(call.word(2)) as usize).map(shown).collect();
            if !new.is_empty() {
                all.push(Reply::List(vec![Reply::Bytes(key.to_vec()), Reply::List(new)]));
            }
        }
        if all.is_empty() { Reply::Nil } else { Reply::List(all) }
    }
}

impl Stream {
    fn first_from(&self, from: Bound<EntryId>) -> usize {
        match from {
            Bound::Unbounded => 0,
            Bound::Included(id) => self.entries.partition_point(|(other, _)| *other < id),
            Bound::Excluded(id) => self.entries.partition_point(|(other, _)| *other <= id),
        }
    }

    fn first_behind(&self, to: Bound<EntryId>) -> usize {
        match to {
            Bound::Unbounded => self.entries.len(),
            Bound::Included(id) => self.entries.partition_point(|(other, _)| *other <= id),
            Bound::Excluded(id) => self.entries.partition_point(|(other, _)| *other < id),
        }
    }
}

fn bound(text: &[u8]) -> Bound<EntryId> {
    let text = std::str::from_utf8(text).expect("ids are text");
    let id = |text: &str| match text.parse::<u64>() {
        // Where the number is left out it is the first of its millisecond.
        Ok(ms) => EntryId { ms, number: 0 },
        Err(_) => EntryId::parse(text).expect("an id"),
    };
    match text.strip_prefix('(') {
        Some(text) => Bound::Excluded(id(text)),
        None if text == "-" || text == "+" => Bound::Unbounded,
        None => Bound::Included(id(text)),
    }
}

fn number(text: &[u8]) -> u64 {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).expect("a number")
}

fn shown((id, words): &(EntryId, Words)) -> Reply {
    let words = words.iter().cloned().map(Reply::Bytes).collect();
    Reply::List(vec![Reply::Bytes(id.to_string().into_bytes()), Reply::List(words)])
}
