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
    assert_eq!(request(&mut host, 0, "GET", &session, ""), (200, "1".into()), "the last poll says that it was");
    assert_eq!(request(&mut host, 0, "GET", &session, ""), refused(1));
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
    let nothings = "\u{1e}".repeat(1_000);
    for _ in 0..3 {
        assert_eq!(request(&mut host, 1, "POST", &session, &nothings), (200, "ok".into()));
    }
    assert_eq!(request(&mut host, 2, "GET", &session, ""), (200, "1".into()));
    assert_eq!(host.shards[0].links(), 0);
    // Nor can a WebSocket take over what is ending.
    let session = open(&mut host, 0);
    let socket = probe(&mut host, 1, &session);
    request(&mut host, 1, "POST", &session, "garbage");
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
