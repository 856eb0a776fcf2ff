//! Engine.IO protocol 4 as it looks inside WebSocket text messages: one character of type, then the data. Binary messages carry no type
//! character and so never come here. Which packets a client may send when is the session's business, not this file's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::frame;
use crate::json;

/// One packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packet<'a> {
    /// `0`: the server's greeting. Node ignores it from a client.
    Open,
    /// `1`: the peer ends the session.
    Close,
    /// `2`, with `probe` during an upgrade.
    Ping(&'a str),
    /// `3`, likewise.
    Pong(&'a str),
    /// `4`: a Socket.IO packet.
    Message(&'a str),
    /// `5`: the end of an upgrade.
    Upgrade,
    /// `6`: nothing.
    Noop,
}

/// Reads one text message; `None` when it is empty or of an unknown type, for which a session is closed.
pub fn parse(text: &str) -> Option<Packet<'_>> {
    let data = text.get(1..)?;
    Some(match text.as_bytes()[0] {
        b'0' => Packet::Open,
        b'1' => Packet::Close,
        b'2' => Packet::Ping(data),
        b'3' => Packet::Pong(data),
        b'4' => Packet::Message(data),
        b'5' => Packet::Upgrade,
        b'6' => Packet::Noop,
        _ => return None,
    })
}

/// Between the packets of one long-polling body.
pub const SEPARATOR: char = '\u{1e}';

/// Adds a packet to a long-polling body; a binary one as `b` and base64.
pub fn push_packet(body: &mut String, packet: frame::Packet<'_>) {
    if !body.is_empty() {
        body.push(SEPARATOR);
    }
    match packet {
        frame::Packet::Text(text) => body.push_str(text),
        frame::Packet::Binary(bytes) => {
            body.push('b');
            STANDARD.encode_string(bytes, body);
        }
    }
}

/// The attachment that a packet of a long-polling body is, `b` and base64; `None` when it is something else.
pub fn attachment(packet: &str) -> Option<Vec<u8>> {
    STANDARD.decode(packet.strip_prefix('b')?).ok()
}

/// The body of an error answer: the codes and texts of the protocol.
pub fn error(code: u8) -> &'static str {
    match code {
        0 => r#"{"code":0,"message":"Transport unknown"}"#,
        1 => r#"{"code":1,"message":"Session ID unknown"}"#,
        2 => r#"{"code":2,"message":"Bad handshake method"}"#,
        4 => r#"{"code":4,"message":"Forbidden"}"#,
        5 => r#"{"code":5,"message":"Unsupported protocol version"}"#,
        _ => r#"{"code":3,"message":"Bad request"}"#,
    }
}

/// The greeting. Its keys are exactly these five, in this order: clients and test suites compare.
pub fn open_packet(sid: &str, upgrades: &[&str], ping_interval_ms: u64, ping_timeout_ms: u64, max_payload: usize) -> String {
    let mut names = String::from("[");
    for (at, upgrade) in upgrades.iter().enumerate() {
        if at > 0 {
            names.push(',');
        }
        json::quote(&mut names, upgrade);
    }
    names.push(']');
    let greeting = json::Object::with_capacity(128)
        .str("sid", sid)
        .raw("upgrades", &names)
        .num("pingInterval", ping_interval_ms)
        .num("pingTimeout", ping_timeout_ms)
        .num("maxPayload", max_payload as u64);
    format!("0{}", greeting.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read_and_nothing_else() {
        let samples = [
            ("0{\"sid\":\"x\"}", Packet::Open),
            ("1", Packet::Close),
            ("2", Packet::Ping("")),
            ("2probe", Packet::Ping("probe")),
            ("3", Packet::Pong("")),
            ("3probe", Packet::Pong("probe")),
            ("40", Packet::Message("0")),
            ("4é", Packet::Message("é")),
            ("5", Packet::Upgrade),
            ("6", Packet::Noop),
        ];
        for (text, packet) in samples {
            assert_eq!(parse(text), Some(packet), "{text}");
        }
        // Captured from Node: each of these closes the session. `bAQID` is base64, which belongs to polling only.
        for text in ["", "abc", "bAQID", "7", "é", " 2", "\u{0}"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn attachments_are_base64_to_the_letter() {
        assert_eq!(attachment("bAQID"), Some(vec![1, 2, 3]));
        assert_eq!(attachment("b"), Some(vec![]));
        assert_eq!(attachment("b+/8="), Some(vec![0xfb, 0xff]));
        for text in ["", "AQID", "bAQI", "bAQ", "b-_8=", "bAQID=", "bAQID\n", "b AQID", "bAR==", "bé"] {
            assert_eq!(attachment(text), None, "{text:?}");
        }
        let mut body = String::new();
        push_packet(&mut body, frame::Packet::Binary(&[0xfb, 0xff]));
        assert_eq!(body, "b+/8=");
    }

    #[test]
    fn the_greeting_is_what_node_sends() {
        assert_eq!(
            open_packet("O0yGX3fb1-n8jYHjAAAB", &[], 25_000, 20_000, 1_000_000),
            r#"0{"sid":"O0yGX3fb1-n8jYHjAAAB","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#
        );
        assert_eq!(
            open_packet("a", &["websocket", "x"], 1, 2, 3),
            r#"0{"sid":"a","upgrades":["websocket","x"],"pingInterval":1,"pingTimeout":2,"maxPayload":3}"#
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse(&text);
        }
    }
}
