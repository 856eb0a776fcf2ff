//! Whole sessions of real clients. Their polls and pongs are not replayed but made anew: as in every client a poll is under way whenever
//! none is answered, and a ping is answered when it comes.
//!
//! What is compared is the stream of packets of each session and namespace, however it is cut into polls.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::config::Config;
use engine::wire::{eio3, sio};
use serde_json::Value;

use crate::host::{Got, Host};
use crate::{capture, config, without_sids};

/// The sessions of this file.
pub(crate) const REPLAYED: [&str; 13] = [
    "websocket-only",
    "polling-only",
    "polling-upgrade",
    "polling-upgrade-busy",
    "namespaces-and-auth-failure",
    "heartbeat",
    "connect-timeout",
    "server-disconnect-ns",
    "client-v3",
    "client-v2-refused",
    "client-v2-eio3-polling",
    "client-v2-eio3-polling+websocket",
    "client-v2-eio3-websocket",
];

/// What belongs to the captured application and not to the protocol; left out on both sides, with its attachments.
const OF_THE_APPLICATION: [(&str, &str); 9] = [
    ("[\"welcome\"", "its greeting; ours is `auth`, and comes later"),
    ("[\"auth\"", "our greeting"),
    ("[\"tick\"", "told by a timer of its own"),
    ("[\"ask-me\"", "makes it ask"),
    ("[\"question\"", "what it asks"),
    ("[\"answer\"", "and is answered"),
    ("[\"kick\"", "makes it disconnect the client"),
    ("{\"message\":\"not authorized\"", "its middleware"),
    ("{\"message\":\"nope\"", "its middleware"),
];

#[test]
fn sessions_go_as_they_went_with_node() {
    for name in REPLAYED {
        let capture = capture(name);
        let mut replay = Replay::new(&capture);
        for event in capture["events"].as_array().expect("a list") {
            replay.event(event);
        }
        replay.pass(1_000);
        replay.compare(name);
    }
}

/// What a packet of either server is compared as, under its session and namespace.
type Streams = BTreeMap<(String, String), Vec<String>>;

/// One session as its client sees it.
#[derive(Default)]
struct Session {
    /// Our id of it.
    sid: String,
    /// The poll under way.
    poll: Option<usize>,
    polls: bool,
    /// True exactly when its client speaks Engine.IO 3, whose bodies are translated on both sides.
    is_old: bool,
    /// The event being said, and how many of its attachments are to come.
    saying: Saying,
}

#[derive(Default)]
struct Saying {
    missing: usize,
    /// False exactly when the attachments belong to something that is left out.
    passes: bool,
    /// Said when all attachments are: the same event once more, for its acknowledgement.
    again: Option<String>,
    attachments: Vec<Vec<u8>>,
}

/// A packet on its way.
enum Packet {
    Text(String),
    Binary(Vec<u8>),
}

struct Replay {
    host: Host,
    /// By the captured id; a WebSocket without one is named by its connection until it is greeted.
    sessions: HashMap<String, Session>,
    /// Session of each captured connection.
    named: HashMap<u64, String>,
    /// Our client for each captured WebSocket.
    sockets: HashMap<u64, usize>,
    elapsed_ms: u64,
    /// A namespace that the application refuses, or ends by itself.
    ends_namespaces: bool,
    expected: Streams,
    got: Streams,
    /// Namespace of the last text, and attachments to leave out, for each stream of a session: ours and theirs.
    last: HashMap<(bool, String), (String, usize)>,
    pings: [i64; 2],
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn with_options(options: &Value) -> Config {
    let mut config = config();
    for endpoint in &mut config.endpoints {
        endpoint.eio3 = options["allowEIO3"] == true;
    }
    let number = |name: &str, default| options[name].as_u64().unwrap_or(default);
    let socket_io = &mut config.socket_io;
    socket_io.ping_interval_ms = number("pingInterval", socket_io.ping_interval_ms);
    socket_io.ping_timeout_ms = number("pingTimeout", socket_io.ping_timeout_ms);
    socket_io.connect_timeout_ms = number("connectTimeout", socket_io.connect_timeout_ms);
    config
}

impl Replay {
    fn new(capture: &Value) -> Replay {
        let ends_namespaces = capture["events"].to_string().contains("[\\\"kick\\\"");
        Replay {
            host: Host::new(with_options(&capture["server_options"]), 1),
            sessions: HashMap::new(),
            named: HashMap::new(),
            sockets: HashMap::new(),
            elapsed_ms: 0,
            ends_namespaces,
            expected: Streams::new(),
            got: Streams::new(),
            last: HashMap::new(),
            pings: [0; 2],
        }
    }

    fn event(&mut self, event: &Value) {
        let at_ms = event["t_ms"].as_u64().unwrap_or(self.elapsed_ms);
        self.pass(at_ms.saturating_sub(self.elapsed_ms));
        let conn = event["conn"].as_u64().expect("every event has a connection");
        let is_client = event["dir"] == "client->server";
        match (text(&event["ev"]), is_client) {
            ("http-request", _) => self.request(conn, event),
            ("http-response", _) => self.response(conn, event),
            ("ws-frame", true) => self.client_frame(conn, event),
            ("ws-frame", false) => self.server_frame(conn, event),
            _ => {}
        }
        self.listen();
    }

    /// Lets time pass.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(20) {
            let step = 20.min(ms);
            self.host.advance(step);
            self.listen();
        }
        self.elapsed_ms += ms;
    }

    fn request(&mut self, conn: u64, event: &Value) {
        let start = text(&event["start"]);
        let captured = start.split_once("&sid=").map(|(_, rest)| rest[..20].to_owned());
        let name = captured.clone().unwrap_or_else(|| format!("connection {conn}"));
        self.named.insert(conn, name.clone());
        let session = self.sessions.entry(name.clone()).or_default();
        let is_websocket = start.contains("transport=websocket");
        session.is_old = start.contains("EIO=3");
        if captured.is_some() && !is_websocket && start.starts_with("GET") {
            session.polls = true;
            return;
        }
        let start = captured.map_or_else(|| start.to_owned(), |captured| start.replace(&captured, &session.sid));
        let mut head = format!("{start}\r\n");
        for (name, value) in event["headers"].as_object().expect("headers") {
            if name != "content-length" {
                head.push_str(&format!("{name}: {}\r\n", text(value)));
            }
        }
        if start.starts_with("POST") {
            let body = self.as_new(&name, text(&event["body"]));
            return self.post(&name, &head, &body);
        }
        let client = self.host.connect(conn as usize % 2, &format!("{head}\r\n"));
        self.host.settle();
        if is_websocket {
            self.sockets.insert(conn, client);
        } else {
            self.sessions.entry(name).or_default().poll = Some(client);
        }
    }

    /// A body of a session as protocol 4 has it.
    fn as_new(&self, name: &str, body: &str) -> String {
        let is_old = self.sessions.get(name).is_some_and(|session| session.is_old);
        // Errors are the same in both.
        if is_old && !body.starts_with('{') { eio3::read_text(body).expect("a body of Engine.IO 3") } else { body.to_owned() }
    }

    fn post(&mut self, name: &str, head: &str, body: &str) {
        let mut said = Vec::new();
        for packet in body.split('\u{1e}').filter(|packet| *packet != "3") {
            let packet = match packet.strip_prefix('b') {
                Some(base64) => Packet::Binary(STANDARD.decode(base64).expect("base64")),
                None => Packet::Text(packet.to_owned()),
            };
            said.extend(self.translated(name, packet).into_iter().map(|packet| match packet {
                Packet::Text(text) => text,
                Packet::Binary(bytes) => format!("b{}", STANDARD.encode(bytes)),
            }));
        }
        if !said.is_empty() {
            let body = said.join("\u{1e}");
            let is_old = self.sessions[name].is_old;
            self.send_post(head, if is_old { eio3::write(&body) } else { body }.as_str());
        }
    }

    fn send_post(&mut self, head: &str, body: &str) {
        let client = self.host.connect(0, &format!("{head}content-length: {}\r\n\r\n{body}", body.len()));
        self.host.settle();
        assert_eq!(self.host.take(client).first(), Some(&Got::Http(200, "ok".to_owned())), "POST {body}");
    }

    fn response(&mut self, conn: u64, event: &Value) {
        let name = self.named[&conn].clone();
        let body = text(&event["body"]);
        if body == "ok" || text(&event["start"]).contains(" 101 ") {
            return;
        }
        let body = &*self.as_new(&name, body);
        if body.starts_with("0{") {
            self.greeted(&name, &body[9..29], conn);
        }
        let name = self.named[&conn].clone();
        for packet in body.split('\u{1e}') {
            match packet.strip_prefix('b') {
                Some(base64) => self.hear(false, &name, &Packet::Binary(STANDARD.decode(base64).expect("base64"))),
                None => self.hear(false, &name, &Packet::Text(packet.to_owned())),
            }
        }
    }

    /// From now on the session has the captured id.
    fn greeted(&mut self, name: &str, captured: &str, conn: u64) {
        self.listen();
        let session = self.sessions.remove(name).unwrap_or_default();
        self.sessions.insert(captured.to_owned(), session);
        self.named.insert(conn, captured.to_owned());
        let heard: Vec<_> = self.got.keys().filter(|(session, _)| session == name).cloned().collect();
        for key in heard {
            let packets = self.got.remove(&key).unwrap_or_default();
            self.got.insert((captured.to_owned(), key.1), packets);
        }
    }

    fn client_frame(&mut self, conn: u64, event: &Value) {
        let client = self.sockets[&conn];
        match event["opcode"].as_u64() {
            Some(8) => {
                self.host.frame(client, 8, b"");
                self.host.settle();
            }
            Some(1) if event["data"] == "3" => {}
            Some(opcode) => {
                let packet = match opcode {
                    1 => Packet::Text(text(&event["data"]).to_owned()),
                    _ => Packet::Binary(STANDARD.decode(text(&event["b64"])).expect("base64")),
                };
                for packet in self.translated(&self.named[&conn].clone(), packet) {
                    match packet {
                        Packet::Text(text) => self.host.say(client, &text),
                        Packet::Binary(bytes) => self.host.frame(client, 2, &bytes),
                    }
                    self.host.settle();
                }
            }
            None => panic!("a frame has an opcode"),
        }
    }

    fn server_frame(&mut self, conn: u64, event: &Value) {
        let name = self.named[&conn].clone();
        match event["opcode"].as_u64() {
            Some(1) => {
                let data = text(&event["data"]);
                if data.starts_with("0{") {
                    self.greeted(&name, &data[9..29], conn);
                }
                let name = self.named[&conn].clone();
                self.hear(false, &name, &Packet::Text(data.to_owned()));
            }
            Some(2) => self.hear(false, &name, &Packet::Binary(STANDARD.decode(text(&event["b64"])).expect("base64"))),
            _ => self.expected.entry((name, String::new())).or_default().push("close".to_owned()),
        }
    }

    /// What our client says for what the captured one said. An `echo` that wants an answer is two events here.
    fn translated(&mut self, name: &str, packet: Packet) -> Vec<Packet> {
        let saying = &mut self.sessions.entry(name.to_owned()).or_default().saying;
        let said = match packet {
            Packet::Binary(bytes) => {
                saying.missing = saying.missing.saturating_sub(1);
                if !saying.passes {
                    return Vec::new();
                }
                saying.attachments.push(bytes.clone());
                let mut out = vec![Packet::Binary(bytes)];
                if saying.missing == 0 {
                    let attachments = std::mem::take(&mut saying.attachments);
                    if let Some(again) = saying.again.take() {
                        out.push(Packet::Text(again));
                        out.extend(attachments.into_iter().map(Packet::Binary));
                    }
                }
                return out;
            }
            Packet::Text(text) => text,
        };
        let Some(Ok(packet)) = said.strip_prefix('4').map(sio::parse) else { return vec![Packet::Text(said)] };
        let refused = packet.kind == sio::Kind::Connect && packet.namespace.starts_with("/private");
        let passes = !refused && !is_of_the_application(packet.payload);
        *saying = Saying { missing: packet.attachments, passes, ..Saying::default() };
        if !passes {
            return Vec::new();
        }
        let Some(arguments) = packet.payload.strip_prefix("[\"echo\"") else { return vec![Packet::Text(said)] };
        let (head, _) = said.split_at(said.len() - packet.payload.len());
        let plain = head.strip_suffix(packet.id_text).unwrap_or(head);
        let mut out = vec![Packet::Text(format!("{plain}[\"message\"{arguments}"))];
        if !packet.id_text.is_empty() {
            let again = format!("{head}[\"message-with-ack\",\"ack\"{arguments}");
            if packet.attachments == 0 { out.push(Packet::Text(again)) } else { saying.again = Some(again) }
        }
        out
    }

    /// Takes what our clients have got, answers pings, and polls again.
    fn listen(&mut self) {
        self.host.settle();
        for (conn, client) in self.sockets.clone() {
            let name = self.named[&conn].clone();
            for got in self.host.take(client) {
                match got {
                    Got::Text(text) => {
                        if text == "2" {
                            self.host.say(client, "3");
                        }
                        self.hear(true, &name, &Packet::Text(text));
                    }
                    Got::Binary(bytes) => self.hear(true, &name, &Packet::Binary(bytes)),
                    Got::Close(..) => self.got.entry((name.clone(), String::new())).or_default().push("close".to_owned()),
                    Got::Http(..) | Got::End(_) => {}
                    other => panic!("{other:?} on a WebSocket"),
                }
            }
        }
        for name in self.sessions.keys().cloned().collect::<Vec<_>>() {
            self.poll(&name);
        }
        self.host.settle();
    }

    fn poll(&mut self, name: &str) {
        if let Some(poll) = self.sessions[name].poll {
            let Some(body) = self.host.take(poll).into_iter().find_map(|got| if let Got::Http(_, body) = got { Some(body) } else { None })
            else {
                return;
            };
            self.sessions.entry(name.to_owned()).or_default().poll = None;
            let body = self.as_new(name, &body);
            self.polled(name, &body);
        }
        let upgrades = self.sockets.keys().any(|conn| self.named[conn] == name);
        let session = self.sessions.entry(name.to_owned()).or_default();
        if session.polls && !(upgrades && self.got.keys().any(|(session, _)| session == name)) {
            let version = if session.is_old { 3 } else { 4 };
            let target = format!("GET /socket.io/?EIO={version}&transport=polling&sid={} HTTP/1.1\r\nHost: test\r\n\r\n", session.sid);
            let poll = self.host.connect(1, &target);
            self.sessions.entry(name.to_owned()).or_default().poll = Some(poll);
            self.host.settle();
        }
    }

    fn polled(&mut self, name: &str, body: &str) {
        if body.starts_with("0{") {
            self.sessions.entry(name.to_owned()).or_default().sid = body[9..29].to_owned();
        }
        for packet in body.split('\u{1e}') {
            if packet == "2" {
                let sid = self.sessions[name].sid.clone();
                self.send_post(&format!("POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: test\r\n"), "3");
            }
            match packet.strip_prefix('b') {
                Some(base64) => self.hear(true, name, &Packet::Binary(STANDARD.decode(base64).expect("base64"))),
                None => self.hear(true, name, &Packet::Text(packet.to_owned())),
            }
        }
    }

    /// A packet of Node (`false`) or of ours.
    fn hear(&mut self, ours: bool, name: &str, packet: &Packet) {
        let last = self.last.entry((ours, name.to_owned())).or_default();
        let shown = match packet {
            Packet::Binary(_) if last.1 > 0 => {
                last.1 -= 1;
                return;
            }
            Packet::Binary(bytes) => format!("binary {bytes:?}"),
            Packet::Text(text) => {
                let parsed = text.strip_prefix('4').and_then(|rest| sio::parse(rest).ok());
                let ends = self.ends_namespaces && parsed.is_some_and(|packet| packet.kind == sio::Kind::Disconnect);
                *last = (parsed.map_or(String::new(), |packet| packet.namespace.to_owned()), 0);
                if ends || parsed.is_some_and(|packet| is_of_the_application(packet.payload)) {
                    last.1 = parsed.map_or(0, |packet| packet.attachments);
                    return;
                }
                match text.as_str() {
                    "2" => return self.pings[usize::from(ours)] += 1,
                    // Nothing, said to end a poll.
                    "6" => return,
                    // The last poll of a session that is gone.
                    _ if ours && text.starts_with("{\"code\":1,") => return,
                    _ => without_sids(text).replace("[\"message-back\"", "[\"echoed\""),
                }
            }
        };
        let stream = if ours { &mut self.got } else { &mut self.expected };
        stream.entry((name.to_owned(), last.0.clone())).or_default().push(shown);
    }

    fn compare(&self, name: &str) {
        for (key, expected) in &self.expected {
            let got = self.got.get(key).map(Vec::as_slice).unwrap_or_default();
            assert_eq!(got, expected, "{name}: session {}, namespace {:?}", key.0, key.1);
        }
        assert_eq!(self.got.len(), self.expected.len(), "{name}: {:?}", self.got);
        // One more or less may have fitted in at the end.
        let [node, ours] = self.pings;
        assert!((node - ours).abs() <= 1, "{name}: {node} pings there and {ours} here");
    }
}

fn is_of_the_application(payload: &str) -> bool {
    OF_THE_APPLICATION.iter().any(|(start, _)| payload.starts_with(start))
}
