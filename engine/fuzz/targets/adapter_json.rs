//! JSON between hosts, as a channel's message and as an entry of a stream: it is refused or can be written, and what is written is read as
//! the same.
#![no_main]

use engine::relay::format::{Envelope, Message, Unsendable, classic, msgpack, scratch, sharded, streams};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut scratch = scratch();
    for kind in [classic::Kind::Request, classic::Kind::Response { to: None }] {
        if let Ok(envelope) = classic::decode(&mut scratch, "/", kind, text.as_bytes()) {
            let written = classic::encode(&mut scratch, &envelope);
            same(&envelope, written, |bytes| classic::decode(&mut engine::relay::format::scratch(), "/", kind, &bytes).ok());
        }
    }
    if let Ok(envelope) = sharded::decode(&mut scratch, text.as_bytes()) {
        let written = sharded::encode(&mut scratch, &envelope);
        same(&envelope, written, |bytes| sharded::decode(&mut engine::relay::format::scratch(), &bytes).ok());
        let _ = streams::encode_published(&mut scratch, &envelope);
    }
    for kind in 1..=14 {
        let kind = kind.to_string();
        let read = |fields: &[(&str, &str)]| {
            let fields = fields.iter().map(|(field, value)| (field.as_bytes(), value.as_bytes()));
            streams::decode(&mut engine::relay::format::scratch(), fields).ok()
        };
        if let Some(envelope) = read(&[("uid", "u"), ("data", text), ("nsp", "/"), ("type", &kind)]) {
            let written = streams::encode(&mut scratch, &envelope);
            same(&envelope, written, |entry| read(&entry.each_ref().map(|(field, value)| (*field, value.as_str()))));
        }
    }
    if let Ok(bytes) = msgpack::from_json(&mut scratch, text, &[]) {
        let back = msgpack::to_json(&bytes).expect("our own bytes");
        assert_eq!(msgpack::from_json(&mut scratch, &back.json, &[]), Ok(bytes), "{}", back.json);
    }
    let _ = msgpack::from_json(&mut scratch, text, &[b"bytes".to_vec(), vec![]]);
});

fn same<T>(envelope: &Envelope, written: Result<T, Unsendable>, read: impl FnOnce(T) -> Option<Envelope>) {
    match written {
        // An acknowledgement is MessagePack in the classic form, which does not keep blanks and the spelling of numbers.
        Ok(written) => match (read(written), &envelope.message) {
            (Some(again), Message::Ack { .. } | Message::Broadcast { .. }) => assert_eq!(again.nsp, envelope.nsp),
            (again, _) => assert_eq!(again.as_ref(), Some(envelope)),
        },
        Err(_) => assert_eq!(envelope.message, Message::Presence),
    }
}
