//! Readers along the journal, without HTTP: what each gets, what it is told of what it missed, and what the shards are asked for.

use std::task::{Context, Poll, Waker};

use engine::event::What;
use engine::ids::{EndpointId, ShardId};

use super::*;
use crate::http::testing::FakeHost;

const BOUNDS: Bounds = Bounds { events: 100, bytes: 1 << 20 };

fn events(bounds: Bounds, always: EventTypes) -> (Arc<FakeHost>, Arc<Events>) {
    let host = Arc::new(FakeHost::new(1));
    let events = Arc::new(Events::new(host.clone(), bounds, always));
    (host, events)
}

fn event(what: What) -> Event {
    Event { endpoint: EndpointId(0), connection: None, user: None, room: None, unix_ms: 0, what }
}

/// Records so many messages, whose texts are numbers counting from `first`.
fn record(events: &Events, first: u64, count: u64) {
    let message = |number: u64| event(What::Message { message: number.to_string().into() });
    let batch = (first..first + count).map(message).collect();
    events.record(EventBatch { shard: ShardId(0), events: batch, dropped: 0 });
}

/// Everything there is for a reader, a word each: the message's number, the type, or what is missing.
fn got(reading: &mut Reading) -> Vec<String> {
    let mut got = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    while reading.poll(&mut cx, |_, item| {
        got.push(match item {
            Item::Event(Event { what: What::Message { message }, .. }) => message.to_string(),
            Item::Event(event) => event.kind().name().to_owned(),
            Item::Dropped { count, is_more, .. } => format!("-{count}{}", if is_more { "+" } else { "" }),
        });
        got.len() % 7 != 0
    }) == Poll::Ready(Some(()))
    {}
    got
}

fn numbers(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[test]
fn a_reader_gets_what_happens_from_now_on_in_order() {
    let (_, events) = events(BOUNDS, EventTypes::ALL);
    record(&events, 1, 5);
    let mut reading = events.read(EventTypes::ALL, None).expect("a place");
    assert_eq!(got(&mut reading), [""; 0]);
    record(&events, 6, 30);
    record(&events, 36, 1);
    assert_eq!(got(&mut reading), numbers(6..37));
    assert_eq!(reading.position(), events.id(36));
}

#[test]
fn who_comes_back_goes_on_where_he_was() {
    let (_, events) = events(BOUNDS, EventTypes::ALL);
    record(&events, 1, 20);
    let mut reading = events.read(EventTypes::ALL, Some(&events.id(12))).expect("a place");
    assert_eq!(got(&mut reading), numbers(13..21));
    let mut all = events.read(EventTypes::ALL, Some(&events.id(0))).expect("a place");
    assert_eq!(got(&mut all), numbers(1..21));
    let mut none = events.read(EventTypes::ALL, Some(&events.id(20))).expect("a place");
    assert_eq!(got(&mut none), [""; 0]);

    record(&events, 21, 100);
    let mut late = events.read(EventTypes::ALL, Some(&events.id(12))).expect("a place");
    let mut expected = vec!["-8".to_owned()];
    expected.extend(numbers(21..121));
    assert_eq!(got(&mut late), expected, "13 to 20 had to make way");
    assert_eq!(events.counts.missed_by_readers.load(Relaxed), 8);
}

#[test]
fn an_id_of_another_process_is_no_place_here() {
    let (_, events) = events(BOUNDS, EventTypes::ALL);
    record(&events, 1, 3);
    for id in
        ["1-2", "", "-", "x-2", "2", &format!("{}-", events.start), &format!("{}-x", events.start), &events.id(4), &events.id(u64::MAX)]
    {
        let mut reading = events.read(EventTypes::ALL, Some(id)).expect("a place");
        assert_eq!(got(&mut reading), ["-0+", "1", "2", "3"], "{id:?}");
    }
}

#[test]
fn a_slow_reader_is_told_how_much_he_missed_and_costs_no_more_than_his_place() {
    let (_, events) = events(Bounds { events: 10, ..BOUNDS }, EventTypes::ALL);
    let (mut slow, mut quick) =
        (events.read(EventTypes::ALL, None).expect("a place"), events.read(EventTypes::ALL, None).expect("a place"));
    record(&events, 1, 3);
    assert_eq!(got(&mut slow), numbers(1..4));
    let mut heard = got(&mut quick).len();
    for step in 0..20 {
        record(&events, 4 + 10 * step, 10);
        heard += got(&mut quick).len();
    }
    assert_eq!(heard, 203, "another reader misses nothing");
    let mut expected = vec!["-190".to_owned()];
    expected.extend(numbers(194..204));
    assert_eq!(got(&mut slow), expected);
    assert_eq!(events.counts.missed_by_readers.load(Relaxed), 190);
}

#[test]
fn what_shards_dropped_is_told_where_it_is_missing() {
    let (_, events) = events(BOUNDS, EventTypes::ALL);
    let mut reading = events.read(EventTypes::NONE.with(EventType::Message), None).expect("a place");
    record(&events, 1, 1);
    let connection = vec![event(What::Connection)];
    events.record(EventBatch { shard: ShardId(0), events: connection, dropped: 7 });
    record(&events, 2, 1);
    assert_eq!(got(&mut reading), ["1", "-7", "2"], "and events of other types are not given");
}

#[test]
fn what_is_missing_adds_up_also_when_the_word_on_it_has_made_way() {
    let (_, events) = events(Bounds { events: 10, ..BOUNDS }, EventTypes::ALL);
    let messages = EventTypes::NONE.with(EventType::Message);
    let drop = |count| events.record(EventBatch { shard: ShardId(0), events: Vec::new(), dropped: count });
    let (mut slow, mut other) =
        (events.read(messages, None).expect("a place"), events.read(EventTypes::NONE.with(EventType::Receipt), None).expect("a place"));
    record(&events, 1, 2);
    assert_eq!(got(&mut slow), numbers(1..3));
    // 4 messages, 7 that nobody knows, and 5 connections that it did not ask for.
    record(&events, 3, 4);
    drop(7);
    for _ in 0..5 {
        events.record(EventBatch { shard: ShardId(0), events: vec![event(What::Connection)], dropped: 0 });
    }
    let position = events.id(2);
    record(&events, 7, 10);
    let mut expected = vec!["-11".to_owned()];
    expected.extend(numbers(7..17));
    assert_eq!(got(&mut slow), expected);
    assert_eq!(got(&mut other), ["-7"], "it missed no receipt, for all that is known");
    assert_eq!(events.counts.missed_by_readers.load(Relaxed), 4, "what shards dropped is counted there");
    let mut back = events.read(messages, Some(&position)).expect("a place");
    let mut expected = vec!["-10+".to_owned()];
    expected.extend(numbers(7..17));
    assert_eq!(got(&mut back), expected, "entries of whatever types, and there may be more");
    // Nothing of what it asked for has made way.
    let mut none = events.read(EventTypes::NONE.with(EventType::RoomJoin), None).expect("a place");
    record(&events, 17, 30);
    assert_eq!(got(&mut none), [""; 0]);
}

#[test]
fn a_pause_that_has_made_way_is_told_to_whom_it_concerns() {
    let (_, events) = events(Bounds { events: 10, ..BOUNDS }, EventTypes::NONE.with(EventType::Message));
    let messages = EventTypes::NONE.with(EventType::Message);
    record(&events, 1, 1);
    let mut late = events.read(EventTypes::ALL, Some(&events.id(1))).expect("a place");
    let mut other = events.read(messages, None).expect("a place");
    record(&events, 2, 20);
    let (mut all, mut some) = (vec!["-10+".to_owned()], vec!["-10".to_owned()]);
    all.extend(numbers(12..22));
    some.extend(numbers(12..22));
    assert_eq!((got(&mut late), got(&mut other)), (all, some));
}

#[test]
fn shards_make_what_somebody_reads_and_five_minutes_longer() {
    let (host, events) = events(BOUNDS, EventTypes::NONE.with(EventType::Receipt));
    let wanted = || *host.wanted.lock().expect("one thread");
    let (receipts, messages) = (EventTypes::NONE.with(EventType::Receipt), EventTypes::NONE.with(EventType::Message));
    assert_eq!(wanted(), receipts);
    let reading = events.read(messages, None).expect("a place");
    assert_eq!(wanted(), receipts.and(messages));
    record(&events, 1, 1);
    let position = events.id(2);
    drop(reading);
    events.choose_if_due();
    assert_eq!(wanted(), receipts.and(messages), "he may come back");
    let mut back = events.read(messages, Some(&position)).expect("a place");
    assert_eq!(got(&mut back), [""; 0]);
    drop(back);

    events.lock().lingering[EventType::Message.index()] = Some(Instant::now());
    events.choose_if_due();
    assert_eq!(wanted(), receipts);
    // Nobody knows what happened meanwhile; who asked for something else does not mind.
    let mut late = events.read(messages, Some(&position)).expect("a place");
    let mut other = events.read(receipts, Some(&position)).expect("a place");
    let mut fresh = events.read(messages, None).expect("a place");
    assert_eq!(wanted(), receipts.and(messages));
    record(&events, 2, 1);
    assert_eq!((got(&mut late), got(&mut other), got(&mut fresh)), (vec!["-0+".to_owned(), "2".to_owned()], vec![], vec!["2".to_owned()]));
}

#[test]
fn the_webhook_misses_nothing_of_the_beginning() {
    let (_, events) = events(Bounds { events: 10, ..BOUNDS }, EventTypes::ALL);
    record(&events, 1, 4);
    let mut reading = events.read_for_webhook(EventTypes::ALL).expect("a place");
    assert_eq!(got(&mut reading), numbers(1..5));
    record(&events, 5, 15);
    let mut late = events.read_for_webhook(EventTypes::ALL).expect("a place");
    let mut expected = vec!["-9".to_owned()];
    expected.extend(numbers(10..20));
    assert_eq!(got(&mut late), expected);
    assert_eq!(events.counts.missed_by_webhook.load(Relaxed), 9);
}

/// A receiver that takes no more than so many bytes at once, and what it took.
async fn narrow_receiver(bytes_max: usize) -> (String, tokio::sync::mpsc::UnboundedReceiver<serde_json::Value>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/hook", listener.local_addr().expect("bound"));
    let (took, taken) = tokio::sync::mpsc::unbounded_channel();
    let take = move |body: String| async move {
        if body.len() > bytes_max {
            return axum::http::StatusCode::PAYLOAD_TOO_LARGE;
        }
        let _ = took.send(serde_json::from_str(&body).expect("JSON"));
        axum::http::StatusCode::NO_CONTENT
    };
    let router = axum::Router::new().route("/hook", axum::routing::post(take));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, taken)
}

#[tokio::test]
async fn what_the_receiver_says_is_too_large_comes_in_halves_and_one_that_is_alone_is_given_up() {
    let (url, mut taken) = narrow_receiver(2_000).await;
    let (_, events) = events(BOUNDS, EventTypes::ALL);
    record(&events, 1, 20);
    let large = event(What::Message { message: format!("\"{}\"", "x".repeat(3_000)).into() });
    events.record(EventBatch { shard: ShardId(0), events: vec![large], dropped: 0 });
    record(&events, 22, 19);
    events.close();
    let webhook = webhook::Webhook {
        url: url.parse().expect("a URL"),
        secret: crate::secret::Secret::new(b"secret").expect("not empty"),
        types: EventTypes::ALL,
        batch_events: 100,
        batch_bytes: 1 << 20,
        timeout: Duration::from_secs(30),
        retry: Duration::from_secs(24 * 3_600),
    };
    let reading = events.read_for_webhook(EventTypes::ALL).expect("a place");
    let outbound = crate::outbound::Outbound::new();
    let delivered = tokio::time::timeout(Duration::from_secs(60), webhook::deliver(events.clone(), reading, webhook, outbound));
    delivered.await.expect("it does not wait for a day");
    let (mut ids, mut dropped) = (Vec::new(), Vec::new());
    while let Ok(batch) = taken.try_recv() {
        for told in batch["events"].as_array().expect("a list") {
            if told["type"] == "dropped" {
                dropped.push((told["id"].clone(), told["data"]["count"].clone()));
            } else {
                ids.push(told["id"].as_str().expect("text").to_owned());
            }
        }
    }
    let expected: Vec<String> = (1..=40).filter(|number| *number != 21).map(|number| events.id(number)).collect();
    assert_eq!(ids, expected, "in order, each once");
    assert_eq!(dropped, [(events.id(21).into(), 1.into())]);
    assert_eq!(events.counts.missed_by_webhook.load(Relaxed), 1);
}

#[test]
fn places_are_bounded_and_come_back() {
    let (_, events) = events(BOUNDS, EventTypes::NONE);
    let mut readings: Vec<_> = (0..READERS_MAX).map(|_| events.read(EventTypes::ALL, None).expect("a place")).collect();
    assert_eq!(events.read(EventTypes::ALL, None).err(), Some(TooManyReaders));
    readings.pop();
    assert!(events.read(EventTypes::ALL, None).is_ok());
    assert_eq!(events.readers(), READERS_MAX - 1);
}

#[test]
fn the_taker_records_what_was_told_before_it_is_stopped_and_then_all_have_their_end() {
    let (_, events) = events(BOUNDS, EventTypes::ALL);
    let mut reading = events.read(EventTypes::ALL, None).expect("a place");
    let (tell, told) = crossbeam_channel::unbounded();
    let (stop, stopped) = crossbeam_channel::bounded(0);
    for number in 1..=50 {
        let message = event(What::Message { message: number.to_string().into() });
        tell.send(EventBatch { shard: ShardId(0), events: vec![message], dropped: 0 }).expect("open");
    }
    drop(stop);
    run(told, stopped, events.clone());
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!(got(&mut reading), numbers(1..51));
    assert_eq!(reading.poll(&mut cx, |_, _| true), Poll::Ready(None));
    assert_eq!(events.counts.recorded[EventType::Message.index()].load(Relaxed), 50);
}
