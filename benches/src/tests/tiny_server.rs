//! A server that is just enough of both dialects to be measured: a thread per connection, tungstenite for the protocol, and on demand
//! one kind of mischief. Writes go through a channel and a thread of their own, so that a broadcast never waits for a receiver.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tungstenite::Message;
use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::frame::{Frame, coding::Data, coding::OpCode};

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mischief {
    None,
    /// Each receiver misses every n-th message.
    DropEvery(u64),
    /// Each receiver gets every n-th message twice.
    DoubleEvery(u64),
    /// Each receiver gets every n-th message after the one behind it.
    SwapEvery(u64),
    /// Everybody gets everything, whatever the room.
    Astray,
    /// A receiver is cut after n messages.
    HangUpAfter(u64),
}

/// Messages to one receiver: whether it is counted by the mischief, and the text.
type Line = (bool, String);

#[derive(Default)]
struct Rooms(Mutex<HashMap<String, Vec<Sender<Line>>>>);

/// A running server. Its threads end with the process.
pub(super) struct TinyServer {
    address: SocketAddr,
}

impl TinyServer {
    pub(super) fn start(mischief: Mischief) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let rooms = Arc::new(Rooms::default());
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let rooms = Arc::clone(&rooms);
                thread::spawn(move || serve(socket, mischief, &rooms));
            }
        });
        Self { address }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

fn serve(socket: TcpStream, mischief: Mischief, rooms: &Rooms) {
    let mut path = String::new();
    let writing = socket.try_clone().expect("a second handle");
    #[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
    let look = |request: &Request, response: Response| {
        path = request.uri().to_string();
        Ok(response)
    };
    let Ok(mut reading) = tungstenite::accept_hdr(socket, look) else { return };
    let (out, lines) = channel();
    thread::spawn(move || write_all(writing, mischief, &lines));
    let community = path.starts_with("/api/community/ws?token=e");
    tell(&out, if community { welcome() } else { r#"0{"sid":"s","upgrades":[],"pingInterval":25000}"#.to_owned() });
    while let Ok(message) = reading.read() {
        let Message::Text(text) = message else { continue };
        if community { hear_community(&text, &out, mischief, rooms) } else { hear_rooms(&text, &out, mischief, rooms) }
    }
}

fn welcome() -> String {
    json!({"type": "USER_JOINED", "payload": {"userId": "u", "message": "Connected to WebSocket server"}}).to_string()
}

fn hear_community(text: &str, out: &Sender<Line>, mischief: Mischief, rooms: &Rooms) {
    let frame: Value = serde_json::from_str(text).expect("the client writes JSON");
    let room = frame["payload"]["roomId"].as_str().unwrap_or_default();
    match frame["type"].as_str() {
        Some("SUBSCRIBE") => {
            rooms.enter(room, mischief, out);
            tell(out, json!({"type": "SUBSCRIBED", "payload": {"roomId": room, "online": []}}).to_string());
        }
        Some("PING") => drop(out.send((true, json!({"type": "PONG", "payload": {}}).to_string()))),
        Some("CHAT_MESSAGE") => rooms.cast(room, mischief, &frame.to_string()),
        other => panic!("unexpected {other:?}"),
    }
}

fn hear_rooms(text: &str, out: &Sender<Line>, mischief: Mischief, rooms: &Rooms) {
    if text.starts_with("40{\"token\":\"e") {
        return tell(out, r#"40{"sid":"s"}"#.to_owned());
    }
    let rest = text.strip_prefix("42").expect("an event");
    let (id, body) = rest.split_at(rest.find('[').expect("an array"));
    let event: Value = serde_json::from_str(body).expect("the client writes JSON");
    let room = event[1]["roomId"].as_str().unwrap_or_default();
    match event[0].as_str() {
        Some("room:join") => {
            rooms.enter(room, mischief, out);
            tell(out, format!("43{id}{}", json!([{"success": true, "history": []}])));
        }
        Some("typing") => drop(out.send((true, format!("43{id}{}", json!([{"success": true}]))))),
        Some("message") => rooms.cast(room, mischief, &format!("42{event}")),
        other => panic!("unexpected {other:?}"),
    }
}

/// What no mischief touches: greetings and joinings.
fn tell(out: &Sender<Line>, text: String) {
    // The writer ends with its socket.
    let _ = out.send((false, text));
}

impl Rooms {
    fn enter(&self, room: &str, mischief: Mischief, out: &Sender<Line>) {
        self.0.lock().expect("no holder panics").entry(key(room, mischief)).or_default().push(out.clone());
    }

    fn cast(&self, room: &str, mischief: Mischief, text: &str) {
        for member in &self.0.lock().expect("no holder panics")[&key(room, mischief)] {
            let _ = member.send((true, text.to_owned()));
        }
    }
}

fn key(room: &str, mischief: Mischief) -> String {
    if mischief == Mischief::Astray { String::new() } else { room.to_owned() }
}

/// Writes one connection's lines, with the mischief.
fn write_all(mut socket: TcpStream, mischief: Mischief, lines: &Receiver<Line>) {
    let mut count = 0;
    let mut held: Option<String> = None;
    while let Ok((counted, text)) = lines.recv() {
        count += u64::from(counted);
        let hits = |every: u64| counted && count % every == 0;
        let mut texts = match mischief {
            Mischief::DropEvery(every) if hits(every) => vec![],
            Mischief::DoubleEvery(every) if hits(every) => vec![text.clone(), text],
            Mischief::SwapEvery(every) if hits(every) => {
                held = Some(text);
                continue;
            }
            Mischief::HangUpAfter(limit) if counted && count > limit => {
                let _ = socket.shutdown(Shutdown::Both);
                return;
            }
            _ => vec![text],
        };
        texts.extend(held.take());
        for text in texts {
            let mut bytes = Vec::new();
            Frame::message(text, OpCode::Data(Data::Text), true).format(&mut bytes).expect("writes to memory");
            if socket.write_all(&bytes).is_err() {
                return;
            }
        }
    }
}
