//! The built binary where an old server was: its environment variables seen from the wire, and its health documents as load balancers
//! ask for them.

mod support;

use serde_json::{Value, json};
use support::raw::Raw;
use support::{Server, Setup, ask, get};

/// What deployments of the old servers had in their environment, with values that nothing has by default.
const OLD: &[(&str, &str)] = &[
    ("WEBSOCKET_PATH", "/realtime"),
    ("WEBSOCKET_PING_INTERVAL", "7000"),
    ("WEBSOCKET_PING_TIMEOUT", "9000"),
    ("WEBSOCKET_MAX_BUFFER_SIZE", "123456"),
    ("WEBSOCKET_MAX_CONNECTIONS", "2"),
    ("WEBSOCKET_RATE_LIMIT_WINDOW", "60000"),
    ("FRONTEND_URL", "https://front.example/app"),
    ("REDIS_URL", "redis://127.0.0.1:1"),
];

/// A guest of the chat endpoint that asks for no token.
fn guest(server: &Server, path: &str) -> Raw {
    let mut guest = Raw::open(server, &format!("{path}?EIO=4&transport=websocket"));
    guest.text_with("0{");
    guest.say("40/lobby,{}");
    guest.text_with("40/lobby,{");
    guest
}

fn document(server: &Server, path: &str) -> Value {
    let (status, body) = get(server.public, path);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

#[test]
fn the_old_variables_are_seen_on_the_wire() {
    let server = Server::start(&Setup { limits: "rate_messages = 2", variables: OLD, ..Setup::default() });
    // The harness sets the other list of origins; both count.
    for origin in ["https://front.example", "https://app.example"] {
        let answer = ask(server.public, "OPTIONS", "/realtime/?EIO=4&transport=polling", &format!("Origin: {origin}\r\n"));
        assert!(answer.contains(&format!("Access-Control-Allow-Origin: {origin}\r\n")), "{answer}");
    }
    let answer = ask(server.public, "OPTIONS", "/realtime/?EIO=4&transport=polling", "Origin: https://other.example\r\n");
    assert!(!answer.contains("Access-Control-Allow-Origin"), "{answer}");
    assert_eq!(get(server.public, "/socket.io/?EIO=4&transport=polling").0, 404);

    let mut first = Raw::open(&server, "/realtime/?EIO=4&transport=websocket");
    let greeting = first.text();
    assert!(greeting.ends_with(r#""pingInterval":7000,"pingTimeout":9000,"maxPayload":123456}"#), "{greeting}");
    let mut second = guest(&server, "/realtime/");
    for _ in 0..3 {
        second.say(r#"42/lobby,["ping"]"#);
    }
    let over = second.text_with("RATE_LIMIT_EXCEEDED");
    assert!(over.contains(r#""limit":2,"windowMs":60000,"#), "{over}");
    let mut third = Raw::connect(server.public);
    third.send(support::raw::upgrade("/realtime/?EIO=4&transport=websocket").as_bytes());
    assert!(matches!(third.status(), Some(503) | None), "two connections are enough");
}

#[test]
fn a_redis_that_is_not_reached_degrades_and_no_more() {
    let server = Server::start(&Setup { variables: &[("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", "1")], ..Setup::default() });
    let ready = document(&server, "/ready");
    assert_eq!((&ready["status"], &ready["websocket"]["status"]), (&json!("ready"), &json!("degraded")));
    assert_eq!(ready["websocket"]["redis"]["connected"], json!(false));
    let health = document(&server, "/health");
    assert_eq!((&health["status"], &health["services"]["redis"]), (&json!("degraded"), &json!("disconnected")));
}

#[test]
fn the_health_documents_are_where_the_old_servers_had_them() {
    let server = Server::start(&Setup::default());
    let mut guest = guest(&server, "/socket.io/");
    guest.say(r#"42/lobby,["join-room",{"room":"here"}]"#);
    guest.text_with("room-joined");
    let neighbour = Raw::talk(&server, "alice", "den");
    let ready = document(&server, "/ready");
    assert_eq!((&ready["status"], &ready["database"], &ready["cache"]), (&json!("ready"), &json!(true), &json!(false)));
    let websocket = &ready["websocket"];
    assert_eq!((&websocket["status"], &websocket["connections"], &websocket["rooms"]), (&json!("healthy"), &json!(1), &json!(1)));
    assert!(websocket["uptime"].is_u64() && websocket.get("redis").is_none(), "{ready}");
    let community = document(&server, "/api/community/ws/health");
    assert_eq!(community["data"]["websocket"]["totalConnections"], json!(1), "{community}");
    let health = document(&server, "/health");
    assert_eq!((&health["status"], &health["services"]["redis"]), (&json!("ok"), &json!("not_configured")));
    assert_eq!(health["services"]["websocket"]["status"], json!("active"));
    for path in ["/ready", "/health", "/api/community/ws/health"] {
        let answer = ask(server.public, "HEAD", path, "Origin: https://app.example\r\n").to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200 ok\r\n") && answer.ends_with("\r\n\r\n"), "{path}: {answer}");
        assert!(answer.contains("access-control-allow-origin: https://app.example\r\n"), "{path}: {answer}");
    }
    drop((guest, neighbour));
}
