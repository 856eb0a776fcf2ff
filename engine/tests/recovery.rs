//! Connection state recovery on a host of three shards without sockets: whoever comes back comes to any of them.

#[path = "recovery/client.rs"]
mod client;
mod host;

use client::{Client, POLLING, WINDOW_MS, answered, ask, config, counts, host, open, pair, refused};
use engine::fault::RecoveryFault;
use engine::shard::parcel::{Parcel, Question};
use host::{Got, Host, masked};
use serde_json::{Value, json};

#[test]
fn what_was_missed_comes_in_order_and_once_on_every_shard() {
    for shard in 0..3 {
        let mut host = host();
        let (mut alice, mut bob) = pair(&mut host);
        alice.break_off(&mut host);
        let sid = alice.sid.clone();
        assert_eq!(bob.take(&mut host).len(), 2, "she left the room and went offline");
        assert_eq!(counts(&host, |stats| stats.recoverable.read()), 1);
        for content in ["one", "two", "three"] {
            bob.tell(&mut host, content);
        }
        // What is said where she was not, or to somebody else, is not hers.
        host.say(bob.at, r#"42["room:join",{"roomId":"s"}]"#);
        host.say(bob.at, r#"42["message",{"roomId":"s","content":"elsewhere"}]"#);
        host.say(bob.at, r#"42["message",{"roomId":"nowhere","content":"to nobody"}]"#);
        bob.take(&mut host);
        alice.return_to(&mut host, shard);
        // Of the three her coming back is not told to her, and her own going was before it.
        assert_eq!(alice.heard, [json!("one"), json!("two"), json!("three"), json!("CONNECT")], "shard {shard}");
        assert!(alice.recovered && alice.sid == sid);
        // The two come from different homes, so in any order.
        let told = bob.take(&mut host);
        assert!(told.len() == 2 && told.contains(&json!(["user:status", "alice"])) && told.contains(&json!(["user:joined", "alice"])));
        alice.take(&mut host);
        bob.tell(&mut host, "four");
        alice.tell(&mut host, "five");
        assert_eq!(alice.take(&mut host), [json!("four"), json!("five")]);
        assert_eq!(bob.take(&mut host), [json!("four"), json!("five")]);
        // Again, and with nothing missed.
        alice.break_off(&mut host);
        alice.return_to(&mut host, (shard + 1) % 3);
        assert!(alice.recovered && alice.take(&mut host) == [json!("CONNECT")]);
        bob.tell(&mut host, "six");
        assert_eq!(alice.take(&mut host), [json!("six")]);
        assert_eq!((counts(&host, |stats| stats.recovered.read()), counts(&host, |stats| stats.recoverable.read())), (2, 0));
        assert_eq!(counts(&host, |stats| stats.connections.read()), 2);
    }
}

#[test]
fn who_edits_while_the_other_is_away_does_not_edit_alone() {
    // One of the shards is the room's home, where it is known that nobody else is in it now.
    for shard in 0..3 {
        let mut host = host();
        let (mut alice, mut bob) = (Client::come(&mut host, 0, "alice"), Client::come(&mut host, shard, "bob"));
        alice.join(&mut host);
        bob.join(&mut host);
        alice.break_off(&mut host);
        host.say(bob.at, r#"42["document:edit",{"roomId":"r","changes":1}]"#);
        bob.listen(&mut host);
        alice.return_to(&mut host, 0);
        assert!(alice.recovered && alice.heard.contains(&json!(["document:edit", "bob"])), "shard {shard}: {:?}", alice.heard);
    }
}

#[test]
fn a_polling_session_goes_where_its_past_is_and_its_requests_find_it() {
    for shard in 0..3 {
        let mut host = host();
        let (mut alice, mut bob) = pair(&mut host);
        alice.break_off(&mut host);
        bob.tell(&mut host, "missed");
        let request = |host: &mut Host, at: usize, method: &str, target: &str, body: &str| {
            let client = ask(host, at, method, target, body);
            answered(host, client)
        };
        let session = format!("{POLLING}&sid={}", &request(&mut host, shard, "GET", POLLING, "").1[9..29]);
        // A poll waits already when the session moves.
        let poll = ask(&mut host, 1, "GET", &session, "");
        assert_eq!(request(&mut host, 2, "POST", &session, &alice.connect()), (200, "ok".into()));
        let mut heard = answered(&mut host, poll).1;
        if !heard.contains("40{") {
            heard = heard + "\u{1e}" + &request(&mut host, shard, "GET", &session, "").1;
        }
        for packet in heard.split('\u{1e}') {
            alice.hear(packet);
        }
        assert_eq!(alice.heard, [json!("missed"), json!("CONNECT")], "shard {shard}: {heard}");
        assert!(alice.recovered);
        // Both directions, from every shard.
        for at in 0..3 {
            let poll = ask(&mut host, at, "GET", &session, "");
            bob.tell(&mut host, "live");
            assert!(answered(&mut host, poll).1.contains("live"), "{at}");
            let said = r#"42["message",{"roomId":"r","content":"said"}]"#;
            assert_eq!(request(&mut host, at, "POST", &session, said).1, "ok");
            assert!(request(&mut host, at, "GET", &session, "").1.contains("said"));
        }
        // The upgrade finds it as well.
        let socket = host.connect(2, &Host::upgrade_head(&session.replace("polling", "websocket"), ""));
        host.settle();
        host.say(socket, "2probe");
        host.settle();
        assert_eq!(host.texts(socket), ["3probe"], "shard {shard}");
        host.say(socket, "5");
        bob.tell(&mut host, "upgraded");
        host.settle();
        assert!(host.texts(socket).iter().any(|text| text.contains("upgraded")));
        host.hang_up(socket);
        host.settle();
        assert_eq!(request(&mut host, 1, "GET", &session, "").0, 400, "nothing shows the way any more");
        host.advance(2 * WINDOW_MS);
        assert_eq!(counts(&host, |stats| stats.recoverable.read()), 0);
    }
}

#[test]
fn a_connect_during_an_upgrade_waits_for_its_end() {
    for (shard, is_half_open) in [(1, false), (2, false), (0, true), (1, true), (2, true)] {
        let mut host = host();
        let (mut alice, mut bob) = pair(&mut host);
        if !is_half_open {
            alice.break_off(&mut host);
        }
        bob.tell(&mut host, "missed");
        let opened = ask(&mut host, shard, "GET", POLLING, "");
        let session = format!("{POLLING}&sid={}", &answered(&mut host, opened).1[9..29]);
        let socket = host.connect(shard, &Host::upgrade_head(&session.replace("polling", "websocket"), ""));
        host.settle();
        let posted = r#"42["message",{"roomId":"r","content":"posted words"}]"#;
        let post = ask(&mut host, shard, "POST", &session, &format!("{}\u{1e}{posted}", alice.connect()));
        assert_eq!(answered(&mut host, post).1, "ok");
        host.say(socket, "2probe");
        host.settle();
        assert_eq!(host.texts(socket), ["3probe"]);
        // Behind the upgrade, in the same breath: it belongs to the connection.
        host.write(socket, &[masked(1, b"5"), masked(1, br#"42["message",{"roomId":"r","content":"first words"}]"#)].concat());
        alice.at = socket;
        host.advance(2_000);
        alice.listen(&mut host);
        assert_eq!(alice.heard[..2], [json!("missed"), json!("CONNECT")], "shard {shard}");
        assert!(alice.recovered, "{:?}", alice.heard);
        let said =
            |heard: &[Value]| heard.iter().filter(|event| event.as_str().is_some_and(|text| text.ends_with("words"))).cloned().collect();
        let (own, others): (Vec<Value>, Vec<Value>) = (said(&alice.heard), said(&bob.take(&mut host)));
        assert_eq!(own, [json!("posted words"), json!("first words")], "shard {shard}, half open: {is_half_open}");
        assert_eq!(own, others);
        alice.heard.clear();
        bob.tell(&mut host, "later");
        assert_eq!(alice.take(&mut host), [json!("later")], "shard {shard}, half open: {is_half_open}");
    }
}

#[test]
fn an_upgrade_that_comes_to_nothing_lets_the_connect_go_on() {
    let mut host = host();
    let (mut alice, _bob) = pair(&mut host);
    alice.break_off(&mut host);
    let opened = ask(&mut host, 1, "GET", POLLING, "");
    let session = format!("{POLLING}&sid={}", &answered(&mut host, opened).1[9..29]);
    let socket = host.connect(1, &Host::upgrade_head(&session.replace("polling", "websocket"), ""));
    host.settle();
    let post = ask(&mut host, 2, "POST", &session, &alice.connect());
    assert_eq!(answered(&mut host, post).1, "ok");
    host.hang_up(socket);
    host.settle();
    let poll = ask(&mut host, 2, "GET", &session, "");
    let heard = answered(&mut host, poll).1;
    alice.hear(heard.rsplit('\u{1e}').next().expect("a packet"));
    assert!(alice.recovered, "{heard}");
}

#[test]
fn a_half_open_connection_is_taken_over_and_a_living_one_is_not() {
    for shard in 0..3 {
        let mut host = host();
        let (mut alice, mut bob) = pair(&mut host);
        // Her old connection is dead and has not been told: what is said goes there.
        let old = alice.at;
        bob.tell(&mut host, "into the void");
        let mut copy =
            Client { at: 0, heard: Vec::new(), sid: alice.sid.clone(), pid: alice.pid.clone(), offset: alice.offset.clone(), ..alice };
        alice.at = open(&mut host, shard);
        host.say(alice.at, &alice.connect());
        alice.listen(&mut host);
        assert_eq!(alice.heard, [] as [Value; 0], "the old one is asked first");
        host.advance(2_000);
        alice.listen(&mut host);
        assert_eq!(alice.take(&mut host), [json!("into the void"), json!("CONNECT")], "shard {shard}");
        assert!(alice.recovered);
        assert!(matches!(host.take(old).last(), Some(Got::End(_))), "the old one is closed");
        bob.tell(&mut host, "to the new one");
        assert_eq!(alice.take(&mut host), [json!("to the new one")]);
        // Somebody with her ids comes while she is there: he starts anew, and she notices nothing but a ping.
        copy.at = open(&mut host, (shard + 1) % 3);
        host.say(copy.at, &copy.connect());
        host.settle();
        assert!(host.texts(alice.at).contains(&"2".to_owned()));
        host.say(alice.at, "3");
        copy.listen(&mut host);
        assert!(!copy.recovered && copy.sid != alice.sid, "shard {shard}");
        bob.tell(&mut host, "still here");
        assert_eq!(alice.take(&mut host), [json!("still here")]);
        assert_eq!(refused(&host, RecoveryFault::InUse), 1);
    }
}

#[test]
fn who_is_upgraded_while_the_old_connection_is_asked_gets_the_answer_all_the_same() {
    for (shard, is_alive) in [(0, false), (1, false), (2, false), (1, true)] {
        let mut host = host();
        let (mut alice, mut bob) = pair(&mut host);
        let old = alice.at;
        bob.tell(&mut host, "into the void");
        let opened = ask(&mut host, shard, "GET", POLLING, "");
        let session = format!("{POLLING}&sid={}", &answered(&mut host, opened).1[9..29]);
        let post = ask(&mut host, shard, "POST", &session, &alice.connect());
        assert_eq!(answered(&mut host, post).1, "ok");
        let socket = host.connect((shard + 1) % 3, &Host::upgrade_head(&session.replace("polling", "websocket"), ""));
        host.settle();
        host.say(socket, "2probe");
        host.say(socket, "5");
        alice.at = socket;
        alice.listen(&mut host);
        assert_eq!(alice.heard, [] as [Value; 0], "the old one is asked first");
        if is_alive {
            host.say(old, "3");
        } else {
            host.advance(2_000);
        }
        alice.listen(&mut host);
        assert_eq!(alice.recovered, !is_alive, "shard {shard}");
        let heard = alice.take(&mut host);
        assert_eq!(heard.contains(&json!("into the void")), !is_alive, "{heard:?}");
        assert!(heard.contains(&json!("CONNECT")), "{heard:?}");
    }
}

#[test]
fn a_restore_is_single_use() {
    let mut host = host();
    let (mut alice, _bob) = pair(&mut host);
    alice.break_off(&mut host);
    let mut copy =
        Client { at: 0, heard: Vec::new(), sid: alice.sid.clone(), pid: alice.pid.clone(), offset: alice.offset.clone(), ..alice };
    alice.return_to(&mut host, 1);
    assert!(alice.recovered);
    copy.at = open(&mut host, 2);
    host.say(copy.at, &copy.connect());
    host.settle();
    host.say(alice.at, "3");
    copy.listen(&mut host);
    assert!(!copy.recovered && copy.heard == [json!("CONNECT")]);
}

#[test]
fn what_cannot_be_given_whole_is_not_given() {
    let mut host = host();
    let (mut alice, mut bob) = pair(&mut host);
    // Nothing of it is known: neither offset nor connection.
    let (pid, offset) = (alice.pid.clone(), alice.offset.clone());
    alice.break_off(&mut host);
    alice.pid = "AAAAAAAAAAAAAAAAAAAA".into();
    alice.return_to(&mut host, 1);
    assert!(!alice.recovered);
    assert_eq!(refused(&host, RecoveryFault::Unknown), 1);
    // Too late.
    (alice.pid, alice.offset, alice.sid) = (pid, offset, String::new());
    host.hang_up(alice.at);
    host.advance(WINDOW_MS + 2_000);
    alice.return_to(&mut host, 0);
    assert!(!alice.recovered);
    assert_eq!(refused(&host, RecoveryFault::Unknown), 2);
    // Said goodbye.
    alice.join(&mut host);
    bob.tell(&mut host, "x");
    host.say(alice.at, "41");
    alice.listen(&mut host);
    host.hang_up(alice.at);
    alice.return_to(&mut host, 0);
    assert!(!alice.recovered);
    // Without an offset nobody can say what is missing.
    let mut carol = Client::come(&mut host, 2, "carol");
    carol.break_off(&mut host);
    carol.return_to(&mut host, 2);
    assert!(!carol.recovered);
}

#[test]
fn a_quiet_client_recovers_although_its_last_event_is_long_forgotten() {
    let mut host = host();
    let (mut alice, mut bob) = pair(&mut host);
    for _ in 0..12 {
        host.advance(25_500);
        host.say(alice.at, "3");
        host.say(bob.at, "3");
    }
    alice.break_off(&mut host);
    bob.tell(&mut host, "at last");
    alice.return_to(&mut host, 1);
    assert!(alice.recovered);
    assert_eq!(alice.heard, [json!("at last"), json!("CONNECT")]);
}

#[test]
fn kicks_and_other_users_revoke_the_past() {
    let mut host = host();
    let (mut alice, _bob) = pair(&mut host);
    alice.break_off(&mut host);
    let mut thief = Client {
        at: 0,
        user: "mallory",
        heard: Vec::new(),
        pid: alice.pid.clone(),
        sid: String::new(),
        offset: alice.offset.clone(),
        ..alice
    };
    thief.return_to(&mut host, 1);
    assert!(!thief.recovered);
    assert_eq!(refused(&host, RecoveryFault::OtherUser), 1);
    alice.return_to(&mut host, 2);
    assert!(alice.recovered, "the thief changed nothing");
    alice.break_off(&mut host);
    let now = host.now;
    for shard in &mut host.shards {
        let question = Question::CloseUser { endpoint: None, user: "alice".into(), reason: None };
        shard.handle_parcel(now, Parcel::Ask { ask: 1, question });
    }
    host.settle();
    alice.return_to(&mut host, 0);
    assert!(!alice.recovered);
    assert_eq!(counts(&host, |stats| stats.recoverable.read()), 0);
}

#[test]
fn memory_is_bounded_by_sessions_events_bytes_and_what_may_wait() {
    let mut config = config();
    (config.limits.recovery_sessions, config.limits.recovery_events) = (6, 30);
    config.limits.outbox_bytes = 20_000;
    let mut host = Host::new(config, 3);
    let mut bob = Client::come(&mut host, 1, "bob");
    bob.join(&mut host);
    let users = ["u0", "u1", "u2", "u3", "u4"];
    let mut clients: Vec<Client> = users.into_iter().map(|user| Client::come(&mut host, 0, user)).collect();
    for client in &mut clients {
        client.join(&mut host);
    }
    bob.tell(&mut host, "hello");
    for client in &mut clients {
        client.break_off(&mut host);
    }
    assert_eq!(counts(&host, |stats| stats.recoverable.read()), 2, "two a shard: the first to go are the first to be given up");
    clients[0].return_to(&mut host, 0);
    clients[4].return_to(&mut host, 0);
    assert_eq!((clients[0].recovered, clients[4].recovered), (false, true));
    // More events than are remembered.
    for client in &mut clients[3..] {
        client.break_off(&mut host);
    }
    for n in 0..11 {
        bob.tell(&mut host, &format!("m{n}"));
    }
    clients[4].return_to(&mut host, 1);
    assert!(!clients[4].recovered);
    assert_eq!(refused(&host, RecoveryFault::Forgotten), 1);
    // More bytes than may wait for a connection.
    clients[4].join(&mut host);
    bob.tell(&mut host, "hello");
    clients[4].break_off(&mut host);
    for _ in 0..3 {
        bob.tell(&mut host, &"x".repeat(4_000));
    }
    clients[4].return_to(&mut host, 0);
    assert!(!clients[4].recovered);
    assert_eq!(refused(&host, RecoveryFault::TooMuch), 1);
}

#[test]
fn a_link_that_is_bound_to_a_shard_cannot_go_to_its_past() {
    let mut host = host();
    let (mut alice, _bob) = pair(&mut host);
    alice.break_off(&mut host);
    for shard in [1, 0] {
        alice.at = open(&mut host, shard);
        let token = host::token(&json!({"sub": "alice", "exp": 4_000_000_000_u64}));
        host.say(alice.at, &format!("40/chat,{}", json!({"token": token})));
        host.settle();
        host.texts(alice.at);
        let (sid, pid) = (alice.sid.clone(), alice.pid.clone());
        host.say(alice.at, &alice.connect());
        alice.listen(&mut host);
        assert_eq!(alice.recovered, shard == 0);
        assert_eq!(refused(&host, RecoveryFault::Elsewhere), 1);
        // On its own shard it could have been taken up, and still can.
        (alice.sid, alice.pid) = (sid, pid);
    }
}

#[test]
fn endpoints_without_recovery_neither_offer_nor_remember_it() {
    let mut host = host();
    let at = open(&mut host, 0);
    let token = host::token(&json!({"sub": "alice", "exp": 4_000_000_000_u64}));
    host.say(at, &format!("40/chat,{}", json!({"token": token, "pid": "AAAAAAAAAAAAAAAAAAAA", "offset": "AAAAAAAAAAA"})));
    host.say(at, r#"42/chat,["join-room",{"room":"r"}]"#);
    host.settle();
    let texts = host.texts(at);
    assert!(texts[0].starts_with("40/chat,{\"sid\":") && !texts[0].contains("pid"), "{texts:?}");
    assert!(texts[1].ends_with("\"memberCount\":1}]"), "{texts:?}");
    host.hang_up(at);
    host.settle();
    assert_eq!(host.stats.iter().map(|stats| stats.endpoints[1].recoverable.read()).sum::<u64>(), 0);
}
