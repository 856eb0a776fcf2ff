//! What this process was told and what it means. A setting is data (`table`); what was said about it is gathered from the flags,
//! the environment and the file (`sources`, `endpoints`), and becomes the engine's [`Config`] and the control plane's own settings
//! here, once. Whoever has a [`Settings`] need not check anything again; whoever has [`Problems`] has all of them.

mod access;
mod auth;
mod cpus;
mod endpoints;
mod events;
mod print;
mod problem;
mod profile;
mod redis;
#[cfg(test)]
pub(crate) mod scratch;
mod sources;
mod table;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::auth::Verifier;
use engine::config::{Config, Io, Membership, Relay, SocketIo};
use engine::limits::Limits;

pub use access::Access;
pub use print::print;
pub use problem::{Problem, Problems};
pub use profile::TestProfile;
pub(crate) use sources::percent_encoded;
pub use sources::{Environment, Flags};
pub use value::ControlListen;

use crate::events::Bounds;
use crate::events::webhook::Webhook;
use crate::hooks::HookSettings;
use crate::http::bundle::Bundle;
use crate::jwks::Keeper;
use crate::outbound::Url;
use crate::secret::Secret;
use problem::Origin;
use sources::{Gathered, Given};
use value::Value;

/// Secrets shorter than this can be found by trying; they are taken, with a warning.
const SECRET_BYTES_ADVISED: usize = 16;

/// Milliseconds that a shard waits longer for a webhook's answer than whoever asks the webhook: its way, on a machine that is busy.
const INQUIRY_MARGIN_MS: u64 = 500;

/// Everything the process runs with.
pub struct Settings {
    /// For [`engine`]'s start.
    pub engine: Config,
    /// Where the control plane listens.
    pub control_listen: ControlListen,
    /// Opens the admin API; `None`: it answers only on a Unix socket. With `--dev` there always is one.
    pub admin_token: Option<Secret>,
    /// True exactly when `--dev` was given.
    pub dev: bool,
    /// With `--dev` and HS256: signs the tokens that are shown for trying out.
    pub dev_secret: Option<Secret>,
    /// With `--dev`: what the secrets are made of that nobody has given. A reload hands it on, so that what was shown for trying out stays good.
    pub dev_seed: Option<Secret>,
    /// Keeps the key set up to date where tokens are verified with one.
    pub jwks: Option<Keeper>,
    /// Where Redis is that joins several hosts, for people: without passwords.
    pub redis: Option<String>,
    /// What the back end is asked, if it is.
    pub hooks: Option<HookSettings>,
    /// On SIGTERM, closing all connections is spread over this time.
    pub drain: Duration,
    /// True exactly when pages of any origin may connect, without cookies; those listed by name are in [`Config::origins`].
    pub any_origin: bool,
    /// The Socket.IO client's files, where they are served.
    pub bundle: Option<Bundle>,
    /// How much of what happens is kept.
    pub journal: Bounds,
    /// Where it is sent.
    pub webhook: Option<Webhook>,
    /// The configuration file as it was read, where there is one.
    pub configuration: Option<String>,
    /// What the operator should know though it stops nothing; a line each.
    pub warnings: Vec<String>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("engine", &self.engine)
            .field("control_listen", &self.control_listen)
            .field("dev", &self.dev)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads flags, environment and file; all problems at once.
    pub fn load(flags: &Flags, environment: &Environment) -> Result<Settings, Problems> {
        let mut gathered = Gathered::gather(flags, environment);
        let dev_seed = flags.dev.then(|| flags.dev_seed.clone().unwrap_or_else(Secret::generated));
        let token_secret = token_secret(&mut gathered, environment);
        let admin_token = admin_token(&mut gathered, environment);
        let verification = auth::verification(&mut gathered, token_secret, dev_seed.as_ref());
        check_relations(&mut gathered);
        let hooks = hooks(&mut gathered, environment, dev_seed.as_ref());
        let bundle = bundle(&mut gathered);
        let webhook = events::webhook(&mut gathered, environment);
        let fleet = redis::fleet(&mut gathered, environment);
        if fleet.is_none() && gathered.endpoints.list.iter().any(|endpoint| endpoint.membership == Membership::Redis) {
            gathered.complain("redis.url", "must be set: an endpoint has membership = \"redis\"");
        }
        if !gathered.problems.is_empty() {
            return Err(Problems(gathered.problems));
        }
        let (verifier, signing, jwks) = match verification {
            Some(it) => (Some(it.verifier), it.signing, it.keeper),
            None => (None, None, None),
        };
        let (relay, redis) = fleet.map(|fleet| (fleet.relay, fleet.place)).unzip();
        // Only there are they told to somebody.
        let has_callers = gathered.endpoints.list.iter().any(|endpoint| endpoint.connect_hook);
        Ok(Settings {
            engine: engine_config(&gathered, verifier.map(|verifier| verifier.keeping_claims(has_callers)), relay, flags.dev),
            control_listen: gathered.control("control.listen").clone(),
            admin_token: admin_token.or_else(|| dev_seed.as_ref().map(|seed| seed.derived("control.token"))),
            dev: flags.dev,
            dev_secret: signing.filter(|_| flags.dev),
            dev_seed,
            jwks,
            redis,
            hooks,
            drain: Duration::from_secs(gathered.integer("server.drain_seconds").unwrap_or_default()),
            any_origin: any_origin(&gathered, flags.dev),
            bundle,
            configuration: gathered.configuration.take(),
            journal: events::journal(&gathered),
            webhook,
            warnings: gathered.warnings,
        })
    }

    /// The secret that a server with these flags and this environment verifies with, for `uringcast token`. `file` is asked first.
    /// Problems of other settings do not matter here.
    pub fn signing_secret(flags: &Flags, environment: &Environment, file: Option<&Path>) -> Result<Secret, Problems> {
        if let Some(path) = file {
            return Secret::read(path).map_err(|fault| problem("--secret-file", path, fault));
        }
        let mut gathered = Gathered::gather(flags, environment);
        let secret = token_secret(&mut gathered, environment);
        gathered.problems.retain(|problem| problem.key.starts_with("auth.") || problem.key == "--config");
        if let Some(algorithm) = gathered.text("auth.algorithm").filter(|algorithm| *algorithm != "HS256") {
            let reason = format!("tokens are made with HS256 only, not with {algorithm}: give another secret with --secret-file");
            gathered.complain("auth.algorithm", reason);
        } else if secret.is_none() && gathered.problems.is_empty() {
            gathered.complain("auth.secret", NO_SECRET);
        }
        match secret {
            Some(secret) if gathered.problems.is_empty() => Ok(secret),
            _ => Err(Problems(gathered.problems)),
        }
    }
}

/// Seconds of a drain: an hour is enough for any fleet to take over the clients of one host, and does not last for ever.
pub(crate) const DRAIN_SECONDS_MAX: u64 = 3_600;

const NO_SECRET: &str = "there is no token secret: set auth.secret_file, the variable JWT_SECRET or the systemd credential jwt_secret, \
                         or auth.algorithm with auth.public_key_file, auth.jwks_file or auth.jwks_url; or try it out with --dev";

fn problem(key: &str, path: &Path, reason: impl fmt::Display) -> Problems {
    let value = Some(value::quoted(&path.display().to_string()));
    Problems(vec![Problem { key: key.to_owned(), value, origin: None, reason: reason.to_string() }])
}

/// The secret of HS256 and of session cookies, wherever it is kept.
fn token_secret(gathered: &mut Gathered, environment: &Environment) -> Option<Secret> {
    let secret = secret(gathered, environment, "auth.secret", "auth.secret_file", "jwt_secret");
    warn_of_short(gathered, "auth.secret", secret.as_ref());
    secret
}

/// The admin token, which must be something that a header can carry.
fn admin_token(gathered: &mut Gathered, environment: &Environment) -> Option<Secret> {
    let token = secret(gathered, environment, "control.token", "control.token_file", "admin_token");
    if token.as_ref().is_some_and(|token| !token.reveal().iter().all(u8::is_ascii_graphic)) {
        gathered.complain("control.token", "must be visible ASCII without spaces: it is sent in a header");
    }
    warn_of_short(gathered, "control.token", token.as_ref());
    token
}

fn warn_of_short(gathered: &mut Gathered, path: &str, secret: Option<&Secret>) {
    if secret.is_some_and(|secret| secret.reveal().len() < SECRET_BYTES_ADVISED) {
        gathered.warnings.push(format!("{path} is shorter than {SECRET_BYTES_ADVISED} bytes and can be found by trying"));
    }
}

/// A secret as a value or in a file, whichever comes from the stronger source, else the systemd credential.
fn secret(gathered: &mut Gathered, environment: &Environment, key: &str, file_key: &str, credential: &str) -> Option<Secret> {
    let value = gathered.given(key).cloned();
    let file = gathered.given(file_key).cloned();
    let rank = |given: &Given| given.origin.rank();
    match (value, file) {
        (Some(value), Some(file)) if rank(&value) == rank(&file) => {
            gathered.complain(file_key, format!("{key} is set in the same place: set one of them"));
            None
        }
        (Some(value), file) if file.as_ref().is_none_or(|file| rank(&value) < rank(file)) => match value.value {
            Value::Secret(secret) => Some(secret),
            Value::Server(url) => Secret::new(url.as_bytes()).ok(),
            other => unreachable!("the table says that {key} is a secret, not {other:?}"),
        },
        (_, Some(_)) => {
            let path = PathBuf::from(gathered.text(file_key).unwrap_or_default());
            Secret::read(&path).map_err(|fault| gathered.complain(file_key, fault.to_string())).ok()
        }
        _ => credential_secret(gathered, environment, key, credential),
    }
}

fn credential_secret(gathered: &mut Gathered, environment: &Environment, key: &str, credential: &str) -> Option<Secret> {
    let path = Path::new(environment.get("CREDENTIALS_DIRECTORY")?).join(credential);
    if !path.exists() {
        return None;
    }
    Secret::read(&path).map_err(|fault| gathered.problems.append(&mut problem(key, &path, format!("systemd credential: {fault}")).0)).ok()
}

/// The webhooks of all endpoints, if there are any.
fn hooks(gathered: &mut Gathered, environment: &Environment, dev_seed: Option<&Secret>) -> Option<HookSettings> {
    let secret = secret(gathered, environment, "webhooks.secret", "webhooks.secret_file", "webhook_secret");
    warn_of_short(gathered, "webhooks.secret", secret.as_ref());
    let all = gathered.endpoints.list.iter().zip(&gathered.endpoints.hooks);
    for (endpoint, urls) in all {
        if [&urls.connect, &urls.join, &urls.publish].into_iter().flatten().any(Url::is_exposed) {
            let warning = format!("endpoint {} has a webhook that is not https: whoever is on the way to it can answer it", endpoint.name);
            gathered.warnings.push(warning);
        }
    }
    let urls = &gathered.endpoints.hooks;
    if !urls.iter().any(|urls| urls.connect.is_some() || urls.join.is_some() || urls.publish.is_some()) {
        return None;
    }
    let endpoints = gathered.endpoints.list.iter().map(|endpoint| endpoint.name.clone()).zip(urls.iter().cloned()).collect();
    let Some(secret) = secret.or_else(|| dev_seed.map(|seed| seed.derived("webhooks.secret"))) else {
        // Where one was given that cannot be used, that has been said.
        if !gathered.problems.iter().any(|problem| problem.key.starts_with("webhooks.secret")) {
            let reason = "is needed by the endpoints' webhooks, which know by it who asks them: set it, webhooks.secret_file or the systemd \
                          credential webhook_secret";
            gathered.complain("webhooks.secret", reason);
        }
        return None;
    };
    let number = |key: &str| gathered.integer(&format!("webhooks.{key}")).unwrap_or_default();
    Some(HookSettings {
        endpoints,
        secret,
        timeout: Duration::from_millis(number("timeout_ms")),
        cache: Duration::from_millis(number("cache_ms")),
        cache_entries: number("cache_entries") as usize,
        concurrency: number("concurrency") as usize,
        message_bytes: gathered.integer("limits.message_bytes").unwrap_or_default() as usize,
    })
}

/// What single values cannot tell: relations between two of them.
fn check_relations(gathered: &mut Gathered) {
    let message_bytes = gathered.integer("limits.message_bytes");
    let outbox_was_set = gathered.given("limits.outbox_bytes").is_some_and(|given| given.origin != Origin::Default);
    if outbox_was_set && gathered.integer("limits.outbox_bytes") < message_bytes {
        gathered.complain("limits.outbox_bytes", "must be at least limits.message_bytes: no client could take such a message");
    }
    let path = gathered.text("socket_io.path").unwrap_or_default().to_owned();
    let inside = |bind: &str| format!("{bind}/").starts_with(&path);
    let taken: Vec<String> =
        gathered.endpoints.list.iter().filter(|one| !one.dialect.is_socket_io() && inside(&one.bind)).map(|one| one.name.clone()).collect();
    for name in taken {
        gathered.complain("socket_io.path", format!("must not contain the path of endpoint {name}"));
    }
    check_retained(gathered);
    check_cookie(gathered);
}

/// Anything but a token of RFC 6265 would end the name early, or the header.
fn check_cookie(gathered: &mut Gathered) {
    let is_token = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
    if gathered.text("socket_io.cookie").is_some_and(|name| !is_token(name)) {
        gathered.complain("socket_io.cookie", "must be a cookie's name: letters, digits and !#$%&'*+-.^_`|~");
    }
}

/// The client's files, read now: what is wrong with them stops the start.
fn bundle(gathered: &mut Gathered) -> Option<Bundle> {
    let folder = PathBuf::from(gathered.text("socket_io.bundle")?);
    let path = gathered.text("socket_io.path").unwrap_or_default().to_owned();
    Bundle::read(&folder, &path).map_err(|fault| gathered.complain("socket_io.bundle", fault.to_string())).ok()
}

/// No room keeps more than its bound, so an endpoint that wants more would silently get less.
fn check_retained(gathered: &mut Gathered) {
    let Some(kept) = gathered.integer("limits.history_messages") else { return };
    let greedy = gathered.endpoints.list.iter().filter(|one| one.retain as u64 > kept);
    let greedy: Vec<_> = greedy.map(|one| (one.name.clone(), one.retain)).collect();
    for (name, retain) in greedy {
        gathered.complain("limits.history_messages", format!("must be at least the {retain} that endpoint {name} has as retain"));
    }
}

fn any_origin(gathered: &Gathered, dev: bool) -> bool {
    let is_default = gathered.given("origins.allowed").is_none_or(|given| given.origin == Origin::Default);
    (dev && is_default) || gathered.list("origins.allowed").iter().any(|origin| origin == "*")
}

fn engine_config(gathered: &Gathered, verifier: Option<Verifier>, relay: Option<Relay>, dev: bool) -> Config {
    let shards = gathered.integer("server.shards").map(|shards| shards as usize);
    let listen: SocketAddr = gathered.address("server.listen");
    Config {
        listen,
        shards: cpus::of_shards(shards, gathered.boolean("server.pin"), &cpus::allowed()),
        io: match gathered.text("server.io") {
            Some("uring") => Io::Uring,
            Some("epoll") => Io::Epoll,
            _ => Io::Auto,
        },
        endpoints: gathered.endpoints.list.clone(),
        socket_io: socket_io(gathered),
        origins: gathered.list("origins.allowed").iter().filter(|origin| *origin != "*").cloned().collect(),
        any_origin: any_origin(gathered, dev),
        trusted_proxies: gathered.list("server.trusted_proxies").iter().filter_map(|address| address.parse().ok()).collect(),
        limits: limits(gathered),
        verifier,
        relay,
        keep_sockets: gathered.boolean("server.keep_sockets"),
    }
}

fn socket_io(gathered: &Gathered) -> SocketIo {
    let number = |key: &str| gathered.integer(&format!("socket_io.{key}")).unwrap_or_default();
    SocketIo {
        path: gathered.text("socket_io.path").unwrap_or_default().to_owned(),
        ping_interval_ms: number("ping_interval_ms"),
        ping_timeout_ms: number("ping_timeout_ms"),
        connect_timeout_ms: number("connect_timeout_ms"),
        cookie: gathered.text("socket_io.cookie").map(str::to_owned),
        strict_origin: gathered.boolean("socket_io.strict_origin"),
        bundle: gathered.text("socket_io.bundle").is_some(),
        raw_echo: false,
    }
}

/// All limits have defaults, but for the number of connections. The casts lose nothing: the table bounds every number.
fn limits(gathered: &Gathered) -> Limits {
    let number = |key: &str| gathered.integer(&format!("limits.{key}")).unwrap_or_default();
    Limits {
        message_bytes: number("message_bytes") as usize,
        outbox_bytes: number("outbox_bytes").max(number("message_bytes")) as usize,
        rate_messages: number("rate_messages") as u32,
        rate_window_ms: number("rate_window_ms"),
        rooms_per_connection: number("rooms_per_connection") as usize,
        connections_per_user: number("connections_per_user") as u32,
        connections_per_address: number("connections_per_address") as u32,
        handshakes_per_address: number("handshakes_per_address") as u32,
        handshakes_per_second: number("handshakes_per_second") as u32,
        memory: number("memory") as usize,
        connections: gathered.integer("limits.connections").map(|most| most as usize),
        head_bytes: number("head_bytes") as usize,
        handshake_ms: number("handshake_ms"),
        close_ms: number("close_ms"),
        history_messages: number("history_messages") as usize,
        history_age_ms: number("history_age_ms"),
        history_bytes: number("history_bytes") as usize,
        rooms: number("rooms") as usize,
        hold_ms: number("hold_ms"),
        recovery_sessions: number("recovery_sessions") as usize,
        recovery_events: number("recovery_events") as usize,
        recovery_bytes: number("recovery_bytes") as usize,
        inquiry_ms: gathered.integer("webhooks.timeout_ms").unwrap_or_default() + INQUIRY_MARGIN_MS,
    }
}
