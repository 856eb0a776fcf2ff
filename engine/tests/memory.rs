//! The memory contract on a host without sockets: who is ended when connections hold too much together, who is not, and what is counted.

mod host;

use engine::config::{DialectKind, Endpoint};
use engine::fault::CloseReason;
use engine::limits::{Limits, MEMORY_LOOK_MS};
use engine::stats::ShardStats;
use host::{Got, Host};
use serde_json::json;

const BYTES_MAX: usize = 400_000;

/// Two shards without histories, so that only connections hold something.
fn host() -> Host {
    let talk = Endpoint { client_publish: true, ..host::endpoint("talk", DialectKind::Community, "/talk") };
    let limits = Limits { memory: BYTES_MAX, history_messages: 0, hold_ms: 0, rate_messages: 100_000, ..Limits::default() };
    Host::new(engine::config::Config { limits, ..host::config(2, vec![talk]) }, 7)
}

fn enter(host: &mut Host, shard: usize, user: &str, room: &str) -> usize {
    let token = host::token(&json!({"sub": user, "exp": 4_000_000_000_u64}));
    let client = host.connect(shard, &Host::upgrade_head(&format!("/talk?token={token}&roomId={room}"), ""));
    host.settle();
    assert!(host.clients[client].open, "{user} is in");
    host.take(client);
    client
}

/// Says so many bytes in a room, in messages of 4 kB.
fn fill(host: &mut Host, talker: usize, room: &str, bytes: usize) {
    let filler = "x".repeat(3_800);
    for _ in 0..bytes / filler.len() {
        host.say(talker, &format!(r#"{{"type":"CHAT_MESSAGE","payload":{{"roomId":"{room}","content":"{filler}"}}}}"#));
        host.settle();
    }
}

fn sum(host: &Host, of: impl Fn(&ShardStats) -> u64) -> u64 {
    host.stats.iter().map(|stats| of(stats)).sum()
}

fn look(host: &mut Host) {
    host.advance(2 * MEMORY_LOOK_MS);
}

/// In each of these rooms one who speaks and one who reads nothing.
fn stalled(host: &mut Host, rooms: &[(&str, usize)]) -> Vec<usize> {
    let of_room = |(number, (room, bytes)): (usize, &(&str, usize))| {
        let talker = enter(host, number % 2, &format!("talker-{room}"), room);
        let reader = enter(host, number % 2, &format!("reader-{room}"), room);
        host.clients[reader].capacity = 0;
        fill(host, talker, room, *bytes);
        reader
    };
    rooms.iter().enumerate().map(of_room).collect()
}

#[test]
fn whoever_holds_most_is_ended_first_and_as_slow() {
    let mut host = host();
    let readers = stalled(&mut host, &[("a", 100_000), ("b", 150_000)]);
    look(&mut host);
    assert_eq!(sum(&host, |stats| stats.memory_shed.read()), 0, "together they are below the cap, each above a half of a half");
    let held = sum(&host, |stats| stats.memory_held.read());
    assert!((250_000..350_000).contains(&held), "{held}");
    readers.iter().for_each(|reader| assert!(host.clients[*reader].open));
    let more = stalled(&mut host, &[("c", 20_000), ("d", 200_000)]);
    look(&mut host);
    look(&mut host);
    let is_open = [readers[0], readers[1], more[0], more[1]].map(|reader| host.clients[reader].open);
    assert_eq!(is_open, [false, true, true, false], "of each shard the one that held most");
    assert_eq!(sum(&host, |stats| stats.memory_shed.read()), 2);
    assert!(sum(&host, |stats| stats.memory_shed_bytes.read()) >= 300_000);
    assert_eq!(sum(&host, |stats| stats.endpoints[0].closed[CloseReason::SlowReader.index()].read()), 2);
    assert!(sum(&host, |stats| stats.memory_held.read()) <= BYTES_MAX as u64 * 9 / 10);
    assert!(host.take(readers[0]).contains(&Got::End(true)), "reset: its socket took nothing");
}

#[test]
fn who_is_shed_is_told_so_where_the_socket_takes_it() {
    let mut host = host();
    let readers = stalled(&mut host, &[("a", 500_000)]);
    host.clients[readers[0]].capacity = 1_000_000;
    look(&mut host);
    let got = host.take(readers[0]);
    assert!(got.iter().any(|got| matches!(got, Got::Close(Some(4408), _))), "{got:?}");
}

#[test]
fn a_message_for_which_many_wait_counts_once() {
    let mut host = host();
    let talker = enter(&mut host, 0, "talker", "crowd");
    let crowd: Vec<usize> = (0..60).map(|number| enter(&mut host, number % 2, &format!("user{number}"), "crowd")).collect();
    crowd.iter().for_each(|client| host.clients[*client].capacity = 0);
    fill(&mut host, talker, "crowd", 100_000);
    look(&mut host);
    assert!(sum(&host, |stats| stats.outbox_bytes.read()) > 5_000_000, "by their queues they would be far above the cap");
    let held = sum(&host, |stats| stats.memory_held.read());
    assert!((200_000..BYTES_MAX as u64).contains(&held), "once on each shard: {held}");
    assert!(crowd.iter().all(|client| host.clients[*client].open), "nobody is ended");
}

#[test]
fn what_is_not_whole_yet_counts_too() {
    let mut host = host();
    let half = |fragment: bool| {
        let mut frame = host::masked(2, &[0; 100_000]);
        if fragment {
            // The first fragment of a message.
            frame[0] = 0x02;
            frame
        } else {
            frame[..90_000].to_vec()
        }
    };
    let senders: Vec<usize> = (0..10).map(|number| enter(&mut host, number % 2, &format!("sender{number}"), "r")).collect();
    for (number, sender) in senders.iter().enumerate() {
        host.write(*sender, &half(number < 5));
    }
    host.settle();
    look(&mut host);
    look(&mut host);
    let left = senders.iter().filter(|sender| host.clients[**sender].open).count();
    assert!((1..=4).contains(&left), "{left} of ten halves of 100 kB are left");
    assert_eq!(sum(&host, |stats| stats.memory_shed.read()), 10 - left as u64);
    assert!(sum(&host, |stats| stats.memory_held.read()) <= BYTES_MAX as u64);
}

#[test]
fn without_a_cap_nothing_is_looked_at() {
    let talk = Endpoint { client_publish: true, ..host::endpoint("talk", DialectKind::Community, "/talk") };
    let limits = Limits { history_messages: 0, ..Limits::default() };
    let mut host = Host::new(engine::config::Config { limits, ..host::config(2, vec![talk]) }, 7);
    let readers = stalled(&mut host, &[("a", 900_000)]);
    look(&mut host);
    assert!(host.clients[readers[0]].open);
    assert_eq!(sum(&host, |stats| stats.memory_held.read()), 0);
}
