//! The captured sessions of clients of the Node server that broke off and came back. What the captured application said, the back end
//! says here, to the connection's id; what is compared is the stream of packets that the client got, all connections together. Its ids and
//! offsets may be others, but where two were the same in the capture they are the same here.

mod host;

use std::collections::HashMap;
use std::sync::Arc;

use engine::config::{AuthMode, DialectKind};
use engine::ids::{EndpointId, Sid};
use engine::shard::parcel::Parcel;
use engine::{Emit, Question, Selection, Target};
use host::{Got, Host};
use serde_json::Value;

const POLLING: &str = "/socket.io/?EIO=4&transport=polling";
/// The captured application's `join`, which no dialect has, and the answer to it; and the one event with an attachment, which the back end
/// cannot emit. Both are tested elsewhere.
const LEFT_OUT: [&str; 3] = ["420[\"join\"", "430[]", "451-"];

#[test]
fn who_broke_off_comes_back_as_with_node() {
    for name in ["recovery-true", "recovery-false-expired", "recovery-false-no-offset", "recovery-polling"] {
        let text = std::fs::read_to_string(format!("{}/tests/vectors/wire/{name}.json", env!("CARGO_MANIFEST_DIR"))).expect("a capture");
        let capture: Value = serde_json::from_str(&text).expect("JSON");
        let mut replay = Replay::new(&capture);
        let events = capture["events"].as_array().expect("a list");
        for (at, event) in events.iter().enumerate() {
            replay.event(event, &events[at + 1..]);
        }
        replay.hear();
        assert_eq!(replay.heard.len(), replay.expected.len(), "{name}: {:#?}\nbut Node {:#?}", replay.heard, replay.expected);
        let mut same = HashMap::new();
        for (node, ours) in replay.expected.iter().zip(&replay.heard) {
            assert_eq!(split(node).0, split(ours).0, "{name}: {ours}, but Node {node}");
            unify(name, &split(node).1, &split(ours).1, false, &mut same);
        }
    }
}

/// Type and JSON of a packet of the main namespace.
fn split(packet: &str) -> (&str, Value) {
    let (kind, json) = packet.split_at(2.min(packet.len()));
    (kind, serde_json::from_str(json).unwrap_or(Value::Null))
}

/// Holds two values against each other; `is_name` says that their texts are ids or offsets.
fn unify(name: &str, node: &Value, ours: &Value, is_name: bool, same: &mut HashMap<String, String>) {
    match (node, ours) {
        (Value::String(node), Value::String(ours)) if is_name => {
            assert_eq!(same.entry(node.clone()).or_insert_with(|| ours.clone()), ours, "{name}: another {node}");
        }
        (Value::Array(node), Value::Array(ours)) => {
            assert_eq!(node.len(), ours.len(), "{name}: {ours:?}, but Node {node:?}");
            for (at, (one, other)) in node.iter().zip(ours).enumerate() {
                unify(name, one, other, at > 0 && at + 1 == node.len(), same);
            }
        }
        (Value::Object(node), Value::Object(ours)) if node.contains_key("sid") => {
            assert!(node.keys().eq(ours.keys()), "{name}: {ours:?}, but Node {node:?}");
            node.iter().zip(ours).for_each(|((_, one), (_, other))| unify(name, one, other, true, same));
        }
        _ => assert_eq!(node, ours, "{name}"),
    }
}

struct Replay {
    host: Host,
    /// The WebSocket, or the poll that waits.
    client: Option<usize>,
    /// Target of the polling session's requests.
    session: Option<String>,
    ms: u64,
    expected: Vec<String>,
    heard: Vec<String>,
    /// The connections that the server has ended.
    ended: Vec<Value>,
    /// Events that were emitted before their turn, while nobody was there.
    ahead: usize,
}

impl Replay {
    fn new(capture: &Value) -> Replay {
        let mut endpoint = host::endpoint("chat", DialectKind::Chat, "/");
        endpoint.auth = AuthMode::None;
        let options = &capture["server_options"]["connectionStateRecovery"];
        endpoint.recovery_ms = options["maxDisconnectionDuration"].as_u64().expect("a duration");
        let mut config = host::config(2, vec![endpoint]);
        config.socket_io.ping_timeout_ms = 20_000;
        Replay {
            host: Host::new(config, 5),
            client: None,
            session: None,
            ms: 0,
            expected: Vec::new(),
            heard: Vec::new(),
            ended: Vec::new(),
            ahead: 0,
        }
    }

    fn event(&mut self, event: &Value, later: &[Value]) {
        let ms = event["t_ms"].as_u64().expect("a time");
        self.host.advance(ms - self.ms);
        self.ms = ms;
        let is_server = event["dir"] == "server->client";
        match event["ev"].as_str().expect("a kind") {
            "http-request" => self.request(event["start"].as_str().expect("a line"), event["body"].as_str().unwrap_or_default()),
            "ws-frame" if event["opcode"] == 1 && !is_server => self.say(event["data"].as_str().expect("text")),
            "ws-frame" | "http-response" if is_server => packets(event).for_each(|packet| self.expect(packet)),
            "tcp-fin-from-server" => self.ended.push(event["conn"].clone()),
            // The server had not ended it.
            "tcp-close" if !self.ended.contains(&event["conn"]) => self.break_off(later),
            _ => {}
        }
        self.hear();
    }

    fn request(&mut self, line: &str, body: &str) {
        let is_poll = line.contains("transport=polling");
        match (is_poll, line.contains("sid="), line.starts_with("POST")) {
            (false, ..) => {
                self.client = Some(self.host.connect(self.shard(), &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", "")));
            }
            (true, false, _) => {
                let opened = self.ask("GET", POLLING, "");
                let answer =
                    self.host.take(opened).into_iter().find_map(|got| if let Got::Http(_, body) = got { Some(body) } else { None });
                self.session = answer.map(|open| format!("{POLLING}&sid={}", &open[9..29]));
            }
            (true, true, true) if body != "1" => self.say(body),
            _ => {}
        }
    }

    /// Each connection comes to another shard than the one before.
    fn shard(&self) -> usize {
        self.host.clients.len() % 2
    }

    fn ask(&mut self, method: &str, target: &str, body: &str) -> usize {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let client = self.host.connect(self.shard(), &head);
        self.host.settle();
        client
    }

    /// What the client said, with our ids in the place of the captured ones.
    fn say(&mut self, packet: &str) {
        self.hear();
        if LEFT_OUT.iter().any(|left_out| packet.starts_with(left_out)) {
            return;
        }
        let mut packet = packet.to_owned();
        for (node, ours) in self.expected.iter().zip(&self.heard) {
            for (node, ours) in names(node).into_iter().zip(names(ours)) {
                packet = packet.replace(&node, &ours);
            }
        }
        match self.session.clone() {
            Some(session) => drop(self.ask("POST", &session, &packet)),
            None => self.host.say(self.client.expect("a WebSocket"), &packet),
        }
    }

    fn expect(&mut self, packet: &str) {
        if LEFT_OUT.iter().any(|left_out| packet.starts_with(left_out)) || !packet.starts_with('4') {
            return;
        }
        if packet.starts_with("42") {
            match self.ahead {
                0 => self.emit(packet),
                _ => self.ahead -= 1,
            }
        }
        self.expected.push(packet.to_owned());
    }

    /// The back end says what the captured application said.
    fn emit(&mut self, packet: &str) {
        self.hear();
        let (_, event) = split(packet);
        let args = event.as_array().expect("an event");
        let texts: Vec<String> = args[1..args.len() - 1].iter().map(Value::to_string).collect();
        let connected = self.heard.iter().rev().find(|heard| heard.starts_with("40")).expect("a connection");
        let id = split(connected).1["sid"].as_str().and_then(Sid::parse).expect("an id");
        let emit = Arc::new(Emit {
            to: Selection { endpoint: EndpointId(0), targets: vec![Target::Connection(id)], except: Vec::new() },
            event: args[0].as_str().expect("a name").to_owned(),
            args: texts.join(","),
            volatile: false,
            ack_ms: None,
            offset: (self.expected.len() as u64 + 1_000).into(),
            unix_ms: self.host.now.unix_ms,
            attachments: Vec::new(),
            is_elsewhere: false,
        });
        for shard in 0..self.host.shards.len() {
            let now = self.host.now;
            self.host.shards[shard].handle_parcel(now, Parcel::Ask { ask: 1, question: Question::Emit(emit.clone()) });
        }
        self.hear();
    }

    fn break_off(&mut self, later: &[Value]) {
        self.hear();
        if let Some(client) = self.client.take() {
            self.host.hang_up(client);
        }
        self.session = None;
        self.host.settle();
        // What Node told before its next CONNECT was said while nobody was there.
        let told = later.iter().filter(|event| event["dir"] == "server->client").flat_map(packets);
        let missed: Vec<&str> = told.take_while(|packet| !packet.starts_with("40")).filter(|packet| packet.starts_with("42")).collect();
        for packet in missed {
            self.emit(packet);
            self.ahead += 1;
        }
    }

    /// Takes what has come; by polling a poll always waits.
    fn hear(&mut self) {
        loop {
            self.host.settle();
            let got = self.client.map(|client| self.host.take(client)).unwrap_or_default();
            let mut is_over = self.client.is_none();
            for got in got {
                match got {
                    Got::Text(text) => self.heard.push(text),
                    Got::Http(200, body) => {
                        self.heard.extend(body.split('\u{1e}').map(str::to_owned));
                        is_over = true;
                    }
                    _ => {}
                }
            }
            self.heard.retain(|packet| packet.starts_with('4'));
            let Some(session) = self.session.clone().filter(|_| is_over) else { return };
            self.client = Some(self.ask("GET", &session, ""));
        }
    }
}

/// The packets that a captured frame or answer has.
fn packets(event: &Value) -> impl Iterator<Item = &str> {
    let text = event["data"].as_str().or_else(|| event["body"].as_str()).unwrap_or_default();
    let is_text = event["ev"] == "http-response" || event["opcode"] == 1;
    text.split('\u{1e}').filter(move |_| is_text)
}

/// Ids and offsets in a packet, in order.
fn names(packet: &str) -> Vec<String> {
    match split(packet).1 {
        Value::Object(connected) => connected.values().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        Value::Array(event) => event.last().and_then(|offset| offset.as_str().map(str::to_owned)).into_iter().collect(),
        _ => Vec::new(),
    }
}
