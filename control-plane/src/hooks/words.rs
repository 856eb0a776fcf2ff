//! What is said to the back end and what it answers (contract: backend-api.md, webhooks).

use std::sync::Arc;

use engine::ids::{SidText, UserId, checked_name};
use engine::json::{Object, quote};
use engine::{Caller, Proposal};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes of a reason; it stands in an error for people, and is cut where it is longer.
const REASON_BYTES_MAX: usize = 500;

/// Rooms that an answer may name; their names together are bounded by its bytes.
const ROOMS_MAX: usize = 1_000;

/// Asks who may connect.
pub(super) fn connect(endpoint: &str, caller: &Caller) -> String {
    let connection = Object::new()
        .raw("id", &text_or_null(caller.id.map(|id| id.to_string()).as_deref()))
        .raw("address", &text_or_null(caller.address.map(|address| address.to_string()).as_deref()))
        .raw("origin", &text_or_null(caller.origin.as_deref()))
        .str("query", &caller.query)
        .raw("userAgent", &text_or_null(caller.user_agent.as_deref()))
        .finish();
    Object::new()
        .str("endpoint", endpoint)
        .raw("connection", &connection)
        .raw("claims", caller.claims.as_deref().unwrap_or("null"))
        .finish()
}

/// Asks who may enter a room.
pub(super) fn join(endpoint: &str, user: &str, connection: Option<&str>, room: &str) -> String {
    Object::new().str("endpoint", endpoint).str("userId", user).raw("connectionId", &text_or_null(connection)).str("room", room).finish()
}

/// Asks what may be said.
pub(super) fn publish(endpoint: &str, proposal: &Proposal) -> String {
    Object::with_capacity(proposal.data.len() + 300)
        .str("endpoint", endpoint)
        .str("userId", &proposal.user)
        .raw("connectionId", &text_or_null(proposal.conn.map(|conn| conn.text()).as_ref().map(SidText::as_str)))
        .raw("room", &text_or_null(proposal.room.as_deref()))
        .str("event", &proposal.event)
        .raw("data", &proposal.data)
        .finish()
}

fn text_or_null(text: Option<&str>) -> String {
    let mut json = String::new();
    match text {
        Some(text) => quote(&mut json, text),
        None => json.push_str("null"),
    }
    json
}

/// An answer. What a hook does not know of is passed over, like anything else an answer may have.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) allow: bool,
    pub(super) user: Option<UserId>,
    pub(super) name: Option<Box<str>>,
    pub(super) rooms: Option<Vec<String>>,
    pub(super) data: Option<Box<str>>,
    pub(super) reason: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    allow: bool,
    user_id: Option<String>,
    name: Option<String>,
    rooms: Option<Vec<String>>,
    data: Option<Box<RawValue>>,
    reason: Option<String>,
}

impl Answer {
    /// `None` for what is no answer: no JSON, no `allow`, members of wrong types, or somebody who cannot be.
    pub(super) fn read(body: &[u8]) -> Option<Answer> {
        let said: Said = serde_json::from_slice(body).ok()?;
        let is_named = |name: &Option<String>| name.as_ref().is_none_or(|name| checked_name(name).is_ok());
        let are_rooms = |rooms: &Vec<String>| rooms.len() <= ROOMS_MAX && rooms.iter().all(|room| checked_name(room).is_ok());
        if !is_named(&said.user_id) || !is_named(&said.name) || !said.rooms.as_ref().is_none_or(are_rooms) {
            return None;
        }
        Some(Answer {
            allow: said.allow,
            user: said.user_id.map(Arc::from),
            name: said.name.map(Box::from),
            rooms: said.rooms,
            data: said.data.map(|data| data.get().into()),
            reason: said.reason.map(|reason| reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use engine::ids::{ShardId, Sid};

    use super::*;

    #[test]
    fn questions_have_the_contracts_shape() {
        let id = Sid::new(ShardId(0), 1, [7; 11]);
        let caller = Caller { id: Some(id), query: "a=\"b\"".into(), claims: Some(r#"{"sub":"alice"}"#.into()), ..Caller::default() };
        assert_eq!(
            connect("rooms", &caller),
            format!(
                r#"{{"endpoint":"rooms","connection":{{"id":"{id}","address":null,"origin":null,"query":"a=\"b\"","userAgent":null}},"claims":{{"sub":"alice"}}}}"#
            )
        );
        assert!(connect("rooms", &Caller::default()).ends_with(r#""claims":null}"#));
        assert_eq!(
            join("rooms", "alice", Some("c"), "r\u{e9}"),
            "{\"endpoint\":\"rooms\",\"userId\":\"alice\",\"connectionId\":\"c\",\"room\":\"r\u{e9}\"}"
        );
        let proposal =
            Proposal { user: "alice".into(), conn: Some(id), room: None, event: "message".into(), data: r#"{"n":1e400}"#.into() };
        let asked = publish("chat", &proposal);
        assert_eq!(
            asked,
            format!(r#"{{"endpoint":"chat","userId":"alice","connectionId":"{id}","room":null,"event":"message","data":{{"n":1e400}}}}"#)
        );
    }

    #[test]
    fn answers_are_read_and_what_is_none_is_refused() {
        let answer = Answer::read(br#"{"allow":true,"userId":"u","name":"N","rooms":["a"],"data":{"n": 1e400},"reason":null,"more":[1]}"#)
            .expect("one");
        assert_eq!((answer.allow, answer.user.as_deref(), answer.name.as_deref()), (true, Some("u"), Some("N")));
        assert_eq!((answer.rooms, answer.data.as_deref()), (Some(vec!["a".to_owned()]), Some(r#"{"n": 1e400}"#)));
        let long = format!(r#"{{"allow":false,"reason":"{}"}}"#, "\u{e9}".repeat(300));
        assert_eq!(Answer::read(long.as_bytes()).and_then(|answer| answer.reason).map(|reason| reason.len()), Some(500));
        for bad in [
            "",
            "null",
            "true",
            "[]",
            "{}",
            r#"{"allow":"true"}"#,
            r#"{"allow":1}"#,
            r#"{"allow":null}"#,
            r#"{"allow":true"#,
            r#"{"allow":true,"allow":true}"#,
            r#"{"allow":true,"userId":7}"#,
            r#"{"allow":true,"userId":""}"#,
            r#"{"allow":true,"userId":"a\nb"}"#,
            r#"{"allow":true,"name":"\u0001"}"#,
            r#"{"allow":true,"rooms":"a"}"#,
            r#"{"allow":true,"rooms":[1]}"#,
            r#"{"allow":true,"rooms":["a",""]}"#,
            r#"{"allow":true,"rooms":["a\nb"]}"#,
            r#"{"allow":false,"reason":{}}"#,
            r#"{"allow":true} more"#,
        ] {
            assert!(Answer::read(bad.as_bytes()).is_none(), "{bad}");
        }
        for (rooms, is_one) in [(ROOMS_MAX, true), (ROOMS_MAX + 1, false)] {
            let rooms = vec![r#""r""#; rooms].join(",");
            assert_eq!(Answer::read(format!(r#"{{"allow":true,"rooms":[{rooms}]}}"#).as_bytes()).is_some(), is_one);
        }
        assert!(Answer::read(b"{\"allow\":true,\"name\":\"\xff\"}").is_none(), "not UTF-8");
    }
}
