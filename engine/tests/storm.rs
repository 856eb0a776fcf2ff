//! A storm of clients that come at once, on a host without sockets: how many are let in, in which order, and what the others are told.

#[path = "recovery/client.rs"]
mod client;
mod host;

use client::{Client, open};
use engine::config::{Config, DialectKind, Endpoint};
use engine::fault::Refusal;
use engine::limits::Limits;
use engine::stats::ShardStats;
use host::{Got, Host};
use serde_json::json;

/// 25 ms for each, after eleven at once; 80 wait.
const PER_SECOND: u32 = 40;

fn host(shards: usize) -> Host {
    let talk = Endpoint { client_publish: true, ..host::endpoint("talk", DialectKind::Community, "/talk") };
    let limits = Limits { handshakes_per_second: PER_SECOND, hold_ms: 0, ..Limits::default() };
    let of_recovery = client::config();
    let endpoints = [of_recovery.endpoints, vec![talk]].concat();
    Host::new(Config { limits, ..host::config(shards, endpoints) }, 7)
}

fn head(user: usize) -> String {
    let token = host::token(&json!({"sub": format!("user{user}"), "exp": 4_000_000_000_u64}));
    Host::upgrade_head(&format!("/talk?token={token}&roomId=r"), "")
}

fn stats(host: &Host, of: impl Fn(&ShardStats) -> u64) -> u64 {
    host.stats.iter().map(|stats| of(stats)).sum()
}

fn statuses(host: &mut Host, clients: &[usize]) -> [usize; 3] {
    let mut counts = [0; 3];
    for client in clients {
        let answer = host.take(*client).into_iter().find_map(|got| if let Got::Http(status, _) = got { Some(status) } else { None });
        match answer {
            None => counts[0] += 1,
            Some(101) => counts[1] += 1,
            Some(503) => counts[2] += 1,
            Some(other) => panic!("{other}"),
        }
    }
    counts
}

#[test]
fn plain_handshakes_are_let_in_at_the_rate_and_the_rest_is_told_when_to_come() {
    let mut host = host(1);
    let clients: Vec<usize> = (0..100).map(|user| host.connect(0, &head(user))).collect();
    host.settle();
    assert_eq!(statuses(&mut host, &clients), [80, 11, 9], "waiting, in, refused");
    assert_eq!((stats(&host, |it| it.handshakes_waiting.read()), stats(&host, |it| it.handshakes_delayed.read())), (80, 80));
    assert_eq!(stats(&host, |it| it.unrouted().refused[Refusal::Busy.index()].read()), 9);
    let refused = clients.iter().filter_map(|client| host.clients[*client].answers.iter().find(|(head, _)| head.contains("503")));
    for (head, _) in refused {
        let after = head.lines().find_map(|line| line.strip_prefix("Retry-After: ")).expect("when to come again");
        assert!((3..=6).contains(&after.parse::<u32>().expect("seconds")), "{head}");
    }
    host.advance(500);
    let in_time = statuses(&mut host, &clients)[1];
    assert!((19..=21).contains(&in_time), "{in_time} of 40 a second in half of one");
    host.advance(2_000);
    assert_eq!(stats(&host, |it| it.handshakes_waiting.read()), 0);
    assert_eq!(stats(&host, |it| it.endpoints[2].connections.read()), 91, "everybody that waited");
}

#[test]
fn who_has_gone_meanwhile_takes_nobodys_turn() {
    let mut host = host(1);
    let clients: Vec<usize> = (0..31).map(|user| host.connect(0, &head(user))).collect();
    host.settle();
    clients[11..30].iter().for_each(|client| host.hang_up(*client));
    host.settle();
    host.advance(50);
    assert!(matches!(host.take(clients[30]).first(), Some(Got::Http(101, _))), "the twentieth that waits is the first that is there");
    assert_eq!(stats(&host, |it| it.handshakes_waiting.read()), 0);
}

#[test]
fn who_has_gone_leaves_his_turn_to_nobody_over_a_reload() {
    for shards in 1..=2 {
        let mut host = host(1);
        let first: Vec<usize> = (0..31).map(|user| host.connect(0, &head(user))).collect();
        host.settle();
        first[11..].iter().for_each(|client| host.hang_up(*client));
        host.settle();
        // They take the places of the gone, and wait themselves.
        let second: Vec<usize> = (31..51).map(|user| host.connect(0, &head(user))).collect();
        host.settle();
        host.reload(shards);
        host.settle();
        host.advance(1_000);
        assert_eq!(statuses(&mut host, &second), [0, 20, 0], "each by his own turn");
        for client in second {
            host.say(client, r#"{"type":"PING"}"#);
            host.settle();
            assert!(host.texts(client).iter().any(|text| text.contains("PONG")), "and is heard");
        }
    }
}

#[test]
fn what_is_said_behind_the_handshake_is_heard_when_it_is_in() {
    let mut host = host(1);
    let clients: Vec<usize> = (0..15).map(|user| host.connect(0, &head(user))).collect();
    let last = clients[14];
    host.say(last, r#"{"type":"PING"}"#);
    host.settle();
    assert!(host.take(last).is_empty());
    host.advance(200);
    let got = host.take(last);
    assert!(matches!(got.first(), Some(Got::Http(101, _))), "{got:?}");
    assert!(got.iter().any(|got| matches!(got, Got::Text(text) if text.contains("PONG"))), "{got:?}");
}

#[test]
fn who_resumes_comes_before_all_others_on_any_shard() {
    for shard in 0..2 {
        let mut host = host(2);
        let (mut alice, mut bob) = client::pair(&mut host);
        alice.break_off(&mut host);
        bob.tell(&mut host, "missed");
        let fresh: Vec<usize> = (0..60)
            .map(|number| {
                let at = open(&mut host, number % 2);
                let auth = json!({"token": host::token(&json!({"sub": format!("user{number}"), "exp": 4_000_000_000_u64}))});
                host.say(at, &format!("40{auth}"));
                at
            })
            .collect();
        host.settle();
        assert!(stats(&host, |it| it.handshakes_waiting.read()) >= 30);
        alice.at = open(&mut host, shard);
        let connect = alice.connect();
        host.say(alice.at, &connect);
        host.settle();
        assert!(host.texts(alice.at).is_empty(), "she waits as well");
        host.advance(100);
        alice.listen(&mut host);
        assert!(alice.recovered, "shard {shard}");
        // The others' coming is news to her as well.
        let own: Vec<_> = alice.heard.iter().filter(|heard| heard.is_string()).collect();
        assert_eq!(own, [&json!("missed"), &json!("CONNECT")]);
        assert!(stats(&host, |it| it.handshakes_waiting.read()) >= 20, "others wait longer");
        host.advance(2_000);
        for at in fresh {
            assert!(host.texts(at).iter().any(|text| text.starts_with("40{")), "in the end everybody is in");
        }
    }
}

#[test]
fn a_connect_that_finds_no_place_is_closed_without_a_refusal() {
    let mut host = host(1);
    let clients: Vec<usize> = (0..100)
        .map(|_| {
            let at = open(&mut host, 0);
            host.say(at, "40/chat,");
            at
        })
        .collect();
    host.settle();
    let mut closed = 0;
    for at in clients {
        let got = host.take(at);
        let is_refused = got.iter().any(|got| matches!(got, Got::Text(text) if text.starts_with("44")));
        // Those that were looked at have no token.
        closed += usize::from(!is_refused && got.iter().any(|got| matches!(got, Got::Close(None, _))));
    }
    assert_eq!(closed, 9);
    assert_eq!(stats(&host, |it| it.unrouted().refused[Refusal::Busy.index()].read()), 9);
}

#[test]
fn those_who_are_in_are_heard_while_others_wait() {
    let mut host = host(1);
    let (alice, bob) = (host.connect(0, &head(1_000)), host.connect(0, &head(1_001)));
    host.settle();
    let storm: Vec<usize> = (0..90).map(|user| host.connect(0, &head(user))).collect();
    host.settle();
    host.take(bob);
    host.say(alice, r#"{"type":"CHAT_MESSAGE","payload":{"roomId":"r","content":"now"}}"#);
    host.settle();
    assert!(host.texts(bob).iter().any(|text| text.contains(r#""content":"now""#)));
    assert!(stats(&host, |it| it.handshakes_waiting.read()) > 70);
    // The storm gives up, and the door is free.
    storm.iter().for_each(|client| host.hang_up(*client));
    host.advance(1_000);
    let late = host.connect(0, &head(2_000));
    host.settle();
    assert!(matches!(host.take(late).first(), Some(Got::Http(101, _))));
    let _ = Client::come(&mut host, 0, "carol");
}
