//! One fleet of two hosts and two Socket.IO servers of Node on a real Redis: `clients/fleet.mjs` has clients on each of the four, and says
//! everything in all directions. Once for each way in which Node's servers talk.

#[path = "../../engine/tests/redis_bed/mod.rs"]
mod redis_bed;
mod support;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use redis_bed::Redis;
use support::programs::{assert_success, in_path, outcome, skip, target_folder};
use support::{ADMIN_TOKEN, SECRET, Server, Setup, get};

/// What the script needs of npm.
const PACKAGES: [&str; 6] =
    ["socket.io", "@socket.io/redis-adapter", "@socket.io/redis-emitter", "@socket.io/redis-streams-adapter", "redis", "socket.io-client"];

fn fleet(adapter: &str, sections: &'static str) {
    let name = format!("fleet.mjs ({adapter})");
    let packages = target_folder().join("clients/node_modules");
    let Some(node) = in_path("node") else { return skip(&name, "node") };
    if let Some(missing) = PACKAGES.iter().find(|package| !packages.join(package).exists()) {
        return skip(&name, &format!("{missing} in target/clients/node_modules"));
    }
    let redis = Redis::start();
    let url: &'static str = redis.url().leak();
    let hosts: Vec<Server> =
        (0..2).map(|_| Server::start(&Setup { redis: Some(url), sections, shards: Some(3), ..Setup::default() })).collect();
    for host in &hosts {
        redis_bed::until("a host reaches Redis", || get(host.control, "/readyz").1.contains(r#""relay":"connected""#));
    }
    let ports = |port: fn(&Server) -> u16| hosts.iter().map(|host| port(host).to_string()).collect::<Vec<_>>().join(",");
    let (public, control) = (ports(|host| host.public.port()), ports(|host| host.control.port()));
    let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fleet-{adapter}.log"));
    let file = std::fs::File::create(&log).expect("the target folder can be written");
    let mut script = Command::new(node)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/fleet.mjs"))
        .env("ADAPTER", adapter)
        .env("PORT", hosts[0].public.port().to_string())
        .env("CONTROL", hosts[0].control.port().to_string())
        .env("PORTS", public)
        .env("CONTROLS", control)
        .env("REDIS_URL", url)
        .env("SECRET", SECRET)
        .env("ADMIN_TOKEN", ADMIN_TOKEN)
        .env("CLIENT_MODULES", target_folder().join("clients"))
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("one more descriptor"))
        .stderr(file)
        .process_group(0)
        .spawn()
        .expect("the interpreter is there");
    assert_success(&name, outcome(&mut script), &log);
    for mut host in hosts {
        host.assert_well();
        // Nothing that Node's adapters say is beyond us, and nothing was left out.
        for reason in ["malformed", "unspeakable", "answer", "busy", "overflow"] {
            let dropped = host.metric("uringcast_relay_dropped_total", &[("reason", reason)]);
            assert!(dropped.abs() < f64::EPSILON, "{dropped} dropped as {reason}");
        }
    }
}

#[test]
fn with_the_classic_adapter() {
    fleet("classic", "");
}

#[test]
fn with_the_classic_adapter_and_answers_on_channels_of_their_own() {
    fleet("specific", "");
}

#[test]
fn with_the_sharded_adapter() {
    fleet("sharded", "[relay]\nadapter = 'sharded'\n");
}

#[test]
fn with_the_streams_adapter() {
    fleet("streams", "[relay]\nmode = 'streams'\n");
}
