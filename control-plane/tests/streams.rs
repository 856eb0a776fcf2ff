//! The reliable mode: hosts under a steady load while Redis is stopped, killed and started again, or loses its latest, and while one of the hosts
//! is stopped. Nothing may be lost, nothing may come twice, and nothing out of order. Real processes, a real Redis; figures are printed.

#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use redis_bed::{Redis, until};
use rustix::process::Signal;
use support::load::{Book, Load, Plan};
use support::programs::{assert_success, in_path, outcome, skip, target_folder};
use support::{ADMIN_TOKEN, SECRET, Server, Setup, aloud, get};

/// Clients, over all hosts.
const CLIENTS: usize = 100;
const STREAMS: &str = "[relay]\nmode = \"streams\"\n";

fn hosts(redis: &Redis, count: usize) -> Vec<Server> {
    let url: &'static str = redis.url().leak();
    let hosts: Vec<Server> =
        (0..count).map(|_| Server::start(&Setup { redis: Some(url), sections: STREAMS, ..Setup::default() })).collect();
    connected(&hosts);
    hosts
}

fn connected(hosts: &[Server]) {
    for host in hosts {
        until("a host reaches Redis", || get(host.control, "/readyz").1.contains(r#""relay":"connected""#));
    }
}

fn load(hosts: &[Server]) -> Load {
    let addresses = hosts.iter().map(|host| host.public).collect();
    let every = Duration::from_millis(50);
    Load::start(Plan { hosts: addresses, clients_per_host: CLIENTS / hosts.len(), rooms: 10, every })
}

fn pause(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

/// Ends the load; what came of it must be whole.
fn assert_whole(what: &str, load: Load, healed: Duration) {
    let book: Book = load.finish();
    let whole = book.whole_after(Duration::from_secs(1)).saturating_sub(healed);
    aloud(&format!(
        "{what}: {} messages, {} deliveries between hosts of which {} lost, {} doubled, {} out of order, {} clients cut; whole again {} ms after healing",
        book.sent,
        book.cross,
        book.cross_lost,
        book.doubled,
        book.misordered,
        book.cut,
        whole.as_millis(),
    ));
    let missed = &book.missed[..book.missed.len().min(5)];
    assert_eq!((book.local_lost, book.cross_lost, book.doubled, book.misordered, book.cut), (0, 0, 0, 0, 0), "{missed:?}");
    assert!(book.cross > 1_000, "{} deliveries between hosts test little", book.cross);
}

#[test]
fn a_redis_that_is_stopped_for_a_while_costs_nothing() {
    let redis = Redis::start();
    let hosts = hosts(&redis, 2);
    let load = load(&hosts);
    pause(1);
    redis.freeze();
    pause(4);
    redis.thaw();
    let healed = load.elapsed();
    pause(3);
    assert_whole("Redis stopped for 4 s", load, healed);
}

/// So long that hosts give the connection up. What they had sent is still in Redis' sockets, and is done when it goes on: they cannot know, and
/// send it again.
#[test]
fn what_is_done_after_its_sender_has_given_up_is_not_done_twice() {
    let redis = Redis::start();
    let hosts = hosts(&redis, 2);
    let load = load(&hosts);
    pause(1);
    redis.freeze();
    pause(18);
    redis.thaw();
    let healed = load.elapsed();
    connected(&hosts);
    pause(6);
    assert_whole("Redis stopped for 18 s", load, healed);
}

#[test]
fn a_redis_that_is_killed_and_keeps_its_file_costs_nothing() {
    let mut redis = redis_bed::Setup::default().append_only().start();
    let hosts = hosts(&redis, 2);
    let load = load(&hosts);
    let mut healed = Duration::ZERO;
    // Each time in the middle of what is on its way.
    for _ in 0..3 {
        pause(1);
        redis.kill();
        pause(1);
        redis.restart();
        healed = load.elapsed();
        connected(&hosts);
    }
    pause(5);
    assert_whole("Redis killed three times", load, healed);
}

#[test]
fn a_redis_that_loses_everything_costs_nothing_but_its_past() {
    let mut redis = Redis::start();
    let hosts = hosts(&redis, 2);
    let load = load(&hosts);
    pause(2);
    redis.kill();
    pause(1);
    redis.restart();
    let healed = load.elapsed();
    connected(&hosts);
    pause(5);
    assert_whole("Redis started again with nothing", load, healed);
}

#[test]
fn connections_that_are_closed_cost_nothing() {
    let redis = Redis::start();
    let hosts = hosts(&redis, 2);
    let load = load(&hosts);
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(400));
        redis.drop_clients("normal");
    }
    let healed = load.elapsed();
    pause(5);
    assert_whole("all connections closed ten times", load, healed);
}

#[test]
fn a_host_that_is_stopped_reads_on_where_it_was() {
    let redis = Redis::start();
    let hosts = hosts(&redis, 2);
    let load = load(&hosts);
    pause(1);
    hosts[0].signal(Signal::STOP);
    pause(5);
    hosts[0].signal(Signal::CONT);
    let healed = load.elapsed();
    pause(3);
    assert_whole("a host stopped for 5 s", load, healed);
}

/// `clients/streams.mjs`: clients that break off on one host and come back on another, or on a server of Node.
#[test]
fn clients_come_back_on_whichever_host() {
    let packages = target_folder().join("clients/node_modules");
    let Some(node) = in_path("node") else { return skip("streams.mjs", "node") };
    for package in ["socket.io", "@socket.io/redis-streams-adapter", "redis", "socket.io-client"] {
        if !packages.join(package).exists() {
            return skip("streams.mjs", &format!("{package} in target/clients/node_modules"));
        }
    }
    let redis = Redis::start();
    let mut hosts = hosts(&redis, 2);
    let of = |of: fn(&Server) -> String| hosts.iter().map(of).collect::<Vec<_>>().join(",");
    let (public, control) = (of(|host| host.public.port().to_string()), of(|host| host.control.port().to_string()));
    let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("streams.log");
    let file = std::fs::File::create(&log).expect("the target folder can be written");
    let mut script = Command::new(node)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/streams.mjs"))
        .env("PORT", hosts[0].public.port().to_string())
        .env("CONTROL", hosts[0].control.port().to_string())
        .env("PORTS", public)
        .env("CONTROLS", control)
        .env("PIDS", of(|host| host.pid().to_string()))
        .env("REDIS_URL", redis.url())
        .env("SECRET", SECRET)
        .env("ADMIN_TOKEN", ADMIN_TOKEN)
        .env("CLIENT_MODULES", target_folder().join("clients"))
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("one more descriptor"))
        .stderr(file)
        .process_group(0)
        .spawn()
        .expect("the interpreter is there");
    assert_success("streams.mjs", outcome(&mut script), &log);
    assert!(hosts[0].exit(redis_bed::PATIENCE).success(), "it was told to stop: {}", hosts[0].said());
    hosts[1].assert_well();
}
