//! One of two hosts is reloaded again and again, to other numbers of shards, while clients speak on both, in both modes of the relay and also while Redis does not answer: nobody is cut,
//! nobody is said to have come or gone, and what the reliable mode promises holds; in the other what was missed is counted. Real processes, a real Redis; figures are printed.

#[allow(dead_code, reason = "each of the test programs uses a part of it")]
#[path = "support/across.rs"]
mod across;
#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use across::{Client, connected};
use redis_bed::{Redis, until};
use support::load::{Load, Plan};
use support::raw::Raw;
use support::{Server, Setup, aloud, get};

const CLIENTS_PER_HOST: usize = 60;
const ROOMS: usize = 6;
/// Shards after each reload.
const SHARDS: [u32; 5] = [2, 3, 1, 1, 2];
const SECOND: Duration = Duration::from_secs(1);
/// Rooms that anybody may enter.
const VARIABLES: &[(&str, &str)] = &[("URINGCAST_ENDPOINT_TALK_MEMBERSHIP", "open")];

/// For how long Redis is frozen around each reload: longer than the relay waits for it before a reload.
const FROZEN: Duration = Duration::from_secs(2);

#[test]
fn streams_lose_nothing() {
    let (missed, _) = reloaded("[relay]\nmode = \"streams\"\n", false);
    assert_eq!(missed, 0);
}

#[test]
fn streams_lose_nothing_while_redis_is_frozen() {
    let (missed, _) = reloaded("[relay]\nmode = \"streams\"\n", true);
    assert_eq!(missed, 0);
}

#[test]
fn what_is_published_meanwhile_is_counted() {
    let (missed, counted) = reloaded("[relay]\nmode = \"pubsub\"\n", false);
    assert!(counted >= missed, "{missed} messages were missed and {counted} counted");
}

#[test]
fn what_is_published_while_redis_is_frozen_is_counted() {
    let (missed, counted) = reloaded("[relay]\nmode = \"pubsub\"\n", true);
    assert!(counted >= missed, "{missed} messages were missed and {counted} counted");
}

/// Messages that somebody on another host did not get, and how many the hosts say that it were.
fn reloaded(sections: &'static str, is_frozen: bool) -> (u64, u64) {
    // Four loads at once are more than a small machine has time for.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let redis = Redis::start();
    let setup = Setup { redis: Some(redis.url().leak()), sections, variables: VARIABLES, ..Setup::default() };
    let hosts: Vec<Server> = (0..2).map(|_| Server::start(&setup)).collect();
    connected(&hosts);
    until("each knows the other", || hosts.iter().all(|host| host.metric("uringcast_relay_hosts", &[]) == 1.0));
    let mut ann = Raw::talk(&hosts[0], "ann", "den");
    let bob = Raw::talk(&hosts[1], "bob", "den");
    ann.text_with(r#""USER_JOINED""#);
    let witnesses = [ann, bob].map(Client::listening);
    let of_host = |host: &Server| host.metric("uringcast_relay_hosts", &[]);
    let addresses = hosts.iter().map(|host| host.public).collect();
    let load = Load::start(Plan { hosts: addresses, clients_per_host: CLIENTS_PER_HOST, rooms: ROOMS, every: SECOND / 100 });
    let (mut counted, mut pauses) = (0, Vec::new());
    for shards in SHARDS {
        std::thread::sleep(2 * SECOND);
        counted += dropped(&hosts[0]);
        if is_frozen {
            redis.freeze();
        }
        hosts[0].reload(&setup, shards);
        if is_frozen {
            std::thread::sleep(FROZEN);
            redis.thaw();
        }
        pauses.push((hosts[0].metric("uringcast_reload_pause_seconds", &[]) * 1e4).round() / 10.0);
        connected(&hosts);
        assert_eq!([&hosts[0], &hosts[1]].map(of_host), [1.0; 2], "they know each other at once");
    }
    std::thread::sleep(3 * SECOND);
    let book = load.finish();
    counted += hosts.iter().map(dropped).sum::<u64>();
    aloud(&format!(
        "{}: {} messages, {} reloads with pauses of {pauses:?} ms; between hosts {} of {} deliveries lost ({} messages, {counted} counted), on their own {} of {}, the slowest {} ms; doubled {}, misordered {}, cut {}",
        sections.lines().last().unwrap_or_default(),
        book.sent,
        SHARDS.len(),
        book.cross_lost,
        book.cross,
        book.missed.len(),
        book.local_lost,
        book.local,
        book.local_latency_max.as_millis(),
        book.doubled,
        book.misordered,
        book.cut,
    ));
    assert_eq!((book.local_lost, book.doubled, book.misordered, book.cut), (0, 0, 0, 0));
    assert!(book.cross > 1_000, "{} deliveries between hosts test little", book.cross);
    assert_eq!(redis.cli(&["SCARD", "uringcast:hosts"]).trim(), "2", "it is the same host all the time");
    let is_told = witnesses.iter().any(|witness| witness.has_heard("USER_JOINED") || witness.has_heard("USER_LEFT"));
    assert!(!is_told, "nobody came or went");
    (book.missed.len() as u64, counted)
}

/// What a host says that it could not pass on, or has missed.
fn dropped(host: &Server) -> u64 {
    let metrics = get(host.control, "/metrics").1;
    let lines = metrics.lines().filter(|line| line.starts_with("uringcast_relay_dropped_total"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}
