//! Clients of Engine.IO 3 on a host of three shards without sockets. What `socket.io-client` 2 really says is replayed by `vectors`; here is
//! what it says seldom, and what no client should say.

mod host;

use engine::config::{AuthMode, Config, DialectKind, Endpoint};
use engine::wire::eio3;
use host::{Got, Host};

const POLLING: &str = "/socket.io/?EIO=3&transport=polling";

fn config() -> Config {
    let rooms = |bind: &str| Endpoint { auth: AuthMode::None, eio3: true, ..host::endpoint(bind, DialectKind::Rooms, bind) };
    let mut config = host::config(3, vec![rooms("/"), rooms("/a")]);
    config.socket_io.ping_interval_ms = 10_000;
    config.socket_io.ping_timeout_ms = 5_000;
    config
}

fn ask(host: &mut Host, shard: usize, method: &str, target: &str, body: &[u8], headers: &str) -> usize {
    let head = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    let client = host.connect(shard, &head);
    host.write(client, body);
    host.settle();
    client
}

fn answered(host: &mut Host, client: usize) -> (u16, String) {
    host.settle();
    let found = host.take(client).into_iter().find_map(|got| if let Got::Http(status, body) = got { Some((status, body)) } else { None });
    found.expect("an answer")
}

fn get(host: &mut Host, shard: usize, target: &str) -> (u16, String) {
    let client = ask(host, shard, "GET", target, b"", "");
    answered(host, client)
}

fn post(host: &mut Host, shard: usize, target: &str, body: &str) -> (u16, String) {
    let client = ask(host, shard, "POST", target, body.as_bytes(), "");
    answered(host, client)
}

/// Opens a session; its requests come to any shard.
fn session(host: &mut Host, shard: usize) -> (String, String) {
    let greeting = get(host, shard, POLLING).1;
    let packets = eio3::read_text(&greeting).expect("a payload of Engine.IO 3");
    let sid = packets[9..29].to_owned();
    (format!("{POLLING}&sid={sid}"), sid)
}

fn open(host: &mut Host, shard: usize, target: &str) -> usize {
    let at = host.connect(shard, &Host::upgrade_head(target, ""));
    host.settle();
    at
}

#[test]
fn a_sessions_id_is_its_connections_and_is_found_from_every_shard() {
    let mut host = Host::new(config(), 1);
    // The tables of links and connections go out of step, so that the id names another link's slot.
    for shard in [0, 1, 2, 0, 1, 2, 0] {
        host.connect(shard, "");
    }
    for shard in 0..3 {
        let (first, _) = session(&mut host, shard);
        let (second, sid) = session(&mut host, shard);
        for at in 0..3 {
            for session in [&first, &second] {
                let said = post(&mut host, at, session, r#"28:42["message",{"roomId":"r"}]"#);
                assert_eq!(said, (200, "ok".to_owned()), "shard {shard} at {at}");
            }
        }
        assert!(get(&mut host, 1, &second).1.starts_with("2:40"));
        let answers = host.shards[shard].poll_answer();
        assert!(answers.is_none());
        let id = engine::ids::Sid::parse(&sid).expect("an id");
        let question = engine::shard::parcel::Question::Connection { id };
        host.shards[shard].handle_parcel(host.now, engine::shard::parcel::Parcel::Ask { ask: 1, question });
        host.settle();
        let (_, _, answer) = host.answers.pop().expect("an answer");
        assert!(matches!(answer, engine::Answer::Connections(found) if found.len() == 1), "its id is the session's");
        let polls = ask(&mut host, 2, "GET", &first, b"", "");
        host.settle();
        host.hang_up(polls);
    }
    host.advance(60_000);
    assert_eq!(host.shards.iter().map(engine::shard::Shard::links).sum::<usize>(), 0, "nothing is left behind");
    let stats = |of: fn(&engine::stats::EndpointStats) -> u64| host.stats.iter().map(|shard| of(&shard.endpoints[0])).sum::<u64>();
    assert_eq!((stats(|stats| stats.connections.read()), stats(|stats| stats.polling.read())), (0, 0));
}

#[test]
fn whoever_never_pings_is_cut_after_interval_and_timeout_also_after_an_upgrade() {
    let mut host = Host::new(config(), 1);
    let (session, _) = session(&mut host, 1);
    let websocket = session.replace("polling", "websocket");
    let upgraded = open(&mut host, 0, &websocket);
    host.say(upgraded, "2probe");
    host.say(upgraded, "5");
    let plain = open(&mut host, 2, "/socket.io/?EIO=3&transport=websocket");
    for at in [upgraded, plain] {
        assert!(host.texts(at).contains(&"40".to_owned()) || at == upgraded);
    }
    host.advance(14_000);
    host.say(plain, "2hello");
    host.settle();
    assert_eq!(host.texts(plain), ["3hello"]);
    host.advance(2_000);
    assert!(matches!(host.take(upgraded).last(), Some(Got::End(_))));
    assert!(!host.texts(plain).contains(&"2".to_owned()), "it is never pinged itself");
    host.advance(14_000);
    assert!(matches!(host.take(plain).last(), Some(Got::End(_))));
}

/// It is the client that pings: an answer to no question closes, as in Node, and counts as no round trip.
#[test]
fn an_old_client_that_answers_pings_is_none() {
    let mut host = Host::new(config(), 1);
    let at = open(&mut host, 2, "/socket.io/?EIO=3&transport=websocket");
    host.say(at, "3");
    host.settle();
    assert!(host.take(at).iter().any(|got| matches!(got, Got::Close(..))));
    let (session, _) = session(&mut host, 1);
    assert_eq!(post(&mut host, 0, &session, "1:3").1, "ok");
    assert_eq!(get(&mut host, 1, &session).0, 400, "the session is gone");
    assert_eq!(host.stats.iter().map(|stats| stats.round_trips.read()).sum::<u64>(), 0);
}

#[test]
fn bodies_of_the_other_protocol_end_their_own_session_only() {
    let mut host = Host::new(config(), 1);
    let (neighbour, _) = session(&mut host, 0);
    for body in ["40", "5:40", "1:😀", "9999999999:4", "3:b4\u{1e}"] {
        let (session, _) = session(&mut host, 1);
        assert_eq!(post(&mut host, 2, &session, body).0, 400, "{body}");
        assert_eq!(get(&mut host, 0, &session).0, 400, "{body}");
    }
    for body in [&[0, 2][..], &[1, 1, 255, 3], &[0, 9, 255, 4], &[9]] {
        let (session, _) = session(&mut host, 1);
        let said = ask(&mut host, 2, "POST", &session, body, "Content-Type: application/octet-stream\r\n");
        assert_eq!(answered(&mut host, said).0, 400, "{body:?}");
        assert_eq!(get(&mut host, 0, &session).0, 400, "{body:?}");
    }
    // A new client's session takes no old bodies.
    let new = get(&mut host, 1, &POLLING.replace('3', "4")).1;
    let new = format!("{POLLING}&sid={}", &new[9..29]);
    assert_eq!(post(&mut host, 0, &new, "40").0, 400);
    assert_eq!(get(&mut host, 2, &neighbour).1.split_once(':').map(|(_, rest)| &rest[..2]), Some("40"));
}

#[test]
fn without_old_clients_a_request_that_names_no_version_gets_what_its_session_speaks() {
    let mut config = config();
    for endpoint in &mut config.endpoints {
        endpoint.eio3 = false;
    }
    let mut host = Host::new(config, 1);
    let new = get(&mut host, 1, &POLLING.replace('3', "4")).1;
    let unnamed = format!("/socket.io/?transport=polling&sid={}", &new[9..29]);
    assert_eq!(post(&mut host, 0, &unnamed, "40").1, "ok");
    assert!(get(&mut host, 2, &unnamed).1.starts_with("40{"));
    assert_eq!(get(&mut host, 1, POLLING).0, 400, "and none is opened");
}

/// What waits for the WebSocket with its attachments is longer there, and counts as long as it is.
#[test]
fn attachments_that_wait_for_an_upgrade_are_marked_and_counted() {
    let mut host = Host::new(config(), 1);
    let (session, _) = session(&mut host, 0);
    assert!(get(&mut host, 0, &session).1.starts_with("2:40"));
    let websocket = open(&mut host, 1, &session.replace("polling", "websocket"));
    host.say(websocket, "2probe");
    host.settle();
    assert_eq!(host.texts(websocket), ["3probe"]);
    let joins = r#"42["room:join",{"roomId":"r"}]"#;
    assert_eq!(post(&mut host, 2, &session, &format!("{}:{joins}", joins.len())).1, "ok");
    let speaker = open(&mut host, 0, "/socket.io/?EIO=3&transport=websocket");
    host.say(speaker, joins);
    host.say(speaker, r#"451-["document:edit",{"roomId":"r","changes":{"_placeholder":true,"num":0}}]"#);
    host.frame(speaker, 2, &[4, 1, 2]);
    host.settle();
    host.say(websocket, "5");
    host.settle();
    let got = host.take(websocket);
    assert!(got.contains(&Got::Binary(vec![4, 1, 2])), "{got:?}");
    assert_eq!(host.stats.iter().map(|stats| stats.outbox_bytes.read()).sum::<u64>(), 0);
}

/// The main namespace lets it in by an answer from another shard: what it says before that is heard after it.
#[test]
fn what_is_said_before_the_main_namespace_has_answered_is_not_lost() {
    let mut host = Host::new(config(), 1);
    for n in 0..6 {
        let at = host.connect(n % 3, &Host::upgrade_head("/socket.io/?EIO=3&transport=websocket", ""));
        host.say(at, r#"420["room:join",{"roomId":"r"}]"#);
        host.say(at, "40/a?token=x&y=1,");
        host.say(at, r#"42/a,0["room:join",{"roomId":"r"}]"#);
        host.settle();
        let texts = host.texts(at);
        let at = |start: &str| texts.iter().position(|text| text.starts_with(start)).unwrap_or_else(|| panic!("{start} in {texts:?}"));
        assert!(at("40") < at("430[") && at("430[") < at("40/a,") && at("40/a,") < at("43/a,0["), "{texts:?}");
    }
}

/// They cannot come back, so nothing is kept for them.
#[test]
fn old_clients_are_not_kept_when_they_break_off() {
    let mut config = config();
    config.endpoints[0].recovery_ms = 60_000;
    let mut host = Host::new(config, 1);
    let at = open(&mut host, 1, "/socket.io/?EIO=3&transport=websocket");
    assert!(host.texts(at).contains(&"40".to_owned()));
    host.hang_up(at);
    host.settle();
    assert_eq!(host.stats.iter().map(|stats| stats.endpoints[0].recoverable.read()).sum::<u64>(), 0);
}

/// Where the main namespace is not served to old clients they are in it in name only.
#[test]
fn an_unserved_main_namespace_is_joined_in_name_only() {
    let mut config = config();
    config.endpoints[0].eio3 = false;
    config.socket_io.connect_timeout_ms = 3_000;
    let mut host = Host::new(config, 1);
    let at = open(&mut host, 1, "/socket.io/?EIO=3&transport=websocket");
    assert_eq!(host.texts(at)[1..], ["40"]);
    host.say(at, "40/a,");
    host.settle();
    assert!(host.texts(at)[0].starts_with("40/a,"));
    let idle = open(&mut host, 1, "/socket.io/?EIO=3&transport=websocket");
    host.advance(4_000);
    assert!(matches!(host.take(idle).last(), Some(Got::End(_))), "and without any other they are not kept");
    assert!(host.take(at).is_empty());
}
