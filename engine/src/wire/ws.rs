//! RFC 6455 frames, the server's side: masked frames of a client become messages, messages become unmasked frames. It works in the caller's
//! buffer and owns bytes only while a fragmented message is incomplete. Clients' frame headers, opcodes and close codes are read by tungstenite;
//! stricter here: lengths must be minimal. It sends nothing: the caller answers a [`WsFault`] with the close frame of its code.

use std::io::Cursor;

use serde::{Deserialize, Serialize};
use simdutf8::{basic, compat};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::limits::{CLOSE_REASON_BYTES_MAX, FRAGMENTS_MAX};

/// Bytes of the longest header a server writes: two, and eight of length.
pub const HEADER_BYTES_MAX: usize = 10;

/// Bytes of a control frame's payload (RFC 6455 section 5.5).
const CONTROL_BYTES_MAX: u8 = 125;

/// What the peer did wrong; after one the connection is closed and its decoder not used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WsFault {
    /// A frame that the protocol forbids: close with 1002.
    #[error("websocket protocol violated")]
    Protocol,
    /// Text that is not UTF-8: close with 1007.
    #[error("text is not UTF-8")]
    Utf8,
    /// A message over the limit of bytes or fragments: close with 1009.
    #[error("message too big")]
    TooBig,
}

/// What a client said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'b> {
    /// A whole text message.
    Text(&'b str),
    /// A whole binary message.
    Binary(&'b [u8]),
    /// To be answered by a pong with the same payload.
    Ping(&'b [u8]),
    /// The answer to a ping, or just a sign of life.
    Pong(&'b [u8]),
    /// Goodbye; nothing that follows counts.
    Close {
        /// The code, one that may be sent, or none.
        code: Option<u16>,
        /// Why, for people.
        reason: &'b str,
    },
}

/// What [`Decoder::next`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Step<'b> {
    /// The buffer holds no whole frame; nothing was changed.
    Incomplete,
    /// One frame was taken.
    Consumed {
        /// Its length: so many bytes of the buffer are done with.
        bytes: usize,
        /// The message it ended; `None` when it was a fragment that others follow.
        message: Option<Message<'b>>,
    },
}

/// Reads one client's frames; eight bytes while no fragmented message is under way.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Decoder {
    assembly: Option<Box<Assembly>>,
}

impl Decoder {
    /// Takes the first frame off `buf`, all bytes not consumed so far, unmasking it in place. `message_max` counts the bytes of a whole
    /// message, inclusive; a header that announces more is [`WsFault::TooBig`] at once, before its payload came.
    ///
    /// Call it until it says [`Step::Incomplete`], also with an empty `buf`: an assembled message lives until the next call.
    pub fn next<'b>(&'b mut self, buf: &'b mut [u8], message_max: usize) -> Result<Step<'b>, WsFault> {
        if self.is_idle() {
            self.assembly = None;
        }
        let Some(head) = Head::parse(buf, self.assembly.is_some())? else { return Ok(Step::Incomplete) };
        if let OpCode::Data(_) = head.opcode {
            self.check_room(head.payload_len, message_max)?;
        }
        // The limit was checked above, so the sum stays far from overflowing.
        let bytes = head.bytes + head.payload_len as usize;
        let Some(payload) = buf.get_mut(head.bytes..bytes) else { return Ok(Step::Incomplete) };
        unmask(payload, head.mask);
        let message = self.take(head.opcode, head.is_final, payload)?;
        Ok(Step::Consumed { bytes, message })
    }

    /// Bytes of fragments that are held.
    pub fn held_bytes(&self) -> usize {
        self.assembly.as_ref().map_or(0, |assembly| assembly.len())
    }

    /// True exactly when no fragments are held: the connection is between two messages.
    pub fn is_idle(&self) -> bool {
        self.assembly.as_ref().is_none_or(|assembly| assembly.is_complete)
    }

    /// Refuses a data frame that would make its message too long or too fragmented.
    fn check_room(&self, payload_len: u64, message_max: usize) -> Result<(), WsFault> {
        let (held, fragments) = self.assembly.as_ref().map_or((0, 0), |assembly| (assembly.len(), assembly.fragments));
        let left = message_max.saturating_sub(held) as u64;
        if payload_len > left || fragments >= FRAGMENTS_MAX { Err(WsFault::TooBig) } else { Ok(()) }
    }

    /// The message that a frame ends, if it ends one. The order of frames was checked with the header.
    fn take<'b>(&'b mut self, opcode: OpCode, is_final: bool, payload: &'b [u8]) -> Result<Option<Message<'b>>, WsFault> {
        match opcode {
            OpCode::Control(Control::Close) => close_message(payload).map(Some),
            OpCode::Control(Control::Ping) => Ok(Some(Message::Ping(payload))),
            OpCode::Control(Control::Pong) => Ok(Some(Message::Pong(payload))),
            OpCode::Data(Data::Text) if is_final => Ok(Some(Message::Text(basic::from_utf8(payload).map_err(|_| WsFault::Utf8)?))),
            OpCode::Data(Data::Binary) if is_final => Ok(Some(Message::Binary(payload))),
            OpCode::Data(Data::Text | Data::Binary | Data::Continue) => {
                let assembly = self.assembly.get_or_insert_with(|| Assembly::new(opcode == OpCode::Data(Data::Text)));
                assembly.append(payload, is_final)?;
                Ok(is_final.then(|| assembly.message()))
            }
            OpCode::Control(Control::Reserved(_)) | OpCode::Data(Data::Reserved(_)) => Err(WsFault::Protocol),
        }
    }
}

/// A frame's header that broke no rule.
struct Head {
    opcode: OpCode,
    is_final: bool,
    mask: [u8; 4],
    /// Length of the header itself.
    bytes: usize,
    payload_len: u64,
}

impl Head {
    /// `None` when it is not all there. `is_continuing`: a fragmented message is under way.
    fn parse(buf: &[u8], is_continuing: bool) -> Result<Option<Head>, WsFault> {
        let &[first, second, ..] = buf else { return Ok(None) };
        check_start(first, second, is_continuing)?;
        let mut cursor = Cursor::new(buf);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| WsFault::Protocol)?;
        let Some((header, payload_len)) = parsed else { return Ok(None) };
        // The shortest form is a must, and 64-bit lengths have 63 (section 5.2); tungstenite takes any.
        let is_minimal = match second & 0x7F {
            126 => payload_len >= 126,
            127 => payload_len > u64::from(u16::MAX) && payload_len >> 63 == 0,
            _ => true,
        };
        match header.mask {
            Some(mask) if is_minimal => {
                let bytes = cursor.position() as usize;
                Ok(Some(Head { opcode: header.opcode, is_final: header.is_final, mask, bytes, payload_len }))
            }
            _ => Err(WsFault::Protocol),
        }
    }
}

/// The rules that the first two bytes can break: reserved bits, mask, opcode, control frames, order of fragments.
fn check_start(first: u8, second: u8, is_continuing: bool) -> Result<(), WsFault> {
    let (is_final, reserved_bits) = (first & 0x80 != 0, first & 0x70);
    let (is_masked, short_length) = (second & 0x80 != 0, second & 0x7F);
    let allowed = match OpCode::from(first & 0x0F) {
        OpCode::Data(Data::Text | Data::Binary) => !is_continuing,
        OpCode::Data(Data::Continue) => is_continuing,
        OpCode::Control(Control::Close | Control::Ping | Control::Pong) => is_final && short_length <= CONTROL_BYTES_MAX,
        OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => false,
    };
    if allowed && is_masked && reserved_bits == 0 { Ok(()) } else { Err(WsFault::Protocol) }
}

/// XORs with the mask, eight bytes at a time.
fn unmask(payload: &mut [u8], [a, b, c, d]: [u8; 4]) {
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, tail) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in tail.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= mask;
    }
}

fn close_message(payload: &[u8]) -> Result<Message<'_>, WsFault> {
    match payload {
        [] => Ok(Message::Close { code: None, reason: "" }),
        [_] => Err(WsFault::Protocol),
        [high, low, reason @ ..] => {
            let reason = basic::from_utf8(reason).map_err(|_| WsFault::Utf8)?;
            let code = u16::from_be_bytes([*high, *low]);
            if CloseCode::from(code).is_allowed() { Ok(Message::Close { code: Some(code), reason }) } else { Err(WsFault::Protocol) }
        }
    }
}

/// The fragments of one message.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Assembly {
    content: Content,
    /// Frames so far.
    fragments: u32,
    /// True exactly when the last frame came; the next call of the decoder lets go of it.
    is_complete: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Content {
    /// What is proven to be UTF-8, and the beginning of a character that the last fragment cut.
    Text {
        text: String,
        cut: Cut,
    },
    Binary(Vec<u8>),
}

impl Assembly {
    fn new(is_text: bool) -> Box<Assembly> {
        let content = if is_text { Content::Text { text: String::new(), cut: Cut::default() } } else { Content::Binary(Vec::new()) };
        Box::new(Assembly { content, fragments: 0, is_complete: false })
    }

    fn len(&self) -> usize {
        match &self.content {
            Content::Text { text, cut } => text.len() + cut.len,
            Content::Binary(bytes) => bytes.len(),
        }
    }

    /// Copies a fragment, because its place in the read buffer is needed for the next. Text fails with the first byte that proves it wrong.
    fn append(&mut self, payload: &[u8], is_final: bool) -> Result<(), WsFault> {
        self.fragments += 1;
        self.is_complete = is_final;
        match &mut self.content {
            Content::Binary(bytes) => bytes.extend_from_slice(payload),
            Content::Text { text, cut } => {
                let rest = cut.complete(payload, text)?;
                cut.begin(rest, text)?;
                if is_final && cut.len > 0 {
                    return Err(WsFault::Utf8);
                }
            }
        }
        Ok(())
    }

    fn message(&self) -> Message<'_> {
        match &self.content {
            Content::Text { text, .. } => Message::Text(text),
            Content::Binary(bytes) => Message::Binary(bytes),
        }
    }
}

/// The first bytes, at most three, of a character whose others have not come.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
struct Cut {
    bytes: [u8; 4],
    len: usize,
}

impl Cut {
    /// Feeds it byte by byte until its character is whole, and returns what is left of `payload`.
    fn complete<'b>(&mut self, mut payload: &'b [u8], text: &mut String) -> Result<&'b [u8], WsFault> {
        while let (1..4, [byte, rest @ ..]) = (self.len, payload) {
            self.bytes[self.len] = *byte;
            self.len += 1;
            payload = rest;
            match std::str::from_utf8(&self.bytes[..self.len]) {
                Ok(character) => {
                    text.push_str(character);
                    self.len = 0;
                }
                Err(fault) if fault.error_len().is_some() => return Err(WsFault::Utf8),
                Err(_) => {}
            }
        }
        Ok(payload)
    }

    /// Appends `payload` and keeps the character that its end cuts.
    fn begin(&mut self, payload: &[u8], text: &mut String) -> Result<(), WsFault> {
        let valid = match compat::from_utf8(payload) {
            Ok(whole) => whole,
            Err(fault) if fault.error_len().is_some() => return Err(WsFault::Utf8),
            Err(fault) => {
                let (valid, begun) = payload.split_at(fault.valid_up_to());
                self.len = begun.len();
                // A character that lacks bytes has at most three.
                self.bytes.get_mut(..begun.len()).ok_or(WsFault::Utf8)?.copy_from_slice(begun);
                compat::from_utf8(valid).map_err(|_| WsFault::Utf8)?
            }
        };
        text.push_str(valid);
        Ok(())
    }
}

/// An unmasked header of a whole message, and how many of the ten bytes it takes. Opcodes: 1 text, 2 binary, 8 close, 9 ping, 10 pong.
pub fn header(opcode: u8, payload_len: usize) -> ([u8; HEADER_BYTES_MAX], usize) {
    let mut bytes = [0; HEADER_BYTES_MAX];
    bytes[0] = 0x80 | (opcode & 0x0F);
    let used = match payload_len {
        0..126 => {
            bytes[1] = payload_len as u8;
            2
        }
        126..0x1_0000 => {
            bytes[1] = 126;
            bytes[2..4].copy_from_slice(&(payload_len as u16).to_be_bytes());
            4
        }
        _ => {
            bytes[1] = 127;
            bytes[2..].copy_from_slice(&(payload_len as u64).to_be_bytes());
            10
        }
    };
    (bytes, used)
}

/// Takes the first of frames that [`header`] began: whether it is text, its payload, and what follows. `None` when nothing is left.
pub fn split_own(frames: &[u8]) -> Option<(bool, &[u8], &[u8])> {
    let (&[first, short], rest) = frames.split_first_chunk()?;
    let (len, rest) = match short {
        126 => rest.split_first_chunk().map(|(len, rest)| (usize::from(u16::from_be_bytes(*len)), rest))?,
        127 => rest.split_first_chunk().map(|(len, rest)| (u64::from_be_bytes(*len) as usize, rest))?,
        len => (usize::from(len), rest),
    };
    let (payload, rest) = rest.split_at_checked(len)?;
    Some((first & 0x0F == 1, payload, rest))
}

/// A whole frame.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let (header, used) = header(opcode, payload.len());
    let mut frame = Vec::with_capacity(used + payload.len());
    frame.extend_from_slice(&header[..used]);
    frame.extend_from_slice(payload);
    frame
}

/// A close frame. What of the reason does not fit is cut off between two characters.
pub fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    frame(8, &[&code.to_be_bytes(), reason.as_bytes()].concat())
}

/// A close frame without code, as Node's Socket.IO sends; the peer sees 1005.
pub fn empty_close_frame() -> Vec<u8> {
    frame(8, &[])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1_000;

    /// A [`Message`] that owns its bytes.
    #[derive(Clone, PartialEq, Debug)]
    enum Heard {
        Text(String),
        Binary(Vec<u8>),
        Ping(Vec<u8>),
        Pong(Vec<u8>),
        Close(Option<u16>, String),
        Fault(WsFault),
    }

    impl From<Message<'_>> for Heard {
        fn from(message: Message<'_>) -> Heard {
            match message {
                Message::Text(text) => Heard::Text(text.into()),
                Message::Binary(bytes) => Heard::Binary(bytes.into()),
                Message::Ping(bytes) => Heard::Ping(bytes.into()),
                Message::Pong(bytes) => Heard::Pong(bytes.into()),
                Message::Close { code, reason } => Heard::Close(code, reason.into()),
            }
        }
    }

    /// A client's frame: `first` holds FIN, reserved bits and opcode.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0xA5, 0x17, 0x00, 0xF3];
        let (mut header, used) = header(first & 0x0F, payload.len());
        (header[0], header[1]) = (first, header[1] | 0x80);
        let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        header[..used].iter().copied().chain(mask).chain(payload).collect()
    }

    /// Reads pieces as a driver does, to the first fault or goodbye.
    fn hear(pieces: &[&[u8]]) -> Vec<Heard> {
        let (mut decoder, mut kept, mut heard) = (Decoder::default(), Vec::new(), Vec::new());
        for piece in pieces {
            kept.extend_from_slice(piece);
            let mut done = 0;
            loop {
                match decoder.next(&mut kept[done..], MAX) {
                    Ok(Step::Incomplete) => break,
                    Ok(Step::Consumed { bytes, message }) => {
                        done += bytes;
                        heard.extend(message.map(Heard::from));
                    }
                    Err(fault) => heard.push(Heard::Fault(fault)),
                }
                if matches!(heard.last(), Some(Heard::Fault(_) | Heard::Close(..))) {
                    return heard;
                }
            }
            kept.drain(..done);
        }
        heard
    }

    /// Reads bytes whole and cut at every place, and each for itself; all must give the same.
    fn hear_anyhow(bytes: &[u8]) -> Vec<Heard> {
        let heard = hear(&[bytes]);
        for at in 0..=bytes.len() {
            assert_eq!(hear(&[&bytes[..at], &bytes[at..]]), heard, "cut at {at} of {bytes:02x?}");
        }
        assert_eq!(hear(&bytes.chunks(1).collect::<Vec<_>>()), heard, "byte by byte: {bytes:02x?}");
        heard
    }

    fn fault(bytes: &[u8]) -> WsFault {
        match hear_anyhow(bytes).last() {
            Some(Heard::Fault(fault)) => *fault,
            other => panic!("no fault but {other:?} from {bytes:02x?}"),
        }
    }

    #[test]
    fn messages_come_out_as_they_went_in() {
        for len in [0, 1, 7, 8, 9, 125, 126, 127, 999, 1_000] {
            let text = "é".repeat(len / 2) + &"x".repeat(len % 2);
            assert_eq!(hear_anyhow(&masked(0x81, text.as_bytes())), [Heard::Text(text.clone())]);
            assert_eq!(hear_anyhow(&masked(0x82, text.as_bytes())), [Heard::Binary(text.into_bytes())]);
        }
        let stream =
            [masked(0x81, b"a"), masked(0x89, b"p"), masked(0x8A, b""), masked(0x82, &[0xFF]), masked(0x88, b"\x03\xe8bye")].concat();
        let expected = [
            Heard::Text("a".into()),
            Heard::Ping(b"p".into()),
            Heard::Pong(vec![]),
            Heard::Binary(vec![0xFF]),
            Heard::Close(Some(1000), "bye".into()),
        ];
        assert_eq!(hear_anyhow(&stream), expected);
        assert_eq!(hear_anyhow(&masked(0x88, b"")), [Heard::Close(None, String::new())]);
    }

    #[test]
    fn fragments_are_joined_around_control_frames() {
        let text = "h\u{e9}\u{20ac}\u{1f600}";
        let bytes = text.as_bytes();
        // Cut inside each character, with empty fragments, and a ping between.
        let stream = [
            masked(0x01, &bytes[..2]),
            masked(0x00, &[]),
            masked(0x89, b"between"),
            masked(0x00, &bytes[2..5]),
            masked(0x00, &bytes[5..7]),
            masked(0x00, &bytes[7..8]),
            masked(0x8A, b"also"),
            masked(0x80, &bytes[8..]),
            masked(0x02, b"\xff"),
            masked(0x80, b"\xfe"),
            masked(0x01, b""),
            masked(0x80, b""),
        ];
        let expected = [
            Heard::Ping(b"between".into()),
            Heard::Pong(b"also".into()),
            Heard::Text(text.into()),
            Heard::Binary(vec![0xFF, 0xFE]),
            Heard::Text(String::new()),
        ];
        assert_eq!(hear_anyhow(&stream.concat()), expected);
    }

    #[test]
    fn an_idle_decoder_is_eight_bytes_and_holds_nothing() {
        assert_eq!(size_of::<Decoder>(), 8);
        let mut decoder = Decoder::default();
        assert!(decoder.is_idle());
        assert!(matches!(decoder.next(&mut masked(0x01, b"a"), MAX), Ok(Step::Consumed { message: None, .. })));
        assert!(!decoder.is_idle());
        assert!(matches!(decoder.next(&mut masked(0x80, b"b"), MAX), Ok(Step::Consumed { message: Some(Message::Text("ab")), .. })));
        assert!(decoder.is_idle());
        assert_eq!(decoder.next(&mut [], MAX), Ok(Step::Incomplete));
        assert!(decoder.assembly.is_none());
    }

    #[test]
    fn what_the_protocol_forbids_is_1002() {
        let mut unmasked = frame(1, b"x");
        assert_eq!(fault(&unmasked), WsFault::Protocol);
        unmasked.truncate(2);
        assert_eq!(fault(&unmasked), WsFault::Protocol, "known from two bytes");
        for first in [0xC1, 0xA1, 0x91, 0xF1, 0xC9, 0x41] {
            assert_eq!(fault(&masked(first, b"x")), WsFault::Protocol, "reserved bits {first:x}");
        }
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            assert_eq!(fault(&masked(0x80 | opcode, b"x")), WsFault::Protocol, "reserved opcode {opcode}");
        }
        for opcode in [8, 9, 10] {
            assert_eq!(fault(&masked(opcode, b"")), WsFault::Protocol, "fragmented control frame");
            assert_eq!(fault(&masked(0x80 | opcode, &[b'x'; 126])), WsFault::Protocol, "long control frame");
        }
        for first in [0x80, 0x00] {
            assert_eq!(fault(&masked(first, b"x")), WsFault::Protocol, "continues nothing");
            assert_eq!(fault(&[masked(0x81, b"x"), masked(first, b"x")].concat()), WsFault::Protocol, "continues nothing any more");
        }
        for first in [0x81, 0x82, 0x01, 0x02] {
            assert_eq!(fault(&[masked(0x01, b"x"), masked(first, b"x")].concat()), WsFault::Protocol, "a new message inside another");
        }
    }

    #[test]
    fn lengths_are_minimal_and_have_63_bits() {
        let long = |len: u64| [&[0x82, 0xFF][..], &len.to_be_bytes(), &[0; 4]].concat();
        let medium = |len: u16| [&[0x82, 0xFE][..], &len.to_be_bytes(), &[0; 4]].concat();
        for len in [0, 1, 125] {
            assert_eq!(fault(&[medium(len), vec![0; usize::from(len)]].concat()), WsFault::Protocol, "{len}");
        }
        for len in [0, 125, 126, 65_535, 1 << 63, u64::MAX] {
            assert_eq!(fault(&long(len)), WsFault::Protocol, "{len}");
        }
        for len in [65_536, (1 << 63) - 1] {
            assert_eq!(fault(&long(len)), WsFault::TooBig, "{len}");
        }
        assert_eq!(hear_anyhow(&[medium(126), vec![0; 126]].concat()), [Heard::Binary(vec![0; 126])]);
        assert_eq!(Decoder::default().next(&mut long(u64::MAX / 2), usize::MAX), Ok(Step::Incomplete), "no overflow without a limit");
    }

    #[test]
    fn close_frames_are_checked() {
        let close = |code: u16| masked(0x88, &code.to_be_bytes());
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999] {
            assert_eq!(hear_anyhow(&close(code)), [Heard::Close(Some(code), String::new())]);
        }
        for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
            assert_eq!(fault(&close(code)), WsFault::Protocol, "{code}");
        }
        assert_eq!(fault(&masked(0x88, b"\x03")), WsFault::Protocol);
        assert_eq!(fault(&masked(0x88, b"\x03\xe8\xff")), WsFault::Utf8);
        assert_eq!(fault(&masked(0x88, b"\x03\xe8cut \xc3")), WsFault::Utf8);
    }

    #[test]
    fn text_that_is_not_utf8_is_1007_as_soon_as_it_is_known() {
        let bad: [&[u8]; 9] = [
            b"\xff",
            b"a\x80",
            b"\xc0\x80",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xf8\x88\x80\x80\x80",
            b"ok\xc3",
            b"\xf0\x9f\x98",
            b"\xc3(",
        ];
        for bytes in bad {
            assert_eq!(fault(&masked(0x81, bytes)), WsFault::Utf8, "{bytes:x?}");
            for at in 0..=bytes.len() {
                let stream = [masked(0x01, &bytes[..at]), masked(0x00, &bytes[at..]), masked(0x80, b"")].concat();
                assert_eq!(fault(&stream), WsFault::Utf8, "{bytes:x?} cut at {at}");
            }
            assert_eq!(hear_anyhow(&masked(0x82, bytes)), [Heard::Binary(bytes.into())]);
        }
        // No further frame is needed where the bytes already prove it.
        for bytes in [&b"\xff"[..], b"\xed\xa0", b"\xf4\x90"] {
            assert_eq!(fault(&masked(0x01, bytes)), WsFault::Utf8, "{bytes:x?}");
        }
    }

    #[test]
    fn size_is_bounded_before_the_payload_comes() {
        let header_of = |first: u8, len: usize| masked(first, &vec![b'x'; len])[..8].to_vec();
        assert_eq!(fault(&header_of(0x81, MAX + 1)), WsFault::TooBig);
        assert_eq!(hear(&[&header_of(0x81, MAX)]), []);
        let half = masked(0x01, &[b'x'; MAX / 2]);
        assert_eq!(fault(&[half.clone(), header_of(0x80, MAX / 2 + 1)].concat()), WsFault::TooBig);
        assert_eq!(hear(&[&half, &masked(0x80, &[b'x'; MAX / 2])]), [Heard::Text("x".repeat(MAX))]);
        let cut = [masked(0x01, &[b'x'; MAX - 2]), masked(0x00, b"\xe2"), masked(0x80, b"\x82\xac")].concat();
        assert_eq!(fault(&cut), WsFault::TooBig, "bytes of a cut character count");
        // Control frames have their own bound.
        let mut ping = masked(0x89, &[b'x'; 125]);
        assert!(matches!(Decoder::default().next(&mut ping, 0), Ok(Step::Consumed { message: Some(Message::Ping(_)), .. })));
    }

    #[test]
    fn fragments_are_bounded() {
        let mut decoder = Decoder::default();
        for nth in 0..FRAGMENTS_MAX {
            let step = decoder.next(&mut masked(if nth == 0 { 0x01 } else { 0x00 }, b""), MAX).map(|_| ());
            assert_eq!(step, Ok(()), "{nth}");
        }
        assert_eq!(decoder.next(&mut masked(0x80, b""), MAX), Err(WsFault::TooBig));
    }

    #[test]
    fn server_frames_are_unmasked_and_minimal() {
        assert_eq!(frame(1, b"hi"), b"\x81\x02hi");
        assert_eq!(header(2, 125), ([0x82, 125, 0, 0, 0, 0, 0, 0, 0, 0], 2));
        assert_eq!(header(2, 126), ([0x82, 126, 0, 126, 0, 0, 0, 0, 0, 0], 4));
        assert_eq!(header(2, 65_535), ([0x82, 126, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0], 4));
        assert_eq!(header(2, 65_536), ([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0], 10));
        assert_eq!(header(2, usize::MAX).1, 10);
        assert_eq!(empty_close_frame(), b"\x88\x00");
        assert_eq!(close_frame(1001, "bye"), b"\x88\x05\x03\xe9bye");
        let cut = close_frame(4401, &"é".repeat(100));
        assert_eq!((cut.len(), cut[1]), (2 + 2 + 122, 124), "123 bytes would cut the 62nd character");
        assert!(std::str::from_utf8(&cut[4..]).is_ok());
    }

    #[test]
    fn unmasking_is_its_own_inverse_at_every_length() {
        for len in 0..40 {
            let plain: Vec<u8> = (0..len).collect();
            let mut bytes = plain.clone();
            unmask(&mut bytes, [1, 2, 3, 4]);
            let expected: Vec<u8> = plain.iter().enumerate().map(|(at, byte)| byte ^ [1, 2, 3, 4][at % 4]).collect();
            assert_eq!(bytes, expected);
        }
    }

    /// tungstenite's whole machine as the oracle. It maps a close code that may not be sent to its own 1002.
    fn oracle(bytes: &[u8]) -> Vec<Heard> {
        use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
        use tungstenite::{Error, Message};

        struct Wire<'b>(&'b [u8]);
        impl std::io::Read for Wire<'_> {
            fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
                match self.0.read(into)? {
                    0 => Err(std::io::ErrorKind::WouldBlock.into()),
                    some => Ok(some),
                }
            }
        }
        impl std::io::Write for Wire<'_> {
            fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
                Ok(from.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        let config = WebSocketConfig::default().read_buffer_size(4096).max_message_size(Some(MAX)).max_frame_size(None);
        let mut context = WebSocketContext::new(Role::Server, Some(config));
        let (mut wire, mut heard) = (Wire(bytes), Vec::new());
        loop {
            let (next, is_end) = match context.read(&mut wire) {
                Ok(Message::Text(text)) => (Heard::Text(text.as_str().into()), false),
                Ok(Message::Binary(bytes)) => (Heard::Binary(bytes.to_vec()), false),
                Ok(Message::Ping(bytes)) => (Heard::Ping(bytes.to_vec()), false),
                Ok(Message::Pong(bytes)) => (Heard::Pong(bytes.to_vec()), false),
                Ok(Message::Close(Some(close))) if close.reason.as_str() == "Protocol violation" => (Heard::Fault(WsFault::Protocol), true),
                Ok(Message::Close(Some(close))) => (Heard::Close(Some(close.code.into()), close.reason.as_str().into()), true),
                Ok(Message::Close(None)) => (Heard::Close(None, String::new()), true),
                Ok(Message::Frame(_)) => unreachable!("never read"),
                Err(Error::Io(_)) => return heard,
                Err(Error::Utf8(_)) => (Heard::Fault(WsFault::Utf8), true),
                Err(Error::Capacity(_)) => (Heard::Fault(WsFault::TooBig), true),
                Err(_) => (Heard::Fault(WsFault::Protocol), true),
            };
            heard.push(next);
            if is_end {
                return heard;
            }
        }
    }

    /// A frame that is mostly in order, at times in any way not. Lengths are minimal: there the oracle is known to be lax.
    fn client_frame() -> impl Strategy<Value = Vec<u8>> {
        let first = prop_oneof![
            6 => prop::sample::select(vec![0x81_u8, 0x82, 0x01, 0x02]),
            8 => prop::sample::select(vec![0x00_u8, 0x00, 0x80]),
            3 => prop::sample::select(vec![0x89_u8, 0x8A]),
            1 => Just(0x88_u8),
            1 => any::<u8>(),
        ];
        let payload = prop_oneof![
            6 => "[a\u{e9}\u{20ac}\u{1f600}]{0,12}".prop_map(String::into_bytes),
            3 => "[\u{e9}\u{20ac}\u{1f600}]{0,4}".prop_flat_map(|text| (Just(text.clone()), 0..=text.len())).prop_map(|(text, at)| text.as_bytes()[at..].to_vec()),
            3 => "[\u{e9}\u{20ac}\u{1f600}]{0,4}".prop_flat_map(|text| (Just(text.clone()), 0..=text.len())).prop_map(|(text, at)| text.as_bytes()[..at].to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..6),
            1 => (900_u16..5_100).prop_map(|code| code.to_be_bytes().to_vec()),
            1 => (100_usize..600).prop_map(|len| vec![b'x'; len]),
        ];
        (first, payload, 0..60_u8)
            .prop_map(|(first, payload, luck)| if luck == 0 { frame(first & 0x0F, &payload) } else { masked(first, &payload) })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn streams_are_heard_as_tungstenite_hears_them(frames in proptest::collection::vec(client_frame(), 1..8), cut: prop::sample::Index) {
            let bytes = frames.concat();
            let expected = oracle(&bytes);
            prop_assert_eq!(hear(&[&bytes]), &expected[..]);
            let at = cut.index(bytes.len());
            prop_assert_eq!(hear(&[&bytes[..at], &bytes[at..]]), expected);
        }

        #[test]
        fn a_text_cut_into_fragments_anywhere_is_the_same_text(text in "[a\u{e9}\u{20ac}\u{1f600}]{0,20}", cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..5)) {
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).chain([0, text.len()]).collect();
            places.sort_unstable();
            let last = places.len() - 2;
            let frames = places.windows(2).enumerate().map(|(nth, place)| {
                let first = if nth == 0 { 0x01 } else { 0x00 } | if nth == last { 0x80 } else { 0x00 };
                masked(first, &text.as_bytes()[place[0]..place[1]])
            });
            prop_assert_eq!(hear(&[&frames.collect::<Vec<_>>().concat()]), [Heard::Text(text)]);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut: prop::sample::Index) {
            let at = cut.index(bytes.len() + 1);
            prop_assert_eq!(hear(&[&bytes[..at], &bytes[at..]]), hear(&[&bytes]));
        }
    }
}
