//! TCP cuts a stream where it likes, so no cut may change what is heard. Whole sessions are played on a host without sockets: once with
//! every packet in one piece, once for every byte with the packet cut behind it, and once byte by byte. Each time every client must
//! have heard the same bytes, and the host must have counted the same. The host is deterministic, so that ids and times agree.
//!
//! What goes to a room travels by the room's home, and may be overtaken by the answer to a later message that came in the same turn. So
//! such a message is the last of its packet here; with it, order would be a matter of when packets come, not of how they are cut.

mod host;

use engine::config::{AuthMode, DialectKind};
use host::{Host, endpoint, masked};
use serde_json::json;

/// Where the packets of a session are cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Nowhere,
    /// Behind so many bytes of all that is sent.
    Behind(usize),
    Everywhere,
}

/// A host, and the clients' network before it.
struct Net {
    host: Host,
    cut: Cut,
    sent: usize,
}

/// What a session came to: what each client heard, whether it is still connected, was it handed over, and the counters.
type Outcome = Vec<(Vec<u8>, String)>;

impl Net {
    fn new(cut: Cut) -> Net {
        let mut guests = endpoint("guests", DialectKind::Rooms, "/guests");
        guests.auth = AuthMode::None;
        let mut config = host::config(
            2,
            vec![
                endpoint("community", DialectKind::Community, "/api/community/ws"),
                endpoint("fabric", DialectKind::Collab, "/ws/fabric"),
                endpoint("rooms", DialectKind::Rooms, "/"),
                guests,
                endpoint("chat", DialectKind::Chat, "/chat"),
            ],
        );
        config.endpoints[0].client_publish = true;
        config.limits.message_bytes = 2_000;
        config.limits.head_bytes = 2_000;
        Net { host: Host::new(config, 7), cut, sent: 0 }
    }

    fn open(&mut self, shard: usize) -> usize {
        self.host.connect(shard, "")
    }

    /// One packet on its way; it is handled piece by piece.
    fn send(&mut self, client: usize, bytes: &[u8]) {
        let start = self.sent;
        self.sent += bytes.len();
        match self.cut {
            Cut::Behind(at) if (start + 1..self.sent).contains(&at) => {
                let (first, second) = bytes.split_at(at - start);
                self.arrive(client, first);
                self.arrive(client, second);
            }
            Cut::Everywhere => bytes.chunks(1).for_each(|byte| self.arrive(client, byte)),
            Cut::Nowhere | Cut::Behind(_) => self.arrive(client, bytes),
        }
    }

    fn arrive(&mut self, client: usize, bytes: &[u8]) {
        self.host.write(client, bytes);
        self.host.settle();
    }

    /// A request on a connection of its own, and all that has been answered so far.
    fn request(&mut self, shard: usize, method: &str, target: &str, body: Option<&str>) -> (usize, String) {
        let client = self.open(shard);
        let length = body.map_or(String::new(), |body| format!("Content-Length: {}\r\n", body.len()));
        let origin = "Origin: https://app.example.com\r\n";
        self.send(client, format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{origin}{length}\r\n{}", body.unwrap_or("")).as_bytes());
        (client, self.heard(client))
    }

    /// A WebSocket, its head and first frames in one packet.
    fn websocket(&mut self, shard: usize, target: &str, frames: &[Vec<u8>]) -> usize {
        let client = self.open(shard);
        let head = Host::upgrade_head(target, "Origin: https://app.example.com\r\nCookie: a=b; c=d\r\n");
        self.send(client, &[head.as_bytes(), &frames.concat()].concat());
        client
    }

    fn heard(&self, client: usize) -> String {
        String::from_utf8_lossy(&self.host.clients[client].raw).into_owned()
    }

    /// The session went where it should, and not to an early end that every cut shares.
    fn expect(&self, client: usize, part: &str) {
        let heard = self.heard(client);
        assert!(heard.contains(part), "{:?}: client {client} has not heard {part:?} but {heard:?}", self.cut);
    }

    fn outcome(self) -> Outcome {
        let counted = self.host.stats.iter().map(|stats| (Vec::new(), format!("{:?}", stats.endpoints)));
        let counted: Vec<_> = counted.collect();
        let of_clients = self.host.clients.into_iter().map(|it| (it.raw, format!("open {} handed over {}", it.open, it.handed_over)));
        of_clients.chain(counted).collect()
    }
}

fn play(session: fn(&mut Net), cut: Cut) -> (Outcome, usize) {
    let mut net = Net::new(cut);
    session(&mut net);
    let sent = net.sent;
    (net.outcome(), sent)
}

/// Plays a session in all ways.
fn cut(session: fn(&mut Net)) {
    let (whole, bytes) = play(session, Cut::Nowhere);
    let ways = (1..bytes).map(Cut::Behind).chain([Cut::Everywhere]);
    for way in ways {
        let (parts, sent) = play(session, way);
        assert_eq!(sent, bytes, "{way:?}: an answer that depends on the cut made another session");
        for (index, (part, whole)) in parts.iter().zip(&whole).enumerate() {
            let heard = [&part.0, &whole.0].map(|bytes| String::from_utf8_lossy(bytes));
            assert_eq!(heard[0], heard[1], "{way:?}: heard by client {index}");
            assert_eq!(part, whole, "{way:?}: client {index}, or counters");
        }
    }
}

/// A frame that others follow, or one that follows.
fn fragment(opcode: u8, is_final: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = masked(opcode, payload);
    frame[0] = opcode | if is_final { 0x80 } else { 0 };
    frame
}

fn text(text: &str) -> Vec<u8> {
    masked(1, text.as_bytes())
}

fn token(claims: &serde_json::Value) -> String {
    host::token(claims)
}

#[test]
fn a_community_session() {
    cut(|net| {
        let target = |user: &str| format!("/api/community/ws?roomId=r&token={}", token(&json!({"sub": user, "rooms": ["r"]})));
        let bob = net.websocket(1, &target("bob"), &[]);
        let long = format!(r#"{{"type":"CHAT_MESSAGE","payload":{{"roomId":"r","content":"{}"}}}}"#, "é😀".repeat(25));
        let alice = net.websocket(0, &target("alice"), &[text(r#"{"type":"PING"}"#), masked(9, b"still there?"), text(&long)]);
        net.send(alice, &[text("not JSON"), text(""), text(r#"{"type":"TYPING","payload":{"roomId":"r","isTyping":true}}"#)].concat());
        net.send(alice, &masked(8, &1000_u16.to_be_bytes()));
        net.expect(bob, "é😀\"");
        net.expect(bob, "USER_LEFT");
    });
}

#[test]
fn fragments_with_a_ping_between_them_and_characters_cut_in_two() {
    cut(|net| {
        let asked = |client: &str| {
            let token = token(&json!({"sub": client, "documents": ["d"]}));
            format!("/ws/fabric?documentId=d&clientID={client}&token={token}")
        };
        let (one, two) = (net.websocket(0, &asked("one"), &[]), net.websocket(1, &asked("two"), &[]));
        let update = r#"{"type":"update","documentId":"d","update":"é😀é"}"#.as_bytes();
        let (first, rest) = update.split_at(update.len() - 7);
        assert!(std::str::from_utf8(first).is_err(), "the cut is inside a character");
        let frames = [
            fragment(1, false, first),
            masked(9, b"ping"),
            fragment(0, false, b""),
            fragment(0, false, &rest[..1]),
            masked(10, b""),
            fragment(0, true, &rest[1..]),
            fragment(2, false, &[0xff; 200]),
            fragment(0, true, &[0; 3]),
        ];
        net.send(one, &frames.concat());
        net.expect(two, "é😀é");
        net.expect(one, "error");
        net.send(one, &masked(8, b""));
    });
}

#[test]
fn frames_that_break_the_rules() {
    cut(|net| {
        let target = format!("/api/community/ws?token={}", token(&json!({"sub": "eve"})));
        let mut unmasked = text("{}");
        unmasked[1] &= 0x7f;
        let faults: [Vec<u8>; 9] = [
            unmasked,
            vec![0xc1, 0x80],
            vec![0x83, 0x80],
            vec![0x81, 0xfe, 0, 5],
            fragment(0, true, b"nothing to continue"),
            fragment(9, false, b"a ping in pieces"),
            [fragment(1, false, b"{"), fragment(0, true, b"\xff\xff")].concat(),
            [fragment(1, false, &[b' '; 1_500]), fragment(0, true, &[b' '; 1_500])].concat()[..1_600].to_vec(),
            masked(8, &[0]),
        ];
        for fault in faults {
            let eve = net.websocket(0, &target, &[text(r#"{"type":"PING"}"#), fault, text(r#"{"type":"PING"}"#)]);
            let heard = net.heard(eve);
            assert_eq!((heard.matches("PONG").count(), net.host.clients[eve].open), (1, false), "{heard:?}");
        }
    });
}

#[test]
fn a_socket_io_session_of_three_namespaces() {
    cut(|net| {
        let ann = token(&json!({"sub": "ann", "name": "Ann"}));
        let bob = net.websocket(1, "/socket.io/?EIO=4&transport=websocket", &[text("40/guests,"), text("40/chat,{\"token\":\"no\"}")]);
        net.send(bob, &text(r#"42/guests,0["room:join",{"roomId":"r"}]"#));
        net.expect(bob, r#"43/guests,0[{"success":true"#);
        let joins = [text(&format!("40{{\"token\":\"{ann}\"}}")), text("40/guests,"), text(&format!("40/chat,{{\"token\":\"{ann}\"}}"))];
        let ann = net.websocket(0, "/socket.io/?EIO=4&transport=websocket", &joins);
        let packets = [
            vec![text(r#"42["message",{"roomId":"r","content":12345678901234567890.10}]"#), text(r#"421["room:join",{"roomId":"r"}]"#)],
            vec![masked(10, b"nobody asked"), text(r#"42/guests,7["room:join",{"roomId":"r"}]"#)],
            vec![text(r#"42/chat,["ping"]"#), text(r#"42/chat,99999999999999999999["join-room",{"room":"é😀"}]"#)],
            vec![text(r#"42["nothing of ours"]"#), text("0"), text("6"), text(r#"42["message",{"roomId":"r","content":"hi"}]"#)],
            vec![text("3"), text(r#"42/guests,["message",{"roomId":"r","content":"to guests"}]"#)],
            vec![text("41/chat,")],
        ];
        for packet in packets {
            net.send(ann, &packet.concat());
        }
        net.expect(ann, r#"43/chat,99999999999999999999[{"success":true"#);
        net.expect(bob, "to guests");
        net.send(ann, &text("2[\"no Engine.IO packet\"]"));
        net.send(bob, &text("1"));
        net.host.advance(26_000);
    });
}

#[test]
fn binary_attachments() {
    cut(|net| {
        let guests: Vec<usize> = (0..2)
            .map(|shard| {
                let frames = [text("40/guests,"), text(r#"42/guests,0["room:join",{"roomId":"r"}]"#)];
                net.websocket(shard, "/socket.io/?EIO=4&transport=websocket", &frames)
            })
            .collect();
        let event =
            r#"452-/guests,5["document:edit",{"roomId":"r","changes":[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]}]"#;
        let frames = [text(event), masked(2, &[7; 130]), fragment(2, false, b"in "), masked(9, b""), fragment(0, true, b"pieces")];
        net.send(guests[0], &frames.concat());
        net.expect(guests[0], r#"43/guests,5[{"success":true"#);
        net.expect(guests[1], "in pieces");
        // An attachment where none is due, and one that is missing.
        net.send(guests[0], &masked(2, b"unasked"));
        net.send(guests[1], &[text(event), text("3")].concat());
    });
}

#[test]
fn long_polling_on_two_shards_and_its_upgrade() {
    cut(|net| {
        let path = "/socket.io/?EIO=4&transport=polling";
        let (_, opened) = net.request(0, "GET", path, None);
        let sid = opened.split(r#""sid":""#).nth(1).map(|rest| rest[..20].to_owned()).unwrap_or_else(|| panic!("no session: {opened}"));
        let session = format!("{path}&sid={sid}");
        let (post, _) = net.request(1, "POST", &session, Some("40/guests,\u{1e}42/guests,0[\"room:join\",{\"roomId\":\"é😀\"}]"));
        net.expect(post, "200 OK");
        let (poll, _) = net.request(1, "GET", &session, None);
        net.expect(poll, "40/guests,{");
        let waiting = net.request(0, "GET", &session, None).0;
        let said = "42/guests,1[\"message\",{\"roomId\":\"é😀\",\"content\":\"hi\"}]";
        net.request(1, "POST", &session, Some(said));
        net.expect(waiting, "\"success\":true,\"message\"");
        net.request(1, "GET", &session, None);
        // The WebSocket comes to the other shard and moves.
        let upgrade = net.websocket(1, &session.replace("polling", "websocket"), &[text("2probe")]);
        net.expect(upgrade, "3probe");
        net.send(upgrade, &[text("5"), text(&said.replace("hi", "after the upgrade"))].concat());
        net.expect(upgrade, "after the upgrade");
        net.request(0, "GET", &session, None);
        net.send(upgrade, &text("41/guests,"));
    });
}

#[test]
fn polling_requests_that_are_refused() {
    cut(|net| {
        let path = "/socket.io/?EIO=4&transport=polling";
        let (_, opened) = net.request(0, "GET", path, None);
        let sid = opened.split(r#""sid":""#).nth(1).map(|rest| rest[..20].to_owned()).unwrap_or_else(|| panic!("no session: {opened}"));
        let session = format!("{path}&sid={sid}");
        for (method, target, body) in [
            ("OPTIONS", path, None),
            ("POST", path, Some("40")),
            ("GET", "/socket.io/?EIO=4&transport=polling&sid=AAAAAAAAAAAAAAAAAAAA", None),
            ("GET", "/socket.io/?EIO=5&transport=polling", None),
            ("DELETE", &session, None),
        ] {
            net.request(1, method, target, body);
        }
        let (garbage, _) = net.request(0, "POST", &session, Some("4\u{1e}\u{1e}abc\u{1e}40"));
        net.expect(garbage, "ok");
        net.request(1, "GET", &session, None);
        net.request(1, "GET", &session, None);
    });
}

#[test]
fn request_heads_good_and_bad() {
    cut(|net| {
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(2_100));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(100));
        for head in [
            "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /api/community/ws HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            "GET / HTTP/1.0\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}",
            &long,
            &many,
            &Host::upgrade_head("/nowhere", ""),
            &Host::upgrade_head("/api/community/ws?token=bad", ""),
            &Host::upgrade_head("/ws/fabric", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
            &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket&sid=AAAAAAAAAAAAAAAAAAAA", ""),
        ] {
            let client = net.open(0);
            net.send(client, head.as_bytes());
        }
    });
}
