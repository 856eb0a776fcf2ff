//! Captured sessions of the Node server (`vectors/wire`, socket.io 4.8.4 with its own clients), replayed against a host without sockets: what
//! clients said is said again, and what Node answered must be answered. Ids are not compared. Where we differ on purpose a table says
//! so and why; a difference in no table fails, and so does a line of a table that is no longer true.

#[path = "vectors/edges.rs"]
mod edges;
mod host;
#[path = "vectors/http.rs"]
mod http;
#[path = "vectors/sessions.rs"]
mod sessions;

use std::path::Path;

use engine::config::{AuthMode, Config, DialectKind, Endpoint};
use serde_json::Value;

/// The captured application answered `echo` and greeted; the echo of the test profiles does the same under other names.
fn config() -> Config {
    let echo = |bind: &str| Endpoint { auth: AuthMode::None, ..host::endpoint(bind, DialectKind::Echo, bind) };
    let mut config = host::config(2, vec![echo("/"), echo("/custom")]);
    config.socket_io.ping_timeout_ms = 20_000;
    config.origins.clear();
    config
}

fn capture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/wire").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("a capture is JSON")
}

/// Ids become `<sid>`: 20 characters behind `"sid":"` or `=` of a cookie.
fn without_sids(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = ["\"sid\":\"", "Cookie: io=", "set-cookie: io="].iter().filter_map(|key| Some(rest.find(key)? + key.len())).min() {
        let end = at + 20;
        let Some(after) = rest.get(end..) else { break };
        out.push_str(&rest[..at]);
        out.push_str("<sid>");
        rest = after;
    }
    out + rest
}

/// Every capture is replayed or has its line here.
#[test]
fn no_capture_is_forgotten() {
    const ELSEWHERE: [(&str, &str); 5] = [
        ("recovery-false-expired", "recovery_vectors.rs"),
        ("recovery-false-no-offset", "recovery_vectors.rs"),
        ("recovery-polling", "recovery_vectors.rs"),
        ("recovery-true", "recovery_vectors.rs"),
        // A namespace of another product, which is not served.
        ("admin-ui-session", "nowhere"),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/wire");
    for entry in std::fs::read_dir(folder).expect("the captures are there") {
        let name = entry.expect("a readable folder").file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".json") else { continue };
        let replayed = name == edges::NAME || sessions::REPLAYED.contains(&name);
        let is_elsewhere = ELSEWHERE.iter().any(|(capture, _)| *capture == name);
        assert!(replayed != is_elsewhere, "{name} is replayed here or elsewhere");
    }
}
