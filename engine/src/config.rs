//! What the engine is told: typed, resolved, complete. It reads no file and no environment; whoever starts the engine does.
//!
//! ```
//! use engine::config::{AuthMode, Config, DialectKind, Endpoint};
//!
//! let collab = Endpoint { retain: 500, ..Endpoint::new("notes", DialectKind::Collab, "/ws/notes") };
//! let chat = Endpoint { auth: AuthMode::None, ..Endpoint::new("chat", DialectKind::Chat, "/") };
//! let mut config = Config::new(([127, 0, 0, 1], 3000), 4, vec![collab, chat]);
//! config.origins.push("https://app.example.com".into());
//! config.limits.message_bytes = 64 * 1024;
//! assert!(config.check().is_ok());
//! ```

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::auth::Verifier;
pub use crate::dialect::OwnDialect;
use crate::limits::{ENDPOINTS_MAX, Limits, SHARDS_MAX};

/// Everything [`crate::start`] needs.
#[derive(Debug)]
pub struct Config {
    /// Address of the public port. Port 0 lets the kernel choose; [`crate::Engine::local_addr`] tells.
    pub listen: SocketAddr,
    /// CPU of each shard; its length is the number of shards (1 to [`crate::limits::SHARDS_MAX`]). `None`: not pinned.
    pub shards: Vec<Option<usize>>,
    /// Which kernel interface the shards wait and send with.
    pub io: Io,
    /// What is served, in the order of the configuration (1 to [`crate::limits::ENDPOINTS_MAX`]). Names, paths and namespaces are unique.
    pub endpoints: Vec<Endpoint>,
    /// Settings that all Socket.IO endpoints share, because they share one Engine.IO path.
    pub socket_io: SocketIo,
    /// Origins allowed by name, as browsers send them (`https://app.example.com`).
    pub origins: Vec<String>,
    /// True exactly when pages of any origin may use long-polling; without cookies.
    pub any_origin: bool,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpAddr>,
    /// Bounds.
    pub limits: Limits,
    /// Verifies tokens; `None` refuses every token (only endpoints with [`AuthMode::None`] work).
    pub verifier: Option<Verifier>,
    /// How other hosts are reached; `None`: this host is alone.
    pub relay: Option<Relay>,
    /// True exactly when copies of the WebSockets' sockets are put into queues that may outlive the process, see [`crate::Engine::kept`].
    pub keep_sockets: bool,
}

impl Config {
    /// These endpoints on so many shards, which are pinned to no CPU. Everything else is as the contract has it by default, which lets in no
    /// page of another origin and knows no token.
    pub fn new(listen: impl Into<SocketAddr>, shards: usize, endpoints: Vec<Endpoint>) -> Config {
        Config {
            listen: listen.into(),
            shards: vec![None; shards],
            io: Io::Auto,
            endpoints,
            socket_io: SocketIo::default(),
            origins: Vec::new(),
            any_origin: false,
            trusted_proxies: Vec::new(),
            limits: Limits::default(),
            verifier: None,
            relay: None,
            keep_sockets: false,
        }
    }

    /// Whether it can be served. [`crate::start`] asks this first.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self) -> Result<(), ConfigFault> {
        if !(1..=SHARDS_MAX).contains(&self.shards.len()) {
            return Err(ConfigFault::Shards);
        }
        if !(1..=ENDPOINTS_MAX).contains(&self.endpoints.len()) {
            return Err(ConfigFault::Endpoints);
        }
        let path = &self.socket_io.path;
        if !(path.len() > 1 && path.starts_with('/') && path.ends_with('/')) {
            return Err(ConfigFault::SocketIoPath);
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let is_plain = !endpoint.dialect.is_socket_io();
            let is_taken = |other: &Endpoint| other.bind == endpoint.bind && other.dialect.is_socket_io() != is_plain;
            if self.endpoints[..index].iter().any(|other| other.name == endpoint.name) {
                return Err(ConfigFault::NameTaken(endpoint.name.clone()));
            }
            if endpoint.membership == Membership::Redis && self.relay.is_none() {
                return Err(ConfigFault::NoRedis(endpoint.name.clone()));
            }
            if !endpoint.bind.starts_with('/') || (is_plain && endpoint.bind.starts_with(path)) {
                return Err(ConfigFault::Bind(endpoint.name.clone()));
            }
            if self.endpoints[..index].iter().any(is_taken) {
                return Err(ConfigFault::BindTaken(endpoint.name.clone()));
            }
        }
        Ok(())
    }

    /// True exactly when the back end is asked who may connect to some Socket.IO endpoint.
    pub fn asks_callers_of_socket_io(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.connect_hook && endpoint.dialect.is_socket_io())
    }

    /// True exactly when some endpoint serves clients of Engine.IO 3.
    pub fn serves_eio3(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.eio3)
    }
}

/// What is wrong with a configuration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigFault {
    /// No shard, or more than an id has room for.
    #[error("shards: 1 to {SHARDS_MAX}")]
    Shards,
    /// No endpoint, or more than an id has room for.
    #[error("endpoints: 1 to {ENDPOINTS_MAX}")]
    Endpoints,
    /// The path of Socket.IO could not be told from others.
    #[error("socket_io.path: begins and ends with a slash and is not only one")]
    SocketIoPath,
    /// Two endpoints have this name.
    #[error("endpoint {0}: another one has this name")]
    NameTaken(String),
    /// No request comes to where this endpoint is bound.
    #[error("endpoint {0}: bind begins with a slash and is not inside the path of Socket.IO")]
    Bind(String),
    /// This endpoint's members are kept in Redis, and there is none.
    #[error("endpoint {0}: membership redis needs a Redis")]
    NoRedis(String),
    /// This endpoint is bound to where another one is.
    #[error("endpoint {0}: another one has this bind")]
    BindTaken(String),
}

/// Kernel interface of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Io {
    /// io_uring, and where the kernel forbids it epoll, saying so in [`crate::Engine::io_note`].
    Auto,
    /// io_uring or no start.
    Uring,
    /// epoll.
    Epoll,
}

/// A path or namespace bound to a dialect.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Label in metrics and in the admin API.
    pub name: String,
    /// How it talks, and where.
    pub dialect: DialectKind,
    /// Where it is bound: the request path of a plain WebSocket dialect, the namespace (`/`, `/chat`) of a Socket.IO dialect.
    pub bind: String,
    /// How clients prove who they are.
    pub auth: AuthMode,
    /// Who decides which rooms a client may enter.
    pub membership: Membership,
    /// True exactly when the session cookie is a place to look for a token.
    pub cookies: bool,
    /// community: clients may publish `CHAT_MESSAGE` over the WebSocket.
    pub client_publish: bool,
    /// rooms: joining a room that does not exist creates it.
    pub auto_create: bool,
    /// chat: only who is in a room may send to it.
    pub require_membership: bool,
    /// collab: how many `update` and `steps` messages of a document are kept for late joiners; 0 keeps none.
    pub retain: usize,
    /// Socket.IO: milliseconds for which a connection that broke off can be recovered with what it missed; 0: not at all.
    pub recovery_ms: u64,
    /// Socket.IO: clients of Engine.IO 3 (`socket.io-client` 1 and 2) are served too.
    pub eio3: bool,
    /// True exactly when the back end is asked who may connect ([`crate::Notice::Inquiry`]).
    pub connect_hook: bool,
    /// True exactly when the back end is asked what clients may say to others.
    pub publish_hook: bool,
}

impl Endpoint {
    /// An endpoint with the contract's defaults for its dialect, which is a [`DialectKind`] or an [`OwnDialect`].
    pub fn new(name: &str, dialect: impl Into<DialectKind>, bind: &str) -> Endpoint {
        let dialect = dialect.into();
        Endpoint {
            name: name.into(),
            dialect,
            bind: bind.into(),
            auth: AuthMode::Token,
            membership: match dialect {
                DialectKind::Community => Membership::Auto,
                DialectKind::Collab => Membership::Claims,
                DialectKind::Rooms | DialectKind::Chat | DialectKind::Notify | DialectKind::Echo | DialectKind::Own(_) => Membership::Open,
            },
            cookies: dialect != DialectKind::Notify,
            client_publish: false,
            auto_create: false,
            require_membership: true,
            retain: 0,
            recovery_ms: 0,
            eio3: false,
            connect_hook: false,
            publish_hook: false,
        }
    }
}

/// The served systems.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DialectKind {
    /// Community chat over plain WebSocket.
    Community,
    /// Document collaboration over plain WebSocket.
    Collab,
    /// Rooms with history over Socket.IO.
    Rooms,
    /// Messages between rooms, users and sockets over Socket.IO.
    Chat,
    /// Notifications for users, over Socket.IO; clients prove who they are after connecting.
    Notify,
    /// The echo that conformance suites of Socket.IO expect; only a test profile has it.
    Echo,
    /// A dialect of the program that embeds the engine; no configuration file can name one.
    Own(OwnDialect),
}

impl From<OwnDialect> for DialectKind {
    fn from(own: OwnDialect) -> DialectKind {
        DialectKind::Own(own)
    }
}

impl DialectKind {
    /// True exactly when it is spoken over Socket.IO.
    pub fn is_socket_io(self) -> bool {
        match self {
            DialectKind::Community | DialectKind::Collab => false,
            DialectKind::Rooms | DialectKind::Chat | DialectKind::Notify | DialectKind::Echo => true,
            DialectKind::Own(own) => own.is_socket_io(),
        }
    }

    /// True exactly when its clients say who they are after they have connected.
    pub fn identifies_later(self) -> bool {
        self == DialectKind::Notify
    }

    /// The word for it in configuration and metrics.
    pub fn name(self) -> &'static str {
        match self {
            DialectKind::Community => "community",
            DialectKind::Collab => "collab",
            DialectKind::Rooms => "rooms",
            DialectKind::Chat => "chat",
            DialectKind::Notify => "notify",
            DialectKind::Echo => "echo",
            DialectKind::Own(own) => own.name(),
        }
    }
}

/// How clients of an endpoint prove who they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuthMode {
    /// By a token.
    Token,
    /// Not at all: the handshake's own words count.
    None,
}

/// Who decides which rooms a client may enter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Membership {
    /// community only: the token's lists when it carries any, else as [`Membership::Redis`] where there is a relay, else open.
    Auto,
    /// Anyone who is authenticated.
    Open,
    /// The token's lists.
    Claims,
    /// The back end, which is asked each time ([`crate::Notice::Inquiry`]).
    Webhook,
    /// A set of user ids for each room, `{room}:members` in the relay's Redis, which is looked at each time.
    Redis,
}

impl Membership {
    /// True exactly when a set in Redis decides; `has_lists`: the token carries lists of rooms, `has_relay`: there is a Redis.
    pub fn is_in_redis(self, has_lists: bool, has_relay: bool) -> bool {
        match self {
            Membership::Redis => true,
            Membership::Auto => has_relay && !has_lists,
            Membership::Open | Membership::Claims | Membership::Webhook => false,
        }
    }
}

/// Engine.IO and Socket.IO settings.
#[derive(Clone, Debug)]
pub struct SocketIo {
    /// Request path with both slashes: `/socket.io/`.
    pub path: String,
    /// Milliseconds between a pong and the next ping.
    pub ping_interval_ms: u64,
    /// Milliseconds to wait for the pong.
    pub ping_timeout_ms: u64,
    /// Milliseconds within which a namespace must be joined.
    pub connect_timeout_ms: u64,
    /// Name of the cookie in which a long-polling handshake gives the session's id, for load balancers; `None`: no cookie.
    pub cookie: Option<String>,
    /// True exactly when handshakes of pages whose origin is not allowed are refused, WebSockets too. CORS alone lets them through.
    pub strict_origin: bool,
    /// True exactly when requests for the client's files (`{path}socket.io.js`) go to the control plane, which has them.
    pub bundle: bool,
    /// True exactly when there is no Socket.IO above Engine.IO and every message goes back to who sent it; only a test profile does that.
    pub raw_echo: bool,
}

impl Default for SocketIo {
    fn default() -> Self {
        SocketIo {
            path: "/socket.io/".into(),
            ping_interval_ms: 25_000,
            ping_timeout_ms: 60_000,
            connect_timeout_ms: 45_000,
            cookie: None,
            strict_origin: false,
            bundle: false,
            raw_echo: false,
        }
    }
}

/// How several hosts are one fleet: through Redis.
#[derive(Clone, Debug)]
pub struct Relay {
    /// Where Redis is.
    pub redis: Redis,
    /// How messages travel.
    pub mode: RelayMode,
    /// Whose wire format Socket.IO endpoints speak in [`RelayMode::PubSub`].
    pub adapter: Adapter,
    /// First word of the channels and keys that only uringcast hosts use.
    pub prefix: String,
    /// First word of the Socket.IO adapters' channels, and name of their stream: the `key` of the Node servers.
    pub socket_io_key: String,
    /// Bytes of messages kept while Redis is away.
    pub buffer_bytes: usize,
    /// Milliseconds for which they are kept in [`RelayMode::PubSub`].
    pub buffer_ms: u64,
    /// Entries that a stream is trimmed to, about.
    pub stream_entries: usize,
    /// Milliseconds after which a host that says nothing more of itself is dead. It says so three times as often, and as often looks after
    /// the others.
    pub lease_ms: u64,
    /// What this program calls its release, for whoever looks at the fleet; nothing if it is not said.
    pub version: String,
}

impl Relay {
    /// [`Self::socket_io_key`] that Node's adapters have where nobody says another.
    pub const KEY: &str = "socket.io";

    /// [`Self::prefix`] where nobody says another.
    pub const PREFIX: &str = "uringcast";

    /// By way of one Redis, with the contract's defaults.
    pub fn new(url: &str) -> Relay {
        Relay {
            redis: Redis { urls: vec![url.to_owned()], ..Redis::default() },
            mode: RelayMode::PubSub,
            adapter: Adapter::Classic,
            prefix: Relay::PREFIX.to_owned(),
            socket_io_key: Relay::KEY.to_owned(),
            buffer_bytes: 16_000_000,
            buffer_ms: 30_000,
            stream_entries: 10_000,
            lease_ms: 30_000,
            version: String::new(),
        }
    }
}

/// Where Redis is. Its debug form shows no password.
#[derive(Clone, Default)]
pub struct Redis {
    /// `redis://`, `rediss://` or `unix://`; several of a cluster's nodes, or of the sentinels.
    pub urls: Vec<String>,
    /// What the sentinels call the master; there exactly when [`Self::urls`] are sentinels.
    pub master: Option<String>,
    /// Where there are sentinels: how to talk to the master, a URL of which the host does not count.
    pub node: String,
    /// True exactly when [`Self::urls`] are nodes of a cluster.
    pub is_cluster: bool,
    /// Authorities of the system, DER; they count where [`Self::ca`] says nothing.
    pub system_der: Vec<Vec<u8>>,
    /// Authorities to trust instead, PEM.
    pub ca: Option<Vec<u8>>,
    /// Certificate chain and key to show, PEM each.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Redis");
        shown.field("urls", &self.urls.len()).field("master", &self.master).field("is_cluster", &self.is_cluster).finish_non_exhaustive()
    }
}

/// How messages travel from host to host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelayMode {
    /// By PUBLISH: who does not listen at that moment misses them.
    PubSub,
    /// By streams: who comes back reads what he has missed, as far as they reach.
    Streams,
}

/// Wire formats of Socket.IO's Redis adapters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adapter {
    /// Of `createAdapter`: `@socket.io/redis-adapter`'s first, which the emitter speaks too.
    Classic,
    /// Of `createShardedAdapter`, with sharded pub/sub.
    Sharded,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_be_served_says_why() {
        let plain = |name, bind| Endpoint::new(name, DialectKind::Collab, bind);
        let socket = |name, bind| Endpoint::new(name, DialectKind::Rooms, bind);
        let check = |shards, endpoints| Config::new(([127, 0, 0, 1], 0), shards, endpoints).check();
        assert_eq!(check(2, vec![plain("a", "/"), socket("b", "/"), plain("c", "/c")]), Ok(()), "a path is no namespace");
        assert_eq!(check(0, vec![plain("a", "/a")]), Err(ConfigFault::Shards));
        assert_eq!(check(256, vec![plain("a", "/a")]), Err(ConfigFault::Shards));
        assert_eq!(check(1, vec![]), Err(ConfigFault::Endpoints));
        assert_eq!(check(1, vec![plain("a", "/a"); 256]), Err(ConfigFault::Endpoints));
        assert_eq!(check(1, vec![plain("a", "/a"), socket("a", "/a")]), Err(ConfigFault::NameTaken("a".into())));
        assert_eq!(check(1, vec![socket("a", "/x"), socket("b", "/x")]), Err(ConfigFault::BindTaken("b".into())));
        for bind in ["", "a", "/socket.io/", "/socket.io/x"] {
            assert_eq!(check(1, vec![plain("a", bind)]), Err(ConfigFault::Bind("a".into())), "{bind:?}");
        }
        for path in ["", "/", "/a", "a/"] {
            let mut config = Config::new(([127, 0, 0, 1], 0), 1, vec![plain("a", "/b")]);
            config.socket_io.path = path.into();
            assert_eq!(config.check(), Err(ConfigFault::SocketIoPath), "{path:?}");
        }
    }
}
