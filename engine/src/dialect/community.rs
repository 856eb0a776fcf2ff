//! Community chat: plain WebSocket, `{"type": T, "payload": {...}}` both ways. Rooms and groups are channels `room:R` and `group:G`.
//!
//! | client says | we do | others hear |
//! |---|---|---|
//! | connects | greet, enter the channels of token and query | `USER_JOINED` per channel |
//! | `PING` | `PONG` | |
//! | `SUBSCRIBE` | enter, `SUBSCRIBED` with who is online | `USER_JOINED`, once per user |
//! | `UNSUBSCRIBE` | leave, `UNSUBSCRIBED` with who is online | `USER_LEFT`, once per user |
//! | `TYPING` | | `TYPING`, the sender too |
//! | `CHAT_MESSAGE` | keep it (if clients may publish, else `USE_REST`) | `CHAT_MESSAGE`, the sender too |
//! | `AUTHENTICATE` | a later expiry, `AUTHENTICATED` | |
//! | anything else | `ERROR` `INVALID_MESSAGE` | |

use std::sync::Arc;

use super::{
    Act, BackEndMessage, BadOutgoing, Change, Composed, Cx, Dialect, EnterFault, Entry, Hello, Keep, Overheard, Profile, Publication,
    Refused, Remark, Revised, RoomView, Said, UNAVAILABLE, lists, typed_frame,
};
use crate::auth::{AuthFault, Identity};
use crate::config::{AuthMode, Endpoint, Membership};
use crate::fault::{DropReason, Refusal};
use crate::frame::Frame;
use crate::ids::{EndpointId, MessageId, Room, UserId, checked_name};
use crate::json::{Object, Scratch, Value};
use crate::time::{Now, rfc3339};
use crate::wire::http;

pub(super) struct Community;

/// Characters of a message (contract).
const CONTENT_CHARS_MAX: usize = 4_000;
/// Messages kept per channel; the REST calls read them.
const KEPT_PER_CHANNEL: usize = 1_000;

/// A room or a group: the name of a room of this endpoint is the member's prefix and the id.
#[derive(Clone, Copy, Debug)]
pub struct Channel<'a> {
    /// [`Self::ROOM`] or [`Self::GROUP`].
    pub key: &'static str,
    /// Its id, a name.
    pub id: &'a str,
}

impl<'a> Channel<'a> {
    /// The member that names a room.
    pub const ROOM: &'static str = "roomId";
    /// The member that names a group.
    pub const GROUP: &'static str = "groupId";

    /// The one channel a payload names.
    pub fn of(payload: Option<Value<'a>>) -> Option<Channel<'a>> {
        let payload = payload?;
        let (key, id) = match (payload.get(Channel::ROOM), payload.get(Channel::GROUP)) {
            (Some(room), None) => (Channel::ROOM, room),
            (None, Some(group)) => (Channel::GROUP, group),
            _ => return None,
        };
        Some(Channel { key, id: checked_name(id.as_exact_str()?).ok()? })
    }

    /// The channel that a room of this endpoint is.
    pub fn from_room(room: &'a str) -> Option<Channel<'a>> {
        let id = |prefix| room.strip_prefix(prefix);
        id("room:").map(|id| Channel { key: Channel::ROOM, id }).or_else(|| id("group:").map(|id| Channel { key: Channel::GROUP, id }))
    }

    /// The room that it is.
    pub fn room(self) -> Arc<str> {
        let prefix = if self.key == Channel::ROOM { "room:" } else { "group:" };
        [prefix, self.id].concat().into()
    }

    /// Whether the endpoint's membership source lets a user with these claims in, or, where it is a webhook or a set in Redis, may let him in:
    /// the back end decides then.
    pub fn admits(self, endpoint: &Endpoint, identity: Option<&Identity>) -> bool {
        let (rooms, groups) = identity.map_or((None, None), |i| (i.rooms(), i.groups()));
        let open = match endpoint.membership {
            Membership::Open | Membership::Webhook | Membership::Redis => true,
            Membership::Auto => rooms.is_none() && groups.is_none(),
            Membership::Claims => false,
        };
        open || lists(if self.key == Channel::ROOM { rooms } else { groups }, self.id)
    }
}

/// A chat message, before it is anywhere.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    /// Its id.
    pub id: MessageId,
    /// Who says it.
    pub author: Author<'a>,
    /// Where.
    pub channel: Channel<'a>,
    /// Raw JSON, see [`content`].
    pub content: &'a str,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// Whose `blocked` users do not see it.
    pub hidden_from: Option<Arc<Identity>>,
}

/// Who says something, as others see him.
#[derive(Clone, Copy, Debug)]
pub struct Author<'a> {
    user: &'a UserId,
    name: &'a str,
    image: Option<&'a str>,
}

impl Author<'_> {
    /// Whom a token names.
    pub fn of(identity: &Identity) -> Author<'_> {
        Author { user: &identity.user, name: identity.name().unwrap_or(&identity.user), image: identity.picture() }
    }
}

/// A message as its channel hears and keeps it.
#[derive(Debug)]
pub struct Broadcast {
    /// The channel's room.
    pub room: Room,
    /// What its members hear.
    pub frame: Frame,
    /// What is kept: the payload of what they hear.
    pub keep: Keep,
}

impl Message<'_> {
    /// What its channel hears and keeps.
    pub fn broadcast(self, endpoint: EndpointId) -> Broadcast {
        let name = self.channel.room();
        self.broadcast_in(Room { endpoint, name })
    }

    /// The same, of a channel whose room is at hand.
    fn broadcast_in(self, room: Room) -> Broadcast {
        let Message { id, author, channel, content, unix_ms, hidden_from } = self;
        let payload = Object::with_capacity(content.len() + 300)
            .str("id", id.as_hyphenated().encode_lower(&mut MessageId::encode_buffer()))
            .raw("content", content)
            .str(channel.key, channel.id)
            .str("authorId", author.user)
            .str("authorName", author.name)
            .opt_str("authorImage", author.image)
            .bool("isEdited", false)
            .str("createdAt", &rfc3339(unix_ms))
            .finish();
        let frame = typed_frame(room.endpoint, "CHAT_MESSAGE", &payload);
        let (author, text) = (author.user.clone(), payload.into());
        let keep = Keep { id: Some(id), by_id: true, author, text, hidden_from, messages_max: KEPT_PER_CHANNEL };
        Broadcast { room, frame, keep }
    }
}

/// The member that is what a message says.
pub const CONTENT: &str = "content";

/// What a message says, if it is a text of as many characters as are allowed: raw JSON, so that it goes out as it came in.
pub fn content(payload: Value<'_>) -> Option<&str> {
    let content = payload.get(CONTENT)?;
    (1..=CONTENT_CHARS_MAX).contains(&content.as_str()?.chars().count()).then_some(content.raw())
}

impl Dialect for Community {
    fn shows_who_is_left(&self) -> bool {
        true
    }

    fn admit(&self, hello: &Hello<'_>) -> Result<Profile, Refused> {
        if hello.endpoint.auth == AuthMode::None {
            let user = http::query_value(hello.query, "userId").filter(|id| checked_name(id).is_ok());
            let user = user.unwrap_or_else(|| hello.sid.to_string().into());
            let username = http::query_value(hello.query, "userName").filter(|name| checked_name(name).is_ok());
            return Ok(Profile::named(&user).with_username(username.as_deref()));
        }
        match &hello.token {
            Ok(identity) => Ok(Profile::of(identity.clone())),
            Err(fault) => {
                Err(Refused::Http { status: 401, body: http_error("UNAUTHORIZED", &told(*fault)), refusal: Refusal::Unauthorized })
            }
        }
    }

    fn too_many(&self, _now: Now) -> Refused {
        let body = http_error("RATE_LIMIT_EXCEEDED", "Maximum connection limit reached");
        Refused::Http { status: 429, body, refusal: Refusal::UserLimit }
    }

    fn turned_down(&self, _now: Now, reason: Option<&str>) -> Refused {
        let body = http_error("FORBIDDEN", reason.unwrap_or("Not allowed to connect"));
        Refused::Http { status: 403, body, refusal: Refusal::Forbidden }
    }

    fn unavailable(&self, _now: Now) -> Refused {
        Refused::Http { status: 503, body: http_error("UNAVAILABLE", UNAVAILABLE), refusal: Refusal::Forbidden }
    }

    fn opened(&self, cx: &Cx<'_>, query: &str, acts: &mut Vec<Act>) {
        let greeting = Object::new().str("userId", &cx.profile.user).str("message", "Connected to WebSocket server").finish();
        acts.push(send(cx, "USER_JOINED", &greeting));
        let identity = cx.profile.identity.as_deref();
        for (key, listed) in [(Channel::ROOM, identity.and_then(|i| i.rooms())), (Channel::GROUP, identity.and_then(|i| i.groups()))] {
            let asked = http::query_values(query, key);
            let mut ids: Vec<&str> = listed.into_iter().flatten().chain(asked.iter().map(String::as_str)).collect();
            let mut seen = std::collections::HashSet::new();
            ids.retain(|id| seen.insert(*id));
            for id in ids {
                let channel = Channel { key, id };
                match checked_name(id) {
                    Err(_) => acts.push(invalid(cx)),
                    Ok(_) if admits(cx, channel) => acts.push(enter(cx, channel, None)),
                    Ok(_) => acts.push(forbidden(cx, channel)),
                }
            }
        }
    }

    fn message(&self, cx: &Cx<'_>, said: Said<'_>, scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let Said::Text(text) = said else { return refuse_invalid(cx, acts) };
        let Ok(doc) = scratch.parse(text) else { return refuse_invalid(cx, acts) };
        let payload = doc.root().get("payload");
        if payload.is_some_and(|payload| !payload.is_object()) {
            return refuse_invalid(cx, acts);
        }
        let channel = Channel::of(payload);
        match (doc.root().get("type").and_then(Value::as_str), channel) {
            (Some("PING"), _) => acts.extend([Act::Heartbeat, send(cx, "PONG", "{}")]),
            (Some("SUBSCRIBE"), Some(channel)) if admits(cx, channel) => acts.push(enter(cx, channel, Some("reply".into()))),
            (Some("SUBSCRIBE"), Some(channel)) => refuse_forbidden(cx, channel, acts),
            (Some("UNSUBSCRIBE"), Some(channel)) if admits(cx, channel) || cx.is_in(&channel.room()) => {
                acts.push(Act::Leave { room: channel.room(), note: "".into() });
            }
            (Some("UNSUBSCRIBE"), Some(channel)) => refuse_forbidden(cx, channel, acts),
            (Some("TYPING"), Some(channel)) => typing(cx, channel, payload, acts),
            (Some("CHAT_MESSAGE"), _) if !cx.endpoint.client_publish => {
                acts.push(Act::Drop(DropReason::Forbidden));
                acts.push(error(cx, "USE_REST", "Send messages with POST /api/community/messages", None));
            }
            (Some("CHAT_MESSAGE"), Some(channel)) => chat_message(cx, channel, payload, acts),
            (Some("AUTHENTICATE"), _) => authenticate(cx, payload, acts),
            _ => refuse_invalid(cx, acts),
        }
    }

    fn over_rate(&self, cx: &Cx<'_>, _said: Said<'_>, acts: &mut Vec<Act>) {
        acts.push(error(cx, "RATE_LIMIT_EXCEEDED", "Rate limit exceeded", None));
    }

    fn unpublished(&self, cx: &Cx<'_>, said: Said<'_>, scratch: &mut Scratch, acts: &mut Vec<Act>) {
        acts.push(Act::Drop(DropReason::Forbidden));
        let doc = if let Said::Text(text) = said { scratch.parse(text).ok() } else { None };
        let channel = Channel::of(doc.as_ref().and_then(|doc| doc.root().get("payload")));
        acts.push(error(cx, "FORBIDDEN", cx.reason.unwrap_or("Not allowed to send this message"), channel));
    }

    fn entered(&self, cx: &Cx<'_>, room: &str, outcome: Result<&RoomView, EnterFault>, note: Option<&str>, acts: &mut Vec<Act>) {
        let Some(channel) = Channel::from_room(room) else { return };
        match outcome {
            Ok(view) if note.is_some() => acts.push(send(cx, "SUBSCRIBED", &online(channel, view))),
            Ok(_) => {}
            Err(_) => acts.push(forbidden(cx, channel)),
        }
    }

    fn left(&self, cx: &Cx<'_>, room: &str, view: &RoomView, _note: &str, acts: &mut Vec<Act>) {
        if let Some(channel) = Channel::from_room(room) {
            acts.push(send(cx, "UNSUBSCRIBED", &online(channel, view)));
        }
    }

    fn farewell(&self, cx: &Cx<'_>, room: &str) -> Option<Frame> {
        let channel = Channel::from_room(room)?;
        Some(frame(cx, "USER_LEFT", &Object::new().str("userId", &cx.profile.user).str(channel.key, channel.id).finish()))
    }

    fn has_room(&self, name: &str) -> bool {
        Channel::from_room(name).is_some_and(|channel| checked_name(channel.id).is_ok())
    }

    fn back_end_message(&self, room: &str, message: &BackEndMessage) -> Result<Composed, BadOutgoing> {
        let channel = Channel::from_room(room).ok_or(BadOutgoing("a channel is room: or group: and a name"))?;
        if !(1..=CONTENT_CHARS_MAX).contains(&message.content.chars().count()) {
            return Err(BadOutgoing("content has 1 to 4000 characters"));
        }
        if message.kind_of(&["text"]).is_none() || message.metadata.is_some() {
            return Err(BadOutgoing("the endpoint's messages are of type text and have no metadata"));
        }
        let argument = Object::with_capacity(message.bytes() + 300)
            .str("id", &message.id.to_string())
            .str("content", &message.content)
            .str(channel.key, channel.id)
            .str("authorId", &message.user)
            .str("authorName", &message.user)
            .bool("isEdited", false)
            .str("createdAt", &message.rfc3339())
            .finish();
        Ok(Composed { event: "CHAT_MESSAGE", argument, by_id: true, messages_max: KEPT_PER_CHANNEL })
    }

    fn revised(&self, room: &Room, id: MessageId, kept: &str, change: &Change, scratch: &mut Scratch) -> Option<Revised> {
        let channel = Channel::from_room(&room.name)?;
        let told = Object::new().str("messageId", &id.to_string());
        let (kind, told, text) = match change {
            Change::Edit(content) => ("MESSAGE_EDIT", told.raw(CONTENT, content), Some(edited(kept, content, scratch)?.into())),
            Change::Remove => ("MESSAGE_DELETE", told, None),
        };
        let told = told.str(channel.key, channel.id).finish();
        Some(Revised { text, frame: typed_frame(room.endpoint, kind, &told) })
    }

    fn overheard(&self, room: &Room, _endpoint: &Endpoint, said: Overheard<'_>, scratch: &mut Scratch) -> Option<Remark> {
        let Overheard::Text(text) = said else { return None };
        let doc = scratch.parse(text).ok()?;
        let payload = doc.root().get("payload")?;
        Channel::of(Some(payload)).filter(|channel| channel.room() == room.name)?;
        let id = |key| payload.get(key).and_then(|id| MessageId::try_parse(id.as_str()?).ok());
        match doc.root().get("type").and_then(Value::as_str)? {
            "CHAT_MESSAGE" => {
                content(payload)?;
                let (id, author) = (id("id"), checked_name(payload.get("authorId")?.as_exact_str()?).ok()?.into());
                let text = payload.raw().into();
                Some(Remark::Keep(Keep { id, by_id: id.is_some(), author, text, hidden_from: None, messages_max: KEPT_PER_CHANNEL }))
            }
            "MESSAGE_EDIT" => Some(Remark::Change { id: id("messageId")?, change: Change::Edit(content(payload)?.into()) }),
            "MESSAGE_DELETE" => Some(Remark::Change { id: id("messageId")?, change: Change::Remove }),
            _ => None,
        }
    }

    fn typing_stopped(&self, cx: &Cx<'_>, room: &str) -> Option<(Frame, bool)> {
        Some((typing_frame(cx, Channel::from_room(room)?, false), true))
    }
}

fn admits(cx: &Cx<'_>, channel: Channel<'_>) -> bool {
    channel.admits(cx.endpoint, cx.profile.identity.as_deref())
}

fn told(fault: AuthFault) -> String {
    match fault {
        AuthFault::Missing => "Authentication token required",
        AuthFault::Invalid => "Invalid authentication token",
        AuthFault::Expired => "Authentication token expired",
    }
    .into()
}

/// The name others see: the token's, else the user id. Never what a message claims.
fn display_name<'a>(cx: &'a Cx<'_>) -> &'a str {
    cx.profile.username().unwrap_or(&cx.profile.user)
}

fn picture<'a>(cx: &'a Cx<'_>) -> Option<&'a str> {
    cx.profile.identity.as_ref()?.picture()
}

fn enter(cx: &Cx<'_>, channel: Channel<'_>, note: Option<Box<str>>) -> Act {
    let joined = Object::new()
        .str("userId", &cx.profile.user)
        .str("userName", display_name(cx))
        .opt_str("userImage", picture(cx))
        .str(channel.key, channel.id)
        .finish();
    let announce = Some(frame(cx, "USER_JOINED", &joined));
    Act::Enter(Entry { room: channel.room(), create: true, announce, history: 0, online: note.is_some(), note })
}

fn typing(cx: &Cx<'_>, channel: Channel<'_>, payload: Option<Value<'_>>, acts: &mut Vec<Act>) {
    let Some(on) = payload.and_then(|payload| payload.get("isTyping")?.as_bool()) else { return refuse_invalid(cx, acts) };
    let Some(room) = (cx.inside)(&channel.room()).cloned() else { return refuse_forbidden(cx, channel, acts) };
    let frame = typing_frame(cx, channel, on);
    let hidden_from = hidden_from(cx);
    acts.push(Act::Publish(Publication {
        room: room.clone(),
        frame,
        to_self: true,
        keep: None,
        hidden_from,
        told: None,
        submission: None,
    }));
    acts.push(Act::Typing { room, on });
}

fn typing_frame(cx: &Cx<'_>, channel: Channel<'_>, on: bool) -> Frame {
    let payload = Object::new().str("userId", &cx.profile.user).str("userName", display_name(cx)).str(channel.key, channel.id);
    frame(cx, "TYPING", &payload.bool("isTyping", on).finish())
}

fn chat_message(cx: &Cx<'_>, channel: Channel<'_>, payload: Option<Value<'_>>, acts: &mut Vec<Act>) {
    let Some(content) = payload.and_then(content) else { return refuse_invalid(cx, acts) };
    let Some(room) = (cx.inside)(&channel.room()).cloned() else { return refuse_forbidden(cx, channel, acts) };
    let author = Author { user: &cx.profile.user, name: display_name(cx), image: picture(cx) };
    let hidden_from = hidden_from(cx);
    let message = Message { id: cx.message_id(), author, channel, content, unix_ms: cx.now.unix_ms, hidden_from: hidden_from.clone() };
    let Broadcast { room, frame, keep } = message.broadcast_in(Room { endpoint: cx.endpoint_id, name: room });
    let told = cx.told(|| keep.text.clone());
    let submission = cx.submission(Some(&room.name), "CHAT_MESSAGE", payload.map_or("{}", Value::raw));
    let (room, keep) = (room.name, Some(keep));
    acts.push(Act::Publish(Publication { room, frame, to_self: true, keep, hidden_from, told, submission }));
}

/// A kept message with another content.
fn edited(kept: &str, content: &str, scratch: &mut Scratch) -> Option<String> {
    let doc = scratch.parse(kept).ok()?;
    let out = Object::with_capacity(kept.len() + content.len());
    let members = doc.root().members().fold(out, |out, member| match member.key {
        CONTENT => out.raw(CONTENT, content),
        "isEdited" => out.bool("isEdited", true),
        key => out.raw(key, member.value.raw()),
    });
    Some(members.finish())
}

/// The identity whose `blocked` list hides the author's messages; `None` for the many who blocked nobody.
fn hidden_from(cx: &Cx<'_>) -> Option<Arc<Identity>> {
    cx.profile.identity.as_ref().filter(|identity| !identity.blocked.is_empty()).cloned()
}

fn authenticate(cx: &Cx<'_>, payload: Option<Value<'_>>, acts: &mut Vec<Act>) {
    let Some(token) = payload.and_then(|payload| payload.get("token")?.as_str()) else { return refuse_invalid(cx, acts) };
    match cx.reverify(token) {
        Ok(identity) => {
            acts.push(Act::Refresh(identity));
            acts.push(send(cx, "AUTHENTICATED", &Object::new().str("userId", &cx.profile.user).finish()));
        }
        Err(fault) => acts.push(error(cx, "UNAUTHORIZED", &told(fault), None)),
    }
}

fn online(channel: Channel<'_>, view: &RoomView) -> String {
    let mut users = String::from("[");
    for (i, user) in view.online.iter().enumerate() {
        if i > 0 {
            users.push(',');
        }
        crate::json::quote(&mut users, user);
    }
    users.push(']');
    Object::new().str(channel.key, channel.id).raw("online", &users).finish()
}

fn frame(cx: &Cx<'_>, kind: &str, payload: &str) -> Frame {
    typed_frame(cx.endpoint_id, kind, payload)
}

fn send(cx: &Cx<'_>, kind: &str, payload: &str) -> Act {
    Act::Send(frame(cx, kind, payload))
}

fn error(cx: &Cx<'_>, code: &str, message: &str, channel: Option<Channel<'_>>) -> Act {
    let mut payload = Object::new().str("code", code).str("message", message);
    if let Some(channel) = channel {
        payload = payload.str(channel.key, channel.id);
    }
    send(cx, "ERROR", &payload.finish())
}

fn invalid(cx: &Cx<'_>) -> Act {
    error(cx, "INVALID_MESSAGE", "Invalid message format", None)
}

fn forbidden(cx: &Cx<'_>, channel: Channel<'_>) -> Act {
    error(cx, "FORBIDDEN", cx.reason.unwrap_or("Not a member of this channel"), Some(channel))
}

fn refuse_invalid(cx: &Cx<'_>, acts: &mut Vec<Act>) {
    acts.push(Act::Drop(DropReason::Invalid));
    acts.push(invalid(cx));
}

fn refuse_forbidden(cx: &Cx<'_>, channel: Channel<'_>, acts: &mut Vec<Act>) {
    acts.push(Act::Drop(DropReason::Forbidden));
    acts.push(forbidden(cx, channel));
}

fn http_error(code: &str, message: &str) -> String {
    let error = Object::new().str("code", code).str("message", message).finish();
    Object::new().bool("success", false).raw("error", &error).finish()
}
