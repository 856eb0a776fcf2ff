//! The core and real shards in the place of one of two servers of Node, of which it was captured what they said to each other through Redis and
//! what their clients then got (`tests/vectors/adapters/behaviour.json`): the same words come in, and the same must come out.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Core;
use crate::config::{Adapter, AuthMode, Config, DialectKind, Endpoint, Relay};
use crate::event::{EventTypes, What};
use crate::ids::{EndpointId, ShardId, Sid};
use crate::relay::format::{Payload, msgpack};
use crate::relay::handle;
use crate::relay::request::{Call, Kind, Push};
use crate::relay::words::{Hello, HostId};
use crate::shard::parcel::{Emit, Question, Selection, Target};
use crate::stats::RelayStats;

use crate::relay::host::{Got, Host};

const CAPTURED: &str = include_str!("../../../tests/vectors/adapters/behaviour.json");

/// Server B of the capture: its clients b1, in `/` and `/custom`, and b2, and the relay's core beside the shards.
struct Server {
    host: Host,
    core: Core,
    clients: [usize; 2],
    /// b1's in `/` and `/custom`, and b2's.
    sids: [String; 3],
}

impl Server {
    fn new(adapter: Adapter) -> Server {
        let endpoint =
            |name: &str, bind: &str| Endpoint { auth: AuthMode::None, auto_create: true, ..Endpoint::new(name, DialectKind::Rooms, bind) };
        let endpoints = vec![endpoint("root", "/"), endpoint("custom", "/custom")];
        let settings = Relay { adapter, ..Relay::new("redis://127.0.0.1") };
        let config = Config { relay: Some(settings.clone()), ..Config::new(([127, 0, 0, 1], 0), 3, endpoints) };
        let host = Host::new(config, 7);
        host.world.wanted.set(EventTypes::ALL);
        let own = Hello::new(HostId::new(1), 3, "1", ["root".to_owned(), "custom".to_owned()]);
        let (_, port) = handle::channel(own.clone());
        let core = Core::new(host.world.clone(), Arc::<RelayStats>::default(), &settings, &own, port, [3; 32]);
        let mut server = Server { host, core, clients: [0, 0], sids: Default::default() };
        let head = Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", "");
        server.clients = [0, 1].map(|shard| server.host.connect(shard, &head));
        let connected = [(0, "40", "40{\"sid\":\""), (0, "40/custom,", "40/custom,{\"sid\":\""), (1, "40", "40{\"sid\":\"")];
        server.sids = connected.map(|(client, say, answer)| {
            server.host.say(server.clients[client], say);
            server.exchange();
            let texts = server.host.texts(server.clients[client]);
            texts.iter().find_map(|text| text.strip_prefix(answer)?.get(..20)).expect("it is let in").to_owned()
        });
        for (client, namespace, room) in [(0, "", "room1"), (0, "", "room2"), (1, "", "room2"), (0, "/custom,", "roomC")] {
            server.host.say(server.clients[client], &format!("42{namespace}0[\"room:join\",{{\"roomId\":\"{room}\"}}]"));
            server.exchange();
        }
        server.forget();
        server
    }

    /// Until nothing moves between shards, clients and core any more.
    fn exchange(&mut self) {
        loop {
            self.host.settle();
            let mut has_moved = false;
            for shard in 0..self.host.shards.len() {
                for outward in self.host.shards[shard].poll_outward().into_iter().flatten() {
                    has_moved = true;
                    self.core.handle_outward(self.host.now, ShardId(shard as u8), outward);
                }
            }
            while let Some((shard, parcel)) = self.core.poll_parcel() {
                has_moved = true;
                self.host.shards[usize::from(shard.0)].handle_parcel(self.host.now, parcel);
            }
            if !has_moved {
                return;
            }
        }
    }

    /// What was said until now is not looked at.
    fn forget(&mut self) {
        for client in self.clients {
            self.host.take(client);
        }
        self.said();
        self.host.events.clear();
    }

    /// Another server has published something.
    fn hear(&mut self, channel: &str, payload: Vec<u8>) {
        let push = Push::Message { kind: Kind::Channel, channel: channel.into(), pattern: None, payload };
        self.core.handle_push(self.host.now, push);
        self.exchange();
    }

    /// What was published since the last call: channels and messages.
    fn said(&mut self) -> Vec<(String, Value)> {
        let told = self.core.waiting.take(usize::MAX, u64::MAX, |_| true);
        let calls = told.iter().filter_map(|publication| publication.calls.get(publication.told?));
        calls.map(|call| (text(call.word(1)), decoded(call))).collect()
    }

    /// What a client has got, without what its dialect tells of others' entering and leaving, and without the numbers of acknowledgements;
    /// those it gives back.
    fn got(&mut self, client: usize) -> (Vec<Value>, Vec<String>) {
        let (mut frames, mut acks) = (Vec::new(), Vec::new());
        for got in self.host.take(self.clients[client]) {
            match got {
                Got::Text(text) if text.contains("[\"user:") => {}
                Got::Text(text) => {
                    let (text, ack) = without_ack(&text);
                    acks.extend(ack);
                    frames.push(Value::from(text));
                }
                Got::Binary(data) => frames.push(json!({"b64": STANDARD.encode(data)})),
                Got::Close(code, _) => frames.push(json!({"closed": code.unwrap_or(1005)})),
                Got::End(_) => {}
                other => panic!("{other:?}"),
            }
        }
        (frames, acks)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("a channel's name")
}

/// The text of an event without the number of its acknowledgement, and that number.
fn without_ack(text: &str) -> (String, Option<String>) {
    let Some((head, rest)) = text.split_once('[').filter(|(head, _)| head.starts_with("42") || head.starts_with("45")) else {
        return (text.to_owned(), None);
    };
    // After the count of attachments, and after the namespace.
    let start = head.rfind(['-', ',']).map_or(2, |at| at + 1);
    let number = &head[start..];
    (format!("{}[{rest}", &head[..start]), (!number.is_empty()).then(|| number.to_owned()))
}

/// A message as JSON, binary data in it as `{"$b64"}`.
fn decoded(call: &Call) -> Value {
    let payload = call.word(2);
    if payload.first() == Some(&b'{') {
        return serde_json::from_slice(payload).expect("JSON");
    }
    let Payload { json, attachments } = msgpack::to_json(payload).expect("MessagePack");
    let mut value = serde_json::from_str(&json).expect("JSON");
    fill(&mut value, &attachments);
    value
}

fn fill(value: &mut Value, attachments: &[Vec<u8>]) {
    if value.get("_placeholder").is_some() {
        let number = value["num"].as_u64().expect("a number") as usize;
        *value = json!({"$b64": STANDARD.encode(&attachments[number])});
        return;
    }
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, attachments)),
        Value::Object(members) => members.values_mut().for_each(|member| fill(member, attachments)),
        _ => {}
    }
}

/// A message with other ids in the place of those of the capture.
fn replaced(bytes: &[u8], pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (old, new) in pairs {
        assert_eq!(old.len(), new.len());
        if let Some(at) = bytes.windows(old.len()).position(|part| !old.is_empty() && part == old.as_bytes()) {
            bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
        }
    }
    bytes
}

/// What differs where both are right: who answers, what is known of a client, the order of lists that have none. Of rooms, those of users go, which
/// Node has none of.
fn comparable(mut answer: Value) -> Value {
    if let Some(answer) = answer.as_object_mut() {
        answer.remove("uid");
    }
    let inner = if answer.get("data").is_some_and(|data| data.get("requestId").is_some()) { &mut answer["data"] } else { &mut answer };
    let by_text = |list: &mut Value| {
        let list = list.as_array_mut().expect("a list");
        list.retain(|name| !name.as_str().is_some_and(|name| name.starts_with('\u{1}')));
        list.sort_by_key(Value::to_string);
    };
    if inner.get("rooms").is_some() {
        by_text(&mut inner["rooms"]);
    }
    if let Some(sockets) = inner.get_mut("sockets").filter(|sockets| sockets[0].is_object()) {
        for socket in sockets.as_array_mut().expect("a list") {
            by_text(&mut socket["rooms"]);
            let handshake = socket["handshake"].as_object().expect("an object");
            let mut keys: Vec<_> = handshake.keys().cloned().collect();
            keys.sort();
            let (query, url) = (handshake["query"].clone(), handshake["url"].clone());
            socket["handshake"] = json!({"keys": keys, "query": query, "url": url});
            socket["data"] = json!(socket["data"].is_object());
        }
        by_text(sockets);
    }
    // Nobody here answers for a program.
    for key in ["data", "packet"] {
        if answer["type"] == 6 && answer.get(key).is_some() {
            answer[key] = Value::Null;
        }
    }
    if answer["type"] == 10 {
        answer["data"]["packet"] = Value::Null;
    }
    answer
}

#[test]
fn what_servers_of_node_say_does_here_what_it_does_there() {
    let captured: Vec<Value> = serde_json::from_str(CAPTURED).expect("JSON");
    let mut tried = 0;
    for (adapter, form) in [
        ("classic", Adapter::Classic),
        ("classic-specific", Adapter::Classic),
        ("sharded", Adapter::Sharded),
        ("sharded-private", Adapter::Sharded),
    ] {
        let mut server = Server::new(form);
        for word in captured.iter().filter(|word| word["adapter"] == adapter) {
            tried += 1;
            let what = format!("{adapter} {}", word["in"]);
            let of = |name: &str| word["sids"][name].as_str().unwrap_or_default();
            let sids = server.sids.clone();
            let pairs = [(of("b1"), &*sids[0]), (of("b1c"), &*sids[1]), (of("b2"), &*sids[2])];
            let pairs: Vec<_> = pairs.into_iter().filter(|(old, _)| !old.is_empty()).collect();
            let payload = STANDARD.decode(word["payload_b64"].as_str().expect("base64")).expect("base64");
            let channel = String::from_utf8(replaced(word["channel"].as_str().expect("a name").as_bytes(), &pairs)).expect("UTF-8");
            server.hear(&channel, replaced(&payload, &pairs));

            for (client, name) in ["b1", "b2"].into_iter().enumerate() {
                let (frames, acks) = server.got(client);
                let wanted = word[name].as_array().expect("a list").iter();
                let wanted: Vec<Value> =
                    wanted.map(|frame| frame.as_str().map_or_else(|| frame.clone(), |text| without_ack(text).0.into())).collect();
                assert_eq!(frames, wanted, "{what}: {name}");
                let is_binary = what.contains("binary");
                for ack in acks.iter().filter(|_| !(name == "b2" && what.contains("timeout"))) {
                    if is_binary {
                        server.host.say(server.clients[client], &format!("461-{ack}[{{\"_placeholder\":true,\"num\":0}},\"more\"]"));
                        server.host.frame(server.clients[client], 2, &[7, 7]);
                    } else {
                        server.host.say(server.clients[client], &format!("43{ack}[\"from-{name}\",\"more\"]"));
                    }
                    server.exchange();
                }
            }

            // Our dialects tell others of coming and going, which is no answer.
            let is_answer = |(_, said): &(String, Value)| !said.is_array() && said["type"] != 3;
            let said: Vec<_> = server.said().into_iter().filter(is_answer).collect();
            let wanted = word["answers"].as_array().expect("a list");
            let mut wanted: Vec<(String, Value)> = wanted
                .iter()
                .map(|answer| {
                    let text = String::from_utf8(pairs.iter().fold(answer["decoded"].to_string().into_bytes(), |text, pair| {
                        let mut text = text;
                        while text.windows(20).any(|part| part == pair.0.as_bytes()) {
                            text = replaced(&text, &[*pair]);
                        }
                        text
                    }));
                    let decoded = serde_json::from_str(&text.expect("UTF-8")).expect("JSON");
                    (answer["channel"].as_str().expect("a name").to_owned(), comparable(decoded))
                })
                .collect();
            let mut said: Vec<_> = said.into_iter().map(|(channel, said)| (channel, comparable(said))).collect();
            // Which client acknowledged first is chance, but how many were asked is said before.
            for list in [&mut said, &mut wanted] {
                if let Some(acks) = list.get_mut(1..) {
                    acks.sort_by_key(|(_, said)| said.to_string());
                }
            }
            assert_eq!(
                said.iter().map(|said| &said.1).collect::<Vec<_>>(),
                wanted.iter().map(|wanted| &wanted.1).collect::<Vec<_>>(),
                "{what}"
            );
            for ((own, said), (node, _)) in said.iter().zip(&wanted) {
                // To the one who asks, which all of them listen to; Node does so only with an option.
                let is_asker = own.starts_with(node.as_str()) && said["type"] != 6;
                assert!(own == node || (adapter == "classic" && is_asker), "{what}: {own}, not {node}");
            }
            if what.contains("serverSideEmit") {
                let told: Vec<_> = server.host.events.iter().filter(|event| matches!(event.what, What::ServerEvent { .. })).collect();
                assert_eq!(told.len(), 1, "{what}: the program is told once");
            }
            server.host.events.clear();
        }
    }
    assert_eq!(tried, captured.len());
}

/// What is done here where server A did it.
fn question(what: &str, adapter: Adapter, sids: &Value) -> Option<Question> {
    let (root, custom) = (EndpointId(0), EndpointId(1));
    let rooms = |names: &[&str]| names.iter().map(|name| Target::Room((*name).into())).collect::<Vec<_>>();
    let to = |endpoint, targets: Vec<Target>, except: Vec<Target>| Selection { endpoint, targets, except };
    let emit = |to, event: &str, args: &str| Emit::new(to, event, args, 1, 0);
    let hello = |to, args: &str| Some(Question::Emit(Arc::new(emit(to, "hello", args))));
    let asking = |to, args: &str, ms| Some(Question::Emit(Arc::new(Emit { ack_ms: Some(ms), ..emit(to, "ask", args) })));
    let all = || to(root, vec![Target::all()], Vec::new());
    let is_classic = adapter == Adapter::Classic;
    match what {
        "10-emit-all" => hello(all(), r#"1,"2",{"3":[true]}"#),
        "11-emit-room" => hello(to(root, rooms(&["room1"]), Vec::new()), r#""r1""#),
        "12-emit-rooms" => hello(to(root, rooms(&["room2", "room1", "room2"]), Vec::new()), r#""r12""#),
        "13-emit-except" => hello(to(root, vec![Target::all()], rooms(&["room2"])), r#""notr2""#),
        "14-emit-room-except" => hello(to(root, rooms(&["room1"]), rooms(&["room2"])), r#""r1-not-r2""#),
        "17-emit-to-socket-id" => {
            let sid = Sid::parse(sids["b1"].as_str()?)?;
            hello(to(root, vec![Target::Connection(sid)], Vec::new()), r#""private""#)
        }
        "19-emit-volatile" => Some(Question::Emit(Arc::new(Emit { volatile: true, ..emit(all(), "hello", r#""v""#) }))),
        "24-emit-custom-nsp" => hello(to(custom, vec![Target::all()], Vec::new()), r#""nsp""#),
        "25-emit-custom-nsp-room" => hello(to(custom, rooms(&["roomC"]), Vec::new()), r#""nsp room""#),
        "26-emit-unicode-room" => hello(to(root, rooms(&["réunion #1/ü"]), Vec::new()), r#""u""#),
        "38-broadcast-ack" if is_classic => asking(all(), "1", 1_000),
        "39-broadcast-ack-room" => asking(to(root, rooms(&["room2"]), Vec::new()), "2", 1_000).filter(|_| is_classic),
        "41-broadcast-ack-timeout" => asking(to(root, rooms(&["room2"]), Vec::new()), "3", 300),
        "37-broadcast-ack" => asking(all(), "1", 1_000),
        "38-broadcast-ack-room" => asking(to(root, rooms(&["room2"]), Vec::new()), "2", 1_000),
        "40-broadcast-ack-timeout" => asking(to(root, rooms(&["room2"]), Vec::new()), "3", 300),
        "48-disconnectSockets-custom-nsp" | "41-disconnectSockets-custom-nsp" => {
            Some(Question::Disconnect { from: to(custom, rooms(&["roomC"]), Vec::new()), transport: false })
        }
        "49-disconnectSockets-close" | "42-disconnectSockets-close" => Some(Question::Disconnect { from: all(), transport: true }),
        _ => None,
    }
}

#[test]
fn what_the_program_wants_is_said_as_servers_of_node_say_it() {
    let captured: Vec<Value> = serde_json::from_str(CAPTURED).expect("JSON");
    for (adapter, form, uid_length) in [("classic", Adapter::Classic, 6), ("sharded", Adapter::Sharded, 16)] {
        let mut server = Server::new(form);
        let mut tried = 0;
        for word in captured.iter().filter(|word| word["adapter"] == adapter) {
            let what = word["in"].as_str().expect("a name");
            let Some(question) = question(what, form, &word["sids"]) else { continue };
            tried += 1;
            assert!(!server.core.handle_question(server.host.now, 5, &question), "nobody is there who would answer");
            let [(channel, mut said)] = <[_; 1]>::try_from(server.said()).expect("one message");
            let payload = STANDARD.decode(word["payload_b64"].as_str().expect("base64")).expect("base64");
            let mut wanted = decoded(&Call::new("PUBLISH").arg("").arg(payload));
            assert_eq!(channel, word["channel"].as_str().expect("a name"), "{adapter} {what}");
            // Who says it, and the name of a request: random, and of the form that Node has.
            for place in ["/uid", "/0", "/requestId", "/data/requestId"] {
                let Some(own) = said.pointer(place).and_then(Value::as_str).map(str::to_owned) else { continue };
                let is_id = own.len() == uid_length || place.ends_with("requestId");
                assert!(is_id && (own.starts_with('~') || place.ends_with("requestId")), "{adapter} {what}: {own}");
                *said.pointer_mut(place).expect("it is there") = Value::Null;
                *wanted.pointer_mut(place).expect("Node has it too") = Value::Null;
            }
            assert_eq!(said, wanted, "{adapter} {what}");
        }
        assert!(tried >= 15, "{tried}");
    }
}
