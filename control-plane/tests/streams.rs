//! The reliable mode's other half: clients that break off on one host come back on another with all they missed, also to and from servers of Node.
//! Real processes, a real Redis, the real packages.

#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use redis_bed::{Redis, until};
use support::programs::{assert_success, in_path, outcome, skip, target_folder};
use support::{ADMIN_TOKEN, SECRET, Server, Setup, aloud, get};

const STREAMS: &str = "[relay]\nmode = \"streams\"\n";

fn hosts(redis: &Redis, count: usize) -> Vec<Server> {
    let url: &'static str = redis.url().leak();
    let hosts: Vec<Server> =
        (0..count).map(|_| Server::start(&Setup { redis: Some(url), sections: STREAMS, ..Setup::default() })).collect();
    for host in &hosts {
        until("a host reaches Redis", || get(host.control, "/readyz").1.contains(r#""relay":"connected""#));
    }
    hosts
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
    let told = std::fs::read_to_string(&log).unwrap_or_default();
    told.lines().filter(|line| line.starts_with("figures:")).for_each(aloud);
    assert!(hosts[0].exit(redis_bed::PATIENCE).success(), "it was told to stop: {}", hosts[0].said());
    hosts[1].assert_well();
}
