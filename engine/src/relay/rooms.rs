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
