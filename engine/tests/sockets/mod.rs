//! A running engine and clients with real sockets on 127.0.0.1. Every wait has an upper bound that is far beyond what a loaded machine
//! needs: a test says what happens, and never how fast.
#![expect(unreachable_pub, reason = "a module of a test binary, which exports nothing")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use engine::config::{AuthMode, Config, DialectKind, Io, Membership};
use engine::ids::{ShardId, Sid};
use engine::{Answer, Engine, Handover, Notice, PassedListener, StartError};
use serde_json::Value;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

use crate::host;

/// The longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// community and rooms without tokens; an anonymous user's id is his connection's id, which tells the shard.
pub fn config(io: Io, shards: usize) -> Config {
    let mut community = host::endpoint("community", DialectKind::Community, "/api/community/ws");
    (community.auth, community.membership, community.client_publish) = (AuthMode::None, Membership::Open, true);
    let mut rooms = host::endpoint("rooms", DialectKind::Rooms, "/");
    rooms.auth = AuthMode::None;
    let mut config = host::config(shards, vec![community, rooms]);
    config.io = io;
    config.limits.rate_messages = u32::MAX;
    config.limits.handshakes_per_address = u32::MAX;
    config
}

/// A running engine.
pub struct Live {
    pub engine: Engine,
    pub notices: Receiver<Notice>,
}

impl Live {
    /// `None`, and a word about it, where the kernel forbids io_uring.
    pub fn start(config: Config) -> Option<Live> {
        Live::start_on(config, Vec::new())
    }

    /// On sockets that were bound before.
    pub fn start_on(config: Config, passed: Vec<PassedListener>) -> Option<Live> {
        // In a thread of its own: the ring that is tried out at the start is taken apart in the name of the thread that made it, and
        // interrupts the system call it is in by then.
        let started = std::thread::spawn(move || engine::start_on(config, &passed)).join().expect("the engine starts or says why not");
        match started {
            Ok((engine, notices)) => Some(Live { engine, notices }),
            Err(StartError::Io(error)) => {
                eprintln!("SKIPPED: no io_uring here: {error}");
                None
            }
            Err(error) => panic!("the engine does not start: {error}"),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.engine.local_addr()
    }

    pub fn stream(&self) -> TcpStream {
        connect(self.address())
    }

    pub fn community(&self) -> Client {
        Client::open(self.address(), "/api/community/ws").greeted()
    }

    /// A community client whose connection the kernel has given to this shard.
    pub fn community_on(&self, shard: u8) -> Client {
        let found = (0..200).map(|_| self.community()).find(|client| client.shard() == ShardId(shard));
        found.expect("one of 200 connections comes to each shard")
    }

    pub fn rooms(&self) -> Client {
        let mut client = Client::open(self.address(), "/socket.io/?EIO=4&transport=websocket");
        client.hear_start("0{");
        client.say("40");
        let connected = client.hear_start("40");
        let connected: Value = serde_json::from_str(&connected[2..]).expect("CONNECT brings JSON");
        client.sid = Sid::parse(connected["sid"].as_str().expect("a sid"));
        client
    }

    pub fn notice(&self) -> Notice {
        self.notices.recv_timeout(PATIENCE).expect("a notice comes")
    }

    pub fn handover(&self) -> Handover {
        match self.notice() {
            Notice::Handover(handover) => handover,
            other => panic!("a connection should be handed over, not {other:?}"),
        }
    }

    /// What each shard answers, in the shards' order.
    pub fn answers(&self, ask: u64) -> Vec<Answer> {
        let mut answers: Vec<_> = (0..self.engine.stats().len()).map(|_| self.answer(ask)).collect();
        answers.sort_by_key(|(shard, _)| *shard);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    pub fn answer(&self, asked: u64) -> (ShardId, Answer) {
        match self.notice() {
            Notice::Answer { ask, shard, answer } if ask == asked => (shard, answer),
            other => panic!("an answer to {asked} should come, not {other:?}"),
        }
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the public port accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a live socket");
    stream.set_nodelay(true).expect("a live socket");
    stream
}

/// A WebSocket client.
pub struct Client {
    socket: WebSocket<TcpStream>,
    pub sid: Option<Sid>,
}

impl Client {
    pub fn open(address: SocketAddr, target: &str) -> Client {
        let opened = tungstenite::client(format!("ws://{address}{target}"), connect(address));
        let (socket, _) = opened.unwrap_or_else(|error| panic!("the upgrade to {target} is refused: {error}"));
        Client { socket, sid: None }
    }

    /// Takes the greeting of community, whose user id is an anonymous connection's id.
    pub fn greeted(mut self) -> Client {
        let greeting = self.hear_type("USER_JOINED");
        self.sid = Sid::parse(greeting["payload"]["userId"].as_str().expect("a user id"));
        self
    }

    pub fn sid(&self) -> Sid {
        self.sid.expect("greeted")
    }

    pub fn shard(&self) -> ShardId {
        self.sid().shard()
    }

    pub fn say(&mut self, text: &str) {
        self.socket.send(Message::text(text)).expect("the connection takes a message");
    }

    /// The next text, or the code and end that came instead.
    fn next(&mut self) -> Result<String, Option<u16>> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Ok(text.to_string()),
                Ok(Message::Close(frame)) => return Err(frame.map(|frame| u16::from(frame.code))),
                Ok(_) => {}
                Err(error) => panic!("nothing is heard: {error}"),
            }
        }
    }

    pub fn hear(&mut self) -> String {
        self.next().unwrap_or_else(|code| panic!("closed with {code:?}"))
    }

    /// The next text with this beginning; others are passed over.
    pub fn hear_start(&mut self, start: &str) -> String {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let text = self.hear();
            if text.starts_with(start) {
                return text;
            }
        }
        panic!("{start} does not come");
    }

    /// The next JSON message of this type; others are passed over.
    pub fn hear_type(&mut self, wanted: &str) -> Value {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let said: Value = serde_json::from_str(&self.hear()).expect("the server sends JSON");
            if said["type"] == wanted {
                return said;
            }
        }
        panic!("{wanted} does not come");
    }

    pub fn subscribe(&mut self, room: &str) {
        self.say(&serde_json::json!({"type": "SUBSCRIBE", "payload": {"roomId": room}}).to_string());
        self.hear_type("SUBSCRIBED");
    }

    pub fn chat(&mut self, room: &str, content: &str) {
        self.say(&serde_json::json!({"type": "CHAT_MESSAGE", "payload": {"roomId": room, "content": content}}).to_string());
    }

    pub fn hear_chat(&mut self) -> (String, String) {
        let said = self.hear_type("CHAT_MESSAGE");
        let word = |name: &str| said["payload"][name].as_str().expect("a text").to_owned();
        (word("roomId"), word("content"))
    }

    /// A question that is answered at once; how long it took.
    pub fn ping(&mut self) -> Duration {
        let begun = Instant::now();
        self.say(r#"{"type":"PING"}"#);
        self.hear_type("PONG");
        begun.elapsed()
    }

    /// Reads to the end; the code of the close frame.
    pub fn hear_close(&mut self) -> Option<CloseCode> {
        loop {
            match self.next() {
                Ok(_) => {}
                Err(code) => return code.map(CloseCode::from),
            }
        }
    }

    /// True exactly when the transport ends, with or without a close frame.
    pub fn ends(&mut self) -> bool {
        loop {
            match self.socket.read() {
                Ok(_) => {}
                Err(tungstenite::Error::Io(error)) => return error.kind() != ErrorKind::WouldBlock,
                Err(_) => return true,
            }
        }
    }

    pub fn peer(&self) -> SocketAddr {
        self.socket.get_ref().local_addr().expect("a connected socket")
    }

    pub fn into_stream(self) -> TcpStream {
        self.socket.get_ref().try_clone().expect("a descriptor is left")
    }
}

/// A masked text frame; the mask of zeros leaves the bytes as they are.
pub fn frame(text: &str) -> Vec<u8> {
    assert!(text.len() < 126, "short enough for one byte of length");
    [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat()
}

/// Clients that send without a pause and read what comes, until they are told to end or far too much time has passed.
pub struct Flood {
    going: Arc<AtomicBool>,
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    const BOUND: Duration = Duration::from_secs(10);
    /// Frames in one write: more than the engine reads at once.
    const FRAMES: usize = 8_000;

    pub fn start(live: &Live, clients: usize) -> Flood {
        let mut flood = Flood { going: Arc::new(AtomicBool::new(true)), streams: Vec::new(), threads: Vec::new() };
        for _ in 0..clients {
            let stream = live.community().into_stream();
            let twin = || stream.try_clone().expect("a descriptor is left");
            let (writer, reader, going) = (twin(), twin(), flood.going.clone());
            flood.threads.push(std::thread::spawn(move || pour(&writer, &going)));
            flood.threads.push(std::thread::spawn(move || drink(&reader)));
            flood.streams.push(stream);
        }
        let received = || live.engine.stats().iter().map(|shard| shard.endpoints[0].received.read()).sum::<u64>();
        while flood.going.load(Ordering::Acquire) && received() < Flood::FRAMES as u64 {
            std::thread::sleep(Duration::from_millis(1));
        }
        flood
    }

    /// Ends it; it must have gone on until now.
    pub fn end(self) {
        let lasted = self.going.swap(false, Ordering::AcqRel);
        for stream in &self.streams {
            // A stream whose peer has cut it is noticed by its writer.
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in self.threads {
            thread.join().expect("a flooding thread ends well");
        }
        assert!(lasted, "the flood went on meanwhile");
    }
}

fn pour(mut writer: &TcpStream, going: &AtomicBool) {
    let block = frame(r#"{"type":"PING"}"#).repeat(Flood::FRAMES);
    let begun = Instant::now();
    while begun.elapsed() < Flood::BOUND && writer.write_all(&block).is_ok() {}
    // Whoever ends the flood has said so before; else it dried up by itself.
    going.store(false, Ordering::Release);
}

fn drink(mut reader: &TcpStream) {
    let mut glass = vec![0; 256 * 1024];
    while reader.read(&mut glass).is_ok_and(|n| n > 0) {}
}
