//! The link to Redis against real servers: what it says, what it hears, and what happens when a server dies, freezes or floods.

mod redis_bed;

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use engine::limits::{REDIS_PUSHES_BYTES_MAX, REDIS_REQUESTS_BYTES_MAX};
use engine::relay::link::{Address, AddressFault, Backoff, Certificates, Link, LinkFault, Pushes, Servers};
use engine::relay::request::{Call, Ended, Kind, Lost, Push, Reply, Request, Unheard};
use redis_bed::{Cluster, PATIENCE, Redis, Sentinels, Setup};

/// Runs a test as the relay's thread runs.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("in time") })
}

fn single(url: &str) -> Address {
    Address::new(&Servers::Single(url.to_owned()), &Certificates::default()).expect("an address")
}

async fn connect(address: &Address) -> (Link, Pushes) {
    Link::connect(address).await.expect("a link")
}

async fn ask(link: &Link, words: &[&str]) -> Reply {
    link.send(&Request::one(call(words))).await.expect("an answer").remove(0)
}

fn call(words: &[&str]) -> Call {
    words[1..].iter().fold(Call::new(words[0]), |call, word| call.arg(word))
}

fn names(names: &[&str]) -> Vec<Vec<u8>> {
    names.iter().map(|name| name.as_bytes().to_vec()).collect()
}

fn text(text: &str) -> Reply {
    Reply::Text(text.to_owned())
}

fn message(kind: Kind, channel: &str, pattern: Option<&str>, payload: &str) -> Push {
    let [channel, payload] = [channel, payload].map(|text| text.as_bytes().to_vec());
    Push::Message { kind, channel, pattern: pattern.map(|text| text.as_bytes().to_vec()), payload }
}

fn subscribed(kind: Kind, name: &str) -> Push {
    Push::Subscribed { kind, name: name.as_bytes().to_vec() }
}

async fn gone(pushes: &mut Pushes) -> Ended {
    loop {
        if let Push::Gone(ended) = pushes.next().await.expect("it is told before the end") {
            assert_eq!(pushes.next().await, None, "nothing comes after it");
            return ended;
        }
    }
}

#[test]
fn commands_are_answered_in_their_order() {
    let redis = Redis::start();
    run(async {
        let (link, _pushes) = connect(&single(&redis.url())).await;
        assert_eq!(ask(&link, &["SET", "a", "1"]).await, text("OK"));
        assert_eq!(ask(&link, &["GET", "a"]).await, Reply::Bytes(b"1".to_vec()));
        assert_eq!(ask(&link, &["GET", "b"]).await, Reply::Nil);
        assert!(ask(&link, &["LPUSH", "a", "x"]).await.is_error("WRONGTYPE"));
        // Sent before any is awaited, and awaited backwards.
        let sent: Vec<_> = (0..10_000).map(|_| link.send(&Call::new("INCR").arg("n").into())).collect();
        assert_eq!(link.load().0, 10_000);
        for (at, reply) in sent.into_iter().enumerate().rev() {
            assert_eq!(reply.await, Ok(vec![Reply::Int(at as i64 + 1)]));
        }
        assert_eq!(link.load(), (0, 0));
        // One that nobody waits for is done all the same.
        drop(link.send(&Call::new("SET").arg("dropped").arg("1").into()));
        assert_eq!(ask(&link, &["GET", "dropped"]).await.int(), Some(1));
        assert_eq!(link.send(&Request::several(Vec::new())).await, Ok(Vec::new()));
        let binary = vec![0, 255, b'\r', b'\n'];
        link.send(&Call::new("SET").arg("binary").arg(&binary).into()).await.expect("an answer");
        assert_eq!(ask(&link, &["GET", "binary"]).await, Reply::Bytes(binary));
        ask(&link, &["HSET", "h", "f", "v"]).await;
        let pair = vec![Reply::Bytes(b"f".to_vec()), Reply::Bytes(b"v".to_vec())];
        assert_eq!(ask(&link, &["HGETALL", "h"]).await, Reply::List(pair), "in the shape of RESP2");
    });
}

#[test]
fn a_transaction_answers_for_each_call() {
    let redis = Redis::start();
    run(async {
        let (link, _pushes) = connect(&single(&redis.url())).await;
        let calls = vec![call(&["SET", "k", "1"]), call(&["LPUSH", "k", "x"]), call(&["INCR", "k"])];
        let replies = link.send(&Request::atomic(calls)).await.expect("answers");
        assert_eq!((&replies[0], replies[1].is_error("WRONGTYPE"), &replies[2]), (&text("OK"), true, &Reply::Int(2)));
        let refused = link.send(&Request::atomic(vec![call(&["INCR", "k"]), call(&["NONSENSE"])])).await.expect("answers");
        assert!(refused[0].is_error("EXECABORT") && refused[1].is_error("ERR"), "{refused:?}");
        assert_eq!(ask(&link, &["GET", "k"]).await.int(), Some(2), "nothing of it was done");
    });
}

#[test]
fn pushes_come_in_the_order_of_redis() {
    let redis = Redis::start();
    run(async {
        let (link, mut pushes) = connect(&single(&redis.url())).await;
        link.subscribe(Kind::Channel, &names(&["a", "b"])).await.expect("subscribed");
        link.subscribe(Kind::Pattern, &names(&["a*"])).await.expect("subscribed");
        link.subscribe(Kind::Sharded, &names(&["s"])).await.expect("subscribed");
        let one = call(&["PUBLISH", "a", "1"]);
        let calls = vec![one, call(&["PUBLISH", "b", "2"]), call(&["SPUBLISH", "s", "3"]), call(&["PUBLISH", "c", "4"])];
        let heard = link.send(&Request::several(calls)).await.expect("answers");
        assert_eq!(heard, [2, 1, 1, 0].map(Reply::Int));
        link.unsubscribe(Kind::Channel, &names(&["a"])).await.expect("unsubscribed");
        let expected = [
            subscribed(Kind::Channel, "a"),
            subscribed(Kind::Channel, "b"),
            subscribed(Kind::Pattern, "a*"),
            subscribed(Kind::Sharded, "s"),
            message(Kind::Channel, "a", None, "1"),
            message(Kind::Pattern, "a", Some("a*"), "1"),
            message(Kind::Channel, "b", None, "2"),
            message(Kind::Sharded, "s", None, "3"),
            Push::Unsubscribed { kind: Kind::Channel, name: b"a".to_vec() },
        ];
        for push in expected {
            assert_eq!(pushes.next().await, Some(push));
        }
        // Subscriptions and messages cross each other; their places among the pushes say what was heard.
        for round in 0..200 {
            let name = format!("r{round}");
            let published = link.send(&call(&["PUBLISH", &name, "before"]).into());
            let subscribing = link.subscribe(Kind::Channel, &names(&[&name]));
            published.await.expect("an answer");
            subscribing.await.expect("subscribed");
            link.send(&call(&["PUBLISH", &name, "after"]).into()).await.expect("an answer");
        }
        let mut told = Vec::new();
        while told.last() != Some(&message(Kind::Channel, "r199", None, "after")) {
            told.push(pushes.next().await.expect("a push"));
        }
        for round in 0..200 {
            let name = format!("r{round}");
            let place = |push: &Push| told.iter().position(|other| other == push);
            let (start, after) = (place(&subscribed(Kind::Channel, &name)), place(&message(Kind::Channel, &name, None, "after")));
            assert!(start.is_some() && start < after);
            if let Some(before) = place(&message(Kind::Channel, &name, None, "before")) {
                assert!(start < Some(before));
            }
        }
    });
}

/// Goes on until somebody is there who takes us.
async fn connect_again(address: &Address) -> (Link, Pushes) {
    let mut backoff = Backoff::default();
    loop {
        match Link::connect(address).await {
            Ok(connected) => return connected,
            Err(_) => tokio::time::sleep(Duration::from_millis(backoff.next_ms(7))).await,
        }
    }
}

#[test]
fn a_password_is_needed_and_never_shown() {
    let redis = Setup::default().password("hidden").start();
    run(async {
        let address = single(&redis.url());
        let (link, _pushes) = connect(&address).await;
        assert_eq!(ask(&link, &["PING"]).await, text("PONG"));
        let without = Link::connect(&single(&redis.url_as(""))).await.expect_err("it wants one");
        let wrong = Link::connect(&single(&redis.url_as(":hidden-not@"))).await.expect_err("it is another");
        let repeating = Setup::default().password("hidden").line("rename-command HELLO \"\"").start();
        let told = Link::connect(&single(&repeating.url())).await.expect_err("it does not know HELLO");
        for fault in [&without, &wrong, &told] {
            assert!(matches!(fault, LinkFault::Refused(_)), "{fault:?}");
        }
        let servers = Servers::Single(redis.url());
        let unreadable = Address::new(&Servers::Single("redis://:hidden@[x".to_owned()), &Certificates::default()).expect_err("no URL");
        let shown =
            format!("{address:?} {servers:?} {link:?} {without:?} {without} {wrong:?} {wrong} {told:?} {told} {unreadable:?} {unreadable}");
        assert!(!shown.contains("hidden"), "{shown}");
    });
}

#[test]
fn a_user_may_what_his_rules_say() {
    let rules = "on >hidden resetchannels &ours:* ~ours:* +@all -@dangerous -flushall";
    let redis = Setup::default().user("relay", rules).user("default", "off").start();
    run(async {
        let (link, mut pushes) = connect(&single(&redis.url_as("relay:hidden@"))).await;
        assert_eq!(ask(&link, &["SET", "ours:k", "1"]).await, text("OK"));
        assert!(ask(&link, &["SET", "theirs", "1"]).await.is_error("NOPERM"));
        assert!(ask(&link, &["PUBLISH", "theirs", "1"]).await.is_error("NOPERM"));
        // Of several names those are heard that are allowed.
        let refused = link.subscribe(Kind::Channel, &names(&["ours:a", "theirs", "ours:b"])).await;
        assert!(matches!(&refused, Err(Unheard::Refused(said)) if said.starts_with("NOPERM")), "{refused:?}");
        link.send(&call(&["PUBLISH", "ours:b", "1"]).into()).await.expect("an answer");
        let told = [pushes.next().await, pushes.next().await, pushes.next().await].map(Option::unwrap);
        let heard = [subscribed(Kind::Channel, "ours:a"), subscribed(Kind::Channel, "ours:b"), message(Kind::Channel, "ours:b", None, "1")];
        assert_eq!(told, heard);
        let stranger = Link::connect(&single(&redis.url_as("other:hidden@"))).await;
        assert!(matches!(stranger, Err(LinkFault::Refused(_))), "{stranger:?}", stranger = stranger.err());
    });
}

#[test]
fn tls_trusts_whom_it_is_told_to() {
    let redis = Setup::default().tls().start();
    let ours = Certificates { authority_pem: Some(redis.authority()), client_pem: Some(redis.client()), ..Certificates::default() };
    let address = |certificates: &Certificates| Address::new(&Servers::Single(redis.url()), certificates);
    run(async {
        let (link, mut pushes) = connect(&address(&ours).expect("an address")).await;
        let large = vec![b'x'; 3_000_000];
        link.subscribe(Kind::Channel, &names(&["a"])).await.expect("subscribed");
        link.send(&Call::new("PUBLISH").arg("a").arg(&large).into()).await.expect("an answer");
        assert_eq!(pushes.next().await, Some(subscribed(Kind::Channel, "a")));
        assert!(matches!(pushes.next().await, Some(Push::Message { payload, .. }) if payload == large));

        let of_another = Setup::default().tls().start();
        let wrong = Certificates { authority_pem: Some(of_another.authority()), ..ours.clone() };
        let fault = Link::connect(&address(&wrong).expect("an address")).await.err();
        assert!(matches!(fault, Some(LinkFault::Unreachable(_))), "{fault:?}");
        let nameless = Certificates { client_pem: None, ..ours.clone() };
        let fault = Link::connect(&address(&nameless).expect("an address")).await.err();
        assert!(fault.is_some(), "it asks for a certificate");
        // The system's authorities count only where none is given.
        let system = Certificates { system_der: Vec::new(), ..Certificates::default() };
        assert_eq!(address(&system).err(), Some(AddressFault::NoAuthority));
        let broken = Certificates { authority_pem: Some(b"-----BEGIN CERTIFICATE-----\nnonsense".to_vec()), ..ours.clone() };
        assert_eq!(address(&broken).err(), Some(AddressFault::Certificate));
        let insecure = Servers::Single(format!("{}/#insecure", redis.url()));
        assert_eq!(Address::new(&insecure, &ours).err(), Some(AddressFault::Insecure));
    });
}

#[test]
fn a_unix_socket_and_a_database() {
    let redis = Redis::start();
    run(async {
        // Redis listens on its port first, which is what starting waits for.
        let (there, _pushes) = connect_again(&single(&format!("unix://{}?db=3", redis.socket().display()))).await;
        assert_eq!(ask(&there, &["SET", "k", "three"]).await, text("OK"));
        let (link, _pushes) = connect(&single(&format!("{}/3", redis.url()))).await;
        assert_eq!(ask(&link, &["GET", "k"]).await.text(), Some("three"));
        let (link, _pushes) = connect(&single(&redis.url())).await;
        assert_eq!(ask(&link, &["GET", "k"]).await, Reply::Nil);
        let too_high = Link::connect(&single(&format!("{}/99", redis.url()))).await.err();
        assert!(matches!(too_high, Some(LinkFault::Refused(_))), "{too_high:?}");
    });
}

#[test]
fn what_is_under_way_is_lost_with_the_connection() {
    let mut redis = Setup::default().append_only().start();
    run(async {
        let address = single(&redis.url());
        let (link, mut pushes) = connect(&address).await;
        assert_eq!(ask(&link, &["SET", "k", "1"]).await, text("OK"));
        // Frozen, so that nothing of it is answered; more than the sockets hold.
        redis.freeze();
        let value = vec![b'x'; 1_000];
        let sent: Vec<_> = (0..20_000).map(|_| link.send(&Call::new("SET").arg("large").arg(&value).into())).collect();
        let subscribing = link.subscribe(Kind::Channel, &names(&["a"]));
        tokio::time::sleep(Duration::from_millis(100)).await;
        redis.kill();
        for answer in sent {
            assert_eq!(answer.await, Err(Lost::Connection));
        }
        assert_eq!(subscribing.await, Err(Unheard::Lost));
        assert_eq!(gone(&mut pushes).await, Ended::Closed);
        assert_eq!(link.load(), (0, 0));
        assert_eq!(link.send(&call(&["PING"]).into()).await, Err(Lost::Connection), "the link does not come back by itself");
        assert!(matches!(Link::connect(&address).await.err(), Some(LinkFault::Unreachable(_))));

        redis.restart();
        let (link, _pushes) = connect_again(&address).await;
        let mut answer = ask(&link, &["GET", "k"]).await;
        // It takes connections before it has read what it wrote down, and says LOADING meanwhile.
        while matches!(answer, Reply::Error(_)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            answer = ask(&link, &["GET", "k"]).await;
        }
        assert_eq!(answer.int(), Some(1));
    });
}

#[test]
fn either_connection_ends_the_link() {
    let redis = Redis::start();
    run(async {
        for of in ["normal", "pubsub"] {
            let (link, mut pushes) = connect(&single(&redis.url())).await;
            link.subscribe(Kind::Channel, &names(&["a"])).await.expect("subscribed");
            redis.drop_clients(of);
            assert_eq!(gone(&mut pushes).await, Ended::Closed, "{of}");
        }
        let (link, mut pushes) = connect(&single(&redis.url())).await;
        drop(link);
        assert_eq!(pushes.next().await, None, "who lets the link go hears nothing more");
        tokio::task::spawn_blocking(move || redis_bed::until("its connections are closed", || redis.clients().is_empty()))
            .await
            .expect("it is so");
    });
}

#[test]
fn a_frozen_redis_is_silent_and_loses_nothing() {
    let redis = Redis::start();
    run(async {
        let (link, mut pushes) = connect(&single(&redis.url())).await;
        redis.freeze();
        let sent = link.send(&call(&["INCR", "n"]).into());
        assert_eq!(pushes.next().await, Some(Push::Silent));
        redis.thaw();
        assert_eq!(pushes.next().await, Some(Push::Answering));
        assert_eq!(sent.await, Ok(vec![Reply::Int(1)]));
        // A script that takes longer than the library would wait for.
        let script = "local t = redis.call('TIME')[1] * 1 repeat until redis.call('TIME')[1] - t > 1 return 'done'";
        assert_eq!(ask(&link, &["EVAL", script, "0"]).await.text(), Some("done"));
    });
}

#[test]
fn a_redis_that_stays_frozen_is_given_up() {
    let redis = Redis::start();
    run(async {
        let (link, mut pushes) = connect(&single(&redis.url())).await;
        redis.freeze();
        let sent = link.send(&call(&["INCR", "n"]).into());
        assert_eq!(gone(&mut pushes).await, Ended::Silent);
        assert_eq!(sent.await, Err(Lost::Connection));
        assert_eq!(Link::connect(&single(&redis.url())).await.err(), Some(LinkFault::Slow));
    });
}

#[test]
fn a_flood_ends_the_link_and_is_bounded() {
    let redis = Redis::start();
    run(async {
        let (link, mut pushes) = connect(&single(&redis.url())).await;
        let (publisher, _pushes) = connect(&single(&redis.url())).await;
        link.subscribe(Kind::Channel, &names(&["a"])).await.expect("subscribed");
        let payload = vec![b'x'; 100_000];
        for _ in 0..2 * REDIS_PUSHES_BYTES_MAX / payload.len() {
            // One after the other, so that Redis itself has no reason to close.
            publisher.send(&Call::new("PUBLISH").arg("a").arg(&payload).into()).await.expect("an answer");
        }
        let (bytes, dropped) = pushes.backlog();
        assert!(bytes <= REDIS_PUSHES_BYTES_MAX && bytes > REDIS_PUSHES_BYTES_MAX - 2 * payload.len(), "{bytes}");
        assert!(dropped >= 1);
        let mut heard = 0;
        loop {
            match pushes.next().await.expect("it is told before the end") {
                Push::Message { .. } => heard += 1,
                Push::Gone(ended) => break assert_eq!(ended, Ended::Flooded),
                _ => {}
            }
        }
        eprintln!("{heard} messages of 100 kB heard and {dropped} counted as dropped, {bytes} bytes waited at most");
        assert!(heard > 300, "what was in time is heard: {heard}");
        assert_eq!(pushes.backlog().0, 0);
    });
}

#[test]
fn a_flood_that_is_taken_is_no_flood() {
    let redis = Redis::start();
    run(async {
        let (link, mut pushes) = connect(&single(&redis.url())).await;
        link.subscribe(Kind::Channel, &names(&["a"])).await.expect("subscribed");
        let calls = vec![Call::new("PUBLISH").arg("a").arg(vec![b'x'; 1_000]); 1_000];
        let mut heard = 0;
        for _ in 0..60 {
            link.send(&Request::several(calls.clone())).await.expect("answers");
            while let Some(push) = pushes.try_next() {
                heard += usize::from(matches!(push, Push::Message { .. }));
            }
        }
        while heard < 60_000 {
            assert!(matches!(pushes.next().await, Some(Push::Message { .. })));
            heard += 1;
        }
    });
}

#[test]
fn too_much_that_waits_is_not_sent() {
    let redis = Redis::start();
    run(async {
        let (link, _pushes) = connect(&single(&redis.url())).await;
        redis.freeze();
        let value = vec![b'x'; REDIS_REQUESTS_BYTES_MAX / 4];
        let call = Call::new("SET").arg("k").arg(&value);
        let sent: Vec<_> = (0..3).map(|_| link.send(&call.clone().into())).collect();
        assert_eq!(link.send(&call.clone().into()).await, Err(Lost::Full));
        redis.thaw();
        for answer in sent {
            assert_eq!(answer.await, Ok(vec![text("OK")]));
        }
        assert_eq!(link.load(), (0, 0));
        assert_eq!(link.send(&call.into()).await, Ok(vec![text("OK")]));
    });
}

#[test]
fn an_answer_that_is_too_large_ends_the_link() {
    let redis = Redis::start();
    run(async {
        let (link, mut pushes) = connect(&single(&redis.url())).await;
        redis.cli(&["SETRANGE", "large", "50000000", "x"]);
        assert_eq!(ask(&link, &["GET", "large"]).await.bytes().map(<[u8]>::len), Some(50_000_001));
        redis.cli(&["SETRANGE", "large", "100000000", "x"]);
        // Not compared as a whole: a failure would print it.
        assert_eq!(link.send(&call(&["GET", "large"]).into()).await.err(), Some(Lost::Connection));
        assert_eq!(gone(&mut pushes).await, Ended::Misspoken);
    });
}

/// What no Redis says, said by a server of our own.
#[test]
fn hostile_answers_end_the_link() {
    let deep = "*1\r\n".repeat(100_000);
    for answer in ["*9223372036854775807\r\n", "$9223372036854775807\r\n", "$-5\r\n", "%-1\r\n", &deep, "HTTP/1.1 400 Bad Request\r\n\r\n"]
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let url = format!("redis://{}", listener.local_addr().expect("it is bound"));
        let answer = answer.to_owned();
        let server = std::thread::spawn(move || {
            let said: Vec<_> = (0..2)
                .map(|_| {
                    let (mut stream, _) = listener.accept().expect("a connection");
                    let answer = answer.clone();
                    std::thread::spawn(move || {
                        let mut asked = [0; 4096];
                        let mut greeted = false;
                        while let Ok(1..) = stream.read(&mut asked) {
                            let is_hello = asked.windows(5).any(|word| word == b"HELLO") && !greeted;
                            greeted = true;
                            let _ = stream.write_all(if is_hello { b"+OK\r\n" } else { answer.as_bytes() });
                        }
                    })
                })
                .collect();
            said.into_iter().for_each(|said| said.join().expect("it does not panic"));
        });
        run(async {
            let (link, mut pushes) = connect(&single(&url)).await;
            assert_eq!(link.send(&call(&["GET", "k"]).into()).await, Err(Lost::Connection));
            assert_eq!(gone(&mut pushes).await, Ended::Misspoken);
        });
        server.join().expect("it does not panic");
    }
}

#[test]
fn sentinels_say_who_is_the_master_now() {
    let bed = Sentinels::start(3);
    let servers = Servers::Sentinel { sentinels: bed.urls(), master: Sentinels::MASTER.to_owned(), node: "redis://any".to_owned() };
    let address = Address::new(&servers, &Certificates::default()).expect("an address");
    run(async {
        let nobody = Servers::Sentinel { sentinels: bed.urls(), master: "stranger".to_owned(), node: "redis://any".to_owned() };
        let nobody = Address::new(&nobody, &Certificates::default()).expect("an address");
        assert_eq!(Link::connect(&nobody).await.err(), Some(LinkFault::NoMaster));

        let (link, mut pushes) = connect(&address).await;
        assert_eq!(ask(&link, &["SET", "k", "1"]).await, text("OK"));
        assert_eq!(ask(&link, &["WAIT", "1", "5000"]).await, Reply::Int(1));
        // It does not know that it is not the master any more, and its connections stay.
        bed.nodes[0].freeze();
        assert_eq!(pushes.next().await, Some(Push::Silent));
        assert_eq!(gone(&mut pushes).await, Ended::Moved);
        let (link, _pushes) = connect_again(&address).await;
        assert_eq!(ask(&link, &["INCR", "k"]).await, Reply::Int(2));
        assert_eq!(ask(&link, &["CONFIG", "GET", "port"]).await.list()[1].int(), Some(i64::from(bed.nodes[1].port())));
    });
}

#[test]
fn delays_double_up_to_a_bound() {
    let mut backoff = Backoff::default();
    let longest: Vec<_> = (0..8).map(|_| backoff.next_ms(u64::MAX / 2)).collect();
    assert!(longest.iter().zip([100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]).all(|(delay, bound)| (bound / 2..=bound).contains(delay)));
    backoff.reset();
    assert_eq!(backoff.next_ms(0), 50);
}

/// Publishes until it is heard, and returns what else was told before.
async fn until_heard(link: &Link, pushes: &mut Pushes, kind: Kind, channel: &str) -> Vec<Push> {
    let command = if kind == Kind::Sharded { "SPUBLISH" } else { "PUBLISH" };
    let mut told = Vec::new();
    for attempt in 0.. {
        let payload = format!("{channel} {attempt}");
        let _ = tokio::time::timeout(Duration::from_millis(500), link.send(&call(&[command, channel, &payload]).into())).await;
        while let Ok(push) = tokio::time::timeout(Duration::from_millis(100), pushes.next()).await {
            let push = push.expect("the link goes on");
            if matches!(&push, Push::Message { channel: heard, payload: heard_payload, .. } if heard == channel.as_bytes() && heard_payload == payload.as_bytes())
            {
                return told;
            }
            told.push(push);
        }
    }
    told
}

#[test]
fn a_cluster_moves_slots_and_masters() {
    let mut cluster = Cluster::start(3, true);
    let servers = Servers::Cluster(cluster.urls()[..2].to_vec());
    let address = Address::new(&servers, &Certificates::default()).expect("an address");
    let sharded: Vec<_> = (0..12).map(|at| format!("sharded-{at}")).collect();
    let sharded: Vec<_> = sharded.iter().map(String::as_str).collect();
    run(async {
        let (link, mut pushes) = connect(&address).await;
        // Keys of all nodes in one request, and their answers in its order.
        let sets = (0..300).map(|at| Call::new("SET").arg(format!("k{at}")).arg(at.to_string())).collect();
        assert_eq!(link.send(&Request::several(sets)).await.expect("answers"), vec![text("OK"); 300]);
        let gets = (0..300).map(|at| Call::new("GET").arg(format!("k{at}"))).collect();
        for (at, reply) in link.send(&Request::several(gets)).await.expect("answers").into_iter().enumerate() {
            assert_eq!(reply.int(), Some(at as i64));
        }
        let atomic = vec![call(&["PUBLISH", "mark", "1"]), call(&["INCR", "{t}a"]), call(&["INCR", "{t}b"])];
        assert_eq!(link.send(&Request::atomic(atomic)).await.expect("answers"), [0, 1, 1].map(Reply::Int));

        link.subscribe(Kind::Sharded, &names(&sharded)).await.expect("subscribed");
        link.subscribe(Kind::Channel, &names(&["plain"])).await.expect("subscribed");
        link.subscribe(Kind::Pattern, &names(&["p*n"])).await.expect("subscribed");
        for channel in &sharded {
            let told = until_heard(&link, &mut pushes, Kind::Sharded, channel).await;
            assert!(told.iter().all(|push| matches!(push, Push::Subscribed { .. })), "{told:?}");
        }
        until_heard(&link, &mut pushes, Kind::Channel, "plain").await;
        let counts = ask(&link, &["PUBSUB", "NUMSUB", "plain", "nobody"]).await;
        assert_eq!((counts.list()[1].int(), counts.list()[3].int()), (Some(1), Some(0)), "over all nodes");
        let counts = ask(&link, &["PUBSUB", "SHARDCHANNELS"]).await;
        assert_eq!(counts.list().len(), sharded.len(), "over all nodes");

        // A slot moves, and with it what is in it.
        let slot = cluster.slot("sharded-0");
        let owner = cluster.owner(0, slot);
        cluster.move_slot(slot, owner, (owner + 1) % 3);
        let told = until_heard(&link, &mut pushes, Kind::Sharded, "sharded-0").await;
        let moved = b"sharded-0".to_vec();
        let place = |wanted: &dyn Fn(&Push) -> bool| told.iter().position(wanted);
        let interrupted = place(&|push| matches!(push, Push::Interrupted { kind: Kind::Sharded, names } if names.contains(&moved)));
        let again = place(&|push| *push == subscribed(Kind::Sharded, "sharded-0"));
        assert!(interrupted.is_some() && interrupted < again, "{told:?}");
        assert_eq!(ask(&link, &["SET", "{sharded-0}", "1"]).await, text("OK"));
        link.unsubscribe(Kind::Sharded, &names(&["sharded-0"])).await.expect("unsubscribed");

        // The home dies, its replica takes over.
        cluster.nodes[0].kill();
        for channel in &sharded[1..] {
            until_heard(&link, &mut pushes, Kind::Sharded, channel).await;
        }
        until_heard(&link, &mut pushes, Kind::Channel, "plain").await;
        let sets: Vec<_> = (0..300).map(|at| Call::new("INCR").arg(format!("k{at}"))).collect();
        let mut answers = link.send(&Request::several(sets.clone())).await;
        while answers.is_err() {
            answers = link.send(&Request::several(sets.clone())).await;
        }
        let refused = answers.expect("answers").into_iter().find(|reply| reply.error().is_some());
        assert_eq!(refused, None, "every slot has a master");
        // All die.
        cluster.nodes.iter_mut().for_each(Redis::kill);
        assert_eq!(gone(&mut pushes).await, Ended::Closed);
        assert!(Link::connect(&address).await.is_err());
    });
}
