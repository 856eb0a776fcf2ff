//! The HTTP side of Engine.IO on hosts without sockets: connections that stay, bodies, and what answers carry beside a session's words.

mod host;

use std::io::Read as _;

use engine::config::{AuthMode, Config, DialectKind};
use engine::fault::Refusal;
use engine::limits::{KEEP_ALIVE_MS, PIPELINED_BYTES_MAX};
use host::{Got, Host};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

const PATH: &str = "/socket.io/?EIO=4&transport=polling";

fn config() -> Config {
    let mut rooms = host::endpoint("rooms", DialectKind::Rooms, "/");
    rooms.auth = AuthMode::None;
    host::config(3, vec![rooms])
}

fn request(method: &str, target: &str, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let length = if method == "POST" { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
    format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{headers}{length}\r\n{body}")
}

fn get(target: &str, headers: &[&str]) -> String {
    request("GET", target, headers, "")
}

/// The last answer a client got: its head in lower case, its body.
fn last(host: &Host, client: usize) -> (String, String) {
    let (head, body) = host.clients[client].answers.last().expect("an answer");
    (head.to_lowercase(), String::from_utf8_lossy(body).into_owned())
}

/// A connection of its own, and what it is answered.
fn ask(host: &mut Host, shard: usize, request: &str) -> (String, String) {
    let client = host.connect(shard, request);
    host.clients[client].asks_head = request.starts_with("HEAD");
    host.settle();
    last(host, client)
}

/// Sends another request over a connection and returns the answer to it.
fn ask_again(host: &mut Host, client: usize, request: &str) -> (String, String) {
    let before = host.clients[client].answers.len();
    host.write(client, request.as_bytes());
    host.settle();
    assert_eq!(host.clients[client].answers.len(), before + 1, "one answer to {request}");
    last(host, client)
}

fn sid_of(body: &str) -> String {
    assert!(body.starts_with("0{\"sid\":\""), "{body}");
    body[9..29].to_owned()
}

/// Opens a session; the connection stays.
fn open(host: &mut Host, shard: usize) -> (usize, String) {
    let client = host.connect(shard, &get(PATH, &[]));
    host.settle();
    let (head, body) = last(host, client);
    assert!(head.contains("\r\nconnection: keep-alive\r\nkeep-alive: timeout=75\r\n"), "{head}");
    (client, format!("{PATH}&sid={}", sid_of(&body)))
}

fn links(host: &Host) -> usize {
    host.shards.iter().map(engine::shard::Shard::links).sum()
}

#[test]
fn one_connection_carries_a_whole_session_and_others() {
    let mut host = Host::new(config(), 7);
    let (client, session) = open(&mut host, 0);
    let elsewhere = open(&mut host, 1).1;
    for session in [&session, &elsewhere] {
        assert_eq!(ask_again(&mut host, client, &request("POST", session, &[], "40")).1, "ok");
        assert!(ask_again(&mut host, client, &get(session, &[])).1.starts_with("40{"));
    }
    let (head, body) = ask_again(&mut host, client, &get("/socket.io/?EIO=4", &[]));
    assert!(head.contains("connection: keep-alive") && body.contains("Transport unknown"), "{head}");
    // A poll waits on it as on any other. The first hears who has come online meanwhile.
    for heard in ["42[\"user:status\"", "2"] {
        host.write(client, get(&session, &[]).as_bytes());
        host.advance(26_000);
        assert!(last(&host, client).1.starts_with(heard), "{:?}", last(&host, client));
    }
    assert_eq!(ask_again(&mut host, client, &request("POST", &session, &[], "3")).1, "ok");
    // The connection may become another session's WebSocket, on its shard.
    host.take(client);
    host.write(client, Host::upgrade_head(&elsewhere.replace("polling", "websocket"), "").as_bytes());
    host.settle();
    host.say(client, "2probe");
    host.settle();
    assert_eq!(host.take(client), [Got::Http(101, String::new()), Got::Text("3probe".into())]);
    host.say(client, "5");
    host.settle();
    assert_eq!(host.clients[client].shard, 1);
}

#[test]
fn who_comes_too_much_is_not_let_in_by_a_second_request() {
    let mut config = config();
    config.limits.connections = Some(2);
    let mut host = Host::new(config, 7);
    let inside: Vec<usize> = (0..2).map(|_| host.connect(0, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""))).collect();
    host.settle();
    for first in [get("/socket.io/", &[]), request("OPTIONS", PATH, &[], ""), get(&format!("{PATH}&sid=AAAAAAAAAAAAAAAAAAAA"), &[])] {
        let (head, _) = ask(&mut host, 0, &first);
        assert!(head.contains("\r\nconnection: close"), "{head}");
    }
    assert_eq!(links(&host), 2);
    host.hang_up(inside[0]);
    let (head, _) = ask(&mut host, 0, &get("/socket.io/", &[]));
    assert!(head.contains("\r\nconnection: keep-alive"), "there is a place again: {head}");
}

#[test]
fn an_upgrade_has_no_body() {
    let mut host = Host::new(config(), 7);
    let session = open(&mut host, 0).1.replace("polling", "websocket");
    for target in ["/socket.io/?EIO=4&transport=websocket", &session] {
        let (head, _) = ask(&mut host, 0, &(Host::upgrade_head(target, "Content-Length: 6\r\n") + "GET / "));
        assert!(head.starts_with("http/1.1 400 ") && head.contains("\r\nconnection: close"), "{target}: {head}");
    }
}

#[test]
fn the_header_says_what_becomes_of_the_connection() {
    let mut host = Host::new(config(), 7);
    for (request, stays) in [
        (get(PATH, &[]), true),
        (get(PATH, &["Connection: close"]), false),
        (get(PATH, &[]).replace("HTTP/1.1", "HTTP/1.0"), false),
        (get(PATH, &["Connection: keep-alive"]).replace("HTTP/1.1", "HTTP/1.0"), true),
        (get(PATH, &["Content-Length: 3"]), false),
        (get("/socket.io/?EIO=4", &[]), true),
        (request("POST", PATH, &[], "40"), false),
        (request("POST", PATH, &[], ""), true),
        (request("HEAD", PATH, &[], ""), true),
        (request("OPTIONS", PATH, &[], ""), true),
        ("nonsense\r\n\r\n".to_owned(), false),
    ] {
        let client = host.connect(0, &request);
        host.clients[client].asks_head = request.starts_with("HEAD");
        host.settle();
        let (head, _) = last(&host, client);
        let told = if head.contains("connection: keep-alive") { Some(true) } else { head.contains("connection: close").then_some(false) };
        assert_eq!((told, host.clients[client].open), (Some(stays), stays), "{request}{head}");
    }
}

#[test]
fn requests_sent_ahead_are_answered_in_their_order() {
    let mut host = Host::new(config(), 7);
    let (client, session) = open(&mut host, 0);
    let ahead = [
        request("POST", &session, &[], "40"),
        get(&session, &[]),
        request("POST", &session, &["X: y"], "42[\"message\",{}]"),
        get(&session, &[]),
        get("/socket.io/?EIO=4", &[]),
        get("/other?x=1", &[]),
        "rest".to_owned(),
    ];
    let mut whole = Host::new(config(), 7);
    let (other, _) = open(&mut whole, 0);
    // All at once, and byte by byte.
    whole.write(other, ahead.concat().as_bytes());
    whole.settle();
    for byte in ahead.concat().bytes() {
        host.write(client, &[byte]);
        host.settle();
    }
    for (host, client) in [(&host, client), (&whole, other)] {
        let bodies: Vec<_> = host.clients[client].answers[1..].iter().map(|(_, body)| String::from_utf8_lossy(body).into_owned()).collect();
        assert_eq!(bodies.len(), 5, "{bodies:?}");
        assert!(bodies[0] == "ok" && bodies[1].starts_with("40{") && bodies[2] == "ok", "{bodies:?}");
        assert!(bodies[3].starts_with("42[") && bodies[4].contains("Transport"), "{bodies:?}");
        assert!(host.clients[client].handed_over);
    }
    // The HTTP server gets what was not used, from the first byte of its request on.
    assert_eq!(String::from_utf8_lossy(&whole.clients[other].unread), ahead[5..].concat());
}

/// Requests of several sessions, cut anywhere, over connections of all shards, with every parcel between them delayed at random: each
/// connection gets its own answers, in the order of its requests.
#[test]
fn answers_never_change_places() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut host = Host::new(config(), seed);
        let sessions: Vec<String> = (0..4).map(|number| open(&mut host, number % 3).1).collect();
        let mut clients = Vec::new();
        for number in 0..6 {
            let (mut bytes, mut expected) = (String::new(), Vec::new());
            for _ in 0..random.random_range(1..12) {
                let session = &sessions[random.random_range(0..sessions.len())];
                let (request, answer) = match random.random_range(0..5) {
                    0 => (request("POST", session, &[], "6\u{1e}6"), "200 ok"),
                    1 => (
                        format!("POST {session} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n6\r\n0\r\n\r\n"),
                        "200 ok",
                    ),
                    2 => (request("PUT", session, &[], ""), r#"400 {"code":3,"message":"Bad request"}"#),
                    3 => (get(&format!("{PATH}&sid=AQAAAAAAAAAAAAAAAAAA"), &[]), r#"400 {"code":1,"message":"Session ID unknown"}"#),
                    _ => (get("/socket.io/?EIO=4", &[]), r#"400 {"code":0,"message":"Transport unknown"}"#),
                };
                bytes += &request;
                expected.push(answer);
            }
            clients.push((host.connect(number % 3, ""), bytes.into_bytes(), expected));
        }
        while clients.iter().any(|(_, bytes, _)| !bytes.is_empty()) {
            let (client, bytes, _) = &mut clients[random.random_range(0..6)];
            let cut = random.random_range(0..=bytes.len().min(200));
            host.write(*client, &bytes.drain(..cut).collect::<Vec<_>>());
            host.pump(random.random_range(0..3));
            host.step(random.random_range(0..3), random.random_range(0..3));
        }
        host.settle();
        for (client, _, expected) in &clients {
            let answers = host.clients[*client].answers.iter();
            let heard: Vec<_> = answers.map(|(head, body)| format!("{} {}", &head[9..12], String::from_utf8_lossy(body))).collect();
            assert_eq!(&heard, expected, "seed {seed}");
        }
        host.advance(3 * KEEP_ALIVE_MS);
        assert_eq!(links(&host), 0, "seed {seed}");
    }
}

#[test]
fn what_comes_ahead_of_a_due_answer_is_bounded_and_the_abort_is_seen() {
    let mut host = Host::new(config(), 7);
    let (client, session) = open(&mut host, 0);
    ask_again(&mut host, client, &request("POST", &session, &[], "40"));
    ask_again(&mut host, client, &get(&session, &[]));
    host.write(client, get(&session, &[]).as_bytes());
    host.settle();
    let link = host.clients[client].link;
    assert!(!host.shards[0].is_waiting(link), "it is read, so that its end is seen");
    host.write(client, &vec![b'x'; PIPELINED_BYTES_MAX + 1]);
    assert!(host.shards[0].is_waiting(link));
    host.hang_up(client);
    host.settle();
    assert!(ask(&mut host, 1, &get(&session, &[])).1.contains("Session ID unknown"));
    host.advance(2 * KEEP_ALIVE_MS);
    assert_eq!(links(&host), 0);
}

#[test]
fn an_idle_connection_is_closed_without_a_word_and_a_begun_head_is_not_waited_for_long() {
    let mut host = Host::new(config(), 7);
    let (idle, _) = open(&mut host, 0);
    let (slow, _) = open(&mut host, 0);
    host.take(idle);
    host.take(slow);
    host.write(slow, b"GET /sock");
    host.advance(11_000);
    assert!(matches!(host.take(slow)[..], [Got::Http(408, _), Got::End(false)]));
    assert!(host.clients[idle].open);
    host.advance(KEEP_ALIVE_MS - 11_000 + 200);
    assert_eq!(host.take(idle), [Got::End(false)]);
    assert_eq!(host.stats[0].unrouted().refused[Refusal::Timeout.index()].read(), 1);
}

#[test]
fn draining_closes_idle_connections_and_answers_the_others() {
    let mut host = Host::new(config(), 7);
    let (idle, session) = open(&mut host, 0);
    let poll = host.connect(1, &get(&session, &[]));
    host.settle();
    host.take(idle);
    for shard in 0..3 {
        host.shards[shard].handle_parcel(host.now, engine::shard::parcel::Parcel::Drain { over_ms: 0 });
    }
    host.advance(200);
    assert_eq!(host.take(idle), [Got::End(false)]);
    let (head, body) = last(&host, poll);
    assert!(head.contains("connection: close") && body == "1", "{head} {body}");
    host.advance(5_000);
    assert!(host.shards.iter().all(engine::shard::Shard::is_drained));
}

#[test]
fn places_at_an_address_are_counted_exactly() {
    let mut limited = config();
    limited.limits.connections_per_address = 6;
    let mut host = Host::new(limited, 7);
    // Each holds a place for its session, and as long as half of them are free one for its connection.
    let opened: Vec<_> = (0..3).map(|_| host.connect(0, &get(PATH, &[]))).collect();
    host.settle();
    let stay = opened.iter().filter(|client| host.clients[**client].open).count();
    assert_eq!(stay, 1, "1 session and 1 connection, then 2 sessions more");
    for client in opened {
        let sid = sid_of(&last(&host, client).1);
        ask(&mut host, 0, &request("POST", &format!("{PATH}&sid={sid}"), &["Connection: close"], "1"));
        host.hang_up(client);
    }
    host.settle();
    host.advance(40_000);
    assert_eq!(links(&host), 0);
    // An upgrade over a connection that stayed holds one place and not two.
    for _ in 0..20 {
        let client = host.connect(0, &get(PATH, &[]));
        host.settle();
        assert!(host.clients[client].open, "all places have been given back");
        let session = format!("{PATH}&sid={}", sid_of(&last(&host, client).1));
        host.write(client, Host::upgrade_head(&session.replace("polling", "websocket"), "").as_bytes());
        host.say(client, "2probe");
        host.say(client, "5");
        host.settle();
        host.hang_up(client);
        // A kept connection that becomes a WebSocket without a session.
        let client = host.connect(0, &get(PATH.split('&').next().expect("a path"), &[]));
        host.settle();
        host.write(client, Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", "").as_bytes());
        host.settle();
        assert!(host.clients[client].got.contains(&Got::Http(101, String::new())));
        host.hang_up(client);
        host.advance(11_000);
    }
    assert_eq!(links(&host), 0);
    let full: Vec<_> = (0..7).map(|_| ask(&mut host, 0, &get(PATH, &["Connection: close"])).0).collect();
    assert_eq!(full.iter().filter(|head| head.starts_with("http/1.1 200")).count(), 6);
    assert!(full[6].starts_with("http/1.1 429"), "{}", full[6]);
}

#[test]
fn a_proxys_connection_carries_requests_of_many_clients() {
    let mut proxied = config();
    proxied.trusted_proxies = vec![[127, 0, 0, 1].into()];
    proxied.limits.connections_per_address = 1;
    let mut host = Host::new(proxied, 7);
    let client = host.connect(0, &get(PATH, &["X-Forwarded-For: 192.0.2.1"]));
    host.settle();
    for (address, status) in [("192.0.2.2", "200"), ("192.0.2.3", "200"), ("192.0.2.1", "429")] {
        let (head, _) = ask_again(&mut host, client, &get(PATH, &[&format!("X-Forwarded-For: {address}")]));
        assert_eq!(&head[9..12], status, "{address}");
    }
}

#[test]
fn bodies_come_whole_or_in_chunks() {
    let mut host = Host::new(config(), 7);
    let (client, session) = open(&mut host, 0);
    let elsewhere = open(&mut host, 1).1;
    for session in [&session, &elsewhere] {
        let chunked = format!("POST {session} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n4\r\n1\r\n0\r\n0\r\n\r\n");
        assert_eq!(ask_again(&mut host, client, &chunked).1, "ok");
        assert!(ask_again(&mut host, client, &get(session, &[])).1.starts_with("40{"));
    }
    let waiting = format!("POST {session} HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 6\r\n\r\n");
    let (head, _) = ask_again(&mut host, client, &waiting);
    assert!(head.starts_with("http/1.1 100 continue"), "{head}");
    assert_eq!(ask_again(&mut host, client, "42[\"x\"").1, "ok");
}

#[test]
fn bodies_that_cannot_be_read_end_session_and_connection() {
    for (headers, body, status) in [
        ("Transfer-Encoding: chunked\r\n", "x\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", "1\r\n4\r\n0\r\n\r\n", 400),
        ("", "", 400),
        ("Content-Length: 3\r\n", "4\u{fffd}", 400),
        ("Content-Length: 1000001\r\n", "", 413),
        ("Content-Length: 99999999999999999999999\r\n", "", 413),
        ("Transfer-Encoding: chunked\r\n", "f4241\r\n", 413),
        ("Content-Type: application/octet-stream\r\nContent-Length: 2\r\n", "40", 400),
    ] {
        for shard in [0, 2] {
            let mut host = Host::new(config(), 7);
            let session = open(&mut host, 0).1;
            let bytes = [format!("POST {session} HTTP/1.1\r\nHost: test\r\n{headers}\r\n").as_bytes(), body.as_bytes()].concat();
            // A whole replacement character is no fault; two thirds of one are.
            let cut = bytes.len() - usize::from(body.contains('\u{fffd}'));
            let client = host.connect(shard, "");
            host.write(client, &bytes[..cut]);
            host.settle();
            let (head, _) = last(&host, client);
            assert!(head.starts_with(&format!("http/1.1 {status} ")) && head.contains("connection: "), "{headers:?} {body:?}: {head}");
            let is_clear = headers.is_empty() || body.contains('\u{fffd}');
            assert_eq!(host.clients[client].open, is_clear, "{headers:?} {body:?}: where would the next request begin?");
            assert!(ask(&mut host, 1, &get(&session, &[])).1.contains("Session ID unknown"), "{headers:?}");
        }
    }
}

#[test]
fn a_body_for_nobody_is_not_waited_for() {
    let mut host = Host::new(config(), 7);
    let nobody = format!("{PATH}&sid=AAAAAAAAAAAAAAAAAAAA");
    let head = format!("POST {nobody} HTTP/1.1\r\nHost: test\r\nContent-Length: 900000\r\n\r\n");
    let (head, body) = ask(&mut host, 0, &head);
    assert!(head.contains("connection: close") && body.contains("Session ID unknown"), "{head}");
    // One that stops coming is not waited for either.
    let (client, session) = open(&mut host, 0);
    host.take(client);
    host.write(client, format!("POST {session} HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n40").as_bytes());
    host.advance(60_200);
    assert!(matches!(host.take(client)[..], [Got::Http(408, _), Got::End(false)]));
}

#[test]
fn unfinished_bodies_of_a_shard_are_bounded_together() {
    let mut host = Host::new(config(), 7);
    let foreign = format!("{PATH}&sid={}", "AQAAAAAAAAAAAAAAAAAA");
    let head = format!("POST {foreign} HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n");
    let megabyte = vec![b'x'; 999_999];
    let clients: Vec<_> = (0..70)
        .map(|_| {
            let client = host.connect(0, &head);
            host.write(client, &megabyte);
            client
        })
        .collect();
    host.settle();
    let refused = clients.iter().filter(|client| !host.clients[**client].answers.is_empty()).count();
    assert_eq!(refused, 3, "67 million bytes are within 64 MiB");
    // To the last byte, and somebody who has nothing to do with it.
    let full = host.connect(0, &head);
    host.write(full, &megabyte[..64 * 1024 * 1024 - 67 * 999_999]);
    let session = open(&mut host, 0).1;
    let said = format!("40\u{1e}4{}", "x".repeat(100_000));
    assert_eq!(ask(&mut host, 0, &request("POST", &session, &[], &said)).1, "ok");
    host.hang_up(full);
    for client in clients {
        host.hang_up(client);
    }
    host.settle();
    let client = host.connect(0, &head);
    host.write(client, &megabyte);
    host.settle();
    assert!(host.clients[client].open, "what was held is free again");
}

#[test]
fn long_answers_are_compressed_for_those_who_take_it() {
    let mut host = Host::new(config(), 7);
    let (_, session) = open(&mut host, 0);
    ask(&mut host, 0, &request("POST", &session, &[], "40\u{1e}420[\"room:join\",{\"roomId\":\"r\"}]"));
    while !ask(&mut host, 0, &get(&session, &[])).1.contains("430[") {}
    let said = |length: usize| format!("42[\"message\",{{\"roomId\":\"r\",\"content\":\"{}\"}}]", "é".repeat(length / 2));
    for (length, accepts, packed) in [(4_000, "gzip, deflate", true), (4_000, "gzip;q=0", false), (100, "gzip", false)] {
        ask(&mut host, 0, &request("POST", &session, &[], &said(length)));
        let accepts = format!("Accept-Encoding: {accepts}");
        let client = host.connect(1, &get(&session, &[&accepts, "Origin: https://app.example.com"]));
        host.settle();
        let (head, body) = host.clients[client].answers.last().cloned().expect("an answer");
        let head = head.to_lowercase();
        assert_eq!(head.contains("content-encoding: gzip"), packed, "{head}");
        let vary = if length == 4_000 { "\r\nvary: origin, accept-encoding" } else { "\r\nvary: origin" };
        assert!(head.contains(vary) && head.matches("vary:").count() == 1, "{head}");
        let text = if packed {
            let mut text = String::new();
            flate2::read::GzDecoder::new(&*body).read_to_string(&mut text).expect("gzip");
            text
        } else {
            String::from_utf8(body).expect("text")
        };
        assert!(text.contains(&"é".repeat(length / 2)), "{text}");
    }
}

#[test]
fn the_cookie_is_for_long_polling_only() {
    let mut cookies = config();
    cookies.socket_io.cookie = Some("io".into());
    let mut host = Host::new(cookies, 7);
    let (head, body) = ask(&mut host, 0, &get(PATH, &[]));
    let cookie = format!("\r\nset-cookie: io={}; path=/; httponly; samesite=lax", sid_of(&body).to_lowercase());
    assert!(head.contains(&cookie), "{head}");
    let session = format!("{PATH}&sid={}", sid_of(&body));
    for request in [
        request("POST", &session, &[], "40"),
        get(&session, &[]),
        get("/socket.io/?EIO=4", &[]),
        Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""),
    ] {
        let (head, _) = ask(&mut host, 1, &request);
        assert!(!head.contains("set-cookie"), "{head}");
    }
}

#[test]
fn pages_of_listed_origins_may_read_every_answer() {
    let mut host = Host::new(config(), 7);
    let session = open(&mut host, 0).1;
    let socket = Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", "Origin: ORIGIN\r\n");
    for request in [
        get(PATH, &["Origin: ORIGIN"]),
        request("POST", &session, &["Origin: ORIGIN"], "40"),
        get(&session, &["Origin: ORIGIN"]),
        get("/socket.io/?EIO=4", &["Origin: ORIGIN"]),
        request("OPTIONS", PATH, &["Origin: ORIGIN"], ""),
        socket,
    ] {
        for (origin, is_allowed) in [("https://app.example.com", true), ("https://evil.example", false)] {
            let request = request.replace("ORIGIN", origin);
            let is_refused = request.starts_with("GET") && request.contains("&sid=") && !is_allowed;
            if is_refused {
                // Nothing more is to be said to it.
                continue;
            }
            let (head, _) = ask(&mut host, 1, &request);
            assert_eq!(head.contains("\r\naccess-control-allow-origin: https://app.example.com"), is_allowed, "{request}{head}");
            assert!(head.contains("\r\nvary: origin") && head.contains("\r\naccess-control-allow-credentials: true"), "{head}");
        }
    }
    let preflight = ["Origin: https://app.example.com", "Access-Control-Request-Headers: x-custom,authorization"];
    let (head, _) = ask(&mut host, 0, &request("OPTIONS", PATH, &preflight, ""));
    assert!(head.starts_with("http/1.1 204 ") && head.contains("vary: origin, access-control-request-headers"), "{head}");
    assert!(head.contains("access-control-allow-headers: x-custom,authorization"), "{head}");
}

#[test]
fn the_wildcard_and_silence() {
    let mut any = config();
    (any.origins, any.any_origin) = (Vec::new(), true);
    let mut host = Host::new(any, 7);
    for request in [get(PATH, &["Origin: http://x"]), request("OPTIONS", PATH, &["Origin: http://x"], "")] {
        let (head, _) = ask(&mut host, 0, &request);
        assert!(head.contains("\r\naccess-control-allow-origin: *"), "{head}");
        assert!(!head.contains("credentials") && !head.contains("vary: origin"), "{head}");
    }
    let mut none = config();
    none.origins.clear();
    let mut host = Host::new(none, 7);
    let (head, body) = ask(&mut host, 0, &request("OPTIONS", PATH, &["Origin: http://x"], ""));
    assert!(head.starts_with("http/1.1 400") && body.contains("Bad handshake method"), "{head}");
    assert!(!ask(&mut host, 0, &get(PATH, &["Origin: http://x"])).0.contains("access-control"));
}

#[test]
fn strange_origins_are_refused_where_that_is_asked_for() {
    let mut strict = config();
    strict.socket_io.strict_origin = true;
    let mut host = Host::new(strict, 7);
    let session = open(&mut host, 0).1;
    let upgrade = session.replace("polling", "websocket");
    for (origin, is_allowed) in [("Origin: https://app.example.com", true), ("X: y", true), ("Origin: https://evil.example", false)] {
        let (head, body) = ask(&mut host, 1, &get(PATH, &[origin]));
        let polling =
            if is_allowed { head.contains(" 200 ok") } else { head.contains(" 403 ") && body == r#"{"code":4,"message":"Forbidden"}"# };
        assert!(polling, "{origin}: {head} {body}");
        for target in ["/socket.io/?EIO=4&transport=websocket", &upgrade] {
            let (head, body) = ask(&mut host, 1, &Host::upgrade_head(target, &format!("{origin}\r\n")));
            let socket = if is_allowed { head.contains(" 101 ") } else { head.contains(" 403 ") && body == "Forbidden" };
            assert!(socket, "{origin} {target}: {head} {body}");
        }
    }
    assert_eq!(host.stats[1].unrouted().refused[Refusal::Origin.index()].read(), 3);
}

#[test]
fn the_session_cookie_counts_on_pages_of_our_own_origin() {
    let cookie = format!("Cookie: next-auth.session-token={}", host::token(&json!({"sub": "alice"})));
    let mut host = Host::new(host::config(2, vec![host::endpoint("rooms", DialectKind::Rooms, "/")]), 7);
    for (headers, counts) in [
        (&["Sec-Fetch-Site: same-origin"][..], true),
        (&["Sec-Fetch-Site: same-site"], false),
        (&["Sec-Fetch-Site: cross-site"], false),
        (&[], false),
        (&["Sec-Fetch-Site: same-origin", "Origin: https://evil.example"], false),
        (&["Origin: https://app.example.com"], true),
    ] {
        let headers = [headers, &[cookie.as_str()]].concat();
        let session = format!("{PATH}&sid={}", sid_of(&ask(&mut host, 0, &get(PATH, &headers)).1));
        ask(&mut host, 1, &request("POST", &session, &[], "40"));
        let (_, answer) = ask(&mut host, 0, &get(&session, &[]));
        assert!(answer.starts_with(if counts { "40{\"sid\"" } else { "44{\"message\"" }), "{headers:?}: {answer}");
    }
}

#[test]
fn odd_methods_and_paths_are_answered_as_by_node() {
    let mut host = Host::new(config(), 7);
    let session = open(&mut host, 0).1;
    for shard in [0, 1] {
        for method in ["PUT", "DELETE", "PATCH", "HEAD"] {
            let (head, body) = ask(&mut host, shard, &request(method, &session, &[], ""));
            assert!(head.starts_with("http/1.1 400 ") && head.contains("content-length: 34"), "{head}");
            assert_eq!(body, if method == "HEAD" { "" } else { r#"{"code":3,"message":"Bad request"}"# });
        }
        let gone = session.replace(&session[session.len() - 4..], "zzzz");
        assert!(ask(&mut host, shard, &request("PUT", &gone, &[], "")).1.contains("Session ID unknown"));
    }
    assert_eq!(ask(&mut host, 2, &request("POST", &session, &[], "40")).1, "ok", "none of that has ended it");
    let below = ask(&mut host, 0, &get(&PATH.replace("/?", "/foo/bar?"), &[])).1;
    assert!(below.starts_with("0{"), "{below}");
    for target in ["/socket.io?EIO=4&transport=polling", "/SOCKET.IO/?EIO=4&transport=polling", "/"] {
        let client = host.connect(0, &get(target, &[]));
        host.settle();
        assert!(host.clients[client].handed_over, "{target}");
    }
}

#[test]
fn files_of_the_client_are_the_control_planes_business() {
    for bundle in [true, false] {
        let mut config = config();
        config.socket_io.bundle = bundle;
        let mut host = Host::new(config, 7);
        for target in ["/socket.io/socket.io.js", "/socket.io/socket.io.esm.min.js.map?v=1", "/socket.io/x/socket.io.msgpack.min.js"] {
            for method in ["GET", "HEAD"] {
                let client = host.connect(0, &request(method, target, &[], ""));
                host.settle();
                assert_eq!(host.clients[client].handed_over, bundle, "{method} {target}");
            }
        }
        for (method, target) in [("POST", "/socket.io/socket.io.js"), ("GET", "/socket.io/socket.io.js/"), ("GET", "/socket.io/other.js")] {
            assert!(ask(&mut host, 0, &request(method, target, &[], "")).1.contains("Transport unknown"), "{method} {target}");
        }
    }
}
