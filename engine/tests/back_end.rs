//! What the back end says to documents and does to idle connections, on hosts of three shards.

mod host;

use std::sync::Arc;

use engine::config::{AuthMode, DialectKind, Endpoint, Membership};
use engine::fault::CloseReason;
use engine::ids::EndpointId;
use engine::json::Scratch;
use engine::shard::parcel::Parcel;
use engine::{Answer, Emit, Question, Selection, Target, dialect};
use host::{Got, Host};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

fn documents(bind: &str, retain: usize) -> Endpoint {
    Endpoint {
        auth: AuthMode::None,
        membership: Membership::Open,
        retain,
        ..host::endpoint(bind.trim_start_matches('/'), DialectKind::Collab, bind)
    }
}

/// A client of a document, which has been told that it is in.
fn editor(host: &mut Host, shard: usize, bind: &str, document: &str, client_id: &str) -> usize {
    let client = host.connect(shard, &Host::upgrade_head(&format!("{bind}?documentId={document}&clientID={client_id}"), ""));
    host.settle();
    assert!(host.texts(client).concat().contains("connected"));
    client
}

fn steps(endpoint: u8, target: Target, steps: &str, change_id: &str) -> Question {
    let (mut one, mut other) = (Scratch::default(), Scratch::default());
    let (steps, change_id) = (one.parse(steps).expect("JSON"), other.parse(change_id).expect("JSON"));
    let to = Selection { endpoint: EndpointId(endpoint), targets: vec![target], except: Vec::new() };
    let args = dialect::steps(steps.root(), change_id.root());
    Question::Emit(Arc::new(Emit {
        to,
        event: dialect::STEPS.into(),
        args,
        volatile: false,
        ack_ms: None,
        offset: 0.into(),
        unix_ms: 0,
        attachments: Vec::new(),
        is_elsewhere: false,
    }))
}

fn ask(host: &mut Host, ask: u64, question: &Question) {
    for shard in 0..host.shards.len() {
        host.shards[shard].handle_parcel(host.now, Parcel::Ask { ask, question: question.clone() });
    }
}

/// How many the shards have reached or closed together; each of them has answered once.
fn sum(host: &mut Host, number: u64) -> u64 {
    host.settle();
    let answers: Vec<u64> = host
        .answers
        .extract_if(.., |(_, ask, _)| *ask == number)
        .map(|(_, _, answer)| match answer {
            Answer::Emitted(emitted) => emitted.recipients,
            Answer::Closed(count) => count,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(answers.len(), host.shards.len());
    answers.iter().sum()
}

fn document(name: &str) -> Target {
    Target::Room(name.into())
}

fn present(name: &str, client_id: &str) -> Target {
    Target::Present { room: name.into(), presence: client_id.into() }
}

#[test]
fn steps_reach_the_document_or_one_client_of_it_word_by_word() {
    let mut host = Host::new(host::config(3, vec![documents("/ws/a", 10), documents("/ws/b", 10)]), 1);
    let here: Vec<usize> = (0..6).map(|n| editor(&mut host, n % 3, "/ws/a", "d", if n < 4 { "ann" } else { "bob" })).collect();
    let elsewhere = [editor(&mut host, 0, "/ws/a", "e", "ann"), editor(&mut host, 1, "/ws/b", "d", "ann")];
    here.iter().chain(&elsewhere).for_each(|client| drop(host.take(*client)));

    ask(&mut host, 1, &steps(0, document("d"), r#"[{"n": 1e+100 , "s":"\u00e9"},-0]"#, r#""c\u0031""#));
    assert_eq!(sum(&mut host, 1), 6);
    let told = r#"{"type":"steps","steps":[{"n": 1e+100 , "s":"\u00e9"},-0],"clientIDs":["agent","agent"],"changeId":"c\u0031"}"#;
    for client in &here {
        assert_eq!(host.texts(*client), [told]);
    }
    ask(&mut host, 2, &steps(0, present("d", "bob"), "[]", "7"));
    assert_eq!(sum(&mut host, 2), 2);
    for (n, client) in here.iter().enumerate() {
        let heard = host.texts(*client);
        assert_eq!(heard, vec![r#"{"type":"steps","steps":[],"clientIDs":[],"changeId":7}"#; usize::from(n >= 4)]);
    }
    for (number, target) in [(3, document("nowhere")), (4, present("d", "nobody")), (5, present("nowhere", "ann"))] {
        ask(&mut host, number, &steps(0, target, "[1]", "1"));
        assert_eq!(sum(&mut host, number), 0);
    }
    for client in here.iter().chain(&elsewhere) {
        assert_eq!(host.texts(*client), Vec::<String>::new());
    }
}

#[test]
fn late_joiners_get_what_everybody_was_sent_and_nothing_else() {
    let mut host = Host::new(host::config(3, vec![documents("/ws/a", 3), documents("/ws/b", 0)]), 2);
    // Nobody is in, and yet it is kept.
    for number in 0..5 {
        ask(&mut host, number, &steps(0, document("d"), &format!("[{number}]"), "\"x\""));
        assert_eq!(sum(&mut host, number), 0);
    }
    let rooms: u64 = host.stats.iter().map(|stats| stats.endpoints[0].rooms.read()).sum();
    assert_eq!(rooms, 1);
    let ann = editor(&mut host, 1, "/ws/a", "d", "ann");
    ask(&mut host, 10, &steps(0, present("d", "ann"), "[99]", "\"x\""));
    assert_eq!((sum(&mut host, 10), host.texts(ann).len()), (1, 1));
    host.say(ann, r#"{"type":"update","documentId":"d","u":1}"#);
    host.settle();
    host.say(ann, r#"{"type":"sync","documentId":"d"}"#);
    host.settle();
    let kept = |number| format!(r#"{{"type":"steps","steps":[{number}],"clientIDs":["agent"],"changeId":"x"}}"#);
    let update = r#"{"type":"update","documentId":"d","u":1,"clientID":"ann"}"#;
    let synced = format!(r#"{{"type":"synced","documentId":"d","updates":[{},{},{update}]}}"#, kept(3), kept(4));
    assert_eq!(host.texts(ann), [synced]);
    // An endpoint that retains nothing makes no room either.
    ask(&mut host, 11, &steps(1, document("d"), "[1]", "\"x\""));
    assert_eq!(sum(&mut host, 11), 0);
    let kept: u64 = host.stats.iter().map(|stats| stats.endpoints[1].rooms.read() + stats.endpoints[1].history_messages.read()).sum();
    assert_eq!(kept, 0);
    // What is kept of a document that nobody is in goes when it is old enough.
    host.hang_up(ann);
    host.settle();
    host.now.unix_ms += 25 * 3_600_000;
    host.advance(2_000);
    let left: u64 = host.stats.iter().map(|stats| stats.endpoints[0].rooms.read() + stats.endpoints[0].history_messages.read()).sum();
    assert_eq!(left, 0);
}

#[test]
fn steps_have_their_place_in_the_documents_order() {
    for seed in 0..30 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut host = Host::new(host::config(3, vec![documents("/ws/a", 1_000)]), seed);
        let clients: Vec<usize> = (0..6).map(|n| editor(&mut host, n % 3, "/ws/a", "d", &format!("c{n}"))).collect();
        host.settle();
        clients.iter().for_each(|client| drop(host.take(*client)));
        for number in 0..40 {
            match random.random_range(0..3) {
                0 => ask(&mut host, number, &steps(0, document("d"), &format!("[{number}]"), "\"x\"")),
                1 => ask(&mut host, number, &steps(0, present("d", "c0"), &format!("[{number}]"), "\"x\"")),
                _ => host.say(clients[1], &format!(r#"{{"type":"steps","documentId":"d","steps":[{number}]}}"#)),
            }
            for _ in 0..random.random_range(0..6) {
                let (from, to) = (random.random_range(0..3), random.random_range(0..3));
                host.pump(from);
                host.step(from, to);
            }
        }
        host.settle();
        let number = |text: &String| text.split("\"steps\":[").nth(1).and_then(|rest| rest.split(']').next()?.parse::<u64>().ok());
        let heard: Vec<Vec<u64>> = clients.iter().map(|client| host.texts(*client).iter().filter_map(number).collect()).collect();
        // The first is told more than the others, the second not what it said itself: what two of them heard they heard in one order.
        for one in &heard {
            for other in &heard {
                let common = |list: &[u64], of: &[u64]| list.iter().copied().filter(|number| of.contains(number)).collect::<Vec<_>>();
                assert_eq!(common(one, other), common(other, one), "seed {seed}");
            }
        }
        assert_eq!(heard[0].len(), 40, "seed {seed}");
    }
}

fn room_guests(bind: &str) -> Endpoint {
    Endpoint { auth: AuthMode::None, ..host::endpoint(bind, DialectKind::Chat, bind) }
}

fn inactive(endpoint: Option<u8>, ms: u64, limit: usize) -> Question {
    Question::CloseInactive { endpoint: endpoint.map(EndpointId), inactive_ms: ms, limit }
}

/// Answers every ping that has come, as clients do, for so long.
fn live(host: &mut Host, clients: &[usize], ms: u64) {
    for _ in 0..ms / 5_000 {
        host.advance(5_000);
        for client in clients {
            for got in host.take(*client) {
                match got {
                    Got::Ping => host.frame(*client, 10, b""),
                    Got::Text(text) if text == "2" => host.say(*client, "3"),
                    _ => {}
                }
            }
        }
        host.settle();
    }
}

#[test]
fn who_only_answers_heartbeats_is_inactive() {
    let community = Endpoint { auth: AuthMode::None, ..host::endpoint("c", DialectKind::Community, "/c") };
    let mut host = Host::new(host::config(3, vec![documents("/ws/a", 0), community, room_guests("/"), room_guests("/b")]), 4);
    let plain: Vec<usize> = (0..3).map(|n| editor(&mut host, n, "/ws/a", "d", &format!("c{n}"))).collect();
    let talkers: Vec<usize> = (0..2).map(|n| host.connect(n, &Host::upgrade_head("/c?userId=u", ""))).collect();
    let guests: Vec<usize> = (0..3).map(|n| host.connect(n, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""))).collect();
    for guest in &guests {
        host.say(*guest, "40");
        host.say(*guest, "40/b,");
    }
    host.settle();
    let all: Vec<usize> = plain.iter().chain(&talkers).chain(&guests).copied().collect();
    let minute = 60_000;
    for _ in 0..30 {
        live(&mut host, &all, minute);
        // Its own heartbeat is none either where the dialect has one; everything else is, also what is refused.
        host.say(plain[1], r#"{"type":"nonsense"}"#);
        host.say(talkers[0], r#"{"type":"PING"}"#);
        host.say(talkers[1], r#"{"type":"SUBSCRIBE","payload":{"roomId":"r"}}"#);
        host.say(guests[0], r#"42["ping"]"#);
        host.say(guests[1], r#"42["join-room",{"room":"r"}]"#);
        host.say(guests[2], r#"42/b,["join-room",{"room":"r"}]"#);
        host.settle();
    }
    for (number, question, closed) in [
        (1, inactive(None, 31 * minute, 9), 0),
        (2, inactive(Some(0), 29 * minute, 1), 2),
        (3, inactive(Some(1), 29 * minute, 9), 1),
        // Both namespaces of the first, one of each other.
        (4, inactive(None, 29 * minute, 1), 3),
        (5, inactive(None, 29 * minute, 1), 1),
        (6, inactive(None, 29 * minute, 1), 0),
    ] {
        ask(&mut host, number, &question);
        assert_eq!(sum(&mut host, number), closed, "{question:?}");
    }
    for gone in [plain[0], plain[2], talkers[0]] {
        assert!(host.take(gone).contains(&Got::Close(Some(4410), "Inactive".into())));
    }
    let mut said = |guest: usize| host.texts(guest).into_iter().filter(|text| text.starts_with("41")).collect::<Vec<_>>();
    assert_eq!((said(guests[0]).len(), said(guests[1]), said(guests[2])), (2, vec!["41/b,".to_owned()], vec!["41".to_owned()]));
    assert!(!host.clients[guests[0]].open && host.clients[guests[1]].open);
    ask(&mut host, 7, &inactive(None, 0, 9));
    assert_eq!(sum(&mut host, 7), 4);
    assert!(all.iter().all(|client| !host.clients[*client].open));
    let counted: u64 = host.stats.iter().map(|s| s.endpoints[0].closed[CloseReason::Inactive.index()].read()).sum();
    assert_eq!(counted, 3);
    let round_trips: Vec<u64> = (0..4).map(|of| host.stats.iter().map(|stats| stats.endpoints[of].round_trips.read()).sum()).collect();
    assert!(round_trips.iter().all(|count| *count > 60), "{round_trips:?}");
}
