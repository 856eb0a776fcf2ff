//! Dialects of an embedding program on hosts of three shards: what the engine does for its own it does for them, with the few methods
//! that such a dialect must write.

mod host;

use std::sync::Arc;

use engine::config::{AuthMode, DialectKind, Endpoint, OwnDialect};
use engine::dialect::{Act, Cx, Dialect, EnterFault, Entry, Publication, RoomView, Said};
use engine::fault::DropReason;
use engine::frame::Frame;
use engine::ids::{EndpointId, Sid, checked_name};
use engine::json::Scratch;
use engine::shard::parcel::Parcel;
use engine::{Answer, Emit, Question, Selection, Target};
use host::{Got, Host};

/// Over plain WebSocket: `+room` enters, `-room` leaves, `room text` is said to all in the room. What must not be there is kept out by the
/// engine, as far as it can know.
struct Shout;

impl Dialect for Shout {
    fn message(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let text = match said {
            Said::Text(text) => text,
            Said::Binary(bytes) => return acts.push(Act::Send(cx.binary(bytes))),
            Said::Event { .. } => return,
        };
        acts.push(match (text.split_at_checked(1), text.split_once(' ')) {
            (Some(("+", room)), _) => Act::Enter(Entry { announce: Some(cx.text("somebody came")), ..Entry::new(room.into()) }),
            (Some(("-", room)), _) => Act::Leave { room: room.into(), note: "".into() },
            (_, Some((room, words))) => Act::Publish(Publication::to_all(room.into(), cx.text(words))),
            _ => Act::Drop(DropReason::Invalid),
        });
    }

    fn entered(&self, cx: &Cx<'_>, room: &str, outcome: Result<&RoomView, EnterFault>, _note: Option<&str>, acts: &mut Vec<Act>) {
        acts.push(Act::Send(match outcome {
            Ok(view) => cx.text(&format!("{} in {room}", view.members)),
            Err(fault) => cx.text(&format!("{fault:?}")),
        }));
    }

    fn left(&self, cx: &Cx<'_>, room: &str, view: &RoomView, _note: &str, acts: &mut Vec<Act>) {
        acts.push(Act::Send(cx.text(&format!("{} still in {room}", view.members))));
    }

    fn farewell(&self, cx: &Cx<'_>, _room: &str) -> Option<Frame> {
        Some(cx.text("somebody left"))
    }
}

/// Over Socket.IO: `enter` with a room, answered; any other event goes to the room that is its first argument, whole.
struct Relay;

impl Dialect for Relay {
    fn message(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        let Said::Event { name, args, ack } = said else { return };
        let room = said.argument().and_then(|room| checked_name(room.as_exact_str()?).ok());
        let Some(room) = room else { return acts.push(Act::Drop(DropReason::Invalid)) };
        if name == "enter" {
            return acts.push(Act::Enter(Entry { note: ack.map(Box::from), ..Entry::new(room.into()) }));
        }
        let words: Vec<&str> = args.items().skip(2).map(|word| word.raw()).collect();
        acts.push(Act::Publish(Publication::to_all(room.into(), cx.event(name, &words.join(",")))));
    }

    fn entered(&self, cx: &Cx<'_>, _room: &str, outcome: Result<&RoomView, EnterFault>, note: Option<&str>, acts: &mut Vec<Act>) {
        if let Some(ack) = note {
            acts.push(cx.acknowledge(ack, if outcome.is_ok() { "true" } else { "false" }));
        }
    }

    fn over_rate(&self, cx: &Cx<'_>, _said: Said<'_>, acts: &mut Vec<Act>) {
        acts.push(Act::Send(cx.event("slower", "")));
    }
}

const SHOUT: OwnDialect = OwnDialect::plain("shout", &Shout);
const RELAY: OwnDialect = OwnDialect::socket_io("relay", &Relay);
const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";

fn open(name: &str, own: OwnDialect, bind: &str) -> Endpoint {
    Endpoint { auth: AuthMode::None, ..Endpoint::new(name, own, bind) }
}

fn hosts() -> Host {
    let by_token = Endpoint::new("members", SHOUT, "/members");
    Host::new(host::config(3, vec![open("shout", SHOUT, "/shout"), open("relay", RELAY, "/"), by_token]), 1)
}

fn shouter(host: &mut Host, shard: usize) -> usize {
    let client = host.connect(shard, &Host::upgrade_head("/shout", ""));
    host.settle();
    assert_eq!(host.take(client), [Got::Http(101, String::new())]);
    client
}

/// A client of the Socket.IO dialect in a room, and its id.
fn guest(host: &mut Host, shard: usize, room: &str) -> (usize, Sid) {
    let client = host.connect(shard, &Host::upgrade_head(WEBSOCKET, ""));
    host.say(client, "40");
    host.settle();
    let texts = host.texts(client);
    let connected = texts.iter().find(|text| text.starts_with("40{")).expect("let in");
    let id = Sid::parse(&connected[10..30]).expect("an id");
    host.say(client, &format!("421[\"enter\",\"{room}\"]"));
    host.settle();
    assert_eq!(host.texts(client), ["431[true]"]);
    (client, id)
}

fn ask(host: &mut Host, question: &Question) -> Vec<Answer> {
    for shard in 0..host.shards.len() {
        host.shards[shard].handle_parcel(host.now, Parcel::Ask { ask: 1, question: question.clone() });
    }
    host.settle();
    host.answers.drain(..).map(|(_, _, answer)| answer).collect()
}

fn emit(host: &mut Host, endpoint: u8, target: Target) -> u64 {
    let to = Selection { endpoint: EndpointId(endpoint), targets: vec![target], except: Vec::new() };
    let emit = Emit {
        to,
        event: "news".into(),
        args: "{\"n\":1}".into(),
        volatile: false,
        ack_ms: None,
        offset: 1.into(),
        unix_ms: 0,
        attachments: Vec::new(),
        is_elsewhere: false,
    };
    let answers = ask(host, &Question::Emit(Arc::new(emit)));
    let recipients = answers.iter().map(|answer| if let Answer::Emitted(here) = answer { here.recipients } else { panic!("{answer:?}") });
    recipients.sum()
}

#[test]
fn a_plain_dialect_has_rooms_with_one_order_over_all_shards() {
    let mut host = hosts();
    let clients: Vec<usize> = (0..3).map(|shard| shouter(&mut host, shard)).collect();
    for (others, client) in clients.iter().enumerate() {
        host.say(*client, "+r");
        host.settle();
        assert_eq!(host.texts(*client), [format!("{} in r", others + 1)]);
    }
    clients.iter().for_each(|client| drop(host.take(*client)));
    for round in 0..20 {
        clients.iter().for_each(|client| host.say(*client, &format!("r {round} from {client}")));
    }
    host.settle();
    let heard: Vec<Vec<String>> = clients.iter().map(|client| host.texts(*client)).collect();
    assert_eq!(heard[0].len(), 60);
    assert!(heard.iter().all(|other| *other == heard[0]), "one order");
    for client in &clients {
        let own = heard[0].iter().filter(|text| text.ends_with(&format!("from {client}")));
        assert!(own.map(|text| text.split(' ').next().and_then(|round| round.parse::<u32>().ok())).is_sorted(), "a sender's own order");
    }
    host.say(clients[0], "-r");
    host.hang_up(clients[1]);
    host.settle();
    let first = host.texts(clients[0]);
    assert!(first.contains(&"2 still in r".to_owned()) || first.contains(&"1 still in r".to_owned()), "{first:?}");
    assert_eq!(host.texts(clients[2]), ["somebody left", "somebody left"]);
}

#[test]
fn a_plain_dialect_moves_binary_messages() {
    let mut host = hosts();
    let client = shouter(&mut host, 0);
    host.frame(client, 2, &[0, 255, 7]);
    host.settle();
    assert_eq!(host.take(client), [Got::Binary(vec![0, 255, 7])]);
}

/// What a careless dialect takes from its clients as a room's name must not get them into a user's own rooms, or out of their own.
#[test]
fn the_engines_own_rooms_are_not_entered_and_not_left() {
    let mut host = hosts();
    let (victim, thief) = (shouter(&mut host, 0), shouter(&mut host, 1));
    let Answer::Connections(found) = &ask(&mut host, &all_of(0))[0] else { panic!("connections are asked for") };
    let user = found[0].user.clone();
    for room in [format!("+\u{1}u:{user}"), "+".to_owned()] {
        host.say(thief, &room);
        host.settle();
        assert_eq!(host.texts(thief), ["NoRoom"], "{room:?}");
    }
    host.say(victim, &format!("-\u{1}u:{user}"));
    host.say(victim, "-");
    host.settle();
    drop(host.take(victim));
    assert_eq!(emit(&mut host, 0, Target::user(&user)), 1);
    assert_eq!((host.texts(victim), host.texts(thief)), (vec![r#"{"type":"news","payload":{"n":1}}"#.to_owned()], vec![]));
    assert_eq!(emit(&mut host, 0, Target::all()), 2, "everybody is still in everybody's room");
}

fn all_of(endpoint: u8) -> Question {
    Question::Connections { endpoint: Some(EndpointId(endpoint)), user: None, room: None, after: None, limit: 100 }
}

#[test]
fn a_socket_io_dialect_has_namespaces_acknowledgements_and_rooms() {
    let mut host = hosts();
    let guests: Vec<usize> = (0..3).map(|shard| guest(&mut host, shard, "r").0).collect();
    host.say(guests[1], r#"42["moved","r",{"x":1},"y"]"#);
    host.say(guests[1], r#"42["moved",{"not":"a name"}]"#);
    host.settle();
    for guest in guests {
        assert_eq!(host.texts(guest), [r#"42["moved",{"x":1},"y"]"#]);
    }
    let dropped: u64 = host.stats.iter().map(|stats| stats.endpoints[1].dropped[DropReason::Invalid.index()].read()).sum();
    assert_eq!(dropped, 1);
}

#[test]
fn the_back_ends_questions_reach_own_dialects() {
    let mut host = hosts();
    let (first, id) = guest(&mut host, 0, "r");
    let (second, _) = guest(&mut host, 2, "r");
    assert_eq!(emit(&mut host, 1, Target::Room("r".into())), 2);
    assert_eq!(emit(&mut host, 1, Target::Connection(id)), 1);
    assert_eq!((host.texts(first).len(), host.texts(second)), (2, vec![r#"42["news",{"n":1}]"#.to_owned()]));
    let found: Vec<_> = ask(&mut host, &all_of(1))
        .into_iter()
        .flat_map(|answer| if let Answer::Connections(found) = answer { found } else { panic!("{answer:?}") })
        .collect();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|one| one.rooms == ["r"] && *one.user == *one.id.to_string()), "{found:?}");
    let closed = ask(&mut host, &Question::CloseConnection { id, reason: None });
    assert_eq!(closed.iter().map(|answer| if let Answer::Closed(n) = answer { *n } else { panic!("{answer:?}") }).sum::<u64>(), 1);
    assert_eq!(host.texts(first), ["41"], "a disconnect by the server");
}

#[test]
fn who_has_no_token_is_refused_in_the_words_of_his_transport() {
    let mut host = hosts();
    let client = host.connect(0, &Host::upgrade_head("/members", ""));
    host.settle();
    assert_eq!(host.take(client)[0], Got::Http(401, r#"{"message":"no token"}"#.into()));
    let token = host::token(&serde_json::json!({"sub": "alice", "exp": 4_000_000_000_u64}));
    let client = host.connect(0, &Host::upgrade_head(&format!("/members?token={token}"), ""));
    host.settle();
    assert_eq!(host.take(client), [Got::Http(101, String::new())]);

    let mut host = Host::new(host::config(1, vec![Endpoint::new("relay", RELAY, "/")]), 1);
    let client = host.connect(0, &Host::upgrade_head(WEBSOCKET, ""));
    host.say(client, "40");
    host.settle();
    assert_eq!(host.texts(client)[1..], [r#"44{"message":"no token"}"#]);
}

#[test]
fn the_limits_hold_for_own_dialects() {
    let mut config = host::config(1, vec![open("shout", SHOUT, "/shout"), open("relay", RELAY, "/")]);
    (config.limits.rate_messages, config.limits.rooms_per_connection, config.limits.outbox_bytes) = (5, 2, 1_000);
    let mut host = Host::new(config, 1);
    let (talker, _) = guest(&mut host, 0, "r");
    for _ in 0..6 {
        host.say(talker, r#"42["say","r"]"#);
    }
    host.settle();
    assert_eq!(host.texts(talker).iter().filter(|text| **text == r#"42["slower"]"#).count(), 2, "one entered, four spoke");
    assert_eq!(host.stats[0].endpoints[1].rate_limited.read(), 2);

    let joiner = shouter(&mut host, 0);
    for room in ["+a", "+b", "+c"] {
        host.say(joiner, room);
    }
    host.settle();
    assert_eq!(host.texts(joiner), ["1 in a", "1 in b", "TooMany"]);

    let (sleeper, speaker) = (shouter(&mut host, 0), shouter(&mut host, 0));
    for client in [sleeper, speaker] {
        host.say(client, "+r");
        host.settle();
    }
    host.clients[sleeper].capacity = 0;
    host.say(speaker, &format!("r {}", "x".repeat(600)));
    host.settle();
    host.say(speaker, &format!("r {}", "x".repeat(600)));
    host.settle();
    assert_eq!(host.stats[0].endpoints[0].closed[engine::fault::CloseReason::SlowReader.index()].read(), 1);
    assert!(host.clients[speaker].open);
}

#[test]
fn too_many_of_one_user_are_refused() {
    let mut config = host::config(1, vec![Endpoint::new("members", SHOUT, "/members"), Endpoint::new("relay", RELAY, "/")]);
    config.limits.connections_per_user = 1;
    let mut host = Host::new(config, 1);
    let token = host::token(&serde_json::json!({"sub": "alice", "exp": 4_000_000_000_u64}));
    let mut answers = (0..2).map(|_| {
        let client = host.connect(0, &Host::upgrade_head(&format!("/members?token={token}"), ""));
        host.settle();
        host.take(client).swap_remove(0)
    });
    assert_eq!(answers.next(), Some(Got::Http(101, String::new())));
    assert_eq!(answers.next(), Some(Got::Http(429, r#"{"message":"Maximum connection limit reached"}"#.into())));
    drop(answers);
    let mut heard = (0..2).map(|_| {
        let client = host.connect(0, &Host::upgrade_head(WEBSOCKET, ""));
        host.say(client, &format!("40{{\"token\":\"{token}\"}}"));
        host.settle();
        host.texts(client).swap_remove(1)
    });
    assert!(heard.next().is_some_and(|text| text.starts_with("40{")));
    assert_eq!(heard.next().as_deref(), Some(r#"44{"message":"Maximum connection limit reached"}"#));
}

#[test]
fn own_dialects_are_known_by_name_and_transport() {
    assert_eq!(SHOUT, OwnDialect::plain("shout", &Relay));
    assert_ne!(SHOUT, OwnDialect::socket_io("shout", &Shout));
    let kind = DialectKind::from(RELAY);
    assert_eq!((kind.name(), kind.is_socket_io(), DialectKind::from(SHOUT).is_socket_io()), ("relay", true, false));
    assert!(kind != DialectKind::Rooms && format!("{kind:?}").contains("relay"));
}
