//! One of two hosts is reloaded again and again while clients speak on both, in both modes of the relay: nobody is cut, nobody is said to have come or gone, and what the
//! reliable mode promises holds; in the other what was missed is counted. Real processes, a real Redis; figures are printed.

#[allow(dead_code, reason = "each of the test programs uses a part of it")]
#[path = "support/across.rs"]
mod across;
#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::time::Duration;

use across::{Client, connected};
use redis_bed::{Redis, until};
use rustix::process::Signal;
use support::load::{Load, Plan};
use support::raw::Raw;
use support::{Server, Setup, aloud, get};

const CLIENTS_PER_HOST: usize = 60;
const ROOMS: usize = 6;
const RELOADS: u32 = 5;
const SECOND: Duration = Duration::from_secs(1);
/// Rooms that anybody may enter.
const VARIABLES: &[(&str, &str)] = &[("URINGCAST_ENDPOINT_TALK_MEMBERSHIP", "open")];

#[test]
fn streams_lose_nothing() {
    let (missed, _) = reloaded("[relay]\nmode = \"streams\"\n");
    assert_eq!(missed, 0);
}

#[test]
fn what_is_published_meanwhile_is_counted() {
    let (missed, counted) = reloaded("[relay]\nmode = \"pubsub\"\n");
    assert!(counted >= missed, "{missed} messages were missed and {counted} counted");
}

/// Messages that somebody on another host did not get, and how many the hosts say that it were.
fn reloaded(sections: &'static str) -> (u64, u64) {
    let redis = Redis::start();
    let url: &'static str = redis.url().leak();
    let start = |_| Server::start(&Setup { redis: Some(url), sections, variables: VARIABLES, ..Setup::default() });
    let hosts: Vec<Server> = (0..2).map(start).collect();
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
    for number in 1..=RELOADS {
        std::thread::sleep(2 * SECOND);
        counted += dropped(&hosts[0]);
        hosts[0].signal(Signal::HUP);
        until("it is reloaded", || hosts[0].metric("uringcast_reloads_total", &[("outcome", "done")]) == f64::from(number));
        pauses.push((hosts[0].metric("uringcast_reload_pause_seconds", &[]) * 1e4).round() / 10.0);
        connected(&hosts);
        assert_eq!(of_host(&hosts[0]), 1.0, "it knows the other host at once");
        assert_eq!(of_host(&hosts[1]), 1.0, "and is known");
    }
    std::thread::sleep(3 * SECOND);
    let book = load.finish();
    counted += hosts.iter().map(dropped).sum::<u64>();
    aloud(&format!(
        "{}: {} messages, {RELOADS} reloads with pauses of {pauses:?} ms; between hosts {} of {} deliveries lost ({} messages, {counted} counted), on their own {} of {}, the slowest {} ms; doubled {}, misordered {}, cut {}",
        sections.lines().last().unwrap_or_default(),
        book.sent,
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
