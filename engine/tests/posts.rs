//! Messages of community that come by HTTP, on hosts of three shards: in the channel's order, kept, changed and taken back by their authors.

mod host;

use std::sync::Arc;

use engine::auth::{Details, Identity};
use engine::config::{DialectKind, Endpoint};
use engine::dialect::Change;
use engine::dialect::community::{Author, Broadcast, Channel, Message};
use engine::ids::{EndpointId, MessageId, Room, new_message_id};
use engine::shard::history::Range;
use engine::shard::parcel::{NotAuthor, Parcel, Post, Revision, Standing};
use engine::{Answer, Question};
use host::Host;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

fn hosts(seed: u64) -> Host {
    let talk = Endpoint { client_publish: true, ..host::endpoint("talk", DialectKind::Community, "/talk") };
    Host::new(host::config(3, vec![talk, host::endpoint("other", DialectKind::Community, "/other")]), seed)
}

/// A user's client in these rooms, which has heard nothing yet.
fn client(host: &mut Host, shard: usize, user: &str, rooms: &[&str]) -> usize {
    let token = host::token(&json!({"sub": user, "name": user.to_uppercase(), "rooms": rooms}));
    let client = host.connect(shard, &Host::upgrade_head(&format!("/talk?token={token}"), ""));
    host.settle();
    host.take(client);
    client
}

fn user(name: &str, blocked: &[&str]) -> Arc<Identity> {
    let blocked = blocked.iter().map(|user| (*user).to_owned()).collect();
    Arc::new(Details { user: name.into(), name: Some(name.to_uppercase()), blocked, ..Details::default() }.into())
}

fn room(name: &str) -> Room {
    Room::named(EndpointId(0), &format!("room:{name}"))
}

fn id(number: u8) -> MessageId {
    new_message_id(host::START_UNIX_MS + u64::from(number), &[number; 10])
}

fn ask(host: &mut Host, number: u64, question: &Question) {
    for shard in 0..host.shards.len() {
        host.shards[shard].handle_parcel(host.now, Parcel::Ask { ask: number, question: question.clone() });
    }
}

/// What the one shard says that is concerned; all have answered.
fn told(host: &mut Host, question: &Question) -> Option<Answer> {
    ask(host, 1, question);
    host.settle();
    let answers: Vec<Answer> = host.answers.extract_if(.., |(_, ask, _)| *ask == 1).map(|(_, _, answer)| answer).collect();
    assert_eq!(answers.len(), host.shards.len());
    let concerned = |answer: &Answer| !matches!(answer, Answer::Posted(None) | Answer::Revised(None) | Answer::Past(None));
    let mut concerned: Vec<Answer> = answers.into_iter().filter(concerned).collect();
    assert!(concerned.len() <= 1);
    concerned.pop()
}

fn posting(by: &Arc<Identity>, name: &str, number: u8, content: &str) -> Question {
    let channel = Channel { key: Channel::ROOM, id: name };
    let message =
        Message { id: id(number), author: Author::of(by), channel, content, unix_ms: host::START_UNIX_MS, hidden_from: Some(by.clone()) };
    let Broadcast { room, frame, keep } = message.broadcast(EndpointId(0));
    Question::Post(Arc::new(Post { room, frame, keep }))
}

fn post(host: &mut Host, by: &Arc<Identity>, name: &str, number: u8) {
    let answer = told(host, &posting(by, name, number, &format!("\"m{number}\"")));
    assert!(matches!(answer, Some(Answer::Posted(Some(Ok(()))))), "{answer:?}");
}

fn revise(host: &mut Host, endpoint: u8, by: &Arc<Identity>, number: u8, change: Change) -> Option<Result<Option<Arc<str>>, NotAuthor>> {
    let revision = Revision { endpoint: EndpointId(endpoint), id: id(number), by: by.clone(), change: Some(change) };
    match told(host, &Question::Revise(Arc::new(revision))) {
        Some(Answer::Revised(outcome)) => outcome.map(|outcome| outcome.map(|standing| standing.text)),
        None => None,
        other => panic!("{other:?}"),
    }
}

fn edit(content: &str) -> Change {
    Change::Edit(content.into())
}

/// What is kept of a room, oldest first.
fn past(host: &mut Host, name: &str, range: Range) -> Vec<Value> {
    match told(host, &Question::Past { room: room(name), range }) {
        Some(Answer::Past(Some(past))) => past.kept.iter().map(|kept| serde_json::from_str(&kept.text).expect("JSON")).collect(),
        other => panic!("{other:?}"),
    }
}

fn contents(host: &mut Host, name: &str, range: Range) -> Vec<String> {
    past(host, name, range).iter().map(|message| message["content"].as_str().expect("text").to_owned()).collect()
}

/// Payloads that a client has heard, with their types.
fn heard(host: &mut Host, client: usize) -> Vec<(String, Value)> {
    let parse = |text: String| {
        let mut frame: Value = serde_json::from_str(&text).expect("JSON");
        (frame["type"].as_str().expect("a type").to_owned(), frame["payload"].take())
    };
    host.texts(client).into_iter().map(parse).collect()
}

#[test]
fn a_message_is_kept_and_told_to_everybody_but_whom_its_author_has_blocked() {
    let mut host = hosts(1);
    let clients: Vec<usize> = (0..6).map(|n| client(&mut host, n % 3, ["ann", "bob", "eve"][n % 3], &["r"])).collect();
    let stranger = client(&mut host, 1, "ann", &["s"]);
    let ann = user("ann", &["eve"]);
    clients.iter().for_each(|client| drop(host.take(*client)));
    post(&mut host, &ann, "r", 1);
    let message = json!({"id": id(1).to_string(), "content": "m1", "roomId": "r", "authorId": "ann", "authorName": "ANN", "isEdited": false,
        "createdAt": "2024-01-01T00:00:00.000Z"});
    let edited = json!({"messageId": id(1).to_string(), "content": "é\n", "roomId": "r"});
    let deleted = json!({"messageId": id(1).to_string(), "roomId": "r"});
    for (kind, payload) in [("CHAT_MESSAGE", &message), ("MESSAGE_EDIT", &edited), ("MESSAGE_DELETE", &deleted)] {
        for (n, client) in clients.iter().enumerate() {
            let expected = if n % 3 == 2 { Vec::new() } else { vec![(kind.to_owned(), payload.clone())] };
            assert_eq!(heard(&mut host, *client), expected, "{kind} to client {n}");
        }
        match kind {
            "CHAT_MESSAGE" => {
                let Some(Answer::Past(Some(kept))) = told(&mut host, &Question::Past { room: room("r"), range: Range::ALL }) else {
                    panic!()
                };
                assert!(kept.kept[0].is_hidden_from("eve") && !kept.kept[0].is_hidden_from("bob"));
                assert_eq!(past(&mut host, "r", Range::ALL), std::slice::from_ref(&message));
                let text = revise(&mut host, 0, &ann, 1, edit(r#""\u00e9\n""#)).expect("found").expect("hers").expect("kept");
                assert!(text.contains(r#""content":"\u00e9\n""#) && text.contains(r#""isEdited":true"#), "{text}");
                let mut now = message.clone();
                (now["content"], now["isEdited"]) = ("é\n".into(), true.into());
                assert_eq!(past(&mut host, "r", Range::ALL), [now]);
            }
            "MESSAGE_EDIT" => assert_eq!(revise(&mut host, 0, &ann, 1, Change::Remove), Some(Ok(None))),
            _ => {}
        }
    }
    assert_eq!(past(&mut host, "r", Range::ALL), Vec::<Value>::new());
    assert_eq!(heard(&mut host, stranger), []);
}

#[test]
fn only_its_author_changes_a_message_and_only_one_that_is_there() {
    let mut host = hosts(2);
    let listener = client(&mut host, 0, "bob", &["r"]);
    let (ann, bob) = (user("ann", &[]), user("bob", &[]));
    post(&mut host, &ann, "r", 1);
    // What a client says itself can be changed as well.
    host.say(listener, r#"{"type":"CHAT_MESSAGE","payload":{"roomId":"r","content":"mine"}}"#);
    host.settle();
    host.take(listener);
    let mine = past(&mut host, "r", Range::ALL)[1]["id"].as_str().expect("text").parse().expect("an id");
    assert_eq!(revise(&mut host, 0, &bob, 1, edit("\"x\"")), Some(Err(NotAuthor)));
    assert_eq!(revise(&mut host, 0, &bob, 1, Change::Remove), Some(Err(NotAuthor)));
    assert_eq!(revise(&mut host, 0, &ann, 2, edit("\"x\"")), None);
    assert_eq!(revise(&mut host, 1, &ann, 1, edit("\"x\"")), None, "another endpoint's");
    assert_eq!((contents(&mut host, "r", Range::ALL), heard(&mut host, listener)), (vec!["m1".to_owned(), "mine".to_owned()], vec![]));
    let revision = Revision { endpoint: EndpointId(0), id: mine, by: bob.clone(), change: Some(edit("\"yours\"")) };
    let outcome = told(&mut host, &Question::Revise(Arc::new(revision)));
    assert!(matches!(&outcome, Some(Answer::Revised(Some(Ok(Standing { text: Some(_), .. }))))), "{outcome:?}");
    assert_eq!(heard(&mut host, listener)[0].0, "MESSAGE_EDIT");
    assert_eq!(revise(&mut host, 0, &ann, 1, Change::Remove), Some(Ok(None)));
    assert_eq!(revise(&mut host, 0, &ann, 1, Change::Remove), None, "it is gone");
    assert_eq!(revise(&mut host, 0, &ann, 1, edit("\"x\"")), None);
    assert_eq!(contents(&mut host, "r", Range::ALL), ["yours"]);
}

#[test]
fn its_author_learns_where_a_message_is() {
    let mut host = hosts(5);
    let listener = client(&mut host, 0, "bob", &["r"]);
    post(&mut host, &user("ann", &[]), "r", 1);
    host.take(listener);
    for (name, number, is_told) in [("ann", 1, true), ("bob", 1, false), ("ann", 2, false)] {
        let revision = Revision { endpoint: EndpointId(0), id: id(number), by: user(name, &[]), change: None };
        match told(&mut host, &Question::Revise(Arc::new(revision))) {
            Some(Answer::Revised(Some(Ok(standing)))) => {
                assert!(is_told && *standing.room == *"room:r" && standing.text.is_some_and(|text| text.contains("m1")));
            }
            Some(Answer::Revised(Some(Err(NotAuthor)))) => assert_eq!((name, number), ("bob", 1)),
            None => assert_eq!(number, 2),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard(&mut host, listener), []);
}

#[test]
fn a_channel_that_nobody_is_in_keeps_messages_and_goes_with_the_last() {
    let mut host = hosts(3);
    let ann = user("ann", &[]);
    let counted = |host: &Host| -> (u64, u64) {
        let sum = |read: fn(&engine::stats::EndpointStats) -> u64| host.stats.iter().map(|stats| read(&stats.endpoints[0])).sum();
        (sum(|it| it.rooms.read()), sum(|it| it.history_messages.read()))
    };
    for number in 1..=5 {
        post(&mut host, &ann, "r", number);
    }
    assert_eq!(counted(&host), (1, 5));
    let newest = |limit| Range::Newest { skip: 0, limit, bytes_max: usize::MAX };
    assert_eq!(contents(&mut host, "r", newest(2)), ["m4", "m5"]);
    assert_eq!(contents(&mut host, "r", Range::Before { id: id(4), limit: 2 }), ["m2", "m3"]);
    assert_eq!(contents(&mut host, "r", Range::Before { id: id(1), limit: 2 }), Vec::<String>::new());
    for number in 1..=5 {
        assert_eq!(revise(&mut host, 0, &ann, number, Change::Remove), Some(Ok(None)));
    }
    assert_eq!(counted(&host), (0, 0));
    assert_eq!(contents(&mut host, "r", Range::ALL), Vec::<String>::new());
    // Rooms that nobody is in make way for others, and a message never for itself.
    let mut config = host::config(1, vec![host::endpoint("talk", DialectKind::Community, "/talk")]);
    config.limits.rooms = 3;
    config.limits.history_bytes = 3_000;
    let mut host = Host::new(config, 4);
    for number in 1..=50 {
        post(&mut host, &ann, &format!("r{}", number % 5), number);
        assert!(contents(&mut host, &format!("r{}", number % 5), Range::ALL).last().is_some_and(|last| *last == format!("m{number}")));
        let (rooms, _) = counted(&host);
        assert!(rooms <= 3);
    }
}

#[test]
fn everybody_hears_clients_and_callers_in_one_order_and_that_is_what_is_kept() {
    for seed in 0..30 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut host = hosts(seed);
        let ann = user("ann", &[]);
        let clients: Vec<usize> = (0..6).map(|n| client(&mut host, n % 3, &format!("user{n}"), &["r"])).collect();
        clients.iter().for_each(|client| drop(host.take(*client)));
        for number in 0..40 {
            match random.random_range(0..4) {
                0 => {
                    let speaker = *clients.choose(&mut random).expect("six");
                    host.say(speaker, &format!(r#"{{"type":"CHAT_MESSAGE","payload":{{"roomId":"r","content":"c{number}"}}}}"#));
                }
                1 if number > 0 => {
                    let change = if random.random_bool(0.5) { Change::Remove } else { edit(&format!("\"e{number}\"")) };
                    let revision =
                        Revision { endpoint: EndpointId(0), id: id(random.random_range(0..number)), by: ann.clone(), change: Some(change) };
                    ask(&mut host, 2, &Question::Revise(Arc::new(revision)));
                }
                _ => ask(&mut host, 2, &posting(&ann, "r", number, &format!("\"p{number}\""))),
            }
            for _ in 0..random.random_range(0..6) {
                let (from, to) = (random.random_range(0..3), random.random_range(0..3));
                host.pump(from);
                host.step(from, to);
            }
        }
        host.settle();
        let all: Vec<Vec<(String, Value)>> = clients.iter().map(|client| heard(&mut host, *client)).collect();
        assert!(all.iter().all(|other| *other == all[0]), "seed {seed}: one order");
        // What everybody has heard comes to what is kept.
        let mut expected: Vec<(String, String)> = Vec::new();
        for (kind, payload) in &all[0] {
            let text = |key: &str| payload[key].as_str().unwrap_or_default().to_owned();
            match kind.as_str() {
                "CHAT_MESSAGE" => expected.push((text("id"), text("content"))),
                "MESSAGE_EDIT" => expected.iter_mut().filter(|(id, _)| *id == text("messageId")).for_each(|it| it.1 = text("content")),
                "MESSAGE_DELETE" => expected.retain(|(id, _)| *id != text("messageId")),
                _ => {}
            }
        }
        let kept: Vec<(String, String)> = past(&mut host, "r", Range::ALL)
            .iter()
            .map(|message| (message["id"].as_str().expect("text").to_owned(), message["content"].as_str().expect("text").to_owned()))
            .collect();
        assert_eq!(kept, expected, "seed {seed}");
        assert!(kept.len() > 5, "seed {seed}: {kept:?}");
    }
}
