//! The two forms in which an event is told: as the data of a server-sent event, and as a member of the webhook's list. Both are made from
//! the event when it is read: what is kept of a message is the text that histories keep as well.

use engine::config::Endpoint;
use engine::event::{Event, What};
use engine::json::Object;
use humantime::format_rfc3339_millis;
use std::time::{Duration, UNIX_EPOCH};

use super::Item;

/// The type that tells of missing events.
const DROPPED: &str = "dropped";

/// The type of what is told.
pub(crate) fn kind(item: &Item<'_>) -> &'static str {
    match item {
        Item::Event(event) => event.kind().name(),
        Item::Dropped { .. } => DROPPED,
    }
}

/// All in one object, what the type adds beside the rest.
pub(crate) fn flat(endpoints: &[Endpoint], item: &Item<'_>) -> String {
    match item {
        Item::Event(event) => added(about(Object::with_capacity(event.bytes() + 200), endpoints, event), &event.what).finish(),
        Item::Dropped { count, is_more, unix_ms } => gap(Object::new(), *count, *is_more).str("time", &time(*unix_ms)).finish(),
    }
}

/// With type and id in it, and what the type adds as `data`.
pub(crate) fn nested(endpoints: &[Endpoint], id: &str, item: &Item<'_>) -> String {
    let head = Object::new().str("type", kind(item)).str("id", id);
    match item {
        Item::Event(event) => {
            let told = about(head, endpoints, event);
            let data = match event.what {
                What::Connection | What::RoomJoin | What::RoomLeave | What::Authenticated => None,
                What::Disconnect { .. } | What::Message { .. } | What::Receipt { .. } | What::ServerEvent { .. } => {
                    Some(added(Object::new(), &event.what).finish())
                }
            };
            told.opt_raw("data", data.as_deref()).finish()
        }
        Item::Dropped { count, is_more, unix_ms } => {
            head.str("time", &time(*unix_ms)).raw("data", &gap(Object::new(), *count, *is_more).finish()).finish()
        }
    }
}

fn about(object: Object, endpoints: &[Endpoint], event: &Event) -> Object {
    let endpoint = endpoints.get(usize::from(event.endpoint.0)).map_or("", |endpoint| &endpoint.name);
    let connection = event.connection.map(|id| id.text());
    let object = object.str("endpoint", endpoint);
    let object = or_null(object, "connection", connection.as_ref().map(|id| id.as_str()));
    let object = or_null(object, "user", event.user.as_deref());
    object.opt_str("room", event.room.as_deref()).str("time", &time(event.unix_ms))
}

fn or_null(object: Object, key: &str, value: Option<&str>) -> Object {
    match value {
        Some(value) => object.str(key, value),
        None => object.raw(key, "null"),
    }
}

fn added(object: Object, what: &What) -> Object {
    match what {
        What::Connection | What::RoomJoin | What::RoomLeave | What::Authenticated => object,
        What::Disconnect { reason } => object.str("reason", reason),
        What::Message { message } => object.raw("message", message),
        What::Receipt { receipt } => {
            object.raw("messageId", &receipt.message).raw("conversationId", &receipt.conversation).str("status", receipt.status)
        }
        What::ServerEvent { call } => object.str("event", &call.event).raw("args", &call.args),
    }
}

fn gap(object: Object, count: u64, is_more: bool) -> Object {
    let object = object.num("count", count);
    if is_more { object.bool("uncounted", true) } else { object }
}

fn time(unix_ms: u64) -> String {
    format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::config::DialectKind;
    use engine::event::{Receipted, ServerCall};
    use engine::ids::{EndpointId, ShardId, Sid};
    use serde_json::{Value, json};

    fn shapes(event: &Event) -> (Value, Value) {
        let endpoints = [Endpoint::new("rooms", DialectKind::Rooms, "/")];
        let parsed = |text: String| serde_json::from_str(&text).expect("JSON");
        (parsed(flat(&endpoints, &Item::Event(event))), parsed(nested(&endpoints, "7-1", &Item::Event(event))))
    }

    #[test]
    fn both_forms_are_the_contracts() {
        let id = Sid::new(ShardId(0), 1, [7; 11]);
        let event = |what| Event {
            endpoint: EndpointId(0),
            connection: Some(id),
            user: Some("alice \"a\"".into()),
            room: Some("r".into()),
            unix_ms: 1_704_067_200_007,
            what,
        };
        let common = json!({"endpoint": "rooms", "connection": id.to_string(), "user": "alice \"a\"", "room": "r", "time": "2024-01-01T00:00:00.007Z"});
        let with = |more: Value| {
            let mut all = common.clone();
            all.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            all
        };
        let receipt = Receipted { message: "17".into(), conversation: "\"c\"".into(), status: "read" };
        for (what, kind, adds) in [
            (What::Connection, "connection", json!({})),
            (What::RoomJoin, "room:join", json!({})),
            (What::RoomLeave, "room:leave", json!({})),
            (What::Authenticated, "authenticated", json!({})),
            (What::Disconnect { reason: "ping timeout" }, "disconnect", json!({"reason": "ping timeout"})),
            (What::Message { message: r#"{"content":"hi"}"#.into() }, "message", json!({"message": {"content": "hi"}})),
            (
                What::ServerEvent { call: Box::new(ServerCall { event: "ping".into(), args: "[1,{}]".into() }) },
                "server:event",
                json!({"event": "ping", "args": [1, {}]}),
            ),
            (What::Receipt { receipt: Box::new(receipt) }, "receipt", json!({"messageId": 17, "conversationId": "c", "status": "read"})),
        ] {
            let (flat, nested) = shapes(&event(what));
            assert_eq!(flat, with(adds.clone()), "{kind}");
            let data = if adds == json!({}) { json!({}) } else { json!({"data": adds}) };
            let mut expected = with(data);
            (expected["type"], expected["id"]) = (kind.into(), "7-1".into());
            assert_eq!(nested, expected, "{kind}");
        }
        let nobody = Event { connection: None, user: None, room: None, ..event(What::Connection) };
        assert_eq!(shapes(&nobody).0, json!({"endpoint": "rooms", "connection": null, "user": null, "time": "2024-01-01T00:00:00.007Z"}));
    }

    #[test]
    fn a_gap_says_what_is_known_of_it() {
        let gap = Item::Dropped { count: 3, is_more: false, unix_ms: 0 };
        assert_eq!(flat(&[], &gap), r#"{"count":3,"time":"1970-01-01T00:00:00.000Z"}"#);
        let lost = Item::Dropped { count: 0, is_more: true, unix_ms: 0 };
        let expected = r#"{"type":"dropped","id":"7-1","time":"1970-01-01T00:00:00.000Z","data":{"count":0,"uncounted":true}}"#;
        assert_eq!(nested(&[], "7-1", &lost), expected);
    }
}
