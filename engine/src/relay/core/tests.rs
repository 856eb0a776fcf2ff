//! Questions, leases and sets against a Redis that is written here, answer by answer: what goes out in which order, and what comes back to shards.

use std::sync::Arc;

use super::super::handle::channel;
use super::super::request::{Call, Kind, Lost, Push, Reply, Request};
use super::super::words::{Hello, HostId};
use super::{Core, Tag};
use crate::config::{AuthMode, Config, DialectKind, Endpoint, Relay};
use crate::frame::Frame;
use crate::ids::{EndpointId, Room, ShardId};
use crate::limits::CONSULT_MS;
use crate::shard::World;
use crate::shard::address::Addresses;
use crate::shard::consult::{Consult, Findings, Step};
use crate::shard::inquiry::{About, Inquiry};
use crate::shard::outward::{Outward, Published};
use crate::shard::parcel::Parcel;
use crate::stats::RelayStats;
use crate::time::Now;

const HOST: &str = "00000000000000aa";

struct Bench {
    core: Core,
    now: Now,
    /// Sent and not answered.
    asked: Vec<(Tag, Request)>,
}

impl Bench {
    /// Connected, and everything of that answered; nothing but community at endpoint 0 and collab at 1.
    fn new() -> Bench {
        let community = Endpoint { auth: AuthMode::Token, ..Endpoint::new("community", DialectKind::Community, "/c") };
        let mut config = Config::new(([127, 0, 0, 1], 0), 2, vec![community, Endpoint::new("docs", DialectKind::Collab, "/d")]);
        let settings = Relay::new("redis://127.0.0.1");
        config.relay = Some(settings.clone());
        let addresses = Addresses::new(&config.limits, 10);
        let world = Arc::new(World::new(config, addresses, 0));
        let own = Hello::new(HostId::parse(HOST).expect("16 digits"), 2, "1", ["community".to_owned(), "docs".to_owned()]);
        let (_, port) = channel(own.clone());
        let core = Core::new(world, Arc::<RelayStats>::default(), &settings, &own, port, [7; 32]);
        let mut bench = Bench { core, now: Now { ns: 1_000_000_000, unix_ms: 1_704_067_200_000 }, asked: Vec::new() };
        bench.core.handle_connected(bench.now);
        bench.hear(Push::Subscribed { kind: Kind::Channel, name: format!("uringcast#mark#{HOST}#").into_bytes() });
        while bench.core.poll_listening().is_some() {}
        bench.quiet();
        bench
    }

    fn hear(&mut self, push: Push) {
        self.core.handle_push(self.now, push);
    }

    fn mark(&mut self, number: u64) {
        self.message(&format!("uringcast#mark#{HOST}#"), &number.to_string());
    }

    fn message(&mut self, channel: &str, payload: &str) {
        let (channel, payload) = (channel.as_bytes().to_vec(), payload.as_bytes().to_vec());
        self.hear(Push::Message { kind: Kind::Channel, channel, pattern: None, payload });
    }

    fn poll(&mut self) {
        while let Some(asked) = self.core.poll_request(self.now) {
            self.asked.push(asked);
        }
    }

    /// What is to be answered next, as typed.
    fn next(&mut self) -> String {
        self.poll();
        self.asked.first().map_or_else(|| "nothing".to_owned(), |(_, request)| words(request))
    }

    fn answer(&mut self, replies: Vec<Reply>) {
        self.poll();
        let (tag, _) = self.asked.remove(0);
        self.core.handle_reply(self.now, tag, Ok(replies));
    }

    /// Answers everything that is asked as an empty Redis would, whatever it is.
    fn quiet(&mut self) {
        for _ in 0..50 {
            self.poll();
            for (tag, request) in std::mem::take(&mut self.asked) {
                let replies = request.calls.iter().map(of_an_empty_one).collect();
                self.core.handle_reply(self.now, tag, Ok(replies));
            }
        }
        while self.core.poll_parcel().is_some() {}
    }

    fn consult(&mut self, ticket: u64, room: &Room, comes: Option<bool>, online: bool) {
        let announcement = published(room, "{\"type\":\"CAME\"}");
        let step = comes.map(|comes| Box::new(Step { presence: "ann".into(), comes, unix_ms: 5, announcement: Some(announcement) }));
        let consult = Consult { ticket: Some(ticket), step, online, ..Consult::about(room.clone()) };
        self.core.handle_outward(self.now, ShardId(0), Outward::Consult(Box::new(consult)));
    }

    /// Parcels for shards, told shortly.
    fn parcels(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.core.poll_parcel())
            .map(|(_, parcel)| match parcel {
                Parcel::Consulted { ticket, findings } => {
                    let Findings { is_only, online, .. } = *findings;
                    format!("{ticket} {is_only:?} {}", online.map_or("?".to_owned(), |online| online.join(",")))
                }
                Parcel::Arrival(arrival) => {
                    let blocked =
                        arrival.hidden_from.as_ref().map_or_else(String::new, |author| format!(" not {}", author.blocked.join(",")));
                    format!("{}{blocked}", arrival.text.as_deref().unwrap_or_default())
                }
                Parcel::Ruled { number, ruling } => format!("{number} {ruling:?}"),
                other => format!("{other:?}"),
            })
            .collect()
    }
}

fn words(request: &Request) -> String {
    let short = |call: &Call| {
        let script = call.word(0) == b"EVAL";
        let words = call
            .words()
            .enumerate()
            .filter(|(at, _)| !script || ![1, 2].contains(at))
            .map(|(_, word)| String::from_utf8_lossy(word).replace('\n', "|"));
        words.collect::<Vec<_>>().join(" ")
    };
    request.calls.iter().map(short).collect::<Vec<_>>().join("; ")
}

fn of_an_empty_one(call: &Call) -> Reply {
    match call.word(0) {
        b"SET" if call.words().any(|word| word == b"XX") => Reply::Nil,
        b"SET" | b"PING" => Reply::Text("OK".into()),
        b"SSCAN" => Reply::List(vec![Reply::Bytes(b"0".to_vec()), Reply::List(vec![])]),
        b"SMEMBERS" | b"SRANDMEMBER" | b"HKEYS" => Reply::List(vec![]),
        b"GET" => Reply::Nil,
        _ => Reply::Int(1),
    }
}

fn published(room: &Room, text: &str) -> Published {
    Published {
        room: room.clone(),
        addressee: None,
        frame: Frame::text(room.endpoint, text),
        except: None,
        hidden_from: None,
        record: None,
        unix_ms: 0,
    }
}

fn document() -> Room {
    Room::named(EndpointId(1), "d")
}

fn text(text: &str) -> Reply {
    Reply::Bytes(text.as_bytes().to_vec())
}

#[test]
fn a_question_goes_out_behind_what_was_said_before_it_and_its_answer_takes_the_place_of_its_mark() {
    let mut bench = Bench::new();
    bench.core.handle_outward(
        bench.now,
        ShardId(0),
        Outward::Publish(Box::new(published(&document(), "{\"type\":\"a\",\"documentId\":\"d\"}"))),
    );
    bench.consult(1, &document(), Some(true), true);
    bench.core.handle_outward(
        bench.now,
        ShardId(0),
        Outward::Publish(Box::new(published(&document(), "{\"type\":\"b\",\"documentId\":\"d\"}"))),
    );
    bench.poll();
    let sent: Vec<String> = bench.asked.iter().map(|(_, request)| words(request)).collect();
    assert!(sent[0].contains(r#""type":"a""#) && !sent[0].contains(r#""type":"b""#), "{sent:?}");
    assert!(sent[1].starts_with("EVAL uringcast:{docs/d}:present uringcast:{docs/d}:seen uringcast:at:"), "{sent:?}");
    assert!(
        sent[1].contains("ann docs|d|ann docs:updates {\"type\":\"CAME\"") && sent[1].ends_with(&format!("uringcast#mark#{HOST}# 1")),
        "{sent:?}"
    );
    assert!(sent[2].contains(r#""type":"b""#) && bench.asked[1].1.is_atomic, "{sent:?}");
    bench.answer(vec![Reply::Int(1)]);
    let other = |kind: &str| format!(r#"{{"type":"{kind}","documentId":"d"}}"#);
    bench.message("docs:updates", &other("before"));
    bench.mark(1);
    bench.message("docs:updates", &other("after"));
    assert_eq!(bench.parcels(), [other("before")], "what came after the mark waits for the answer");
    bench.answer(vec![Reply::Int(1), Reply::List(vec![text("ann"), text("bob")]), Reply::Int(1)]);
    assert_eq!(bench.parcels(), ["1 Some(true) ann,bob".to_owned(), other("after")]);
}

#[test]
fn who_comes_first_into_a_channel_waits_until_it_is_heard() {
    let (mut bench, room) = (Bench::new(), Room::named(EndpointId(0), "room:r"));
    bench.consult(1, &room, Some(true), false);
    let listening = bench.core.poll_listening().expect("it is to be heard");
    assert_eq!((listening.names, listening.is_on, bench.next()), (vec!["room:r".to_owned()], true, "nothing".to_owned()));
    // He goes, and comes again, before Redis has said anything.
    bench.consult(2, &room, Some(false), false);
    bench.consult(3, &room, Some(true), false);
    assert!(!bench.core.poll_listening().expect("no longer").is_on && bench.core.poll_listening().expect("again").is_on);
    bench.hear(Push::Subscribed { kind: Kind::Channel, name: b"room:r".to_vec() });
    assert_eq!(bench.next(), "nothing", "that was the first time");
    bench.hear(Push::Subscribed { kind: Kind::Channel, name: b"room:r".to_vec() });
    assert!(bench.next().contains("room:r:online"));
    bench.answer(vec![Reply::Int(1), Reply::Int(0), Reply::Int(1), Reply::Int(1)]);
    bench.mark(1);
    assert_eq!(bench.parcels(), ["1 Some(true) ?", "2 Some(false) ?", "3 Some(true) ?"]);
    // A channel that Redis refuses is not waited for.
    let other = Room::named(EndpointId(0), "room:refused");
    bench.consult(4, &other, Some(true), false);
    bench.core.handle_reply(bench.now, Tag::Unheard(vec!["room:refused".into()]), Ok(Vec::new()));
    assert!(bench.next().contains("room:refused:online"));
}

#[test]
fn when_redis_goes_every_question_is_answered_in_its_order_and_everything_is_told_again_later() {
    let mut bench = Bench::new();
    bench.consult(1, &document(), Some(true), false);
    bench.poll();
    bench.consult(2, &document(), Some(false), false);
    bench.core.handle_lost(bench.now);
    bench.consult(3, &document(), Some(true), false);
    assert_eq!(bench.parcels(), ["1 None ?", "2 None ?", "3 None ?"]);
    for (tag, _) in std::mem::take(&mut bench.asked) {
        bench.core.handle_reply(bench.now, tag, Err(Lost::Connection));
    }
    bench.core.handle_connected(bench.now);
    let mut sent = String::new();
    for _ in 0..50 {
        bench.poll();
        for (tag, request) in std::mem::take(&mut bench.asked) {
            sent += &(words(&request) + "\n");
            // Redis believes that somebody else is here as well.
            let gone = |call: &Call| {
                Reply::List(
                    vec![text("0"), Reply::List(vec![text("docs\nd\neve")])].into_iter().filter(|_| call.word(0) == b"SSCAN").collect(),
                )
            };
            let replies =
                request.calls.iter().map(|call| if call.word(0) == b"SSCAN" { gone(call) } else { of_an_empty_one(call) }).collect();
            bench.core.handle_reply(bench.now, tag, Ok(replies));
        }
    }
    assert!(sent.contains("eve docs|d|eve") && sent.contains("ann docs|d|ann"), "{sent}");
    // What was announced meanwhile goes out, but not what may have gone out already.
    assert_eq!(sent.matches("PUBLISH docs:updates").count(), 2, "{sent}");
}

#[test]
fn an_answer_that_does_not_come_holds_nothing_up_for_longer_than_a_second() {
    let mut bench = Bench::new();
    bench.consult(1, &document(), Some(true), false);
    bench.poll();
    bench.mark(1);
    bench.message("docs:updates", r#"{"type":"x","documentId":"d"}"#);
    assert_eq!(bench.parcels(), Vec::<String>::new());
    bench.now.ns += CONSULT_MS * 1_000_000;
    assert!(bench.core.poll_timeout() <= bench.now.ms());
    bench.core.handle_timeouts(bench.now);
    assert_eq!(bench.parcels().len(), 2);
}

#[test]
fn a_program_s_message_waits_for_its_author_s_list_and_everything_after_it_for_that() {
    let mut bench = Bench::new();
    let said = |author: &str| format!(r#"{{"type":"CHAT_MESSAGE","payload":{{"content":"x","authorId":"{author}"}}}}"#);
    let news = r#"{"type":"NEWS","payload":{}}"#;
    bench.message("room:r", &said("ann"));
    bench.message("room:other", news);
    assert_eq!((bench.parcels(), bench.next()), (vec![], "SMEMBERS user:ann:blocked".to_owned()));
    bench.answer(vec![Reply::List(vec![text("eve"), text("dan")])]);
    assert_eq!(bench.parcels(), [said("ann") + " not dan,eve", news.to_owned()]);
    bench.message("room:r", &said("ann"));
    assert_eq!(bench.parcels(), [said("ann") + " not dan,eve"], "it is known for a moment");
    // A host of our kind says it itself.
    bench.message("room:r", r#"{"type":"CHAT_MESSAGE","payload":{"authorId":"bob"},"o":"00000000000000bb","b":["zoe"]}"#);
    assert_eq!(bench.parcels(), [r#"{"type":"CHAT_MESSAGE","payload":{"authorId":"bob"}} not zoe"#]);
    bench.message("room:r", &said("carl"));
    bench.poll();
    bench.now.ns += CONSULT_MS * 1_000_000;
    bench.core.handle_timeouts(bench.now);
    assert_eq!(bench.parcels(), [said("carl")], "nobody knows");
}

#[test]
fn members_are_let_in_by_their_sets_and_nobody_while_nobody_knows() {
    let mut bench = Bench::new();
    let sid = crate::ids::Sid::new(ShardId(0), 1, [0; 11]);
    let inquire = |bench: &mut Bench, number: u64| {
        let about = About::Join { user: "ann".into(), conn: sid, rooms: vec!["d".into()] };
        let inquiry = Box::new(Inquiry { endpoint: EndpointId(1), about });
        bench.core.handle_outward(bench.now, ShardId(1), Outward::Inquiry { number, inquiry });
    };
    inquire(&mut bench, 1);
    assert_eq!(bench.next(), "SISMEMBER d:members ann");
    bench.answer(vec![Reply::Int(1)]);
    inquire(&mut bench, 2);
    bench.answer(vec![Reply::Int(0)]);
    inquire(&mut bench, 3);
    bench.poll();
    bench.now.ns += CONSULT_MS * 1_000_000;
    bench.core.handle_timeouts(bench.now);
    bench.core.handle_lost(bench.now);
    inquire(&mut bench, 4);
    let told = bench.parcels();
    assert!(told[0].starts_with("1 Allowed") && told[1..] == ["2 Refused(None)", "3 Unavailable", "4 Unavailable"], "{told:?}");
}

#[test]
fn what_a_dead_host_had_is_taken_from_it_by_one_and_told_in_its_name() {
    let mut bench = Bench::new();
    let dead = "00000000000000dd";
    let mut left = vec![text("docs\nd\nann"), text("unknown\nd\nann"), text("community\nroom:r\nbob")];
    let mut sent = String::new();
    for _ in 0..400 {
        bench.now.ns += 1_000_000_000;
        bench.core.handle_timeouts(bench.now);
        bench.poll();
        for (tag, request) in std::mem::take(&mut bench.asked) {
            sent += &(words(&request) + "\n");
            let mut of_redis = |call: &Call| match (call.word(0), call.word(1)) {
                (b"SET", _) if call.words().any(|word| word == b"XX") => Reply::Text("OK".into()),
                (b"SMEMBERS", b"uringcast:hosts") => Reply::List(vec![text(HOST), text(dead)]),
                (b"EXISTS", _) => Reply::Int(0),
                (b"SRANDMEMBER", _) => Reply::List(std::mem::take(&mut left)),
                _ => of_an_empty_one(call),
            };
            let replies = request.calls.iter().map(&mut of_redis).collect();
            bench.core.handle_reply(bench.now, tag, Ok(replies));
        }
        if sent.contains("uringcast:at:00000000000000dd uringcast:hosts") {
            break;
        }
    }
    for part in [
        "SET uringcast:reap:00000000000000dd 00000000000000aa NX PX",
        "SREM uringcast:at:00000000000000dd unknown|d|ann",
        r#"00000000000000dd ann docs|d|ann docs:updates {"type":"awareness","documentId":"d","clientID":"ann","awareness":null,"o":"00000000000000dd"}"#,
        r#"00000000000000dd bob community|room:r|bob room:r {"type":"USER_LEFT","payload":{"userId":"bob","roomId":"r"},"o":"00000000000000dd"}"#,
        "EVAL uringcast:at:00000000000000dd uringcast:hosts 00000000000000dd",
    ] {
        assert!(sent.contains(part), "{part} is not in\n{sent}");
    }
}

#[test]
fn who_ends_in_good_order_takes_everything_back_before_he_is_forgotten() {
    let mut bench = Bench::new();
    bench.consult(1, &document(), Some(true), false);
    bench.answer(vec![Reply::Int(1), Reply::Int(1)]);
    bench.mark(1);
    bench.core.take_leave(bench.now);
    assert!(!bench.core.has_left());
    let mut sent = Vec::new();
    while !bench.core.has_left() {
        sent.push(bench.next());
        bench.answer(vec![Reply::Int(1)]);
    }
    let last = "DEL uringcast:at:00000000000000aa; SREM uringcast:hosts 00000000000000aa";
    assert_eq!((&*sent[0], &*sent[2]), ("DEL uringcast:host:00000000000000aa", last));
    assert!(sent[1].contains("ann docs|d|ann docs:updates") && sent.len() == 3, "{sent:?}");
}
