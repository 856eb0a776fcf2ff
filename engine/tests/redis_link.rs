//! The link to Redis against real servers: what it says, what it hears, and what happens when a server dies, freezes or floods.

mod redis_bed;

use std::future::Future;
use std::time::Duration;

use engine::relay::link::{Address, AddressFault, Certificates, Link, LinkFault, Pushes, Servers};
use engine::relay::request::{Call, Ended, Kind, Lost, Push, Reply, Request, Unheard};
use redis_bed::{PATIENCE, Redis, Sentinels, Setup};

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
