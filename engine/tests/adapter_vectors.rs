//! Messages that the adapters of Node were seen to send (`vectors/adapters`), read and written again. What is read must be what the package's
//! own reader made of it, and what its clients got; what is written must be the same bytes on the same channel. Where it is not, on
//! purpose, a table says so and why, and a line of the table that is no longer true fails.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::json::Scratch;
use engine::relay::format::sharded::Subscription;
use engine::relay::format::{Envelope, Fault, Message, Options, Payload, Unsendable, classic, scratch, sharded, streams};
use serde_json::{Value, json};

const NUMBERED_ROOM: &str = "a room's number becomes its text";
const TYPES: &str = "a date is its text to us, and notepack writes 1e100 as the integer 0";
const BARE: &str = "a third party left out what the adapters write";
const ORDER: &str = "the emitter writes flags before except";

/// What is not written as it came: set, call, reason.
const OTHERWISE: [(&str, &str, &str); 23] = [
    ("classic", "23-emit-types", TYPES),
    ("classic", "27-emit-numeric-room", NUMBERED_ROOM),
    ("classic", "45-inject-packet-without-nsp", BARE),
    ("classic", "46-inject-opts-no-except", BARE),
    ("classic-specific", "23-emit-types", TYPES),
    ("classic-specific", "27-emit-numeric-room", NUMBERED_ROOM),
    ("classic-specific", "45-inject-packet-without-nsp", BARE),
    ("classic-specific", "46-inject-opts-no-except", BARE),
    ("sharded", "27-emit-numeric-room", NUMBERED_ROOM),
    ("sharded-private", "27-emit-numeric-room", NUMBERED_ROOM),
    ("emitter", "00-emit", ORDER),
    ("emitter", "01-to", ORDER),
    ("emitter", "02-to-several", ORDER),
    ("emitter", "03-to-chained", ORDER),
    ("emitter", "04-to-socket-id", ORDER),
    ("emitter", "05-except", ORDER),
    ("emitter", "06-to-except", ORDER),
    ("emitter", "07-volatile", ORDER),
    ("emitter", "08-compress", ORDER),
    ("emitter", "09-binary", ORDER),
    ("emitter", "10-of", ORDER),
    ("emitter", "11-of-no-slash", ORDER),
    ("emitter", "18-custom-key", ORDER),
];

#[test]
fn the_classic_adapters_messages_are_read_and_written() {
    for set in ["classic", "classic-specific", "emitter"] {
        let mut scratch = scratch();
        for line in lines(set, "channel") {
            let (call, channel, bytes) = (text(&line["in"]), text(&line["channel"]), payload(&line));
            let mut homes = Vec::new();
            for (key, nsp) in [("socket.io", "/"), ("socket.io", "/custom"), ("myprefix", "/"), ("socket.io", "/c")] {
                let channels = classic::Channels::new(key, nsp);
                homes.extend(channels.kind(channel.as_bytes()).map(|kind| (channels, nsp, kind)));
            }
            let [(channels, nsp, kind)] = &homes[..] else { panic!("{channel} is of {homes:?}") };
            let envelope = classic::decode(&mut scratch, nsp, *kind, &bytes).unwrap_or_else(|fault| panic!("{set} {call}: {fault}"));
            let (uid, expected) = expected_classic(*kind, &plain(&line["decoded"]));
            assert_eq!((&envelope.uid, &envelope.nsp, told(&envelope.message)), (&uid, &nsp.to_string(), expected), "{set} {call}");
            received(set, &line, &envelope);
            let asker = match *kind {
                classic::Kind::Response { to } => to,
                _ => Some("nobody"),
            };
            assert_eq!(channels.of(&envelope.message, asker), channel, "{set} {call}");
            let written = classic::encode(&mut scratch, &envelope).unwrap_or_else(|fault| panic!("{set} {call}: {fault}"));
            compare(set, call, &written, &bytes);
            assert_eq!(classic::decode(&mut scratch, nsp, *kind, &written), Ok(envelope), "{set} {call}");
        }
    }
    let answer = Message::ServerSideEmitAnswer { request: "r".into(), packet: Payload::from("1") };
    assert_eq!(classic::Channels::new("k", "/").of(&answer, Some("asker")), "k-response#/#", "the adapter never answers this one alone");
}

#[test]
fn the_cluster_adapters_messages_are_read_and_written() {
    type Encode = fn(&mut Scratch, &Envelope) -> Result<Vec<u8>, Unsendable>;
    let encode_sharded: Encode = sharded::encode;
    for (set, subscription, encode) in [
        ("sharded", Subscription::Dynamic, encode_sharded),
        ("sharded-private", Subscription::DynamicPrivate, encode_sharded),
        ("streams-0.3.1", Subscription::Static, streams::encode_published),
    ] {
        let mut scratch = scratch();
        for line in lines(set, "channel") {
            let (call, channel, bytes) = (text(&line["in"]), text(&line["channel"]), payload(&line));
            let envelope = sharded::decode(&mut scratch, &bytes).unwrap_or_else(|fault| panic!("{set} {call}: {fault}"));
            let decoded = plain(&line["decoded"]);
            assert_eq!((&json!(envelope.uid), &json!(envelope.nsp)), (&decoded["uid"], &decoded["nsp"]), "{set} {call}");
            assert_eq!(told(&envelope.message), expected_cluster(&decoded["type"], &decoded["data"]), "{set} {call}");
            received(set, &line, &envelope);
            let channels = sharded::Channels::new("socket.io", &envelope.nsp);
            let owner = channels.owner(channel.as_bytes()).expect("a channel of its namespace");
            assert_eq!(channels.of(&envelope.message, subscription, owner.or(Some("nobody"))), channel, "{set} {call}");
            assert!(set != "streams-0.3.1" || streams::is_published(&envelope.message), "{set} {call}");
            let written = encode(&mut scratch, &envelope).unwrap_or_else(|fault| panic!("{set} {call}: {fault}"));
            compare(set, call, &written, &bytes);
            assert_eq!(sharded::decode(&mut scratch, &written), Ok(envelope), "{set} {call}");
        }
    }
}

#[test]
fn entries_of_streams_are_read_and_written() {
    for set in ["streams-0.3.1", "streams-0.2.2"] {
        let mut scratch = scratch();
        for line in lines(set, "stream") {
            let (call, fields) = (text(&line["in"]), line["fields"].as_object().expect("fields"));
            let entry = || fields.iter().map(|(field, value)| (field.as_bytes(), text(value).as_bytes()));
            let envelope = streams::decode(&mut scratch, entry()).unwrap_or_else(|fault| panic!("{set} {call}: {fault}"));
            assert_eq!((&json!(envelope.uid), &json!(envelope.nsp)), (&fields["uid"], &fields["nsp"]), "{set} {call}");
            let kind = json!(text(&fields["type"]).parse::<u64>().expect("a number"));
            assert_eq!(told(&envelope.message), expected_cluster(&kind, &plain(&line["decoded"])), "{set} {call}");
            let written = streams::encode(&mut scratch, &envelope);
            if envelope.message == Message::Presence {
                assert_eq!(written, Err(Unsendable::NoForm), "nobody waits for our heartbeat");
                continue;
            }
            let expected = ["uid", "nsp", "type", "data"].map(|field| (field, text(&fields[field]).to_owned()));
            assert_eq!(written.as_ref(), Ok(&expected), "{set} {call}");
            assert!(set != "streams-0.3.1" || !streams::is_published(&envelope.message), "{set} {call}");
        }
    }
}

#[test]
fn sessions_are_read_and_written() {
    let mut scratch = scratch();
    for set in ["streams-0.3.1", "streams-0.2.2"] {
        for line in lines(set, "key") {
            let value = text(&line["value"]);
            let mut session = streams::decode_session(&mut scratch, value.as_bytes()).expect("a session");
            assert_eq!(format!("sio:session:{}", session.pid), text(&line["key"]));
            let data: Value = serde_json::from_str(&session.data_json).expect("JSON");
            assert_eq!(json!({"sid": session.sid, "pid": session.pid, "rooms": session.rooms, "data": data}), line["decoded"]);
            assert!(session.others.is_empty());
            assert_eq!(streams::encode_session(&mut scratch, &session).as_deref(), Ok(value));
            session.others = vec![("uringcast".into(), r#"{"offset":1,"rooms":["a"]}"#.into()), ("x".into(), "null".into())];
            let written = streams::encode_session(&mut scratch, &session).expect("JSON");
            assert_eq!(streams::decode_session(&mut scratch, written.as_bytes()), Ok(session));
        }
    }
}

#[test]
fn what_the_adapters_subscribe_to_are_our_names() {
    for line in lines("classic", "subscribe") {
        let names: Vec<_> = line["names"].as_array().expect("names").iter().map(text).collect();
        let ours: Vec<String> = ["/", "/custom"]
            .iter()
            .flat_map(|nsp| {
                let channels = classic::Channels::new("socket.io", nsp);
                let uid = names.last().and_then(|last| last.rsplit('#').nth(1)).unwrap_or_default();
                [vec![channels.pattern()], channels.subscribed(uid).to_vec()]
            })
            .filter(|ours| ours.iter().all(|name| names.contains(&name.as_str())))
            .flatten()
            .collect();
        assert_eq!(ours, names);
    }
    for set in ["sharded", "sharded-private", "streams-0.3.1"] {
        for line in lines(set, "subscribe") {
            for name in line["names"].as_array().expect("names").iter().map(text) {
                let nsp = name.split('#').nth(1).expect("a namespace");
                let channels = sharded::Channels::new("socket.io", nsp);
                let owner = channels.owner(name.as_bytes()).expect("a channel of its namespace");
                assert_eq!(owner.map_or_else(|| channels.common().to_owned(), |owner| channels.own(owner)), name);
            }
        }
    }
}

#[test]
fn what_is_written_otherwise_is_still_said_right() {
    for (set, call, reason) in OTHERWISE {
        assert!(lines(set, "channel").iter().any(|line| line["in"] == call), "{set} has no {call}: {reason}");
    }
}

#[test]
fn answers_without_clients_and_refusals() {
    let mut scratch = scratch();
    let response = classic::Kind::Response { to: None };
    let mut read = |kind, text: &str| classic::decode(&mut scratch, "/", kind, text.as_bytes()).map(|envelope| envelope.message);
    let request = || "r".to_owned();
    let none = Message::FetchAnswer { request: request(), sockets: vec![] };
    assert_eq!(read(response, r#"{"requestId":"r","sockets":[]}"#), Ok(none));
    let without = Message::ServerSideEmitAnswer { request: request(), packet: Payload::from("null") };
    assert_eq!(read(response, r#"{"requestId":"r","type":6}"#), Ok(without));
    assert_eq!(read(response, r#"{"requestId":"r","type":12}"#), Err(Fault::UnknownType));
    assert_eq!(read(response, r#"{"type":6}"#), Err(Fault::Shape));
    assert_eq!(read(response, "{"), Err(Fault::Unreadable));
    assert_eq!(read(classic::Kind::Request, r#"{"type":77,"opts":{}}"#), Err(Fault::UnknownType));
    // Rooms that are no names, or options that are missing, must not become everybody.
    for opts in
        [r#"{"rooms":["a",null]}"#, r#"{"rooms":[{}]}"#, r#"{"rooms":"a"}"#, r#"{"rooms":["\ud83d"]}"#, r#"{"except":5}"#, "[]", "7"]
    {
        assert_eq!(read(classic::Kind::Request, &format!(r#"{{"type":4,"opts":{opts}}}"#)), Err(Fault::Shape), "{opts}");
    }
    let everybody = Message::Disconnect { options: Options::default(), close: false };
    assert_eq!(read(classic::Kind::Request, r#"{"unknown":1,"opts":{"rooms":null},"type":4}"#), Ok(everybody));
    let numbers = Options { rooms: vec!["1".into(), "-2.5".into(), "1e+21".into()], ..Options::default() };
    let join = Message::Join { options: numbers, rooms: vec!["18446744073709551615".into()] };
    assert_eq!(read(classic::Kind::Request, r#"{"type":2,"rooms":[18446744073709551615],"opts":{"rooms":[1,-2.5,1e21]}}"#), Ok(join));
    assert_eq!(
        read(classic::Kind::Request, r#"{"type":4,"sid":"s"}"#).map(|message| told(&message)),
        Ok(json!(["disconnect one", null, "s", false]))
    );
    // Clients close their connection at a reserved event's name.
    let cluster =
        |text: &str| sharded::decode(&mut engine::relay::format::scratch(), text.as_bytes()).map(|envelope| told(&envelope.message));
    for data in [r#"["connect"]"#, "[]", "[null]", "{}", "\"a\""] {
        let text = format!(r#"{{"uid":"u","nsp":"/","type":3,"data":{{"opts":{{}},"packet":{{"type":2,"data":{data}}}}}}}"#);
        assert_eq!(cluster(&text), Err(Fault::Shape), "{data}");
    }
    assert_eq!(cluster(r#"{"uid":"u","nsp":"/","type":14,"data":{}}"#), Err(Fault::UnknownType));
    assert_eq!(cluster(r#"{"uid":"u","nsp":"/","type":13}"#), Ok(json!("presence")));
    assert_eq!(cluster(r#"{"uid":"u","nsp":"/","type":9}"#), Err(Fault::Shape));
}

#[test]
fn names_of_channels_and_streams() {
    let channels = classic::Channels::new("k", "/a*b");
    assert_eq!(channels.pattern(), r"k#/a\*b#*");
    assert_eq!(channels.kind(b"k#/a*b#"), Some(classic::Kind::Broadcast { room: None }));
    assert_eq!(channels.kind(b"k#/a*b#x#y z#"), Some(classic::Kind::Broadcast { room: Some("x#y z") }));
    for other in ["k#/a*b", "k#/a*", "k#/a*b#x", "k-request#/a*b#x#", "", "k#/#", "K#/a*b#"] {
        assert_eq!(channels.kind(other.as_bytes()), None, "{other}");
    }
    assert_eq!(channels.kind(b"k#/a*b#\xFF#"), None);
    // What Node 20 gives for the adapter's own function.
    assert_eq!(streams::stream("s", 1, "/custom"), "s");
    for (nsp, count, name) in [("/", 10, "s-7"), ("/custom", 10, "s-4"), ("/é€😀x", 7, "s-6"), ("/orders-eu", 10, "s--9")] {
        assert_eq!(streams::stream("s", count, nsp), name);
    }
    for (id, is) in
        [("1-0", true), ("1795197707281-12", true), ("1", false), ("-", false), ("1-", false), ("1-2-3", false), ("1-+2", false)]
    {
        assert_eq!(streams::is_entry_id(id), is, "{id}");
    }
    assert!(!Subscription::Dynamic.has_channel("gNJ6j7m1f3eLDA3LAAAA") && Subscription::DynamicPrivate.has_channel("gNJ6j7m1f3eLDA3LAAAA"));
    assert!(Subscription::Dynamic.has_channel("room") && !Subscription::Static.has_channel("room"));
}

/// Bytes are bytes in all forms that have them, wherever they stand in the message.
#[test]
fn binary_data_in_every_form() {
    let mut scratch = scratch();
    let packet = Payload {
        json: r#"["e",{"_placeholder":true,"num":0},{"a":[{"_placeholder":true,"num":1}]}]"#.into(),
        attachments: vec![vec![], vec![0, 255]],
    };
    let value = Payload { json: r#"{"_placeholder":true,"num":0}"#.into(), attachments: vec![vec![7; 70_000]] };
    let request = || "r".to_owned();
    let messages = [
        Message::Broadcast { packet: packet.clone(), options: Options::default(), request: None },
        Message::Broadcast { packet: packet.clone(), options: Options::default(), request: Some(request()) },
        Message::ServerSideEmit { request: None, packet: packet.clone() },
        Message::ServerSideEmitAnswer { request: request(), packet: value.clone() },
        Message::Ack { request: request(), packet: value },
    ];
    for message in messages {
        let envelope = Envelope { uid: "u".into(), nsp: "/n".into(), message };
        let bytes = sharded::encode(&mut scratch, &envelope).expect("its form");
        assert_eq!(sharded::decode(&mut scratch, &bytes), Ok(envelope.clone()));
        let entry = streams::encode(&mut scratch, &envelope).expect("its form");
        let entry = entry.iter().map(|(field, value)| (field.as_bytes(), value.as_bytes()));
        assert_eq!(streams::decode(&mut scratch, entry), Ok(envelope.clone()));
        let bytes = classic::encode(&mut scratch, &envelope).expect("its form");
        let channels = classic::Channels::new("k", "/n");
        let channel = channels.of(&envelope.message, None);
        let kind = channels.kind(channel.as_bytes()).expect("its own");
        let read = classic::decode(&mut scratch, "/n", kind, &bytes).expect("its own").message;
        match (read, envelope.message) {
            (Message::ServerSideEmit { packet, .. }, Message::ServerSideEmit { .. }) => {
                let spelled = r#"["e",{"type":"Buffer","data":[]},{"a":[{"type":"Buffer","data":[0,255]}]}]"#;
                assert!(packet == Payload::from(spelled), "{}", packet.json);
            }
            (Message::ServerSideEmitAnswer { packet, .. }, _) => assert!(packet.json.starts_with(r#"{"type":"Buffer","data":[7,7,"#)),
            (read, message) => assert_eq!(read, message),
        }
    }
    let wrong = Payload { json: r#"["e",{"_placeholder":true,"num":1}]"#.into(), attachments: vec![vec![]] };
    let envelope = Envelope {
        uid: "u".into(),
        nsp: "/".into(),
        message: Message::Broadcast { packet: wrong, options: Options::default(), request: None },
    };
    assert_eq!(sharded::encode(&mut scratch, &envelope), Err(Unsendable::BadPayload));
    assert_eq!(classic::encode(&mut scratch, &envelope), Err(Unsendable::BadPayload));
}

/// A message as deeply nested as a client's may be is relayed in every form.
#[test]
fn the_deepest_message_is_relayed() {
    let mut scratch = scratch();
    let depth = engine::limits::JSON_DEPTH_MAX - 1;
    let packet = Payload::from(&*format!(r#"["e",{}{}]"#, "[".repeat(depth), "]".repeat(depth)));
    let message = Message::Broadcast { packet, options: Options::default(), request: None };
    let envelope = Envelope { uid: "u".into(), nsp: "/".into(), message };
    let bytes = sharded::encode(&mut scratch, &envelope).expect("its form");
    assert_eq!(sharded::decode(&mut scratch, &bytes), Ok(envelope.clone()));
    let bytes = streams::encode_published(&mut scratch, &envelope).expect("its form");
    assert_eq!(sharded::decode(&mut scratch, &bytes), Ok(envelope.clone()));
    let bytes = classic::encode(&mut scratch, &envelope).expect("its form");
    assert_eq!(classic::decode(&mut scratch, "/", classic::Kind::Broadcast { room: None }, &bytes), Ok(envelope));
}

/// Damaged messages are refused or mean something else. What they mean can be written, and then stays as it is.
#[test]
fn no_damaged_message_panics() {
    let mut scratch = scratch();
    let mut read = 0;
    for set in ["classic", "emitter", "sharded", "streams-0.3.1"] {
        for line in lines(set, "channel") {
            let bytes = payload(&line);
            // Long ones are answers that differ in little; a prime step meets other places in each.
            let step = if bytes.len() > 400 { 7 } else { 1 };
            for at in (0..bytes.len()).step_by(step) {
                read += usize::from(survives(&mut scratch, &bytes[..at]));
                for with in [0xC0, 0xDD, b'"', b'9', bytes[at].wrapping_add(1), bytes[at] ^ 0x80] {
                    let mut damaged = bytes.clone();
                    damaged[at] = with;
                    read += usize::from(survives(&mut scratch, &damaged));
                }
            }
        }
    }
    assert!(read > 10_000, "{read} were read although damaged");
}

/// True exactly when some reader takes it.
fn survives(scratch: &mut Scratch, bytes: &[u8]) -> bool {
    let broadcast = classic::Kind::Broadcast { room: None };
    let mut taken = false;
    for kind in [broadcast, classic::Kind::Request, classic::Kind::Response { to: None }] {
        let read = |scratch: &mut Scratch, bytes: &[u8]| classic::decode(scratch, "/", kind, bytes);
        taken |= stays(scratch, bytes, read, classic::encode);
    }
    let entry = |data: &[u8]| {
        let entry = [("uid", "u".as_bytes()), ("nsp", b"/"), ("type", b"3"), ("data", data)];
        streams::decode(&mut engine::relay::format::scratch(), entry.map(|(field, value)| (field.as_bytes(), value)))
    };
    let _ = (entry(bytes), entry(STANDARD.encode(bytes).as_bytes()));
    if let Ok(session) = streams::decode_session(scratch, STANDARD.encode(bytes).as_bytes()) {
        let written = streams::encode_session(scratch, &session).expect("what was read");
        assert_eq!(streams::decode_session(scratch, written.as_bytes()), Ok(session));
    }
    taken | stays(scratch, bytes, sharded::decode, sharded::encode) | stays(scratch, bytes, sharded::decode, streams::encode_published)
}

fn stays(
    scratch: &mut Scratch,
    bytes: &[u8],
    decode: impl Fn(&mut Scratch, &[u8]) -> Result<Envelope, Fault>,
    encode: impl Fn(&mut Scratch, &Envelope) -> Result<Vec<u8>, Unsendable>,
) -> bool {
    let Ok(envelope) = decode(scratch, bytes) else { return false };
    if envelope.message == Message::Presence {
        return true;
    }
    let written = encode(scratch, &envelope).expect("what was read");
    let again = decode(scratch, &written).expect("our own");
    assert_eq!(encode(scratch, &again).as_ref(), Ok(&written), "{envelope:?}");
    true
}

/// The messages of a set that have this member.
fn lines(set: &str, with: &str) -> Vec<Value> {
    let path = format!("{}/tests/vectors/adapters/{set}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let lines: Vec<Value> = serde_json::from_str(&text).expect("a capture is JSON");
    let lines: Vec<_> = lines.into_iter().filter(|line| line.get(with).is_some()).collect();
    assert!(!lines.is_empty(), "{set} has no {with}");
    lines
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn payload(line: &Value) -> Vec<u8> {
    STANDARD.decode(text(&line["payload_b64"])).expect("base64")
}

fn compare(set: &str, call: &str, written: &[u8], bytes: &[u8]) {
    let otherwise = OTHERWISE.iter().find(|(of, name, _)| *of == set && *name == call);
    let shown = || format!("{set} {call}: {} but {}", String::from_utf8_lossy(written), String::from_utf8_lossy(bytes));
    assert_eq!(written != bytes, otherwise.is_some(), "{}", shown());
}

/// What a client got must be the payload, letter by letter.
fn received(set: &str, line: &Value, envelope: &Envelope) {
    let (Some(frames), Message::Broadcast { packet, request: None, .. }) = (line.get("received"), &envelope.message) else { return };
    let frames = frames.as_array().expect("frames");
    let json = text(&frames[0]).find('[').map(|at| &text(&frames[0])[at..]);
    assert_eq!(json, Some(&*packet.json), "{set} {}", line["in"]);
    let data: Vec<_> = frames[1..].iter().map(|frame| STANDARD.decode(text(&frame["b64"])).expect("base64")).collect();
    assert_eq!(data, packet.attachments, "{set} {}", line["in"]);
}

/// Dates as their texts.
fn plain(decoded: &Value) -> Value {
    match decoded {
        Value::Object(members) => match members.get("$date") {
            Some(date) => date.clone(),
            None => members.iter().map(|(key, value)| (key.clone(), plain(value))).collect(),
        },
        Value::Array(items) => items.iter().map(plain).collect(),
        other => other.clone(),
    }
}

/// A payload with its bytes where they belong.
fn spelled(payload: &Payload) -> Value {
    fn put(value: &Value, attachments: &[Vec<u8>]) -> Value {
        match value {
            Value::Object(members) if members.contains_key("_placeholder") => {
                let number = members["num"].as_u64().expect("a number") as usize;
                json!({"$b64": STANDARD.encode(&attachments[number])})
            }
            Value::Object(members) => members.iter().map(|(key, value)| (key.clone(), put(value, attachments))).collect(),
            Value::Array(items) => items.iter().map(|item| put(item, attachments)).collect(),
            other => other.clone(),
        }
    }
    put(&serde_json::from_str(&payload.json).expect("JSON"), &payload.attachments)
}

/// A message as a list that begins with its name.
fn told(message: &Message) -> Value {
    let options = |Options { rooms, except, flags }: &Options| json!([rooms, except, flags.volatile, flags.compress, flags.timeout_ms]);
    match message {
        Message::Broadcast { packet, options: to, request } => json!(["broadcast", spelled(packet), options(to), request]),
        Message::Join { options: of, rooms } => json!(["join", options(of), rooms]),
        Message::Leave { options: of, rooms } => json!(["leave", options(of), rooms]),
        Message::Disconnect { options: of, close } => json!(["disconnect", options(of), close]),
        Message::JoinOne { request, sid, room } => json!(["join one", request, sid, room]),
        Message::LeaveOne { request, sid, room } => json!(["leave one", request, sid, room]),
        Message::DisconnectOne { request, sid, close } => json!(["disconnect one", request, sid, close]),
        Message::Sockets { request, rooms } => json!(["sockets", request, rooms]),
        Message::AllRooms { request } => json!(["all rooms", request]),
        Message::Fetch { request, options: of } => json!(["fetch", request, options(of)]),
        Message::ServerSideEmit { request, packet } => json!(["server side", request, spelled(packet)]),
        Message::ClientCount { request, count } => json!(["count", request, count]),
        Message::Ack { request, packet } => json!(["ack", request, spelled(packet)]),
        Message::SocketsAnswer { request, ids } => json!(["ids", request, ids]),
        Message::RoomsAnswer { request, rooms } => json!(["rooms", request, rooms]),
        Message::FetchAnswer { request, sockets } => {
            let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
            let sockets = sockets.iter().map(|socket| {
                json!({
                    "id": socket.id, "handshake": json(&socket.handshake_json), "rooms": socket.rooms, "data": json(&socket.data_json),
                })
            });
            json!(["fetched", request, sockets.collect::<Vec<_>>()])
        }
        Message::ServerSideEmitAnswer { request, packet } => json!(["server side answer", request, spelled(packet)]),
        Message::Done { request } => json!(["done", request]),
        Message::Presence => json!("presence"),
    }
}

/// The same of what the adapter's own reader made of it.
fn options(options: &Value) -> Value {
    let names = |names: &Value| -> Vec<Value> {
        let names = names.as_array().map(Vec::as_slice).unwrap_or_default();
        names.iter().map(|name| if name.is_number() { json!(name.to_string()) } else { name.clone() }).collect()
    };
    let flags = &options["flags"];
    let is_volatile = flags["volatile"].as_bool().unwrap_or_default();
    json!([names(&options["rooms"]), names(&options["except"]), is_volatile, flags["compress"], flags["timeout"]])
}

fn expected_classic(kind: classic::Kind<'_>, decoded: &Value) -> (String, Value) {
    let (request, of, packet) = (&decoded["requestId"], options(&decoded["opts"]), &decoded["packet"]);
    let message = match (kind, decoded["type"].as_u64()) {
        (classic::Kind::Broadcast { .. }, _) => json!(["broadcast", decoded[1]["data"], options(&decoded[2]), null]),
        (classic::Kind::Request, Some(0)) => json!(["sockets", request, decoded["rooms"]]),
        (classic::Kind::Request, Some(1)) => json!(["all rooms", request]),
        (classic::Kind::Request, Some(2)) if decoded.get("sid").is_some() => json!(["join one", request, decoded["sid"], decoded["room"]]),
        (classic::Kind::Request, Some(3)) if decoded.get("sid").is_some() => json!(["leave one", request, decoded["sid"], decoded["room"]]),
        (classic::Kind::Request, Some(4)) if decoded.get("sid").is_some() => {
            json!(["disconnect one", request, decoded["sid"], decoded["close"]])
        }
        (classic::Kind::Request, Some(2)) => json!(["join", of, decoded["rooms"]]),
        (classic::Kind::Request, Some(3)) => json!(["leave", of, decoded["rooms"]]),
        (classic::Kind::Request, Some(4)) => json!(["disconnect", of, decoded["close"]]),
        (classic::Kind::Request, Some(5)) => json!(["fetch", request, of]),
        (classic::Kind::Request, Some(6)) => json!(["server side", request, decoded["data"]]),
        (classic::Kind::Request, Some(7)) => json!(["broadcast", packet["data"], of, request]),
        (_, Some(6)) => json!(["server side answer", request, decoded["data"]]),
        (_, Some(8)) => json!(["count", request, decoded["clientCount"]]),
        (_, Some(9)) => json!(["ack", request, packet]),
        (_, None) if decoded["sockets"][0].is_string() => json!(["ids", request, decoded["sockets"]]),
        (_, None) if decoded["sockets"].is_array() => json!(["fetched", request, decoded["sockets"]]),
        (_, None) if decoded["rooms"].is_array() => json!(["rooms", request, decoded["rooms"]]),
        (_, None) => json!(["done", request]),
        (kind, number) => panic!("{kind:?} {number:?}"),
    };
    let uid = if decoded.is_array() { &decoded[0] } else { &decoded["uid"] };
    (uid.as_str().unwrap_or_default().to_owned(), message)
}

fn expected_cluster(kind: &Value, data: &Value) -> Value {
    let (request, of, packet) = (&data["requestId"], options(&data["opts"]), &data["packet"]);
    match kind.as_u64().expect("a number") {
        1 | 2 | 13 => json!("presence"),
        3 => json!(["broadcast", packet["data"], of, request]),
        4 => json!(["join", of, data["rooms"]]),
        5 => json!(["leave", of, data["rooms"]]),
        6 => json!(["disconnect", of, data["close"]]),
        7 => json!(["fetch", request, of]),
        8 => json!(["fetched", request, data["sockets"]]),
        9 => json!(["server side", request, packet]),
        10 => json!(["server side answer", request, packet]),
        11 => json!(["count", request, data["clientCount"]]),
        12 => json!(["ack", request, packet]),
        other => panic!("type {other}"),
    }
}
