//! Messages between rooms, users and sockets: Socket.IO events, errors with codes.
//!
//! | client says | we do | others hear |
//! |---|---|---|
//! | `join-room` | enter, `room-joined` with the number of connections in it | |
//! | `leave-room` | leave, `room-left` | |
//! | `message` | the ack brings id and time | `message`: a socket, else a user, else the room's others, else all others |
//! | `typing-start`, `typing-stop` | | the same event: the room's others, else all others |
//! | `presence-update` | | all others: `presence-update` |
//! | ends | | all others: `presence-update` offline, once per user |
//! | `ping` | `pong` | |
//! | `authenticate` | a later expiry, `authenticated` | |
//!
//! What is refused is answered by `error` (of rooms: `room-error`) with an error object, and, where the client waits for it, by the
//! acknowledgement.

use std::sync::Arc;

use super::{
    Act, BackEndMessage, BadOutgoing, Composed, Cx, Dialect, EnterFault, Entry, Hello, Profile, Publication, Refused, RoomView, Said,
    UNAVAILABLE, acknowledge, event, lists, succeed, to_others,
};
use crate::auth::AuthFault;
use crate::config::{AuthMode, Membership};
use crate::fault::{DropReason, Refusal};
use crate::frame::Frame;
use crate::ids::{Room, checked_name};
use crate::json::{Object, Scratch, Value};
use crate::limits::CONNECTION_METADATA_BYTES_MAX;
use crate::time::Now;

pub(super) struct Chat;

/// The room of everybody has the empty name.
const EVERYBODY: &str = "";
/// Before the UUID in a message's id (contract).
const MESSAGE_ID_PREFIX: &str = "msg_";
/// Types of a message that a client may send; the old server's `system` is the server's own.
const MESSAGE_TYPES: [&str; 4] = ["text", "image", "file", "notification"];
const STATUSES: [&str; 4] = ["online", "away", "busy", "offline"];

/// Why something is refused.
#[derive(Clone, Copy)]
enum Fault {
    NoToken,
    BadToken,
    Unavailable,
    TooManyConnections,
    NotAllowed,
    NotInRoom,
    NotToBeSaid,
    OverRate,
    BadRoom,
    RoomIsConnection,
    TooManyRooms,
    RoomFull,
    BadMessage,
}

impl Fault {
    /// The contract's code and the words for people.
    fn told(self) -> (&'static str, &'static str) {
        match self {
            Fault::NoToken => ("AUTHENTICATION_FAILED", "Authentication token required"),
            Fault::BadToken => ("AUTHENTICATION_FAILED", "Invalid authentication token"),
            Fault::Unavailable => ("CONNECTION_ERROR", UNAVAILABLE),
            Fault::TooManyConnections => ("RATE_LIMIT_EXCEEDED", "Maximum connection limit reached"),
            Fault::NotAllowed => ("AUTHORIZATION_FAILED", "Not allowed to join this room"),
            Fault::NotInRoom => ("AUTHORIZATION_FAILED", "Not a member of this room"),
            Fault::NotToBeSaid => ("AUTHORIZATION_FAILED", "Not allowed to send this message"),
            Fault::OverRate => ("RATE_LIMIT_EXCEEDED", "Rate limit exceeded"),
            Fault::BadRoom => ("INVALID_ROOM", "Invalid room"),
            Fault::RoomIsConnection => ("INVALID_ROOM", "The id of a socket is no room to join"),
            Fault::TooManyRooms => ("INVALID_ROOM", "Too many rooms"),
            Fault::RoomFull => ("INVALID_ROOM", "Room is full"),
            Fault::BadMessage => ("INVALID_MESSAGE", "Invalid message format"),
        }
    }

    fn drop_reason(self) -> DropReason {
        match self {
            Fault::NoToken | Fault::BadToken | Fault::NotAllowed | Fault::NotInRoom | Fault::NotToBeSaid => DropReason::Forbidden,
            _ => DropReason::Invalid,
        }
    }

    /// The error object.
    fn object(self, now: Now, details: Option<&str>) -> String {
        self.object_saying(None, now, details)
    }

    /// The error object with other words, if there are any.
    fn object_saying(self, words: Option<&str>, now: Now, details: Option<&str>) -> String {
        let (code, message) = self.told();
        let message = words.unwrap_or(message);
        Object::new().str("code", code).str("message", message).opt_raw("details", details).str("timestamp", &now.rfc3339()).finish()
    }
}

/// One event of a client: its argument, and the acknowledgement it waits for.
#[derive(Clone, Copy)]
struct Call<'a> {
    argument: Option<Value<'a>>,
    ack: Option<&'a str>,
}

impl<'a> Call<'a> {
    /// The argument's member; the argument is an object.
    fn member(self, key: &str) -> Result<Option<Value<'a>>, Fault> {
        let object = self.argument.filter(|argument| argument.is_object()).ok_or(Fault::BadMessage)?;
        Ok(object.get(key))
    }

    /// A name that may be missing but not wrong.
    fn name(self, key: &str) -> Result<Option<&'a str>, Fault> {
        let Some(value) = self.member(key)? else { return Ok(None) };
        value.as_exact_str().and_then(|name| checked_name(name).ok()).map(Some).ok_or(Fault::BadMessage)
    }

    /// The room that `join-room` and `leave-room` must name.
    fn room(self) -> Result<&'a str, Fault> {
        self.name("room").ok().flatten().ok_or(Fault::BadRoom)
    }

    /// What comes back with the room's answer.
    fn note(self) -> Box<str> {
        self.ack.unwrap_or_default().into()
    }
}

impl Dialect for Chat {
    fn tells_of_rooms(&self) -> bool {
        false
    }

    fn admit(&self, hello: &Hello<'_>) -> Result<Profile, Refused> {
        let identity = match (hello.endpoint.auth, &hello.token) {
            (AuthMode::None, _) => None,
            (AuthMode::Token, Ok(identity)) => Some(identity.clone()),
            (AuthMode::Token, Err(AuthFault::Missing)) => return Err(connect_error(Fault::NoToken, Refusal::Unauthorized, hello.now)),
            (AuthMode::Token, Err(_)) => return Err(connect_error(Fault::BadToken, Refusal::Unauthorized, hello.now)),
        };
        let mut profile = match identity {
            Some(identity) => Profile::of(identity),
            None => {
                let said = hello.auth.and_then(|auth| checked_name(auth.get("userId")?.as_exact_str()?).ok());
                Profile::named(said.unwrap_or(hello.sid.text().as_str()))
            }
        };
        if let Some(metadata) = hello.auth.and_then(metadata) {
            profile.own().metadata = Some(metadata);
        }
        Ok(profile)
    }

    fn too_many(&self, now: Now) -> Refused {
        connect_error(Fault::TooManyConnections, Refusal::UserLimit, now)
    }

    fn turned_down(&self, now: Now, reason: Option<&str>) -> Refused {
        connect_error_of(&Fault::BadToken.object_saying(reason, now, None), Refusal::Forbidden)
    }

    fn unavailable(&self, now: Now) -> Refused {
        connect_error(Fault::Unavailable, Refusal::Forbidden, now)
    }

    fn opened(&self, _cx: &Cx<'_>, _query: &str, _acts: &mut Vec<Act>) {}

    fn presence(&self, cx: &Cx<'_>, online: bool) -> Option<Frame> {
        (!online).then(|| presence_frame(cx, "offline", None))
    }

    fn message(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let Said::Event { name, ack, .. } = said else { return };
        let call = Call { argument: said.argument(), ack };
        let outcome = match name {
            "join-room" => join(cx, call, acts),
            "leave-room" => leave(call, acts),
            "message" => message(cx, call, acts),
            "typing-start" => typing(cx, call, true, acts),
            "typing-stop" => typing(cx, call, false, acts),
            "presence-update" => presence_update(cx, call, acts),
            "ping" => ping(cx, call, acts),
            "authenticate" => authenticate(cx, call, acts),
            // An event nobody listens to, as on the old server.
            _ => return acts.push(Act::Drop(DropReason::Invalid)),
        };
        let Err(fault) = outcome else { return };
        acts.push(Act::Drop(fault.drop_reason()));
        match name {
            // What was said stands in the answer if it is a text at all.
            "join-room" => {
                let said = call.member("room").ok().flatten().filter(|room| room.as_str().is_some()).map_or("\"\"", Value::raw);
                refuse_join(cx, said, fault, ack, acts);
            }
            "leave-room" => refuse(cx, "room-error", &fault.object(cx.now, None), ack, acts),
            _ => refuse(cx, "error", &fault.object(cx.now, None), ack, acts),
        }
    }

    fn over_rate(&self, cx: &Cx<'_>, said: Said<'_>, acts: &mut Vec<Act>) {
        let ack = if let Said::Event { ack, .. } = said { ack } else { None };
        let details = Object::new()
            .num("limit", u64::from(cx.limits.rate_messages))
            .num("windowMs", cx.limits.rate_window_ms)
            .num("retryAfterMs", cx.rate_wait_ms)
            .finish();
        refuse(cx, "error", &Fault::OverRate.object(cx.now, Some(&details)), ack, acts);
    }

    fn unpublished(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let ack = if let Said::Event { ack, .. } = said { ack } else { None };
        acts.push(Act::Drop(DropReason::Forbidden));
        refuse(cx, "error", &Fault::NotToBeSaid.object_saying(cx.reason, cx.now, None), ack, acts);
    }

    fn entered(&self, cx: &Cx<'_>, room: &str, outcome: Result<&RoomView, EnterFault>, note: Option<&str>, acts: &mut Vec<Act>) {
        // The note is the acknowledgement's id, empty where the client waits for none; so it is in `left`.
        let ack = note.filter(|ack| !ack.is_empty());
        let fault = match outcome {
            Ok(view) => {
                let joined = Object::new().bool("success", true).str("room", room).num("memberCount", u64::from(view.members));
                return answer(cx, "room-joined", &joined.finish(), ack, acts);
            }
            Err(EnterFault::IsConnection) => Fault::RoomIsConnection,
            Err(EnterFault::TooMany) => Fault::TooManyRooms,
            Err(EnterFault::Full | EnterFault::UserLimit) => Fault::RoomFull,
            Err(EnterFault::NoRoom) => Fault::BadRoom,
            Err(EnterFault::Refused) => Fault::NotAllowed,
        };
        acts.push(Act::Drop(fault.drop_reason()));
        let mut quoted = String::new();
        crate::json::quote(&mut quoted, room);
        refuse_join(cx, &quoted, fault, ack, acts);
    }

    fn left(&self, cx: &Cx<'_>, room: &str, _view: &RoomView, note: &str, acts: &mut Vec<Act>) {
        let left = Object::new().bool("success", true).str("room", room).finish();
        answer(cx, "room-left", &left, Some(note).filter(|ack| !ack.is_empty()), acts);
    }

    fn farewell(&self, _cx: &Cx<'_>, _room: &str) -> Option<Frame> {
        None
    }

    fn back_end_message(&self, room: &str, message: &BackEndMessage) -> Result<Composed, BadOutgoing> {
        let kind = message.kind_of(&["text", "image", "file", "notification", "system"]);
        let kind = kind.ok_or(BadOutgoing("type is text, image, file, notification or system"))?;
        let argument = Object::with_capacity(message.bytes() + 300)
            .str("id", &format!("{MESSAGE_ID_PREFIX}{}", message.id))
            .str("from", &message.user)
            .str("room", room)
            .str("content", &message.content)
            .str("type", kind)
            .opt_raw("metadata", message.metadata.as_deref())
            .str("timestamp", &message.rfc3339())
            .finish();
        Ok(Composed { event: "message", argument, by_id: false, messages_max: usize::MAX })
    }

    fn typing_stopped(&self, cx: &Cx<'_>, room: &str) -> Option<(Frame, bool)> {
        Some((typing_frame(cx, Some(room).filter(|room| *room != EVERYBODY), false), false))
    }
}

/// What the client says of itself, as it is; what is too long is as if it were not said.
fn metadata(auth: Value<'_>) -> Option<Box<str>> {
    let metadata = auth.get("metadata").filter(|metadata| metadata.is_object())?.raw();
    (metadata.len() <= CONNECTION_METADATA_BYTES_MAX).then(|| metadata.into())
}

/// The error object twice: as the text that old clients parse, and as data.
fn connect_error(fault: Fault, refusal: Refusal, now: Now) -> Refused {
    connect_error_of(&fault.object(now, None), refusal)
}

fn connect_error_of(object: &str, refusal: Refusal) -> Refused {
    Refused::Connect { data: Object::new().str("message", object).raw("data", object).finish(), refusal }
}

fn join(cx: &Cx<'_>, call: Call<'_>, acts: &mut Vec<Act>) -> Result<(), Fault> {
    let room = call.room()?;
    let listed = || lists(cx.profile.identity.as_ref().and_then(|identity| identity.rooms()), room);
    if matches!(cx.endpoint.membership, Membership::Claims) && !listed() {
        return Err(Fault::NotAllowed);
    }
    let note = Some(call.note());
    acts.push(Act::Enter(Entry { room: room.into(), create: true, announce: None, history: 0, online: false, note }));
    Ok(())
}

/// Leaving a room one is not in succeeds too.
fn leave(call: Call<'_>, acts: &mut Vec<Act>) -> Result<(), Fault> {
    acts.push(Act::Leave { room: call.room()?.into(), note: call.note() });
    Ok(())
}

fn message(cx: &Cx<'_>, call: Call<'_>, acts: &mut Vec<Act>) -> Result<(), Fault> {
    let (to, room) = (call.name("to")?, call.name("room")?);
    let content = call.member("content")?.filter(|content| content.as_str().is_some()).ok_or(Fault::BadMessage)?;
    let kind = call.member("type")?.map_or(Some("text"), Value::as_str);
    let kind = kind.filter(|kind| MESSAGE_TYPES.contains(kind)).ok_or(Fault::BadMessage)?;
    if to.is_none() && cx.endpoint.require_membership && room.is_some_and(|room| !cx.is_in(room)) {
        return Err(Fault::NotInRoom);
    }
    let (id, timestamp) = (format!("{MESSAGE_ID_PREFIX}{}", cx.message_id()), cx.now.rfc3339());
    let metadata = call.member("metadata")?;
    let with_metadata = |metadata: Option<&str>| {
        Object::with_capacity(content.raw().len() + metadata.map_or(0, str::len) + 300)
            .str("id", &id)
            .str("from", &cx.profile.user)
            .opt_str("room", room)
            .opt_str("to", to)
            .raw("content", content.raw())
            .str("type", kind)
            .opt_raw("metadata", metadata)
            .str("timestamp", &timestamp)
            .finish()
    };
    let message = with_metadata(metadata.map(Value::raw));
    let frame = event(cx, "message", &message);
    let submission = cx.submission(room.filter(|_| to.is_none()), "message", call.argument.map_or("null", Value::raw));
    let publication = match (to, room) {
        // Whoever is addressed gets it, the sender's own devices included.
        (Some(to), _) => Publication { to_self: true, ..Publication::to_others(Room::addressed(cx.endpoint_id, to).name, frame) },
        (None, room) => Publication::to_others(room.unwrap_or(EVERYBODY).into(), frame),
    };
    let told = cx.told(|| {
        // What is told is JSON, binary data included.
        let spelled_out = metadata.and_then(|metadata| cx.without_attachments(metadata));
        spelled_out.map_or_else(|| message.as_str().into(), |metadata| with_metadata(Some(&metadata)).into())
    });
    acts.push(Act::Publish(Publication { told, submission, ..publication }));
    if let Some(ack) = call.ack {
        let sent = Object::new().bool("success", true).str("id", &id).str("timestamp", &timestamp).finish();
        acts.push(acknowledge(cx, ack, &sent));
    }
    Ok(())
}

fn typing(cx: &Cx<'_>, call: Call<'_>, on: bool, acts: &mut Vec<Act>) -> Result<(), Fault> {
    let room = call.name("room")?;
    if room.is_some_and(|room| !cx.is_in(room)) {
        return Err(Fault::NotInRoom);
    }
    let name: Arc<str> = room.unwrap_or(EVERYBODY).into();
    acts.push(to_others(cx, name.clone(), || typing_frame(cx, room, on)));
    acts.push(Act::Typing { room: name, on });
    succeed(cx, call.ack, acts);
    Ok(())
}

/// The payload is the bare status, or an object with it.
fn presence_update(cx: &Cx<'_>, call: Call<'_>, acts: &mut Vec<Act>) -> Result<(), Fault> {
    let argument = call.argument.ok_or(Fault::BadMessage)?;
    let status = argument.as_str().or_else(|| argument.get("status")?.as_str());
    let status = status.filter(|status| STATUSES.contains(status)).ok_or(Fault::BadMessage)?;
    let frame = presence_frame(cx, status, argument.get("metadata").map(Value::raw));
    acts.push(Act::Publish(Publication::to_others(EVERYBODY.into(), frame)));
    succeed(cx, call.ack, acts);
    Ok(())
}

fn ping(cx: &Cx<'_>, call: Call<'_>, acts: &mut Vec<Act>) -> Result<(), Fault> {
    acts.extend([Act::Heartbeat, Act::Send(event(cx, "pong", ""))]);
    succeed(cx, call.ack, acts);
    Ok(())
}

fn authenticate(cx: &Cx<'_>, call: Call<'_>, acts: &mut Vec<Act>) -> Result<(), Fault> {
    let token = call.member("token")?.and_then(Value::as_str).ok_or(Fault::BadMessage)?;
    let identity = cx.reverify(token).map_err(|_| Fault::BadToken)?;
    let authenticated = Object::new().str("userId", &cx.profile.user);
    let authenticated = match identity.email() {
        Some(email) => authenticated.str("email", email),
        None => authenticated.raw("email", "null"),
    };
    acts.push(Act::Refresh(identity));
    acts.push(Act::Send(event(cx, "authenticated", &authenticated.finish())));
    succeed(cx, call.ack, acts);
    Ok(())
}

fn typing_frame(cx: &Cx<'_>, room: Option<&str>, on: bool) -> Frame {
    let who = Object::new().str("userId", &cx.profile.user).opt_str("room", room).bool("isTyping", on);
    event(cx, if on { "typing-start" } else { "typing-stop" }, &who.str("timestamp", &cx.now.rfc3339()).finish())
}

fn presence_frame(cx: &Cx<'_>, status: &str, metadata: Option<&str>) -> Frame {
    let update = Object::new().str("userId", &cx.profile.user).str("status", status).str("timestamp", &cx.now.rfc3339());
    event(cx, "presence-update", &update.opt_raw("metadata", metadata).finish())
}

/// The same as an event and, where the client waits for it, as the acknowledgement.
fn answer(cx: &Cx<'_>, name: &str, answer: &str, ack: Option<&str>, acts: &mut Vec<Act>) {
    acts.push(Act::Send(event(cx, name, answer)));
    if let Some(ack) = ack {
        acts.push(acknowledge(cx, ack, answer));
    }
}

fn refuse(cx: &Cx<'_>, name: &str, error: &str, ack: Option<&str>, acts: &mut Vec<Act>) {
    acts.push(Act::Send(event(cx, name, error)));
    if let Some(ack) = ack {
        acts.push(acknowledge(cx, ack, &Object::new().bool("success", false).raw("error", error).finish()));
    }
}

/// Refuses `join-room`, whose answer has a form of its own; `room` is JSON.
fn refuse_join(cx: &Cx<'_>, room: &str, fault: Fault, ack: Option<&str>, acts: &mut Vec<Act>) {
    let error = fault.object_saying(cx.reason, cx.now, None);
    acts.push(Act::Send(event(cx, "room-error", &error)));
    if let Some(ack) = ack {
        let refused = Object::new().bool("success", false).raw("room", room).num("memberCount", 0).raw("error", &error).finish();
        acts.push(acknowledge(cx, ack, &refused));
    }
}
