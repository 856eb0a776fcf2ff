//! What is counted: one function an operation. Each prepares everything, does the work a few times so that tables and buffers have grown,
//! has it done once more inside of [`counted`], proves that it was done, and says how many times. Only that once is in the count.

use std::hint::black_box;

use engine::Question;
use engine::auth::{self, Key, Verifier};
use engine::config::{AuthMode, DialectKind, Endpoint, Membership, SocketIo};
use engine::frame::Frame;
use engine::ids::EndpointId;
use engine::json::Scratch;
use engine::limits::{Limits, TICK_MS};
use engine::shard::parcel::Parcel;
use engine::wire::http::{self, Head};
use engine::wire::ws::{Decoder, Message, Step};
use engine::wire::{eio, sio};
use serde_json::json;

use super::host::{Client, Host, SECRET, START_UNIX_MS};
use crate::frame;

/// Something that is counted.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) name: &'static str,
    /// What one of it is.
    pub(super) unit: &'static str,
    /// Does it, and says how many times.
    pub(super) run: fn() -> u64,
}

/// All of them, from the bytes to the rooms.
pub(super) const OPERATIONS: [Operation; 23] = [
    Operation { name: "ws-text-32", unit: "masked text frame of 32 bytes read", run: || ws_text(32) },
    Operation { name: "ws-text-4096", unit: "masked text frame of 4 KB read", run: || ws_text(4_096) },
    Operation { name: "http-upgrade", unit: "request head read: a browser's, with a token", run: http_upgrade },
    Operation { name: "socket-io-packet", unit: "Engine.IO and Socket.IO packet read", run: socket_io_packet },
    Operation { name: "json", unit: "JSON message of 189 bytes read, one member looked up", run: json_text },
    Operation { name: "frame", unit: "text frame of 128 bytes encoded", run: frame_of_text },
    Operation { name: "socket-io-event", unit: "Socket.IO event of 128 bytes encoded, as a frame", run: frame_of_event },
    Operation { name: "token", unit: "HS256 token verified", run: token },
    Operation { name: "community-message", unit: "message kept and told to two", run: || said(COMMUNITY, 2) },
    Operation { name: "rooms-message", unit: "message kept and told to two", run: || said(ROOMS, 2) },
    Operation { name: "chat-message", unit: "message told to the other", run: || said(CHAT, 1) },
    Operation { name: "collab-update", unit: "change of a document told to the other", run: || said(COLLAB, 1) },
    Operation { name: "notify-typing", unit: "typing told to the other", run: || said(NOTIFY, 1) },
    Operation { name: "echo-plain", unit: "PING answered", run: echo_plain },
    Operation { name: "echo-socket-io", unit: "typing acknowledged, nobody else in the room", run: echo_socket_io },
    Operation { name: "cast-plain", unit: "delivery, one message to 1,000", run: || cast(COMMUNITY, 1, 1, 1_000, 30) },
    Operation { name: "cast-socket-io", unit: "delivery, one message to 1,000", run: || cast(ROOMS, 1, 1, 1_000, 30) },
    Operation { name: "cast-two-shards", unit: "delivery, one message to 500 on each", run: || cast(COMMUNITY, 2, 1, 1_000, 30) },
    Operation { name: "rooms-plain", unit: "delivery, 100 rooms of 10, all members in turn", run: || cast(COMMUNITY, 1, 100, 10, 1_000) },
    Operation { name: "rooms-socket-io", unit: "delivery, 100 rooms of 10, all members in turn", run: || cast(ROOMS, 1, 100, 10, 1_000) },
    Operation { name: "come-and-go-plain", unit: "connected, token, in a room of 10, gone", run: || come_and_go(COMMUNITY) },
    Operation { name: "come-and-go-socket-io", unit: "connected, token, in a room of 10, gone", run: || come_and_go(ROOMS) },
    Operation { name: "heartbeat", unit: "ping and pong of one of 10,000 idle connections", run: heartbeat },
];

/// What valgrind counts: everything from its beginning to its end. It is found by its name.
#[inline(never)]
pub(super) fn counted(work: &mut dyn FnMut()) {
    work();
    // Not the last call in here, or it would become a jump and this function no caller.
    black_box(());
}

/// Frames, heads and texts in one count.
const TEXTS: u64 = 1_000;
/// Messages of one client in one count, and before it: more than the history keeps.
const MESSAGES: u64 = 200;
const MESSAGES_BEFORE: u64 = 100;
/// Milliseconds between two messages of a client: as fast as it may.
const BETWEEN_MS: u64 = 10;
const CONTENT: &str =
    "Lorem ipsum dolor sit amet, consetetur sadipscing elitr, sed diam nonumy eirmod tempor invidunt ut labore et dolore magna.";
const ROOM: &str = "general";

/// A dialect with what its clients say.
#[derive(Clone, Copy)]
struct Spoken {
    kind: DialectKind,
    path: &'static str,
    /// What a client says when its socket is up; `{token}` and `{room}` stand for its own.
    greetings: &'static [&'static str],
    /// What it says to the room; `{room}` and `{content}`.
    message: &'static str,
}

const COMMUNITY: Spoken = Spoken {
    kind: DialectKind::Community,
    path: "/ws?token={token}",
    greetings: &[r#"{"type":"SUBSCRIBE","payload":{"roomId":"{room}"}}"#],
    message: r#"{"type":"CHAT_MESSAGE","payload":{"roomId":"{room}","content":"{content}"}}"#,
};
const ROOMS: Spoken = Spoken {
    kind: DialectKind::Rooms,
    path: "/socket.io/?EIO=4&transport=websocket",
    greetings: &[r#"40{"token":"{token}"}"#, r#"421["room:join",{"roomId":"{room}"}]"#],
    message: r#"42["message",{"roomId":"{room}","content":"{content}"}]"#,
};
const CHAT: Spoken = Spoken {
    kind: DialectKind::Chat,
    path: "/socket.io/?EIO=4&transport=websocket",
    greetings: &[r#"40{"token":"{token}"}"#, r#"42["join-room",{"room":"{room}"}]"#],
    message: r#"42["message",{"room":"{room}","content":"{content}"}]"#,
};
const COLLAB: Spoken = Spoken {
    kind: DialectKind::Collab,
    path: "/ws?documentId={room}&clientID={user}&token={token}",
    greetings: &[],
    message: r#"{"type":"update","documentId":"{room}","update":"{content}"}"#,
};
/// The back end puts its users into rooms.
const NOTIFY: Spoken = Spoken {
    kind: DialectKind::Notify,
    path: "/socket.io/?EIO=4&transport=websocket&token={token}",
    greetings: &["40"],
    message: r#"42["typing",{"conversationId":"{room}","isTyping":true}]"#,
};

impl Spoken {
    fn host(self, shards: usize) -> Host {
        let bind = if self.kind.is_socket_io() { "/" } else { "/ws" };
        let endpoint = Endpoint::new(self.kind.name(), self.kind, bind);
        Host::new(Endpoint { auto_create: true, client_publish: true, membership: Membership::Open, ..endpoint }, shards)
    }

    /// The head of a client's request, and what it says after it.
    fn bytes(self, user: &str, room: &str) -> (Vec<u8>, Vec<Vec<u8>>) {
        let token = token_of(user);
        let fill = |text: &str| text.replace("{token}", &token).replace("{room}", room).replace("{user}", user);
        let greetings = self.greetings.iter().map(|text| masked(&fill(text)));
        (head(&fill(self.path)), greetings.collect())
    }

    fn connect(self, host: &mut Host, shard: usize, user: &str, room: &str) -> Client {
        let (mut head, mut greetings) = self.bytes(user, room);
        let client = host.connect(shard, &mut head);
        greetings.iter_mut().for_each(|text| host.say(client, text));
        if self.kind == DialectKind::Notify {
            let question = Question::Grant { endpoint: EndpointId(0), room: format!("conversation:{room}"), user: user.into() };
            host.put(0, Parcel::Ask { ask: 1, question });
        }
        client
    }

    fn message(self, room: &str) -> Vec<u8> {
        masked(&self.message.replace("{room}", room).replace("{content}", CONTENT))
    }
}

fn token_of(user: &str) -> String {
    let claims = json!({ "sub": user, "name": user, "iat": START_UNIX_MS / 1_000, "exp": START_UNIX_MS / 1_000 + 86_400 });
    auth::mint(SECRET, &claims).expect("claims are an object")
}

fn masked(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append(frame::TEXT, &[text.as_bytes()], &mut bytes);
    bytes
}

/// What a browser sends.
fn head(target: &str) -> Vec<u8> {
    format!(
        "GET {target} HTTP/1.1\r\nHost: chat.example.com\r\nConnection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
         Accept-Language: en-GB,en;q=0.9\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes()
}

fn ws_text(bytes: usize) -> u64 {
    // A frame is unmasked where it lies, so that each can be read once.
    let frames = || vec![masked(&"x".repeat(bytes)); TEXTS as usize];
    let (mut before, mut frames, mut decoder) = (frames(), frames(), Decoder::default());
    let mut read = |frames: &mut [Vec<u8>]| {
        for frame in frames {
            match decoder.next(frame, Limits::default().message_bytes) {
                Ok(Step::Consumed { message: Some(Message::Text(text)), .. }) if text.len() == bytes => drop(black_box(text)),
                other => panic!("no text but {other:?}"),
            }
        }
    };
    read(&mut before);
    counted(&mut || read(&mut frames));
    TEXTS
}

fn http_upgrade() -> u64 {
    let head = head(&format!("/ws?token={}", token_of("alice")));
    let read = || {
        let Head::Complete { request, .. } = http::parse(black_box(&head), Limits::default().head_bytes) else { panic!("no head") };
        assert!(request.wants_websocket());
        black_box((request.websocket_key().expect("a key"), request.query_value("token").expect("a token")));
    };
    repeated(TEXTS, read)
}

fn socket_io_packet() -> u64 {
    let text = format!(r#"42/chat,17["message",{{"room":"{ROOM}","content":"{CONTENT}"}}]"#);
    repeated(TEXTS, || {
        let Some(eio::Packet::Message(message)) = eio::parse(black_box(&text)) else { panic!("no message") };
        black_box(sio::parse(message).expect("a packet"));
    })
}

fn json_text() -> u64 {
    let text = format!(r#"{{"type":"CHAT_MESSAGE","payload":{{"roomId":"{ROOM}","content":"{CONTENT}"}}}}"#);
    let mut scratch = Scratch::default();
    repeated(TEXTS, || {
        let doc = scratch.parse(black_box(&text)).expect("JSON");
        black_box(doc.root().get("payload").and_then(|payload| payload.get("content")).expect("a member").raw());
    })
}

fn frame_of_text() -> u64 {
    let text = "x".repeat(128);
    repeated(TEXTS, || drop(black_box(Frame::text(EndpointId(0), black_box(&text)))))
}

fn frame_of_event() -> u64 {
    let arguments = format!(r#"{{"content":"{}"}}"#, "x".repeat(114));
    repeated(TEXTS, || {
        let packet = sio::event("/chat", None, "message", black_box(&arguments));
        black_box(Frame::text(EndpointId(0), &packet));
    })
}

fn token() -> u64 {
    let verifier = Verifier::new(Key::Hs256(SECRET.to_vec())).expect("the secret is long enough");
    let token = token_of("alice");
    repeated(MESSAGES, || {
        black_box(verifier.verify(black_box(&token), START_UNIX_MS).expect("a good token"));
    })
}

/// A few times, and then so many that count.
fn repeated(times: u64, mut work: impl FnMut()) -> u64 {
    (0..times / 10).for_each(|_| work());
    counted(&mut || (0..times).for_each(|_| work()));
    times
}

/// One of two in a room speaks, and so many hear each message.
fn said(spoken: Spoken, hear: u64) -> u64 {
    let mut host = spoken.host(1);
    let clients = ["alice", "bob"].map(|user| spoken.connect(&mut host, 0, user, ROOM));
    speak(&mut host, &clients[..1], &[spoken.message(ROOM)], MESSAGES_BEFORE, MESSAGES, hear);
    MESSAGES
}

fn echo_plain() -> u64 {
    let mut host = COMMUNITY.host(1);
    let client = COMMUNITY.connect(&mut host, 0, "alice", ROOM);
    speak(&mut host, &[client], &[masked(r#"{"type":"PING","payload":{}}"#)], MESSAGES_BEFORE, MESSAGES, 1);
    MESSAGES
}

fn echo_socket_io() -> u64 {
    let mut host = ROOMS.host(1);
    let client = ROOMS.connect(&mut host, 0, "alice", ROOM);
    let question = masked(&format!(r#"4217["typing",{{"roomId":"{ROOM}","isTyping":true}}]"#));
    speak(&mut host, &[client], &[question], MESSAGES_BEFORE, MESSAGES, 1);
    MESSAGES
}

/// So many rooms of so many members, spread over the shards, and so many messages of all members in turn; a delivery is what counts.
fn cast(spoken: Spoken, shards: usize, rooms: usize, members: usize, messages: u64) -> u64 {
    /// Whoever comes and goes is told to all others, once a user: with fewer users it takes less long to fill the rooms.
    const CONNECTIONS_PER_USER: usize = 50;
    let mut host = spoken.host(shards);
    let names: Vec<String> = (0..rooms).map(|room| format!("room-{room}")).collect();
    let mut clients = Vec::with_capacity(rooms * members);
    for at in 0..rooms * members {
        let user = format!("user-{}", at / CONNECTIONS_PER_USER);
        clients.push(spoken.connect(&mut host, at % shards, &user, &names[at % rooms]));
    }
    let said: Vec<Vec<u8>> = names.iter().map(|room| spoken.message(room)).collect();
    // Every room keeps as much as it may before it counts.
    let before = rooms as u64 * MESSAGES_BEFORE;
    speak(&mut host, &clients, &said, before, messages, members as u64);
    messages * members as u64
}

/// The clients speak in turn, each the message of its own turn, first so many times and then so many that count. Each message is heard so
/// many times.
fn speak(host: &mut Host, clients: &[Client], said: &[Vec<u8>], before: u64, times: u64, hear: u64) {
    let delivered = host.delivered();
    let mut texts: Vec<Vec<u8>> = said.iter().cycle().take((before + times) as usize).cloned().collect();
    let (first, counting) = texts.split_at_mut(before as usize);
    let mut turns = clients.iter().cycle();
    let mut speak = |texts: &mut [Vec<u8>]| {
        for (text, client) in texts.iter_mut().zip(turns.by_ref()) {
            host.wait(BETWEEN_MS);
            host.say(*client, text);
        }
    };
    speak(first);
    counted(&mut || speak(counting));
    assert_eq!((host.delivered() - delivered, host.refused()), ((before + times) * hear, 0), "messages delivered and refused");
}

fn come_and_go(spoken: Spoken) -> u64 {
    const OTHERS: usize = 9;
    const BEFORE: usize = 20;
    const COUNTING: usize = 100;
    let mut host = spoken.host(1);
    for at in 0..OTHERS {
        spoken.connect(&mut host, 0, &format!("user-{at}"), ROOM);
    }
    let mut newcomers: Vec<_> = (0..BEFORE + COUNTING).map(|at| spoken.bytes(&format!("newcomer-{at}"), ROOM)).collect();
    let delivered = host.delivered();
    let mut visit = |newcomers: &mut [(Vec<u8>, Vec<Vec<u8>>)]| {
        for (head, greetings) in newcomers {
            host.wait(BETWEEN_MS);
            let client = host.connect(0, head);
            greetings.iter_mut().for_each(|text| host.say(client, text));
            host.end(client);
        }
    };
    let (first, counting) = newcomers.split_at_mut(BEFORE);
    visit(first);
    counted(&mut || visit(counting));
    // The newcomer hears that it is welcome and in the room, or the latter only; the others of its coming and going in the room, or also on
    // the host.
    let heard = if spoken.kind.is_socket_io() { 1 + 4 * OTHERS } else { 2 + 2 * OTHERS };
    let expected = ((BEFORE + COUNTING) * heard) as u64;
    assert_eq!((host.delivered() - delivered, host.refused(), host.links()), (expected, 0, OTHERS), "delivered, refused, left");
    COUNTING as u64
}

fn heartbeat() -> u64 {
    const CONNECTIONS: u64 = 10_000;
    let chat = Endpoint { auth: AuthMode::None, ..Endpoint::new("chat", DialectKind::Chat, "/") };
    let mut host = Host::new(chat, 1);
    let head = head("/socket.io/?EIO=4&transport=websocket");
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = host.connect(0, &mut head.clone());
        host.say(client, &mut masked("40"));
        clients.push(client);
    }
    let interval_ms = SocketIo::default().ping_interval_ms + TICK_MS;
    let mut beat = |pongs: &mut [Vec<u8>]| {
        let writes = host.writes;
        host.wait(interval_ms);
        host.look_at_the_clock();
        assert_eq!(host.writes - writes, CONNECTIONS, "everybody is asked");
        clients.iter().zip(pongs).for_each(|(client, pong)| host.say(*client, pong));
    };
    let pongs = || vec![masked("3"); CONNECTIONS as usize];
    let (mut first, mut counting) = (pongs(), pongs());
    beat(&mut first);
    counted(&mut || beat(&mut counting));
    assert_eq!(host.links() as u64, CONNECTIONS, "all live");
    CONNECTIONS
}
