//! Emits of the back end on hosts of three shards: their place in a room's order, whom they reach, and what is waited for.

mod host;

use std::collections::HashSet;
use std::sync::Arc;

use engine::config::{AuthMode, DialectKind, Endpoint};
use engine::fault::{CloseReason, DropReason};
use engine::ids::{EndpointId, Sid};
use engine::limits::PENDING_ACKS_MAX;
use engine::shard::parcel::Parcel;
use engine::{Answer, Emit, Emitted, Question, Selection, Target};
use host::Host;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";

fn namespace(bind: &str) -> Endpoint {
    Endpoint { auth: AuthMode::None, ..host::endpoint(bind, DialectKind::Rooms, bind) }
}

fn hosts(seed: u64) -> Host {
    Host::new(host::config(3, vec![namespace("/"), namespace("/b")]), seed)
}

/// A client of the main namespace in these rooms, which has heard nothing yet, and its id.
fn guest(host: &mut Host, shard: usize, rooms: &[&str]) -> (usize, Sid) {
    let client = host.connect(shard, &Host::upgrade_head(WEBSOCKET, ""));
    host.say(client, "40");
    host.settle();
    let texts = host.texts(client);
    let connected = texts.iter().find(|text| text.starts_with("40{")).expect("let in");
    let id = Sid::parse(&connected[10..30]).expect("an id");
    for room in rooms {
        host.say(client, &format!("42[\"room:join\",{{\"roomId\":\"{room}\"}}]"));
        host.settle();
    }
    (client, id)
}

fn to(targets: &[&str]) -> Emit {
    let targets = targets.iter().map(|name| Target::Room((*name).into())).collect();
    let to = Selection { endpoint: EndpointId(0), targets, except: Vec::new() };
    Emit {
        to,
        event: "e".into(),
        args: "1".into(),
        volatile: false,
        ack_ms: None,
        offset: 77.into(),
        unix_ms: 0,
        attachments: Vec::new(),
        is_elsewhere: false,
    }
}

fn ask(host: &mut Host, ask: u64, question: &Question) {
    for shard in 0..host.shards.len() {
        host.shards[shard].handle_parcel(host.now, Parcel::Ask { ask, question: question.clone() });
    }
}

fn emit(host: &mut Host, number: u64, emit: Emit) {
    ask(host, number, &Question::Emit(Arc::new(emit)));
}

/// What has been answered to a question: shards that did, and their sum.
fn answered(host: &mut Host, number: u64) -> (usize, Emitted) {
    host.settle();
    let mut all = (0, Emitted::default());
    for (_, _, answer) in host.answers.extract_if(.., |(_, ask, _)| *ask == number) {
        let Answer::Emitted(here) = answer else { panic!("{answer:?}") };
        all.0 += 1;
        (all.1.recipients, all.1.acks) = (all.1.recipients + here.recipients, all.1.acks + here.acks);
        all.1.answers.extend(here.answers);
    }
    all
}

fn dropped(host: &Host, reason: DropReason) -> u64 {
    host.stats.iter().map(|stats| stats.endpoints[0].dropped[reason.index()].read()).sum()
}

#[test]
fn an_emit_has_its_place_in_the_rooms_order() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut host = hosts(seed);
        let clients: Vec<usize> = (0..6).map(|n| guest(&mut host, n % 3, &["r"]).0).collect();
        host.settle();
        clients.iter().for_each(|client| drop(host.take(*client)));
        for number in 0..60 {
            if random.random_bool(0.5) {
                let event = Emit { event: "message".into(), args: format!("{{\"content\":\"e{number}\"}}"), ..to(&["r"]) };
                emit(&mut host, number, event);
            } else {
                let client = *clients.choose(&mut random).expect("six");
                host.say(client, &format!("42[\"message\",{{\"roomId\":\"r\",\"content\":\"c{number}\"}}]"));
            }
            // Whatever is under way moves in any order between different shards.
            for _ in 0..random.random_range(0..6) {
                let (from, to) = (random.random_range(0..3), random.random_range(0..3));
                host.pump(from);
                host.step(from, to);
            }
        }
        host.settle();
        let content = |text: &String| text.split("\"content\":\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned);
        let heard: Vec<Vec<String>> = clients.iter().map(|client| host.texts(*client).iter().filter_map(content).collect()).collect();
        assert_eq!(heard[0].len(), 60, "seed {seed}: {:?}", heard[0]);
        assert!(heard.iter().all(|other| *other == heard[0]), "seed {seed}: one order");
        let emitted: Vec<u64> = heard[0].iter().filter_map(|content| content.strip_prefix('e')?.parse().ok()).collect();
        assert!(emitted.is_sorted(), "seed {seed}: the back end's own order: {emitted:?}");
        for number in emitted {
            let (shards, sum) = answered(&mut host, number);
            assert_eq!((shards, sum.recipients), (3, 6), "seed {seed}, emit {number}");
        }
    }
}

#[test]
fn everybody_who_is_meant_gets_it_once_and_nobody_else_does() {
    let rooms = ["r", "s", "t"];
    for seed in 0..30 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut host = hosts(seed);
        let mut guests = Vec::new();
        for n in 0..12 {
            let within: Vec<&str> = rooms.into_iter().filter(|_| random.random_bool(0.4)).collect();
            let (client, id) = guest(&mut host, n % 3, &within);
            // Without a token the user is the connection.
            let mut names: HashSet<String> = within.iter().map(|room| (*room).to_owned()).collect();
            names.extend([String::new(), id.to_string(), format!("\u{1}u:{id}")]);
            guests.push((client, names, id.to_string()));
        }
        host.settle();
        for number in 0..40 {
            guests.iter().for_each(|(client, ..)| drop(host.take(*client)));
            let mut all: Vec<String> = guests.iter().flat_map(|(_, names, _)| names.iter().cloned()).collect();
            all.extend(["nowhere".to_owned(), "AAAAAAAAAAAAAAAAAAAA".to_owned(), "____________________".to_owned()]);
            all.sort_unstable();
            let mut one = || {
                let name = all.choose(&mut random).expect("some").as_str();
                match Sid::parse(name) {
                    Some(id) if random.random_bool(0.5) => Target::Connection(id),
                    // Without a token the user, and so who is present, is the connection.
                    None if random.random_bool(0.3) => {
                        Target::Present { room: name.into(), presence: all.choose(&mut random).expect("some").as_str().into() }
                    }
                    _ => Target::Room(name.into()),
                }
            };
            let (targets, except) = ((0..number % 5).map(|_| one()).collect(), (0..number % 3).map(|_| one()).collect());
            let selection = Selection { endpoint: EndpointId(0), targets, except };
            let (targets, except) = (selection.targets.clone(), selection.except.clone());
            emit(&mut host, number, Emit { to: selection, ..to(&[]) });
            let (shards, sum) = answered(&mut host, number);
            let mut recipients = 0;
            for (client, names, id) in &guests {
                let is_in = |list: &[Target]| {
                    list.iter().any(|target| match target {
                        Target::Room(name) => names.contains(&**name),
                        Target::Connection(id) => names.contains(&id.to_string()),
                        Target::Present { room, presence } => names.contains(&**room) && **presence == *id,
                    })
                };
                let meant = is_in(&targets) && !is_in(&except);
                let heard = host.texts(*client);
                assert_eq!(heard, vec!["42[\"e\",1]"; usize::from(meant)], "seed {seed}: {targets:?} except {except:?} to {names:?}");
                recipients += u64::from(meant);
            }
            assert_eq!((shards, sum.recipients), (3, recipients), "seed {seed}: {targets:?} except {except:?}");
        }
    }
}

#[test]
fn volatile_is_for_polls_that_wait() {
    const PATH: &str = "/socket.io/?EIO=4&transport=polling";
    let mut host = hosts(1);
    let request = |host: &mut Host, method: &str, target: &str, body: &str| {
        let client = host.connect(1, &format!("{method} {target} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        host.settle();
        client
    };
    let body = |host: &mut Host, client: usize| {
        host.take(client).into_iter().find_map(|got| if let host::Got::Http(_, body) = got { Some(body) } else { None })
    };
    let greeting = request(&mut host, "GET", PATH, "");
    let session = format!("{PATH}&sid={}", &body(&mut host, greeting).expect("greeted")[9..29]);
    request(&mut host, "POST", &session, "40");
    request(&mut host, "GET", &session, "");
    emit(&mut host, 1, Emit { volatile: true, ..to(&[""]) });
    assert_eq!((answered(&mut host, 1).1.recipients, dropped(&host, DropReason::Volatile)), (0, 1), "nobody polls");
    let poll = request(&mut host, "GET", &session, "");
    assert_eq!(body(&mut host, poll), None);
    emit(&mut host, 2, Emit { volatile: true, ..to(&[""]) });
    assert_eq!(answered(&mut host, 2).1.recipients, 1);
    assert_eq!(body(&mut host, poll).as_deref(), Some("42[\"e\",1]"));
    assert_eq!(dropped(&host, DropReason::Volatile), 1);
}

#[test]
fn events_that_can_be_recovered_end_with_one_offset_everywhere() {
    let mut config = host::config(3, vec![namespace("/")]);
    config.endpoints[0].recovery_ms = 60_000;
    let mut host = Host::new(config, 3);
    let clients: Vec<usize> = (0..3).map(|shard| guest(&mut host, shard, &["r", "s"]).0).collect();
    clients.iter().for_each(|client| drop(host.take(*client)));
    for (number, emitted, heard) in [
        (1, to(&["r"]), "42[\"e\",1,\"AAAAAAAAAE0\"]"),
        (2, to(&["r", "s"]), "42[\"e\",1,\"AAAAAAAAAE0\"]"),
        (3, Emit { args: String::new(), ..to(&[""]) }, "42[\"e\",\"AAAAAAAAAE0\"]"),
        (4, Emit { ack_ms: Some(1), ..to(&["r"]) }, "424[\"e\",1]"),
    ] {
        emit(&mut host, number, emitted);
        host.settle();
        for client in &clients {
            assert_eq!(host.texts(*client), [heard]);
        }
    }
}

#[test]
fn acknowledgements_are_waited_for_until_the_deadline_and_are_bounded() {
    let mut host = hosts(5);
    let guests: Vec<(usize, Sid)> = (0..6).map(|n| guest(&mut host, n % 3, &["r"])).collect();
    emit(&mut host, 1, Emit { ack_ms: Some(2_000), ..to(&["r"]) });
    host.settle();
    for (client, _) in &guests[..4] {
        host.say(*client, "431[\"yes\"]");
    }
    host.say(guests[0].0, "431[\"twice\"]");
    host.advance(1_900);
    let (early, sum) = answered(&mut host, 1);
    assert_eq!((early, sum.acks), (1, 2), "the shard whose two have answered");
    host.advance(200);
    let (late, rest) = answered(&mut host, 1);
    assert_eq!((late, rest.recipients, rest.acks, rest.answers.len()), (2, 4, 2, 2));
    host.say(guests[4].0, "431[\"late\"]");
    host.advance(60_000);
    assert_eq!(answered(&mut host, 1).0, 0, "each shard answers once");
    // Of more than one connection may owe, the first to end is given up.
    let id = guests[5].1.to_string();
    for number in 0..=PENDING_ACKS_MAX as u64 {
        emit(&mut host, 100 + number, Emit { ack_ms: Some(10_000 + number), ..to(&[&id]) });
    }
    let (shards, given_up) = answered(&mut host, 100);
    assert_eq!((shards, given_up.recipients, given_up.acks), (3, 1, 0));
    assert_eq!(answered(&mut host, 101).0, 2, "its owner's shard waits");
    host.say(guests[5].0, "43100[]");
    host.say(guests[5].0, "43101[]");
    assert_eq!(answered(&mut host, 101).1.acks, 1);
}

#[test]
fn the_back_end_ends_a_namespace_or_the_whole_transport() {
    for transport in [false, true] {
        let mut host = hosts(9);
        let (client, id) = guest(&mut host, 2, &[]);
        host.say(client, "40/b,");
        host.settle();
        host.take(client);
        let from = Selection { endpoint: EndpointId(0), targets: vec![Target::Connection(id), Target::all()], except: Vec::new() };
        ask(&mut host, 1, &Question::Disconnect { from, transport });
        host.settle();
        let closed: u64 = host.answers.iter().map(|(_, _, answer)| if let Answer::Closed(count) = answer { *count } else { 0 }).sum();
        assert_eq!(closed, 1);
        assert_eq!(host.texts(client), if transport { vec!["41", "41/b,"] } else { vec!["41"] });
        assert_eq!(host.clients[client].open, !transport);
        let counted: Vec<u64> =
            (0..2).map(|endpoint| host.stats[2].endpoints[endpoint].closed[CloseReason::Admin.index()].read()).collect();
        assert_eq!(counted, [1, u64::from(transport)]);
    }
}
