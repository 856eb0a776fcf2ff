//! What a Socket.IO client may say and what closes its transport, as one table: each case as it was seen with the Node server, on a
//! WebSocket and by long-polling. The transcripts of `socket-io` tell the same at length, and what is answered.

mod host;

use engine::config::{AuthMode, DialectKind, Endpoint};
use engine::wire::eio;
use host::{Got, Host};

/// One thing a client says.
#[derive(Clone, Copy)]
enum Say {
    Text(&'static str),
    Binary(&'static [u8]),
}
use Say::{Binary, Text};

/// What becomes of the transport.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Then {
    Stays,
    /// A close frame without a code, as Node sends it.
    Closes,
}
use Then::{Closes, Stays};

const CONNECT: Say = Text("40");
const ONE_BYTE: Say = Binary(&[1]);

/// Cases before a namespace is joined, and after.
const CASES: &[(&str, &[Say], Then)] = &[
    // Engine.IO.
    ("an unknown type", &[Text("abc")], Closes),
    ("a ping", &[Text("2")], Closes),
    ("a probe", &[Text("2probe")], Closes),
    ("an empty text", &[Text("")], Closes),
    ("a pong", &[Text("3")], Stays),
    ("nothing", &[Text("6")], Stays),
    ("an upgrade without a probe", &[Text("5")], Stays),
    ("a greeting", &[Text("0{\"sid\":\"x\"}")], Stays),
    ("base64 in a text", &[CONNECT, Text("bAQID")], Closes),
    // Namespaces.
    ("an event before joining", &[Text("42[\"x\"]")], Closes),
    ("an acknowledgement before joining", &[Text("430[]")], Closes),
    ("a goodbye before joining", &[Text("41")], Closes),
    ("a binary event before joining", &[Text("451-[\"x\"]"), ONE_BYTE], Closes),
    ("a binary message before joining", &[ONE_BYTE], Closes),
    ("a binary event of another namespace", &[CONNECT, Text("451-/b,[\"x\"]"), ONE_BYTE], Closes),
    ("an event of another namespace", &[CONNECT, Text("42/b,[\"x\"]")], Closes),
    ("joining twice", &[CONNECT, CONNECT], Closes),
    ("joining with a list", &[Text("40[1]")], Closes),
    ("joining with a text", &[Text("40\"x\"")], Closes),
    ("joining with half an object", &[Text("40{\"a\"")], Closes),
    ("a refusal, which is the server's to say", &[CONNECT, Text("44{}")], Closes),
    ("a refusal before joining", &[Text("44{}")], Closes),
    ("a goodbye with a payload", &[CONNECT, Text("41{\"a\":1}")], Closes),
    ("an unknown namespace", &[Text("40/custom?x=1,")], Stays),
    ("the main namespace without a comma", &[Text("40/")], Stays),
    ("the main namespace by name", &[Text("40/,")], Stays),
    ("the main namespace by name, with an object", &[Text("40/,{\"a\":1}")], Stays),
    // Events.
    ("connect", &[CONNECT, Text("42[\"connect\"]")], Closes),
    ("connect_error", &[CONNECT, Text("42[\"connect_error\"]")], Closes),
    ("disconnect", &[CONNECT, Text("42[\"disconnect\"]")], Closes),
    ("disconnecting", &[CONNECT, Text("42[\"disconnecting\"]")], Closes),
    ("newListener", &[CONNECT, Text("42[\"newListener\"]")], Closes),
    ("removeListener", &[CONNECT, Text("42[\"removeListener\"]")], Closes),
    ("an empty list", &[CONNECT, Text("42[]")], Closes),
    ("a boolean for a name", &[CONNECT, Text("42[true]")], Closes),
    ("null for a name", &[CONNECT, Text("42[null]")], Closes),
    ("an object for a list", &[CONNECT, Text("42{}")], Closes),
    ("a text for a list", &[CONNECT, Text("42\"x\"")], Closes),
    ("half a list", &[CONNECT, Text("42[\"x\"")], Closes),
    ("an unknown packet", &[CONNECT, Text("47[\"x\"]")], Closes),
    ("no packet", &[CONNECT, Text("4")], Closes),
    ("a number for a name", &[CONNECT, Text("42[1,2]")], Stays),
    ("no list", &[CONNECT, Text("42")], Stays),
    ("an id beyond all numbers", &[CONNECT, Text("4299999999999999999999[\"echo\",1]")], Stays),
    ("a placeholder in a plain event", &[CONNECT, Text("42[\"echo\",{\"_placeholder\":true,\"num\":0}]")], Stays),
    // Acknowledgements.
    ("an answer nobody waits for", &[CONNECT, Text("43999[]")], Stays),
    ("an answer without an id", &[CONNECT, Text("43[]")], Stays),
    ("an answer that is no list", &[CONNECT, Text("430{}")], Closes),
    // Attachments.
    ("eleven attachments", &[CONNECT, Text("4511-[\"x\"]")], Closes),
    ("no attachments", &[CONNECT, Text("450-[\"echo\",1]")], Closes),
    ("no number of attachments", &[CONNECT, Text("45[\"x\"]")], Closes),
    ("a number of attachments and no dash", &[CONNECT, Text("451[\"x\"]")], Closes),
    ("a dash and no number", &[CONNECT, Text("45-[\"x\"]")], Closes),
    ("a number that is none", &[CONNECT, Text("45x-[\"x\"]")], Closes),
    ("a binary answer without a number", &[CONNECT, Text("46[1]")], Closes),
    ("a binary message without a header", &[CONNECT, ONE_BYTE], Closes),
    ("one attachment too many", &[CONNECT, Text("451-[\"x\"]"), ONE_BYTE, ONE_BYTE], Closes),
    ("text while attachments are missing", &[CONNECT, Text("4510-[\"x\"]"), Text("42[\"y\"]")], Closes),
    ("joining while attachments are missing", &[CONNECT, Text("451-[\"x\"]"), Text("40/b,")], Closes),
    ("a header while attachments are missing", &[CONNECT, Text("452-[\"x\"]"), ONE_BYTE, Text("451-[\"x\"]")], Closes),
    ("a pong while attachments are missing", &[CONNECT, Text("452-[\"x\"]"), ONE_BYTE, Text("3"), ONE_BYTE], Stays),
    ("a reserved name in a binary event", &[CONNECT, Text("451-[\"connect\"]")], Closes),
    ("a binary event that is no list", &[CONNECT, Text("451-{}")], Closes),
    ("a binary answer that is no list", &[CONNECT, Text("461-0{}")], Closes),
    ("a binary event that is no JSON", &[CONNECT, Text("451-[\"x\"")], Closes),
    ("an empty attachment", &[CONNECT, Text("451-[\"x\",{\"_placeholder\":true,\"num\":0}]"), Binary(&[])], Stays),
    ("an attachment that nothing mentions", &[CONNECT, Text("451-[\"x\"]"), ONE_BYTE], Stays),
    ("a binary event without a payload", &[CONNECT, Text("451-"), ONE_BYTE], Stays),
    ("a number out of range", &[CONNECT, Text("451-[\"echo\",{\"_placeholder\":true,\"num\":5}]"), ONE_BYTE], Closes),
    ("a number just out of range", &[CONNECT, Text("451-[\"echo\",{\"_placeholder\":true,\"num\":1}]"), ONE_BYTE], Closes),
    ("a negative number", &[CONNECT, Text("451-[\"echo\",{\"_placeholder\":true,\"num\":-1}]"), ONE_BYTE], Closes),
    ("half a number", &[CONNECT, Text("451-[\"echo\",{\"_placeholder\":true,\"num\":0.5}]"), ONE_BYTE], Closes),
    ("a text for a number", &[CONNECT, Text("451-[\"echo\",{\"_placeholder\":true,\"num\":\"0\"}]"), ONE_BYTE], Closes),
    ("no number", &[CONNECT, Text("451-[\"echo\",{\"a\":[{\"_placeholder\":true}]}]"), ONE_BYTE], Closes),
    ("a number out of range in an answer", &[CONNECT, Text("461-999[{\"_placeholder\":true,\"num\":1}]"), ONE_BYTE], Closes),
    ("an answer nobody waits for, binary", &[CONNECT, Text("461-999[{\"_placeholder\":true,\"num\":0}]"), ONE_BYTE], Stays),
];

fn host() -> Host {
    let namespace = |bind: &str| Endpoint { auth: AuthMode::None, ..host::endpoint(bind, DialectKind::Rooms, bind) };
    Host::new(host::config(2, vec![namespace("/"), namespace("/b")]), 1)
}

#[test]
fn on_a_websocket() {
    for (case, said, then) in CASES {
        let mut host = host();
        let client = host.connect(0, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
        for say in *said {
            match say {
                Text(text) => host.say(client, text),
                Binary(bytes) => host.frame(client, 2, bytes),
            }
            host.settle();
        }
        let got = host.take(client);
        assert_eq!(got.contains(&Got::Close(None, String::new())), *then == Closes, "{case}: {got:?}");
        assert_eq!(host.clients[client].open, *then == Stays, "{case}");
    }
}

#[test]
fn by_long_polling() {
    const PATH: &str = "/socket.io/?EIO=4&transport=polling";
    for (case, said, then) in CASES {
        for one_body in [false, true] {
            let mut host = host();
            let (_, greeting) = request(&mut host, "GET", PATH, "");
            let session = format!("{PATH}&sid={}", &greeting[9..29]);
            let packets: Vec<String> = said.iter().map(|say| packet(*say)).collect();
            let bodies = if one_body { vec![packets.join(&eio::SEPARATOR.to_string())] } else { packets };
            for body in bodies {
                request(&mut host, "POST", &session, &body);
            }
            // What was said until then, and that it was the last.
            let goodbye = loop {
                let poll = send(&mut host, "GET", &session, "");
                match answer(&mut host, poll) {
                    Some((200, body)) if body == "1" => break true,
                    // Whoever speaks no Engine.IO is told nothing.
                    Some((400, body)) if body == eio::error(1) => break true,
                    Some((200, _)) => {}
                    Some((status, body)) => panic!("{case}: {status} {body}"),
                    None => break false,
                }
            };
            // Base64 is no text here but what it says: a binary message without a header.
            assert_eq!(goodbye, *then == Closes, "{case}, {}", if one_body { "in one body" } else { "in a body each" });
        }
    }
}

fn packet(say: Say) -> String {
    let mut body = String::new();
    match say {
        Text(text) => body.push_str(text),
        Binary(bytes) => eio::push_packet(&mut body, engine::frame::Packet::Binary(bytes)),
    }
    body
}

fn send(host: &mut Host, method: &str, target: &str, body: &str) -> usize {
    let length = if method == "POST" { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
    let client = host.connect(1, &format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{length}\r\n{body}"));
    host.settle();
    client
}

fn answer(host: &mut Host, client: usize) -> Option<(u16, String)> {
    host.take(client).into_iter().find_map(|got| if let Got::Http(status, body) = got { Some((status, body)) } else { None })
}

fn request(host: &mut Host, method: &str, target: &str, body: &str) -> (u16, String) {
    let client = send(host, method, target, body);
    answer(host, client).unwrap_or_else(|| panic!("{method} {target} was not answered"))
}
