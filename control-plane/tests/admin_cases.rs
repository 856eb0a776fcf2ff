//! Bad calls of the admin API against the built binary: for each call a list of what is wrong with it and what it is refused with. After
//! all of them everything is as it was before, and nobody has heard a thing.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;
use support::raw::{Neighbours, Raw};
use support::{ADMIN_TOKEN, PATIENCE, Server, Setup};

/// A connection's id that nobody has.
const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAA";

/// One answer.
struct Heard {
    status: u16,
    head: String,
    body: String,
}

/// Sends these bytes on a connection of their own and reads to the end.
fn exchange(server: &Server, request: &[u8]) -> Heard {
    let mut stream = TcpStream::connect(server.control).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a valid time");
    // It may answer and close before it has read all of what is too large.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let mut part = [0; 16 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut part) {
        answer.extend_from_slice(&part[..read]);
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Heard { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// A call with these header lines and this body.
fn call(server: &Server, method: &str, path: &str, headers: &str, body: &[u8]) -> Heard {
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    exchange(server, &[head.as_bytes(), body].concat())
}

fn bearer() -> String {
    format!("Authorization: Bearer {ADMIN_TOKEN}\r\n")
}

/// One call of the API and what can be wrong with it.
struct Cases {
    method: &'static str,
    path: &'static str,
    /// A body that is right where the call takes one.
    body: &'static str,
    /// Paths instead of it, and what they are refused with.
    paths: &'static [(&'static str, u16)],
    /// Bodies instead of it, and what they are refused with.
    bodies: &'static [(&'static str, u16)],
    /// Bytes that a body may have; 0 where the call takes none.
    bytes_max: usize,
}

const NONE: Cases = Cases { method: "GET", path: "", body: "", paths: &[], bodies: &[], bytes_max: 0 };

const LONG: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
                    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

const EMIT: &str = r#"{"endpoint":"talk","to":{"all":true},"event":"NEWS","data":{}}"#;

/// What is wrong with an emit; in a batch it is wrong too.
const BAD_EMITS: &[(&str, u16)] = &[
    ("", 400),
    ("null", 400),
    ("7", 400),
    ("[]", 400),
    ("{}", 400),
    ("{", 400),
    (r#"{"endpoint":"talk","to":{"all":true},"event":"NEWS"} x"#, 400),
    (r#"{"endpoint":"nothing","to":{"all":true},"event":"NEWS"}"#, 404),
    (r#"{"endpoint":["talk"],"to":{"all":true},"event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":true}}"#, 400),
    (r#"{"endpoint":"talk","event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":true},"event":7}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":true},"event":"NEWS","colour":"red"}"#, 400),
    (r#"{"endpoint":"talk","to":"all","event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{},"event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":false},"event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":true,"users":["neighbour0"]},"event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"users":["neighbour0"],"rooms":["room:neighbours"]},"event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"users":"neighbour0"},"event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"users":["neighbour0",7]},"event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"users":["neighbour0",""]},"event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"rooms":["a\nb"]},"event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":true},"except":"x","event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":true},"except":[null],"event":"NEWS"}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":true},"event":"NEWS","args":[1]}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"e","data":1,"args":[1]}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"e","args":{"0":1}}"#, 400),
    (r#"{"endpoint":"fabric","to":{"all":true},"event":"e","data":[1]}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":true},"event":"NEWS","volatile":"yes"}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":true},"event":"NEWS","ack":{"timeoutMs":5}}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"e","ack":{"timeoutMs":0}}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"e","ack":{"timeoutMs":60001}}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"e","ack":{"timeoutMs":1.5}}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"e","ack":{}}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":true},"event":"NEWS","id":""}"#, 400),
    (r#"{"endpoint":"talk","to":{"all":true},"event":"NEWS","id":7}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"connect"}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"connect_error"}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"disconnect"}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"disconnecting"}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"newListener"}"#, 400),
    (r#"{"endpoint":"rooms","to":{"all":true},"event":"removeListener"}"#, 400),
];

/// Every call under `/v1`. A test below finds out which ones are missing here.
const CALLS: &[Cases] = &[
    Cases { path: "/v1/stats", paths: &[("/v1/stats?x=1", 400), ("/v1/stats/", 404), ("/v1/stats/x", 404)], ..NONE },
    Cases { path: "/v1/hosts", paths: &[("/v1/hosts?x=1", 400), ("/v1/hosts/", 404), ("/v1/hosts/0000000000000000", 404)], ..NONE },
    Cases {
        path: "/v1/connections",
        paths: &[
            ("/v1/connections?limit=0", 400),
            ("/v1/connections?limit=1001", 400),
            ("/v1/connections?limit=-1", 400),
            ("/v1/connections?limit=1e2", 400),
            ("/v1/connections?limit=", 400),
            ("/v1/connections?limit=99999999999999999999", 400),
            ("/v1/connections?limit=5&limit=5", 400),
            ("/v1/connections?colour=red", 400),
            ("/v1/connections?cursor=", 400),
            ("/v1/connections?cursor=AAAA", 400),
            ("/v1/connections?user=", 400),
            ("/v1/connections?user=%ff", 400),
            ("/v1/connections?room=a%00b", 400),
            ("/v1/connections?endpoint=nothing", 404),
        ],
        ..NONE
    },
    Cases {
        path: "/v1/connections/AAAAAAAAAAAAAAAAAAAA?x=1",
        paths: &[("/v1/connections/AAAAAAAAAAAAAAAAAAAA", 404), ("/v1/connections/x", 404)],
        ..NONE
    },
    Cases {
        method: "DELETE",
        path: "/v1/connections/AAAAAAAAAAAAAAAAAAAA?x=1",
        paths: &[("/v1/connections/AAAAAAAAAAAAAAAAAAAA?reason=x", 404), ("/v1/connections/%2e%2e", 404), ("/v1/connections/%ff", 400)],
        ..NONE
    },
    Cases {
        path: "/v1/users/neighbour0?reason=x",
        paths: &[("/v1/users/a%0ab", 400), ("/v1/users/%ff", 400), ("/v1/users/", 404)],
        ..NONE
    },
    Cases {
        method: "DELETE",
        path: "/v1/users/neighbour0?colour=red",
        paths: &[("/v1/users/neighbour0?reason=a&reason=b", 400), ("/v1/users/a%0ab", 400), ("/v1/users/", 404)],
        ..NONE
    },
    Cases {
        method: "PUT",
        path: "/v1/rooms/x/users/neighbour0?colour=red",
        paths: &[
            ("/v1/rooms/x/users/neighbour0?endpoint=nothing", 404),
            ("/v1/rooms/a%01b/users/neighbour0", 400),
            ("/v1/rooms/x/users/%ff", 400),
        ],
        ..NONE
    },
    Cases {
        method: "DELETE",
        path: "/v1/rooms/x/users/neighbour0?colour=red",
        paths: &[("/v1/rooms/x/users/neighbour0?endpoint=nothing", 404), ("/v1/rooms/a%01b/users/neighbour0", 400)],
        ..NONE
    },
    Cases {
        method: "POST",
        path: "/v1/emit",
        body: EMIT,
        bodies: BAD_EMITS,
        bytes_max: 1_000_000,
        paths: &[("/v1/emit/", 404), ("/v1/emit?x=1", 400)],
    },
    Cases {
        method: "POST",
        path: "/v1/batch",
        body: "[]",
        bodies: &[("", 400), ("{}", 400), ("[7]", 400), ("[[]]", 400), ("[", 400), ("[,]", 400)],
        bytes_max: 8_000_000,
        paths: &[("/v1/batch/", 404), ("/v1/batch?endpoint=talk", 400)],
    },
    Cases {
        path: "/v1/endpoints/talk/stats",
        paths: &[("/v1/endpoints/nothing/stats", 404), ("/v1/endpoints/talk/stats?x=1", 400)],
        ..NONE
    },
    Cases {
        path: "/v1/endpoints/talk/metrics",
        paths: &[("/v1/endpoints/nothing/metrics", 404), ("/v1/endpoints/talk/metrics?x=1", 400)],
        ..NONE
    },
    Cases {
        method: "POST",
        path: "/v1/endpoints/fabric/documents/d/steps",
        body: r#"{"steps":[],"changeId":"c"}"#,
        bodies: &[
            ("", 400),
            ("[]", 400),
            ("{}", 400),
            (r#"{"steps":[]}"#, 400),
            (r#"{"changeId":"c"}"#, 400),
            (r#"{"steps":{},"changeId":"c"}"#, 400),
            (r#"{"steps":[],"changeId":[]}"#, 400),
            (r#"{"steps":[],"changeId":"c","clientID":7}"#, 400),
            (r#"{"steps":[],"changeId":"c","clientID":""}"#, 400),
            (r#"{"steps":[],"changeId":"c","colour":"red"}"#, 400),
        ],
        bytes_max: 1_000_000,
        paths: &[
            ("/v1/endpoints/nothing/documents/d/steps", 404),
            ("/v1/endpoints/fabric/documents/a%0ab/steps", 400),
            ("/v1/endpoints/fabric/documents/d/steps?x=1", 400),
        ],
    },
    Cases {
        method: "POST",
        path: "/v1/cleanup",
        body: r#"{"inactiveMinutes":1000000}"#,
        bodies: &[
            ("[]", 400),
            ("7", 400),
            (r#"{"inactiveMinutes":-1}"#, 400),
            (r#"{"inactiveMinutes":"5"}"#, 400),
            (r#"{"inactiveMinutes":null}"#, 400),
            (r#"{"inactiveMinutes":0,"endpoint":"nothing"}"#, 404),
            (r#"{"inactiveMinutes":0,"endpoint":7}"#, 400),
            (r#"{"inactiveMinutes":0,"colour":"red"}"#, 400),
        ],
        bytes_max: 65_536,
        paths: &[("/v1/cleanup?x=1", 400), ("/v1/cleanup/", 404)],
    },
    Cases {
        method: "POST",
        path: "/v1/drain",
        body: r#"{"seconds":1}"#,
        bodies: &[
            ("[]", 400),
            (r#"{"seconds":-1}"#, 400),
            (r#"{"seconds":3601}"#, 400),
            (r#"{"seconds":"5"}"#, 400),
            (r#"{"seconds":null}"#, 400),
            (r#"{"minutes":1}"#, 400),
            (r#"{"hosts":null}"#, 400),
            (r#"{"hosts":"some"}"#, 400),
            (r#"{"hosts":[]}"#, 400),
            (r#"{"hosts":{}}"#, 400),
            (r#"{"hosts":[7]}"#, 400),
            (r#"{"hosts":["0000000000000000"]}"#, 404),
            (r#"{"seconds":1,"hosts":["nobody"]}"#, 404),
        ],
        bytes_max: 65_536,
        paths: &[("/v1/drain?seconds=1", 400), ("/v1/drain/", 404)],
    },
    Cases { path: "/v1/reload", paths: &[("/v1/reload?x=1", 400), ("/v1/reload/", 404)], ..NONE },
    Cases {
        method: "POST",
        path: "/v1/reload",
        body: "{}",
        bodies: &[("", 400), ("[]", 400), ("7", 400), (r#"{"version":2}"#, 400)],
        bytes_max: 65_536,
        paths: &[("/v1/reload?x=1", 400)],
    },
    Cases {
        path: "/v1/rooms",
        paths: &[
            ("/v1/rooms?limit=0", 400),
            ("/v1/rooms?limit=1001", 400),
            ("/v1/rooms?cursor=x", 400),
            ("/v1/rooms?namespace=", 400),
            ("/v1/rooms?colour=red", 400),
            ("/v1/rooms?endpoint=nothing", 404),
        ],
        ..NONE
    },
    Cases {
        method: "POST",
        path: "/v1/rooms",
        body: r#"{"name":"den"}"#,
        bodies: &[
            ("", 400),
            ("[]", 400),
            ("{}", 400),
            (r#"{"name":7}"#, 400),
            (r#"{"name":""}"#, 400),
            (r#"{"name":"den","id":"a\nb"}"#, 400),
            (r#"{"name":"den","id":7}"#, 400),
            (r#"{"name":"den","namespace":{}}"#, 400),
            (r#"{"name":"den","createdBy":[]}"#, 400),
            (r#"{"name":"den","metadata":[]}"#, 400),
            (r#"{"name":"den","metadata":"x"}"#, 400),
            (r#"{"name":"den","colour":"red"}"#, 400),
            (r#"{"name":"den","endpoint":"nothing"}"#, 404),
        ],
        bytes_max: 65_536,
        paths: &[("/v1/rooms?x=1", 400)],
    },
    Cases {
        path: "/v1/rooms/none?x=1",
        paths: &[("/v1/rooms/none", 404), ("/v1/rooms/none?endpoint=nothing", 404), ("/v1/rooms/a%0ab", 400)],
        ..NONE
    },
    Cases {
        method: "DELETE",
        path: "/v1/rooms/none?x=1",
        paths: &[("/v1/rooms/none", 404), ("/v1/rooms/none?endpoint=nothing", 404), ("/v1/rooms/%ff", 400)],
        ..NONE
    },
    Cases {
        path: "/v1/rooms/none/stats?x=1",
        paths: &[("/v1/rooms/none/stats", 404), ("/v1/rooms/none/stats?endpoint=nothing", 404)],
        ..NONE
    },
    Cases {
        path: "/v1/rooms/none/members?x=1",
        paths: &[("/v1/rooms/none/members", 404), ("/v1/rooms/none/members?limit=0", 400), ("/v1/rooms/none/members?cursor=x", 400)],
        ..NONE
    },
    Cases {
        method: "PUT",
        path: "/v1/rooms/none/members/AAAAAAAAAAAAAAAAAAAA?x=1",
        paths: &[("/v1/rooms/none/members/AAAAAAAAAAAAAAAAAAAA", 404), ("/v1/rooms/none/members/x", 404)],
        ..NONE
    },
    Cases {
        method: "DELETE",
        path: "/v1/rooms/none/members/AAAAAAAAAAAAAAAAAAAA?x=1",
        paths: &[("/v1/rooms/none/members/AAAAAAAAAAAAAAAAAAAA", 404), ("/v1/rooms/none/members/x", 404)],
        ..NONE
    },
    Cases {
        path: "/v1/rooms/none/messages?x=1",
        paths: &[
            ("/v1/rooms/none/messages", 404),
            ("/v1/rooms/none/messages?limit=0", 400),
            ("/v1/rooms/none/messages?limit=1001", 400),
            ("/v1/rooms/none/messages?offset=-1", 400),
        ],
        ..NONE
    },
    Cases {
        method: "POST",
        path: "/v1/rooms/none/messages",
        body: r#"{"userId":"a","content":"x"}"#,
        bodies: &[
            ("", 400),
            ("[]", 400),
            ("{}", 400),
            (r#"{"userId":"a"}"#, 400),
            (r#"{"content":"x"}"#, 400),
            (r#"{"userId":7,"content":"x"}"#, 400),
            (r#"{"userId":"","content":"x"}"#, 400),
            (r#"{"userId":"a","content":7}"#, 400),
            (r#"{"userId":"a","content":"x","type":"colour"}"#, 400),
            (r#"{"userId":"a","content":"x","metadata":[]}"#, 400),
            (r#"{"userId":"a","content":"x","colour":"red"}"#, 400),
            (r#"{"userId":"a","content":"x","endpoint":"nothing"}"#, 404),
            (r#"{"userId":"a","content":"x"}"#, 404),
        ],
        bytes_max: 1_000_000,
        paths: &[("/v1/rooms/none/messages?x=1", 400), ("/v1/rooms/a%0ab/messages", 400)],
    },
    Cases { path: "/v1/events?colour=red", paths: &[("/v1/events?types=nonsense", 400), ("/v1/events/", 404)], ..NONE },
];

/// What can be seen of the server from outside, but for what time changes.
fn state(server: &Server) -> Vec<Value> {
    let seen = |path: &str| {
        let heard = call(server, "GET", path, &bearer(), b"");
        assert_eq!(heard.status, 200, "{path}: {}", heard.body);
        serde_json::from_str::<Value>(&heard.body).expect("JSON")
    };
    let stats = seen("/v1/stats");
    let mut connections = seen("/v1/connections?limit=1000");
    connections.as_object_mut().expect("an object").remove("cursor");
    vec![stats["activeConnections"].clone(), stats["totalConnections"].clone(), stats["totalRooms"].clone(), connections]
}

/// Refused with this status, as a problem document that says why and nothing of the token.
fn assert_refused(heard: &Heard, status: u16, what: &str) {
    assert_eq!(heard.status, status, "{what}: {}", heard.body);
    assert!(heard.head.contains("content-type: application/problem+json"), "{what}: {}", heard.head);
    let problem: Value = serde_json::from_str(&heard.body).unwrap_or_else(|_| panic!("{what}: not JSON: {}", heard.body));
    assert_eq!(problem["status"], status, "{what}");
    assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{what}: {problem}");
    assert!(!heard.body.contains(ADMIN_TOKEN), "{what}");
}

/// Without a token, with wrong ones, and with methods that the path does not take.
fn refuse_strangers(server: &Server, cases: &Cases) {
    let wrong = [
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic YTpi",
        ADMIN_TOKEN,
        &format!("Bearer {ADMIN_TOKEN}x"),
        &format!("Bearer {}", &ADMIN_TOKEN[1..]),
    ];
    let headers =
        wrong.iter().map(|value| format!("Authorization: {value}\r\n")).chain([String::new(), format!("Cookie: token={ADMIN_TOKEN}\r\n")]);
    for header in headers {
        let heard = call(server, cases.method, cases.path, &header, cases.body.as_bytes());
        assert_refused(&heard, 401, &format!("{} {} with {header:?}", cases.method, cases.path));
        assert!(heard.head.contains("www-authenticate: bearer"), "{}", heard.head);
    }
    for method in ["PATCH", "TRACE", "OPTIONS"] {
        let heard = call(server, method, cases.path, &bearer(), b"");
        assert_refused(&heard, 405, &format!("{method} {}", cases.path));
    }
}

fn refuse_bodies(server: &Server, cases: &Cases) {
    let what = format!("{} {}", cases.method, cases.path);
    for (body, status) in cases.bodies {
        assert_refused(&call(server, cases.method, cases.path, &bearer(), body.as_bytes()), *status, &format!("{what} with {body}"));
    }
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    for (body, why) in
        [(&b"\xff\xfe"[..], "not UTF-8"), (b"{\"endpoint\":\"\xc3\x28\"}", "broken UTF-8"), (deep.as_bytes(), "deep nesting")]
    {
        assert_refused(&call(server, cases.method, cases.path, &bearer(), body), 400, &format!("{what}: {why}"));
    }
}

/// Too many bytes, told beforehand and not: 413 either way.
fn refuse_oversize(server: &Server, cases: &Cases) {
    let what = format!("{} {}", cases.method, cases.path);
    // A path's bound is that of its call with the largest bodies; more than this none has.
    let bytes_max = if cases.bytes_max == 0 { 8_000_000 } else { cases.bytes_max };
    let head = |framing: &str| format!("{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{}{framing}\r\n\r\n", bearer());
    let told = exchange(server, head(&format!("Content-Length: {}", bytes_max + 1)).as_bytes());
    assert_refused(&told, 413, &what);
    if cases.bytes_max > 0 {
        let chunk = format!("{:x}\r\n{}\r\n", bytes_max + 1, " ".repeat(bytes_max + 1));
        let untold = exchange(server, format!("{}{chunk}0\r\n\r\n", head("Transfer-Encoding: chunked")).as_bytes());
        assert_refused(&untold, 413, &format!("{what}, chunked"));
        let malformed = exchange(server, format!("{}zz\r\n", head("Transfer-Encoding: chunked")).as_bytes());
        assert!(malformed.status == 400 || malformed.status == 0, "{what}, malformed chunks: {}", malformed.status);
    }
}

#[test]
fn what_is_wrong_is_refused_and_changes_nothing() {
    let mut server = Server::start(&Setup::default());
    let mut neighbours = Neighbours::move_in(&server);
    let mut listener = Raw::talk(&server, "listener", "quiet");
    let before = state(&server);
    for cases in CALLS {
        refuse_strangers(&server, cases);
        refuse_oversize(&server, cases);
        for (path, status) in cases.paths {
            let heard = call(&server, cases.method, path, &bearer(), cases.body.as_bytes());
            assert_refused(&heard, *status, &format!("{} {path}", cases.method));
        }
        if cases.bytes_max > 0 {
            refuse_bodies(&server, cases);
        } else {
            let heard = call(&server, cases.method, cases.path, &bearer(), b"");
            let is_plain = !cases.path.contains('?');
            assert_eq!(heard.status, if is_plain { 200 } else { 400 }, "{} {}", cases.method, cases.path);
        }
    }
    for (bad, status) in BAD_EMITS.iter().filter(|(bad, _)| serde_json::from_str::<Value>(bad).is_ok()) {
        let batch = format!("[{EMIT},{bad},{EMIT}]");
        assert_refused(&call(&server, "POST", "/v1/batch", &bearer(), batch.as_bytes()), *status, &batch);
    }
    let many = format!("[{}]", vec![EMIT; 1_001].join(","));
    assert_refused(&call(&server, "POST", "/v1/batch", &bearer(), many.as_bytes()), 400, "1,001 emits");
    for long in [format!("/v1/users/{LONG}"), format!("/v1/connections?room={LONG}")] {
        assert_refused(&call(&server, "GET", &long, &bearer(), b""), 400, &long);
    }
    assert_eq!(state(&server), before);
    // Whatever had been sent by mistake would come before the answer.
    listener.say(r#"{"type":"PING"}"#);
    assert!(listener.text().contains("PONG"));
    neighbours.assert_well();
    server.assert_well();
}

#[test]
fn every_call_of_the_document_has_its_cases() {
    let server = Server::start(&Setup::default());
    let document = document(&server);
    let missing: Vec<_> = document.iter().filter(|(method, path)| !CALLS.iter().any(|cases| cases.are_of(method, path))).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let unknown = CALLS.iter().filter(|cases| !document.iter().any(|(method, path)| cases.are_of(method, path)));
    let unknown: Vec<_> = unknown.map(|cases| (cases.method, cases.path)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// Method and path of every call under `/v1`.
fn document(server: &Server) -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(&call(server, "GET", "/openapi.json", "", b"").body).expect("JSON");
    let paths = document["paths"].as_object().expect("an object").iter().filter(|(path, _)| path.starts_with("/v1/"));
    let calls = paths.flat_map(|(path, item)| {
        item.as_object().into_iter().flat_map(serde_json::Map::keys).map(move |method| (method.clone(), path.clone()))
    });
    calls.collect()
}

impl Cases {
    fn are_of(&self, method: &str, template: &str) -> bool {
        self.method.eq_ignore_ascii_case(method) && same_path(template, self.path)
    }
}

/// True exactly when the path is one of those that the template stands for.
fn same_path(template: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let (wanted, given): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    wanted.len() == given.len() && wanted.iter().zip(given).all(|(wanted, given)| wanted.starts_with('{') || *wanted == given)
}

#[test]
fn probes_and_lists_answer_head_and_any_content_type() {
    let server = Server::start(&Setup::default());
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/stats", "/v1/connections"] {
        let head = call(&server, "HEAD", path, &bearer(), b"");
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        assert_eq!(call(&server, "HEAD", path, "", b"").status, if path.starts_with("/v1/") { 401 } else { 200 }, "{path}");
    }
    assert_eq!(call(&server, "HEAD", &format!("/v1/connections/{NO_ID}"), &bearer(), b"").status, 404);
    for content_type in ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"] {
        let heard = call(&server, "POST", "/v1/emit", &format!("{}{content_type}", bearer()), EMIT.as_bytes());
        assert_eq!((heard.status, heard.body.as_str()), (200, r#"{"recipients":0}"#), "{content_type}");
    }
}
