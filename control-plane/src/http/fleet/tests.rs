//! Calls of the admin API where several hosts answer: each host a control plane over shards made of functions, and between them the words that
//! hosts say to each other.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use axum::http::{Method, StatusCode};
use engine::event::EventTypes;
use engine::ids::{Room, ShardId, Sid};
use engine::{ConnectionInfo, Emitted, GrantFault, NotAuthor, Question, RoomAnswer, RoomCall, RoomFault, RoomInfo, Standing};
use serde_json::{Value, json};

use super::super::public;
use super::super::testing::{Answering, BEARER, Between, Heard, Member, SECRET, call_with, connection, joined};
use super::*;
use crate::bridge::Host as _;
use crate::lifecycle::Wanted;

/// A host that answers so; the number is the shard's.
fn host(answer: impl Fn(usize, &Question) -> Option<Answer> + Send + Sync + 'static) -> Answering {
    Box::new(answer)
}

async fn send(member: &Member, method: Method, path: &str, body: &str) -> Heard {
    call_with(&member.router, method, path, &[BEARER], body).await
}

async fn get(member: &Member, path: &str) -> Heard {
    send(member, Method::GET, path, "").await
}

/// Two shards of a host, the second of which is home of all rooms and users.
fn home(answer: impl Fn(&RoomCall) -> RoomAnswer + Send + Sync + 'static) -> Answering {
    host(move |shard, question| match question {
        Question::Room(call) if shard == 1 => Some(Answer::Room(answer(call))),
        Question::Room(RoomCall::Show { .. }) => Some(Answer::Room(RoomAnswer::Members(vec![Vec::new()]))),
        Question::Room(RoomCall::Members { rooms }) => Some(Answer::Room(RoomAnswer::Members(vec![Vec::new(); rooms.len()]))),
        Question::Room(_) => Some(Answer::Room(RoomAnswer::Elsewhere)),
        _ => Some(Answer::Connections(Vec::new())),
    })
}

fn nowhere(_: &RoomCall) -> RoomAnswer {
    RoomAnswer::Refused(RoomFault::NoRoom)
}

fn info(id: &str, members: u32, created_unix_ms: u64) -> RoomInfo {
    let (name, namespace, metadata) = (id.to_owned(), "default".to_owned(), "{}".to_owned());
    RoomInfo { id: id.into(), name, namespace, created_by: None, metadata, created_unix_ms, active_unix_ms: created_unix_ms + 1, members }
}

fn sid(host: u8, number: u32) -> Sid {
    Sid::new(ShardId(number as u8 % 2), number, [host; 11])
}

#[tokio::test]
async fn pages_of_connections_go_over_all_hosts_and_miss_nobody() {
    let with = |host_number: u8, count: u32| {
        host(move |shard, question| {
            let Question::Connections { after, limit, .. } = question else { return None };
            let infos = (0..count).filter(|number| *number as usize % 2 == shard);
            let infos = infos.map(|number| ConnectionInfo { id: sid(host_number, number), ..connection(0, 1, "alice") });
            let mut infos: Vec<_> = infos.filter(|info| after.as_ref().is_none_or(|after| info.id.to_string() > *after)).collect();
            infos.sort_by_key(|info| info.id.text());
            infos.truncate(*limit);
            Some(Answer::Connections(infos))
        })
    };
    let (members, _) = joined(vec![with(1, 5), with(2, 9), with(3, 0)]);
    for member in &members {
        let (mut seen, mut path, mut pages) = (Vec::new(), "/v1/connections?limit=4".to_owned(), 0);
        loop {
            let heard = get(member, &path).await;
            assert_eq!((heard.status, heard.header("uringcast-missing-hosts")), (StatusCode::OK, ""));
            let page = heard.json();
            let listed = page["connections"].as_array().expect("a list").clone();
            seen.extend(listed.iter().map(|it| it["id"].as_str().expect("text").to_owned()));
            pages += 1;
            let Some(cursor) = page.get("cursor") else { break };
            path = format!("/v1/connections?limit=4&cursor={}", cursor.as_str().expect("text"));
        }
        assert_eq!((seen.len(), pages, seen.iter().collect::<BTreeSet<_>>().len()), (14, 4, 14));
        assert!(seen.is_sorted());
        let user = get(member, "/v1/users/alice").await.json();
        assert_eq!((&user["online"], user["connections"].as_array().map(Vec::len)), (&json!(true), Some(14)));
    }
}

#[tokio::test]
async fn what_is_closed_is_summed_and_one_connection_is_found_on_its_host() {
    let closing = |count: u64| {
        host(move |_, question| match question {
            Question::CloseUser { .. } | Question::CloseConnection { .. } => Some(Answer::Closed(count)),
            Question::CloseInactive { .. } => Some(Answer::Closed(count)),
            Question::Connection { id } if count > 0 => {
                Some(Answer::Connections(vec![ConnectionInfo { id: *id, ..connection(0, 1, "bob") }]))
            }
            _ => Some(Answer::Connections(Vec::new())),
        })
    };
    let (members, _) = joined(vec![closing(0), closing(3)]);
    let id = sid(2, 1);
    for member in &members {
        assert_eq!(send(member, Method::DELETE, "/v1/users/bob", "").await.json(), json!({"closed": 6}));
        assert_eq!(send(member, Method::DELETE, &format!("/v1/connections/{id}"), "").await.json(), json!({"closed": 6}));
        assert_eq!(send(member, Method::POST, "/v1/cleanup", "{}").await.json(), json!({"closed": 6}));
        assert_eq!(get(member, &format!("/v1/connections/{id}")).await.json()["userId"], "bob");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_host_is_told_of_and_makes_no_call_fail() {
    let here = || {
        host(|shard, question| match question {
            Question::Room(RoomCall::Stats { .. }) if shard == 0 => Some(Answer::Room(RoomAnswer::Stats(Box::new(info("r", 2, 1)), 3))),
            Question::Room(_) => Some(Answer::Room(RoomAnswer::Elsewhere)),
            Question::Emit(_) => Some(Answer::Emitted(Emitted { recipients: 1, ..Emitted::default() })),
            Question::CloseUser { .. } => Some(Answer::Closed(1)),
            Question::Grant { .. } => Some(Answer::Granted((shard == 0).then_some(Ok(2)))),
            _ => Some(Answer::Connections(Vec::new())),
        })
    };
    // One of its shards hangs.
    let (members, _) = joined(vec![here(), host(|shard, _| (shard == 0).then_some(Answer::Closed(5)))]);
    members[1].host.responsive.store(false, Relaxed);
    let asked = &members[0];
    let id = sid(7, 1);
    let emit = r#"{"endpoint":"rooms","to":{"all":true},"event":"e"}"#;
    for (method, path, body, expected) in [
        (Method::DELETE, "/v1/users/bob", "", json!({"closed": 7})),
        (Method::POST, "/v1/emit", emit, json!({"recipients": 2})),
        (Method::PUT, "/v1/rooms/r/users/bob", "", json!({"connections": 2})),
        (Method::GET, "/v1/connections", "", json!({"connections": []})),
    ] {
        let before = tokio::time::Instant::now();
        let heard = send(asked, method, path, body).await;
        assert_eq!((heard.status, heard.json()), (StatusCode::OK, expected), "{path}");
        let missing = (heard.header("uringcast-missing-hosts"), heard.header("uringcast-missing-shards"));
        assert_eq!(missing, ("1", ""), "{path}");
        assert!(before.elapsed() <= Duration::from_millis(1_001), "{path}: {:?}", before.elapsed());
    }
    for path in ["/v1/stats", "/v1/endpoints/chat/stats", "/v1/endpoints/chat/metrics", "/v1/rooms/r/stats", "/v1/hosts"] {
        let heard = get(asked, path).await;
        assert_eq!((heard.status, heard.header("uringcast-missing-hosts")), (StatusCode::OK, "1"), "{path}");
    }
    let gone = get(asked, &format!("/v1/connections/{id}")).await;
    assert_eq!(
        (gone.status, &gone.json()["detail"]),
        (StatusCode::NOT_FOUND, &json!("no such connection on the hosts that answered in time"))
    );
    // This host's own shard is another matter.
    assert_eq!(get(&members[1], &format!("/v1/connections/{id}")).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_room_has_members_on_all_hosts_and_is_gone_where_none_has_it() {
    let having = |number: u32, members: u32| {
        home(move |call| match call {
            RoomCall::Show { room } if *room.name == *"r" => {
                RoomAnswer::Room(Box::new(info("r", members, 1_000 * u64::from(number))), vec![sid(number as u8, 1)])
            }
            RoomCall::Stats { room } if *room.name == *"r" => {
                RoomAnswer::Stats(Box::new(info("r", members, 1_000 * u64::from(number))), 10 * number as usize)
            }
            RoomCall::Delete { room } if *room.name == *"r" => RoomAnswer::Done,
            RoomCall::Messages { .. } => RoomAnswer::Messages(vec!["1".into(); number as usize]),
            call => nowhere(call),
        })
    };
    let (members, _) = joined(vec![home(nowhere), having(2, 4), having(1, 3)]);
    for member in &members {
        let room = get(member, "/v1/rooms/r").await.json();
        let ids: Vec<_> = [sid(1, 1), sid(2, 1)].map(|id| id.to_string()).into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        assert_eq!(
            (&room["memberCount"], &room["members"], &room["createdAt"]),
            (&json!(7), &json!(ids), &json!("1970-01-01T00:00:01.000Z"))
        );
        let stats = get(member, "/v1/rooms/r/stats").await.json();
        let expected = json!({"roomId": "r", "memberCount": 7, "messageCount": 20, "createdAt": "1970-01-01T00:00:01.000Z",
            "lastActivity": "1970-01-01T00:00:02.001Z"});
        assert_eq!(stats, expected);
        assert_eq!(get(member, "/v1/rooms/r/messages").await.json(), json!({"messages": [1, 1]}));
        assert_eq!(send(member, Method::DELETE, "/v1/rooms/r", "").await.json(), json!({"deleted": true}));
        for method in [Method::GET, Method::DELETE] {
            assert_eq!(send(member, method, "/v1/rooms/nothing", "").await.status, StatusCode::NOT_FOUND);
        }
        assert_eq!(get(member, "/v1/rooms/r/members").await.json(), json!({"members": []}));
        assert_eq!(get(member, "/v1/rooms/nothing/members").await.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn pages_of_rooms_merge_the_records_of_one_room() {
    let listing = |number: u32, names: &'static [&'static str], made: bool| {
        home(move |call| match call {
            RoomCall::List { after, limit, .. } => {
                let after = after.clone().unwrap_or_default();
                let rooms = names.iter().filter(|name| ***name > *after).take(*limit).map(|name| match made {
                    true => RoomInfo { name: format!("the {name}"), created_by: Some("me".into()), ..info(name, number, 5_000) },
                    false => info(name, number, 1_000),
                });
                RoomAnswer::Rooms { rooms: rooms.collect(), until: None }
            }
            RoomCall::Members { rooms } => {
                RoomAnswer::Members(rooms.iter().map(|room: &Room| vec![sid(number as u8, room.name.len() as u32)]).collect())
            }
            call => nowhere(call),
        })
    };
    let names = ["a", "b", "c", "d", "e"];
    let (members, _) = joined(vec![listing(1, &["a", "b", "c", "e"], false), listing(2, &["b", "c", "d"], true)]);
    for member in &members {
        let (mut seen, mut path) = (Vec::new(), "/v1/rooms?limit=2".to_owned());
        loop {
            let page = get(member, &path).await.json();
            seen.extend(page["rooms"].as_array().expect("a list").clone());
            let Some(cursor) = page.get("cursor").and_then(Value::as_str) else { break };
            path = format!("/v1/rooms?limit=2&cursor={cursor}");
        }
        let ids: Vec<_> = seen.iter().map(|room| room["id"].as_str().expect("text")).collect();
        assert_eq!(ids, names);
        let counts: Vec<_> = seen.iter().map(|room| room["memberCount"].as_u64().expect("a number")).collect();
        assert_eq!(counts, [1, 3, 3, 2, 1]);
        assert_eq!(
            (&seen[1]["name"], &seen[1]["createdBy"], &seen[1]["createdAt"]),
            (&json!("the b"), &json!("me"), &json!("1970-01-01T00:00:01.000Z"))
        );
        assert_eq!(seen[1]["members"].as_array().map(Vec::len), Some(2));
    }
}

#[tokio::test]
async fn a_room_is_made_on_all_hosts_and_nowhere_if_one_has_it() {
    let made: Arc<Mutex<Vec<(usize, String)>>> = Arc::default();
    let making = |number: usize, has: &'static str, fault: Option<RoomFault>| {
        let made = made.clone();
        home(move |call| match call {
            RoomCall::Stats { room } if *room.name == *has => RoomAnswer::Stats(Box::new(info(has, 1, 1)), 0),
            RoomCall::Create(new) => {
                made.lock().expect("one thread").push((number, new.room.name.to_string()));
                match fault {
                    Some(fault) => RoomAnswer::Refused(fault),
                    None => RoomAnswer::Room(Box::new(info(&new.room.name, 0, 1)), Vec::new()),
                }
            }
            call => nowhere(call),
        })
    };
    let (members, _) = joined(vec![making(1, "", None), making(2, "r", Some(RoomFault::Full))]);
    let create =
        async |member: &Member, id: &str| send(member, Method::POST, "/v1/rooms", &format!(r#"{{"id":"{id}","name":"R"}}"#)).await.status;
    assert_eq!(create(&members[0], "r").await, StatusCode::CONFLICT);
    assert!(made.lock().expect("one thread").is_empty(), "not on one of two");
    assert_eq!(create(&members[0], "new").await, StatusCode::CREATED);
    assert_eq!(made.lock().expect("one thread").split_off(0), [(1, "new".to_owned()), (2, "new".to_owned())]);
    assert_eq!(create(&members[1], "new").await, StatusCode::CONFLICT, "the host that is asked decides");
}

#[tokio::test]
async fn a_connection_enters_and_leaves_on_its_own_host() {
    let moving = |answer: RoomAnswer| home(move |_| answer.clone());
    let refused = RoomAnswer::Refused;
    let path = format!("/v1/rooms/r/members/{}", sid(2, 1));
    for (there, status) in [
        (RoomAnswer::Done, 200),
        (refused(RoomFault::NoRoom), 404),
        (refused(RoomFault::Unproven), 409),
        (refused(RoomFault::Bound), 400),
        (refused(RoomFault::NoConnection), 404),
    ] {
        let (members, _) = joined(vec![moving(refused(RoomFault::NoConnection)), moving(there.clone())]);
        for member in &members {
            for method in [Method::PUT, Method::DELETE] {
                assert_eq!(send(member, method, &path, "").await.status.as_u16(), status, "{there:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_user_is_granted_rooms_on_all_hosts() {
    let granting = |outcome: Result<u32, GrantFault>| host(move |shard, _| Some(Answer::Granted((shard == 1).then_some(outcome))));
    let (no_room, of_user) = (Err(GrantFault::NoRoom), Err(GrantFault::OfUser));
    for (first, second, expected) in [
        (Ok(2), Ok(3), Ok(5)),
        (no_room, Ok(3), Ok(3)),
        (Ok(0), no_room, Ok(0)),
        (no_room, no_room, Err(404)),
        (Ok(2), of_user, Err(409)),
        (no_room, of_user, Err(409)),
    ] {
        let (members, _) = joined(vec![granting(first), granting(second)]);
        for member in &members {
            let heard = send(member, Method::PUT, "/v1/rooms/r/users/bob", "").await;
            match expected {
                Ok(connections) => assert_eq!(heard.json(), json!({"connections": connections}), "{first:?} {second:?}"),
                Err(status) => assert_eq!(heard.status.as_u16(), status, "{first:?} {second:?}"),
            }
        }
    }
}

#[tokio::test]
async fn something_is_said_once_and_where_the_room_is() {
    let said: Arc<Mutex<Vec<usize>>> = Arc::default();
    let saying = |number: usize, members: Option<u32>| {
        let said = said.clone();
        home(move |call| match (call, members) {
            (RoomCall::Stats { .. }, Some(members)) => RoomAnswer::Stats(Box::new(info("r", members, 1)), 0),
            (RoomCall::Say(saying), Some(_)) => {
                said.lock().expect("one thread").push(number);
                RoomAnswer::Said(format!(r#"{{"content":"{}"}}"#, saying.message.content).into())
            }
            (call, _) => nowhere(call),
        })
    };
    let (members, _) = joined(vec![saying(1, None), saying(2, Some(1)), saying(3, Some(5))]);
    let body = r#"{"userId":"bot","content":"hi"}"#;
    for (asked, by) in [(0, 3), (1, 2), (2, 3)] {
        let heard = send(&members[asked], Method::POST, "/v1/rooms/r/messages", body).await;
        assert_eq!((heard.status, heard.body.as_str()), (StatusCode::CREATED, r#"{"content":"hi"}"#));
        assert_eq!(said.lock().expect("one thread").split_off(0), [by], "asked of {asked}");
    }
    let (members, _) = joined(vec![saying(1, None), saying(2, None)]);
    assert_eq!(send(&members[0], Method::POST, "/v1/rooms/r/messages", body).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_message_is_changed_once_and_where_it_is_kept() {
    const ID: &str = "018cc251-f400-7000-8000-000000000001";
    let changed: Arc<Mutex<Vec<usize>>> = Arc::default();
    let keeping = |number: usize, keeps: bool| {
        let changed = changed.clone();
        host(move |shard, question| {
            let Question::Revise(revision) = question else { return None };
            if shard == 0 || !keeps {
                return Some(Answer::Revised(None));
            }
            if *revision.by.user != *"ann" {
                return Some(Answer::Revised(Some(Err(NotAuthor))));
            }
            if revision.change.is_some() {
                changed.lock().expect("one thread").push(number);
            }
            Some(Answer::Revised(Some(Ok(Standing { room: "room:r".into(), text: Some(r#"{"now":1}"#.into()) }))))
        })
    };
    let token = |user: &str| format!("Bearer {}", engine::auth::mint(SECRET, &json!({"sub": user, "rooms": ["r"]})).expect("an object"));
    let path = format!("/api/community/messages/{ID}");
    let (members, _) = joined(vec![keeping(1, false), keeping(2, true), keeping(3, true)]);
    for (asked, by) in [(0, 2), (1, 2), (2, 3)] {
        let router = public::router(members[asked].app.clone());
        let edit =
            async |user: &str| call_with(&router, Method::PATCH, &path, &[("authorization", &token(user))], r#"{"content":"c"}"#).await;
        let heard = edit("ann").await;
        assert_eq!((heard.status, heard.body.as_str()), (StatusCode::OK, r#"{"success":true,"data":{"now":1}}"#));
        assert_eq!(changed.lock().expect("one thread").split_off(0), [by], "asked of {asked}");
        assert_eq!(edit("eve").await.status, StatusCode::FORBIDDEN);
        assert!(changed.lock().expect("one thread").is_empty());
    }
    let (members, _) = joined(vec![keeping(1, false), keeping(2, false)]);
    let router = public::router(members[0].app.clone());
    let heard = call_with(&router, Method::DELETE, &path, &[("authorization", &token("ann"))], "").await;
    assert_eq!(heard.status, StatusCode::NOT_FOUND);
}

/// Hosts where an emit reaches so many; how often each was asked.
fn emitting(recipients: &[u64]) -> (Vec<Member>, Arc<Between>, Arc<Mutex<Vec<u64>>>) {
    let asked: Arc<Mutex<Vec<u64>>> = Arc::default();
    let hosts = recipients.iter().map(|count| {
        let (asked, count) = (asked.clone(), *count);
        host(move |shard, question| {
            let Question::Emit(_) = question else { return None };
            if shard == 0 {
                asked.lock().expect("one thread").push(count);
            }
            Some(Answer::Emitted(Emitted { recipients: count, acks: 1, answers: Vec::new() }))
        })
    });
    let (members, between) = joined(hosts.collect());
    (members, between, asked)
}

fn emit(id: &str) -> String {
    format!(r#"{{"endpoint":"rooms","to":{{"all":true}},"event":"e","id":"{id}","ack":{{"timeoutMs":5}}}}"#)
}

#[tokio::test]
async fn an_emit_reaches_all_hosts_once_whoever_is_asked_again() {
    let (members, between, asked) = emitting(&[1, 10, 100]);
    for member in &members {
        let heard = send(member, Method::POST, "/v1/emit", &emit("one")).await;
        assert_eq!((heard.status, heard.json()), (StatusCode::OK, json!({"recipients": 222, "acks": 6})));
    }
    assert_eq!(asked.lock().expect("one thread").split_off(0).iter().sum::<u64>(), 111, "each host once");
    // In a batch, with one that is new.
    let batch = send(&members[2], Method::POST, "/v1/batch", &format!("[{0},{1},{1}]", emit("one"), emit("two"))).await;
    let told = json!({"recipients": 222, "acks": 6});
    assert_eq!(batch.json(), json!({"results": [told, told, told]}));
    assert_eq!(asked.lock().expect("one thread").split_off(0).iter().sum::<u64>(), 111);

    // Claimed, and nobody who lives knows more: to send it could be twice.
    between.claims.lock().expect("one thread").push("lost".into());
    for _ in 0..2 {
        assert_eq!(send(&members[0], Method::POST, "/v1/emit", &emit("lost")).await.status, StatusCode::CONFLICT);
    }
    assert!(asked.lock().expect("one thread").is_empty());
    // Nothing was taken: the id is free again, also for others.
    members[0].host.is_full.store(true, Relaxed);
    assert_eq!(send(&members[0], Method::POST, "/v1/emit", &emit("free")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    while between.claims.lock().expect("one thread").iter().any(|id| **id == *"free") {
        tokio::task::yield_now().await;
    }
    assert_eq!(send(&members[1], Method::POST, "/v1/emit", &emit("free")).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn where_nobody_can_be_asked_for_an_id_this_host_decides() {
    let (members, between, asked) = emitting(&[1, 10]);
    between.is_forgetful.store(true, Relaxed);
    for member in [&members[0], &members[0], &members[1]] {
        assert_eq!(send(member, Method::POST, "/v1/emit", &emit("one")).await.status, StatusCode::OK);
    }
    assert_eq!(asked.lock().expect("one thread").len(), 4, "each of the two does not know of the other");
}

#[tokio::test]
async fn numbers_are_of_all_hosts() {
    let (members, _) = joined(vec![host(|_, _| None), host(|_, _| None)]);
    for (factor, member) in [(1, &members[0]), (10, &members[1])] {
        for stats in member.host.stats() {
            let chat = &stats.endpoints[3];
            chat.accepted.add(7 * factor);
            chat.connections.add(3 * factor);
            chat.rooms.add(factor);
            chat.received.add(100 * factor);
            chat.received_bytes.add(1_000 * factor);
            stats.round_trips.add(factor);
            stats.round_trip_us.add(2_000 * factor);
            let community = &stats.endpoints[0];
            community.connections.add(4 * factor);
            community.users.add(2 * factor);
        }
    }
    for member in &members {
        let expected = json!({"totalConnections": 154, "activeConnections": 154, "totalRooms": 22, "messagesPerMinute": 2_200,
            "bytesPerMinute": 22_000, "avgLatency": 2.0});
        assert_eq!(get(member, "/v1/stats").await.json(), expected);
        let expected = json!({"totalConnections": 154, "activeConnections": 66, "totalRooms": 22});
        assert_eq!(get(member, "/v1/endpoints/chat/stats").await.json(), expected);
        let expected = json!({"totalConnections": 88, "uniqueUsers": 44, "averageConnectionsPerUser": 2.0});
        assert_eq!(get(member, "/v1/endpoints/community/stats").await.json(), expected);
        let metrics = get(member, "/v1/endpoints/chat/metrics").await.json();
        assert_eq!((&metrics["activeConnections"], &metrics["errorRate"]), (&json!(66), &json!(0.0)));
        assert!(metrics["messagesPerSecond"].as_f64().is_some_and(|rate| rate > 0.0));
    }
    // Another host's text may say anything.
    let mut totals = Totals::default();
    let minute = Minute { figures: Figures { messages: u64::MAX, ..Figures::default() }, ms: 0 };
    let endpoint = EndpointNumbers { name: "a".into(), accepted: u64::MAX, connections: 1, authenticated: 0, users: 0, rooms: 0, minute };
    let numbers = Numbers { accepting: true, minute, endpoints: vec![endpoint; 2] };
    totals.add(&numbers, Some("a"));
    assert_eq!((totals.accepted, totals.connections, totals.figures.messages), (u64::MAX, 2, u64::MAX));
}

#[tokio::test(start_paused = true)]
async fn an_operator_sees_the_hosts_and_stops_those_he_means() {
    let (members, _) = joined(vec![host(|_, _| None), host(|_, _| None), host(|_, _| None)]);
    members[1].host.stats()[0].endpoints[0].connections.add(5);
    members[2].host.responsive.store(false, Relaxed);
    let id = |number: u64| HostId::new(number).to_string();
    let version = env!("CARGO_PKG_VERSION");
    let hosts = get(&members[0], "/v1/hosts").await;
    let seen = "2024-01-01T00:00:00.000Z";
    let expected = json!({"hosts": [
        {"id": id(1), "self": true, "shards": 2, "version": version, "connections": 0, "accepting": true},
        {"id": id(2), "self": false, "shards": 2, "version": version, "connections": 5, "accepting": true, "lastSeen": seen},
        {"id": id(3), "self": false, "shards": 2, "version": version, "lastSeen": seen},
    ]});
    assert_eq!((hosts.json(), hosts.header("uringcast-missing-hosts")), (expected, "1"));

    let drain = async |body: Value| send(&members[0], Method::POST, "/v1/drain", &body.to_string()).await;
    assert_eq!(drain(json!({"hosts": [id(2), id(9)]})).await.status, StatusCode::NOT_FOUND);
    assert!(members.iter().all(|member| member.wishes.is_empty()), "nobody stops then");
    let heard = drain(json!({"hosts": [id(2), id(2)], "seconds": 0.5})).await;
    assert_eq!((heard.status, heard.json()), (StatusCode::ACCEPTED, json!({"seconds": 0.5, "hosts": [id(2)]})));
    assert_eq!((members[1].wishes.try_recv(), heard.header("uringcast-missing-hosts")), (Ok(Wanted::Stop(Duration::from_millis(500))), ""));
    members[1].host.accepting.store(false, Relaxed);
    assert_eq!(drain(json!({"hosts": [id(2)]})).await.status, StatusCode::CONFLICT);

    members[2].host.responsive.store(true, Relaxed);
    let own = members[0].host.clone();
    let stopping = members[0].wishes.clone();
    let begun = tokio::spawn(async move {
        while stopping.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        own.accepting.store(false, Relaxed);
    });
    let heard = drain(json!({"hosts": "all"})).await;
    begun.await.expect("no panic");
    assert_eq!((heard.status, heard.json()), (StatusCode::ACCEPTED, json!({"seconds": 10.0, "hosts": [id(3), id(1)]})));
    assert_eq!(members[2].wishes.try_recv(), Ok(Wanted::Stop(Duration::from_secs(10))), "of its own configuration");
    members[2].host.accepting.store(false, Relaxed);
    assert!(members[1].wishes.is_empty());
    assert_eq!(drain(json!({"hosts": "all"})).await.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn what_another_control_plane_asks_is_answered_if_it_is_known() {
    let (members, _) = joined(vec![host(|_, _| None)]);
    let app = &members[0].app;
    for unknown in ["", "null", "{", r#""Levitate""#, r#"{"Outcomes":{"ids":7}}"#] {
        assert_eq!(app.answer_program(unknown), None, "{unknown}");
    }
    let many = serde_json::to_string(&Call::Outcomes { ids: vec!["x".into(); OUTCOMES_MAX + 1] }).expect("JSON");
    assert_eq!(app.answer_program(&many), None);
    let none = app.answer_program(r#"{"Outcomes":{"ids":["x","y"]}}"#);
    assert_eq!(none.as_deref(), Some(r#"{"Outcomes":[null,null]}"#));
    assert!(members[0].host.wanted.lock().is_ok_and(|wanted| *wanted == EventTypes::default()));
}
