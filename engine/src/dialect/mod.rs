//! How the served systems talk. A dialect turns what a client says into [`Act`]s and encodes what others hear; it sees a read-only
//! [`Cx`] and knows no socket, no other connection, no other core and no clock. Adding one: a file here, a line in [`of`]; or in an
//! embedding program a [`Dialect`] of its own, bound as an [`OwnDialect`].

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::auth::{AuthFault, Identity, Names, Verifier};
use crate::config::{AuthMode, DialectKind, Endpoint};
use crate::event::{Event, EventType, Receipted, Wanted, What};
use crate::fault::{CloseReason, DropReason, Refusal};
use crate::frame::{Frame, Mark, Receipt};
use crate::ids::{EndpointId, MessageId, Room, Sid, UserId, checked_name, new_message_id};
use crate::json::{self, Object, Scratch, Value};
use crate::limits::Limits;
use crate::time::{Now, Rfc3339};
use crate::wire::http;
use crate::wire::sio::{self, Offset};

mod chat;
mod collab;
pub mod community;
mod echo;
mod notify;
mod own;
mod rooms;

pub use collab::{STEPS, steps};
pub use own::OwnDialect;

/// The member that makes an object stand for an attachment.
const PLACEHOLDER: &str = "\"_placeholder\"";

/// The dialect of an endpoint.
pub fn of(kind: DialectKind) -> &'static dyn Dialect {
    match kind {
        DialectKind::Community => &community::Community,
        DialectKind::Collab => &collab::Collab,
        DialectKind::Rooms => &rooms::Rooms,
        DialectKind::Chat => &chat::Chat,
        DialectKind::Notify => &notify::Notify,
        DialectKind::Echo => &echo::Echo,
        DialectKind::Own(own) => own.dialect(),
    }
}

/// What a client brings when it connects.
pub struct Hello<'a> {
    /// Now.
    pub now: Now,
    /// The endpoint it wants.
    pub endpoint: &'a Endpoint,
    /// The id it will have.
    pub sid: Sid,
    /// Query string of the request, still percent-encoded.
    pub query: &'a str,
    /// What the client gave as Socket.IO `auth`, an object.
    pub auth: Option<Value<'a>>,
    /// What became of the token, wherever it was given; [`AuthFault::Missing`] when it was not.
    pub token: Result<Arc<Identity>, AuthFault>,
}

impl Hello<'_> {
    /// Who this is by the endpoint's [`AuthMode`]: whom the token names, or somebody whose name is his connection's id.
    pub fn profile(&self) -> Result<Profile, Refused> {
        match (self.endpoint.auth, &self.token) {
            (AuthMode::None, _) => Ok(Profile::named(self.sid.text().as_str())),
            (AuthMode::Token, Ok(identity)) => Ok(Profile::of(identity.clone())),
            (AuthMode::Token, Err(fault)) => Err(Refused::with(401, &fault.to_string(), Refusal::Unauthorized)),
        }
    }

    /// The first value of this name in the query, decoded; `None` too when it is not UTF-8.
    pub fn query_value(&self, name: &str) -> Option<Cow<'_, str>> {
        http::query_value(self.query, name)
    }
}

/// Who a connection is, for as long as it lasts. What only some have is apart: there is one of these for every connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Profile {
    /// The user, as the admin API and the other clients know him.
    pub user: UserId,
    /// The verified claims; `None` where the endpoint asks for no token.
    pub identity: Option<Arc<Identity>>,
    /// There exactly until the connection has identified itself ([`Act::Identify`]): what became of its handshake's proof. Until then
    /// it is in no room, and what stands above is no more than what it will be if it does.
    pub unproven: Option<Result<(), AuthFault>>,
    /// What it is besides; `None` where that is what user and identity say.
    pub own: Option<Box<Own>>,
}

/// What a connection is besides its user and what his token says. If there is one, all of it counts, and nothing of the token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Own {
    /// See [`Profile::presence`].
    pub presence: UserId,
    /// Name shown to others.
    pub username: Option<Box<str>>,
    /// Mail address.
    pub email: Option<Box<str>>,
    /// True exactly when [`Self::presence`] is a `clientID`.
    pub has_client_id: bool,
    /// What the client said of itself and the back end may read, JSON.
    pub metadata: Option<Box<str>>,
}

impl Profile {
    /// Whom a verified token names.
    pub fn of(identity: Arc<Identity>) -> Profile {
        Profile { user: identity.user.clone(), identity: Some(identity), unproven: None, own: None }
    }

    /// A user without a token; his id went through [`crate::ids::checked_name`] if a client gave it.
    pub fn named(user: &str) -> Profile {
        Profile { user: user.into(), identity: None, unproven: None, own: None }
    }

    /// Under which name the connection counts as present in a room: entering is told when the first connection of this name does it,
    /// leaving when the last one has gone. The user, or where clients have names of their own (collab) that name.
    pub fn presence(&self) -> &UserId {
        self.own.as_ref().map_or(&self.user, |own| &own.presence)
    }

    /// Name shown to others.
    pub fn username(&self) -> Option<&str> {
        match &self.own {
            Some(own) => own.username.as_deref(),
            None => self.identity.as_ref()?.name(),
        }
    }

    /// Mail address.
    pub fn email(&self) -> Option<&str> {
        match &self.own {
            Some(own) => own.email.as_deref(),
            None => self.identity.as_ref()?.email(),
        }
    }

    /// What it is besides, to be changed: as it is now, if it was nothing.
    pub fn own(&mut self) -> &mut Own {
        let (presence, username, email) = (self.presence().clone(), self.username().map(Box::from), self.email().map(Box::from));
        let make = || Box::new(Own { presence, username, email, has_client_id: false, metadata: None });
        self.own.get_or_insert_with(make)
    }

    /// The same with a name that is shown to others.
    #[must_use]
    pub fn with_username(mut self, username: Option<&str>) -> Profile {
        self.show(username.map(Box::from), self.email().map(Box::from));
        self
    }

    /// The same with a mail address.
    #[must_use]
    pub fn with_email(mut self, email: Option<&str>) -> Profile {
        self.show(self.username().map(Box::from), email.map(Box::from));
        self
    }

    /// Other claims of the same user count from now on. What is shown of him stays.
    pub fn renew(&mut self, identity: Arc<Identity>) {
        let (username, email) = (self.username().map(Box::from), self.email().map(Box::from));
        self.identity = Some(identity);
        self.show(username, email);
    }

    fn show(&mut self, username: Option<Box<str>>, email: Option<Box<str>>) {
        if (username.as_deref(), email.as_deref()) != (self.username(), self.email()) {
            let own = self.own();
            (own.username, own.email) = (username, email);
        }
    }

    /// True exactly when the token has stopped counting.
    pub fn has_expired(&self, now: Now) -> bool {
        self.expires_unix_ms().is_some_and(|at| at <= now.unix_ms)
    }

    /// Wall clock time at which the token stops counting, milliseconds since 1970.
    pub fn expires_unix_ms(&self) -> Option<u64> {
        self.identity.as_ref()?.expires_unix_ms()
    }
}

/// How a connection is refused. What fits the other transport only becomes what comes next to it: an HTTP answer on Socket.IO is a
/// CONNECT_ERROR with its body, and a CONNECT_ERROR on a plain WebSocket an HTTP 403.
#[derive(Debug)]
pub enum Refused {
    /// By an HTTP answer instead of the upgrade.
    Http {
        /// Status code.
        status: u16,
        /// JSON body.
        body: String,
        /// Counted as this.
        refusal: Refusal,
    },
    /// After the upgrade: `first` is said, then the connection is closed.
    Close {
        /// A last text message.
        first: Option<String>,
        /// The reason, which has the close code.
        reason: CloseReason,
    },
    /// By a Socket.IO CONNECT_ERROR; the transport stays.
    Connect {
        /// The error object.
        data: String,
        /// Counted as this.
        refusal: Refusal,
    },
}

impl Refused {
    /// By `{"message": message}`: with this HTTP status, or on Socket.IO as a CONNECT_ERROR.
    pub fn with(status: u16, message: &str, refusal: Refusal) -> Refused {
        Refused::Http { status, body: Object::new().str("message", message).finish(), refusal }
    }
}

/// One thing a client said.
#[derive(Clone, Copy)]
pub enum Said<'a> {
    /// A text message of a plain WebSocket.
    Text(&'a str),
    /// A binary message of a plain WebSocket.
    Binary(&'a [u8]),
    /// A Socket.IO event.
    Event {
        /// Its name; numeric names are given as their text.
        name: &'a str,
        /// The whole array, name included.
        args: Value<'a>,
        /// The acknowledgement the client waits for.
        ack: Option<&'a str>,
    },
}

impl<'a> Said<'a> {
    /// The first argument of an event.
    pub fn argument(&self) -> Option<Value<'a>> {
        match self {
            Said::Event { args, .. } => args.items().nth(1),
            Said::Text(_) | Said::Binary(_) => None,
        }
    }
}

/// What a dialect may look at.
pub struct Cx<'a> {
    /// Now.
    pub now: Now,
    /// Index of the endpoint.
    pub endpoint_id: EndpointId,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// Id of the connection.
    pub sid: Sid,
    /// Who it is.
    pub profile: &'a Profile,
    /// The room of that name, if the connection is in it: the name as everybody in it shares it, for whatever is said there.
    pub inside: &'a dyn Fn(&str) -> Option<&'a Arc<str>>,
    /// Whether it is in the room of that name and nobody else is, on any host, not even away. False also where that is not known at once.
    pub is_alone_in: &'a dyn Fn(&str) -> bool,
    /// Verifies a fresh token.
    pub verifier: Option<&'a Verifier>,
    /// Bounds of all connections.
    pub limits: &'a Limits,
    /// Milliseconds until the connection may say something again; 0 if it may now.
    pub rate_wait_ms: u64,
    /// Random bytes for message ids.
    pub entropy: &'a RefCell<StdRng>,
    /// Binary arguments of what the client said; its placeholders number them.
    pub attachments: &'a [Vec<u8>],
    /// Which events somebody wants to be told of.
    pub wanted: &'a Wanted,
    /// What the back end gave as its reason, where it has refused what the dialect is told of.
    pub reason: Option<&'a str>,
}

impl Cx<'_> {
    /// Whether the connection is in the room of that name.
    pub fn is_in(&self, name: &str) -> bool {
        (self.inside)(name).is_some()
    }

    /// A new message id, UUIDv7.
    pub fn message_id(&self) -> MessageId {
        let mut random = [0; 10];
        rand::Rng::fill_bytes(&mut *self.entropy.borrow_mut(), &mut random);
        new_message_id(self.now.unix_ms, &random)
    }

    /// A text message, for endpoints of plain WebSocket.
    pub fn text(&self, payload: &str) -> Frame {
        Frame::text(self.endpoint_id, payload)
    }

    /// A binary message, for endpoints of plain WebSocket.
    pub fn binary(&self, payload: &[u8]) -> Frame {
        Frame::binary(self.endpoint_id, payload)
    }

    /// An event, for endpoints of Socket.IO. `arguments` are JSON texts joined by commas. Where they carry binary data of what the client
    /// said, that goes with them.
    pub fn event(&self, name: &str, arguments: &str) -> Frame {
        event(self, name, arguments)
    }

    /// The answer to a Socket.IO event for which the client waits ([`Said::Event`]'s `ack`). `arguments` are JSON texts joined by commas.
    pub fn acknowledge(&self, ack: &str, arguments: &str) -> Act {
        acknowledge(self, ack, arguments)
    }

    /// The attachments that go with a text in which JSON of the client may stand. All of them or none: the client's numbers stay true,
    /// and receivers do not mind one that nothing points to.
    fn attachments_of(&self, json: &str) -> &[Vec<u8>] {
        if !self.attachments.is_empty() && json.contains(PLACEHOLDER) { self.attachments } else { &[] }
    }

    /// JSON of the client in the form in which it can be kept without its attachments; `None` where it has none and stays as it is.
    fn without_attachments(&self, value: Value<'_>) -> Option<String> {
        (!self.attachments_of(value.raw()).is_empty()).then(|| sio::spelled_out(value, self.attachments))
    }

    /// What the back end is told of a message, if somebody wants to know; where nobody does, `message` is not made.
    pub fn told(&self, message: impl FnOnce() -> Arc<str>) -> Option<Arc<str>> {
        self.wanted.has(EventType::Message).then(message)
    }

    /// What the back end is told of a receipt, if somebody wants to know.
    fn told_receipt(&self, receipt: impl FnOnce() -> Receipted) -> Option<Box<Event>> {
        let make = || Event {
            endpoint: self.endpoint_id,
            connection: Some(self.sid),
            user: Some(self.profile.user.clone()),
            room: None,
            unix_ms: self.now.unix_ms,
            what: What::Receipt { receipt: Box::new(receipt()) },
        };
        self.wanted.has(EventType::Receipt).then(|| Box::new(make()))
    }

    /// What an event is marked with, so that it can be found again.
    fn mark(&self) -> Mark {
        let offset = (self.endpoint.recovery_ms > 0).then(|| Offset::Own(rand::Rng::next_u64(&mut *self.entropy.borrow_mut())));
        Mark { volatile: false, offset }
    }

    /// What a publication of a client carries where the back end is asked about those of clients; `data` is what the client gave, JSON.
    pub fn submission(&self, room: Option<&str>, event: &str, data: &str) -> Option<Box<Submission>> {
        let make = || Box::new(Submission { room: room.map(Arc::from), event: event.into(), data: data.into() });
        self.endpoint.publish_hook.then(make)
    }

    /// The identity of a token.
    pub fn verify(&self, token: &str) -> Result<Arc<Identity>, AuthFault> {
        let verifier = self.verifier.ok_or(AuthFault::Invalid)?;
        verifier.verify(token, self.now.unix_ms).map(Arc::new)
    }

    /// The identity of a fresh token of the same user.
    pub fn reverify(&self, token: &str) -> Result<Arc<Identity>, AuthFault> {
        let identity = self.verify(token)?;
        // The user may have another name here than in his tokens, if the back end says so.
        if self.profile.identity.as_ref().is_none_or(|known| known.user != identity.user) {
            return Err(AuthFault::Invalid);
        }
        Ok(identity)
    }
}

/// One thing a dialect wants done. All of them are performed in one place, `Shard::perform`.
#[derive(Debug)]
pub enum Act {
    /// To this connection.
    Send(Frame),
    /// To a room, in its one order.
    Publish(Publication),
    /// Something happens in a room that nobody else is in, as [`Cx::is_alone_in`] has said: the room was in use just now, and that is all.
    Stir(Arc<str>),
    /// Enter a room, which has a public name ([`crate::ids::Room::is_public`]); [`Dialect::entered`] gets the answer, and the connection's next message waits for it.
    Enter(Entry),
    /// Leave a room; [`Dialect::left`] gets the answer, and the connection's next message waits for it. What the room's home casts
    /// before it hears of the leaving, the connection still gets: its own last words too.
    Leave {
        /// The room.
        room: Arc<str>,
        /// Comes back with the answer.
        note: Box<str>,
    },
    /// What is kept of a room; [`Dialect::recalled`] gets it.
    Recall {
        /// The room.
        room: Arc<str>,
    },
    /// The connection types in a room, or no longer does. After 5 s without another of these [`Dialect::typing_stopped`] is published.
    Typing {
        /// The room.
        room: Arc<str>,
        /// Whether it types.
        on: bool,
    },
    /// A fresh token of the same user.
    Refresh(Arc<Identity>),
    /// Nobody has known who this is, and now it is known. [`Dialect::identified`] gets the answer of the user's home when the connection
    /// is in all rooms that are the user's, and its next message waits for that.
    Identify {
        /// Who it is.
        profile: Box<Profile>,
        /// Comes back with the answer.
        note: Box<str>,
    },
    /// Hear of these users' coming and going. [`Dialect::watched`] gets how each of them is now, or once that there are too many, and the
    /// connection's next message waits for it. Each is named once.
    Watch {
        /// The users, at least one.
        users: Vec<UserId>,
        /// Comes back with the last answer.
        note: Box<str>,
    },
    /// This user says that he got a message; [`Dialect::confirmed`] gets what is known of it, and the next message waits for it.
    Confirm(Box<Confirmation>),
    /// What the client just said shows that it is there and no more: cleaning up looks past it as past the protocol's own heartbeats.
    Heartbeat,
    /// Nothing is delivered; counted.
    Drop(DropReason),
    /// Close the connection.
    Close(CloseReason),
}

/// A message to a room.
#[derive(Debug)]
pub struct Publication {
    /// The room.
    pub room: Arc<str>,
    /// What its members get.
    pub frame: Frame,
    /// True exactly when this connection gets it too.
    pub to_self: bool,
    /// What the room's history keeps of it.
    pub keep: Option<Keep>,
    /// Users who do not get it.
    pub hidden_from: Option<Arc<Identity>>,
    /// What the back end is told of it, JSON; see [`Cx::told`].
    pub told: Option<Arc<str>>,
    /// There where the back end is asked first whether the client may say it.
    pub submission: Option<Box<Submission>>,
}

/// What the back end is asked about a publication, where the endpoint has a publish hook. [`Dialect::message`] is called twice then: to hear
/// what is to be asked, and again with the answer. A message may ask about one publication; with more it is refused unasked.
#[derive(Debug)]
pub struct Submission {
    /// The room as clients know it; `None` where it is for one user or everybody.
    pub room: Option<Arc<str>>,
    /// What it is.
    pub event: Box<str>,
    /// What the client gave, JSON.
    pub data: Box<str>,
}

/// What a room's history keeps of a message.
#[derive(Clone, Debug)]
pub struct Keep {
    /// Its own id, if it has one that others know.
    pub id: Option<MessageId>,
    /// True exactly when it can be found by that id without its room being known. That costs an entry in an index.
    pub by_id: bool,
    /// Who said it.
    pub author: UserId,
    /// What is kept, JSON.
    pub text: Arc<str>,
    /// Whose `blocked` users do not see it; see [`crate::shard::history::Kept::is_hidden_from`].
    pub hidden_from: Option<Arc<Identity>>,
    /// So many of the room's messages are kept, this one included; the process has a bound of its own.
    pub messages_max: usize,
}

/// What the others of a room that the connection is in hear, kept nowhere. It is only made where there are others: most documents have one
/// editor at a time, and what he does should cost no more than the look.
fn to_others(cx: &Cx<'_>, room: Arc<str>, frame: impl FnOnce() -> Frame) -> Act {
    if (cx.is_alone_in)(&room) { Act::Stir(room) } else { Act::Publish(Publication::to_others(room, frame())) }
}

impl Publication {
    /// To all members but this connection, kept nowhere.
    pub fn to_others(room: Arc<str>, frame: Frame) -> Publication {
        Publication { room, frame, to_self: false, keep: None, hidden_from: None, told: None, submission: None }
    }

    /// To all members, this connection too if it is one; kept nowhere.
    pub fn to_all(room: Arc<str>, frame: Frame) -> Publication {
        Publication { to_self: true, ..Publication::to_others(room, frame) }
    }
}

/// A wish to enter a room.
#[derive(Debug)]
pub struct Entry {
    /// The room.
    pub room: Arc<str>,
    /// True exactly when a room that does not exist is created.
    pub create: bool,
    /// What the room's others hear if nobody of this presence was in.
    pub announce: Option<Frame>,
    /// How many kept messages the answer brings.
    pub history: usize,
    /// True exactly when the answer brings who is in.
    pub online: bool,
    /// Comes back with the answer.
    pub note: Option<Box<str>>,
}

impl Entry {
    /// Into a room that is made if there is none; nobody is told, and nothing more is asked.
    pub fn new(room: Arc<str>) -> Entry {
        Entry { room, create: true, announce: None, history: 0, online: false, note: None }
    }
}

/// What a user says of a message that he got. It counts once for each user.
#[derive(Debug)]
pub struct Confirmation {
    /// The message's id.
    pub message: Arc<str>,
    /// How far it has come.
    pub progress: Progress,
    /// What whoever waits for it hears, if the user was sent the message.
    pub frame: Frame,
    /// What the back end is told if it counts, if somebody wants to know.
    pub told: Option<Box<Event>>,
    /// Comes back with the answer.
    pub note: Box<str>,
}

/// How far a message has come with one who got it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// His client has it.
    Delivered,
    /// He has read it.
    Read,
}

impl Progress {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Progress::Delivered => "delivered",
            Progress::Read => "read",
        }
    }
}

/// How a watched user is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sight {
    /// He has a connection.
    Here,
    /// He had one until then, milliseconds since 1970.
    Gone {
        /// When the last one ended.
        unix_ms: u64,
    },
    /// Nobody remembers one.
    Unknown,
}

/// What the author of a kept message wants of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Change {
    /// Another content, raw JSON.
    Edit(Box<str>),
    /// That it be taken back.
    Remove,
}

/// What another host or another program has said in a room.
#[derive(Clone, Copy, Debug)]
pub enum Overheard<'a> {
    /// A text of a plain WebSocket, as its members hear it.
    Text(&'a str),
    /// A Socket.IO event.
    Event {
        /// Its name.
        name: &'a str,
        /// Its arguments: JSON texts joined by commas.
        args: &'a str,
        /// Binary data that placeholders in them number.
        attachments: &'a [Vec<u8>],
    },
}

/// What that is for what a room keeps.
#[derive(Debug)]
pub enum Remark {
    /// A message to be kept. Without an id of its own it gets one that all hosts make of its text.
    Keep(Keep),
    /// A kept message changes.
    Change {
        /// The message.
        id: MessageId,
        /// How.
        change: Change,
    },
}

/// What a kept message becomes.
#[derive(Debug)]
pub struct Revised {
    /// What is kept of it now; `None` if it is taken back.
    pub text: Option<Arc<str>>,
    /// What the members of its room hear.
    pub frame: Frame,
}

/// What a dialect makes of an event of the back end.
#[derive(Default, Debug)]
pub struct Outgoing {
    /// What its arguments become; `None` leaves them as they are.
    pub args: Option<String>,
    /// Who wants to know who got it.
    pub receipt: Option<Receipt>,
    /// True exactly when the room that it is for keeps it for those who come later, if the endpoint retains anything.
    pub is_kept: bool,
}

/// What the back end says in a room in the name of a user.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackEndMessage {
    /// Its id.
    pub id: MessageId,
    /// Who says it.
    pub user: UserId,
    /// What.
    pub content: String,
    /// Of which kind it is, where that was said.
    pub kind: Option<String>,
    /// More about it, a JSON object, where that was said.
    pub metadata: Option<String>,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
}

impl BackEndMessage {
    /// Bytes of what was said.
    pub(crate) fn bytes(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.content.len() + optional(&self.kind) + optional(&self.metadata)
    }

    /// Its kind, `text` where none was said, if it is one of these.
    fn kind_of<'a>(&'a self, kinds: &[&str]) -> Option<&'a str> {
        Some(self.kind.as_deref().unwrap_or("text")).filter(|kind| kinds.contains(kind))
    }

    fn rfc3339(&self) -> Rfc3339 {
        Now { ns: 0, unix_ms: self.unix_ms }.rfc3339()
    }
}

/// A message of the back end in a dialect's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Composed {
    /// The event.
    pub event: &'static str,
    /// Its one argument, JSON, which is what is kept too.
    pub argument: String,
    /// See [`Keep::by_id`].
    pub by_id: bool,
    /// See [`Keep::messages_max`].
    pub messages_max: usize,
}

/// The back end's event is not of the shape that the dialect asks for. The message says what is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadOutgoing(pub &'static str);

/// An event that clients of an endpoint could not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadEvent {
    /// There is no such endpoint.
    #[error("no such endpoint")]
    NoEndpoint,
    /// An event of this name means something to the client's library.
    #[error("an event of the library's own")]
    Reserved,
    /// The arguments are not JSON texts joined by commas, or more than one on a plain WebSocket.
    #[error("arguments are JSON texts joined by commas, and of a plain WebSocket at most one")]
    BadArguments,
    /// What the dialect says to it.
    #[error(transparent)]
    Refused(#[from] BadOutgoing),
}

/// Whether clients of the endpoint can read this event of the back end, whose `args` are JSON texts joined by commas.
pub(crate) fn check_event(endpoint: &Endpoint, now: Now, event: &str, args: &str) -> Result<(), BadEvent> {
    if sio::RESERVED_EVENTS.contains(&event) {
        return Err(BadEvent::Reserved);
    }
    let mut scratch = Scratch::default();
    let list = format!("[{args}]");
    let count = scratch.parse(&list).map_err(|_| BadEvent::BadArguments)?.root().items().count();
    if count > 1 && !endpoint.dialect.is_socket_io() {
        return Err(BadEvent::BadArguments);
    }
    of(endpoint.dialect).outgoing(now, event, args, &mut scratch)?;
    Ok(())
}

/// What a room's home answers to somebody who enters or leaves.
#[derive(Clone, Debug, Default)]
pub struct RoomView {
    /// Connections in the room.
    pub members: u32,
    /// Who is in, each once, if that was asked for.
    pub online: Vec<UserId>,
    /// The last kept messages, oldest first, if they were asked for.
    pub history: Vec<Arc<str>>,
    /// What is known of the user whose room it is; apart, because few answers have it and every parcel is as large as the largest.
    pub of_user: Option<Box<OfUser>>,
    /// What is known of a room that the back end made; apart for the same reason.
    pub of_room: Option<Box<OfRoom>>,
}

/// What the back end said of a room when it made it.
#[derive(Clone, Debug)]
pub struct OfRoom {
    /// The name for people.
    pub name: Arc<str>,
}

/// What a user's home knows of him besides who is in.
#[derive(Clone, Debug)]
pub struct OfUser {
    /// In the answer of his own room: those that the back end has put him into.
    pub granted: Vec<Arc<str>>,
    /// How he is.
    pub sight: Sight,
}

/// What a client hears where the back end could not be asked, or did not answer in time.
pub(crate) const UNAVAILABLE: &str = "Temporarily unavailable";

/// Why a room was not entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnterFault {
    /// It does not exist, or its name is not one that a connection may enter.
    NoRoom,
    /// Its name is the id of a live connection.
    IsConnection,
    /// This connection is in as many rooms as it may be.
    TooMany,
    /// The host keeps as many rooms as it may.
    Full,
    /// The user has as many connections as allowed.
    UserLimit,
    /// The back end does not want it ([`Cx::reason`]), or could not be asked.
    Refused,
}

/// One served system. Methods are pure: they look at the [`Cx`] and push [`Act`]s. Only [`Self::message`] must be written; what is left as
/// it is lets in whom the endpoint's [`AuthMode`] lets in, and says nothing of its own.
///
/// Every shard calls them on its own thread, between its clients' messages: what takes long holds up all of them. A panic in one ends that
/// shard and all its connections, and with [`crate::Notice::ShardLost`] asks the process to end, so nothing that a client can say may
/// cause one. Names that a client gives (of rooms and users) must go through [`crate::ids::checked_name`] before they stand in an
/// [`Act`]: some without that form are the engine's own, such as the room of everybody.
///
/// The limits ([`Limits`]) hold whatever the dialect does: it is not asked about messages that are too large, over the rate only
/// [`Self::over_rate`] is, and a connection that reads too slowly is closed.
///
/// One over Socket.IO, where who has a token may follow a question and vote on it:
///
/// ```
/// use engine::dialect::{Act, Cx, Dialect, EnterFault, Entry, Publication, RoomView, Said};
/// use engine::ids::checked_name;
/// use engine::json::{Object, Scratch};
///
/// struct Votes;
///
/// impl Dialect for Votes {
///     fn message(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
///         let Said::Event { name, ack, .. } = said else { return };
///         let question = said.argument().and_then(|question| checked_name(question.as_exact_str()?).ok());
///         match (name, question) {
///             ("follow", Some(question)) => {
///                 // The note comes back in `entered`.
///                 let note = Some(ack.unwrap_or_default().into());
///                 acts.push(Act::Enter(Entry { note, ..Entry::new(question.into()) }));
///             }
///             ("yes" | "no", Some(question)) if cx.is_in(question) => {
///                 let vote = Object::new().str("by", &cx.profile.user).bool("yes", name == "yes").finish();
///                 acts.push(Act::Publish(Publication::to_all(question.into(), cx.event("vote", &vote))));
///             }
///             _ => acts.push(Act::Send(cx.event("error", r#"{"message":"what?"}"#))),
///         }
///     }
///
///     fn entered(&self, cx: &Cx<'_>, _room: &str, outcome: Result<&RoomView, EnterFault>, note: Option<&str>, acts: &mut Vec<Act>) {
///         let Some(ack) = note.filter(|ack| !ack.is_empty()) else { return };
///         let answer = match outcome {
///             Ok(view) => Object::new().bool("success", true).num("followers", u64::from(view.members)).finish(),
///             Err(_) => r#"{"success":false}"#.to_owned(),
///         };
///         acts.push(cx.acknowledge(ack, &answer));
///     }
/// }
///
/// # use engine::config::{Endpoint, OwnDialect};
/// // The endpoint asks for a token unless told otherwise.
/// let endpoint = Endpoint::new("votes", OwnDialect::socket_io("votes", &Votes), "/votes");
/// ```
pub trait Dialect: Sync {
    /// Who is this, if he may connect at all. He is asked for what [`Hello::profile`] says.
    fn admit(&self, hello: &Hello<'_>) -> Result<Profile, Refused> {
        hello.profile()
    }
    /// The refusal of one connection too many of a user.
    fn too_many(&self, _now: Now) -> Refused {
        Refused::with(429, "Maximum connection limit reached", Refusal::UserLimit)
    }
    /// The refusal of a connection about which the back end could not be asked, or did not answer in time: it may well come again.
    fn unavailable(&self, _now: Now) -> Refused {
        Refused::with(503, UNAVAILABLE, Refusal::Forbidden)
    }
    /// The refusal of a connection that the back end does not want. What it said is for the client.
    fn turned_down(&self, _now: Now, reason: Option<&str>) -> Refused {
        Refused::with(403, reason.unwrap_or("Not allowed to connect"), Refusal::Forbidden)
    }
    /// The connection is there.
    fn opened(&self, _cx: &Cx<'_>, _query: &str, _acts: &mut Vec<Act>) {}
    /// What others hear when the user's first connection comes (`true`) or the last one has gone: everybody, or who watches him
    /// ([`Self::is_watched`]).
    fn presence(&self, _cx: &Cx<'_>, _online: bool) -> Option<Frame> {
        None
    }
    /// True exactly when a user's coming and going is told to those who watch him ([`Act::Watch`]) and not to everybody.
    fn is_watched(&self) -> bool {
        false
    }
    /// True exactly when somebody is told of who is in rooms ([`Entry::announce`], [`Entry::online`], [`Self::welcome`], [`Self::farewell`]),
    /// so that it has to be known over all hosts.
    fn tells_of_rooms(&self) -> bool {
        true
    }
    /// True exactly when it has to be known over all hosts whether a user has a connection ([`Self::presence`]).
    fn tells_of_users(&self) -> bool {
        true
    }
    /// True exactly when who leaves a room is told who is still in.
    fn shows_who_is_left(&self) -> bool {
        false
    }
    /// True exactly when a room into which the back end puts a user is entered by his later connections, too.
    fn keeps_grants(&self) -> bool {
        false
    }
    /// The public room that all connections of a user are in.
    fn own_room(&self, _user: &str) -> Option<String> {
        None
    }
    /// The connection's user is known now, and it is in his rooms; or he has too many connections. Only after [`Act::Identify`].
    fn identified(&self, _cx: &Cx<'_>, _outcome: Result<(), EnterFault>, _note: &str, _acts: &mut Vec<Act>) {}
    /// How a watched user is, or why nobody more may be watched; the note comes once. Only after [`Act::Watch`].
    fn watched(&self, _cx: &Cx<'_>, _seen: Result<(&str, Sight), EnterFault>, _note: Option<&str>, _acts: &mut Vec<Act>) {}
    /// Whether the user was sent the message that he confirms. Only after [`Act::Confirm`].
    fn confirmed(&self, _cx: &Cx<'_>, _was_sent: bool, _note: &str, _acts: &mut Vec<Act>) {}
    /// What the client hears before the server closes for this reason.
    fn last_word(&self, _cx: &Cx<'_>, _reason: CloseReason) -> Option<Frame> {
        None
    }
    /// What becomes of an event of the back end on its way out; `args` are raw JSON texts joined by commas.
    ///
    /// # Errors
    /// When its arguments are not of the shape that the dialect asks for.
    fn outgoing(&self, _now: Now, _event: &str, _args: &str, _scratch: &mut Scratch) -> Result<Outgoing, BadOutgoing> {
        Ok(Outgoing::default())
    }
    /// What clients of a plain WebSocket hear of an event of the back end; `data` is one raw JSON text, or empty. As it stands
    /// `{"type": event, "payload": data}`, without data `{}` in its place.
    fn emitted(&self, event: &str, data: &str, _scratch: &mut Scratch) -> String {
        typed(event, data)
    }
    /// True exactly when rooms of this name can be: as it stands, of every good name.
    fn has_room(&self, name: &str) -> bool {
        checked_name(name).is_ok()
    }
    /// True exactly when a room that does not exist comes into being by being entered; else the back end makes rooms.
    fn creates_rooms(&self, _endpoint: &Endpoint) -> bool {
        true
    }
    /// True exactly when a connection is in the one room that it asked for when it connected, and has no business without it.
    fn is_bound_to_room(&self) -> bool {
        false
    }
    /// A message of the back end as the members of the room hear it, and as it is kept.
    ///
    /// # Errors
    /// When rooms have no messages, or not such.
    fn back_end_message(&self, _room: &str, _message: &BackEndMessage) -> Result<Composed, BadOutgoing> {
        Err(BadOutgoing("the endpoint's rooms have no messages"))
    }
    /// What becomes of a kept message by its author's will; `None` where messages stay as they are.
    fn revised(&self, _room: &Room, _id: MessageId, _kept: &str, _change: &Change, _scratch: &mut Scratch) -> Option<Revised> {
        None
    }
    /// What is kept of what another host or program has said in a room; `None` where nothing is. It says itself what it is: nobody here has
    /// looked at it.
    fn overheard(&self, _room: &Room, _endpoint: &Endpoint, _said: Overheard<'_>, _scratch: &mut Scratch) -> Option<Remark> {
        None
    }
    /// The client said something.
    fn message(&self, cx: &Cx<'_>, said: Said<'_>, scratch: &mut Scratch, acts: &mut Vec<Act>);
    /// The client said something although it is over its rate: to be refused. It is dropped and counted in any case.
    fn over_rate(&self, _cx: &Cx<'_>, _said: Said<'_>, _acts: &mut Vec<Act>) {}
    /// The back end does not want what the client said ([`Cx::reason`]): to be refused.
    fn unpublished(&self, _cx: &Cx<'_>, _said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        acts.push(Act::Drop(DropReason::Forbidden));
    }
    /// The text of a plain dialect for a message of this type with other data: as a client would write it.
    fn restated(&self, event: &str, data: &str) -> String {
        typed(event, data)
    }
    /// A room was entered or refused.
    fn entered(&self, _cx: &Cx<'_>, _room: &str, _outcome: Result<&RoomView, EnterFault>, _note: Option<&str>, _acts: &mut Vec<Act>) {}
    /// A room was left.
    fn left(&self, _cx: &Cx<'_>, _room: &str, _view: &RoomView, _note: &str, _acts: &mut Vec<Act>) {}
    /// Here is what was kept.
    fn recalled(&self, _cx: &Cx<'_>, _room: &str, _kept: &[Arc<str>], _acts: &mut Vec<Act>) {}
    /// What a room's others hear when the back end puts in the first connection of this presence, or it is in it again after it broke off.
    fn welcome(&self, _cx: &Cx<'_>, _room: &str) -> Option<Frame> {
        None
    }
    /// What a room's others hear when the last connection of this presence has left it.
    fn farewell(&self, _cx: &Cx<'_>, _room: &str) -> Option<Frame> {
        None
    }
    /// What a room hears when the server ends a typing state; `true` in the second place when the connection itself hears it too.
    fn typing_stopped(&self, _cx: &Cx<'_>, _room: &str) -> Option<(Frame, bool)> {
        None
    }
}

/// A message of a kind; without data its payload is empty, as a client's may be missing.
fn typed(kind: &str, data: &str) -> String {
    let mut out = String::with_capacity(typed_bytes(kind, data));
    append_typed(&mut out, kind, data);
    out
}

/// The same as a frame.
fn typed_frame(endpoint: EndpointId, kind: &str, data: &str) -> Frame {
    Frame::written(endpoint, typed_bytes(kind, data), |out| append_typed(out, kind, data), &[], Mark::default())
}

fn typed_bytes(kind: &str, data: &str) -> usize {
    kind.len() + data.len() + 32
}

fn append_typed(out: &mut String, kind: &str, data: &str) {
    out.push_str(r#"{"type":"#);
    json::quote(out, kind);
    out.push_str(r#","payload":"#);
    out.push_str(if data.is_empty() { "{}" } else { data });
    out.push('}');
}

/// True exactly when the list is there and has the name.
fn lists(claim: Option<Names<'_>>, name: &str) -> bool {
    claim.is_some_and(|mut names| names.any(|n| n == name))
}

/// A Socket.IO event to the endpoint's namespace. `arguments` are JSON texts joined by commas.
fn event(cx: &Cx<'_>, name: &str, arguments: &str) -> Frame {
    let attachments = cx.attachments_of(arguments);
    event_frame(cx.endpoint_id, cx.endpoint, &Emission { event: name, args: arguments, attachments, ack: None, mark: cx.mark() })
}

fn event_frame(endpoint_id: EndpointId, endpoint: &Endpoint, said: &Emission<'_>) -> Frame {
    let offset = said.mark.offset.map(Offset::text);
    let extras = sio::Extras { attachments: said.attachments.len(), offset: offset.as_deref() };
    let bytes = endpoint.bind.len() + said.event.len() + said.args.len() + sio::PACKET_BYTES;
    let write = |out: &mut String| sio::append_event(out, &endpoint.bind, said.ack, said.event, said.args, extras);
    Frame::written(endpoint_id, bytes, write, said.attachments, said.mark)
}

/// An event of the server's own will.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Emission<'a> {
    /// Its name.
    pub event: &'a str,
    /// Its arguments: JSON texts joined by commas.
    pub args: &'a str,
    /// Binary data that placeholders in them number.
    pub attachments: &'a [Vec<u8>],
    /// The acknowledgement that is asked for.
    pub ack: Option<u64>,
    /// What delivery has to know of it.
    pub mark: Mark,
}

/// What the back end says, as the clients of the endpoint's dialect hear it. A plain dialect has neither acknowledgements nor offsets.
pub(crate) fn emission(endpoint_id: EndpointId, endpoint: &Endpoint, said: &Emission<'_>, scratch: &mut Scratch) -> Frame {
    if endpoint.dialect.is_socket_io() {
        return event_frame(endpoint_id, endpoint, said);
    }
    let text = of(endpoint.dialect).emitted(said.event, said.args, scratch);
    Frame::event(endpoint_id, &text, &[], Mark { offset: None, ..said.mark })
}

/// The answer to a Socket.IO event for which the client waits.
fn acknowledge(cx: &Cx<'_>, ack: &str, answer: &str) -> Act {
    let attachments = cx.attachments_of(answer);
    let bytes = cx.endpoint.bind.len() + ack.len() + answer.len() + sio::PACKET_BYTES;
    let write = |out: &mut String| sio::append_ack(out, &cx.endpoint.bind, ack, answer, attachments.len());
    Act::Send(Frame::written(cx.endpoint_id, bytes, write, attachments, Mark::default()))
}

/// The answer that says no more than that it worked, if the client waits for one.
fn succeed(cx: &Cx<'_>, ack: Option<&str>, acts: &mut Vec<Act>) {
    if let Some(ack) = ack {
        acts.push(acknowledge(cx, ack, r#"{"success":true}"#));
    }
}
