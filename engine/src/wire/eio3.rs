//! Engine.IO protocol 3, as `socket.io-client` 1 and 2 speak it over long-polling: packets bear their length (in UTF-16 units, because that is
//! what a JavaScript string has), binary ones come as `b4` and base64 or, where the whole body is binary, as they are. Bodies are translated
//! to those of protocol 4 and back where they come in and go out; nothing behind knows the difference. On a WebSocket text is the same in both,
//! and binary messages begin with the byte 4.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::eio::SEPARATOR;

/// Not a body of this protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not an Engine.IO 3 payload")]
pub struct BadPayload;

/// The type byte before binary messages on a WebSocket.
pub const MESSAGE: u8 = 4;

/// A text body, as protocol 4 would write it.
pub fn read_text(body: &str) -> Result<String, BadPayload> {
    let mut out = String::with_capacity(body.len());
    let mut rest = body;
    while !rest.is_empty() {
        let (digits, after) = rest.split_once(':').ok_or(BadPayload)?;
        let units = length(digits)?;
        let end = end_of_units(after, units).ok_or(BadPayload)?;
        push(&mut out, &after[..end])?;
        rest = &after[end..];
    }
    Ok(out)
}

/// A binary body, as protocol 4 would write it: `0` for text or `1` for binary, the length's digits as bytes, 255, the packet.
pub fn read_binary(body: &[u8]) -> Result<String, BadPayload> {
    let mut out = String::with_capacity(body.len());
    let mut rest = body;
    while let Some((kind, after)) = rest.split_first() {
        let end = after.iter().position(|&byte| byte == 255).ok_or(BadPayload)?;
        let digits: String = after[..end].iter().map(|digit| char::from(digit.saturating_add(b'0'))).collect();
        let (packet, left) = after[end + 1..].split_at_checked(length(&digits)?).ok_or(BadPayload)?;
        match (kind, packet.split_first()) {
            (0, _) => push(&mut out, std::str::from_utf8(packet).map_err(|_| BadPayload)?)?,
            (1, Some((&MESSAGE, data))) => {
                separate(&mut out);
                out.push('b');
                STANDARD.encode_string(data, &mut out);
            }
            _ => return Err(BadPayload),
        }
        rest = left;
    }
    Ok(out)
}

/// A body of protocol 4 as this one writes it, all in text.
pub fn write(body: &str) -> String {
    let mut out = String::with_capacity(body.len() + 8);
    for packet in body.split(SEPARATOR).filter(|_| !body.is_empty()) {
        let (mark, rest) = packet.strip_prefix('b').map_or(("", packet), |data| ("b4", data));
        let units = mark.len() + rest.encode_utf16().count();
        out.push_str(&units.to_string());
        out.push(':');
        out.push_str(mark);
        out.push_str(rest);
    }
    out
}

fn length(digits: &str) -> Result<usize, BadPayload> {
    let is_number = (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten().ok_or(BadPayload)
}

/// Where the first so many UTF-16 units of a text end, if that is between two characters.
fn end_of_units(text: &str, units: usize) -> Option<usize> {
    let mut left = units;
    for (at, character) in text.char_indices() {
        if left == 0 {
            return Some(at);
        }
        left = left.checked_sub(character.len_utf16())?;
    }
    (left == 0).then_some(text.len())
}

fn separate(out: &mut String) {
    if !out.is_empty() {
        out.push(SEPARATOR);
    }
}

/// Adds a text packet; one that would be taken for two is none.
fn push(out: &mut String, packet: &str) -> Result<(), BadPayload> {
    if packet.is_empty() || packet.contains(SEPARATOR) {
        return Err(BadPayload);
    }
    separate(out);
    match packet.strip_prefix("b4") {
        Some(data) => {
            out.push('b');
            out.push_str(data);
        }
        // Other types are never binary.
        None if packet.starts_with('b') => return Err(BadPayload),
        None => out.push_str(packet),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_bodies_are_read_and_written() {
        let samples = [
            (
                "2:4044:42[\"welcome\",{\"nsp\":\"/\",\"n\":1,\"list\":[1,2]}]",
                "40\u{1e}42[\"welcome\",{\"nsp\":\"/\",\"n\":1,\"list\":[1,2]}]",
            ),
            (
                "6:b4AQI=50:461-0[\"ack\",\"v2 é€\",{\"_placeholder\":true,\"num\":0}]6:b4AQI=",
                "bAQI=\u{1e}461-0[\"ack\",\"v2 é€\",{\"_placeholder\":true,\"num\":0}]\u{1e}bAQI=",
            ),
            ("1:2", "2"),
            ("7:42[\"😀\"]", "42[\"😀\"]"),
            ("", ""),
        ];
        for (three, four) in samples {
            let three = if three.starts_with("7:") { "8:42[\"😀\"]" } else { three };
            assert_eq!(read_text(three), Ok(four.to_owned()), "{three}");
            assert_eq!(write(four), three);
        }
        assert_eq!(read_binary(&[0, 2, 255, b'4', b'0', 1, 3, 255, 4, 1, 2]), Ok("40\u{1e}bAQI=".to_owned()));
        assert_eq!(read_binary(&[1, 1, 255, 4]), Ok("b".to_owned()), "empty, but there");
    }

    #[test]
    fn what_is_no_payload_is_refused() {
        for bad in ["x", "1", ":4", "5:40", "1:😀", "-1:4", "1:40", "9999999999:4", "0:", "3:b3A", "3:4\u{1e}0"] {
            assert_eq!(read_text(bad), Err(BadPayload), "{bad}");
        }
        for bad in [&[0, 2][..], &[2, 1, 255, 4], &[1, 1, 255, 3], &[0, 9, 255, 4], &[1, 0, 255], &[0, 1, 255, 0xff], &[0, 200, 255, 4]] {
            assert_eq!(read_binary(bad), Err(BadPayload), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics_and_what_is_written_is_read_back(text in "\\PC*", bytes: Vec<u8>, packets in proptest::collection::vec("[0-6][^\u{1e}b]{0,8}", 1..4)) {
            let _ = (read_text(&text), read_binary(&bytes));
            let body = packets.join("\u{1e}");
            proptest::prop_assert_eq!(read_text(&write(&body)), Ok(body));
        }
    }
}
