//! A host of two shards by lists of operations: links that come and end, frames whole, in pieces and invalid, parcels that are delivered late,
//! sockets that take nothing, clocks that are set, a drain. Nothing may panic, bounds hold all the time, and when everybody has gone nothing is left
//! and the counters add up.
#![expect(unreachable_pub, reason = "a module of test binaries, which export nothing")]

use engine::config::{AuthMode, Config, DialectKind, Endpoint};
use engine::fault::CloseReason;
use engine::limits::Limits;
use engine::shard::parcel::Parcel;

use crate::host::{self, Host, masked};

/// What links say first.
const HEADS: [&str; 8] = [
    "/open?documentId=d&clientID=",
    "/socket.io/?EIO=4&transport=websocket&n=",
    "/socket.io/?EIO=3&transport=websocket&n=",
    "/nowhere?n=",
    "GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /socket.io/?EIO=4&transport=polling&sid=x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n40",
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /open HTTP/1.1\r\nHost",
];

/// What they say then.
const TEXTS: [&str; 20] = [
    r#"{"type":"sync","documentId":"d"}"#,
    r#"{"type":"update","documentId":"d","update":"uuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu"}"#,
    r#"{"type":"awareness","documentId":"d","clientID":"c"}"#,
    r#"{"type":"#,
    "40",
    "40/chat,",
    r#"40{"pid":"00000000000000000000","offset":"00000000000"}"#,
    "41",
    "3",
    "2probe",
    "5",
    "6",
    "1",
    r#"42["room:join",{"roomId":"r"}]"#,
    r#"42["room:join",{"roomId":"s"}]"#,
    r#"42["room:leave",{"roomId":"r"}]"#,
    r#"427["message",{"roomId":"r","content":"to all who are in"}]"#,
    r#"452-["message",{"roomId":"r","content":{"_placeholder":true,"num":0}}]"#,
    r#"42["typing",{"roomId":"r","isTyping":true}]"#,
    r#"42/chat,1["room:join",{"roomId":"c"}]"#,
];

const CLIENTS_MAX: usize = 64;

/// What operators may set, small enough to be reached.
fn config() -> Config {
    let guests =
        |name: &str, dialect, bind: &str| Endpoint { auth: AuthMode::None, auto_create: true, ..Endpoint::new(name, dialect, bind) };
    let open = Endpoint { retain: 4, ..guests("open", DialectKind::Collab, "/open") };
    let rooms = Endpoint { recovery_ms: 5_000, eio3: true, ..guests("rooms", DialectKind::Rooms, "/") };
    let limits = Limits {
        message_bytes: 2_000,
        outbox_bytes: 4_000,
        memory: 20_000,
        handshakes_per_second: 8,
        history_messages: 8,
        rate_messages: 200,
        ..Limits::default()
    };
    Config { limits, ..host::config(2, vec![open, rooms, guests("chat", DialectKind::Chat, "/chat")]) }
}

/// Does what the bytes say, two or more for each operation.
pub fn run(operations: &[u8]) {
    let mut host = Host::new(config(), 3);
    let mut operations = operations.iter().copied();
    while let (Some(operation), Some(which)) = (operations.next(), operations.next()) {
        let which = usize::from(which);
        let shard = which % 2;
        let client = if host.clients.is_empty() { None } else { Some(which % host.clients.len()) };
        match (operation % 24, client) {
            (0 | 1, _) if host.clients.len() < CLIENTS_MAX => {
                let head = HEADS[which / 2 % HEADS.len()];
                let number = host.clients.len();
                let head = if head.starts_with('/') { Host::upgrade_head(&format!("{head}{number}"), "") } else { head.to_owned() };
                host.connect(shard, &head);
            }
            // One who is in a room as soon as the door lets him in.
            (2 | 3, _) if host.clients.len() < CLIENTS_MAX => enter(&mut host, shard, "40"),
            (4, Some(client)) if host.clients.len() < CLIENTS_MAX => {
                let connect = comeback(&host, client);
                enter(&mut host, shard, &connect);
            }
            (5..=9, Some(client)) => host.say(client, TEXTS[usize::from(operations.next().unwrap_or(0)) % TEXTS.len()]),
            (10, Some(client)) => {
                let frame = masked(1, TEXTS[which % TEXTS.len()].as_bytes());
                let length = usize::from(operations.next().unwrap_or(0)) % frame.len();
                host.write(client, &frame[..length]);
            }
            (11, Some(client)) => {
                let length = usize::from(operations.next().unwrap_or(0)) % 16;
                let bytes: Vec<u8> = operations.by_ref().take(length).collect();
                host.write(client, &bytes);
            }
            (12, Some(client)) => host.frame(client, 2, &vec![7; which * 8]),
            (13, Some(client)) if which % 8 == 0 => host.frame(client, 8, &[3, 232]),
            (14, Some(client)) => host.clients[client].capacity = which / 8,
            (15, Some(client)) => host.unblock(client, which * 64),
            (16, Some(client)) => host.hang_up(client),
            (17, _) => {
                host.pump(shard);
            }
            (18, _) => {
                for _ in 0..=which / 4 {
                    host.step(shard, which / 2 % 2);
                }
            }
            (19..=21, _) => host.settle(),
            (22 | 23, _) => {
                let ms = 1_u64 << (which % 16);
                host.now.ns += ms * 1_000_000;
                // The wall clock goes on, stands, or is set back.
                host.now.unix_ms = host.now.unix_ms + ms * (which as u64 / 64) - ms * u64::from(which % 3 == 0);
                host.shards[shard].handle_timeouts(host.now);
                if which == 255 {
                    host.shards[shard].handle_parcel(host.now, Parcel::Drain { over_ms: 1_000 });
                }
            }
            _ => {}
        }
        let held: u64 = host.stats.iter().map(|stats| stats.memory_held.read()).sum();
        assert!(held < 1 << 20, "{held} bytes are held");
    }
    end(host);
}

/// A Socket.IO client that says this first, and enters a room.
fn enter(host: &mut Host, shard: usize, connect: &str) {
    let client = host.connect(shard, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
    host.say(client, connect);
    host.say(client, r#"42["room:join",{"roomId":"r"}]"#);
}

/// The CONNECT of a client that goes on with what this one had, as far as that has been told.
fn comeback(host: &Host, client: usize) -> String {
    let heard = String::from_utf8_lossy(&host.clients[client].raw);
    let behind = |mark: &str, length: usize| heard.rfind(mark).and_then(|at| heard.get(at + mark.len()..at + mark.len() + length));
    let offset = heard.rfind("\"]").and_then(|at| heard.get(at.checked_sub(11)?..at)).unwrap_or("00000000000");
    let pid = behind("\"pid\":\"", 20).unwrap_or("00000000000000000000");
    format!("40{}", serde_json::json!({ "pid": pid, "offset": offset }))
}

/// Everybody goes, and time passes until nobody can come back.
fn end(mut host: Host) {
    host.settle();
    for client in 0..host.clients.len() {
        host.unblock(client, usize::MAX);
        host.hang_up(client);
    }
    host.settle();
    // Longer than a heartbeat of a long-polling session takes, in steps that are no stall.
    for _ in 0..100 {
        host.now.ns += 2_000_000_000;
        host.now.unix_ms += 2_000;
        host.shards.iter_mut().for_each(|shard| shard.handle_timeouts(host.now));
        host.settle();
    }
    for (shard, stats) in host.shards.iter().zip(&host.stats) {
        assert_eq!(shard.links(), 0, "{shard:?}");
        assert_eq!((stats.outbox_bytes.read(), stats.handshakes_waiting.read()), (0, 0));
        for endpoint in &stats.endpoints {
            let closed: u64 = CloseReason::ALL.iter().map(|reason| endpoint.closed[reason.index()].read()).sum();
            let open = [endpoint.connections.read(), endpoint.polling.read(), endpoint.authenticated.read(), endpoint.recoverable.read()];
            assert_eq!(open, [0; 4]);
            assert!(endpoint.accepted.read() == closed, "{endpoint:?}");
        }
    }
    let users: u64 = host.stats.iter().flat_map(|stats| stats.endpoints.iter().map(|endpoint| endpoint.users.read())).sum();
    assert_eq!(users, 0);
}
