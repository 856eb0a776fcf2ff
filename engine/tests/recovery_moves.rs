//! Connection state recovery where a client's transport changes while it comes back, where it has several namespaces, and what those who are
//! away may cost the others.

#[path = "recovery/client.rs"]
mod client;
mod host;

use client::{Client, POLLING, WINDOW_MS, answered, ask, config, counts, host, open, pair, refused};
use engine::config::{DialectKind, Endpoint};
use engine::fault::RecoveryFault;
use engine::ids::{EndpointId, Sid};
use engine::shard::parcel::{Emit, Parcel, Question, Selection, Target};
use engine::wire::sio::Offset;
use engine::{Answer, config::AuthMode};
use host::{Got, Host, masked};
use serde_json::json;

fn session(host: &mut Host, shard: usize) -> String {
    let opened = ask(host, shard, "GET", POLLING, "");
    format!("{POLLING}&sid={}", &answered(host, opened).1[9..29])
}

fn post(host: &mut Host, shard: usize, session: &str, body: &str) {
    let post = ask(host, shard, "POST", session, body);
    assert_eq!(answered(host, post), (200, "ok".into()));
}

fn probe(host: &mut Host, shard: usize, session: &str) -> usize {
    let socket = host.connect(shard, &Host::upgrade_head(&session.replace("polling", "websocket"), ""));
    host.settle();
    socket
}

fn upgrade(host: &mut Host, shard: usize, session: &str) -> usize {
    let socket = probe(host, shard, session);
    host.say(socket, "2probe");
    host.settle();
    assert_eq!(host.texts(socket), ["3probe"]);
    host.say(socket, "5");
    host.settle();
    socket
}

fn ask_all(host: &mut Host, question: impl Fn() -> Question) -> Vec<Answer> {
    host.settle();
    host.answers.clear();
    for shard in 0..host.shards.len() {
        host.shards[shard].handle_parcel(host.now, Parcel::Ask { ask: 77, question: question() });
    }
    host.settle();
    host.answers.drain(..).map(|(_, _, answer)| answer).collect()
}

/// The CONNECT waits for the upgrade's end and goes to another shard then: once, and before everything else that was said.
#[test]
fn a_connect_that_waited_for_an_upgrade_is_taken_once() {
    for shard in 1..3 {
        let mut host = host();
        let (mut alice, mut bob) = pair(&mut host);
        alice.break_off(&mut host);
        bob.tell(&mut host, "missed");
        let session = session(&mut host, shard);
        alice.at = probe(&mut host, shard, &session);
        // By POST, and more by the next.
        post(&mut host, 0, &session, &alice.connect());
        post(&mut host, 1, &session, r#"42["message",{"roomId":"r","content":"first words"}]"#);
        host.say(alice.at, "2probe");
        host.settle();
        assert_eq!(host.texts(alice.at), ["3probe"]);
        let last = masked(1, br#"42["message",{"roomId":"r","content":"last words"}]"#);
        host.write(alice.at, &[masked(1, b"5"), last].concat());
        alice.listen(&mut host);
        assert!(alice.recovered, "shard {shard}");
        assert_eq!(alice.take(&mut host), [json!("missed"), json!("CONNECT"), json!("first words"), json!("last words")], "shard {shard}");
        // What waits for a room's answer is what looks at the rest.
        host.say(alice.at, r#"42["room:join",{"roomId":"s"}]"#);
        bob.tell(&mut host, "later");
        assert_eq!(alice.take(&mut host).last(), Some(&json!("later")));
    }
}

/// By default clients begin with long-polling and upgrade at once: faster than an old connection is found to be dead.
#[test]
fn an_upgrade_while_the_old_connection_is_asked_takes_the_answer_over() {
    for (shard, is_alive) in [(0, false), (1, false), (2, false), (0, true), (1, true)] {
        let mut host = host();
        let (alice, mut bob) = pair(&mut host);
        let mut again =
            Client { at: 0, heard: Vec::new(), sid: alice.sid.clone(), pid: alice.pid.clone(), offset: alice.offset.clone(), ..alice };
        bob.tell(&mut host, "into the void");
        let session = session(&mut host, shard);
        post(&mut host, 2, &session, &again.connect());
        again.at = upgrade(&mut host, 1, &session);
        again.listen(&mut host);
        assert!(again.heard.is_empty(), "the old one is asked first");
        if is_alive {
            host.say(alice.at, "3");
        } else {
            host.advance(2_000);
        }
        again.listen(&mut host);
        assert_eq!(again.recovered, !is_alive, "shard {shard}: {:?}", again.heard);
        assert_eq!(again.heard.last(), Some(&json!("CONNECT")), "shard {shard}");
        again.join(&mut host);
        bob.tell(&mut host, "live");
        assert!(again.take(&mut host).contains(&json!("live")), "shard {shard}");
    }
}

#[test]
fn who_breaks_off_while_the_old_connection_is_asked_may_come_again() {
    let mut host = host();
    let (mut alice, mut bob) = pair(&mut host);
    bob.tell(&mut host, "into the void");
    alice.at = open(&mut host, 1);
    host.say(alice.at, &alice.connect());
    host.settle();
    host.hang_up(alice.at);
    host.advance(500);
    alice.return_to(&mut host, 2);
    host.advance(1_200);
    alice.listen(&mut host);
    assert!(alice.recovered && alice.heard == [json!("into the void"), json!("CONNECT")], "{:?}", alice.heard);
    assert_eq!(refused(&host, RecoveryFault::InUse), 0);
}

/// Nothing answers at the other end: then nobody there goes on believing that he is in a namespace that somebody else has taken up.
#[test]
fn a_link_that_does_not_answer_goes_with_all_its_namespaces() {
    let mut config = config();
    config.endpoints[1].recovery_ms = WINDOW_MS;
    let mut host = Host::new(config, 5);
    let mut alice = Client::come(&mut host, 0, "alice");
    let token = host::token(&json!({"sub": "alice", "exp": 4_000_000_000_u64}));
    host.say(alice.at, &format!("40/chat,{}", json!({"token": token})));
    host.settle();
    assert!(host.texts(alice.at)[0].starts_with("40/chat,"));
    alice.join(&mut host);
    alice.tell(&mut host, "hello");
    let old = alice.at;
    alice.return_to(&mut host, 1);
    host.advance(2_000);
    alice.listen(&mut host);
    assert!(alice.recovered);
    assert!(matches!(host.take(old).last(), Some(Got::End(_))), "the old link is closed");
    let recoverable = |of: usize| host.stats.iter().map(|stats| stats.endpoints[of].recoverable.read()).sum::<u64>();
    assert_eq!((recoverable(0), recoverable(1)), (0, 1));
}

/// Library clients keep the last offset when they start anew, and may have heard nothing yet when they break off again.
#[test]
fn an_offset_from_an_earlier_connection_counts_as_nothing_heard() {
    let mut host = host();
    let (mut alice, mut bob) = pair(&mut host);
    host.say(alice.at, "41");
    host.settle();
    host.hang_up(alice.at);
    alice.return_to(&mut host, 0);
    assert!(!alice.recovered, "she had said goodbye");
    let offset = alice.offset.clone();
    alice.join(&mut host);
    alice.offset = offset;
    alice.break_off(&mut host);
    bob.tell(&mut host, "missed");
    alice.return_to(&mut host, 0);
    assert!(alice.recovered && alice.heard.contains(&json!("missed")), "{:?}", alice.heard);
}

/// The same where that event comes to this host only now, as it does from another host's stream: nobody knows whether she has heard it here.
#[test]
fn an_offset_from_an_earlier_connection_that_comes_once_more_is_none_to_go_on_from() {
    for is_away in [false, true] {
        let mut host = host();
        let (mut alice, mut bob) = pair(&mut host);
        host.say(alice.at, "41");
        host.settle();
        host.hang_up(alice.at);
        host.now.ns += 1;
        alice.offset = Offset::Own(host.now.ns).text();
        alice.return_to(&mut host, 0);
        let brought = alice.offset.clone();
        alice.join(&mut host);
        alice.offset = brought;
        if is_away {
            alice.break_off(&mut host);
        }
        bob.tell(&mut host, "missed");
        emit(&mut host, 0, vec![Target::Room("r".into())], "once more");
        host.hang_up(alice.at);
        host.settle();
        let forgotten = refused(&host, RecoveryFault::Forgotten);
        alice.return_to(&mut host, 0);
        assert!(!alice.recovered && refused(&host, RecoveryFault::Forgotten) == forgotten + 1, "{is_away}: {:?}", alice.heard);
        // Whoever has heard something since is known again.
        alice.join(&mut host);
        bob.tell(&mut host, "here");
        alice.break_off(&mut host);
        bob.tell(&mut host, "missed");
        alice.return_to(&mut host, 0);
        assert!(alice.recovered && alice.heard == [json!("missed"), json!("CONNECT")], "{is_away}: {:?}", alice.heard);
    }
}

/// A ping that was sent before a connection was taken up proves nothing of what was said when it was.
#[test]
fn an_older_ping_proves_nothing_about_what_came_after_it() {
    let mut host = host();
    let (mut alice, mut bob) = pair(&mut host);
    let (old, offset) = (alice.at, alice.offset.clone());
    for n in 0..5 {
        bob.tell(&mut host, &format!("m{n}"));
    }
    alice.at = open(&mut host, 0);
    host.advance(25_500);
    assert_eq!(host.texts(alice.at), ["2"]);
    host.hang_up(old);
    host.say(alice.at, &alice.connect());
    host.say(alice.at, "3");
    alice.listen(&mut host);
    assert!(alice.recovered);
    alice.break_off(&mut host);
    // Nothing of that has arrived.
    alice.offset = offset;
    alice.return_to(&mut host, 0);
    assert!(alice.recovered && alice.heard.contains(&json!("m0")) && alice.heard.contains(&json!("m4")), "{:?}", alice.heard);
}

#[test]
fn several_namespaces_together_get_no_more_than_may_wait() {
    let mut config = config();
    config.limits.outbox_bytes = 40_000;
    let rooms = |bind: &str| Endpoint { recovery_ms: WINDOW_MS, auth: AuthMode::None, ..host::endpoint(bind, DialectKind::Rooms, bind) };
    config.endpoints = ["/", "/a", "/b", "/c"].map(rooms).into();
    let namespaces = ["", "/a,", "/b,", "/c,"];
    let mut host = Host::new(config, 5);
    let at = open(&mut host, 0);
    for namespace in namespaces {
        host.say(at, &format!("40{namespace}"));
        host.settle();
        host.say(at, &format!(r#"42{namespace}["room:join",{{"roomId":"r"}}]"#));
        host.settle();
        host.say(at, &format!(r#"42{namespace}["message",{{"roomId":"r","content":"x"}}]"#));
        host.settle();
    }
    let heard = host.texts(at);
    let pid = |namespace: &str| {
        let connected = heard.iter().find_map(|text| text.strip_prefix(&format!("40{namespace}{{"))).expect("a CONNECT");
        connected.split('"').nth(7).expect("its pid").to_owned()
    };
    let offset = |namespace: &str| {
        let start = format!("42{namespace}[");
        let event = heard.iter().rfind(|text| text.starts_with(&start));
        event.expect("an event").rsplit('"').nth(1).expect("its offset").to_owned()
    };
    let connects: Vec<String> = namespaces
        .iter()
        .map(|namespace| format!("40{namespace}{}", json!({"pid": pid(namespace), "offset": offset(namespace)})))
        .collect();
    host.hang_up(at);
    for endpoint in 0..4 {
        emit(&mut host, endpoint, vec![Target::Room("r".into())], &"x".repeat(15_000));
    }
    let session = session(&mut host, 0);
    post(&mut host, 0, &session, &connects.join("\u{1e}"));
    let poll = ask(&mut host, 0, "GET", &session, "");
    assert_eq!(answered(&mut host, poll).0, 200, "the session lives");
    let count = |of: fn(&engine::stats::EndpointStats) -> u64| host.stats[0].endpoints.iter().map(of).sum::<u64>();
    assert_eq!(count(|stats| stats.recovered.read()), 1);
    assert_eq!(count(|stats| stats.unrecovered[RecoveryFault::TooMuch.index()].read()), 3);
    assert_eq!(count(|stats| stats.connections.read()), 4);
}

fn emit(host: &mut Host, endpoint: u8, targets: Vec<Target>, text: &str) -> u64 {
    let args = json!(text).to_string();
    let to = Selection { endpoint: EndpointId(endpoint), targets, except: Vec::new() };
    let emit = std::sync::Arc::new(Emit {
        to,
        event: "news".into(),
        args,
        ack_ms: None,
        volatile: false,
        offset: (host.now.ns + u64::from(endpoint)).into(),
        unix_ms: host.now.unix_ms,
        attachments: Vec::new(),
        is_elsewhere: false,
    });
    let answers = ask_all(host, || Question::Emit(emit.clone()));
    answers.iter().map(|answer| if let Answer::Emitted(emitted) = answer { emitted.recipients } else { 0 }).sum()
}

#[test]
fn who_proved_later_who_he_is_misses_nothing_that_everybody_is_told() {
    let notify = Endpoint { recovery_ms: WINDOW_MS, ..host::endpoint("notify", DialectKind::Notify, "/") };
    let mut host = Host::new(host::config(3, vec![notify]), 5);
    let mut alice = Client::come(&mut host, 0, "alice");
    alice.take(&mut host);
    let mut bob = Client::come(&mut host, 1, "bob");
    host.say(bob.at, r#"42["presence:subscribe",{"userIds":["alice"]}]"#);
    bob.take(&mut host);
    alice.break_off(&mut host);
    assert_eq!(emit(&mut host, 0, vec![Target::all()], "to all"), 1);
    host.now.ns += 1_000_000;
    assert_eq!(emit(&mut host, 0, vec![Target::user("alice")], "to her"), 0);
    // Who asks now hears that she is not there.
    host.texts(bob.at);
    host.say(bob.at, r#"42["presence:subscribe",{"userIds":["alice"]}]"#);
    host.settle();
    let told = host.texts(bob.at);
    assert!(told.iter().any(|text| text.contains(r#""status":"offline""#)), "{told:?}");
    alice.at = open(&mut host, 2);
    host.say(alice.at, &alice.connect());
    host.settle();
    let heard = host.texts(alice.at);
    assert!(heard[0].contains("to all") && heard[1].contains("to her") && heard[2].starts_with("40{"), "{heard:?}");
    host.say(bob.at, r#"42["presence:subscribe",{"userIds":["alice"]}]"#);
    host.settle();
    assert!(host.texts(bob.at).last().expect("an answer").contains(r#""status":"online""#));
}

#[test]
fn an_emit_to_everybody_takes_no_place_for_each_who_hears_it() {
    let mut config = config();
    config.limits.recovery_bytes = 3 * 3_000;
    let mut host = Host::new(config, 5);
    let mut clients: Vec<Client> = (0..100).map(|_| Client::come(&mut host, 0, "alice")).collect();
    emit(&mut host, 0, vec![Target::all()], "first");
    clients[0].listen(&mut host);
    clients[0].break_off(&mut host);
    for n in 0..6 {
        host.now.ns += 1_000_000;
        emit(&mut host, 0, vec![Target::all()], &format!("{n}"));
    }
    let client = &mut clients[0];
    client.return_to(&mut host, 0);
    assert!(client.recovered && client.heard.len() == 7, "{:?}", client.heard);
}

#[test]
fn who_comes_and_goes_all_the_time_pushes_nobody_out() {
    let mut config = config();
    config.endpoints.truncate(1);
    config.limits.recovery_sessions = 3 * 4;
    let mut host = Host::new(config, 5);
    let (mut alice, mut carol) = pair(&mut host);
    let mut bob = Client::come(&mut host, 0, "eve");
    bob.join(&mut host);
    carol.tell(&mut host, "hello");
    bob.listen(&mut host);
    alice.break_off(&mut host);
    for _ in 0..50 {
        bob.break_off(&mut host);
        bob.return_to(&mut host, 0);
        assert!(bob.recovered);
    }
    alice.return_to(&mut host, 0);
    assert!(alice.recovered, "only she was away");
}

#[test]
fn of_one_user_no_more_are_kept_than_he_may_have() {
    let mut config = config();
    config.limits.connections_per_user = 3;
    let mut host = Host::new(config, 5);
    for _ in 0..20 {
        let mut alice = Client::come(&mut host, 0, "alice");
        alice.break_off(&mut host);
    }
    assert_eq!(counts(&host, |stats| stats.recoverable.read()), 3);
    host.advance(2 * WINDOW_MS);
    assert_eq!((counts(&host, |stats| stats.recoverable.read()), counts(&host, |stats| stats.users.read())), (0, 0));
}

#[test]
fn to_close_one_who_is_away_closes_nothing_and_ends_his_past() {
    let mut host = host();
    let (mut alice, _bob) = pair(&mut host);
    alice.break_off(&mut host);
    let id = Sid::parse(&alice.sid).expect("an id");
    let answers = ask_all(&mut host, || Question::CloseConnection { id, reason: None });
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Closed(0))), "{answers:?}");
    alice.return_to(&mut host, 0);
    assert!(!alice.recovered);
}

#[test]
fn where_nothing_is_recovered_a_wish_to_come_back_moves_nobody() {
    let mut host = host();
    let at = open(&mut host, 1);
    let token = host::token(&json!({"sub": "alice", "exp": 4_000_000_000_u64}));
    host.say(at, &format!("40/chat,{}", json!({"token": token, "pid": "AAAAAAAAAAAAAAAAAAAA", "offset": "AAAAAAAAAAA"})));
    host.settle();
    assert_eq!(host.clients[at].shard, 1);
    assert_eq!(host.stats.iter().map(|stats| stats.endpoints[1].unrecovered.iter().map(|of| of.read()).sum::<u64>()).sum::<u64>(), 0);
}

/// The goodbye itself may be what is too much for a client that reads nothing: it has ended all the same, once.
#[test]
fn whoever_is_cut_by_his_goodbye_ends_once() {
    for (pad, expires) in (0..80).flat_map(|pad| [(pad, false), (pad, true)]) {
        let mut config = config();
        config.limits.outbox_bytes = 20_000;
        let mut host = Host::new(config, 5);
        let session = session(&mut host, 0);
        let exp = host::START_UNIX_MS / 1_000 + 10;
        post(&mut host, 0, &session, &format!("40{}", json!({"token": host::token(&json!({"sub": "alice", "exp": exp}))})));
        let poll = ask(&mut host, 1, "GET", &session, "");
        assert!(answered(&mut host, poll).1.contains("40{"));
        for _ in 0..19 {
            emit(&mut host, 0, vec![Target::all()], &"x".repeat(970));
        }
        let waits = host.stats[0].outbox_bytes.read() as usize;
        emit(&mut host, 0, vec![Target::all()], &"x".repeat(20_000 - waits - 100 + pad));
        if expires {
            host.advance(11_000);
        } else {
            ask_all(&mut host, || Question::CloseUser { endpoint: None, user: "alice".into(), reason: None });
        }
        let none = |of: fn(&engine::stats::EndpointStats) -> u64| assert_eq!(counts(&host, of), 0, "{pad} {expires}");
        none(|stats| stats.connections.read());
        none(|stats| stats.authenticated.read());
        none(|stats| stats.users.read());
        none(|stats| stats.polling.read());
        host.advance(2 * WINDOW_MS);
        assert_eq!(counts(&host, |stats| stats.recoverable.read()), 0);
        assert_eq!(host.stats[0].outbox_bytes.read(), 0);
    }
}

/// After a reload to other shards nobody knows any more what a connection had missed that has changed shards (seeds 5 and 30 of the fleet's simulation), and
/// one that was away is given up all the same when its time is over (seed 41).
#[test]
fn who_was_away_at_a_reload_to_other_shards_starts_anew_and_is_forgotten_in_time() {
    for shards in [1, 2, 4] {
        for shard in 0..3 {
            let mut host = host();
            let (mut alice, mut bob) = (Client::come(&mut host, shard, "alice"), Client::come(&mut host, 1, "bob"));
            for client in [&mut alice, &mut bob] {
                client.join(&mut host);
            }
            bob.tell(&mut host, "heard");
            alice.break_off(&mut host);
            bob.tell(&mut host, "missed");
            host.reload(shards);
            bob.tell(&mut host, "missed as well");
            alice.return_to(&mut host, 0);
            let missed = alice.take(&mut host);
            let is_whole = missed.starts_with(&[json!("missed"), json!("missed as well")]);
            assert_eq!(alice.recovered, is_whole, "shard {shard} of 3, then {shards}: {missed:?}");
            alice.break_off(&mut host);
            bob.break_off(&mut host);
            host.reload(shards % 3 + 1);
            host.advance(2 * WINDOW_MS);
            assert_eq!(counts(&host, |stats| stats.recoverable.read()), 0, "shard {shard} of 3, then {shards}");
        }
    }
}

/// Whoever is on another shard after a reload names an event that is the last there, and was not the last where he was (seed 68115 of the fleet's simulation).
#[test]
fn the_last_event_on_the_new_shard_is_no_proof_of_what_was_heard_on_the_old_one() {
    let mut host = host();
    let (mut alice, mut bob) = (Client::come(&mut host, 2, "alice"), Client::come(&mut host, 0, "bob"));
    for client in [&mut alice, &mut bob] {
        client.join(&mut host);
    }
    host.say(alice.at, r#"42["room:join",{"roomId":"hers"}]"#);
    bob.tell(&mut host, "last for bob");
    alice.listen(&mut host);
    let offset = alice.offset.clone();
    host.say(alice.at, r#"42["message",{"roomId":"hers","content":"not for bob"}]"#);
    host.settle();
    // It was sent, and did not arrive.
    host.reload(2);
    host.hang_up(alice.at);
    host.settle();
    alice.heard.clear();
    alice.offset = offset;
    alice.return_to(&mut host, 0);
    assert!(!alice.recovered, "{:?}", alice.heard);
}
