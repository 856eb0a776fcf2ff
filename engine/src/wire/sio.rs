//! Socket.IO protocol 5: what stands after Engine.IO's `4`. Reading looks at structure only, `TYPE [N-] [/NAMESPACE,] [ID] [JSON]`; the JSON is
//! the caller's to parse. The encoders give whole Engine.IO texts, starting with `4`, byte for byte as Node writes them.

use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::json::{self, Value};

/// Binary attachments one packet may announce (`socket.io-parser` since 4.2.6).
pub const ATTACHMENTS_MAX: usize = 10;

/// Characters of [`Offset::Own`].
const OWN_OFFSET_CHARS: usize = 11;

/// Events that only the library itself emits.
pub const RESERVED_EVENTS: [&str; 6] = ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// Type of a packet; the discriminant is its digit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Joins a namespace, or confirms that.
    Connect,
    /// Leaves a namespace.
    Disconnect,
    /// An event with arguments.
    Event,
    /// The answer to an event that carried an id.
    Ack,
    /// The refusal of a CONNECT; only servers send it.
    ConnectError,
    /// An event whose binary arguments follow in messages of their own.
    BinaryEvent,
    /// An acknowledgement with binary arguments.
    BinaryAck,
}

/// One packet, its parts as they stood in the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// Type.
    pub kind: Kind,
    /// Namespace, `/` when none was written. A query part is part of the name, as in Node.
    pub namespace: &'a str,
    /// Acknowledgement id; `None` when there is none, or one beyond 64 bits, which no packet of ours can have.
    pub id: Option<u64>,
    /// The id's digits, empty when there is none. An answer repeats these, so also an id beyond 64 bits comes back as it was.
    pub id_text: &'a str,
    /// Binary messages that follow; at least 1 for the two binary types, else 0.
    pub attachments: usize,
    /// The rest: JSON text, maybe empty, not looked at.
    pub payload: &'a str,
}

/// Not a packet: the peer breaks the protocol, and its transport is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a Socket.IO packet")]
pub struct BadPacket;

/// Reads one packet, without Engine.IO's type.
pub fn parse(text: &str) -> Result<Packet<'_>, BadPacket> {
    let kind = kind_of(text.as_bytes().first().copied())?;
    let (attachments, rest) = match kind {
        Kind::BinaryEvent | Kind::BinaryAck => split_attachments(&text[1..])?,
        _ => (0, &text[1..]),
    };
    let (namespace, rest) = split_namespace(rest);
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (id_text, payload) = rest.split_at(digits);
    // Node's rule in both directions, and the only one about a payload that needs no JSON.
    if kind == Kind::Disconnect && !payload.is_empty() {
        return Err(BadPacket);
    }
    Ok(Packet { kind, namespace, id: id_text.parse().ok(), id_text, attachments, payload })
}

fn kind_of(digit: Option<u8>) -> Result<Kind, BadPacket> {
    Ok(match digit {
        Some(b'0') => Kind::Connect,
        Some(b'1') => Kind::Disconnect,
        Some(b'2') => Kind::Event,
        Some(b'3') => Kind::Ack,
        Some(b'4') => Kind::ConnectError,
        Some(b'5') => Kind::BinaryEvent,
        Some(b'6') => Kind::BinaryAck,
        _ => return Err(BadPacket),
    })
}

/// Takes `N-` off the front. A header without its `-` once sent another server into an endless loop.
fn split_attachments(text: &str) -> Result<(usize, &str), BadPacket> {
    let (digits, rest) = text.split_once('-').ok_or(BadPacket)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadPacket);
    }
    match digits.parse() {
        Ok(count @ 1..=ATTACHMENTS_MAX) => Ok((count, rest)),
        _ => Err(BadPacket),
    }
}

/// Takes `/namespace,` off the front; the comma may be missing when nothing follows.
fn split_namespace(text: &str) -> (&str, &str) {
    if !text.starts_with('/') {
        return ("/", text);
    }
    text.split_once(',').unwrap_or((text, ""))
}

fn start(digit: char, namespace: &str, capacity: usize) -> String {
    let mut out = String::with_capacity(8 + namespace.len() + capacity);
    append_start(&mut out, digit, digit, 0, namespace);
    out
}

/// Starts a packet: Engine.IO's `4`, the type, how many attachments follow, and the namespace unless it is the main one.
fn append_start(out: &mut String, plain: char, binary: char, attachments: usize, namespace: &str) {
    out.push('4');
    if attachments > 0 {
        out.push(binary);
        out.push_str(&attachments.to_string());
        out.push('-');
    } else {
        out.push(plain);
    }
    if namespace != "/" {
        out.push_str(namespace);
        out.push(',');
    }
}

/// The answer to a CONNECT. `pid` belongs to connection state recovery; without it the answer is exactly `{sid}`.
pub fn connect(ns: &str, sid: &str, pid: Option<&str>) -> String {
    let mut out = start('0', ns, 64);
    out.push_str(&json::Object::with_capacity(64).str("sid", sid).opt_str("pid", pid).finish());
    out
}

/// The answer to a CONNECT of a client of Engine.IO 3, which knows its id already.
pub fn connect_old(ns: &str) -> String {
    start('0', ns, 0)
}

/// The refusal of a CONNECT; `data_json` is the whole object, `{"message":…}`.
pub fn connect_error(ns: &str, data_json: &str) -> String {
    let mut out = start('4', ns, data_json.len());
    out.push_str(data_json);
    out
}

/// What an event or acknowledgement carries besides its text.
#[derive(Clone, Copy, Default, Debug)]
pub struct Extras<'a> {
    /// Binary messages that follow; with any, the packet is one of the binary types.
    pub attachments: usize,
    /// Of an event: its last argument, for connection state recovery.
    pub offset: Option<&'a str>,
}

/// An event; `args_json` are JSON texts joined by commas, maybe none. With an `id` the client is asked to acknowledge.
pub fn event(ns: &str, id: Option<u64>, name: &str, args_json: &str) -> String {
    let mut out = String::with_capacity(ns.len() + name.len() + args_json.len() + PACKET_BYTES);
    append_event(&mut out, ns, id, name, args_json, Extras::default());
    out
}

/// About as many bytes an event or acknowledgement has besides namespace, name and arguments.
pub const PACKET_BYTES: usize = 56;

/// Appends an event with more than text.
pub fn append_event(out: &mut String, ns: &str, id: Option<u64>, name: &str, args_json: &str, extras: Extras<'_>) {
    append_start(out, '2', '5', extras.attachments, ns);
    if let Some(id) = id {
        out.push_str(&id.to_string());
    }
    out.push('[');
    json::quote(out, name);
    if !args_json.is_empty() {
        out.push(',');
        out.push_str(args_json);
    }
    if let Some(offset) = extras.offset {
        out.push(',');
        json::quote(out, offset);
    }
    out.push(']');
}

/// The answer to an event that carried an id, as [`Packet::id_text`] gave it; `attachments` binary messages follow.
pub fn ack(ns: &str, id_text: &str, args_json: &str, attachments: usize) -> String {
    let mut out = String::with_capacity(ns.len() + id_text.len() + args_json.len() + PACKET_BYTES);
    append_ack(&mut out, ns, id_text, args_json, attachments);
    out
}

/// Appends such an answer.
pub fn append_ack(out: &mut String, ns: &str, id_text: &str, args_json: &str, attachments: usize) {
    append_start(out, '3', '6', attachments, ns);
    out.push_str(id_text);
    out.push('[');
    out.push_str(args_json);
    out.push(']');
}

/// The number of the attachment that an object stands for; `None` inside when it is no number, nothing when it stands for none.
fn placeholder(value: Value<'_>) -> Option<Option<u64>> {
    // Asked of every object, so what it is not must cost nothing: `get` looks at its own members only.
    (value.get("_placeholder")?.as_bool() == Some(true)).then(|| value.get("num").and_then(Value::as_u64))
}

/// True exactly when every placeholder in the value stands for one of so many attachments.
pub fn placeholders_fit(value: Value<'_>, attachments: usize) -> bool {
    let mut fit = true;
    value.visit(|value| match placeholder(value) {
        Some(number) => {
            fit &= number.is_some_and(|number| number < attachments as u64);
            false
        }
        None => fit,
    });
    fit
}

/// The value's text with its binary data written as `JSON.stringify` writes a `Buffer`, for readers that know no attachments. One that
/// is mentioned again is `null` there, which no client does: a text of 30 bytes a mention must not become megabytes each time.
pub fn spelled_out(value: Value<'_>, attachments: &[Vec<u8>]) -> String {
    let (text, start) = (value.raw(), value.range().start);
    let mut out = String::with_capacity(text.len() + attachments.iter().map(|data| 32 + data.len() * 4).sum::<usize>());
    let (mut done, mut told) = (0, [false; ATTACHMENTS_MAX]);
    value.visit(|value| {
        let Some(number) = placeholder(value) else { return true };
        let number = number.map_or(usize::MAX, |number| number as usize);
        let range = value.range();
        out.push_str(&text[done..range.start - start]);
        done = range.end - start;
        match (attachments.get(number), told.get_mut(number)) {
            (Some(data), Some(told)) if !*told => {
                *told = true;
                push_buffer(&mut out, data);
            }
            _ => out.push_str("null"),
        }
        false
    });
    out.push_str(&text[done..]);
    out
}

fn push_buffer(out: &mut String, data: &[u8]) {
    out.push_str(r#"{"type":"Buffer","data":["#);
    for (at, byte) in data.iter().enumerate() {
        // A `String` takes whatever is written.
        let _ = if at > 0 { write!(out, ",{byte}") } else { write!(out, "{byte}") };
    }
    out.push_str("]}");
}

/// Where an entry stands in a stream of Redis: milliseconds and a number within them. Later entries are greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct EntryId {
    /// Milliseconds since 1970, by the clock of Redis.
    pub ms: u64,
    /// Counts within them.
    pub number: u64,
}

impl EntryId {
    /// Reads `MS-NUMBER`, as Redis writes it; `None` for any other text.
    pub fn parse(text: &str) -> Option<EntryId> {
        // Written one way only: another would be another text of the same entry.
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        let number = |text: &str| is_number(text).then(|| text.parse().ok()).flatten();
        let (ms, count) = text.split_once('-')?;
        Some(EntryId { ms: number(ms)?, number: number(count)? })
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.number)
    }
}

/// What names an event for those who come back, so that no two events have the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Offset {
    /// An event of an uringcast host: a random number, on the wire its eight bytes in URL-safe base64.
    Own(u64),
    /// An event of a Node server: the stream's entry that brought it.
    Entry(EntryId),
}

impl Offset {
    /// A number that few others have.
    pub fn number(self) -> u64 {
        match self {
            Offset::Own(number) => number,
            Offset::Entry(EntryId { ms, number }) => ms.rotate_left(20) ^ number,
        }
    }

    /// What stands at the end of the event.
    pub fn text(self) -> String {
        match self {
            Offset::Own(number) => URL_SAFE_NO_PAD.encode(number.to_be_bytes()),
            Offset::Entry(id) => id.to_string(),
        }
    }

    /// What a client gives back; `None` for a text that is none of these.
    pub fn parse(text: &str) -> Option<Offset> {
        // Our own have eleven characters, which an entry's id has had in 1970 for the last time.
        if text.len() != OWN_OFFSET_CHARS {
            return EntryId::parse(text).map(Offset::Entry);
        }
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(u64::from_be_bytes).map(Offset::Own)
    }
}

impl From<u64> for Offset {
    fn from(number: u64) -> Offset {
        Offset::Own(number)
    }
}

/// The server takes the client out of a namespace.
pub fn disconnect(ns: &str) -> String {
    start('1', ns, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet of the main namespace without id and attachments.
    fn plain(kind: Kind, payload: &str) -> Packet<'_> {
        Packet { kind, namespace: "/", id: None, id_text: "", attachments: 0, payload }
    }

    #[test]
    fn both_kinds_of_offsets_are_told_apart() {
        let entry = |ms, number| Offset::Entry(EntryId { ms, number });
        for offset in [Offset::Own(0), Offset::Own(u64::MAX), entry(1_700_000_000_000, 0), entry(1_700_000_000_000, u64::MAX)] {
            assert_eq!(Offset::parse(&offset.text()), Some(offset));
        }
        // Eleven characters of base64 that look like an entry's id.
        let digits = Offset::parse("12345-67890").expect("ours");
        assert!(matches!(digits, Offset::Own(_)) || Offset::parse("12345-67890").is_none());
        for text in ["", "-", "1-", "-1", "+1700000000-1", "1700000000000-0-0", "1700000000000", "99999999999999999999999-0", "__________"]
        {
            assert_eq!(Offset::parse(text), None, "{text}");
        }
        assert!(EntryId { ms: 2, number: 0 } > EntryId { ms: 1, number: 9 });
    }

    /// What Node was seen to take, after Engine.IO's `4`; the last four it takes here and refuses one step later, by the payload or the state.
    #[test]
    fn packets_that_node_takes() {
        let samples = [
            ("0", plain(Kind::Connect, "")),
            ("0/", plain(Kind::Connect, "")),
            ("0/,", plain(Kind::Connect, "")),
            ("0/,{\"a\":1}", plain(Kind::Connect, "{\"a\":1}")),
            ("0{\"token\":\"x\"}", plain(Kind::Connect, "{\"token\":\"x\"}")),
            ("0/custom?x=1,", Packet { namespace: "/custom?x=1", ..plain(Kind::Connect, "") }),
            ("1", plain(Kind::Disconnect, "")),
            ("1/chat,", Packet { namespace: "/chat", ..plain(Kind::Disconnect, "") }),
            ("2", plain(Kind::Event, "")),
            ("2[1,2]", plain(Kind::Event, "[1,2]")),
            ("2[\"/a,b\"]", plain(Kind::Event, "[\"/a,b\"]")),
            ("212[\"echo\"]", Packet { id: Some(12), id_text: "12", ..plain(Kind::Event, "[\"echo\"]") }),
            ("2/chat,0[\"e\"]", Packet { namespace: "/chat", id: Some(0), id_text: "0", ..plain(Kind::Event, "[\"e\"]") }),
            ("299999999999999999999[\"echo\",1]", Packet { id_text: "99999999999999999999", ..plain(Kind::Event, "[\"echo\",1]") }),
            ("2[\"echo\",{\"_placeholder\":true,\"num\":0}]", plain(Kind::Event, "[\"echo\",{\"_placeholder\":true,\"num\":0}]")),
            ("3999[]", Packet { id: Some(999), id_text: "999", ..plain(Kind::Ack, "[]") }),
            ("3[]", plain(Kind::Ack, "[]")),
            ("51-[\"x\"]", Packet { attachments: 1, ..plain(Kind::BinaryEvent, "[\"x\"]") }),
            ("510-[\"x\"]", Packet { attachments: 10, ..plain(Kind::BinaryEvent, "[\"x\"]") }),
            (
                "52-/chat,7[\"x\"]",
                Packet { namespace: "/chat", id: Some(7), id_text: "7", attachments: 2, ..plain(Kind::BinaryEvent, "[\"x\"]") },
            ),
            ("61-5[1]", Packet { id: Some(5), id_text: "5", attachments: 1, ..plain(Kind::BinaryAck, "[1]") }),
            ("0[1]", plain(Kind::Connect, "[1]")),
            ("4{}", plain(Kind::ConnectError, "{}")),
            ("2{}", plain(Kind::Event, "{}")),
            ("2[]", plain(Kind::Event, "[]")),
        ];
        for (text, packet) in samples {
            assert_eq!(parse(text), Ok(packet), "{text}");
        }
    }

    /// What made Node close the transport because of the structure alone.
    #[test]
    fn packets_that_node_refuses() {
        let samples = [
            "",
            "7",
            "9[\"x\"]",
            "x",
            "é",
            " 2[]", // unknown type
            "511-[\"x\"]",
            "50-[\"echo\",1]",
            "5[\"x\"]",
            "5",
            "5-[]",
            "51",
            "51[\"x\"]",
            "5x-[]",
            "5 1-[]",
            "5+1-[]",
            "51e0-[]",
            "5-1-[]",
            "599999999999999999999999-[]",
            "6[1]",
            "60-[1]", // attachments
            "1{\"a\":1}",
            "1/chat,x", // DISCONNECT with a payload
        ];
        for text in samples {
            assert_eq!(parse(text), Err(BadPacket), "{text:?}");
        }
    }

    #[test]
    fn encoders_write_what_node_writes() {
        assert_eq!(connect("/", "abc", None), r#"40{"sid":"abc"}"#);
        assert_eq!(connect("/chat", "abc", Some("p")), r#"40/chat,{"sid":"abc","pid":"p"}"#);
        assert_eq!(connect_error("/custom?x=1", r#"{"message":"Invalid namespace"}"#), r#"44/custom?x=1,{"message":"Invalid namespace"}"#);
        assert_eq!(event("/", None, "echoed", "1"), r#"42["echoed",1]"#);
        assert_eq!(event("/chat", Some(12), "a\"b", ""), r#"42/chat,12["a\"b"]"#);
        assert_eq!(ack("/", "0", "", 0), "430[]");
        assert_eq!(ack("/chat", "99999999999999999999", r#"{"success":true},1"#, 0), r#"43/chat,99999999999999999999[{"success":true},1]"#);
        let extras = Extras { attachments: 2, offset: Some("o") };
        let mut with_attachments = String::new();
        append_event(&mut with_attachments, "/chat", Some(1), "e", "1", extras);
        assert_eq!(with_attachments, r#"452-/chat,1["e",1,"o"]"#);
        assert_eq!(ack("/", "7", "null", 1), "461-7[null]");
        assert_eq!((disconnect("/"), disconnect("/chat")), ("41".to_owned(), "41/chat,".to_owned()));
    }

    #[test]
    fn an_offset_has_one_text() {
        for text in ["1700000000000-0", "0-0", "AAAAAAAAAAA"] {
            assert_eq!(Offset::parse(text).map(Offset::text).as_deref(), Some(text));
        }
        // The first would be written with eleven characters, which are those of the other kind.
        for text in ["0621302-5455", "1700000000000-00", "-1", "1-", "1-+2"] {
            assert_eq!(Offset::parse(text), None, "{text}");
        }
    }

    #[test]
    fn placeholders_are_found_wherever_they_are() {
        let mut scratch = json::Scratch::default();
        for (text, attachments, fit) in [
            (r#"["e",{"_placeholder":true,"num":0}]"#, 1, true),
            (r#"["e",{"a":[{"b":{ "num" : 1.0, "x":[{}], "_placeholder" : true }}]}]"#, 2, true),
            (r#"["e",{"_placeholder":true,"num":1}]"#, 1, false),
            (r#"["e",{"_placeholder":true,"num":-1}]"#, 1, false),
            (r#"["e",{"_placeholder":true,"num":0.5}]"#, 1, false),
            (r#"["e",{"_placeholder":true,"num":"0"}]"#, 1, false),
            (r#"["e",{"_placeholder":true}]"#, 1, false),
            (r#"["e",[],{"x":{}},{"_placeholder":true,"num":0},{"_placeholder":true,"num":7}]"#, 1, false),
            // The last of several members counts, as for the receivers.
            (r#"["e",{"_placeholder":true,"num":0,"num":9}]"#, 1, false),
            (r#"["e",{"_placeholder":false,"num":9},{"_placeholder":1},{"num":9},"_placeholder"]"#, 1, true),
        ] {
            let doc = scratch.parse(text).expect("JSON");
            assert_eq!(placeholders_fit(doc.root(), attachments), fit, "{text}");
        }
    }

    #[test]
    fn binary_data_is_spelled_out_as_node_does() {
        let mut scratch = json::Scratch::default();
        let attachments = [vec![], vec![0, 7, 255]];
        for (text, spelled) in [
            (
                r#" [ {"_placeholder":true,"num":1} , [{"a":{"num":0,"_placeholder":true}, "b" : 1e+100}] ] "#,
                r#"[ {"type":"Buffer","data":[0,7,255]} , [{"a":{"type":"Buffer","data":[]}, "b" : 1e+100}] ]"#,
            ),
            (r#"{"_placeholder":true,"num":0}"#, r#"{"type":"Buffer","data":[]}"#),
            (r#"[{"_placeholder":true,"num":0},{"_placeholder":true,"num":0},1]"#, r#"[{"type":"Buffer","data":[]},null,1]"#),
            (r#"[{"_placeholder":true,"num":2}]"#, "[null]"),
            (r#""é""#, r#""é""#),
        ] {
            let doc = scratch.parse(text).expect("JSON");
            assert_eq!(spelled_out(doc.root(), &attachments), spelled);
        }
        let doc = scratch.parse(r#"{"a":1,"b":[{"_placeholder":true,"num":0}]}"#).expect("JSON");
        let inside = doc.root().get("b").expect("a member");
        assert_eq!(spelled_out(inside, &attachments), r#"[{"type":"Buffer","data":[]}]"#);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*", packet in "[0-9]{0,3}-?/?[a-z]{0,3},?[0-9]{0,25}.{0,5}") {
            let _ = (parse(&text), parse(&packet));
        }

        #[test]
        fn what_is_encoded_is_read_back(ns in "/[a-z?=]{0,8}", id: Option<u64>, name in ".{0,8}") {
            let text = event(&ns, id, &name, "{\"a\":1},2");
            let packet = parse(&text[1..]).expect("own packet");
            proptest::prop_assert_eq!((packet.kind, packet.namespace, packet.id), (Kind::Event, ns.as_str(), id));
            let payload: (String, serde_json::Value, u8) = serde_json::from_str(packet.payload).expect("own payload");
            proptest::prop_assert_eq!(payload, (name, serde_json::json!({"a": 1}), 2));
        }
    }
}
