//! Three hosts that share a Redis, and clients that others wrote: who is where, over all of them, and what happens when one of them dies. The
//! built binary, a real Redis; the script is in `clients/`.

#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use redis_bed::Redis;
use support::programs::{assert_success, in_path, outcome, skip, target_folder};
use support::{ADMIN_TOKEN, SECRET, Server, Setup};

/// A host that says nothing of itself for so long is dead: long enough for a busy machine, short enough to wait for.
const SECTIONS: &str = "[relay]\nlease_ms = 3000\n";

/// Who may enter is in Redis here; of the first community endpoint that is so by default, where the token has no lists.
const VARIABLES: [(&str, &str); 2] = [("URINGCAST_ENDPOINT_CHAT_MEMBERSHIP", "redis"), ("URINGCAST_ENDPOINT_AGENT_MEMBERSHIP", "redis")];

#[test]
fn presence() {
    script("presence.mjs", 3);
}

/// Runs one script against hosts of its own.
fn script(name: &str, count: usize) {
    let modules = target_folder().join("clients");
    let node = match in_path("node") {
        Some(node) if modules.join("node_modules/ws").exists() && modules.join("node_modules/socket.io-client").exists() => node,
        _ => return skip(name, "node, with ws and socket.io-client in target/clients/node_modules"),
    };
    let redis = Redis::start();
    // A few bytes, for as long as the test runs.
    let url: &'static str = redis.url().leak();
    let start = |_| Server::start(&Setup { redis: Some(url), sections: SECTIONS, variables: &VARIABLES, ..Setup::default() });
    let mut hosts: Vec<Server> = (0..count).map(start).collect();
    redis_bed::until("all hosts say that they live", || redis.cli(&["SCARD", "uringcast:hosts"]).trim() == count.to_string());
    let joined = |of: &dyn Fn(&Server) -> String| hosts.iter().map(of).collect::<Vec<_>>().join(",");
    let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.log"));
    let file = std::fs::File::create(&log).expect("the target folder can be written");
    let mut client = Command::new(node)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name))
        .env("PORT", hosts[0].public.port().to_string())
        .env("CONTROL", hosts[0].control.port().to_string())
        .env("PORTS", joined(&|host| host.public.port().to_string()))
        .env("CONTROLS", joined(&|host| host.control.port().to_string()))
        .env("PIDS", joined(&|host| host.pid().to_string()))
        .env("REDIS_PORT", redis.port().to_string())
        .env("SECRET", SECRET)
        .env("ADMIN_TOKEN", ADMIN_TOKEN)
        .env("CLIENT_MODULES", modules)
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("one more descriptor"))
        .stderr(file)
        .process_group(0)
        .spawn()
        .expect("node is there");
    assert_success(name, outcome(&mut client), &log);
    // The script ends the last ones itself.
    hosts[0].assert_well();
}
