//! What `@socket.io/redis-streams-adapter` 0.3 keeps in Redis and publishes. The messages are those of [`super::sharded`]:
//!
//! - Broadcasts without acknowledgements, joins, leaves and disconnects are entries of a stream: `uid`, `nsp`, `type` and `data`, which is
//!   JSON or, with binary data in it, base64 of MessagePack. Version 0.2 has everything there, also what servers tell of being there.
//! - The others are MessagePack by PUBLISH to `PREFIX#NSP#`, answers to `PREFIX#NSP#UID#` of who asked ([`super::sharded::Channels`]).
//! - A client that broke off and may come back is a key of its own, base64 of MessagePack `{sid, pid, rooms, data}`.
//!
//! An entry's id is what clients know as the offset of the event in it.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::{Envelope, Fault, Message, Unsendable, fields, msgpack, sharded};
use crate::json::{Object, Scratch, Value};
use crate::limits::RELAY_MESSAGE_BYTES_MAX;

/// Base64 as Node writes it; padding may be missing in what is read.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// True exactly when the message is published, and not put into the stream.
pub fn is_published(message: &Message) -> bool {
    match message {
        Message::Broadcast { request, .. } => request.is_some(),
        Message::Fetch { .. } | Message::ServerSideEmit { .. } => true,
        message => sharded::is_answer(message),
    }
}

/// Name of the stream that holds a namespace's messages; `name` and `count` are the adapter's options `streamName` (`socket.io`) and
/// `streamCount` (1). With several streams the number behind the name can be negative: the adapter takes the remainder of a number with a sign.
pub fn stream(name: &str, count: u32, nsp: &str) -> String {
    if count <= 1 {
        return name.to_owned();
    }
    let hash = nsp.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(unit.into()));
    format!("{name}-{}", i64::from(hash) % i64::from(count))
}

/// True exactly for the form that ids of entries have, which is all that the adapter takes as a client's offset.
pub fn is_entry_id(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('-').is_some_and(|(ms, sequence)| digits(ms) && digits(sequence))
}

/// Reads an entry of the stream, given as its fields and their values.
///
/// # Errors
/// When it is none of the messages that are put there.
pub fn decode<'f>(scratch: &mut Scratch, entry: impl IntoIterator<Item = (&'f [u8], &'f [u8])>) -> Result<Envelope, Fault> {
    let (mut uid, mut nsp, mut kind, mut data) = (None, None, None, None);
    for (field, value) in entry {
        let place = match field {
            b"uid" => &mut uid,
            b"nsp" => &mut nsp,
            b"type" => &mut kind,
            b"data" => &mut data,
            _ => continue,
        };
        *place = Some(value);
    }
    let text = |field: Option<&'f [u8]>| std::str::from_utf8(field.ok_or(Fault::Shape)?).map_err(|_| Fault::Unreadable);
    let kind = text(kind)?.parse().map_err(|_| Fault::Shape)?;
    let message = match data {
        None | Some([]) => sharded::message(kind, None, &mut [])?,
        Some(data) => {
            let decoded = if data.first() == Some(&b'{') { data.to_vec() } else { unpack(data)? };
            let (text, mut attachments) = fields::open(&decoded)?;
            let doc = scratch.parse(&text).map_err(|_| Fault::Unreadable)?;
            sharded::message(kind, Some(doc.root()), &mut attachments)?
        }
    };
    Ok(Envelope { uid: text(uid)?.to_owned(), nsp: text(nsp)?.to_owned(), message })
}

/// Fields and values of the entry for a message, in the adapter's order.
///
/// # Errors
/// When cluster adapters have no such message, or its payload is not what it should be.
pub fn encode(scratch: &mut Scratch, envelope: &Envelope) -> Result<[(&'static str, String); 4], Unsendable> {
    let sharded::Parts { kind, data_json, attachments } = sharded::parts(&envelope.message)?;
    let data = if attachments.is_empty() { data_json } else { BASE64.encode(msgpack::from_json(scratch, &data_json, attachments)?) };
    Ok([("uid", envelope.uid.clone()), ("nsp", envelope.nsp.clone()), ("type", kind.to_string()), ("data", data)])
}

/// The bytes of a message that is published. They are read by [`sharded::decode`].
///
/// # Errors
/// When cluster adapters have no such message, or its payload is not what it should be.
pub fn encode_published(scratch: &mut Scratch, envelope: &Envelope) -> Result<Vec<u8>, Unsendable> {
    let (text, attachments) = sharded::whole_json(envelope)?;
    msgpack::from_json(scratch, &text, attachments)
}

/// A client that broke off, as `sio:session:PID` tells of it (option `sessionKeyPrefix`).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Session {
    /// Its id.
    pub sid: String,
    /// Its secret: who shows it continues the session.
    pub pid: String,
    /// The rooms it was in, one of them named as its id.
    pub rooms: Vec<String>,
    /// JSON: what its server's program had put there. Binary data in it is spelled out.
    pub data_json: String,
    /// Other members: key and JSON. The adapter ignores them.
    pub others: Vec<(String, String)>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("sid", &self.sid).finish_non_exhaustive()
    }
}

/// Reads a session.
///
/// # Errors
/// When it is none.
pub fn decode_session(scratch: &mut Scratch, value: &[u8]) -> Result<Session, Fault> {
    let bytes = unpack(value)?;
    let (text, attachments) = fields::open(&bytes)?;
    let doc = scratch.parse(&text).map_err(|_| Fault::Unreadable)?;
    let root = doc.root();
    let json = |value: Value<'_>| fields::spelled(value, &attachments);
    let others = root.members().filter(|member| !matches!(member.key, "sid" | "pid" | "rooms" | "data"));
    Ok(Session {
        sid: fields::required_name(root, "sid")?,
        pid: fields::required_name(root, "pid")?,
        rooms: fields::names(root, "rooms")?,
        data_json: root.get("data").map_or_else(|| "{}".to_owned(), json),
        others: others.map(|member| (member.key.to_owned(), json(member.value))).collect(),
    })
}

/// The value of a session's key.
///
/// # Errors
/// When a part of it that should be JSON is none.
pub fn encode_session(scratch: &mut Scratch, session: &Session) -> Result<String, Unsendable> {
    let Session { sid, pid, rooms, data_json, others } = session;
    let root = Object::new().str("sid", sid).str("pid", pid).raw("rooms", &fields::names_json(rooms)).raw("data", data_json);
    let root = others.iter().fold(root, |root, (key, json)| root.raw(key, json));
    Ok(BASE64.encode(msgpack::from_json(scratch, &root.finish(), &[])?))
}

fn unpack(text: &[u8]) -> Result<Vec<u8>, Fault> {
    // Longer text is longer than what is read, without its base64 too.
    if text.len() / 4 * 3 > RELAY_MESSAGE_BYTES_MAX {
        return Err(Fault::Unreadable);
    }
    BASE64.decode(text).map_err(|_| Fault::Unreadable)
}
