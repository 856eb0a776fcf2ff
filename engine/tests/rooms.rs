//! What the back end asks of rooms, on hosts of three shards: rooms that it makes and ends, whom it moves, what it says, and that nothing is
//! half done whatever happens at the same time.

mod host;

use std::sync::Arc;

use engine::auth::Identity;
use engine::config::{AuthMode, DialectKind, Endpoint};
use engine::dialect::community::{Author, Broadcast, Channel, Message};
use engine::dialect::{self, BackEndMessage};
use engine::ids::{EndpointId, MessageId, Room, Sid, new_message_id};
use engine::shard::parcel::{GrantFault, Parcel, Post};
use engine::{Answer, Emit, NewRoom, Question, RoomAnswer, RoomCall, RoomFault, RoomInfo, Saying, Selection, Target};
use host::{Got, Host};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

const ROOMS: EndpointId = EndpointId(0);
const CHAT: EndpointId = EndpointId(1);
const COLLAB: EndpointId = EndpointId(2);
const NOTIFY: EndpointId = EndpointId(3);
const TALK: EndpointId = EndpointId(4);

/// Rooms of the first endpoint exist only if the back end made them.
fn hosts(seed: u64) -> Host {
    let open = |endpoint: Endpoint| Endpoint { auth: AuthMode::None, ..endpoint };
    let endpoints = vec![
        open(Endpoint::new("rooms", DialectKind::Rooms, "/")),
        open(Endpoint::new("chat", DialectKind::Chat, "/chat")),
        Endpoint {
            retain: 5,
            membership: engine::config::Membership::Open,
            ..open(Endpoint::new("docs", DialectKind::Collab, "/ws/docs"))
        },
        Endpoint::new("notify", DialectKind::Notify, "/notify"),
        host::endpoint("talk", DialectKind::Community, "/talk"),
    ];
    Host::new(host::config(3, endpoints), seed)
}

/// A client of a namespace that has heard nothing yet, and its id.
fn guest(host: &mut Host, shard: usize, namespace: &str, auth: &str) -> (usize, Sid) {
    let client = host.connect(shard, &Host::upgrade_head("/socket.io/?EIO=4&transport=websocket", ""));
    let prefix = if namespace == "/" { String::new() } else { format!("{namespace},") };
    host.say(client, &format!("40{prefix}{auth}"));
    host.settle();
    let texts = host.texts(client);
    let connected = texts.iter().find_map(|text| text.split("\"sid\":\"").nth(1).filter(|_| text.starts_with("40"))).expect("let in");
    (client, Sid::parse(&connected[..20]).expect("an id"))
}

fn room(name: &str) -> Room {
    Room::named(ROOMS, name)
}

fn ask(host: &mut Host, number: u64, question: &Question) {
    for shard in 0..host.shards.len() {
        host.shards[shard].handle_parcel(host.now, Parcel::Ask { ask: number, question: question.clone() });
    }
}

/// The answers of all shards to a call that was made, in their order.
fn heard(host: &mut Host, number: u64) -> Vec<RoomAnswer> {
    host.settle();
    let mut answers: Vec<_> = host.answers.extract_if(.., |(_, ask, _)| *ask == number).collect();
    answers.sort_by_key(|(shard, ..)| *shard);
    assert_eq!(answers.len(), host.shards.len(), "each shard answers once: {answers:?}");
    let of_call = |answer| if let Answer::Room(answer) = answer { answer } else { panic!("{answer:?}") };
    answers.into_iter().map(|(_, _, answer)| of_call(answer)).collect()
}

fn call_all(host: &mut Host, call: RoomCall) -> Vec<RoomAnswer> {
    ask(host, 7, &Question::Room(call));
    heard(host, 7)
}

/// The one answer that counts.
fn call(host: &mut Host, call: RoomCall) -> RoomAnswer {
    let mut answers = call_all(host, call);
    answers.retain(|answer| !matches!(answer, RoomAnswer::Elsewhere | RoomAnswer::Members(_)));
    assert_eq!(answers.len(), 1, "{answers:?}");
    answers.remove(0)
}

fn new_room(room: Room, namespace: Option<&str>) -> RoomCall {
    RoomCall::Create(Arc::new(NewRoom {
        name: format!("the {}", room.name),
        room,
        namespace: namespace.map(str::to_owned),
        created_by: Some("boss".into()),
        metadata: r#"{"n":1e400}"#.into(),
    }))
}

fn saying(room: Room, id: u128, content: &str) -> RoomCall {
    let (id, user) = (MessageId::from_u128(id), "bot".into());
    let message = BackEndMessage { id, user, content: content.into(), kind: Some("system".into()), metadata: None, unix_ms: 0 };
    RoomCall::Say(Arc::new(Saying { room, message, offset: 1.into() }))
}

fn info(host: &mut Host, room: &Room) -> Option<RoomInfo> {
    match call(host, RoomCall::Stats { room: room.clone() }) {
        RoomAnswer::Stats(info, _) => Some(*info),
        RoomAnswer::Refused(RoomFault::NoRoom) => None,
        other => panic!("{other:?}"),
    }
}

fn members(host: &mut Host, room: &Room) -> Vec<Sid> {
    let lists = call_all(host, RoomCall::Members { rooms: [room.clone()].into() });
    let mut sids = Vec::new();
    for list in lists {
        let RoomAnswer::Members(lists) = list else { panic!("{list:?}") };
        sids.extend(lists.into_iter().flatten());
    }
    sids
}

fn join(host: &mut Host, client: usize, room: &str) -> Vec<String> {
    host.say(client, &format!("421[\"room:join\",{{\"roomId\":\"{room}\"}}]"));
    host.settle();
    host.texts(client)
}

#[test]
fn a_made_room_is_there_without_members_and_can_be_entered_by_its_id_only() {
    let mut host = hosts(1);
    let (client, id) = guest(&mut host, 1, "/", "");
    assert!(join(&mut host, client, "r")[0].contains("Failed to join room"));
    host.advance(1_000);
    let RoomAnswer::Room(made, _) = call(&mut host, new_room(room("r"), Some("ns"))) else { panic!("made") };
    let expected = RoomInfo {
        id: "r".into(),
        name: "the r".into(),
        namespace: "ns".into(),
        created_by: Some("boss".into()),
        metadata: r#"{"n":1e400}"#.into(),
        created_unix_ms: host.now.unix_ms,
        active_unix_ms: host.now.unix_ms,
        members: 0,
    };
    assert_eq!(*made, expected);
    for (call_again, fault) in [
        (new_room(room("r"), None), RoomFault::Exists),
        (new_room(Room::named(ROOMS, id.text().as_str()), None), RoomFault::IsConnection),
        (saying(room("x"), 1, "hi"), RoomFault::NoRoom),
        (RoomCall::Delete { room: room("x") }, RoomFault::NoRoom),
        (RoomCall::Show { room: room("x") }, RoomFault::NoRoom),
        (RoomCall::Messages { room: room("x"), skip: 0, limit: 9 }, RoomFault::NoRoom),
        (RoomCall::Enter { room: room("x"), connection: id }, RoomFault::NoRoom),
        (RoomCall::Leave { room: room("x"), connection: id }, RoomFault::NoRoom),
        (RoomCall::Enter { room: Room::named(CHAT, "x"), connection: id }, RoomFault::NoConnection),
        (RoomCall::Enter { room: Room::named(ROOMS, id.text().as_str()), connection: id }, RoomFault::IsConnection),
    ] {
        assert_eq!(call(&mut host, call_again.clone()), RoomAnswer::Refused(fault), "{call_again:?}");
    }
    host.advance(1_000);
    let answer = join(&mut host, client, "r").join("\n");
    assert!(answer.contains(r#""room":{"id":"r","name":"the r","memberCount":1},"history":[]"#), "{answer}");
    assert_eq!(members(&mut host, &room("r")), [id]);
    host.hang_up(client);
    host.settle();
    let left = info(&mut host, &room("r")).expect("it stays");
    assert_eq!((left.members, left.active_unix_ms, left.created_unix_ms), (0, host.now.unix_ms, expected.created_unix_ms));
    assert_eq!(call(&mut host, RoomCall::Delete { room: room("r") }), RoomAnswer::Done);
    assert_eq!(info(&mut host, &room("r")), None);
}

#[test]
fn who_edits_alone_keeps_the_room_in_use_and_is_heard_by_whoever_comes() {
    let mut host = hosts(3);
    let edit = |name: &str, changes: u32| format!(r#"427["document:edit",{{"roomId":"{name}","changes":{changes}}}]"#);
    // Some rooms are at home where their editor is, others are not.
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        call(&mut host, new_room(room(name), None));
        let (anna, _) = guest(&mut host, 0, "/", "");
        join(&mut host, anna, name);
        host.advance(1_000);
        host.say(anna, &edit(name, 1));
        host.settle();
        assert_eq!(host.texts(anna), [r#"437[{"success":true}]"#], "{name}");
        assert_eq!(info(&mut host, &room(name)).map(|info| info.active_unix_ms), Some(host.now.unix_ms), "{name}");
        // The same user may be on another device, on this shard or another.
        for shard in [0, 1] {
            let (other, _) = guest(&mut host, shard, "/", "");
            join(&mut host, other, name);
            host.say(anna, &edit(name, 2));
            host.say(anna, &format!(r#"42["typing",{{"roomId":"{name}","isTyping":true}}]"#));
            host.settle();
            let heard = host.texts(other);
            assert!(heard.len() == 2 && heard[0].contains(r#""changes":2"#) && heard[1].contains("typing"), "{name}: {heard:?}");
            host.hang_up(other);
            host.settle();
            host.texts(anna);
        }
        host.hang_up(anna);
        host.settle();
    }
}

#[test]
fn a_connection_is_moved_by_the_back_end_and_the_others_hear_it() {
    let mut host = hosts(2);
    let (alice, alice_id) = guest(&mut host, 0, "/", "");
    let (bob, bob_id) = guest(&mut host, 2, "/", "");
    call(&mut host, new_room(room("r"), None));
    let moves = |enter: bool, connection| {
        let room = room("r");
        if enter { RoomCall::Enter { room, connection } } else { RoomCall::Leave { room, connection } }
    };
    for id in [alice_id, bob_id, bob_id] {
        assert_eq!(call(&mut host, moves(true, id)), RoomAnswer::Done);
    }
    assert_eq!(members(&mut host, &room("r")).len(), 2);
    let joined = host.texts(alice);
    assert_eq!(joined.iter().filter(|text| text.contains("user:joined")).count(), 1, "{joined:?}");
    for id in [bob_id, bob_id] {
        assert_eq!(call(&mut host, moves(false, id)), RoomAnswer::Done);
    }
    let left = host.texts(alice);
    assert_eq!(left.iter().filter(|text| text.contains("user:left")).count(), 1, "{left:?}");
    assert!(!host.texts(bob).iter().any(|text| text.contains("user:left") || text.contains("user:joined")));
    assert_eq!(members(&mut host, &room("r")), [alice_id]);
    host.hang_up(bob);
    host.settle();
    for enter in [true, false] {
        assert_eq!(call(&mut host, moves(enter, bob_id)), RoomAnswer::Refused(RoomFault::NoConnection));
    }
    // One that another host made would be on one of the shards.
    let elsewhere = Sid::new(engine::ids::ShardId(9), 0, [0; 11]);
    let refused = RoomAnswer::Refused(RoomFault::NoConnection);
    let answers = call_all(&mut host, moves(true, elsewhere));
    assert_eq!(answers.iter().filter(|answer| **answer == refused).count(), 1, "{answers:?}");
    assert!(answers.iter().all(|answer| [&refused, &RoomAnswer::Elsewhere].contains(&answer)), "{answers:?}");
    // Where entering makes rooms, there is no unknown one.
    let (_, chatter) = guest(&mut host, 1, "/chat", r#"{"userId":"carol"}"#);
    let anywhere = Room::named(CHAT, "anywhere");
    assert_eq!(call(&mut host, RoomCall::Leave { room: anywhere.clone(), connection: chatter }), RoomAnswer::Done);
    assert_eq!(call(&mut host, RoomCall::Enter { room: anywhere.clone(), connection: chatter }), RoomAnswer::Done);
    assert_eq!(members(&mut host, &anywhere), [chatter]);
    // Who has not said who he is cannot be moved.
    let (_, nobody) = guest(&mut host, 1, "/notify", "");
    let call_for_nobody = RoomCall::Enter { room: Room::named(NOTIFY, "conversation:1"), connection: nobody };
    assert_eq!(call(&mut host, call_for_nobody), RoomAnswer::Refused(RoomFault::Unproven));
}

#[test]
fn users_are_put_into_rooms_that_are_there() {
    let mut host = hosts(3);
    let (_, alice) = guest(&mut host, 0, "/", "");
    let put = |host: &mut Host, is_member: bool| {
        let (endpoint, room, user) = (ROOMS, "r".to_owned(), alice.to_string());
        let question = if is_member { Question::Grant { endpoint, room, user } } else { Question::Revoke { endpoint, room, user } };
        ask(host, 9, &question);
        host.settle();
        let answers: Vec<_> = host.answers.extract_if(.., |(_, ask, _)| *ask == 9).collect();
        assert_eq!(answers.len(), 3);
        let outcomes = answers.into_iter().filter_map(|(_, _, answer)| if let Answer::Granted(outcome) = answer { outcome } else { None });
        let mut outcomes: Vec<_> = outcomes.collect();
        outcomes.sort_by_key(Result::is_ok);
        outcomes[0]
    };
    assert_eq!((put(&mut host, true), put(&mut host, false)), (Err(GrantFault::NoRoom), Err(GrantFault::NoRoom)));
    assert_eq!(info(&mut host, &room("r")), None);
    call(&mut host, new_room(room("r"), None));
    assert_eq!((put(&mut host, true), members(&mut host, &room("r"))), (Ok(1), vec![alice]));
    assert_eq!((put(&mut host, false), members(&mut host, &room("r"))), (Ok(1), vec![]));
}

/// However parcels travel: as soon as the call is answered, all of the user's connections are in, or out.
#[test]
fn a_call_for_a_user_is_answered_when_all_his_connections_have_moved() {
    for seed in 0..100 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut host = hosts(seed);
        let auth = format!(r#"{{"token":"{}"}}"#, host::token(&serde_json::json!({"sub": "ann"})));
        let count = random.random_range(0..6);
        for _ in 0..count {
            let shard = random.random_range(0..3);
            guest(&mut host, shard, "/notify", &auth);
        }
        let name = format!("conversation:{seed}");
        for is_member in [true, false, true, true] {
            let (endpoint, room, user) = (NOTIFY, name.clone(), "ann".to_owned());
            let question = if is_member { Question::Grant { endpoint, room, user } } else { Question::Revoke { endpoint, room, user } };
            ask(&mut host, 9, &question);
            let is_answer = |(_, ask, answer): &(usize, u64, Answer)| *ask == 9 && !matches!(answer, Answer::Granted(None));
            while !host.answers.iter().any(is_answer) {
                let (from, to) = (random.random_range(0..3), random.random_range(0..3));
                host.pump(from);
                host.step(from, to);
            }
            ask(&mut host, 7, &Question::Room(RoomCall::Show { room: Room::named(NOTIFY, &name) }));
            for shard in 0..3 {
                host.pump(shard);
            }
            let inside = host.answers.extract_if(.., |(_, ask, _)| *ask == 7).map(|(_, _, answer)| match answer {
                Answer::Room(RoomAnswer::Members(sids)) => sids.concat().len(),
                Answer::Room(RoomAnswer::Room(_, sids)) => sids.len(),
                Answer::Room(RoomAnswer::Refused(RoomFault::NoRoom)) => 0,
                other => panic!("{other:?}"),
            });
            assert_eq!(inside.sum::<usize>(), if is_member { count } else { 0 }, "seed {seed}");
            host.settle();
            assert_eq!(host.answers.extract_if(.., |(_, ask, _)| *ask == 9).count(), 3, "each shard answers once");
        }
    }
}

#[test]
fn what_the_back_end_says_is_in_the_rooms_order_and_its_history() {
    let mut host = hosts(4);
    call(&mut host, new_room(room("r"), None));
    let clients: Vec<usize> = (0..3).map(|shard| guest(&mut host, shard, "/", "").0).collect();
    for client in &clients {
        join(&mut host, *client, "r");
    }
    clients.iter().for_each(|client| drop(host.take(*client)));
    let mut random = StdRng::seed_from_u64(4);
    for number in 0..30 {
        if random.random_bool(0.5) {
            ask(&mut host, number, &Question::Room(saying(room("r"), number.into(), &format!("m{number}"))));
        } else {
            host.say(clients[random.random_range(0..3)], &format!("42[\"message\",{{\"roomId\":\"r\",\"content\":\"m{number}\"}}]"));
        }
        let (from, to) = (random.random_range(0..3), random.random_range(0..3));
        host.pump(from);
        host.step(from, to);
    }
    host.settle();
    let content = |text: &str| text.split("\"content\":\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned);
    let got: Vec<Vec<String>> =
        clients.iter().map(|client| host.texts(*client).iter().filter_map(|text| content(text)).collect()).collect();
    assert_eq!(got[0].len(), 30);
    assert!(got.iter().all(|other| *other == got[0]), "one order");
    let RoomAnswer::Messages(kept) = call(&mut host, RoomCall::Messages { room: room("r"), skip: 5, limit: 20 }) else { panic!("kept") };
    let mut kept: Vec<String> = kept.iter().filter_map(|text| content(text)).collect();
    kept.reverse();
    assert_eq!(kept, got[0][5..25]);
    let RoomAnswer::Stats(info, messages) = call(&mut host, RoomCall::Stats { room: room("r") }) else { panic!("stats") };
    assert_eq!((info.members, messages), (3, 30));
    let RoomAnswer::Said(said) = call(&mut host, saying(room("r"), 99, "a \"quoted\" word")) else { panic!("said") };
    let message = r#"{"id":"00000000-0000-0000-0000-000000000063","roomId":"r","userId":"bot","username":"bot","content":"a \"quoted\" word","type":"system","timestamp":"1970-01-01T00:00:00.000Z"}"#;
    assert_eq!(&*said, message);
    assert_eq!(host.texts(clients[1]), [format!("42[\"message\",{message}]")]);
}

#[test]
fn every_room_is_listed_once_in_order_however_many_shards_there_are() {
    let mut host = hosts(5);
    for number in 0..50 {
        let namespace = if number % 3 == 0 { "a" } else { "b" };
        call(&mut host, new_room(room(&format!("r{number}")), Some(namespace)));
    }
    call(&mut host, new_room(Room::named(CHAT, "elsewhere"), Some("a")));
    for (namespace, count) in [(None, 50), (Some("a"), 17), (Some("c"), 0)] {
        let (mut after, mut seen) = (None::<String>, Vec::new());
        loop {
            let namespace = namespace.map(str::to_owned);
            let answers = call_all(&mut host, RoomCall::List { endpoint: ROOMS, namespace, after: after.clone(), limit: 4 });
            let mut page: Vec<String> = Vec::new();
            for answer in answers {
                let RoomAnswer::Rooms { rooms, until: None } = answer else { panic!("{answer:?}") };
                assert!(rooms.len() <= 4 && rooms.is_sorted_by(|one, other| one.id < other.id));
                page.extend(rooms.iter().map(|room| room.id.to_string()));
            }
            page.sort();
            page.truncate(4);
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            seen.extend(page);
        }
        assert_eq!(seen.len(), count, "{namespace:?}");
        assert!(seen.is_sorted_by(|one, other| one < other));
    }
}

#[test]
fn the_members_of_a_deleted_room_are_out_of_it_and_its_past_is_gone() {
    let mut host = hosts(6);
    call(&mut host, new_room(room("r"), None));
    let clients: Vec<usize> = (0..6).map(|n| guest(&mut host, n % 3, "/", "").0).collect();
    for client in &clients {
        join(&mut host, *client, "r");
    }
    call(&mut host, saying(room("r"), 1, "old"));
    clients.iter().for_each(|client| drop(host.take(*client)));
    // Two at once are one.
    ask(&mut host, 1, &Question::Room(RoomCall::Delete { room: room("r") }));
    ask(&mut host, 2, &Question::Room(RoomCall::Delete { room: room("r") }));
    for number in [1, 2] {
        assert!(heard(&mut host, number).contains(&RoomAnswer::Done), "{number}");
    }
    assert_eq!(members(&mut host, &room("r")), []);
    call(&mut host, new_room(room("r"), None));
    for client in &clients {
        assert_eq!(host.texts(*client), [""; 0], "nobody is left to hear of it");
        host.say(*client, "42[\"message\",{\"roomId\":\"r\",\"content\":\"x\"}]");
        host.settle();
        assert!(host.texts(*client)[0].contains("Failed to send message"));
    }
    let answer = join(&mut host, clients[0], "r").join("\n");
    assert!(answer.contains(r#""memberCount":1},"history":[]"#), "{answer}");
    // A document is what its connections are there for.
    let document = host.connect(1, &Host::upgrade_head("/ws/docs?documentId=d&clientID=c", ""));
    host.settle();
    let docs = Room::named(COLLAB, "d");
    let RoomAnswer::Room(_, _) = call(&mut host, RoomCall::Show { room: docs.clone() }) else { panic!("it is there") };
    host.take(document);
    assert_eq!(call(&mut host, RoomCall::Delete { room: docs.clone() }), RoomAnswer::Done);
    host.settle();
    assert!(matches!(&host.take(document)[0], Got::Close(Some(4403), _)));
    assert_eq!(info(&mut host, &docs), None);
}

/// Rooms are made, ended, entered, left and spoken in at the same time, by clients that come and go and by the back end.
#[test]
fn whatever_happens_at_once_every_call_is_answered_and_the_counts_add_up() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut host = hosts(seed);
        let mut guests: Vec<(usize, Sid)> = (0..6).map(|n| guest(&mut host, n % 3, "/", "")).collect();
        let mut asked = 0..;
        let mut numbers = Vec::new();
        for step in 0..120 {
            let name = room(["r", "s"].choose(&mut random).expect("two"));
            let (client, connection) = *guests.choose(&mut random).expect("some");
            let room_call = match random.random_range(0..10) {
                0 => Some(new_room(name, None)),
                1 => Some(RoomCall::Delete { room: name }),
                2 | 3 => Some(RoomCall::Enter { room: name, connection }),
                4 => Some(RoomCall::Leave { room: name, connection }),
                5 => Some(saying(name, step, "x")),
                6 | 7 => {
                    host.say(client, &format!("42[\"room:join\",{{\"roomId\":\"{}\"}}]", name.name));
                    None
                }
                8 => {
                    host.say(client, &format!("42[\"room:leave\",{{\"roomId\":\"{}\"}}]", name.name));
                    None
                }
                _ if random.random_bool(0.2) => {
                    host.hang_up(client);
                    guests.retain(|(other, _)| *other != client);
                    let shard = random.random_range(0..3);
                    guests.push(guest(&mut host, shard, "/", ""));
                    None
                }
                _ => None,
            };
            if let Some(room_call) = room_call {
                let number = asked.next().expect("endless");
                numbers.push(number);
                ask(&mut host, number, &Question::Room(room_call));
            }
            for _ in 0..random.random_range(0..8) {
                let (from, to) = (random.random_range(0..3), random.random_range(0..3));
                host.pump(from);
                host.step(from, to);
            }
        }
        for number in numbers {
            let answers = heard(&mut host, number);
            let concerned = answers.iter().filter(|answer| !matches!(answer, RoomAnswer::Elsewhere)).count();
            assert_eq!(concerned, 1, "seed {seed}: {answers:?}");
        }
        for name in ["r", "s"] {
            let sids = members(&mut host, &room(name)).len();
            assert_eq!(info(&mut host, &room(name)).map_or(0, |info| info.members as usize), sids, "seed {seed}");
            call_all(&mut host, RoomCall::Delete { room: room(name) });
            assert_eq!((info(&mut host, &room(name)), members(&mut host, &room(name)).len()), (None, 0), "seed {seed}");
        }
        let count = |read: fn(&engine::stats::EndpointStats) -> u64| {
            host.stats.iter().fold(0_u64, |sum, stats| sum.wrapping_add(read(&stats.endpoints[0])))
        };
        assert_eq!((count(|it| it.rooms.read()), count(|it| it.history_messages.read())), (0, 0), "seed {seed}");
    }
}

#[test]
fn however_long_a_message_is_it_is_shown() {
    let open = Endpoint { auth: AuthMode::None, ..Endpoint::new("rooms", DialectKind::Rooms, "/") };
    let mut config = host::config(1, vec![open]);
    config.limits.message_bytes = 4 * 1024 * 1024;
    config.limits.history_bytes = 1024 * 1024 * 1024;
    let mut host = Host::new(config, 10);
    call(&mut host, new_room(room("r"), None));
    for number in 1..=2 {
        call(&mut host, saying(room("r"), number, &"x".repeat(17 * 1024 * 1024)));
    }
    for (skip, shown) in [(0, 1), (1, 1), (2, 0)] {
        let RoomAnswer::Messages(messages) = call(&mut host, RoomCall::Messages { room: room("r"), skip, limit: 9 }) else {
            panic!("kept")
        };
        assert_eq!(messages.len(), shown, "after {skip}");
    }
}

/// A post by REST, or the back end's steps, which the room keeps though nobody is in it.
fn keeping(room: &Room, number: u8) -> Question {
    if room.endpoint == TALK {
        let by = Identity::of_user("ann".into());
        let channel = Channel { key: Channel::ROOM, id: room.name.trim_start_matches("room:") };
        let id = new_message_id(host::START_UNIX_MS, &[number; 10]);
        let message = Message { id, author: Author::of(&by), channel, content: "\"m\"", hidden_from: None, unix_ms: host::START_UNIX_MS };
        let Broadcast { room, frame, keep } = message.broadcast(TALK);
        return Question::Post(Arc::new(Post { room, frame, keep }));
    }
    let to = Selection { endpoint: room.endpoint, targets: vec![Target::Room(room.name.clone())], except: Vec::new() };
    let (event, args) = (dialect::STEPS.to_owned(), r#"{"steps":[1],"clientIDs":["agent"],"changeId":"c"}"#.to_owned());
    Question::Emit(Arc::new(Emit {
        to,
        event,
        args,
        volatile: false,
        ack_ms: None,
        offset: 1.into(),
        unix_ms: 1,
        attachments: Vec::new(),
        is_elsewhere: false,
    }))
}

#[test]
fn what_makes_rooms_to_keep_something_in_does_not_meet_one_that_ends() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut host = hosts(seed);
        let token = host::token(&json!({"sub": "ann", "rooms": ["d"]}));
        let rooms = [Room::named(COLLAB, "d"), Room::named(TALK, "room:d")];
        let heads = ["/ws/docs?documentId=d&clientID=c".to_owned(), format!("/talk?token={token}&roomId=d")];
        let mut number = 0;
        for _ in 0..80 {
            let at = random.random_range(0..2);
            let question = match random.random_range(0..6) {
                0 => Question::Room(RoomCall::Delete { room: rooms[at].clone() }),
                1 | 2 => keeping(&rooms[at], number),
                _ => {
                    host.connect(random.random_range(0..3), &Host::upgrade_head(&heads[at], ""));
                    continue;
                }
            };
            number += 1;
            ask(&mut host, number.into(), &question);
            for _ in 0..random.random_range(0..8) {
                let (from, to) = (random.random_range(0..3), random.random_range(0..3));
                host.pump(from);
                host.step(from, to);
            }
        }
        host.settle();
        assert_eq!(host.answers.len(), 3 * usize::from(number), "seed {seed}: each shard answers each");
        host.answers.clear();
        for room in &rooms {
            assert_eq!(info(&mut host, room).map_or(0, |info| info.members as usize), members(&mut host, room).len(), "seed {seed}");
            call_all(&mut host, RoomCall::Delete { room: room.clone() });
            assert_eq!((info(&mut host, room), members(&mut host, room).len()), (None, 0), "seed {seed}");
            let stats = host.stats.iter().map(|stats| &stats.endpoints[usize::from(room.endpoint.0)]);
            let left = stats.fold((0_u64, 0_u64), |(rooms, messages), it| {
                (rooms.wrapping_add(it.rooms.read()), messages.wrapping_add(it.history_messages.read()))
            });
            assert_eq!(left, (0, 0), "seed {seed}");
        }
    }
}

/// Puts alice into a room of the fourth endpoint; the answer is that of her home.
fn grant(host: &mut Host, room: &str) {
    ask(host, 9, &Question::Grant { endpoint: NOTIFY, room: room.to_owned(), user: "alice".to_owned() });
    host.settle();
    let granted =
        host.answers.extract_if(.., |(_, ask, _)| *ask == 9).filter(|(_, _, answer)| matches!(answer, Answer::Granted(Some(Ok(_)))));
    assert_eq!(granted.count(), 1);
}

#[test]
fn nobody_enters_a_deleted_room_because_he_was_put_there_before() {
    for is_there in [true, false] {
        let mut host = hosts(9);
        let token = host::token(&json!({"sub": "alice"}));
        let connect = |host: &mut Host, shard| {
            let client = host.connect(shard, &Host::upgrade_head(&format!("/socket.io/?EIO=4&transport=websocket&token={token}"), ""));
            host.say(client, "40/notify,");
            host.say(client, &format!("42/notify,[\"authenticate\",{{\"token\":\"{token}\"}}]"));
            host.settle();
        };
        for room in ["conversation:1", "conversation:2"] {
            grant(&mut host, room);
        }
        if is_there {
            connect(&mut host, 1);
            assert_eq!(members(&mut host, &Room::named(NOTIFY, "conversation:1")).len(), 1);
        }
        let deleted = call(&mut host, RoomCall::Delete { room: Room::named(NOTIFY, "conversation:1") });
        assert_eq!(deleted, if is_there { RoomAnswer::Done } else { RoomAnswer::Refused(RoomFault::NoRoom) });
        connect(&mut host, 2);
        assert_eq!(members(&mut host, &Room::named(NOTIFY, "conversation:1")), []);
        let in_the_other = members(&mut host, &Room::named(NOTIFY, "conversation:2")).len();
        assert_eq!(in_the_other, 1 + usize::from(is_there));
    }
}

#[test]
fn a_room_ends_for_those_too_who_may_come_back() {
    let recoverable = Endpoint { auth: AuthMode::None, recovery_ms: 60_000, ..Endpoint::new("rooms", DialectKind::Rooms, "/") };
    let mut host = Host::new(host::config(3, vec![recoverable]), 8);
    call(&mut host, new_room(room("r"), None));
    let guests: Vec<_> = (0..4).map(|n| guest(&mut host, n % 3, "/", "")).collect();
    for (client, _) in &guests {
        join(&mut host, *client, "r");
    }
    host.hang_up(guests[0].0);
    host.hang_up(guests[1].0);
    host.settle();
    assert_eq!((info(&mut host, &room("r")).map(|info| info.members), members(&mut host, &room("r")).len()), (Some(2), 2));
    assert_eq!(call(&mut host, RoomCall::Delete { room: room("r") }), RoomAnswer::Done);
    assert_eq!((info(&mut host, &room("r")), members(&mut host, &room("r")).len()), (None, 0));
    call(&mut host, new_room(room("r"), None));
    assert_eq!(info(&mut host, &room("r")).map(|info| info.members), Some(0));
}
