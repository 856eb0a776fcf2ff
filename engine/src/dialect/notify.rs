//! A hub that notifies users: clients connect, then prove who they are, and hear what the back end has for them. Socket.IO events.
//!
//! | client says | we do | others hear |
//! |---|---|---|
//! | connects | wait 10 s for `authenticate`, unless the handshake has a token | |
//! | `authenticate` | `authenticated`, in room `user:{userId}`; later: a later expiry | watchers: `presence` online, once per user |
//! | `typing` | | the conversation's others: `typing` |
//! | `presence:subscribe` | `presence` of each now, and at each change | |
//! | `message_delivered`, `message_read` | | the message's `receiptTo`: `message_status_update` |
//! | ends | | watchers: `presence` offline, once per user |
//!
//! The token is refused by `auth_error {message}`, anything else by `error {error, code, timestamp}`, and where the client waits for it by
//! the acknowledgement too. Clients enter no rooms: the back end puts users into them.

use std::collections::HashSet;
use std::sync::Arc;

use super::{
    Act, BadOutgoing, Confirmation, Cx, Dialect, EnterFault, Hello, Outgoing, Profile, Progress, Refused, RoomView, Said, Sight,
    acknowledge, event, lists, succeed, to_others,
};
use crate::auth::{AuthFault, Identity};
use crate::config::{AuthMode, Membership};
use crate::event::Receipted;
use crate::fault::{CloseReason, DropReason, Refusal};
use crate::frame::{Frame, Receipt};
use crate::ids::{UserId, checked_name};
use crate::json::{Object, Scratch, Value};
use crate::time::{Now, rfc3339};

pub(super) struct Notify;

/// Events of the back end that carry the time, whether it gives one or not.
const TIMED_EVENTS: [&str; 5] = [NEW_MESSAGE, STATUS_UPDATE, "unread_count_update", "conversation_update", "error"];
const NEW_MESSAGE: &str = "new_message";
const STATUS_UPDATE: &str = "message_status_update";
const BAD_TOKEN: &str = "Invalid token";
/// Of a `new_message`: the user who wants to know who got it.
const RECEIPT_TO: &str = "receiptTo";

/// Why something other than a token is refused.
#[derive(Clone, Copy)]
enum Fault {
    Unauthenticated,
    BadMessage,
    OverRate,
    TooManyWatched,
    NotInConversation,
    NotToBeWatched,
    NeverSent,
}

impl Fault {
    /// The contract's code and the words for people.
    fn told(self) -> (&'static str, &'static str) {
        match self {
            Fault::Unauthenticated => ("UNAUTHENTICATED", "Not authenticated"),
            Fault::BadMessage => ("INVALID_MESSAGE", "Invalid message format"),
            Fault::OverRate => ("RATE_LIMIT_EXCEEDED", "Rate limit exceeded"),
            Fault::TooManyWatched => ("INVALID_MESSAGE", "Too many subscriptions"),
            Fault::NotInConversation => ("FORBIDDEN", "Not a member of this conversation"),
            Fault::NotToBeWatched => ("FORBIDDEN", "Not allowed to subscribe to this user"),
            Fault::NeverSent => ("FORBIDDEN", "This message was not sent to you"),
        }
    }

    fn drop_reason(self) -> DropReason {
        match self {
            Fault::BadMessage | Fault::TooManyWatched => DropReason::Invalid,
            Fault::OverRate => DropReason::Rate,
            _ => DropReason::Forbidden,
        }
    }
}

impl Dialect for Notify {
    fn tells_of_rooms(&self) -> bool {
        false
    }

    /// Nobody is refused here: what is wrong with the token is said when the connection is there.
    fn admit(&self, hello: &Hello<'_>) -> Result<Profile, Refused> {
        let named = |user: &str| Profile { unproven: Some(Ok(())), ..Profile::named(user) };
        Ok(match (hello.endpoint.auth, &hello.token) {
            (AuthMode::None, _) => {
                let said = hello.auth.and_then(|auth| checked_name(auth.get("userId")?.as_exact_str()?).ok());
                named(said.unwrap_or(hello.sid.text().as_str()))
            }
            (AuthMode::Token, Ok(identity)) => Profile { unproven: Some(Ok(())), ..Profile::of(identity.clone()) },
            (AuthMode::Token, Err(fault)) => Profile { unproven: Some(Err(*fault)), ..named("") },
        })
    }

    fn too_many(&self, _now: Now) -> Refused {
        let data = auth_object(told_auth(EnterFault::UserLimit));
        Refused::Connect { data, refusal: Refusal::UserLimit }
    }

    fn opened(&self, cx: &Cx<'_>, _query: &str, acts: &mut Vec<Act>) {
        match cx.profile.unproven {
            Some(Ok(())) => acts.push(Act::Identify { profile: Box::new(cx.profile.clone()), note: "".into() }),
            None | Some(Err(AuthFault::Missing)) => {}
            Some(Err(_)) => refuse_stranger(cx, None, acts),
        }
    }

    fn identified(&self, cx: &Cx<'_>, outcome: Result<(), EnterFault>, note: &str, acts: &mut Vec<Act>) {
        // The note is the acknowledgement's id, empty where the client waits for none; so it is in the other answers.
        let ack = awaited(note);
        match outcome {
            Ok(()) => welcome(cx, cx.profile.email(), ack, acts),
            // As for a bad token.
            Err(EnterFault::Refused) => {
                refuse_token(cx, cx.reason.unwrap_or(BAD_TOKEN), ack, acts);
                acts.push(Act::Close(CloseReason::Forbidden));
            }
            Err(fault) => {
                refuse_token(cx, told_auth(fault), ack, acts);
                acts.push(Act::Close(CloseReason::UserLimit));
            }
        }
    }

    fn last_word(&self, cx: &Cx<'_>, reason: CloseReason) -> Option<Frame> {
        let message = match reason {
            CloseReason::TokenExpired => "Token expired",
            CloseReason::AuthTimeout => "Authentication timeout",
            _ => return None,
        };
        Some(event(cx, "auth_error", &auth_object(message)))
    }

    fn is_watched(&self) -> bool {
        true
    }

    fn keeps_grants(&self) -> bool {
        true
    }

    fn own_room(&self, user: &str) -> Option<String> {
        Some(format!("user:{user}"))
    }

    fn presence(&self, cx: &Cx<'_>, online: bool) -> Option<Frame> {
        let sight = if online { Sight::Here } else { Sight::Gone { unix_ms: cx.now.unix_ms } };
        Some(presence_frame(cx, &cx.profile.user, sight))
    }

    fn watched(&self, cx: &Cx<'_>, seen: Result<(&str, Sight), EnterFault>, note: Option<&str>, acts: &mut Vec<Act>) {
        let ack = note.and_then(awaited);
        match seen {
            Ok((user, sight)) => {
                acts.push(Act::Send(presence_frame(cx, user, sight)));
                succeed(cx, ack, acts);
            }
            Err(EnterFault::Refused) => refuse(cx, Fault::NotToBeWatched, ack, acts),
            Err(_) => refuse(cx, Fault::TooManyWatched, ack, acts),
        }
    }

    fn confirmed(&self, cx: &Cx<'_>, was_sent: bool, note: &str, acts: &mut Vec<Act>) {
        if was_sent { succeed(cx, awaited(note), acts) } else { refuse(cx, Fault::NeverSent, awaited(note), acts) }
    }

    fn outgoing(&self, now: Now, event: &str, args: &str, scratch: &mut Scratch) -> Result<Outgoing, BadOutgoing> {
        if !TIMED_EVENTS.contains(&event) {
            return Ok(Outgoing::default());
        }
        // Several arguments are no JSON value: whoever gives them knows what he does.
        let Ok(doc) = scratch.parse(args) else { return Ok(Outgoing::default()) };
        let data = doc.root();
        let receipt = if event == NEW_MESSAGE { receipt(data)? } else { None };
        let is_timed = data.get("timestamp").is_some();
        if !data.is_object() || (is_timed && receipt.is_none()) {
            return Ok(Outgoing::default());
        }
        let kept = data.members().filter(|member| event != NEW_MESSAGE || member.key != RECEIPT_TO);
        let told = kept.fold(Object::with_capacity(args.len() + 48), |told, member| told.raw(member.key, member.value.raw()));
        let told = if is_timed { told } else { told.str("timestamp", &now.rfc3339()) };
        Ok(Outgoing { args: Some(told.finish()), receipt, is_kept: false })
    }

    fn message(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let Said::Event { name, ack, .. } = said else { return };
        let argument = said.argument().filter(|argument| argument.is_object());
        if name == "authenticate" {
            return authenticate(cx, argument, ack, acts);
        }
        if cx.profile.unproven.is_some() {
            return refuse(cx, Fault::Unauthenticated, ack, acts);
        }
        let outcome = match name {
            "typing" => typing(cx, argument, ack, acts),
            "presence:subscribe" => subscribe(cx, argument, ack, acts),
            "message_delivered" => confirm(cx, argument, Progress::Delivered, ack, acts),
            "message_read" => confirm(cx, argument, Progress::Read, ack, acts),
            // An event nobody listens to, as on the old server.
            _ => return acts.push(Act::Drop(DropReason::Invalid)),
        };
        if let Err(fault) = outcome {
            refuse(cx, fault, ack, acts);
        }
    }

    fn over_rate(&self, cx: &Cx<'_>, said: Said<'_>, acts: &mut Vec<Act>) {
        let ack = if let Said::Event { ack, .. } = said { ack } else { None };
        // It has been counted where it was found out.
        tell_error(cx, Fault::OverRate, ack, acts);
    }

    fn entered(&self, _cx: &Cx<'_>, _room: &str, _outcome: Result<&RoomView, EnterFault>, _note: Option<&str>, _acts: &mut Vec<Act>) {
        // Clients enter no rooms, and where the back end puts them they are not told.
    }

    fn left(&self, _cx: &Cx<'_>, _room: &str, _view: &RoomView, _note: &str, _acts: &mut Vec<Act>) {
        // Nor do they leave any.
    }

    fn farewell(&self, _cx: &Cx<'_>, _room: &str) -> Option<Frame> {
        None
    }

    fn typing_stopped(&self, cx: &Cx<'_>, room: &str) -> Option<(Frame, bool)> {
        let mut conversation = String::new();
        crate::json::quote(&mut conversation, room.strip_prefix("conversation:")?);
        Some((typing_frame(cx, &conversation, false), false))
    }
}

/// The acknowledgement's id that a note is.
fn awaited(note: &str) -> Option<&str> {
    Some(note).filter(|ack| !ack.is_empty())
}

fn authenticate(cx: &Cx<'_>, argument: Option<Value<'_>>, ack: Option<&str>, acts: &mut Vec<Act>) {
    let token = argument.and_then(|argument| argument.get("token")?.as_str());
    let check = |token| if cx.profile.unproven.is_some() { cx.verify(token) } else { cx.reverify(token) };
    match (token.map_or(Err(AuthFault::Invalid), check), &cx.profile.unproven) {
        (Ok(identity), Some(_)) => {
            let note = ack.unwrap_or_default().into();
            acts.push(Act::Identify { profile: Box::new(Profile::of(identity)), note });
        }
        (Ok(identity), None) => refresh(cx, identity, ack, acts),
        (Err(_), Some(_)) => refuse_stranger(cx, ack, acts),
        (Err(_), None) => {
            acts.push(Act::Drop(DropReason::Forbidden));
            refuse_token(cx, BAD_TOKEN, ack, acts);
        }
    }
}

fn refresh(cx: &Cx<'_>, identity: Arc<Identity>, ack: Option<&str>, acts: &mut Vec<Act>) {
    let email: Option<Box<str>> = identity.email().map(Box::from);
    acts.push(Act::Refresh(identity));
    welcome(cx, email.as_deref(), ack, acts);
}

fn welcome(cx: &Cx<'_>, email: Option<&str>, ack: Option<&str>, acts: &mut Vec<Act>) {
    let told = Object::new().str("userId", &cx.profile.user);
    let told = match email {
        Some(email) => told.str("email", email),
        None => told.raw("email", "null"),
    };
    acts.push(Act::Send(event(cx, "authenticated", &told.finish())));
    succeed(cx, ack, acts);
}

/// Whoever shows a bad token before he is known is sent away.
fn refuse_stranger(cx: &Cx<'_>, ack: Option<&str>, acts: &mut Vec<Act>) {
    refuse_token(cx, BAD_TOKEN, ack, acts);
    acts.push(Act::Close(CloseReason::Unauthorized));
}

fn refuse_token(cx: &Cx<'_>, message: &str, ack: Option<&str>, acts: &mut Vec<Act>) {
    tell_refusal(cx, "auth_error", &auth_object(message), ack, acts);
}

fn auth_object(message: &str) -> String {
    Object::new().str("message", message).finish()
}

fn told_auth(fault: EnterFault) -> &'static str {
    match fault {
        EnterFault::UserLimit => "Maximum connection limit reached",
        _ => "The server is full",
    }
}

fn typing(cx: &Cx<'_>, argument: Option<Value<'_>>, ack: Option<&str>, acts: &mut Vec<Act>) -> Result<(), Fault> {
    let argument = argument.ok_or(Fault::BadMessage)?;
    let (conversation, raw) = id(argument, "conversationId")?;
    let on = argument.get("isTyping").and_then(Value::as_bool).ok_or(Fault::BadMessage)?;
    let room = (cx.inside)(&format!("conversation:{conversation}")).cloned().ok_or(Fault::NotInConversation)?;
    acts.push(to_others(cx, room.clone(), || typing_frame(cx, raw, on)));
    acts.push(Act::Typing { room, on });
    succeed(cx, ack, acts);
    Ok(())
}

/// `conversation` is JSON.
fn typing_frame(cx: &Cx<'_>, conversation: &str, on: bool) -> Frame {
    let told = Object::new().str("userId", &cx.profile.user).raw("conversationId", conversation).bool("isTyping", on);
    event(cx, "typing", &told.str("timestamp", &cx.now.rfc3339()).finish())
}

fn subscribe(cx: &Cx<'_>, argument: Option<Value<'_>>, ack: Option<&str>, acts: &mut Vec<Act>) -> Result<(), Fault> {
    let listed = argument.and_then(|argument| argument.get("userIds")).filter(|ids| ids.is_array()).ok_or(Fault::BadMessage)?;
    let mut users: Vec<UserId> = Vec::new();
    let mut seen = HashSet::new();
    for id in listed.items() {
        let user = id.as_exact_str().ok_or(Fault::BadMessage)?;
        // A message holds a hundred thousand repetitions; what is asked of a name is asked of it once.
        if !seen.insert(user) {
            continue;
        }
        let user = checked_name(user).map_err(|_| Fault::BadMessage)?;
        if !may_watch(cx, user) {
            return Err(Fault::NotToBeWatched);
        }
        users.push(user.into());
        // More than that are refused anyway; looking further would cost time without end.
        if users.len() > cx.limits.rooms_per_connection {
            return Err(Fault::TooManyWatched);
        }
    }
    if users.is_empty() {
        succeed(cx, ack, acts);
    } else {
        acts.push(Act::Watch { users, note: ack.unwrap_or_default().into() });
    }
    Ok(())
}

fn may_watch(cx: &Cx<'_>, user: &str) -> bool {
    let rooms = || cx.profile.identity.as_ref().and_then(|identity| identity.rooms());
    !matches!(cx.endpoint.membership, Membership::Claims) || lists(rooms(), &format!("user:{user}"))
}

/// Who is here was last seen now.
fn presence_frame(cx: &Cx<'_>, user: &str, sight: Sight) -> Frame {
    let (status, last_seen) = match sight {
        Sight::Here => ("online", Some(cx.now.unix_ms)),
        Sight::Gone { unix_ms } => ("offline", Some(unix_ms)),
        Sight::Unknown => ("offline", None),
    };
    let told = Object::new().str("userId", user).str("status", status);
    let told = match last_seen {
        Some(unix_ms) => told.str("lastSeen", &rfc3339(unix_ms)),
        None => told.raw("lastSeen", "null"),
    };
    event(cx, "presence", &told.finish())
}

fn confirm(cx: &Cx<'_>, argument: Option<Value<'_>>, progress: Progress, ack: Option<&str>, acts: &mut Vec<Act>) -> Result<(), Fault> {
    let argument = argument.ok_or(Fault::BadMessage)?;
    let (message, raw_message) = id(argument, "messageId")?;
    let (_, raw_conversation) = id(argument, "conversationId")?;
    let told = Object::new()
        .raw("messageId", raw_message)
        .raw("conversationId", raw_conversation)
        .str("status", progress.name())
        .str("timestamp", &cx.now.rfc3339())
        .finish();
    let (frame, note) = (event(cx, STATUS_UPDATE, &told), ack.unwrap_or_default().into());
    let told =
        cx.told_receipt(|| Receipted { message: raw_message.into(), conversation: raw_conversation.into(), status: progress.name() });
    acts.push(Act::Confirm(Box::new(Confirmation { message: message.into(), progress, frame, told, note })));
    Ok(())
}

/// An id that the payload must have: what it is, and how it was written.
fn id<'a>(argument: Value<'a>, key: &str) -> Result<(&'a str, &'a str), Fault> {
    let value = argument.get(key).ok_or(Fault::BadMessage)?;
    let id = id_text(value).ok_or(Fault::BadMessage)?;
    Ok((id, value.raw()))
}

/// Ids of messages and conversations are the back end's: names, or numbers as they are written.
fn id_text(value: Value<'_>) -> Option<&str> {
    let text = value.as_exact_str().or_else(|| value.as_f64().map(|_| value.raw()))?;
    checked_name(text).ok()
}

/// What a `new_message` says of who wants to know who got it.
fn receipt(data: Value<'_>) -> Result<Option<Receipt>, BadOutgoing> {
    let Some(to) = data.get(RECEIPT_TO) else { return Ok(None) };
    let to = to.as_exact_str().and_then(|to| checked_name(to).ok()).ok_or(BadOutgoing("receiptTo is not the id of a user"))?;
    let message = data.get("message").and_then(|message| id_text(message.get("id")?));
    let message = message.ok_or(BadOutgoing("receiptTo asks for message.id, a name or a number"))?;
    Ok(Some(Receipt { message: message.into(), to: to.into() }))
}

fn refuse(cx: &Cx<'_>, fault: Fault, ack: Option<&str>, acts: &mut Vec<Act>) {
    acts.push(Act::Drop(fault.drop_reason()));
    tell_error(cx, fault, ack, acts);
}

fn tell_error(cx: &Cx<'_>, fault: Fault, ack: Option<&str>, acts: &mut Vec<Act>) {
    let (code, message) = fault.told();
    let message = cx.reason.unwrap_or(message);
    let error = Object::new().str("error", message).str("code", code).str("timestamp", &cx.now.rfc3339()).finish();
    tell_refusal(cx, "error", &error, ack, acts);
}

fn tell_refusal(cx: &Cx<'_>, name: &str, error: &str, ack: Option<&str>, acts: &mut Vec<Act>) {
    acts.push(Act::Send(event(cx, name, error)));
    if let Some(ack) = ack {
        acts.push(acknowledge(cx, ack, &Object::new().bool("success", false).raw("error", error).finish()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(event: &str, args: &str) -> Result<(String, Option<(String, String)>), BadOutgoing> {
        let now = Now { ns: 0, unix_ms: 1_704_067_200_000 };
        let out = Notify.outgoing(now, event, args, &mut Scratch::default())?;
        let receipt = out.receipt.map(|receipt| (receipt.message.to_string(), receipt.to.to_string()));
        Ok((out.args.unwrap_or_else(|| args.to_owned()), receipt))
    }

    #[test]
    fn events_of_the_page_get_the_time_and_all_else_stays() {
        let same = [
            ("new_message", r#"{"message":{},"timestamp":"then"}"#),
            ("new_message", r#"{"timestamp":null}"#),
            ("new_message", "7"),
            ("new_message", r#"{"a":1},{"b":2}"#),
            ("new_message", ""),
            ("other", r#"{"receiptTo":7}"#),
        ];
        for (event, args) in same {
            assert_eq!(outgoing(event, args), Ok((args.to_owned(), None)), "{event} {args}");
        }
        for event in TIMED_EVENTS {
            let told = r#"{"a":1e3,"b":[ ],"timestamp":"2024-01-01T00:00:00.000Z"}"#;
            assert_eq!(outgoing(event, r#" { "a" : 1e3 , "b":[ ] } "#), Ok((told.to_owned(), None)), "{event}");
        }
    }

    #[test]
    fn who_wants_receipts_is_taken_out() {
        let told = |id: &str, receipt: &str| {
            let told = format!(r#"{{"message":{{"id":{id}}},"timestamp":"t"}}"#);
            Ok((told, Some((receipt.to_owned(), "alice".to_owned()))))
        };
        assert_eq!(outgoing("new_message", r#"{"message":{"id":"m1"},"receiptTo":"alice","timestamp":"t"}"#), told("\"m1\"", "m1"));
        assert_eq!(outgoing("new_message", r#"{"receiptTo":"alice","message":{"id":17},"timestamp":"t"}"#), told("17", "17"));
        for wrong in [
            r#"{"message":{"id":"m1"},"receiptTo":7}"#,
            r#"{"message":{"id":"m1"},"receiptTo":""}"#,
            r#"{"message":{"id":""},"receiptTo":"alice"}"#,
            r#"{"message":{},"receiptTo":"alice"}"#,
            r#"{"message":"m1","receiptTo":"alice"}"#,
        ] {
            assert!(outgoing("new_message", wrong).is_err(), "{wrong}");
        }
    }
}
