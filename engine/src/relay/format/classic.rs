//! The messages of `@socket.io/redis-adapter` 8 and of `@socket.io/redis-emitter` 5, by plain PUBLISH:
//!
//! | channel | holds |
//! |---|---|
//! | `KEY#NSP#`, `KEY#NSP#ROOM#` when exactly one room is meant | a broadcast: MessagePack `[uid, {type: 2, data, nsp}, {rooms, except, flags}]` |
//! | `KEY-request#NSP#` | requests: JSON, but a broadcast that wants acknowledgements MessagePack, `{uid, requestId, type, ..}` |
//! | `KEY-response#NSP#`, or `KEY-response#NSP#UID#` of who asked | answers: JSON, but an acknowledgement MessagePack |
//!
//! Types: 0 sockets, 1 all rooms, 2 join, 3 leave, 4 disconnect, 5 fetch, 6 server-side emit and the answer to it, 7 broadcast with
//! acknowledgements, 8 its count of clients, 9 an acknowledgement. The other answers have no type.
//!
//! Who asks to join, leave or disconnect does it when its own request comes back to it; a broadcast, 6 and 7 it ignores when they come back.

use super::{Envelope, Fault, Message, Unsendable, fields, msgpack};
use crate::json::{Object, Scratch, Value};

/// Names of the channels of one namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Channels {
    broadcast: String,
    request: String,
    response: String,
}

/// What a channel is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind<'c> {
    /// Broadcasts, where named to the members of one room only.
    Broadcast {
        /// The room: whoever has no member of it need not read the message. What is delivered to whom the message's options say.
        room: Option<&'c str>,
    },
    /// Requests.
    Request,
    /// Answers.
    Response {
        /// Whom they are for, where the channel is one server's own.
        to: Option<&'c str>,
    },
}

impl Channels {
    /// The channels of a namespace (`/`, `/chat`); `key` is the adapter's option of that name, `socket.io` by default.
    pub fn new(key: &str, nsp: &str) -> Channels {
        let name = |infix: &str| format!("{key}{infix}#{nsp}#");
        Channels { broadcast: name(""), request: name("-request"), response: name("-response") }
    }

    /// What broadcasts are subscribed to with (PSUBSCRIBE). Other namespaces can match it: [`Channels::kind`] decides.
    pub fn pattern(&self) -> String {
        let mut pattern = String::with_capacity(self.broadcast.len() + 1);
        for letter in self.broadcast.chars() {
            if matches!(letter, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(letter);
        }
        pattern.push('*');
        pattern
    }

    /// What else is subscribed to (SUBSCRIBE): requests, answers, and answers to this server alone.
    pub fn subscribed(&self, uid: &str) -> [String; 3] {
        [self.request.clone(), self.response.clone(), self.response_to(uid)]
    }

    /// The channel of requests. Its subscribers are the servers, and are counted (PUBSUB NUMSUB).
    pub fn request(&self) -> &str {
        &self.request
    }

    fn response_to(&self, uid: &str) -> String {
        format!("{}{uid}#", self.response)
    }

    /// Where a message is published. An answer goes to everybody or, with `asker`, to that server alone; but the answer to a server-side
    /// emit always to everybody, as the adapter does.
    pub fn of(&self, message: &Message, asker: Option<&str>) -> String {
        match message {
            Message::Broadcast { options, request: None, .. } => match &options.rooms[..] {
                [room] => format!("{}{room}#", self.broadcast),
                _ => self.broadcast.clone(),
            },
            Message::ServerSideEmitAnswer { .. } => self.response.clone(),
            Message::ClientCount { .. }
            | Message::Ack { .. }
            | Message::SocketsAnswer { .. }
            | Message::RoomsAnswer { .. }
            | Message::FetchAnswer { .. }
            | Message::Done { .. } => asker.map_or_else(|| self.response.clone(), |asker| self.response_to(asker)),
            _ => self.request.clone(),
        }
    }

    /// What a channel is for; `None` when it is none of this namespace.
    pub fn kind<'c>(&self, channel: &'c [u8]) -> Option<Kind<'c>> {
        let channel = std::str::from_utf8(channel).ok()?;
        let rest = |prefix: &str| match channel.strip_prefix(prefix)? {
            "" => Some(None),
            // The last `#` ends it; those before it belong to the name.
            rest => rest.strip_suffix('#').map(Some),
        };
        if let Some(room) = rest(&self.broadcast) {
            return Some(Kind::Broadcast { room });
        }
        if let Some(to) = rest(&self.response) {
            return Some(Kind::Response { to });
        }
        (channel == self.request).then_some(Kind::Request)
    }
}

/// Reads what came on a channel of this namespace.
///
/// # Errors
/// When it is none of the messages that are sent there.
pub fn decode(scratch: &mut Scratch, nsp: &str, kind: Kind<'_>, bytes: &[u8]) -> Result<Envelope, Fault> {
    let (text, mut attachments) = fields::open(bytes)?;
    let doc = scratch.parse(&text).map_err(|_| Fault::Unreadable)?;
    let root = doc.root();
    let (uid, message) = match kind {
        Kind::Broadcast { .. } => broadcast(nsp, root, &mut attachments)?,
        Kind::Request => (fields::optional_name(root, "uid")?.unwrap_or_default(), request(root, &mut attachments)?),
        Kind::Response { .. } => (String::new(), response(root, &mut attachments)?),
    };
    Ok(Envelope { uid, nsp: nsp.to_owned(), message })
}

fn broadcast(nsp: &str, root: Value<'_>, attachments: &mut [Vec<u8>]) -> Result<(String, Message), Fault> {
    let mut parts = root.items();
    let (Some(uid), Some(packet), Some(options)) = (parts.next(), parts.next(), parts.next()) else { return Err(Fault::Shape) };
    if packet.get("nsp").map_or(Some("/"), Value::as_str) != Some(nsp) {
        return Err(Fault::OtherNamespace);
    }
    let uid = uid.as_str().ok_or(Fault::Shape)?.to_owned();
    let (options, packet) = (fields::options_of(options)?, fields::event(packet, attachments)?);
    Ok((uid, Message::Broadcast { packet, options, request: None }))
}

fn request(root: Value<'_>, attachments: &mut [Vec<u8>]) -> Result<Message, Fault> {
    let id = || fields::required_name(root, "requestId");
    let close = || root.get("close").and_then(Value::as_bool).unwrap_or_default();
    // Newer adapters say which clients, older ones named one.
    let options = fields::present(root, "opts").map(fields::options_of).transpose()?;
    Ok(match (root.get("type").and_then(Value::as_u64).ok_or(Fault::Shape)?, options) {
        (0, _) => Message::Sockets { request: id()?, rooms: fields::names(root, "rooms")? },
        (1, _) => Message::AllRooms { request: id()? },
        (2, Some(options)) => Message::Join { options, rooms: fields::names(root, "rooms")? },
        (3, Some(options)) => Message::Leave { options, rooms: fields::names(root, "rooms")? },
        (4, Some(options)) => Message::Disconnect { options, close: close() },
        (kind @ 2..=4, None) => {
            let (request, sid) = (fields::optional_name(root, "requestId")?, fields::required_name(root, "sid")?);
            match kind {
                2 => Message::JoinOne { request, sid, room: fields::required_name(root, "room")? },
                3 => Message::LeaveOne { request, sid, room: fields::required_name(root, "room")? },
                _ => Message::DisconnectOne { request, sid, close: close() },
            }
        }
        (5, Some(options)) => Message::Fetch { request: id()?, options },
        (6, _) => {
            let request = fields::optional_name(root, "requestId")?;
            Message::ServerSideEmit { request, packet: fields::arguments(root, "data", attachments)? }
        }
        (7, Some(options)) => {
            let packet = fields::event(root.get("packet").ok_or(Fault::Shape)?, attachments)?;
            Message::Broadcast { packet, options, request: Some(id()?) }
        }
        (5 | 7, None) => return Err(Fault::Shape),
        _ => return Err(Fault::UnknownType),
    })
}

fn response(root: Value<'_>, attachments: &mut [Vec<u8>]) -> Result<Message, Fault> {
    let request = fields::required_name(root, "requestId")?;
    Ok(match fields::present(root, "type").map(Value::as_u64) {
        Some(Some(6)) => Message::ServerSideEmitAnswer { request, packet: fields::value(root, "data", attachments) },
        Some(Some(8)) => {
            let count = root.get("clientCount").and_then(Value::as_u64).ok_or(Fault::Shape)?;
            Message::ClientCount { request, count }
        }
        Some(Some(9)) => Message::Ack { request, packet: fields::value(root, "packet", attachments) },
        Some(_) => return Err(Fault::UnknownType),
        None => match (fields::present(root, "sockets"), fields::present(root, "rooms")) {
            (Some(list), _) if list.items().next().is_some_and(|first| !first.is_object()) => {
                Message::SocketsAnswer { request, ids: fields::names(root, "sockets")? }
            }
            (Some(list), _) => Message::FetchAnswer { request, sockets: fields::sockets(list, attachments)? },
            (None, Some(_)) => Message::RoomsAnswer { request, rooms: fields::names(root, "rooms")? },
            (None, None) => Message::Done { request },
        },
    })
}

/// The bytes of a message, as the adapter writes them. A `uid` that is empty is not written, as an emitter does. Binary data of a
/// server-side emit is spelled out: here the adapter has no other form for it.
///
/// # Errors
/// When the message is a [`Message::Presence`], or its payload is not what it should be.
pub fn encode(scratch: &mut Scratch, envelope: &Envelope) -> Result<Vec<u8>, Unsendable> {
    let Envelope { uid, nsp, message } = envelope;
    // Every request begins with who sends it and what the answer shall name.
    let asked = |id: Option<&str>, kind: &str| {
        let uid = (!uid.is_empty()).then_some(uid.as_str());
        Object::new().opt_str("uid", uid).opt_str("requestId", id).raw("type", kind)
    };
    let json = match message {
        Message::Broadcast { packet, options, request: None } => {
            let mut root = String::from("[");
            crate::json::quote(&mut root, uid);
            root.extend([",", &fields::packet_json(packet, Some(nsp)), ",", &fields::options_json(options), "]"]);
            return msgpack::from_json(scratch, &root, &packet.attachments);
        }
        Message::Broadcast { packet, options, request: Some(request) } => {
            let root = asked(Some(request), "7").raw("packet", &fields::packet_json(packet, Some(nsp)));
            return msgpack::from_json(scratch, &root.raw("opts", &fields::options_json(options)).finish(), &packet.attachments);
        }
        Message::Ack { request, packet } => {
            let root = Object::new().raw("type", "9").str("requestId", request).raw("packet", &packet.json);
            return msgpack::from_json(scratch, &root.finish(), &packet.attachments);
        }
        Message::Join { options, rooms } => {
            asked(None, "2").raw("opts", &fields::selection_json(options)).raw("rooms", &fields::names_json(rooms))
        }
        Message::Leave { options, rooms } => {
            asked(None, "3").raw("opts", &fields::selection_json(options)).raw("rooms", &fields::names_json(rooms))
        }
        Message::Disconnect { options, close } => asked(None, "4").raw("opts", &fields::selection_json(options)).bool("close", *close),
        Message::JoinOne { request, sid, room } => asked(request.as_deref(), "2").str("sid", sid).str("room", room),
        Message::LeaveOne { request, sid, room } => asked(request.as_deref(), "3").str("sid", sid).str("room", room),
        Message::DisconnectOne { request, sid, close } => asked(request.as_deref(), "4").str("sid", sid).bool("close", *close),
        Message::Sockets { request, rooms } => asked(Some(request), "0").raw("rooms", &fields::names_json(rooms)),
        Message::AllRooms { request } => asked(Some(request), "1"),
        Message::Fetch { request, options } => asked(Some(request), "5").raw("opts", &fields::selection_json(options)),
        Message::ServerSideEmit { request, packet } => {
            asked(request.as_deref(), "6").raw("data", &fields::spelled_payload(scratch, packet)?)
        }
        Message::ServerSideEmitAnswer { request, packet } => {
            Object::new().raw("type", "6").str("requestId", request).raw("data", &fields::spelled_payload(scratch, packet)?)
        }
        Message::ClientCount { request, count } => Object::new().raw("type", "8").str("requestId", request).num("clientCount", *count),
        Message::SocketsAnswer { request, ids } => Object::new().str("requestId", request).raw("sockets", &fields::names_json(ids)),
        Message::RoomsAnswer { request, rooms } => Object::new().str("requestId", request).raw("rooms", &fields::names_json(rooms)),
        Message::FetchAnswer { request, sockets } => Object::new().str("requestId", request).raw("sockets", &fields::sockets_json(sockets)),
        Message::Done { request } => Object::new().str("requestId", request),
        Message::Presence => return Err(Unsendable::NoForm),
    };
    Ok(json.finish().into_bytes())
}
