//! Engine.IO long-polling on hosts without sockets: every request of a session may come to any shard.

mod host;

use engine::config::{AuthMode, DialectKind};
use host::{Got, Host};

const PATH: &str = "/socket.io/?EIO=4&transport=polling";

fn host() -> Host {
    let mut rooms = host::endpoint("rooms", DialectKind::Rooms, "/");
    rooms.auth = AuthMode::None;
    let mut config = host::config(3, vec![rooms]);
    config.limits.message_bytes = 1_000;
    Host::new(config, 7)
}

/// Sends a request to a shard; the answer is taken by [`answer`].
fn send(host: &mut Host, shard: usize, method: &str, target: &str, body: &str) -> usize {
    let length = if method == "POST" { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
    // Node's clients make a new connection for each request.
    let head = "Host: test\r\nConnection: close\r\nOrigin: https://app.example.com\r\n";
    let request = format!("{method} {target} HTTP/1.1\r\n{head}{length}\r\n{body}");
    let client = host.connect(shard, &request);
    host.settle();
    client
}

fn answer(host: &mut Host, client: usize) -> Option<(u16, String)> {
    host.settle();
    host.take(client).into_iter().find_map(|got| if let Got::Http(status, body) = got { Some((status, body)) } else { None })
}

fn request(host: &mut Host, shard: usize, method: &str, target: &str, body: &str) -> (u16, String) {
    let client = send(host, shard, method, target, body);
    answer(host, client).unwrap_or_else(|| panic!("{method} {target} was not answered"))
}

/// Opens a session on a shard and returns the target of its requests.
fn open(host: &mut Host, shard: usize) -> String {
    let (status, body) = request(host, shard, "GET", PATH, "");
    assert!(status == 200 && body.starts_with("0{\"sid\":\"") && body.contains(r#""upgrades":["websocket"]"#), "{body}");
    format!("{PATH}&sid={}", &body[9..29])
}

fn refused(code: u8) -> (u16, String) {
    (400, engine::wire::eio::error(code).to_owned())
}

#[test]
fn requests_of_a_session_come_to_all_shards() {
    let mut host = host();
    let session = open(&mut host, 0);
    assert_eq!(request(&mut host, 1, "POST", &session, "40"), (200, "ok".into()));
    let (status, body) = request(&mut host, 2, "GET", &session, "");
    assert!(status == 200 && body.starts_with("40{\"sid\":\""), "{body}");
    // A poll waits until something is said, here to a room that is entered on the way.
    let poll = send(&mut host, 1, "GET", &session, "");
    assert_eq!(answer(&mut host, poll), None);
    let said = "420[\"room:join\",{\"roomId\":\"r\"}]\u{1e}42[\"message\",{\"roomId\":\"r\",\"content\":\"é😀\"}]";
    assert_eq!(request(&mut host, 2, "POST", &session, said), (200, "ok".into()));
    let (_, heard) = answer(&mut host, poll).expect("something was said");
    let rest = if heard.contains("é😀") { heard } else { heard + &request(&mut host, 0, "GET", &session, "").1 };
    assert!(rest.starts_with("430[{\"success\":true,\"room\"") && rest.contains("42[\"message\",") && rest.contains("é😀"), "{rest}");
    // The heartbeat, and its answer, by polls.
    let poll = send(&mut host, 0, "GET", &session, "");
    host.advance(26_000);
    assert_eq!(answer(&mut host, poll), Some((200, "2".into())));
    assert_eq!(request(&mut host, 1, "POST", &session, "3"), (200, "ok".into()));
    host.advance(60_000);
    assert_eq!(request(&mut host, 1, "GET", &session, ""), (200, "2".into()), "it lives, and is asked again");
    host.advance(61_000);
    assert_eq!(request(&mut host, 1, "GET", &session, ""), refused(1), "nobody answered");
    assert_eq!(host.stats[0].endpoints[0].connections.read(), 0);
}

#[test]
fn errors_are_those_of_the_protocol() {
    let mut host = host();
    let session = open(&mut host, 0);
    for (method, target, expected) in [
        ("GET", "/socket.io/?EIO=4", refused(0)),
        ("GET", "/socket.io/?EIO=4&transport=flash", refused(0)),
        ("GET", "/socket.io/?EIO=4&transport=websocket", refused(3)),
        ("GET", "/socket.io/?EIO=3&transport=polling", refused(5)),
        ("GET", "/socket.io/?transport=polling", refused(5)),
        ("POST", PATH, refused(2)),
        ("GET", "/socket.io/?EIO=4&transport=polling&sid=nope", refused(1)),
        ("GET", "/socket.io/?EIO=4&transport=polling&sid=AAAAAAAAAAAAAAAAAAAA", refused(1)),
        ("GET", "/socket.io/?EIO=4&transport=polling&sid=____________________", refused(1)),
        ("DELETE", &session, refused(3)),
    ] {
        assert_eq!(request(&mut host, 1, method, target, ""), expected, "{method} {target}");
    }
    assert_eq!(request(&mut host, 1, "POST", &session, &"x".repeat(1_001)).0, 413);
    assert_eq!(request(&mut host, 1, "GET", &session, ""), refused(1), "oversize ends the session");
}

#[test]
fn garbage_is_acknowledged_and_ends_the_session() {
    let mut host = host();
    let session = open(&mut host, 2);
    assert_eq!(request(&mut host, 0, "POST", &session, "abc"), (200, "ok".into()));
    assert_eq!(request(&mut host, 0, "GET", &session, ""), refused(1), "whoever speaks no Engine.IO is told no goodbye");
    let session = open(&mut host, 2);
    assert_eq!(request(&mut host, 0, "POST", &session, "4x"), (200, "ok".into()));
    assert_eq!(request(&mut host, 0, "GET", &session, ""), (200, "1".into()), "the last poll says that it was");
    assert_eq!(request(&mut host, 0, "GET", &session, ""), refused(1));
}

#[test]
fn the_last_word_comes_alone_and_may_be_forestalled() {
    // A client forgets what it has not yet looked at when it reads that the session is over.
    for forestalls in [false, true] {
        let mut host = host();
        let session = open(&mut host, 1);
        request(&mut host, 0, "POST", &session, "40\u{1e}44");
        let (status, heard) = request(&mut host, 2, "GET", &session, "");
        assert!(status == 200 && heard.starts_with("40{") && !heard.contains('\u{1e}'), "{heard}");
        let expected = if forestalls {
            assert_eq!(request(&mut host, 0, "POST", &session, "1"), (200, "ok".into()));
            refused(1)
        } else {
            (200, "1".into())
        };
        assert_eq!(request(&mut host, 0, "GET", &session, ""), expected);
        assert_eq!(request(&mut host, 0, "GET", &session, ""), refused(1));
    }
}

#[test]
fn a_goodbye_comes_after_all_that_was_said_before() {
    let mut host = host();
    let session = open(&mut host, 0);
    request(&mut host, 1, "POST", &session, "40");
    let (_, connected) = request(&mut host, 1, "GET", &session, "");
    request(&mut host, 1, "POST", &session, "420[\"room:join\",{\"roomId\":\"r\"}]");
    while !request(&mut host, 1, "GET", &session, "").1.contains("430[") {}
    let content = "x".repeat(200);
    for number in 0..6 {
        request(&mut host, 1, "POST", &session, &format!("42[\"message\",{{\"roomId\":\"r\",\"content\":\"{number}{content}\"}}]"));
    }
    let id = engine::ids::Sid::parse(&connected[10..30]).expect("a connection's id");
    let question = engine::Question::CloseConnection { id, reason: None };
    host.shards[usize::from(id.shard().0)].handle_parcel(host.now, engine::shard::parcel::Parcel::Ask { ask: 1, question });
    let mut heard = String::new();
    while !heard.ends_with("\u{1e}41\u{1e}1") {
        let (status, body) = request(&mut host, 2, "GET", &session, "");
        assert_eq!(status, 200, "{heard}");
        heard = format!("{heard}\u{1e}{body}");
    }
    for number in 0..6 {
        assert!(heard.contains(&format!("\"content\":\"{number}x")), "message {number} is missing: {heard}");
    }
    assert_eq!(request(&mut host, 1, "GET", &session, ""), refused(1));
    assert_eq!(host.stats.iter().map(|stats| stats.outbox_bytes.read()).sum::<u64>(), 0);
}

#[test]
fn two_polls_at_once_end_the_session() {
    let mut host = host();
    let session = open(&mut host, 1);
    let first = send(&mut host, 0, "GET", &session, "");
    let second = send(&mut host, 2, "GET", &session, "");
    assert_eq!(answer(&mut host, first), Some((200, "1".into())));
    assert_eq!(answer(&mut host, second), Some((400, String::new())));
    assert_eq!(request(&mut host, 1, "GET", &session, ""), refused(1));
}

#[test]
fn an_aborted_poll_ends_the_session_and_its_connections() {
    let mut host = host();
    let session = open(&mut host, 1);
    request(&mut host, 0, "POST", &session, "40");
    request(&mut host, 0, "GET", &session, "");
    assert_eq!(host.stats[1].endpoints[0].connections.read(), 1);
    let poll = send(&mut host, 2, "GET", &session, "");
    host.hang_up(poll);
    host.settle();
    assert_eq!(request(&mut host, 1, "GET", &session, ""), refused(1));
    assert_eq!(host.stats[1].endpoints[0].connections.read(), 0);
}

/// A WebSocket that asks for the session, on any shard; it has probed and was answered.
fn probe(host: &mut Host, shard: usize, session: &str) -> usize {
    let client = host.connect(shard, &Host::upgrade_head(&session.replace("polling", "websocket"), ""));
    host.settle();
    host.say(client, "2probe");
    host.settle();
    assert_eq!(host.take(client), [Got::Http(101, String::new()), Got::Text("3probe".into())]);
    client
}

#[test]
fn an_upgrade_keeps_order_and_loses_nothing() {
    let mut host = host();
    for shard in 0..3 {
        let session = open(&mut host, 0);
        request(&mut host, 1, "POST", &session, "40\u{1e}420[\"room:join\",{\"roomId\":\"r\"}]");
        let (_, first) = request(&mut host, 1, "GET", &session, "");
        assert!(first.starts_with("40{"), "{first}");
        if !first.contains("430[") {
            request(&mut host, 1, "GET", &session, "");
        }
        let poll = send(&mut host, 2, "GET", &session, "");
        let polling = |host: &Host| host.stats.iter().map(|stats| stats.endpoints[0].polling.read()).sum::<u64>();
        assert_eq!(polling(&host), 1);
        let socket = probe(&mut host, shard, &session);
        assert_eq!(answer(&mut host, poll), Some((200, "6".into())), "the pending poll is answered with nothing");
        // What is said now waits for the WebSocket.
        request(&mut host, 1, "POST", &session, "42[\"message\",{\"roomId\":\"r\",\"content\":\"one\"}]");
        assert_eq!(request(&mut host, 1, "GET", &session, ""), (200, "6".into()));
        request(&mut host, 2, "POST", &session, "42[\"message\",{\"roomId\":\"r\",\"content\":\"two\"}]");
        host.say(socket, "5");
        host.say(socket, "42[\"message\",{\"roomId\":\"r\",\"content\":\"three\"}]");
        host.settle();
        let heard: Vec<String> = host.texts(socket);
        let order: Vec<_> = heard.iter().filter_map(|text| ["one", "two", "three"].into_iter().find(|word| text.contains(word))).collect();
        assert_eq!(order, ["one", "two", "three"], "{heard:?}");
        assert_eq!(request(&mut host, 1, "GET", &session, ""), refused(3), "the session is the WebSocket's now");
        assert_eq!(request(&mut host, 2, "POST", &session, "41"), refused(3));
        let second = host.connect(2, &Host::upgrade_head(&session.replace("polling", "websocket"), ""));
        host.settle();
        assert_eq!(host.take(second), [Got::Http(101, String::new()), Got::Close(None, String::new()), Got::End(false)]);
        assert_eq!(polling(&host), 0);
        // Casts, heartbeat and goodbye reach it there.
        host.advance(26_000);
        assert!(host.texts(socket).contains(&"2".to_owned()));
        host.say(socket, "41");
        host.settle();
        assert_eq!(host.stats.iter().map(|stats| stats.endpoints[0].connections.read()).sum::<u64>(), 0);
    }
}

#[test]
fn a_probe_that_goes_leaves_the_session() {
    let mut host = host();
    let session = open(&mut host, 0);
    let socket = probe(&mut host, 2, &session);
    host.hang_up(socket);
    host.settle();
    request(&mut host, 1, "POST", &session, "40");
    assert!(request(&mut host, 1, "GET", &session, "").1.starts_with("40{"));
    let silent = probe(&mut host, 1, &session);
    host.advance(11_000);
    assert!(!host.clients[silent].open, "it had ten seconds");
    let poll = send(&mut host, 1, "GET", &session, "");
    host.advance(26_000);
    assert_eq!(answer(&mut host, poll), Some((200, "2".into())));
}

#[test]
fn a_client_that_does_not_poll_is_a_slow_reader() {
    let mut rooms = host::endpoint("rooms", DialectKind::Rooms, "/");
    rooms.auth = AuthMode::None;
    let mut config = host::config(2, vec![rooms]);
    config.limits.outbox_bytes = 5_000;
    let mut host = Host::new(config, 7);
    let session = open(&mut host, 0);
    request(&mut host, 1, "POST", &session, "40\u{1e}42[\"room:join\",{\"roomId\":\"r\"}]");
    for _ in 0..50 {
        request(&mut host, 1, "POST", &session, "42[\"message\",{\"roomId\":\"r\",\"content\":\"a hundred bytes or so are in here\"}]");
    }
    assert_eq!(request(&mut host, 1, "GET", &session, ""), refused(1));
}

#[test]
fn a_full_process_refuses_sessions_and_keeps_nothing_of_them() {
    let mut rooms = host::endpoint("rooms", DialectKind::Rooms, "/");
    rooms.auth = AuthMode::None;
    let mut config = host::config(1, vec![rooms]);
    config.limits.connections = Some(1);
    config.limits.connections_per_address = 3;
    let mut host = Host::new(config, 7);
    for _ in 0..10 {
        assert_eq!(request(&mut host, 0, "GET", PATH, "").0, 503);
    }
    assert_eq!(host.shards[0].links(), 0);
}

#[test]
fn whoever_is_told_goodbye_is_not_listened_to_any_more() {
    let mut host = host();
    let session = open(&mut host, 0);
    let nothings = format!("4x{}", "\u{1e}".repeat(998));
    for _ in 0..3 {
        assert_eq!(request(&mut host, 1, "POST", &session, &nothings), (200, "ok".into()));
    }
    assert_eq!(request(&mut host, 2, "GET", &session, ""), (200, "1".into()));
    assert_eq!(host.shards[0].links(), 0);
    // Nor can a WebSocket take over what is ending.
    let session = open(&mut host, 0);
    let socket = probe(&mut host, 1, &session);
    request(&mut host, 1, "POST", &session, "4x");
    host.say(socket, "5");
    host.settle();
    assert!(!host.clients[socket].open, "the socket is closed");
    host.advance(31_000);
    assert_eq!(host.shards.iter().map(engine::shard::Shard::links).sum::<usize>(), 0);
}

#[test]
fn a_probe_that_breaks_the_protocol_leaves_the_session() {
    let mut host = host();
    let session = open(&mut host, 0);
    let socket = probe(&mut host, 1, &session);
    host.write(socket, &[0x81, 0x00]);
    host.settle();
    assert!(!host.clients[socket].open, "an unmasked frame");
    request(&mut host, 1, "POST", &session, "40");
    assert!(request(&mut host, 2, "GET", &session, "").1.starts_with("40{"), "polls are answered with what is said again");
}

#[test]
fn an_answer_that_comes_too_late_ends_the_session() {
    let mut host = host();
    let session = open(&mut host, 0);
    let poll = send(&mut host, 1, "GET", &session, "");
    // The client goes while the answer is on its way to its shard: what it said would be lost without a word.
    host.connect(2, &format!("POST {session} HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n40"));
    host.pump(2);
    while host.step(2, 0) {}
    // The user's home may be another shard; only the lane to the poll's own is left to wait.
    for _ in 0..4 {
        for (from, to) in [(0, 0), (0, 2), (2, 0)] {
            host.pump(from);
            while host.step(from, to) {}
        }
    }
    host.pump(0);
    host.hang_up(poll);
    host.settle();
    assert_eq!(request(&mut host, 1, "GET", &session, ""), refused(1));
}

/// Sessions on two shards, in one room.
fn two_in_a_room(host: &mut Host) -> [String; 2] {
    [0, 1].map(|shard| {
        let session = open(host, shard);
        request(host, 2, "POST", &session, "40\u{1e}42[\"room:join\",{\"roomId\":\"r\"}]");
        request(host, 1 - shard, "GET", &session, "");
        session
    })
}

#[test]
fn attachments_come_in_later_posts_and_go_in_whole_frames() {
    let mut host = host();
    let [ann, bob] = two_in_a_room(&mut host);
    // The others' coming.
    let poll = send(&mut host, 1, "GET", &ann, "");
    let _ = answer(&mut host, poll);
    let edit =
        "452-3[\"document:edit\",{\"roomId\":\"r\",\"changes\":[{\"_placeholder\":true,\"num\":1},{\"_placeholder\":true,\"num\":0}]}]";
    assert_eq!(request(&mut host, 1, "POST", &ann, edit), (200, "ok".into()));
    // The heartbeat may come in between.
    assert_eq!(request(&mut host, 2, "POST", &ann, "3"), (200, "ok".into()));
    assert_eq!(request(&mut host, 2, "POST", &ann, "bAP8="), (200, "ok".into()));
    let poll = send(&mut host, 0, "GET", &bob, "");
    assert_eq!(answer(&mut host, poll), None, "an attachment is missing");
    assert_eq!(request(&mut host, 0, "POST", &ann, "b\u{1e}421[\"typing\",{\"roomId\":\"r\",\"isTyping\":false}]"), (200, "ok".into()));
    let (_, heard) = answer(&mut host, poll).expect("the edit");
    let heard = if heard.contains("typing") { heard } else { format!("{heard}\u{1e}{}", request(&mut host, 1, "GET", &bob, "").1) };
    let packets: Vec<&str> = heard.split('\u{1e}').collect();
    assert!(packets[0].starts_with("452-[\"document:edit\",{") && packets[0].ends_with("{\"_placeholder\":true,\"num\":0}]}]"), "{heard}");
    assert_eq!(packets[1..3], ["bAP8=", "b"]);
    assert!(packets[3].starts_with("42[\"typing\""), "{heard}");
    // Nothing waited at the session itself but its answers.
    let poll = send(&mut host, 1, "GET", &ann, "");
    assert_eq!(answer(&mut host, poll), Some((200, "433[{\"success\":true}]\u{1e}431[{\"success\":true}]".into())));
}

#[test]
fn a_message_is_heard_as_binary_by_poll_and_websocket() {
    let mut host = host();
    let [ann, bob] = two_in_a_room(&mut host);
    let socket = host.connect(2, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
    host.say(socket, "40");
    host.say(socket, "42[\"room:join\",{\"roomId\":\"r\"}]");
    host.settle();
    host.take(socket);
    request(&mut host, 1, "GET", &bob, "");
    host.say(socket, "451-0[\"message\",{\"roomId\":\"r\",\"content\":\"x\",\"metadata\":{\"_placeholder\":true,\"num\":0}}]");
    host.frame(socket, 2, &[1, 2, 3]);
    host.settle();
    let got = host.take(socket);
    assert!(
        matches!(&got[..], [Got::Text(ack), Got::Binary(one), Got::Text(event), Got::Binary(two)]
        if ack.starts_with("461-0[") && event.starts_with("451-[\"message\",") && one == two && one == &[1, 2, 3]),
        "{got:?}"
    );
    for session in [&ann, &bob] {
        let mut heard = String::new();
        while !heard.contains("451-") {
            heard = request(&mut host, 0, "GET", session, "").1;
        }
        assert!(heard.ends_with("\u{1e}bAQID"), "{heard}");
    }
}

#[test]
fn what_is_no_base64_ends_the_session() {
    for bad in ["bAQI", "bA-I=", "b AQI=", "bAQI==", "bAQIDA"] {
        let mut host = host();
        let session = open(&mut host, 0);
        request(&mut host, 1, "POST", &session, &format!("40\u{1e}451-[\"x\"]\u{1e}{bad}"));
        assert!(request(&mut host, 1, "GET", &session, "").1.starts_with("40{"), "{bad}");
        assert_eq!(request(&mut host, 1, "GET", &session, ""), (200, "1".into()), "{bad}");
        assert_eq!(request(&mut host, 1, "GET", &session, ""), refused(1), "{bad}");
    }
}

#[test]
fn attachments_of_one_packet_are_together_no_longer_than_a_message() {
    use base64::Engine as _;
    let mut host = host();
    let attachment = |bytes: usize| format!("b{}", base64::engine::general_purpose::STANDARD.encode(vec![7; bytes]));
    for (last, closes) in [(490, false), (491, true)] {
        let session = open(&mut host, 0);
        request(&mut host, 1, "POST", &session, "40");
        request(&mut host, 1, "GET", &session, "");
        // 11 bytes of text, then two attachments in a body each.
        request(&mut host, 1, "POST", &session, "452-[\"abc\"]");
        request(&mut host, 1, "POST", &session, &attachment(499));
        request(&mut host, 1, "POST", &session, &attachment(last));
        let poll = send(&mut host, 1, "GET", &session, "");
        assert_eq!(answer(&mut host, poll), closes.then(|| (200, "1".to_owned())), "{last}");
    }
}

#[test]
fn an_upgrade_carries_a_packet_that_is_not_all_there() {
    let mut host = host();
    let session = open(&mut host, 0);
    request(&mut host, 1, "POST", &session, "40\u{1e}420[\"room:join\",{\"roomId\":\"r\"}]");
    while !request(&mut host, 1, "GET", &session, "").1.contains("430[") {}
    request(
        &mut host,
        1,
        "POST",
        &session,
        "452-1[\"message\",{\"roomId\":\"r\",\"content\":\"x\",\"metadata\":{\"_placeholder\":true,\"num\":1}}]\u{1e}b",
    );
    let socket = probe(&mut host, 1, &session);
    host.say(socket, "5");
    host.frame(socket, 2, &[9]);
    host.settle();
    let got = host.take(socket);
    assert!(
        matches!(&got[..], [Got::Text(ack), Got::Binary(one), Got::Binary(two), Got::Text(_), ..]
        if ack.starts_with("462-1[{\"success\":true") && one.is_empty() && two == &[9]),
        "{got:?}"
    );
}

#[test]
fn attachments_for_a_namespace_that_was_left_are_nobodys() {
    let namespace = |bind: &str| {
        let mut endpoint = host::endpoint(bind, DialectKind::Rooms, bind);
        endpoint.auth = AuthMode::None;
        endpoint
    };
    let mut host = Host::new(host::config(2, vec![namespace("/"), namespace("/b")]), 1);
    let client = host.connect(0, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
    host.say(client, "40");
    host.say(client, "40/b,");
    host.settle();
    let texts = host.texts(client);
    let connected = texts.iter().find(|text| text.starts_with("40{")).expect("connected to the main namespace");
    let id = engine::ids::Sid::parse(&connected[10..30]).expect("a connection's id");
    host.say(client, "452-[\"message\",{}]");
    host.frame(client, 2, &[1]);
    let question = engine::Question::CloseConnection { id, reason: None };
    host.shards[0].handle_parcel(host.now, engine::shard::parcel::Parcel::Ask { ask: 1, question });
    host.frame(client, 2, &[2]);
    host.say(client, "42/b,5[\"room:join\",{\"roomId\":\"r\"}]");
    host.settle();
    let texts = host.texts(client);
    assert!(texts.contains(&"41".to_owned()) && texts.iter().any(|text| text.starts_with("43/b,5[{\"success\":true")), "{texts:?}");
    host.frame(client, 2, &[3]);
    host.settle();
    assert!(!host.clients[client].open, "the packet was over");
}
