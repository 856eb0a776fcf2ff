//! What happens to three hosts under a steady load when Redis, the network or one of them fails: figures are printed, and what must hold
//! whatever the machine does is asserted. Real processes, a real Redis.

#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::time::Duration;

use redis_bed::Redis;
use support::load::{Book, Load, Plan};
use support::{Server, Setup, aloud, get};

/// Clients, over all hosts.
const CLIENTS: usize = 300;

fn hosts(redis: &Redis, sections: &'static str, count: usize) -> Vec<Server> {
    let url: &'static str = redis.url().leak();
    let start = |_| Server::start(&Setup { redis: Some(url), sections, ..Setup::default() });
    let hosts: Vec<Server> = (0..count).map(start).collect();
    connected(&hosts);
    hosts
}

/// Waits until all of them reach Redis.
fn connected(hosts: &[Server]) {
    for host in hosts {
        redis_bed::until("a host reaches Redis", || get(host.control, "/readyz").1.contains(r#""relay":"connected""#));
    }
}

fn load(hosts: &[Server]) -> Load {
    let addresses = hosts.iter().map(|host| host.public).collect();
    let rooms = 10;
    Load::start(Plan { hosts: addresses, clients_per_host: CLIENTS / hosts.len(), rooms, every: Duration::from_millis(100) })
}

/// The sum of a counter over hosts.
fn counted(hosts: &[Server], metric: &str) -> u64 {
    let of = |host: &Server| -> u64 {
        let metrics = get(host.control, "/metrics").1;
        let lines = metrics.lines().filter(|line| line.starts_with(metric));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    };
    hosts.iter().map(of).sum()
}

fn resident_kb(host: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

fn report(fault: &str, book: &Book, healed: Duration) {
    let whole = book.whole_after(Duration::from_secs(1));
    aloud(&format!(
        "{fault}: {} messages; on their own host {} of {} deliveries lost, the slowest {} ms; between hosts {} of {} lost ({} messages), whole again {} ms after healing; doubled {}, misordered {}, cut {}",
        book.sent,
        book.local_lost,
        book.local,
        book.local_latency_max.as_millis(),
        book.cross_lost,
        book.cross,
        book.missed.len(),
        whole.saturating_sub(healed).as_millis(),
        book.doubled,
        book.misordered,
        book.cut,
    ));
}

/// Local traffic goes on whatever Redis does, nobody is cut, and nothing comes twice or out of order.
fn assert_sound(book: &Book) {
    assert_eq!((book.local_lost, book.doubled, book.misordered, book.cut), (0, 0, 0, 0), "{:?}", &book.missed[..book.missed.len().min(5)]);
}

#[test]
fn a_redis_that_is_killed_costs_other_hosts_what_is_counted() {
    let mut redis = Redis::start();
    let hosts = hosts(&redis, "", 3);
    let load = load(&hosts);
    std::thread::sleep(Duration::from_secs(2));
    redis.kill();
    std::thread::sleep(Duration::from_secs(5));
    redis.restart();
    let healed = load.elapsed();
    connected(&hosts);
    std::thread::sleep(Duration::from_secs(6));
    let book = load.finish();
    report("Redis killed for 5 s", &book, healed);
    assert_sound(&book);
    let counted = counted(&hosts, "uringcast_relay_dropped_total");
    aloud(&format!("counted as not relayed: {counted}"));
    assert!(book.missed.is_empty() || counted > 0, "what is lost is counted");
}
