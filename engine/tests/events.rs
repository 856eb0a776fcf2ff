//! What is told of what happens on hosts of three shards: each event once, those of a connection in order, none that nobody wants; and
//! that a shard whose events nobody takes goes on.

mod host;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engine::auth::Identity;
use engine::config::{AuthMode, DialectKind, Endpoint, Membership};
use engine::dialect::community::{Author, Broadcast, Channel, Message};
use engine::event::{Event, EventType, EventTypes, What};
use engine::ids::{EndpointId, new_message_id};
use engine::limits::EVENT_BYTES_WAITING_MAX;
use engine::shard::parcel::{Parcel, Post};
use engine::{Emit, Question, Selection, Target};
use host::Host;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

const SOCKET_IO: &str = "/socket.io/?EIO=4&transport=websocket";
const RECOVERY_MS: u64 = 60_000;

fn hosts(endpoints: Vec<Endpoint>) -> Host {
    let host = Host::new(host::config(3, endpoints), 5);
    host.world.wanted.set(EventTypes::ALL);
    host
}

fn token(user: &str) -> String {
    host::token(&json!({"sub": user, "exp": 4_000_000_000_u64}))
}

/// A Socket.IO client of the main namespace.
fn socket(host: &mut Host, shard: usize, auth: &str) -> usize {
    let client = host.connect(shard, &Host::upgrade_head(SOCKET_IO, ""));
    host.say(client, &format!("40{auth}"));
    host.settle();
    client
}

fn member(host: &mut Host, shard: usize, user: &str) -> usize {
    socket(host, shard, &format!(r#"{{"token":"{}"}}"#, token(user)))
}

/// What was told since the last time, a line each: type, user, room, and what the type adds. Ids and times are looked at elsewhere.
fn told(host: &mut Host) -> Vec<String> {
    host.settle();
    host.events.drain(..).map(|event| line(&event)).collect()
}

fn line(event: &Event) -> String {
    let mut line = format!("{} {} {}", event.kind().name(), event.user.as_deref().unwrap_or("-"), event.room.as_deref().unwrap_or("-"));
    match &event.what {
        What::Disconnect { reason } => line.extend([" ", reason]),
        What::Message { message } => {
            let message: Value = serde_json::from_str(message).expect("a message is JSON");
            let content = ["content", "update", "steps"].iter().find_map(|key| message.get(key)).cloned();
            line.extend([" ", content.unwrap_or_default().to_string().as_str()]);
        }
        What::Receipt { receipt } => line.extend([" ", &*receipt.message, " ", &*receipt.conversation, " ", receipt.status]),
        What::ServerEvent { call } => line.extend([" ", &*call.event, " ", &*call.args]),
        What::Connection | What::RoomJoin | What::RoomLeave | What::Authenticated => {}
    }
    line
}

fn ask(host: &mut Host, ask: u64, question: &Question) {
    for shard in 0..host.shards.len() {
        host.shards[shard].handle_parcel(host.now, Parcel::Ask { ask, question: question.clone() });
    }
    host.settle();
}

#[test]
fn rooms_tells_a_life_in_order_and_each_thing_once() {
    let mut host = hosts(vec![host::endpoint("rooms", DialectKind::Rooms, "/")]);
    let alice = member(&mut host, 0, "alice");
    let bob = member(&mut host, 1, "bob");
    for said in [
        r#"42["room:join",{"roomId":"r"}]"#,
        r#"42["room:join",{"roomId":"r"}]"#,
        r#"42["room:join",{"roomId":""}]"#,
        r#"42["message",{"roomId":"r","content":"hi"}]"#,
        r#"42["message",{"roomId":"elsewhere","content":"not in"}]"#,
        r#"42["typing",{"roomId":"r","isTyping":true}]"#,
        r#"42["user:status",{"status":"away"}]"#,
        r#"42["room:leave",{"roomId":"elsewhere"}]"#,
        r#"42["room:leave",{"roomId":"r"}]"#,
        r#"42["room:join",{"roomId":"q"}]"#,
    ] {
        host.say(alice, said);
        host.settle();
    }
    host.say(alice, &format!(r#"42["authenticate",{{"token":"{}"}}]"#, token("alice")));
    host.say(alice, r#"42["authenticate",{"token":"wrong"}]"#);
    host.settle();
    let events = host.events.clone();
    let expected = [
        "connection alice -",
        "connection bob -",
        "room:join alice r",
        r#"message alice r "hi""#,
        "room:leave alice r",
        "room:join alice q",
        "authenticated alice -",
    ];
    assert_eq!(told(&mut host), expected);
    let of_alice: BTreeSet<_> = events
        .iter()
        .filter(|event| event.user.as_deref() == Some("alice"))
        .map(|event| event.connection.map(|id| id.to_string()))
        .collect();
    assert!(of_alice.len() == 1 && !of_alice.contains(&None), "one connection: {of_alice:?}");
    assert!(events.iter().all(|event| event.unix_ms == host::START_UNIX_MS && event.endpoint == EndpointId(0)));
    let What::Message { message } = &events[3].what else { panic!("{:?}", events[3]) };
    let heard: Value = serde_json::from_str(message).expect("JSON");
    assert_eq!((&heard["userId"], &heard["roomId"], &heard["type"]), (&json!("alice"), &json!("r"), &json!("text")));

    // Whoever ends leaves first; a goodbye and a lost socket have the words of Node's server.
    host.say(alice, "41");
    host.hang_up(bob);
    assert_eq!(
        told(&mut host),
        ["room:leave alice q", "disconnect alice - client namespace disconnect", "disconnect bob - transport close"]
    );
}

#[test]
fn community_and_collab_tell_what_is_published() {
    let community = Endpoint { client_publish: true, ..host::endpoint("community", DialectKind::Community, "/c") };
    let open = |name, bind, retain| Endpoint { membership: Membership::Open, retain, ..host::endpoint(name, DialectKind::Collab, bind) };
    let mut host = hosts(vec![community, open("kept", "/k", 5), open("loose", "/l", 0)]);
    let target = format!("/c?token={}&roomId=1", token("alice"));
    let alice = host.connect(0, &Host::upgrade_head(&target, ""));
    host.settle();
    for said in [
        r#"{"type":"SUBSCRIBE","payload":{"groupId":"g"}}"#,
        r#"{"type":"CHAT_MESSAGE","payload":{"groupId":"g","content":"hi"}}"#,
        r#"{"type":"CHAT_MESSAGE","payload":{"groupId":"other","content":"no"}}"#,
        r#"{"type":"TYPING","payload":{"groupId":"g","isTyping":true}}"#,
    ] {
        host.say(alice, said);
        host.settle();
    }
    host.frame(alice, 8, &[3, 232]);
    assert_eq!(
        told(&mut host),
        [
            "connection alice -",
            "room:join alice room:1",
            "room:join alice group:g",
            r#"message alice group:g "hi""#,
            "room:leave alice room:1",
            "room:leave alice group:g",
            "disconnect alice - transport close",
        ]
    );
    for bind in ["/k", "/l"] {
        let bob = host.connect(1, &Host::upgrade_head(&format!("{bind}?token={}&documentId=d&clientID=c1", token("bob")), ""));
        host.settle();
        host.say(bob, r#"{"type":"update","documentId":"d","update":[1]}"#);
        host.say(bob, r#"{"type":"steps","documentId":"d","steps":[2]}"#);
        host.say(bob, r#"{"type":"awareness","documentId":"d","awareness":{}}"#);
        host.say(bob, r#"{"type":"sync","documentId":"d"}"#);
        host.settle();
        let What::Message { message } = &host.events[2].what else { panic!("{:?}", host.events) };
        assert_eq!(&**message, r#"{"type":"update","documentId":"d","update":[1],"clientID":"c1"}"#);
        assert_eq!(told(&mut host), ["connection bob -", "room:join bob d", "message bob d [1]", "message bob d [2]"]);
    }
}

#[test]
fn what_the_back_end_says_like_a_client_is_a_message_too() {
    let open = |name, bind, retain| Endpoint { membership: Membership::Open, retain, ..host::endpoint(name, DialectKind::Collab, bind) };
    let mut host = hosts(vec![open("kept", "/k", 5), open("loose", "/l", 0), host::endpoint("talk", DialectKind::Community, "/c")]);
    let to = |endpoint, target| Selection { endpoint: EndpointId(endpoint), targets: vec![target], except: Vec::new() };
    let say = |host: &mut Host, to: Selection, event: &str, args: &str| {
        let emit = Emit {
            to,
            event: event.into(),
            args: args.into(),
            volatile: false,
            ack_ms: None,
            offset: 1.into(),
            unix_ms: 0,
            attachments: Vec::new(),
            is_elsewhere: false,
        };
        ask(host, 1, &Question::Emit(Arc::new(emit)));
    };
    for endpoint in [0, 1] {
        let document = || Target::Room("d".into());
        say(&mut host, to(endpoint, document()), "steps", r#"{"steps":[1],"changeId":7}"#);
        say(&mut host, to(endpoint, document()), "awareness", r#"{"awareness":{}}"#);
        say(&mut host, to(endpoint, Target::Present { room: "d".into(), presence: "c".into() }), "steps", r#"{"steps":[2]}"#);
        say(&mut host, to(endpoint, Target::user("bob")), "steps", r#"{"steps":[3]}"#);
        let not_all = Selection { except: vec![Target::user("bob")], ..to(endpoint, document()) };
        say(&mut host, not_all, "steps", r#"{"steps":[4]}"#);
        let event = host.events.first().expect("an event");
        assert_eq!((event.connection, event.endpoint), (None, EndpointId(endpoint)));
        let What::Message { message } = &event.what else { panic!("{event:?}") };
        assert_eq!(&**message, r#"{"type":"steps","steps":[1],"changeId":7}"#, "as clients get it");
        assert_eq!(told(&mut host), ["message - d [1]"], "once, and only what all of a document get");
    }
    host.world.wanted.set(EventTypes::NONE);
    say(&mut host, to(1, Target::Room("d".into())), "update", r#"{"update":[5]}"#);
    assert_eq!(told(&mut host), [""; 0]);
    host.world.wanted.set(EventTypes::ALL);

    let by = Identity::of_user("ann".into());
    let channel = Channel { key: Channel::ROOM, id: "r" };
    let id = new_message_id(host::START_UNIX_MS, &[1; 10]);
    let message = Message { id, author: Author::of(&by), channel, content: "\"hi\"", unix_ms: host::START_UNIX_MS, hidden_from: None };
    let Broadcast { room, frame, keep } = message.broadcast(EndpointId(2));
    let text = keep.text.clone();
    ask(&mut host, 2, &Question::Post(Arc::new(Post { room, frame, keep })));
    assert_eq!(host.events.first().map(|event| &event.what), Some(&What::Message { message: text }));
    assert_eq!(told(&mut host), [r#"message ann room:r "hi""#]);
}

#[test]
fn chat_tells_messages_to_rooms_users_and_everybody() {
    let mut host = hosts(vec![host::endpoint("chat", DialectKind::Chat, "/")]);
    let alice = member(&mut host, 2, "alice");
    for said in [
        r#"42["join-room",{"room":"r"}]"#,
        r#"42["message",{"room":"r","content":"to a room"}]"#,
        r#"42["message",{"to":"bob","content":"to a user"}]"#,
        r#"42["message",{"content":"to all"}]"#,
        r#"42["typing-start",{"room":"r"}]"#,
    ] {
        host.say(alice, said);
        host.settle();
    }
    // Binary data is told as JSON.
    host.say(alice, r#"451-["message",{"room":"r","content":"binary","metadata":{"_placeholder":true,"num":0}}]"#);
    host.frame(alice, 2, &[1, 2, 3]);
    host.settle();
    let What::Message { message } = &host.events[5].what else { panic!("{:?}", host.events) };
    assert!(!message.contains("_placeholder") && message.contains("metadata"), "{message}");
    assert_eq!(
        told(&mut host),
        [
            "connection alice -",
            "room:join alice r",
            r#"message alice r "to a room""#,
            r#"message alice - "to a user""#,
            r#"message alice - "to all""#,
            r#"message alice r "binary""#,
        ]
    );
}

#[test]
fn notify_tells_who_proves_himself_and_what_is_confirmed() {
    let mut host = hosts(vec![host::endpoint("notify", DialectKind::Notify, "/")]);
    let bob = socket(&mut host, 0, "");
    assert_eq!(told(&mut host), ["connection - -"], "nobody knows who it is");
    host.say(bob, &format!(r#"42["authenticate",{{"token":"{}"}}]"#, token("bob")));
    assert_eq!(told(&mut host), ["authenticated bob -", "room:join bob user:bob"]);

    ask(&mut host, 1, &Question::Grant { endpoint: EndpointId(0), room: "conversation:c".into(), user: "bob".into() });
    ask(&mut host, 2, &Question::Grant { endpoint: EndpointId(0), room: "conversation:c".into(), user: "bob".into() });
    ask(&mut host, 3, &Question::Revoke { endpoint: EndpointId(0), room: "conversation:c".into(), user: "bob".into() });
    assert_eq!(told(&mut host), ["room:join bob conversation:c", "room:leave bob conversation:c"]);

    let to = Selection { endpoint: EndpointId(0), targets: vec![Target::user("bob")], except: Vec::new() };
    let args = r#"{"message":{"id":7},"receiptTo":"alice"}"#.to_owned();
    let emit = Emit {
        to,
        event: "new_message".into(),
        args,
        volatile: false,
        ack_ms: None,
        offset: 1.into(),
        unix_ms: 0,
        attachments: Vec::new(),
        is_elsewhere: false,
    };
    ask(&mut host, 4, &Question::Emit(Arc::new(emit)));
    for message in ["7", "7", "8"] {
        host.say(bob, &format!(r#"42["message_read",{{"messageId":{message},"conversationId":"c"}}]"#));
        host.settle();
    }
    assert_eq!(told(&mut host), [r#"receipt bob - 7 "c" read"#], "once, and only of what he got");

    // One that never says who it is.
    socket(&mut host, 1, "");
    host.advance(11_000);
    assert_eq!(told(&mut host), ["connection - -", "disconnect - - authentication timeout"]);
    ask(&mut host, 5, &Question::CloseUser { endpoint: None, user: "bob".into(), reason: None });
    assert_eq!(told(&mut host), ["room:leave bob user:bob", "disconnect bob - server namespace disconnect"]);
}

#[test]
fn who_breaks_off_has_gone_and_who_is_back_has_come() {
    let recoverable = Endpoint { recovery_ms: RECOVERY_MS, ..host::endpoint("rooms", DialectKind::Rooms, "/") };
    let mut host = hosts(vec![recoverable]);
    let alice = member(&mut host, 0, "alice");
    host.say(alice, r#"42["room:join",{"roomId":"r"}]"#);
    host.settle();
    let texts = host.texts(alice);
    let connected = texts.iter().find_map(|text| text.strip_prefix("40")).expect("let in");
    let pid = serde_json::from_str::<Value>(connected).expect("JSON")["pid"].as_str().expect("a pid").to_owned();
    // The last event that it heard names where it goes on.
    host.say(alice, r#"42["message",{"roomId":"r","content":"hi"}]"#);
    host.settle();
    let heard: Vec<Value> = serde_json::from_str(&host.texts(alice)[0][2..]).expect("an event");
    let offset = heard.last().and_then(Value::as_str).expect("an offset").to_owned();
    let first = host.events[0].connection;
    told(&mut host);
    host.hang_up(alice);
    assert_eq!(told(&mut host), ["room:leave alice r", "disconnect alice - transport close"]);

    let auth = json!({"token": token("alice"), "pid": pid, "offset": offset});
    let back = socket(&mut host, 0, &auth.to_string());
    assert_eq!(host.events[0].connection, first, "it is the same connection");
    assert_eq!(told(&mut host), ["connection alice -", "room:join alice r"]);
    host.hang_up(back);
    told(&mut host);
    host.advance(RECOVERY_MS + 2_000);
    assert_eq!(told(&mut host), [""; 0], "that it will not come back is no news");
}

#[test]
fn nothing_is_told_that_nobody_wants() {
    let mut host = hosts(vec![host::endpoint("rooms", DialectKind::Rooms, "/")]);
    let live = |host: &mut Host| {
        let client = member(host, 0, "alice");
        host.say(client, r#"42["room:join",{"roomId":"r"}]"#);
        host.settle();
        host.say(client, r#"42["message",{"roomId":"r","content":"hi"}]"#);
        host.settle();
        host.hang_up(client);
        told(host)
    };
    for kind in EventType::ALL {
        host.world.wanted.set(EventTypes::NONE.with(kind));
        assert!(live(&mut host).iter().all(|line| line.starts_with(kind.name())), "only {}", kind.name());
    }
    host.world.wanted.set(EventTypes::NONE);
    assert_eq!(live(&mut host), [""; 0]);
    host.world.wanted.set(EventTypes::ALL);
    assert_eq!(live(&mut host).len(), 5);
}

#[test]
fn a_shard_whose_events_nobody_takes_counts_them_and_goes_on() {
    const BYTES: usize = 50_000;
    const SENT: usize = EVENT_BYTES_WAITING_MAX / BYTES + 100;
    let config = host::config(1, vec![Endpoint { auth: AuthMode::None, ..host::endpoint("rooms", DialectKind::Rooms, "/") }]);
    let mut host = Host::new(config, 5);
    host.world.wanted.set(EventTypes::NONE.with(EventType::Message));
    let client = socket(&mut host, 0, "");
    host.say(client, r#"42["room:join",{"roomId":"r"}]"#);
    host.settle();
    // As a driver that cannot pass them on.
    for _ in 0..SENT {
        host.say(client, &format!(r#"42["message",{{"roomId":"r","content":"{}"}}]"#, "x".repeat(BYTES)));
        if let Some(batch) = host.shards[0].poll_events() {
            host.shards[0].restore_events(batch);
        }
    }
    host.settle();
    let heard = host.texts(client).iter().filter(|text| text.contains("\"message\"")).count();
    assert_eq!(heard, SENT, "clients miss nothing");
    let dropped = host.events_dropped;
    assert!(dropped >= 100 && host.events.len() as u64 + dropped == SENT as u64, "{dropped} of {SENT}");
    assert_eq!(host.stats[0].events_dropped.read(), dropped);
    host.events.clear();
    host.say(client, r#"42["message",{"roomId":"r","content":"afterwards"}]"#);
    assert_eq!(told(&mut host).len(), 1, "there is place again");
}

/// Clients that come, enter, leave and end at any moment while parcels are under way. Each connection's events make one whole life: it
/// comes, is in each room at most once at a time, is in none when it goes, and goes once.
#[test]
fn lives_are_whole_however_parcels_travel() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let config = host::config(3, vec![host::endpoint("rooms", DialectKind::Rooms, "/")]);
        let mut host = Host::new(config, seed);
        host.world.wanted.set(EventTypes::ALL);
        let mut clients = Vec::new();
        for _ in 0..400 {
            let room = format!("r{}", random.random_range(0..3));
            match random.random_range(0..10) {
                0 => {
                    let client = host.connect(random.random_range(0..3), &Host::upgrade_head(SOCKET_IO, ""));
                    host.say(client, &format!(r#"40{{"token":"{}"}}"#, token("alice")));
                    clients.push(client);
                }
                1 if !clients.is_empty() => {
                    let client = clients.swap_remove(random.random_range(0..clients.len()));
                    if random.random() { host.hang_up(client) } else { host.say(client, "41") }
                }
                2 => {
                    let (endpoint, user) = (EndpointId(0), "alice".to_owned());
                    let question =
                        if random.random() { Question::Grant { endpoint, room, user } } else { Question::Revoke { endpoint, room, user } };
                    for shard in 0..3 {
                        host.shards[shard].handle_parcel(host.now, Parcel::Ask { ask: 1, question: question.clone() });
                    }
                }
                3 | 4 if !clients.is_empty() => {
                    let client = clients[random.random_range(0..clients.len())];
                    let what = if random.random() { "join" } else { "leave" };
                    host.say(client, &format!(r#"42["room:{what}",{{"roomId":"{room}"}}]"#));
                }
                _ => {
                    let (from, to) = (random.random_range(0..3), random.random_range(0..3));
                    host.pump(from);
                    host.step(from, to);
                }
            }
        }
        for client in clients {
            host.hang_up(client);
        }
        host.settle();
        let mut lives: BTreeMap<String, Vec<&Event>> = BTreeMap::new();
        for event in &host.events {
            lives.entry(event.connection.expect("all are a connection's").to_string()).or_default().push(event);
        }
        assert!(lives.len() > 5, "seed {seed}");
        for (id, life) in lives {
            let lines: Vec<String> = life.iter().map(|event| line(event)).collect();
            let mut rooms = BTreeSet::new();
            for (place, event) in life.iter().enumerate() {
                let fits = match event.what {
                    What::Connection => place == 0,
                    What::RoomJoin => place > 0 && rooms.insert(event.room.clone()),
                    What::RoomLeave => rooms.remove(&event.room),
                    What::Disconnect { .. } => place == life.len() - 1 && rooms.is_empty() && place > 0,
                    _ => false,
                };
                assert!(fits, "seed {seed}, connection {id}, event {place} of {lines:#?}");
            }
            assert!(lines.last().is_some_and(|last| last.starts_with("disconnect")), "seed {seed}, connection {id}: {lines:#?}");
        }
    }
}
