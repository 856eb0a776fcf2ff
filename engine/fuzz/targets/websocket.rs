//! WebSocket frames of a client: in one piece or cut anywhere they say the same and fail the same.
#![no_main]

use engine::wire::ws::{self, Decoder, Message, Step, WsFault};
use libfuzzer_sys::fuzz_target;

const MESSAGE_MAX: usize = 2_000;

/// What a stream said, up to its fault.
#[derive(PartialEq, Debug)]
enum Said {
    Message(String),
    Fault(WsFault),
}

/// Reads a stream that comes in pieces of this size.
fn read(stream: &[u8], piece: usize) -> Vec<Said> {
    let (mut decoder, mut unread, mut said) = (Decoder::default(), Vec::new(), Vec::new());
    for bytes in stream.chunks(piece.max(1)) {
        unread.extend_from_slice(bytes);
        loop {
            let used = match decoder.next(&mut unread, MESSAGE_MAX) {
                Ok(Step::Incomplete) => break,
                Ok(Step::Consumed { bytes, message }) => {
                    said.extend(message.map(|message| Said::Message(format!("{message:?}"))));
                    if let Some(Message::Text(text)) = message {
                        assert!(text.len() <= MESSAGE_MAX);
                    }
                    bytes
                }
                Err(fault) => {
                    said.push(Said::Fault(fault));
                    return said;
                }
            };
            unread.drain(..used);
        }
    }
    said
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    let whole = read(stream, stream.len());
    assert_eq!(read(stream, usize::from(*piece)), whole);
    assert_eq!(read(stream, 1), whole);
    let (text, binary) = (ws::frame(1, stream), ws::frame(2, stream));
    let both = [text, binary].concat();
    let (is_text, payload, rest) = ws::split_own(&both).expect("our own frame");
    assert!(is_text && payload == stream);
    let (is_text, payload, rest) = ws::split_own(rest).expect("our own frame");
    assert!(!is_text && payload == stream && rest.is_empty());
    let _ = ws::split_own(stream);
});
