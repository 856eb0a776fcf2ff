//! Every setting, as data: its key, unit, kind, default, old variables and what it is for. The file, the variables, the flags,
//! `print-config` and the problems are all made from this table; nothing else lists the settings.

use engine::config::{Relay, SocketIo};
use engine::event::EventType;
use engine::limits::{LINKS_PER_SHARD_MAX, Limits, READ_BUFFER_BYTES, SHARDS_MAX};

use super::DRAIN_SECONDS_MAX;
use super::value::{ControlListen, Kind, Value};

/// One setting.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// `section.key`, as in the file.
    pub(crate) path: &'static str,
    /// What its number counts; empty where it is no number.
    pub(crate) unit: &'static str,
    pub(crate) kind: Kind,
    /// `None`: without it something else holds, which `doc` tells.
    pub(crate) default: Option<Value>,
    /// The command line's word for it.
    pub(crate) flag: Option<&'static str>,
    /// Variables of the replaced servers, in the order they are asked.
    pub(crate) old: &'static [&'static str],
    /// One or two sentences for whoever has to set it.
    pub(crate) doc: &'static str,
}

impl Setting {
    fn new(path: &'static str, kind: Kind, default: Option<Value>, doc: &'static str) -> Setting {
        Setting { path, unit: "", kind, default, flag: None, old: &[], doc }
    }

    fn number(path: &'static str, unit: &'static str, (min, max): (u64, u64), default: Option<u64>, doc: &'static str) -> Setting {
        Setting { unit, ..Setting::new(path, Kind::Integer { min, max }, default.map(Value::Integer), doc) }
    }

    fn flag(self, flag: &'static str) -> Setting {
        Setting { flag: Some(flag), ..self }
    }

    fn old(self, old: &'static [&'static str]) -> Setting {
        Setting { old, ..self }
    }

    /// The part before the dot: a table of the file.
    pub(crate) fn section(&self) -> &'static str {
        self.path.split_once('.').map_or("", |(section, _)| section)
    }

    /// The part behind the dot: a key of that table.
    pub(crate) fn key(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(_, key)| key)
    }

    /// `URINGCAST_SECTION_KEY`.
    pub(crate) fn variable(&self) -> String {
        format!("URINGCAST_{}", self.path.replace('.', "_").to_ascii_uppercase())
    }
}

const MINUTE_MS: u64 = 60 * 1_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const YEAR_MS: u64 = 365 * 24 * HOUR_MS;

fn word(text: &str) -> Option<Value> {
    Some(Value::Text(text.to_owned()))
}

/// All settings but those of endpoints, section by section.
pub(crate) fn settings() -> Vec<Setting> {
    [server(), control(), auth(), origins(), socket_io(), webhooks(), limits(), events(), redis(), relay()].concat()
}

fn server() -> Vec<Setting> {
    let everywhere = std::net::SocketAddr::from(([0, 0, 0, 0], 3000));
    vec![
        Setting::new(
            "server.listen",
            Kind::Address,
            Some(Value::Address(everywhere)),
            "Address and port that clients connect to. With --dev always on 127.0.0.1, unless the flag says otherwise.",
        )
        .flag("--listen")
        .old(&["WEBSOCKET_PORT (port only)", "PORT (port only)"]),
        Setting::number(
            "server.shards",
            "",
            (1, SHARDS_MAX as u64),
            None,
            "Threads that serve connections. Unset: one per CPU of the affinity mask.",
        )
        .flag("--shards"),
        Setting::new("server.pin", Kind::Boolean, Some(Value::Boolean(true)), "Each shard stays on one CPU of the affinity mask."),
        Setting::new(
            "server.io",
            Kind::Choice(&["auto", "uring", "epoll"]),
            word("auto"),
            "How shards wait and send. auto: io_uring, and epoll where the kernel forbids it; uring: io_uring or no start.",
        ),
        Setting::number(
            "server.drain_seconds",
            "seconds",
            (0, DRAIN_SECONDS_MAX),
            Some(10),
            "On SIGTERM, closing all connections is spread over this time.",
        ),
        Setting::new(
            "server.keep_sockets",
            Kind::Boolean,
            Some(Value::Boolean(false)),
            "After a crash the next process says goodbye to WebSocket clients, instead of the kernel. Needs systemd's FileDescriptorStoreMax=.",
        ),
        Setting::new(
            "server.trusted_proxies",
            Kind::Addresses,
            Some(Value::List(vec![])),
            "Addresses of proxies whose X-Forwarded-For is believed.",
        ),
    ]
}

fn control() -> Vec<Setting> {
    let local = ControlListen::Tcp(([127, 0, 0, 1], 9464).into());
    vec![
        Setting::new(
            "control.listen",
            Kind::Control,
            Some(Value::Control(local)),
            "Where health, metrics and the admin API answer. With --dev never beyond 127.0.0.1, unless the flag says otherwise.",
        )
        .flag("--control"),
        Setting::new(
            "control.token",
            Kind::Secret,
            None,
            "Admin token. Unset: the systemd credential admin_token; without one the admin API answers only on a Unix socket.",
        )
        .old(&["ADMIN_TOKEN"]),
        Setting::new("control.token_file", Kind::File, None, "File with the admin token; one newline at its end does not count."),
    ]
}

fn auth() -> Vec<Setting> {
    vec![
        Setting::new(
            "auth.algorithm",
            Kind::Choice(&["HS256", "RS256", "ES256", "EdDSA"]),
            word("HS256"),
            "The one algorithm that tokens may be signed with.",
        ),
        Setting::new("auth.secret", Kind::Secret, None, "Secret of HS256, and of encrypted session cookies: with a public key or key set of nothing else, and JWT_SECRET is not it then. Unset: the systemd credential jwt_secret.").old(&[
            "JWT_SECRET",
            "NEXTAUTH_SECRET",
            "AUTH_SECRET",
        ]),
        Setting::new("auth.secret_file", Kind::File, None, "File with that secret; one newline at its end does not count."),
        Setting::new("auth.public_key_file", Kind::File, None, "PEM file with the public key of RS256, ES256 or EdDSA."),
        Setting::new(
            "auth.jwks_file",
            Kind::File,
            None,
            "File with the public keys of RS256, ES256 or EdDSA as a JSON Web Key Set; read again when it changes. A token names its key (kid).",
        ),
        Setting::new(
            "auth.jwks_url",
            Kind::Url,
            None,
            "URL of such a set instead. Until it has been fetched all tokens are refused; when it cannot be fetched again, the keys known so far stay.",
        ),
        Setting::number(
            "auth.jwks_refresh_seconds",
            "seconds",
            (1, 86_400),
            Some(600),
            "The URL is fetched again after this time, or sooner where its answer says so (Cache-Control: max-age).",
        ),
        Setting::number(
            "auth.jwks_cooldown_seconds",
            "seconds",
            (1, 86_400),
            Some(30),
            "A token that names an unknown key makes the URL be fetched at once, but not within this time after the last fetch.",
        ),
        Setting::number(
            "auth.leeway_seconds",
            "seconds",
            (0, 3_600),
            Some(engine::auth::LEEWAY_S),
            "How far the clock of whoever signs tokens may differ.",
        ),
    ]
}

fn origins() -> Vec<Setting> {
    let doc = "Origins of pages that may connect with cookies, and use Socket.IO and REST across sites. * lets all pages in, but without cookies; it is the default of --dev.";
    vec![
        Setting::new("origins.allowed", Kind::Origins, Some(Value::List(vec![])), doc)
            .old(&["WEBSOCKET_CORS_ORIGIN", "FRONTEND_URL (both count)"]),
    ]
}

fn socket_io() -> Vec<Setting> {
    let default = SocketIo::default();
    vec![
        Setting::new("socket_io.path", Kind::RequestPath, word(&default.path), "Request path of Socket.IO.").old(&["WEBSOCKET_PATH"]),
        Setting::number(
            "socket_io.ping_interval_ms",
            "milliseconds",
            (100, HOUR_MS),
            Some(default.ping_interval_ms),
            "From a pong to the next ping.",
        )
        .old(&["WEBSOCKET_PING_INTERVAL"]),
        Setting::number(
            "socket_io.ping_timeout_ms",
            "milliseconds",
            (100, HOUR_MS),
            Some(default.ping_timeout_ms),
            "How long the pong may take.",
        )
        .old(&["WEBSOCKET_PING_TIMEOUT"]),
        Setting::number(
            "socket_io.connect_timeout_ms",
            "milliseconds",
            (100, HOUR_MS),
            Some(default.connect_timeout_ms),
            "Time to join a namespace.",
        ),
        Setting::new(
            "socket_io.cookie",
            Kind::Word,
            None,
            "Name of the cookie in which a long-polling handshake gives the session's id, for load balancers. Unset: no cookie.",
        ),
        Setting::new(
            "socket_io.strict_origin",
            Kind::Boolean,
            Some(Value::Boolean(false)),
            "Refuses handshakes of pages whose origin is not allowed, WebSockets too; otherwise browsers only keep such pages from reading answers. The server's own origin must be allowed too.",
        ),
        Setting::new(
            "socket_io.bundle",
            Kind::File,
            None,
            "Folder with the client's files, served as socket.io.js and so on below the path. Unset: none.",
        ),
    ]
}

fn webhooks() -> Vec<Setting> {
    vec![
        Setting::new(
            "webhooks.secret",
            Kind::Secret,
            None,
            "Signs what is sent to webhooks (header X-Uringcast-Signature). Unset: the systemd credential webhook_secret. Needed where an endpoint has a webhook; --dev makes one up.",
        ),
        Setting::new("webhooks.secret_file", Kind::File, None, "File with that secret; one newline at its end does not count."),
        Setting::number(
            "webhooks.timeout_ms",
            "milliseconds",
            (10, MINUTE_MS),
            Some(2_000),
            "How long an answer may take, connecting and waiting for a place included; then what was asked about is refused.",
        ),
        Setting::number(
            "webhooks.cache_ms",
            "milliseconds",
            (0, HOUR_MS),
            Some(10_000),
            "How long an answer of webhook_join counts for the same user and room, yes or no. 0: not at all.",
        ),
        Setting::number("webhooks.cache_entries", "answers", (0, 10_000_000), Some(100_000), "Such answers kept; the oldest make way."),
        Setting::number(
            "webhooks.concurrency",
            "requests",
            (1, 1_024),
            Some(64),
            "Requests of one webhook of one endpoint at once; others wait for a place.",
        ),
    ]
}

fn limits() -> Vec<Setting> {
    let default = Limits::default();
    let number = Setting::number;
    let links = (LINKS_PER_SHARD_MAX * SHARDS_MAX) as u64;
    vec![
        number("limits.message_bytes", "bytes", (1, 1 << 30), Some(default.message_bytes as u64), "Largest message a client may send.")
            .old(&["WEBSOCKET_MAX_BUFFER_SIZE"]),
        number(
            "limits.outbox_bytes",
            "bytes",
            (1, 1 << 32),
            Some(default.outbox_bytes as u64),
            "Bytes that may wait for a client that reads too slowly; then it is cut. At least limits.message_bytes, with which it grows where it is not set.",
        ),
        number(
            "limits.rate_messages",
            "messages",
            // The engine counts thousandths of a message in 32 bits.
            (1, 4_000_000),
            Some(u64::from(default.rate_messages)),
            "Messages a connection may send in limits.rate_window_ms, and at once.",
        ),
        number(
            "limits.rate_window_ms",
            "milliseconds",
            (1, 24 * HOUR_MS),
            Some(default.rate_window_ms),
            "Window of that rate: limits.rate_messages in this time.",
        )
        .old(&["WEBSOCKET_RATE_LIMIT_WINDOW"]),
        number(
            "limits.rooms_per_connection",
            "rooms",
            (1, 1_000_000),
            Some(default.rooms_per_connection as u64),
            "Rooms one connection may be in.",
        ),
        number(
            "limits.connections_per_user",
            "connections",
            (1, links),
            Some(u64::from(default.connections_per_user)),
            "Connections of one user on an endpoint.",
        ),
        number(
            "limits.connections_per_address",
            "connections",
            (1, links),
            Some(u64::from(default.connections_per_address)),
            "Connections from one IP address.",
        ),
        number(
            "limits.handshakes_per_address",
            "handshakes",
            (1, links),
            Some(u64::from(default.handshakes_per_address)),
            "Handshakes from one IP address in 10 seconds; ten times as many calls over plain HTTP.",
        ),
        number(
            "limits.handshakes_per_second",
            "handshakes",
            (0, 1_000_000),
            Some(u64::from(default.handshakes_per_second)),
            "Handshakes that one shard lets in per second, and a quarter of that at once; 0: all. What comes faster waits, clients that recover first; beyond two seconds' worth clients are told to come again (plain WebSocket: 503 with Retry-After; Socket.IO: its transport closes).",
        ),
        number(
            "limits.memory",
            "bytes",
            (0, 1 << 44),
            Some(default.memory as u64),
            "What connections may hold together: queues, unfinished messages, events for those who come back and histories (these two a quarter each at most). Beyond it those that hold most are cut as slow readers. 0: no bound but each connection's own. About half of systemd's MemoryMax, if that is set: the rest is for what idle connections, rooms and the control plane take.",
        ),
        number(
            "limits.connections",
            "connections",
            (1, links),
            default.connections.map(|most| most as u64),
            "Connections of this process. Unset: as many as its file descriptors allow.",
        )
        .old(&["WEBSOCKET_MAX_CONNECTIONS"]),
        number(
            "limits.head_bytes",
            "bytes",
            (1_024, READ_BUFFER_BYTES as u64),
            Some(default.head_bytes as u64),
            "Largest head of an HTTP request, token and cookies included.",
        ),
        number(
            "limits.handshake_ms",
            "milliseconds",
            (100, 10 * MINUTE_MS),
            Some(default.handshake_ms),
            "From connecting to the end of the handshake.",
        ),
        number(
            "limits.close_ms",
            "milliseconds",
            (1, 10 * MINUTE_MS),
            Some(default.close_ms),
            "From our close frame to the reset of a client that does not answer it.",
        ),
        number(
            "limits.hold_ms",
            "milliseconds",
            (0, 10),
            Some(default.hold_ms),
            "How long messages of a busy room may wait for further ones, to leave in one write; 0: never. A room is busy when its messages come closer together than that, to 64 members on a core or more.",
        ),
        number("limits.history_messages", "messages", (0, 1_000_000), Some(default.history_messages as u64), "Messages kept per room."),
        number("limits.history_age_ms", "milliseconds", (1, YEAR_MS), Some(default.history_age_ms), "How long they are kept."),
        number(
            "limits.history_bytes",
            "bytes",
            (0, 1 << 40),
            Some(default.history_bytes as u64),
            "Memory for all histories; rooms that have been empty longest lose theirs first.",
        ),
        number("limits.rooms", "rooms", (1, 100_000_000), Some(default.rooms as u64), "Rooms of this process, with or without members."),
        number(
            "limits.recovery_sessions",
            "connections",
            (1, 100_000_000),
            Some(default.recovery_sessions as u64),
            "Connections that broke off and can be recovered; the one that has been away longest goes first.",
        ),
        number(
            "limits.recovery_events",
            "events",
            (1, 1_000_000_000),
            Some(default.recovery_events as u64),
            "Events remembered for connections that come back.",
        ),
        number("limits.recovery_bytes", "bytes", (1, 1 << 40), Some(default.recovery_bytes as u64), "Memory for those events."),
    ]
}

/// The contract's words for types of events.
static EVENT_TYPES: [&str; EventType::ALL.len()] = {
    let (mut names, mut index) = ([""; EventType::ALL.len()], 0);
    while index < names.len() {
        names[index] = EventType::ALL[index].name();
        index += 1;
    }
    names
};

fn events() -> Vec<Setting> {
    let number = Setting::number;
    vec![
        number(
            "events.buffer_events",
            "events",
            (1, 10_000_000),
            Some(10_000),
            "Events kept for readers of GET /v1/events that come back or are slow, and for the webhook. Who falls behind is told how many he missed.",
        ),
        number("events.buffer_bytes", "bytes", (1, 1 << 40), Some(64 * 1024 * 1024), "Memory for them; the newest stays, however large."),
        Setting::new(
            "events.webhook_url",
            Kind::Url,
            None,
            "Events are sent here as well, by signed POST requests in order. Unset: nowhere. What is not taken when the process ends is lost.",
        ),
        Setting::new(
            "events.webhook_types",
            Kind::Choices(&EVENT_TYPES),
            Some(Value::List(EVENT_TYPES.map(str::to_owned).to_vec())),
            "Types of events that are sent.",
        ),
        Setting::new(
            "events.webhook_secret",
            Kind::Secret,
            None,
            "Key of the HMAC-SHA256 in X-Uringcast-Signature. Unset: the systemd credential events_webhook_secret.",
        ),
        Setting::new("events.webhook_secret_file", Kind::File, None, "File with that secret; one newline at its end does not count."),
        number("events.webhook_batch_events", "events", (1, 10_000), Some(100), "Events in one request, at most."),
        number(
            "events.webhook_batch_bytes",
            "bytes",
            (1, 1 << 30),
            Some(256 * 1024),
            "Bytes after which a request takes no more events; the last may be as large as a message can be.",
        ),
        number("events.webhook_timeout_ms", "milliseconds", (100, 10 * MINUTE_MS), Some(10_000), "Time for one try, answer included."),
        number(
            "events.webhook_retry_seconds",
            "seconds",
            (0, 30 * 24 * 3_600),
            Some(24 * 3_600),
            "How long a request is tried again, with growing pauses of up to a minute, before its events are given up and counted.",
        ),
    ]
}

fn redis() -> Vec<Setting> {
    vec![
        Setting::new(
            "redis.url",
            Kind::Redis,
            None,
            "Redis that joins several hosts. Unset: the systemd credential redis_url, else this host is alone. Beside redis.sentinels it says how to talk to the master (TLS, user, password, database), beside redis.cluster who we are to nodes that are named without a user or password; its host does not count there.",
        )
        .flag("--redis")
        .old(&["REDIS_URL", "REDIS_HOST with REDIS_PORT and REDIS_PASSWORD"]),
        Setting::new("redis.url_file", Kind::File, None, "File with that URL, because of its password; one newline at its end does not count."),
        Setting::new(
            "redis.cluster",
            Kind::Servers,
            None,
            "Some nodes of a Redis Cluster (Redis 7 or later), which name the others. It has one database.",
        ),
        Setting::new(
            "redis.sentinels",
            Kind::Servers,
            None,
            "Redis Sentinels, which know the master; with what they want as user and password themselves. Port without a word: 26379.",
        ),
        Setting::new("redis.master", Kind::Word, None, "What the sentinels call the master."),
        Setting::new(
            "redis.ca_file",
            Kind::File,
            None,
            "PEM file with the authorities that sign the certificates of rediss:// servers. Unset: those of the system, or of the variable SSL_CERT_FILE.",
        ),
        Setting::new("redis.certificate_file", Kind::File, None, "PEM file with the certificate to show to Redis, where it wants one."),
        Setting::new("redis.key_file", Kind::File, None, "PEM file with the key of that certificate."),
        Setting::new(
            "redis.socket_io_key",
            Kind::Word,
            word(Relay::KEY),
            "First word of the channels of Socket.IO: the option key of Node's adapters and emitter, and the name of the stream.",
        ),
        Setting::new(
            "redis.prefix",
            Kind::Word,
            word(Relay::PREFIX),
            "First word of the channels and keys that uringcast hosts have for themselves. Hosts of one fleet have the same, two fleets on one Redis different ones.",
        ),
    ]
}

fn relay() -> Vec<Setting> {
    let number = Setting::number;
    vec![
        Setting::new(
            "relay.mode",
            Kind::Choice(&["pubsub", "streams"]),
            word("pubsub"),
            "How messages travel between hosts. pubsub: at once, and lost for who is cut off from Redis; streams: who comes back reads what he has missed, as far as the streams reach. The same on all hosts.",
        ),
        Setting::new(
            "relay.adapter",
            Kind::Choice(&["classic", "sharded"]),
            word("classic"),
            "Whose format Socket.IO endpoints speak in pubsub mode. classic: of Node's createAdapter and emitter; sharded: of createShardedAdapter, which needs Redis 7. The same on all hosts.",
        ),
        number(
            "relay.buffer_bytes",
            "bytes",
            (1, 1 << 40),
            None,
            "Memory for messages that wait for Redis while it is away; what does not fit is counted and gone. Unset: 16000000, in streams mode 64000000.",
        ),
        number(
            "relay.buffer_ms",
            "milliseconds",
            (0, HOUR_MS),
            Some(30_000),
            "How long they wait in pubsub mode; older ones are counted and gone.",
        ),
        number(
            "relay.stream_entries",
            "entries",
            (1, 1_000_000_000),
            Some(10_000),
            "Entries that a stream keeps, about: what a host can miss and still read.",
        ),
        number(
            "relay.lease_ms",
            "milliseconds",
            (3_000, HOUR_MS),
            Some(30_000),
            "A host that is not heard of for this long is gone, and its users are offline. It renews this every third of it.",
        ),
    ]
}

/// The keys of an `[[endpoint]]`. Defaults that depend on the dialect are told in `doc` and made in `endpoints`.
pub(crate) fn endpoint_settings() -> Vec<Setting> {
    vec![
        Setting::new(
            "endpoint.name",
            Kind::Word,
            None,
            "Label in metrics and the admin API: 1 to 64 of a-z, A-Z, 0-9, - and _, another one for each endpoint.",
        ),
        Setting::new(
            "endpoint.dialect",
            Kind::Choice(&["community", "collab", "rooms", "chat", "notify"]),
            None,
            "How it talks: community and collab are plain WebSocket, rooms, chat and notify are Socket.IO.",
        ),
        Setting::new(
            "endpoint.bind",
            Kind::Word,
            None,
            "The request path of a plain WebSocket endpoint (/ws/fabric), the namespace of a Socket.IO one (/ or /chat).",
        ),
        Setting::new(
            "endpoint.auth",
            Kind::Choice(&["token", "none"]),
            None,
            "none: clients say who they are and are believed (not for community). Default: token; rooms with --dev: none.",
        ),
        Setting::new(
            "endpoint.membership",
            Kind::Choice(&["auto", "open", "claims", "webhook", "redis"]),
            None,
            "Who may enter a room (notify: whose presence may be watched, `user:ID` in the list). open: anyone; claims: whom the token's list names; webhook: whom the back end lets in (webhook_join); redis: whose id is in the set ROOM:members of the Redis that joins hosts; auto (community only): claims when the token has lists, else redis where there is a Redis, else open. Default: community auto, collab claims (with --dev open), rooms, chat and notify open.",
        ),
        Setting::new(
            "endpoint.cookies",
            Kind::Boolean,
            None,
            "A session cookie is a place to look for a token. Default: true, notify false.",
        ),
        Setting::new(
            "endpoint.client_publish",
            Kind::Boolean,
            None,
            "community only: clients may send CHAT_MESSAGE over the WebSocket. Default: false, with --dev true.",
        ),
        Setting::new(
            "endpoint.auto_create",
            Kind::Boolean,
            None,
            "rooms only: joining a room that does not exist creates it. Default: false, with --dev true.",
        ),
        Setting::new(
            "endpoint.require_membership",
            Kind::Boolean,
            None,
            "chat only: a message to a room is taken only from who is in it. Default: true.",
        ),
        Setting::number(
            "endpoint.retain",
            "messages",
            (0, 100_000),
            Some(0),
            "collab only: update and steps messages of a document kept for those who join later.",
        ),
        Setting::number(
            "endpoint.recovery_ms",
            "milliseconds",
            (0, HOUR_MS),
            Some(0),
            "Socket.IO only: how long a connection that broke off can be recovered, with the events it missed. 0: not at all. Events then end with an offset, which listeners get as one more argument.",
        ),
        Setting::new(
            "endpoint.eio3",
            Kind::Boolean,
            Some(Value::Boolean(false)),
            "Socket.IO only: serves clients of Engine.IO 3 too (socket.io-client 1 and 2).",
        ),
        Setting::new(
            "endpoint.webhook_connect",
            Kind::Url,
            None,
            "Asked whether a client may connect (notify: when it has said who it is), after its token was found good or none was given. It may say who the client is.",
        ),
        Setting::new(
            "endpoint.webhook_join",
            Kind::Url,
            None,
            "Asked whether a user may enter a room by his client's wish; needs membership = \"webhook\", which needs it.",
        ),
        Setting::new(
            "endpoint.webhook_publish",
            Kind::Url,
            None,
            "Asked whether a client may say something, and what: community CHAT_MESSAGE, chat message, rooms message and document:edit, collab update and steps. Not for notify.",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_setting_is_documented_and_named_once() {
        let all = [settings(), endpoint_settings()].concat();
        let paths: HashSet<_> = all.iter().map(|setting| setting.path).collect();
        let variables: HashSet<_> = all.iter().map(Setting::variable).collect();
        assert_eq!((paths.len(), variables.len()), (all.len(), all.len()));
        for setting in &all {
            assert!(!setting.section().is_empty() && !setting.key().is_empty() && setting.doc.ends_with('.'), "{}", setting.path);
            assert!(setting.doc.len() > 20 && !setting.kind.allowed().is_empty(), "{}", setting.path);
            let counts = matches!(setting.kind, Kind::Integer { .. }) && setting.path != "server.shards";
            assert_eq!(counts, !setting.unit.is_empty(), "{}", setting.path);
        }
    }

    #[test]
    fn every_default_is_allowed() {
        for setting in [settings(), endpoint_settings()].concat() {
            let Some(text) = setting.default.as_ref().and_then(Value::toml) else { continue };
            let table: toml::Table = format!("x = {text}").parse().expect("valid TOML");
            assert!(setting.kind.read(super::super::value::Raw::Toml(&table["x"])).is_some(), "{} = {text}", setting.path);
        }
    }
}
