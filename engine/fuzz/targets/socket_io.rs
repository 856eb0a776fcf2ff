//! Socket.IO packets: what is read is spelled again and read the same, and what is encoded is read back.
#![no_main]

use engine::json::Scratch;
use engine::wire::sio::{self, Kind, Offset};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(packet) = sio::parse(text) {
        let attachments = if packet.attachments > 0 { format!("{}-", packet.attachments) } else { String::new() };
        let spelled = format!("{}{attachments}{},{}{}", digit(packet.kind), packet.namespace, packet.id_text, packet.payload);
        assert_eq!(sio::parse(&spelled), Ok(packet), "{spelled:?}");
        assert_eq!(packet.attachments > 0, matches!(packet.kind, Kind::BinaryEvent | Kind::BinaryAck));
        let mut scratch = Scratch::default();
        if let Ok(doc) = scratch.parse(packet.payload)
            && sio::placeholders_fit(doc.root(), packet.attachments)
        {
            let _ = sio::spelled_out(doc.root(), &vec![b"bytes".to_vec(); packet.attachments]);
        }
    }
    let event = sio::event("/chat", Some(7), text, "1");
    let packet = sio::parse(&event[1..]).expect("our own packet");
    let mut scratch = Scratch::default();
    let doc = scratch.parse(packet.payload).expect("our own payload");
    assert_eq!((packet.kind, packet.namespace, packet.id), (Kind::Event, "/chat", Some(7)));
    assert_eq!(doc.root().items().next().and_then(|name| name.as_str()), Some(text));
    if let Some(offset) = Offset::parse(text) {
        assert_eq!(Offset::parse(&offset.text()), Some(offset));
    }
});

fn digit(kind: Kind) -> u8 {
    match kind {
        Kind::Connect => 0,
        Kind::Disconnect => 1,
        Kind::Event => 2,
        Kind::Ack => 3,
        Kind::ConnectError => 4,
        Kind::BinaryEvent => 5,
        Kind::BinaryAck => 6,
    }
}
