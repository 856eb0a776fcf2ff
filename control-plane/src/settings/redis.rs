//! The other hosts: how the settings of Redis and of the relay go together. Certificates are read here, once; whether Redis is there is found
//! out by the engine, again and again.

use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

use engine::config::{Adapter, Redis, Relay, RelayMode};
use engine::relay::link::AddressFault;

use super::secret;
use super::sources::{Environment, Gathered};
use super::table::{Setting, settings};
use super::value::{Kind, is_redis_url, is_unix, without_credentials};

/// Bytes of a file with certificates: the list of all authorities of a Linux system has 250 kB.
const CERTIFICATES_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Where sentinels listen where nobody says it.
const SENTINEL_PORT: u16 = 26_379;

/// Bytes of messages that wait while Redis is away (contract).
const BUFFER_BYTES: usize = 16_000_000;

/// The same where nothing of it is to be lost: what a busy host says in minutes.
const STREAMS_BUFFER_BYTES: usize = 64_000_000;

/// What joins hosts.
pub(super) struct Fleet {
    /// For the engine.
    pub(super) relay: Relay,
    /// Where Redis is, for people.
    pub(super) place: String,
}

/// Which servers are meant.
enum Servers {
    Single(String),
    Sentinels { sentinels: Vec<String>, master: String, node: String },
    Cluster(Vec<String>),
}

/// The other hosts, if there are any. What is wrong is among the problems.
pub(super) fn fleet(gathered: &mut Gathered, environment: &Environment) -> Option<Fleet> {
    // What is said of values that cannot be read is enough.
    if gathered.problems.iter().any(|problem| problem.key.starts_with("redis.")) {
        return None;
    }
    let before = gathered.problems.len();
    let url = url(gathered, environment);
    if gathered.problems.len() > before {
        return None;
    }
    let Some(servers) = servers(gathered, url) else {
        if gathered.problems.len() == before {
            expect_nothing(gathered);
        }
        return None;
    };
    check_modes(gathered);
    let redis = redis(gathered, &servers)?;
    let place = match &servers {
        Servers::Single(url) => without_credentials(url),
        Servers::Sentinels { sentinels, master, .. } => format!("{master} of {}", shown(sentinels)),
        Servers::Cluster(nodes) => format!("cluster of {}", shown(nodes)),
    };
    let relay = relay(gathered, redis);
    warn(gathered, &servers, relay.mode);
    (gathered.problems.len() == before).then_some(Fleet { relay, place })
}

/// `redis.url`, wherever it is kept.
fn url(gathered: &mut Gathered, environment: &Environment) -> Option<String> {
    let secret = secret(gathered, environment, "redis.url", "redis.url_file", "redis_url")?;
    let url = std::str::from_utf8(secret.reveal()).ok().map(str::trim).filter(|url| is_redis_url(url));
    if url.is_none() {
        // Its text is shown to nobody: who knows which part of it is the password.
        let form = Kind::Redis.allowed();
        match gathered.given("redis.url_file") {
            Some(_) => gathered.complain("redis.url_file", format!("the file does not hold {form}")),
            None => gathered.complain("redis.url", format!("the systemd credential redis_url does not hold {form}")),
        }
    }
    url.map(str::to_owned)
}

/// Which of the three ways to name them was taken; `None` where none was, or not whole.
fn servers(gathered: &mut Gathered, url: Option<String>) -> Option<Servers> {
    let cluster = gathered.servers("redis.cluster").to_vec();
    let sentinels = gathered.servers("redis.sentinels").to_vec();
    let master = gathered.text("redis.master").map(str::to_owned);
    match (cluster.is_empty(), sentinels.is_empty(), master) {
        (false, false, _) => complain(gathered, "redis.sentinels", "redis.cluster is set too: a cluster has no sentinels; set one of them"),
        (_, true, Some(_)) => complain(gathered, "redis.master", "means nothing without redis.sentinels: the sentinels know who it is"),
        (true, false, None) => complain(gathered, "redis.master", "is needed by redis.sentinels: the name that they have for it"),
        (true, false, Some(master)) => {
            let node = url.unwrap_or_else(|| "redis://localhost".to_owned());
            if is_unix(&node) {
                return complain(
                    gathered,
                    "redis.url",
                    "must be redis:// or rediss:// beside redis.sentinels: the master is on the network",
                );
            }
            let sentinels = sentinels.iter().map(|url| with_port(url, SENTINEL_PORT)).collect();
            Some(Servers::Sentinels { sentinels, master, node })
        }
        (false, true, None) => of_cluster(gathered, cluster, url),
        (true, true, None) => url.map(Servers::Single),
    }
}

fn complain(gathered: &mut Gathered, key: &str, reason: &str) -> Option<Servers> {
    gathered.complain(key, reason);
    None
}

/// Nodes that are named without a user or password have those of `redis.url`, so that a list of them is no secret.
fn of_cluster(gathered: &mut Gathered, nodes: Vec<String>, url: Option<String>) -> Option<Servers> {
    let Some(url) = url else { return Some(Servers::Cluster(nodes)) };
    if is_unix(&url) {
        return complain(gathered, "redis.url", "must be redis:// or rediss:// beside redis.cluster: the nodes are on the network");
    }
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    if !matches!(database, "" | "0") {
        return complain(gathered, "redis.url", "must not name a database beside redis.cluster: a cluster has only one");
    }
    let Some((credentials, _)) = authority.rsplit_once('@') else { return Some(Servers::Cluster(nodes)) };
    let mut named = Vec::new();
    for node in nodes {
        let (own_scheme, place) = node.split_once("://").unwrap_or_default();
        if place.contains('@') {
            named.push(node);
        } else if own_scheme == scheme {
            named.push(format!("{scheme}://{credentials}@{place}"));
        } else {
            return complain(
                gathered,
                "redis.cluster",
                "must have the scheme of redis.url where it takes its user and password from there",
            );
        }
    }
    Some(Servers::Cluster(named))
}

/// The URL with a port, where it has none.
fn with_port(url: &str, port: u16) -> String {
    let end = url.find("://").map_or(0, |at| at + 3);
    let rest = &url[end..];
    let path = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest[..path].rsplit_once('@').map_or(&rest[..path], |(_, host)| host);
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    if has_port { url.to_owned() } else { format!("{}:{port}{}", &url[..end + path], &rest[path..]) }
}

/// Without Redis a word about it is a misunderstanding; one about the relay may be meant for the day when there is one.
fn expect_nothing(gathered: &mut Gathered) {
    let is_empty =
        |gathered: &Gathered, setting: &Setting| matches!(setting.kind, Kind::Servers) && gathered.servers(setting.path).is_empty();
    let said = settings().into_iter().filter(|setting| gathered.is_said(setting) && !is_empty(gathered, setting));
    let said: Vec<_> = said.map(|setting| setting.path).collect();
    for path in said {
        if path.starts_with("redis.") {
            gathered.complain(path, "means nothing without redis.url, redis.cluster or redis.sentinels");
        } else if path.starts_with("relay.") {
            gathered.warnings.push(format!("{path} means nothing yet: there is no redis.url, redis.cluster or redis.sentinels"));
        }
    }
}

fn check_modes(gathered: &mut Gathered) {
    let is_streams = gathered.text("relay.mode") == Some("streams");
    for setting in settings().iter().filter(|setting| ["relay.adapter", "relay.buffer_ms"].contains(&setting.path)) {
        if is_streams && gathered.is_said(setting) {
            gathered.complain(setting.path, "means nothing with relay.mode = \"streams\"");
        }
    }
    for (key, means_something) in [("redis.socket_io_key", "* ? [ ] \\"), ("redis.prefix", "* ? [ ] \\ { }")] {
        if gathered.text(key).is_some_and(|text| means_something.split(' ').any(|sign| text.contains(sign))) {
            gathered.complain(key, format!("must not have any of {means_something}, which mean something to Redis"));
        }
    }
}

/// Reads the certificates and puts everything together; whether it fits the engine says.
fn redis(gathered: &mut Gathered, servers: &Servers) -> Option<Redis> {
    let mut redis = match servers.clone_parts() {
        (urls, None, is_cluster) => Redis { urls, is_cluster, ..Redis::default() },
        (urls, Some((master, node)), _) => Redis { urls, master: Some(master), node, ..Redis::default() },
    };
    let is_tls = redis.urls.iter().chain([&redis.node]).any(|url| url.starts_with("rediss://"));
    let files = ["redis.ca_file", "redis.certificate_file", "redis.key_file"];
    let [ca, certificate, key] = files.map(|key| content(gathered, key, is_tls));
    match (gathered.given(files[1]).is_some(), gathered.given(files[2]).is_some()) {
        (true, false) => gathered.complain(files[1], "needs redis.key_file: nobody believes a certificate without its key"),
        (false, true) => gathered.complain(files[2], "means nothing without redis.certificate_file"),
        _ => {}
    }
    if gathered.problems.iter().any(|problem| files.contains(&&*problem.key)) {
        return None;
    }
    if is_tls && ca.is_none() {
        redis.system_der = rustls_native_certs::load_native_certs().certs.iter().map(|certificate| certificate.to_vec()).collect();
    }
    (redis.ca, redis.identity) = (ca, certificate.zip(key));
    check(gathered, redis)
}

/// What the engine says of it, told where it was said.
fn check(gathered: &mut Gathered, redis: Redis) -> Option<Redis> {
    let try_it = |redis: &Redis| engine::check_relay(&Relay { redis: redis.clone(), ..Relay::new("") });
    let Err(fault) = try_it(&redis) else { return Some(redis) };
    let key = match fault {
        AddressFault::Certificate if try_it(&Redis { identity: None, ..redis.clone() }).is_ok() => "redis.certificate_file",
        AddressFault::Certificate | AddressFault::NoAuthority => "redis.ca_file",
        AddressFault::ClusterNode => "redis.cluster",
        AddressFault::Url | AddressFault::Insecure | AddressFault::Nobody => {
            let is_good =
                |url: &String| try_it(&Redis { urls: vec![url.clone()], master: None, is_cluster: false, ..redis.clone() }).is_ok();
            match (redis.urls.iter().all(is_good), redis.is_cluster, redis.master.is_some()) {
                (false, true, _) => "redis.cluster",
                (false, _, true) => "redis.sentinels",
                _ => "redis.url",
            }
        }
    };
    gathered.complain(key, fault.to_string());
    None
}

impl Servers {
    /// URLs, the master's name with how to talk to it, and whether it is a cluster.
    fn clone_parts(&self) -> (Vec<String>, Option<(String, String)>, bool) {
        match self {
            Servers::Single(url) => (vec![url.clone()], None, false),
            Servers::Sentinels { sentinels, master, node } => (sentinels.clone(), Some((master.clone(), node.clone())), false),
            Servers::Cluster(nodes) => (nodes.clone(), None, true),
        }
    }
}

/// A file's content, where one is named; it must mean something.
fn content(gathered: &mut Gathered, key: &str, is_tls: bool) -> Option<Vec<u8>> {
    let path = gathered.text(key)?.to_owned();
    if !is_tls {
        gathered.complain(key, "means nothing without a rediss:// URL: only TLS has certificates");
        return None;
    }
    let mut content = Vec::new();
    let read = File::open(Path::new(&path)).and_then(|file| file.take(CERTIFICATES_BYTES_MAX + 1).read_to_end(&mut content));
    match read {
        Ok(bytes) if bytes as u64 <= CERTIFICATES_BYTES_MAX => Some(content),
        Ok(_) => {
            gathered.complain(key, format!("the file is larger than {CERTIFICATES_BYTES_MAX} bytes"));
            None
        }
        Err(fault) => {
            gathered.complain(key, format!("the file cannot be read: {fault}"));
            None
        }
    }
}

fn relay(gathered: &Gathered, redis: Redis) -> Relay {
    let mode = if gathered.text("relay.mode") == Some("streams") { RelayMode::Streams } else { RelayMode::PubSub };
    let adapter = if gathered.text("relay.adapter") == Some("sharded") { Adapter::Sharded } else { Adapter::Classic };
    let word = |key| gathered.text(key).unwrap_or_default().to_owned();
    let number = |key| gathered.integer(key).unwrap_or_default();
    let buffer_bytes = if mode == RelayMode::Streams { STREAMS_BUFFER_BYTES } else { BUFFER_BYTES };
    Relay {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        redis,
        mode,
        adapter,
        prefix: word("redis.prefix"),
        socket_io_key: word("redis.socket_io_key"),
        buffer_bytes: gathered.integer("relay.buffer_bytes").map_or(buffer_bytes, |bytes| bytes as usize),
        buffer_ms: number("relay.buffer_ms"),
        stream_entries: number("relay.stream_entries") as usize,
        lease_ms: number("relay.lease_ms"),
    }
}

fn warn(gathered: &mut Gathered, servers: &Servers, mode: RelayMode) {
    let exposed = match servers {
        Servers::Single(url) => is_exposed(url, url),
        // Where the master is only the sentinels know, but they are rarely on another network than it.
        Servers::Sentinels { sentinels, node, .. } => sentinels.iter().any(|url| is_exposed(url, url) || is_exposed(node, url)),
        Servers::Cluster(nodes) => nodes.iter().any(|url| is_exposed(url, url)),
    };
    if exposed {
        gathered.warnings.push("the password of Redis goes over the network in the clear: use rediss://".to_owned());
    }
    if mode == RelayMode::Streams {
        let warning = "relay.mode = \"streams\" is as lasting as Redis itself: it needs appendonly yes, or what it forgets when it is restarted \
                       is lost to hosts that have not read it";
        gathered.warnings.push(warning.to_owned());
    }
}

/// True exactly when the password in `url` is said in the clear to the host of `to`, which is another machine.
fn is_exposed(url: &str, to: &str) -> bool {
    let authority =
        |url: &str| url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next()).unwrap_or_default().to_owned();
    let (from, to) = (authority(url), authority(to));
    let host = to.rsplit_once('@').map_or(&*to, |(_, host)| host);
    let name = host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map_or(host, |(name, _)| name);
    let is_here = name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    url.starts_with("redis://") && from.contains('@') && !is_here
}

fn shown(urls: &[String]) -> String {
    urls.iter().map(|url| without_credentials(url)).collect::<Vec<_>>().join(", ")
}
