//! Document collaboration: plain WebSocket, `{"type", "documentId", ...}`; one connection is in one document, named by the handshake.
//!
//! | client says | we do | others hear |
//! |---|---|---|
//! | connects with `documentId`, `clientID` | `connected` | |
//! | `sync` | `synced`, with what is kept of the document | |
//! | `update`, `steps` | keep it (option `retain`) | its text, with the sender's `clientID` |
//! | `awareness`, `selection` | | the same |
//! | `authenticate` | a later expiry, `authenticated` | |
//! | leaves | | `awareness` null, once per `clientID` |

use std::borrow::Cow;
use std::sync::Arc;

use super::{
    Act, BadOutgoing, Cx, Dialect, EnterFault, Entry, Hello, Keep, Outgoing, Overheard, Profile, Publication, Refused, Remark, RoomView,
    Said, UNAVAILABLE, lists, to_others,
};
use crate::config::{AuthMode, Endpoint, Membership};
use crate::event::EventType;
use crate::fault::{CloseReason, DropReason};
use crate::frame::Frame;
use crate::ids::{Room, checked_name};
use crate::json::{Object, Scratch, Value, quote};
use crate::time::Now;
use crate::wire::http;

pub(super) struct Collab;

impl Dialect for Collab {
    fn tells_of_users(&self) -> bool {
        false
    }

    fn admit(&self, hello: &Hello<'_>) -> Result<Profile, Refused> {
        let named = |name| http::query_value(hello.query, name).filter(|value| checked_name(value).is_ok());
        let (Some(document), Some(client)) = (named("documentId"), named("clientID")) else {
            return Err(Refused::Close { first: None, reason: CloseReason::BadHandshake });
        };
        let client: Arc<str> = client.into();
        let identity = match (hello.endpoint.auth, &hello.token) {
            (AuthMode::None, _) => None,
            (AuthMode::Token, Ok(identity)) => Some(identity.clone()),
            (AuthMode::Token, Err(_)) => return Err(Refused::Close { first: None, reason: CloseReason::Unauthorized }),
        };
        let open = matches!(hello.endpoint.membership, Membership::Open | Membership::Webhook | Membership::Redis);
        if !open && !lists(identity.as_ref().and_then(|identity| identity.documents()), &document) {
            return Err(Refused::Close { first: Some(error_text("Access denied")), reason: CloseReason::Forbidden });
        }
        let mut profile = identity.map_or_else(|| Profile::named(&client), Profile::of);
        let own = profile.own();
        (own.presence, own.has_client_id) = (client, true);
        Ok(profile)
    }

    fn too_many(&self, _now: Now) -> Refused {
        Refused::Close { first: Some(error_text("Maximum connection limit reached")), reason: CloseReason::UserLimit }
    }

    fn turned_down(&self, _now: Now, reason: Option<&str>) -> Refused {
        Refused::Close { first: Some(error_text(reason.unwrap_or("Access denied"))), reason: CloseReason::Forbidden }
    }

    fn unavailable(&self, _now: Now) -> Refused {
        Refused::Close { first: Some(error_text(UNAVAILABLE)), reason: CloseReason::Forbidden }
    }

    fn opened(&self, _cx: &Cx<'_>, query: &str, acts: &mut Vec<Act>) {
        // `admit` has seen that it is there and a good name.
        let document = http::query_value(query, "documentId").unwrap_or(Cow::Borrowed(""));
        acts.push(Act::Enter(Entry { room: document.into(), create: true, announce: None, history: 0, online: false, note: None }));
    }

    fn outgoing(&self, _now: Now, event: &str, args: &str, _scratch: &mut Scratch) -> Result<Outgoing, BadOutgoing> {
        // What comes here is JSON or nothing.
        let is_object = args.is_empty() || args.trim_ascii_start().starts_with('{');
        let outgoing = Outgoing { is_kept: is_kept(event), ..Outgoing::default() };
        if is_object { Ok(outgoing) } else { Err(BadOutgoing("the endpoint's events are objects")) }
    }

    /// The event is the type, beside the members of its data.
    fn emitted(&self, event: &str, data: &str, scratch: &mut Scratch) -> String {
        let out = Object::with_capacity(data.len() + event.len() + 16).str("type", event);
        let Ok(doc) = scratch.parse(data) else { return out.finish() };
        doc.root().members().filter(|member| member.key != "type").fold(out, |out, member| out.raw(member.key, member.value.raw())).finish()
    }

    fn message(&self, cx: &Cx<'_>, said: Said<'_>, scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let Said::Text(text) = said else { return refuse(cx, "Invalid message format", acts) };
        let Ok(doc) = scratch.parse(text) else { return refuse(cx, "Invalid message format", acts) };
        let root = doc.root();
        if !root.is_object() || root.get("o").is_some() || root.get("toClientID").is_some() {
            return refuse(cx, "Invalid message format", acts);
        }
        let kind = root.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind == "authenticate" {
            return authenticate(cx, root, acts);
        }
        if !["sync", "update", "awareness", "selection", "steps"].contains(&kind) {
            return refuse(cx, "Unknown message type", acts);
        }
        let Some(document) = root.get("documentId").and_then(Value::as_str).and_then(cx.inside) else {
            return refuse(cx, "Document ID mismatch", acts);
        };
        if kind == "sync" {
            match cx.endpoint.retain {
                0 => acts.push(Act::Send(cx.text(&synced(document, None)))),
                _ => acts.push(Act::Recall { room: document.clone() }),
            }
            return;
        }
        let relayed = || with_client_id(text.trim(), root, cx.profile.presence());
        let is_looked_at = cx.endpoint.retain > 0 || cx.wanted.has(EventType::Message) || cx.endpoint.publish_hook;
        if !is_kept(kind) || !is_looked_at {
            return acts.push(to_others(cx, document.clone(), || cx.text(&relayed())));
        }
        let relayed = relayed();
        let mut publication = Publication::to_others(document.clone(), cx.text(&relayed));
        if cx.endpoint.retain > 0 || cx.wanted.has(EventType::Message) {
            let text: Arc<str> = relayed.into();
            publication.told = cx.told(|| text.clone());
            let (author, messages_max) = (cx.profile.user.clone(), cx.endpoint.retain);
            let keep = Keep { id: None, by_id: false, author, text, hidden_from: None, messages_max };
            publication.keep = (messages_max > 0).then_some(keep);
        }
        publication.submission = cx.submission(Some(document), kind, root.raw());
        acts.push(Act::Publish(publication));
    }

    fn over_rate(&self, cx: &Cx<'_>, _said: Said<'_>, acts: &mut Vec<Act>) {
        acts.push(error(cx, "Rate limit exceeded"));
    }

    fn restated(&self, _kind: &str, data: &str) -> String {
        data.to_owned()
    }

    fn unpublished(&self, cx: &Cx<'_>, _said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        acts.push(Act::Drop(DropReason::Forbidden));
        acts.push(error(cx, cx.reason.unwrap_or("Access denied")));
    }

    fn entered(&self, cx: &Cx<'_>, room: &str, outcome: Result<&RoomView, EnterFault>, _note: Option<&str>, acts: &mut Vec<Act>) {
        if outcome.is_ok() {
            let connected = Object::new().str("type", "connected").str("clientID", cx.profile.presence()).str("documentId", room).finish();
            acts.push(Act::Send(cx.text(&connected)));
        } else {
            acts.push(error(cx, "Access denied"));
            acts.push(Act::Close(CloseReason::Forbidden));
        }
    }

    fn left(&self, _cx: &Cx<'_>, _room: &str, _view: &RoomView, _note: &str, _acts: &mut Vec<Act>) {
        // One leaves a document by ending the connection.
    }

    fn recalled(&self, cx: &Cx<'_>, room: &str, kept: &[Arc<str>], acts: &mut Vec<Act>) {
        acts.push(Act::Send(cx.text(&synced(room, Some(kept)))));
    }

    fn farewell(&self, cx: &Cx<'_>, room: &str) -> Option<Frame> {
        let gone = Object::new().str("type", "awareness").str("documentId", room).str("clientID", cx.profile.presence());
        Some(cx.text(&gone.raw("awareness", "null").finish()))
    }

    fn is_bound_to_room(&self) -> bool {
        true
    }

    fn overheard(&self, _room: &Room, endpoint: &Endpoint, said: Overheard<'_>, scratch: &mut Scratch) -> Option<Remark> {
        let Overheard::Text(text) = said else { return None };
        let doc = scratch.parse(text).ok().filter(|_| endpoint.retain > 0)?;
        doc.root().get("type").and_then(Value::as_str).filter(|kind| is_kept(kind))?;
        let author = doc.root().get("clientID").and_then(|client| checked_name(client.as_exact_str()?).ok()).unwrap_or_default().into();
        let messages_max = endpoint.retain;
        Some(Remark::Keep(Keep { id: None, by_id: false, author, text: text.into(), hidden_from: None, messages_max }))
    }

    fn typing_stopped(&self, _cx: &Cx<'_>, _room: &str) -> Option<(Frame, bool)> {
        None
    }
}

fn authenticate(cx: &Cx<'_>, root: Value<'_>, acts: &mut Vec<Act>) {
    match root.get("token").and_then(Value::as_str).map(|token| cx.reverify(token)) {
        Some(Ok(identity)) => {
            acts.push(Act::Refresh(identity));
            acts.push(Act::Send(cx.text(&Object::new().str("type", "authenticated").finish())));
        }
        Some(Err(_)) | None => refuse(cx, "Unauthorized", acts),
    }
}

/// The sender's text in which only `clientID` is the sender's: without one it comes last, the only one gets the value, and several,
/// escaped spellings included, become one at the end. Everything else keeps its bytes, but for blanks in that last case.
fn with_client_id(text: &str, root: Value<'_>, client: &str) -> String {
    let mut out = String::with_capacity(text.len() + client.len() + 20);
    let count = root.members().filter(|member| member.key == "clientID").count();
    if count == 1 {
        let claimed = root.members().find(|member| member.key == "clientID").map_or(text, |member| member.value.raw());
        // `claimed` is a part of `text`, so its address tells where.
        let start = claimed.as_ptr() as usize - text.as_ptr() as usize;
        out.push_str(&text[..start]);
        quote(&mut out, client);
        out.push_str(&text[start + claimed.len()..]);
        return out;
    }
    if let Some(open) = text.strip_suffix('}').filter(|_| count == 0) {
        // An object that is relayed has members: its type at least.
        out.push_str(open);
        out.push_str(",\"clientID\":");
        quote(&mut out, client);
        out.push('}');
        return out;
    }
    out.push('{');
    for member in root.members().filter(|member| member.key != "clientID") {
        out.push_str(member.raw_key);
        out.push(':');
        out.push_str(member.value.raw());
        out.push(',');
    }
    out.push_str("\"clientID\":");
    quote(&mut out, client);
    out.push('}');
    out
}

/// True exactly when messages of this type are what a late joiner needs.
fn is_kept(kind: &str) -> bool {
    matches!(kind, "update" | STEPS)
}

/// The event by which the back end's steps are emitted.
pub const STEPS: &str = "steps";

/// The data of the back end's steps, which are nobody's but the agent's: one name for each.
pub fn steps(steps: Value<'_>, change_id: Value<'_>) -> String {
    let names = vec![r#""agent""#; steps.items().count()].join(",");
    let data = Object::with_capacity(steps.raw().len() + names.len() + change_id.raw().len() + 40);
    data.raw("steps", steps.raw()).raw("clientIDs", &format!("[{names}]")).raw("changeId", change_id.raw()).finish()
}

fn synced(document: &str, kept: Option<&[Arc<str>]>) -> String {
    let synced = Object::new().str("type", "synced").str("documentId", document);
    match kept {
        None => synced.finish(),
        Some(kept) => synced.raw("updates", &format!("[{}]", kept.join(","))).finish(),
    }
}

fn error_text(message: &str) -> String {
    Object::new().str("type", "error").str("message", message).finish()
}

fn error(cx: &Cx<'_>, message: &str) -> Act {
    Act::Send(cx.text(&error_text(message)))
}

fn refuse(cx: &Cx<'_>, message: &str, acts: &mut Vec<Act>) {
    acts.push(Act::Drop(DropReason::Invalid));
    acts.push(error(cx, message));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relayed(text: &str) -> String {
        let mut scratch = Scratch::default();
        let doc = scratch.parse(text).expect("valid JSON");
        with_client_id(text, doc.root(), "me")
    }

    #[test]
    fn the_back_end_has_the_type_and_nothing_else_changes() {
        let mut scratch = Scratch::default();
        for (data, heard) in [
            ("", r#"{"type":"t"}"#),
            ("[1]", r#"{"type":"t"}"#),
            (r#" {"n" : 1e+100, "type":"other","s":"\u00e9"} "#, r#"{"type":"t","n":1e+100,"s":"\u00e9"}"#),
        ] {
            assert_eq!(Collab.emitted("t", data, &mut scratch), heard);
        }
    }

    #[test]
    fn only_the_client_id_changes() {
        for (said, heard) in [
            (r#"{"type":"update","n":1e+100}"#, r#"{"type":"update","n":1e+100,"clientID":"me"}"#),
            (r#"{ "clientID" : "you" , "n": -0 }"#, r#"{ "clientID" : "me" , "n": -0 }"#),
            (r#"{"clientID":{"a":[1]},"x":"\u00e9"}"#, r#"{"clientID":"me","x":"\u00e9"}"#),
            (r#"{"client\u0049D":1,"a":2,"clientID":3}"#, r#"{"a":2,"clientID":"me"}"#),
            (r#"{ "n" : [1, 2] }"#, r#"{ "n" : [1, 2] ,"clientID":"me"}"#),
            (r#"{"a":{"clientID":"inner"}}"#, r#"{"a":{"clientID":"inner"},"clientID":"me"}"#),
        ] {
            assert_eq!(relayed(said), heard);
        }
    }
}
