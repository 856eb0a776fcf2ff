//! What happens to three hosts under a steady load when Redis, the network or one of them fails, in both modes of the relay: figures are
//! printed, and what must hold whatever the machine does is asserted. Real processes, a real Redis.

#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis_bed::{Redis, until};
use rustix::process::Signal;
use support::load::{Book, Load, Plan};
use support::network::{NAMESPACE, Network, TO_CLIENTS, TO_REDIS};
use support::{Server, Setup, aloud, get};

/// Clients, over all hosts.
const CLIENTS: usize = 300;
const HOSTS: usize = 3;
const ROOMS: usize = 10;
/// Short, so that a dead host is soon known to be.
const LEASE: &[(&str, &str)] = &[("URINGCAST_RELAY_LEASE_MS", "6000")];
const SECOND: Duration = Duration::from_secs(1);

/// `relay.mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    PubSub,
    Streams,
}

const MODES: [Mode; 2] = [Mode::PubSub, Mode::Streams];

impl Mode {
    fn sections(self) -> &'static str {
        match self {
            Mode::PubSub => "[relay]\nmode = \"pubsub\"\n",
            Mode::Streams => "[relay]\nmode = \"streams\"\n",
        }
    }
}

/// Hosts at one Redis, and what their clients say and hear.
struct Fleet {
    mode: Mode,
    hosts: Vec<Server>,
    load: Load,
    healed: Duration,
    /// One at a time: each has the machine's cores to itself.
    _alone: MutexGuard<'static, ()>,
}

impl Fleet {
    /// Hosts that are joined by this Redis.
    fn start(mode: Mode, redis: &Redis) -> Fleet {
        let fleet = Fleet::with(mode, redis, HOSTS, None);
        std::thread::sleep(2 * SECOND);
        fleet
    }

    /// The same with so many hosts, and one more that is somewhere else.
    fn with(mode: Mode, redis: &Redis, count: usize, elsewhere: Option<Setup>) -> Fleet {
        static MACHINE: Mutex<()> = Mutex::new(());
        let alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let url: &'static str = redis.url().leak();
        let setups = (0..count)
            .map(|_| Setup { redis: Some(url), sections: mode.sections(), variables: LEASE, ..Setup::default() })
            .chain(elsewhere);
        let hosts: Vec<Server> = setups.map(|setup| Server::start(&setup)).collect();
        connected(&hosts);
        let addresses = hosts.iter().map(|host| host.public).collect();
        let plan = Plan { hosts: addresses, clients_per_host: CLIENTS / hosts.len(), rooms: ROOMS, every: SECOND / 10 };
        Fleet { mode, hosts, load: Load::start(plan), healed: Duration::ZERO, _alone: alone }
    }

    /// The fault is over: waits until all hosts reach Redis, and for what that brings.
    fn heal(&mut self) {
        self.healed = self.load.elapsed();
        connected(&self.hosts);
        std::thread::sleep(6 * SECOND);
    }

    /// Ends the load and tells what came of it.
    fn finish(self, fault: &str) -> (Vec<Server>, Book) {
        let Fleet { mode, hosts, load, healed, _alone } = self;
        let book = load.finish();
        aloud(&format!(
            "{mode:?}, {fault}: {} messages; on their own host {} of {} deliveries lost, the slowest {} ms; between hosts {} of {} lost ({} messages), whole again {} ms after healing; doubled {}, misordered {}, cut {}",
            book.sent,
            book.local_lost,
            book.local,
            book.local_latency_max.as_millis(),
            book.cross_lost,
            book.cross,
            book.missed.len(),
            book.whole_after(SECOND).saturating_sub(healed).as_millis(),
            book.doubled,
            book.misordered,
            book.cut,
        ));
        let resident: Vec<u64> = hosts.iter().map(|host| host.resident() / 1_024).collect();
        aloud(&format!("resident kB: {resident:?}"));
        // Nothing grows with what Redis does not take: the buffer's bound and some slack.
        assert!(resident.iter().all(|kb| *kb < 400_000), "{resident:?}");
        (hosts, book)
    }

    /// Local traffic goes on whatever Redis does, nobody is cut, and nothing comes twice or out of order. Between hosts the reliable mode loses
    /// nothing; in the other every message that somebody on another host did not get is counted.
    fn finish_sound(self, fault: &str) {
        let mode = self.mode;
        let (hosts, book) = self.finish(fault);
        let missed = &book.missed[..book.missed.len().min(5)];
        assert_eq!((book.local_lost, book.doubled, book.misordered, book.cut), (0, 0, 0, 0), "{mode:?}: {missed:?}");
        assert!(book.cross > 1_000, "{} deliveries between hosts test little", book.cross);
        let counted = counted(&hosts, "uringcast_relay_dropped_total");
        aloud(&format!("counted as not relayed, or not to all: {counted}"));
        match mode {
            Mode::PubSub => {
                assert!(counted >= book.missed.len() as u64, "{} messages were missed and {counted} counted", book.missed.len());
            }
            Mode::Streams => assert_eq!(book.cross_lost, 0, "{missed:?}"),
        }
    }
}

/// Waits until all of them reach Redis.
fn connected(hosts: &[Server]) {
    for host in hosts {
        until("a host reaches Redis", || get(host.control, "/readyz").1.contains(r#""relay":"connected""#));
    }
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

/// It loses everything that it has: it keeps no file.
#[test]
fn a_redis_that_is_killed_stops_nobody_here() {
    for mode in MODES {
        let mut redis = Redis::start();
        let mut fleet = Fleet::start(mode, &redis);
        redis.kill();
        std::thread::sleep(5 * SECOND);
        redis.restart();
        fleet.heal();
        fleet.finish_sound("Redis killed for 5 s");
    }
}

/// So long that hosts give the connection up. What they had sent is still in Redis' sockets, and is done when it goes on: they cannot know.
#[test]
fn a_redis_that_is_frozen_for_20_s_stops_nobody_here() {
    for mode in MODES {
        let redis = Redis::start();
        let mut fleet = Fleet::start(mode, &redis);
        redis.freeze();
        std::thread::sleep(20 * SECOND);
        redis.thaw();
        fleet.heal();
        fleet.finish_sound("Redis frozen for 20 s");
    }
}

#[test]
fn a_host_that_is_killed_takes_nothing_with_it_but_its_clients() {
    for mode in MODES {
        let redis = Redis::start();
        let mut fleet = Fleet::start(mode, &redis);
        let killed = fleet.hosts.pop().expect("there are three");
        killed.signal(Signal::KILL);
        fleet.healed = fleet.load.elapsed();
        std::thread::sleep(10 * SECOND);
        let (hosts, book) = fleet.finish("one host of three killed");
        assert_eq!((book.doubled, book.misordered, book.cut), (0, 0, (CLIENTS / HOSTS) as u64));
        // What the dead host itself said in its last moment is nobody's to deliver.
        let of_living = |(sender, ..): &&(usize, u64, Duration)| *sender < (HOSTS - 1) * ROOMS;
        assert_eq!(book.missed.iter().filter(of_living).count(), 0, "{:?}", &book.missed[..book.missed.len().min(5)]);
        until("the dead host's entries are gone", || redis.cli(&["KEYS", "uringcast:at:*"]).lines().count() <= 2);
        drop((hosts, killed));
    }
}

#[test]
fn a_redis_without_memory_refuses_and_that_is_counted() {
    for mode in MODES {
        let redis = redis_bed::Setup::default().line("maxmemory-policy noeviction").start();
        let mut fleet = Fleet::start(mode, &redis);
        redis.cli(&["CONFIG", "SET", "maxmemory", "1mb"]);
        std::thread::sleep(5 * SECOND);
        let refusals = ["uringcast_relay_dropped_total{reason=\"refused\"}", "uringcast_relay_stream_refusals_total"];
        assert!(refusals.iter().any(|metric| counted(&fleet.hosts, metric) > 0), "Redis has refused");
        redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
        fleet.heal();
        fleet.finish_sound("Redis at maxmemory for 5 s");
    }
}

#[test]
fn hostile_messages_on_every_channel_hurt_nobody() {
    for mode in MODES {
        let redis = Redis::start();
        let mut fleet = Fleet::start(mode, &redis);
        let channels: Vec<String> = redis.cli(&["PUBSUB", "CHANNELS"]).lines().map(str::to_owned).collect();
        let channels: Vec<&str> =
            channels.iter().map(String::as_str).chain(["socket.io#/#", "socket.io#/#load1#", "room:den", "group:g"]).collect();
        let (mut random, mut said) = (0x2545_f491_4f6c_dd1d_u64, 0_usize);
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
                let words = hostile[said % hostile.len()];
                redis.cli(&["PUBLISH", channel, words]);
                if mode == Mode::Streams {
                    redis.cli(&["XADD", "socket.io", "*", "uid", "x", "nsp", "/", "type", &(said % 15).to_string(), "data", words]);
                    redis.cli(&["XADD", "socket.io", "*", words, words]);
                    redis.cli(&["XADD", "uringcast:{socket.io}:plain", "*", "channel", "room:den", "text", words, "h", "x", "n", words]);
                }
                said += 1;
            }
        }
        fleet.heal();
        let count = channels.len();
        let (hosts, book) = fleet.finish(&format!("{said} hostile messages on {count} channels"));
        assert_eq!(
            (book.local_lost, book.cross_lost, book.doubled, book.misordered, book.cut),
            (0, 0, 0, 0, 0),
            "they cost nobody a message"
        );
        assert!(counted(&hosts, "uringcast_relay_dropped_total{reason=\"malformed\"}") > 0, "and they are counted");
    }
}

#[test]
fn a_host_whose_link_is_cut_goes_on_alone_and_comes_back() {
    for mode in MODES {
        let network = Network::start();
        let redis = redis_bed::Setup::default().line(&format!("bind 127.0.0.1 {}", TO_REDIS[0])).line("protected-mode no").start();
        let url: &'static str = redis.url().replace("127.0.0.1", TO_REDIS[0]).leak();
        let inside = TO_CLIENTS[1].parse().expect("an address");
        let elsewhere =
            Setup { redis: Some(url), network: Some((NAMESPACE, inside)), sections: mode.sections(), variables: LEASE, ..Setup::default() };
        let mut fleet = Fleet::with(mode, &redis, HOSTS - 1, Some(elsewhere));
        std::thread::sleep(2 * SECOND);
        network.cut();
        std::thread::sleep(12 * SECOND);
        network.heal();
        fleet.heal();
        fleet.finish_sound("one host's link to Redis cut for 12 s");
    }
}

/// Three times, each in the middle of what is on its way.
#[test]
fn a_redis_that_keeps_its_file_costs_the_reliable_mode_nothing() {
    let mut redis = redis_bed::Setup::default().append_only().start();
    let mut fleet = Fleet::start(Mode::Streams, &redis);
    for _ in 0..3 {
        redis.kill();
        std::thread::sleep(SECOND);
        redis.restart();
        connected(&fleet.hosts);
        std::thread::sleep(SECOND);
    }
    fleet.heal();
    fleet.finish_sound("Redis killed three times and started again with its file");
}

#[test]
fn connections_that_are_closed_cost_the_reliable_mode_nothing() {
    let redis = Redis::start();
    let mut fleet = Fleet::start(Mode::Streams, &redis);
    for _ in 0..10 {
        std::thread::sleep(SECOND * 2 / 5);
        redis.drop_clients("normal");
    }
    fleet.heal();
    fleet.finish_sound("all connections to Redis closed ten times");
}

/// In the other mode Redis gives up who does not read.
#[test]
fn a_host_that_is_stopped_reads_on_where_it_was() {
    let redis = Redis::start();
    let mut fleet = Fleet::start(Mode::Streams, &redis);
    fleet.hosts[0].signal(Signal::STOP);
    std::thread::sleep(5 * SECOND);
    fleet.hosts[0].signal(Signal::CONT);
    fleet.heal();
    fleet.finish_sound("a host stopped for 5 s");
}
