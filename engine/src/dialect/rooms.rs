//! Rooms with history: Socket.IO events with acknowledgements.
//!
//! | client says | we do | others hear |
//! |---|---|---|
//! | connects | | everybody: `user:status` online, once per user |
//! | `room:join` | enter; the ack brings room and history | `user:joined`, once per user |
//! | `room:leave` | leave | `user:left`, once per user |
//! | `message` | keep it; the ack brings it | `message`, the sender too |
//! | `typing` | | `typing` |
//! | `document:edit` | | `document:edit` |
//! | `user:status` | | everybody: `user:status` |
//! | `authenticate` | a later expiry, `authenticated` | |
//!
//! What is refused is answered by `error {message}` and, where the client waits for it, by the acknowledgement.

use std::sync::Arc;

use super::{
    Act, BackEndMessage, BadOutgoing, Composed, Cx, Dialect, EnterFault, Entry, Hello, Keep, Overheard, Profile, Publication, Refused,
    Remark, RoomView, Said, UNAVAILABLE, acknowledge, event, lists, succeed, to_others,
};
use crate::auth::AuthFault;
use crate::config::{AuthMode, Endpoint, Membership};
use crate::fault::{DropReason, Refusal};
use crate::frame::Frame;
use crate::ids::{MessageId, Room, checked_name};
use crate::json::{Object, Scratch, Value};
use crate::time::Now;
use crate::wire::{http, sio};

pub(super) struct Rooms;

/// Messages that the acknowledgement of `room:join` brings (contract).
const HISTORY_IN_ACK: usize = 50;
/// The room of everybody has the empty name.
const EVERYBODY: &str = "";

impl Dialect for Rooms {
    fn admit(&self, hello: &Hello<'_>) -> Result<Profile, Refused> {
        let asked = |name| http::query_value(hello.query, name).filter(|value| checked_name(value).is_ok());
        match (hello.endpoint.auth, &hello.token) {
            (AuthMode::None, _) => {
                let profile = Profile::named(hello.sid.text().as_str());
                Ok(profile.with_username(asked("username").as_deref()).with_email(asked("email").as_deref()))
            }
            (AuthMode::Token, Ok(identity)) => {
                let profile = Profile::of(identity.clone());
                Ok(if identity.name().is_none() { profile.with_username(asked("username").as_deref()) } else { profile })
            }
            (AuthMode::Token, Err(AuthFault::Missing)) => Err(connect_error("Authentication token required", Refusal::Unauthorized)),
            (AuthMode::Token, Err(_)) => Err(connect_error("Invalid authentication token", Refusal::Unauthorized)),
        }
    }

    fn too_many(&self, _now: Now) -> Refused {
        connect_error("Maximum connection limit reached", Refusal::UserLimit)
    }

    fn turned_down(&self, _now: Now, reason: Option<&str>) -> Refused {
        connect_error(reason.unwrap_or("Invalid authentication token"), Refusal::Forbidden)
    }

    fn unavailable(&self, _now: Now) -> Refused {
        connect_error(UNAVAILABLE, Refusal::Forbidden)
    }

    fn opened(&self, _cx: &Cx<'_>, _query: &str, _acts: &mut Vec<Act>) {}

    fn presence(&self, cx: &Cx<'_>, online: bool) -> Option<Frame> {
        Some(status(cx, if online { "online" } else { "offline" }))
    }

    fn message(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let Said::Event { name, ack, .. } = said else { return };
        let argument = said.argument().filter(|argument| argument.is_object());
        let outcome = match name {
            "room:join" => join(cx, argument, ack, acts),
            "room:leave" => leave(cx, argument, ack, acts),
            "message" => message(cx, argument, ack, acts),
            "typing" => typing(cx, argument, ack, acts),
            "document:edit" => document_edit(cx, argument, ack, acts),
            "user:status" => user_status(cx, argument, ack, acts),
            "authenticate" => authenticate(cx, argument, ack, acts),
            // An event nobody listens to, as on the old server.
            _ => return acts.push(Act::Drop(DropReason::Invalid)),
        };
        if outcome.is_none() {
            acts.push(Act::Drop(if name == "authenticate" { DropReason::Forbidden } else { DropReason::Invalid }));
            refuse(cx, failed(name), ack, acts);
        }
    }

    fn unpublished(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let Said::Event { name, ack, .. } = said else { return };
        acts.push(Act::Drop(DropReason::Forbidden));
        refuse(cx, failed(name), ack, acts);
    }

    fn over_rate(&self, cx: &Cx<'_>, said: Said<'_>, acts: &mut Vec<Act>) {
        let ack = if let Said::Event { ack, .. } = said { ack } else { None };
        refuse(cx, "Rate limit exceeded", ack, acts);
    }

    fn entered(&self, cx: &Cx<'_>, room: &str, outcome: Result<&RoomView, EnterFault>, note: Option<&str>, acts: &mut Vec<Act>) {
        // The note is the acknowledgement's id, empty where the client waits for none; so it is in `left`.
        let ack = note.filter(|ack| !ack.is_empty());
        let Ok(view) = outcome else { return refuse(cx, "Failed to join room", ack, acts) };
        let Some(ack) = ack else { return };
        let name = view.of_room.as_ref().map_or(room, |of_room| &of_room.name);
        let told = Object::new().str("id", room).str("name", name).num("memberCount", u64::from(view.members)).finish();
        let history = format!("[{}]", view.history.join(","));
        let answer = Object::new().bool("success", true).raw("room", &told).raw("history", &history).finish();
        acts.push(acknowledge(cx, ack, &answer));
    }

    fn left(&self, cx: &Cx<'_>, _room: &str, _view: &RoomView, note: &str, acts: &mut Vec<Act>) {
        succeed(cx, Some(note).filter(|ack| !ack.is_empty()), acts);
    }

    fn welcome(&self, cx: &Cx<'_>, room: &str) -> Option<Frame> {
        Some(event(cx, "user:joined", &membership(cx, room)))
    }

    fn farewell(&self, cx: &Cx<'_>, room: &str) -> Option<Frame> {
        Some(event(cx, "user:left", &membership(cx, room)))
    }

    fn creates_rooms(&self, endpoint: &Endpoint) -> bool {
        endpoint.auto_create
    }

    fn back_end_message(&self, room: &str, message: &BackEndMessage) -> Result<Composed, BadOutgoing> {
        let kind = message.kind_of(&["text", "image", "file", "system"]);
        let kind = kind.ok_or(BadOutgoing("type is text, image, file or system"))?;
        let argument = Object::with_capacity(message.bytes() + 300)
            .str("id", &message.id.to_string())
            .str("roomId", room)
            .str("userId", &message.user)
            .str("username", &message.user)
            .str("content", &message.content)
            .str("type", kind)
            .opt_raw("metadata", message.metadata.as_deref())
            .str("timestamp", &message.rfc3339())
            .finish();
        Ok(Composed { event: "message", argument, by_id: false, messages_max: usize::MAX })
    }

    fn overheard(&self, room: &Room, _endpoint: &Endpoint, said: Overheard<'_>, scratch: &mut Scratch) -> Option<Remark> {
        let Overheard::Event { name: "message", args, attachments } = said else { return None };
        let doc = scratch.parse(args).ok()?;
        let message = doc.root();
        named(Some(message)).filter(|named| **named == *room.name)?;
        let id = message.get("id").and_then(|id| MessageId::try_parse(id.as_str()?).ok());
        let author = checked_name(message.get("userId")?.as_exact_str()?).ok()?.into();
        let text = if attachments.is_empty() { message.raw().into() } else { sio::spelled_out(message, attachments).into() };
        Some(Remark::Keep(Keep { id, by_id: false, author, text, hidden_from: None, messages_max: usize::MAX }))
    }

    fn typing_stopped(&self, cx: &Cx<'_>, room: &str) -> Option<(Frame, bool)> {
        Some((typing_frame(cx, room, false), false))
    }
}

/// What the client hears of an event that is refused (contract).
fn failed(event: &str) -> &'static str {
    match event {
        "room:join" => "Failed to join room",
        "room:leave" => "Failed to leave room",
        "message" => "Failed to send message",
        "typing" => "Failed to set typing",
        "document:edit" => "Failed to edit document",
        "user:status" => "Invalid status",
        _ => "Invalid authentication token",
    }
}

fn connect_error(message: &str, refusal: Refusal) -> Refused {
    let inner = Object::new().str("message", message).finish();
    Refused::Connect { data: Object::new().str("message", message).raw("data", &inner).finish(), refusal }
}

/// The name others see: of the token, else of the handshake, else the user id.
fn display_name<'a>(cx: &'a Cx<'_>) -> &'a str {
    cx.profile.username().unwrap_or(&cx.profile.user)
}

/// A room's name that the payload gives.
fn named<'a>(argument: Option<Value<'a>>) -> Option<&'a str> {
    checked_name(argument?.get("roomId")?.as_exact_str()?).ok()
}

/// A room that the payload names and this connection is in.
fn inside<'a>(cx: &Cx<'a>, argument: Option<Value<'_>>) -> Option<&'a Arc<str>> {
    (cx.inside)(named(argument)?)
}

fn join(cx: &Cx<'_>, argument: Option<Value<'_>>, ack: Option<&str>, acts: &mut Vec<Act>) -> Option<()> {
    let room = named(argument)?;
    let listed = || lists(cx.profile.identity.as_ref().and_then(|identity| identity.rooms()), room);
    if matches!(cx.endpoint.membership, Membership::Claims) && !listed() {
        return None;
    }
    acts.push(Act::Enter(Entry {
        room: room.into(),
        create: cx.endpoint.auto_create,
        announce: Some(event(cx, "user:joined", &membership(cx, room))),
        history: if ack.is_some() { HISTORY_IN_ACK } else { 0 },
        online: false,
        note: Some(ack.unwrap_or_default().into()),
    }));
    Some(())
}

fn leave(cx: &Cx<'_>, argument: Option<Value<'_>>, ack: Option<&str>, acts: &mut Vec<Act>) -> Option<()> {
    acts.push(Act::Leave { room: inside(cx, argument)?.clone(), note: ack.unwrap_or_default().into() });
    Some(())
}

fn message(cx: &Cx<'_>, argument: Option<Value<'_>>, ack: Option<&str>, acts: &mut Vec<Act>) -> Option<()> {
    let room = inside(cx, argument)?;
    let argument = argument?;
    let content = argument.get("content").filter(|content| content.as_str().is_some())?;
    let kind = argument.get("type").map_or(Some("text"), Value::as_str)?;
    if !["text", "image", "file"].contains(&kind) {
        return None;
    }
    let message_id = cx.message_id();
    let mut id = MessageId::encode_buffer();
    let id = &*message_id.as_hyphenated().encode_lower(&mut id);
    let with_metadata = |metadata: Option<&str>| {
        Object::with_capacity(content.raw().len() + metadata.map_or(0, str::len) + 300)
            .str("id", id)
            .str("roomId", room)
            .str("userId", &cx.profile.user)
            .str("username", display_name(cx))
            .raw("content", content.raw())
            .str("type", kind)
            .opt_raw("metadata", metadata)
            .str("timestamp", &cx.now.rfc3339())
            .finish()
    };
    let metadata = argument.get("metadata");
    let message = with_metadata(metadata.map(Value::raw));
    // History is JSON for whoever asks for it, binary data included; only those who are here now get it as it came.
    let kept = metadata.and_then(|metadata| cx.without_attachments(metadata)).map(|spelled_out| with_metadata(Some(&spelled_out)));
    let frame = event(cx, "message", &message);
    if let Some(ack) = ack {
        acts.push(acknowledge(cx, ack, &Object::new().bool("success", true).raw("message", &message).finish()));
    }
    let (author, text) = (cx.profile.user.clone(), Arc::<str>::from(kept.unwrap_or(message)));
    let told = cx.told(|| text.clone());
    let keep = Some(Keep { id: Some(message_id), by_id: false, author, text, hidden_from: None, messages_max: usize::MAX });
    let submission = cx.submission(Some(room), "message", argument.raw());
    acts.push(Act::Publish(Publication { room: room.clone(), frame, to_self: true, keep, hidden_from: None, told, submission }));
    Some(())
}

fn typing(cx: &Cx<'_>, argument: Option<Value<'_>>, ack: Option<&str>, acts: &mut Vec<Act>) -> Option<()> {
    let room = inside(cx, argument)?;
    let on = argument?.get("isTyping")?.as_bool()?;
    acts.push(to_others(cx, room.clone(), || typing_frame(cx, room, on)));
    acts.push(Act::Typing { room: room.clone(), on });
    succeed(cx, ack, acts);
    Some(())
}

fn document_edit(cx: &Cx<'_>, argument: Option<Value<'_>>, ack: Option<&str>, acts: &mut Vec<Act>) -> Option<()> {
    let room = inside(cx, argument)?;
    let argument = argument?;
    let changes = argument.get("changes")?;
    let frame = || {
        let edit = Object::new().str("userId", &cx.profile.user).str("roomId", room).raw("changes", changes.raw());
        event(cx, "document:edit", &edit.opt_raw("cursor", argument.get("cursor").map(Value::raw)).finish())
    };
    acts.push(match cx.submission(Some(room), "document:edit", argument.raw()) {
        None => to_others(cx, room.clone(), frame),
        submission => Act::Publish(Publication { submission, ..Publication::to_others(room.clone(), frame()) }),
    });
    succeed(cx, ack, acts);
    Some(())
}

fn user_status(cx: &Cx<'_>, argument: Option<Value<'_>>, ack: Option<&str>, acts: &mut Vec<Act>) -> Option<()> {
    let said = argument?.get("status")?.as_str()?;
    if !["online", "away", "offline"].contains(&said) {
        return None;
    }
    acts.push(Act::Publish(Publication::to_others(EVERYBODY.into(), status(cx, said))));
    succeed(cx, ack, acts);
    Some(())
}

fn authenticate(cx: &Cx<'_>, argument: Option<Value<'_>>, ack: Option<&str>, acts: &mut Vec<Act>) -> Option<()> {
    let identity = cx.reverify(argument?.get("token")?.as_str()?).ok()?;
    let answer = Object::new().str("userId", &cx.profile.user);
    let answer = match identity.email() {
        Some(email) => answer.str("email", email),
        None => answer.raw("email", "null"),
    };
    acts.push(Act::Refresh(identity));
    acts.push(Act::Send(event(cx, "authenticated", &answer.finish())));
    succeed(cx, ack, acts);
    Some(())
}

fn membership(cx: &Cx<'_>, room: &str) -> String {
    let who = Object::new().str("userId", &cx.profile.user).str("username", display_name(cx)).str("roomId", room);
    who.str("timestamp", &cx.now.rfc3339()).finish()
}

fn typing_frame(cx: &Cx<'_>, room: &str, on: bool) -> Frame {
    let who = Object::new().str("userId", &cx.profile.user).str("username", display_name(cx)).str("roomId", room);
    event(cx, "typing", &who.bool("isTyping", on).str("timestamp", &cx.now.rfc3339()).finish())
}

fn status(cx: &Cx<'_>, status: &str) -> Frame {
    event(cx, "user:status", &Object::new().str("userId", &cx.profile.user).str("status", status).finish())
}

fn refuse(cx: &Cx<'_>, message: &str, ack: Option<&str>, acts: &mut Vec<Act>) {
    let error = Object::new().str("message", message).finish();
    acts.push(Act::Send(event(cx, "error", &error)));
    if let Some(ack) = ack {
        acts.push(acknowledge(cx, ack, &Object::new().bool("success", false).raw("error", &error).finish()));
    }
}
