//! What rooms keep, and which rooms the back end has made, over two hosts and a real Redis: a script of `clients/` speaks and listens on both
//! while hosts and Redis come and go here.

#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use redis_bed::Redis;
use rustix::process::Signal;
use support::programs::{assert_success, in_path, outcome, skip, target_folder};
use support::{ADMIN_TOKEN, SECRET, Server, Setup, get};

const LIMITS: &str = "rate_messages = 1000000\nhandshakes_per_address = 1000000\n";

/// Variables that hosts find, for each mode of the relay.
const MODES: [&[(&str, &str)]; 2] = [
    &[("URINGCAST_ENDPOINT_COMMUNITY_MEMBERSHIP", "open"), ("URINGCAST_RELAY_MODE", "pubsub")],
    &[("URINGCAST_ENDPOINT_COMMUNITY_MEMBERSHIP", "open"), ("URINGCAST_RELAY_MODE", "streams")],
];

fn host(redis: &Redis, limits: &'static str, variables: &'static [(&'static str, &'static str)]) -> Server {
    // A few bytes, for as long as the test runs.
    let url: &'static str = redis.url().leak();
    let host = Server::start(&Setup { limits, redis: Some(url), variables, ..Setup::default() });
    connected(&host);
    host
}

fn is_relay(host: &Server, state: &str) -> bool {
    get(host.control, "/readyz").1.contains(&format!(r#""relay":"{state}""#))
}

fn connected(host: &Server) {
    redis_bed::until("a host reaches Redis", || is_relay(host, "connected"));
}

/// Node, if it is here with what the script needs.
fn node() -> Option<PathBuf> {
    let modules = target_folder().join("clients/node_modules");
    let node = in_path("node").filter(|_| modules.join("ws").exists() && modules.join("socket.io-client").exists());
    if node.is_none() {
        skip("history.mjs", "node, ws and socket.io-client");
    }
    node
}

/// Runs a part of the script.
fn part(node: &Path, name: &str, one: &Server, other: &Server, redis: &Redis) {
    let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("history.{name}.log"));
    let file = std::fs::File::create(&log).expect("the target folder can be written");
    let mut client = Command::new(node)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/history.mjs"))
        .env("PART", name)
        .env("PORT", one.public.port().to_string())
        .env("CONTROL", one.control.port().to_string())
        .env("OTHER_PORT", other.public.port().to_string())
        .env("OTHER_CONTROL", other.control.port().to_string())
        .env("REDIS_PORT", redis.port().to_string())
        .env("SECRET", SECRET)
        .env("ADMIN_TOKEN", ADMIN_TOKEN)
        .env("CLIENT_MODULES", target_folder().join("clients"))
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("one more descriptor"))
        .stderr(file)
        .process_group(0)
        .spawn()
        .expect("node is there");
    assert_success(name, outcome(&mut client), &log);
}

#[test]
fn what_is_said_on_one_host_is_found_on_the_other_whatever_comes_and_goes() {
    let Some(node) = node() else { return };
    for variables in MODES {
        is_found_whatever_comes_and_goes(&node, variables);
    }
}

fn is_found_whatever_comes_and_goes(node: &Path, variables: &'static [(&'static str, &'static str)]) {
    let mut redis = Redis::start();
    let one = host(&redis, LIMITS, variables);
    let mut other = host(&redis, LIMITS, variables);
    part(node, "load", &one, &other, &redis);
    part(node, "rest", &one, &other, &redis);

    // What somebody else puts there is no message, and no reason to stop.
    let key = "uringcast:{rooms/load}:history";
    for fields in [
        &["nonsense", "1"][..],
        &["id", "x", "by", "a", "at", "1", "text", "{}", "hidden", ""],
        &["id", "", "by", "a", "at", "9999999999999", "text", "no json", "hidden", ""],
        &["id", "", "by", "a\u{1}", "at", "9999999999999", "text", "{}", "hidden", ""],
        &["id", "", "by", "a", "at", "9999999999999", "text", "{}", "hidden", "{\"a\":1}"],
        &["id", "", "by", "a", "at", "-5", "text", "{}", "hidden", ""],
    ] {
        redis.cli(&[&["XADD", key, "*"], fields].concat());
    }
    part(node, "garbage", &one, &other, &redis);
    let malformed = get(one.control, "/metrics").1;
    assert!(malformed.lines().any(|line| line.contains(r#"malformed"#) && !line.ends_with(" 0")), "it is counted");

    // A host that starts anew.
    drop(other);
    other = host(&redis, LIMITS, variables);
    part(node, "restarted", &one, &other, &redis);

    // A Redis that has lost everything.
    redis.restart();
    for host in [&one, &other] {
        redis_bed::until("it is seen that Redis was away", || redis.clients().len() >= 4 && is_relay(host, "connected"));
    }
    redis_bed::until("the rooms that were made are there again", || {
        redis.cli(&["HEXISTS", "uringcast:rooms:fixed", "made"]) == "1" && redis.cli(&["HLEN", "uringcast:rooms:fixed"]) == "1"
    });
    part(node, "lost", &one, &other, &redis);

    // A room that ends while the other host does not hear of it.
    other.signal(Signal::STOP);
    redis.drop_clients("normal");
    redis.drop_clients("pubsub");
    redis_bed::until("the one that runs is back", || redis.clients().len() >= 2 && is_relay(&one, "connected"));
    part(node, "ended", &one, &one, &redis);
    other.signal(Signal::CONT);
    redis_bed::until("both are back", || redis.clients().len() >= 4 && is_relay(&other, "connected"));
    part(node, "forgotten", &one, &other, &redis);

    // Without Redis everybody knows what was said here, and at once.
    redis.kill();
    for host in [&one, &other] {
        redis_bed::until("it is seen that Redis is gone", || !is_relay(host, "connected"));
    }
    part(node, "down", &one, &other, &redis);
}

#[test]
fn the_bounds_of_a_room_hold_for_all_hosts_together() {
    let Some(node) = node() else { return };
    let redis = Redis::start();
    let limits = "rate_messages = 1000000\nhistory_messages = 100\nhistory_age_ms = 4000\n";
    let (one, other) = (host(&redis, limits, MODES[0]), host(&redis, limits, MODES[0]));
    part(&node, "bounds", &one, &other, &redis);
    redis_bed::until("nothing of it is left", || {
        !redis.cli(&["KEYS", "*"]).lines().any(|key| key.contains(":history") || key.contains(":edits") || key.contains(":by:"))
    });
}
