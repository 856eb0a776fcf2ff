//! What hosts of a fleet say to each other, as JSON texts: who they are, what one asks all of them or one, and what each answers. It knows
//! neither how they travel nor what has been asked.
//!
//! | text | on | says |
//! |---|---|---|
//! | [`Hello`] | a host's lease | its id, shards, version, and its endpoints' names |
//! | [`Ask`] | `{prefix}#ask#` | a question, its asker and number, how long is waited for the answer |
//! | [`Answered`] | `{prefix}#answer#{host}#` | what the shards of one host answer; several texts where one would be too long |
//!
//! An endpoint is written as its place in the list of names that the same text has, because hosts may have different configurations; what is of an
//! endpoint that the reader does not have, is of no concern to him. Members that the reader does not know are passed over. A question that he cannot read
//! (of a newer host) he says so of; other texts that cannot be read are counted and dropped. What clients and users said stands in strings and
//! is nothing but data.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::dialect::Change;
use crate::ids::EndpointId;
use crate::json::Scratch;
use crate::limits::{FLEET_ANSWER_BYTES_MAX, FLEET_ASK_BYTES_MAX, FLEET_MESSAGES_BYTES_MAX, NAME_BYTES_MAX};
use crate::shard::parcel::{Answer, Emitted, Question};
use crate::shard::room_calls::{RoomAnswer, RoomCall};

/// Version of these words. It grows when an old host would misunderstand a new one; what is only added needs no new one.
pub const VERSION: u32 = 1;

/// A host of the fleet: 16 hex characters, random at each start of its process.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct HostId(Arc<str>);

impl HostId {
    /// Of a random number.
    pub fn new(random: u64) -> HostId {
        HostId(format!("{random:016x}").into())
    }

    /// What stands for all Socket.IO servers of other programs together, which are no hosts of our kind but answer as one.
    pub fn peers() -> HostId {
        HostId::new(0)
    }

    /// Reads the 16 characters; `None` for any other text.
    pub fn parse(text: &str) -> Option<HostId> {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == 16 && text.bytes().all(is_hex)).then(|| HostId(text.into()))
    }

    /// The 16 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HostId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HostId, D::Error> {
        let text = String::deserialize(deserializer)?;
        HostId::parse(&text).ok_or_else(|| serde::de::Error::custom("not the id of a host"))
    }
}

/// Who a host is: what its lease says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the words it speaks.
    pub v: u32,
    /// Its id.
    pub host: HostId,
    /// How many shards it has.
    pub shards: usize,
    /// Which release it is, for people.
    pub version: String,
    /// The names of its endpoints, in its order.
    pub endpoints: Arc<[String]>,
}

impl Hello {
    /// Of a host that speaks these words and is of this release.
    pub fn new(host: HostId, shards: usize, version: &str, endpoints: impl IntoIterator<Item = String>) -> Hello {
        Hello { v: VERSION, host, shards, version: version.to_owned(), endpoints: endpoints.into_iter().collect() }
    }

    /// The lease's text.
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a lease's text; `None` for any other.
    pub fn parse(text: &str) -> Option<Hello> {
        let hello: Hello = serde_json::from_str(text).ok()?;
        let has_names = hello.endpoints.iter().all(|name| name.len() <= NAME_BYTES_MAX) && hello.endpoints.len() <= 255;
        (has_names && hello.shards <= 255 && hello.version.len() <= NAME_BYTES_MAX).then_some(hello)
    }
}

/// What one host wants of others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Wish {
    /// An answer of each shard.
    Shards(Question),
    /// An answer of the program that the engine is embedded in, in words that only the two programs know.
    Program(Arc<str>),
}

impl Wish {
    /// Milliseconds that the answer may take, beyond what an answer takes anyway.
    pub fn wait_ms(&self) -> u64 {
        if let Wish::Shards(question) = self { question.wait_ms() } else { 0 }
    }
}

/// A question's envelope.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    pub(super) v: u32,
    pub(super) host: HostId,
    pub(super) number: u64,
    /// Milliseconds the asker waits.
    pub(super) wait_ms: u64,
    /// The one host that is asked; all if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<HostId>,
    /// The names behind the endpoints' numbers.
    pub(super) endpoints: Arc<[String]>,
    wish: Box<RawValue>,
}

/// Why a host does not do what it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Cannot {
    /// It does not know such questions.
    Understand,
    /// It has too many of them.
    Busy,
    /// A reason that only newer hosts know.
    #[serde(other)]
    Other,
}

/// An answer's envelope.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answered {
    pub(super) v: u32,
    pub(super) host: HostId,
    pub(super) number: u64,
    /// True exactly when more of the answer follows.
    #[serde(default)]
    pub(super) more: bool,
    /// Shards that have not answered and will not; counted in the last part.
    #[serde(default)]
    pub(super) missing: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cannot: Option<Cannot>,
    pub(super) endpoints: Arc<[String]>,
    pub(super) answers: Vec<Box<RawValue>>,
}

/// Why a text is not sent, or not understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// Longer than hosts may send each other.
    TooLong,
    /// Not of the words that this host knows.
    Unknown,
}

impl Ask {
    /// A question as text.
    pub(super) fn text(own: &Hello, number: u64, wait_ms: u64, to: Option<HostId>, wish: &Wish) -> Result<String, Fault> {
        let wish = serde_json::value::to_raw_value(wish).map_err(|_| Fault::Unknown)?;
        let ask = Ask { v: own.v, host: own.host.clone(), number, wait_ms, to, endpoints: own.endpoints.clone(), wish };
        let text = serde_json::to_string(&ask).map_err(|_| Fault::Unknown)?;
        if text.len() > FLEET_ASK_BYTES_MAX { Err(Fault::TooLong) } else { Ok(text) }
    }

    /// Reads one.
    pub(super) fn parse(text: &str) -> Result<Ask, Fault> {
        if text.len() > FLEET_ASK_BYTES_MAX { Err(Fault::TooLong) } else { serde_json::from_str(text).map_err(|_| Fault::Unknown) }
    }

    /// What is asked, in this host's numbers; `None` when it is about an endpoint that this host does not have.
    pub(super) fn wish(&self, own: &Hello) -> Result<Option<Wish>, Fault> {
        let mut wish = serde_json::from_str(self.wish.get()).map_err(|_| Fault::Unknown)?;
        let is_ours = match &mut wish {
            Wish::Shards(question) => {
                if !is_sound(question) {
                    return Err(Fault::Unknown);
                }
                let mut is_ours = true;
                endpoints_of(question, &mut |id| match translated(*id, &self.endpoints, &own.endpoints) {
                    Some(here) => *id = here,
                    None => is_ours = false,
                });
                if let Question::Emit(emit) = question {
                    Arc::make_mut(emit).is_elsewhere = true;
                }
                is_ours
            }
            Wish::Program(_) => true,
        };
        Ok(is_ours.then_some(wish))
    }
}

impl Answered {
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(super) fn parse(text: &str) -> Result<Answered, Fault> {
        if text.len() > FLEET_ANSWER_BYTES_MAX + FLEET_ASK_BYTES_MAX {
            return Err(Fault::TooLong);
        }
        serde_json::from_str(text).map_err(|_| Fault::Unknown)
    }

    /// One of its answers, in this host's numbers.
    pub(super) fn answer(&self, raw: &RawValue, own: &Hello) -> Result<Answer, Fault> {
        let mut answer = serde_json::from_str(raw.get()).map_err(|_| Fault::Unknown)?;
        if let Answer::Connections(list) = &mut answer {
            for info in list {
                // It is shown all the same: without it the pages of a list would not fit together.
                info.endpoint = translated(info.endpoint, &self.endpoints, &own.endpoints).unwrap_or(EndpointId::UNKNOWN);
            }
        }
        Ok(answer)
    }
}

/// An answer as text, made shorter where that is no lie.
pub(super) fn answer_text(answer: &mut Answer) -> Result<Box<RawValue>, Fault> {
    if let Answer::Room(RoomAnswer::Messages(messages)) = answer {
        let mut bytes = 0;
        let fit = messages.iter().take_while(|message| {
            bytes += message.len();
            bytes <= FLEET_MESSAGES_BYTES_MAX
        });
        let fit = fit.count().max(1);
        messages.truncate(fit);
    }
    match raw_answer(answer) {
        Err(Fault::TooLong) => {
            // What the clients said is left out; how many confirmed is what is summed.
            let Answer::Emitted(Emitted { answers, .. }) = answer else { return Err(Fault::TooLong) };
            answers.clear();
            raw_answer(answer)
        }
        text => text,
    }
}

fn raw_answer(answer: &Answer) -> Result<Box<RawValue>, Fault> {
    let text = serde_json::value::to_raw_value(answer).map_err(|_| Fault::Unknown)?;
    if text.get().len() > FLEET_ANSWER_BYTES_MAX { Err(Fault::TooLong) } else { Ok(text) }
}

/// The number that `to` has for what `from` calls `id`.
fn translated(id: EndpointId, from: &[String], to: &[String]) -> Option<EndpointId> {
    let name = from.get(usize::from(id.0))?;
    let here = to.iter().position(|known| known == name)?;
    u8::try_from(here).ok().map(EndpointId)
}

/// What is spliced into messages as it is must be what it says, whoever sent it.
fn is_sound(question: &Question) -> bool {
    let is_json = |text: &str| Scratch::default().parse(text).is_ok();
    match question {
        Question::Revise(revision) => !matches!(&revision.change, Some(Change::Edit(content)) if !is_json(content)),
        Question::Room(RoomCall::Create(new)) => is_json(&new.metadata),
        Question::Room(RoomCall::Say(saying)) => saying.message.metadata.as_deref().is_none_or(is_json),
        _ => true,
    }
}

/// Everything in a question that is an endpoint.
fn endpoints_of(question: &mut Question, see: &mut dyn FnMut(&mut EndpointId)) {
    match question {
        Question::Connections { endpoint, .. } | Question::CloseInactive { endpoint, .. } | Question::CloseUser { endpoint, .. } => {
            endpoint.iter_mut().for_each(see);
        }
        Question::Connection { .. } | Question::CloseConnection { .. } => {}
        Question::Emit(emit) => see(&mut Arc::make_mut(emit).to.endpoint),
        Question::Disconnect { from, .. } => see(&mut from.endpoint),
        Question::Grant { endpoint, .. } | Question::Revoke { endpoint, .. } => see(endpoint),
        Question::Room(call) => match call {
            RoomCall::Create(new) => see(&mut Arc::make_mut(new).room.endpoint),
            RoomCall::Say(saying) => see(&mut Arc::make_mut(saying).room.endpoint),
            RoomCall::List { endpoint, .. } => see(endpoint),
            RoomCall::Members { rooms } => Arc::make_mut(rooms).iter_mut().for_each(|room| see(&mut room.endpoint)),
            RoomCall::Show { room } | RoomCall::Stats { room } | RoomCall::Delete { room } => see(&mut room.endpoint),
            RoomCall::Enter { room, .. } | RoomCall::Leave { room, .. } | RoomCall::Messages { room, .. } => see(&mut room.endpoint),
        },
        Question::Revise(revision) => see(&mut Arc::make_mut(revision).endpoint),
        Question::Post(post) => see(&mut Arc::make_mut(post).room.endpoint),
        Question::Past { room, .. } => see(&mut room.endpoint),
    }
}
