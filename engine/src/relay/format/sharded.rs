//! The messages of `socket.io-adapter`'s cluster adapters as `@socket.io/redis-adapter` 8 sends them by SPUBLISH (`createShardedAdapter`):
//! `{type, data, uid, nsp}`, JSON unless there is binary data in it, then MessagePack. [`super::streams`] has the same messages elsewhere.
//!
//! | channel | holds |
//! |---|---|
//! | `PREFIX#NSP#` | broadcasts and requests; its subscribers are the servers, and are counted (PUBSUB SHARDNUMSUB) |
//! | `PREFIX#NSP#ROOM#` | broadcasts to exactly one room, subscribed to by servers with members of it, as [`Subscription`] says |
//! | `PREFIX#NSP#UID#` | answers to that server |
//!
//! | type | `data` | |
//! |---|---|---|
//! | 1, 2, 13 | | servers come, are there, and go |
//! | 3 | `{packet: {type: 2, data}, [requestId], opts}` | a broadcast |
//! | 4, 5 | `{opts, rooms}` | join, leave |
//! | 6 | `{opts, close}` | disconnect |
//! | 7, 8 | `{opts, requestId}`, `{requestId, sockets}` | fetch and its answer |
//! | 9, 10 | `{[requestId], packet}`, `{requestId, packet}` | server-side emit and its answer |
//! | 11, 12 | `{requestId, clientCount}`, `{requestId, packet}` | answers to a broadcast |
//!
//! Whoever sends one has done locally what it says, and ignores it when it comes back.

use super::{Envelope, Fault, Message, Payload, Unsendable, fields, msgpack};
use crate::json::{Object, Scratch, Value};

/// Which rooms have channels of their own; the adapter's option `subscriptionMode`. All servers must have the same.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Subscription {
    /// None.
    Static,
    /// All but those that are one connection, which the sender knows by their names' twenty characters.
    #[default]
    Dynamic,
    /// All.
    DynamicPrivate,
}

impl Subscription {
    /// True exactly when a broadcast to this room alone goes to a channel of the room's. A server subscribes to it while it has members
    /// of the room; where the room is a connection's own, only as [`Subscription::DynamicPrivate`].
    pub fn has_channel(self, room: &str) -> bool {
        match self {
            Subscription::Static => false,
            // JavaScript counts UTF-16 units.
            Subscription::Dynamic => room.encode_utf16().count() != 20,
            Subscription::DynamicPrivate => true,
        }
    }
}

/// Names of the channels of one namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Channels {
    common: String,
}

impl Channels {
    /// The channels of a namespace (`/`, `/chat`); `prefix` is the adapters' option `channelPrefix`, `socket.io` by default.
    pub fn new(prefix: &str, nsp: &str) -> Channels {
        Channels { common: format!("{prefix}#{nsp}#") }
    }

    /// The channel of all servers.
    pub fn common(&self) -> &str {
        &self.common
    }

    /// The channel of one server, by its adapter's id, or of one room.
    pub fn own(&self, name: &str) -> String {
        format!("{}{name}#", self.common)
    }

    /// Where a message is published: an answer to its `asker`.
    pub fn of(&self, message: &Message, subscription: Subscription, asker: Option<&str>) -> String {
        match (message, asker) {
            (Message::Broadcast { options, request: None, .. }, _) => match &options.rooms[..] {
                [room] if subscription.has_channel(room) => self.own(room),
                _ => self.common.clone(),
            },
            (message, Some(asker)) if is_answer(message) => self.own(asker),
            _ => self.common.clone(),
        }
    }

    /// Whose channel it is: `Some(None)` when everybody's, `None` when none of this namespace.
    pub fn owner<'c>(&self, channel: &'c [u8]) -> Option<Option<&'c str>> {
        match std::str::from_utf8(channel).ok()?.strip_prefix(&self.common)? {
            "" => Some(None),
            rest => rest.strip_suffix('#').map(Some),
        }
    }
}

/// True exactly when it answers somebody's request.
pub(super) fn is_answer(message: &Message) -> bool {
    matches!(
        message,
        Message::ClientCount { .. } | Message::Ack { .. } | Message::FetchAnswer { .. } | Message::ServerSideEmitAnswer { .. }
    )
}

/// Reads a message, JSON or MessagePack. Whether its namespace is that of its channel, and whether it is the reader's own, the caller compares.
///
/// # Errors
/// When it is none of the messages above.
pub fn decode(scratch: &mut Scratch, bytes: &[u8]) -> Result<Envelope, Fault> {
    let (text, mut attachments) = fields::open(bytes)?;
    let doc = scratch.parse(&text).map_err(|_| Fault::Unreadable)?;
    let root = doc.root();
    let kind = root.get("type").and_then(Value::as_u64).ok_or(Fault::Shape)?;
    let message = message(kind, root.get("data"), &mut attachments)?;
    Ok(Envelope { uid: fields::required_name(root, "uid")?, nsp: fields::required_name(root, "nsp")?, message })
}

/// What a message says, by its type.
pub(super) fn message(kind: u64, data: Option<Value<'_>>, attachments: &mut [Vec<u8>]) -> Result<Message, Fault> {
    if let 1 | 2 | 13 = kind {
        return Ok(Message::Presence);
    }
    if !(3..=12).contains(&kind) {
        return Err(Fault::UnknownType);
    }
    let data = data.ok_or(Fault::Shape)?;
    let id = || fields::required_name(data, "requestId");
    Ok(match kind {
        3 => {
            let packet = fields::event(data.get("packet").ok_or(Fault::Shape)?, attachments)?;
            Message::Broadcast { packet, options: fields::options(data)?, request: fields::optional_name(data, "requestId")? }
        }
        4 => Message::Join { options: fields::options(data)?, rooms: fields::names(data, "rooms")? },
        5 => Message::Leave { options: fields::options(data)?, rooms: fields::names(data, "rooms")? },
        6 => {
            let close = data.get("close").and_then(Value::as_bool).unwrap_or_default();
            Message::Disconnect { options: fields::options(data)?, close }
        }
        7 => Message::Fetch { request: id()?, options: fields::options(data)? },
        8 => {
            let sockets = fields::sockets(data.get("sockets").ok_or(Fault::Shape)?, attachments)?;
            Message::FetchAnswer { request: id()?, sockets }
        }
        9 => {
            let request = fields::optional_name(data, "requestId")?;
            Message::ServerSideEmit { request, packet: fields::arguments(data, "packet", attachments)? }
        }
        10 => Message::ServerSideEmitAnswer { request: id()?, packet: fields::value(data, "packet", attachments) },
        11 => Message::ClientCount { request: id()?, count: data.get("clientCount").and_then(Value::as_u64).ok_or(Fault::Shape)? },
        _ => Message::Ack { request: id()?, packet: fields::value(data, "packet", attachments) },
    })
}

/// The bytes of a message as the adapter writes them: JSON, but MessagePack where there is binary data.
///
/// # Errors
/// When cluster adapters have no such message, or its payload is not what it should be.
pub fn encode(scratch: &mut Scratch, envelope: &Envelope) -> Result<Vec<u8>, Unsendable> {
    let (text, attachments) = whole_json(envelope)?;
    if attachments.is_empty() { Ok(text.into_bytes()) } else { msgpack::from_json(scratch, &text, attachments) }
}

/// The whole message as JSON.
pub(super) fn whole_json(envelope: &Envelope) -> Result<(String, &[Vec<u8>]), Unsendable> {
    let Parts { kind, data_json, attachments } = parts(&envelope.message)?;
    let root = Object::with_capacity(data_json.len() + 96).num("type", kind).raw("data", &data_json);
    Ok((root.str("uid", &envelope.uid).str("nsp", &envelope.nsp).finish(), attachments))
}

/// A message taken apart.
pub(super) struct Parts<'m> {
    pub(super) kind: u64,
    pub(super) data_json: String,
    /// Those that are spoken of in the text.
    pub(super) attachments: &'m [Vec<u8>],
}

pub(super) fn parts(message: &Message) -> Result<Parts<'_>, Unsendable> {
    let selected = |options| Object::new().raw("opts", &fields::options_json(options));
    let asked = |request: &str| Object::new().str("requestId", request);
    let mut binary: Option<&Payload> = None;
    let mut carry = |payload| &binary.insert(payload).json;
    let (kind, data) = match message {
        Message::Broadcast { packet, options, request } => {
            let data = Object::new().raw("packet", &fields::packet_json(packet, None)).opt_str("requestId", request.as_deref());
            binary = Some(packet);
            (3, data.raw("opts", &fields::options_json(options)))
        }
        Message::Join { options, rooms } => (4, selected(options).raw("rooms", &fields::names_json(rooms))),
        Message::Leave { options, rooms } => (5, selected(options).raw("rooms", &fields::names_json(rooms))),
        Message::Disconnect { options, close } => (6, selected(options).bool("close", *close)),
        Message::Fetch { request, options } => (7, selected(options).str("requestId", request)),
        Message::FetchAnswer { request, sockets } => (8, asked(request).raw("sockets", &fields::sockets_json(sockets))),
        Message::ServerSideEmit { request, packet } => {
            (9, Object::new().opt_str("requestId", request.as_deref()).raw("packet", carry(packet)))
        }
        Message::ServerSideEmitAnswer { request, packet } => (10, asked(request).raw("packet", carry(packet))),
        Message::ClientCount { request, count } => (11, asked(request).num("clientCount", *count)),
        Message::Ack { request, packet } => (12, asked(request).raw("packet", carry(packet))),
        _ => return Err(Unsendable::NoForm),
    };
    Ok(Parts { kind, data_json: data.finish(), attachments: binary.map_or(&[], |payload| &payload.attachments) })
}
