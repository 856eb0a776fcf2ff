//! What an operator sees of the Redis that joins hosts: the built binary beside a real one that comes, goes and refuses, and the ACL rule of the
//! README.

#[path = "support/across.rs"]
mod across;
#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::path::{Path, PathBuf};

use redis_bed::{Redis, until};
use serde_json::{Value, json};
use support::raw::Raw;
use support::{Server, Setup, get};

/// No log, answer or metric may show it.
const PASSWORD: &str = "hunter2-of-redis";

fn relay(server: &Server) -> String {
    let ready: Value = serde_json::from_str(&get(server.control, "/readyz").1).expect("JSON");
    format!("{} {}", ready["status"].as_str().unwrap_or_default(), ready["relay"].as_str().unwrap_or_default())
}

fn document(server: &Server, path: &str) -> Value {
    serde_json::from_str(&get(server.public, path).1).expect("JSON")
}

fn lines(server: &Server, what: &str) -> usize {
    server.said().lines().filter(|line| line.contains(what)).count()
}

#[test]
fn a_redis_that_comes_and_goes_is_told_once_each_time() {
    let mut redis = redis_bed::Setup::default().password(PASSWORD).start();
    redis.kill();
    let url: &'static str = redis.url().leak();
    let server = Server::start(&Setup { redis: Some(url), ..Setup::default() });
    until("it is told that there is no Redis", || lines(&server, "relay: Redis cannot be reached") == 1);
    assert_eq!(relay(&server), "degraded down");
    assert_eq!(document(&server, "/api/community/ws/health")["data"]["pubsub"]["isHealthy"], json!(false));

    redis.restart();
    until("the host reaches it", || relay(&server) == "ready connected");
    until("a round trip is measured", || document(&server, "/ready")["websocket"]["redis"]["latency"].as_f64().is_some_and(|ms| ms > 0.0));
    let ready = document(&server, "/ready");
    assert_eq!((&ready["cache"], &ready["websocket"]["redis"]["connected"]), (&json!(true), &json!(true)));
    assert_eq!(document(&server, "/health")["services"]["redis"], json!("connected"));
    let pubsub = &document(&server, "/api/community/ws/health")["data"]["pubsub"];
    assert!(pubsub["subscribedChannels"].as_u64().is_some_and(|channels| channels > 0) && pubsub["isHealthy"] == json!(true), "{pubsub}");
    assert!(server.metric("uringcast_relay_connected", &[]) > 0.0 && server.metric("uringcast_relay_round_trip_seconds", &[]) > 0.0);

    until("it is told", || lines(&server, "relay: Redis is reached") == 1);

    redis.kill();
    until("its end is told", || lines(&server, "relay: Redis closed the connection") == 1 && relay(&server) == "degraded down");
    redis.restart();
    // Two changes within a second are one line.
    until("it is reached again", || lines(&server, "relay: Redis is reached") == 2);
    // Attempts were many; each outage has one line for how it began and one for each other reason.
    assert!(lines(&server, "relay: Redis cannot be reached") <= 2, "{}", server.said());
    assert!(!server.said().contains(PASSWORD), "{}", server.said());
}

/// The rule of the README, for the endpoints of a test server.
fn rule() -> String {
    let readme = include_str!("../../README.md");
    let rule = readme.lines().find_map(|line| line.trim().strip_prefix("user uringcast ")).expect("the README has the rule");
    let others = ["/fixed", "/guests", "/lobby", "/kept"].map(|namespace| format!("&socket.io#{namespace}#*")).join(" ");
    format!("{} {others} &open:updates", rule.replace(">PASSWORD", &format!(">{PASSWORD}")))
}

#[test]
fn the_readmes_user_may_do_what_hosts_do_and_one_who_may_not_is_told() {
    let redis = redis_bed::Setup::default().user("uringcast", &rule()).user("deaf", &format!("on >{PASSWORD} +@all ~* &nothing")).start();
    let url = |user: &str| -> &'static str { redis.url_as(&format!("{user}:{PASSWORD}@")).leak() };
    let hosts = [(); 2].map(|()| Server::start(&Setup { redis: Some(url("uringcast")), ..Setup::default() }));
    for host in &hosts {
        until("a host reaches Redis", || relay(host) == "ready connected");
    }
    redis.cli(&["SADD", "room:den:members", "alice"]);
    let clients = hosts.each_ref().map(|host| {
        let mut guest = Raw::open(host, "/socket.io/?EIO=4&transport=websocket");
        guest.text_with("0{");
        guest.say("40/lobby,{}");
        guest.text_with("40/lobby,{");
        guest.say(r#"42/lobby,["join-room",{"room":"here"}]"#);
        guest.text_with("room-joined");
        (guest, Raw::talk(host, "alice", "den"))
    });
    // A ping comes after everything else that was asked in the second before.
    let pings = || redis.cli(&["INFO", "commandstats"]).lines().filter(|line| line.starts_with("cmdstat_ping:")).collect::<String>();
    let before = pings();
    until("it is asked more", || pings() != before);
    assert_eq!(redis.cli(&["ACL", "LOG"]), "", "Redis refused something");
    for host in &hosts {
        assert_eq!(lines(host, "refuses"), 0, "{}", host.said());
    }
    drop(clients);

    let deaf = Server::start(&Setup { redis: Some(url("deaf")), ..Setup::default() });
    until("it is told what is refused", || lines(&deaf, "relay: Redis refuses something that is needed: NOPERM") > 0);
    assert!(!deaf.said().contains(PASSWORD), "{}", deaf.said());
}

/// A folder with what a host needs to speak TLS with a Redis, and the sections of the README that name it.
struct Papers(PathBuf);

impl Papers {
    fn new(redis: &Redis, name: &str) -> Papers {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("papers-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the target folder can be written");
        let (certificate, key) = redis.client();
        for (file, text) in [("ca.pem", &redis.authority()), ("client.pem", &certificate), ("client.key", &key)] {
            std::fs::write(folder.join(file), text).expect("the folder is ours");
        }
        Papers(folder)
    }

    /// Sections for a user, with further lines of `[redis]`'s and then of others.
    fn sections(&self, redis: &Redis, user: &str, rest: &str) -> &'static str {
        let file = |name: &str| self.0.join(name).display().to_string();
        let url = file(&format!("{}.url", user.replace(':', "-")));
        std::fs::write(&url, redis.url_as(&format!("{user}@"))).expect("the folder is ours");
        let (ca, certificate, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
        let sections =
            format!("[redis]\nurl_file = {url:?}\nca_file = {ca:?}\ncertificate_file = {certificate:?}\nkey_file = {key:?}\n{rest}");
        // A few bytes, for as long as the test runs.
        sections.leak()
    }
}

impl Drop for Papers {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everything goes from host to host over TLS, as the README's user and with nothing refused. `section` is that of the relay.
fn over_tls(section: &str) {
    let hidden = format!("on >{PASSWORD} +@all -xadd -publish -spublish ~* &*");
    let redis = redis_bed::Setup::default().tls().user("uringcast", &rule()).user("dumb", &hidden).start();
    let papers = Papers::new(&redis, &section.replace(|letter: char| !letter.is_alphanumeric(), ""));
    let start = |user: &str| {
        let sections = papers.sections(&redis, user, section);
        Server::start(&Setup { sections, limits: across::LIMITS, variables: across::VARIABLES, ..Setup::default() })
    };
    let hosts = [(); 2].map(|()| start(&format!("uringcast:{PASSWORD}")));
    across::connected(&hosts);
    across::everything(&hosts, "tls", &|words| redis.cli(words));
    assert_eq!(redis.cli(&["ACL", "LOG"]), "", "Redis refused something");
    for host in &hosts {
        assert_eq!(lines(host, "refuses"), 0, "{}", host.said());
        assert!(relay(host) == "ready connected" && !host.said().contains(PASSWORD), "{}", host.said());
    }

    let stranger = start(&format!("uringcast:{PASSWORD}-not"));
    until("the wrong password is told", || lines(&stranger, "relay: Redis refuses us: ") > 0);
    assert_eq!(relay(&stranger), "degraded down");
    let dumb = start(&format!("dumb:{PASSWORD}"));
    until("it reaches Redis", || relay(&dumb) == "ready connected");
    let mut client = Raw::open(&dumb, "/ws/open?documentId=d&clientID=c");
    client.say(r#"{"type":"update","documentId":"d"}"#);
    until("it is told what is refused", || lines(&dumb, "relay: Redis refuses something that is needed: NOPERM") > 0);
    dumb.until_metric("uringcast_relay_dropped_total", &[("reason", "refused")], |count| count > 0.0);
    for host in [&stranger, &dumb] {
        assert!(!host.said().contains(PASSWORD) && !get(host.control, "/readyz").1.contains(PASSWORD), "{}", host.said());
    }
}

#[test]
fn everything_goes_over_tls_as_the_readmes_user() {
    over_tls("");
}

#[test]
fn everything_goes_over_tls_in_the_reliable_mode_as_well() {
    over_tls("[relay]\nmode = \"streams\"\n");
}
