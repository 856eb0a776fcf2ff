//! The fields that the messages of all adapters are made of, read from JSON and written as JSON: names, options, payloads. It knows no whole
//! message.

use std::borrow::Cow;
use std::mem;

use super::{Fault, Flags, Options, Payload, RemoteSocket, Unsendable, msgpack};
use crate::json::{self, Object, Scratch, Value};
use crate::limits::RELAY_MESSAGE_BYTES_MAX;
use crate::wire::sio;

/// A message as JSON, whichever way it is written, and its binary data. The adapters look at the first byte too.
pub(super) fn open(bytes: &[u8]) -> Result<(Cow<'_, str>, Vec<Vec<u8>>), Fault> {
    if bytes.len() > RELAY_MESSAGE_BYTES_MAX {
        return Err(Fault::Unreadable);
    }
    if bytes.first() == Some(&b'{') {
        let text = std::str::from_utf8(bytes).map_err(|_| Fault::Unreadable)?;
        return Ok((Cow::Borrowed(text), Vec::new()));
    }
    let Payload { json, attachments } = msgpack::to_json(bytes)?;
    Ok((Cow::Owned(json), attachments))
}

/// A name. One that does not decode without loss is none: it must not become another room's.
fn name(value: Value<'_>) -> Result<String, Fault> {
    if let Some(text) = value.as_exact_str() {
        return Ok(text.to_owned());
    }
    // Programs name rooms by numbers; what such a room is called in a channel's name is the number's text.
    let number = value.as_f64().ok_or(Fault::Shape)?;
    if value.raw().parse::<i64>().is_ok() || value.raw().parse::<u64>().is_ok() {
        return Ok(value.raw().to_owned());
    }
    let mut text = String::new();
    msgpack::push_number(&mut text, number);
    Ok(text)
}

/// A member that must be there, as a name.
pub(super) fn required_name(object: Value<'_>, key: &str) -> Result<String, Fault> {
    name(object.get(key).ok_or(Fault::Shape)?)
}

/// A member that may be missing, as a name.
pub(super) fn optional_name(object: Value<'_>, key: &str) -> Result<Option<String>, Fault> {
    present(object, key).map(name).transpose()
}

/// A member that may be missing, or be `null`, which is the same: MessagePack has no `undefined`.
pub(super) fn present<'d>(object: Value<'d>, key: &str) -> Option<Value<'d>> {
    object.get(key).filter(|value| !value.is_null())
}

/// A list of names; a missing one is empty. A single name that is none spoils the list: without it, a few rooms could become everybody.
pub(super) fn names(object: Value<'_>, key: &str) -> Result<Vec<String>, Fault> {
    match present(object, key) {
        None => Ok(Vec::new()),
        Some(list) if list.is_array() => list.items().map(name).collect(),
        Some(_) => Err(Fault::Shape),
    }
}

/// The member `opts`.
pub(super) fn options(object: Value<'_>) -> Result<Options, Fault> {
    options_of(object.get("opts").ok_or(Fault::Shape)?)
}

/// Options.
pub(super) fn options_of(options: Value<'_>) -> Result<Options, Fault> {
    if !options.is_object() {
        return Err(Fault::Shape);
    }
    let flags = options.get("flags").map(|flags| Flags {
        volatile: flags.get("volatile").and_then(Value::as_bool).unwrap_or_default(),
        compress: flags.get("compress").and_then(Value::as_bool),
        timeout_ms: flags.get("timeout").and_then(Value::as_u64),
    });
    Ok(Options { rooms: names(options, "rooms")?, except: names(options, "except")?, flags: flags.unwrap_or_default() })
}

/// The event in a packet. Its type is EVENT or, of old emitters, BINARY_EVENT.
pub(super) fn event(packet: Value<'_>, attachments: &mut [Vec<u8>]) -> Result<Payload, Fault> {
    let Some(2 | 5) = packet.get("type").and_then(Value::as_u64) else { return Err(Fault::Shape) };
    let data = packet.get("data").ok_or(Fault::Shape)?;
    let first = data.items().next().ok_or(Fault::Shape)?;
    // A client that is told an event of the library's own, or of no name, closes its connection.
    let is_name = first.as_str().map_or(first.as_f64().is_some(), |name| !sio::RESERVED_EVENTS.contains(&name));
    if is_name { Ok(payload(data, attachments)) } else { Err(Fault::Shape) }
}

/// The arguments of an event for servers.
pub(super) fn arguments(object: Value<'_>, key: &str, attachments: &mut [Vec<u8>]) -> Result<Payload, Fault> {
    let list = object.get(key).filter(|list| list.items().next().is_some()).ok_or(Fault::Shape)?;
    Ok(payload(list, attachments))
}

/// One value that may be missing.
pub(super) fn value(object: Value<'_>, key: &str, attachments: &mut [Vec<u8>]) -> Payload {
    object.get(key).map_or_else(|| Payload::from("null"), |value| payload(value, attachments))
}

/// A value and the binary data in it, taken from the whole message's. `msgpack` numbers placeholders in the order of the text.
fn payload(value: Value<'_>, attachments: &mut [Vec<u8>]) -> Payload {
    if attachments.is_empty() {
        return Payload::from(value.raw());
    }
    let (text, start) = (value.raw(), value.range().start);
    let (mut json, mut taken, mut done) = (String::with_capacity(text.len()), Vec::new(), 0);
    value.visit(|inside| {
        if inside.get("_placeholder").and_then(Value::as_bool) != Some(true) {
            return true;
        }
        let number = inside.get("num").and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
        let Some(data) = number.and_then(|number| attachments.get_mut(number)) else { return true };
        let range = inside.range();
        json.push_str(&text[done..range.start - start]);
        json.push_str(&Object::new().bool("_placeholder", true).num("num", taken.len() as u64).finish());
        done = range.end - start;
        taken.push(mem::take(data));
        false
    });
    json.push_str(&text[done..]);
    Payload { json, attachments: taken }
}

/// JSON without attachments: what is binary is spelled out.
pub(super) fn spelled(value: Value<'_>, attachments: &[Vec<u8>]) -> String {
    if attachments.is_empty() { value.raw().to_owned() } else { sio::spelled_out(value, attachments) }
}

/// The clients of an answer.
pub(super) fn sockets(list: Value<'_>, attachments: &[Vec<u8>]) -> Result<Vec<RemoteSocket>, Fault> {
    if !list.is_array() {
        return Err(Fault::Shape);
    }
    let json = |socket: Value<'_>, key| present(socket, key).map_or_else(|| "{}".to_owned(), |value| spelled(value, attachments));
    let socket = |socket: Value<'_>| {
        let (id, rooms) = (required_name(socket, "id")?, names(socket, "rooms")?);
        Ok(RemoteSocket { id, handshake_json: json(socket, "handshake"), rooms, data_json: json(socket, "data") })
    };
    list.items().map(socket).collect()
}

/// A list of names as JSON.
pub(super) fn names_json(names: &[String]) -> String {
    list_json(names, |out, name| json::quote(out, name))
}

fn list_json<T>(items: &[T], write: impl Fn(&mut String, &T)) -> String {
    let mut out = String::from("[");
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write(&mut out, item);
    }
    out.push(']');
    out
}

/// Options without flags, as the classic adapter writes them in requests.
pub(super) fn selection_json(options: &Options) -> String {
    selection(options).finish()
}

fn selection(options: &Options) -> Object {
    Object::new().raw("rooms", &names_json(&options.rooms)).raw("except", &names_json(&options.except))
}

/// Options with their flags.
pub(super) fn options_json(options: &Options) -> String {
    let Flags { volatile, compress, timeout_ms } = options.flags;
    let flags = Object::new().opt_raw("volatile", volatile.then_some("true"));
    let flags = flags.opt_raw("compress", compress.map(|compress| if compress { "true" } else { "false" }));
    let flags = flags.opt_raw("timeout", timeout_ms.map(|ms| ms.to_string()).as_deref());
    selection(options).raw("flags", &flags.finish()).finish()
}

/// A packet of type EVENT; its namespace where the adapter tells it.
pub(super) fn packet_json(event: &Payload, nsp: Option<&str>) -> String {
    Object::with_capacity(event.json.len() + 48).raw("type", "2").raw("data", &event.json).opt_str("nsp", nsp).finish()
}

/// The clients of an answer as JSON.
pub(super) fn sockets_json(sockets: &[RemoteSocket]) -> String {
    list_json(sockets, |out, socket| {
        let object = Object::new().str("id", &socket.id).raw("handshake", &socket.handshake_json);
        out.push_str(&object.raw("rooms", &names_json(&socket.rooms)).raw("data", &socket.data_json).finish());
    })
}

/// A payload as JSON alone, for forms that carry nothing binary.
pub(super) fn spelled_payload<'p>(scratch: &mut Scratch, payload: &'p Payload) -> Result<Cow<'p, str>, Unsendable> {
    if payload.attachments.is_empty() {
        return Ok(Cow::Borrowed(&payload.json));
    }
    let doc = scratch.parse(&payload.json).map_err(|_| Unsendable::BadPayload)?;
    Ok(Cow::Owned(sio::spelled_out(doc.root(), &payload.attachments)))
}
