//! A WebSocket client that does what it is told, right or wrong: raw bytes on a `TcpStream`, frames built by hand.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::{PATIENCE, Server, token};

/// First byte of a whole text frame.
pub(crate) const TEXT: u8 = 0x81;
/// Where Socket.IO is spoken on a WebSocket.
pub(crate) const SOCKET_IO: &str = "/socket.io/?EIO=4&transport=websocket";
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// What came next on a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A frame: opcode and payload.
    Frame(u8, Vec<u8>),
    /// The end without a further frame, by FIN or RST.
    End,
}

/// One client.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
}

/// The head of an upgrade request.
pub(crate) fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// One frame whose payload is masked, as clients must; `first` holds FIN, the reserved bits and the opcode.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
    let mut bytes = header(first, 0x80, payload.len() as u64);
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A frame header with the shortest form of the length; `mask` is 0x80 or 0.
pub(crate) fn header(first: u8, mask: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => bytes.push(mask | short),
        (_, Ok(medium)) => {
            bytes.push(mask | 126);
            bytes.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            bytes.push(mask | 127);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
    }
    bytes
}

impl Raw {
    /// A TCP connection that has said nothing yet.
    pub(crate) fn connect(address: SocketAddr) -> Raw {
        let stream = TcpStream::connect(address).expect("the server listens");
        Raw::over(stream)
    }

    pub(crate) fn over(stream: TcpStream) -> Raw {
        stream.set_read_timeout(Some(PATIENCE)).expect("a valid time");
        stream.set_write_timeout(Some(PATIENCE)).expect("a valid time");
        stream.set_nodelay(true).expect("a TCP socket");
        Raw { stream, unread: Vec::new() }
    }

    /// An upgraded connection.
    pub(crate) fn open(server: &Server, path: &str) -> Raw {
        let mut raw = Raw::connect(server.public);
        raw.send(upgrade(path).as_bytes());
        assert_eq!(raw.status(), Some(101), "upgrade of {path}");
        raw
    }

    /// A user of `/talk` who is in the room: entering by the query has no answer of its own, so it is asked for.
    pub(crate) fn talk(server: &Server, user: &str, room: &str) -> Raw {
        let mut raw = Raw::open(server, &format!("/talk?token={}&roomId={room}", token(user)));
        assert!(raw.text().contains("USER_JOINED"), "the greeting");
        raw.say(&format!(r#"{{"type":"SUBSCRIBE","payload":{{"roomId":"{room}"}}}}"#));
        raw.text_with("SUBSCRIBED");
        raw
    }

    /// A client of `/guests`, where nobody is asked for a token.
    pub(crate) fn guest(server: &Server) -> Raw {
        let mut guest = Raw::open(server, SOCKET_IO);
        assert!(guest.text().starts_with('0'));
        guest.say("40/guests,");
        guest.text_with("40/guests,");
        guest
    }

    /// Sends; a connection that the server has cut already is no failure here, what it said is read afterwards.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            assert!(ended(error.kind()), "sending: {error}");
        }
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.send(&frame(TEXT, text.as_bytes()));
    }

    /// Reads more bytes; false at the end.
    fn fill(&mut self) -> bool {
        let mut part = [0; 16 * 1024];
        match self.stream.read(&mut part) {
            Ok(0) => false,
            Ok(length) => {
                self.unread.extend_from_slice(&part[..length]);
                true
            }
            Err(error) if ended(error.kind()) => false,
            Err(error) => panic!("nothing came: {error}; unread so far: {:?}", String::from_utf8_lossy(&self.unread)),
        }
    }

    /// Status of the HTTP answer, whose head and body (by `Content-Length`) are taken away; `None` if the connection was cut instead.
    pub(crate) fn status(&mut self) -> Option<u16> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.unread[..end]).to_ascii_lowercase();
                self.unread.drain(..end + 4);
                let body = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
                while self.unread.len() < body && self.fill() {}
                self.unread.drain(..body.min(self.unread.len()));
                return head.split(' ').nth(1)?.parse().ok();
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The next frame.
    pub(crate) fn next(&mut self) -> Next {
        loop {
            if let Some((opcode, start, length)) = self.frame_bounds()
                && self.unread.len() >= start + length
            {
                let payload = self.unread[start..start + length].to_vec();
                self.unread.drain(..start + length);
                return Next::Frame(opcode, payload);
            }
            if !self.fill() {
                return Next::End;
            }
        }
    }

    /// Opcode, start of the payload and its length, once the header is complete.
    fn frame_bounds(&self) -> Option<(u8, usize, usize)> {
        let [first, second, rest @ ..] = self.unread.as_slice() else { return None };
        let (start, length) = match second & 0x7f {
            126 => (4, u16::from_be_bytes(rest.get(..2)?.try_into().ok()?).into()),
            127 => (10, usize::try_from(u64::from_be_bytes(rest.get(..8)?.try_into().ok()?)).ok()?),
            short => (2, short.into()),
        };
        Some((first & 0xf, start, length))
    }

    /// The next text frame; heartbeats before it are answered.
    pub(crate) fn text(&mut self) -> String {
        loop {
            match self.next() {
                Next::Frame(1, payload) => return String::from_utf8(payload).expect("the server sends UTF-8"),
                Next::Frame(PING, payload) => self.send(&frame(0x80 | PONG, &payload)),
                other => panic!("a text frame was due, not {other:?}"),
            }
        }
    }

    /// Reads text frames until one contains `part`.
    pub(crate) fn text_with(&mut self, part: &str) -> String {
        loop {
            let text = self.text();
            if text.contains(part) {
                return text;
            }
        }
    }

    /// Reads to the end: the code of the close frame, `None` if there was none.
    pub(crate) fn close_code(&mut self) -> Option<u16> {
        loop {
            match self.next() {
                Next::Frame(CLOSE, payload) => return payload.first_chunk().map(|code| u16::from_be_bytes(*code)),
                Next::Frame(..) => {}
                Next::End => return None,
            }
        }
    }

    /// True exactly when the connection ends (within [`PATIENCE`]; else the test fails).
    pub(crate) fn ends(&mut self) -> bool {
        while self.next() != Next::End {}
        true
    }
}

fn ended(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted | ErrorKind::NotConnected)
}

/// Innocent users of one room, opened before the mischief: enough of them that both shards hold some.
pub(crate) struct Neighbours {
    members: Vec<Raw>,
    said: u32,
}

impl Neighbours {
    pub(crate) fn move_in(server: &Server) -> Neighbours {
        let members = (0..6).map(|number| Raw::talk(server, &format!("neighbour{number}"), "neighbours")).collect();
        let mut neighbours = Neighbours { members, said: 0 };
        neighbours.assert_well();
        neighbours
    }

    /// Each says something that all hear.
    pub(crate) fn assert_well(&mut self) {
        for speaker in 0..self.members.len() {
            self.said += 1;
            let content = format!("all well {}", self.said);
            self.members[speaker].say(&format!(r#"{{"type":"CHAT_MESSAGE","payload":{{"roomId":"neighbours","content":"{content}"}}}}"#));
            for member in &mut self.members {
                member.text_with(&content);
            }
        }
    }
}
