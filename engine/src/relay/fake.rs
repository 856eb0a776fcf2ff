//! A Redis of a test's own: as much of it as the reliable mode asks for, in memory, with a clock that the test moves.

use std::collections::HashMap;

use super::request::{Call, Reply, Request};
use crate::wire::sio::EntryId;

/// Fields and values, as they came.
type Words = Vec<Vec<u8>>;

#[derive(Default)]
pub(super) struct Fake {
    pub(super) now_ms: u64,
    /// Channels and what was published there.
    pub(super) published: Vec<(Vec<u8>, Vec<u8>)>,
    values: HashMap<Vec<u8>, (Vec<u8>, u64)>,
    streams: HashMap<Vec<u8>, Vec<(EntryId, Words)>>,
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

    fn append(&mut self, stream: &[u8], words: Words) -> EntryId {
        let entries = self.streams.entry(stream.to_vec()).or_default();
        let last = entries.last().map(|(id, _)| *id).unwrap_or_default();
        let id = if last.ms >= self.now_ms { EntryId { number: last.number + 1, ..last } } else { EntryId { ms: self.now_ms, number: 0 } };
        entries.push((id, words));
        id
    }

    fn value(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let now_ms = self.now_ms;
        self.values.get(key).filter(|(_, until_ms)| *until_ms > now_ms).map(|(value, _)| value.clone())
    }

    fn call(&mut self, call: &Call) -> Reply {
        let word = |at: usize| call.word(at).to_vec();
        let text = |at: usize| String::from_utf8_lossy(call.word(at)).into_owned();
        let number = |at: usize| text(at).parse::<u64>().expect("a number");
        match &*text(0) {
            "PING" => Reply::Text("PONG".into()),
            "PUBLISH" => {
                self.published.push((word(1), word(2)));
                Reply::Int(0)
            }
            "GET" => self.value(call.word(1)).map_or(Reply::Nil, Reply::Bytes),
            "DEL" => Reply::Int(i64::from(self.values.remove(call.word(1)).is_some())),
            "SET" => {
                let until_ms = if call.words().len() > 4 { self.now_ms + number(4) } else { u64::MAX };
                self.values.insert(word(1), (word(2), until_ms));
                Reply::Text("OK".into())
            }
            "EVAL" if text(1).contains("XADD") => self.add_numbered(call),
            "XRANGE" | "XREVRANGE" => {
                let is_forward = text(0) == "XRANGE";
                let (from, to) = if is_forward { (text(2), text(3)) } else { (text(3), text(2)) };
                let count = if call.words().len() > 5 { number(5) as usize } else { usize::MAX };
                let id = |text: &str| EntryId::parse(text).expect("an id");
                let is_in = |entry: &EntryId| {
                    let is_after = match from.strip_prefix('(') {
                        Some(from) => *entry > id(from),
                        None => from == "-" || *entry >= id(&from),
                    };
                    is_after && (to == "+" || *entry <= id(&to))
                };
                let entries = self.streams.get(call.word(1)).map_or(&[][..], Vec::as_slice);
                let found = entries.iter().filter(|(id, _)| is_in(id));
                let found: Vec<Reply> =
                    if is_forward { found.take(count).map(shown).collect() } else { found.rev().take(count).map(shown).collect() };
                Reply::List(found)
            }
            "XREAD" => {
                let streams = (call.words().len() - 6) / 2;
                let mut all = Vec::new();
                for at in 0..streams {
                    let (key, cursor) = (word(6 + at), EntryId::parse(&text(6 + streams + at)).expect("an id"));
                    let entries = self.streams.get(&key).map_or(&[][..], Vec::as_slice);
                    let new: Vec<Reply> = entries.iter().filter(|(id, _)| *id > cursor).take(number(2) as usize).map(shown).collect();
                    if !new.is_empty() {
                        all.push(Reply::List(vec![Reply::Bytes(key), Reply::List(new)]));
                    }
                }
                if all.is_empty() { Reply::Nil } else { Reply::List(all) }
            }
            _ => Reply::Error("ERR unknown command".into()),
        }
    }

    /// What the script of [`super::append`] does.
    fn add_numbered(&mut self, call: &Call) -> Reply {
        let words: Vec<Vec<u8>> = call.words().map(<[u8]>::to_vec).collect();
        let number = |at: usize| String::from_utf8_lossy(&words[at]).parse::<u64>().expect("a number");
        let (stream, key, mut next, is_forced) = (words[3].clone(), words[4].clone(), number(5), number(6) == 1);
        let last = self.value(&key).map_or(0, |value| String::from_utf8_lossy(&value).parse::<u64>().expect("a number"));
        if last + 1 < next && !is_forced {
            return Reply::List(vec![Reply::Int(last as i64), Reply::Int(0)]);
        }
        let mut at = 9;
        while at < words.len() {
            let parts = number(at);
            at += 1;
            for part in 0..parts {
                let count = number(at) as usize;
                if next > last && part == 0 {
                    self.append(&stream, words[at + 1..=at + count].to_vec());
                }
                at += 1 + count;
            }
            next += 1;
        }
        let last = last.max(next - 1);
        self.values.insert(key, (last.to_string().into_bytes(), u64::MAX));
        Reply::List(vec![Reply::Int(last as i64), Reply::Int(0)])
    }
}

fn shown((id, words): &(EntryId, Words)) -> Reply {
    let words = words.iter().cloned().map(Reply::Bytes).collect();
    Reply::List(vec![Reply::Bytes(id.to_string().into_bytes()), Reply::List(words)])
}
