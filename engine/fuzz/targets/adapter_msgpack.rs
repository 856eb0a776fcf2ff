//! MessagePack between hosts: any bytes are refused or are JSON, whoever reads them as a message can write it, and what is written stays
//! as it is.
#![no_main]

use engine::json::Scratch;
use engine::limits::RELAY_DEPTH_MAX;
use engine::relay::format::{Envelope, Fault, Message, Unsendable, classic, msgpack, scratch, sharded, streams};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut scratch = scratch();
    if let Ok(payload) = msgpack::to_json(bytes) {
        assert!(payload.json.len() <= 7 * bytes.len() + 40 * payload.attachments.len() + 2);
        assert!(scratch.parse(&payload.json).is_ok(), "{}", payload.json);
        assert!(Scratch::with_depth_max(RELAY_DEPTH_MAX).parse(&payload.json).is_ok());
        let written = msgpack::from_json(&mut scratch, &payload.json, &payload.attachments).expect("our own text");
        let again = msgpack::to_json(&written).expect("our own bytes");
        assert!(again == payload, "{} {}", again.json, payload.json);
    }
    for kind in [classic::Kind::Broadcast { room: None }, classic::Kind::Request, classic::Kind::Response { to: None }] {
        stays(&mut scratch, bytes, |scratch, bytes| classic::decode(scratch, "/", kind, bytes), classic::encode);
    }
    stays(&mut scratch, bytes, sharded::decode, sharded::encode);
    stays(&mut scratch, bytes, sharded::decode, streams::encode_published);
    if let Ok(session) = streams::decode_session(&mut scratch, bytes) {
        let written = streams::encode_session(&mut scratch, &session).expect("what was read");
        assert_eq!(streams::decode_session(&mut scratch, written.as_bytes()), Ok(session));
    }
    let channels = classic::Channels::new("socket.io", "/");
    let _ = (channels.kind(bytes), sharded::Channels::new("socket.io", "/").owner(bytes));
});

fn stays(
    scratch: &mut Scratch,
    bytes: &[u8],
    decode: impl Fn(&mut Scratch, &[u8]) -> Result<Envelope, Fault>,
    encode: impl Fn(&mut Scratch, &Envelope) -> Result<Vec<u8>, Unsendable>,
) {
    let Ok(envelope) = decode(scratch, bytes) else { return };
    if envelope.message != Message::Presence {
        let written = encode(scratch, &envelope).expect("what was read");
        let again = decode(scratch, &written).expect("our own");
        assert_eq!(encode(scratch, &again), Ok(written), "{envelope:?}");
    }
}
