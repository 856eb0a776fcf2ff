//! Engine.IO packets, and the bodies of long-polling that carry several, in both versions of the protocol.
#![no_main]

use engine::frame;
use engine::wire::eio::{self, Packet, SEPARATOR};
use engine::wire::eio3;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut body = String::new();
    eio::push_packet(&mut body, frame::Packet::Binary(data));
    assert_eq!(eio::attachment(&body).as_deref(), Some(data), "what is encoded is read back");
    if let Ok(four) = eio3::read_binary(data) {
        assert_eq!(eio3::read_text(&eio3::write(&four)).as_deref(), Ok(&*four), "a body comes through both ways");
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(Packet::Ping(rest) | Packet::Pong(rest) | Packet::Message(rest)) = eio::parse(text) {
        assert_eq!(rest, &text[1..]);
    }
    if let Ok(four) = eio3::read_text(text) {
        assert_eq!(eio3::read_text(&eio3::write(&four)), Ok(four));
    }
    let packets: Vec<&str> = text.split(SEPARATOR).filter(|packet| !packet.is_empty()).collect();
    let mut body = String::new();
    for packet in &packets {
        let _ = (eio::parse(packet), eio::attachment(packet));
        eio::push_packet(&mut body, frame::Packet::Text(packet));
    }
    assert!(packets.is_empty() || body.split(SEPARATOR).eq(packets), "a body has the packets that it was made of");
});
