//! Which rooms the back end has made, in Redis, so that a host that comes or comes back learns of them: the keys, and the roll call in which
//! what this host's shards know is compared with what all hosts know. It sends nothing.
//!
//! | key (after the prefix) | is |
//! |---|---|
//! | `rooms:ENDPOINT` | hash: room -> what the back end said of it, a JSON object |
//! | `rooms` | a random text: as long as it is the same, Redis has lost nothing |
//!
//! The roll call: the mark is read (or set); the shards tell of their rooms, all of them if Redis may have lost some; then all that Redis knows are
//! told to the shards. What a shard has and Redis has not is over, if Redis has lost nothing meanwhile.

use rand::Rng as _;
use rand::rngs::StdRng;

use super::request::{Call, Reply, Request};
use crate::config::Config;
use crate::ids::{EndpointId, Room, ShardId, checked_name};
use crate::json::{Object, Scratch, Value};
use crate::limits::{NAME_BYTES_MAX, ROLL_ROOMS, ROOM_METADATA_BYTES_MAX};
use crate::shard::outward::Made;
use crate::shard::parcel::Roll;
use crate::shard::room_calls::NewRoom;

/// See the module.
pub(crate) struct Rooms {
    prefix: String,
    /// By the endpoint.
    names: Vec<String>,
    /// The mark that was there when Redis was last known to have everything.
    mark: Option<String>,
    /// Counts the roll calls; answers to those that were broken off are passed over.
    number: u64,
    step: Step,
    scratch: Scratch,
}

/// How far a roll call has come.
#[derive(Debug)]
enum Step {
    /// There is none.
    None,
    /// Is it the same mark?
    Marking,
    /// So many shards still tell of their rooms.
    Calling { left: usize, is_same: bool, place: u64 },
    /// Redis tells of those of this endpoint, from this cursor on.
    Reading { endpoint: usize, cursor: String, is_same: bool, is_asked: bool },
}

/// Whom a step of the roll call is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// Every shard.
    All,
    /// This one.
    Shard(ShardId),
    /// The room's home.
    Home(Room),
}

/// What an answer of Redis means.
#[derive(Default, Debug)]
pub(crate) struct Called {
    pub(crate) rolls: Vec<(To, Roll)>,
    /// Records that are none.
    pub(crate) malformed: u64,
}

impl Rooms {
    pub(crate) fn new(config: &Config, prefix: &str) -> Rooms {
        let names = config.endpoints.iter().map(|endpoint| endpoint.name.clone()).collect();
        Rooms { prefix: prefix.to_owned(), names, mark: None, number: 0, step: Step::None, scratch: Scratch::default() }
    }

    /// By what it is known that Redis has lost nothing, for after a reload.
    pub(crate) fn mark(&self) -> Option<&String> {
        self.mark.as_ref()
    }

    pub(crate) fn set_mark(&mut self, mark: Option<String>) {
        self.mark = mark;
    }

    fn key(&self, endpoint: usize) -> String {
        format!("{}:rooms:{}", self.prefix, self.names.get(endpoint).map_or("", String::as_str))
    }

    /// What Redis is told of a room that was made.
    pub(crate) fn made(&self, made: &Made) -> Call {
        let Made { new, unix_ms, is_news } = made;
        let said = Object::with_capacity(new.bytes() + 100)
            .str("name", &new.name)
            .opt_str("namespace", new.namespace.as_deref())
            .opt_str("createdBy", new.created_by.as_deref())
            .num("created", *unix_ms)
            .raw("metadata", &new.metadata)
            .finish();
        let call = Call::new(if *is_news { "HSET" } else { "HSETNX" });
        call.arg(self.key(usize::from(new.room.endpoint.0))).arg(&*new.room.name).arg(said)
    }

    /// What Redis is told of a room that has ended.
    pub(crate) fn ended(&self, room: &Room) -> Call {
        Call::new("HDEL").arg(self.key(usize::from(room.endpoint.0))).arg(&*room.name)
    }

    /// A roll call begins, whatever has become of the last; its first request, and its number.
    pub(crate) fn begin(&mut self, random: &mut StdRng) -> (u64, Request) {
        self.number += 1;
        self.step = Step::Marking;
        let (key, mark) = (format!("{}:rooms", self.prefix), format!("{:016x}", random.next_u64()));
        (self.number, Request::several(vec![Call::new("SET").arg(&key).arg(mark).arg("NX"), Call::new("GET").arg(key)]))
    }

    /// The next request, if what the shards have told has passed.
    pub(crate) fn next_request(&mut self, has_passed: impl Fn(u64) -> bool) -> Option<(u64, Request)> {
        if let Step::Calling { left: 0, is_same, place } = self.step
            && has_passed(place)
        {
            self.step = Step::Reading { endpoint: 0, cursor: "0".to_owned(), is_same, is_asked: false };
        }
        let number = self.number;
        let Step::Reading { endpoint, cursor, is_asked: is_asked @ false, .. } = &mut self.step else { return None };
        *is_asked = true;
        let (endpoint, call) = (*endpoint, Call::new("HSCAN"));
        let cursor = cursor.clone();
        Some((number, call.arg(self.key(endpoint)).arg(cursor).arg("COUNT").number(ROLL_ROOMS as u64).into()))
    }

    /// A shard has told of some of its rooms, and goes on after one if there are more; all that was told before `place` was.
    pub(crate) fn told(&mut self, shard: ShardId, after: Option<Room>, place: u64) -> Option<(To, Roll)> {
        let Step::Calling { left, is_same, place: last } = &mut self.step else { return None };
        *last = place;
        if after.is_none() {
            *left = left.saturating_sub(1);
            return None;
        }
        Some((To::Shard(shard), Roll::Call { all: !*is_same, after }))
    }

    /// Redis has answered, or (`None`) will not: then the roll call is over.
    pub(crate) fn answered(&mut self, number: u64, replies: Option<&[Reply]>, shards: usize) -> Called {
        let mut called = Called::default();
        if number != self.number {
            return called;
        }
        match (std::mem::replace(&mut self.step, Step::None), replies) {
            (Step::Marking, Some([_, mark])) => {
                let Some(mark) = mark.text().map(str::to_owned) else { return called };
                let is_same = self.mark.as_ref() == Some(&mark);
                self.mark = Some(mark);
                self.step = Step::Calling { left: shards, is_same, place: 0 };
                called.rolls.push((To::All, Roll::Call { all: !is_same, after: None }));
            }
            (Step::Reading { endpoint, is_same, .. }, Some([Reply::List(page)])) => {
                let [cursor, fields] = &page[..] else { return called };
                for pair in fields.list().chunks_exact(2) {
                    match self.record(endpoint, &pair[0], &pair[1]) {
                        Some(made) => called.rolls.push((To::Home(made.new.room.clone()), Roll::Room(made))),
                        None => called.malformed += 1,
                    }
                }
                let cursor = cursor.text().unwrap_or("0");
                let next = if cursor == "0" { (endpoint + 1, "0") } else { (endpoint, cursor) };
                if next.0 < self.names.len() {
                    self.step = Step::Reading { endpoint: next.0, cursor: next.1.to_owned(), is_same, is_asked: false };
                } else {
                    called.rolls.push((To::All, Roll::End { is_whole: is_same }));
                }
            }
            _ => {}
        }
        called
    }

    /// A room that the back end has made, if that is what it is.
    fn record(&mut self, endpoint: usize, name: &Reply, said: &Reply) -> Option<Made> {
        let room = Room::named(EndpointId(u8::try_from(endpoint).ok()?), checked_name(name.text()?).ok()?);
        let doc = self.scratch.parse(said.text()?).ok()?;
        let said = doc.root();
        let short = |key| said.get(key).and_then(Value::as_str).filter(|text| text.len() <= 4 * NAME_BYTES_MAX).map(str::to_owned);
        let metadata = said.get("metadata").filter(|metadata| metadata.is_object() && metadata.raw().len() <= ROOM_METADATA_BYTES_MAX)?;
        let created = said.get("created").and_then(Value::as_f64).filter(|created| *created >= 0.0)?;
        let new = NewRoom {
            room,
            name: short("name")?,
            namespace: short("namespace"),
            created_by: short("createdBy"),
            metadata: metadata.raw().to_owned(),
        };
        Some(Made { new, unix_ms: created as u64, is_news: false })
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::config::{DialectKind, Endpoint};

    fn rooms() -> Rooms {
        let endpoints = vec![Endpoint::new("one", DialectKind::Rooms, "/"), Endpoint::new("two", DialectKind::Chat, "/two")];
        Rooms::new(&Config::new(([127, 0, 0, 1], 0), 2, endpoints), "u")
    }

    fn made(name: &str) -> Made {
        let new = NewRoom {
            room: Room::named(EndpointId(1), name),
            name: "For \"people\"".into(),
            namespace: Some("n".into()),
            created_by: None,
            metadata: r#"{"a":[1e+100]}"#.into(),
        };
        Made { new, unix_ms: 1_700_000_000_123, is_news: true }
    }

    fn text(text: &str) -> Reply {
        Reply::Bytes(text.as_bytes().to_vec())
    }

    fn page(cursor: &str, fields: &[&[u8]]) -> [Reply; 1] {
        let fields = fields.iter().map(|field| Reply::Bytes(field.to_vec())).collect();
        [Reply::List(vec![text(cursor), Reply::List(fields)])]
    }

    /// A whole roll call in which Redis has this mark; whether all are asked for, and whether what is not told has ended.
    fn call(rooms: &mut Rooms, mark: &str) -> (bool, bool) {
        let (number, _) = rooms.begin(&mut StdRng::seed_from_u64(1));
        let called = rooms.answered(number, Some(&[Reply::Nil, text(mark)]), 2);
        let [(To::All, Roll::Call { all, after: None })] = called.rolls[..] else { panic!("{called:?}") };
        assert!(rooms.next_request(|_| true).is_none(), "no shard has told of its rooms");
        rooms.told(ShardId(0), None, 5);
        let more = rooms.told(ShardId(1), Some(Room::named(EndpointId(1), "m")), 6);
        assert!(matches!(more, Some((To::Shard(ShardId(1)), Roll::Call { after: Some(_), .. }))));
        rooms.told(ShardId(1), None, 7);
        assert!(rooms.next_request(|place| place < 7).is_none(), "what they have told is not there yet");
        let mut requests = Vec::new();
        let pages: [(&str, &[&[u8]]); 3] = [("17", &[]), ("0", &[b"r", b"nonsense"]), ("0", &[])];
        for (cursor, fields) in pages {
            let (number, request) = rooms.next_request(|place| place <= 7).expect("the next");
            requests.push(format!("{:?}", request.calls[0]));
            let called = rooms.answered(number, Some(&page(cursor, fields)), 2);
            if let Some((To::All, Roll::End { is_whole })) = called.rolls.into_iter().next() {
                let asked = ["u:rooms:one 0", "u:rooms:one 17", "u:rooms:two 0"].map(|what| format!("Call(HSCAN {what} COUNT 256)"));
                assert_eq!((requests, rooms.next_request(|_| true).is_none()), (asked.to_vec(), true));
                return (all, is_whole);
            }
        }
        panic!("it has no end")
    }

    #[test]
    fn only_what_redis_cannot_have_lost_has_ended() {
        let mut rooms = rooms();
        assert_eq!(call(&mut rooms, "a"), (true, false), "the first time");
        assert_eq!(call(&mut rooms, "a"), (false, true));
        assert_eq!(call(&mut rooms, "b"), (true, false), "it has lost everything");
        assert_eq!(call(&mut rooms, "b"), (false, true));
    }

    #[test]
    fn one_that_is_broken_off_ends_nothing() {
        let mut rooms = rooms();
        call(&mut rooms, "a");
        let (old, _) = rooms.begin(&mut StdRng::seed_from_u64(1));
        let (number, _) = rooms.begin(&mut StdRng::seed_from_u64(2));
        assert!(rooms.answered(old, Some(&[Reply::Nil, text("a")]), 1).rolls.is_empty());
        assert!(rooms.answered(number, None, 1).rolls.is_empty() && rooms.next_request(|_| true).is_none());
        assert!(rooms.answered(number, Some(&page("0", &[])), 1).rolls.is_empty());
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_anything_else_is_none() {
        let mut rooms = rooms();
        let call = rooms.made(&made("r"));
        assert_eq!((call.word(0), call.word(1), call.word(2)), (&b"HSET"[..], &b"u:rooms:two"[..], &b"r"[..]));
        assert_eq!(rooms.made(&Made { is_news: false, ..made("r") }).word(0), b"HSETNX");
        let said = String::from_utf8(call.word(3).to_vec()).expect("text");
        let read = rooms.record(1, &text("r"), &text(&said)).expect("a record");
        assert_eq!(format!("{:?}", read.new), format!("{:?}", made("r").new));
        assert_eq!(read.unix_ms, 1_700_000_000_123);
        for (name, said) in [
            ("", &*said),
            ("a\n", &said),
            ("r", "{}"),
            ("r", &said.replace("{\"a\":[1e+100]}", "[]")),
            ("r", &said.replace("1700000000123", "-1")),
            ("r", &said.replace("For", &"x".repeat(2_000))),
            ("r", &said.replace("[1e+100]", &format!("\"{}\"", "x".repeat(ROOM_METADATA_BYTES_MAX)))),
        ] {
            assert!(rooms.record(1, &text(name), &text(said)).is_none(), "{name:?} {said}");
        }
        assert!(rooms.record(1, &Reply::Nil, &Reply::Bytes(vec![0xff])).is_none());
    }
}
