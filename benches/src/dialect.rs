//! What a client says and hears in the two measured dialects, as text: the upgrade, the joining, the messages. Everything is recognised
//! in place by its first bytes; nothing is parsed as JSON, because the generator must be cheaper than the server it measures.

use memchr::memmem;

use crate::frame;
use crate::verify::Mark;

/// How the measured endpoint talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Plain WebSocket, `{"type": T, "payload": {...}}`.
    Community,
    /// Socket.IO over its WebSocket transport, namespace `/`.
    Rooms,
}

/// What a text frame of the server means to a connection.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    /// Rooms: Engine.IO is open and waits for the token.
    Identify,
    /// The connection is accepted and may join.
    Welcome,
    /// It is in its room.
    Joined,
    /// One of our own messages.
    Message(Mark),
    /// The answer to an echo; where the dialect numbers them, with the number.
    Reply(Option<u32>),
    /// Rooms: the server asks whether we are there.
    Heartbeat,
    /// Something was refused.
    Refused,
    /// Others joining, status, typing: not ours to count.
    Other,
}

/// The acknowledgement id of joining. Echoes count from 1.
const JOIN_ACK: u32 = 0;

impl Dialect {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "community" => Some(Self::Community),
            "rooms" => Some(Self::Rooms),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Community => "community",
            Self::Rooms => "rooms",
        }
    }

    /// Where clients of the dialect connect unless told otherwise.
    pub(crate) fn default_path(self) -> &'static str {
        match self {
            Self::Community => "/api/community/ws",
            Self::Rooms => "/socket.io/",
        }
    }

    /// The HTTP request that asks for the upgrade.
    pub(crate) fn upgrade(self, host: &str, path: &str, token: &str) -> String {
        let query = match self {
            Self::Community => format!("token={token}"),
            Self::Rooms => "EIO=4&transport=websocket".to_owned(),
        };
        format!(
            "GET {path}?{query} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dXJpbmdjYXN0LWJlbmNoLg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
    }

    pub(crate) fn identify(token: &str, out: &mut Vec<u8>) {
        frame::append(frame::TEXT, &[b"40{\"token\":\"", token.as_bytes(), b"\"}"], out);
    }

    pub(crate) fn heartbeat(out: &mut Vec<u8>) {
        frame::append(frame::TEXT, &[b"3"], out);
    }

    pub(crate) fn join(self, room: &str, out: &mut Vec<u8>) {
        let (head, tail): (&[u8], &[u8]) = match self {
            Self::Community => (br#"{"type":"SUBSCRIBE","payload":{"roomId":""#, br#""}}"#),
            Self::Rooms => (br#"420["room:join",{"roomId":""#, br#""}]"#),
        };
        frame::append(frame::TEXT, &[head, room.as_bytes(), tail], out);
    }

    /// A message to everybody in the room; its content is the mark and then the filler.
    pub(crate) fn message(self, room: &str, mark: Mark, filler: &[u8], out: &mut Vec<u8>) {
        let (head, tail): (&[u8], &[u8]) = match self {
            Self::Community => (br#"{"type":"CHAT_MESSAGE","payload":{"roomId":""#, br#""}}"#),
            Self::Rooms => (br#"42["message",{"roomId":""#, br#""}]"#),
        };
        frame::append(frame::TEXT, &[head, room.as_bytes(), br#"","content":""#, &mark.write(), filler, tail], out);
    }

    /// A question that the server answers to nobody else.
    pub(crate) fn echo(self, room: &str, sequence: u32, out: &mut Vec<u8>) {
        match self {
            Self::Community => frame::append(frame::TEXT, &[br#"{"type":"PING","payload":{}}"#], out),
            Self::Rooms => {
                let head = format!(r#"42{}["typing",{{"roomId":""#, u64::from(sequence) + 1);
                frame::append(frame::TEXT, &[head.as_bytes(), room.as_bytes(), br#"","isTyping":true}]"#], out);
            }
        }
    }

    /// What a text frame means. `hint` is where the last mark stood.
    pub(crate) fn hear(self, text: &[u8], hint: &mut usize) -> Heard {
        match self {
            Self::Community => hear_community(text, hint),
            Self::Rooms => hear_rooms(text, hint),
        }
    }
}

fn hear_community(text: &[u8], hint: &mut usize) -> Heard {
    if let Some(mark) = Mark::find(text, hint) {
        return Heard::Message(mark);
    }
    match quoted_after(text, b"\"type\"") {
        b"PONG" => Heard::Reply(None),
        b"SUBSCRIBED" => Heard::Joined,
        b"USER_JOINED" if memmem::find(text, b"\"message\"").is_some() => Heard::Welcome,
        b"ERROR" => Heard::Refused,
        _ => Heard::Other,
    }
}

fn hear_rooms(text: &[u8], hint: &mut usize) -> Heard {
    match text {
        [b'4', b'2', ..] => hear_event(text, hint),
        [b'4', b'3', rest @ ..] => hear_acknowledgement(rest),
        [b'4', b'0', ..] => Heard::Welcome,
        [b'4', b'1' | b'4', ..] => Heard::Refused,
        [b'0', ..] => Heard::Identify,
        b"2" => Heard::Heartbeat,
        _ => Heard::Other,
    }
}

fn hear_event(text: &[u8], hint: &mut usize) -> Heard {
    // Nearly all that is heard is messages, and to search for the name would cost as much as to read one.
    if text.starts_with(br#"42["message","#) {
        return Mark::find(text, hint).map_or(Heard::Other, Heard::Message);
    }
    match quoted_after(text, b"42") {
        b"message" => Mark::find(text, hint).map_or(Heard::Other, Heard::Message),
        b"error" => Heard::Refused,
        _ => Heard::Other,
    }
}

fn hear_acknowledgement(rest: &[u8]) -> Heard {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let id: Option<u32> = std::str::from_utf8(&rest[..digits]).ok().and_then(|id| id.parse().ok());
    let accepted = memmem::find(rest, b"\"success\":true").is_some();
    match id {
        Some(JOIN_ACK) if accepted => Heard::Joined,
        Some(JOIN_ACK) => Heard::Refused,
        Some(id) if accepted => Heard::Reply(Some(id - 1)),
        // A refused event is told by the event `error` as well, and counted there.
        _ => Heard::Other,
    }
}

/// The first quoted word behind `name`, empty where there is none.
fn quoted_after<'a>(text: &'a [u8], name: &[u8]) -> &'a [u8] {
    let Some(at) = memmem::find(text, name) else { return b"" };
    text[at + name.len()..].split(|byte| *byte == b'"').nth(1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(dialect: Dialect, text: &str) -> Heard {
        dialect.hear(text.as_bytes(), &mut 0)
    }

    fn mark() -> (Mark, String) {
        let mark = Mark { sender: 1, sequence: 2, stamp: 3 };
        (mark, String::from_utf8(mark.write().to_vec()).expect("ASCII"))
    }

    #[test]
    fn community_frames_are_told_apart() {
        let (mark, text) = mark();
        let message = format!(r#"{{"type":"CHAT_MESSAGE","payload":{{"id":"x","content":"{text}xx"}}}}"#);
        for (frame, meaning) in [
            (r#"{"type":"USER_JOINED","payload":{"userId":"u","message":"Connected to WebSocket server"}}"#, Heard::Welcome),
            (r#"{"type":"USER_JOINED","payload":{"userId":"u","userName":"u","roomId":"r"}}"#, Heard::Other),
            (r#"{"type":"SUBSCRIBED","payload":{"roomId":"r","online":["u"]}}"#, Heard::Joined),
            (r#"{ "type" : "PONG", "payload": {}}"#, Heard::Reply(None)),
            (r#"{"type":"ERROR","payload":{"code":"FORBIDDEN"}}"#, Heard::Refused),
            (message.as_str(), Heard::Message(mark)),
            ("", Heard::Other),
        ] {
            assert_eq!(hear(Dialect::Community, frame), meaning, "{frame}");
        }
    }

    #[test]
    fn rooms_packets_are_told_apart() {
        let (mark, text) = mark();
        let message = format!(r#"42["message",{{"id":"x","content":"{text}"}}]"#);
        for (packet, meaning) in [
            (r#"0{"sid":"s","upgrades":[]}"#, Heard::Identify),
            (r#"40{"sid":"s"}"#, Heard::Welcome),
            (r#"44{"message":"Invalid authentication token"}"#, Heard::Refused),
            (r#"430[{"success":true,"room":{},"history":[]}]"#, Heard::Joined),
            (r#"430[{"success":false,"error":{"message":"Failed to join room"}}]"#, Heard::Refused),
            (r#"4312[{"success":true}]"#, Heard::Reply(Some(11))),
            (r#"4312[{"success":false}]"#, Heard::Other),
            (r#"42["user:status",{"userId":"u","status":"online"}]"#, Heard::Other),
            (r#"42["error",{"message":"Rate limit exceeded"}]"#, Heard::Refused),
            ("2", Heard::Heartbeat),
            ("41", Heard::Refused),
            (message.as_str(), Heard::Message(mark)),
        ] {
            assert_eq!(hear(Dialect::Rooms, packet), meaning, "{packet}");
        }
    }
}
