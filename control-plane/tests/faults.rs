//! What happens to three hosts under a steady load when Redis, the network or one of them fails: figures are printed, and what must hold
//! whatever the machine does is asserted. Real processes, a real Redis.

#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::time::{Duration, Instant};

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

/// One at a time: each has the machine's cores to itself.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static MACHINE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    MACHINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// In the mode without memory every message that somebody on another host did not get is counted by the host that said it.
fn assert_counted(hosts: &[Server], book: &Book) {
    let counted = counted(hosts, "uringcast_relay_dropped_total");
    aloud(&format!("counted as not relayed, or not to all: {counted}"));
    assert!(counted >= book.missed.len() as u64, "{} messages were missed and {counted} counted", book.missed.len());
}

/// Nothing grows with what Redis does not take: the buffer's bound and some slack.
fn assert_small(hosts: &[Server]) {
    let resident: Vec<u64> = hosts.iter().map(resident_kb).collect();
    aloud(&format!("resident kB: {resident:?}"));
    assert!(resident.iter().all(|kb| *kb < 400_000), "{resident:?}");
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_redis_that_is_killed_costs_other_hosts_what_is_counted() {
    let _alone = alone();
    let mut redis = Redis::start();
    let hosts = hosts(&redis, "", 3);
    let load = load(&hosts);
    std::thread::sleep(2 * SECOND);
    redis.kill();
    std::thread::sleep(5 * SECOND);
    redis.restart();
    let healed = load.elapsed();
    connected(&hosts);
    std::thread::sleep(6 * SECOND);
    let book = load.finish();
    report("Redis killed for 5 s", &book, healed);
    assert_sound(&book);
    assert_counted(&hosts, &book);
    assert_small(&hosts);
}

#[test]
fn a_redis_that_is_frozen_for_20_s_stops_nobody_here() {
    let _alone = alone();
    let redis = Redis::start();
    let hosts = hosts(&redis, "", 3);
    let load = load(&hosts);
    std::thread::sleep(2 * SECOND);
    redis.freeze();
    std::thread::sleep(20 * SECOND);
    redis.thaw();
    let healed = load.elapsed();
    connected(&hosts);
    std::thread::sleep(6 * SECOND);
    let book = load.finish();
    report("Redis frozen for 20 s", &book, healed);
    assert_sound(&book);
    assert_counted(&hosts, &book);
    assert_small(&hosts);
}

#[test]
fn a_host_that_is_killed_takes_nothing_with_it_but_its_clients() {
    let _alone = alone();
    let redis = Redis::start();
    let mut hosts = hosts(&redis, "[relay]\nlease_ms = 3000\n", 3);
    let load = load(&hosts);
    std::thread::sleep(2 * SECOND);
    let killed = hosts.pop().expect("there are three");
    killed.signal(rustix::process::Signal::KILL);
    let at = load.elapsed();
    std::thread::sleep(8 * SECOND);
    let book = load.finish();
    report("one host of three killed", &book, at);
    assert_eq!((book.doubled, book.misordered, book.cut), (0, 0, (CLIENTS / 3) as u64));
    // What the dead host itself said in its last moment is nobody's to deliver.
    let of_living = |(sender, ..): &&(usize, u64, Duration)| *sender < 20;
    assert_eq!(book.missed.iter().filter(of_living).count(), 0, "{:?}", &book.missed[..book.missed.len().min(5)]);
    redis_bed::until("the dead host's entries are gone", || redis.cli(&["KEYS", "uringcast:at:*"]).lines().count() <= 2);
}

#[test]
fn a_redis_without_memory_refuses_and_that_is_counted() {
    let _alone = alone();
    let redis = redis_bed::Setup::default().line("maxmemory-policy noeviction").start();
    let hosts = hosts(&redis, "", 3);
    let load = load(&hosts);
    std::thread::sleep(2 * SECOND);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1mb"]);
    redis.cli(&["DEBUG", "JMAP"]);
    std::thread::sleep(5 * SECOND);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let healed = load.elapsed();
    std::thread::sleep(3 * SECOND);
    let book = load.finish();
    report("Redis at maxmemory for 5 s", &book, healed);
    assert_sound(&book);
    assert_counted(&hosts, &book);
}

#[test]
fn hostile_messages_on_every_channel_hurt_nobody() {
    let _alone = alone();
    let redis = Redis::start();
    let hosts = hosts(&redis, "", 3);
    let load = load(&hosts);
    let channels: Vec<String> = redis.cli(&["PUBSUB", "CHANNELS"]).lines().map(str::to_owned).collect();
    let channels: Vec<&str> =
        channels.iter().map(String::as_str).chain(["socket.io#/#", "socket.io#/#load1#", "room:den", "group:g"]).collect();
    let (mut random, mut said) = (0x2545_f491_4f6c_dd1d_u64, 0_u64);
    let deep = "[".repeat(100_000);
    let began = Instant::now();
    while began.elapsed() < 6 * SECOND {
        for channel in &channels {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let noise = format!("{random:x}").repeat(random as usize % 40);
            let hostile = [
                "{}",
                "[]",
                "{\"type\":3,\"uid\":\"x\",\"nsp\":\"/\"}",
                "{\"uid\":\"x\",\"requestId\":\"r\",\"type\":5,\"opts\":{\"rooms\":[{}],\"except\":7}}",
                "{\"type\":\"update\",\"documentId\":\"\"}",
                "{\"v\":1,\"host\":\"0123456789abcdef\",\"number\":1,\"wait_ms\":18446744073709551615}",
                &deep,
                &noise,
                "\u{93}\u{a6}zzzzzz",
            ];
            redis.cli(&["PUBLISH", channel, hostile[said as usize % hostile.len()]]);
            said += 1;
        }
    }
    let healed = load.elapsed();
    std::thread::sleep(2 * SECOND);
    let book = load.finish();
    report(&format!("{said} hostile messages on {} channels", channels.len()), &book, healed);
    assert_sound(&book);
    assert_eq!(book.cross_lost, 0, "they cost nobody a message");
    assert!(counted(&hosts, "uringcast_relay_dropped_total{reason=\"malformed\"}") > 0, "and they are counted");
    assert_small(&hosts);
}

/// A namespace with a way to Redis and one to its clients.
struct Network;

/// The bridge's end of both ways; Redis listens on the first.
const TO_REDIS: [&str; 2] = ["10.77.1.1", "10.77.1.2"];
const TO_CLIENTS: [&str; 2] = ["10.77.2.1", "10.77.2.2"];
const NAMESPACE: &str = "uringcast-cut";

impl Network {
    fn start() -> Network {
        drop(Network);
        ip(&format!("netns add {NAMESPACE}"));
        for (name, [outside, inside]) in [("ucr", TO_REDIS), ("ucc", TO_CLIENTS)] {
            ip(&format!("link add {name}0 type veth peer name {name}1 netns {NAMESPACE}"));
            ip(&format!("addr add {outside}/24 dev {name}0"));
            ip(&format!("link set {name}0 up"));
            ip(&format!("-n {NAMESPACE} addr add {inside}/24 dev {name}1"));
            ip(&format!("-n {NAMESPACE} link set {name}1 up"));
        }
        ip(&format!("-n {NAMESPACE} link set lo up"));
        Network
    }

    fn cut(&self) {
        ip("link set ucr0 down");
    }

    fn heal(&self) {
        ip("link set ucr0 up");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "del", NAMESPACE]).stderr(std::process::Stdio::null()).status();
    }
}

fn ip(words: &str) {
    let status = std::process::Command::new("ip").args(words.split(' ')).status().expect("the package iproute2 is installed");
    assert!(status.success(), "ip {words}: network namespaces need root");
}

#[test]
fn a_host_whose_link_is_cut_goes_on_alone_and_comes_back() {
    let _alone = alone();
    let network = Network::start();
    let redis = redis_bed::Setup::default().line(&format!("bind 127.0.0.1 {}", TO_REDIS[0])).line("protected-mode no").start();
    let mut hosts = hosts(&redis, "", 2);
    let url: &'static str = redis.url().replace("127.0.0.1", TO_REDIS[0]).leak();
    let inside = TO_CLIENTS[1].parse().expect("an address");
    hosts.push(Server::start(&Setup { redis: Some(url), network: Some((NAMESPACE, inside)), ..Setup::default() }));
    connected(&hosts);
    let load = load(&hosts);
    std::thread::sleep(2 * SECOND);
    network.cut();
    std::thread::sleep(12 * SECOND);
    network.heal();
    let healed = load.elapsed();
    connected(&hosts);
    std::thread::sleep(6 * SECOND);
    let book = load.finish();
    report("one host's link to Redis cut for 12 s", &book, healed);
    assert_sound(&book);
    assert_counted(&hosts, &book);
    assert_small(&hosts);
    drop(hosts);
}
