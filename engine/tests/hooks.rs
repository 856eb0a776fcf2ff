//! What the back end is asked (webhooks), on hosts without sockets: the answers come in any order, late, never, after the client has gone or
//! while the host drains. Who waits for one waits alone, hears everything in its order, and what was not allowed does not happen.

mod host;

use engine::auth::AuthFault;
use engine::config::{AuthMode, DialectKind, Endpoint, Membership, OwnDialect};
use engine::dialect::{Act, Cx, Dialect, Hello, Profile, Publication, Refused, Said, Submission};
use engine::ids::EndpointId;
use engine::json::Scratch;
use engine::limits::{HELD_SILENCE_MS, INQUIRIES_PER_HOOK_MAX, INQUIRY_BYTES_PER_SHARD_MAX, Limits};
use engine::shard::parcel::Parcel;
use engine::stats::EndpointStats;
use engine::{About, Caller, Changes, Proposal, Question, Ruling};
use host::{Got, Host, masked, token};
use serde_json::json;

const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";

/// All hooks on every dialect.
fn asked(name: &str, dialect: DialectKind, bind: &str) -> Endpoint {
    let endpoint = host::endpoint(name, dialect, bind);
    Endpoint { connect_hook: true, publish_hook: true, membership: Membership::Webhook, client_publish: true, ..endpoint }
}

/// Only rooms and messages are asked about.
fn open(name: &str, dialect: DialectKind, bind: &str) -> Endpoint {
    Endpoint { connect_hook: false, ..asked(name, dialect, bind) }
}

fn host_of(endpoint: Endpoint) -> Host {
    Host::new(host::config(3, vec![endpoint]), 7)
}

/// The one question under way.
fn question(host: &mut Host) -> (usize, u64, About) {
    host.settle();
    assert_eq!(host.inquiries.len(), 1, "{:?}", host.inquiries);
    let (shard, number, inquiry) = host.inquiries.remove(0);
    (shard, number, inquiry.about)
}

fn caller(about: About) -> Caller {
    if let About::Connect(caller) = about { *caller } else { panic!("{about:?}") }
}

fn rooms(about: &About) -> Vec<&str> {
    if let About::Join { rooms, .. } = about { rooms.iter().map(|room| &**room).collect() } else { panic!("{about:?}") }
}

fn proposal(about: About) -> Proposal {
    if let About::Publish(proposal) = about { *proposal } else { panic!("{about:?}") }
}

fn refused(reason: &str) -> Ruling {
    Ruling::Refused(Some(reason.into()))
}

fn data(data: &str) -> Ruling {
    Ruling::Allowed(Changes { data: Some(data.into()), ..Changes::default() })
}

/// Answers everything that is asked until nothing is any more; says how often.
fn allow_all(host: &mut Host) -> usize {
    let mut answered = 0;
    host.settle();
    while !host.inquiries.is_empty() {
        let (shard, number, _) = host.inquiries.remove(0);
        host.rule(shard, number, Ruling::allowed());
        host.settle();
        answered += 1;
    }
    answered
}

fn counted(host: &Host, read: fn(&EndpointStats) -> u64) -> u64 {
    host.stats.iter().map(|stats| read(&stats.endpoints[0])).sum()
}

/// A Socket.IO client of the main namespace, let in if nobody is asked.
fn sio(host: &mut Host, shard: usize, claims: &serde_json::Value) -> usize {
    let client = host.connect(shard, &Host::upgrade_head(WEBSOCKET, "User-Agent: test\r\n"));
    host.say(client, &format!("40{{\"token\":\"{}\"}}", token(claims)));
    host.settle();
    client
}

fn plain(host: &mut Host, shard: usize, target: &str) -> usize {
    let client = host.connect(shard, &Host::upgrade_head(target, "Origin: https://app.example.com\r\nUser-Agent: test\r\n"));
    host.settle();
    client
}

#[test]
fn the_back_end_hears_who_wants_in_and_may_say_who_that_is() {
    let mut host = host_of(asked("community", DialectKind::Community, "/c"));
    let alice = token(&json!({"sub": "alice", "rooms": ["r"], "role": "guest"}));
    let client = plain(&mut host, 1, &format!("/c?userName=x&token={alice}"));
    assert!(host.take(client).is_empty(), "it is not even upgraded");
    let (shard, number, about) = question(&mut host);
    let caller = caller(about);
    let claims: serde_json::Value = serde_json::from_str(caller.claims.as_deref().expect("there was a token")).expect("JSON");
    assert_eq!((&claims["sub"], &claims["role"]), (&json!("alice"), &json!("guest")), "all claims, those too that mean nothing here");
    assert_eq!(
        (&*caller.query, caller.origin.as_deref(), caller.user_agent.as_deref()),
        ("userName=x", Some("https://app.example.com"), Some("test"))
    );
    assert_eq!(caller.address, Some([127, 0, 0, 1].into()));

    let changes =
        Changes { user: Some("ann".into()), name: Some("Ann".into()), rooms: Some(vec!["s".into()]), data: None, ..Changes::default() };
    host.rule(shard, number, Ruling::Allowed(changes));
    assert_eq!(allow_all(&mut host), 1, "the room");
    let got = host.take(client);
    assert_eq!(got[0], Got::Http(101, String::new()));
    assert!(matches!(&got[1], Got::Text(text) if text.contains(r#""userId":"ann""#)), "{got:?}");
    // A fresh token of the same user counts, and does not bring back its own rooms.
    let fresh = token(&json!({"sub": "alice", "rooms": ["r"], "exp": 1_800_000_000}));
    let other = token(&json!({"sub": "ann"}));
    for (token, heard) in [(fresh, "AUTHENTICATED"), (other, "UNAUTHORIZED")] {
        host.say(client, &format!(r#"{{"type":"AUTHENTICATE","payload":{{"token":"{token}"}}}}"#));
        host.settle();
        assert!(host.texts(client)[0].contains(heard));
    }
}

#[test]
fn a_client_without_a_token_is_whom_the_back_end_names_and_a_bad_token_is_not_asked_about() {
    let mut host = host_of(asked("community", DialectKind::Community, "/c"));
    let client = plain(&mut host, 0, "/c?key=k");
    let (shard, number, about) = question(&mut host);
    assert!(caller(about).claims.is_none());
    host.rule(shard, number, Ruling::Allowed(Changes { user: Some("guest".into()), ..Changes::default() }));
    host.settle();
    assert!(host.texts(client)[0].contains(r#""userId":"guest""#));

    // Allowed, but nobody says who it is.
    let client = plain(&mut host, 0, "/c");
    let (shard, number, _) = question(&mut host);
    host.rule(shard, number, Ruling::allowed());
    host.settle();
    assert!(matches!(&host.take(client)[0], Got::Http(401, body) if body.contains("Authentication token required")));

    let client = plain(&mut host, 0, "/c?token=nonsense");
    assert!(matches!(&host.take(client)[0], Got::Http(401, _)) && host.inquiries.is_empty());
    assert_eq!(counted(&host, |it| it.connections.read()), 1);
}

#[test]
fn each_dialect_refuses_in_its_own_words() {
    let cases: [(DialectKind, &str, Option<&str>, &[&str]); 8] = [
        (DialectKind::Community, "/c?token=T", Some("not today"), &["Http(403", "FORBIDDEN", "not today"]),
        (DialectKind::Community, "/c?token=T", None, &["Http(403", "FORBIDDEN"]),
        (DialectKind::Collab, "/c?token=T&documentId=d&clientID=c", Some("not today"), &["not today", "Close(Some(4403)"]),
        (DialectKind::Rooms, "", Some("not today"), &["44{", r#"{\"message\":\"not today\",\"data\":{\"message\":\"not today\"}}"#]),
        (DialectKind::Rooms, "", None, &["44{", "Invalid authentication token"]),
        (DialectKind::Chat, "", Some("not today"), &["44{", "AUTHENTICATION_FAILED", "not today"]),
        (DialectKind::Notify, "", Some("not today"), &["auth_error", "not today", "Text(\"41\")"]),
        (DialectKind::Notify, "", None, &["auth_error", "Invalid token"]),
    ];
    for (dialect, target, reason, words) in cases {
        let mut host = host_of(asked("e", dialect, if dialect.is_socket_io() { "/" } else { "/c" }));
        let claims = json!({"sub": "alice"});
        let client = if target.is_empty() {
            sio(&mut host, 2, &claims)
        } else {
            plain(&mut host, 2, &target.replace("=T", &format!("={}", token(&claims))))
        };
        host.take(client);
        let (shard, number, _) = question(&mut host);
        host.rule(shard, number, Ruling::Refused(reason.map(Box::from)));
        host.settle();
        let got = format!("{:?}", host.take(client));
        assert!(words.iter().all(|word| got.contains(word)), "{dialect:?}: {got}");
        assert_eq!(counted(&host, |it| it.connections.read() + it.users.read()), 0, "{dialect:?}");
    }
}

#[test]
fn that_nobody_could_say_is_told_in_words_of_its_own() {
    let cases: [(DialectKind, &str, &[&str]); 5] = [
        (DialectKind::Community, "/c?token=T", &["Http(503", "UNAVAILABLE"]),
        (DialectKind::Collab, "/c?token=T&documentId=d&clientID=c", &["Close(Some(4403)"]),
        (DialectKind::Rooms, "", &["44{"]),
        (DialectKind::Chat, "", &["44{", "CONNECTION_ERROR"]),
        (DialectKind::Notify, "", &["auth_error", "Text(\"41\")"]),
    ];
    for (dialect, target, words) in cases {
        for is_answered in [true, false] {
            let mut host = host_of(asked("e", dialect, if dialect.is_socket_io() { "/" } else { "/c" }));
            let claims = json!({"sub": "alice"});
            let client = if target.is_empty() {
                sio(&mut host, 2, &claims)
            } else {
                plain(&mut host, 2, &target.replace("=T", &format!("={}", token(&claims))))
            };
            host.take(client);
            let (shard, number, _) = question(&mut host);
            if is_answered {
                host.rule(shard, number, Ruling::Unavailable);
                host.settle();
            } else {
                host.advance(Limits::default().inquiry_ms + 100);
            }
            let got = format!("{:?}", host.take(client));
            assert!(got.contains("Temporarily unavailable") && words.iter().all(|word| got.contains(word)), "{dialect:?}: {got}");
            assert_eq!(counted(&host, |it| it.connections.read() + it.users.read()), 0, "{dialect:?}");
        }
    }
}

#[test]
fn collab_is_let_in_by_documents_that_the_back_end_names() {
    let mut host = host_of(Endpoint { membership: Membership::Claims, ..asked("collab", DialectKind::Collab, "/c") });
    for (documents, is_in) in [(vec!["d".to_owned()], true), (vec!["other".to_owned()], false)] {
        let client = plain(&mut host, 0, "/c?documentId=d&clientID=c");
        let (shard, number, _) = question(&mut host);
        let changes = Changes { user: Some("ann".into()), rooms: Some(documents), ..Changes::default() };
        host.rule(shard, number, Ruling::Allowed(changes));
        host.settle();
        assert_eq!(host.texts(client)[0].contains("connected"), is_in);
    }
}

#[test]
fn notify_asks_when_the_client_has_said_who_it_is() {
    let mut host = host_of(asked("notify", DialectKind::Notify, "/"));
    let client = host.connect(0, &Host::upgrade_head(&format!("{WEBSOCKET}&a=b"), ""));
    host.say(client, "40");
    host.settle();
    assert!(host.inquiries.is_empty(), "nobody knows yet who that is");
    host.say(client, &format!("421[\"authenticate\",{{\"token\":\"{}\"}}]", token(&json!({"sub": "alice"}))));
    host.say(client, "422[\"presence:subscribe\",{\"userIds\":[\"bob\",\"carol\"]}]");
    let (shard, number, about) = question(&mut host);
    let caller = caller(about);
    assert!(caller.query.contains("a=b") && caller.claims.is_some_and(|claims| claims.contains("alice")));
    host.take(client);
    host.rule(shard, number, Ruling::Allowed(Changes { user: Some("ann".into()), ..Changes::default() }));
    let (shard, number, about) = question(&mut host);
    assert_eq!(host.texts(client), [r#"42["authenticated",{"userId":"ann","email":null}]"#, r#"431[{"success":true}]"#]);
    assert_eq!(rooms(&about), ["user:bob", "user:carol"], "all or none");
    host.rule(shard, number, Ruling::refused());
    host.settle();
    let told = host.texts(client);
    assert!(told[0].contains("FORBIDDEN") && told[1].starts_with("432[{\"success\":false"), "{told:?}");

    host.say(client, "423[\"presence:subscribe\",{\"userIds\":[\"bob\"]}]");
    assert_eq!(allow_all(&mut host), 1);
    let told = host.texts(client);
    assert!(told[0].contains("offline") && told[1] == r#"433[{"success":true}]"#, "{told:?}");
}

#[test]
fn rooms_are_entered_when_the_back_end_allows_it_in_whatever_order() {
    let mut host = host_of(open("community", DialectKind::Community, "/c"));
    let alice = token(&json!({"sub": "alice", "rooms": ["a", "b", "c"]}));
    let client = plain(&mut host, 0, &format!("/c?token={alice}"));
    host.say(client, r#"{"type":"PING"}"#);
    host.settle();
    assert_eq!(host.inquiries.len(), 3);
    assert!(host.take(client).is_empty(), "it is told that it is there when it is in its rooms");
    let mut asked: Vec<(usize, u64, String)> = Vec::new();
    for (shard, number, inquiry) in std::mem::take(&mut host.inquiries) {
        asked.push((shard, number, rooms(&inquiry.about)[0].to_owned()));
    }
    assert_eq!(asked.iter().map(|(_, _, room)| room.as_str()).collect::<Vec<_>>(), ["room:a", "room:b", "room:c"]);
    for (shard, number, room) in asked.into_iter().rev() {
        assert!(host.take(client).is_empty());
        host.rule(shard, number, if room == "room:b" { refused("not yours") } else { Ruling::allowed() });
        host.settle();
    }
    let texts = host.texts(client);
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(texts[0].contains("Connected to WebSocket server") && texts[2].contains("PONG"), "{texts:?}");
    assert!(texts[1].contains("FORBIDDEN") && texts[1].contains("not yours") && texts[1].contains(r#""roomId":"b""#), "{texts:?}");
    // Where it is, it need not be asked.
    host.say(client, r#"{"type":"SUBSCRIBE","payload":{"roomId":"a"}}"#);
    host.settle();
    assert!(host.inquiries.is_empty() && host.texts(client)[0].contains("SUBSCRIBED"));
}

#[test]
fn whoever_waits_waits_alone_and_silence_is_a_refusal() {
    let mut host = host_of(open("chat", DialectKind::Chat, "/"));
    let (alice, bob) = (sio(&mut host, 0, &json!({"sub": "alice"})), sio(&mut host, 0, &json!({"sub": "bob"})));
    host.say(bob, r#"421["join-room",{"room":"r"}]"#);
    allow_all(&mut host);
    host.take(bob);
    host.take(alice);
    host.say(alice, r#"421["join-room",{"room":"r"}]"#);
    host.say(alice, r#"422["ping"]"#);
    host.settle();
    for n in 0..100 {
        host.say(bob, &format!("42{n}[\"ping\"]"));
        host.settle();
        assert_eq!(host.texts(bob), ["42[\"pong\"]".to_owned(), format!("43{n}[{{\"success\":true}}]")]);
    }
    let (shard, number, _) = question(&mut host);
    assert!(host.take(alice).is_empty(), "not even the ping, because it came after");
    host.advance(Limits::default().inquiry_ms + 100);
    let texts = host.texts(alice);
    assert!(texts[0].contains("room-error") && texts[0].contains("Temporarily unavailable"), "{texts:?}");
    assert!(texts[1].starts_with("431[") && texts[2] == "42[\"pong\"]", "{texts:?}");
    assert_eq!(counted(&host, |it| it.unanswered.read()), 1);
    // An answer that comes after that changes nothing.
    host.rule(shard, number, Ruling::allowed());
    host.settle();
    assert!(host.take(alice).is_empty());
    host.say(bob, r#"42["message",{"room":"r","content":"x"}]"#);
    allow_all(&mut host);
    assert!(host.take(alice).is_empty(), "she is not in");
}

#[test]
fn an_answer_for_somebody_who_has_gone_or_is_sent_away_changes_nothing() {
    for drain in [false, true] {
        let mut host = host_of(asked("rooms", DialectKind::Rooms, "/"));
        let entering = sio(&mut host, 0, &json!({"sub": "alice"}));
        allow_all(&mut host);
        host.say(entering, r#"42["room:join",{"roomId":"r"}]"#);
        let arriving = sio(&mut host, 1, &json!({"sub": "bob"}));
        host.settle();
        assert_eq!(host.inquiries.len(), 2);
        if drain {
            for shard in 0..3 {
                host.shards[shard].handle_parcel(host.now, Parcel::Drain { over_ms: 0 });
            }
            host.advance(100);
        } else {
            host.hang_up(entering);
            host.hang_up(arriving);
            host.settle();
        }
        assert!(host.shards.iter().all(|shard| shard.links() == 0), "nobody waits for the back end to end");
        // Whoever comes now may get their places, and must not get their answers.
        if !drain {
            let stranger = sio(&mut host, 0, &json!({"sub": "carol"}));
            let asked = host.inquiries.pop().expect("about her");
            for (shard, number, _) in std::mem::take(&mut host.inquiries) {
                host.rule(shard, number, Ruling::allowed());
            }
            host.settle();
            assert!(!host.texts(stranger).iter().any(|text| text.starts_with("40{")));
            host.rule(asked.0, asked.1, Ruling::refused());
        }
        allow_all(&mut host);
        assert_eq!(counted(&host, |it| it.connections.read() + it.users.read() + it.rooms.read()), 0);
    }
}

#[test]
fn what_there_is_no_place_for_is_refused_at_once_and_places_come_back() {
    let mut config = host::config(3, vec![open("chat", DialectKind::Chat, "/")]);
    config.limits.handshakes_per_address = 10_000;
    let mut host = Host::new(config, 7);
    let clients: Vec<usize> = (0..INQUIRIES_PER_HOOK_MAX + 10).map(|n| sio(&mut host, 0, &json!({"sub": format!("u{n}")}))).collect();
    for client in &clients {
        host.take(*client);
        host.say(*client, r#"42["join-room",{"room":"r"}]"#);
    }
    host.settle();
    assert_eq!(host.inquiries.len(), INQUIRIES_PER_HOOK_MAX);
    assert_eq!(counted(&host, |it| it.unasked.read()), 10);
    assert!(host.texts(clients[INQUIRIES_PER_HOOK_MAX])[0].contains("room-error"));
    assert_eq!(allow_all(&mut host), INQUIRIES_PER_HOOK_MAX);
    host.say(clients[INQUIRIES_PER_HOOK_MAX], r#"42["join-room",{"room":"r"}]"#);
    assert_eq!(allow_all(&mut host), 1);
}

#[test]
fn a_hook_that_hangs_takes_no_place_of_another() {
    let mut config = host::config(1, vec![open("chat", DialectKind::Chat, "/")]);
    config.limits.handshakes_per_address = 10_000;
    let mut host = Host::new(config, 7);
    let clients: Vec<usize> = (0..INQUIRIES_PER_HOOK_MAX + 2).map(|n| sio(&mut host, 0, &json!({"sub": format!("u{n}")}))).collect();
    for client in &clients[..=INQUIRIES_PER_HOOK_MAX] {
        host.say(*client, r#"42["message",{"content":"x"}]"#);
    }
    host.settle();
    assert_eq!((host.inquiries.len(), counted(&host, |it| it.unasked.read())), (INQUIRIES_PER_HOOK_MAX, 1));
    host.say(clients[INQUIRIES_PER_HOOK_MAX + 1], r#"42["join-room",{"room":"r"}]"#);
    host.settle();
    assert_eq!(counted(&host, |it| it.unasked.read()), 1);
    assert!(matches!(host.inquiries.last(), Some((_, _, inquiry)) if matches!(inquiry.about, About::Join { .. })));
}

#[test]
fn whoever_wants_in_counts_with_what_he_has_written() {
    let hooks = 3;
    let mut host = Host::new(host::config(1, vec![Endpoint { auth: AuthMode::None, ..asked("rooms", DialectKind::Rooms, "/") }]), 7);
    let written = "x".repeat(900_000);
    let places = INQUIRY_BYTES_PER_SHARD_MAX / hooks / written.len();
    for n in 0..places + 5 {
        assert_eq!(host.inquiries.len(), n.min(places));
        let client = host.connect(0, &Host::upgrade_head(WEBSOCKET, ""));
        host.say(client, &format!("40{}", json!({ "more": written })));
        host.settle();
    }
    assert_eq!(counted(&host, |it| it.unasked.read()), 5);
}

/// One update after the other while nobody answers; the client answers pings as long as it is said. True while it is connected.
fn wait_with_held_messages(host: &mut Host, client: usize, seconds: u64, is_there: impl Fn(u64) -> bool) -> Result<(), u64> {
    for second in 0..seconds {
        host.advance(1_000);
        for got in host.take(client) {
            match got {
                Got::Ping if is_there(second) => host.frame(client, 10, b""),
                Got::Text(text) if text == "2" && is_there(second) => host.say(client, "3"),
                Got::End(_) => return Err(second),
                _ => {}
            }
        }
    }
    Ok(())
}

#[test]
fn who_is_not_heard_is_not_taken_for_dead() {
    for dialect in [DialectKind::Collab, DialectKind::Rooms] {
        for (messages, answers, cut_by_s) in [(60, 1_000, None), (60, 0, Some(300)), (400, 0, Some(HELD_SILENCE_MS / 1_000 + 100))] {
            let mut host = host_of(open("e", dialect, if dialect.is_socket_io() { "/" } else { "/c" }));
            let claims = json!({"sub": "alice"});
            let (client, update) = if dialect.is_socket_io() {
                let client = sio(&mut host, 0, &claims);
                host.say(client, r#"421["room:join",{"roomId":"d"}]"#);
                (client, r#"42["message",{"roomId":"d","content":"x"}]"#)
            } else {
                let client = plain(&mut host, 0, &format!("/c?documentId=d&clientID=c&token={}", token(&claims)));
                (client, r#"{"type":"update","documentId":"d","update":"x"}"#)
            };
            assert_eq!(allow_all(&mut host), 1);
            for _ in 0..messages {
                host.say(client, update);
            }
            let held_s = messages * Limits::default().inquiry_ms / 1_000;
            assert!(held_s > 100, "longer than any heartbeat");
            let end = wait_with_held_messages(&mut host, client, cut_by_s.unwrap_or(held_s + 100), |second| second < answers);
            assert_eq!(end.is_err(), cut_by_s.is_some(), "{dialect:?} {messages} {answers}: {end:?}");
            if messages == 60 {
                assert_eq!(counted(&host, |it| it.unanswered.read()), 60, "all was heard");
                assert!(end.err().is_none_or(|second| second >= held_s - 5), "{dialect:?}: {end:?}");
            }
            if end.is_ok() {
                // Now it is gone.
                assert!(wait_with_held_messages(&mut host, client, 100, |_| false).is_err());
            }
        }
    }
}

#[test]
fn rooms_that_are_asked_about_count_as_rooms() {
    let mut config = host::config(1, vec![open("community", DialectKind::Community, "/c")]);
    config.limits.rooms_per_connection = 2;
    let mut host = Host::new(config, 1);
    let client = plain(&mut host, 0, &format!("/c?token={}", token(&json!({"sub": "a", "rooms": ["a", "b", "c"]}))));
    assert_eq!(allow_all(&mut host), 2);
    assert!(host.texts(client)[1].contains("FORBIDDEN"));
}

#[test]
fn messages_wait_in_their_order_and_are_said_with_the_back_ends_data() {
    let mut host = host_of(open("rooms", DialectKind::Rooms, "/"));
    let (alice, bob) = (sio(&mut host, 0, &json!({"sub": "alice"})), sio(&mut host, 1, &json!({"sub": "bob"})));
    for client in [alice, bob] {
        host.say(client, r#"42["room:join",{"roomId":"r"}]"#);
        allow_all(&mut host);
    }
    host.take(alice);
    host.take(bob);
    host.say(alice, r#"421["message",{"roomId":"r","content":"one","metadata":{"n":1e+100}}]"#);
    host.say(alice, r#"422["typing",{"roomId":"r","isTyping":true}]"#);
    host.say(alice, r#"423["document:edit",{"roomId":"r","changes":[1]}]"#);
    host.say(alice, r#"424["message",{"roomId":"r","content":"two"}]"#);
    let (shard, number, about) = question(&mut host);
    let first = proposal(about);
    assert_eq!((&*first.user, first.room.as_deref(), &*first.event), ("alice", Some("r"), "message"));
    assert_eq!(&*first.data, r#"{"roomId":"r","content":"one","metadata":{"n":1e+100}}"#);
    assert!(host.take(alice).is_empty() && host.take(bob).is_empty());
    host.rule(shard, number, data(r#"{"roomId":"r","content":"ONE"}"#));
    // Typing is nobody's business; the edit is the next question.
    let (shard, number, about) = question(&mut host);
    assert_eq!(&*proposal(about).event, "document:edit");
    let acks: Vec<String> = host.texts(alice).into_iter().filter(|text| text.starts_with("43")).collect();
    assert!(acks[0].starts_with("431[") && acks[0].contains("ONE") && acks[1].starts_with("432["), "{acks:?}");
    let heard = host.texts(bob);
    assert!(heard[0].contains(r#""content":"ONE""#) && !heard[0].contains("metadata") && heard[1].contains("typing"), "{heard:?}");
    host.rule(shard, number, refused("no edits"));
    host.settle();
    let texts = host.texts(alice);
    assert!(texts[0].contains("Failed to edit document") && texts[1].starts_with("423") || texts[1].starts_with("433["), "{texts:?}");
    let (shard, number, _) = question(&mut host);
    host.rule(shard, number, Ruling::allowed());
    host.settle();
    let heard = host.texts(bob);
    assert!(heard.len() == 1 && heard[0].contains(r#""content":"two""#), "{heard:?}");
    // What was kept is what was heard.
    let late = sio(&mut host, 2, &json!({"sub": "carol"}));
    host.take(late);
    host.say(late, r#"429["room:join",{"roomId":"r"}]"#);
    allow_all(&mut host);
    let history = host.texts(late).into_iter().find(|text| text.starts_with("439[")).expect("an answer");
    assert!(history.contains("ONE") && history.contains("two") && !history.contains(r#""one""#), "{history}");
}

#[test]
fn data_that_make_another_message_of_it_are_refused() {
    for data_given in [
        r#"{"roomId":"s","content":"x"}"#,
        r#"{"content":"x"}"#,
        r#"{"roomId":"r","content":7}"#,
        r#"{"roomId":"r","content":"x"},{"more":1}"#.trim_end_matches("}"),
        "null",
        "nonsense",
        "",
        r#"{"roomId":"r","content":"x","metadata":{"_placeholder":true,"num":7}}"#,
    ] {
        let mut host = host_of(open("rooms", DialectKind::Rooms, "/"));
        let (alice, bob) = (sio(&mut host, 0, &json!({"sub": "alice"})), sio(&mut host, 1, &json!({"sub": "bob"})));
        for (client, room) in [(alice, "r"), (bob, "r"), (alice, "s"), (bob, "s")] {
            host.say(client, &format!(r#"42["room:join",{{"roomId":"{room}"}}]"#));
            allow_all(&mut host);
        }
        host.take(alice);
        host.take(bob);
        let binary = data_given.contains("_placeholder");
        if binary {
            host.say(alice, r#"451-1["message",{"roomId":"r","content":"x","metadata":{"_placeholder":true,"num":0}}]"#);
            host.frame(alice, 2, b"bytes");
        } else {
            host.say(alice, r#"421["message",{"roomId":"r","content":"x"}]"#);
        }
        let (shard, number, _) = question(&mut host);
        host.rule(shard, number, data(data_given));
        host.settle();
        assert!(host.texts(bob).is_empty(), "{data_given}");
        let texts = host.texts(alice);
        assert!(texts[0].contains("Failed to send message") && texts[1].starts_with("431["), "{data_given}: {texts:?}");
    }
}

#[test]
fn binary_arguments_wait_with_their_message() {
    let mut host = host_of(open("rooms", DialectKind::Rooms, "/"));
    let (alice, bob) = (sio(&mut host, 0, &json!({"sub": "alice"})), sio(&mut host, 1, &json!({"sub": "bob"})));
    for client in [alice, bob] {
        host.say(client, r#"42["room:join",{"roomId":"r"}]"#);
        allow_all(&mut host);
    }
    host.take(bob);
    for given in [Ruling::allowed(), data(r#"{"roomId":"r","content":"y","metadata":[{"_placeholder":true,"num":0}]}"#)] {
        host.say(alice, r#"451-["message",{"roomId":"r","content":"x","metadata":{"_placeholder":true,"num":0}}]"#);
        host.frame(alice, 2, b"bytes");
        host.say(alice, r#"42["message",{"roomId":"r","content":"after"}]"#);
        let (shard, number, about) = question(&mut host);
        assert!(proposal(about).data.contains(r#"{"_placeholder":true,"num":0}"#));
        host.rule(shard, number, given);
        allow_all(&mut host);
        let got = host.take(bob);
        assert!(matches!(&got[0], Got::Text(text) if text.starts_with("451-")) && got[1] == Got::Binary(b"bytes".to_vec()), "{got:?}");
        assert!(matches!(&got[2], Got::Text(text) if text.contains("after")), "{got:?}");
    }
}

#[test]
fn plain_dialects_ask_about_what_is_said_and_not_about_where_somebody_is() {
    let mut host = host_of(Endpoint { auth: AuthMode::None, retain: 10, ..open("collab", DialectKind::Collab, "/c") });
    let clients: Vec<usize> = (0..2).map(|n| plain(&mut host, n, &format!("/c?documentId=d&clientID=c{n}"))).collect();
    assert_eq!(allow_all(&mut host), 2);
    for client in &clients {
        assert!(host.texts(*client)[0].contains("connected"));
    }
    host.say(clients[0], r#"{"type":"awareness","documentId":"d","awareness":1}"#);
    host.say(clients[0], r#"{"type":"update","documentId":"d","data":[1]}"#);
    host.say(clients[0], r#"{"type":"steps","documentId":"d","steps":[]}"#);
    let (shard, number, about) = question(&mut host);
    let first = proposal(about);
    assert_eq!(
        (first.room.as_deref(), &*first.event, &*first.data),
        (Some("d"), "update", r#"{"type":"update","documentId":"d","data":[1]}"#)
    );
    assert_eq!(host.texts(clients[1]).len(), 1, "the awareness");
    host.rule(shard, number, data(r#"{"type":"update","documentId":"d","data":[2]}"#));
    let (shard, number, _) = question(&mut host);
    assert_eq!(host.texts(clients[1]), [r#"{"type":"update","documentId":"d","data":[2],"clientID":"c0"}"#]);
    host.rule(shard, number, refused("read only"));
    host.settle();
    assert_eq!(host.texts(clients[0]), [r#"{"type":"error","message":"read only"}"#]);
    assert!(host.texts(clients[1]).is_empty());

    let mut host = host_of(open("community", DialectKind::Community, "/c"));
    let client = plain(&mut host, 0, &format!("/c?roomId=r&token={}", token(&json!({"sub": "alice"}))));
    assert_eq!(allow_all(&mut host), 1);
    host.take(client);
    host.say(client, r#"{"type":"CHAT_MESSAGE","payload":{"roomId":"r","content":"damn"}}"#);
    let (shard, number, about) = question(&mut host);
    let first = proposal(about);
    assert_eq!(
        (first.room.as_deref(), &*first.event, &*first.data),
        (Some("room:r"), "CHAT_MESSAGE", r#"{"roomId":"r","content":"damn"}"#)
    );
    host.rule(shard, number, data(r#"{"roomId":"r","content":"****"}"#));
    host.settle();
    assert!(host.texts(client)[0].contains(r#""content":"****""#));
    host.say(client, r#"{"type":"CHAT_MESSAGE","payload":{"roomId":"r","content":"damn"}}"#);
    let (shard, number, _) = question(&mut host);
    host.rule(shard, number, refused("mind your words"));
    host.settle();
    let told = &host.texts(client)[0];
    assert!(told.contains("FORBIDDEN") && told.contains("mind your words") && told.contains(r#""roomId":"r""#), "{told}");
}

#[test]
fn chat_asks_about_messages_to_anybody() {
    let mut host = host_of(open("chat", DialectKind::Chat, "/"));
    let (alice, bob) = (sio(&mut host, 0, &json!({"sub": "alice"})), sio(&mut host, 1, &json!({"sub": "bob"})));
    for said in [r#"{"to":"bob","content":"psst"}"#, r#"{"content":"all"}"#] {
        host.take(alice);
        host.take(bob);
        host.say(alice, &format!("421[\"message\",{said}]"));
        let (shard, number, about) = question(&mut host);
        let asked = proposal(about);
        assert_eq!((asked.room.as_deref(), &*asked.data), (None, said));
        host.rule(shard, number, refused("quiet"));
        host.settle();
        let told = host.texts(alice);
        assert!(told[0].contains("AUTHORIZATION_FAILED") && told[0].contains("quiet") && told[1].starts_with("431["), "{told:?}");
        assert!(host.take(bob).is_empty());
    }
}

#[test]
fn a_room_that_the_back_end_grants_meanwhile_is_entered_once() {
    let mut host = host_of(open("rooms", DialectKind::Rooms, "/"));
    let (alice, bob) = (sio(&mut host, 0, &json!({"sub": "alice"})), sio(&mut host, 1, &json!({"sub": "bob"})));
    host.say(alice, r#"421["room:join",{"roomId":"r"}]"#);
    let (shard, number, _) = question(&mut host);
    for shard in 0..3 {
        let question = Question::Grant { endpoint: EndpointId(0), room: "r".into(), user: "alice".into() };
        host.shards[shard].handle_parcel(host.now, Parcel::Ask { ask: 1, question });
    }
    // The grant reaches her shard; the room's answer to it may be on its way, and may have come.
    for step in 0..3 {
        host.pump(step);
        host.step(step, 0);
    }
    host.rule(shard, number, Ruling::allowed());
    host.settle();
    assert!(host.texts(alice).iter().any(|text| text.starts_with("431[{\"success\":true")));
    host.say(alice, r#"422["room:leave",{"roomId":"r"}]"#);
    host.settle();
    host.say(bob, r#"429["room:join",{"roomId":"r"}]"#);
    allow_all(&mut host);
    let answer = host.texts(bob).into_iter().find(|text| text.starts_with("439[")).expect("an answer");
    assert!(answer.contains(r#""memberCount":1"#), "she was counted once and is gone: {answer}");
}

#[test]
fn a_connection_that_comes_back_is_who_the_back_end_has_said() {
    let mut host = host_of(Endpoint { recovery_ms: 60_000, ..asked("rooms", DialectKind::Rooms, "/") });
    let client = host.connect(0, &Host::upgrade_head(WEBSOCKET, ""));
    host.say(client, "40");
    let (shard, number, _) = question(&mut host);
    host.rule(shard, number, Ruling::Allowed(Changes { user: Some("ann".into()), name: Some("Ann".into()), ..Changes::default() }));
    host.settle();
    let texts = host.texts(client);
    let connected = texts.iter().find(|text| text.starts_with("40{")).expect("let in");
    let connected: serde_json::Value = serde_json::from_str(&connected[2..]).expect("JSON");
    host.say(client, r#"421["room:join",{"roomId":"r"}]"#);
    host.say(client, r#"42["message",{"roomId":"r","content":"x"}]"#);
    allow_all(&mut host);
    let texts = host.texts(client);
    let message = texts.iter().find(|text| text.contains("\"content\"")).expect("the sender hears it too");
    let offset = message.rsplit_once(",\"").expect("an offset at the end").1.trim_end_matches("\"]");
    host.hang_up(client);
    host.settle();
    let again = host.connect(2, &Host::upgrade_head(WEBSOCKET, ""));
    host.say(again, &format!("40{}", json!({"pid": connected["pid"], "offset": offset})));
    host.settle();
    assert!(host.inquiries.is_empty(), "it was let in already");
    let texts = host.texts(again);
    let back = texts.iter().find(|text| text.starts_with("40{"));
    assert!(back.is_some_and(|back| back.contains(connected["sid"].as_str().expect("text"))), "{texts:?}");
    host.say(again, r#"421["message",{"roomId":"r","content":"x"}]"#);
    allow_all(&mut host);
    assert!(host.texts(again).iter().any(|text| text.contains(r#""userId":"ann","username":"Ann""#)));
}

#[test]
fn a_long_polling_session_and_its_upgrade_wait_like_everybody() {
    let mut host = host_of(asked("rooms", DialectKind::Rooms, "/"));
    let polling = "/socket.io/?EIO=4&transport=polling";
    let get = |host: &mut Host, target: &str| host.connect(0, &format!("GET {target} HTTP/1.1\r\nHost: t\r\n\r\n"));
    let first = get(&mut host, polling);
    host.settle();
    let Got::Http(200, body) = &host.take(first)[0] else { panic!("a session") };
    let sid = body.split('"').nth(3).expect("an id").to_owned();
    let target = format!("{polling}&sid={sid}");
    let connect = format!("40{{\"token\":\"{}\"}}\u{1e}42[\"room:join\",{{\"roomId\":\"r\"}}]", token(&json!({"sub": "alice"})));
    host.connect(1, &format!("POST {target} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{connect}", connect.len()));
    let (shard, number, _) = question(&mut host);
    // The WebSocket takes over while the answer is awaited.
    let socket = host.connect(2, &Host::upgrade_head(&format!("{WEBSOCKET}&sid={sid}"), ""));
    host.settle();
    host.write(socket, &masked(1, b"2probe"));
    host.settle();
    host.write(socket, &masked(1, b"5"));
    host.settle();
    host.rule(shard, number, Ruling::allowed());
    let (shard, number, about) = question(&mut host);
    assert_eq!(rooms(&about), ["r"]);
    host.rule(shard, number, Ruling::allowed());
    host.settle();
    let texts = host.texts(socket);
    assert!(texts.iter().any(|text| text.starts_with("40{")), "{texts:?}");
    host.write(socket, &masked(1, br#"421["message",{"roomId":"r","content":"x"}]"#));
    assert_eq!(allow_all(&mut host), 1);
    assert!(host.texts(socket).iter().any(|text| text.contains("\"content\":\"x\"")));
}

/// Who it is a client says when it likes, in a message; `twice` is said as two things.
struct Later;

impl Dialect for Later {
    fn admit(&self, _hello: &Hello<'_>) -> Result<Profile, Refused> {
        Ok(Profile { unproven: Some(Err(AuthFault::Missing)), ..Profile::named("") })
    }

    fn message(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let Said::Text(text) = said else { return };
        if let Some(user) = text.strip_prefix("I am ") {
            return acts.push(Act::Identify { profile: Box::new(Profile::named(user)), note: "".into() });
        }
        for _ in 0..if text == "twice" { 2 } else { 1 } {
            let submission = Submission { room: Some("r".into()), event: "words".into(), data: "1".into() };
            let publication = Publication::to_all("r".into(), cx.text(text));
            acts.push(Act::Publish(Publication { submission: Some(Box::new(submission)), ..publication }));
        }
    }

    fn identified(&self, cx: &Cx<'_>, outcome: Result<(), engine::dialect::EnterFault>, _note: &str, acts: &mut Vec<Act>) {
        match outcome {
            Ok(()) => acts.extend([Act::Enter(engine::dialect::Entry::new("r".into())), Act::Send(cx.text("welcome"))]),
            Err(_) => acts.push(Act::Close(engine::fault::CloseReason::Forbidden)),
        }
    }

    fn unpublished(&self, cx: &Cx<'_>, _said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        acts.push(Act::Send(cx.text("no")));
    }
}

fn later(host: &mut Host) -> usize {
    let client = plain(host, 0, "/later");
    let (shard, number, about) = question(host);
    assert!(caller(about).claims.is_none());
    host.rule(shard, number, Ruling::allowed());
    host.settle();
    client
}

#[test]
fn who_says_later_who_he_is_is_nobody_until_then() {
    let endpoint =
        Endpoint { membership: Membership::Open, ..asked("later", DialectKind::Own(OwnDialect::plain("later", &Later)), "/later") };
    let mut host = host_of(Endpoint { auth: AuthMode::None, ..endpoint.clone() });
    let silent = later(&mut host);
    assert_eq!(counted(&host, |it| it.authenticated.read()), 0);
    // As who he is the back end is asked.
    let known = later(&mut host);
    host.take(known);
    host.say(known, "I am ann");
    let (shard, number, _) = question(&mut host);
    assert!(host.take(known).is_empty());
    host.rule(shard, number, Ruling::allowed());
    host.settle();
    assert_eq!((host.texts(known), counted(&host, |it| it.authenticated.read())), (vec!["welcome".to_owned()], 1));
    let refused = later(&mut host);
    host.say(refused, "I am bob");
    let (shard, number, _) = question(&mut host);
    host.rule(shard, number, Ruling::refused());
    host.settle();
    assert!(host.take(refused).iter().any(|got| matches!(got, Got::End(_))));
    host.advance(engine::limits::IDENTIFY_MS + 1_000);
    assert!(host.take(silent).iter().any(|got| matches!(got, Got::Close(Some(4401), _))), "who never says it is sent away");

    // Of a message that says two things nobody is asked, and nothing is heard.
    host.say(known, "twice");
    host.settle();
    assert_eq!((host.inquiries.len(), host.texts(known)), (0, vec!["no".to_owned()]));
    host.say(known, "once");
    assert_eq!(allow_all(&mut host), 1);
    assert_eq!(host.texts(known), ["once"]);
}

/// A client of recoverable rooms that is in one and has heard something; what it comes back with.
fn recoverable(host: &mut Host) -> (usize, serde_json::Value) {
    let client = sio(host, 0, &json!({"sub": "ann"}));
    host.say(client, r#"42["room:join",{"roomId":"r"}]"#);
    host.say(client, r#"42["message",{"roomId":"r","content":"x"}]"#);
    allow_all(host);
    let texts = host.texts(client);
    let connected = texts.iter().find(|text| text.starts_with("40{")).expect("let in");
    let connected: serde_json::Value = serde_json::from_str(&connected[2..]).expect("JSON");
    let message = texts.iter().find(|text| text.contains("\"content\"")).expect("the sender hears it too");
    let offset = message.rsplit_once(",\"").expect("an offset at the end").1.trim_end_matches("\"]");
    (client, json!({"pid": connected["pid"], "offset": offset, "token": token(&json!({"sub": "ann"}))}))
}

fn is_recovered(host: &mut Host, auth: &serde_json::Value) -> bool {
    let again = host.connect(0, &Host::upgrade_head(WEBSOCKET, ""));
    host.say(again, &format!("40{auth}"));
    host.advance(2_000);
    host.texts(again).iter().any(|text| text.starts_with("40{") && text.contains(auth["pid"].as_str().expect("text")))
}

#[test]
fn who_breaks_off_while_his_message_is_asked_about_can_come_back() {
    let mut host = host_of(Endpoint { recovery_ms: 60_000, ..open("rooms", DialectKind::Rooms, "/") });
    let (client, auth) = recoverable(&mut host);
    host.say(client, r#"42["message",{"roomId":"r","content":"lost"}]"#);
    let (shard, number, _) = question(&mut host);
    host.hang_up(client);
    host.settle();
    host.rule(shard, number, Ruling::allowed());
    host.settle();
    assert!(is_recovered(&mut host, &auth));
    assert_eq!(host.stats.iter().map(|stats| stats.endpoints[0].dropped[engine::fault::DropReason::Unsent.index()].read()).sum::<u64>(), 1);
}

#[test]
fn who_is_not_heard_is_not_taken_over() {
    let mut host = host_of(Endpoint { recovery_ms: 60_000, ..open("rooms", DialectKind::Rooms, "/") });
    let (client, auth) = recoverable(&mut host);
    let again = host.connect(0, &Host::upgrade_head(WEBSOCKET, ""));
    host.say(again, &format!("40{auth}"));
    host.say(client, r#"42["message",{"roomId":"r","content":"x"}]"#);
    host.settle();
    host.advance(engine::limits::TAKEOVER_MS + 200);
    assert!(!host.take(client).iter().any(|got| matches!(got, Got::End(_))));
    assert!(host.texts(again).iter().any(|text| text.starts_with("40{") && !text.contains(auth["pid"].as_str().expect("text"))));
}
